"""F49-F53: power cuts at every step of an order, damaged journals, two programs, and long absences."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from perpgym.envs.live.broker import OrderState
from perpgym.envs.live.crash_points import POINTS, VARIABLE, reach
from perpgym.envs.live.instance_lock import AccountTaken
from perpgym.envs.live.journal import Journal, JournalBroken

Open = Callable[..., Any]
Die = Callable[..., Any]
SYMBOL = "TEST/USDT:USDT"


@pytest.fixture(scope="module")
def runner() -> Iterator[subprocess.Popen[str]]:
    """A process that forks programs and says how they ended."""
    script = Path(__file__).with_name("crash_runner.py")
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def die(runner: subprocess.Popen[str]) -> Die:
    """Run a program until it dies at a point; the exchange goes on in this one."""

    async def dying(here: Any, point: str, *quantities: float, sliced: float = 0.0) -> None:
        here.journal.close()
        told = {
            "url": here.server.url, "folder": str(here.folder), "point": point, "quantities": quantities,
            "sliced": sliced,
        }  # fmt: skip
        assert runner.stdin is not None
        assert runner.stdout is not None
        runner.stdin.write(json.dumps(told) + "\n")
        runner.stdin.flush()
        ended = await asyncio.to_thread(runner.stdout.readline)
        assert int(ended) == (-signal.SIGKILL if point else 0)
        here.build()

    return dying


# point, and whether the exchange has the order by then
CUTS = [
    ("before_intent", False), ("after_intent", False), ("after_mark", False), ("after_send", True),
    ("after_ack", True), ("after_fill", True),
]  # fmt: skip


@pytest.mark.parametrize(("point", "is_sent"), CUTS)
def test_a_power_cut_never_doubles_or_loses_an_order(
    open_desk: Open, die: Die, point: str, is_sent: bool
) -> None:
    async def story() -> None:
        async with open_desk(start=False) as here:
            await die(here, point, 0.05)
            assert here.position == (0.05 if is_sent else 0.0)
            truth = await here.desk.start()
            # one order an intent, and what is held is protected
            assert truth.quantity(SYMBOL) == here.position == (0.05 if is_sent else 0.0)
            assert len(here.orders()) == int(is_sent)
            assert len(here.stops()) == int(is_sent)
            states = [order.state for order in here.journal.orders() if not order.is_stop]
            ended = OrderState.FILLED if is_sent else OrderState.ABSENT
            assert states == ([] if point == "before_intent" else [ended])
            assert here.desk.status().state == "ready"
            here.check_sound()
            await here.trade(0.01)
            here.check_sound()

    asyncio.run(story())


@pytest.mark.parametrize(("point", "is_sent"), CUTS)
def test_a_power_cut_between_slices_doubles_none_and_sends_no_more(
    open_desk: Open, die: Die, point: str, is_sent: bool
) -> None:
    def pass_slice(here: Any) -> None:
        here.venue.clock.move_to(here.venue.clock.now_ms() + 600_000)
        here.server.pass_time()

    async def story() -> None:
        async with open_desk(start=False) as here:
            dying = asyncio.ensure_future(die(here, point, sliced=0.06))
            while not here.stops():
                await asyncio.sleep(0.01)
            # the first has been sent and protected; the second one's time has come
            await asyncio.sleep(0.2)
            pass_slice(here)
            await dying
            sent = 1 + int(is_sent)
            assert [order.quantity for order in here.orders()] == [0.01] * sent
            await here.desk.start()
            assert here.position == pytest.approx(0.01 * sent, abs=1e-12)
            assert len(here.stops()) == 1
            for _slice in range(2):
                pass_slice(here)
                await asyncio.sleep(0.1)
            assert len(here.orders()) == sent
            assert (await here.settle()).is_whole
            here.check_sound()

    asyncio.run(story())


def test_every_point_is_cut_somewhere() -> None:
    assert [point for point, _is_sent in CUTS] == list(POINTS)


def test_a_point_does_nothing_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    for point in POINTS:
        reach(point)
    monkeypatch.setenv(VARIABLE, "elsewhere")
    reach("after_send")


def test_a_journal_cut_short_keeps_what_was_whole(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            await here.settle()
            whole = {order.client_id for order in here.journal.orders()}
            await here.trade(0.01)
            # the power goes while a page is written: the last rows are torn
            torn = here.folder / "torn.sqlite"
            log = here.journal.path.with_name(here.journal.path.name + "-wal").read_bytes()
            torn.write_bytes(here.journal.path.read_bytes())
            torn.with_name("torn.sqlite-wal").write_bytes(log[: len(log) - 2_000])
            await here.desk.stop()
            here.journal.close()
            here.build(journal=torn)
            assert whole <= {order.client_id for order in here.journal.orders()}
            await here.desk.start()
            assert here.position == pytest.approx(0.06)
            assert here.desk.status().state == "ready"
            assert (await here.settle()).is_whole
            before = len(here.orders())
            await here.trade(0.01)
            assert len(here.orders()) == before + 1
            assert here.position == pytest.approx(0.07)

    asyncio.run(story())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Somebody else writes to the file and does not end."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def full(path: Path) -> Iterator[None]:
    """The disk takes no more: files of this process may not grow."""
    log = path.with_name(path.name + "-wal")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("broken", [locked, full])
def test_without_a_journal_nothing_is_opened_and_exits_go_on(
    open_desk: Open, broken: Callable[[Path], Any]
) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            await here.settle()
            sent = len(here.orders())
            with broken(here.journal.path):
                assert await here.trade(0.05) == []
                assert len(here.orders()) == sent
                assert here.desk.status().state == "reduce_only"
                await here.trade(-0.05)
                assert here.position == 0.0
                assert here.stops() == []

    asyncio.run(story())


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"not a database" * 1_000)
    with pytest.raises(JournalBroken, match="cannot be opened as a journal"):
        Journal.open(path)


def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal.open(path)
    journal.set_meta("schema_version", "99")
    journal.close()
    with pytest.raises(JournalBroken, match="schema version 99, this program writes 1"):
        Journal.open(path)


def test_a_second_program_on_the_account_is_refused(open_desk: Open, tmp_path: Path) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            first, journal = here.desk, here.journal
            here.build(journal=here.folder / "other.sqlite")
            with pytest.raises(AccountTaken, match="another program of this machine"):
                await here.desk.start()
            here.journal.close()
            # on another machine there is another folder of locks
            locks, here.folder = here.folder, tmp_path / "elsewhere"
            here.build(journal=here.folder / "other.sqlite")
            with pytest.raises(AccountTaken, match="orders of another perpgym rest"):
                await here.desk.start()
            here.journal.close()
            assert len(here.stops()) == 1
            here.desk, here.journal, here.folder = first, journal, locks

    asyncio.run(story())


def test_another_program_that_begins_to_trade_halts_this_one(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            here.admin("order", symbol="TESTUSDT", side="BUY", type="MARKET", quantity=0.05,
                       newClientOrderId="pgffffff1-1")  # fmt: skip
            await asyncio.sleep(0.1)
            assert here.desk.status().state == "halted"
            assert "another perpgym" in " ".join(here.desk.status().reasons)
            assert await here.trade(0.05) == []

    asyncio.run(story())


def test_a_return_after_hours_finds_everything_before_it_trades(open_desk: Open, die: Die) -> None:
    async def story() -> None:
        async with open_desk(start=False, stop_distance=0.02) as here:
            await die(here, "after_ack", 0.05)
            # killed before it could protect: the position is bare, and somebody's order rests
            here.admin("order", symbol="TESTUSDT", side="BUY", type="LIMIT", timeInForce="GTC", quantity=0.05,
                       price=round(here.last * 0.97, 1), newClientOrderId="web_1")  # fmt: skip
            for _bar in range(10):
                await here.next_bar()
            await here.desk.start()
            assert len(here.stops()) == 1
            here.check_sound()
            await here.desk.stop()
            here.journal.close()
            for _bar in range(100):
                await here.next_bar()
                if not here.stops():
                    break
            here.build()
            truth = await here.desk.start()
            assert truth.quantity(SYMBOL) == here.position
            settled = await here.settle()
            assert settled.is_whole
            here.check_sound()

    asyncio.run(story())


def test_a_stop_by_hand_is_repeated_until_it_is_done(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk() as here:
            await here.trade(0.05)
            await here.settle()
            await here.trade(0.05, style="limit", limit_price=here.last * 0.97)
            busy = {"kind": "reply", "status": 503, "text": "Service Unavailable.", "times": 4}
            here.faults({**busy, "method": "DELETE"}, {**busy, "method": "POST", "times": 2})
            assert await here.desk.flatten("a test")
            assert here.hits() >= 5
            assert (here.position, here.resting(), here.stops()) == (0.0, [], [])
            here.check_sound()

    asyncio.run(story())


def test_what_cannot_be_cancelled_is_cancelled_by_the_exchange(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings={"settle_s": 0.2, "dead_man_ms": 60_000}) as here:
            await here.trade(0.05, style="limit", limit_price=here.last * 0.97)
            here.faults({"kind": "reply", "status": 503, "text": "Service Unavailable.", "times": None})
            assert not await here.desk.freeze("a test")
            assert here.journal.events("freeze_incomplete")
            assert len(here.resting()) == 1
            here.venue.clock.move_to(here.venue.clock.now_ms() + 61_000)
            here.server.pass_time()
            assert here.resting() == []

    asyncio.run(story())


def test_what_a_stop_could_not_cancel_the_next_start_does(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(timings={"settle_s": 0.2}) as here:
            await here.trade(0.05, style="limit", limit_price=here.last * 0.97)
            here.faults({"kind": "reply", "status": 503, "text": "-", "method": "DELETE", "times": None})
            await here.desk.stop()
            here.journal.close()
            assert len(here.resting()) == 1
            here.faults()
            here.build()
            await here.desk.start()
            assert here.resting() == []
            assert here.desk.status().state == "ready"
            here.check_sound()

    asyncio.run(story())


@pytest.mark.parametrize("is_clear", [True, False])
def test_the_dead_mans_switch_outlives_a_stop_that_left_orders(open_desk: Open, is_clear: bool) -> None:
    async def story() -> None:
        async with open_desk(timings={"settle_s": 0.2, "dead_man_ms": 60_000}) as here:
            await here.trade(0.05, style="limit", limit_price=here.last * 0.97)
            busy = {"kind": "reply", "status": 503, "text": "-", "method": "DELETE", "times": None}
            here.faults(*([] if is_clear else [busy]))
            await here.desk.stop()
            assert len(here.resting()) == int(not is_clear)
            assert bool(here.venue.engine.countdowns) is not is_clear
            here.venue.clock.move_to(here.venue.clock.now_ms() + 61_000)
            here.server.pass_time()
            assert here.resting() == []

    asyncio.run(story())


def test_orders_that_a_damaged_journal_lost_are_taken_back(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(start=False) as here:
            name = f"pg{here.journal.tag}1-1"
            here.admin("order", symbol="TESTUSDT", side="BUY", type="LIMIT", timeInForce="GTC", quantity=0.05,
                       price=round(here.last * 0.97, 1), newClientOrderId=name)  # fmt: skip
            await here.desk.start()
            assert here.resting() == []
            (order,) = here.journal.orders()
            assert (order.client_id, order.state) == (name, OrderState.CANCELLED)
            assert here.desk.status().state == "ready"
            (after,) = await here.trade(0.05)
            assert after.client_id != name
            here.check_sound()

    asyncio.run(story())


def test_a_start_waits_for_an_exchange_that_does_not_answer(open_desk: Open) -> None:
    async def story() -> None:
        async with open_desk(start=False) as here:
            here.faults("F46", times=30, until_ms=2**60)
            await here.desk.start()
            assert here.hits() == 30
            await here.trade(0.05)
            assert here.position == 0.05
            here.check_sound()

    asyncio.run(story())


def test_neither_journal_nor_log_holds_a_secret(open_desk: Open, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        with caplog.at_level("DEBUG"):
            async with open_desk(timings={"reconcile_s": 0.05}, timeout_ms=300) as here:
                here.faults("F01", "F02", "F04", {"id": "F46", "times": 5})
                await here.trade(0.05)
                await here.settle()
                await here.desk.flatten("a test")
                files = [path for path in here.folder.glob("journal*") if path.is_file()]
                told = b"".join(path.read_bytes() for path in files)
                ours = [r.getMessage() for r in caplog.records if r.name.startswith("perpgym")]
                text = told.decode("latin-1") + "\n".join(ours) + repr(here.broker.config)
                for word in ("signature=", "timestamp=", "'key'", "'secret'", "X-MBX-APIKEY"):
                    assert word not in text

    asyncio.run(story())
