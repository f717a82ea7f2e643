"""PerpEnv: one account on a perpetual contract, as a plain Gymnasium environment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import Bars
from perpgym.data.contract import Contract
from perpgym.data.tape import Tape
from perpgym.envs.account import EQUITY, STOP_PRICE
from perpgym.envs.config import EnvConfig
from perpgym.envs.observation import single_observation
from perpgym.envs.render import EpisodeRecord, Step, draw
from perpgym.envs.risk.limits import RiskLimits
from perpgym.envs.spaces import (
    LEDGER_COLUMNS,
    TOTAL_COLUMNS,
    observation_space,
    observation_table,
)
from perpgym.envs.vector import PerpVecEnv

if TYPE_CHECKING:
    import pandas as pd

Observation = dict[str, NDArray[Any]]
_INFO_NAMES = (*LEDGER_COLUMNS, *(f"total_{name}" for name in TOTAL_COLUMNS))
# of a step that a picture can show: an order in slices has many
_MOST_FILLS = 256


class _Seen(NamedTuple):
    """One account's rows in the buffers: (1,) bar, (A, Ca) and (Cp,) observed, (8,) sums of the episode."""

    bar: NDArray[np.int64]
    account: NDArray[np.float32]
    portfolio: NDArray[np.float32]
    totals: NDArray[np.float64]


