"""Books what the exchange says it has done, once each, and compares the books with the account."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from perpgym.envs.live.broker import AccountTruth, Fill, Income
from perpgym.envs.live.context import Context
from perpgym.envs.live.crash_points import reach
from perpgym.envs.live.journal import JournalBroken, Snapshot

# trades and income are asked for again from so long before the newest known: late rows have earlier times
OVERLAP_MS = 60_000
# and from so long before the last complete answer: a row may be told that late
_LATE_MS = 3_600_000
# the newest moment up to which everything was collected
_MARK = "collected_ms"
# of orders that the exchange sends for us: liquidation, auto-deleveraging, settlement of what is delisted
FORCED_PREFIXES = ("autoclose-", "adl_autoclose", "settlement_autoclose-")
_TRIES = 4


class Bookkeeper:
    """Trades and income, into journal and books.

    Attributes:
        fills, income: what was booked since the last settlement.
        unheard: when a trade was learned that the user stream has not told, by trade.
        is_told: the user stream has told a trade that nobody has protected yet.
    """

    def __init__(self, context: Context) -> None:
        self._x = context
        self.fills: list[Fill] = []
        self.income: list[Income] = []
        self.unheard: dict[tuple[str, str], float] = {}
        self.is_told = False
        self._seen_fills: set[tuple[str, str]] = set()
        self._seen_income: set[str] = set()
        self._since_ms = self._marked_ms = 0
        self._known_ms: int | None = None
        self._is_new = True

    def begin(self, since_ms: int) -> None:
        """Know what the journal knows; what happened before ``since_ms`` is no business of this account."""
        journal = self._x.journal
        self._is_new = True
        self._seen_fills = {(fill.contract, fill.trade_id) for fill in journal.fills()}
        self._seen_income = {row.income_id for row in journal.incomes()}
        # what the stream told is no proof that everything before it was told too
        mark = journal.meta(_MARK)
        self._known_ms = None if mark is None else int(mark)
        self._since_ms = max(since_ms, int(mark or 0) - _LATE_MS)

    def book_fill(self, fill: Fill, *, is_heard: bool, is_counted: bool = True) -> bool:
        """A trade; whether it is new.

        Args:
            is_heard: the user stream told it.
            is_counted: into the books too; not while they are opened anew.
        """
        x, key = self._x, (fill.contract, fill.trade_id)
        if is_heard:
            self.unheard.pop(key, None)
        if key in self._seen_fills:
            return False
        self._seen_fills.add(key)
        self._write(lambda: x.journal.fill(fill))
        if is_heard:
            self.is_told = True
        else:
            self.unheard[key] = asyncio.get_running_loop().time()
        x.counts["fills"] += 1
        self.fills.append(fill)
        reach("after_fill")
        if is_counted and fill.contract in x.contracts:
            x.books.book_fill(fill)
        if fill.client_id is None or fill.client_id not in x.table:
            self._meet_stranger(fill)
        return True

    def _meet_stranger(self, fill: Fill) -> None:
        """A trade that is not ours is adopted; one that was forced on us ends trading."""
        x = self._x
        name = fill.client_id or ""
        if name.startswith(FORCED_PREFIXES):
            x.hold("forced", "halted", f"the exchange closed {fill.quantity:g} of {fill.contract} ({name})")
        elif not x.is_ours(name):
            x.note("warning", "external", client_id=name, contract=fill.contract, quantity=fill.quantity)

    def book_income(self, income: Income, *, is_counted: bool = True) -> bool:
        """A change of the wallet; whether it is new."""
        if income.income_id in self._seen_income:
            return False
        self._seen_income.add(income.income_id)
        self._write(lambda: self._x.journal.income(income))
        self.income.append(income)
        if is_counted:
            self._tell_books(income)
        if income.kind == "clearance":
            self._x.hold("forced", "halted", f"a clearance fee of {income.amount:g} {income.currency}")
        return True

    def _tell_books(self, income: Income) -> None:
        """Of a contract that is not traded here every income is but a change of the wallet."""
        x = self._x
        if income.contract is not None and income.contract not in x.contracts:
            income = replace(income, kind="other", contract=None)
        x.books.book_income(income)

    def _write(self, write: Callable[[], object]) -> None:
        try:
            write()
        except JournalBroken as error:
            self._x.break_journal(error)

    async def collect(self, *, is_counted: bool = True) -> int:
        """Ask for trades and income; returns how many were new."""
        x, began_ms, new = self._x, self._x.broker.now_ms(), 0
        for name in x.contracts:
            for fill in await x.broker.fills(name, self._since_ms):
                new += self.book_fill(fill, is_heard=False, is_counted=is_counted)
        for income in await x.broker.income(self._since_ms):
            new += self.book_income(income, is_counted=is_counted)
        self._mark(began_ms)
        return new

    def _mark(self, at_ms: int) -> None:
        """Everything until then is known: a later question, of a later program too, need not go back far."""
        self._since_ms = max(self._since_ms, at_ms - _LATE_MS)
        if at_ms - self._marked_ms >= OVERLAP_MS:
            self._marked_ms = at_ms
            self._write(lambda: self._x.journal.set_meta(_MARK, str(at_ms)))

    async def open(self) -> AccountTruth:
        """Write down what was missed, then take the exchange's word for what is.

        Books that go on from a snapshot are told what came after it, and keep their memory if they agree.
        """
        books, journal = self._x.books, self._x.journal
        while True:
            await self.collect(is_counted=False)
            truth = await self._look()
            if not await self.collect(is_counted=False):
                break
        snapshot = journal.last_snapshot()
        if snapshot is not None:
            self._tell_since(snapshot)
        differences = books.compare(truth)
        if snapshot is None or differences:
            books.open(truth)
        elif self._is_new:
            # what was decided after the snapshot is not in it: its stops are known to the exchange only
            books.keep_stops(truth)
        if snapshot is not None and differences:
            self._x.note("warning", "books_anew", why="; ".join(differences))
        self._is_new = False
        return truth

    def _tell_since(self, snapshot: Snapshot) -> None:
        """What the journal has of the time since the books were saved; they know what they know."""
        books, journal = self._x.books, self._x.journal
        close_ms = int(snapshot.books.get("close_ms", snapshot.at_ms))
        # a snapshot may be younger than what was collected last
        since = min(close_ms, self._known_ms or close_ms) - OVERLAP_MS
        for fill in journal.fills(since):
            if fill.contract in self._x.contracts:
                books.book_fill(fill)
        for income in journal.incomes(since):
            self._tell_books(income)

    async def _look(self) -> AccountTruth:
        """The account, and what it says of our orders."""
        x = self._x
        truth = await x.broker.account()
        x.truth = truth
        for order in (*truth.orders, *truth.stops):
            if order.client_id in x.table:
                x.report(order, "account")
        shown = {order.client_id for order in (*truth.orders, *truth.stops)}
        for order in (*x.table.open(), *x.table.open(stops=True)):
            if order.client_id not in shown and order not in x.table.unsure():
                await self._ask(order.client_id)
        return truth

    async def _ask(self, client_id: str) -> None:
        """What became of an order that does not rest any more."""
        x, order = self._x, self._x.table[client_id]
        if order.state == "prepared":
            return
        found = await x.broker.find(client_id, order.contract, order.is_stop)
        if found is not None:
            x.report(found, "found")

    async def reconcile(self) -> tuple[AccountTruth, list[str]]:
        """(the account, what it and the books differ in, once late rows had time to come)."""
        wait_s = self._x.timings.first_wait_s
        for attempt in range(_TRIES):
            await self.collect()
            truth = await self._look()
            differences = self._x.books.compare(truth)
            if not differences or attempt == _TRIES - 1:
                break
            await asyncio.sleep(wait_s)
        return truth, differences

    def believed(self) -> dict[str, float]:
        """base, signed, by contract: what is held if the account cannot be read.

        As it was read last, or kept after a settlement of an earlier program, and what was booked since.
        """
        x, truth = self._x, self._x.truth
        snapshot = None if truth else x.journal.last_snapshot()
        if truth is not None:
            held = {name: position.quantity for name, position in truth.positions.items()}
            since_ms, fills = truth.time_ms, self.fills
        else:
            held, since_ms = (snapshot.positions, snapshot.at_ms) if snapshot else ({}, 0)
            fills = x.journal.fills(since_ms)
        for fill in fills:
            # one of that very moment may be counted twice: an exit that is too large is cut
            if fill.time_ms >= since_ms:
                held[fill.contract] = held.get(fill.contract, 0.0) + fill.quantity
        return held

    def adopt(self, truth: AccountTruth, differences: list[str]) -> None:
        """The exchange is right, and somebody must look why."""
        x = self._x
        x.hold("drift", "halted", "; ".join(differences))
        x.books.open(truth)

    def take(self) -> tuple[tuple[Fill, ...], tuple[Income, ...]]:
        """What was booked since the last call."""
        out = tuple(self.fills), tuple(self.income)
        self.fills, self.income = [], []
        return out

    def unheard_for(self, seconds: float) -> bool:
        """Whether the user stream has kept a trade to itself for so long."""
        now = asyncio.get_running_loop().time()
        is_deaf = any(now - at > seconds for at in self.unheard.values())
        if is_deaf:
            self.unheard.clear()
        return is_deaf
