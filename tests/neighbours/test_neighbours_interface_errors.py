"""Errors of the interface found in neighbouring environments: seeds, windows, memory, imports."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpEnv

MakeTape = Callable[..., Tape]


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_a_new_episode_shows_nothing_of_the_last_one(make_tape: MakeTape) -> None:
    """The window of a new episode shows the last episode's positions: they were kept in the market's rows."""

    class Neighbour:
        def __init__(self, bars: int) -> None:
            self.rows = np.zeros((bars, 2), np.float32)

        def step(self, bar: int, position: float) -> np.ndarray:
            self.rows[bar, 1] = position
            return self.rows[bar - 3 : bar + 1]

    tape, config = make_tape(), EnvConfig(window_bars=8, episode_bars=40)
    used = PerpEnv(tape, config=config)
    for episode in range(3):
        used.reset(seed=episode)
        is_over = False
        while not is_over:
            _obs, _reward, terminated, truncated, _info = used.step(np.array([0.5, -1.0], np.float32))
            is_over = terminated or truncated
    again, _ = used.reset(seed=7)
    fresh, _ = PerpEnv(tape, config=config).reset(seed=7)
    assert same(again, fresh)
    assert again["account"][0, 0] == 0.0
    theirs = Neighbour(20)
    for bar in range(4, 12):
        theirs.step(bar, -1.0)
    assert theirs.step(8, 0.0)[:-1, 1].tolist() == [-1.0, -1.0, -1.0]


def test_reset_with_a_seed_chooses_the_episode(make_tape: MakeTape) -> None:
    """A reset(seed) that does not seed: the start is drawn from the process's own generator."""

    def neighbour(seed: int, bars: int) -> int:
        del seed
        return int(np.random.randint(bars))  # noqa: NPY002 - the error itself

    tape, config = make_tape(), EnvConfig(window_bars=8, episode_bars=40, restart="random")
    starts = []
    for seed in (0, 1, 2, 3):
        envs = [PerpEnv(tape, config=config) for _ in range(2)]
        envs[1].reset(seed=99)
        envs[1].step(np.array([0.5, -1.0], np.float32))
        observations = [env.reset(seed=seed)[0] for env in envs]
        assert same(observations[0], observations[1])
        # and what follows without a seed follows from it
        assert same(envs[0].reset()[0], envs[1].reset()[0])
        starts.append(int(observations[0]["clock"][0]))
    assert len(set(starts)) > 2
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    theirs = {neighbour(0, 10**9) for _ in range(3)}
    np.random.set_state(state)  # noqa: NPY002
    assert len(theirs) == 3


def test_an_observation_that_is_kept_does_not_change(make_tape: MakeTape) -> None:
    """Observations share memory between steps: a row of the array into which the next step writes."""

    class Neighbour:
        def __init__(self) -> None:
            self.row = np.zeros(2)

        def step(self, value: float) -> np.ndarray:
            self.row[:] = value
            return self.row

    theirs = Neighbour()
    kept = theirs.step(1.0)
    theirs.step(2.0)
    assert kept.tolist() == [2.0, 2.0]
    env = PerpEnv(make_tape(sigma=0.02), config=EnvConfig(window_bars=8, episode_bars=40))
    first, _ = env.reset(seed=0)
    snapshot = {key: value.copy() for key, value in first.items()}
    second = env.step(np.array([0.5, -1.0], np.float32))[0]
    assert same(first, snapshot)
    assert not same(first, second)
    assert not any(np.shares_memory(first[key], second[key]) for key in first)
    second["market"][:] = np.nan
    assert np.isfinite(env.step(np.array([0.5, -1.0], np.float32))[0]["market"]).all()


def filters_after(code: str) -> list[str]:
    """The process's warning filters before and after ``code``, Gymnasium's own left out."""
    script = f"import gymnasium, warnings; print(warnings.filters)\n{code}\nprint(warnings.filters)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return said.stdout.splitlines()


def test_importing_changes_no_warning_filter() -> None:
    """An import that changes the process's warning filters, to errors, for everybody's code."""

    def neighbour() -> Any:
        warnings.filterwarnings("error", category=UserWarning, message="of the neighbour")

    with warnings.catch_warnings():
        before = list(warnings.filters)
        neighbour()
        assert list(warnings.filters) != before
    before_import, after_import = filters_after("import perpgym")
    assert before_import == after_import
    before_import, after_import = filters_after("warnings.filterwarnings('error')")
    assert before_import != after_import
