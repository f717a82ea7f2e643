"""The log: one JSON object a line, every decision with the hash of what it saw, secrets replaced."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from perpgym.envs.live.monitor.facts import BAR_KIND
from perpgym.envs.live.monitor.reader import News, Row
from perpgym.envs.live.redact import Redactor

_MAX_BYTES, _KEPT_FILES = 20_000_000, 9
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "alarm": logging.CRITICAL}
# where a record carries the fields of its line
_FIELDS = "perpgym_fields"


class JsonLines(logging.Formatter):
    """A record as one line of JSON: ``at`` (UTC), ``level``, ``from``, ``what``, then its own fields."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "from": record.name,
            "what": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(self._redactor.value(_plain(line)), ensure_ascii=False, default=str)


def open_log(
    path: Path, secrets: Iterable[str] = (), level: int = logging.INFO
) -> logging.handlers.RotatingFileHandler:
    """Write all loggers' records to a file, from now until :func:`close_log`.

    Args:
        path: lines are appended; at 20 MB it becomes ``path.1``, and nine such are kept. Readable by its
            owner only.
        secrets: texts to replace.
        level: the least that is written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    handler = RotatingFileHandler(path, maxBytes=_MAX_BYTES, backupCount=_KEPT_FILES, encoding="utf-8")
    handler.setLevel(level)
    handler.setFormatter(JsonLines(Redactor(secrets)))
    root = logging.getLogger()
    root.addHandler(handler)
    if root.level > level or root.level == logging.NOTSET:
        root.setLevel(level)
    return handler


def close_log(handler: logging.Handler) -> None:
    """Write no more."""
    logging.getLogger().removeHandler(handler)
    handler.close()


class JournalLog:
    """Writes a line for every row that is new in the journal.

    Args:
        has_events: also for events; a desk in the same program has logged them itself.
    """

    def __init__(self, *, has_events: bool = True) -> None:
        self._has_events = has_events
        self._log = logging.getLogger("perpgym.journal")

    def absorb(self, news: News) -> None:
        """Tell what is new; the past was told when it was new."""
        if news.is_past:
            return
        for what, rows in (
            ("decision", news.decisions),
            ("intent", news.intents),
            ("order", news.order_states),
            ("fill", news.fills),
            ("income", news.income),
            ("account", news.snapshots),
        ):
            for row in rows:
                self._tell(logging.INFO, what, row)
        for event in news.events if self._has_events else ():
            if event["kind"] != BAR_KIND:
                self._tell(_LEVELS.get(event["level"], logging.WARNING), event["kind"], event["text"])

    def _tell(self, level: int, what: str, row: Row | Mapping[str, Any]) -> None:
        fields = {key: value for key, value in row.items() if key != "row"}
        self._log.log(level, "%s", what, extra={_FIELDS: fields})


def _plain(value: Any) -> Any:
    """JSON has no NaN: it is written as a word."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
