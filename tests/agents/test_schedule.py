"""A schedule begins at its setting and ends where its name says."""

from __future__ import annotations

import pickle

import pytest

from perpgym.agents.ppo import PPOConfig
from perpgym.agents.schedule import Schedule, Shape


@pytest.mark.parametrize(
    ("shape", "halfway", "end"), [("constant", 0.4, 0.4), ("linear", 0.2, 0.0), ("cosine", 0.2, 0.0)]
)
def test_begins_at_the_setting_and_ends_as_it_is_called(shape: Shape, halfway: float, end: float) -> None:
    schedule = Schedule(0.4, shape)
    assert [schedule(p) for p in (1.0, 0.5, 0.0)] == pytest.approx([0.4, halfway, end])


def test_a_cosine_stays_high_longer_and_low_longer_than_a_line() -> None:
    line, cosine = Schedule(1.0, "linear"), Schedule(1.0, "cosine")
    assert cosine(0.75) == pytest.approx(0.853553)
    assert cosine(0.75) > line(0.75)
    assert cosine(0.25) < line(0.25)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_what_runs_past_the_end_stays_at_the_end(shape: Shape) -> None:
    assert Schedule(1.0, shape)(-0.3) == 0.0


def test_a_schedule_survives_being_saved() -> None:
    assert pickle.loads(pickle.dumps(Schedule(1.0, "cosine")))(0.25) == Schedule(1.0, "cosine")(0.25)


@pytest.mark.parametrize("field", ["learning_rate_schedule", "ent_coef_schedule"])
def test_an_unknown_shape_is_refused_with_the_known_ones(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be one of constant, linear, cosine, was 'step'"):
        PPOConfig(**{field: "step"})  # type: ignore[arg-type]
