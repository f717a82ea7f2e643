"""How much processor time training may take: what makes algorithms of different speed comparable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Budget:
    """Counts the processor seconds of this process while it trains, and says what share of them is spent.

    With a limit, the share drives every schedule of the run as the share of its steps does, so that a
    learning rate that falls to zero in a line does so when time is up.

    Args:
        max_seconds: processor seconds, all threads together; infinite for no limit.
        clock: processor seconds since some moment.
    """

    def __init__(
        self, max_seconds: float = math.inf, *, clock: Callable[[], float] = time.process_time
    ) -> None:
        self.max_seconds, self._clock = max_seconds, clock
        self._counted = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Count from now on, unless that is done already."""
        if self._since is None:
            self._since = self._clock()

    def stop(self) -> None:
        """Count no further."""
        self._counted, self._since = self.spent, None

    def go_on_from(self, spent: float) -> None:
        """Take what an interrupted run had spent."""
        self._counted = spent
        self._since = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Whatever happens within is not training."""
        was_counting = self._since is not None
        self.stop()
        try:
            yield
        finally:
            if was_counting:
                self.start()

    @property
    def spent(self) -> float:
        """Processor seconds counted so far, those before a resume included."""
        return self._counted + (0.0 if self._since is None else self._clock() - self._since)

    @property
    def share(self) -> float:
        """Of the limit, from 0 on; may pass 1, for what was begun is finished."""
        return self.spent / self.max_seconds

    @property
    def is_spent(self) -> bool:
        """Whether nothing more may begin."""
        return self.spent >= self.max_seconds
