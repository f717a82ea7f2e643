"""What survives a crash: decisions, intents, what became of them, fills, income, in one SQLite file.

Written before anything is sent and flushed to the disk (WAL, ``synchronous=FULL``). One process writes. No
pickle: arrays are ``npz``, everything else JSON or plain columns.
"""

from __future__ import annotations

import io
import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perpgym.envs.live.broker import AccountTruth, Fill, Income, Order, OrderState
from perpgym.envs.live.wishes import Decision, Wish

SCHEMA_VERSION = 1
_BOOKS_KEPT = 100
Arrays = Mapping[str, NDArray[Any]]
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS decisions (id INTEGER PRIMARY KEY, bar_close_ms INTEGER, made_ms INTEGER,
    observation_hash TEXT, observation BLOB, action TEXT, wanted TEXT, limits_hit INTEGER, note TEXT);
CREATE TABLE IF NOT EXISTS intents (client_id TEXT PRIMARY KEY, decision_id INTEGER, contract TEXT,
    quantity REAL, style TEXT, price REAL, trigger_price REAL, watches TEXT, reduce_only INTEGER,
    closes_position INTEGER, prepared_ms INTEGER);
CREATE TABLE IF NOT EXISTS order_states (seq INTEGER PRIMARY KEY, client_id TEXT, state TEXT,
    exchange_id TEXT, filled REAL, average REAL, source TEXT, at_ms INTEGER);
CREATE INDEX IF NOT EXISTS order_states_by_order ON order_states (client_id, seq);
CREATE TABLE IF NOT EXISTS fills (trade_id TEXT, client_id TEXT, contract TEXT, quantity REAL, price REAL,
    fee REAL, fee_currency TEXT, is_maker INTEGER, time_ms INTEGER, PRIMARY KEY (trade_id, contract));
CREATE TABLE IF NOT EXISTS income (income_id TEXT PRIMARY KEY, kind TEXT, contract TEXT, amount REAL,
    currency TEXT, time_ms INTEGER);
CREATE TABLE IF NOT EXISTS snapshots (at_ms INTEGER, bar_close_ms INTEGER, wallet REAL, equity REAL,
    positions TEXT, books BLOB);
CREATE TABLE IF NOT EXISTS agent_states (decision_id INTEGER PRIMARY KEY, state BLOB);
CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY, at_ms INTEGER, level TEXT, kind TEXT, text TEXT);
"""
_LAST_STATES = """
SELECT i.*, s.state, s.exchange_id, s.filled, s.average, s.at_ms FROM intents i
JOIN order_states s ON s.seq = (SELECT max(seq) FROM order_states WHERE client_id = i.client_id)
"""


class JournalBroken(Exception):  # noqa: N818 - what happened to the file
    """The journal cannot be read or written: no new orders, exits only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The account after a settlement; ``books`` is what the books gave to keep."""

    at_ms: int
    bar_close_ms: int
    wallet: float
    equity: float
    positions: dict[str, float]
    books: dict[str, NDArray[Any]]


def pack(arrays: Arrays) -> bytes:
    """Arrays as an ``npz`` in memory."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
    return buffer.getvalue()


def unpack(blob: bytes | None) -> dict[str, NDArray[Any]]:
    """The inverse of :func:`pack`; nothing for None."""
    if blob is None:
        return {}
    with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


