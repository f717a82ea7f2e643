"""Where a trade begins and ends, and that the trades' profits are the account's, to the last cent."""

from __future__ import annotations

import math

import numpy as np
import pytest

from perpgym.envs.spaces import CONTRACT_LEDGER, CONTRACT_LEDGER_COLUMNS
from perpgym.evaluation.trades import Trades, find_trades, join_trades


def trades_of(rows: list[dict[str, float]], marks: list[float] | None = None) -> Trades:
    """Of rows of position, profit and costs; equity starts at 1,000 and follows from the profits."""
    table = np.zeros((len(rows), len(CONTRACT_LEDGER_COLUMNS)))
    for i, row in enumerate(rows):
        for name, value in row.items():
            table[i, CONTRACT_LEDGER[name]] = value
    profit = table[:, CONTRACT_LEDGER["profit"]]
    equity_before = 1_000.0 + np.concatenate(([0.0], np.cumsum(profit)[:-1]))
    worth = np.full(len(rows) + 1, 100.0) if marks is None else np.array(marks)
    return find_trades(table, worth, equity_before)


def test_a_trade_runs_from_flat_to_flat_whatever_its_size_did_in_between() -> None:
    trades = trades_of(
        [
            {},
            {"position": 1.0, "profit": 10.0},
            {"position": 2.0, "profit": 20.0},
            {"position": 0.5, "profit": -5.0},
            {"position": 0.0, "profit": -1.0},
            {},
        ]
    )
    assert len(trades) == 1
    assert (trades.entry[0], trades.exit[0], trades.side[0]) == (1, 4, 1)
    assert trades.profit[0] == pytest.approx(24.0)
    assert trades.profit_fraction[0] == pytest.approx(0.024)
    # held at the closes of rows 1, 2 and 3: entered at the open of 1, left at the open of 4
    assert trades.holding_bars[0] == 3


def test_a_turn_closes_one_trade_and_opens_the_next_at_the_bars_price() -> None:
    # long 2 from 100; at the turn to short 1 the mark was 110, the last price 112 and the close 111; the
    # three that were sold cost 3, and the short received 0.5 of funding
    old = 2.0 * (112.0 - 110.0) - 2.0
    new = -1.0 * (111.0 - 112.0) - 1.0 + 0.5
    trades = trades_of(
        [
            {"position": 2.0, "profit": 20.0},
            {"position": -1.0, "profit": old + new, "costs": 3.0, "funding": 0.5},
            {"position": -1.0, "profit": 4.0},
        ],
        [100.0, 110.0, 111.0, 107.0],
    )
    assert trades.side.tolist() == [1, -1]
    assert trades.profit == pytest.approx([20.0 + old, new + 4.0])
    assert trades.holding_bars.tolist() == [1, 2]
    assert trades.profit_fraction[1] == pytest.approx((new + 4.0) / (1_020.0 + old))


def test_a_turn_of_an_inverse_contract_is_cut_in_its_own_worth() -> None:
    # worth of a unit is -1 / price: 110 before, 112 at the turn, 111 at the close
    before, at, after = (-1.0 / price for price in (110.0, 112.0, 111.0))
    old, new = 200.0 * (at - before) - 0.002, -100.0 * (after - at) - 0.001
    trades = trades_of(
        [{"position": 200.0}, {"position": -100.0, "profit": old + new, "costs": 0.003}],
        [-0.01, before, after],
    )
    assert trades.profit == pytest.approx([old, new])


def test_a_trade_within_one_bar_counts() -> None:
    trades = trades_of([{}, {"position": 0.0, "profit": -7.0, "costs": 7.0}, {}])
    assert (len(trades), trades.side[0], trades.holding_bars[0]) == (1, 0, 0)
    assert trades.profit[0] == -7.0


def test_an_open_trade_is_marked_at_the_last_close() -> None:
    trades = trades_of([{"position": 1.0, "profit": 5.0}] * 3)
    assert (len(trades), trades.exit[0], trades.holding_bars[0]) == (1, 2, 3)
    assert trades.profit[0] == 15.0


def test_no_trades_have_no_win_rate() -> None:
    trades = trades_of([{}, {}])
    assert len(trades) == 0
    assert math.isnan(trades.win_rate)
    assert math.isnan(trades.profit_factor)


def test_win_rate_and_profit_factor_worked_by_hand() -> None:
    held, out = {"position": 1.0}, {"position": 0.0}
    trades = trades_of(
        [{**held, "profit": 30.0}, out, {**held, "profit": -10.0}, out, {**held, "profit": -5.0}, out]
    )
    assert trades.win_rate == pytest.approx(1 / 3)
    assert trades.profit_factor == pytest.approx(2.0)


def test_without_a_loss_the_profit_factor_is_infinite() -> None:
    assert math.isinf(trades_of([{"position": 1.0, "profit": 5.0}]).profit_factor)


def test_trades_of_several_contracts_stand_in_the_order_of_their_entry() -> None:
    first = trades_of([{}, {}, {"position": 1.0, "profit": 3.0}])
    second = trades_of([{"position": -1.0, "profit": 1.0}, {"profit": 1.0}, {}])
    both = join_trades([first, second])
    assert both.entry.tolist() == [0, 2]
    assert both.side.tolist() == [-1, 1]
    assert both.profit.tolist() == [2.0, 3.0]
