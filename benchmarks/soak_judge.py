"""What the soak holds against a program, judged from the exchange's own state while it happens."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from perpgym.envs.exchange.books import AlgoEvent, Event, OrderEvent
from perpgym.envs.exchange.margins import equity
from perpgym.envs.exchange.orders import sign
from perpgym.envs.exchange.server import Server

# of the exchange's clock, of one position without its stop while the program is up; the soak's programs wait
# less than shipped ones for their looks and for orders to prove absent (``soak_life.SHORTENED``), and a stop
# that is found missing by one of these is missing so much longer with the shipped waits
BARE_MS = 2_000
MONEY = 1e-8
_QUANTITY = 1e-9
# between the account that the desk read and the order that it sent, a fee and a spread are paid
_CAP_SLACK = 1e-3
_OURS = "pg"
# a stop so many times further from the entry than it should be protects nothing: a position that is added to
# has a new entry, and its stop follows
_REACH = 2.0
# after which a program has heard of a trade, or settles anew
_HEARD_MS = 1_000


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One broken promise; ``time_ms`` of the exchange's clock."""

    rule: str
    text: str
    seed: int
    life: int
    time_ms: int


@dataclass(kw_only=True)
class Found:
    """What the judge has seen; ``worst_bare_ms`` of the exchange's clock, while the program was up."""

    violations: list[Violation] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    worst_bare_ms: int = 0

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "violations": [asdict(violation) for violation in self.violations],
            "counts": dict(self.counts),
            "worst_bare_ms": self.worst_bare_ms,
        }


