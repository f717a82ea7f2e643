"""Errors of margin and liquidation found in neighbouring environments, beside what this env books."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from perpgym.data.contract import Bracket, Contract
from perpgym.envs.orders import MARGIN
from perpgym.envs.spaces import CONTRACT_LEDGER

Prices = tuple[float, float, float, float]
Play = Callable[..., Any]


def flat(price: float) -> Prices:
    return (price, price, price, price)


def with_brackets(contract: Contract, *rows: tuple[float, float, float, float]) -> Contract:
    """The contract with these (floor, cap, rate, cum)."""
    brackets = tuple(
        Bracket(
            floor=floor, cap=cap, maintenance_margin_rate=rate, cum=cum, max_leverage=min(125.0, 1.0 / rate)
        )
        for floor, cap, rate, cum in rows
    )
    return replace(contract, brackets=brackets)


def test_net_worth_never_falls_below_what_liquidation_leaves(play: Play) -> None:
    """Net worth below what liquidation allows: 80 long at 100 on 1,000, and the price opens at 60."""

    def neighbour(cash: float, quantity: float, price: float) -> float:
        return cash + quantity * price

    for low in (60.0, 10.0, 1e-3):
        played = play([flat(100.0), (100.0, 100.0, low, low)], [8.0])
        assert played["liquidated"] == [1.0]
        # caught on the way down at the maintenance margin of 1 %: (8,000 − 1,000) / (80 · 0.99)
        assert played["equity"][-1] == pytest.approx(1_000.0 - 80.0 * (100.0 - 7_000.0 / 79.2), rel=1e-6)
        gapped = play([flat(100.0), flat(100.0), flat(low)], [8.0, None])
        assert gapped["equity"][-1] == 0.0
        assert gapped["insurance"][-1] == pytest.approx(80.0 * (100.0 - low) - 1_000.0)
    assert neighbour(1_000.0 - 8_000.0, 80.0, 60.0) == -2_200.0


@pytest.mark.parametrize(
    ("exposure", "wick"), [(8.0, (100.0, 100.0, 85.0, 100.0)), (-8.0, (100.0, 115.0, 100.0, 100.0))]
)
def test_a_wick_through_the_liquidation_price_liquidates(play: Play, exposure: float, wick: Prices) -> None:
    """A wick that should liquidate and does not, because margin is looked at only at the close."""

    def neighbour(wallet: float, quantity: float, entry: float, bar: Prices) -> bool:
        return wallet + quantity * (bar[3] - entry) <= 0.01 * abs(quantity) * bar[3]

    played = play([flat(100.0), wick], [exposure])
    assert played["liquidated"] == [1.0]
    assert played.terminated
    assert not neighbour(1_000.0, 10.0 * exposure, 100.0, wick)


@pytest.mark.parametrize(
    ("exposure", "wick", "is_liquidated"),
    [(5.0, (100.0, 100.0, 89.5, 100.0), False), (-5.0, (100.0, 109.5, 100.0, 100.0), True)],
    ids=["a long that still stands", "a short that has fallen"],
)
def test_maintenance_is_measured_at_the_mark_and_not_at_entry(
    play: Play, plain: Contract, exposure: float, wick: Prices, is_liquidated: bool
) -> None:
    """Maintenance measured on entry notional: 10 % of 5,000, whatever the mark."""

    def neighbour(wallet: float, quantity: float, entry: float, price: float) -> bool:
        return wallet + quantity * (price - entry) <= 0.1 * abs(quantity) * entry

    contract = with_brackets(plain, (0.0, math.inf, 0.1, 0.0))
    played = play([flat(100.0), wick], [exposure], contract=contract, leverage=10.0)
    assert played["liquidated"] == [float(is_liquidated)]
    extreme = wick[2] if exposure > 0.0 else wick[1]
    assert neighbour(1_000.0, 10.0 * exposure, 100.0, extreme) is not is_liquidated


def test_an_order_is_cut_to_the_initial_margin_that_there_is(play: Play) -> None:
    """No initial margin check: 20 wanted at 100 with 2x, but the bar opens at 110, and 20 need 1,100."""

    def neighbour(exposure: float, equity: float, close: float) -> float:
        return exposure * equity / close

    played = play([flat(100.0), flat(110.0)], [2.0], leverage=2.0, max_exposure=2.0)
    assert played["position"] == [pytest.approx(1_000.0 / 55.0, abs=1e-5)]
    batch = played.env.batch
    out = batch.make_buffers()
    batch.reset_into(out, 0)
    batch.step_into(np.array([[1.0, -1.0]], np.float32), out)
    assert int(out.holdings[0, 0, CONTRACT_LEDGER["reason"]]) & MARGIN
    assert neighbour(2.0, 1_000.0, 100.0) == 20.0


def test_an_account_with_nothing_left_has_ended(play: Play) -> None:
    """A threshold of zero lets a ruined account step on and crash: 0 is not below 0, and then log(0 / 0)."""

    def neighbour(equity: float, threshold: float) -> bool:
        return equity < threshold

    # an isolated liquidation ends no episode; having lost everything does, whatever ``max_drawdown`` says
    settings = {"margin_mode": "isolated", "leverage": 8.0, "max_drawdown": 1.0}
    played = play([flat(100.0), flat(100.0), flat(60.0), flat(60.0)], [8.0, None, None], **settings)
    assert played["equity"][-1] == 0.0
    assert played.terminated
    assert len(played.rows) == 2
    assert all(np.isfinite(column).all() for column in played.observations[-1].values())
    assert math.isfinite(played.rewards[-1])
    with pytest.raises(gym.error.ResetNeeded):
        played.env.step(np.array([0.0, 1.0], np.float32))
    assert not neighbour(0.0, 0.0)
    with pytest.raises(ZeroDivisionError):
        math.log(0.0 / 0.0)


def test_a_rising_price_never_liquidates_a_long_at_the_edge_of_a_bracket(play: Play, plain: Contract) -> None:
    """Brackets without cum: at 1,000 of notional maintenance jumps from 10 to 200."""

    def neighbour(wallet: float, quantity: float, entry: float, price: float) -> bool:
        notional = quantity * price
        rate = 0.01 if notional < 1_000.0 else 0.2
        return wallet + quantity * (price - entry) <= notional * rate

    with pytest.raises(ValueError, match=r"cum of bracket 2 must be .* = 190"):
        with_brackets(plain, (0.0, 1_000.0, 0.01, 0.0), (1_000.0, math.inf, 0.2, 0.0))
    contract = with_brackets(plain, (0.0, 1_000.0, 0.01, 0.0), (1_000.0, math.inf, 0.2, 190.0))
    rise = [flat(96.0), (96.0, 104.0, 96.0, 104.0)]
    played = play(rise, [8.0], contract=contract, initial_wallet=120.0)
    assert played["position"] == [10.0]
    assert played["liquidated"] == [0.0]
    assert played["equity"] == [pytest.approx(200.0)]
    assert not neighbour(120.0, 10.0, 96.0, 96.0)
    assert neighbour(120.0, 10.0, 96.0, 104.0)


def test_entries_of_an_inverse_contract_average_harmonically(play: Play, plain: Contract) -> None:
    """Inverse entries averaged arithmetically: 50,000 at 50,000 and 100,000 at 100,000, marked at 80,000."""

    def neighbour(wallet: float, price: float) -> float:
        entry = (50_000.0 * 50_000.0 + 100_000.0 * 100_000.0) / 150_000.0
        return wallet + 150_000.0 * (1.0 / entry - 1.0 / price)

    contract = replace(plain, symbol="COIN/USD:COIN", kind="inverse")
    doubled = (50_000.0, 100_000.0, 50_000.0, 100_000.0)
    bars = [flat(50_000.0), doubled, (100_000.0, 100_000.0, 80_000.0, 80_000.0)]
    played = play(bars, [1.0, 1.0], contract=contract, initial_wallet=1.0, volume=1e12)
    assert played["position"] == [pytest.approx(50_000.0), pytest.approx(150_000.0)]
    # 150,000 · (1 / 75,000 − 1 / 80,000) = 0.125 coin
    assert played["equity"] == [pytest.approx(1.5), pytest.approx(1.125)]
    assert neighbour(1.0, 80_000.0) == pytest.approx(0.925)
