"""The wire: an aiohttp application that answers requests and carries the streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl

from perpgym.envs.exchange import admin, rest_account, rest_orders, rest_public
from perpgym.envs.exchange.api import ENDPOINTS, Endpoint, Params
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.streams import Hub
from perpgym.envs.exchange.venue import Venue

try:
    from aiohttp import WSCloseCode, WSMsgType, web
except ImportError as error:
    raise ImportError(
        "the simulated exchange needs aiohttp: pip install 'perpgym[live]', or pip install aiohttp"
    ) from error

# importing them enters their handlers
ROOMS = (rest_public, rest_account, rest_orders)
_NOT_FOUND = "<html><body>404 Not Found</body></html>"
# the exchange pings every three minutes; a market says something every second
_PING_S, _TICK_S = 180.0, 1.0


class Server:
    """Serves a venue on one port.

    Args:
        venue: what is served.
    """

    def __init__(self, venue: Venue) -> None:
        self.venue = venue
        self.hub = Hub(venue)
        self.url = ""
        self._runner: web.AppRunner | None = None
        self._clock: asyncio.Task[None] | None = None

    async def start(
        self, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
    ) -> str:
        """Listen, and let the clock run; returns the URL. Port 0 takes a free one."""
        bound = await self.listen(host=host, port=port, tls=tls)
        self.url = f"{'https' if tls else 'http'}://{host}:{bound}"
        if self.venue.clock.speed > 0.0:
            self._clock = asyncio.create_task(self._run_clock())
        return self.url

    async def listen(self, *, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen on one more port; returns it."""
        if self._runner is None:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", self._answer)
            self._runner = web.AppRunner(app, access_log=None)
            await self._runner.setup()
        await web.TCPSite(self._runner, host, port, ssl_context=tls).start()
        bound: int = self._runner.addresses[-1][1]
        return bound

    async def stop(self) -> None:
        """Close every connection."""
        if self._clock is not None:
            self._clock.cancel()
        for socket in list(self.hub.sockets):
            await socket.wire.close(code=WSCloseCode.GOING_AWAY)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._stream(request, path)
        body = (await request.read()).decode("utf-8", "replace")
        found = ENDPOINTS.get((request.method, path))
        self.pass_time()
        if self.venue.has_admin and path.startswith(admin.PREFIX):
            return self._administer(path.removeprefix(admin.PREFIX), body)
        if found is None:
            return web.Response(status=404, text=_NOT_FOUND, content_type="text/html")
        try:
            payload = self._call(found, query, body, request.headers.get("X-MBX-APIKEY"))
        except Rejected as refusal:
            return self._json(refusal.payload(), refusal.status, refusal.headers)
        return self._json(payload, 200, {})

    def _call(self, found: Endpoint, query: str, body: str, key: str | None) -> Any:
        """The gates, then the handler; nothing in here waits."""
        venue = self.venue
        params = Params({k: v for part in (query, body) for k, v in parse_qsl(part, keep_blank_values=True)})
        venue.limits.count(found, params, venue.client_ms)
        if found.security == "signed":
            venue.keys.check_signature(key, query, body, venue.now_ms, venue.wall_ms())
        elif found.security == "key":
            venue.keys.check_key(key)
        return found.handle(venue, params)

    def _administer(self, name: str, body: str) -> web.Response:
        try:
            asked = json.loads(body or "{}")
        except json.JSONDecodeError as error:
            return web.json_response({"error": f"no JSON: {error}"}, status=400)
        status, answer = admin.call(self, name, asked)
        return web.json_response(answer, status=status)

    async def _stream(self, request: web.Request, path: str) -> web.StreamResponse:
        """A websocket, for as long as it lasts."""
        wire = web.WebSocketResponse(heartbeat=_PING_S)
        await wire.prepare(request)
        self.pass_time()
        socket = self.hub.join(wire, path, dict(request.query))
        try:
            async for message in wire:
                if message.type is WSMsgType.TEXT:
                    self.hub.receive(socket, message.data)
        finally:
            self.hub.leave(socket)
        return wire

    def pass_time(self) -> None:
        """Bring the exchange up to its clock, and end what has run out."""
        self.venue.pass_time()
        if self.venue.listen_key.text and not self.venue.has_listen_key:
            self.hub.expire_key()

    async def _run_clock(self) -> None:
        """While the clock runs, bars close without anybody asking."""
        while not self.venue.market.is_over:
            await asyncio.sleep(min(self.venue.clock.seconds_until(self.venue.engine.next_ms), _TICK_S))
            before = self.venue.market.fine
            self.pass_time()
            if self.venue.market.fine == before:
                self.hub.tick()

    def _json(self, payload: Any, status: int, headers: dict[str, str]) -> web.Response:
        text = json.dumps(payload, allow_nan=False, separators=(",", ":"))
        everything = self.venue.limits.headers() | headers
        return web.Response(status=status, text=text, content_type="application/json", headers=everything)


@contextlib.asynccontextmanager
async def serving(venue: Venue, **where: Any) -> AsyncIterator[Server]:
    """A running server for the length of a block."""
    server = Server(venue)
    await server.start(**where)
    try:
        yield server
    finally:
        await server.stop()


class ServerThread:
    """A server in a thread of its own, for programs that block (ccxt's sync interface)."""

    def __init__(self, venue: Venue, **where: Any) -> None:
        self.server = Server(venue)
        self._where = where
        self._loop = asyncio.new_event_loop()
        self._thread: Any = None

    def __enter__(self) -> Server:
        import threading

        self._thread = threading.Thread(target=self._loop.run_forever, name="perpgym-exchange", daemon=True)
        self._thread.start()
        self._run(self.server.start(**self._where))
        return self.server

    def __exit__(self, *_error: object) -> None:
        self._run(self.server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, what: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()
