"""A journal tells one story, the exchange's; one changed row, and it is told which."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from perpgym.envs.live.broker import OrderState
from perpgym.envs.live.journal import Journal
from perpgym.envs.live.monitor.replay import compare, replay, report
from perpgym.envs.live.monitor.story import different, rebuild

Open = Callable[..., Any]


def tamper(path: Path, sql: str) -> None:
    """Change a journal behind its back; exactly one row."""
    with closing(sqlite3.connect(path)) as database, database:
        assert database.execute(sql).rowcount == 1


def test_a_run_is_rebuilt_from_its_journal_alone(run: Any) -> None:
    run.play(3)
    run.settle()
    story = rebuild(run.path)
    assert story.differences == []
    assert story.wallet == pytest.approx(run.wallet, abs=1e-9)
    assert story.positions == ({"BTC/USDT:USDT": run.held} if run.held else {})
    assert len(story.decisions) == 51
    assert len(story.orders) == len(story.fills) == 12
    assert {str(order.state) for order in story.orders.values()} == {"filled"}


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("UPDATE fills SET quantity = quantity * 2 WHERE rowid = 3", "order"),
        ("DELETE FROM fills WHERE rowid = 3", "position"),
        ("UPDATE income SET amount = amount + 0.00000002 WHERE rowid = 5", "wallet"),
        ("DELETE FROM income WHERE rowid = 5", "wallet"),
        ("UPDATE snapshots SET wallet = wallet + 0.01 WHERE rowid = 20", "wallet"),
        ("UPDATE snapshots SET positions = '{\"BTC/USDT:USDT\": 7}' WHERE rowid = 20", "position"),
        ("UPDATE order_states SET filled = 0 WHERE seq = 6", "order"),
        ("DELETE FROM intents WHERE rowid = 4", "order"),
        ("UPDATE intents SET quantity = -quantity WHERE rowid = 4", "decision"),
        ("UPDATE decisions SET wanted = '[]' WHERE id = 8", "decision"),
    ],
)
def test_one_changed_row_is_found(run: Any, capsys: pytest.CaptureFixture[str], sql: str, what: str) -> None:
    assert replay(run.path) == 0
    assert "the journal agrees with itself" in capsys.readouterr().out
    tamper(run.path, sql)
    assert what in {difference.what for difference in rebuild(run.path).differences}
    assert replay(run.path) == 1
    assert "the journal differs from itself" in capsys.readouterr().out


def test_an_order_that_ended_and_lives_again_is_found(run: Any) -> None:
    order = next(iter(rebuild(run.path).orders.values()))
    run.become(order, OrderState.OPEN)
    (found,) = rebuild(run.path).differences
    assert (found.which, found.journal) == (order.client_id, "open after filled")


def test_the_report_says_which_side_differs(run: Any) -> None:
    told = rebuild(run.path)
    other = [different("wallet", "now", "1.0", "2.0")]
    for found, itself, exchange in (
        (report(told), "agrees with itself", "the exchange was not asked"),
        (report(told, []), "agrees with itself", "the journal agrees with the exchange's records"),
        (report(told, other), "agrees with itself", "the journal differs from the exchange's records (1):"),
    ):
        assert itself in found
        assert exchange in found
    tamper(run.path, "DELETE FROM income WHERE rowid = 5")
    found = report(rebuild(run.path), [])
    assert "the journal differs from itself (" in found
    assert "the journal agrees with the exchange's records" in found


def test_an_empty_journal_is_a_short_story_and_a_missing_one_an_error(
    empty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(empty) == 0
    assert "wallet unknown, flat" in capsys.readouterr().out
    assert replay(tmp_path / "none.sqlite") == 2
    assert "is not there" in capsys.readouterr().out


def test_the_command_ends_with_what_it_found(run: Any) -> None:
    command = [sys.executable, "-m", "perpgym.envs.live.monitor.replay", str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    tamper(run.path, "DELETE FROM income WHERE rowid = 5")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "wallet" in done.stdout


async def trade_some_hours(here: Any) -> Path:
    """A desk's day: in, more, out, across settlements of funding; then it stops."""
    for quantity in (0.05, 0.03, 0.0, -0.08, -0.02):
        if quantity:
            await here.trade(quantity)
        for _bar in range(2):
            await here.next_bar()
        assert (await here.settle()).is_whole
    await here.desk.stop()
    path: Path = here.journal.path
    return path


def differences(here: Any, path: Path) -> Any:
    """Between a journal and the exchange's own records."""
    here.build(journal=path.with_name("another.sqlite"))
    return compare(rebuild(path), here.broker)


def test_a_desks_journal_agrees_with_the_exchange_that_it_traded_on(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            path = await trade_some_hours(here)
            told = rebuild(path)
            assert told.differences == []
            assert len(told.fills) >= 4
            assert {row.kind for row in told.income} >= {"fee", "funding", "pnl"}
            assert told.wallet == pytest.approx(here.venue.books.wallet, abs=1e-8)
            assert told.positions == {"TEST/USDT:USDT": pytest.approx(here.position)}
            assert await differences(here, path) == []

    asyncio.run(story())


AGAINST_THE_EXCHANGE = {
    "UPDATE fills SET price = price + 0.1 WHERE rowid = 2": "trade",
    "DELETE FROM fills WHERE rowid = 2": "trade",
    "UPDATE income SET amount = amount * 1.001 WHERE rowid = (SELECT max(rowid) FROM income "
    "WHERE kind = 'funding')": "income",
    "UPDATE order_states SET state = 'absent' WHERE seq = (SELECT max(seq) FROM order_states "
    "WHERE state = 'filled')": "order",
}


def test_the_exchanges_records_find_what_was_changed_in_a_desks_journal(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            path = await trade_some_hours(here)
            here.journal.close()
            for number, (sql, what) in enumerate(AGAINST_THE_EXCHANGE.items()):
                copy = Path(shutil.copy(path, path.with_name(f"copy{number}.sqlite")))
                tamper(copy, sql)
                found = await differences(here, copy)
                assert what in {difference.what for difference in found}, sql

    asyncio.run(story())


def test_a_trade_of_somebody_else_is_a_difference_from_the_exchange_only(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            path = await trade_some_hours(here)
            here.admin("order", symbol="TESTUSDT", side="BUY", type="MARKET", quantity=0.01)
            assert rebuild(path).differences == []
            found = await differences(here, path)
            assert {difference.what for difference in found} == {"trade", "income", "wallet", "position"}

    asyncio.run(story())


def test_a_running_desks_journal_can_be_replayed_beside_it(run: Any) -> None:
    # the writer has the file open and goes on
    assert rebuild(run.path).differences == []
    run.play(1)
    assert Journal.open(run.path).last_decision_id() == 49
