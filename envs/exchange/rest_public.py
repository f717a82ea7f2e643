"""Market data: what anyone may ask for. Nothing here knows more than the moment."""

from __future__ import annotations

from typing import Any

from perpgym.envs.exchange.api import Params, by_symbol, endpoint
from perpgym.envs.exchange.book import depth, touch
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.market import DAY_MS, INTERVALS_MS
from perpgym.envs.exchange.prints import trades_of_bar
from perpgym.envs.exchange.venue import Venue
from perpgym.envs.exchange.wire import text

_DEPTHS = (5, 10, 20, 50, 100, 500, 1000)
_HOUR_MS = 3_600_000


def _kline_weight(params: Params) -> int:
    limit = params.whole("limit", 500) or 500
    return next(weight for most, weight in ((99, 1), (499, 2), (1000, 5), (10**9, 10)) if limit <= most)


def _depth_weight(params: Params) -> int:
    limit = params.whole("limit", 500) or 500
    return next(weight for most, weight in ((50, 2), (100, 5), (500, 10), (10**9, 20)) if limit <= most)


@endpoint("GET", "/fapi/v1/ping", security="none")
def ping(venue: Venue, params: Params) -> Any:
    """Nothing."""
    return {}


@endpoint("GET", "/fapi/v1/time", security="none")
def server_time(venue: Venue, params: Params) -> Any:
    """The exchange's clock."""
    return {"serverTime": venue.now_ms + venue.skew_ms}


@endpoint("GET", "/fapi/v1/exchangeInfo", security="none")
def exchange_info(venue: Venue, params: Params) -> Any:
    """Contracts and their filters."""
    return venue.names.exchange_info(venue.now_ms, venue.status)


@endpoint("GET", "/api/v3/exchangeInfo", "/dapi/v1/exchangeInfo", security="none")
def no_markets(venue: Venue, params: Params) -> Any:
    """Spot and COIN-M have nothing here: a client of every market finds that out."""
    return {"timezone": "UTC", "serverTime": venue.now_ms, "rateLimits": [], "symbols": []}


@endpoint("GET", "/sapi/v1/capital/config/getall", "/sapi/v1/margin/allPairs")
@endpoint("GET", "/sapi/v1/margin/isolated/allPairs", "/sapi/v1/margin/allAssets")
def no_currencies(venue: Venue, params: Params) -> Any:
    """Deposits, withdrawals and margin trading of spot have nothing here either."""
    return []


@endpoint("GET", "/fapi/v1/klines", "/fapi/v1/continuousKlines", security="none", weight=_kline_weight)
def klines(venue: Venue, params: Params) -> Any:
    """Bars of the last price, the open one last."""
    return _klines(venue, params, params.get("symbol") or params.need("pair"), is_mark=False)


@endpoint("GET", "/fapi/v1/markPriceKlines", security="none", weight=_kline_weight)
def mark_klines(venue: Venue, params: Params) -> Any:
    """Bars of the mark price."""
    return _klines(venue, params, params.need("symbol"), is_mark=True)


@endpoint("GET", "/fapi/v1/indexPriceKlines", security="none", weight=_kline_weight)
def index_klines(venue: Venue, params: Params) -> Any:
    """Bars of the index price; a tape has none, so they are those of the mark."""
    return _klines(venue, params, params.need("pair"), is_mark=True)


@endpoint("GET", "/fapi/v1/premiumIndexKlines", security="none", weight=_kline_weight)
def premium_klines(venue: Venue, params: Params) -> Any:
    """Bars of the premium, mark over index less 1: the index is the mark, so all of them are 0."""
    rows = _klines(venue, params, params.need("symbol"), is_mark=True)
    return [[row[0], *["0"] * 4, *row[5:]] for row in rows]


def _klines(venue: Venue, params: Params, name: str, *, is_mark: bool) -> list[list[Any]]:
    start, end = params.span()
    interval = params.need("interval")
    rows = venue.market.klines(
        venue.names.asset(name), interval, is_mark=is_mark, start_ms=start, end_ms=end,
        limit=params.limit(500, 1500),
    )  # fmt: skip
    return [kline_row(row, INTERVALS_MS[interval], is_mark=is_mark) for row in rows]


