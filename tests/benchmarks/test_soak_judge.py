"""The soak's judge sees every promise that is broken: each is broken here, and kept beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soak_judge

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig
from perpgym.envs.exchange.clock import Clock
from perpgym.envs.exchange.engine import AlgoRequest, Engine, OrderRequest
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.server import Server
from perpgym.envs.exchange.venue import Venue
from perpgym.envs.live.broker import Income, Order
from perpgym.envs.live.journal import Journal

SYMBOL = "TEST/USDT:USDT"


class Court:
    """An exchange whose clock stands, a journal, and the judge of both."""

    def __init__(self, tape: Tape, folder: Path) -> None:
        self.engine = Engine(Replay(tape, start_bar=50), EnvConfig(initial_wallet=10_000.0))
        self.venue = Venue(engine=self.engine, clock=Clock(self.engine.now_ms, 0.0))
        self.journal = Journal.open(folder / "journal.sqlite")
        self.judge = soak_judge.Judge(
            Server(self.venue), folder / "journal.sqlite", seed=3, cap=1.0, stop_loss=0.08
        )
        self.judge.begin(2)
        self.judge.rise()

    def intend(self, name: str, quantity: float) -> None:
        self.journal.intent(Order(client_id=name, contract=SYMBOL, quantity=quantity), None, 0)

    def order(self, name: str, quantity: float) -> None:
        side: Any = "BUY" if quantity > 0.0 else "SELL"
        self.engine.place(
            OrderRequest(asset=0, side=side, kind="MARKET", quantity=abs(quantity), client_id=name)
        )

    def protect(self, share: float = 0.9) -> None:
        self.intend("pgx-stop", -1.0)
        trigger = round(share * float(self.venue.market.last_price(0)), 1)
        self.engine.place_algo(
            AlgoRequest(
                asset=0, side="SELL", kind="STOP_MARKET", trigger_price=trigger, close_position=True,
                client_id="pgx-stop",
            )
        )  # fmt: skip

    def wait(self, ms: int) -> None:
        self.venue.clock.move_to(self.venue.clock.now_ms() + ms)
        self.judge.look()

    @property
    def rules(self) -> list[str]:
        return [violation.rule for violation in self.judge.found.violations]


@pytest.fixture
def court(make_tape: Callable[..., Tape], tmp_path: Path) -> Iterator[Court]:
    here = Court(make_tape(), tmp_path)
    yield here
    here.judge.close()
    here.journal.close()


def test_an_order_of_an_intent_breaks_nothing(court: Court) -> None:
    court.intend("pgx-1", 0.05)
    court.order("pgx-1", 0.05)
    court.protect()
    court.wait(10_000)
    court.judge.give_verdict()
    assert court.rules == []
    assert court.judge.found.counts["orders"] == 2


def test_an_order_without_an_intent_is_seen(court: Court) -> None:
    court.order("pgx-1", 0.05)
    (found,) = court.judge.found.violations
    assert (found.rule, found.seed, found.life) == ("intent", 3, 2)


def test_an_order_that_comes_twice_is_seen(court: Court) -> None:
    court.intend("pgx-1", 0.05)
    court.order("pgx-1", 0.05)
    court.order("pgx-1", 0.05)
    assert court.rules == ["duplicate"]


@pytest.mark.parametrize("quantity", [0.06, -0.05])
def test_an_order_that_is_not_what_was_intended_is_seen(court: Court, quantity: float) -> None:
    court.intend("pgx-1", 0.05)
    court.order("pgx-1", quantity)
    assert court.rules == ["quantity"]


def test_an_order_above_the_cap_is_seen(court: Court) -> None:
    size = round(1.1 * 10_000.0 / float(court.venue.market.mark_price(0)), 3)
    court.intend("pgx-1", size)
    court.order("pgx-1", size)
    assert court.rules == ["cap"]


def test_a_position_without_a_stop_is_seen_after_two_seconds(court: Court) -> None:
    court.intend("pgx-1", 0.05)
    court.order("pgx-1", 0.05)
    court.judge.look()
    court.wait(2_000)
    assert court.rules == []
    court.wait(1)
    court.wait(5_000)
    assert court.rules == ["bare"]


@pytest.mark.parametrize(("share", "rules"), [(0.85, []), (0.8, ["bare", "end"]), (0.2, ["bare", "end"])])
def test_a_stop_that_is_too_far_away_protects_nothing(court: Court, share: float, rules: list[str]) -> None:
    court.intend("pgx-1", 0.05)
    court.order("pgx-1", 0.05)
    court.protect(share)
    court.wait(2_001)
    court.judge.give_verdict()
    assert court.rules == rules


def test_the_time_of_a_dead_program_does_not_count(court: Court) -> None:
    court.intend("pgx-1", 0.05)
    court.order("pgx-1", 0.05)
    court.judge.end()
    court.wait(60_000)
    court.judge.rise()
    court.wait(1_900)
    assert court.rules == []
    court.judge.give_verdict()
    assert court.rules == ["end"]


def test_a_journal_that_misses_income_is_seen(court: Court) -> None:
    court.journal.set_meta("began_wallet", repr(court.venue.books.wallet))
    court.intend("pgx-1", 0.05)
    court.order("pgx-1", 0.05)
    court.judge.check_ledger()
    # the fee and the trade
    assert court.rules == ["ledger", "ledger"]


def test_a_journal_that_has_everything_adds_up(court: Court) -> None:
    court.journal.set_meta("began_wallet", repr(court.venue.books.wallet))
    court.judge.check_ledger()
    court.journal.income(Income(income_id="1", kind="funding", amount=2e-8, time_ms=0))
    assert court.rules == []
    court.judge.check_ledger()
    assert court.rules == ["ledger"]


def test_a_decision_that_is_carried_out_twice_is_seen(court: Court) -> None:
    from perpgym.envs.live.wishes import Decision, Wish

    decision = Decision(id=1, bar_close_ms=0, observation_hash="", action=[])
    court.journal.decision(decision, [Wish(contract=SYMBOL, quantity=0.05)], 0)
    for name in ("pgx-1", "pgx-2"):
        court.journal.intent(Order(client_id=name, contract=SYMBOL, quantity=0.05), 1, 0)
        court.order(name, 0.05)
    court.protect()
    court.judge.give_verdict()
    assert court.rules == ["duplicate"]
