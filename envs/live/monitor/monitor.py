"""Everything that watches one journal, from its parts: follower, page, metrics, log, alerts."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from perpgym.envs.live.monitor.alerts import VARIABLE as ALERTS_VARIABLE
from perpgym.envs.live.monitor.alerts import AlertConfig, Alerts, addresses
from perpgym.envs.live.monitor.facts import Health, ask
from perpgym.envs.live.monitor.follow import Follower
from perpgym.envs.live.monitor.guard import Guard
from perpgym.envs.live.monitor.log import JournalLog, close_log, open_log
from perpgym.envs.live.monitor.metrics import Metrics
from perpgym.envs.live.monitor.page import Controls, Page
from perpgym.envs.live.monitor.reader import JournalReader, News
from perpgym.envs.live.monitor.serve import PageConfig, PageServer
from perpgym.envs.live.monitor.view import LiveView
from perpgym.envs.live.redact import secrets_of
from perpgym.envs.live.wishes import NoteLevel

TOKEN_VARIABLE = "PERPGYM_PAGE_TOKEN"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """What watches a live run. Secrets come from the environment: ``PERPGYM_PAGE_TOKEN``, ``PERPGYM_ALERTS``.

    Attributes:
        page: None for no page, and no metrics.
        log: file of JSON lines; None for none.
        alerts: what is told, if there are addresses.
        silent_after_bars: an alarm when the journal was not written for so many bars, by the wall's clock;
            None for never.
        every_s: between two looks at the journal.

    Raises:
        ValueError: a number is not positive.
    """

    page: PageConfig | None = field(default_factory=PageConfig)
    log: Path | None = None
    alerts: AlertConfig = field(default_factory=AlertConfig)
    silent_after_bars: float | None = 3.0
    every_s: float = 0.5

    def __post_init__(self) -> None:
        for name in ("silent_after_bars", "every_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, was {value}")


class Monitor:
    """Watches a journal from ``start`` to ``stop``; a context manager.

    Args:
        journal: path of the file; it must be there.
        config: see there.
        environment: where the secrets are read.
        health: of the program that trades; None where it runs elsewhere.
        controls: what the page's buttons do, if ``config.page.controls``.

    Attributes:
        url: of the page, once it is served; empty without.

    Raises:
        ValueError: the token is too short, missing where it is needed, or an alert's address is none.
        JournalBroken: there is no such journal.
    """

    def __init__(
        self,
        journal: Path,
        config: MonitorConfig | None = None,
        *,
        environment: Mapping[str, str],
        health: Callable[[], Health] | None = None,
        controls: Controls | None = None,
    ) -> None:
        self.config, self.url = config or MonitorConfig(), ""
        self.view, self._health = LiveView(), health
        self._secrets = secrets_of(environment)
        reader = JournalReader(journal)
        metrics = Metrics(self.view, health, reader.written_ago_s)
        page, self._server = self.config.page, None
        urls = addresses(environment.get(ALERTS_VARIABLE, ""))
        # a desk in this program logs its events itself
        log = JournalLog(has_events=health is None)
        listeners = [self.view.absorb, metrics.absorb, log.absorb]
        self.follower = Follower(reader, listeners, each_time=self._look, every_s=self.config.every_s)
        if page is not None:
            token = environment.get(TOKEN_VARIABLE) or None
            guard = Guard(token, is_local=page.is_local, allowed_hosts=page.allowed_hosts)
            shown = Page(
                self.view, self.follower, guard, health=health, metrics=metrics.text,
                controls=controls if page.controls else None,
            )  # fmt: skip
            self._server = PageServer(shown, page)
        self.alerts = Alerts(urls, name=journal.stem, config=self.config.alerts) if urls else None
        self._log_handler: logging.Handler | None = None
        # names of holds that are in force and not in the journal: at the last look, and told
        self._unwritten: set[str] = set()
        self._told: set[str] = set()
        self._is_silent = False

    def start(self) -> str:
        """Begin; the page's address, empty without a page.

        Raises:
            OSError: the port is taken, or the log cannot be written.
        """
        if self.config.log is not None:
            self._log_handler = open_log(self.config.log, self._secrets)
        self.follower.start()
        if self.view.facts is not None and self.alerts is not None:
            self.alerts.name = self.view.facts.name
        if self._server is not None:
            self.url = self._server.start()
        return self.url

    def stop(self) -> None:
        """Tell what is left, and end."""
        if self._server is not None:
            self._server.stop()
        self.follower.stop()
        if self.alerts is not None:
            self.alerts.stop()
        if self._log_handler is not None:
            close_log(self._log_handler)

    def __enter__(self) -> Monitor:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def tell(self, level: NoteLevel, kind: str, text: str) -> None:
        """An alert beside the journal's own; nothing happens where there are no addresses."""
        if self.alerts is not None:
            self.alerts.send(level, kind, text)

    def _look(self, news: News) -> None:
        """After each look at the journal: its events, and what no journal can tell."""
        if self.alerts is not None:
            self.alerts.absorb(news)
        self._look_at_status()
        self._look_for_silence()

    def _look_at_status(self) -> None:
        """A hold that could not be written down, because the journal is what is broken."""
        health, _why = ask(self._health)
        if health is None or health.status is None:
            return
        level: NoteLevel = "alarm" if health.status.state in ("reduce_only", "halted") else "warning"
        held = dict(_name_and_why(reason) for reason in health.status.reasons)
        unwritten = held.keys() - {_name_and_why(reason)[0] for reason in self.view.reasons}
        # what came since the journal was read may be in it by the next look
        for name in unwritten & self._unwritten - self._told:
            self.tell(level, f"hold {name}", held[name])
            self._told.add(name)
        self._told &= unwritten
        self._unwritten = unwritten

    def _look_for_silence(self) -> None:
        """A program that has died or hangs writes nothing."""
        bars, facts = self.config.silent_after_bars, self.view.facts
        if bars is None or facts is None or self.view.state == "stopped":
            return
        ago_s = self.follower.reader.written_ago_s()
        is_silent = (math.inf if ago_s is None else ago_s) > bars * facts.bar_ms / 1000.0
        if is_silent and not self._is_silent:
            text = f"nothing was written to the journal for {bars:g} bars: does the program still run?"
            _LOG.critical("%s", text)
            self.tell("alarm", "silent", text)
        self._is_silent = is_silent


def _name_and_why(reason: str) -> tuple[str, str]:
    name, _, why = reason.partition(": ")
    return name, why
