"""What cannot be is refused by contract, bar and rule; an account never becomes NaN in silence."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from perpgym.data import DataError
from perpgym.data.bars import Bars
from perpgym.data.contract import Bracket, Contract
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpEnv, PerpVecEnv, RiskLimits
from perpgym.envs.actions import ACTION_KINDS, ActionKind
from perpgym.envs.orders import BRACKET
from perpgym.envs.spaces import CONTRACT_LEDGER, LEDGER, LEDGER_COLUMNS

MakeTape = Callable[..., Tape]
MergeTapes = Callable[[list[Tape]], Tape]
HOUR_MS = 3_600_000
FREE = RiskLimits(max_leverage=150.0, max_daily_loss=None)


# --- contracts ---


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tick_size", 0.0, "tick_size must be positive and finite, was 0.0"),
        ("tick_size", math.nan, "tick_size must be positive and finite, was nan"),
        ("lot_size", -0.001, "lot_size must be positive and finite, was -0.001"),
        ("lot_size", math.inf, "lot_size must be positive and finite, was inf"),
        ("contract_size", 0.0, "contract_size must be positive"),
        ("min_quantity", 0.0, "min_quantity must be positive"),
        ("max_quantity", 0.0001, "max_quantity must be at least min_quantity, 0.001 (base), was 0.0001"),
        ("max_quantity", math.nan, "max_quantity must be at least min_quantity"),
        ("min_notional", -1.0, "min_notional must be finite and not negative (quote), was -1.0"),
        ("clearance_rate", 1.25, "clearance_rate must lie between 0 and 1"),
        ("clearance_rate", math.nan, "clearance_rate must lie between 0 and 1"),
        ("taker_rate", math.nan, "taker_rate must lie between -0.01 and 0.01"),
        ("funding_interval_ms", 0, "funding_interval_ms must be positive"),
        ("funding_cap", -0.03, "funding_cap must be positive"),
        ("kind", "quanto", "kind must be linear or inverse, was 'quanto'"),
    ],
)
def test_a_rule_that_no_exchange_has_is_refused_by_name(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"X/USDT:USDT: {message}")):
        Contract(symbol="X/USDT:USDT", **{field: value})


def bracket(
    floor: float, cap: float, rate: float = 0.01, cum: float = 0.0, leverage: float = 50.0
) -> Bracket:
    return Bracket(floor=floor, cap=cap, maintenance_margin_rate=rate, cum=cum, max_leverage=leverage)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "brackets must start at a notional of 0"),
        ([bracket(10.0, 20.0)], "brackets must start at a notional of 0"),
        ([bracket(0.0, 10.0), bracket(20.0, 30.0)], "1 ends at 10 and 2 starts at 20: they leave a gap"),
        ([bracket(0.0, 10.0), bracket(5.0, 30.0)], "1 ends at 10 and 2 starts at 5: they overlap"),
        ([bracket(0.0, 0.0)], "bracket 1, from 0, must end above its floor, ended at 0"),
        ([bracket(0.0, math.nan)], "bracket 1, from 0, must end above its floor, ended at nan"),
        ([bracket(0.0, 10.0, 0.02), bracket(10.0, 30.0, 0.01)], "bracket 2 has 0.01 after 0.02"),
        (
            [bracket(0.0, 10.0, 1.0)],
            "maintenance_margin_rate between 0 and 1 (a fraction of notional), was 1",
        ),
        ([bracket(0.0, 10.0, math.nan)], "maintenance_margin_rate between 0 and 1"),
        ([bracket(0.0, 10.0, cum=-1.0)], "cum that is finite and not negative (quote), was -1"),
        ([bracket(0.0, 10.0, cum=1.0)], "bracket 1 must have a cum of 0 (quote), was 1"),
        (
            [bracket(0.0, 1_000.0), bracket(1_000.0, math.inf, 0.2)],
            "cum of bracket 2 must be floor * (its rate - the rate below) + the cum below = 190 (quote)",
        ),
        (
            [
                bracket(0.0, 1_000.0),
                bracket(1_000.0, 5_000.0, 0.2, 190.0),
                bracket(5_000.0, 9e9, 0.3, 690.1),
            ],
            "(its rate - the rate below) + the cum below = 690 (quote), was 690.1",
        ),
        ([bracket(0.0, 10.0, leverage=0.0)], "must admit a leverage of at least 1, was 0"),
    ],
)
def test_brackets_that_cannot_be_are_refused_by_number(rows: list[Bracket], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Contract(symbol="X/USDT:USDT", brackets=tuple(rows))
    assert "X/USDT:USDT" in str(caught.value)


# --- markets ---


def damaged(tape: Tape, name: str, at: tuple[Any, ...], value: Any) -> Tape:
    column = getattr(tape, name).copy()
    column[at] = value
    return replace(tape, _cache={}, **{name: column})


@pytest.mark.parametrize("series", ["last", "mark"])
@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        (0, math.nan, "price must be finite and positive (quote)"),
        (1, math.inf, "price must be finite and positive (quote)"),
        (2, 0.0, "price must be finite and positive (quote)"),
        (3, -30_000.0, "price must be finite and positive (quote)"),
        (1, 1.0, "the high must be the highest"),
        (2, 1e9, "the high must be the highest"),
        (3, 1e9, "the high must be the highest"),
    ],
)
def test_an_impossible_price_is_refused_by_contract_bar_and_rule(
    make_tape: MakeTape, merge_tapes: MergeTapes, series: str, column: int, value: float, rule: str
) -> None:
    tape = merge_tapes([make_tape(bars=60, seed=seed) for seed in range(2)])
    with pytest.raises(ValueError, match=re.escape(rule)) as caught:
        damaged(tape, series, (30, 1, column), value)
    for part in ("C1/USDT:USDT", "2020-01-02 06:00", series, f"{value:g}"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "at", "value", "message"),
    [
        (
            "volume",
            (30, 0),
            -1.0,
            "2020-01-02 06:00 volume must be finite and not negative (base units), was -1",
        ),
        ("volume", (30, 0), math.nan, "2020-01-02 06:00 volume must be finite"),
        ("sigma_per_bar", (30, 0), math.nan, "sigma_per_bar must be finite, but is not at the bar"),
        ("features", (30, 0, 1), math.inf, "features must be finite, but is not at the bar"),
        (
            "risk",
            (30, 0, 1),
            math.nan,
            "risk must be finite, but is not at the bar that opens at 2020-01-02 06:00",
        ),
        ("open_time_ms", (30,), 0, "2020-01-02 05:00 opens at 1970-01-01 00:00; fill or repair"),
    ],
)
def test_other_impossible_columns_are_refused_by_bar(
    make_tape: MakeTape, name: str, at: tuple[int, ...], value: float, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        damaged(make_tape(bars=60), name, at, value)


@pytest.mark.parametrize(
    ("name", "at", "value", "message"),
    [
        ("stamp_rate", 3, math.nan, "at 2020-01-02 08:00 it was nan"),
        ("stamp_rate", 3, -math.inf, "at 2020-01-02 08:00 it was -inf"),
        (
            "stamp_time_ms",
            3,
            1_577_836_800_000 + 25 * HOUR_MS,
            "is not in the bar that opens at 2020-01-02 07:00",
        ),
        ("stamp_time_ms", -1, 1_577_836_800_000 + 90 * HOUR_MS, "lies outside of the bars"),
        ("stamp_time_ms", 0, 0, "the funding stamp at 1970-01-01 00:00 lies outside of the bars"),
        ("stamp_time_ms", 2, 1_577_836_800_000, "2020-01-01 00:00 does not come after the one before"),
    ],
)
def test_settlements_at_unknown_times_or_rates_are_refused(
    make_tape: MakeTape, name: str, at: int, value: float, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        damaged(make_tape(bars=60), name, (at,), value)
    assert "TEST/USDT:USDT" in str(caught.value)


def test_a_bar_that_owns_settlements_out_of_order_is_refused(make_tape: MakeTape) -> None:
    tape = make_tape(bars=60)
    with pytest.raises(ValueError, match="stamp_start must ascend within the tape's 7 settlements"):
        damaged(tape, "stamp_start", (0, 20), 7)


def test_finer_bars_are_held_to_the_same_rules(make_tape: MakeTape) -> None:
    tape = make_tape(bars=20, sigma=0.0, wick=0.0)
    count = 20 * 4
    bars = Bars(
        contract=tape.contracts[0],
        bar_ms=HOUR_MS // 4,
        open_time_ms=tape.open_time_ms[0] + HOUR_MS // 4 * np.arange(count),
        last=np.repeat(tape.last[:, 0], 4, axis=0),
        mark=np.repeat(tape.mark[:, 0], 4, axis=0),
        volume=np.ones(count),
        stamp_time_ms=np.empty(0, np.int64),
        stamp_rate=np.empty(0),
    )
    config = EnvConfig(window_bars=1)
    assert PerpEnv(tape, config=config, finer=bars).reset(seed=0)
    bars.mark[5, 2] = math.nan
    with pytest.raises(ValueError, match="at the bar that opens at 2020-01-01 01:15 every mark price"):
        PerpEnv(tape, config=config, finer=bars)


# --- frames ---


def frame(bars: int = 900) -> pd.DataFrame:
    close = 100.0 + np.sin(np.arange(bars) / 10.0)
    opens = np.concatenate([close[:1], close[:-1]])
    return pd.DataFrame(
        {
            "date": pd.date_range("2024-01-01", periods=bars, freq="1h", tz="UTC"),
            "open": opens,
            "high": np.maximum(opens, close) + 0.1,
            "low": np.minimum(opens, close) - 0.1,
            "close": close,
            "volume": 100.0,
        }
    )


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [("close", math.nan, "NaN or infinite"), ("low", -1.0, "zero or less"), ("high", 1.0, "not the highest")],
)
def test_a_frame_with_impossible_prices_is_refused_with_the_time_and_the_repair(
    column: str, value: float, rule: str
) -> None:
    bad = frame()
    bad.loc[100, column] = value
    with pytest.raises(DataError, match=rule) as caught:
        PerpEnv.from_frame(bad)
    for part in ("BTC/USDT:USDT", "2024-01-05 04:00", "drop_invalid"):
        assert part in str(caught.value)


def test_funding_of_another_year_is_refused_and_so_is_a_rate_that_is_no_number() -> None:
    bars = frame()
    dates = pd.date_range("2024-01-01", periods=113, freq="8h", tz="UTC")
    funding = pd.DataFrame({"date": dates, "rate": 1e-4})
    assert PerpEnv.from_frame(bars, funding=funding).tape.stamp_rate.size == 112
    late = funding.assign(date=dates + pd.Timedelta(days=400))
    with pytest.raises(
        DataError, match="settlements begin at 2025-02-04 00:00, but bars at 2024-01-01 00:00"
    ):
        PerpEnv.from_frame(bars, funding=late)
    early = funding.assign(date=dates - pd.Timedelta(days=400))
    with pytest.raises(DataError, match="settlements are missing after"):
        PerpEnv.from_frame(bars, funding=early)
    funding.loc[10, "rate"] = math.nan
    with pytest.raises(DataError, match="1 settlements have no rate, the first at 2024-01-04 08:00"):
        PerpEnv.from_frame(bars, funding=funding)


# --- actions ---


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("action", ACTION_KINDS)
def test_an_action_that_is_no_number_is_refused_by_contract_and_time_and_books_nothing(
    make_tape: MakeTape, merge_tapes: MergeTapes, action: ActionKind, value: float
) -> None:
    tape = merge_tapes([make_tape(bars=60, seed=seed) for seed in range(2)])
    env = PerpEnv(tape, config=EnvConfig(window_bars=1, action=action, episode_bars=58))
    _obs, before = env.reset(seed=0)
    width = env.batch.action_dim
    bad = np.zeros(width, np.float32)
    bad[-1] = value
    with pytest.raises(ValueError, match="not finite") as caught:
        env.step(bad)
    for part in ("C1/USDT:USDT", "2020-01-01 01:00", "nothing was booked"):
        assert part in str(caught.value)
    _obs, reward, _terminated, _truncated, info = env.step(np.zeros(width, np.float32))
    assert info["time_ms"] == before["time_ms"] + HOUR_MS
    assert math.isfinite(reward)


def test_an_action_of_the_wrong_length_is_told_the_right_one(make_tape: MakeTape) -> None:
    env = PerpEnv(make_tape(bars=60), config=EnvConfig(window_bars=1))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=re.escape("actions must have shape (1, 2), had (1, 3)")):
        env.step(np.zeros(3, np.float32))


@pytest.mark.parametrize(
    "counts", [{"n_paths": 0}, {"n_paths": 2.5}, {"n_paths": 1, "accounts_per_path": -1}]
)
def test_a_batch_needs_a_whole_number_of_paths_and_accounts(
    make_tape: MakeTape, counts: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="must be a whole number"):
        PerpVecEnv(make_tape(bars=60), **counts)


# --- beyond the last bracket ---


def test_an_order_beyond_the_brackets_of_its_leverage_is_cut_and_says_why(make_tape: MakeTape) -> None:
    contract = Contract(
        symbol="X/USDT:USDT",
        brackets=(bracket(0.0, 50_000.0, leverage=100.0), bracket(50_000.0, 80_000.0, 0.02, 500.0, 20.0)),
    )
    tape = make_tape(np.full(20, 100.0), rules=contract, volume=1e9, wick=0.0)
    config = EnvConfig(
        action="target", window_bars=1, initial_wallet=100_000.0, leverage=20.0, impact_coefficient=0.0
    )
    env = PerpVecEnv(tape, n_paths=1, config=config, limits=FREE)
    out = env.make_buffers()
    env.reset_into(out, 0)
    env.step_into(np.ones((1, 1), np.float32), out)
    row = out.holdings[0, 0]
    assert int(row[CONTRACT_LEDGER["reason"]]) & BRACKET
    assert 79_000.0 < 100.0 * row[CONTRACT_LEDGER["position"]] <= 80_000.0


def test_a_position_that_the_price_carries_beyond_the_last_bracket_keeps_its_rate(
    make_tape: MakeTape,
) -> None:
    rows = (bracket(0.0, 50_000.0, leverage=100.0), bracket(50_000.0, 80_000.0, 0.02, 500.0, 20.0))
    closes = np.concatenate([np.full(3, 100.0), np.full(17, 300.0)])
    results = []
    for last_cap in (80_000.0, math.inf):
        contract = Contract(symbol="X/USDT:USDT", brackets=(rows[0], replace(rows[1], cap=last_cap)))
        tape = make_tape(closes, rules=contract, volume=1e9, wick=0.0, funding_rate=0.0)
        config = EnvConfig(action="band", window_bars=1, initial_wallet=100_000.0, max_exposure=4.0)
        env = PerpVecEnv(tape, n_paths=1, config=config, limits=FREE)
        out = env.make_buffers()
        env.reset_into(out, 0)
        for band in ([0.125, -1.0], *[[0.0, 1.0]] * 10):
            env.step_into(np.array([band], np.float32), out)
        assert np.isfinite(out.portfolio).all()
        assert abs(out.holdings[0, 0, CONTRACT_LEDGER["position"]]) * 300.0 > 80_000.0
        results.append(out.portfolio.copy())
    np.testing.assert_array_equal(*results)


# --- what is possible, however wild ---


@pytest.mark.parametrize("kind", ["linear", "inverse"])
@pytest.mark.parametrize("margin_mode", ["cross", "isolated"])
def test_no_account_becomes_nan_or_owes_on_the_wildest_possible_market(
    make_tape: MakeTape, contract: Contract, kind: str, margin_mode: str
) -> None:
    rng = np.random.default_rng(0)
    # factors of up to e^6 a bar, both ways, between 1e-4 and 1e9
    closes = np.exp(np.clip(np.cumsum(rng.uniform(-6.0, 6.0, 400)), np.log(1e-4), np.log(1e9)))
    symbol = "W/USD:W" if kind == "inverse" else "W/USDT:USDT"
    rules = replace(
        contract, symbol=symbol, kind=kind, tick_size=1e-6, lot_size=1e-6, min_quantity=1e-6, min_notional=0.0
    )
    tape = make_tape(closes, rules=rules, wick=5.0, funding_rate=0.03, volume=1e15)
    config = EnvConfig(
        action="target", margin_mode=margin_mode, leverage=50.0, max_exposure=40.0, max_drawdown=1.0,
        initial_wallet=1_000.0, window_bars=1, episode_bars=390, half_spread_bps=100.0, restart="random",
    )  # fmt: skip
    env = PerpVecEnv(tape, n_paths=2, accounts_per_path=32, config=config, limits=FREE)
    out = env.make_buffers()
    env.reset_into(out, 0)
    liquidated = 0.0
    for _ in range(500):
        env.step_into(rng.uniform(-1, 1, (64, 1)).astype(np.float32), out)
        for name in LEDGER_COLUMNS:
            assert np.isfinite(out.ledger[:, LEDGER[name]]).all(), name
        assert out.ledger[:, LEDGER["equity"]].min() >= 0.0
        for column in (out.reward, out.account, out.portfolio, out.final_account, out.final_portfolio):
            assert np.isfinite(column).all()
        liquidated += out.ledger[:, LEDGER["liquidated"]].sum()
    assert liquidated > 500
