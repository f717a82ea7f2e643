"""What watches a live run: its page, log and alerts, from settings and the environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perpgym.agents.artifact import Artifact
from perpgym.agents.protocol import LiveAgent
from perpgym.envs.live.env import LiveEnv
from perpgym.envs.live.limits import DeskLimits
from perpgym.envs.live.monitor.attach import EnvControls, EnvWatch
from perpgym.envs.live.monitor.facts import RunFacts
from perpgym.envs.live.monitor.monitor import Monitor, MonitorConfig
from perpgym.envs.live.monitor.serve import PageConfig
from perpgym.envs.rules import settle_currency
from perpgym.experiments.live_account import Call
from perpgym.experiments.live_agent import what_trades
from perpgym.experiments.settings import build, check_keys


def read_monitor(section: Mapping[str, Any] | None) -> MonitorConfig | None:
    """The settings of what watches; None for nothing.

    Raises:
        ValueError: a setting is unknown or impossible.
    """
    if section is None:
        return None
    check_keys(section, ("page", "log"), "monitor")
    page, log = section.get("page"), section.get("log")
    return MonitorConfig(
        page=None if page is None else build(page, PageConfig, "monitor.page"),
        log=None if log is None else Path(log),
    )


def facts_of(call: Call, artifact: Artifact, agent: LiveAgent, limits: DeskLimits) -> RunFacts:
    """What is running, for whoever looks."""
    every = {**asdict(artifact.limits), **asdict(limits)}
    numbers = {name: x for name, x in every.items() if x is None or isinstance(x, int | float)}
    return RunFacts(
        name=what_trades(call, agent),
        exchange=f"{call.exchange}, {call.mode}",
        contracts=tuple(contract.symbol for contract in artifact.contracts),
        bar_ms=artifact.bar_ms,
        currency=settle_currency(artifact.contracts[0]),
        limits=numbers,
    )


@contextmanager
def watching(
    env: LiveEnv, facts: RunFacts, config: MonitorConfig | None, environment: Mapping[str, str]
) -> Iterator[tuple[EnvWatch, str]]:
    """Serve page, log and alerts while the run goes on.

    Args:
        env: not started yet.
        facts: are kept in its journal.
        config: None for nothing that watches.
        environment: where token and addresses are read.

    Yields:
        What must be told after every step, and the page's address, empty without one.

    Raises:
        ValueError: the port is taken, the log cannot be written, or a token is missing.
    """
    facts.write(env.journal)
    watch = EnvWatch(env)
    if config is None:
        yield watch, ""
        return
    monitor = Monitor(
        env.journal.path, config, environment=environment, health=watch.health, controls=EnvControls(env)
    )
    try:
        try:
            monitor.start()
        except OSError as error:
            raise ValueError(
                f"what watches the run cannot start ({error}): set monitor.page.port or monitor.log "
                "otherwise, or monitor.page=null for no page"
            ) from error
        yield watch, monitor.url
    finally:
        monitor.stop()