def kline_row(row: tuple[int, float, float, float, float, float], step: int, *, is_mark: bool) -> list[Any]:
    """One bar as REST shows it; a mark bar has no volume."""
    time_ms, open_, high, low, close, volume = row
    size = 0.0 if is_mark else volume
    worth = text(size * 0.5 * (open_ + close))
    prices = [text(price) for price in (open_, high, low, close)]
    # half of what trades is bought by takers: who began a trade is not known
    half = (text(0.5 * size), text(0.25 * size * (open_ + close)))
    return [time_ms, *prices, text(size), time_ms + step - 1, worth, 4 if size else 0, *half, "0"]


@endpoint("GET", "/fapi/v1/depth", security="none", weight=_depth_weight)
def order_book(venue: Venue, params: Params) -> Any:
    """The book of the moment, with the id of its newest change."""
    limit = params.whole("limit", 500)
    if limit not in _DEPTHS:
        raise Rejected(-4021)
    asset = venue.names.asset(params.need("symbol"))
    bids, asks = depth(venue.books, asset, limit)
    return {
        "lastUpdateId": venue.depth_updates[asset],
        "E": venue.now_ms,
        "T": venue.now_ms,
        "bids": [[text(price), text(size)] for price, size in bids],
        "asks": [[text(price), text(size)] for price, size in asks],
    }


def _each(venue: Venue, params: Params, row: Any) -> Any:
    """One contract's row, or all of them."""
    if "symbol" in params:
        return row(venue, venue.names.asset(params.need("symbol")))
    return [row(venue, asset) for asset in range(len(venue.names.names))]


@endpoint("GET", "/fapi/v1/ticker/bookTicker", security="none", weight=by_symbol(2, 5))
def book_ticker(venue: Venue, params: Params) -> Any:
    """The best bid and ask."""
    return _each(venue, params, book_ticker_row)


def book_ticker_row(venue: Venue, asset: int) -> dict[str, Any]:
    """One contract's touch."""
    # a side of a recorded book may be empty
    (bid, bid_size), (ask, ask_size) = (
        side[0] if side else (0.0, 0.0) for side in depth(venue.books, asset, 1)
    )
    return {
        "symbol": venue.names.names[asset],
        "bidPrice": text(bid),
        "bidQty": text(bid_size),
        "askPrice": text(ask),
        "askQty": text(ask_size),
        "time": venue.now_ms,
        "lastUpdateId": venue.depth_updates[asset],
    }


@endpoint("GET", "/fapi/v1/ticker/price", "/fapi/v2/ticker/price", security="none", weight=by_symbol(1, 2))
def price(venue: Venue, params: Params) -> Any:
    """The newest trade."""

    def row(venue: Venue, asset: int) -> dict[str, Any]:
        last = text(venue.market.last_price(asset))
        return {"symbol": venue.names.names[asset], "price": last, "time": venue.now_ms}

    return _each(venue, params, row)


@endpoint("GET", "/fapi/v1/ticker/24hr", security="none", weight=by_symbol(1, 40))
def day_ticker(venue: Venue, params: Params) -> Any:
    """The last 24 hours."""
    return _each(venue, params, day_ticker_row)


