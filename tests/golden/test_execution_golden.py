"""Execution styles, latency, remainders and finer bars, worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from perpgym.data.bars import Bars
from perpgym.data.contract import Contract
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.finer import Finer
from perpgym.envs.orders import NOT_REACHED, PARTICIPATION, WOULD_CROSS
from perpgym.envs.spaces import CONTRACT_LEDGER, LEDGER_COLUMNS

HOUR_MS, MINUTES_15 = 3_600_000, 900_000
PAPER = Contract(symbol="PAPER", tick_size=0.01, lot_size=0.01, min_quantity=0.01, min_notional=1.0)
Prices = tuple[float, float, float, float]
QUIET: Prices = (100.0, 100.0, 100.0, 100.0)


def bars_of(prices: list[Prices], bar_ms: int, volume: float | list[float]) -> Bars:
    count = len(prices)
    array = np.array(prices)
    return Bars(
        contract=PAPER, bar_ms=bar_ms, open_time_ms=np.arange(count, dtype=np.int64) * bar_ms, last=array,
        mark=array, volume=np.broadcast_to(np.asarray(volume, float), (count,)).copy(),
        stamp_time_ms=np.zeros(0, np.int64), stamp_rate=np.zeros(0),
    )  # fmt: skip


def tape_of(bars: Bars, sigma: float = 0.0) -> Tape:
    count = len(bars)
    return Tape(
        contracts=(PAPER,), bar_ms=bars.bar_ms, open_time_ms=bars.open_time_ms, last=bars.last[:, None],
        mark=bars.mark[:, None], volume=bars.volume[:, None], sigma_per_bar=np.full((count, 1), sigma),
        stamp_start=np.zeros((1, count + 1), np.int64), stamp_time_ms=bars.stamp_time_ms,
        stamp_rate=bars.stamp_rate, features=np.zeros((count, 1, 1), np.float32),
        risk=np.zeros((count, 1, 1), np.float32), feature_names=("f",), risk_names=("r",), first_valid_bar=0,
        mark_rules=("mark",), source="test",
    )  # fmt: skip


class Trader:
    """One account on hourly bars, 10,000 in the wallet, free of costs unless asked for."""

    def __init__(
        self,
        prices: list[Prices],
        *,
        volume: float | list[float] = 1e6,
        finer: Bars | None = None,
        sigma: float = 0.0,
        **settings: Any,
    ) -> None:
        free = {"half_spread_bps": 0.0, "impact_coefficient": 0.0, "taker_rate": 0.0, "maker_rate": 0.0}
        plain = {"action": "target", "max_exposure": 5.0, "window_bars": 1, "rebalance_threshold": 1e-6}
        config = EnvConfig(**({"initial_wallet": 10_000.0, "max_drawdown": 1.0} | free | plain | settings))
        tape = tape_of(bars_of([QUIET, *prices], HOUR_MS, volume), sigma)
        limits = RiskLimits(max_leverage=10.0, max_daily_loss=None)
        self.env = PerpVecEnv(tape, n_paths=1, config=config, limits=limits, finer=finer)
        self.out = self.env.make_buffers()
        self.env.reset_into(self.out, 0)
        assert self.out.bar[0] == 0

    def step(self, exposure: float) -> dict[str, float]:
        self.env.step_into(np.array([[exposure / 5.0]], np.float32), self.out)
        row = dict(zip(LEDGER_COLUMNS, self.out.ledger[0].tolist(), strict=True))
        return row | {"reason": float(self.out.holdings[0, 0, CONTRACT_LEDGER["reason"]])}


# --- resting orders ---


def test_a_resting_buy_fills_at_its_price_as_a_maker_when_the_bar_trades_through() -> None:
    # placed 1 % under 100; the bar's low of 98 is beyond it
    trader = Trader(
        [(100.0, 101.0, 98.0, 100.0)], execution="limit", limit_offset_bps=100.0, maker_rate=0.0002,
        taker_rate=0.0005,
    )  # fmt: skip
    row = trader.step(1.0)
    assert (row["fill_price"], row["position"]) == (99.0, 100.0)
    assert row["fees"] == pytest.approx(100.0 * 99.0 * 0.0002)
    assert row["spread"] == row["impact"] == 0.0


@pytest.mark.parametrize(("low", "filled"), [(99.0, 0.0), (98.99, 100.0)])
def test_touching_the_price_is_not_enough_a_tick_beyond_it_is(low: float, filled: float) -> None:
    trader = Trader([(100.0, 100.0, low, 100.0)], execution="limit", limit_offset_bps=100.0)
    row = trader.step(1.0)
    assert row["position"] == filled
    assert row["reason"] == (0.0 if filled else NOT_REACHED)


def test_a_resting_order_takes_at_most_its_share_of_the_volume_beyond() -> None:
    # a quarter of the bar's range of 4 lies below 99: 10 % of a quarter of 1,000
    trader = Trader([(100.0, 102.0, 98.0, 100.0)], volume=1_000.0, execution="limit", limit_offset_bps=100.0)
    row = trader.step(1.0)
    assert row["position"] == pytest.approx(25.0)
    assert row["reason"] == PARTICIPATION


def test_a_post_only_order_that_would_take_is_refused() -> None:
    # the market opens below the buy's price
    trader = Trader([(98.5, 99.0, 98.0, 98.5)], execution="limit", limit_offset_bps=100.0)
    row = trader.step(1.0)
    assert (row["position"], row["reason"]) == (0.0, WOULD_CROSS)


def test_an_iceberg_fills_in_whole_clips() -> None:
    # 25 could fill; clips of 10 % of 100 are 10: two of them
    trader = Trader(
        [(100.0, 102.0, 98.0, 100.0)], volume=1_000.0, execution="iceberg", limit_offset_bps=100.0
    )
    assert trader.step(1.0)["position"] == pytest.approx(20.0)


def test_a_target_inside_the_bar_of_the_fill_is_not_taken() -> None:
    # bought at 99 on the way to 98; the high of 104 may have come before
    trader = Trader(
        [(100.0, 104.0, 98.0, 100.0), (100.0, 104.0, 100.0, 100.0)], execution="limit",
        limit_offset_bps=100.0, take_profit=0.03,
    )  # fmt: skip
    assert trader.step(1.0)["stopped"] == 0.0
    assert trader.step(1.0)["stopped"] == 1.0


def test_a_stop_inside_the_bar_of_the_fill_is() -> None:
    trader = Trader([(100.0, 100.0, 90.0, 100.0)], execution="limit", limit_offset_bps=100.0, stop_loss=0.05)
    row = trader.step(1.0)
    # bought at 99, stopped at 94.05
    assert row["stopped"] == 1.0
    assert row["equity"] == pytest.approx(10_000.0 - 100.0 * 4.95)


# --- slices ---


def test_slices_without_finer_bars_fill_at_the_middle_with_two_thirds_of_the_impact() -> None:
    # reference (100 + 104) / 2; impact 2/3 * 0.03 * sqrt(100 / 10,000) of it
    trader = Trader(
        [(100.0, 104.0, 100.0, 104.0)], volume=10_000.0, sigma=0.03, execution="twap", impact_coefficient=1.0
    )
    row = trader.step(1.0)
    assert row["position"] == pytest.approx(100.0)
    assert row["fill_price"] == pytest.approx(math.ceil(102.0 * (1 + 2 / 3 * 0.003) * 100 - 1e-6) / 100)
    assert row["impact"] == pytest.approx(100.0 * (row["fill_price"] - 102.0))


def test_a_position_that_is_sold_in_slices_still_carries_the_fall_before() -> None:
    # isolated 5x, liquidated near 80.4 on the way; a sale at the open would have saved it
    trader = Trader(
        [QUIET, (100.0, 100.0, 70.0, 100.0)], execution="twap", margin_mode="isolated", leverage=5.0,
        max_exposure=5.0,
    )  # fmt: skip
    trader.step(1.0)
    assert trader.step(0.0)["liquidated"] == 1.0


def quarters(first: list[Prices]) -> Bars:
    """A quiet hour and then the given quarters of an hour."""
    return bars_of([QUIET] * 4 + first, MINUTES_15, 1e6)


def test_finer_bars_fill_equal_slices_at_their_opens() -> None:
    inside = quarters([(100.0, 101.0, 100.0, 101.0), (102.0,) * 4, (104.0,) * 4, (106.0,) * 4])
    trader = Trader([(100.0, 106.0, 100.0, 106.0)], execution="twap", finer=inside)
    row = trader.step(1.0)
    assert row["position"] == pytest.approx(100.0)
    assert row["fills"] == 4.0
    # 25 each at 100, 102, 104, 106
    assert row["equity"] == pytest.approx(10_000.0 + 25.0 * (6 + 4 + 2 + 0))


def test_vwap_follows_the_volume_of_the_days_before() -> None:
    hours = 49
    shape = np.array([4.0, 2.0, 1.0, 1.0])
    inside = bars_of([QUIET] * 4 * hours, MINUTES_15, list(np.tile(shape * 1e5, hours)))
    tape = tape_of(bars_of([QUIET] * hours, HOUR_MS, 1e6))
    share = Finer.of(tape, inside).share[-4:, 0]
    # of what is left of the hour: 4/8, 2/4, 1/2, 1/1
    assert share == pytest.approx([0.5, 0.5, 0.5, 1.0])


def test_the_volume_profile_knows_nothing_of_its_own_day() -> None:
    rng = np.random.default_rng(0)
    volume = rng.uniform(1.0, 2.0, 4 * 72)
    tape = tape_of(bars_of([QUIET] * 72, HOUR_MS, 1e6))
    before = Finer.of(tape, bars_of([QUIET] * 4 * 72, MINUTES_15, list(volume))).share
    volume[4 * 48 :] *= rng.uniform(1.0, 9.0, 4 * 24)
    after = Finer.of(tape, bars_of([QUIET] * 4 * 72, MINUTES_15, list(volume))).share
    np.testing.assert_array_equal(before, after)


# --- latency and remainders ---


def test_an_order_reaches_the_book_after_its_latency() -> None:
    inside = quarters([(100.0, 101.0, 100.0, 101.0), (102.0,) * 4, (104.0,) * 4, (106.0,) * 4])
    prices: list[Prices] = [(100.0, 106.0, 100.0, 106.0)]
    assert Trader(prices, finer=inside).step(1.0)["fill_price"] == 100.0
    assert Trader(prices, finer=inside, latency_ms=50.0).step(1.0)["fill_price"] == 102.0
    assert Trader(prices, finer=inside, latency_ms=900_001.0).step(1.0)["fill_price"] == 104.0


def test_latency_that_no_finer_bar_resolves_is_refused() -> None:
    with pytest.raises(ValueError, match="needs finer bars"):
        Trader([QUIET], latency_ms=50.0)


def test_a_carried_remainder_is_filled_bar_by_bar_and_never_stacks() -> None:
    # 10 % of 300 a bar
    trader = Trader([QUIET] * 6, volume=300.0, remainder="carry")
    assert [trader.step(1.0)["position"] for _ in range(5)] == [30.0, 60.0, 90.0, 100.0, 100.0]


def test_another_decision_replaces_what_is_carried() -> None:
    trader = Trader([QUIET] * 6, volume=300.0, remainder="carry")
    trader.step(1.0)
    assert [trader.step(0.5)["position"] for _ in range(3)] == [50.0, 50.0, 50.0]


def test_a_dropped_remainder_needs_a_new_decision() -> None:
    # the threshold keeps a target that is met to within 0.8
    trader = Trader([QUIET] * 3, volume=300.0, rebalance_threshold=0.8)
    assert [trader.step(1.0)["position"] for _ in range(2)] == [30.0, 30.0]
    trader = Trader([QUIET] * 3, volume=300.0, rebalance_threshold=0.8, remainder="carry")
    assert [trader.step(1.0)["position"] for _ in range(2)] == [30.0, 60.0]


# --- finer bars resolve the way ---


@pytest.mark.parametrize("first", ["low", "high"])
def test_finer_bars_say_whether_the_stop_or_the_target_came_first(first: str) -> None:
    down, up = (100.0, 100.0, 95.0, 100.0), (100.0, 105.0, 100.0, 100.0)
    order = [down, up] if first == "low" else [up, down]
    inside = quarters([QUIET, *order, QUIET])
    settings = {"stop_loss": 0.04, "take_profit": 0.04}
    prices: list[Prices] = [(100.0, 105.0, 95.0, 100.0)]
    assert Trader(prices, **settings).step(1.0)["equity"] == pytest.approx(9_600.0)
    resolved = Trader(prices, finer=inside, **settings).step(1.0)["equity"]
    assert resolved == pytest.approx(9_600.0 if first == "low" else 10_400.0)


@pytest.mark.parametrize("execution", ["market", "twap", "limit"])
def test_bars_as_their_own_finer_bars_change_nothing(execution: str, make_tape: Callable[..., Tape]) -> None:
    tape = make_tape(bars=300, sigma=0.02, seed=4)
    same = Bars(
        contract=tape.contracts[0], bar_ms=tape.bar_ms, open_time_ms=tape.open_time_ms, last=tape.last[:, 0],
        mark=tape.mark[:, 0], volume=tape.volume[:, 0], stamp_time_ms=tape.stamp_time_ms,
        stamp_rate=tape.stamp_rate,
    )  # fmt: skip
    config = EnvConfig(window_bars=1, execution=execution, stop_loss=0.03, take_profit=0.03)  # type: ignore[arg-type]
    rng, ledgers = np.random.default_rng(0), []
    actions = rng.uniform(-1, 1, (200, 4, 2)).astype(np.float32)
    for finer in (None, same):
        env = PerpVecEnv(tape, n_paths=4, config=config, finer=finer, seed=1)
        out = env.make_buffers()
        env.reset_into(out, 1)
        rows = []
        for action in actions:
            env.step_into(action, out)
            rows.append(out.ledger.copy())
        ledgers.append(np.array(rows))
    np.testing.assert_array_equal(*ledgers)
    assert ledgers[0][..., LEDGER_COLUMNS.index("fills")].sum() > 50


def test_finer_bars_of_another_contract_or_clock_are_refused() -> None:
    tape = tape_of(bars_of([QUIET] * 4, HOUR_MS, 1.0))
    with pytest.raises(ValueError, match="do not divide"):
        Finer.of(tape, bars_of([QUIET] * 40, 7 * 60_000, 1.0))
    with pytest.raises(ValueError, match="cover no two bars"):
        Finer.of(tape, bars_of([QUIET] * 4, MINUTES_15, 1.0))
    with pytest.raises(ValueError, match="one series for each contract"):
        Finer.of(tape, [bars_of([QUIET] * 16, MINUTES_15, 1.0)] * 2)


# --- stops ---


def test_a_stop_by_volatility_lies_so_many_bars_of_it_away() -> None:
    # 2.5 * 2 % under 100
    prices: list[Prices] = [QUIET, (100.0, 100.0, 94.0, 96.0)]
    trader = Trader(prices, sigma=0.02, stop_volatility=2.5)
    trader.step(1.0)
    assert trader.step(1.0)["equity"] == pytest.approx(10_000.0 - 100.0 * 5.0)
    # the tighter of two
    trader = Trader(prices, sigma=0.02, stop_volatility=2.5, stop_loss=0.01)
    trader.step(1.0)
    assert trader.step(1.0)["equity"] == pytest.approx(10_000.0 - 100.0 * 1.0)


def test_a_trailing_stop_follows_the_best_price_and_never_goes_back() -> None:
    rise: Prices = (100.0, 120.0, 100.0, 120.0)
    trader = Trader([QUIET, rise, (120.0, 120.0, 115.0, 118.0), (118.0, 118.0, 100.0, 100.0)], stop_loss=0.1,
                    trailing_stop=True)  # fmt: skip
    assert trader.step(1.0)["stopped"] == 0.0
    for _ in range(2):
        held = float(trader.out.account[0, 0, 0])
        assert trader.step(held)["stopped"] == 0.0
    row = trader.step(float(trader.out.account[0, 0, 0]))
    # 10 % under 120
    assert row["stopped"] == 1.0
    assert row["equity"] == pytest.approx(10_000.0 + 100.0 * 8.0)


def test_a_trailing_stop_drawn_up_by_a_bar_that_closes_beyond_it_fills_at_the_next_open() -> None:
    back: Prices = (100.0, 120.0, 100.0, 101.0)
    trader = Trader([QUIET, back, (101.0, 101.0, 101.0, 101.0)], stop_loss=0.1, trailing_stop=True)
    trader.step(1.0)
    # 10 % under 120 is over the close, and nobody knows whether the price was there on its way to 120
    assert trader.step(1.0)["stopped"] == 0.0
    row = trader.step(1.0)
    assert (row["stopped"], row["equity"]) == (1.0, pytest.approx(10_000.0 + 100.0 * 1.0))


def test_a_trailing_stop_needs_a_distance() -> None:
    with pytest.raises(ValueError, match="trailing_stop needs a distance"):
        EnvConfig(trailing_stop=True)


def test_a_time_stop_closes_whatever_the_agent_wants() -> None:
    trader = Trader([QUIET] * 6, max_bars_held=2)
    rows = [trader.step(1.0) for _ in range(5)]
    assert [row["position"] for row in rows] == [100.0, 100.0, 0.0, 100.0, 100.0]
    assert [row["overlay"] for row in rows] == [0.0, 0.0, 16.0, 0.0, 0.0]
