"""Trade with a trained run: python live.py run=RUN_FOLDER exchange=simulated mode=paper|demo|live.

``python live.py replay=JOURNAL`` rebuilds what was done and compares it with the exchange's records.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import hydra
from omegaconf import DictConfig, OmegaConf

from perpgym.agents.artifact import Artifact
from perpgym.agents.protocol import LiveAgent
from perpgym.envs.live.broker import BrokerError
from perpgym.envs.live.compose import LiveSettings, make_live_env
from perpgym.envs.live.context import DeskTimings
from perpgym.envs.live.env import Columns, LiveConfig
from perpgym.envs.live.feed import FeedConfig, IncompleteBar
from perpgym.envs.live.insist import insist
from perpgym.envs.live.instance_lock import AccountTaken
from perpgym.envs.live.journal import Journal, JournalBroken
from perpgym.envs.live.limits import DeskLimits
from perpgym.envs.live.monitor.monitor import MonitorConfig
from perpgym.envs.live.recovery import StartRefused
from perpgym.envs.live.redact import Redactor, secrets_of
from perpgym.envs.live.thread import DeskThread, Interrupted
from perpgym.experiments.command_line import run
from perpgym.experiments.console import CONSOLE, errors_in_words, set_up_log
from perpgym.experiments.live_account import (
    Call,
    Keys,
    check_journal,
    check_rules,
    in_policy_order,
    plain,
    read_keys,
)
from perpgym.experiments.live_agent import load_policies, make_agent
from perpgym.experiments.live_exchange import make_broker, paper_config, replay_journal
from perpgym.experiments.live_lines import (
    CLOCKS,
    LOG_TIME,
    decision_line,
    opening_line,
    paper_line,
    start_line,
)
from perpgym.experiments.live_run import Decided, Stop, run_live
from perpgym.experiments.live_watch import facts_of, read_monitor, watching
from perpgym.experiments.market import set_threads
from perpgym.experiments.settings import build

T = TypeVar("T")


@hydra.main(version_base="1.3", config_path="configs", config_name="live")
def main(config: DictConfig) -> None:
    """Load what decides, take the account, trade until somebody stops it."""
    set_up_log(LOG_TIME, Redactor(secrets_of(os.environ)).text)
    with errors_in_words():
        values: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
        call = build(plain(values), Call, "live")
        if values["replay"] is not None:
            sys.exit(replay_journal(Path(values["replay"]), call, os.environ))
        if not call.run:
            raise ValueError("run=FOLDER says which policy trades: a run folder that train.py printed")
        settings, monitor = read_settings(values["settings"]), read_monitor(values["monitor"])
        artifacts = load_policies(call)
        # the policies of a run have one account; what cannot decide is told before the exchange is asked
        artifact, agent = artifacts[0], make_agent(call, artifacts)
        keys = read_keys(call, os.environ)
        # one decision at a time: more threads would only wait for each other
        set_threads(1)
        with DeskThread() as thread:
            try:
                is_done = trade(call, settings, monitor, artifact, agent, keys, thread)
            except (BrokerError, StartRefused, AccountTaken, JournalBroken, IncompleteBar) as error:
                raise ValueError(f"{call.exchange}, {call.mode}: {error}") from error
        sys.exit(0 if is_done else 1)


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
    agent: LiveAgent,
    keys: Keys,
    thread: DeskThread,
) -> bool:
    """Compose the account and run it; whether the account is left as ``on_stop`` asks."""
    stop = Stop(thread, call.kill_path())
    with stop.listening():
        try:
            return _trade(call, settings, monitor, artifact, agent, keys, stop, thread)
        except Interrupted:
            say(f"stopped before the account could be read: {stop.reason}; nothing was cancelled or closed")
            return False


def _trade(
    call: Call,
    settings: LiveSettings,
    monitor: MonitorConfig | None,
    artifact: Artifact,
    agent: LiveAgent,
    keys: Keys,
    stop: Stop,
    thread: DeskThread,
) -> bool:
    broker = thread.call(make_broker(call, artifact, keys))

    def ask(question: Callable[[], Coroutine[Any, Any, T]]) -> T:
        asking = insist(question, broker, settings.timings, lambda why: say(f"the start waits: {why}"))
        return thread.call(asking, is_patient=False)

    try:
        ask(broker.open)
        rules = ask(broker.contracts)
        changed = check_rules(artifact, rules, is_change_accepted=call.accept_changed_rules)
        for text in changed:
            say(f"rules have changed since training: {text}")
        journal = Journal.open(call.free_journal_path())
        check_journal(journal, broker.now_ms())
        if call.accept_new_key:
            journal.set_meta("account_id", broker.account_id)
    except BaseException:
        thread.call(broker.close())
        raise
    contracts = in_policy_order(artifact, rules)
    env = make_live_env(
        broker, journal, thread, config=artifact.env_config, limits=artifact.limits,
        contracts=contracts, bar_ms=artifact.bar_ms, settings=settings,
        columns=Columns(features=artifact.feature_names, risk=artifact.risk_names),
        lookback_bars=agent.lookback_bars(contracts, artifact.bar_ms),
    )  # fmt: skip
    facts = facts_of(call, artifact, agent, settings.desk)
    with watching(env, facts, monitor, os.environ) as (watch, page):
        say(opening_line(facts, journal.path, call.kill_path(), page))
        if paper := paper_line(call, paper_config(call, artifact.env_config).initial_wallet, facts.currency):
            say(paper)
        say(CLOCKS)

        def on_start(info: dict[str, Any]) -> None:
            watch.note()
            say(start_line(info, env.desk.status().wallet, facts.currency))

        def on_decision(decided: Decided) -> None:
            watch.note()
            say(decision_line(decided, facts.currency))

        ended = run_live(
            env, agent, stop, on_stop=call.on_stop, decisions=call.decisions, on_start=on_start,
            on_decision=on_decision, seconds=time.perf_counter,
        )  # fmt: skip
    journal.close()
    is_done = "" if ended.is_done else ", NOT DONE: look at the account yourself, now"
    say(f"stopped ({call.on_stop}{is_done}): {ended.why}")
    for line in ended.left:
        say(f"left open: {line}")
    return ended.is_done


def say(line: str) -> None:
    """One line, unbroken and as it is: what an exchange says may hold brackets."""
    CONSOLE.print(line, soft_wrap=True, markup=False)


if __name__ == "__main__":
    run(main, "live")
