"""A user stream of any exchange: one connection at a time, opened anew whenever it may have gone deaf.

What is heard is never trusted alone; the desk compares it with the account.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from perpgym.envs.live.broker import BrokerError, Happening, StreamBroken, StreamOpened
from perpgym.envs.live.wire import RestWire

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0


class EventStream:
    """Yields what happens to the account, and when it could not be heard.

    A subclass knows one exchange: how to connect (``_connect``), what keeps the line open (``_keep_alive``)
    and what a message says (``_happenings``).

    Args:
        wire: whose ccxt exchange carries the connection.
        seed: of the jitter before a reconnection.

    Attributes:
        ignored: messages of kinds that nobody knows, and those that could not be read.
    """

    def __init__(self, wire: RestWire, *, seed: int | None = None) -> None:
        self._wire = wire
        self._random = random.Random(seed)
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._is_closed = False
        self.ignored = 0
        wire.exchange.hear = lambda message: self._hear(message)

    def renew(self, why: str) -> None:
        """End the connection; a new one follows."""
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
                self._inbox = asyncio.Queue()
                client = await self._connect()
            except Exception as error:
                yield StreamBroken(text=f"no user stream: {_told(error)}")
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
                await self._hang_up(client)
            if not self._is_closed:
                await asyncio.sleep(wait_s * self._random.random())

    async def _hang_up(self, client: Any) -> None:
        self._wire.exchange.clients.pop(client.url, None)
        with suppress(Exception):
            await client.close()

    def _hear(self, message: Any) -> None:
        self._inbox.put_nowait(message)

    def _tell_end(self, ended: Any) -> None:
        """Let the end of a connection land in the inbox that is its own."""
        inbox = self._inbox

        def tell(future: Any) -> None:
            error = None if future.cancelled() else future.exception()
            inbox.put_nowait(StreamBroken(text=f"the user stream was cut: {_told(error)}"))

        ended.add_done_callback(tell)

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
            found = self._happenings(message)
        except (KeyError, ValueError, TypeError, AttributeError):
            found = []
        self.ignored += not found
        return found

    async def _connect(self) -> Any:
        """A ccxt client that hears from now on, its end told by :meth:`_tell_end`."""
        raise NotImplementedError

    async def _keep_alive(self) -> None:
        """Runs beside the connection; returns at once where nothing is to be done."""

    def _happenings(self, message: Any) -> list[Happening]:
        raise NotImplementedError


def _told(error: BaseException | None) -> str:
    """What of an error may be told: ccxt's texts hold the address, and the address holds the stream's key."""
    return str(error) if error is None or isinstance(error, BrokerError) else type(error).__name__
