"""Waiting by the exchange's clock: real time, a replay that runs faster, or one that somebody steps."""

from __future__ import annotations

import asyncio
from typing import Protocol

from perpgym.envs.live.broker import Broker, BrokerError

# the first look at how fast the exchange's clock runs
_FIRST_NAP_S = 0.05
_SHORTEST_NAP_S = 0.005


class Clock(Protocol):
    """What a feed waits by."""

    async def sleep_until(self, time_ms: int) -> None:
        """Return once the exchange's clock shows this time, or cannot be waited for."""

    async def pause(self, wait_ms: int) -> None:
        """A moment of the world's time between two questions."""


class ExchangeClock:
    """Sleeps towards a moment and asks the exchange on the way: after a suspended host or a jump it knows.

    Args:
        broker: whose clock counts.
        longest_nap_s: between two looks.
    """

    def __init__(self, broker: Broker, *, longest_nap_s: float = 30.0) -> None:
        self._broker, self._longest_nap_s = broker, longest_nap_s

    async def sleep_until(self, time_ms: int) -> None:
        """As :class:`Clock`; returns early where the exchange's clock stands still until somebody asks."""
        loop = asyncio.get_running_loop()
        nap_s = _FIRST_NAP_S
        before_ms, before_s = await self._now_ms(), loop.time()
        while before_ms < time_ms:
            await asyncio.sleep(min(nap_s, self._longest_nap_s))
            now_ms, now_s = await self._now_ms(), loop.time()
            speed = (now_ms - before_ms) / (now_s - before_s)  # milliseconds a second
            if speed <= 0.0:
                return
            nap_s = max((time_ms - now_ms) / speed, _SHORTEST_NAP_S)
            before_ms, before_s = now_ms, now_s

    async def pause(self, wait_ms: int) -> None:
        """As :class:`Clock`."""
        await asyncio.sleep(wait_ms / 1_000.0)

    async def _now_ms(self) -> int:
        try:
            return await self._broker.server_time_ms()
        except BrokerError:
            return self._broker.now_ms()
