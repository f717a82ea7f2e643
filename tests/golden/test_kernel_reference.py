"""The kernel against a second account written from the documents alone, and the corners where they matter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from perpgym.data.contract import Bracket, Contract
from perpgym.envs.arrays import Bar
from perpgym.envs.config import EnvConfig
from perpgym.envs.risk.limits import RiskLimits

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


# --- random worlds ---


def random_contract(rng: np.random.Generator, price: float) -> Contract:
    count = int(rng.integers(1, 5))
    floors = [0.0, *np.sort(10 ** rng.uniform(2, 8, count - 1)).round(0).tolist()]
    rates = np.sort(10 ** rng.uniform(np.log10(0.002), np.log10(0.2), count)).round(5).tolist()
    cum, brackets = 0.0, []
    for i in range(count):
        cum += floors[i] * (rates[i] - rates[i - 1]) if i else 0.0
        brackets.append(
            Bracket(
                floor=floors[i],
                cap=floors[i + 1] if i + 1 < count else math.inf,
                maintenance_margin_rate=rates[i],
                cum=cum,
                max_leverage=min(150.0, math.floor(1.0 / rates[i])),
            )
        )
    return Contract(
        symbol="RANDOM",
        tick_size=float(10.0 ** (math.floor(math.log10(price)) - rng.integers(3, 7))),
        lot_size=float(rng.choice([1.0, 0.1, 0.001, 1e-6])),
        min_quantity=1e-6,
        max_quantity=float(rng.choice([1e9, 50.0])),
        min_notional=float(rng.choice([0.0, 5.0, 100.0])),
        taker_rate=0.0004,
        clearance_rate=float(rng.choice([0.0, 0.0003, 0.0125])),
        brackets=tuple(brackets),
    )


def random_config(rng: np.random.Generator, max_leverage: float) -> EnvConfig:
    leverage = min(float(rng.choice([1.0, 2.0, 10.0, 20.0, 50.0, 125.0])), max_leverage)
    pick = lambda *values: values[int(rng.integers(len(values)))]  # noqa: E731
    return EnvConfig(
        initial_wallet=float(10 ** rng.uniform(0, 8)),
        leverage=leverage,
        margin_mode=pick("cross", "isolated"),
        action=pick("target", "band"),
        max_exposure=float(leverage * pick(1.0, 1.0, 0.3)),
        rebalance_threshold=pick(0.0, 0.02, 0.3),
        half_spread_bps=pick(0.0, 1.0, 30.0),
        impact_coefficient=pick(0.0, 1.0, 5.0),
        max_participation=pick(0.1, 1.0),
        taker_rate=pick(None, 0.0, 0.0004, 0.005),
        stop_loss=pick(None, None, 0.001, 0.02, 0.2),
        take_profit=pick(None, None, 0.001, 0.02, 0.2),
        stop_trigger=pick("mark", "last"),
        funding_multiplier=pick(1.0, 0.8, -2.0),
        max_drawdown=pick(0.3, 0.9, 1.0),
        reward_equity_floor=pick(0.01, 0.5),
        reward_scale=pick(1.0, 100.0),
        reward_risk_aversion=pick(1.0, 8.0),
    )


def random_limits(rng: np.random.Generator) -> RiskLimits:
    pick = lambda *values: values[int(rng.integers(len(values)))]  # noqa: E731
    return RiskLimits(
        max_leverage=pick(150.0, 150.0, 3.0),
        max_notional=pick(None, None, 20_000.0),
        max_daily_loss=pick(None, 0.1, 0.5),
        drawdown_start=pick(None, None, 0.05),
    )


def random_ohlc(rng: np.random.Generator, opening: float, sigma: float) -> tuple[float, float, float, float]:
    closing = opening * math.exp(sigma * rng.standard_normal())
    high = max(opening, closing) * math.exp(abs(sigma * rng.standard_normal()))
    low = min(opening, closing) * math.exp(-abs(sigma * rng.standard_normal()))
    return opening, high, low, closing


def random_bar(rng: np.random.Generator, close: float, sigma: float, basis: float, volume: float) -> Bar:
    gap = math.exp(sigma * 4 * rng.standard_normal()) if rng.random() < 0.15 else 1.0
    last = random_ohlc(rng, close * gap, sigma)
    if basis == 0.0:
        mark = last
    else:
        start = last[0] * math.exp(basis * rng.standard_normal())
        end = last[3] * math.exp(basis * rng.standard_normal())
        # an open that is exactly the extreme is left out: what settlements inside the bar cost can then leave
        # the open short of margin, where the kernel liquidates and this account looks for the crossing
        mark = (
            start,
            max(start, end, last[1] * math.exp(basis * rng.standard_normal())) * (1.0 + 1e-6),
            min(start, end, last[2] * math.exp(basis * rng.standard_normal())) * (1.0 - 1e-6),
            end,
        )
    traded = 0.0 if rng.random() < 0.05 else volume * math.exp(rng.standard_normal())
    return Bar(*last, *mark, traded, sigma)


def play(pair_type: Any, seed: int) -> dict[str, float]:
    """One random world of up to 16 bars through both; counts of what happened."""
    rng = np.random.default_rng(seed)
    price = float(10 ** rng.uniform(-1, 5))
    contract, sigma = random_contract(rng, price), float(rng.choice([0.002, 0.02, 0.1]))
    config = random_config(rng, contract.brackets[0].max_leverage)
    pair = pair_type(contract, config, random_limits(rng))
    bar_ms = int(rng.choice([HOUR_MS, 4 * HOUR_MS, DAY_MS]))
    basis, volume = (
        float(rng.choice([0.0, 0.003, 0.03])),
        config.initial_wallet / price * 10 ** rng.uniform(0, 4),
    )
    every, size = int(rng.choice([HOUR_MS // 2, 2 * HOUR_MS, 8 * HOUR_MS])), float(rng.choice([1e-4, 0.02]))
    last = mark = price
    seen = dict.fromkeys(("steps", "liquidated", "stopped", "fills", "overlay", "insurance"), 0.0)
    for count in range(16):
        open_ms = count * bar_ms
        bar = random_bar(rng, last, sigma, basis, volume)
        first = (open_ms // every + 1) * every
        stamps = [(t, float(rng.normal(0, size))) for t in range(first, open_ms + bar_ms + 1, every)]
        action = rng.choice([-1.0, 0.0, 1.0, rng.uniform(-1, 1)], 2 if config.action == "band" else 1)
        row, is_over = pair.step(action, mark, bar, stamps, open_ms=open_ms, bar_ms=bar_ms)
        last, mark = bar.last_close, bar.mark_close
        seen["steps"] += 1
        for name in ("liquidated", "stopped", "fills", "overlay", "insurance"):
            seen[name] += float(row[name] != 0)
        if is_over:
            break
    return seen


def test_the_kernel_agrees_with_an_account_written_from_the_documents(pair_type: Any) -> None:
    total: dict[str, float] = {}
    for seed in range(1_000):
        try:
            seen = play(pair_type, seed)
        except AssertionError as error:
            raise AssertionError(f"world {seed}: {error}") from error
        total = {name: total.get(name, 0.0) + value for name, value in seen.items()}
    # the worlds are wild enough to visit every event often
    assert total["steps"] > 10_000, total
    assert min(total[name] for name in ("liquidated", "stopped", "insurance", "overlay")) > 200, total


# --- corners, each on both accounts ---

PLAIN = Contract(
    symbol="PAPER",
    tick_size=0.01,
    lot_size=0.001,
    min_quantity=0.001,
    min_notional=5.0,
    brackets=(
        Bracket(floor=0.0, cap=1e6, maintenance_margin_rate=0.004, cum=0.0, max_leverage=125.0),
        Bracket(floor=1e6, cap=math.inf, maintenance_margin_rate=0.02, cum=16_000.0, max_leverage=20.0),
    ),
)


class Corner:
    """A pair with no costs unless asked for, driven by exposures through hourly bars."""

    def __init__(self, pair_type: Any, wallet: float = 1_000.0, **settings: Any) -> None:
        limits = RiskLimits(
            max_leverage=settings.pop("max_leverage", 125.0), max_daily_loss=settings.pop("daily", None)
        )
        free = {"half_spread_bps": 0.0, "impact_coefficient": 0.0, "taker_rate": 0.0, "max_drawdown": 1.0}
        self.config = EnvConfig(
            **{"action": "target", "leverage": 100.0, "max_exposure": 64.0, "rebalance_threshold": 0.02}
            | free
            | {"initial_wallet": wallet}
            | settings
        )
        self.pair = pair_type(settings.pop("contract", PLAIN), self.config, limits)
        self.mark, self.hour, self.is_over = 100.0, 0, False

    def bar(
        self,
        exposure: float,
        last: tuple[float, float, float, float] | float = 100.0,
        mark: tuple[float, float, float, float] | float | None = None,
        *,
        stamps: tuple[tuple[float, float], ...] = (),
        volume: float = 1e9,
        sigma: float = 0.0,
    ) -> dict[str, float]:
        last = (last,) * 4 if isinstance(last, float) else last
        mark = (mark,) * 4 if isinstance(mark, float) else mark or last
        start = self.hour * HOUR_MS
        row, self.is_over = self.pair.step(
            exposure / self.config.max_exposure,
            self.mark,
            Bar(*last, *mark, volume, sigma),
            [(start + int(hours * HOUR_MS), rate) for hours, rate in stamps],
            open_ms=start,
        )
        self.mark, self.hour = mark[3], self.hour + 1
        return dict(row)


def test_a_position_stopped_at_the_open_pays_no_settlement_later_in_the_bar(pair_type: Any) -> None:
    account = Corner(pair_type, stop_loss=0.1)
    account.bar(1.0)
    row = account.bar(1.0, (85.0, 86.0, 84.0, 85.0), stamps=((0.5, 0.01),))
    assert (row["stopped"], row["funding"]) == (1.0, 0.0)


def test_a_mark_ahead_of_the_last_price_pays_no_take_profit(pair_type: Any) -> None:
    account = Corner(pair_type, take_profit=0.01)
    # the mark stands 2 % over a last price of 100, which never trades at 101
    assert account.bar(1.0, 100.0, 102.0)["stopped"] == 0.0
    row = account.bar(1.0, (100.0, 101.0, 100.0, 101.0), 102.0)
    assert row["stopped"] == 1.0
    assert row["equity"] == pytest.approx(1_010.0)


def test_a_stop_on_the_mark_fills_at_the_last_price_of_that_moment(pair_type: Any) -> None:
    account = Corner(pair_type, stop_loss=0.01)
    account.bar(1.0, 100.0, 102.0)
    # the stop at 99 on the mark: the last price stands at 99 * 100 / 102 then
    row = account.bar(1.0, (100.0, 100.0, 95.0, 96.0), (102.0, 102.0, 97.0, 98.0))
    assert row["stopped"] == 1.0
    assert row["equity"] == pytest.approx(1_000.0 - 10 * (100 - 97.05))


def test_no_stop_and_no_target_fills_in_a_bar_without_trades(pair_type: Any) -> None:
    account = Corner(pair_type, stop_loss=0.1, take_profit=0.1)
    account.bar(1.0)
    assert account.bar(1.0, 85.0, volume=0.0)["fills"] == 0
    assert account.bar(1.0, 120.0, volume=0.0)["fills"] == 0
    assert account.bar(1.0, 86.0)["equity"] == pytest.approx(1_000.0 - 10 * 14)


def test_initial_margin_is_checked_where_the_order_meets_the_book(pair_type: Any) -> None:
    account = Corner(pair_type, leverage=10.0, max_exposure=10.0)
    account.bar(5.0)
    # 50 held; the open at 85 leaves 250 of equity and 425 of initial margin: nothing can be added
    row = account.bar(10.0, 85.0)
    assert row["position"] == pytest.approx(50.0)
    assert row["fills"] == 0


def test_an_order_that_the_margin_cannot_carry_after_impact_is_cut(pair_type: Any) -> None:
    account = Corner(
        pair_type,
        leverage=50.0,
        max_exposure=50.0,
        half_spread_bps=10.0,
        impact_coefficient=1.0,
        taker_rate=0.0004,
    )
    row = account.bar(50.0, volume=10_000.0, sigma=0.01)
    # fill at 100 * (1 + 0.001 + 0.01 * sqrt(500 / 10000)) = 100.33: each unit needs margin, fee and open loss
    each = 100.33 / 50 + 100.33 * 0.0004 + 0.33
    assert row["position"] == pytest.approx(math.floor(1_000 / each * 1_000) / 1_000)
    assert row["liquidated"] == 0.0


def test_a_position_stays_inside_the_brackets_of_its_leverage(pair_type: Any) -> None:
    account = Corner(pair_type, 1e5)
    # 100x is admitted up to 1,000,000 of notional
    assert account.bar(50.0)["position"] == pytest.approx(10_000.0)


def test_a_limit_is_obeyed_within_the_rebalance_threshold(pair_type: Any) -> None:
    account = Corner(pair_type, rebalance_threshold=0.5, max_leverage=3.0)
    account.bar(3.0)
    account.bar(3.0, 96.0)
    # 30 * 96 / 880 = 3.27 of exposure is cut back to 3
    row = account.bar(3.0, 96.0)
    assert row["exposure"] == pytest.approx(3.0, abs=1e-3)
    assert row["overlay"] == 1.0


def test_a_lost_day_stays_lost_when_the_price_comes_back(pair_type: Any) -> None:
    account = Corner(pair_type, daily=0.1)
    account.bar(2.0)
    assert account.bar(2.0, (100.0, 100.0, 94.0, 94.0))["position"] == pytest.approx(20.0)
    # sold at a better open: 8 % down on the day, and still flat
    row = account.bar(2.0, 96.0)
    assert (row["position"], row["overlay"]) == (0.0, 4.0)
    assert row["equity"] == pytest.approx(920.0)
    while account.hour < 24:
        assert account.bar(2.0, 96.0)["fills"] == 0
    assert account.bar(2.0, 96.0)["fills"] == 1


@pytest.mark.parametrize("margin_mode", ["cross", "isolated"])
def test_a_stop_beyond_bankruptcy_leaves_no_debt(pair_type: Any, margin_mode: str) -> None:
    account = Corner(
        pair_type, stop_loss=0.05, stop_trigger="last", margin_mode=margin_mode, max_exposure=100.0
    )
    account.bar(100.0)
    # the last price crashes 8 %, the mark does not move
    row = account.bar(100.0, (92.0, 92.0, 92.0, 92.0), 100.0)
    assert (row["equity"], row["stopped"]) == (0.0, 1.0)
    assert row["insurance"] == pytest.approx(1_000.0 * 8 - 1_000.0)
    assert account.is_over


def test_an_isolated_wallet_is_never_more_than_the_wallet(pair_type: Any) -> None:
    account = Corner(pair_type, margin_mode="isolated", max_exposure=100.0)
    account.bar(100.0)
    # half is sold 3 % down while the mark stands: 1,500 lost, 500 of margin released
    account.bar(50.0, 97.0, 100.0)
    assert account.pair.position[2] <= account.pair.wallet[0] + 1e-9


def test_a_leverage_that_no_bracket_admits_is_refused(pair_type: Any) -> None:
    with pytest.raises(ValueError, match="at most 125 for PAPER"):
        Corner(pair_type, leverage=150.0, max_exposure=1.0)
