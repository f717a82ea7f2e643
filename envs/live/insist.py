"""Asks what a start must know until the exchange answers, and is silent for as long as it asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from perpgym.data.clock import iso
from perpgym.envs.live.broker import AccessDenied, Broker, BrokerError, Rejected, Throttled
from perpgym.envs.live.context import DeskTimings

T = TypeVar("T")


class StartRefused(Exception):  # noqa: N818 - what is wrong with the account
    """The desk will not trade on this account as it is."""


async def insist(
    question: Callable[[], Coroutine[Any, Any, T]],
    broker: Broker,
    timings: DeskTimings,
    say: Callable[[str], object],
    missing: type[Exception] = BrokerError,
) -> T:
    """The answer, at the latest after ``start_s`` in which the exchange did not ask for quiet.

    An account whose program gives up is worse off than one whose program waits: a ban is waited for to its
    end. Cancel it to stop waiting.

    Args:
        question: asked again and again; it must not mind.
        broker: whose clock the exchange's pauses are of.
        timings: see there.
        say: is given the reason for each wait.
        missing: what else, beside a ``BrokerError``, is an answer that may come later.

    Raises:
        StartRefused: the exchange refuses for certain.
        BrokerError, or ``missing``: no answer within ``start_s``, or ``quiet_s`` of quiet were not enough.
    """
    loop = asyncio.get_running_loop()
    quiet_until = loop.time() + timings.quiet_s
    until, wait_s = loop.time() + timings.start_s, timings.first_wait_s
    while True:
        try:
            return await question()
        except (Rejected, AccessDenied) as error:
            raise StartRefused(str(error)) from error
        except Throttled as error:
            say(f"{error}; the exchange is asked again at {iso(error.until_ms)}")
            while broker.now_ms() < error.until_ms:
                if loop.time() > quiet_until:
                    raise
                # in short steps: the exchange's clock may be a replay's
                await asyncio.sleep(timings.first_wait_s)
            until = loop.time() + timings.start_s
        except (BrokerError, missing) as error:
            if loop.time() + wait_s > until:
                raise
            say(str(error))
            await asyncio.sleep(wait_s)
            wait_s = min(2.0 * wait_s, timings.longest_wait_s)
