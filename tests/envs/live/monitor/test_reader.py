"""What a page reads is what the journal holds, and reading cannot change it."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perpgym.envs.live.broker import OrderState
from perpgym.envs.live.journal import Journal, JournalBroken
from perpgym.envs.live.monitor.facts import Health
from perpgym.envs.live.monitor.follow import Follower
from perpgym.envs.live.monitor.picture import MAX_POINTS, picture, thin
from perpgym.envs.live.monitor.reader import JournalReader, News
from perpgym.envs.live.monitor.view import Curve, LiveView
from perpgym.envs.live.wishes import DeskStatus

BTC = "BTC/USDT:USDT"


def see(path: Path) -> LiveView:
    """A view of all that a journal holds."""
    reader, view = JournalReader(path), LiveView()
    view.absorb(reader.read_new())
    reader.close()
    return view


def test_the_first_read_is_the_past_and_the_next_tells_only_what_is_new(run: Any) -> None:
    reader = JournalReader(run.path)
    past = reader.read_new()
    assert past.is_past
    assert len(past.decisions) == len(past.snapshots) == 48
    assert not reader.read_new()
    run.play(1)
    news = reader.read_new()
    assert not news.is_past
    assert [row["bar_close_ms"] for row in news.decisions] == [run.now_ms]
    reader.close()


def test_a_reader_cannot_write_and_a_writer_does_not_wait_for_it(run: Any) -> None:
    reader = JournalReader(run.path)
    reader.read_new()
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._db.execute("DELETE FROM decisions")
    # the writer gives up at once if it is held back
    writer = Journal.open(run.path, busy_s=0.0)
    writer.event(1, "info", "written")
    assert [row["kind"] for row in reader.read_new().events][-1] == "written"
    writer.close()
    reader.close()


def test_a_journal_that_has_ended_is_read_from_its_file_alone(run: Any) -> None:
    run.journal.close()
    assert not run.path.with_name(run.path.name + "-wal").exists()
    assert len(see(run.path).equity) == 48


def test_what_is_no_journal_is_refused_in_words(tmp_path: Path, run: Any) -> None:
    with pytest.raises(JournalBroken, match="is not there"):
        JournalReader(tmp_path / "nothing.sqlite")
    (tmp_path / "text").write_text("no database " * 100)
    with pytest.raises(JournalBroken, match="cannot be read as a journal"):
        JournalReader(tmp_path / "text")
    run.journal.set_meta("schema_version", "99")
    with pytest.raises(JournalBroken, match="schema version 99"):
        JournalReader(run.path)


def test_a_listener_that_fails_keeps_nobody_else_from_hearing(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[News] = []

    def fails(news: News) -> None:
        raise RuntimeError("no")

    follower = Follower(JournalReader(run.path), [fails, heard.append])
    follower.look()
    assert len(heard) == 1
    assert "a watcher of the journal failed" in caplog.text
    follower.reader.close()


def test_what_cannot_be_read_is_said_and_told_once_it_can(run: Any) -> None:
    heard: list[News] = []
    follower = Follower(JournalReader(run.path), [heard.append])
    follower.look()
    run.play(1)
    # somebody else has the file for himself
    db = sqlite3.connect(run.path, isolation_level=None)
    db.execute("ALTER TABLE fills RENAME TO hidden")
    follower.look()
    assert "no such table: fills" in follower.trouble
    db.execute("ALTER TABLE hidden RENAME TO fills")
    db.close()
    follower.look()
    assert follower.trouble == ""
    assert [len(news.decisions) for news in heard] == [48, 1]
    follower.reader.close()


def test_the_account_on_the_page_is_the_account_of_the_run(run: Any) -> None:
    account = picture(see(run.path))["account"]
    equity = run.wallet + run.held * (run.price - run.entry)
    # the last fill came after the last settlement
    run.settle()
    account = picture(see(run.path))["account"]
    assert account["equity"] == equity
    assert account["wallet"] == run.wallet
    assert account["exposure"] == pytest.approx(run.held * run.price / equity, abs=1e-12)
    assert sum(p["quantity"] for p in account["positions"]) == run.held
    kinds = {row.kind for row in run.journal.incomes()}
    assert kinds == {"fee", "pnl", "funding"}
    assert account["fees"] == pytest.approx(-sum(r.amount for r in run.journal.incomes() if r.kind == "fee"))
    assert account["funding"] == pytest.approx(
        sum(r.amount for r in run.journal.incomes() if r.kind == "funding")
    )


def test_money_that_is_paid_in_is_no_profit(run: Any) -> None:
    run.settle()
    before = picture(see(run.path))["account"]["change"]
    run.income("transfer", 5_000.0, "deposit")
    run.settle()
    account = picture(see(run.path))["account"]
    assert account["wallet"] == run.wallet
    assert account["change"] == pytest.approx(before, abs=1e-12)


def test_todays_change_is_counted_from_the_last_midnight(run: Any) -> None:
    # 48 hours end at a midnight, which belongs to the day that begins
    run.play(6)
    view = see(run.path)
    expected = view.equity.value[-1] / view.equity.value[47] - 1.0
    assert picture(view)["account"]["day_change"] == pytest.approx(expected, abs=1e-15)


def test_orders_by_state_add_up_and_an_order_that_comes_back_is_open_again(run: Any) -> None:
    lost = run.order(0.2, None)
    run.become(lost, OrderState.ABSENT)
    view = see(run.path)
    assert view.orders_by_state["absent"] == 1
    assert lost.client_id not in view.open_orders
    run.become(lost, OrderState.OPEN, exchange_id="7")
    run.become(run.order(0.1, None), OrderState.UNKNOWN)
    view = see(run.path)
    assert view.open_orders[lost.client_id]["state"] == "open"
    assert view.orders_by_state["absent"] == 0
    assert len(view.unknown()) == 1
    assert sum(view.orders_by_state.values()) == len(run.journal.orders())


def test_the_state_of_the_desk_is_read_from_its_holds(run: Any) -> None:
    event = run.journal.event
    assert see(run.path).state == "ready"
    event(1, "alarm", "hold", name="drift", why="0.1 against 0.2")
    event(2, "warning", "hold", name="stream", why="cut")
    view = see(run.path)
    assert view.state == "halted"
    assert view.reasons == ("drift: 0.1 against 0.2", "stream: cut")
    event(3, "info", "resume")
    assert see(run.path).state == "recovering"
    event(4, "info", "lift", name="stream")
    assert see(run.path).state == "ready"
    event(5, "info", "hold", name="stop", why="stopped", state="halted")
    assert see(run.path).state == "stopped"
    event(6, "info", "hold", name="start", why="not started yet", state="starting")
    assert see(run.path).state == "starting"


def test_the_running_program_knows_better_than_the_journal(run: Any) -> None:
    status = DeskStatus(state="reduce_only", reasons=("rules: exits only",), unknown=("a",), reserved=500.0)
    shown = picture(see(run.path), Health(status=status, stream_ages_s={"user": 1.6}))["health"]
    assert (shown["state"], shown["reasons"]) == ("reduce_only", ["rules: exits only"])
    assert shown["stream_ages_s"] == {"user": 2}
    assert shown["is_live"]


def test_limits_say_how_much_of_them_is_used(run: Any) -> None:
    run.settle()
    limits = {limit["name"]: limit for limit in picture(see(run.path))["limits"]}
    assert limits["max_notional"]["used"] == pytest.approx(abs(run.held) * run.price)
    assert limits["max_drawdown"]["used"] > 0.0
    assert limits["max_orders_per_minute"]["used"] is None


def test_a_thinned_curve_keeps_its_ends_and_its_deepest_fall() -> None:
    curve = Curve()
    for minute in range(20_000):
        curve.add(minute, 100.0 - 50.0 * (minute == 12_345))
    kept = thin(curve)
    assert len(kept) <= MAX_POINTS + 2
    assert [12_345, 50.0] in kept
    assert (kept[0][0], kept[-1][0]) == (0, 19_999)
    # evenly spaced points alone would have lost it
    assert 12_345 not in range(0, 20_000, 20_000 // MAX_POINTS)
    assert [at for at, _value in thin(curve, since_ms=19_990)] == list(range(19_990, 20_000))


def test_a_number_that_is_none_becomes_null(run: Any) -> None:
    run.price = float("nan")
    run.settle()
    assert picture(see(run.path))["account"]["equity"] is None


def test_what_a_killed_program_left_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "killed.sqlite"
    code = (
        "import os, signal; from pathlib import Path; from perpgym.envs.live.journal import Journal;"
        f"journal = Journal.open(Path({str(path)!r}));"
        "[journal.event(i, 'info', 'written', number=i) for i in range(20)];"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    # what was written lies in the log beside the file, and the index of that log may be gone too
    assert path.with_name("killed.sqlite-wal").stat().st_size > 0
    path.with_name("killed.sqlite-shm").unlink()
    reader = JournalReader(path)
    assert [event["text"]["number"] for event in reader.read_new().events] == list(range(20))
    # and the next start is not in its way, nor it in that of the next start
    journal = Journal.open(path)
    journal.event(20, "info", "written", number=20)
    assert [event["text"]["number"] for event in reader.read_new().events] == [20]
    journal.close()
    reader.close()
