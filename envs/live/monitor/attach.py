"""Ties a live env to its monitor: how it is, what its bars were, and what the page's buttons do to it."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from perpgym.data.bars import CLOSE
from perpgym.data.tape import Tape
from perpgym.envs.live.broker import Broker, BrokerError, Position
from perpgym.envs.live.desk import Desk
from perpgym.envs.live.journal import Journal, JournalBroken
from perpgym.envs.live.monitor.facts import Health, note_bar

T = TypeVar("T")


class Thread(Protocol):
    """Where the desk runs."""

    def call(self, work: Coroutine[Any, Any, T], *, is_patient: bool = True) -> T:
        """Run a coroutine there and wait for it."""


class Env(Protocol):
    """What of a ``LiveEnv`` is watched."""

    broker: Broker
    journal: Journal
    desk: Desk

    @property
    def thread(self) -> Thread:
        """Of the desk."""

    @property
    def tape(self) -> Tape:
        """The newest bars."""

    @property
    def bar(self) -> int:
        """The newest of them."""

    @property
    def close_ms(self) -> int:
        """When it closed."""


class EnvWatch:
    """Health of a live env; ``note`` must be called after its reset and after each step.

    Args:
        env: the one that trades in this program.
    """

    def __init__(self, env: Env) -> None:
        self._env = env
        self._feed_delay_s: float | None = None
        self._close_ms: int | None = None
        self._events, self._heard_ms = -1, 0

    def note(self) -> None:
        """Write the newest bar's marks and the account's entries down."""
        env = self._env
        # a step may have waited for a bar that was late
        self._close_ms = env.close_ms
        self._feed_delay_s = (env.broker.now_ms() - env.close_ms) / 1000.0
        row = env.tape.mark[env.bar, :, CLOSE]
        marks = {contract.symbol: float(mark) for contract, mark in zip(env.tape.contracts, row, strict=True)}
        # a journal that is broken is the desk's business, and it says so
        with suppress(JournalBroken):
            note_bar(env.journal, env.close_ms, marks, self._positions())

    def _positions(self) -> Mapping[str, Position]:
        """As the exchange says; nothing where it does not."""
        try:
            return self._env.thread.call(self._env.broker.account()).positions
        except BrokerError:
            return {}

    def health(self) -> Health:
        """How it is now; may be called from any thread."""
        now_ms, status = self._env.broker.now_ms(), self._env.desk.status()
        events = status.counts.get("events", 0)
        if events != self._events:
            self._events, self._heard_ms = events, now_ms
        ages = {"account": (now_ms - self._heard_ms) / 1000.0}
        if self._close_ms is not None:
            ages["bars"] = (now_ms - self._close_ms) / 1000.0
        return Health(status=status, now_ms=now_ms, feed_delay_s=self._feed_delay_s, stream_ages_s=ages)


class EnvControls:
    """What the page's buttons do to a live env: the desk's own freeze and flatten.

    Raises:
        RuntimeError: from both, it was not done in the desk's time; the desk's state stays halted.
    """

    def __init__(self, env: Env) -> None:
        self._env = env

    def freeze(self, reason: str) -> None:
        """Open nothing, cancel what rests; positions keep their stops."""
        if not self._env.thread.call(self._env.desk.freeze(reason)):
            raise RuntimeError("orders still rest; nothing new is opened")

    def flatten(self, reason: str) -> None:
        """Freeze, and close every position."""
        if not self._env.thread.call(self._env.desk.flatten(reason)):
            raise RuntimeError("positions are still open; nothing new is opened")
