"""What becomes of an order after it was sent: carried, late, forced, turned, in company; worked by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from perpgym.data.bars import Bars
from perpgym.data.contract import Bracket, Contract
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.orders import MARGIN, NOT_REACHED, TOO_SMALL
from perpgym.envs.spaces import ACCOUNT_COLUMNS, CONTRACT_LEDGER_COLUMNS, LEDGER_COLUMNS

HOUR_MS, QUARTER_MS = 3_600_000, 900_000
Prices = tuple[float, float, float, float]
Wish = float | None | Sequence[float | None]
FREE: dict[str, Any] = {
    "initial_wallet": 1_000.0, "leverage": 64.0, "max_exposure": 8.0, "rebalance_threshold": 0.0,
    "half_spread_bps": 0.0, "impact_coefficient": 0.0, "taker_rate": 0.0, "maker_rate": 0.0,
    "max_drawdown": 1.0, "max_participation": 1.0, "window_bars": 1,
}  # fmt: skip


def flat(price: float) -> Prices:
    return (price, price, price, price)


def contract(symbol: str = "A/USDT:USDT", **rules: Any) -> Contract:
    """Fine ticks and lots; 1 % of maintenance margin."""
    bracket = Bracket(floor=0.0, cap=math.inf, maintenance_margin_rate=0.01, cum=0.0, max_leverage=100.0)
    fine = {"tick_size": 1e-6, "lot_size": 1e-6, "min_quantity": 1e-6, "min_notional": 1e-6}
    return Contract(**{"symbol": symbol, "brackets": (bracket,)} | fine | rules)


def tape_of(
    bars: Sequence[Prices | Sequence[Prices]],
    *,
    contracts: Sequence[Contract] = (),
    mark: Sequence[Prices | Sequence[Prices]] | None = None,
    stamps: Sequence[Sequence[tuple[float, float]]] = (),
    volume: float | Sequence[float] = 1e9,
) -> Tape:
    """Hourly bars, of one contract or of several; stamps as (hours after the first open, rate)."""
    last = np.array(bars, float)
    last = last[:, None] if last.ndim == 2 else last
    count, assets = last.shape[:2]
    starts, times, rates = [], [], []
    for asset in range(assets):
        own = [(round(hours * HOUR_MS), rate) for hours, rate in (stamps[asset] if stamps else ())]
        owner = [-(-time // HOUR_MS) - 1 for time, _rate in own]
        starts.append(len(times) + np.searchsorted(owner, np.arange(count + 1)))
        times += [time for time, _rate in own]
        rates += [rate for _time, rate in own]
    return Tape(
        contracts=tuple(contracts) or tuple(contract(f"{name}/USDT:USDT") for name in "ABCDEF"[:assets]),
        bar_ms=HOUR_MS, open_time_ms=np.arange(count, dtype=np.int64) * HOUR_MS, last=last,
        mark=last if mark is None else np.array(mark, float).reshape(last.shape),
        volume=np.broadcast_to(np.reshape(volume, (-1, 1)), (count, assets)).astype(float),
        sigma_per_bar=np.full((count, assets), 0.01), stamp_start=np.array(starts, np.int64),
        stamp_time_ms=np.array(times, np.int64), stamp_rate=np.array(rates, float),
        features=np.zeros((count, assets, 1), np.float32), risk=np.zeros((count, assets, 1), np.float32),
        feature_names=("f",), risk_names=("r",), first_valid_bar=0, mark_rules=("mark",) * assets,
        source="test",
    )  # fmt: skip


def quarters(prices: Sequence[Prices], volume: float = 1e9) -> Bars:
    array = np.array(prices, float)
    return Bars(
        contract=contract(),
        bar_ms=QUARTER_MS,
        open_time_ms=np.arange(len(array), dtype=np.int64) * QUARTER_MS,
        last=array,
        mark=array,
        volume=np.full(len(array), volume),
        stamp_time_ms=np.zeros(0, np.int64),
        stamp_rate=np.zeros(0),
    )


def hour_of(prices: Sequence[Prices]) -> Prices:
    array = np.array(prices)
    return (array[0, 0], array[:, 1].max(), array[:, 2].min(), array[-1, 3])


def play(
    tape: Tape,
    wishes: Sequence[Wish],
    *,
    overlay: RiskLimits | None = None,
    finer: Bars | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """One row a bar, with what every contract booked; a wish of None holds what there is."""
    config = EnvConfig(**FREE | settings)
    overlay = overlay or RiskLimits(max_leverage=150.0, max_daily_loss=None)
    env = PerpVecEnv(tape, n_paths=1, config=config, limits=overlay, finer=finer)
    out = env.make_buffers()
    env.reset_into(out, 0)
    rows = []
    for wish in wishes:
        each = wish if isinstance(wish, Sequence) else [wish] * len(tape.contracts)
        if config.action == "band":
            action = [n for x in each for n in ((0.0, 1.0) if x is None else (x / config.max_exposure, -1.0))]
        else:
            action = [float(x or 0.0) for x in each]
        env.step_into(np.array([action], np.float32), out)
        row: dict[str, Any] = dict(zip(LEDGER_COLUMNS, out.ledger[0].tolist(), strict=True))
        row["of"] = [dict(zip(CONTRACT_LEDGER_COLUMNS, own, strict=True)) for own in out.holdings[0].tolist()]
        names = [column.name for column in ACCOUNT_COLUMNS]
        row["seen"] = [dict(zip(names, own, strict=True)) for own in out.account[0].tolist()]
        parts = row["price_pnl"] + row["funding"] + row["insurance"] - row["fees"] - row["clearance"]
        change = parts - row["spread"] - row["impact"]
        assert row["equity"] - row["equity_before"] == pytest.approx(change, abs=1e-6)
        rows.append(row)
    return rows


def positions(rows: list[dict[str, Any]]) -> list[float]:
    return pytest.approx([row["position"] for row in rows])  # type: ignore[no-any-return]


# --- stops and targets after a fill inside a bar ---


@pytest.mark.parametrize("style", ["limit", "iceberg", "twap", "vwap"])
def test_a_target_waits_one_bar_after_a_fill_inside_it_and_no_longer(style: str) -> None:
    tape = tape_of([flat(100.0), (100.0, 100.0, 98.0, 100.0), *[(100.0, 110.0, 100.0, 100.0)] * 3])
    rows = play(tape, [1.0, None, None], execution=style, limit_offset_bps=100.0, take_profit=0.03)
    assert rows[0]["position"] > 9.0
    assert (rows[1]["position"], rows[1]["stopped"]) == (0.0, 1.0)


@pytest.mark.parametrize("style", ["market", "limit", "twap"])
def test_a_trailing_stop_follows_the_price_from_the_bar_after_the_fill_on(style: str) -> None:
    bars = [
        flat(100.0),
        (100.0, 100.0, 98.0, 100.0),
        (100.0, 110.0, 100.0, 110.0),
        (110.0, 110.0, 90.0, 90.0),
    ]
    settings = {"stop_loss": 0.05, "trailing_stop": True, "limit_offset_bps": 100.0}
    rows = play(tape_of(bars), [1.0, None, None], execution=style, **settings)
    held = rows[0]["position"]
    # 5 % below 110
    assert rows[2]["equity"] == pytest.approx(1_000.0 + held * (104.5 - rows[0]["fill_price"]))


# --- resting orders ---


def test_a_resting_order_that_the_next_open_jumps_over_fills_at_its_price() -> None:
    tape = tape_of([flat(100.0), (100.0, 101.0, 100.0, 100.5), (95.0, 96.0, 94.0, 95.0), flat(95.0)])
    rows = play(tape, [1.0, None], execution="limit", remainder="carry", limit_offset_bps=10.0)
    assert positions(rows) == [0.0, 10.0]
    assert rows[1]["fill_price"] == pytest.approx(99.9)


def test_a_bar_without_range_beyond_a_resting_order_fills_it() -> None:
    inside = [flat(100.0), flat(99.0), flat(98.0), flat(97.0)]
    tape = tape_of([flat(100.0), hour_of(inside), flat(97.0)])
    finer = quarters([flat(100.0)] * 4 + inside + [flat(97.0)] * 4)
    for given in (None, finer):
        rows = play(tape, [1.0], execution="limit", limit_offset_bps=10.0, finer=given)
        assert (rows[0]["position"], rows[0]["of"][0]["reason"]) == (pytest.approx(10.0), 0.0)


def test_latency_delays_an_order_once_and_not_again_in_every_bar() -> None:
    inside = [flat(100.0), flat(100.0), flat(100.0), flat(100.0), (100.0, 100.0, 99.0, 100.0)]
    inside += [flat(100.0)] * 7
    tape = tape_of([flat(100.0), flat(100.0), hour_of(inside[4:8]), flat(100.0)])
    finer = quarters([flat(100.0)] * 4 + inside)
    settings = {"execution": "limit", "remainder": "carry", "limit_offset_bps": 10.0, "finer": finer}
    rows = play(tape, [1.0, None], latency_ms=1_800_000.0, **settings)
    assert positions(rows) == [0.0, 10.0]


def test_latency_may_be_whole_bars_and_repeating_the_target_sends_nothing_else() -> None:
    tape = tape_of([flat(price) for price in (100.0, 101.0, 102.0, 103.0, 104.0)])
    rows = play(tape, [1.0, 1.0, None], latency_bars=2, max_exposure=2.0, rebalance_threshold=0.1)
    assert positions(rows) == [0.0, 0.0, 10.0]
    assert rows[2]["fill_price"] == pytest.approx(103.0)
    with pytest.raises(ValueError, match="latency_bars"):
        play(tape, [1.0], latency_ms=1_800_000.0)


def test_an_icebergs_clip_is_a_share_of_the_order_not_of_what_is_left() -> None:
    # clips of 2.5; each quarter admits 2.7
    inside = [(100.0, 100.0, 98.0, 100.0)] * 4
    tape = tape_of([flat(100.0), hour_of(inside), flat(100.0)])
    finer = quarters([flat(100.0)] * 4 + inside + [flat(100.0)] * 4, volume=2.7 / (0.1 * 0.95))
    rows = play(
        tape, [1.0], execution="iceberg", iceberg_clip=0.25, limit_offset_bps=10.0, max_participation=0.1,
        finer=finer,
    )  # fmt: skip
    assert rows[0]["position"] == pytest.approx(10.0)


def test_a_resting_order_reserves_the_fee_of_a_maker() -> None:
    tape = tape_of([flat(100.0), (100.0, 100.0, 99.0, 100.0), flat(100.0)])
    rows = play(
        tape, [2.0], execution="limit", limit_offset_bps=10.0, leverage=2.0, max_exposure=2.0, maker_rate=0.01
    )
    # a unit at 99.9 needs half of it, and 1 % of fee
    assert rows[0]["position"] == pytest.approx(1_000.0 / (99.9 * 0.51), abs=1e-5)
    assert rows[0]["of"][0]["reason"] == MARGIN


def test_what_the_exchange_refuses_of_a_resting_order_is_not_tried_again() -> None:
    tape = tape_of([flat(100.0), *[(100.0, 100.0, 99.0, 100.0)] * 3], contracts=[contract(min_notional=50.0)])
    rows = play(tape, [0.02, None], execution="limit", limit_offset_bps=10.0, remainder="carry")
    assert [row["of"][0]["reason"] for row in rows] == [TOO_SMALL, 0.0]
    assert rows[0]["seen"][0]["asked"] == 0.0


def test_a_small_part_of_a_resting_order_fills_however_small_it_is() -> None:
    tape = tape_of(
        [flat(100.0), (100.0, 100.0, 99.0, 100.0), flat(100.0)], contracts=[contract(min_notional=50.0)]
    )
    rows = play(tape, [1.0], execution="limit", limit_offset_bps=10.0, max_participation=1e-9)
    assert 0.0 < rows[0]["position"] * 99.9 < 100.0


def test_an_order_that_filled_whole_was_cut_by_nothing() -> None:
    inside = [flat(100.0), (100.0, 100.0, 99.0, 100.0), flat(100.0), flat(100.0)]
    tape = tape_of([flat(100.0), hour_of(inside), flat(100.0)])
    finer = quarters([flat(100.0)] * 4 + inside + [flat(100.0)] * 4)
    row = play(tape, [1.0], execution="limit", limit_offset_bps=10.0, finer=finer)[0]
    assert (row["position"], row["of"][0]["reason"]) == (pytest.approx(10.0), 0.0)
    ladder = {"action": "ladder", "max_exposure": 1.0, "ladder": (0.0, 1.0), "finer": finer}
    row = play(tape, [1.0], execution="limit", limit_offset_bps=10.0, **ladder)[0]
    assert row["seen"][0]["asked"] == 1.0
    # and one that did not arrive says so
    far = play(tape, [1.0], execution="limit", limit_offset_bps=500.0, finer=finer)[0]
    assert far["of"][0]["reason"] == NOT_REACHED


def test_the_price_of_a_sliced_order_is_the_mean_of_its_slices() -> None:
    inside = [flat(101.0), flat(102.0), flat(103.0), flat(104.0)]
    tape = tape_of([flat(100.0), hour_of(inside), flat(104.0)])
    finer = quarters([flat(100.0)] * 4 + inside + [flat(104.0)] * 4)
    row = play(tape, [1.0], execution="twap", finer=finer)[0]
    assert (row["position"], row["fill_price"]) == (pytest.approx(10.0), pytest.approx(102.5))


# --- what limits force ---


def test_a_time_stop_closes_at_the_market_under_resting_orders_too() -> None:
    tape = tape_of([flat(100.0), (100.0, 100.0, 99.0, 100.0), *[flat(100.0)] * 4])
    settings = {"execution": "limit", "limit_offset_bps": 10.0, "max_bars_held": 2}
    assert positions(play(tape, [1.0, None, None], **settings)) == [10.0, 10.0, 0.0]


def test_a_daily_loss_limit_closes_at_the_market_under_resting_orders_too() -> None:
    tape = tape_of([flat(100.0), (100.0, 100.0, 99.0, 100.0), flat(85.0), flat(85.0), flat(85.0)])
    limits = RiskLimits(max_leverage=10.0, max_daily_loss=0.1)
    rows = play(tape, [1.0, None, None], overlay=limits, execution="limit", limit_offset_bps=10.0)
    assert positions(rows) == [10.0, 10.0, 0.0]


def test_a_time_stop_closes_what_is_smaller_than_the_threshold() -> None:
    tape = tape_of([flat(100.0), flat(100.0), (100.0, 100.0, 70.0, 70.0), flat(70.0), flat(70.0)])
    rows = play(tape, [0.025, None, None], max_bars_held=2, rebalance_threshold=0.02, max_exposure=2.0)
    assert positions(rows) == [0.25, 0.25, 0.0]


def test_a_limit_on_notional_is_quote_for_an_inverse_contract_too() -> None:
    inverse = contract("BTC/USD:BTC", kind="inverse", lot_size=1.0, min_quantity=1.0, min_notional=1.0)
    tape = tape_of([flat(100.0)] * 3, contracts=[inverse])
    limits = RiskLimits(max_leverage=10.0, max_notional=500.0, max_daily_loss=None)
    assert play(tape, [1.0], overlay=limits, initial_wallet=10.0)[0]["position"] == 500.0


def test_an_account_that_may_only_reduce_neither_opens_nor_adds_nor_turns() -> None:
    tape = tape_of([flat(100.0)] * 6)
    rows = play(tape, [2.0, 0.5, -1.0, 1.0], reduce_only=True, initial_exposure=1.0)
    assert positions(rows) == [10.0, 5.0, 0.0, 0.0]


# --- several contracts ---


@pytest.mark.parametrize("is_swapped", [False, True])
def test_what_only_closes_frees_margin_for_what_turns_whatever_their_order(is_swapped: bool) -> None:
    tape = tape_of([[flat(100.0)] * 2] * 4)
    wishes = [-2.0, 0.0]
    rows = play(tape, [[1.0, 1.0], wishes[::-1] if is_swapped else wishes], leverage=2.0, max_exposure=2.0)
    held = [own["position"] for own in rows[1]["of"]]
    assert (held[::-1] if is_swapped else held) == pytest.approx([-20.0, 0.0])


def test_what_closes_frees_margin_for_a_resting_order_too() -> None:
    # B's 18 at 100 hold 900 of the 1,000 with 2x; A's limit at 99.5 needs 890 and B closes at the open
    dips = (100.0, 100.0, 99.0, 99.5)
    tape = tape_of([[flat(100.0)] * 2, [flat(100.0)] * 2, [dips, flat(100.0)], [flat(100.0)] * 2])
    heads = {
        "action": "heads",
        "head_sizes": (1.0,),
        "head_stops": (0.0,),
        "head_styles": ("market", "limit"),
    }
    limits = {"leverage": 2.0, "max_exposure": 1.8, "limit_offset_bps": 50.0}
    # hold and long at the market; then long with a limit and flat at the market
    rows = play(tape, [[0, 0, 0, 0, 1, 0, 0, 0], [1, 0, 0, 1, 3, 0, 0, 0]], **heads, **limits)
    assert [own["position"] for own in rows[1]["of"]] == pytest.approx([18.0, 0.0])
    assert [own["reason"] for own in rows[1]["of"]] == [0.0, 0.0]


@pytest.mark.parametrize("late", [0, 1])
def test_settlements_inside_a_bar_come_in_order_of_time_whatever_the_order_of_contracts(late: int) -> None:
    stamps = [[(2.25, 0.4)], [(2.25, 0.4)]]
    stamps[late] = [(2.75, 0.4)]
    fall = (100.0, 100.0, 80.0, 80.0)
    tape = tape_of([[flat(100.0)] * 2, [flat(100.0)] * 2, [fall] * 2, [flat(80.0)] * 2], stamps=stamps)
    rows = play(tape, [[1.0, 1.0], None])
    # 10 of each: at 95 one pays 380, at 85 the other 340, and 300 are lost: 20 below zero
    assert rows[1]["equity"] == pytest.approx(0.0, abs=1e-9)
    assert rows[1]["insurance"] == pytest.approx(20.0, abs=1e-6)


def test_each_contract_may_have_its_own_leverage_and_margin_mode() -> None:
    tape = tape_of(
        [[flat(100.0)] * 2, [flat(100.0)] * 2, [flat(89.0), flat(100.0)], [flat(89.0), flat(100.0)]]
    )
    rows = play(
        tape, [[1.0, 1.0], None], leverage=[10.0, 5.0], margin_mode=["isolated", "cross"], max_exposure=2.0
    )
    # the isolated one loses its margin of 100 and no more; the other lives on
    assert [own["position"] for own in rows[1]["of"]] == pytest.approx([0.0, 10.0])
    assert rows[1]["equity"] == pytest.approx(900.0)
    with pytest.raises(ValueError, match="list of 2"):
        play(tape, [[1.0, 1.0]], leverage=[10.0, 5.0, 3.0])


def test_an_account_cannot_begin_beyond_its_initial_margin() -> None:
    tape = tape_of([[flat(100.0)] * 3] * 4)
    with pytest.raises(ValueError, match="initial margin"):
        play(tape, [None], leverage=2.0, max_exposure=2.0, initial_exposure=2.0)


def test_a_random_restart_stays_inside_leverage_and_notional() -> None:
    tape = tape_of([[flat(100.0)] * 3] * 60)
    config = EnvConfig(
        **FREE | {"leverage": 2.0, "max_exposure": 2.0, "restart": "random", "episode_bars": 5}
    )
    limits = RiskLimits(max_leverage=10.0, max_notional=500.0, max_daily_loss=None)
    env = PerpVecEnv(tape, n_paths=64, config=config, limits=limits)
    out = env.make_buffers()
    env.reset_into(out, 0)
    hold = np.tile(np.array([0.0, 1.0] * 3, np.float32), (64, 1))
    for _ in range(20):
        exposure = np.abs(out.account[:, :, 0])
        assert exposure.sum(axis=1).max() <= 2.0 + 1e-5
        env.step_into(hold, out)
        assert np.abs(out.holdings[:, :, 0]).max() * 100.0 <= 500.0 + 1e-6


# --- costs ---


@pytest.mark.parametrize("kind", ["linear", "inverse"])
@pytest.mark.parametrize("rate", [0.02, 0.8, 1.5])
@pytest.mark.parametrize("exposure", [-3.0, 2.0])
@pytest.mark.parametrize("style", ["market", "twap"])
def test_quadratic_cost_is_exact_for_every_contract_style_and_rate(
    kind: str, rate: float, exposure: float, style: str
) -> None:
    symbol = "BTC/USD:BTC" if kind == "inverse" else "BTC/USDT:USDT"
    tape = tape_of([flat(100.0)] * 3, contracts=[contract(symbol, kind=kind)])
    row = play(
        tape, [exposure], cost="quadratic", quadratic_cost_rate=rate, limits="off", rounding="off",
        sizing="fixed_notional", initial_wallet=1.0, execution=style,
    )[0]  # fmt: skip
    assert row["equity"] == pytest.approx(1.0 - 0.5 * rate * exposure**2)
    assert (row["fill_price"], row["impact"]) == (pytest.approx(100.0), 0.0)


def test_other_costs_replace_the_exchanges_whole() -> None:
    for extra in ({"impact": {"kind": "permanent"}}, {"fees": {"tiers": [[0, 0.0002, 0.0005]]}}):
        with pytest.raises(ValueError, match="replaces fee, spread and impact"):
            EnvConfig(cost="linear", linear_cost_rate=0.01, **extra)


@pytest.mark.parametrize("rates", [{"taker_rate": -0.01}, {"taker_rate": 1e-4, "maker_rate": -0.005}])
def test_nobody_is_paid_for_trading_in_circles(rates: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"taker_rate|rebate"):
        EnvConfig(**rates)


@pytest.mark.parametrize(
    ("of_contract", "of_account"),
    [
        ({"maker_rate": -0.01, "taker_rate": 0.01}, {"taker_rate": 0.0004}),
        ({"maker_rate": -1e-4, "taker_rate": 4e-4}, {"taker_rate": 0.0}),
        ({"taker_rate": 5e-4}, {"taker_rate": None, "maker_rate": -0.01}),
    ],
)
def test_a_rebate_of_the_contract_is_held_against_the_fee_of_the_account(
    of_contract: dict[str, float], of_account: dict[str, float | None]
) -> None:
    tape = tape_of([flat(100.0)] * 4, contracts=[contract(**of_contract)])
    for rates in ({"taker_rate": None, "maker_rate": None}, of_account | {"cost": "linear"}):
        assert PerpVecEnv(tape, n_paths=1, config=EnvConfig(window_bars=1, **rates))
    with pytest.raises(ValueError, match="trading in circles; set both"):
        PerpVecEnv(tape, n_paths=1, config=EnvConfig(window_bars=1, **of_account))


def test_heads_without_a_stop_do_not_inherit_the_other_sides() -> None:
    tape = tape_of([flat(100.0)] * 5)
    settings = {"action": "heads", "head_stops": (0.0, 2.0), "head_styles": ("market",), "max_exposure": 1.0}
    config = EnvConfig(**FREE | settings)
    env = PerpVecEnv(tape, n_paths=1, config=config, limits=RiskLimits(max_daily_loss=None))
    out = env.make_buffers()
    env.reset_into(out, 0)
    seen = []
    for action in ([1, 0, 1, 0], [2, 0, 0, 0]):
        env.step_into(np.array([action], np.float32), out)
        seen.append(float(out.account[0, 0, 3]))
    assert seen == pytest.approx([0.02, 1.0], abs=1e-6)


@pytest.mark.parametrize(("account_stop", "distance"), [(None, 1.0), (0.05, 0.05)])
def test_heads_that_ask_for_the_accounts_own_stop_get_it(account_stop: float | None, distance: float) -> None:
    tape = tape_of([flat(100.0)] * 5)
    config = EnvConfig(
        **FREE | {"action": "heads", "head_sizes": (0.5, 1.0), "head_stops": (0.0, 2.0)},
        head_styles=("market",), stop_loss=account_stop,
    )  # fmt: skip
    env = PerpVecEnv(
        tape, n_paths=1, config=config, limits=RiskLimits(max_leverage=150.0, max_daily_loss=None)
    )
    out = env.make_buffers()
    env.reset_into(out, 0)
    seen = []
    # two volatilities of a bar of 1 %; then more of the same side, with the account's own
    for action in ([1, 0, 1, 0], [1, 1, 0, 0]):
        env.step_into(np.array([action], np.float32), out)
        seen.append(float(out.account[0, 0, 3]))
    assert seen == pytest.approx([0.02, distance], abs=1e-6)


def test_an_isolated_loss_beyond_all_margin_is_the_funds_and_not_another_positions() -> None:
    gap = [flat(100.0), flat(20.0)]
    bars = [[flat(100.0)] * 2, [flat(100.0)] * 2, gap, [flat(100.0)] * 2]
    tape = tape_of(bars, mark=[[flat(100.0)] * 2] * 4)
    settings = {"margin_mode": "isolated", "leverage": 10.0, "stop_loss": 0.05, "stop_trigger": "last"}
    rows = play(tape, [[4.0, 4.0], None], **settings)
    # 40 of the second are stopped 80 lower: 3,200, of which its own 400 and 200 of free wallet were there
    assert [own["position"] for own in rows[1]["of"]] == pytest.approx([40.0, 0.0])
    assert rows[1]["insurance"] == pytest.approx(2_600.0)
    assert rows[1]["equity"] == pytest.approx(400.0)
    assert sum(own["profit"] for own in rows[1]["of"]) == pytest.approx(-600.0)
