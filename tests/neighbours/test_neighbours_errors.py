"""Errors of bookkeeping found in neighbouring environments: each wrong sum beside what this env books.

A docstring begins with the error; the local function is the neighbour's arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from perpgym.envs.impact_model import ImpactModel

Prices = tuple[float, float, float, float]
Play = Callable[..., Any]


def flat(price: float) -> Prices:
    return (price, price, price, price)


# --- funding ---


def test_three_settlements_cost_three_times_one(play: Play) -> None:
    """Borrow or funding cost overwritten instead of accumulated."""

    def neighbour(quantity: float, price: float, rates: list[float]) -> float:
        interest = 0.0
        for rate in rates:
            interest = quantity * price * rate
        return -interest

    stamps = [(2.0, 1e-3), (3.0, 1e-3), (4.0, 1e-3)]
    played = play([flat(100.0)] * 4, [1.0, None, None], stamps=stamps)
    assert sum(played["funding"]) == pytest.approx(-3.0)
    assert played["equity"][-1] == pytest.approx(997.0)
    assert neighbour(10.0, 100.0, [1e-3] * 3) == pytest.approx(-1.0)


def test_holding_through_a_settlement_on_a_flat_market_costs_the_rate(play: Play) -> None:
    """Funding documented but never charged."""

    def neighbour(cash: float, quantity: float, price: float) -> float:
        return cash + quantity * price

    played = play([flat(100.0)] * 3, [1.0, None], stamps=[(2.0, 0.01)])
    assert played["equity"] == [pytest.approx(990.0), pytest.approx(990.0)]
    assert neighbour(0.0, 10.0, 100.0) == 1_000.0


def test_a_daily_bar_is_charged_each_of_its_three_settlements(play: Play) -> None:
    """Daily bars charged one funding instead of three."""

    def neighbour(quantity: float, close: float, rates: list[float]) -> float:
        return -quantity * close * rates[-1]

    rates = [1e-3, 2e-3, 4e-3]
    stamps = [(32.0, rates[0]), (40.0, rates[1]), (48.0, rates[2])]
    played = play([flat(100.0)] * 2, [1.0], stamps=stamps, bar_ms=86_400_000)
    assert played["funding"] == [pytest.approx(-7.0)]
    assert neighbour(10.0, 100.0, rates) == pytest.approx(-4.0)


# --- positions ---

# 1,000 in the wallet and short 10 from 100: at this price the exposure is −3.7
RISE = np.geomspace(100.0, 7_400.0 / 47.0, 9)
RISING = [(a, b, a, b) for a, b in pairwise(RISE.tolist())]


def test_holding_holds_the_quantity_and_shows_how_the_exposure_drifts(play: Play) -> None:
    """A held short of −1 drifts to −3.7 without anyone deciding it: the neighbour shows what was chosen.

    A band that is wide open holds the *quantity*; every bar's drift is in the observation before the next
    decision, so holding on is a decision.
    """

    def neighbour(chosen: float, _price: float) -> float:
        return chosen

    played = play([flat(100.0)] * 2 + RISING, [-1.0] + [None] * 8)
    assert played["position"] == [-10.0] * 9
    assert played["exposure"][-1] == pytest.approx(-3.7)
    shown = [observation["account"][0, 0] for observation in played.observations[1:]]
    assert shown == pytest.approx(played["exposure"], rel=1e-6)
    assert (np.diff(shown) < 0.0).all()
    assert neighbour(-1.0, RISE[-1]) == -1.0


@pytest.mark.parametrize(("threshold", "drift"), [(0.0, 0.15), (0.5, 0.9)])
def test_repeating_a_target_holds_the_exposure_as_closely_as_the_threshold_asks(
    play: Play, threshold: float, drift: float
) -> None:
    """A held short of −1 drifts to −3.7 without anyone deciding it: constant *exposure* is offered too."""
    settings = {"action": "target", "rebalance_threshold": threshold}
    bars = [flat(100.0), flat(100.0), *RISING, flat(RISING[-1][3])]
    played = play(bars, [-1.0] * 10, **settings)
    assert -1.0 - drift < min(played["exposure"]) < -1.0
    assert played["exposure"][-1] == pytest.approx(-1.0, abs=max(threshold, 1e-4))
    assert len(set(played["position"])) > 1


def test_an_order_adds_to_the_position_and_does_not_replace_it(play: Play) -> None:
    """An order that replaces the position instead of adding to it."""

    def neighbour(orders: list[float]) -> float:
        position = 0.0
        for quantity in orders:
            position = quantity
        return position

    bars = [flat(100.0)] * 3 + [(100.0, 110.0, 100.0, 110.0)]
    played = play(bars, [0.5, 0.75, None])
    assert played["position"] == [5.0, 7.5, 7.5]
    assert played["traded_notional"] == [pytest.approx(500.0), pytest.approx(250.0), 0.0]
    assert played["price_pnl"][-1] == pytest.approx(75.0)
    assert neighbour([5.0, 2.5]) * 10.0 == 25.0


def test_repeating_a_target_stacks_no_orders(play: Play) -> None:
    """Repeating one target stacks orders."""

    def neighbour(target: float, filled_per_bar: float, bars: int) -> float:
        held = working = most = 0.0
        for _ in range(bars):
            working += target - held
            filled = min(filled_per_bar, working)
            held, working = held + filled, working - filled
            most = max(most, held)
        return most

    # half of a bar's volume lies below 100, of which a tenth may be taken: two units
    bars = [flat(100.0)] + [(100.0, 101.0, 99.0, 100.0)] * 12
    resting = {"execution": "limit", "limit_offset_bps": 0.0, "half_spread_bps": 1.0}
    played = play(bars, [1.0] * 12, volume=40.0, remainder="carry", max_participation=0.1, **resting)
    assert played["position"][:5] == pytest.approx([2.0, 4.0, 6.0, 8.0, 10.0], abs=1e-4)
    assert max(played["position"]) <= 10.0
    assert neighbour(10.0, 2.0, 12) > 15.0


def test_a_resting_order_that_the_price_trades_through_fills(play: Play) -> None:
    """A resting limit that the price trades through and that does not fill."""

    def neighbour(limit: float, bar: Prices) -> bool:
        return bar[3] <= limit

    through = (100.0, 101.0, 98.0, 100.5)
    played = play([flat(100.0), through], [1.0], execution="limit", half_spread_bps=1.0)
    assert played["fills"] == [1.0]
    assert played["fill_price"] == [pytest.approx(99.99)]
    assert not neighbour(99.99, through)


# --- profit and costs ---


@pytest.mark.parametrize("second", [0.5, -1.0], ids=["partial close", "flip"])
def test_profit_is_counted_once_when_a_position_is_cut_or_turned(play: Play, second: float) -> None:
    """Pnl counted twice on a partial close or flip."""

    def neighbour(wallet: float, held: float, entry: float, sold: float, price: float) -> float:
        closed = min(held, sold)
        realised = closed * (price - entry)
        return wallet + realised + held * (price - entry)

    bars = [flat(100.0), (100.0, 110.0, 100.0, 110.0), flat(110.0)]
    played = play(bars, [1.0, second])
    # 10 bought at 100 are worth 100 more at 110, whatever is sold there
    assert played["equity"] == [pytest.approx(1_100.0), pytest.approx(1_100.0)]
    sold = 10.0 - played["position"][-1]
    assert sold > 0.0
    assert neighbour(1_000.0, 10.0, 100.0, sold, 110.0) > 1_140.0


@pytest.mark.parametrize("plan", [[1.0, 0.0], [-1.0, 0.0], [1.0, -1.0], [-1.0, 1.0], [-0.5, -1.0]])
def test_a_higher_fee_never_makes_the_agent_richer(play: Play, plan: list[float]) -> None:
    """A higher fee makes the agent richer: the sale of a short is credited price · (1 + fee)."""

    def neighbour(deltas: list[float], price: float, fee: float) -> float:
        return 1_000.0 - sum(delta * price * (1.0 + fee) for delta in deltas) + sum(deltas) * price

    equities = [
        play([flat(100.0)] * 3, plan, taker_rate=fee)["equity"][-1] for fee in (0.0, 1e-4, 1e-3, 0.01)
    ]
    assert all(more < less for less, more in pairwise(equities))
    assert neighbour([-10.0], 100.0, 0.01) > neighbour([-10.0], 100.0, 0.0)


def test_slippage_is_paid_by_every_fill(play: Play) -> None:
    """Slippage that is income half of the time: noise around the price, whatever the side."""

    def neighbour(sides: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise = rng.normal(0.0, 1e-3, len(sides))
        return -sides * noise

    plan = np.random.default_rng(0).choice([-1.0, -0.5, 0.0, 0.5, 1.0], 200).tolist()
    played = play([flat(100.0)] * 201, plan, half_spread_bps=10.0, impact_coefficient=1.0, volume=1e5)
    before = np.concatenate([[0.0], played["position"][:-1]])
    side = np.sign(np.array(played["position"]) - before)
    traded = side != 0.0
    assert traded.sum() > 100
    assert (side * (np.array(played["fill_price"]) - 100.0))[traded].min() >= 0.1
    assert (np.array(played["spread"]) + np.array(played["impact"]))[traded].min() > 0.0
    income = neighbour(side[traded], np.random.default_rng(1))
    assert 0.4 < (income > 0.0).mean() < 0.6


def test_transient_impact_fades_with_time_and_has_a_side(play: Play) -> None:
    """'Transient' impact that decays per trade and not with time, and ignores the sign."""

    def neighbour(trades: list[tuple[int, float]]) -> list[float]:
        paid, push = [], 0.0
        for _hour, quantity in trades:
            push = 0.5 * push + abs(quantity)
            paid.append(push)
        return paid

    trace = ImpactModel(kind="exponential", transient_coefficient=100.0, half_life_minutes=60.0)
    settings = {"impact": trace, "volume": 1e4, "rounding": "off"}

    def paid(plan: list[float | None]) -> float:
        """What the last order of a plan pays for its impact, as a fraction of its notional."""
        played = play([flat(100.0)] * (len(plan) + 1), plan, **settings)
        return played["impact"][-1] / played["traded_notional"][-1]

    first, soon, late = paid([0.5]), paid([0.5, 1.0]), paid([0.5, *[None] * 9, 1.0])
    # after an hour half of the first push is left, whose half the first order itself has paid
    assert soon == pytest.approx(2.0 * first, rel=1e-3)
    assert late == pytest.approx(first, rel=3e-3)
    # whoever sells meets the push from the other side: minus what is left, plus half of its own
    assert paid([0.5, 0.0]) == pytest.approx(0.0, abs=1e-3 * first)
    assert neighbour([(1, 5.0), (2, 5.0)]) == neighbour([(1, 5.0), (11, 5.0)])
    assert neighbour([(1, 5.0), (2, -5.0)]) == neighbour([(1, 5.0), (2, 5.0)])


# --- reward ---


def test_the_step_that_ruins_has_the_worst_reward(play: Play) -> None:
    """Ruin paid with reward 0."""

    def neighbour(before: float, after: float) -> float:
        return 0.0 if after <= 0.0 else math.log(after / before)

    played = play([flat(100.0), flat(100.0), flat(40.0)], [8.0, None])
    assert played.terminated
    assert played["equity"] == [1_000.0, 0.0]
    assert played.rewards[-1] == pytest.approx(math.log(0.01))
    assert neighbour(1_000.0, 0.0) == 0.0


def test_a_reward_does_not_depend_on_later_prices(play: Play) -> None:
    """A reward that reads future prices."""

    def neighbour(exposure: float, closes: list[float], bar: int) -> float:
        return exposure * (closes[bar + 1] / closes[bar] - 1.0)

    past = [flat(100.0), (100.0, 104.0, 99.0, 103.0), (103.0, 105.0, 101.0, 102.0)]
    futures = [[flat(150.0)] * 2, [flat(60.0)] * 2]
    rewards = [play(past + future, [1.0, None, None]).rewards for future in futures]
    assert rewards[0][:2] == rewards[1][:2]
    assert rewards[0][2] != rewards[1][2]
    theirs = [neighbour(1.0, [bar[3] for bar in past + future], 2) for future in futures]
    assert theirs[0] != theirs[1]


def test_opening_a_trade_earns_nothing_by_itself(play: Play) -> None:
    """A bonus for merely opening a trade."""

    def neighbour(profit: float, has_opened: bool) -> float:
        return profit + 0.01 * has_opened

    for exposure in (1.0, -1.0, 8.0):
        free = play([flat(100.0)] * 2, [exposure])
        assert free["fills"] == [1.0]
        assert free.rewards == [0.0]
        costly = play([flat(100.0)] * 2, [exposure], taker_rate=4e-4, half_spread_bps=1.0)
        assert costly.rewards[0] < 0.0
    assert neighbour(0.0, True) > 0.0
