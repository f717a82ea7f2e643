"""The exchange's clock: stepped by hand, in real time, or so many times as fast."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Virtual time in UTC milliseconds.

    Args:
        start_ms: what it shows at first.
        speed: 0 stands still until :meth:`move_to`; 1 is real time; 60 an hour a minute.
        wall: seconds that pass in the world; for tests.
    """

    def __init__(
        self, start_ms: int, speed: float = 0.0, *, wall: Callable[[], float] = time.monotonic
    ) -> None:
        if not 0.0 <= speed <= 1e6:
            raise ValueError(f"speed must lie between 0 (stepped) and 1e6 (times real time), was {speed}")
        self.speed = speed
        self._wall, self._start_ms, self._start_s = wall, start_ms, wall()

    def now_ms(self) -> int:
        """The moment."""
        return self._start_ms + int((self._wall() - self._start_s) * 1000.0 * self.speed)

    def move_to(self, to_ms: int) -> None:
        """Jump ahead, at any speed; the clock never goes back."""
        self._start_ms, self._start_s = max(to_ms, self.now_ms()), self._wall()

    def seconds_until(self, at_ms: int) -> float:
        """Real seconds until it shows ``at_ms``; infinite if it stands still."""
        left_ms = at_ms - self.now_ms()
        if left_ms <= 0:
            return 0.0
        return left_ms / 1000.0 / self.speed if self.speed else float("inf")