class Judge:
    """Watches one account.

    A position is bare while no closing stop rests against it within reach of its entry: whoever's it is, one
    that is far away protects nothing. Its time counts while the program is up (from
    the end of its recovery to its death) and the exchange admits its requests; a restart begins the count
    anew: what a dead program cannot place is bounded by the recovery time, which is told apart.

    Args:
        server: the exchange.
        journal: of the program, read as somebody else would: what is found there is on the disk.
        seed: for the words.
        cap: gross notional over equity that the desk may reach.
        stop_loss: of the program's account, fraction of the entry price.
    """

    def __init__(self, server: Server, journal: Path, seed: int, cap: float, stop_loss: float) -> None:
        self.venue, self.books = server.venue, server.venue.books
        self.found = Found()
        self.life, self.is_up = 0, False
        # until when (exchange's clock) nobody's requests are admitted
        self.shut_until_ms = 0
        self._seed, self._cap, self._path = seed, cap, journal
        self._reach = _REACH * stop_loss
        self._db: sqlite3.Connection | None = None
        self._names: set[str] = set()
        self.bare_ms, self._looked_ms, self._is_told = 0, self.venue.now_ms, False
        self._foreign: list[tuple[int, float]] = []
        # when something was booked that no program can have heard of at once
        self.booked_ms = 0
        self.books.listeners.append(self._hear)

    def blame(self, rule: str, text: str) -> None:
        """Write a violation down."""
        self.found.violations.append(
            Violation(rule=rule, text=text, seed=self._seed, life=self.life, time_ms=self.venue.now_ms)
        )

    # --- orders ---

    def _rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """What the journal's file says now."""
        if self._db is None:
            self._db = sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)
            self._db.row_factory = sqlite3.Row
        return self._db.execute(sql, values).fetchall()

    def _hear(self, event: Event) -> None:
        if isinstance(event, AlgoEvent) and event.algo.status == "NEW":
            self._check_intent(event.algo.client_id, 0.0, event.algo.side == "BUY")
        elif isinstance(event, OrderEvent) and event.execution == "NEW":
            order = event.order
            if order.original_kind not in ("MARKET", "LIMIT"):
                # what a stop or a liquidation sent is the exchange's own
                return
            if not order.client_id.startswith(_OURS):
                self._foreign.append((self.venue.now_ms, order.quantity))
                return
            self._check_intent(order.client_id, order.quantity, order.side == "BUY")
            if not order.reduce_only:
                self._check_cap(order.client_id)

    def _check_intent(self, name: str, quantity: float, is_buy: bool) -> None:
        """One order an intent, no larger than it, and the intent is on the disk before the order is here."""
        if not name.startswith(_OURS):
            return
        self.found.counts["orders"] += 1
        if name in self._names:
            self.blame("duplicate", f"{name} came twice")
        self._names.add(name)
        rows = self._rows("SELECT quantity FROM intents WHERE client_id = ?", name)
        if not rows:
            self.blame("intent", f"{name} is in no journal")
            return
        intended = float(rows[0]["quantity"])
        if quantity > abs(intended) + _QUANTITY or (intended > 0.0) != is_buy:
            self.blame("quantity", f"{name}: {'' if is_buy else '-'}{quantity} came, {intended} was intended")

    def _check_cap(self, name: str) -> None:
        """Positions and all that rests, if every order that hurts fills, at the moment an order comes."""
        held, mark = self.books.position(0), self.venue.market.mark_price(0)
        resting = [o for o in self.books.registry.open_orders(0) if not o.reduce_only]
        up = held + sum(o.left for o in resting if o.side == "BUY")
        down = held - sum(o.left for o in resting if o.side == "SELL")
        since = self.venue.now_ms - BARE_MS
        foreign = sum(quantity for at_ms, quantity in self._foreign if at_ms >= since)
        most = (max(abs(up), abs(down)) - foreign) * mark / max(equity(self.books), MONEY)
        if most > self._cap * (1.0 + _CAP_SLACK):
            self.blame("cap", f"{name}: exposure could reach {most:.4f}, above {self._cap:g}")

    # --- protection ---

    @property
    def is_bare(self) -> bool:
        """Whether a position has no closing stop that would act in time."""
        held, entry = self.books.position(0), self.books.entry_price(0)
        side = 1.0 if held > 0.0 else -1.0
        return held != 0.0 and not any(
            algo.close_position
            and algo.is_stop
            and held * sign(algo.side) < 0.0
            and side * (1.0 - algo.trigger_price / entry) <= self._reach
            for algo in self.books.registry.open_algos(0)
        )

    @property
    def is_shut_out(self) -> bool:
        """Whether the exchange admits nobody's orders."""
        return self.venue.now_ms < self.shut_until_ms

    def look(self) -> None:
        """Count how long a position has been bare; call it again and again, and before and after a jump."""
        now_ms = self.venue.clock.now_ms()
        passed_ms, self._looked_ms = now_ms - self._looked_ms, now_ms
        if not self.is_bare:
            self.bare_ms, self._is_told = 0, False
        elif self.is_up and not self.is_shut_out:
            self.bare_ms += passed_ms
            self.found.worst_bare_ms = max(self.found.worst_bare_ms, self.bare_ms)
            if self.bare_ms > BARE_MS and not self._is_told:
                self._is_told = True
                self.blame("bare", f"{self.books.position(0)} without a stop for {self.bare_ms} ms")

    def skip(self) -> None:
        """The clock has jumped over time in which nothing would have happened: it does not count."""
        self._looked_ms = self.venue.clock.now_ms()

    # --- lives ---

    def begin(self, life: int) -> None:
        """A program starts."""
        self.life, self.is_up = life, False

    def rise(self) -> None:
        """It has recovered."""
        self.look()
        self.is_up, self.bare_ms = True, 0

    def end(self) -> None:
        """It is dead."""
        self.look()
        self.is_up = False

    def check_ledger(self) -> None:
        """The journal's income adds up to the exchange's wallet, its trades to the position.

        Not judged where somebody traded between the settlement and this look at it.
        """
        if self.venue.now_ms < self.booked_ms + _HEARD_MS:
            return
        self.found.counts["ledgers"] += 1
        began = float(self._rows("SELECT value FROM meta WHERE key = 'began_wallet'")[0][0])
        wallet = began + float(self._rows("SELECT coalesce(sum(amount), 0) FROM income")[0][0])
        held = float(self._rows("SELECT coalesce(sum(quantity), 0) FROM fills")[0][0])
        if abs(wallet - self.books.wallet) > MONEY:
            self.blame("ledger", f"the journal has {wallet!r}, the exchange {self.books.wallet!r}")
        if abs(held - self.books.position(0)) > MONEY:
            self.blame("ledger", f"the journal holds {held!r}, the exchange {self.books.position(0)!r}")

    def give_verdict(self) -> None:
        """At the very end: flat or protected, nothing rests, and no decision was carried out twice."""
        if self.is_bare:
            self.blame("end", f"{self.books.position(0)} is held without a stop")
        resting = [o.client_id for o in self.books.registry.open_orders(0) if o.client_id.startswith(_OURS)]
        if resting:
            self.blame("end", f"{', '.join(resting)} still rest")
        sent: Counter[int] = Counter()
        placed = {order.client_id for order in self.books.registry.orders.values()}
        for row in self._rows("SELECT * FROM intents WHERE decision_id IS NOT NULL"):
            if row["client_id"] in placed:
                sent[row["decision_id"]] += abs(row["quantity"])
        for row in self._rows("SELECT id, wanted FROM decisions"):
            wanted = sum(abs(wish["quantity"]) for wish in json.loads(row["wanted"]))
            if sent[row["id"]] > wanted + MONEY:
                self.blame("duplicate", f"decision {row['id']}: {sent[row['id']]} sent, {wanted} wished for")

    def journal_counts(self) -> dict[str, int]:
        """How often what was noted in the journal."""
        rows = self._rows("SELECT kind, text FROM events")
        names = [json.loads(row["text"]).get("name") if row["kind"] == "hold" else None for row in rows]
        return dict(
            Counter(
                f"hold {name}" if name else str(row["kind"]) for row, name in zip(rows, names, strict=True)
            )
        )

    def close(self) -> None:
        """Let go of the journal."""
        if self._db is not None:
            with closing(self._db):
                self._db = None
