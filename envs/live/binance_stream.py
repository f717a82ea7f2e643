"""Binance's user stream: one connection at a time, opened anew whenever it may have gone deaf.

The key is kept alive here and its answer read: ccxt ignores ``listenKeyExpired`` and reconnects with a dead
key without a word. What is heard is never trusted alone; the desk compares it with the account.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from perpgym.envs.live.binance_payloads import Names, read_event
from perpgym.envs.live.binance_wire import Wire
from perpgym.envs.live.broker import BrokerError, Happening, StreamBroken, StreamOpened

# the key lives an hour; the exchange advises to prolong it every half hour at the latest
KEEP_ALIVE_S = 1_200.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0


class UserStream:
    """Yields what happens to the account, and when it could not be heard.

    Args:
        wire: for the key, and whose ccxt exchange carries the connection.
        names: from the exchange's symbol to ours.
        keep_alive_s: between two prolongations of the key.
        seed: of the jitter before a reconnection.
    """

    def __init__(
        self, wire: Wire, names: Names, *, keep_alive_s: float = KEEP_ALIVE_S, seed: int | None = None
    ) -> None:
        self._wire, self._names, self._keep_alive_s = wire, names, keep_alive_s
        self._random = random.Random(seed)
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._is_closed = False
        # messages of kinds that nobody knows, and those that could not be read
        self.ignored = 0
        wire.exchange.hear = lambda message: self._inbox.put_nowait(message)

    def renew(self, why: str) -> None:
        """End the connection; a new one with a new key follows."""
        self._inbox.put_nowait(StreamBroken(text=why))

    def close(self) -> None:
        """End for good."""
        self._is_closed = True
        self._inbox.put_nowait(StreamBroken(text="closed"))

    async def events(self) -> AsyncIterator[Happening]:
        """Everything heard, until closed; each connection begins with ``StreamOpened``."""
        wait_s = _FIRST_WAIT_S
        while not self._is_closed:
            try:
                client = await self._connect()
            except Exception as error:
                yield StreamBroken(text=f"no user stream: {error}")
                await asyncio.sleep(wait_s * (0.5 + self._random.random()))
                wait_s = min(2.0 * wait_s, _LONGEST_WAIT_S)
                continue
            wait_s = _FIRST_WAIT_S
            keeper = asyncio.create_task(self._keep_alive())
            try:
                yield StreamOpened()
                async for happening in self._listen():
                    yield happening
            finally:
                keeper.cancel()
                self._wire.exchange.clients.pop(client.url, None)
                with suppress(Exception):
                    await client.close()
            if not self._is_closed:
                await asyncio.sleep(wait_s * self._random.random())

    async def _connect(self) -> Any:
        """A connection whose end lands in the inbox."""
        self._inbox = asyncio.Queue()
        exchange = self._wire.exchange
        answer = await self._wire.call("fapiPrivatePostListenKey", {}, is_urgent=True)
        url = exchange.get_private_ws_url("linear", answer["listenKey"])
        ended = exchange.watch(url, "user")
        client = exchange.clients[url]
        inbox = self._inbox

        def tell(future: Any) -> None:
            error = None if future.cancelled() else future.exception()
            inbox.put_nowait(StreamBroken(text=f"the user stream was cut: {error}"))

        ended.add_done_callback(tell)
        await client.connected
        return client

    async def _listen(self) -> AsyncIterator[Happening]:
        while True:
            message = await self._inbox.get()
            if isinstance(message, StreamBroken):
                yield message
                return
            for happening in self._read(message):
                yield happening
                if isinstance(happening, StreamBroken):
                    return

    def _read(self, message: Any) -> list[Happening]:
        try:
            found = read_event(message, self._names)
        except (KeyError, ValueError, TypeError, AttributeError):
            found = []
        self.ignored += not found
        return found

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._keep_alive_s)
            try:
                await self._wire.call("fapiPrivatePutListenKey", {}, is_urgent=True)
            except BrokerError as error:
                self.renew(f"the user stream's key could not be prolonged: {error}")
                return
