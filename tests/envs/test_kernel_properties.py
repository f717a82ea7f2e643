"""What must hold for every market, contract and action tape: no money from nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perpgym.data.contract import Contract
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.margin import liquidation_price, maintenance_margin
from perpgym.envs.spaces import LEDGER, PORTFOLIO_NAMES

SLOW_FIXTURE = [HealthCheck.function_scoped_fixture]
FREE = RiskLimits(max_leverage=100.0, max_daily_loss=None)


def trade(tape: Tape, actions: np.ndarray, limits: RiskLimits = FREE, **settings_: Any) -> np.ndarray:
    """Ledger (T, L) of one account that plays ``actions`` (T,) as targets over max_exposure."""
    config = EnvConfig(
        **{"action": "target", "window_bars": 1, "episode_bars": 10**6, "max_exposure": 10.0} | settings_
    )
    env = PerpVecEnv(tape, n_paths=1, config=config, limits=limits)
    out = env.make_buffers()
    env.reset_into(out, 0)
    rows = []
    for action in actions:
        env.step_into(np.array([[action]], np.float32), out)
        rows.append(out.ledger[0].copy())
        if out.terminated[0] or out.truncated[0]:
            break
    return np.array(rows)


def residual(ledger: np.ndarray) -> np.ndarray:
    """What the ledger's parts leave unexplained of the change of equity."""
    get = lambda name: ledger[:, LEDGER[name]]  # noqa: E731
    parts = get("price_pnl") + get("funding") + get("insurance")
    parts = parts - get("fees") - get("clearance") - get("spread") - get("impact")
    return np.asarray(get("equity") - get("equity_before") - parts)


markets = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**16),
        "sigma": st.sampled_from([0.001, 0.01, 0.05]),
        "funding_rate": st.floats(-0.01, 0.01),
        "mark_basis": st.floats(-0.01, 0.01),
        "volume": st.sampled_from([1.0, 500.0, 1e6]),
    }
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=SLOW_FIXTURE)
@given(
    market=markets,
    margin_mode=st.sampled_from(["cross", "isolated"]),
    leverage=st.sampled_from([10.0, 20.0, 100.0]),
    stop_loss=st.sampled_from([None, 0.01, 0.2]),
    take_profit=st.sampled_from([None, 0.02]),
)
def test_the_ledger_explains_every_change_of_equity(
    make_tape: Callable[..., Tape], market: dict[str, Any], **account: Any
) -> None:
    tape = make_tape(bars=120, **market)
    actions = np.random.default_rng(market["seed"]).uniform(-1, 1, 118)
    ledger = trade(tape, actions, **account)
    # 1e-9 of a million
    assert np.abs(residual(ledger)).max() < 1e-3 * 1e-3
    equity = ledger[:, LEDGER["equity"]]
    assert np.isfinite(equity).all()
    assert (equity > -1e-6).all(), "a wallet can never end below zero: the insurance fund bears the rest"


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=SLOW_FIXTURE)
@given(seed=st.integers(0, 2**16), low=st.floats(0, 0.004), extra=st.floats(1e-5, 0.004))
def test_a_larger_fee_never_raises_equity(
    make_tape: Callable[..., Tape], seed: int, low: float, extra: float
) -> None:
    # constant quantity on a martingale: one entry, one exit, so the positions are the same
    tape = make_tape(bars=60, seed=seed, sigma=0.002)
    plan = np.r_[np.full(30, 0.1), np.zeros(20)]
    cheap = trade(tape, plan, taker_rate=low, rebalance_threshold=0.5)
    dear = trade(tape, plan, taker_rate=low + extra, rebalance_threshold=0.5)
    assert dear[-1, LEDGER["equity"]] < cheap[-1, LEDGER["equity"]]


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=SLOW_FIXTURE)
@given(seed=st.integers(0, 2**16), tight=st.floats(0, 20), extra=st.floats(0.5, 20))
def test_a_wider_spread_never_raises_equity(
    make_tape: Callable[..., Tape], seed: int, tight: float, extra: float
) -> None:
    tape = make_tape(bars=60, seed=seed, sigma=0.002)
    plan = np.r_[np.full(30, -0.1), np.zeros(20)]
    cheap = trade(tape, plan, half_spread_bps=tight, rebalance_threshold=0.5)
    dear = trade(tape, plan, half_spread_bps=tight + extra, rebalance_threshold=0.5)
    assert dear[-1, LEDGER["equity"]] < cheap[-1, LEDGER["equity"]]


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=SLOW_FIXTURE)
@given(market=markets, exposure=st.floats(0.05, 0.9))
def test_funding_of_a_long_and_its_mirror_short_sums_to_zero(
    make_tape: Callable[..., Tape], market: dict[str, Any], exposure: float
) -> None:
    tape = make_tape(bars=40, **market | {"volume": 1e9, "sigma": 0.001})
    # no costs and no rebalancing: both hold the same quantity
    held = {"taker_rate": 0.0, "half_spread_bps": 0.0, "impact_coefficient": 0.0, "rebalance_threshold": 2.0}
    long = trade(tape, np.full(38, exposure), max_exposure=5.0, **held)
    short = trade(tape, np.full(38, -exposure), max_exposure=5.0, **held)
    total = long[:, LEDGER["funding"]] + short[:, LEDGER["funding"]]
    assert np.abs(total).max() < 1e-6
    pnl = long[:, LEDGER["price_pnl"]] + short[:, LEDGER["price_pnl"]]
    assert np.abs(pnl).max() < 1e-5


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=SLOW_FIXTURE)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([0.25, 4.0, 16.0]))
def test_ten_times_the_wallet_on_ten_times_the_volume_earns_the_same_return(
    make_tape: Callable[..., Tape], contract: Contract, seed: int, scale: float
) -> None:
    one = replace(
        contract, lot_size=1e-12, min_quantity=1e-12, min_notional=1e-9, brackets=contract.brackets[:1]
    )
    one = replace(one, brackets=(replace(one.brackets[0], cap=math.inf),))
    actions = np.random.default_rng(seed).uniform(-1, 1, 50)
    small = trade(make_tape(bars=60, seed=seed, rules=one), actions, max_exposure=3.0)
    large = trade(
        make_tape(bars=60, seed=seed, rules=one, volume=5_000.0 * scale), actions, max_exposure=3.0,
        initial_wallet=1e6 * scale,
    )  # fmt: skip
    column = LEDGER["equity"]
    assert large[:, column] == pytest.approx(small[:, column] * scale, rel=1e-7)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=SLOW_FIXTURE)