def day_ticker_row(venue: Venue, asset: int) -> dict[str, Any]:
    """One contract's last 24 hours, on whole bars."""
    market = venue.market
    interval = market.intervals[0]
    per_day = max(DAY_MS // INTERVALS_MS[interval], 1)
    last = market.last_price(asset)
    # a recording may begin within its first interval
    begun = (market.open_ms, last, last, last, last, 0.0)
    rows = market.klines(asset, interval, limit=per_day + 1) or [begun]
    first = rows[0][1]
    volume = sum(row[5] for row in rows)
    worth = sum(row[5] * 0.5 * (row[1] + row[4]) for row in rows)
    bid, ask = touch(venue.books, asset)
    return {
        "symbol": venue.names.names[asset],
        "priceChange": text(last - first),
        "priceChangePercent": text(100.0 * (last / first - 1.0)),
        "weightedAvgPrice": text(worth / volume if volume else last),
        "lastPrice": text(last),
        "lastQty": "0",
        "openPrice": text(first),
        "highPrice": text(max(row[2] for row in rows)),
        "lowPrice": text(min(row[3] for row in rows)),
        "volume": text(volume),
        "quoteVolume": text(worth),
        "openTime": rows[0][0],
        "closeTime": venue.now_ms,
        "firstId": 0,
        "lastId": 0,
        "count": 4 * len(rows),
        "bidPrice": text(bid),
        "askPrice": text(ask),
    }


@endpoint("GET", "/fapi/v1/premiumIndex", security="none", weight=by_symbol(1, 10))
def premium_index(venue: Venue, params: Params) -> Any:
    """Mark price and funding."""
    return _each(venue, params, premium_row)


def premium_row(venue: Venue, asset: int) -> dict[str, Any]:
    """One contract's mark; the rate is the newest one settled: the next one is not known before its time."""
    market, now = venue.market, venue.now_ms
    _times, rates = market.settlements(asset, now)
    mark = text(market.mark_price(asset))
    return {
        "symbol": venue.names.names[asset],
        "markPrice": mark,
        "indexPrice": mark,
        "estimatedSettlePrice": mark,
        "lastFundingRate": text(_rate(venue, float(rates[-1]))) if rates.size else "0",
        "interestRate": "0.0001",
        "nextFundingTime": market.next_settlement_ms(asset, now),
        "time": now,
    }


def _rate(venue: Venue, rate: float) -> float:
    """As it was charged."""
    return rate * venue.books.config.funding_multiplier


@endpoint("GET", "/fapi/v1/fundingRate", security="none")
def funding_history(venue: Venue, params: Params) -> Any:
    """Settlements, oldest first."""
    start, end = params.span()
    limit = params.limit(100, 1000)
    rows = []
    every = range(len(venue.names.names))
    for asset in [venue.names.asset(params.need("symbol"))] if "symbol" in params else every:
        times, rates = venue.market.settlements(asset, min(end or venue.now_ms, venue.now_ms))
        for time_ms, rate in zip(times.tolist(), rates.tolist(), strict=True):
            if start is None or time_ms >= start:
                rows.append(
                    {
                        "symbol": venue.names.names[asset],
                        "fundingTime": time_ms,
                        "fundingRate": text(_rate(venue, rate)),
                        "markPrice": "",
                    }
                )
    rows.sort(key=lambda row: row["fundingTime"])
    return rows[:limit] if start is not None else rows[-limit:]


@endpoint("GET", "/fapi/v1/fundingInfo", security="none", weight=0)
def funding_info(venue: Venue, params: Params) -> Any:
    """Interval and cap by contract."""
    return [
        {
            "symbol": venue.names.names[asset],
            "adjustedFundingRateCap": text(contract.funding_cap),
            "adjustedFundingRateFloor": text(-contract.funding_cap),
            "fundingIntervalHours": contract.funding_interval_ms // _HOUR_MS,
            "disclaimer": False,
        }
        for asset, contract in enumerate(venue.books.contracts)
    ]


@endpoint("GET", "/fapi/v1/aggTrades", "/fapi/v1/trades", security="none", weight=20)
def agg_trades(venue: Venue, params: Params) -> Any:
    """Trades of the newest closed bars."""
    asset, limit = venue.names.asset(params.need("symbol")), params.limit(500, 1000)
    start, end = params.span()
    market = venue.market
    closed = market.fine + (1 if market.is_over else 0)
    first = 0 if start is None else max(market.fine - (market.open_ms - start) // market.fine_ms - 1, 0)
    bars, found, count = range(first, closed), [], 0
    # a bar of a recording may hold any number of trades
    for fine in reversed(bars) if start is None else bars:
        part = trades_of_bar(market, asset, fine)
        found.append([r for r in part if (start or 0) <= r["T"] and (end is None or r["T"] <= end)])
        count += len(found[-1])
        if count >= limit:
            break
    rows = [row for part in (reversed(found) if start is None else found) for row in part]
    return rows[-limit:] if start is None else rows[:limit]
