"""What the rooms of the desk share: broker, journal, books, orders, holds, and a word for what happens."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from perpgym.data.contract import Contract
from perpgym.envs.live.broker import AccessDenied, AccountTruth, Broker, BrokerError, Order
from perpgym.envs.live.holds import Holds, Level
from perpgym.envs.live.journal import Journal, JournalBroken
from perpgym.envs.live.order_table import OrderTable
from perpgym.envs.live.redact import Redactor, secrets_of
from perpgym.envs.live.wishes import Books, NoteLevel

LOG = logging.getLogger("perpgym.live")
PREFIX = "pg"
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "alarm": logging.CRITICAL}


@dataclass(frozen=True, kw_only=True)
class DeskTimings:
    """How long the desk waits for what, in seconds unless the name says otherwise.

    Attributes:
        first_wait_s, longest_wait_s: between two questions about an order, growing.
        absent_after_s: an order that is in none of the exchange's lists for so long does not exist; longer
            than its copies lag.
        absent_asks: and so many questions at least.
        settle_s: most that ``trade``, ``settle``, ``freeze`` and ``flatten`` take each.
        start_s: the same for a start, beside the quiet that the exchange asks for.
        quiet_s: most that a start waits because the exchange asks for quiet; its longest ban is three days.
        reconcile_s: between two comparisons with the account.
        settings_s: between two readings of leverage and modes.
        clock_s: between two looks at the exchange's clock and rules.
        slice_ms: between two slices of a TWAP or VWAP, about, by the exchange's clock.
        stream_grace_s: after which a trade that the user stream did not tell proves it deaf.
        dead_man_ms: after which the exchange cancels what rests if it hears nothing.

    Raises:
        ValueError: a time is not positive.
    """

    first_wait_s: float = 0.25
    longest_wait_s: float = 5.0
    absent_after_s: float = 20.0
    absent_asks: int = 4
    settle_s: float = 45.0
    start_s: float = 120.0
    quiet_s: float = 3 * 86_400.0 + 3_600.0
    reconcile_s: float = 15.0
    settings_s: float = 60.0
    clock_s: float = 600.0
    stream_grace_s: float = 5.0
    slice_ms: int = 300_000
    dead_man_ms: int = 120_000

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, was {getattr(self, name)}")


@dataclass(kw_only=True)
class Context:
    """Shared by the rooms of one desk.

    Attributes:
        epoch: counts the starts; part of every client id.
        truth: the newest that the exchange said of the account.
        marks: quote, the newest mark price by contract.
        redactor: whatever is noted passes it.
        is_urgent: somebody wants to stop: what waits gives way.
    """

    broker: Broker
    journal: Journal
    books: Books
    timings: DeskTimings
    holds: Holds = field(default_factory=Holds)
    table: OrderTable = field(default_factory=OrderTable)
    contracts: Mapping[str, Contract] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    epoch: int = 0
    truth: AccountTruth | None = None
    marks: Mapping[str, float] = field(default_factory=dict)
    redactor: Redactor = field(default_factory=lambda: Redactor(secrets_of(os.environ)))
    is_urgent: bool = False
    _number: int = 0

    def next_id(self) -> str:
        """A client id that was never used and never will be."""
        while True:
            self._number += 1
            client_id = f"{PREFIX}{self.journal.tag}{self.epoch}-{self._number}"
            # a damaged journal may have lost how far it had counted
            if client_id not in self.table:
                return client_id

    def is_ours(self, client_id: str) -> bool:
        """Whether this journal's program sent it, in any of its starts."""
        return client_id.startswith(PREFIX + self.journal.tag)

    def note(self, level: str, kind: str, **text: Any) -> None:
        """One line in the log and one row in the journal."""
        self.counts[kind] += 1
        text = self.redactor.value(text)
        LOG.log(_LEVELS[level], "%s %s", kind, json.dumps(text, default=str))
        try:
            self.journal.event(self.broker.now_ms(), level, kind, **text)
        except JournalBroken as error:
            self.break_journal(error)

    def hold(self, name: str, level: Level, reason: str, told: NoteLevel | None = None) -> None:
        """Put a hold in force, and say so once; ``told`` how loudly, None for as loudly as it is strict."""
        reason = self.redactor.text(reason)
        if self.holds.add(name, level, reason):
            usual: NoteLevel = "alarm" if level in ("halted", "reduce_only") else "warning"
            self.note(told or usual, "hold", name=name, why=reason, state=level)

    def lift(self, name: str) -> None:
        """Lift a hold, and say so."""
        if self.holds.clear(name):
            self.note("info", "lift", name=name)

    def blame(self, error: BrokerError) -> None:
        """The exchange could not be asked; nothing is opened until it could."""
        if isinstance(error, AccessDenied):
            self.hold("access", "halted", str(error))
        else:
            self.hold("exchange", "recovering", str(error))

    def break_journal(self, error: JournalBroken) -> None:
        """Nothing can be written: no new orders, exits only."""
        if self.holds.add("journal", "reduce_only", str(error)):
            LOG.critical("journal %s", error)

    async def learn_rules(self) -> None:
        """Read the contracts' rules anew. Filters are followed; other brackets are another risk."""
        known, self.contracts = self.contracts, await self.broker.contracts()
        changed = [n for n, c in self.contracts.items() if n in known and c.brackets != known[n].brackets]
        if changed:
            self.hold(
                "brackets", "reduce_only",
                f"the leverage brackets of {', '.join(changed)} have changed, the books know the old ones: "
                "start again to take them over, or resume",
            )  # fmt: skip

    def keep(self, order: Order, source: str) -> Order:
        """An order's new state, into the table and the journal."""
        self.table.put(order)
        self.write_state(order, source)
        return order

    def report(self, report: Order, source: str) -> Order:
        """What somebody says of an order of ours: merged, and written if it says anything new."""
        before = self.table[report.client_id].state
        order, is_new = self.table.merge(report)
        if is_new:
            self.write_state(order, source)
            if before.is_final and not order.state.is_final:
                self.note("alarm", "order_came_back", client_id=order.client_id, was=before, now=order.state)
        return order

    def write_state(self, order: Order, source: str) -> None:
        """A row of what became of an order."""
        try:
            self.journal.order_state(order, source, self.broker.now_ms())
        except JournalBroken as error:
            self.break_journal(error)
