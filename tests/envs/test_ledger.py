"""The ledger command: its identity on random markets, and what it says of bad files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perpgym.envs.ledger import main, replay

BRACKETS = [
    {"floor": 0, "cap": 2_000, "mmr": "0.01", "cum": 0},
    {"floor": 2_000, "cap": 8_000, "mmr": "0.025", "cum": 30},
    {"floor": 8_000, "cap": None, "mmr": "0.05", "cum": 230},
]


def run(scenario: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    path = folder / "case.json"
    path.write_text(json.dumps(scenario), "utf-8")
    return list(replay(path))


def plain(**changes: Any) -> dict[str, Any]:
    bar = {"o": 100, "h": 101, "l": 99, "c": 100}
    return {
        "contracts": {"X": {"brackets": BRACKETS}},
        "account": {"wallet": 1_000, "leverage": 10},
        "steps": [{"bars": {"X": bar}, "orders": {"X": {"target": 1}}}],
    } | changes


@pytest.mark.parametrize("seed", range(60))
def test_the_wallet_moves_by_what_is_named_and_by_nothing_else(seed: int, tmp_path: Path) -> None:
    scenario = random_scenario(np.random.default_rng(seed))
    wallet = scenario["account"]["wallet"]
    for row in run(scenario, tmp_path):
        change = row["realised"] - row["fee"] + row["funding"] - row["liquidation_loss"]
        assert row["wallet"] - wallet == pytest.approx(change, abs=1e-8)
        assert row["equity"] == pytest.approx(row["wallet"] + row["unrealised"])
        assert row["insurance"] >= 0.0
        for symbol, shown in row["symbols"].items():
            forced = any(f["symbol"] == symbol and f["reason"] == "liquidation" for f in row["fills"])
            assert forced == (symbol in row["liquidated"])
            assert shown["isolated_wallet"] == 0.0 or scenario["account"]["margin_mode"] == "isolated"
        wallet = row["wallet"]


def test_the_random_markets_see_every_kind_of_fill(tmp_path: Path) -> None:
    reasons = {
        fill["reason"]
        for seed in range(60)
        for row in run(random_scenario(np.random.default_rng(seed)), tmp_path)
        for fill in row["fills"]
    }
    assert reasons == {"order", "stop_loss", "take_profit", "liquidation"}


def random_scenario(rng: np.random.Generator) -> dict[str, Any]:
    """Up to three contracts, twelve wild bars, orders with stops, funding."""
    kind = str(rng.choice(["linear", "inverse"]))
    symbols = ["A", "B", "C"][: rng.integers(1, 4)]
    unit = 1.0 if kind == "linear" else 1e4
    contract = {
        "type": kind, "contract_size": 1, "taker": "0.0005", "maker": "0.0002", "clearance_fee": "0.01",
        "brackets": BRACKETS,
    }  # fmt: skip
    price = dict.fromkeys(symbols, 100.0)
    steps = []
    for _ in range(12):
        bars, orders = {}, {}
        for s in symbols:
            path = price[s] * np.exp(np.cumsum(rng.normal(0, 0.04, 5)))
            mark = path * np.exp(rng.normal(0, 0.005))
            names = ("o", "h", "l", "c")
            bars[s] = dict(zip(names, (path[0], path.max(), path.min(), path[-1]), strict=True))
            bars[s]["mark"] = dict(zip(names, (mark[0], mark.max(), mark.min(), mark[-1]), strict=True))
            price[s] = float(path[-1])
            if rng.random() < 0.5:
                side = float(rng.choice([-1.0, 1.0]))
                orders[s] = {"target": side * unit * float(rng.integers(5, 40))}
                if rng.random() < 0.5:
                    orders[s] |= {
                        "stop_loss": path[0] * (1 - 0.05 * side), "take_profit": path[0] * (1 + 0.05 * side)
                    }  # fmt: skip
        steps.append({"bars": bars, "orders": orders, "funding": {symbols[0]: float(rng.normal(0, 1e-3))}})
    return {
        "contracts": dict.fromkeys(symbols, contract),
        "account": {
            "wallet": 1_000.0, "margin_mode": str(rng.choice(["cross", "isolated"])), "leverage": 10,
        },
        "rules": {
            "half_spread": 0.0002, "liquidation": str(rng.choice(["full", "brackets"])),
            "stop_trigger": str(rng.choice(["last", "mark"])),
            "liq_fill": str(rng.choice(["liq_price", "bankruptcy"])),
        },
        "steps": steps,
    }  # fmt: skip


def test_a_stop_is_kept_until_it_is_changed_or_the_position_is_flat(tmp_path: Path) -> None:
    quiet, dip = {"o": 100, "h": 100, "l": 99, "c": 99}, {"o": 99, "h": 99, "l": 90, "c": 95}
    steps = [
        {"bars": {"X": quiet}, "orders": {"X": {"target": 1, "stop_loss": 97}}},
        {"bars": {"X": quiet}, "orders": {"X": {"stop_loss": 92}}},
        {"bars": {"X": dip}},
        {"bars": {"X": quiet}, "orders": {"X": {"target": 1}}},
        {"bars": {"X": dip}},
    ]
    rows = run(plain(steps=steps), tmp_path)
    assert [f["price"] for f in rows[2]["fills"]] == [92.0]
    assert rows[4]["symbols"]["X"]["position"] == 1.0


def test_lowering_the_leverage_of_an_open_isolated_position_is_refused(tmp_path: Path) -> None:
    bar = {"X": {"o": 100, "h": 100, "l": 100, "c": 100}}
    steps = [
        {"bars": bar, "orders": {"X": {"target": 1}}},
        {"bars": bar, "set_leverage": {"X": 5}, "orders": {"X": {"target": 2}}},
        {"bars": bar, "set_leverage": {"X": 20}, "orders": {"X": {"target": 3}}},
    ]
    account = {"wallet": 1_000, "margin_mode": "isolated", "leverage": 10}
    rows = run(plain(steps=steps, account=account), tmp_path)
    assert [r["symbols"]["X"]["isolated_wallet"] for r in rows] == pytest.approx([10.0, 20.0, 25.0])
    assert rows[1]["refused_leverage"] == ["X"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"account": {"wallet": 1_000}}, r"account lacks \['leverage'\]"),
        ({"account": {"wallet": "much", "leverage": 1}}, "account.wallet must be a number"),
        ({"rules": {"impact": 1}}, "rules.impact must be 0"),
        ({"rules": {"stop_triger": "last"}}, "unknown keys .*stop_triger"),
        (
            {"contracts": {"X": {"brackets": [{"floor": 10, "cap": None, "mmr": 0.1}]}}},
            "start at a notional of 0",
        ),
        ({"contracts": {}}, "at least one contract"),
        ({"steps": [{"bars": {}}]}, r"steps\[0\].bars has no bar for X"),
        ({"steps": [{"bars": {"X": {"o": 1, "h": 0.5, "l": 1, "c": 1}}}]}, "low must not exceed"),
        ({"steps": [{"bars": {"X": {"o": "nan", "h": 1, "l": 1, "c": 1}}}]}, "decimal string, was 'nan'"),
        ({"account": {"wallet": "1_0", "leverage": 1}}, "account.wallet must be .* string, was '1_0'"),
        ({"account": {"wallet": " 1", "leverage": 1}}, "account.wallet must be .* string, was ' 1'"),
        ({"account": {"wallet": "1e999", "leverage": 1}}, "account.wallet must be finite"),
        ({"account": {"wallet": 10**400, "leverage": 1}}, "account.wallet must be below 1.8e308"),
        ({"contracts": {"X": {"taker": -0.5, "brackets": BRACKETS}}}, "X.taker must be at least 0, was -0.5"),
        ({"contracts": {"X": {"maker": -0.5, "brackets": BRACKETS}}}, "X.maker must be at least -0.01"),
        (
            {"contracts": {"X": {"brackets": [{k: r[k] for k in r if k != "cum"} for r in BRACKETS]}}},
            r"X: .* cum of bracket 2 must be .* = 30 \(quote\), was 0",
        ),
    ],
)
def test_a_scenario_that_is_wrong_says_where(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(plain(**changes), tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("{", "not JSON"),
        ('{"a": ' + "1" * 5_000 + "}", "not JSON"),
        (b"\xff", "not UTF-8"),
        ("[]", "must be an object, was list"),
    ],
    ids=["deep", "cut off", "digits", "bytes", "list"],
)
def test_a_file_that_is_no_scenario_is_one_line_and_the_next_is_replayed(
    text: str | bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = tmp_path / "bad.json", tmp_path / "good.json"
    bad.write_bytes(text if isinstance(text, bytes) else text.encode())
    good.write_text(json.dumps(plain()), "utf-8")
    assert main([str(bad), str(tmp_path / "none.json"), str(good)]) == 1
    first, second, third = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert set(first) == {"scenario", "error"}
    assert message in first["error"]
    assert second["scenario"] == "none"
    assert third["scenario"] == "good"


def test_money_beyond_all_numbers_is_an_error_and_no_infinity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "huge.json"
    bar = dict.fromkeys("ohlc", 1e200)
    path.write_text(json.dumps(plain(steps=[{"bars": {"X": bar}, "orders": {"X": {"target": 1e200}}}])))
    assert main([str(path)]) == 1
    (row,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert "not JSON compliant" in row["error"]


def test_every_fill_of_a_step_is_shown_and_counted_however_many_there_are(tmp_path: Path) -> None:
    symbols = [f"X{number}" for number in range(70)]
    low, high = dict.fromkeys("ohlc", 100), dict.fromkeys("ohlc", 110)
    steps = [
        {"bars": dict.fromkeys(symbols, bar), "orders": {symbol: {"target": quantity} for symbol in symbols}}
        for bar, quantity in ((low, 1), (high, 0))
    ]
    contracts = {symbol: {"brackets": BRACKETS} for symbol in symbols}
    account = {"wallet": 100_000, "leverage": 10}
    row = run(plain(contracts=contracts, account=account, steps=steps), tmp_path)[-1]
    assert (row["wallet"], row["realised"], len(row["fills"])) == (100_700.0, 700.0, 70)


def test_a_short_that_climbs_along_brackets_shows_every_reduction(tmp_path: Path) -> None:
    # rates of a tenth more in each bracket: reduced at each floor again and again
    brackets, cum = [], 0.0
    for number in range(9):
        floor, rate = 1_000.0 * number, 0.1 * number + 0.05
        cum += floor * 0.1 if number else 0.0
        cap = None if number == 8 else floor + 1_000.0
        brackets.append({"floor": floor, "cap": cap, "mmr": rate, "cum": cum})
    bar = {"o": 100, "h": 300, "l": 100, "c": 300}
    scenario = plain(
        contracts={"X": {"brackets": brackets}},
        account={"wallet": 9_000, "leverage": 1},
        rules={"liquidation": "brackets"},
        steps=[{"bars": {"X": bar}, "orders": {"X": {"target": -85}}}],
    )
    row = run(scenario, tmp_path)[0]
    assert len(row["fills"]) > 10
    change = row["realised"] - row["fee"] + row["funding"] - row["liquidation_loss"]
    assert row["wallet"] - 9_000.0 == pytest.approx(change, abs=1e-9)
    bought = sum(fill["qty"] for fill in row["fills"])
    assert row["symbols"]["X"]["position"] == pytest.approx(bought, abs=1e-9)


def test_the_command_goes_on_after_a_bad_file_and_ends_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = tmp_path / "bad.json", tmp_path / "good.json"
    bad.write_text("{", "utf-8")
    good.write_text(json.dumps(plain()), "utf-8")
    assert main([str(bad), str(good)]) == 1
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["scenario"] == "bad"
    assert "not JSON" in first["error"]
    assert (second["scenario"], second["step"], second["symbols"]["X"]["position"]) == ("good", 0, 1.0)
    assert main([str(good)]) == 0
