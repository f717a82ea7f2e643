"""What the command prints of the problems that it was asked for, with contenders that need no training."""

from __future__ import annotations

import json
import sys

import pytest
import run as command
from contenders import AGENTS
from problems import Problem
from training import Progress, Run, Score


def perfect_but(condition: str, *, seed_that_fails: int) -> object:
    """A contender that is perfect, but for one seed on one condition."""

    def trainer(problem: Problem, *, seed: int, share: float, progress: Progress) -> Run:
        del share, progress
        fails = problem.name == condition and seed == seed_that_fails
        return Run(score=Score(0.0 if fails else 1.0, -1.0), steps=1)

    return trainer


def printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[str, dict[str, float]]:
    """Everything, and the last line."""
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    command.main()
    out = capsys.readouterr().out
    return out, json.loads(out.splitlines()[-1])


@pytest.mark.parametrize(("failing", "share"), [("carry_does_not_pay", 0.0), ("no condition", 1.0)])
def test_one_seed_on_the_wrong_side_of_the_switch_makes_the_whole_figure_zero(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failing: str, share: float
) -> None:
    # the interquartile mean of five seeds would leave it out
    monkeypatch.setitem(AGENTS, "target", perfect_but(failing, seed_that_fails=3))  # type: ignore[arg-type]
    out, figures = printed(monkeypatch, capsys, "--problem", "carry")
    assert figures == {"carry": share}
    assert f"| {share:.4f} [{share:.4f}, {share:.4f}] |" in out
    assert ("carry target counts as 0: it fails carry_does_not_pay with 1 of 5 seeds" in out) == (
        share == 0.0
    )


def test_an_agent_that_is_not_the_problems_own_is_named_in_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("target", "hppo"):
        monkeypatch.setitem(AGENTS, name, perfect_but("nothing", seed_that_fails=0))  # type: ignore[arg-type]
    asked = ("--problem", "kelly", "--agents")
    assert printed(monkeypatch, capsys, *asked, "hppo")[1] == {"kelly hppo": 1.0}
    assert printed(monkeypatch, capsys, *asked, "hppo", "target")[1] == {"kelly hppo": 1.0, "kelly": 1.0}


@pytest.mark.parametrize(
    ("agent", "words"), [("ladder", "gp_h has no ladder"), ("realised", "realised is for gp_h: kelly")]
)
def test_what_cannot_be_played_is_refused_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], agent: str, words: str
) -> None:
    def trainer(*_asked: object, **_how: object) -> Run:
        raise AssertionError("trained")

    monkeypatch.setitem(AGENTS, "target", trainer)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        printed(monkeypatch, capsys, "--problem", "gp_h", "kelly", "--agents", "target", agent)
