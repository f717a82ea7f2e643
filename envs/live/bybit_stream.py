"""Bybit's private stream: login, topics and the topic that arms the dead man's switch.

ccxt signs the login, pings every few seconds and ends a connection whose pongs stay away. Source: Bybit API
v5, "Connect" and the private topics "Order", "Execution", "Position", "Dcp".
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from perpgym.envs.live.broker import Happening, Rejected
from perpgym.envs.live.bybit_payloads import Names, read_event
from perpgym.envs.live.bybit_wire import Wire
from perpgym.envs.live.stream import EventStream

TOPICS = ("order.linear", "execution.linear", "position.linear")
DEAD_MAN_TOPIC = "dcp.future"
# the exchange recommends a ping every 20 s
PING_S = 18.0
_SUBSCRIBE = "perpgym"


class PrivateStream(EventStream):
    """See ``EventStream``.

    Args:
        wire: for signing, and whose ccxt exchange carries the connection.
        names: from the exchange's symbol to ours.
        ping_s: between two pings; two missed pongs end the connection.
        timeout_s: within which login and subscription must be answered.
        seed: of the jitter before a reconnection.
    """

    def __init__(
        self,
        wire: Wire,
        names: Names,
        *,
        ping_s: float = PING_S,
        timeout_s: float = 10.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(wire, seed=seed)
        self._names, self._timeout_s = names, timeout_s
        wire.exchange.streaming["keepAlive"] = int(1000 * ping_s)
        self._leverages: dict[str, str] = {}
        self._subscribed: asyncio.Future[bool] | None = None
        self._client: Any = None
        self._is_guarded = False

    async def guard(self, is_guarded: bool) -> None:
        """Whether the exchange cancels our orders when this stream is lost; kept across connections."""
        if is_guarded == self._is_guarded:
            return
        self._is_guarded = is_guarded
        if self._client is not None:
            # a connection that cannot take it is about to end; the next one begins with it
            with suppress(ConnectionError):
                await self._send("subscribe" if is_guarded else "unsubscribe", [DEAD_MAN_TOPIC])

    async def _connect(self) -> Any:
        exchange = self._wire.exchange
        url = exchange.implode_hostname(exchange.urls["api"]["ws"]["private"]["contract"])
        try:
            async with asyncio.timeout(self._timeout_s):
                await exchange.authenticate(url)
                client = self._client = exchange.client(url)
                self._tell_end(client.future("user"))
                self._subscribed = asyncio.get_running_loop().create_future()
                await self._send("subscribe", list(TOPICS), _SUBSCRIBE)
                if not await self._subscribed:
                    raise Rejected(0, "the exchange refused the subscription")
                if self._is_guarded:
                    await self._send("subscribe", [DEAD_MAN_TOPIC])
        except BaseException:
            self._client = None
            if url in exchange.clients:
                await self._hang_up(exchange.clients[url])
            raise
        return client

    async def _send(self, op: str, topics: list[str], request_id: str = "dcp") -> None:
        await self._client.send({"op": op, "args": topics, "req_id": request_id})

    async def _hang_up(self, client: Any) -> None:
        self._client = None
        await super()._hang_up(client)

    def _hear(self, message: Any) -> None:
        if "topic" in message:
            super()._hear(message)
        elif message.get("req_id") == _SUBSCRIBE and self._subscribed and not self._subscribed.done():
            self._subscribed.set_result(bool(message.get("success")))

    def _happenings(self, message: Any) -> list[Happening]:
        return read_event(message, self._names, self._leverages)
