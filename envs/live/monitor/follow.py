"""Follows a journal in a thread of its own and tells whoever listens; a listener that fails fails alone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from perpgym.envs.live.journal import JournalBroken
from perpgym.envs.live.monitor.reader import JournalReader, News

Listener = Callable[[News], None]
_LOG = logging.getLogger(__name__)


class Follower:
    """Reads what is new and hands it to the listeners, in their order.

    Attributes:
        trouble: why the journal cannot be read now; empty where it can.
        reader: of the journal; closed with the follower.

    Args:
        listeners: called in the follower's thread, with news.
        each_time: called after them, even without news.
        every_s: between two looks.
    """

    def __init__(
        self,
        reader: JournalReader,
        listeners: Sequence[Listener],
        *,
        each_time: Listener | None = None,
        every_s: float = 0.5,
    ) -> None:
        self.trouble = ""
        self.reader, self._listeners, self._every_s = reader, tuple(listeners), every_s
        self._each_time = () if each_time is None else (each_time,)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="perpgym-follow", daemon=True)

    def start(self) -> None:
        """Tell the past at once, in the caller's thread, and everything else from now on."""
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """Tell what is left and let go of the journal."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.look()
        self.reader.close()

    def look(self) -> None:
        """Tell what is new now; what cannot be read is told the next time."""
        try:
            news = self.reader.read_new()
        except JournalBroken as error:
            if not self.trouble:
                _LOG.warning("%s", error)
            self.trouble, news = str(error), News()
        else:
            self.trouble = ""
        for listener in (*(self._listeners if news else ()), *self._each_time):
            try:
                listener(news)
            # whatever a listener does, the others and the trading go on
            except Exception:
                _LOG.exception("a watcher of the journal failed")

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self.look()
