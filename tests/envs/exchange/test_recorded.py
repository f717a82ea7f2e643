"""Trading on a recorded book: orders walk its levels, rest until trades pass them, and leave holes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ccxt
import ccxt.async_support
import ccxt.pro
import numpy as np
import pytest

from perpgym.data.contract import Contract
from perpgym.data.sources.l2 import read_l2
from perpgym.envs import EnvConfig
from perpgym.envs.exchange.__main__ import make_parser, make_venue
from perpgym.envs.exchange.api import ENDPOINTS, Params
from perpgym.envs.exchange.book import depth, touch
from perpgym.envs.exchange.clock import Clock
from perpgym.envs.exchange.connect import point_at
from perpgym.envs.exchange.engine import AlgoRequest, Engine, OrderRequest
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.prints import trades_of_bar
from perpgym.envs.exchange.server import ServerThread, serving
from perpgym.envs.exchange.venue import Venue

SYMBOL = "TEST/USDT:USDT"
START_MS = 1_577_836_800_000
# the volatility of the impact model looks back 25 bars
FIRST = 30
Told = Callable[..., Engine]


@pytest.fixture
def engine_on(capture: Any, contract: Contract) -> Told:
    """An engine on half a minute of a still market; ``tell`` writes what happens from second 30 on."""

    def make(tell: Callable[[Any], None] = lambda capture: None, **settings: Any) -> Engine:
        capture.snapshot(
            100,
            {30_000.0: 1.0, 29_999.0: 2.0, 29_990.0: 50.0},
            {30_000.1: 1.5, 30_002.0: 3.0, 30_010.0: 50.0},
        )
        for second in range(FIRST):
            capture.trade(1_000 * second + 200, 30_000.0, 5.0, seller_took=True)
            capture.mark(1_000 * second, 30_000.0, 1e-4, 28_800_000)
        tell(capture)
        capture.diff(1_000 * (FIRST + 5))
        recording = read_l2([capture.write()], contract)
        start = recording.tape().bar_at(START_MS + 1_000 * FIRST)
        market = Replay(recording.tape(), start_bar=start, recording=recording)
        return Engine(market, EnvConfig(**{"initial_wallet": 100_000.0, "taker_rate": 0.0004, **settings}))

    return make


def order(side: Any, quantity: float, price: float = 0.0, **more: Any) -> OrderRequest:
    kind, name = "LIMIT" if price else "MARKET", f"{side}-{quantity}-{price}"
    fields = {"asset": 0, "side": side, "kind": kind, "quantity": quantity, "price": price, "client_id": name}
    return OrderRequest(**fields | more)


def trades(engine: Engine) -> list[tuple[str, float, float, bool]]:
    return [(t.side, t.quantity, t.price, t.is_maker) for t in engine.registry.trades]


def test_a_market_order_walks_the_recorded_levels(engine_on: Told) -> None:
    engine = engine_on()
    placed = engine.place(order("BUY", 2.0))
    assert trades(engine) == [("BUY", 1.5, 30_000.1, False), ("BUY", 0.5, 30_002.0, False)]
    assert placed.status == "FILLED"
    assert placed.average_price == pytest.approx((1.5 * 30_000.1 + 0.5 * 30_002.0) / 2.0, rel=1e-15)
    fees = round(1.5 * 30_000.1 * 0.0004, 8) + round(0.5 * 30_002.0 * 0.0004, 8)
    assert engine.books.wallet == pytest.approx(100_000.0 - fees, abs=1e-8)
    assert engine.books.entry_price(0) == pytest.approx(placed.average_price, rel=1e-12)
    engine.place(order("SELL", 2.0))
    gained = 2.0 * (0.5 * 30_000.0 + 0.5 * 29_999.0) - 2.0 * placed.average_price
    fees += round(1.0 * 30_000.0 * 0.0004, 8) + round(1.0 * 29_999.0 * 0.0004, 8)
    assert engine.books.wallet == pytest.approx(100_000.0 + gained - fees, abs=2e-8)


def test_what_is_taken_is_gone_until_the_record_replaces_the_level(engine_on: Told) -> None:
    def tell(capture: Any) -> None:
        capture.diff(31_500, {29_000.0: 1.0})
        capture.diff(32_500, {}, {30_000.1: 1.25, 30_002.0: 3.0})

    engine = engine_on(tell)
    engine.place(order("BUY", 2.0))
    assert depth(engine.books, 0, 5)[1] == [(30_002.0, 2.5), (30_010.0, 50.0)]
    assert touch(engine.books, 0) == (30_000.0, 30_002.0)
    engine.place(order("BUY", 0.5, 0.0, client_id="again"))
    assert trades(engine)[2:] == [("BUY", 0.5, 30_002.0, False)]
    engine.advance(START_MS + 32_000)
    # the record has said nothing of these levels
    assert depth(engine.books, 0, 1)[1] == [(30_002.0, 2.0)]
    engine.advance(START_MS + 33_000)
    # it gave one of them another size; the other was named with the size that it had
    assert depth(engine.books, 0, 2)[1] == [(30_000.1, 1.25), (30_002.0, 2.0)]


def test_a_limit_order_takes_what_its_price_admits_and_rests_with_the_rest(engine_on: Told) -> None:
    def tell(capture: Any) -> None:
        capture.trade(30_500, 30_001.0, 40.0, seller_took=True)
        capture.trade(31_500, 30_000.9, 4.0, seller_took=True)
        capture.trade(32_500, 30_000.9, 40.0, seller_took=True)

    engine = engine_on(tell, max_participation=0.1)
    resting = engine.place(order("BUY", 2.0, 30_001.0))
    assert trades(engine) == [("BUY", 1.5, 30_000.1, False)]
    # a trade at its price may have been others'
    engine.advance(START_MS + 31_000)
    assert resting.executed == 1.5
    # a tick beyond: the account has its share of what went through
    engine.advance(START_MS + 32_000)
    assert trades(engine)[1:] == [("BUY", 0.4, 30_001.0, True)]
    engine.advance(START_MS + 33_000)
    assert trades(engine)[2:] == [("BUY", 0.1, 30_001.0, True)]
    assert resting.status == "FILLED"
    maker = engine.books.contracts[0].maker_rate
    fees = round(1.5 * 30_000.1 * 0.0004, 8) + sum(round(q * 30_001.0 * maker, 8) for q in (0.4, 0.1))
    assert engine.books.wallet == pytest.approx(100_000.0 - fees, abs=1e-8)


def test_a_trade_before_the_order_came_does_not_fill_it(engine_on: Told) -> None:
    def tell(capture: Any) -> None:
        capture.trade(30_400, 29_990.0, 40.0, seller_took=True)

    engine = engine_on(tell)
    engine.advance(START_MS + 30_500)
    resting = engine.place(order("BUY", 0.1, 29_999.0))
    engine.advance(START_MS + 31_000)
    assert engine.market.tape.last[engine.market.bar - 1, 0, 2] == 29_990.0
    # nor does the bar's open, which was traded before
    engine.advance(START_MS + 33_000)
    assert resting.executed == 0.0


def test_a_book_that_comes_to_a_resting_order_fills_it(engine_on: Told) -> None:
    def tell(capture: Any) -> None:
        # nobody trades: the bids are withdrawn and somebody offers lower
        capture.diff(30_500, {30_000.0: 0.0, 29_999.0: 0.0}, {29_995.0: 0.3, 29_997.0: 0.4, 29_998.0: 5.0})

    engine = engine_on(tell)
    near = engine.place(order("BUY", 0.5, 29_998.0))
    far = engine.place(order("BUY", 0.5, 29_997.0))
    engine.advance(START_MS + 31_000)
    # the first has eaten what would have met the second
    assert trades(engine) == [("BUY", 0.5, 29_998.0, True), ("BUY", 0.2, 29_997.0, True)]
    assert (near.status, far.executed) == ("FILLED", 0.2)
    assert touch(engine.books, 0) == (29_990.0, 29_998.0)
    fees = sum(round(q * p * engine.books.contracts[0].maker_rate, 8) for _s, q, p, _m in trades(engine))
    assert engine.books.wallet == pytest.approx(100_000.0 - fees, abs=1e-8)


def test_an_order_that_is_changed_queues_anew(engine_on: Told) -> None:
    def tell(capture: Any) -> None:
        capture.trade(30_400, 29_990.0, 40.0, seller_took=True)
        capture.trade(30_900, 29_998.0, 2.0, seller_took=True)

    engine = engine_on(tell, max_participation=0.1)
    resting = engine.place(order("BUY", 1.0, 29_980.0))
    engine.advance(START_MS + 30_500)
    engine.amend(resting, 1.0, 29_999.0)
    engine.advance(START_MS + 31_000)
    assert trades(engine) == [("BUY", 0.2, 29_999.0, True)]


def test_what_the_book_does_not_hold_is_not_filled(engine_on: Told) -> None:
    engine = engine_on(initial_wallet=1e8)
    placed = engine.place(order("BUY", 100.0))
    assert (placed.status, placed.executed) == ("EXPIRED", 54.5)
    assert depth(engine.books, 0, 5)[1] == []
    assert touch(engine.books, 0) == (30_000.0, 0.0)
    more = engine.place(order("BUY", 1.0))
    assert (more.status, more.executed) == ("EXPIRED", 0.0)


@pytest.mark.parametrize(
    ("request_of", "code"),
    [
        (order("BUY", 1.0, 30_000.1, time_in_force="GTX"), -5022),
        (order("BUY", 2.0, 30_000.1, time_in_force="FOK"), -5021),
        (order("BUY", 54.0), -2019),
    ],
)
def test_what_the_book_forbids_is_refused_whole(engine_on: Told, request_of: OrderRequest, code: int) -> None:
    engine = engine_on(initial_wallet=50_000.0)
    with pytest.raises(Rejected, match=str(code)):
        engine.place(request_of)
    assert trades(engine) == []
    assert depth(engine.books, 0, 1) == ([(30_000.0, 1.0)], [(30_000.1, 1.5)])


def test_a_reduce_only_order_takes_no_more_than_the_position(engine_on: Told) -> None:
    engine = engine_on()
    engine.place(order("SELL", 0.5))
    engine.place(order("BUY", 2.0, reduce_only=True))
    assert engine.books.position(0) == 0.0
    assert trades(engine)[1:] == [("BUY", 0.5, 30_000.1, False)]


def test_the_trades_shown_are_the_recorded_ones(engine_on: Told) -> None:
    def tell(capture: Any) -> None:
        capture.trade(30_500, 30_001.0, 0.25)
        capture.trade(30_700, 29_999.0, 0.75, seller_took=True)

    engine = engine_on(tell)
    rows = trades_of_bar(engine.market, 0, engine.market.fine)
    assert [(r["p"], r["q"], r["m"], r["T"] - START_MS) for r in rows] == [
        ("30001", "0.25", False, 30_500), ("29999", "0.75", True, 30_700),
    ]  # fmt: skip


def test_a_stop_inside_a_bar_fills_by_the_rule_of_bars(engine_on: Told) -> None:
    def tell(capture: Any) -> None:
        capture.trade(31_500, 29_980.0, 50.0, seller_took=True)

    engine = engine_on(tell, half_spread_bps=1.0, impact_coefficient=0.0)
    engine.place(order("BUY", 1.0))
    stop = AlgoRequest(
        asset=0, side="SELL", kind="STOP_MARKET", trigger_price=29_985.0, close_position=True, client_id="s"
    )
    engine.place_algo(stop)
    engine.advance(START_MS + 32_000)
    # a basis point below the trigger, on the tick
    assert trades(engine)[1:] == [("SELL", 1.0, 29_982.0, False)]


def test_a_replay_of_other_bars_is_refused(capture: Any, engine_on: Told, make_tape: Any) -> None:
    recording = engine_on().market.recording
    with pytest.raises(ValueError, match="on its own bars"):
        Replay(make_tape(), recording=recording)


def test_unmodified_ccxt_trades_on_a_recorded_book(engine_on: Told) -> None:
    engine = engine_on(lambda capture: capture.diff(30_800, {}, {30_000.1: 0.3}))
    venue = Venue(engine=engine, clock=Clock(engine.now_ms))
    with ServerThread(venue) as server:
        client = point_at(ccxt.binanceusdm({"apiKey": "key", "secret": "secret"}), server.url)
        book = client.fetch_order_book(SYMBOL)
        assert (book["bids"][0], book["asks"][:2]) == ([30_000.0, 1.0], [[30_000.1, 1.5], [30_002.0, 3.0]])
        bought = client.create_order(SYMBOL, "market", "buy", 2.0)
        assert bought["average"] == pytest.approx((1.5 * 30_000.1 + 0.5 * 30_002.0) / 2.0, rel=1e-12)
        assert [t["price"] for t in client.fetch_my_trades(SYMBOL)] == [30_000.1, 30_002.0]
        ticker = client.fetch_bids_asks([SYMBOL])[SYMBOL]
        assert (ticker["ask"], ticker["askVolume"]) == (30_002.0, 2.5)
        venue.clock.move_to(venue.market.close_ms)
        assert client.fetch_order_book(SYMBOL)["asks"][0] == [30_000.1, 0.3]
        assert client.fetch_trades(SYMBOL, limit=1)[0]["price"] == 30_000.0
        # the minute had begun before the capture did: its open is not known
        assert client.fetch_ohlcv(SYMBOL, "1m") == []
        assert client.fetch_ticker(SYMBOL)["open"] == 30_000.0
        client.session.close()


def test_the_streams_show_the_recorded_book_and_its_trades(engine_on: Told) -> None:
    def tell(capture: Any) -> None:
        capture.trade(30_400, 30_000.1, 0.6)
        capture.trade(30_600, 30_000.0, 0.7, seller_took=True)
        capture.diff(30_800, {29_995.0: 7.0}, {30_000.1: 0.3})
        capture.diff(31_800, {29_995.0: 0.0}, {30_000.1: 0.4})

    engine = engine_on(tell)
    venue = Venue(engine=engine, clock=Clock(engine.now_ms))

    async def story() -> None:
        async with asyncio.timeout(30), serving(venue) as server:
            client = point_at(ccxt.pro.binanceusdm({"apiKey": "key", "secret": "secret"}), server.url)

            async def next_bar() -> None:
                venue.clock.move_to(venue.market.close_ms)
                server.pass_time()
                await asyncio.sleep(0)

            try:
                await client.watch_order_book(SYMBOL)
                trades = asyncio.ensure_future(client.watch_trades(SYMBOL))
                while not any("testusdt@trade" in s.streams for s in server.hub.sockets):
                    await asyncio.sleep(0.001)
                await client.create_order(SYMBOL, "market", "buy", 1.5)
                for shown in ([30_000.1, 0.3], [30_000.1, 0.4]):
                    watcher = asyncio.ensure_future(client.watch_order_book(SYMBOL))
                    await asyncio.sleep(0)
                    await next_bar()
                    book = await watcher
                    whole = await client.fetch_order_book(SYMBOL, 1000)
                    assert list(book["asks"][0]) == shown
                    assert [list(level) for level in book["bids"]] == whole["bids"]
                    assert [list(level) for level in book["asks"]] == whole["asks"]
                await trades
                assert [(t["price"], t["amount"], t["side"]) for t in client.trades[SYMBOL]] == [
                    (30_000.1, 0.6, "buy"), (30_000.0, 0.7, "sell"),
                ]  # fmt: skip
            finally:
                await client.close()

    asyncio.run(story())


def public_answers(engine: Engine) -> list[str]:
    venue = Venue(engine=engine, clock=Clock(engine.now_ms))
    params = {"symbol": "TESTUSDT", "pair": "TESTUSDT", "interval": "1m", "limit": "100"}
    return [
        f"{path} {json.dumps(found.handle(venue, Params(dict(params))))}"
        for (_method, path), found in sorted(ENDPOINTS.items())
        if found.security == "none"
    ]


def test_nothing_that_is_shown_of_a_recording_is_of_later(capture: Any, engine_on: Told) -> None:
    def tell(capture: Any) -> None:
        capture.trade(30_001, 30_055.0, 9.0)
        capture.mark(30_001, 30_055.0, 5e-4, 28_800_000)
        capture.diff(30_001, {30_050.0: 1.0}, {30_000.1: 0.0, 30_002.0: 0.0, 30_010.0: 0.0, 30_060.0: 1.0})

    quiet = engine_on()
    capture.restart()
    loud = engine_on(tell)
    assert public_answers(quiet) == public_answers(loud)
    for engine in (quiet, loud):
        engine.advance(engine.next_ms)
    assert public_answers(quiet) != public_answers(loud)


@pytest.mark.parametrize("year", ["2023", "2024"])
def test_on_real_captures_an_order_fills_at_the_walked_price(year: str, shared_data: Path) -> None:
    files = sorted((shared_data / "l2_binance_usdm").glob(f"*_{year}*"))
    parsed = make_parser().parse_args(["--l2", *map(str, files), "--speed", "0", "--wallet", "1000000"])
    venue = make_venue(parsed)
    symbol = "BTC/USDT:USDT"

    async def story(url: str) -> tuple[Any, Any, float]:
        client = point_at(ccxt.async_support.binanceusdm({"apiKey": "key", "secret": "secret"}), url)
        try:
            book = await client.fetch_order_book(symbol)
            order = await client.create_order(symbol, "market", "buy", 60.0)
            balance = await client.fetch_balance()
            return book["asks"], order, float(balance["info"]["totalWalletBalance"])
        finally:
            await client.close()

    async def serve() -> tuple[Any, Any, float]:
        async with serving(venue) as server:
            return await story(server.url)

    asks, bought, wallet = asyncio.run(serve())
    left, fees, paid = 60.0, 0.0, 0.0
    for price, size in asks:
        part = round(min(size, left), 3)
        if part > 0.0:
            paid, left = paid + part * price, left - part
            fees += round(part * price * venue.books.contracts[0].taker_rate, 8)
    assert bought["average"] == pytest.approx(paid / 60.0, rel=1e-12)
    assert wallet == pytest.approx(1_000_000.0 - fees, abs=1e-8)
    assert len(venue.books.registry.trades) > 1
    while not venue.market.is_over:
        bid, ask = touch(venue.books, 0)
        assert 0.0 < bid < ask
        venue.engine.advance(venue.engine.next_ms)
    record = venue.market.recording
    for open_ms, _open, high, low, _close, volume in venue.market.klines(0, "1m")[:-1]:
        of_minute = (record.trade_time_ms > open_ms) & (record.trade_time_ms <= open_ms + 60_000)
        assert volume == pytest.approx(abs(record.trade_quantity[of_minute]).sum())
        assert (high, low) == (record.trade_price[of_minute].max(), record.trade_price[of_minute].min())


def test_random_orders_on_a_real_capture_leave_true_books(shared_data: Path) -> None:
    files = sorted((shared_data / "l2_binance_usdm").glob("*_2023*"))
    parsed = make_parser().parse_args(["--l2", *map(str, files), "--speed", "0", "--wallet", "1000000"])
    engine, rng = make_venue(parsed).engine, np.random.default_rng(7)
    number = 0

    def price_near(side: str) -> float:
        best = touch(engine.books, 0)[side == "BUY"]
        return round(best + float(rng.integers(-30, 30)) / 10.0, 1)

    def act() -> None:
        side: Any = "BUY" if rng.random() < 0.5 else "SELL"
        size, name = round(0.001 * float(rng.integers(5, 4_000)), 3), f"n{number}"
        resting = engine.registry.open_orders()
        choice = int(rng.integers(5))
        if choice == 0:
            taken = engine.place(order(side, size, client_id=name))
            assert taken.status == "FILLED"
        elif choice in (1, 2):
            engine.place(order(side, size, price_near(side), client_id=name))
        elif choice == 3 and resting:
            engine.amend(resting[0], resting[0].quantity, price_near(resting[0].side))
        elif choice == 4:
            engine.place_algo(
                AlgoRequest(
                    asset=0, side=side, kind="TRAILING_STOP_MARKET", quantity=size, callback_rate=0.0002,
                    client_id=name,
                )
            )  # fmt: skip

    while not engine.market.is_over:
        for _order in range(2):
            number += 1
            with contextlib.suppress(Rejected):
                act()
        bid, ask = touch(engine.books, 0)
        assert 0.0 < bid < ask
        for resting in engine.registry.open_orders():
            # what the book would meet has been met
            assert resting.price < ask if resting.side == "BUY" else resting.price > bid
        engine.advance(engine.next_ms)
    registry = engine.registry
    assert {t.is_maker for t in registry.trades} == {True, False}
    assert len(registry.trades) > 300
    assert any(o.original_kind == "TRAILING_STOP_MARKET" for o in registry.orders.values())
    assert any(o.amendments for o in registry.orders.values())
    held = sum(t.quantity if t.side == "BUY" else -t.quantity for t in registry.trades)
    assert engine.books.position(0) == pytest.approx(held, abs=1e-9)
    income = sum(row.amount for row in registry.incomes)
    assert engine.books.wallet == pytest.approx(1_000_000.0 + income, abs=1e-6)
    assert {row.kind for row in registry.incomes} >= {"COMMISSION", "REALIZED_PNL", "FUNDING_FEE"}
