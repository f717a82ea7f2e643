"""Fixed sizes, other costs, no limits, no rounding, a sale at the end: for problems with known answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.buffers import StepBuffers
from perpgym.envs.spaces import LEDGER

MakeTape = Callable[..., Tape]
FREE = RiskLimits(max_leverage=150.0, max_daily_loss=None)


def play(tape: Tape, exposures: list[float], **settings: Any) -> list[dict[str, float]]:
    """The ledger of every bar, its truncation and the observed exposure, under ``target`` actions."""
    defaults: dict[str, Any] = {
        "action": "target", "max_exposure": 4.0, "window_bars": 1, "rebalance_threshold": 0.0,
        "initial_wallet": 1_000.0,
    }  # fmt: skip
    config = EnvConfig(**defaults | settings)
    env = PerpVecEnv(tape, n_paths=1, config=config, limits=FREE)
    out: StepBuffers = env.make_buffers()
    env.reset_into(out, 0)
    rows = []
    for exposure in exposures:
        env.step_into(np.array([[exposure / config.max_exposure]], np.float32), out)
        row = {name: float(out.ledger[0, i]) for name, i in LEDGER.items()}
        parts = row["price_pnl"] + row["funding"] + row["insurance"] - row["fees"] - row["clearance"]
        parts -= row["spread"] + row["impact"]
        assert row["equity"] - row["equity_before"] == pytest.approx(parts, abs=1e-9)
        rows.append(row | {"seen": float(out.account[0, 0, 0]), "over": float(out.terminated[0])})
    return rows


def tape_of(make_tape: MakeTape, *closes: float) -> Tape:
    return make_tape(np.array(closes), wick=0.0, funding_rate=0.0)


RESEARCH = {"limits": "off", "rounding": "off", "sizing": "fixed_notional"}


def test_a_fixed_notional_buys_the_same_whatever_was_won_or_lost(make_tape: MakeTape) -> None:
    tape = tape_of(make_tape, 100.0, 100.0, 150.0, 150.0, 150.0)
    rows = play(tape, [2.0, 2.0, 0.0], **RESEARCH, cost="linear")
    assert rows[0]["position"] == pytest.approx(20.0)
    # won 1,000; still 2,000 of notional at 150
    assert rows[1]["equity"] == pytest.approx(2_000.0)
    assert play(tape, [2.0, 2.0, 2.0], **RESEARCH, cost="linear")[2]["position"] == pytest.approx(2_000 / 150)
    # an exposure over equity would have grown
    by_equity = play(tape, [2.0, 2.0, 2.0], cost="linear", rounding="off", limits="off")
    assert by_equity[2]["position"] == pytest.approx(2 * 2_000 / 150)


def test_the_observed_exposure_is_measured_over_what_it_is_sized_by(make_tape: MakeTape) -> None:
    tape = tape_of(make_tape, 100.0, 100.0, 150.0, 150.0)
    rows = play(tape, [2.0, 2.0], **RESEARCH, cost="linear", initial_exposure=2.0)
    assert [row["seen"] for row in rows] == pytest.approx([2.0, 3.0])


def test_linear_cost_is_a_share_of_the_notional_and_nothing_else(make_tape: MakeTape) -> None:
    rows = play(
        tape_of(make_tape, *[100.0] * 4), [3.0, -1.0], **RESEARCH, cost="linear", linear_cost_rate=0.01
    )
    assert [row["fees"] for row in rows] == pytest.approx([30.0, 40.0])
    assert [row["spread"] + row["impact"] for row in rows] == [0.0, 0.0]


def test_quadratic_cost_is_half_the_rate_times_the_squared_trade(make_tape: MakeTape) -> None:
    # of 1,000: 0.02 / 2 * 3**2 = 90 and 0.02 / 2 * 4**2 = 160; 0.1 % of 3,000 on top of it
    rates = {"quadratic_cost_rate": 0.02, "linear_cost_rate": 0.001}
    rows = play(tape_of(make_tape, *[100.0] * 4), [3.0, -1.0], **RESEARCH, cost="quadratic", **rates)
    assert [row["fees"] for row in rows] == pytest.approx([90.0 + 3.0, 160.0 + 4.0])
    assert [row["spread"] + row["impact"] for row in rows] == [0.0, 0.0]


def test_without_limits_an_account_may_owe_and_goes_on(make_tape: MakeTape) -> None:
    tape = tape_of(make_tape, 100.0, 100.0, 40.0, 40.0, 120.0, 120.0)
    rows = play(tape, [3.0, 3.0, 3.0, 3.0], **RESEARCH, cost="linear")
    assert rows[1]["equity"] == pytest.approx(-800.0)
    assert not any(row["liquidated"] or row["over"] or row["overlay"] for row in rows)
    # 75 held at 40 earn 80 each
    assert rows[3]["equity"] == pytest.approx(-800.0 + 75 * 80.0)


def test_with_limits_the_same_account_is_liquidated(make_tape: MakeTape) -> None:
    tape = tape_of(make_tape, 100.0, 100.0, 40.0, 40.0, 120.0, 120.0)
    rows = play(tape, [3.0, 3.0], sizing="fixed_notional", cost="linear")
    assert (rows[1]["liquidated"], rows[1]["over"]) == (1.0, 1.0)


def test_nothing_trades_where_the_market_does_not_even_without_limits(make_tape: MakeTape) -> None:
    tape = make_tape(np.full(4, 100.0), wick=0.0, volume=0.0)
    assert play(tape, [1.0], **RESEARCH)[0]["position"] == 0.0


def test_without_rounding_the_exposure_is_met_exactly(make_tape: MakeTape) -> None:
    tape = tape_of(make_tape, *[97.3] * 3)
    wallet = {"initial_wallet": 123.456, "cost": "linear"}
    exact = play(tape, [1.234], rounding="off", **wallet)[0]
    assert exact["position"] == pytest.approx(1.234 * 123.456 / 97.3, rel=1e-7)
    # lots of 0.001 and at least 100 of notional
    assert play(tape, [1.234], **wallet)[0]["position"] == pytest.approx(1.565)


def test_a_position_is_sold_at_the_last_close_of_the_episode(make_tape: MakeTape) -> None:
    tape = tape_of(make_tape, 100.0, 100.0, 100.0, 110.0)
    settings = RESEARCH | {"cost": "linear", "linear_cost_rate": 0.01, "terminal": "liquidate"}
    rows = play(tape, [1.0, 1.0, 1.0], **settings)
    assert [row["position"] for row in rows] == pytest.approx([10.0, 10.0, 0.0])
    # 10 gained 10 each, and 1,100 were sold at a hundredth
    assert rows[2]["price_pnl"] == pytest.approx(100.0 - 0.0)
    assert rows[2]["fees"] == pytest.approx(11.0)


def test_an_account_may_start_with_a_position_at_no_cost(make_tape: MakeTape) -> None:
    rows = play(tape_of(make_tape, *[100.0] * 4), [0.5], **RESEARCH, initial_exposure=2.0, cost="linear")
    assert rows[0]["equity_before"] == 1_000.0
    assert rows[0]["traded_notional"] == pytest.approx(1_500.0)


def test_a_bare_off_of_a_yaml_file_is_understood() -> None:
    config = EnvConfig(limits=False, rounding=False)  # type: ignore[arg-type]
    assert (config.limits, config.rounding) == ("off", "off")
