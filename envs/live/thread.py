"""The desk thread: one event loop for all that speaks to the exchange, beside the thread that decides."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

# how often a waiting caller looks whether somebody wants to stop
_LOOK_S = 0.2


class Interrupted(Exception):  # noqa: N818 - what happened, not what is wrong
    """Somebody wants to stop while a call was waited for; the call goes on or was cancelled."""


class DeskThread:
    """Runs coroutines in a loop of its own; inference in the caller's thread delays none of them.

    Use as a context manager, or call :meth:`close`.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.stop_wanted = threading.Event()
        self._thread = threading.Thread(target=self._run, name="perpgym-desk", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call(self, work: Coroutine[Any, Any, T], *, is_patient: bool = True) -> T:
        """Run a coroutine to its end and return what it returns.

        Args:
            work: the coroutine.
            is_patient: whether it is waited for even if somebody wants to stop.

        Raises:
            Interrupted: ``stop_wanted`` was set; the coroutine is cancelled.
        """
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        while True:
            try:
                return future.result(_LOOK_S)
            except FutureTimeout:
                if future.done():
                    raise
                if self.stop_wanted.is_set() and not is_patient:
                    self._cancel(future)
                    raise Interrupted("a stop was asked for") from None

    def do(self, work: Callable[[], T]) -> T:
        """Call a function in the loop's thread: what belongs to the desk is touched nowhere else."""

        async def once() -> T:
            return work()

        return self.call(once())

    def _cancel(self, future: Future[T]) -> None:
        future.cancel()

    def close(self) -> None:
        """Cancel what runs and end the thread."""
        if self.loop.is_closed():
            return

        async def cancel_all() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.loop.shutdown_asyncgens()

        asyncio.run_coroutine_threadsafe(cancel_all(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def __enter__(self) -> DeskThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
