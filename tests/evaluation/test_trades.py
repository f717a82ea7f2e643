"""Where a trade begins and ends, and that the trades' profits are the account's, to the last cent."""

from __future__ import annotations

import math

import numpy as np
import pytest

from perpgym.envs.spaces import LEDGER, LEDGER_COLUMNS
from perpgym.evaluation.trades import find_trades


def _ledger(rows: list[dict[str, float]], equity: float = 1_000.0) -> np.ndarray:
    """Rows of position, profit and fees; equity follows from the profits."""
    out = np.zeros((len(rows), len(LEDGER_COLUMNS)))
    out[:, LEDGER["fill_price"]] = np.nan
    for i, row in enumerate(rows):
        out[i, LEDGER["equity_before"]] = equity
        equity += row.get("profit", 0.0)
        out[i, LEDGER["equity"]] = equity
        for name, value in row.items():
            if name != "profit":
                out[i, LEDGER[name]] = value
    return out


def test_a_trade_runs_from_flat_to_flat_whatever_its_size_did_in_between() -> None:
    ledger = _ledger(
        [
            {},
            {"position": 1.0, "profit": 10.0, "fills": 1},
            {"position": 2.0, "profit": 20.0, "fills": 1},
            {"position": 0.5, "profit": -5.0, "fills": 1},
            {"position": 0.0, "profit": -1.0, "fills": 1},
            {},
        ]
    )
    trades = find_trades(ledger, np.full(7, 100.0))
    assert len(trades) == 1
    assert (trades.entry[0], trades.exit[0], trades.side[0]) == (1, 4, 1)
    assert trades.profit[0] == pytest.approx(24.0)
    assert trades.profit_fraction[0] == pytest.approx(0.024)
    # held at the closes of rows 1, 2 and 3: entered at the open of 1, left at the open of 4
    assert trades.holding_bars[0] == 3


def test_a_turn_closes_one_trade_and_opens_the_next_at_the_fill_price() -> None:
    # long 2 from 100; at the turn to short 1 the mark was 110, the fill 112 and the close 111; fee 3
    old = 2.0 * (112.0 - 110.0) - 2.0
    new = -1.0 * (111.0 - 112.0) - 1.0
    ledger = _ledger(
        [
            {"position": 2.0, "profit": 20.0, "fills": 1},
            {"position": -1.0, "profit": old + new, "fills": 1, "fill_price": 112.0, "fees": 3.0},
            {"position": -1.0, "profit": 4.0},
        ]
    )
    trades = find_trades(ledger, np.array([100.0, 110.0, 111.0, 107.0]))
    assert trades.side.tolist() == [1, -1]
    assert trades.profit == pytest.approx([20.0 + old, new + 4.0])
    assert trades.holding_bars.tolist() == [1, 2]
    assert trades.profit_fraction[1] == pytest.approx((new + 4.0) / (1_020.0 + old))


def test_a_trade_within_one_bar_counts() -> None:
    ledger = _ledger([{}, {"position": 0.0, "profit": -7.0, "fills": 2, "stopped": 1}, {}])
    trades = find_trades(ledger, np.full(4, 100.0))
    assert (len(trades), trades.side[0], trades.holding_bars[0]) == (1, 0, 0)
    assert trades.profit[0] == -7.0


def test_an_open_trade_is_marked_at_the_last_close() -> None:
    trades = find_trades(_ledger([{"position": 1.0, "profit": 5.0, "fills": 1}] * 3), np.full(4, 100.0))
    assert (len(trades), trades.exit[0], trades.holding_bars[0]) == (1, 2, 3)
    assert trades.profit[0] == 15.0


def test_no_trades_have_no_win_rate() -> None:
    trades = find_trades(_ledger([{}, {}]), np.full(3, 100.0))
    assert len(trades) == 0
    assert math.isnan(trades.win_rate)
    assert math.isnan(trades.profit_factor)


def test_win_rate_and_profit_factor_worked_by_hand() -> None:
    entry, out = {"position": 1.0, "fills": 1}, {"position": 0.0, "fills": 1}
    ledger = _ledger(
        [{**entry, "profit": 30.0}, out, {**entry, "profit": -10.0}, out, {**entry, "profit": -5.0}, out]
    )
    trades = find_trades(ledger, np.full(7, 100.0))
    assert trades.win_rate == pytest.approx(1 / 3)
    assert trades.profit_factor == pytest.approx(2.0)


def test_without_a_loss_the_profit_factor_is_infinite() -> None:
    trades = find_trades(_ledger([{"position": 1.0, "profit": 5.0, "fills": 1}]), np.full(2, 100.0))
    assert math.isinf(trades.profit_factor)
