"""Binance's user stream: one connection at a time, opened anew whenever it may have gone deaf.

The key is kept alive here and its answer read: ccxt ignores ``listenKeyExpired`` and reconnects with a dead
key without a word. What is heard is never trusted alone; the desk compares it with the account.
"""

from __future__ import annotations

import asyncio
from typing import Any

from perpgym.envs.live.binance_payloads import Names, read_event
from perpgym.envs.live.binance_wire import Wire
from perpgym.envs.live.broker import BrokerError, Happening
from perpgym.envs.live.redact import learn
from perpgym.envs.live.stream import EventStream

# the key lives an hour; the exchange advises to prolong it every half hour at the latest
KEEP_ALIVE_S = 1_200.0


class UserStream(EventStream):
    """See ``EventStream``.

    Args:
        wire: for the key, and whose ccxt exchange carries the connection.
        names: from the exchange's symbol to ours.
        keep_alive_s: between two prolongations of the key.
        seed: of the jitter before a reconnection.
    """

    def __init__(
        self, wire: Wire, names: Names, *, keep_alive_s: float = KEEP_ALIVE_S, seed: int | None = None
    ) -> None:
        super().__init__(wire, seed=seed)
        self._names, self._keep_alive_s = names, keep_alive_s

    async def _connect(self) -> Any:
        exchange = self._wire.exchange
        answer = await self._wire.call("fapiPrivatePostListenKey", {}, is_urgent=True)
        # with it anybody hears every order, trade and balance
        learn(str(answer["listenKey"]))
        url = exchange.get_private_ws_url("linear", answer["listenKey"])
        ended = exchange.watch(url, "user")
        client = exchange.clients[url]
        self._tell_end(ended)
        await client.connected
        return client

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._keep_alive_s)
            try:
                await self._wire.call("fapiPrivatePutListenKey", {}, is_urgent=True)
            except BrokerError as error:
                self.renew(f"the user stream's key could not be prolonged: {error}")
                return

    def _happenings(self, message: Any) -> list[Happening]:
        return read_event(message, self._names)
