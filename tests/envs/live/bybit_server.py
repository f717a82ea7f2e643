"""A local server that speaks as much of Bybit v5 as the broker asks for, and checks every signature.

It keeps no account: it answers with the rows that a test lays out, pages them as the exchange does, and fails
in the way that a test asks for. Its clock starts at ``bybit_messages.START_MS``.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import bybit_messages as say
from aiohttp import WSMsgType, web

from perpgym.envs.live.bybit import Bybit, BybitConfig

KEY, SECRET = "local-key", "local-secret"
SYMBOL = "BTC/USDT:USDT"
Failure = Callable[[web.Request], Any]

# pages of these lists hold so many rows at most, whatever was asked for
_PAGES = {"/v5/order/realtime": 50, "/v5/execution/list": 100, "/v5/account/transaction-log": 50}
_TIMES = {"/v5/execution/list": "execTime", "/v5/account/transaction-log": "transactionTime"}


@dataclass(frozen=True)
class Refusal:
    """A retCode other than 0 and its text."""

    code: int
    text: str = "refused"


class LocalBybit:
    """The exchange's side.

    Attributes:
        rows: what a path's list holds, newest first.
        results: what a path answers instead of a list.
        requests: (method, path, parameters) of every request that was understood.
        failures: by path, what happens to the next requests instead; each is used once.
        after: by path, the same once the request has been carried out.
        before: by path, what looks at every request first.
        skew_ms: how far the exchange's clock is ahead of the machine's.
    """

    def __init__(self) -> None:
        self.rows: dict[str, list[Any]] = defaultdict(list)
        self.results: dict[str, Any] = {}
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        self.failures: dict[str, list[Failure]] = defaultdict(list)
        self.after: dict[str, list[Failure]] = defaultdict(list)
        self.before: dict[str, Callable[[web.Request], Any]] = {}
        self.skew_ms = say.START_MS - int(1000 * time.time())
        self.sockets: list[web.WebSocketResponse] = []
        self.heard: list[dict[str, Any]] = []
        self.logins = 0
        self.answers_pings = True
        self.refuses_topics = False
        self.port = 0
        self.rows["/v5/market/instruments-info"] = [say.instrument(), say.instrument("ETHUSDT", "ETH")]
        self.rows["/v5/market/risk-limit"] = list(say.TIERS)
        self.rows["/v5/account/fee-rate"] = [
            {"symbol": "BTCUSDT", "takerFeeRate": "0.00055", "makerFeeRate": "0.0002"}
        ]
        self.rows["/v5/market/tickers"] = [
            {"symbol": "BTCUSDT", "markPrice": "42100.50", "lastPrice": "42099.00"}
        ]
        self.rows["/v5/position/list"] = [say.position("0", "")]
        self.results["/v5/account/info"] = say.account_info()
        self.results["/v5/account/wallet-balance"] = say.wallet("10000", "10001")

    def now_ms(self) -> int:
        return int(1000 * time.time()) + self.skew_ms

    def asked(self, path: str) -> list[dict[str, Any]]:
        """Parameters of the requests to one path."""
        return [params for _method, where, params in self.requests if where == path]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.text()
        refusal = self._check(request, body)
        if refusal is not None:
            return web.json_response(say.answer({}, code=refusal.code, text=refusal.text))
        params = json.loads(body) if body else dict(request.query)
        if request.path in self.before:
            self.before[request.path](request)
        if self.failures[request.path]:
            return await _happen(self.failures[request.path].pop(0), request)
        self.requests.append((request.method, request.path, params))
        result = self.result(request.path, params)
        if self.after[request.path]:
            return await _happen(self.after[request.path].pop(0), request)
        if isinstance(result, Refusal):
            return web.json_response(say.answer({}, code=result.code, text=result.text))
        return web.json_response(say.answer(result, now_ms=self.now_ms()))

    def _check(self, request: web.Request, body: str) -> Refusal | None:
        """The signature as /guide describes it: time + key + window + query or body."""
        if request.path.startswith("/v5/market/"):
            return None
        head = request.headers
        stamp, window = head["X-BAPI-TIMESTAMP"], head["X-BAPI-RECV-WINDOW"]
        signed = f"{stamp}{head['X-BAPI-API-KEY']}{window}{body or request.rel_url.raw_query_string}"
        right = hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).hexdigest()
        if head["X-BAPI-API-KEY"] != KEY:
            return Refusal(10003, "API key is invalid.")
        if head["X-BAPI-SIGN"] != right:
            return Refusal(10004, f"error sign! origin_string[{signed}]")
        if not -int(window) <= int(stamp) - self.now_ms() < 1_000:
            return Refusal(10002, "invalid request, please check your server timestamp or recv_window param.")
        return None

    def result(self, path: str, params: dict[str, Any]) -> Any:
        if path == "/v5/market/time":
            return {"timeSecond": str(self.now_ms() // 1000), "timeNano": str(self.now_ms() * 1_000_000)}
        if path in ("/v5/order/create", "/v5/order/cancel"):
            return {"orderId": f"id-of-{params['orderLinkId']}", "orderLinkId": params["orderLinkId"]}
        if path in self.results:
            return self.results[path]
        return self._page(path, params)

    def _page(self, path: str, params: dict[str, Any]) -> Any:
        rows = [row for row in self.rows[path] if self._is_asked_for(path, row, params)]
        start = int(params.get("cursor") or 0)
        end = start + min(int(params.get("limit", 20)), _PAGES.get(path, 1000))
        # the exchange names a cursor after a full last page too
        return say.page(rows[start:end], str(end) if rows[start:end] and end <= len(rows) else "")

    def _is_asked_for(self, path: str, row: Any, params: dict[str, Any]) -> bool:
        if isinstance(row, list):
            return int(params["start"]) <= int(row[0]) <= int(params["end"])
        if path in _TIMES:
            begin, end = int(params["startTime"]), int(params["endTime"])
            assert end - begin <= 7 * 86_400_000, "the exchange admits a week"
            return begin <= int(row[_TIMES[path]]) <= end and row.get("symbol") in (
                params.get("symbol", row.get("symbol")),
            )
        same = ("symbol", "orderLinkId")
        return all(row.get(name) == params[name] for name in same if name in params)

    # --- the private stream ---

    async def stream(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        is_known = False
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                break
            said = json.loads(message.data)
            self.heard.append(said)
            if said["op"] == "auth":
                key, expires, sign = said["args"]
                right = hmac.new(
                    SECRET.encode(), f"GET/realtime{expires}".encode(), hashlib.sha256
                ).hexdigest()
                is_known = (key, sign) == (KEY, right) and int(expires) > self.now_ms()
                self.logins += is_known
                await socket.send_json(self._reply(said, is_known))
            elif said["op"] == "subscribe":
                is_good = is_known and not self.refuses_topics
                if is_good and socket not in self.sockets:
                    self.sockets.append(socket)
                await socket.send_json(self._reply(said, is_good))
            elif said["op"] == "ping" and self.answers_pings:
                pong = {"req_id": said.get("req_id", ""), "op": "pong", "args": [str(self.now_ms())]}
                await socket.send_json(pong)
        if socket in self.sockets:
            self.sockets.remove(socket)
        return socket

    @staticmethod
    def _reply(said: dict[str, Any], is_good: bool) -> dict[str, Any]:
        """/ws/connect: what the private stream answers to a login or a subscription."""
        reply = {
            "success": is_good,
            "ret_msg": "" if is_good else "error",
            "op": said["op"],
            "conn_id": "c-1",
        }
        return reply | ({"req_id": said["req_id"]} if "req_id" in said else {})

    async def tell(self, *messages: Any) -> None:
        """Send events to whoever listens."""
        for socket in self.sockets:
            for message in messages:
                await socket.send_json(message)


@asynccontextmanager
async def trading(**settings: Any) -> AsyncIterator[tuple[LocalBybit, Bybit]]:
    """A server and a broker that is open on it."""
    async with serving() as server:
        broker = broker_on(server, **settings)
        try:
            await broker.open()
            yield server, broker
        finally:
            await broker.close()


@asynccontextmanager
async def serving(server: LocalBybit | None = None) -> AsyncIterator[LocalBybit]:
    """A server on a free port."""
    server = server or LocalBybit()
    app = web.Application()
    app.router.add_get("/v5/private", server.stream)
    app.router.add_route("*", "/v5/{rest:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        await runner.cleanup()


def broker_on(server: LocalBybit, **settings: Any) -> Bybit:
    """Unmodified ccxt, its addresses those of the local server."""

    def point(exchange: Any) -> None:
        base = f"127.0.0.1:{server.port}"
        api = {name: f"http://{base}" for name, url in exchange.urls["api"].items() if isinstance(url, str)}
        api["ws"] = {"private": {"contract": f"ws://{base}/v5/private"}}
        exchange.urls["api"] = api

    known = {"contracts": (SYMBOL,), "api_key": KEY, "secret": SECRET, "timeout_ms": 500, "is_paced": False}
    return Bybit(BybitConfig(**(known | settings)), point=point)


# --- what can happen to an answer ---


async def _happen(failure: Failure, request: web.Request) -> web.StreamResponse:
    found = failure(request)
    return await found if asyncio.iscoroutine(found) else found


def refuse(code: int, text: str = "refused", status: int = 200, **headers: str) -> Failure:
    """An answer with a retCode."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _request: web.json_response(
        say.answer({}, code=code, text=text), status=status, headers=named
    )


def page_of(status: int, text: str = "<html>bad gateway</html>") -> Failure:
    """An answer of something before the exchange."""
    return lambda _request: web.Response(status=status, text=text, content_type="text/html")


def say_only(body: str) -> Failure:
    """HTTP 200 with whatever body."""
    return lambda _request: web.Response(text=body, content_type="application/json")


def cut(request: web.Request) -> Any:
    """The line breaks before an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def be_silent(seconds: float) -> Failure:
    """No answer in time."""

    async def wait(_request: web.Request) -> web.Response:
        await asyncio.sleep(seconds)
        return web.Response()

    return wait
