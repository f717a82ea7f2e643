"""The websocket streams: who listens to what, and what they hear when a bar closes or the account changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from perpgym.envs.exchange.book import depth
from perpgym.envs.exchange.books import Event
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.event_payloads import event_jsons
from perpgym.envs.exchange.faults import FaultBook
from perpgym.envs.exchange.payloads import Json
from perpgym.envs.exchange.prints import trades_of_bar
from perpgym.envs.exchange.recorded import Level
from perpgym.envs.exchange.stream_payloads import (
    agg_trade,
    book_ticker,
    depth_diff,
    klines,
    mark_price,
    mini_ticker,
    partial_depth,
    ticker,
    trade,
)
from perpgym.envs.exchange.venue import Venue

if TYPE_CHECKING:
    from aiohttp import web

# a client that reads more slowly than this many messages is dropped
_LONGEST_QUEUE = 100_000
_BOOK_LEVELS = 1000
_SERVER_BUSY_CLOSE, _CUT = 1008, 1006
# user events that can be sent again
_KEPT_EVENTS = 100


class Socket:
    """One connection: its subscriptions, and the messages on their way to it."""

    def __init__(
        self, wire: web.WebSocketResponse, transport: Any, listen_key: str, is_combined: bool
    ) -> None:
        self.wire, self.transport = wire, transport
        self.listen_key, self.is_combined = listen_key, is_combined
        self.streams: set[str] = set()
        self._queue: asyncio.Queue[str] = asyncio.Queue(_LONGEST_QUEUE)
        self._writer = asyncio.ensure_future(self._write())

    def send(self, payload: Any, stream: str = "") -> None:
        """Queue a message; it leaves when the loop turns."""
        if self.is_combined and stream:
            payload = {"stream": stream, "data": payload}
        try:
            self._queue.put_nowait(json.dumps(payload, allow_nan=False, separators=(",", ":")))
        except asyncio.QueueFull:
            self.close(_SERVER_BUSY_CLOSE)

    async def _write(self) -> None:
        while True:
            text = await self._queue.get()
            try:
                await self.wire.send_str(text)
            except (ConnectionError, RuntimeError):
                return

    def close(self, code: int) -> None:
        """Say goodbye with a code; what is queued is lost. 1006 is no code to send: the line is cut."""
        if code == _CUT and self.transport is not None:
            self.transport.abort()
            return
        self._closing = asyncio.ensure_future(self.wire.close(code=code))

    def stop(self) -> None:
        """Send nothing any more."""
        self._writer.cancel()


class Hub:
    """All connections.

    Args:
        venue: whose streams they are.
    """

    def __init__(self, venue: Venue) -> None:
        self.venue = venue
        self.sockets: set[Socket] = set()
        self.faults = FaultBook()
        self.recent_events: list[Json] = []
        self._books: dict[int, tuple[dict[float, float], dict[float, float]]] = {}
        venue.books.listeners.append(self._on_event)
        venue.on_bar.append(self._on_bar)

    # --- connections ---

    def join(self, wire: web.WebSocketResponse, transport: Any, path: str, query: dict[str, str]) -> Socket:
        """A new connection; streams may be named in its path, the user stream by its key."""
        tail = path.rpartition("/ws/")[2] if "/ws/" in path else ""
        key = query.get("listenKey", "")
        if not key and tail == self.venue.listen_key.text:
            key = tail
        socket = Socket(wire, transport, key, is_combined=path.endswith("/stream"))
        self.sockets.add(socket)
        named = query.get("streams", "") or (tail if "@" in tail else "")
        self._ask(socket, [name for name in named.split("/") if name], None)
        return socket

    def leave(self, socket: Socket) -> None:
        """A connection is gone."""
        socket.stop()
        self.sockets.discard(socket)

    def receive(self, socket: Socket, text: str) -> None:
        """A request on a connection: SUBSCRIBE, UNSUBSCRIBE, LIST_SUBSCRIPTIONS."""
        try:
            request = json.loads(text)
            method, names = request["method"], request.get("params", [])
        except (json.JSONDecodeError, KeyError, TypeError):
            socket.send({"error": {"code": 3, "msg": "Invalid JSON"}, "id": None})
            return
        if method == "SUBSCRIBE":
            self._ask(socket, names, request.get("id"), is_answered=True)
            return
        answer: Any = None
        if method == "LIST_SUBSCRIPTIONS":
            answer = sorted(socket.streams)
        elif method == "UNSUBSCRIBE":
            socket.streams -= set(names)
        else:
            socket.send({"error": {"code": 2, "msg": f"Invalid request: {method}"}, "id": request.get("id")})
            return
        socket.send({"result": answer, "id": request.get("id")})

    def _ask(self, socket: Socket, names: list[str], number: Any, *, is_answered: bool = False) -> None:
        """Subscribe to all of them, or to none where one asks for bars that would never come."""
        try:
            for name in names:
                channel = name.partition("@")[2]
                if channel.startswith("kline_"):
                    self.venue.market.interval_ms(channel.removeprefix("kline_"))
        except Rejected as error:
            socket.send({"error": error.payload(), "id": number})
            return
        if is_answered:
            socket.send({"result": None, "id": number})
        self._subscribe(socket, names)

    def _subscribe(self, socket: Socket, names: list[str]) -> None:
        """From now on; what a stream shows at the moment is sent at once, as its next update would be."""
        for name in names:
            socket.streams.add(name)
            for payload in self._now(name):
                socket.send(payload, name)

    def close_all(self, code: int = 1001) -> None:
        """Drop every connection, as the exchange does once a day."""
        for socket in list(self.sockets):
            socket.close(code)

    # --- the market ---

    def _publish(self, make: Callable[[str], list[Json]]) -> None:
        """Send every subscribed stream what ``make`` says of it; each is made once."""
        made: dict[str, list[Json]] = {}
        for socket in self.sockets:
            for name in socket.streams:
                if name not in made:
                    made[name] = self._spoilt(name, make(name))
                for payload in made[name]:
                    socket.send(payload, name)

    def _spoilt(self, name: str, payloads: list[Json]) -> list[Json]:
        """What the faults in force make of a stream's messages."""
        of = name.partition("@")[2].partition("@")[0].partition("_")[0]
        return [m for p in payloads for m in self.faults.of_message(of, p, self.venue.now_ms)]

    def set_deaf(self, is_deaf: bool) -> None:
        """Whether connections are read: one that is not answers no ping."""
        for socket in self.sockets:
            if socket.transport is not None:
                (socket.transport.pause_reading if is_deaf else socket.transport.resume_reading)()

    def _assets(self, name: str) -> tuple[list[int], str]:
        """Contracts and channel of a stream's name; none where it names nothing."""
        symbol, _, channel = name.partition("@")
        if symbol.startswith("!"):
            return list(range(len(self.venue.names.names))), symbol
        try:
            return [self.venue.names.asset(symbol)], channel
        except Rejected:
            return [], channel

    def _now(self, name: str) -> list[Json]:
        """What a stream shows at the moment; a stream of diffs and trades begins with the next one."""
        assets, channel = self._assets(name)
        venue = self.venue
        if channel.startswith("kline_"):
            return [row for a in assets for row in klines(venue, a, channel.removeprefix("kline_"), 1)]
        kind = channel.partition("@")[0].lstrip("!")
        if kind == "depth" and assets:
            self._books.setdefault(assets[0], self._book(assets[0]))
            return []
        if kind in ("depth5", "depth10", "depth20"):
            return [partial_depth(venue, a, int(kind[5:])) for a in assets]
        makers = {
            "markPrice": mark_price, "bookTicker": book_ticker, "miniTicker": mini_ticker, "ticker": ticker,
        }  # fmt: skip
        if kind not in makers:
            return []
        rows = [makers[kind](venue, asset) for asset in assets]
        # of every contract at once they come as one list, but for the touch
        return [rows] if name.startswith("!") and kind != "bookTicker" else rows  # type: ignore[list-item]

    def _on_bar(self, closed: int) -> None:
        """A bar has closed and, but at the end, the next one has opened."""

        def make(name: str) -> list[Json]:
            assets, channel = self._assets(name)
            kind = channel.partition("@")[0]
            if kind in ("aggTrade", "trade"):
                row = agg_trade if kind == "aggTrade" else trade
                return [
                    row(self.venue, asset, printed)
                    for asset in assets
                    for printed in trades_of_bar(self.venue.market, asset, closed)
                ]
            if channel.startswith("kline_"):
                return [x for a in assets for x in klines(self.venue, a, channel.removeprefix("kline_"), 2)]
            if kind == "depth":
                return [diffs[asset] for asset in assets]
            return self._now(name)

        diffs = {asset: self._diff(asset) for asset in self._books}
        self._publish(make)

    def tick(self) -> None:
        """Nothing has happened: say so, as a market that trades does several times a second."""

        def make(name: str) -> list[Json]:
            assets, channel = self._assets(name)
            if channel.partition("@")[0] == "depth":
                return [diffs[asset] for asset in assets]
            return self._now(name)

        self.venue.depth_updates = [number + 1 for number in self.venue.depth_updates]
        diffs = {asset: self._diff(asset) for asset in self._books}
        self._publish(make)

    def _book(self, asset: int) -> tuple[dict[float, float], dict[float, float]]:
        bids, asks = depth(self.venue.books, asset, _BOOK_LEVELS)
        return dict(bids), dict(asks)

    def _diff(self, asset: int) -> Json:
        """From the book that listeners have to the book of the moment."""
        before, after = self._books[asset], self._book(asset)
        self._books[asset] = after
        sides = [_changes(old, new) for old, new in zip(before, after, strict=True)]
        return depth_diff(self.venue, asset, *sides)

    # --- the account ---

    def _on_event(self, event: Event) -> None:
        for payload in event_jsons(event, self.venue.books, self.venue.names):
            self.tell_user(payload)

    def tell_user(self, payload: Json, *, is_new: bool = True) -> None:
        """Send to the connections of the user stream whose key lives."""
        if is_new:
            self.recent_events = [*self.recent_events[-_KEPT_EVENTS:], payload]
        key = self.venue.listen_key
        for message in self.faults.of_message("event", payload, self.venue.now_ms):
            for socket in self.sockets:
                if socket.listen_key and socket.listen_key == key.text:
                    socket.send(message)

    def expire_key(self) -> None:
        """The user stream's key has come to its end: its connections stay open and hear nothing more."""
        key = self.venue.listen_key
        now = self.venue.now_ms
        self.tell_user({"e": "listenKeyExpired", "E": now, "listenKey": key.text})
        key.text = ""


def _changes(old: dict[float, float], new: dict[float, float]) -> list[Level]:
    """Levels that changed; those that are gone have size 0."""
    gone = [(price, 0.0) for price in old if price not in new]
    return gone + [(price, size) for price, size in new.items() if old.get(price) != size]
