"""Contracts that are listed late or have a hole: marked, not traded, and no burden on the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from perpgym.data.bars import CLOSE, Bars
from perpgym.data.contract import HOUR_MS, Contract
from perpgym.data.features.build import build_tape
from perpgym.data.tape import Tape
from perpgym.envs.config import EnvConfig
from perpgym.envs.finer import Finer
from perpgym.envs.orders import NO_MARKET
from perpgym.envs.risk.limits import RiskLimits
from perpgym.envs.spaces import ACCOUNT_NAMES, CONTRACT_LEDGER, LEDGER
from perpgym.envs.vector import PerpVecEnv

START_MS = 1_577_836_800_000  # 2020-01-01 00:00 UTC
BARS, LATE = 260, 100
HOLE = slice(150, 174)
# of the columns below
LOOKBACK = 25
FREE = RiskLimits(max_leverage=100.0, max_daily_loss=None)
TRADABLE, EXPOSURE = ACCOUNT_NAMES.index("tradable"), ACCOUNT_NAMES.index("exposure")
OLD, YOUNG = 0, 1


def walk(symbol: str, first: int, seed: int) -> Bars:
    rng = np.random.default_rng(seed)
    count = BARS - first
    close = 100 * np.exp(rng.normal(0, 0.01, count).cumsum())
    opening = np.concatenate([[100.0], close[:-1]])
    high, low = np.maximum(opening, close) * 1.002, np.minimum(opening, close) / 1.002
    last = np.stack([opening, high, low, close], axis=1)
    hours = np.arange(first - first % 8 + 8, BARS + 1, 8)
    return Bars(
        contract=Contract(symbol=symbol),
        bar_ms=HOUR_MS,
        open_time_ms=START_MS + first * HOUR_MS + np.arange(count) * HOUR_MS,
        last=last,
        mark=last,
        volume=np.full(count, 1e6),
        stamp_time_ms=START_MS + hours * HOUR_MS,
        stamp_rate=np.full(hours.size, 1e-3),
    )


def quarters(hours: Bars) -> Bars:
    """Each hour's range in its first quarter, its close in the others."""
    close = np.repeat(hours.last[:, [CLOSE]], 4, axis=1)
    last = np.stack([hours.last, close, close, close], axis=1).reshape(-1, 4)
    return replace(
        hours,
        bar_ms=HOUR_MS // 4,
        open_time_ms=hours.open_time_ms[0] + np.arange(len(last)) * (HOUR_MS // 4),
        last=last,
        mark=last,
        volume=np.repeat(hours.volume / 4.0, 4),
    )


def tape_of(*contracts: Bars) -> Tape:
    return build_tape(
        contracts, features=["log_return_1", "realised_vol_24"], risk=["realised_vol_24"], source="test"
    )


@pytest.fixture(scope="module")
def tape() -> Tape:
    old = walk("OLD/USDT:USDT", 0, 0)
    last, volume = old.last.copy(), old.volume.copy()
    last[HOLE], volume[HOLE] = last[HOLE.start - 1, CLOSE], 0.0
    return tape_of(replace(old, last=last, mark=last, volume=volume), walk("YOUNG/USDT:USDT", LATE, 1))


def play(
    tape: Tape, actions: np.ndarray, limits: RiskLimits = FREE, **settings: object
) -> dict[str, np.ndarray]:
    """One account per row of actions (N, A): ledgers, contract ledgers and observations, all (T, N, …)."""
    plain = {"action": "target", "window_bars": 1, "episode_bars": 10**6, "max_drawdown": 1.0}
    config = EnvConfig(**{**plain, **settings})  # type: ignore[arg-type]
    env = PerpVecEnv(tape, n_paths=1, accounts_per_path=len(actions), config=config, limits=limits)
    out = env.make_buffers()
    env.reset_into(out, 0)
    seen: dict[str, list[np.ndarray]] = {n: [] for n in ("bar", "ledger", "holdings", "account", "equity")}
    while not out.truncated.any():
        seen["account"].append(out.account.copy())
        seen["bar"].append(out.bar.copy())
        env.step_into(actions.astype(np.float32), out)
        for name in ("ledger", "holdings"):
            seen[name].append(getattr(out, name).copy())
        seen["equity"].append(out.ledger[:, LEDGER["equity"]].copy())
    return {name: np.array(values) for name, values in seen.items()}


def booked(seen: dict[str, np.ndarray], bar: int) -> int:
    """The row in which this bar was booked: its decision was taken a bar earlier."""
    return int(np.flatnonzero(seen["bar"][:, 0] == bar - 1)[0])


def test_a_contract_is_tradable_from_its_first_valid_close_on_and_not_in_a_hole(tape: Tape) -> None:
    seen = play(tape, np.zeros((1, 2)))
    tradable = dict(zip(seen["bar"][:, 0], seen["account"][:, 0, :, TRADABLE], strict=True))
    opens = LATE + LOOKBACK - 1
    assert (tradable[opens - 1][YOUNG], tradable[opens][YOUNG]) == (0.0, 1.0)
    hole = [tradable[bar][OLD] for bar in (HOLE.start - 1, HOLE.start, HOLE.stop - 1, HOLE.stop)]
    assert hole == [1.0, 0.0, 0.0, 1.0]


def test_an_action_on_a_contract_that_is_not_there_changes_no_number(tape: Tape) -> None:
    # 1.8 and 2 of exposure exceed the limit together
    limits = RiskLimits(max_leverage=2.0, max_daily_loss=None)
    seen = play(tape, np.array([[0.9, 1.0], [0.9, -1.0], [0.9, 0.0]]), limits)
    until = booked(seen, LATE + LOOKBACK)
    for name in ("ledger", "holdings"):
        for account in (1, 2):
            np.testing.assert_array_equal(seen[name][:until, account], seen[name][:until, 0], err_msg=name)
    # the negative control: once it is there, it does
    assert not np.array_equal(seen["holdings"][until, 1], seen["holdings"][until, 0])
    assert not seen["holdings"][:until, :, YOUNG, CONTRACT_LEDGER["position"]].any()


def test_the_first_order_fills_in_the_bar_after_the_first_valid_close(tape: Tape) -> None:
    seen = play(tape, np.array([[0.0, 0.5]]))
    position = seen["holdings"][:, 0, YOUNG, CONTRACT_LEDGER["position"]]
    assert np.flatnonzero(position)[0] == booked(seen, LATE + LOOKBACK)


def test_a_position_in_a_hole_keeps_its_mark_pays_its_funding_and_waits(tape: Tape) -> None:
    held = play(tape, np.array([[0.5, 0.0]]), rebalance_threshold=0.9)
    rows = slice(booked(held, HOLE.start), booked(held, HOLE.stop))
    ledger = held["ledger"][rows, 0]
    position = held["holdings"][rows, 0, OLD, CONTRACT_LEDGER["position"]]
    assert position[0] > 0
    assert (position == position[0]).all()
    # the bar before closes at the price that stands through the hole
    np.testing.assert_allclose(ledger[:, LEDGER["price_pnl"]], 0.0, atol=1e-9)
    paid = -ledger[:, LEDGER["funding"]]
    mark = tape.mark[HOLE.start, OLD, CLOSE]
    assert np.count_nonzero(paid) == 3
    np.testing.assert_allclose(paid[paid != 0], 1e-3 * position[0] * mark)


def test_nothing_is_bought_or_sold_in_a_hole_whatever_is_asked(tape: Tape) -> None:
    rng = np.random.default_rng(0)
    config = EnvConfig(action="target", window_bars=1, episode_bars=10**6, max_drawdown=1.0)
    env = PerpVecEnv(tape, n_paths=1, accounts_per_path=4, config=config, limits=FREE)
    out = env.make_buffers()
    env.reset_into(out, 0)
    refused = 0
    while not out.truncated.any():
        now = int(out.bar[0]) + 1
        env.step_into(rng.uniform(-1, 1, (4, 2)).astype(np.float32), out)
        if HOLE.start <= now < HOLE.stop:
            assert not out.holdings[:, OLD, CONTRACT_LEDGER["filled"]].any()
        refused += int((out.holdings[:, OLD, CONTRACT_LEDGER["reason"]].astype(int) & NO_MARKET > 0).sum())
    # decided at the close before the hole; within it nothing is decided
    assert refused == 4


def test_random_restarts_hold_nothing_that_does_not_trade(tape: Tape) -> None:
    config = EnvConfig(
        action="target", window_bars=1, episode_bars=8, restart="random", max_exposure=1.0, max_drawdown=1.0
    )
    env = PerpVecEnv(tape, n_paths=8, config=config, limits=FREE)
    out = env.make_buffers()
    env.reset_into(out, 0)
    seen = []
    for _ in range(300):
        env.step_into(np.zeros((8, 2), np.float32), out)
        fresh = out.truncated
        seen.append((out.bar[fresh], out.account[fresh][:, :, EXPOSURE]))
    bar, exposure = (np.concatenate(column) for column in zip(*seen, strict=True))
    trades = tape.volume[bar] > 0
    assert (exposure[trades] != 0).all()
    assert not exposure[~trades].any()
    assert min(trades.sum(), (~trades).sum()) > 50


def test_finer_bars_may_have_different_histories_too() -> None:
    hours = [walk("OLD/USDT:USDT", 0, 0), walk("YOUNG/USDT:USDT", LATE, 1)]
    tape, fine = tape_of(*hours), [quarters(bars) for bars in hours]
    finer = Finer.of(tape, fine)
    assert (finer.start_bar, finer.end_bar) == (0, BARS)
    traded = finer.volume.reshape(BARS, 4, 2).sum(axis=1) > 0
    np.testing.assert_array_equal(traded, tape.volume > 0)
    # a young contract's finer bars must be there as soon as it can be held
    late = Finer.of(tape, [fine[0], fine[1].slice(4 * 60, 4 * (BARS - LATE))])
    assert late.start_bar == LATE + 60
