"""Drives agents over one period, all of them as accounts of one env on one path, and keeps their books."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perpgym.agents.protocol import Agent
from perpgym.agents.random_timing import RandomTiming
from perpgym.data.bars import CLOSE
from perpgym.data.contract import Contract
from perpgym.data.tape import Tape
from perpgym.envs.buffers import StepBuffers
from perpgym.envs.config import EnvConfig
from perpgym.envs.margin import worth
from perpgym.envs.risk.limits import RiskLimits
from perpgym.envs.spaces import CONTRACT_LEDGER, LEDGER
from perpgym.envs.vector import PerpVecEnv

Floats = NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class BacktestResult:
    """One account's books over a period of n booked bars.

    Attributes:
        name: of the agent.
        contracts: A contracts, in the tape's order.
        bar_ms: length of a bar, milliseconds.
        open_time_ms: (n,) int64 UTC, of the bars that were booked.
        equity: (n + 1,) quote; ``equity[0]`` is at the close at which the first decision was taken.
        ledger: (n, L) float64, columns ``LEDGER_COLUMNS``; zero (equity constant) after the account's end.
        holdings: (n, A, H) float64, columns ``CONTRACT_LEDGER_COLUMNS``; zero after the account's end.
        actions: (n, action_dim) float32, as the agent gave them; zero after the account's end.
        mark_close: (n + 1, A) quote, at the instants of ``equity``.
        ended_at: row in which the account was liquidated or stopped for good, None if it lived on.
        end_reason: ``liquidation`` or ``drawdown stop``, None if it lived on.
    """

    name: str
    contracts: tuple[Contract, ...]
    bar_ms: int
    open_time_ms: NDArray[np.int64]
    equity: Floats
    ledger: Floats
    holdings: Floats
    actions: NDArray[np.float32]
    mark_close: Floats
    ended_at: int | None = None
    end_reason: str | None = None

    def column(self, name: str) -> Floats:
        """(n,) one column of the ledger.

        Raises:
            KeyError: no such column.
        """
        return self.ledger[:, LEDGER[name]]

    def contract_column(self, name: str) -> Floats:
        """(n, A) one column of the ledger by contract.

        Raises:
            KeyError: no such column.
        """
        return self.holdings[:, :, CONTRACT_LEDGER[name]]

    def worth(self, asset: int) -> Floats:
        """(n + 1,) settle currency, signed: what one unit of position is worth at the mark closes."""
        is_inverse = float(self.contracts[asset].kind == "inverse")
        return np.array([worth(close, is_inverse) for close in self.mark_close[:, asset]])

    @property
    def bars_per_year(self) -> float:
        """Bars in a year of 365 days."""
        return 365 * 86_400_000 / self.bar_ms

    @property
    def close_time_ms(self) -> NDArray[np.int64]:
        """(n + 1,) int64 UTC, the instants of ``equity``."""
        return np.concatenate((self.open_time_ms[:1], self.open_time_ms + self.bar_ms))


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """Many accounts of one agent, without their ledgers.

    Attributes:
        name: of the agent.
        equity: (n + 1, D) quote.
        turnover_per_day: (D,) traded notional over equity, per day.
    """

    name: str
    equity: Floats
    turnover_per_day: Floats


def run_backtest(
    agents: Sequence[Agent],
    tape: Tape,
    *,
    start_bar: int,
    end_bar: int,
    config: EnvConfig,
    limits: RiskLimits,
    progress: Progress | None = None,
) -> list[BacktestResult]:
    """Drive each agent's account from ``start_bar`` to ``end_bar``, side by side.

    An account that is liquidated or stopped for good is flat from then on: its equity stays what it was.

    Args:
        agents: one account each.
        tape: the market.
        start_bar: the first decision is taken at the close of this bar.
        end_bar: the last bar booked is the one before this; n = end_bar - start_bar - 1 bars are booked.
        config: its ``episode_bars`` and ``restart`` are replaced to fit the period.
        limits: of the risk overlay.
        progress: called with (bars booked, n) after every bar.

    Returns:
        One result for each agent, in their order.

    Raises:
        ValueError: the period is empty, lies outside the tape, or starts before its features are valid.
    """
    if not agents:
        raise ValueError("run_backtest needs at least one agent")
    bars = _check_period(tape, start_bar, end_bar, config)
    books: list[NDArray[np.float64]] = []
    holdings: list[NDArray[np.float64]] = []
    actions: list[NDArray[np.float32]] = []
    endings: dict[int, tuple[int, str]] = {}
    for row, (action, out, is_new_end) in enumerate(
        _steps(agents, [1] * len(agents), tape, start_bar, bars, config, limits)
    ):
        actions.append(action)
        books.append(out.ledger.copy())
        holdings.append(out.holdings.copy())
        for account in np.flatnonzero(is_new_end):
            is_liquidated = out.ledger[account, LEDGER["liquidated"]] > 0
            endings[int(account)] = (row, "liquidation" if is_liquidated else "drawdown stop")
        if progress is not None:
            progress(row + 1, bars)
    ledgers, taken = np.stack(books, axis=1), np.stack(actions, axis=1)  # N n L, N n action_dim
    by_contract = np.stack(holdings, axis=1)  # N n A H
    return [
        close_books(agent.name, tape, start_bar, ledgers[i], by_contract[i], taken[i], endings.get(i))
        for i, agent in enumerate(agents)
    ]


def run_draws(
    agent: RandomTiming,
    tape: Tape,
    *,
    start_bar: int,
    end_bar: int,
    config: EnvConfig,
    limits: RiskLimits,
    progress: Progress | None = None,
) -> Draws:
    """Drive the many accounts of one agent; arguments as for :func:`run_backtest`."""
    bars = _check_period(tape, start_bar, end_bar, config)
    equity = np.empty((bars + 1, agent.n_accounts))
    turnover = np.zeros(agent.n_accounts)
    alive = np.ones(agent.n_accounts, dtype=np.bool_)
    equity[0] = config.initial_wallet
    for row, (_, out, is_new_end) in enumerate(
        _steps([agent], [agent.n_accounts], tape, start_bar, bars, config, limits)
    ):
        equity[row + 1] = np.where(alive, out.ledger[:, LEDGER["equity"]], equity[row])
        traded = out.ledger[:, LEDGER["traded_notional"]] / out.ledger[:, LEDGER["equity_before"]]
        turnover += np.where(alive, traded, 0.0)
        alive &= ~is_new_end
        if progress is not None:
            progress(row + 1, bars)
    days = bars * tape.bar_ms / 86_400_000
    return Draws(name=agent.name, equity=equity, turnover_per_day=turnover / days)


def matched_random(
    result: BacktestResult, *, config: EnvConfig, start_bar: int, draws: int = 200, seed: int = 0
) -> RandomTiming:
    """Random timing with the trades, holding times and exposures of a backtest.

    Args:
        result: whose trades to place at other times.
        config: of the env that the draws will run in.
        start_bar: that of the backtest.
        draws: number of accounts.
        seed: of the placing.
    """
    position = result.contract_column("position")  # n A
    before = np.concatenate((np.zeros_like(position[:1]), position[:-1]))
    equity = np.maximum(result.column("equity_before"), 1e-12)
    # what was asked for at a decision is known from what came of it, at the price of the decision
    notional = position * np.stack(
        [np.abs(result.worth(i)[:-1]) for i in range(len(result.contracts))], axis=1
    )
    asked = notional / equity[:, None]
    asked = np.clip(asked, -config.max_exposure, config.max_exposure)
    return RandomTiming(
        config,
        exposure=np.where(position != before, asked, np.nan),
        side=np.sign(position).astype(np.int64),
        first_bar=start_bar,
        draws=draws,
        seed=seed,
    )


def close_books(
    name: str,
    tape: Tape,
    start_bar: int,
    ledger: Floats,
    holdings: Floats,
    actions: NDArray[np.float32],
    ending: tuple[int, str] | None = None,
) -> BacktestResult:
    """Turn one account's raw ledger rows into a result, flat from its end on.

    Args:
        name: of the agent.
        tape: the market.
        start_bar: the first decision was taken at the close of this bar.
        ledger: (n, L) as the env booked it; rows after ``ending`` belong to another life and are blanked.
        holdings: (n, A, H), the same by contract.
        actions: (n, action_dim).
        ending: row and reason of the account's end, if it had one.
    """
    end_bar = start_bar + 1 + len(ledger)
    ledger, holdings, actions = ledger.copy(), holdings.copy(), actions.copy()
    if ending is not None:
        after = slice(ending[0] + 1, None)
        left = ledger[ending[0], LEDGER["equity"]]
        ledger[after] = 0.0
        ledger[after, LEDGER["equity"]] = left
        ledger[after, LEDGER["equity_before"]] = left
        ledger[after, LEDGER["drawdown"]] = ledger[ending[0], LEDGER["drawdown"]]
        holdings[after] = 0.0
        actions[after] = 0.0
    return BacktestResult(
        name=name,
        contracts=tape.contracts,
        bar_ms=tape.bar_ms,
        open_time_ms=np.array(tape.open_time_ms[start_bar + 1 : end_bar]),
        equity=np.concatenate((ledger[:1, LEDGER["equity_before"]], ledger[:, LEDGER["equity"]])),
        ledger=ledger,
        holdings=holdings,
        actions=actions,
        mark_close=np.array(tape.mark[start_bar:end_bar, :, CLOSE]),
        ended_at=None if ending is None else ending[0],
        end_reason=None if ending is None else ending[1],
    )


def _check_period(tape: Tape, start_bar: int, end_bar: int, config: EnvConfig) -> int:
    earliest = tape.first_valid_bar + config.window_bars - 1
    if not (earliest <= start_bar and start_bar + 2 < end_bar <= len(tape)):
        raise ValueError(
            f"a backtest needs start_bar >= {earliest} (the look-backs and the window before it) and end_bar "
            f"between start_bar + 3 and {len(tape)} (the tape's end), was start_bar={start_bar}, "
            f"end_bar={end_bar}; choose a longer period, or load data from earlier on"
        )
    return end_bar - start_bar - 1


def _steps(
    agents: Sequence[Agent],
    sizes: Sequence[int],
    tape: Tape,
    start_bar: int,
    bars: int,
    config: EnvConfig,
    limits: RiskLimits,
) -> Iterator[tuple[NDArray[np.float32], StepBuffers, NDArray[np.bool_]]]:
    """Step all accounts through the period; yields actions, buffers and which accounts ended just now."""
    env = PerpVecEnv(
        tape,
        n_paths=1,
        accounts_per_path=sum(sizes),
        config=replace(config, episode_bars=bars, restart="flat"),
        limits=limits,
        start_bar=start_bar,
        end_bar=start_bar + bars + 1,
        seed=0,
    )
    out = env.make_buffers()
    env.reset_into(out, seed=0)
    edges = np.concatenate(([0], np.cumsum(sizes)))
    alive = np.ones(edges[-1], dtype=np.bool_)
    for step in range(bars):
        bar = start_bar + step
        if int(out.bar[0]) != bar:
            raise RuntimeError(f"the env is at bar {int(out.bar[0])} where the backtest is at {bar}")
        action = np.concatenate(
            [
                agent.act(tape, bar, out.account[low:high], out.portfolio[low:high])
                for agent, low, high in zip(agents, edges[:-1], edges[1:], strict=True)
            ]
        )
        env.step_into(action, out)
        is_new_end = alive & out.terminated.astype(np.bool_)
        alive &= ~is_new_end
        yield action, out, is_new_end
