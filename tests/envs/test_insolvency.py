"""Who bears what an account cannot pay, in the kernel's arrays and through whole bars of the ledger."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perpgym.data.contract import Contract
from perpgym.envs import EnvConfig, RiskLimits
from perpgym.envs.account import ISOLATED_WALLET, QUANTITY, WALLET, apply_fill, open_account
from perpgym.envs.arrays import Account, ContractRules, World
from perpgym.envs.buffers import make_account
from perpgym.envs.insolvency import forgive_debt
from perpgym.envs.ledger import replay
from perpgym.envs.liquidation import STRAIGHT, liquidate_if_short
from perpgym.envs.rules import make_account_rules, one_bar_market, pack_contracts
from perpgym.envs.spaces import CONTRACT_LEDGER, LEDGER

INSURANCE = LEDGER["insurance"]
PROFIT, COSTS = CONTRACT_LEDGER["profit"], CONTRACT_LEDGER["costs"]
CONTRACTS = tuple(Contract(symbol=f"{name}/USDT:USDT") for name in "AB")


def account_of(wallet: float, *fills: tuple[int, float, float], **settings: Any) -> tuple[Account, World]:
    """Two contracts at a leverage of 10; fills are (contract, quantity, price), free of costs."""
    config = EnvConfig(leverage=10.0, **settings)
    packed, brackets = pack_contracts(CONTRACTS, config)
    world = World(None, packed, brackets, make_account_rules(config, RiskLimits()))  # type: ignore[arg-type]
    account = make_account(2)
    open_account(account.wallet, account.positions, wallet)
    for asset, quantity, price in fills:
        rules = ContractRules(*packed[asset])
        apply_fill(account.wallet, account.positions, asset, quantity, price, 0.0, rules, world.rules)
    return account, world


def test_a_flat_account_that_lost_more_than_it_had_owes_nothing() -> None:
    account, world = account_of(1_000.0, (0, 40.0, 100.0), (0, -40.0, 20.0))
    account.holdings[0, PROFIT] = -3_200.0
    assert forgive_debt(account, world) == 2_200.0
    assert account.wallet[WALLET] == 0.0
    assert account.ledger[INSURANCE] == 2_200.0
    assert list(account.holdings[0, [PROFIT, COSTS]]) == [-1_000.0, -2_200.0]
    assert forgive_debt(account, world) == 0.0


def test_the_isolated_wallet_of_one_position_never_pays_for_another() -> None:
    # 400 posted for each; A's sale at 20 loses 3,200 of the 600 that are not B's
    fills = ((0, 40.0, 100.0), (1, 40.0, 100.0), (0, -40.0, 20.0))
    account, world = account_of(1_000.0, *fills, margin_mode="isolated")
    assert account.wallet[WALLET] == -2_200.0
    assert forgive_debt(account, world) == 2_600.0
    assert account.wallet[WALLET] == account.positions[1, ISOLATED_WALLET] == 400.0


def test_margin_that_takes_the_whole_wallet_is_no_debt() -> None:
    third = 1_000.0 / 3.0
    fills = ((0, third, 10.0), (1, 2.0 * third, 10.0))
    account, world = account_of(third * 3.0, *fills, margin_mode="isolated", max_exposure=10.0)
    account.positions[:, ISOLATED_WALLET] = (third, 2.0 * third * (1.0 + 1e-16) + 1e-13)
    assert forgive_debt(account, world) == 0.0


def test_a_wallet_below_zero_with_an_open_cross_position_is_left_to_its_margin_check() -> None:
    # B's profit may stand behind what A lost
    account, world = account_of(1_000.0, (0, 40.0, 100.0), (1, 10.0, 100.0), (0, -40.0, 70.0))
    assert account.wallet[WALLET] == -200.0
    assert forgive_debt(account, world) == 0.0
    assert account.wallet[WALLET] == -200.0


def test_an_account_without_limits_may_owe() -> None:
    account, world = account_of(1_000.0, (0, 40.0, 100.0), (0, -40.0, 20.0), limits="off")
    assert forgive_debt(account, world) == 0.0
    assert account.wallet[WALLET] == -2_200.0


def test_what_is_forgiven_goes_to_the_contracts_that_lost_in_proportion() -> None:
    fills = ((0, 40.0, 100.0), (1, 40.0, 100.0), (0, -40.0, 40.0), (1, -40.0, 80.0))
    account, world = account_of(1_000.0, *fills)
    account.holdings[:, PROFIT] = (-2_400.0, -800.0)
    assert forgive_debt(account, world) == 2_200.0
    assert account.holdings[:, PROFIT] == pytest.approx([-750.0, -250.0])
    assert account.holdings[:, COSTS] == pytest.approx([-1_650.0, -550.0])


def test_where_no_contract_lost_in_the_step_the_one_that_earned_least_is_credited() -> None:
    account, world = account_of(1_000.0, (0, 40.0, 100.0), (0, -40.0, 20.0))
    account.holdings[:, PROFIT] = (30.0, 10.0)
    assert forgive_debt(account, world) == 2_200.0
    assert list(account.holdings[:, PROFIT]) == [30.0, 2_210.0]
    assert list(account.holdings[:, COSTS]) == [0.0, -2_200.0]


def test_the_plain_python_of_it_says_the_same() -> None:
    twins = [account_of(1_000.0, (0, 40.0, 100.0), (0, -40.0, 20.0)) for _ in range(2)]
    twins[0][0].holdings[0, PROFIT] = twins[1][0].holdings[0, PROFIT] = -3_200.0
    compiled = forgive_debt(*twins[0])
    plain = getattr(forgive_debt, "py_func", forgive_debt)(*twins[1])
    assert compiled == plain
    for one, other in zip(twins[0][0], twins[1][0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_a_partly_closed_isolated_short_still_owes_does_not_take_the_cross_position() -> None:
    # A's first 40 lose 4,000 of the 1,000 that are not B's; its last unit, even at a price of 0, brings 100
    fills = ((1, -4.0, 100.0), (0, -41.0, 100.0), (0, 40.0, 200.0))
    account, world = account_of(1_000.0, *fills, margin_mode=["isolated", "cross"])
    assert list(account.positions[:, ISOLATED_WALLET]) == [-3_000.0, 0.0]
    marks = np.array([[100.0] * 4, [90.0] * 4])
    market = one_bar_market(
        mark_before=marks[:, 0], last=marks, mark=marks, volume=np.full(2, 1e9), sigma_per_bar=np.zeros(2)
    )
    world = world._replace(market=market)
    for _ in range(2):
        assert not liquidate_if_short(account, world, 1, 1, STRAIGHT, 0, 0.0)
        # B's own profit of 40 stands behind B
        assert list(account.positions[:, QUANTITY]) == [0.0, -4.0]
        assert account.wallet[WALLET] == pytest.approx(0.0, abs=1e-9)
        # 2,900, and the 100 of the price with its half spread
        assert account.ledger[INSURANCE] == pytest.approx(3_000.01)


# --- through whole bars ---


def bar(last: float, mark: float = math.nan) -> dict[str, Any]:
    prices = dict.fromkeys("ohlc", last)
    return prices if math.isnan(mark) else {**prices, "mark": dict.fromkeys("ohlc", mark)}


def replayed(folder: Path, mode: str, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    contract = {"brackets": [{"floor": 0, "cap": None, "mmr": 0.01, "cum": 0}]}
    symbols = list(steps[0]["bars"])
    scenario = {
        "contracts": dict.fromkeys(symbols, contract),
        "account": {"wallet": 1_000, "margin_mode": mode, "leverage": 10},
        "steps": steps,
    }
    path = folder / "case.json"
    path.write_text(json.dumps(scenario), "utf-8")
    return list(replay(path))


def test_a_stop_far_beyond_bankruptcy_leaves_the_ledgers_wallet_at_zero(tmp_path: Path) -> None:
    opening = {"bars": {"X": bar(100)}, "orders": {"X": {"target": 400, "stop_loss": 95}}}
    row = replayed(tmp_path, "cross", [opening, {"bars": {"X": bar(90, 100)}}])[-1]
    assert row["fills"] == [{"symbol": "X", "qty": -400.0, "price": 90.0, "reason": "stop_loss"}]
    assert (row["wallet"], row["equity"], row["insurance"]) == (0.0, 0.0, 3_000.0)
    # of the 4,000 the account bore what it had
    assert (row["realised"], row["liquidation_loss"]) == (-1_000.0, 0.0)


def test_an_isolated_stop_far_beyond_bankruptcy_spares_the_other_position(tmp_path: Path) -> None:
    opening = {
        "bars": {"A": bar(100), "B": bar(100)},
        "orders": {"A": {"target": 40, "stop_loss": 95}, "B": {"target": 40}},
    }
    crash = {"bars": {"A": bar(20, 100), "B": bar(100)}}
    for row in replayed(tmp_path, "isolated", [opening, crash, crash])[1:]:
        assert row["wallet"] == row["equity"] == row["symbols"]["B"]["isolated_wallet"] == 400.0
        assert row["symbols"]["B"]["position"] == 40.0
        assert not row["liquidated"]


def test_an_order_on_the_other_position_does_not_pay_either(tmp_path: Path) -> None:
    opening = {"bars": {"A": bar(100), "B": bar(100)}, "orders": {"A": {"target": 40}, "B": {"target": 40}}}
    both = {"bars": {"A": bar(20, 100), "B": bar(100)}, "orders": {"A": {"target": 0}, "B": {"target": 20}}}
    row = replayed(tmp_path, "isolated", [opening, both])[-1]
    assert (row["wallet"], row["insurance"]) == (400.0, 2_600.0)
    assert row["symbols"]["B"]["isolated_wallet"] == 200.0
