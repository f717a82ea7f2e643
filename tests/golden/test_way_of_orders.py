"""Resting orders and slices meet stops and liquidations in the order of prices; worked by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from perpgym.data.contract import Bracket, Contract
from perpgym.envs import EnvConfig, RiskLimits
from perpgym.envs.account import (
    EQUITY,
    QUANTITY,
    STOP_PRICE,
    WALLET,
    apply_fill,
    open_account,
    unrealised_profit,
)
from perpgym.envs.arrays import ContractRules, World
from perpgym.envs.buffers import make_account
from perpgym.envs.fills import (
    FILL_ASSET,
    FILL_PRICE,
    FILL_QUANTITY,
    FILL_REASON,
    LIQUIDATION,
    ORDER,
    STOP,
    TARGET,
)
from perpgym.envs.kernel import step_account
from perpgym.envs.rules import make_account_rules, one_bar_market, pack_contracts
from perpgym.envs.spaces import LEDGER_COLUMNS

BRACKET = Bracket(floor=0.0, cap=math.inf, maintenance_margin_rate=0.004, cum=0.0, max_leverage=125.0)
Prices = tuple[float, float, float, float]
# what happened, signed quantity, price
Event = tuple[int, float, float]
CLOSE_STOP: dict[str, Any] = {"stop_loss": 0.005, "trailing_stop": True}


class Holder:
    """An account that holds something when a bar begins; free of costs, stops watch the last price."""

    def __init__(self, wallet: float, *held: tuple[float, float], **settings: Any) -> None:
        plain: dict[str, Any] = {
            "half_spread_bps": 0.0, "impact_coefficient": 0.0, "taker_rate": 0.0, "maker_rate": 0.0,
            "max_drawdown": 1.0, "leverage": 10.0, "max_exposure": 8.0, "rebalance_threshold": 0.0,
            "action": "target", "stop_trigger": "last",
        }  # fmt: skip
        self.config = EnvConfig(**plain | settings)
        contracts = tuple(
            Contract(symbol=f"{name}/USDT:USDT", brackets=(BRACKET,))
            for name, _ in zip("AB", held, strict=False)
        )
        packed, brackets = pack_contracts(contracts, self.config)
        limits = RiskLimits(max_leverage=150.0, max_daily_loss=None)
        self.world = World(None, packed, brackets, make_account_rules(self.config, limits))  # type: ignore[arg-type]
        self.rows = make_account(len(held), 16)
        open_account(self.rows.wallet, self.rows.positions, wallet)
        for asset, (quantity, price) in enumerate(held):
            if quantity != 0.0:
                rules = ContractRules(*packed[asset])
                apply_fill(
                    self.rows.wallet,
                    self.rows.positions,
                    asset,
                    quantity,
                    price,
                    0.0,
                    rules,
                    self.world.rules,
                )

    def live(
        self, *bars: Prices, wants: float | list[float], before: float | None = None, **market: Any
    ) -> list[Event]:
        """One bar; ``wants`` is the position that is asked for. ``before`` is the close, else the open."""
        last = np.array(bars)
        marks = last[:, 0] if before is None else np.full(len(bars), before)
        profit = sum(unrealised_profit(p, m, 0.0) for p, m in zip(self.rows.positions, marks, strict=True))
        self.rows.wallet[EQUITY] = self.rows.wallet[WALLET] + profit
        around = one_bar_market(
            mark_before=marks, last=last, mark=last, volume=np.full(len(bars), 1e9),
            sigma_per_bar=np.zeros(len(bars)), **market,
        )  # fmt: skip
        action = np.atleast_1d(wants) * marks / self.rows.wallet[EQUITY] / self.config.max_exposure
        _reward, self.is_over = step_account(
            self.rows, self.world._replace(market=around), action.astype(np.float32), 1, False,
            make_account(len(bars), 16),
        )  # fmt: skip
        row = dict(zip(LEDGER_COLUMNS, self.rows.ledger.tolist(), strict=True))
        self.equity, self.funding = row["equity"], row["funding"]
        parts = row["price_pnl"] + row["funding"] + row["insurance"] - row["fees"] - row["clearance"]
        assert row["equity"] - row["equity_before"] == pytest.approx(parts, abs=1e-6)
        fills = self.rows.fills[: int(row["fills"])]
        assert (np.diff(fills[:, FILL_ASSET]) >= 0.0).all() or len(bars) > 1
        return [
            (int(f[FILL_REASON]), round(float(f[FILL_QUANTITY]), 1), round(float(f[FILL_PRICE]), 2))
            for f in fills
        ]


# --- resting orders ---


def test_a_stop_that_lies_nearer_than_the_price_of_an_added_part_sells_none_of_it() -> None:
    # trailing at 99.5; the buy at 98 comes after it, and is a position of its own with a stop at 97.51
    account = Holder(10_000.0, (10.0, 100.0), execution="limit", limit_offset_bps=200.0, **CLOSE_STOP)
    fell = account.live((100.0, 100.0, 97.0, 97.5), wants=20.0)
    assert fell == [(STOP, -10.0, 99.5), (ORDER, 10.0, 98.0), (STOP, -10.0, 97.51)]
    assert account.equity == pytest.approx(10_000.0 - 10.0 * 0.5 - 10.0 * 0.49)


def test_an_added_part_that_comes_first_moves_the_stop_of_all() -> None:
    # 10 more at 98 make the entry 99, and 4 % below it is 95.04 instead of 96
    account = Holder(10_000.0, (10.0, 100.0), execution="limit", limit_offset_bps=200.0, stop_loss=0.04)
    assert account.live((100.0, 100.0, 95.5, 97.0), wants=20.0) == [(ORDER, 10.0, 98.0)]
    assert account.rows.positions[0, STOP_PRICE] == pytest.approx(95.04)
    account = Holder(10_000.0, (10.0, 100.0), execution="limit", limit_offset_bps=200.0, stop_loss=0.04)
    assert account.live((100.0, 100.0, 95.0, 97.0), wants=20.0) == [(ORDER, 10.0, 98.0), (STOP, -20.0, 95.04)]


def test_a_fill_beyond_the_stop_does_not_move_it() -> None:
    # stopped at 95 on the way to 94.08
    account = Holder(10_000.0, (10.0, 100.0), execution="limit", limit_offset_bps=200.0, stop_loss=0.05)
    fell = account.live((96.0, 96.0, 93.0, 93.5), wants=20.0)
    assert fell == [(STOP, -10.0, 95.0), (ORDER, 10.0, 94.08)]


def test_a_bar_that_opens_beyond_the_stop_sells_at_the_open_what_was_held_and_nothing_else() -> None:
    account = Holder(10_000.0, (10.0, 100.0), execution="limit", limit_offset_bps=100.0, stop_loss=0.001)
    fell = account.live((99.8, 99.9, 98.75, 99.0), wants=50.0)
    assert fell == [(STOP, -10.0, 99.8), (ORDER, 40.0, 98.8)]


@pytest.mark.parametrize("margin_mode", ["cross", "isolated"])
def test_a_liquidation_that_lies_nearer_takes_the_resting_order_with_it(margin_mode: str) -> None:
    # (100 - 1,000) / (0.04 - 10) = 90.3614; the buy at 90 is never reached by anything that is held
    account = Holder(
        100.0,
        (10.0, 100.0),
        execution="limit",
        limit_offset_bps=400.0,
        leverage=10.0,
        margin_mode=margin_mode,
    )
    fell = account.live((93.75, 93.75, 89.0, 90.0), wants=10.1)
    assert fell == [(LIQUIDATION, -10.0, 90.36)]
    assert account.rows.positions[0, QUANTITY] == 0.0


def test_what_is_bought_on_the_way_down_is_liquidated_with_the_rest_where_that_falls_short() -> None:
    # 2 at 98 on 10 at 100 with 100: (100 - 1,196) / (0.048 - 12) = 91.70
    account = Holder(
        100.0, (10.0, 100.0), execution="limit", limit_offset_bps=200.0, leverage=20.0, max_exposure=20.0
    )
    fell = account.live((100.0, 100.0, 90.0, 95.0), wants=12.0)
    assert fell == [(ORDER, 2.0, 98.0), (LIQUIDATION, -12.0, 91.7)]


def test_a_resting_sale_fills_on_the_way_up_before_the_target_beyond_it() -> None:
    account = Holder(10_000.0, (10.0, 100.0), execution="limit", limit_offset_bps=100.0, take_profit=0.02)
    rose = account.live((100.0, 103.0, 99.0, 100.0), wants=4.0)
    assert rose == [(ORDER, -6.0, 101.0), (TARGET, -4.0, 102.0)]
    account = Holder(10_000.0, (10.0, 100.0), execution="limit", limit_offset_bps=300.0, take_profit=0.02)
    assert account.live((100.0, 104.0, 99.0, 100.0), wants=4.0) == [(TARGET, -10.0, 102.0)]


def test_a_sale_goes_with_the_position_that_a_stop_closed() -> None:
    # down first: nothing is left to sell at 101
    account = Holder(10_000.0, (10.0, 100.0), execution="limit", limit_offset_bps=100.0, stop_loss=0.02)
    assert account.live((100.0, 103.0, 97.0, 100.0), wants=4.0) == [(STOP, -10.0, 98.0)]


def test_a_position_that_turns_on_the_way_meets_the_extreme_beyond_and_no_other() -> None:
    # short from 101 on, stopped at 103.02
    account = Holder(10_000.0, (10.0, 100.0), execution="limit", limit_offset_bps=100.0, stop_loss=0.02)
    assert account.live((100.0, 102.0, 99.0, 100.0), wants=-10.0) == [(ORDER, -20.0, 101.0)]
    account = Holder(10_000.0, (10.0, 100.0), execution="limit", limit_offset_bps=100.0, stop_loss=0.02)
    turned = account.live((100.0, 104.0, 99.0, 100.0), wants=-10.0)
    assert turned == [(ORDER, -20.0, 101.0), (STOP, 10.0, 103.02)]


def test_a_stop_that_the_fill_itself_drew_nearer_fills_where_the_price_stands() -> None:
    # carried over a gap: bought at 98 while the market opens at 97; its stop lies at 97.02
    account = Holder(
        10_000.0, (0.0, 100.0), execution="limit", limit_offset_bps=200.0, remainder="carry", stop_loss=0.01,
        rebalance_threshold=0.01,
    )  # fmt: skip
    assert account.live((100.0, 100.0, 99.0, 99.0), wants=10.0) == []
    fell = account.live((97.0, 97.0, 96.0, 96.5), wants=10.0, before=99.0)
    assert fell[0][0] == ORDER
    assert fell[0][2] == 98.0
    assert fell[1] == (STOP, -fell[0][1], 97.0)


def test_two_contracts_orders_fill_in_the_order_in_which_the_way_comes_to_them() -> None:
    # B's 98 is a fifth of its way down, A's 98 half of its own
    account = Holder(10_000.0, (0.0, 100.0), (0.0, 100.0), execution="limit", limit_offset_bps=200.0)
    account.live((100.0, 101.0, 96.0, 98.0), (100.0, 101.0, 90.0, 92.0), wants=[5.0, 6.0])
    fills = account.rows.fills[:2]
    assert fills[:, FILL_ASSET].tolist() == [1.0, 0.0]
    assert fills[:, FILL_QUANTITY].tolist() == pytest.approx([6.0, 5.0], abs=2e-3)


def test_what_fills_inside_a_bar_pays_its_settlements_too() -> None:
    # 10 held at the open and 10 bought inside: both pay 0.1 % at 100, and both receive
    for rate, each in ((0.001, -1.0), (-0.001, 1.0)):
        account = Holder(10_000.0, (10.0, 100.0), execution="limit", limit_offset_bps=200.0)
        account.live((100.0, 100.0, 97.0, 100.0), wants=20.0, stamps=[[(900_000, rate)]])
        assert account.rows.positions[0, QUANTITY] == pytest.approx(20.0, abs=2e-3)
        assert account.funding == pytest.approx(20.0 * each * 0.1, abs=1e-3)


# --- slices ---


@pytest.mark.parametrize(("rate", "funding"), [(0.001, -2.0), (-0.001, 1.0)])
def test_slices_pay_the_settlements_of_their_bar_and_receive_none(rate: float, funding: float) -> None:
    account = Holder(10_000.0, (10.0, 100.0), execution="twap")
    account.live((100.0, 100.0, 97.0, 100.0), wants=20.0, stamps=[[(900_000, rate)]])
    assert account.funding == pytest.approx(funding, abs=1e-3)


@pytest.mark.parametrize("settings", [{"stop_loss": 0.02}, {"margin_mode": "isolated", "leverage": 25.0}])
def test_slices_bought_in_a_bar_that_only_rises_are_neither_stopped_nor_liquidated(
    settings: dict[str, Any],
) -> None:
    account = Holder(1_000.0, (0.0, 100.0), execution="twap", **settings)
    assert account.live((100.0, 110.0, 100.0, 110.0), wants=10.0) == [(ORDER, 10.0, 105.0)]
    assert account.equity == pytest.approx(1_050.0)


def test_a_stop_sells_what_was_there_before_the_slices_and_they_are_bought_all_the_same() -> None:
    # to leave them out would be to know, when they were bought, that the low was still to come
    account = Holder(10_000.0, (10.0, 100.0), execution="twap", **CLOSE_STOP)
    fell = account.live((100.0, 100.0, 90.0, 90.0), wants=100.0)
    assert fell == [(STOP, -10.0, 99.5), (ORDER, 90.0, 95.0)]
    assert account.equity == pytest.approx(10_000.0 - 5.0 - 90.0 * 5.0)
    # the close lies beyond their stop: out at the next open
    assert account.live((91.0, 92.0, 90.0, 91.0), wants=90.0)[0] == (STOP, -90.0, 91.0)


def test_slices_are_liquidated_where_the_close_leaves_them_short() -> None:
    # bought at 95 with 25x, 3.8 of margin each, and the bar closes at 90
    account = Holder(1_000.0, (0.0, 100.0), execution="twap", margin_mode="isolated", leverage=25.0)
    fell = account.live((100.0, 100.0, 89.0, 90.0), wants=10.0)
    assert [event[0] for event in fell] == [ORDER, LIQUIDATION]
    assert account.equity == pytest.approx(1_000.0 - 10.0 * 95.0 / 25.0)
