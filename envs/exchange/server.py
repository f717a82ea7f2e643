"""The wire: an aiohttp application that answers requests and carries the streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl

from perpgym.envs.exchange import admin, rest_account, rest_algos, rest_orders, rest_public
from perpgym.envs.exchange.api import ENDPOINTS, Endpoint, Params
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.faults import Fault, spoil_bars
from perpgym.envs.exchange.rest_orders import find_order
from perpgym.envs.exchange.streams import Hub
from perpgym.envs.exchange.venue import Venue
from perpgym.envs.exchange.working import fill_at_limit

try:
    from aiohttp import WSCloseCode, WSMsgType, web
except ImportError as error:
    raise ImportError(
        "the simulated exchange needs aiohttp: pip install 'perpgym[live]', or pip install aiohttp"
    ) from error

# importing them enters their handlers
ROOMS = (rest_public, rest_account, rest_orders, rest_algos)
_BARS = "/fapi/v1/klines"
_LOG = logging.getLogger(__name__)
_NOT_FOUND = "<html><body>404 Not Found</body></html>"
# the exchange pings every three minutes; a market says something every second
_PING_S, _TICK_S = 180.0, 1.0
_HANG_POLL_S, _SHUTDOWN_S = 0.05, 1.0


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
        self._stopping = asyncio.Event()

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
            self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S)
            await self._runner.setup()
        await web.TCPSite(self._runner, host, port, ssl_context=tls).start()
        bound: int = self._runner.addresses[-1][1]
        return bound

    async def stop(self) -> None:
        """Close every connection."""
        self._stopping.set()
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
        if path == _BARS:
            self.venue.note_poll(query)
        self.pass_time()
        if self.venue.has_admin and path.startswith(admin.PREFIX):
            return self._administer(path.removeprefix(admin.PREFIX), body)
        if found is None:
            return web.Response(status=404, text=_NOT_FOUND, content_type="text/html")
        fault = self.hub.faults.of_request(request.method, path, self.venue.now_ms, body)
        if fault is not None:
            answer = await self._before(fault, request)
            if answer is not None:
                return answer
        key = request.headers.get("X-MBX-APIKEY")
        answer = self._execute(found, query, body, key, fault)
        return answer if fault is None else await self._after(fault, request, answer)

    def _execute(
        self, found: Endpoint, query: str, body: str, key: str | None, fault: Fault | None
    ) -> web.Response:
        try:
            payload = self._call(found, query, body, key, fault)
        except Rejected as refusal:
            return self._json(refusal.payload(), refusal.status, refusal.headers)
        return self._json(payload, 200, {})

    async def _before(self, fault: Fault, request: web.Request) -> web.Response | None:
        """What a fault does to a request that is not executed yet; an answer, or None to go on."""
        if fault.kind == "delay":
            await asyncio.sleep(fault.delay_ms / 1000.0)
            self.pass_time()
        elif fault.kind == "hang":
            return await self._hang(request)
        elif fault.kind == "reset":
            return _reset(request)
        elif fault.kind == "reply":
            return self._reply(fault)
        return None

    async def _after(self, fault: Fault, request: web.Request, answer: web.Response) -> web.Response:
        """What a fault does to the answer of a request that was executed."""
        if fault.kind == "delay_after":
            await asyncio.sleep(fault.delay_ms / 1000.0)
        elif fault.kind == "hang_after":
            return await self._hang(request)
        elif fault.kind == "reset_after":
            return _reset(request)
        elif fault.kind == "reply_after":
            return self._reply(fault)
        elif fault.kind == "cut_after":
            text = answer.text or ""
            return web.Response(text=text[: len(text) // 2], content_type="application/json")
        return answer

    def _reply(self, fault: Fault) -> web.Response:
        text, content_type = fault.body()
        headers = self.venue.limits.headers()
        if fault.retry_after_s is not None:
            headers["Retry-After"] = str(fault.retry_after_s)
        return web.Response(status=fault.status, text=text, content_type=content_type, headers=headers)

    async def _hang(self, request: web.Request) -> web.Response:
        """No answer, until the client or the server has gone."""
        while not self._stopping.is_set() and request.transport is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _HANG_POLL_S)
        return web.Response(status=504)

    def _call(self, found: Endpoint, query: str, body: str, key: str | None, fault: Fault | None) -> Any:
        """The gates, then the handler; nothing in here waits."""
        venue = self.venue
        params = Params({k: v for part in (query, body) for k, v in parse_qsl(part, keep_blank_values=True)})
        venue.limits.count(found, params, venue.client_ms)
        if found.security == "signed":
            clocks = venue.now_ms + venue.skew_ms, venue.wall_ms() + venue.skew_ms
            venue.keys.check_signature(key, query, body, *clocks)
        elif found.security == "key":
            venue.keys.check_key(key)
        if fault is not None and fault.kind == "fill_then_refuse":
            fill_before_cancel(venue, params)
        payload = found.handle(venue, params)
        return spoil_bars(fault, payload) if fault is not None and fault.kind.endswith("_bar") else payload

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
        socket = self.hub.join(wire, request.transport, path, dict(request.query))
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
        try:
            await self._tick_on()
        except Exception:
            _LOG.exception("the exchange's clock has stopped")
            raise

    async def _tick_on(self) -> None:
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


def _reset(request: web.Request) -> web.Response:
    """Drop the connection without a word."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


def fill_before_cancel(venue: Venue, params: Params) -> None:
    """An order that is being cancelled fills first, so that the cancel finds nothing (-2011)."""
    order = find_order(venue, params)
    if order.is_open:
        fill_at_limit(venue.books, order, order.left, venue.now_ms)


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
