"""All that watches a journal, together: in the program that trades, and as a command beside it."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from perpgym.envs.live.journal import JournalBroken
from perpgym.envs.live.monitor.facts import Health
from perpgym.envs.live.monitor.monitor import Monitor, MonitorConfig
from perpgym.envs.live.monitor.serve import PageConfig
from perpgym.envs.live.wishes import DeskStatus

TOKEN = "a-token-of-more-than-twenty-characters"
# nothing listens there
NOWHERE = "json://127.0.0.1:9/hook-with-a-key"


def until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so; fails after ten seconds."""
    waiting = threading.Event()
    for _try in range(1_000):
        if is_so():
            return
        waiting.wait(0.01)
    raise AssertionError("it did not come to pass")


@pytest.fixture(autouse=True)
def quiet_root() -> Iterator[None]:
    """A log changes the root logger's level; put it back."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


def make(run: Any, environment: dict[str, str] | None = None, **settings: Any) -> Monitor:
    """A monitor of a run, on a free port."""
    parts = {name: settings.pop(name) for name in ("health", "controls") if name in settings}
    config = MonitorConfig(**{"page": PageConfig(port=0), "every_s": 0.02, **settings})
    return Monitor(run.path, config, environment=environment or {}, **parts)


def test_a_monitor_serves_page_and_metrics_and_writes_the_log(run: Any, tmp_path: Path) -> None:
    log = tmp_path / "live.jsonl"
    with make(run, log=log) as monitor, httpx.Client(trust_env=False) as client:
        assert client.get(monitor.url).status_code == 200
        run.play(1)
        until(lambda: b"perpgym_decisions_total 49.0" in client.get(f"{monitor.url}/metrics").content)
        until(lambda: "decision" in log.read_text())
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["id"] for line in lines if line["what"] == "decision"] == [49]
    # what was written at the very end is told too, and nothing after it
    run.play(1)
    assert len(log.read_text().splitlines()) == len(lines)


def test_a_monitor_needs_the_token_where_its_page_is_seen_from_elsewhere(run: Any) -> None:
    everywhere = PageConfig(port=0, host="0.0.0.0")
    with pytest.raises(ValueError, match="PERPGYM_PAGE_TOKEN"):
        make(run, page=everywhere)
    with make(run, {"PERPGYM_PAGE_TOKEN": TOKEN}, page=everywhere) as monitor:
        url = monitor.url.replace("0.0.0.0", "127.0.0.1")
        with httpx.Client(trust_env=False) as client:
            assert client.get(f"{url}/metrics").status_code == 401
            allowed = client.get(f"{url}/metrics", headers={"authorization": f"Bearer {TOKEN}"})
            assert allowed.status_code == 200


def test_a_journal_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(JournalBroken, match="is not there"):
        Monitor(tmp_path / "none.sqlite", environment={})


def test_a_hold_that_the_journal_cannot_tell_is_told_all_the_same(run: Any, inbox: Any) -> None:
    status = [DeskStatus(state="ready")]
    monitor = make(run, {"PERPGYM_ALERTS": inbox.url}, health=lambda: Health(status=status[0]))
    with monitor:
        status[0] = DeskStatus(state="reduce_only", reasons=("journal: disk full",))
        (told,) = inbox.wait(1)
        # the same hold, noted as the desk notes it, is the same news
        run.journal.event(run.now_ms, "alarm", "hold", name="journal", why="disk full")
        until(lambda: monitor.alerts is not None and monitor.alerts.held_back == 1)
    assert (told["title"], told["message"]) == ("ppo_btc, seed 3: hold journal", "disk full")
    assert len(inbox.received) == 1


def touch(path: Path, ago_s: float) -> None:
    """Let a journal's files have been written so long ago."""
    for file in path.parent.glob(f"{path.name}*"):
        os.utime(file, (0.0, time.time() - ago_s))


def test_a_journal_that_nobody_writes_any_more_is_an_alarm_once(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = make(run, {"PERPGYM_ALERTS": NOWHERE}, silent_after_bars=3.0)
    monitor.follower.look()
    hour = 3_600.0
    for ago_s, count in ((2.9 * hour, 0), (3.1 * hour, 1), (4.0 * hour, 1), (0.0, 1), (3.1 * hour, 2)):
        touch(run.path, ago_s)
        monitor.follower.look()
        assert caplog.text.count("does the program still run?") == count, ago_s
    # one that was stopped may be silent
    run.journal.event(run.now_ms, "info", "hold", name="stop", why="stopped", state="halted")
    monitor.follower.look()
    touch(run.path, 9.0 * hour)
    monitor.follower.look()
    assert caplog.text.count("does the program still run?") == 2
    monitor.stop()


def test_trading_goes_on_when_every_watcher_fails(run: Any) -> None:
    def fails() -> Health:
        raise RuntimeError("no")

    with make(run, {"PERPGYM_ALERTS": NOWHERE}, health=fails) as monitor:
        db = sqlite3.connect(run.path, isolation_level=None)
        db.execute("ALTER TABLE fills RENAME TO hidden")
        until(lambda: monitor.follower.trouble != "")
        run.decide(note="still here")
        db.execute("ALTER TABLE hidden RENAME TO fills")
        db.close()
        until(lambda: len(monitor.view.decisions) == 49)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="silent_after_bars must be positive"):
        MonitorConfig(silent_after_bars=0.0)


def test_the_command_serves_a_journal_until_it_is_told_to_stop(run: Any) -> None:
    command = [sys.executable, "-m", "perpgym.envs.live.monitor", str(run.path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        with httpx.Client(trust_env=False) as client:
            assert client.get(f"{url}/view").json()["account"]["wallet"] == pytest.approx(
                run.wallet, rel=0.01
            )
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "perpgym.envs.live.monitor", str(tmp_path / "none.sqlite")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is not there" in done.stderr
