"""Reads what is new in a journal, over a connection that cannot write.

Each read is one short transaction, so all tables are of one moment and the writer's log is never held back.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from perpgym.envs.live.journal import SCHEMA_VERSION, JournalBroken

Row = dict[str, Any]

# how to read each table past its last row; blobs stay where they are
_QUERIES = {
    "decisions": "SELECT id AS row, id, bar_close_ms, made_ms, observation_hash, action, wanted, limits_hit, "
    "note FROM decisions WHERE id > ? ORDER BY id",
    "intents": "SELECT rowid AS row, * FROM intents WHERE rowid > ? ORDER BY rowid",
    "order_states": "SELECT seq AS row, * FROM order_states WHERE seq > ? ORDER BY seq",
    "fills": "SELECT rowid AS row, * FROM fills WHERE rowid > ? ORDER BY rowid",
    "income": "SELECT rowid AS row, * FROM income WHERE rowid > ? ORDER BY rowid",
    "snapshots": "SELECT rowid AS row, at_ms, bar_close_ms, wallet, equity, positions FROM snapshots "
    "WHERE rowid > ? ORDER BY rowid",
    "events": "SELECT seq AS row, * FROM events WHERE seq > ? ORDER BY seq",
}
_JSON = {"action", "wanted", "positions", "text"}


@dataclass(frozen=True, kw_only=True, slots=True)
class News:
    """Rows that were written since the last read, each a dict of the table's columns.

    Attributes:
        meta: all of it, whenever anything is new.
        is_past: they were there before the reader came: not to be told again.
    """

    decisions: list[Row] = field(default_factory=list)
    intents: list[Row] = field(default_factory=list)
    order_states: list[Row] = field(default_factory=list)
    fills: list[Row] = field(default_factory=list)
    income: list[Row] = field(default_factory=list)
    snapshots: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    meta: dict[str, str] = field(default_factory=dict)
    is_past: bool = False

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) for f in fields(self) if f.name != "is_past")


class JournalReader:
    """A read-only look at a journal that this or another process writes, or wrote.

    Args:
        path: of the SQLite file.

    Raises:
        JournalBroken: there is none, or it is of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._last = dict.fromkeys(_QUERIES, 0)
        self._meta: dict[str, str] = {}
        self._is_first = True
        if not path.is_file():
            raise JournalBroken(f"{path} is not there; name the .sqlite file that a live run wrote")
        address = f"file:{quote(str(path.resolve()))}?mode=ro"
        try:
            self._db = sqlite3.connect(
                address, uri=True, timeout=2.0, isolation_level=None, check_same_thread=False
            )
            self._db.row_factory = sqlite3.Row
            found = {row["key"]: row["value"] for row in self._db.execute("SELECT key, value FROM meta")}
        except sqlite3.Error as error:
            raise JournalBroken(f"{path} cannot be read as a journal: {error}") from error
        if found.get("schema_version") != str(SCHEMA_VERSION):
            raise JournalBroken(
                f"{path} has schema version {found.get('schema_version')}, this program reads "
                f"{SCHEMA_VERSION}: look at it with the program that wrote it"
            )

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()

    def written_ago_s(self) -> float | None:
        """Seconds by the wall's clock since the file was written; None where it is gone."""
        log = self.path.with_name(self.path.name + "-wal")
        try:
            newest = max(path.stat().st_mtime for path in (self.path, log) if path.exists())
        except (OSError, ValueError):
            return None
        return max(0.0, time.time() - newest)

    def read_new(self) -> News:
        """What was written since the last call; the first call gives everything and calls it past.

        Raises:
            JournalBroken: it cannot be read now; the next call starts where this one did.
        """
        with self._lock:
            try:
                self._db.execute("BEGIN")
                try:
                    rows = {t: self._rows(t) for t in _QUERIES}
                    meta = {r["key"]: r["value"] for r in self._db.execute("SELECT key, value FROM meta")}
                finally:
                    self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise JournalBroken(f"{self.path} cannot be read: {error}") from error
            is_new = meta != self._meta or any(rows.values())
            is_past, self._is_first, self._meta = self._is_first, False, meta
            for table, found in rows.items():
                if found:
                    self._last[table] = found[-1]["row"]
            return News(**rows, meta=meta if is_new else {}, is_past=is_past)

    def _rows(self, table: str) -> list[Row]:
        found = self._db.execute(_QUERIES[table], (self._last[table],))
        return [_plain(row) for row in found]


def _plain(row: sqlite3.Row) -> Row:
    return {key: json.loads(row[key]) if key in _JSON else row[key] for key in row.keys()}  # noqa: SIM118
