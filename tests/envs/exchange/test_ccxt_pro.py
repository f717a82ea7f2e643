"""Unmodified ccxt, async and pro: requests and streams of one loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import ccxt.async_support
import ccxt.pro
import pytest

from perpgym.envs.exchange.connect import point_at
from perpgym.envs.exchange.server import Server, serving
from perpgym.envs.exchange.venue import Venue

SYMBOL = "TEST/USDT:USDT"
Make = Callable[..., Venue]


class Pro:
    """A server and a pro client in one loop."""

    def __init__(self, server: Server, client: Any) -> None:
        self.server, self.venue, self.client = server, server.venue, client

    async def next_bar(self) -> None:
        """Let a bar close, and let the streams say so."""
        self.venue.clock.move_to(self.venue.market.close_ms)
        self.server.pass_time()
        await asyncio.sleep(0)


@asynccontextmanager
async def pro(venue: Venue, kind: Any = ccxt.pro.binanceusdm) -> AsyncIterator[Pro]:
    # what never comes must not hang the suite
    async with asyncio.timeout(30), serving(venue) as server:
        client = point_at(kind({"apiKey": "key", "secret": "secret", "newUpdates": True}), server.url)
        if venue.keys.is_strict:
            client.milliseconds = venue.clock.now_ms
        try:
            await client.load_markets()
            yield Pro(server, client)
        finally:
            await client.close()


def test_the_async_client_trades_as_the_blocking_one(make_venue: Make) -> None:
    async def story() -> None:
        async with pro(make_venue(), ccxt.async_support.binanceusdm) as here:
            order = await here.client.create_order(SYMBOL, "market", "sell", 0.05)
            assert order["status"] == "closed"
            (position,) = await here.client.fetch_positions([SYMBOL])
            assert (position["side"], position["contracts"]) == ("short", 0.05)
            with pytest.raises(ccxt.InvalidOrder, match="-2022"):
                await here.client.create_order(SYMBOL, "market", "sell", 0.05, None, {"reduceOnly": True})

    asyncio.run(story())


def test_an_orders_life_is_on_the_user_stream(make_venue: Make) -> None:
    async def story() -> None:
        async with pro(make_venue(wick=0.01)) as here:
            client = here.client
            seen: list[Any] = []

            async def watch() -> None:
                while True:
                    seen.extend(dict(order) for order in await client.watch_orders(SYMBOL))

            watcher = asyncio.ensure_future(watch())
            trades = asyncio.ensure_future(client.watch_my_trades(SYMBOL))
            while not any(s.listen_key for s in here.server.hub.sockets):
                await asyncio.sleep(0.001)
            price = round(here.venue.market.last_price(0) * 0.999, 1)
            order = await client.create_order(SYMBOL, "limit", "buy", 0.05, price)
            while (await client.fetch_order(order["id"], SYMBOL))["status"] == "open":
                await here.next_bar()
            (trade,) = await asyncio.wait_for(trades, 5.0)
            while not seen or seen[-1]["status"] != "closed":
                await asyncio.sleep(0.001)
            watcher.cancel()
            assert seen[0]["status"] == "open"
            assert {o["id"] for o in seen} == {order["id"]}
            assert (trade["price"], trade["amount"], trade["takerOrMaker"]) == (price, 0.05, "maker")
            assert trade["fee"]["cost"] == pytest.approx(0.05 * price * 0.0002)

    asyncio.run(story())


def test_bars_trades_and_marks_stream_as_the_tape_goes(make_venue: Make) -> None:
    async def story() -> None:
        async with pro(make_venue()) as here:
            client, tape = here.client, here.venue.market.tape
            (bar,) = await client.watch_ohlcv(SYMBOL, "1h")
            assert bar[0] == tape.open_time_ms[50]
            assert bar[1:5] == [tape.last[50, 0, 0]] * 4
            watcher = asyncio.ensure_future(client.watch_ohlcv(SYMBOL, "1h"))
            await asyncio.sleep(0)
            await here.next_bar()
            rows = await asyncio.wait_for(watcher, 5.0)
            assert rows[0][1:5] == tape.last[50, 0].tolist()
            mark = await client.watch_mark_price(SYMBOL)
            assert mark["markPrice"] == tape.mark[51, 0, 0]
            trades = asyncio.ensure_future(client.watch_trades(SYMBOL))
            while not any("testusdt@trade" in s.streams for s in here.server.hub.sockets):
                await asyncio.sleep(0.001)
            await here.next_bar()
            found = await asyncio.wait_for(trades, 5.0)
            assert found[0]["price"] == pytest.approx(tape.last[51, 0, 0])
            assert sum(t["amount"] for t in client.trades[SYMBOL]) == pytest.approx(tape.volume[51, 0])

    asyncio.run(story())


def test_the_streamed_book_is_the_snapshot_of_the_moment(make_venue: Make) -> None:
    async def story() -> None:
        async with pro(make_venue()) as here:
            client = here.client
            await client.watch_order_book(SYMBOL)
            for _bar in range(3):
                watcher = asyncio.ensure_future(client.watch_order_book(SYMBOL))
                await asyncio.sleep(0)
                await here.next_bar()
                book = await asyncio.wait_for(watcher, 5.0)
                whole = await client.fetch_order_book(SYMBOL, 1000)
                assert book["nonce"] == whole["nonce"]
                assert [list(level) for level in book["bids"]] == whole["bids"]
                assert [list(level) for level in book["asks"]] == whole["asks"]

    asyncio.run(story())


def test_after_a_lost_connection_the_next_call_hears_again(make_venue: Make) -> None:
    async def story() -> None:
        async with pro(make_venue()) as here:
            client = here.client
            await client.watch_ohlcv(SYMBOL, "1h")
            lost = asyncio.ensure_future(client.watch_ohlcv(SYMBOL, "1h"))
            await asyncio.sleep(0)
            here.server.hub.close_all(1001)
            with pytest.raises(ccxt.NetworkError):
                await asyncio.wait_for(lost, 5.0)
            await here.next_bar()
            rows = await asyncio.wait_for(client.watch_ohlcv(SYMBOL, "1h"), 5.0)
            assert rows[-1][0] == here.venue.market.open_ms

    asyncio.run(story())


def test_an_expired_listen_key_is_told_and_hears_no_more(make_venue: Make) -> None:
    async def story() -> None:
        venue = make_venue()
        wall = [0]
        venue.wall_ms = lambda: wall[0]
        async with pro(venue) as here:
            client = here.client
            heard = asyncio.ensure_future(client.watch_orders(SYMBOL))
            while not any(s.listen_key for s in here.server.hub.sockets):
                await asyncio.sleep(0.001)
            wall[0] += 3_600_000
            await client.create_order(SYMBOL, "market", "buy", 0.05)
            with pytest.raises(ccxt.AuthenticationError, match="-1125"):
                await client.fapiPrivatePutListenKey()
            await asyncio.sleep(0.05)
            assert not heard.done()
            heard.cancel()

    asyncio.run(story())


def test_funding_and_leverage_reach_the_user_stream(make_venue: Make) -> None:
    async def story() -> None:
        async with pro(make_venue(funding_rate=1e-3)) as here:
            client = here.client
            said: list[Any] = []
            here.server.hub.tell_user = said.append  # type: ignore[method-assign]
            await client.create_order(SYMBOL, "market", "buy", 0.05)
            await client.set_leverage(7, SYMBOL)
            while not any(m["e"] == "ACCOUNT_UPDATE" and m["a"]["m"] == "FUNDING_FEE" for m in said):
                await here.next_bar()
            kinds = [m["e"] for m in said]
            assert kinds[:4] == ["ORDER_TRADE_UPDATE", "TRADE_LITE", "ORDER_TRADE_UPDATE", "ACCOUNT_UPDATE"]
            config = next(m for m in said if m["e"] == "ACCOUNT_CONFIG_UPDATE")
            assert config["ac"] == {"s": "TESTUSDT", "l": 7}
            funding = said[-1]["a"]
            assert funding["P"] == []
            assert float(funding["B"][0]["wb"]) == here.venue.books.wallet

    asyncio.run(story())


def test_a_stop_and_its_fill_come_on_the_user_stream(make_venue: Make) -> None:
    async def story() -> None:
        async with pro(make_venue(wick=0.01, seed=3)) as here:
            client = here.client
            watcher = asyncio.ensure_future(client.watch_orders(SYMBOL))
            while not any(s.listen_key for s in here.server.hub.sockets):
                await asyncio.sleep(0.001)
            last = here.venue.market.last_price(0)
            await client.create_order(SYMBOL, "market", "buy", 0.05)
            await watcher
            params = {"stopLossPrice": round(last * 0.99, 1), "closePosition": True}
            stop = await client.create_order(SYMBOL, "market", "sell", None, None, params)
            while await client.fetch_positions([SYMBOL]):
                await here.next_bar()
            algo = here.venue.books.registry.find_algo(int(stop["id"]), None)
            assert algo is not None
            # ccxt hands out what came last; what came before it is in its cache
            seen: dict[str, Any] = {}
            while seen.get(stop["id"]) != "closed":
                await asyncio.sleep(0.001)
                seen = {order["id"]: order["status"] for order in client.orders}
            assert seen[str(algo.child_id)] == "closed"

    asyncio.run(story())


def test_a_liquidation_comes_as_the_exchanges_own_order(make_venue: Make) -> None:
    async def story() -> None:
        venue = make_venue(sigma=0.02, wick=0.05, config={"leverage": 50.0})
        async with pro(venue) as here:
            client = here.client
            said: list[Any] = []
            await client.create_order(SYMBOL, "market", "buy", 8.0)
            await client.create_order(SYMBOL, "limit", "buy", 0.05, 29_000.0)
            here.server.hub.tell_user = said.append  # type: ignore[method-assign]
            while venue.books.position(0):
                await here.next_bar()
            forced = [m["o"] for m in said if m["e"] == "ORDER_TRADE_UPDATE" and m["o"]["x"] == "TRADE"]
            assert forced[-1]["c"].startswith("autoclose-")
            assert forced[-1]["ot"] == "LIQUIDATION"
            ended = [m["o"]["p"] for m in said if m["e"] == "ORDER_TRADE_UPDATE" and m["o"]["X"] == "EXPIRED"]
            filled = any(m["p"] == "29000" for m in forced)
            assert filled or ended == ["29000"]
            last = [m for m in said if m["e"] == "ACCOUNT_UPDATE"][-1]["a"]
            assert last["P"][0]["pa"] == "0"
            assert float(last["B"][0]["wb"]) == venue.books.wallet

    asyncio.run(story())


def test_a_running_clock_closes_bars_and_keeps_the_streams_alive(make_venue: Make) -> None:
    """At this speed a bar lasts 50 ms of the wall's time; what counts is that it comes unasked."""

    async def story() -> None:
        async with pro(make_venue(speed=72_000.0, strict=False)) as here:
            first = here.venue.market.fine
            bars = [(await here.client.watch_ohlcv(SYMBOL, "1h"))[-1][0] for _bar in range(4)]
            assert here.venue.market.fine > first
            assert bars == sorted(bars)
            here.server.hub.tick()
            book = await here.client.watch_order_book(SYMBOL)
            assert book["bids"][0][0] < book["asks"][0][0]

    asyncio.run(story())


def test_bars_finer_than_the_tapes_are_refused_in_words(make_venue: Make) -> None:
    async def story() -> None:
        async with pro(make_venue()) as here:
            for asked in (here.client.watch_ohlcv, here.client.fetch_ohlcv):
                with pytest.raises(ccxt.BadRequest, match=r"this exchange shows 1h, 2h, .*was asked for 1m"):
                    await asked(SYMBOL, "1m")
            # the connection is none the worse for it
            assert await here.client.watch_ohlcv(SYMBOL, "1h")

    asyncio.run(story())