class PerpEnv(gym.Env[Observation, NDArray[np.float32]]):
    """One account on A perpetual contracts, linear or inverse, that settle in one currency.

    Observation (Dict):

    ========== ================== ========= ==========================================================
    key        shape              dtype     what
    ========== ================== ========= ==========================================================
    market     (R, A, F)          float32   raw market features of the last R closed bars, newest last
    risk       (R, A, K)          float32   raw market-risk features of the same bars
    clock      (1,)               int64     bars since the epoch of the newest bar, modulo 2**20
    valid      (R, A)             float32   with several contracts: 1 where a contract's features are whole
    account    (A, Ca)            float32   see the table below
    portfolio  (Cp,)              float32   see the table below
    ========== ================== ========= ==========================================================

    Action, contract after contract: ``target`` Box(-1, 1) (A,): exposure / max_exposure. ``band`` Box(-1, 1)
    (2 A,): centre and width of a no-trade band; inside it nothing is traded. ``ladder`` Discrete (A = 1) or
    MultiDiscrete (A,): a level of ``EnvConfig.ladder``; the level that stands means no order. ``heads``
    MultiDiscrete (4 A,): hold, long, short or flat; size; stop; execution style. :meth:`action_masks` says
    which choices margin, limits, brackets and the market forbid.

    Order of events for an action taken at the close of bar t: overlay and sizing at the mark close of t;
    liquidation if the mark opens beyond it; the order fills in bar t+1 (``execution``: at its open with half
    spread, impact and taker fee, in slices, or as a maker); stops, liquidation and settlements inside the
    bar, adverse side first; settlements at the close; mark to the mark close; margin check; reward;
    observation of bar t+1.

    Reward (``EnvConfig.reward``), from the log equity return g, floored at log(reward_equity_floor):
    ``log_return`` (default) g less (reward_risk_aversion - 1) / 2 * g**2; ``differential_sharpe`` and
    ``differential_sortino`` (their running moments are observed); ``mean_variance``, exposures times returns
    less risk and costs. Less the penalties on drawdown, turnover and liquidation, times reward_scale.

    Episode end: *terminated* on a cross liquidation or a drawdown of ``max_drawdown``; *truncated* at the end
    of the episode or of the data.

    ``info`` holds the ledger of the step (``envs.spaces.LEDGER_COLUMNS``), which adds up to the change of
    equity; that of each contract (``contracts``, (A, H) float64, columns ``CONTRACT_LEDGER``, ``reason``
    in words by :func:`reasons`); the parts summed since the episode began (``total_…``); and
    ``time_ms``, the close of the newest bar. A fill price is 0 where nothing filled.

    Args:
        tape: the market; None makes a small simulated one.
        config, limits, start_bar, end_bar, finer: as in :class:`PerpVecEnv`.
        contract: only with ``tape=None``: the symbol to simulate.
        render_mode: ``rgb_array`` keeps the last ``render_bars`` bars for :meth:`render`; None keeps nothing.
        render_bars: how many bars a picture shows.

    Version history: v0, first version.
    """

    # a day of hourly bars a second
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 24}  # noqa: RUF012 - Gymnasium's

    def __init__(
        self,
        tape: Tape | None = None,
        *,
        config: EnvConfig | None = None,
        limits: RiskLimits | None = None,
        start_bar: int | None = None,
        end_bar: int | None = None,
        finer: Bars | Sequence[Bars] | None = None,
        contract: str = "BTC/USDT:USDT",
        render_mode: str | None = None,
        render_bars: int = 200,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be 'rgb_array' or None, was {render_mode!r}")
        if render_bars < 1:
            raise ValueError(f"render_bars must be at least 1, was {render_bars}")
        self.render_mode = render_mode
        self.batch = PerpVecEnv(
            _small_tape(contract) if tape is None else tape,
            n_paths=1,
            config=config,
            limits=limits,
            start_bar=start_bar,
            end_bar=end_bar,
            finer=finer,
        )
        self.tape = self.batch.tape
        self._window = self.batch.config.window_bars
        self.observation_space = observation_space(self.tape, self._window, with_windows=True)  # type: ignore[assignment]
        self.action_space = self.batch.single_action_space
        self._buffers = self.batch.make_buffers()
        self._look_at_the_account()
        self._is_running = False
        self._record = None if render_mode is None else EpisodeRecord(self.tape, render_bars)
        self._fills = self.batch.keep_fills(0 if render_mode is None else _MOST_FILLS)

    @classmethod
    def from_frame(
        cls,
        df: pd.DataFrame,
        funding: pd.DataFrame | None = None,
        mark: pd.DataFrame | None = None,
        contract: str | Contract = "BTC/USDT:USDT",
        repair: Sequence[str] = (),
        **kwargs: Any,
    ) -> PerpEnv:
        """An env from a frame of bars with columns ``date, open, high, low, close, volume``.

        Columns with ``feature`` in their name take the place of perpgym's own, as other environments do it;
        :func:`perpgym.data.tape_from_frame` has more choices.

        Args:
            df: last prices, hourly or any equal spacing; ``date``, or the index, is the opening time (UTC).
            funding: ``date, rate`` of settlements; None means that the contract never settles, and says so.
            mark: mark prices with the columns of ``df``; None is the named rule ``mark=last``.
            contract: a shipped symbol or a Contract of your own.
            repair: named rules by which faults may be repaired, e.g. ``fill_flat``.
            **kwargs: ``config``, ``limits``, ``start_bar``, ``end_bar``.

        Raises:
            perpgym.data.DataError: the frames are not usable; says what to do.
        """
        from perpgym.data.prepared import tape_from_frame

        tape = tape_from_frame(df, funding=funding, mark=mark, contract=contract, repair=repair)
        return cls(tape, **kwargs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode at a random bar of the period."""
        super().reset(seed=seed)
        self.batch.reset_into(self._buffers, int(self.np_random.integers(2**31)))
        self._is_running = True
        if self._record is not None:
            equity = float(self.batch.state_dict()["wallets"][0, EQUITY])
            self._record.restart(int(self._buffers.bar[0]), equity)
        bar = self._now.bar.item(0)
        return self._observe(bar, self._now), {"time_ms": self._time_ms(bar)}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Book one bar. Raises ResetNeeded after an episode has ended."""
        if not self._is_running:
            raise gym.error.ResetNeeded("the episode has ended or never began: call reset() first")
        out = self._buffers
        stop = math.nan
        if self._record is not None:
            stop = float(self.batch.state_dict()["positions"][0, 0, STOP_PRICE])
        self.batch.step_into(np.asarray(action, np.float32)[None], out)
        is_terminated, is_truncated = out.terminated.item(0), out.truncated.item(0)
        self._is_running = not (is_terminated or is_truncated)
        seen = self._now if self._is_running else self._final
        # both have one length for ever, and checking it takes a thirtieth of the step
        booked = zip(_INFO_NAMES, self._ledger.tolist() + seen.totals.tolist(), strict=False)
        info: dict[str, Any] = dict(booked)
        info["contracts"] = self._holdings.copy()
        bar = seen.bar.item(0)
        info["time_ms"] = self._time_ms(bar)
        if self._record is not None:
            fills = self._fills[: int(info["fills"])].copy()
            self._record.add(Step(bar, self._ledger.copy(), self._holdings.copy(), stop, fills))
        return self._observe(bar, seen), out.reward.item(0), is_terminated, is_truncated, info

    def render(self) -> NDArray[np.uint8] | None:
        """The last ``render_bars`` bars: price with fills, stops and liquidations, exposure, equity, costs.

        Returns:
            (800, 1280, 3) uint8, RGB; None, with a warning, without ``render_mode``.

        Raises:
            ResetNeeded: no episode has begun.
        """
        if self._record is None:
            gym.logger.warn(
                "render() shows nothing without a mode: make the env with render_mode='rgb_array'"
            )
            return None
        if not self._record.start_equity:
            raise gym.error.ResetNeeded("no episode has begun: call reset() first")
        return draw(self._record)

    def action_masks(self) -> NDArray[np.bool_]:
        """Which choices are allowed now, (A * sum(choices),) bool; see ``PerpVecEnv.action_masks``."""
        masks: NDArray[np.bool_] = self.batch.action_masks()[0]
        return masks

    def _look_at_the_account(self) -> None:
        """Views of the only account's rows: taking them at every step costs a twelfth of it."""
        out = self._buffers
        self._now = _Seen(out.bar, out.account[0], out.portfolio[0], self.batch.running_totals[0])
        self._final = _Seen(out.final_bar, out.final_account[0], out.final_portfolio[0], out.final_totals[0])
        self._ledger, self._holdings = out.ledger[0], out.holdings[0]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # copies of views are no views
        self._look_at_the_account()

    def _observe(self, bar: int, seen: _Seen) -> Observation:
        return single_observation(self.tape, self._window, bar, seen.account, seen.portfolio)

    def _time_ms(self, bar: int) -> int:
        return self.tape.open_time_ms.item(bar) + self.tape.bar_ms


PerpEnv.__doc__ = f"{PerpEnv.__doc__}\n    Account and portfolio columns::\n\n        " + (
    observation_table().replace("\n", "\n        ")
)


def make_vector_env(
    num_envs: int = 1, tape: Tape | None = None, *, contract: str = "BTC/USDT:USDT", **kwargs: Any
) -> PerpVecEnv:
    """What ``gymnasium.make_vec("perpgym/Perp-v0", num_envs)`` makes: one account a path, with windows.

    Args:
        num_envs: N.
        tape, contract: as in :class:`PerpEnv`.
        **kwargs: of :class:`PerpVecEnv`.
    """
    market = _small_tape(contract) if tape is None else tape
    return PerpVecEnv(market, n_paths=num_envs, with_windows=True, **kwargs)


@cache
def _small_tape(symbol: str) -> Tape:
    """Half a year of simulated market, so that ``gymnasium.make("perpgym/Perp-v0")`` works with no data.

    A tape is never written to, so every env of a process shares it.
    """
    from perpgym.data.features.build import build_tape
    from perpgym.data.synthetic import SimulatedMarketConfig, simulate_market

    market = simulate_market(SimulatedMarketConfig(symbol=symbol, start="2024-01-01", end="2024-07-01"))
    return build_tape(market.bars, source="simulated")
