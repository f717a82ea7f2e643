"""The shipped contracts are the exchange's rules, transcribed."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from perpgym.data.contract import Bracket, Contract, load_contract, shipped_contracts


def test_seven_contracts_ship() -> None:
    assert [s.split("/")[0] for s in shipped_contracts()] == [
        "AVAX",
        "BNB",
        "BTC",
        "DOGE",
        "ETH",
        "SOL",
        "XRP",
    ]


def test_maintenance_margin_is_continuous_at_every_bracket_floor() -> None:
    for symbol in shipped_contracts():
        for below, above in pairwise(load_contract(symbol).brackets):
            floor = above.floor
            lower = floor * below.maintenance_margin_rate - below.cum
            upper = floor * above.maintenance_margin_rate - above.cum
            assert upper == pytest.approx(lower, abs=1e-6), (symbol, floor)


def test_every_contract_has_a_last_bracket_without_a_cap() -> None:
    for symbol in shipped_contracts():
        contract = load_contract(symbol)
        assert contract.brackets[-1].cap == float("inf")
        assert contract.bracket_table().shape == (len(contract.brackets), 5)


def test_bitcoin_has_the_known_rules() -> None:
    btc = load_contract("BTC/USDT:USDT")
    assert (btc.tick_size, btc.lot_size, btc.min_notional, btc.clearance_rate) == (0.1, 0.001, 100.0, 0.0125)
    # maintenance margin of 1,000,000 USDT: 1e6 * 0.0065 - 1500
    assert btc.brackets[2].floor == 800_000
    assert 1_000_000 * btc.brackets[2].maintenance_margin_rate - btc.brackets[2].cum == pytest.approx(5_000.0)


def test_brackets_are_those_of_the_tiers_file(shared_data: Path) -> None:
    tiers = json.loads((shared_data / "meta" / "binance_leverage_tiers.json").read_text("utf-8"))
    for symbol, rows in tiers.items():
        brackets = load_contract(symbol).brackets
        assert len(brackets) == len(rows)
        for bracket, row in zip(brackets, rows, strict=True):
            assert bracket.floor == row["minNotional"]
            assert bracket.cap in (row["maxNotional"], float("inf"))
            assert bracket.maintenance_margin_rate == row["maintenanceMarginRate"]
            assert bracket.cum == row["info"]["cum"]
            assert bracket.max_leverage == row["maxLeverage"]


def test_a_contract_survives_json() -> None:
    btc = load_contract("BTC/USDT:USDT")
    assert Contract.from_json(json.loads(json.dumps(btc.to_json()))) == btc


def test_an_unknown_symbol_is_told_which_ones_ship() -> None:
    with pytest.raises(KeyError, match="shipped are AVAX"):
        load_contract("PEPE/USDT:USDT")


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown fields"):
        Contract.from_json({"symbol": "X/USDT:USDT", "tik_size": 1.0, "brackets": []})


def test_a_fee_in_basis_points_is_refused_with_the_fraction_to_write() -> None:
    with pytest.raises(ValueError, match=r"write 0\.0004"):
        Contract(symbol="X/USDT:USDT", taker_rate=4)


def test_brackets_with_a_hole_are_refused() -> None:
    rows = (
        Bracket(floor=0.0, cap=10.0, maintenance_margin_rate=0.01, cum=0.0, max_leverage=50.0),
        Bracket(floor=20.0, cap=30.0, maintenance_margin_rate=0.02, cum=0.0, max_leverage=25.0),
    )
    with pytest.raises(ValueError, match="contiguous"):
        Contract(symbol="X/USDT:USDT", brackets=rows)
    with pytest.raises(ValueError, match="start at a notional of 0"):
        Contract(symbol="X/USDT:USDT", brackets=rows[1:])


def test_a_cum_that_the_exchange_rounded_to_the_cent_is_taken() -> None:
    # 6,666.67 * 0.005 = 33.33335
    rows = (
        Bracket(floor=0.0, cap=6_666.67, maintenance_margin_rate=0.005, cum=0.0, max_leverage=50.0),
        Bracket(floor=6_666.67, cap=1e6, maintenance_margin_rate=0.01, cum=33.33, max_leverage=25.0),
    )
    assert Contract(symbol="X/USDT:USDT", brackets=rows).brackets[1].cum == 33.33


def test_a_tick_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="tick_size must be positive"):
        Contract(symbol="X/USDT:USDT", tick_size=0.0)
