"""The same trades at other times: nothing of them changes but when they are made."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from perpgym.agents.random_timing import RandomTiming
from perpgym.data.tape import Tape
from perpgym.envs.config import EnvConfig
from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES

TapeFactory = Callable[..., Tape]
CONFIG = EnvConfig()
NAN = np.nan


def _path() -> tuple[np.ndarray, np.ndarray]:
    """Flat, long 1 then 2, short 1, flat, long 0.5: with holds in between."""
    exposure = np.array([NAN, NAN, 1.0, NAN, 2.0, NAN, -1.0, NAN, NAN, 0.0, NAN, 0.5])
    side = np.array([0, 0, 1, 1, 1, 1, -1, -1, -1, 0, 0, 1], dtype=np.int64)
    return exposure[:, None], side[:, None]


def _book() -> tuple[np.ndarray, np.ndarray]:
    """Two contracts: a pair that is held for a while, then the first alone."""
    exposure = np.array(
        [[NAN, NAN], [1.0, -1.0], [NAN, NAN], [NAN, -0.5], [NAN, 0.0], [0.5, NAN], [NAN, NAN], [0.0, NAN]]
    )
    side = np.array([[0, 0], [1, -1], [1, -1], [1, -1], [1, 0], [1, 0], [1, 0], [0, 0]], dtype=np.int64)
    return exposure, side


def _random(
    path: tuple[np.ndarray, np.ndarray], draws: int, seed: int = 0, config: EnvConfig = CONFIG
) -> RandomTiming:
    exposure, side = path
    return RandomTiming(config, exposure=exposure, side=side, first_bar=0, draws=draws, seed=seed)


def _paths(timing: RandomTiming, bars: int) -> np.ndarray:
    """(bars, draws, A) what the accounts ask for."""
    return np.stack([timing.wanted(step) for step in range(bars)])


def _held(path: np.ndarray) -> np.ndarray:
    """Exposure held at each decision, when nothing drifts."""
    out, now = np.empty_like(path), np.zeros(path.shape[1:])
    for i, value in enumerate(path):
        now = np.where(np.isnan(value), now, value)
        out[i] = now
    return out


def test_random_timing_keeps_exposures_and_time_in_market() -> None:
    exposure, _ = _path()
    own = np.sort(_held(exposure)[:, 0])
    paths = _paths(_random(_path(), 50), 12)
    assert paths.shape == (12, 50, 1)
    for path in _held(paths)[:, :, 0].T:
        np.testing.assert_allclose(np.sort(path), own)


def test_random_timing_differs_from_draw_to_draw_and_repeats_with_its_seed() -> None:
    paths = _paths(_random(_path(), 50), 12)
    assert len({path.tobytes() for path in paths[:, :, 0].T}) > 20
    np.testing.assert_array_equal(paths, _paths(_random(_path(), 50), 12))
    assert not np.array_equal(paths, _paths(_random(_path(), 50, seed=1), 12), equal_nan=True)


def test_what_was_held_together_stays_together() -> None:
    exposure, _ = _book()
    own = _held(exposure)
    held = _held(_paths(_random(_book(), 40), 8))  # 8 draws A
    turned = {np.roll(own, -shift, axis=0).tobytes() for shift in range(8)}
    assert {np.ascontiguousarray(held[:, draw]).tobytes() for draw in range(40)} == turned


def test_random_timing_follows_each_accounts_own_path(make_tape: TapeFactory) -> None:
    agent = _random(_path(), 3)
    account = np.zeros((3, 1, len(ACCOUNT_NAMES)), np.float32)
    for name in ("exposure", "asked"):
        account[:, 0, ACCOUNT_NAMES.index(name)] = 0.3
    action = agent.act(make_tape(), 2, account, np.zeros((3, len(PORTFOLIO_NAMES)), np.float32))
    for i, wanted in enumerate(agent.wanted(2)[:, 0]):
        expected = [0.15, 1.0] if np.isnan(wanted) else [wanted / 2, -1.0]
        np.testing.assert_allclose(action[i], expected, rtol=1e-6)


@pytest.mark.parametrize("action", ["ladder", "heads"])
def test_on_choices_the_nearest_one_is_asked_for_at_another_time(action: str) -> None:
    config = EnvConfig(action=action)  # type: ignore[arg-type]
    asked = _paths(_random(_path(), 20, config=config), 12)
    # half of 2 is the smallest level of the ladder but 0, a quarter of 2 the smallest size
    smallest = 1.0 if action == "ladder" else 0.5
    allowed = {-1.0, 0.0, 1.0, 2.0} | ({0.5} if smallest == 0.5 else set())
    assert set(asked[np.isfinite(asked)].tolist()) <= allowed
    assert np.isnan(asked).any()
