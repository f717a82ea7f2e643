"""PerpVecEnv: many accounts on shared paths of one tape, stepped in one compiled call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from perpgym.data.bars import Bars
from perpgym.data.clock import iso
from perpgym.data.tape import Tape
from perpgym.envs.account import ORDER_COLUMNS, POSITION_COLUMNS, WALLET_COLUMNS
from perpgym.envs.actions import ACTION_DIM, action_space
from perpgym.envs.arrays import BatchState
from perpgym.envs.batch import (
    copy_final_windows,
    copy_windows,
    first_bad_action,
    observe_batch,
    restart_batch,
    step_batch,
)
from perpgym.envs.buffers import StepBuffers, make_account
from perpgym.envs.compile import bind
from perpgym.envs.config import EnvConfig
from perpgym.envs.fees import TRADED_COLUMNS
from perpgym.envs.finer import Finer
from perpgym.envs.masks import mask_batch
from perpgym.envs.observation import as_rows, observation_dict
from perpgym.envs.risk.limits import RiskLimits
from perpgym.envs.rules import make_world
from perpgym.envs.spaces import (
    LEDGER_COLUMNS,
    TOTAL_COLUMNS,
    observation_space,
)

if TYPE_CHECKING:
    from perpgym.envs.sb3 import SB3PerpVecEnv

# ln of the range in which a ``random`` restart draws the wallet
_WALLET_LOG_RANGE = 0.5
# comparing with it is three times as fast as with numpy.float32
_FLOAT32 = np.dtype(np.float32)


class PerpVecEnv(gym.vector.VectorEnv[dict[str, Any], NDArray[np.float32], NDArray[Any]]):
    """N = n_paths * accounts_per_path accounts; account i lives on path ``i // accounts_per_path``.

    A path is one episode of ``config.episode_bars`` bars that starts where R and every look-back fit between
    ``start_bar`` and ``end_bar``; the first episodes have staggered lengths. Its accounts truncate together
    and move to a new path; a terminated account restarts in place. The native call is :meth:`step_into`; the
    Gymnasium face (``reset``, ``step``) declares ``SAME_STEP`` autoreset with ``final_obs``; ``as_sb3()`` is
    Stable-Baselines3's face.

    Args:
        tape: the market, A contracts that settle in one currency.
        n_paths: P.
        accounts_per_path: K.
        config: account and execution.
        limits: the risk overlay.
        start_bar: the first decision is taken at the close of this bar or later; None for the earliest.
        end_bar: bars from this one on are never booked nor shown; None for the tape's end.
        finer: shorter bars of the same contracts, which resolve what happens inside a bar, and latency; the
            period is cut to what they cover.
        seed: of starts, staggering and random restarts.
        with_windows: whether buffers hold market and risk windows beside the bar index.

    Raises:
        ValueError: the period is too short for one step.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": [],
    }

    def __init__(
        self,
        tape: Tape,
        *,
        n_paths: int,
        accounts_per_path: int = 1,
        config: EnvConfig | None = None,
        limits: RiskLimits | None = None,
        start_bar: int | None = None,
        end_bar: int | None = None,
        finer: Bars | Sequence[Bars] | None = None,
        seed: int = 0,
        with_windows: bool = False,
    ) -> None:
        for name, count in (("n_paths", n_paths), ("accounts_per_path", accounts_per_path)):
            if not isinstance(count, int | np.integer) or count < 1:
                raise ValueError(f"{name} must be a whole number, at least 1, was {count!r}")
        self.tape = tape
        self.config = config or EnvConfig()
        self.limits = limits or RiskLimits()
        self.n_paths, self.accounts_per_path = n_paths, accounts_per_path
        self.num_envs = n_paths * accounts_per_path
        self.with_windows = with_windows
        self.action_dim = ACTION_DIM[self.config.action] * len(tape.contracts)
        earliest = tape.first_valid_bar + self.config.window_bars - 1
        self.first_bar = max(earliest, 0 if start_bar is None else start_bar)
        self.end_bar = min(len(tape), len(tape) if end_bar is None else end_bar)
        inside = None if finer is None else Finer.of(tape, finer)
        if inside is not None:
            self.first_bar = max(self.first_bar, inside.start_bar)
            self.end_bar = min(self.end_bar, inside.end_bar)
        if self.end_bar - self.first_bar < 2:
            raise ValueError(
                f"the period has {max(self.end_bar - self.first_bar, 0)} usable bars and needs at least 2: "
                f"the first decision can be taken at bar {self.first_bar} (look-back {tape.first_valid_bar}, "
                f"window {self.config.window_bars}), the last bar is {self.end_bar - 1}; use a longer period"
            )
        self._finer = inside
        self._read_tape()
        self._check_initial_margin()
        self._allocate()
        self.single_observation_space = observation_space(tape, self.config.window_bars, with_windows)
        self.single_action_space = action_space(self.config.action, len(tape.contracts), self.config.choices)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._rng = np.random.default_rng(seed)
        self._buffers: StepBuffers | None = None
        self._action_shape = (self.num_envs, self.action_dim)
        self._step: Callable[..., int] | None = None
        self._copy: Callable[..., None] | None = None

    def _check_initial_margin(self) -> None:
        config = self.config
        needed = sum(abs(config.initial_exposure) / x for x in config.leverages(len(self.tape.contracts)))
        if needed > 1.0 and config.limits == "on":
            raise ValueError(
                f"initial_exposure={config.initial_exposure:g} of {len(self.tape.contracts)} contracts needs "
                f"{needed:.2f} times the wallet as initial margin: lower it, or raise leverage"
            )

    def _read_tape(self) -> None:
        """What the kernels see of the tape."""
        self._world = make_world(self.tape, self.config, self.limits, self._finer)
        self._features, self._risk = as_rows(self.tape.features), as_rows(self.tape.risk)

    def _allocate(self) -> None:
        n, p, a = self.num_envs, self.n_paths, len(self.tape.contracts)
        self._state = BatchState(
            wallets=np.zeros((n, WALLET_COLUMNS)),
            positions=np.zeros((n, a, POSITION_COLUMNS)),
            orders=np.zeros((n, a, ORDER_COLUMNS)),
            traded=np.zeros((n, 0 if self.config.fees is None else TRADED_COLUMNS)),
            totals=np.zeros((n, len(TOTAL_COLUMNS))),
            path_bar=np.zeros(p, np.int64),
            path_end=np.zeros(p, np.int64),
            next_start=np.zeros(p, np.int64),
            next_end=np.zeros(p, np.int64),
            restart_wallet=np.zeros(n),
            restart_exposure=np.zeros((n, a)),
        )
        # one account at a time is in work
        self._scratch = make_account(a, has_tiers=self.config.fees is not None)

    # --- native face ---

    def make_buffers(self) -> StepBuffers:
        """The arrays for :meth:`reset_into` and :meth:`step_into`; allocate once."""
        return StepBuffers.allocate(
            self.num_envs,
            len(self.tape.contracts),
            self.config.window_bars if self.with_windows else None,
            self.tape.features.shape[2],
            self.tape.risk.shape[2],
        )

    def reset_into(self, out: StepBuffers, seed: int | None = None) -> None:
        """Start every path anew and write the first observation; a seed makes all that follows repeatable."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        every_path, every_account = np.arange(self.n_paths), np.arange(self.num_envs)
        self._draw_paths(every_path)
        self._state.path_bar[:] = self._state.next_start
        self._state.path_end[:] = self._state.next_end
        if self.n_paths > 1:
            left = self._state.path_end - self._state.path_bar
            self._state.path_end[:] = self._state.path_bar + self._rng.integers(1, left + 1)
        self._draw_paths(every_path)
        self._draw_restarts(every_account)
        bar = np.repeat(self._state.path_bar, self.accounts_per_path)
        restart_batch(self._world, self._state, bar)
        self._draw_restarts(every_account)
        self.observe_into(out)

    def keep_fills(self, most: int) -> NDArray[np.float64]:
        """From now on, write the first ``most`` fills of a step's last account into the array returned.

        Returns:
            (most, 6) float64, columns ``envs.fills.FILL_*``; the ledger's ``fills`` says how many rows count.
        """
        has_tiers = self.config.fees is not None
        self._scratch = make_account(len(self.tape.contracts), most, has_tiers=has_tiers)
        fills: NDArray[np.float64] = self._scratch.fills
        return fills

    def observe_into(self, out: StepBuffers) -> None:
        """Write the present observation, without stepping (after ``load_state_dict``)."""
        out.bar[:] = np.repeat(self._state.path_bar, self.accounts_per_path)
        observe_batch(self._world, self._state, out.bar, out.account, out.portfolio)
        self._copy_windows(out)

    def step_into(self, actions: NDArray[np.float32], out: StepBuffers) -> None:
        """Book one bar for every account, restart what ended, write ``out``.

        Allocates nothing, but for the draw of a start where a path ended.

        Args:
            actions: (N, action_dim) float32: in [-1, 1] and clipped, or indices of choices; (N,) too for one
                number.
            out: from :meth:`make_buffers`.

        Raises:
            ValueError: the actions have another shape, or one is no action; nothing was booked.
        """
        if actions.dtype != _FLOAT32 or not actions.flags.c_contiguous:
            actions = np.ascontiguousarray(actions, np.float32)
        if actions.ndim == 1 and self.action_dim == 1:
            actions = actions[:, None]
        if actions.shape != self._action_shape:
            raise ValueError(f"actions must have shape {self._action_shape}, had {actions.shape}")
        arguments = (
            self._world, self._state, actions, self._scratch, out.step_arrays, self.accounts_per_path
        )  # fmt: skip
        if self._step is None:
            self._step = bind(step_batch, *arguments)
        ended = self._step(*arguments)
        if ended < 0:
            raise ValueError(self._no_action(-1 - ended, actions[-1 - ended]))
        self._copy_windows(out)
        if ended > 0:
            self._after_restarts(out)

    def _no_action(self, account: int, action: NDArray[np.float32]) -> str:
        """Which number of an action is none, for which contract and when."""
        by_contract = action.reshape(len(self.tape.contracts), 1, -1)
        counts = self._world.choices.counts
        (first, *_more) = [i for i, part in enumerate(by_contract) if first_bad_action(part, counts) >= 0]
        close_ms = int(self.tape.open_time_ms[self._state.path_bar[account // self.accounts_per_path]])
        return (
            f"the action of account {account} is not finite or not in {self.single_action_space}: {action}, "
            f"for {self.tape.contracts[first].symbol} at the close of {iso(close_ms + self.tape.bar_ms)}; "
            "nothing was booked"
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """Which choices are allowed now, as sb3-contrib's MaskablePPO asks for them.

        Returns:
            (N, A * sum(choices)) bool, contract after contract, number after number.

        Raises:
            ValueError: the actions are continuous.
        """
        if not self.config.choices:
            raise ValueError(f"action={self.config.action} is continuous: masks need ladder or heads")
        width = len(self.tape.contracts) * sum(self.config.choices)
        masks = np.zeros((self.num_envs, width), np.bool_)
        bars = np.repeat(self._state.path_bar, self.accounts_per_path)
        mask_batch(self._world, self._state, self._scratch, bars, masks)
        return masks

    def _after_restarts(self, out: StepBuffers) -> None:
        """Draw what the next restarts will use, and copy the windows that ended."""
        moved = np.flatnonzero(self._state.next_start < 0)
        if moved.size:
            self._draw_paths(moved)
        if self.config.restart == "random":
            self._draw_restarts(np.flatnonzero(out.terminated | out.truncated))
        if out.final_market is not None and out.final_risk is not None:
            copy_final_windows(
                self._features, self._risk, out.terminated, out.truncated, out.final_bar,
                self.config.window_bars, out.final_market, out.final_risk,
            )  # fmt: skip

    def _copy_windows(self, out: StepBuffers) -> None:
        if out.market is not None and out.risk is not None:
            window = self.config.window_bars
            arguments = (self._features, self._risk, out.bar, window, out.market, out.risk)
            if self._copy is None:
                self._copy = bind(copy_windows, *arguments)
            self._copy(*arguments)

    def _draw_paths(self, paths: NDArray[np.int64]) -> None:
        """Draw the next start and end of these paths."""
        length = min(self.config.episode_bars, self.end_bar - 1 - self.first_bar)
        latest = self.end_bar - 1 - length
        start = self._rng.integers(self.first_bar, latest + 1, size=paths.size)
        self._state.next_start[paths] = start
        self._state.next_end[paths] = start + length

    def _draw_restarts(self, accounts: NDArray[np.int64]) -> None:
        config = self.config
        if config.restart == "flat":
            self._state.restart_wallet[accounts] = config.initial_wallet
            self._state.restart_exposure[accounts] = config.initial_exposure
            return
        scale = np.exp(self._rng.uniform(-_WALLET_LOG_RANGE, _WALLET_LOG_RANGE, accounts.size))
        self._state.restart_wallet[accounts] = config.initial_wallet * scale
        n_contracts = len(self.tape.contracts)
        # all together no more than the overlay admits, nor than the wallet can margin
        margin = config.leverages(n_contracts) if config.limits == "on" else (math.inf,)
        bound = np.minimum(margin, self.limits.max_leverage) / n_contracts
        exposure = self._rng.uniform(-1.0, 1.0, (accounts.size, n_contracts))
        self._state.restart_exposure[accounts] = exposure * np.minimum(bound, config.max_exposure)

    def __getstate__(self) -> dict[str, Any]:
        # machine code does not travel, and views of the tape would travel as a second copy of it
        apart = dict.fromkeys(("_step", "_copy", "_world", "_features", "_risk"))
        return {**self.__dict__, **apart}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._read_tape()

    @property
    def running_totals(self) -> NDArray[np.float64]:
        """(N, 8) the ledger's parts summed since each episode began; read it, the env writes on."""
        totals: NDArray[np.float64] = self._state.totals
        return totals

    def totals(self, out: StepBuffers) -> NDArray[np.float64]:
        """(N, 8) the ledger's parts summed since the episode began; of an episode that just ended, whole."""
        totals = self.running_totals.copy()
        done = out.terminated | out.truncated
        if done.any():
            totals[done] = out.final_totals[done]
        return totals

    # --- resuming ---

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on: arrays, and the generator's state as plain integers."""
        arrays = {name: array.copy() for name, array in self._state._asdict().items()}
        return {**arrays, "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, on an env built with the same arguments.

        Raises:
            ValueError: the state belongs to another number of accounts or paths.
        """
        for name, mine in self._state._asdict().items():
            theirs = np.asarray(state[name])
            if mine.shape != theirs.shape:
                raise ValueError(
                    f"the saved env has {name} of shape {theirs.shape}, this one {mine.shape}: "
                    "resume with the n_paths and accounts_per_path of the saved run"
                )
            mine[...] = theirs
        self._rng.bit_generator.state = state["rng"]

    # --- Gymnasium face ---

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Gymnasium's ``reset``; one integer seed for the whole batch."""
        if seed is not None and not isinstance(seed, int | np.integer):
            raise ValueError("PerpVecEnv takes one integer seed: its accounts share one generator")
        self._buffers = self._buffers or self.make_buffers()
        self.reset_into(self._buffers, None if seed is None else int(seed))
        return self.observation(self._buffers), {}

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[dict[str, Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Gymnasium's ``step`` with SAME_STEP autoreset; arrays are copies and may be kept."""
        if self._buffers is None:
            raise gym.error.ResetNeeded("call reset() before step()")
        out = self._buffers
        self.step_into(np.ascontiguousarray(actions, np.float32), out)
        info: dict[str, Any] = {name: out.ledger[:, i].copy() for i, name in enumerate(LEDGER_COLUMNS)}
        info["contracts"] = out.holdings.copy()
        totals = self.totals(out)
        info |= {f"total_{name}": totals[:, i] for i, name in enumerate(TOTAL_COLUMNS)}
        done = out.terminated | out.truncated
        if done.any():
            final = self.final_observation(out)
            info["final_obs"] = np.array(
                [{k: v[i] for k, v in final.items()} if done[i] else None for i in range(self.num_envs)],
                dtype=object,
            )
            info["_final_obs"] = done
        return self.observation(out), out.reward.copy(), out.terminated.copy(), out.truncated.copy(), info

    def observation(self, out: StepBuffers) -> dict[str, NDArray[Any]]:
        """The observation as Gymnasium's dictionary, copied out of the buffers."""
        return observation_dict(self.tape, out.bar, out.account, out.portfolio, out.market, out.risk)

    def final_observation(self, out: StepBuffers) -> dict[str, NDArray[Any]]:
        """The observation before the restart, as :meth:`observation`; meaningful where done."""
        return observation_dict(
            self.tape, out.final_bar, out.final_account, out.final_portfolio, out.final_market, out.final_risk
        )

    def as_sb3(self) -> SB3PerpVecEnv:
        """Stable-Baselines3's face on this env."""
        from perpgym.envs.sb3 import SB3PerpVecEnv

        return SB3PerpVecEnv(self)