class Journal:
    """An open journal.

    Args:
        path: of the SQLite file; made where there is none.
        busy_s: how long to wait for a lock that somebody else holds.

    Raises:
        JournalBroken: it is damaged, locked, or of another version.
    """

    def __init__(self, path: Path, *, busy_s: float = 2.0) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            (found,) = self._db.execute("PRAGMA quick_check").fetchone()
            if found != "ok":
                raise JournalBroken(f"{path} is damaged: {found}; keep it aside and start with a new journal")
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise JournalBroken(f"{path} cannot be opened as a journal: {error}") from error
        self._check_version()

    @classmethod
    def open(cls, path: Path, *, busy_s: float = 2.0) -> Journal:
        """The journal at ``path``."""
        return cls(path, busy_s=busy_s)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def _check_version(self) -> None:
        found = self.meta("schema_version")
        if found is None:
            self.set_meta("schema_version", str(SCHEMA_VERSION))
            self.set_meta("tag", secrets.token_hex(3))
        elif found != str(SCHEMA_VERSION):
            raise JournalBroken(
                f"{self.path} has schema version {found}, this program writes {SCHEMA_VERSION}: start with a "
                "new journal, or run the program that wrote it"
            )

    def _write(self, sql: str, values: Sequence[Any]) -> int:
        """Number of rows written."""
        with self._lock:
            try:
                return self._db.execute(sql, values).rowcount
            except sqlite3.Error as error:
                raise JournalBroken(f"{self.path} cannot be written: {error}") from error

    def _write_soon(self, sql: str, values: Sequence[Any]) -> None:
        """Write what the next flushed row takes to the disk with it; a killed program loses nothing."""
        with self._lock:
            if self._db.in_transaction:
                # its end is what reaches the disk
                self._write(sql, values)
                return
            self._write("PRAGMA synchronous=NORMAL", ())
            try:
                self._write(sql, values)
            finally:
                self._write("PRAGMA synchronous=FULL", ())

    def _read(self, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            try:
                return self._db.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise JournalBroken(f"{self.path} cannot be read: {error}") from error

    @contextmanager
    def together(self) -> Iterator[None]:
        """Everything written inside reaches the disk at once, or nothing."""
        with self._lock:
            self._write("BEGIN IMMEDIATE", ())
            try:
                yield
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._write("COMMIT", ())

    # --- what is known of the journal itself ---

    def meta(self, key: str) -> str | None:
        """A value kept under a key."""
        rows = self._read("SELECT value FROM meta WHERE key = ?", (key,))
        return str(rows[0]["value"]) if rows else None

    def set_meta(self, key: str, value: str) -> None:
        """Keep a value under a key."""
        self._write("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    @property
    def tag(self) -> str:
        """Tells this journal's orders from another's; drawn when it was made."""
        return str(self.meta("tag"))

    def begin_epoch(self) -> int:
        """Count one more start; no two starts share client ids."""
        epoch = int(self.meta("epoch") or 0) + 1
        self.set_meta("epoch", str(epoch))
        return epoch

    # --- what is written ---

    def decision(
        self, decision: Decision, wishes: Sequence[Wish], made_ms: int, observation: Arrays | None = None
    ) -> None:
        """What was decided, and what was wished for because of it; flushed with its intents."""
        wanted = json.dumps([asdict(wish) for wish in wishes])
        blob = None if observation is None else pack(observation)
        self._write_soon(
            "INSERT INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (decision.id, decision.bar_close_ms, made_ms, decision.observation_hash, blob,
             json.dumps(decision.action), wanted, decision.limits_hit, decision.note),
        )  # fmt: skip

    def intent(self, order: Order, decision_id: int | None, prepared_ms: int) -> None:
        """An order that may be sent from now on."""
        self._write(
            "INSERT INTO intents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (order.client_id, decision_id, order.contract, order.quantity, order.style, order.price,
             order.trigger_price, order.watches, order.reduce_only, order.closes_position, prepared_ms),
        )  # fmt: skip
        self.order_state(order, "intent", prepared_ms)

    def order_state(self, order: Order, source: str, at_ms: int) -> None:
        """What became of an order, and who said so."""
        self._write(
            "INSERT INTO order_states (client_id, state, exchange_id, filled, average, source, at_ms) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                order.client_id,
                str(order.state),
                order.exchange_id,
                order.filled,
                order.average,
                source,
                at_ms,
            ),
        )

    def fill(self, fill: Fill) -> bool:
        """A trade; False where it was written before."""
        written = self._write(
            "INSERT OR IGNORE INTO fills VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (fill.trade_id, fill.client_id, fill.contract, fill.quantity, fill.price, fill.fee,
             fill.fee_currency, fill.is_maker, fill.time_ms),
        )  # fmt: skip
        return written == 1

    def income(self, income: Income) -> bool:
        """A change of the wallet; False where it was written before."""
        written = self._write(
            "INSERT OR IGNORE INTO income VALUES (?, ?, ?, ?, ?, ?)",
            (income.income_id, income.kind, income.contract, income.amount, income.currency, income.time_ms),
        )
        return written == 1

    def snapshot(self, truth: AccountTruth, bar_close_ms: int, books: Arrays) -> None:
        """The account after a settlement; without it a start asks the exchange."""
        held = {name: position.quantity for name, position in truth.positions.items()}
        self._write_soon(
            "INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?)",
            (truth.time_ms, bar_close_ms, truth.wallet, truth.equity, json.dumps(held), pack(books)),
        )
        # what the books remember is large, and only the newest is gone on from
        self._write(
            "UPDATE snapshots SET books = NULL WHERE rowid = (SELECT max(rowid) FROM snapshots) - ?",
            (_BOOKS_KEPT,),
        )

    def agent_state(self, decision_id: int, state: Arrays) -> None:
        """What the agent must remember until its next decision."""
        self._write("INSERT OR REPLACE INTO agent_states VALUES (?, ?)", (decision_id, pack(state)))

    def event(self, at_ms: int, level: str, kind: str, **text: Any) -> None:
        """Anything else that somebody may have to explain later."""
        self._write(
            "INSERT INTO events (at_ms, level, kind, text) VALUES (?, ?, ?, ?)",
            (at_ms, level, kind, json.dumps(text, default=str)),
        )

    # --- what a start needs to know ---

    def orders(self, *, only_open: bool = False) -> list[Order]:
        """Every order as it stands, in the order of their intents; or those that have not ended."""
        rows = [_order(row) for row in self._read(_LAST_STATES + "ORDER BY i.rowid")]
        return [order for order in rows if not (only_open and order.state.is_final)]

    def prepared_ms(self, client_id: str) -> int:
        """When an order was prepared; 0 for one that is not ours."""
        rows = self._read("SELECT prepared_ms FROM intents WHERE client_id = ?", (client_id,))
        return int(rows[0]["prepared_ms"]) if rows else 0

    def fills(self, since_ms: int = 0) -> list[Fill]:
        """Trades since then, oldest first."""
        rows = self._read("SELECT * FROM fills WHERE time_ms >= ? ORDER BY time_ms, rowid", (since_ms,))
        return [Fill(**{**dict(row), "is_maker": bool(row["is_maker"])}) for row in rows]

    def incomes(self, since_ms: int = 0) -> list[Income]:
        """Changes of the wallet since then, oldest first."""
        rows = self._read("SELECT * FROM income WHERE time_ms >= ? ORDER BY time_ms, rowid", (since_ms,))
        return [Income(**dict(row)) for row in rows]

    def last_snapshot(self) -> Snapshot | None:
        """The newest one."""
        rows = self._read("SELECT * FROM snapshots ORDER BY rowid DESC LIMIT 1")
        if not rows:
            return None
        row = dict(rows[0])
        return Snapshot(**{**row, "positions": json.loads(row["positions"]), "books": unpack(row["books"])})

    def last_decision_id(self) -> int:
        """0 before the first."""
        return int(self._read("SELECT coalesce(max(id), 0) AS id FROM decisions")[0]["id"])

    def last_agent_state(self) -> tuple[int, dict[str, NDArray[Any]]] | None:
        """(decision, state) of the newest one."""
        rows = self._read("SELECT * FROM agent_states ORDER BY decision_id DESC LIMIT 1")
        return (int(rows[0]["decision_id"]), unpack(rows[0]["state"])) if rows else None

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Events of a kind, or all, oldest first."""
        rows = self._read("SELECT * FROM events WHERE kind = coalesce(?, kind) ORDER BY seq", (kind,))
        return [{**dict(row), "text": json.loads(row["text"])} for row in rows]


def _order(row: sqlite3.Row) -> Order:
    return Order(
        client_id=row["client_id"], contract=row["contract"], quantity=row["quantity"], style=row["style"],
        exchange_id=row["exchange_id"], filled=row["filled"], average=row["average"], price=row["price"],
        trigger_price=row["trigger_price"], watches=row["watches"], reduce_only=bool(row["reduce_only"]),
        closes_position=bool(row["closes_position"]), state=OrderState(row["state"]), updated_ms=row["at_ms"],
    )  # fmt: skip
