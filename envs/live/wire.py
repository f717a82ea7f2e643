"""Sending to any exchange over HTTP: one clock, one resend after a clock error, no guess at an outcome."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, ParamSpec, TypeVar

from ccxt.base.errors import BaseError

from perpgym.envs.live.broker import BrokerError, Rejected, Unknown, Unreachable

P = ParamSpec("P")
T = TypeVar("T")
# what reading an answer can raise where it is not what it should be
_STRANGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, BaseError)
_CLOCK_SAMPLES, _GOOD_ROUND_TRIP_MS = 3, 250
_is_hurried: ContextVar[bool] = ContextVar("is_hurried", default=False)


@dataclass(eq=False)
class HttpFailure(Exception):  # noqa: N818 - an answer
    """An answer that is no success.

    Attributes:
        code: the exchange's number, 0 where the body has none.
        retry_after_s: how long to be quiet, where the answer says so.
        retry_at_ms: until when to be quiet, by the exchange's clock, where the answer says so.
    """

    status: int
    code: int
    text: str
    retry_after_s: float | None
    retry_at_ms: int | None = None


@contextmanager
def hurried() -> Iterator[None]:
    """What is asked inside is asked to protect or to close: it may use the budget that is kept for that."""
    token = _is_hurried.set(True)
    try:
        yield
    finally:
        _is_hurried.reset(token)


def understood(read: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """A read whose answer lacks what it should have counts as not answered."""

    @functools.wraps(read)
    async def careful(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await read(*args, **kwargs)
        except _STRANGE as error:
            raise Unreachable(f"{read.__name__}: an answer that cannot be read: {error!r}") from None

    return careful


def rows_of(answer: Any) -> list[dict[str, Any]]:
    """The rows of an answer that must be a list: of anything else a loop would say that there are none.

    Raises:
        TypeError: it is no list.
    """
    if not isinstance(answer, list):
        raise TypeError(f"rows expected, came {type(answer).__name__}")
    return answer


def finite(value: Any) -> float:
    """A number that can be reckoned with.

    Raises:
        ValueError, TypeError: it is none.
    """
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"a finite number expected, came {value!r}")
    return number


class RestWire:
    """Sends requests through ccxt when the exchange will have them, and says what became of each.

    A subclass knows one exchange: how it tells the time (``_server_ms``), what a failure means (``_judge``,
    ``_note``), how much may be asked (``_check_budget``) and how an answer is read (``_unwrap``).

    Args:
        exchange: ccxt's, raising :class:`HttpFailure` for whatever is no success; its clock is replaced.
        local_ms: a clock that never jumps.
    """

    # codes of a request that came too early or too late: refused for certain
    clock_codes: ClassVar[frozenset[int]] = frozenset()

    def __init__(self, exchange: Any, local_ms: Callable[[], int] | None = None) -> None:
        self.exchange = exchange
        started_ms, started = int(time.time() * 1000), time.monotonic()
        self._local_ms = local_ms or (lambda: started_ms + int(1000 * (time.monotonic() - started)))
        self.offset_ms = 0
        self.quiet_until_ms = 0
        exchange.milliseconds = self.now_ms
        exchange.options["maxRetriesOnFailure"] = 0

    def now_ms(self) -> int:
        """The exchange's clock, as kept here."""
        return self._local_ms() + self.offset_ms

    @understood
    async def sync_clock(self) -> int:
        """Ask the exchange's clock, by the middle of the fastest of a few round trips; returns its time."""
        best: tuple[int, int] | None = None
        for _sample in range(_CLOCK_SAMPLES):
            before = self._local_ms()
            server = await self._server_ms()
            after = self._local_ms()
            if best is None or after - before < best[0]:
                best = after - before, server - (before + after) // 2
            if best[0] <= _GOOD_ROUND_TRIP_MS:
                break
        assert best is not None
        # a pause that the exchange asked for is as long by whatever clock
        self.quiet_until_ms += best[1] - self.offset_ms
        self.offset_ms = best[1]
        return self.now_ms()

    async def call(
        self, name: str, params: dict[str, Any], *, is_write: bool = False, is_urgent: bool = False
    ) -> Any:
        """One request.

        Args:
            name: ccxt's name of the endpoint, e.g. ``fapiPrivateGetOrder``.
            is_write: it may change something: no answer then means nobody knows.
            is_urgent: it cancels or closes, and may use the part of the budget kept for that; so may what is
                asked while :func:`hurried`.

        Raises:
            BrokerError: it did not simply succeed.
        """
        is_urgent = is_urgent or _is_hurried.get()
        try:
            return await self._send(name, params, is_write, is_urgent)
        except Rejected as refusal:
            if refusal.code not in self.clock_codes:
                raise
        # refused for certain, so sending it once more cannot do it twice
        await self.sync_clock()
        return await self._send(name, params, is_write, is_urgent)

    async def _send(self, name: str, params: dict[str, Any], is_write: bool, is_urgent: bool) -> Any:
        self._check_budget(name, is_urgent)
        try:
            answer = await getattr(self.exchange, name)(params)
        except HttpFailure as failure:
            raise self._note(self._judge(failure, is_write), failure, name) from None
        except asyncio.CancelledError:
            raise
        except Exception as error:
            # ccxt's text holds the signed query: only its class goes on
            raise _unsure(f"{name}: no answer ({type(error).__name__})", is_write) from None
        try:
            return self._unwrap(answer)
        except (TypeError, KeyError, ValueError):
            raise _unsure(f"{name}: an answer that cannot be read", is_write) from None

    async def _server_ms(self) -> int:
        raise NotImplementedError

    def _judge(self, failure: HttpFailure, is_write: bool) -> BrokerError:
        raise NotImplementedError

    def _note(self, error: BrokerError, failure: HttpFailure, name: str) -> BrokerError:
        raise NotImplementedError

    def _check_budget(self, name: str, is_urgent: bool) -> None:
        raise NotImplementedError

    def _unwrap(self, answer: Any) -> Any:
        """What the caller gets of an answer.

        Raises:
            TypeError, KeyError or ValueError: it is none.
        """
        raise NotImplementedError


def _unsure(text: str, is_write: bool) -> BrokerError:
    return Unknown(text) if is_write else Unreachable(text)
