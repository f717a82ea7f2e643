"""Trade with a trained run: python live.py run=RUN_FOLDER exchange=simulated mode=paper|demo|live.

``python live.py replay=JOURNAL`` rebuilds what was done and compares it with the exchange's records.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from perpgym.agents.artifact import Artifact
from perpgym.agents.trained import TrainedAgent
from perpgym.envs.live.broker import BrokerError
from perpgym.envs.live.compose import LiveSettings, make_live_env
from perpgym.envs.live.context import DeskTimings
from perpgym.envs.live.env import Columns, LiveConfig
from perpgym.envs.live.feed import FeedConfig, IncompleteBar
from perpgym.envs.live.instance_lock import AccountTaken
from perpgym.envs.live.journal import Journal, JournalBroken
from perpgym.envs.live.limits import DeskLimits
from perpgym.envs.live.monitor.monitor import MonitorConfig
from perpgym.envs.live.recovery import StartRefused
from perpgym.envs.live.thread import DeskThread
from perpgym.experiments.command_line import run
from perpgym.experiments.console import CONSOLE, errors_in_words, set_up_log
from perpgym.experiments.live_account import (
    Call,
    Keys,
    check_journal,
    check_rules,
    in_policy_order,
    load_policy,
    plain,
    read_keys,
)
from perpgym.experiments.live_exchange import make_broker, paper_config, replay_journal
from perpgym.experiments.live_lines import CLOCKS, LOG_TIME, decision_line, paper_line, start_line
from perpgym.experiments.live_run import Decided, Stop, run_live
from perpgym.experiments.live_watch import facts_of, read_monitor, watching
from perpgym.experiments.market import set_threads
from perpgym.experiments.settings import build


@hydra.main(version_base="1.3", config_path="configs", config_name="live")
def main(config: DictConfig) -> None:
    """Load the policy, take the account, trade until somebody stops it."""
    set_up_log(LOG_TIME)
    with errors_in_words():
        values: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
        call = build(plain(values), Call, "live")
        if values["replay"] is not None:
            sys.exit(replay_journal(Path(values["replay"]), call, os.environ))
        if not call.run:
            raise ValueError("run=FOLDER says which policy trades: a run folder that train.py printed")
        settings, monitor = read_settings(values["settings"]), read_monitor(values["monitor"])
        artifact = load_policy(call)
        keys = read_keys(call, os.environ)
        # one decision at a time: more threads would only wait for each other
        set_threads(1)
        with DeskThread() as thread:
            try:
                trade(call, settings, monitor, artifact, keys, thread)
            except (BrokerError, StartRefused, AccountTaken, JournalBroken, IncompleteBar) as error:
                raise ValueError(f"{call.exchange}, {call.mode}: {error}") from error


def read_settings(sections: dict[str, Any]) -> LiveSettings:
    """The rooms' settings."""
    kinds: dict[str, Any] = {
        "feed": FeedConfig,
        "live": LiveConfig,
        "desk": DeskLimits,
        "timings": DeskTimings,
    }
    parts = {name: build(sections.pop(name, None), kind, f"settings.{name}") for name, kind in kinds.items()}
    return build({**sections, **parts}, LiveSettings, "settings")


def trade(
    call: Call,
    settings: LiveSettings,
    monitor: MonitorConfig | None,
    artifact: Artifact,
    keys: Keys,
    thread: DeskThread,
) -> None:
    """Compose the account and run it."""
    broker = thread.call(make_broker(call, artifact, keys))
    try:
        thread.call(broker.open())
        rules = thread.call(broker.contracts())
        changed = check_rules(artifact, rules, is_change_accepted=call.accept_changed_rules)
    except BaseException:
        thread.call(broker.close())
        raise
    for text in changed:
        CONSOLE.print(f"[yellow]rules have changed since training: {text}")
    try:
        journal = Journal.open(call.free_journal_path())
        check_journal(journal, broker.now_ms())
    except BaseException:
        thread.call(broker.close())
        raise
    env = make_live_env(
        broker, journal, thread, config=artifact.env_config, limits=artifact.limits,
        contracts=in_policy_order(artifact, rules), bar_ms=artifact.bar_ms, settings=settings,
        columns=Columns(features=artifact.feature_names, risk=artifact.risk_names),
    )  # fmt: skip
    agent = TrainedAgent(artifact.policy, config=artifact.env_config)
    stop = Stop(thread, call.kill_path())
    facts = facts_of(call, artifact, settings.desk)
    with stop.listening(), watching(env, facts, monitor, os.environ) as (watch, page):
        say(
            f"{call.exchange}, {call.mode}; journal {journal.path}; stop with Ctrl-C or {call.kill_path()}"
            + (f"; page {page}" if page else "")
        )
        if paper := paper_line(call, paper_config(call, artifact.env_config).initial_wallet, facts.currency):
            say(paper)
        say(CLOCKS)

        def on_start(info: dict[str, Any]) -> None:
            watch.note()
            say(start_line(info, env.desk.status().wallet, facts.currency))

        def on_decision(decided: Decided) -> None:
            watch.note()
            say(decision_line(decided, facts.currency))

        why = run_live(
            env, agent, stop, on_stop=call.on_stop, decisions=call.decisions, on_start=on_start,
            on_decision=on_decision, seconds=time.perf_counter,
        )  # fmt: skip
    journal.close()
    say(f"stopped ({call.on_stop}): {why}")


def say(line: str) -> None:
    """One line, unbroken and as it is: what an exchange says may hold brackets."""
    CONSOLE.print(line, soft_wrap=True, markup=False)


if __name__ == "__main__":
    run(main, "live")
