"""Numbers worked by hand for every formula that moves money. Quote unless said otherwise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from perpgym.data.contract import Contract
from perpgym.envs.account import (
    ENTRY_PRICE,
    EQUITY,
    ISOLATED_WALLET,
    QUANTITY,
    STOP_PRICE,
    TARGET_PRICE,
    WALLET,
    apply_fill,
    open_account,
)
from perpgym.envs.actions import exposure_to_action
from perpgym.envs.arrays import ContractRules, World
from perpgym.envs.buffers import make_account
from perpgym.envs.config import EnvConfig
from perpgym.envs.execution import round_to_tick, round_toward_zero, square_root_impact, touch_price
from perpgym.envs.kernel import step_account
from perpgym.envs.margin import bankruptcy_worth, liquidation_price, maintenance_margin
from perpgym.envs.risk.limits import RiskLimits
from perpgym.envs.rules import make_account_rules, one_bar_market, pack_contracts
from perpgym.envs.spaces import CONTRACT_LEDGER_COLUMNS, LEDGER, LEDGER_COLUMNS

HOUR_MS = 3_600_000
# a plain bracket of 0.4 %, for numbers that can be worked on paper
ONE_BRACKET = np.array([[0.0, math.inf, 0.004, 0.0, 100.0]])


class Account:
    """One account driven bar by bar through the kernel."""

    def __init__(self, wallet: float, *, contract: Contract | None = None, **settings: Any) -> None:
        free = {"half_spread_bps": 0.0, "impact_coefficient": 0.0, "taker_rate": 0.0, "max_drawdown": 1.0}
        limits = {"max_leverage": settings.pop("max_leverage", 100.0), "max_daily_loss": None}
        config = EnvConfig(
            **{"action": "target", "leverage": 100.0, "max_exposure": 100.0, "rebalance_threshold": 1e-4}
            | free
            | settings
        )
        self.config = config
        contract = contract or Contract(
            symbol="PAPER", tick_size=1e-9, lot_size=1e-9, min_quantity=1e-9, min_notional=1e-9
        )
        self.contracts, _brackets = pack_contracts((contract,), config)
        self.rules = make_account_rules(config, RiskLimits(**limits))
        self.account = make_account(1)
        self.wallet, self.positions = self.account.wallet, self.account.positions
        self.position = self.positions[0]
        self.mark = math.nan
        open_account(self.wallet, self.positions, wallet)

    def hold(self, quantity: float, price: float) -> None:
        """Enter without fees, as an account that arrives with a position."""
        contract = ContractRules(*self.contracts[0])
        apply_fill(self.wallet, self.positions, 0, quantity, price, 0.0, contract, self.rules)
        self.mark = price

    def step(
        self,
        last: tuple[float, float, float, float],
        mark: tuple[float, float, float, float] | None = None,
        *,
        exposure: float | None = None,
        stamps: tuple[tuple[float, float], ...] = (),
        volume: float = 1e12,
        sigma: float = 0.0,
        brackets: np.ndarray = ONE_BRACKET,
    ) -> dict[str, float]:
        """One hourly bar; ``stamps`` are (hours after the open, rate); None for exposure holds."""
        before = last[0] if math.isnan(self.mark) else self.mark
        held = self.position[QUANTITY] * before / self.wallet[EQUITY]
        wish = np.array([held if exposure is None else exposure])
        action = exposure_to_action(wish, action="target", max_exposure=self.config.max_exposure)[0]
        market = one_bar_market(
            mark_before=np.array([before]),
            last=np.array([last]),
            mark=np.array([mark or last]),
            volume=np.array([volume]),
            sigma_per_bar=np.array([sigma]),
            stamps=[[(int(hours * HOUR_MS), rate) for hours, rate in stamps]],
        )
        world = World(market, self.contracts, brackets[None], self.rules)
        self.reward, self.terminated = step_account(self.account, world, action, 1, False, make_account(1))
        self.mark = (mark or last)[3]
        booked = dict(zip(LEDGER_COLUMNS, self.account.ledger.tolist(), strict=True))
        booked |= dict(zip(CONTRACT_LEDGER_COLUMNS, self.account.holdings[0].tolist(), strict=True))
        assert books_balance(booked)
        return booked


def books_balance(row: dict[str, float]) -> bool:
    parts = row["price_pnl"] + row["funding"] + row["insurance"]
    parts -= row["fees"] + row["clearance"] + row["spread"] + row["impact"]
    return math.isclose(row["equity"] - row["equity_before"], parts, rel_tol=1e-9, abs_tol=1e-7)


def flat_bar(price: float) -> tuple[float, float, float, float]:
    return (price, price, price, price)


# --- margin ---


def test_maintenance_margin_of_100k_in_the_second_bracket(contract: Contract) -> None:
    # 100,000 * 0.005 - 50
    assert maintenance_margin(100_000.0, contract.bracket_table()) == pytest.approx(450.0)


def test_cum_makes_maintenance_margin_continuous_at_every_floor(contract: Contract) -> None:
    table = contract.bracket_table()
    for floor in (50_000.0, 600_000.0):
        below, above = maintenance_margin(np.nextafter(floor, 0.0), table), maintenance_margin(floor, table)
        assert below == pytest.approx(above, abs=1e-6)


def test_liquidation_price_of_the_ledger_formats_example() -> None:
    # (5000 - 100*100) / (0.4 - 100)
    assert liquidation_price(5_000.0, 100.0, 100.0, ONE_BRACKET, 0.0) == pytest.approx(50.2008032, abs=1e-7)


def test_liquidation_price_of_a_short() -> None:
    # (5000 + 100*100) / (0.4 + 100)
    assert liquidation_price(5_000.0, -100.0, 100.0, ONE_BRACKET, 0.0) == pytest.approx(149.4023904, abs=1e-7)


def test_liquidation_price_uses_the_bracket_at_the_liquidation_price(contract: Contract) -> None:
    # long 10 at 6,000 with 11,000: the notional is 60,000 (bracket 2), but it liquidates at about 4,919,
    # a notional of 49,197 in bracket 1: (11000 - 60000) / (10*0.004 - 10) = 4919.68
    price = liquidation_price(11_000.0, 10.0, 6_000.0, contract.bracket_table(), 0.0)
    assert price == pytest.approx(49_000.0 / 9.96)


def test_a_long_with_more_collateral_than_notional_has_no_liquidation_price() -> None:
    assert math.isnan(liquidation_price(10_001.0, 100.0, 100.0, ONE_BRACKET, 0.0))


def test_bankruptcy_price_is_entry_less_margin_per_unit() -> None:
    # isolated 10x long at 100: 100 * (1 - 1/10)
    assert bankruptcy_worth(10.0 * 100.0 / 10.0, 10.0, 100.0, 0.0) == pytest.approx(90.0)
    assert bankruptcy_worth(10.0 * 100.0 / 10.0, -10.0, 100.0, 0.0) == pytest.approx(110.0)


# --- execution ---


def test_quantities_round_towards_zero_and_survive_binary_noise() -> None:
    assert round_toward_zero(0.0039999, 0.001) == 0.003
    assert round_toward_zero(-0.0039999, 0.001) == -0.003
    assert round_toward_zero(0.1 + 0.2, 0.1) == 0.3
    assert round_toward_zero(7.0, 0.0) == 7.0


def test_prices_round_against_the_order() -> None:
    assert round_to_tick(100.01, 0.1, 1.0) == 100.1
    assert round_to_tick(100.09, 0.1, -1.0) == 100.0
    assert round_to_tick(100.1, 0.1, 1.0) == 100.1


def test_touch_is_half_a_spread_away_on_the_tick() -> None:
    # 30,000 * 1.0001 = 30,003 and 29,997
    assert touch_price(30_000.0, 1e-4, 0.1, 1.0) == pytest.approx(30_003.0)
    assert touch_price(30_000.0, 1e-4, 0.1, -1.0) == pytest.approx(29_997.0)


def test_impact_of_one_percent_of_volume_is_a_tenth_of_a_sigma() -> None:
    assert square_root_impact(50.0, 5_000.0, 0.006, 1.0) == pytest.approx(0.0006)
    assert square_root_impact(50.0, 0.0, 0.006, 1.0) == 0.0


def test_a_buy_pays_half_spread_impact_and_taker_fee() -> None:
    account = Account(1_000_000.0, half_spread_bps=1.0, impact_coefficient=1.0, taker_rate=0.0004)
    row = account.step(flat_bar(20_000.0), exposure=1.0, volume=5_000.0, sigma=0.006)
    # 50 at 20,000; touch 20,002; impact 0.006*sqrt(50/5000) = 6 bp = 12; fill 20,014
    assert row["fill_price"] == pytest.approx(20_014.0)
    assert row["spread"] == pytest.approx(50 * 2.0)
    assert row["impact"] == pytest.approx(50 * 12.0)
    assert row["fees"] == pytest.approx(50 * 20_014.0 * 0.0004)
    assert row["equity"] == pytest.approx(1_000_000.0 - 100.0 - 600.0 - 400.28)
    assert account.reward == pytest.approx(math.log(row["equity"] / 1_000_000.0))


def test_an_order_takes_at_most_a_tenth_of_the_bars_volume() -> None:
    account = Account(1_000_000.0)
    row = account.step(flat_bar(20_000.0), exposure=1.0, volume=100.0)
    assert row["position"] == pytest.approx(10.0)


def test_nothing_trades_in_a_bar_without_volume() -> None:
    account = Account(1_000_000.0)
    assert account.step(flat_bar(20_000.0), exposure=1.0, volume=0.0)["fills"] == 0


def test_orders_below_the_minimum_notional_are_dropped_but_a_close_is_not(contract: Contract) -> None:
    account = Account(10_000.0, contract=contract)
    assert account.step(flat_bar(20_000.0), exposure=0.004)["fills"] == 0  # 40 < 100
    account.hold(0.003, 20_000.0)
    assert account.step(flat_bar(20_000.0), exposure=0.0)["position"] == 0.0


def test_the_quantity_is_sized_on_the_mark_close_and_not_on_the_next_open() -> None:
    account = Account(1_000_000.0)
    account.mark = 20_000.0
    assert account.step(flat_bar(25_000.0), exposure=1.0)["position"] == pytest.approx(50.0)


def test_an_order_is_cut_to_the_initial_margin_that_the_account_has() -> None:
    account = Account(1_000.0, leverage=2.0, max_exposure=2.0, taker_rate=0.001)
    # each unit at 100 needs 50 margin and 0.1 fee: 1000 / 50.1
    row = account.step(flat_bar(100.0), exposure=2.0)
    assert row["position"] == pytest.approx(1_000.0 / 50.1)


# --- positions ---


def test_a_flip_realises_the_old_side_and_enters_the_new_one_at_the_fill() -> None:
    account = Account(10_000.0)
    account.hold(2.0, 100.0)
    contract = ContractRules(*account.contracts[0])
    apply_fill(account.wallet, account.positions, 0, -5.0, 110.0, 0.001, contract, account.rules)
    assert account.wallet[WALLET] == pytest.approx(10_000.0 + 2 * 10.0 - 5 * 110.0 * 0.001)
    assert account.position[QUANTITY] == pytest.approx(-3.0)
    assert account.position[ENTRY_PRICE] == pytest.approx(110.0)


def test_increasing_averages_the_entry_and_reducing_keeps_it() -> None:
    account = Account(10_000.0)
    account.hold(1.0, 100.0)
    account.hold(3.0, 120.0)
    assert account.position[ENTRY_PRICE] == pytest.approx(115.0)
    account.hold(-2.0, 130.0)
    assert account.position[ENTRY_PRICE] == pytest.approx(115.0)
    assert account.wallet[WALLET] == pytest.approx(10_000.0 + 2 * 15.0)


def test_isolated_margin_is_posted_at_entry_and_released_in_proportion() -> None:
    account = Account(1_000.0, margin_mode="isolated", leverage=10.0, max_exposure=10.0)
    account.hold(10.0, 100.0)
    assert account.position[ISOLATED_WALLET] == pytest.approx(100.0)
    account.hold(-4.0, 105.0)
    assert account.position[ISOLATED_WALLET] == pytest.approx(60.0)
    assert account.wallet[WALLET] == pytest.approx(1_020.0)


# --- funding ---


def test_long_pays_funding_when_rate_is_positive() -> None:
    account = Account(10_000.0)
    account.hold(2.0, 1_000.0)
    row = account.step((1_000.0, 1_050.0, 990.0, 1_040.0), stamps=((1.0, 0.0001),))
    # at the close: 2 * 1040 * 1 bp
    assert row["funding"] == pytest.approx(-0.208)


def test_short_receives_what_a_long_pays() -> None:
    account = Account(10_000.0)
    account.hold(-2.0, 1_000.0)
    assert account.step(flat_bar(1_000.0), stamps=((1.0, 0.0001),))["funding"] == pytest.approx(0.2)


def test_funding_multiplier_scales_a_settlement() -> None:
    account = Account(10_000.0, funding_multiplier=0.8)
    account.hold(-2.0, 1_000.0)
    assert account.step(flat_bar(1_000.0), stamps=((1.0, 0.0001),))["funding"] == pytest.approx(0.16)


def test_a_stamp_inside_the_bar_uses_the_mark_between_open_and_close() -> None:
    account = Account(10_000.0)
    account.hold(1.0, 1_000.0)
    # half an hour in: mark 1,020
    row = account.step((1_000.0, 1_040.0, 1_000.0, 1_040.0), stamps=((0.5, 0.001),))
    assert row["funding"] == pytest.approx(-1.02)


def test_an_order_decided_at_the_close_neither_dodges_nor_collects_that_closes_funding() -> None:
    account = Account(10_000.0)
    account.hold(1.0, 1_000.0)
    assert account.step(flat_bar(1_000.0), stamps=((1.0, 0.001),))["funding"] == pytest.approx(-1.0)
    assert account.step(flat_bar(1_000.0), exposure=0.0)["funding"] == 0.0


# --- liquidation ---


def test_the_ledger_formats_cross_liquidation() -> None:
    contract = Contract(
        symbol="PAPER", tick_size=1e-9, lot_size=1e-9, min_notional=1e-9, clearance_rate=0.0003
    )
    account = Account(5_000.0, contract=contract, leverage=10.0, max_exposure=10.0)
    account.hold(100.0, 100.0)
    row = account.step((100.0, 100.0, 40.0, 60.0))
    # closed at 50.2008032: 4,979.92 lost and 1.506 cleared
    assert account.wallet[WALLET] == pytest.approx(18.5743, abs=1e-4)
    assert row["clearance"] == pytest.approx(1.506, abs=1e-3)
    assert account.terminated


def test_an_isolated_liquidation_takes_its_margin_and_the_account_lives_on() -> None:
    account = Account(1_000.0, margin_mode="isolated", leverage=10.0, max_exposure=10.0)
    account.hold(10.0, 100.0)
    row = account.step((100.0, 100.0, 80.0, 85.0))
    # LP = (100 - 1000) / (10*0.004 - 10) = 90.3614; 10 * 9.6386 lost of the 100
    assert row["liquidated"] == 1.0
    assert account.wallet[WALLET] == pytest.approx(1_000.0 - 10 * (100 - 900 / 9.96))
    assert not account.terminated
    assert account.position[QUANTITY] == 0.0


def test_a_mark_that_opens_beyond_bankruptcy_costs_the_margin_and_the_fund_bears_the_rest() -> None:
    account = Account(1_000.0, margin_mode="isolated", leverage=10.0, max_exposure=10.0)
    account.hold(10.0, 100.0)
    row = account.step(flat_bar(70.0))
    assert account.wallet[WALLET] == pytest.approx(900.0)
    assert row["insurance"] == pytest.approx(10 * (90 - 70))


def test_liquidation_at_the_open_comes_before_the_order_that_would_have_closed() -> None:
    account = Account(5_000.0, leverage=10.0, max_exposure=10.0)
    account.hold(100.0, 100.0)
    row = account.step(flat_bar(50.0), exposure=0.0)
    assert row["liquidated"] == 1.0
    assert row["fills"] == 1


def test_last_price_alone_never_liquidates() -> None:
    account = Account(5_000.0, leverage=10.0, max_exposure=10.0)
    account.hold(100.0, 100.0)
    row = account.step((100.0, 100.0, 20.0, 100.0), mark=(100.0, 100.0, 95.0, 100.0))
    assert row["liquidated"] == 0.0


# --- stops ---


def test_a_stop_nearer_than_liquidation_fills_first() -> None:
    account = Account(5_000.0, leverage=10.0, max_exposure=10.0, stop_loss=0.1)
    account.hold(100.0, 100.0)
    assert account.position[STOP_PRICE] == pytest.approx(90.0)
    row = account.step((100.0, 100.0, 40.0, 60.0))
    assert (row["stopped"], row["liquidated"]) == (1.0, 0.0)
    assert account.wallet[WALLET] == pytest.approx(4_000.0)


def test_a_bar_that_opens_beyond_the_stop_fills_at_the_open() -> None:
    account = Account(5_000.0, stop_loss=0.1)
    account.hold(10.0, 100.0)
    account.step((80.0, 101.0, 79.0, 100.0))
    assert account.wallet[WALLET] == pytest.approx(5_000.0 - 10 * 20.0)


def test_the_adverse_side_comes_before_the_take_profit() -> None:
    account = Account(5_000.0, stop_loss=0.1, take_profit=0.1)
    account.hold(10.0, 100.0)
    assert account.position[TARGET_PRICE] == pytest.approx(110.0)
    row = account.step((100.0, 120.0, 85.0, 100.0))
    assert account.wallet[WALLET] == pytest.approx(5_000.0 - 10 * 10.0)
    assert row["fills"] == 1


def test_a_take_profit_fills_at_its_price_and_never_better() -> None:
    account = Account(5_000.0, take_profit=0.1)
    account.hold(-10.0, 100.0)
    account.step((100.0, 101.0, 70.0, 75.0))
    assert account.wallet[WALLET] == pytest.approx(5_000.0 + 10 * 10.0)


# --- reward and end ---


def test_the_log_return_of_a_ruined_account_is_floored() -> None:
    account = Account(1_000.0, leverage=100.0, max_exposure=100.0)
    account.hold(1_000.0, 100.0)
    row = account.step(flat_bar(90.0))
    assert row["equity"] == pytest.approx(0.0, abs=1e-9)
    assert account.reward == pytest.approx(math.log(0.01))
    assert row["reward_floored"] == 1.0
    assert account.terminated


def test_a_drawdown_of_the_limit_ends_the_episode() -> None:
    account = Account(1_000.0, max_drawdown=0.3)
    account.hold(10.0, 100.0)
    account.step((100.0, 100.0, 70.1, 70.1))
    assert not account.terminated
    account.step((70.1, 70.1, 70.0, 70.0))
    assert account.terminated
    assert account.account.ledger[LEDGER["drawdown"]] == pytest.approx(0.3)
