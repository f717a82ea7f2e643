"""Waiting by the exchange's clock: real time, a replay that runs faster, or one that somebody steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from perpgym.envs.live.broker import Broker, BrokerError

# the first look at how fast the exchange's clock runs
_FIRST_NAP_S = 0.1
_SHORTEST_NAP_S = 0.005


class Clock(Protocol):
    """What a feed waits by."""

    async def sleep_until(self, time_ms: int) -> None:
        """Return once the exchange's clock shows this time, or cannot be waited for."""

    async def pause(self, wait_ms: int) -> None:
        """A moment between two questions, in the exchange's milliseconds."""


class ExchangeClock:
    """Sleeps towards a moment and asks the exchange on the way: after a suspended host or a jump it knows.

    Args:
        broker: whose clock counts.
        longest_nap_s: between two looks.
    """

    def __init__(self, broker: Broker, *, longest_nap_s: float = 30.0) -> None:
        self._broker, self._longest_nap_s = broker, longest_nap_s
        # the exchange's milliseconds in one of ours, as seen last
        self._speed = 1.0

    async def sleep_until(self, time_ms: int) -> None:
        """As :class:`Clock`; returns early where the exchange's clock stands still until somebody asks."""
        loop = asyncio.get_running_loop()
        nap_s = _FIRST_NAP_S
        before_ms, before_s = await self._now_ms(), loop.time()
        while before_ms < time_ms:
            await asyncio.sleep(min(nap_s, self._longest_nap_s))
            now_ms, now_s = await self._now_ms(), loop.time()
            if now_ms == before_ms:
                return
            # two looks at a line that shakes: never trusted to be slow, which would oversleep
            self._speed = max((now_ms - before_ms) / (now_s - before_s) / 1_000.0, 1.0)
            nap_s = max((time_ms - now_ms) / 1_000.0 / self._speed, _SHORTEST_NAP_S)
            before_ms, before_s = now_ms, now_s

    async def pause(self, wait_ms: int) -> None:
        """As :class:`Clock`."""
        await asyncio.sleep(wait_ms / 1_000.0 / self._speed)

    async def _now_ms(self) -> int:
        try:
            return await self._broker.server_time_ms()
        except BrokerError:
            return self._broker.now_ms()


class ReplayClock:
    """A local clock that runs as fast as a replay's, so that the time between two looks is right, too."""

    def __init__(self) -> None:
        self._begun_s, self._speed = time.monotonic(), 1.0

    def now_ms(self) -> int:
        """Milliseconds since it was made, of the replay's time."""
        return int(1_000.0 * (time.monotonic() - self._begun_s) * self._speed)

    async def learn(self, server_time_ms: Callable[[], Awaitable[int]], *, over_s: float = 0.5) -> None:
        """Measure the replay's speed; 0 is one that stands still until somebody steps it."""
        first_ms, first_s = await server_time_ms(), time.monotonic()
        await asyncio.sleep(over_s)
        second_ms, second_s = await server_time_ms(), time.monotonic()
        self._speed = max(second_ms - first_ms, 0) / 1_000.0 / (second_s - first_s)
