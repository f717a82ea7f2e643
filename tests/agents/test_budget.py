"""Processor time is counted while training is, and drives the schedules of a run that has a limit."""

from __future__ import annotations

import pytest

from perpgym.agents.budget import Budget
from perpgym.agents.ppo import PerpPPO


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_happens_before_the_start_and_in_a_pause_is_not_training() -> None:
    clock = Clock()
    budget = Budget(10.0, clock=clock)
    clock.now += 5.0
    budget.start()
    clock.now += 2.0
    with budget.paused():
        clock.now += 50.0
    clock.now += 3.0
    # starting what has started changes nothing
    budget.start()
    assert (budget.spent, budget.share, budget.is_spent) == (5.0, 0.5, False)
    clock.now += 5.0
    assert budget.is_spent
    budget.stop()
    clock.now += 5.0
    assert budget.spent == 10.0


def test_a_pause_before_the_start_starts_nothing() -> None:
    clock = Clock()
    budget = Budget(10.0, clock=clock)
    with budget.paused():
        clock.now += 1.0
    clock.now += 1.0
    assert budget.spent == 0.0


def test_a_resumed_run_has_spent_what_it_had_spent() -> None:
    clock = Clock()
    budget = Budget(10.0, clock=clock)
    budget.go_on_from(7.0)
    clock.now += 9.0
    budget.start()
    clock.now += 1.0
    assert budget.spent == 8.0


def test_without_a_limit_nothing_is_ever_spent() -> None:
    clock = Clock()
    budget = Budget(clock=clock)
    budget.start()
    clock.now += 1e9
    assert budget.share == 0.0
    assert not budget.is_spent


@pytest.mark.parametrize(
    ("steps_done", "seconds_spent", "left"), [(10, 5.0, 0.5), (80, 5.0, 0.2), (80, 20.0, 0.0)]
)
def test_schedules_follow_steps_or_seconds_whichever_end_first(
    steps_done: int, seconds_spent: float, left: float
) -> None:
    model = PerpPPO.__new__(PerpPPO)
    model.budget = Budget(10.0, clock=Clock())
    model.budget.go_on_from(seconds_spent)
    model._update_current_progress_remaining(steps_done, 100)
    assert model._current_progress_remaining == pytest.approx(left)
    model.budget = None
    model._update_current_progress_remaining(steps_done, 100)
    assert model._current_progress_remaining == pytest.approx(1.0 - steps_done / 100)
