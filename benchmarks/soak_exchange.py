"""The soak's exchange: the simulated one in a process of its own, with its judge and its incidents.

Its clock runs in real time and jumps to the end of a bar when the program has nothing more to do in it: an
hour in which nothing would happen takes no time, and everything that does happen takes the time it takes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from soak_incidents import Incidents
from soak_judge import BARE_MS, Judge

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig
from perpgym.envs.exchange import admin
from perpgym.envs.exchange.clock import Clock
from perpgym.envs.exchange.engine import Engine
from perpgym.envs.exchange.gate import Keys
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.server import Server, serving
from perpgym.envs.exchange.venue import Venue

_LOOK_S = 0.01
# so long a jump is put off for a position without a stop: longer than a program may leave one
_PATIENCE_MS = 2 * BARE_MS
# now and then the program is left alone for a while, so that its background looks at things
_DWELL, _DWELL_MS = 0.1, 600


class Stage:
    """What the driver and the program ask of the exchange, through its admin API.

    Args:
        server: listening.
        journal: of the program.
        seed: of incidents.
        cap, stop_loss: see ``Judge``.
        count: is told the number of bars that have closed.
    """

    def __init__(
        self,
        server: Server,
        journal: Path,
        seed: int,
        cap: float,
        stop_loss: float,
        count: Callable[[int], None],
    ) -> None:
        self.server, self.venue = server, server.venue
        self.judge = Judge(server, journal, seed, cap, stop_loss)
        self.incidents = Incidents(server, self.judge, seed)
        self._count, self._closed = count, 0
        self._dwell_until_ms = 0
        self._recovery_s: list[float] = []
        self.venue.on_bar.append(self._close)

    def _close(self, _bar: int) -> None:
        self._closed += 1
        self._count(self._closed)

    def now(self) -> dict[str, Any]:
        """What the clock shows."""
        return {"now_ms": self.venue.clock.now_ms(), "is_moved": True}

    def jump(self, to_ms: int) -> dict[str, Any]:
        """The program waits until then; ``is_moved`` says whether it is then, else it asks again."""
        self._look()
        now_ms = self.venue.clock.now_ms()
        if to_ms <= now_ms:
            return self.now()
        # what has begun is met before the hour is over
        is_bare = self.judge.is_bare and self.judge.bare_ms < _PATIENCE_MS
        if is_bare or self.incidents.are_under_way or now_ms < self._dwell_until_ms:
            return {**self.now(), "is_moved": False}
        self._move(to_ms)
        return self.now()

    def _move(self, to_ms: int) -> None:
        self.incidents.end_bar()
        # in the hour that is jumped over the program would have told the dead man's switch that it lives
        over_ms = to_ms - self.venue.clock.now_ms()
        if self.judge.is_up:
            countdowns = self.venue.engine.countdowns
            self.venue.engine.countdowns = {asset: at_ms + over_ms for asset, at_ms in countdowns.items()}
        was_bare = self.judge.is_bare
        self.venue.clock.move_to(to_ms)
        self.server.pass_time()
        if not was_bare:
            self.judge.skip()
        self.judge.look()
        self.incidents.begin_bar()
        if self.incidents.rng.random() < _DWELL:
            self._dwell_until_ms = to_ms + self.incidents.rng.randrange(_DWELL_MS)

    def leave(self, bars: int) -> dict[str, Any]:
        """The program is dead for so many bars."""
        for _bar in range(bars):
            self._move(self.venue.engine.next_ms)
        return self.now()

    def begin(self, life: int) -> dict[str, Any]:
        """A program starts."""
        self.judge.begin(life)
        return self.now()

    def rise(self) -> dict[str, Any]:
        """It has recovered."""
        self.judge.rise()
        return self.now()

    def ready(self, seconds: float) -> dict[str, Any]:
        """It is ready, so long after its start."""
        if self.judge.life > 1:
            self._recovery_s.append(seconds)
        return self.now()

    def end(self) -> dict[str, Any]:
        """It has died; what the judge has against it so far."""
        self.judge.end()
        return self.judge.found.to_json()

    def settle(self) -> dict[str, Any]:
        """It says that its account is settled."""
        self.judge.check_ledger()
        return self.now()

    def blame(self, rule: str, text: str) -> dict[str, Any]:
        """What the driver has against it."""
        self.judge.blame(rule, text)
        return self.now()

    def calm(self) -> dict[str, Any]:
        """Nothing goes wrong any more."""
        self.incidents.calm()
        return self.now()

    def verdict(self) -> dict[str, Any]:
        """Everything that was found."""
        self.judge.look()
        self.judge.give_verdict()
        return {
            **self.judge.found.to_json(),
            "recovery_s": self._recovery_s,
            "bars": self._closed,
            "trades": len(self.venue.books.registry.trades),
            "thrown": dict(self.incidents.total),
            "journal": self.judge.journal_counts(),
        }

    def _look(self) -> None:
        self.incidents.see_pauses()
        self.judge.look()

    async def keep_looking(self) -> None:
        """Look again and again, for as long as the driver lives."""
        driver = os.getppid()
        while os.getppid() == driver:
            self._look()
            await asyncio.sleep(_LOOK_S)

    @property
    def calls(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """By name, as of the admin API."""
        mine = ("now", "jump", "leave", "begin", "rise", "ready", "end", "settle", "blame", "calm", "verdict")
        return {f"soak_{name}": getattr(self, name) for name in mine}


def make_venue(tape: Tape, start_bar: int, config: EnvConfig) -> Venue:
    """An exchange whose clock runs in real time."""
    engine = Engine(Replay(tape, start_bar=start_bar), config)
    return Venue(engine=engine, clock=Clock(engine.now_ms, 1.0), keys=Keys(is_strict=True), has_admin=True)


def _answer(answer: Callable[..., dict[str, Any]], _server: Server, body: dict[str, Any]) -> dict[str, Any]:
    return answer(**body)


async def exchange(
    venue: Venue,
    journal: Path,
    seed: int,
    cap: float,
    stop_loss: float,
    count: Callable[[int], None],
    told: Callable[[str], None],
) -> None:
    """Serve until the driver is gone or this process is ended.

    Args:
        told: is given the address.
    """
    async with serving(venue) as server:
        stage = Stage(server, journal, seed, cap, stop_loss, count)
        for name, answer in stage.calls.items():
            admin.HANDLERS[name] = partial(_answer, answer)
        told(server.url)
        with suppress(asyncio.CancelledError):
            await stage.keep_looking()
