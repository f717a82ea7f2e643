"""The control plays the problem that ours plays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from problems import PROBLEMS
from stock import single_env


@pytest.mark.parametrize(("name", "ends_for_good"), [("almgren_chriss", True), ("gp_h", False)])
def test_the_control_meets_the_same_end_as_ours(name: str, ends_for_good: bool) -> None:
    problem = PROBLEMS[name]()
    env = single_env(problem.tape(0), replace(problem.env, action="target"))
    env.reset(seed=0)
    for _ in range(problem.env.episode_bars):
        _observation, _reward, terminated, truncated, _info = env.step(np.zeros(1, np.float32))
    assert (terminated, truncated) == (ends_for_good, not ends_for_good)
