"""The exchange as one object: engine, clock, names, keys, limits; what the wire's rooms are given."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from perpgym.envs.exchange.books import AccountEvent, Event
from perpgym.envs.exchange.clock import Clock
from perpgym.envs.exchange.engine import Engine
from perpgym.envs.exchange.gate import Keys, Limits
from perpgym.envs.exchange.symbols import Symbols

LISTEN_KEY_MS = 60 * 60_000


@dataclass
class ListenKey:
    """The key of the user stream; one account has one at a time."""

    text: str = ""
    until_ms: int = 0


@dataclass(kw_only=True)
class Venue:
    """Everything that a request may need.

    Attributes:
        has_admin: whether ``/admin`` answers.
        steps_on_poll: a client that asks for the same bars again at the same moment waits for the next one:
            the clock moves there. So a program that polls runs through a tape as fast as it can, and always
            the same way.
        skew_ms: by how much the clock that clients are held to runs ahead of the exchange's.
        status: of the contracts that do not trade as usual, e.g. ``SETTLING``.
        updated_ms: when a contract's position changed last.
        depth_updates: by contract, the id of its book's newest change.
        on_bar: called with the index of every finer bar that has closed.
        wall_ms: the world's clock, which the user stream's key lives by: what keeps it alive is a timer of
            the client's.
    """

    engine: Engine
    clock: Clock
    keys: Keys = field(default_factory=Keys)
    limits: Limits = field(default_factory=Limits)
    has_admin: bool = False
    steps_on_poll: bool = False
    skew_ms: int = 0
    status: dict[int, str] = field(default_factory=dict)
    listen_key: ListenKey = field(default_factory=ListenKey)
    on_bar: list[Callable[[int], None]] = field(default_factory=list)
    wall_ms: Callable[[], int] = lambda: int(time.time() * 1000)

    def __post_init__(self) -> None:
        self.books, self.market = self.engine.books, self.engine.market
        self.names = Symbols(self.books.contracts)
        self.start_ms = self.engine.now_ms
        self._polled: set[str] = set()
        self.updated_ms = [self.start_ms] * len(self.books.contracts)
        self.depth_updates = [1_000_000] * len(self.books.contracts)
        self.books.listeners.append(self._note)

    def _note(self, event: Event) -> None:
        if isinstance(event, AccountEvent):
            for asset in event.assets:
                self.updated_ms[asset] = event.time_ms

    def note_poll(self, query: str) -> None:
        """Somebody asks for bars; the second time at one moment, the next bar closes."""
        if not self.steps_on_poll:
            return
        if query in self._polled:
            self.clock.move_to(self.engine.next_ms)
            self._polled.clear()
        self._polled.add(query)

    @property
    def has_listen_key(self) -> bool:
        """Whether the user stream's key lives."""
        return bool(self.listen_key.text) and self.wall_ms() < self.listen_key.until_ms

    @property
    def client_ms(self) -> int:
        """The clock by which a client's calls are counted: the one that it keeps itself."""
        return self.now_ms if self.keys.is_strict else self.wall_ms()

    @property
    def now_ms(self) -> int:
        """The exchange's time."""
        return self.engine.now_ms

    def pass_time(self) -> None:
        """Bring the engine up to the clock, bar by bar, and tell ``on_bar`` of each that closes."""
        to_ms = self.clock.now_ms()
        while not self.market.is_over and self.engine.next_ms <= to_ms:
            closed = self.market.fine
            self.engine.advance(self.engine.next_ms)
            self.depth_updates = [number + 1 for number in self.depth_updates]
            for tell in self.on_bar:
                tell(closed)
        self.engine.advance(to_ms)

    def new_listen_key(self) -> str:
        """The key that there is, or a new one; either lives an hour from now."""
        if not self.has_listen_key:
            self.listen_key.text = secrets.token_hex(32)
        self.listen_key.until_ms = self.wall_ms() + LISTEN_KEY_MS
        return self.listen_key.text
