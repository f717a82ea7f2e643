"""What the market streams say, in the JSON that the exchange sends."""

from __future__ import annotations

from typing import Any

from perpgym.envs.exchange.book import depth
from perpgym.envs.exchange.market import INTERVALS_MS
from perpgym.envs.exchange.recorded import Level
from perpgym.envs.exchange.rest_public import book_ticker_row, day_ticker_row, kline_row, premium_row
from perpgym.envs.exchange.venue import Venue
from perpgym.envs.exchange.wire import text

Json = dict[str, Any]


def klines(venue: Venue, asset: int, interval: str, rows: int) -> list[Json]:
    """The newest bars of an interval: of two, the older one only at the moment it has closed."""
    step, now = INTERVALS_MS[interval], venue.now_ms
    found = venue.market.klines(asset, interval, limit=rows)
    is_new = bool(found) and found[-1][0] == venue.market.open_ms
    shown = found if is_new else found[-1:]
    return [_kline(venue, asset, interval, step, row, now) for row in shown]


def _kline(venue: Venue, asset: int, interval: str, step: int, row: Any, now: int) -> Json:
    values = kline_row(row, step, is_mark=False)
    name = venue.names.names[asset]
    bar = {
        "t": values[0], "T": values[6], "s": name, "i": interval, "f": 0, "L": 0, "o": values[1],
        "c": values[4], "h": values[2], "l": values[3], "v": values[5], "n": values[8],
        "x": now > values[6], "q": values[7], "V": values[9], "Q": values[10], "B": "0",
    }  # fmt: skip
    return {"e": "kline", "E": now, "s": name, "k": bar}


def mark_price(venue: Venue, asset: int) -> Json:
    """``markPriceUpdate``."""
    row = premium_row(venue, asset)
    return {
        "e": "markPriceUpdate", "E": venue.now_ms, "s": row["symbol"], "p": row["markPrice"],
        "ap": row["markPrice"], "P": row["estimatedSettlePrice"], "i": row["indexPrice"],
        "r": row["lastFundingRate"], "T": row["nextFundingTime"],
    }  # fmt: skip


def book_ticker(venue: Venue, asset: int) -> Json:
    """``bookTicker``."""
    row = book_ticker_row(venue, asset)
    return {
        "e": "bookTicker", "u": row["lastUpdateId"], "E": venue.now_ms, "T": venue.now_ms, "s": row["symbol"],
        "b": row["bidPrice"], "B": row["bidQty"], "a": row["askPrice"], "A": row["askQty"],
    }  # fmt: skip


def ticker(venue: Venue, asset: int) -> Json:
    """``24hrTicker``."""
    row = day_ticker_row(venue, asset)
    return {
        **_mini(row, "24hrTicker", venue.now_ms), "p": row["priceChange"], "P": row["priceChangePercent"],
        "w": row["weightedAvgPrice"], "Q": row["lastQty"], "O": row["openTime"], "C": row["closeTime"],
        "F": 0, "L": 0, "n": row["count"],
    }  # fmt: skip


def mini_ticker(venue: Venue, asset: int) -> Json:
    """``24hrMiniTicker``."""
    return _mini(day_ticker_row(venue, asset), "24hrMiniTicker", venue.now_ms)


def _mini(row: Json, event: str, now: int) -> Json:
    return {
        "e": event, "E": now, "s": row["symbol"], "c": row["lastPrice"], "o": row["openPrice"],
        "h": row["highPrice"], "l": row["lowPrice"], "v": row["volume"], "q": row["quoteVolume"],
    }  # fmt: skip


def agg_trade(venue: Venue, asset: int, printed: Json) -> Json:
    """``aggTrade``."""
    return {"e": "aggTrade", "E": venue.now_ms, "s": venue.names.names[asset], **printed}


def trade(venue: Venue, asset: int, printed: Json) -> Json:
    """``trade``."""
    return {
        "e": "trade", "E": venue.now_ms, "T": printed["T"], "s": venue.names.names[asset], "t": printed["a"],
        "p": printed["p"], "q": printed["q"], "X": "MARKET", "m": printed["m"],
    }  # fmt: skip


def depth_diff(venue: Venue, asset: int, bids: list[Level], asks: list[Level]) -> Json:
    """``depthUpdate``: from the update before to the newest one."""
    newest = venue.depth_updates[asset]
    return {
        "e": "depthUpdate", "E": venue.now_ms, "T": venue.now_ms, "s": venue.names.names[asset],
        "U": newest, "u": newest, "pu": newest - 1, "b": _levels(bids), "a": _levels(asks),
    }  # fmt: skip


def partial_depth(venue: Venue, asset: int, levels: int) -> Json:
    """``depthUpdate`` of the best levels, whole each time."""
    bids, asks = depth(venue.books, asset, levels)
    return depth_diff(venue, asset, bids, asks)


def _levels(side: list[Level]) -> list[list[str]]:
    return [[text(price), text(size)] for price, size in side]