@given(seed=st.integers(0, 2**16))
def test_no_round_trip_on_a_flat_tape_is_profitable(make_tape: Callable[..., Tape], seed: int) -> None:
    tape = make_tape(np.full(60, 30_000.0), wick=0.0, funding_rate=0.0)
    actions = np.r_[np.random.default_rng(seed).uniform(-1, 1, 50), 0.0]
    ledger = trade(tape, actions)
    assert ledger[-1, LEDGER["equity"]] < 1e6


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=SLOW_FIXTURE)
@given(
    balance=st.floats(1.0, 1e6),
    entry=st.floats(10.0, 1e5),
    leverage=st.floats(1.1, 120.0),
    side=st.sampled_from([1.0, -1.0]),
)
def test_margin_balance_equals_maintenance_margin_at_the_liquidation_price(
    contract: Contract, balance: float, entry: float, leverage: float, side: float
) -> None:
    table = contract.bracket_table()
    position = side * balance * leverage / entry
    price = liquidation_price(balance, position, entry, table, 0.0)
    if math.isnan(price) or price == 0.0:
        return
    left = balance + position * (price - entry)
    assert left == pytest.approx(maintenance_margin(abs(position) * price, table), abs=1e-6 * balance)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=SLOW_FIXTURE)
@given(notional=st.floats(0.0, 5e6))
def test_maintenance_margin_is_the_integral_of_the_marginal_rates(
    contract: Contract, notional: float
) -> None:
    integral = sum(
        b.maintenance_margin_rate * (min(notional, b.cap) - b.floor)
        for b in contract.brackets
        if notional > b.floor
    )
    assert maintenance_margin(notional, contract.bracket_table()) == pytest.approx(integral, abs=1e-6)


def test_an_account_above_its_requirement_after_every_step_or_closed(make_tape: Callable[..., Tape]) -> None:
    tape = make_tape(bars=500, sigma=0.03, seed=3)
    rng = np.random.default_rng(1)
    env = PerpVecEnv(
        tape,
        n_paths=50,
        config=EnvConfig(action="target", window_bars=1, max_exposure=15.0, max_drawdown=1.0),
        limits=FREE,
    )
    out = env.make_buffers()
    env.reset_into(out, 0)
    table = tape.contracts[0].bracket_table()
    liquidations = 0
    for _ in range(300):
        env.step_into(rng.uniform(-1, 1, (50, 1)).astype(np.float32), out)
        liquidations += int(out.ledger[:, LEDGER["liquidated"]].sum())
        notional = np.abs(out.ledger[:, LEDGER["exposure"]] * out.ledger[:, LEDGER["equity"]])
        for equity, value in zip(out.ledger[:, LEDGER["equity"]], notional, strict=True):
            assert value == 0.0 or equity > maintenance_margin(value, table)
    assert liquidations > 10, "the market was meant to be wild enough to liquidate"


def test_no_account_restarts_with_a_position_that_is_already_liquidated(
    make_tape: Callable[..., Tape],
) -> None:
    for leverage in (20.0, 100.0, 125.0):
        config = EnvConfig(
            initial_wallet=1e5, leverage=leverage, max_exposure=leverage, restart="random", window_bars=1
        )
        env = PerpVecEnv(make_tape(), n_paths=200, config=config, limits=FREE)
        out = env.make_buffers()
        env.reset_into(out, 0)
        ratio = out.portfolio[:, PORTFOLIO_NAMES.index("margin_ratio")]
        assert (ratio > 0).sum() > 150
        assert ratio.max() < 0.9
