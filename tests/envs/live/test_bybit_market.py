"""What Bybit tells everybody: closed bars, funding, prices, and whether a contract trades."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import bybit_messages as say
import pytest
from bybit_server import SYMBOL, LocalBybit, broker_on, trading

from perpgym.envs.live.broker import Disbelieved, Unreachable
from perpgym.envs.live.bybit import Bybit, BybitConfig

H = say.HOUR_MS
KLINE, MARK, FUNDING = "/v5/market/kline", "/v5/market/mark-price-kline", "/v5/market/funding/history"
Step = Callable[[LocalBybit, Bybit], Awaitable[None]]


def play(step: Step, **settings: Any) -> None:
    async def run() -> None:
        async with trading(**settings) as (server, broker):
            await step(server, broker)

    asyncio.run(run())


def test_bars_come_oldest_first_without_the_one_that_is_open() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        # the clock stands a moment after START_MS: the bar that opened then is open
        server.rows[KLINE] = [say.candle(say.START_MS - n * H, 42_000 + n) for n in range(6)]
        bars = await broker.bars(SYMBOL, "last", say.START_MS - 3 * H, 100)
        assert [bar[0] for bar in bars] == [say.START_MS - n * H for n in (3, 2, 1)]
        assert bars[-1] == (say.START_MS - H, 42_000.0, 42_500.0, 41_500.0, 42_001.0, 3_199.431)
        assert server.asked(KLINE)[0]["interval"] == "60"

    play(step)


def test_a_limit_counts_from_the_time_asked_for() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.rows[KLINE] = [say.candle(say.START_MS - n * H, 42_000) for n in range(50)]
        bars = await broker.bars(SYMBOL, "last", say.START_MS - 40 * H, 5)
        assert [bar[0] for bar in bars] == [say.START_MS - n * H for n in (40, 39, 38, 37, 36)]

    play(step)


def test_mark_bars_are_another_series_and_have_no_volume() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.rows[MARK] = [say.candle(say.START_MS - H, 41_999, is_mark=True)]
        assert await broker.bars(SYMBOL, "mark", say.START_MS - H, 1) == [
            (say.START_MS - H, 42_000.0, 42_500.0, 41_500.0, 41_999.0, 0.0)
        ]
        assert server.asked(KLINE) == []

    play(step)


def test_a_bar_that_is_cut_short_is_no_bar() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.rows[KLINE] = [[str(say.START_MS - H), "42000", "", "41500", "42000"]]
        with pytest.raises(Unreachable):
            await broker.bars(SYMBOL, "last", say.START_MS - H, 1)

    play(step)


def test_bars_of_no_fixed_length_are_refused() -> None:
    for bar in ("1M", "7m"):
        with pytest.raises(ValueError, match="bar must be one of 1m"):
            Bybit(BybitConfig(contracts=(SYMBOL,), bar=bar))


def test_funding_comes_oldest_first_from_every_page() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        stamps = [say.START_MS - 8 * H * n for n in range(450)]

        def latest(request: Any) -> Any:
            """Of a span with both ends, the latest 200, newest first."""
            asked = request.query
            rows = [
                {"symbol": "BTCUSDT", "fundingRate": "0.0001", "fundingRateTimestamp": str(stamp)}
                for stamp in stamps
                if int(asked["startTime"]) <= stamp <= int(asked["endTime"])
            ]
            server.results[FUNDING] = say.page(rows[:200])
            return None

        server.before[FUNDING] = latest
        rates = await broker.funding(SYMBOL, stamps[-1])
        assert [stamp for stamp, _rate in rates] == sorted(stamps)
        assert {rate for _stamp, rate in rates} == {0.0001}

    play(step)


def test_the_funding_interval_is_the_exchanges_own() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        assert await broker.funding_interval_hours(SYMBOL) == 8
        server.rows["/v5/market/instruments-info"] = [say.instrument(fundingInterval=240)]
        assert await broker.funding_interval_hours(SYMBOL) == 4

    play(step)


@pytest.mark.parametrize(
    ("status", "expected"), [("Trading", "trading"), ("PreLaunch", "halted"), ("Delivering", "halted")]
)
def test_only_what_trades_is_trading(status: str, expected: str) -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.rows["/v5/market/instruments-info"] = [say.instrument(status=status)]
        assert await broker.status(SYMBOL) == expected

    play(step)


def test_mark_and_last_price_are_the_tickers() -> None:
    async def step(_server: LocalBybit, broker: Bybit) -> None:
        assert await broker.mark_prices() == {SYMBOL: 42_100.5}
        assert await broker.last_prices() == {SYMBOL: 42_099.0}

    play(step)


@pytest.mark.parametrize("lie", [{"markPrice": "4210.05"}, {"markPrice": "NaN"}, {"indexPrice": "4210.0"}])
def test_a_mark_price_away_from_trade_or_index_is_not_believed(lie: dict[str, str]) -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.rows["/v5/market/tickers"] = [server.rows["/v5/market/tickers"][0] | lie]
        with pytest.raises(Disbelieved, match="the mark price must lie within"):
            await broker.mark_prices()

    play(step)


@pytest.mark.parametrize("rows", [{}, {"0": {}}, "none", [{"size": "NaN"}]])
def test_positions_that_are_no_list_are_not_taken_for_none(rows: Any) -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.results["/v5/position/list"] = {"list": rows}
        with pytest.raises(Unreachable, match="cannot be read"):
            await broker.account()

    play(step)


def test_the_market_is_read_without_a_key() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        reader = broker_on(server, api_key="", secret="")
        try:
            await reader.open_market()
            assert await reader.last_prices() == {SYMBOL: 42_099.0}
        finally:
            await reader.close()

    play(step)


def test_the_clock_is_the_exchanges() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        assert abs(await broker.server_time_ms() - server.now_ms()) < 1_000
        assert abs(broker.now_ms() - server.now_ms()) < 1_000

    play(step)


@pytest.mark.parametrize(
    ("venue", "rest", "stream"),
    [
        ("real", "https://api.{hostname}", "wss://stream.{hostname}/v5/private"),
        ("demo", "https://api-demo.{hostname}", "wss://stream-demo.{hostname}/v5/private"),
        ("testnet", "https://api-testnet.{hostname}", "wss://stream-testnet.{hostname}/v5/private"),
    ],
)
def test_each_venue_has_addresses_of_its_own(venue: Any, rest: str, stream: str) -> None:
    urls = Bybit(BybitConfig(contracts=(SYMBOL,), venue=venue)).wire.exchange.urls["api"]
    assert (urls["private"], urls["ws"]["private"]["contract"]) == (rest, stream)
