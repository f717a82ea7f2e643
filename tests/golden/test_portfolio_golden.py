"""Several contracts on one wallet, inverse contracts and bracket-wise liquidation, worked by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from perpgym.data.contract import Bracket, Contract
from perpgym.envs.account import ENTRY_PRICE, ISOLATED_WALLET, QUANTITY, WALLET, apply_fill, open_account
from perpgym.envs.arrays import ContractRules, World
from perpgym.envs.buffers import make_account
from perpgym.envs.config import EnvConfig
from perpgym.envs.kernel import step_account
from perpgym.envs.margin import liquidation_price, price_of, worth
from perpgym.envs.risk.limits import RiskLimits
from perpgym.envs.rules import make_account_rules, one_bar_market, pack_contracts, settle_currency
from perpgym.envs.spaces import CONTRACT_LEDGER, LEDGER_COLUMNS

ONE_BRACKET = (Bracket(floor=0.0, cap=math.inf, maintenance_margin_rate=0.004, cum=0.0, max_leverage=100.0),)
TWO_BRACKETS = (
    Bracket(floor=0.0, cap=5_000.0, maintenance_margin_rate=0.01, cum=0.0, max_leverage=100.0),
    Bracket(floor=5_000.0, cap=math.inf, maintenance_margin_rate=0.05, cum=200.0, max_leverage=20.0),
)
Prices = tuple[float, float, float, float]


def paper(name: str, **rules: Any) -> Contract:
    free = {"tick_size": 1e-9, "lot_size": 1e-9, "min_quantity": 1e-9, "min_notional": 1e-9}
    return Contract(
        symbol=name if "/" in name else f"{name}/USDT:USDT", **({"brackets": ONE_BRACKET} | free | rules)
    )


class Portfolio:
    """One account on several contracts, free of costs unless asked for."""

    def __init__(self, wallet: float, *contracts: Contract, **settings: Any) -> None:
        free = {"half_spread_bps": 0.0, "impact_coefficient": 0.0, "taker_rate": 0.0, "max_drawdown": 1.0}
        plain = {"action": "target", "leverage": 10.0, "max_exposure": 10.0, "rebalance_threshold": 1e-6}
        config = EnvConfig(**(free | plain | settings))
        limits = RiskLimits(max_leverage=100.0, max_daily_loss=None)
        packed, brackets = pack_contracts(contracts, config)
        self.config, self.contracts = config, packed
        self.world = World(None, packed, brackets, make_account_rules(config, limits))  # type: ignore[arg-type]
        self.account = make_account(len(contracts))
        open_account(self.account.wallet, self.account.positions, wallet)

    def hold(self, *fills: tuple[float, float]) -> Portfolio:
        """One free fill a contract: (quantity, price)."""
        for asset, (quantity, price) in enumerate(fills):
            contract = ContractRules(*self.contracts[asset])
            if quantity != 0.0:
                apply_fill(
                    self.account.wallet, self.account.positions, asset, quantity, price, 0.0, contract,
                    self.world.rules,
                )  # fmt: skip
        self.marks = np.array([price for _quantity, price in fills])
        return self

    def step(
        self, *bars: Prices, exposures: list[float] | None = None, stamps: Any = (), volume: float = 1e12
    ) -> dict[str, float]:
        """One bar a contract, last and mark alike; ``exposures`` None holds."""
        equity = self.account.wallet[1]
        if exposures is None:
            values = np.abs([worth(m, c[0]) for m, c in zip(self.marks, self.contracts, strict=True)])
            exposures = list(self.account.positions[:, QUANTITY] * values / equity)
        prices = np.array(bars)
        market = one_bar_market(
            mark_before=self.marks, last=prices, mark=prices, volume=np.full(len(bars), volume),
            sigma_per_bar=np.zeros(len(bars)), stamps=stamps,
        )  # fmt: skip
        action = np.array(exposures, np.float32) / np.float32(self.config.max_exposure)
        world = self.world._replace(market=market)
        self.reward, self.is_over = step_account(
            self.account, world, action, 1, False, make_account(len(bars))
        )
        self.marks = prices[:, 3]
        row = dict(zip(LEDGER_COLUMNS, self.account.ledger.tolist(), strict=True))
        parts = row["price_pnl"] + row["funding"] + row["insurance"]
        parts -= row["fees"] + row["clearance"] + row["spread"] + row["impact"]
        assert row["equity"] - row["equity_before"] == pytest.approx(parts, rel=1e-9, abs=1e-7)
        profit = float(self.account.holdings[:, CONTRACT_LEDGER["profit"]].sum())
        assert profit == pytest.approx(row["equity"] - row["equity_before"], rel=1e-9, abs=1e-7)
        return row

    @property
    def quantities(self) -> list[float]:
        return list(self.account.positions[:, QUANTITY].tolist())


def flat(price: float) -> Prices:
    return (price, price, price, price)


# --- several contracts on one wallet ---


def test_the_profit_of_one_contract_carries_the_loss_of_another() -> None:
    # 1,000 in the wallet, 100 A long and 100 B short at 100: at 80 and 80 the loss of 2,000 is B's gain
    account = Portfolio(1_000.0, paper("A"), paper("B"), extremes="worse").hold(
        (100.0, 100.0), (-100.0, 100.0)
    )
    row = account.step((100.0, 100.0, 80.0, 80.0), (100.0, 100.0, 80.0, 80.0))
    assert (row["liquidated"], row["equity"]) == (0.0, 1_000.0)


def test_joint_adverse_takes_every_contract_at_its_own_extreme() -> None:
    account = Portfolio(1_000.0, paper("A"), paper("B"), extremes="joint_adverse")
    account.hold((100.0, 100.0), (-100.0, 100.0))
    # A's low 94 and B's high 106 at once: 1,200 lost
    row = account.step((100.0, 106.0, 94.0, 100.0), (100.0, 106.0, 94.0, 100.0))
    assert row["liquidated"] == 1.0
    assert account.is_over


def test_the_worse_of_the_two_ways_is_kept() -> None:
    account = Portfolio(1_000.0, paper("A"), paper("B")).hold((100.0, 100.0), (-50.0, 100.0))
    # lows first: 100 * -15 + 50 * 15 = -750 and margin of 8.5 * 100 * .004 + ... is left; highs: +750
    assert account.step((100.0, 115.0, 85.0, 100.0), (100.0, 115.0, 85.0, 100.0))["liquidated"] == 0.0
    account = Portfolio(1_000.0, paper("A"), paper("B")).hold((100.0, 100.0), (-50.0, 100.0))
    # at the lows 100 * -21 + 50 * 21 = -1,050
    assert account.step((100.0, 121.0, 79.0, 100.0), (100.0, 121.0, 79.0, 100.0))["liquidated"] == 1.0


def test_a_cross_liquidation_closes_every_position_at_the_marks_of_that_moment() -> None:
    # both fall together: 200 * (p - 100) + 1000 = 200 * p * 0.004 at p = 19000 / 199.2 = 95.3815
    account = Portfolio(1_000.0, paper("A"), paper("B")).hold((100.0, 100.0), (100.0, 100.0))
    row = account.step((100.0, 100.0, 90.0, 99.0), (100.0, 100.0, 90.0, 99.0))
    price = 19_000.0 / 199.2
    assert row["equity"] == pytest.approx(1_000.0 + 200.0 * (price - 100.0))
    assert account.quantities == [0.0, 0.0]
    assert account.is_over


def test_the_liquidation_price_counts_the_other_positions_margin_and_profit() -> None:
    # B has gained 10 * (120 - 100) = 200 and needs 10 * 120 * 0.004 = 4.8 of margin
    balance = 1_000.0 + 200.0 - 4.8
    price = liquidation_price(balance, 100.0, 100.0, np.array([[0, math.inf, 0.004, 0, 100.0]]), 0.0)
    account = Portfolio(1_000.0, paper("A"), paper("B")).hold((100.0, 100.0), (10.0, 100.0))
    account.step(flat(100.0), (100.0, 120.0, 100.0, 120.0))
    assert account.step((100.0, 100.0, price + 1e-6, 100.0), flat(120.0))["liquidated"] == 0.0
    row = account.step((100.0, 100.0, price - 1e-6, 100.0), flat(120.0))
    assert row["liquidated"] == 1.0
    assert row["equity"] == pytest.approx(1_200.0 + 100.0 * (price - 100.0))


def test_isolated_positions_fall_alone() -> None:
    account = Portfolio(1_000.0, paper("A"), paper("B"), margin_mode="isolated")
    account.hold((10.0, 100.0), (10.0, 100.0))
    assert account.account.positions[:, ISOLATED_WALLET].tolist() == [100.0, 100.0]
    row = account.step((100.0, 100.0, 80.0, 100.0), flat(100.0))
    # (100 - 1000) / (0.04 - 10) = 90.3614
    assert account.quantities == [0.0, 10.0]
    assert row["equity"] == pytest.approx(1_000.0 + 10.0 * (900.0 / 9.96 - 100.0))
    assert not account.is_over


def mixed(wallet: float, *modes: str) -> Portfolio:
    contracts = [paper(name) for name, _mode in zip("ABC", modes, strict=False)]
    return Portfolio(wallet, *contracts, margin_mode=modes)


def test_a_debt_that_a_cross_profit_covers_is_not_taken_from_an_isolated_position() -> None:
    # A gains 2,000 unrealised; B lost 1,500 and is closed: the free wallet is 1,000 - 1,500 - Y's 200 = -700
    account = mixed(1_000.0, "cross", "cross", "isolated")
    account.hold((20.0, 100.0), (50.0, 100.0), (20.0, 100.0))
    account.step((100.0, 200.0, 100.0, 200.0), flat(100.0), flat(100.0))
    account.step(flat(200.0), (100.0, 100.0, 70.0, 70.0), flat(100.0))
    row = account.step(flat(200.0), flat(70.0), flat(100.0), exposures=[4_000 / 1_500, 0.0, 2_000 / 1_500])
    assert (row["equity"], account.account.positions[2, ISOLATED_WALLET]) == (1_500.0, 200.0)
    row = account.step(flat(200.0), flat(70.0), flat(100.0), exposures=[4_000 / 1_500, 0.0, 1_900 / 1_500])
    assert account.quantities == pytest.approx([20.0, 0.0, 19.0], abs=1e-5)
    assert account.account.positions[2, ISOLATED_WALLET] == pytest.approx(190.0, abs=1e-3)
    assert (row["fills"], row["insurance"], row["equity"]) == (1.0, 0.0, pytest.approx(1_500.0))


def test_a_loss_of_its_own_beyond_what_is_released_stays_in_the_isolated_position() -> None:
    # A's profit stands behind a free wallet of -700; Y sells 10 of its 20 at 70: 300 lost, 100 released
    account = mixed(1_000.0, "cross", "cross", "isolated")
    account.hold((20.0, 100.0), (50.0, 100.0), (20.0, 100.0)).hold((0.0, 200.0), (-50.0, 70.0), (-10.0, 70.0))
    assert account.account.wallet[WALLET] == -800.0
    # the debt of 700 is as large as it was, and 200 of the loss are Y's
    assert account.account.positions[2, ISOLATED_WALLET] == pytest.approx(-100.0)


def test_an_isolated_position_opened_on_cross_profit_gets_its_margin_in_full() -> None:
    # 100 in the wallet and 1,800 of profit: 4,000 of notional at 10x need 400
    account = mixed(100.0, "cross", "isolated").hold((9.0, 100.0), (0.0, 100.0))
    account.step((100.0, 300.0, 100.0, 300.0), flat(100.0))
    row = account.step(flat(300.0), flat(100.0), exposures=[2_700 / 1_900, 4_000 / 1_900])
    assert account.quantities == pytest.approx([9.0, 40.0], rel=1e-6)
    assert account.account.positions[1, ISOLATED_WALLET] == pytest.approx(400.0, rel=1e-6)
    # 40 * (100 - 97) of 400: far from the 90.4 at which it falls
    row = account.step(flat(300.0), (100.0, 100.0, 97.0, 97.0))
    assert (row["liquidated"], row["equity"]) == (0.0, pytest.approx(1_780.0, rel=1e-6))


def test_an_isolated_position_never_costs_more_than_its_margin_in_the_bar_that_ends_the_account() -> None:
    # A opens 12 lower and takes the 900 that are not B's; B falls to half on its margin of 100
    account = mixed(1_000.0, "cross", "isolated").hold((80.0, 100.0), (10.0, 100.0))
    row = account.step(flat(88.0), (100.0, 100.0, 50.0, 50.0))
    assert account.is_over
    assert account.quantities == [0.0, 0.0]
    assert row["equity"] == pytest.approx(0.0, abs=1e-9)


def test_what_closes_goes_first_and_frees_margin_for_what_opens() -> None:
    # 10 of margin for 10x: B can only open once A has closed
    account = Portfolio(1_000.0, paper("A"), paper("B")).hold((0.0, 100.0), (100.0, 100.0))
    account.step(flat(100.0), flat(100.0), exposures=[9.0, 0.0])
    assert account.quantities == pytest.approx([90.0, 0.0])


def test_an_order_is_cut_to_the_margin_that_the_others_leave() -> None:
    account = Portfolio(1_000.0, paper("A"), paper("B")).hold((60.0, 100.0), (0.0, 100.0))
    account.step(flat(100.0), flat(100.0), exposures=[6.0, 9.0])
    # 1,000 less 600 of initial margin carries 4,000 of notional
    assert account.quantities == pytest.approx([60.0, 40.0])
    assert account.account.holdings[1, CONTRACT_LEDGER["reason"]] == 4.0


# --- bracket by bracket ---


def test_a_large_position_is_reduced_to_the_floor_of_its_bracket_and_lives_on() -> None:
    # 100 at 100 with 1,000: maintenance is 5 % of notional - 200; it falls short at
    # (1000 + 200 - 10000) / (5 - 100) = 92.6316; 5,000 of notional at that mark is 53.977 units
    account = Portfolio(1_000.0, paper("A", brackets=TWO_BRACKETS), liquidation="brackets").hold(
        (100.0, 100.0)
    )
    row = account.step((100.0, 100.0, 92.0, 95.0))
    price = 8_800.0 / 95.0
    left = 5_000.0 / price
    assert account.quantities == pytest.approx([left])
    assert not account.is_over
    assert row["equity"] == pytest.approx(1_000.0 + (100.0 - left) * (price - 100.0) + left * (95.0 - 100.0))


def test_the_rest_goes_when_the_lowest_bracket_falls_short_too() -> None:
    account = Portfolio(1_000.0, paper("A", brackets=TWO_BRACKETS), liquidation="brackets").hold(
        (100.0, 100.0)
    )
    row = account.step((100.0, 100.0, 80.0, 80.0))
    price = 8_800.0 / 95.0
    left = 5_000.0 / price
    wallet = 1_000.0 + (100.0 - left) * (price - 100.0)
    second = (wallet - left * 100.0) / (left * 0.01 - left)
    assert account.quantities == [0.0]
    assert account.is_over
    assert row["equity"] == pytest.approx(wallet + left * (second - 100.0))


def test_a_forced_reduction_of_an_isolated_position_moves_its_isolated_wallet() -> None:
    account = Portfolio(
        2_000.0, paper("A", brackets=TWO_BRACKETS), liquidation="brackets", margin_mode="isolated"
    ).hold((100.0, 100.0))
    assert account.account.positions[0, ISOLATED_WALLET] == 1_000.0
    account.step((100.0, 100.0, 92.0, 95.0))
    price = 8_800.0 / 95.0
    left = 5_000.0 / price
    assert account.account.positions[0, ISOLATED_WALLET] == pytest.approx(
        1_000.0 + (100.0 - left) * (price - 100.0)
    )
    assert account.account.wallet[WALLET] == pytest.approx(2_000.0 + (100.0 - left) * (price - 100.0))


# --- inverse ---

COIN = {"kind": "inverse", "lot_size": 1.0, "min_quantity": 1.0}


def test_an_inverse_position_earns_base_coin() -> None:
    # 10,000 quote long from 50,000 to 62,500: 10,000 / 50,000 - 10,000 / 62,500 = 0.04 coin
    account = Portfolio(1.0, paper("BTC/USD:BTC", **COIN)).hold((10_000.0, 50_000.0))
    row = account.step((50_000.0, 62_500.0, 50_000.0, 62_500.0))
    assert row["equity"] == pytest.approx(1.04)
    assert row["exposure"] == pytest.approx(0.16 / 1.04)


def test_an_inverse_entry_is_the_harmonic_mean() -> None:
    account = (
        Portfolio(10.0, paper("BTC/USD:BTC", **COIN)).hold((10_000.0, 40_000.0)).hold((10_000.0, 60_000.0))
    )
    # 20,000 / (0.25 + 0.16667), and not 50,000
    assert account.account.positions[0, ENTRY_PRICE] == pytest.approx(48_000.0)


def test_an_inverse_long_is_liquidated_where_the_exchange_says() -> None:
    account = Portfolio(0.1, paper("BTC/USD:BTC", **COIN)).hold((10_000.0, 50_000.0))
    price = 10_000.0 * 1.004 / (0.1 + 0.2)
    assert account.step((50_000.0, 50_000.0, price + 0.01, 50_000.0))["liquidated"] == 0.0
    row = account.step((50_000.0, 50_000.0, price - 0.01, 50_000.0))
    assert row["liquidated"] == 1.0
    assert row["equity"] == pytest.approx(0.1 + 10_000.0 * (1 / 50_000.0 - 1 / price))


def test_an_inverse_short_is_liquidated_above() -> None:
    account = Portfolio(0.1, paper("BTC/USD:BTC", **COIN)).hold((-10_000.0, 50_000.0))
    price = 10_000.0 * -0.996 / (0.1 - 0.2)
    assert account.step((50_000.0, price - 1.0, 50_000.0, 50_000.0))["liquidated"] == 0.0
    assert account.step((50_000.0, price + 1.0, 50_000.0, 50_000.0))["liquidated"] == 1.0


def test_an_inverse_target_is_sized_in_coin_and_funding_is_paid_in_coin() -> None:
    account = Portfolio(2.0, paper("BTC/USD:BTC", **COIN)).hold((0.0, 50_000.0))
    # exposure 1 is 2 coin of notional: 100,000 quote; the rate of 0.01 % costs 2 * 0.0001
    row = account.step(flat(50_000.0), exposures=[1.0], stamps=[[(3_600_000, 0.0001)]])
    assert account.quantities == [100_000.0]
    assert row["funding"] == pytest.approx(-0.0002)


@pytest.mark.parametrize("kind", [0.0, 1.0])
def test_worth_rises_with_the_price_and_turns_back_into_it(kind: float) -> None:
    prices = np.geomspace(1e-3, 1e6, 50)
    values = [worth(p, kind) for p in prices]
    assert np.all(np.diff(values) > 0)
    assert [price_of(v, kind) for v in values] == pytest.approx(prices.tolist(), rel=1e-12)


def test_contracts_that_settle_in_different_coins_are_refused() -> None:
    with pytest.raises(ValueError, match="settle in BTC, USDT"):
        pack_contracts((paper("BTC/USDT:USDT"), paper("BTC/USD:BTC", **COIN)), EnvConfig())
    assert settle_currency(paper("ETH/USD", kind="inverse")) == "ETH"


def test_contracts_whose_names_do_not_say_what_they_settle_in_are_not_put_on_one_wallet() -> None:
    one, other = (Contract(symbol=symbol) for symbol in ("BTCUSDT", "ETHBTC"))
    with pytest.raises(ValueError, match="that of BTCUSDT, ETHBTC is unknown: name them as ccxt does"):
        pack_contracts((one, other), EnvConfig())
    with pytest.raises(ValueError, match="that of ETHBTC is unknown"):
        pack_contracts((paper("BTC/USDT:USDT"), Contract(symbol="ETHBTC", kind="inverse")), EnvConfig())
    # alone it has a wallet of its own
    pack_contracts((one,), EnvConfig())
