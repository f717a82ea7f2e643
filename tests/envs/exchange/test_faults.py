"""What exchange and network do to a client on command; judged by the exchange's own state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import ccxt
import ccxt.pro
import pytest
import requests

from perpgym.envs.exchange.connect import point_at
from perpgym.envs.exchange.faults import KINDS, PRESETS, FaultBook, make_book, make_fault
from perpgym.envs.exchange.server import serving
from perpgym.envs.exchange.venue import Venue

SYMBOL = "TEST/USDT:USDT"
Start = Callable[..., Any]


def admin(here: Any, name: str, body: Any = None) -> Any:
    return requests.post(f"{here.url}/admin/{name}", json=body or {}, timeout=5).json()


def _until(is_so: Callable[[], bool]) -> None:
    for _ in range(500):
        if is_so():
            return
        time.sleep(0.02)
    assert is_so()


def buy(here: Any) -> Any:
    return here.client.create_order(SYMBOL, "market", "buy", 0.05)


# whether the order was executed, and what a client is told of it
ORDER_FAULTS = [
    ("F01", True, ccxt.RequestTimeout), ("F02", True, ccxt.NetworkError), ("F03", False, ccxt.NetworkError),
    ("F04", True, ccxt.OperationFailed), ("F04b", True, ccxt.ExchangeNotAvailable),
    ("F05", False, ccxt.ExchangeNotAvailable), ("F05b", False, ccxt.OperationFailed),
    ("F06", True, ccxt.BaseError), ("F06b", True, ccxt.BaseError), ("F07", True, ccxt.RequestTimeout),
    ("F07b", False, ccxt.ExchangeNotAvailable), ("F18", False, ccxt.InsufficientFunds),
    ("F20", False, ccxt.PermissionDenied), ("F25", False, ccxt.BaseError),
]  # fmt: skip


@pytest.mark.parametrize(("name", "is_executed", "error"), ORDER_FAULTS)
def test_an_order_under_a_fault_is_executed_or_not(
    local: Start, name: str, is_executed: bool, error: type[Exception]
) -> None:
    here = local()
    here.client.load_markets()
    admin(here, "faults", {"faults": [{"id": name, "path": "/fapi/v1/order"}]})
    here.client.timeout = 1_000
    with pytest.raises(error):
        buy(here)
    # the client's patience may end before a busy machine has come to the order
    _until(lambda: len(here.venue.books.registry.orders) == int(is_executed))
    assert here.venue.books.position(0) == (0.05 if is_executed else 0.0)
    # once and no more
    here.client.timeout = 5_000
    assert buy(here)["status"] == "closed"
    assert [entry["name"] for entry in admin(here, "faults")["log"]] == [name]


@pytest.mark.parametrize("name", ["F08", "F08b", "F08c"])
def test_an_executed_order_may_be_answered_with_nothing(local: Start, name: str) -> None:
    here = local()
    here.client.load_markets()
    admin(here, "faults", {"faults": [{"id": name}]})
    order = buy(here)
    assert order["id"] is None
    assert here.venue.books.position(0) == 0.05


def test_an_order_may_be_denied_for_a_while_after_it_was_placed(local: Start) -> None:
    here = local()
    order = buy(here)
    admin(here, "faults", {"faults": [{"id": "F09", "times": 2}]})
    for _query in range(2):
        with pytest.raises(ccxt.OrderNotFound):
            here.client.fetch_order(order["id"], SYMBOL)
    assert here.client.fetch_order(order["id"], SYMBOL)["status"] == "closed"


def test_a_cancel_may_race_with_a_fill_or_be_lost(local: Start) -> None:
    here = local()
    order = here.client.create_order(SYMBOL, "limit", "buy", 0.05, 29_000.0)
    admin(here, "faults", {"faults": [{"id": "F14"}]})
    with pytest.raises(ccxt.OrderNotFound, match="-2011"):
        here.client.cancel_order(order["id"], SYMBOL)
    assert here.client.fetch_order(order["id"], SYMBOL)["filled"] == 0.05
    assert here.client.fetch_my_trades(SYMBOL)[0]["price"] == 29_000.0
    second = here.client.create_order(SYMBOL, "limit", "buy", 0.05, 29_000.0)
    admin(here, "faults", {"faults": [{"id": "F15"}]})
    here.client.timeout = 1_000
    with pytest.raises(ccxt.RequestTimeout):
        here.client.cancel_order(second["id"], SYMBOL)
    here.client.timeout = 5_000
    assert here.client.fetch_order(second["id"], SYMBOL)["status"] == "open"


def test_a_part_may_fill_and_the_rest_expire(local: Start) -> None:
    here = local()
    order = here.client.create_order(SYMBOL, "limit", "buy", 0.05, 29_000.0)
    admin(here, "fill", {"orderId": order["id"], "quantity": 0.02})
    admin(here, "expire", {"orderId": order["id"]})
    seen = here.client.fetch_order(order["id"], SYMBOL)
    assert (seen["status"], seen["filled"]) == ("expired", 0.02)
    assert here.venue.books.position(0) == 0.02


def test_rules_status_and_leverage_change_under_a_running_client(local: Start) -> None:
    here = local()
    here.client.load_markets()
    admin(here, "contract", {"symbol": "TESTUSDT", "lot_size": 0.01, "min_notional": 5_000.0})
    with pytest.raises(ccxt.BaseError, match="-1111"):
        here.client.create_order(SYMBOL, "market", "buy", 0.055)
    with pytest.raises(ccxt.InvalidOrder, match="-4164"):
        buy(here)
    here.client.load_markets(True)
    assert here.client.market(SYMBOL)["precision"]["amount"] == 0.01
    one = [{"floor": 0.0, "cap": None, "maintenance_margin_rate": 0.02, "cum": 0.0, "max_leverage": 25.0}]
    admin(here, "contract", {"symbol": "TESTUSDT", "brackets": one})
    tiers = here.client.fetch_market_leverage_tiers(SYMBOL)
    assert [t["maintenanceMarginRate"] for t in tiers] == [0.02]
    admin(here, "leverage", {"symbol": "TESTUSDT", "leverage": 3})
    assert here.client.fetch_leverage(SYMBOL)["longLeverage"] == 3
    admin(here, "status", {"symbol": "TESTUSDT", "status": "SETTLING"})
    with pytest.raises(ccxt.BaseError, match="-4141"):
        here.client.create_order(SYMBOL, "market", "buy", 0.5)
    assert here.client.load_markets(True)[SYMBOL]["active"] is False


def test_keys_clocks_and_addresses_can_be_refused(local: Start) -> None:
    here = local()
    admin(here, "keys", {"revoked": True})
    with pytest.raises(ccxt.AuthenticationError, match="-2015"):
        here.client.fetch_balance()
    admin(here, "keys", {"revoked": False})
    admin(here, "skew", {"ms": 20_000})
    with pytest.raises(ccxt.InvalidNonce, match="-1021"):
        here.client.fetch_positions()
    assert here.client.fetch_time() == here.venue.now_ms + 20_000
    here.client.load_time_difference()
    assert here.client.fetch_positions() == []
    admin(here, "faults", {"faults": [{"id": "F23"}]})
    with pytest.raises(ccxt.DDoSProtection):
        here.client.fetch_positions()
    assert here.client.last_response_headers["Retry-After"] == "30"
    admin(here, "ban", {"seconds": 60})
    with pytest.raises(ccxt.DDoSProtection, match="418"):
        here.client.fetch_positions()


def test_bars_may_be_missing_revised_or_wild(local: Start) -> None:
    here = local()
    true = here.client.fetch_ohlcv(SYMBOL, "1h", limit=5)
    for name in ("F29", "F29b", "F35"):
        admin(here, "faults", {"faults": [{"id": name}]})
        spoilt = here.client.fetch_ohlcv(SYMBOL, "1h", limit=5)
        assert spoilt != true
        assert here.client.fetch_ohlcv(SYMBOL, "1h", limit=5) == true


def test_maintenance_ends(local: Start) -> None:
    here = local()
    until = here.venue.now_ms + 60_000
    admin(here, "faults", {"faults": [{"id": "F46", "until_ms": until}]})
    with pytest.raises(ccxt.ExchangeNotAvailable):
        here.client.fetch_time()
    here.venue.clock.move_to(until)
    assert here.client.fetch_time() == until


def test_a_stop_may_be_gone_without_a_word(local: Start) -> None:
    here = local()
    buy(here)
    price = round(here.venue.market.last_price(0) * 0.9, 1)
    stop = here.client.create_order(
        SYMBOL, "market", "sell", None, None, {"stopLossPrice": price, "closePosition": True}
    )
    admin(here, "forget_algo", {"algoId": stop["id"]})
    assert here.client.fetch_open_orders(SYMBOL, params={"trigger": True}) == []
    with pytest.raises(ccxt.OrderNotFound, match="-2013"):
        here.client.fetch_order(stop["id"], SYMBOL, {"trigger": True})


def test_streams_may_be_silent_repeat_swap_or_skip(make_venue: Callable[..., Venue]) -> None:
    async def story() -> None:
        venue = make_venue()
        async with serving(venue) as server:
            client = point_at(ccxt.pro.binanceusdm({"apiKey": "key", "secret": "secret"}), server.url)
            client.milliseconds = venue.clock.now_ms
            try:
                await client.load_markets()
                await client.watch_order_book(SYMBOL)

                async def bar() -> None:
                    venue.clock.move_to(venue.market.close_ms)
                    server.pass_time()
                    await asyncio.sleep(0.02)

                server.hub.faults = make_book({"faults": [{"id": "F33"}]})
                await bar()
                gap = asyncio.ensure_future(client.watch_order_book(SYMBOL))
                await bar()
                with pytest.raises(ccxt.ChecksumError):
                    await asyncio.wait_for(gap, 5.0)
                await client.watch_order_book(SYMBOL)
                server.hub.faults.is_stalled = True
                silent = asyncio.ensure_future(client.watch_order_book(SYMBOL))
                await bar()
                assert not silent.done()
                server.hub.faults.is_stalled = False
                server.hub.close_all(1006)
                with pytest.raises(ccxt.NetworkError):
                    await asyncio.wait_for(silent, 5.0)
            finally:
                await client.close()

    asyncio.run(story())


def test_user_events_may_be_lost_doubled_or_out_of_order() -> None:
    def sent(*faults: dict[str, Any]) -> list[int]:
        book = make_book({"faults": list(faults)})
        return [m for event in range(5) for m in book.of_message("event", event, 0)]

    assert sent() == [0, 1, 2, 3, 4]
    assert sent({"id": "F12", "times": 2, "after": 1}) == [0, 3, 4]
    assert sent({"id": "F38", "after": 1}) == [0, 1, 1, 2, 3, 4]
    assert sent({"id": "F39", "after": 1}) == [0, 2, 1, 3, 4]


def test_random_faults_are_those_of_their_seed() -> None:
    def struck(seed: int) -> list[bool]:
        book = make_book({"random": {"rate": 0.2, "ids": ["F01", "F04"]}, "seed": seed})
        return [book.of_request("POST", "/fapi/v1/order", 0) is not None for _call in range(300)]

    assert struck(1) == struck(1)
    assert struck(1) != struck(2)
    # two faults of a fifth each
    assert 0.30 < sum(struck(1)) / 300 < 0.42


def test_a_busy_exchange_still_takes_what_only_closes(local: Start) -> None:
    here = local()
    buy(here)
    admin(here, "faults", {"faults": [{"id": "F05b", "times": None}]})
    with pytest.raises(ccxt.OperationFailed, match="-1008"):
        buy(here)
    here.client.create_order(SYMBOL, "market", "sell", 0.05, None, {"reduceOnly": True})
    assert here.venue.books.position(0) == 0.0


def test_somebody_elses_order_and_a_dead_key_are_the_servers_truth(local: Start) -> None:
    here = local()
    wanted = {"symbol": "TESTUSDT", "side": "BUY", "type": "MARKET", "quantity": 0.05}
    assert admin(here, "order", {**wanted, "newClientOrderId": "web_1"})["status"] == "FILLED"
    (position,) = here.client.fetch_positions([SYMBOL])
    assert position["contracts"] == 0.05
    here.client.fapiPrivatePostListenKey()
    admin(here, "listen_key", {"tell": False})
    with pytest.raises(ccxt.AuthenticationError, match="-1125"):
        here.client.fapiPrivatePutListenKey()


def test_under_random_faults_the_exchange_itself_stays_sound(local: Start) -> None:
    here = local(wick=0.01)
    here.client.load_markets()
    slow = {"F01", "F11", "F15", "F46"}
    ids = [name for name in PRESETS if name not in slow]
    admin(here, "faults", {"random": {"rate": 0.02, "ids": ids}, "seed": 5})
    client, errors = here.client, 0
    for number in range(300):
        side = "buy" if number % 3 else "sell"
        last = here.venue.market.last_price(0)
        try:
            if number % 2:
                client.create_order(SYMBOL, "market", side, 0.01)
            else:
                order = client.create_order(SYMBOL, "limit", side, 0.01, round(last * 0.999, 1))
                client.cancel_order(order["id"], SYMBOL)
            client.fetch_ohlcv(SYMBOL, "1h", limit=5)
        except (ccxt.BaseError, TypeError):
            # a naive client: it goes on as if nothing had happened
            errors += 1
        if number % 5 == 0:
            here.venue.clock.move_to(here.venue.engine.next_ms)
    books = here.venue.books
    assert errors > 30
    assert {entry["name"] for entry in admin(here, "faults")["log"]} >= {"F02", "F04", "F08"}
    bought = [t.quantity * (1.0 if t.side == "BUY" else -1.0) for t in books.registry.trades]
    assert sum(bought) == pytest.approx(books.position(0), abs=1e-9)
    income = sum(row.amount for row in books.registry.incomes)
    assert 10_000.0 + income == pytest.approx(books.wallet, abs=1e-8)
    client_ids = [o.client_id for o in books.registry.orders.values()]
    assert len(client_ids) == len(set(client_ids))


def test_a_fault_that_is_none_is_refused_in_words(local: Start) -> None:
    here = local()
    assert "F99" in admin(here, "faults", {"faults": [{"id": "F99"}]})["error"]
    assert "kind must be one of" in admin(here, "faults", {"faults": [{"kind": "explode"}]})["error"]
    assert here.venue.books.registry.orders == {}
    assert FaultBook().of_request("GET", "/fapi/v1/time", 0) is None


def test_every_row_makes_a_fault() -> None:
    assert {make_fault({"id": name}).kind for name in PRESETS} <= set(KINDS)
