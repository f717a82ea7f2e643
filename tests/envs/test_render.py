"""The picture of an episode shows what was booked, and costs nothing where nobody asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import matplotlib as mpl
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RenderCollection

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpEnv, RiskLimits
from perpgym.envs.render import EpisodeRecord, Step, draw
from perpgym.envs.spaces import CONTRACT_LEDGER_COLUMNS, LEDGER, LEDGER_COLUMNS

MakeTape = Callable[..., Tape]
MergeTapes = Callable[[list[Tape]], Tape]
SHORT = EnvConfig(window_bars=4, episode_bars=60, action="target", stop_loss=0.02)


def played(tape: Tape, steps: int, **settings: Any) -> PerpEnv:
    """An env after some random steps, restarted where an episode ended."""
    env = PerpEnv(tape, config=SHORT, render_mode="rgb_array", **settings)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(steps):
        _obs, _reward, terminated, truncated, _info = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
    return env


def colours(image: np.ndarray, top: int, bottom: int) -> set[tuple[int, int, int]]:
    return {tuple(pixel) for pixel in image[top:bottom].reshape(-1, 3).tolist()}


def test_gymnasiums_checker_accepts_the_pictures(make_tape: MakeTape) -> None:
    env = PerpEnv(make_tape(), config=SHORT, render_mode="rgb_array")
    # the checker asks the spec for the other modes
    env.spec = gym.spec("perpgym/Perp-v0")
    check_env(env)
    image = env.render()
    assert image is not None
    assert image.shape == (800, 1280, 3)
    assert image.dtype == np.uint8


def test_a_picture_changes_with_every_bar(make_tape: MakeTape) -> None:
    env = PerpEnv(make_tape(), config=SHORT, render_mode="rgb_array")
    env.reset(seed=0)
    images = [env.render()]
    for target in (0.5, -0.5):
        env.step(np.array([target], np.float32))
        images.append(env.render())
    assert images[0] is not None
    assert not any(np.array_equal(images[0], image) for image in images[1:])


def test_a_picture_is_the_same_twice_and_touches_none_of_matplotlibs_settings(make_tape: MakeTape) -> None:
    env = played(make_tape(), 20)
    before = dict(mpl.rcParams)
    first, second = env.render(), env.render()
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first, second)
    assert not np.shares_memory(first, second)
    assert dict(mpl.rcParams) == before


def test_purchases_sales_stops_and_liquidations_are_marked(make_tape: MakeTape) -> None:
    tape = make_tape()
    record = EpisodeRecord(tape, 50)

    def picture(**events: float) -> set[tuple[int, int, int]]:
        """Colours of the price panel after one bar in which this happened."""
        record.restart(100, 1_000.0)
        ledger = np.zeros(len(LEDGER_COLUMNS))
        holdings = np.zeros((1, len(CONTRACT_LEDGER_COLUMNS)))
        holdings[0, CONTRACT_LEDGER_COLUMNS.index("fill_price")] = np.nan
        ledger[LEDGER["equity"]] = 1_000.0
        for name, value in events.items():
            if name in LEDGER and name not in CONTRACT_LEDGER_COLUMNS:
                ledger[LEDGER[name]] = value
            else:
                holdings[0, CONTRACT_LEDGER_COLUMNS.index(name)] = value
        record.add(Step(101, ledger, holdings, np.nan))
        return colours(draw(record), 100, 360)

    quiet, price = picture(), float(tape.last[101, 0, 3])
    green, red, orange = (26, 127, 55), (207, 34, 46), (194, 87, 12)
    assert not {green, red, orange} & quiet
    assert green in picture(fill_price=price, filled=1.0, position=1.0)
    assert red in picture(fill_price=price, filled=-1.0, position=-1.0)
    assert orange in picture(filled=-1.0, stopped=1.0)
    assert picture(filled=-1.0, liquidated=1.0) > quiet


def test_the_record_keeps_the_bars_that_are_drawn_and_no_others(make_tape: MakeTape) -> None:
    env = PerpEnv(make_tape(), config=SHORT, render_mode="rgb_array", render_bars=7)
    env.reset(seed=0)
    equities = [env.step(np.array([0.5], np.float32))[4]["equity"] for _ in range(12)]
    record = env._record
    assert record is not None
    assert len(record.steps) == 7
    assert record.column("equity").tolist() == equities[-7:]
    env.reset()
    assert len(record.steps) == 0


def test_several_contracts_share_a_picture(make_tape: MakeTape, merge_tapes: MergeTapes) -> None:
    tape = merge_tapes([make_tape(seed=seed) for seed in range(3)])
    one, three = played(make_tape(), 30).render(), played(tape, 30).render()
    assert one is not None
    assert three is not None
    # a line of its own colour for each contract's exposure
    lines = {(31, 111, 235), (194, 87, 12), (15, 123, 108)}
    assert lines <= colours(three, 370, 480)
    assert not lines <= colours(one, 370, 480)


def test_an_account_with_nothing_left_can_be_drawn(make_tape: MakeTape) -> None:
    closes = np.full(60, 30_000.0)
    closes[30:] = 10_000.0
    env = PerpEnv(
        make_tape(closes),
        config=EnvConfig(window_bars=1, action="target", max_exposure=10.0, episode_bars=58),
        limits=RiskLimits(max_leverage=20.0, max_daily_loss=None),
        render_mode="rgb_array",
    )
    env.reset(seed=0)
    terminated = False
    while not terminated:
        _obs, _reward, terminated, _truncated, info = env.step(np.ones(1, np.float32))
    assert info["equity"] == 0.0
    assert env.render() is not None


def test_gymnasiums_wrappers_collect_the_frames() -> None:
    env = RenderCollection(gym.make("perpgym/Perp-v0", config=SHORT, render_mode="rgb_array"))
    env.reset(seed=0)
    for _ in range(3):
        env.step(env.action_space.sample())
    frames = env.render()
    assert isinstance(frames, list)
    assert len(frames) == 4
    assert env.metadata["render_fps"] > 0


def test_without_a_mode_nothing_is_kept_and_render_says_so(make_tape: MakeTape) -> None:
    env = PerpEnv(make_tape(), config=SHORT)
    env.reset(seed=0)
    assert env._record is None
    with pytest.warns(UserWarning, match="render_mode='rgb_array'"):
        assert env.render() is None
    with pytest.raises(ValueError, match="render_mode must be 'rgb_array' or None, was 'human'"):
        PerpEnv(make_tape(), render_mode="human")
    with pytest.raises(ValueError, match="render_bars must be at least 1"):
        PerpEnv(make_tape(), render_bars=0)


def test_a_picture_needs_an_episode(make_tape: MakeTape) -> None:
    env = PerpEnv(make_tape(), config=SHORT, render_mode="rgb_array")
    with pytest.raises(gym.error.ResetNeeded):
        env.render()
