"""Tells people what cannot wait, through any service that apprise speaks to, as often as they can read.

The addresses hold keys: they come from ``PERPGYM_ALERTS`` only and are never written anywhere.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import apprise

from perpgym.envs.live.monitor.reader import News
from perpgym.envs.live.redact import Redactor
from perpgym.envs.live.wishes import NoteLevel

VARIABLE = "PERPGYM_ALERTS"
_ORDER: tuple[NoteLevel, ...] = ("info", "warning", "alarm")
_TYPES = {"info": "info", "warning": "warning", "alarm": "failure"}
# how often the sender looks whether it shall end
_LOOK_S = 0.2
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AlertConfig:
    """What is told, and how often.

    Attributes:
        min_level: the least that is told.
        repeat_after_s: the same kind is told again after so long; meanwhile it is counted.
        most_per_hour: of all that is no alarm.
        retry_s: waits before what could not be sent is tried again, and then given up.

    Raises:
        ValueError: a number is out of its range.
    """

    min_level: NoteLevel = "warning"
    repeat_after_s: float = 900.0
    most_per_hour: int = 20
    retry_s: tuple[float, ...] = (5.0, 30.0, 120.0)

    def __post_init__(self) -> None:
        if self.min_level not in _ORDER:
            raise ValueError(f"min_level must be one of {', '.join(_ORDER)}, was {self.min_level!r}")
        if self.repeat_after_s < 0 or self.most_per_hour < 1 or any(s < 0 for s in self.retry_s):
            raise ValueError(
                "repeat_after_s and retry_s must not be negative and most_per_hour at least 1, were "
                f"{self.repeat_after_s}, {self.retry_s}, {self.most_per_hour}"
            )


def addresses(text: str) -> list[str]:
    """The addresses in ``PERPGYM_ALERTS``: separated by blanks or commas that another address follows."""
    return [part for part in re.split(r"(?:\s|,(?=\s*[\w-]+://))+", text.strip()) if part]


class Alerts:
    """Sends from a thread of its own: whatever happens to an alert, its caller neither waits nor fails.

    Args:
        urls: as apprise reads them, e.g. ``tgram://bot_token/chat_id``, ``mailto://…``, ``json://host/path``.
        name: of the run, in every title.
        config: see there.
        clock: seconds, monotonic.

    Attributes:
        name: see Args.
        sent, failed, held_back: counts.

    Raises:
        ValueError: apprise does not know what to do with one of them; the text does not repeat it.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        name: str = "perpgym",
        config: AlertConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.sent, self.failed, self.held_back = config or AlertConfig(), 0, 0, 0
        # their lines name the addresses
        logging.getLogger("apprise").disabled = True
        logging.getLogger("urllib3").setLevel(logging.INFO)
        self._service = apprise.Apprise()
        for index, url in enumerate(urls, 1):
            if not self._service.add(url):
                raise ValueError(
                    f"address {index} of {len(urls)} in {VARIABLE} is none that apprise knows; see "
                    "https://github.com/caronc/apprise/wiki"
                )
        parts = {part for url in urls for part in re.split(r"[/@:?&=]+", url) if len(part) >= 8}
        self._redactor = Redactor({*urls, *parts})
        self.name, self._clock = name, clock
        self._queue: queue.Queue[tuple[NoteLevel, str, str]] = queue.Queue(maxsize=100)
        self._told_at: dict[tuple[str, str], float] = {}
        self._unsaid: dict[tuple[str, str], int] = {}
        self._hour: deque[float] = deque()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="perpgym-alerts", daemon=True)
        self._thread.start()

    def absorb(self, news: News) -> None:
        """Tell the journal's events that are bad enough; the past was told when it was new."""
        for event in () if news.is_past else news.events:
            if event["level"] in _ORDER:
                text = dict(event["text"])
                # each hold is a kind of its own
                name = text.pop("name", None)
                words = ", ".join(f"{key} {value}" for key, value in text.items())
                self.send(event["level"], event["kind"] if name is None else f"{event['kind']} {name}", words)

    def send(self, level: NoteLevel, kind: str, text: str) -> None:
        """Tell it soon, unless it is too little or was just told. May be called from any thread."""
        if _ORDER.index(level) < _ORDER.index(self.config.min_level):
            return
        with self._lock:
            unsaid = self._admits(level, kind)
        if unsaid is None:
            return
        more = f" ({unsaid} more of this kind since the last word of it)" if unsaid else ""
        try:
            self._queue.put_nowait((level, kind.replace("_", " "), self._redactor.text(text) + more))
        except queue.Full:
            self.failed += 1

    def stop(self, wait_s: float = 10.0) -> None:
        """Send what waits, for at most so long."""
        self._closing.set()
        self._thread.join(wait_s)

    def _admits(self, level: NoteLevel, kind: str) -> int | None:
        """How many of the same kind were held back before this one; None to hold back this one too."""
        now, key = self._clock(), (level, kind)
        while self._hour and self._hour[0] <= now - 3600.0:
            self._hour.popleft()
        is_soon = now - self._told_at.get(key, -float("inf")) < self.config.repeat_after_s
        if is_soon or (level != "alarm" and len(self._hour) >= self.config.most_per_hour):
            self._unsaid[key] = self._unsaid.get(key, 0) + 1
            self.held_back += 1
            return None
        self._told_at[key] = now
        if level != "alarm":
            self._hour.append(now)
        return self._unsaid.pop(key, 0)

    def _run(self) -> None:
        while not (self._closing.is_set() and self._queue.empty()):
            try:
                level, kind, text = self._queue.get(timeout=_LOOK_S)
            except queue.Empty:
                continue
            if self._deliver(level, f"{self.name}: {kind}", text):
                self.sent += 1
            else:
                self.failed += 1
                _LOG.warning("an alert could not be sent: %s", kind)

    def _deliver(self, level: NoteLevel, title: str, text: str) -> bool:
        for wait_s in (0.0, *self.config.retry_s):
            # who stops does not wait for a service that is down
            if wait_s and self._closing.wait(wait_s):
                return False
            if self._try(level, title, text):
                return True
        return False

    def _try(self, level: NoteLevel, title: str, text: str) -> bool:
        try:
            return bool(self._service.notify(body=text or title, title=title, notify_type=_TYPES[level]))
        # a service's own code may raise anything
        except Exception as error:
            _LOG.warning("an alert failed: %s", type(error).__name__)
            return False
