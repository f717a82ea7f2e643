"""Unmodified, blocking ccxt trades on the exchange."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ccxt
import pytest

SYMBOL = "TEST/USDT:USDT"
Start = Callable[..., Any]


def test_markets_carry_the_contracts_rules(local: Start) -> None:
    client = local().client
    market = client.load_markets()[SYMBOL]
    assert market["swap"]
    assert market["linear"]
    assert market["precision"]["price"] == 0.1
    assert market["precision"]["amount"] == 0.001
    assert market["limits"]["cost"]["min"] == 100.0
    assert market["info"]["liquidationFee"] == "0.0125"


def test_bars_are_the_tapes_and_the_open_one_shows_its_open_only(local: Start) -> None:
    here = local()
    tape, client = here.venue.market.tape, here.client
    rows = client.fetch_ohlcv(SYMBOL, "1h", limit=5)
    assert [row[0] for row in rows] == tape.open_time_ms[46:51].tolist()
    for row, bar in zip(rows[:-1], range(46, 50), strict=True):
        assert row[1:5] == tape.last[bar, 0].tolist()
        assert row[5] == tape.volume[bar, 0]
    assert rows[-1][1:] == [tape.last[50, 0, 0]] * 4 + [0.0]
    marks = client.fetch_ohlcv(SYMBOL, "1h", limit=2, params={"price": "mark"})
    assert marks[0][1:5] == tape.mark[49, 0].tolist()
    here.next_bar()
    assert client.fetch_ohlcv(SYMBOL, "1h", limit=2)[0][1:5] == tape.last[50, 0].tolist()
    four = client.fetch_ohlcv(SYMBOL, "4h", since=int(tape.open_time_ms[8]), limit=2)
    assert [row[0] for row in four] == [int(tape.open_time_ms[8]), int(tape.open_time_ms[12])]
    assert four[0][2] == tape.last[8:12, 0, 1].max()


def test_bars_of_the_premium_are_zero_for_the_index_is_the_mark(local: Start) -> None:
    here = local()
    rows = here.client.fetch_premium_index_ohlcv(SYMBOL, "1h", limit=3)
    assert [row[0] for row in rows] == here.venue.market.tape.open_time_ms[48:51].tolist()
    assert {value for row in rows for value in row[1:]} == {0.0}


def test_a_market_order_opens_a_position_at_the_open_of_the_bar(local: Start) -> None:
    here = local()
    client = here.client
    order = client.create_order(SYMBOL, "market", "buy", 0.05)
    last = here.venue.market.tape.last[50, 0, 0]
    assert order["status"] == "closed"
    assert order["filled"] == 0.05
    assert order["average"] >= last * 1.0001
    (position,) = client.fetch_positions([SYMBOL])
    assert position["side"] == "long"
    assert position["contracts"] == 0.05
    assert position["entryPrice"] == order["average"]
    balance = client.fetch_balance()
    wallet = float(balance["info"]["totalWalletBalance"])
    assert wallet == pytest.approx(10_000.0 - 0.05 * order["average"] * 0.0004, abs=1e-9)
    assert balance["USDT"]["total"] == pytest.approx(wallet + position["unrealizedPnl"], abs=1e-8)
    (trade,) = client.fetch_my_trades(SYMBOL)
    assert trade["takerOrMaker"] == "taker"
    assert trade["fee"]["cost"] == pytest.approx(0.05 * order["average"] * 0.0004, abs=1e-9)


def test_a_limit_order_rests_until_the_market_trades_through_it(local: Start) -> None:
    here = local(wick=0.01)
    client = here.client
    price = round(here.venue.market.last_price(0) * 0.998, 1)
    order = client.create_order(SYMBOL, "limit", "buy", 0.05, price)
    assert order["status"] == "open"
    assert [o["id"] for o in client.fetch_open_orders(SYMBOL)] == [order["id"]]
    while client.fetch_order(order["id"], SYMBOL)["status"] == "open":
        here.next_bar()
    assert here.venue.market.tape.last[here.venue.market.bar - 1, 0, 2] < price
    (trade,) = client.fetch_my_trades(SYMBOL)
    assert (trade["price"], trade["takerOrMaker"]) == (price, "maker")
    assert trade["fee"]["cost"] == pytest.approx(0.05 * price * 0.0002)


def test_an_order_can_be_cancelled_once(local: Start) -> None:
    client = local().client
    order = client.create_order(SYMBOL, "limit", "buy", 0.05, 27_000.0, {"clientOrderId": "mine-1"})
    assert client.fetch_order(None, SYMBOL, {"origClientOrderId": "mine-1"})["id"] == order["id"]
    assert client.cancel_order(order["id"], SYMBOL)["status"] == "canceled"
    with pytest.raises(ccxt.OrderNotFound, match="-2011"):
        client.cancel_order(order["id"], SYMBOL)
    with pytest.raises(ccxt.OrderNotFound, match="-2013"):
        client.fetch_order("77", SYMBOL)
    again = client.create_order(SYMBOL, "limit", "buy", 0.05, 27_000.0, {"clientOrderId": "mine-1"})
    assert again["id"] != order["id"]
    client.cancel_all_orders(SYMBOL)
    assert client.fetch_open_orders(SYMBOL) == []


def test_leverage_and_margin_mode_are_set_and_read_back(local: Start) -> None:
    client = local().client
    assert client.set_leverage(10, SYMBOL)["leverage"] == 10
    client.set_margin_mode("isolated", SYMBOL)
    leverage = client.fetch_leverage(SYMBOL)
    assert (leverage["marginMode"], leverage["longLeverage"]) == ("isolated", 10)
    client.create_order(SYMBOL, "market", "sell", 0.05)
    (position,) = client.fetch_positions([SYMBOL])
    assert position["marginMode"] == "isolated"
    assert position["side"] == "short"
    with pytest.raises(ccxt.ExchangeError, match="-4161"):
        client.set_leverage(5, SYMBOL)
    with pytest.raises(ccxt.MarginModeAlreadySet):
        client.set_margin_mode("isolated", SYMBOL)
    with pytest.raises(ccxt.OperationRejected, match="-4048"):
        client.set_margin_mode("cross", SYMBOL)
    with pytest.raises(ccxt.OperationRejected, match="-4059"):
        client.set_position_mode(False, SYMBOL)
    with pytest.raises(ccxt.BadRequest, match="-4028"):
        client.fapiPrivatePostLeverage({"symbol": "TESTUSDT", "leverage": 126})


def test_stops_and_targets_close_the_position(local: Start) -> None:
    here = local(wick=0.01, seed=3)
    client, last = here.client, here.venue.market.last_price(0)
    client.create_order(SYMBOL, "market", "buy", 0.05)
    stop = client.create_order(
        SYMBOL, "market", "sell", None, None, {"stopLossPrice": round(last * 0.99, 1), "closePosition": True}
    )
    target = client.create_order(
        SYMBOL, "market", "sell", 0.05, None, {"takeProfitPrice": round(last * 1.01, 1), "reduceOnly": True}
    )
    waiting = client.fetch_open_orders(SYMBOL, params={"trigger": True})
    assert {o["id"] for o in waiting} == {stop["id"], target["id"]}
    while client.fetch_positions([SYMBOL]):
        here.next_bar()
    states = [client.fetch_order(o["id"], SYMBOL, {"trigger": True})["info"] for o in (stop, target)]
    assert sorted(s["algoStatus"] for s in states) == ["FINISHED", "NEW"]
    done = next(s for s in states if s["algoStatus"] == "FINISHED")
    child = client.fetch_order(done["actualOrderId"], SYMBOL)
    assert (child["status"], child["filled"], child["reduceOnly"]) == ("closed", 0.05, True)
    left = next(s for s in states if s["algoStatus"] == "NEW")
    client.cancel_order(left["algoId"], SYMBOL, {"trigger": True})
    assert client.fetch_open_orders(SYMBOL, params={"trigger": True}) == []


def test_funding_is_paid_and_shown_as_income(local: Start) -> None:
    here = local(funding_rate=5e-4)
    client = here.client
    client.create_order(SYMBOL, "market", "buy", 0.05)
    here.next_bar(10)
    (row,) = client.fetch_funding_history(SYMBOL)
    tape = here.venue.market.tape
    stamp = int(row["timestamp"])
    bar = int((stamp - tape.open_time_ms[0]) // tape.bar_ms) - 1
    assert row["amount"] == round(-0.05 * tape.mark[bar, 0, 3] * 5e-4, 8)
    rates = client.fetch_funding_rate_history(SYMBOL, since=int(tape.open_time_ms[0]), limit=3)
    assert [r["fundingRate"] for r in rates] == [5e-4] * 3
    assert client.fetch_funding_rate(SYMBOL)["fundingRate"] == 5e-4


def test_a_liquidation_is_the_exchanges_own_order(local: Start) -> None:
    here = local(sigma=0.02, wick=0.05, config={"leverage": 50.0})
    client = here.client
    client.create_order(SYMBOL, "market", "buy", 8.0)
    (position,) = client.fetch_positions([SYMBOL])
    assert 0.9 < position["liquidationPrice"] / position["markPrice"] < 1.0
    while client.fetch_positions([SYMBOL]):
        here.next_bar()
    forced = client.fapiPrivateGetForceOrders({"symbol": "TESTUSDT"})
    assert forced[0]["clientOrderId"].startswith("autoclose-")
    kinds = {row["incomeType"] for row in client.fapiPrivateGetIncome({"limit": 1000})}
    assert {"REALIZED_PNL", "COMMISSION", "INSURANCE_CLEAR"} <= kinds
    total = sum(float(row["income"]) for row in client.fapiPrivateGetIncome({"limit": 1000}))
    wallet = float(client.fetch_balance()["info"]["totalWalletBalance"])
    assert 10_000.0 + total == pytest.approx(wallet, abs=1e-8)


def test_fees_brackets_tickers_and_book_agree_with_the_tape(local: Start) -> None:
    here = local()
    client, market = here.client, here.venue.market
    fee = client.fetch_trading_fee(SYMBOL)
    assert (fee["maker"], fee["taker"]) == (0.0002, 0.0004)
    tiers = client.fetch_market_leverage_tiers(SYMBOL)
    assert [tier["maintenanceMarginRate"] for tier in tiers] == [0.004, 0.005, 0.01]
    assert [float(tier["info"]["cum"]) for tier in tiers] == [0.0, 50.0, 3050.0]
    ticker = client.fetch_ticker(SYMBOL)
    assert ticker["last"] == pytest.approx(market.last_price(0))
    book = client.fetch_order_book(SYMBOL, 20)
    assert book["bids"][0][0] < market.last_price(0) < book["asks"][0][0]
    assert book["bids"] == sorted(book["bids"], reverse=True)
    assert client.fetch_trades(SYMBOL, limit=4)[-1]["price"] == pytest.approx(market.tape.last[49, 0, 3])


def test_the_shown_book_costs_what_an_order_pays(local: Start) -> None:
    here = local()
    client = here.client
    left, paid = 2.0, 0.0
    for price, size in client.fetch_order_book(SYMBOL, 1000)["asks"]:
        take = min(left, size)
        left, paid = left - take, paid + take * price
    order = client.create_order(SYMBOL, "market", "buy", 2.0)
    assert left == pytest.approx(0.0, abs=1e-9)
    assert order["average"] / here.venue.market.last_price(0) - 1.0 > 2e-4
    # the fill price is rounded to the tick, against the order
    assert paid / 2.0 == pytest.approx(order["average"], abs=0.1)


def test_the_dead_mans_switch_cancels_what_rests(local: Start) -> None:
    here = local()
    client = here.client
    order = client.create_order(SYMBOL, "limit", "buy", 0.05, 27_000.0)
    client.fapiPrivatePostCountdownCancelAll({"symbol": "TESTUSDT", "countdownTime": 60_000})
    here.venue.clock.move_to(here.venue.now_ms + 59_999)
    assert client.fetch_order(order["id"], SYMBOL)["status"] == "open"
    client.fapiPrivatePostCountdownCancelAll({"symbol": "TESTUSDT", "countdownTime": 60_000})
    here.venue.clock.move_to(here.venue.now_ms + 59_999)
    assert client.fetch_order(order["id"], SYMBOL)["status"] == "open"
    here.venue.clock.move_to(here.venue.now_ms + 1)
    assert client.fetch_order(order["id"], SYMBOL)["status"] == "canceled"
