"""What is written to the journal is there after a crash, once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perpgym.envs.live.broker import AccountTruth, Fill, Income, Order, OrderState, Position
from perpgym.envs.live.journal import Journal, JournalBroken
from perpgym.envs.live.wishes import Decision, Wish

ORDER = Order(
    client_id="pg1", contract="TEST/USDT:USDT", quantity=-0.1, style="stop", trigger_price=9.5,
    watches="mark", closes_position=True,
)  # fmt: skip
FILL = Fill(trade_id="1", contract="A", quantity=0.1, price=2.0, fee=0.01, time_ms=5, client_id="pg1")
INCOME = Income(income_id="f-1", kind="funding", amount=-0.3, time_ms=6, contract="A")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_orders_come_back_as_they_stood(path: Path) -> None:
    with closing(Journal.open(path)) as journal:
        journal.intent(ORDER, 3, 1_000)
        journal.order_state(replace(ORDER, state=OrderState.SENT), "send", 1_001)
        last = replace(ORDER, state=OrderState.OPEN, exchange_id="9", updated_ms=1_002)
        journal.order_state(last, "ack", 1_002)
        journal.intent(replace(ORDER, client_id="pg2"), None, 1_003)
        journal.order_state(replace(ORDER, client_id="pg2", state=OrderState.ABSENT), "not found", 1_004)
    with closing(Journal.open(path)) as journal:
        assert journal.orders(only_open=True) == [last]
        assert [order.client_id for order in journal.orders()] == ["pg1", "pg2"]
        assert (journal.prepared_ms("pg1"), journal.prepared_ms("nobody")) == (1_000, 0)
        # an id is used once for ever
        with pytest.raises(JournalBroken, match="UNIQUE"):
            journal.intent(ORDER, 4, 2_000)


def test_trades_and_income_count_once(path: Path) -> None:
    with closing(Journal.open(path)) as journal:
        assert [journal.fill(FILL), journal.fill(FILL)] == [True, False]
        # trade ids are unique within a contract only
        assert journal.fill(replace(FILL, contract="B"))
        assert [journal.income(INCOME), journal.income(INCOME)] == [True, False]
        assert journal.fills() == [FILL, replace(FILL, contract="B")]
        assert journal.fills(since_ms=6) == []
        assert journal.incomes() == [INCOME]


def test_what_is_written_together_is_there_whole_or_not_at_all(path: Path) -> None:
    with closing(Journal.open(path)) as journal:

        def write(*orders: Order) -> None:
            with journal.together():
                for order in orders:
                    journal.intent(order, 1, 0)

        with pytest.raises(JournalBroken, match="UNIQUE"):
            write(ORDER, ORDER)
        assert journal.orders() == []
        write(ORDER)
        assert journal.orders() == [ORDER]


def test_snapshots_and_agents_come_back(path: Path) -> None:
    held = Position(contract="A", quantity=0.1, entry_price=2.0, mark_price=2.1)
    truth = AccountTruth(time_ms=7, wallet=1.5, equity=1.51, positions={"A": held})
    with closing(Journal.open(path)) as journal:
        assert (journal.last_snapshot(), journal.last_agent_state()) == (None, None)
        journal.snapshot(truth, 8, {"wallet": np.array([1.5, 2.5]), "names": np.array(["x", "yy"])})
        journal.agent_state(4, {"option": np.array(3)})
        journal.agent_state(4, {"option": np.array(5)})
        found = journal.last_snapshot()
        assert found is not None
        assert (found.at_ms, found.bar_close_ms, found.positions) == (7, 8, {"A": 0.1})
        assert found.books["wallet"].tolist() == [1.5, 2.5]
        assert found.books["names"].tolist() == ["x", "yy"]
        decision, state = journal.last_agent_state() or (0, {})
        assert (decision, int(state["option"])) == (4, 5)
        # nothing that would run as code
        with pytest.raises(ValueError, match="Object arrays cannot be saved"):
            journal.agent_state(5, {"trap": np.array([object()])})


def test_of_old_snapshots_the_numbers_are_kept_and_the_memory_is_not(path: Path) -> None:
    with closing(Journal.open(path)) as journal:
        for close in range(103):
            truth = AccountTruth(time_ms=close, wallet=float(close), equity=float(close))
            journal.snapshot(truth, close, {"wallet": np.array(close)})
        with closing(sqlite3.connect(path)) as other:
            kept = other.execute("SELECT count(*), count(books), min(wallet) FROM snapshots").fetchone()
        assert kept == (103, 100, 0.0)
        found = journal.last_snapshot()
        assert found is not None
        assert int(found.books["wallet"]) == 102


def test_decisions_events_and_starts_are_counted(path: Path) -> None:
    decision = Decision(id=12, bar_close_ms=5, observation_hash="ab", action=[0.5], note="why")
    with closing(Journal.open(path)) as journal:
        assert journal.last_decision_id() == 0
        journal.decision(decision, [Wish(contract="A", quantity=0.1)], 6, {"bar": np.array(3)})
        journal.event(7, "alarm", "hold", why="x")
        assert journal.last_decision_id() == 12
        assert [event["text"] for event in journal.events("hold")] == [{"why": "x"}]
        assert journal.events("lift") == []
        tag, epochs = journal.tag, [journal.begin_epoch(), journal.begin_epoch()]
    with closing(Journal.open(path)) as journal:
        assert (journal.tag, journal.begin_epoch(), epochs) == (tag, 3, [1, 2])


def test_every_row_is_on_the_disk_before_the_call_returns(path: Path) -> None:
    with closing(Journal.open(path)) as journal, closing(sqlite3.connect(path)) as other:
        (mode,) = other.execute("PRAGMA journal_mode").fetchone()
        (flush,) = journal._db.execute("PRAGMA synchronous").fetchone()
        # 2 is FULL
        assert (mode, flush) == ("wal", 2)
        journal.intent(ORDER, 1, 0)
        assert other.execute("SELECT count(*) FROM intents").fetchone() == (1,)
