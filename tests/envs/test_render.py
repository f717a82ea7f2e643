"""The picture of an episode shows what was booked, and costs nothing where nobody asks for it."""

from __future__ import annotations

from collections import Counter
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
from perpgym.envs.fills import FILL_COLUMNS, LIQUIDATION, ORDER, STOP, TARGET
from perpgym.envs.render import EpisodeRecord, Event, Step, draw
from perpgym.envs.spaces import CONTRACT_LEDGER, CONTRACT_LEDGER_COLUMNS, LEDGER, LEDGER_COLUMNS

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


def booked(*fills: tuple[float, ...], filled: float | None = None, **events: float) -> Step:
    """Bar 101 of an account with these fills: contract, quantity, price, fee, realised, reason."""
    ledger = np.zeros(len(LEDGER_COLUMNS))
    ledger[LEDGER["equity"]] = 1_000.0
    for name, value in events.items():
        ledger[LEDGER[name]] = value
    holdings = np.zeros((1, len(CONTRACT_LEDGER_COLUMNS)))
    rows = np.array(fills).reshape(-1, FILL_COLUMNS)
    holdings[0, CONTRACT_LEDGER["filled"]] = rows[:, 1].sum() if filled is None else filled
    return Step(101, ledger, holdings, np.nan, rows)


def test_purchases_sales_stops_targets_and_liquidations_are_marked(make_tape: MakeTape) -> None:
    tape = make_tape()
    record, price = EpisodeRecord(tape, 50), float(tape.last[101, 0, 3])

    def picture(*fills: tuple[float, ...]) -> Counter[tuple[int, int, int]]:
        """Colours of the price panel after one bar in which this happened."""
        record.restart(100, 1_000.0)
        record.add(booked(*fills))
        return Counter(tuple(pixel) for pixel in draw(record)[100:360].reshape(-1, 3).tolist())

    quiet = picture()
    ink = (27, 31, 36)
    green, red, orange, violet = (26, 127, 55), (207, 34, 46), (194, 87, 12), (130, 80, 223)
    assert not {green, red, orange, violet} & quiet.keys()
    assert green in picture((0, 1.0, price, 0.0, 0.0, ORDER))
    assert red in picture((0, -1.0, price, 0.0, 0.0, ORDER))
    assert orange in picture((0, -1.0, price, 0.0, 0.0, STOP))
    assert violet in picture((0, 1.0, price, 0.0, 0.0, TARGET))
    assert picture((0, -1.0, price, 0.0, 0.0, LIQUIDATION))[ink] > quiet[ink] + 20


def test_slices_of_an_order_are_one_mark_at_their_mean_price(make_tape: MakeTape) -> None:
    record = EpisodeRecord(make_tape(), 50)
    record.add(booked((0, 1.0, 100.0, 0.0, 0.0, ORDER), (0, 3.0, 104.0, 0.0, 0.0, ORDER)))
    assert record.events() == [Event(101, 0, ORDER, 4.0, 103.0)]


def test_fills_of_a_way_that_was_not_kept_are_not_shown(make_tape: MakeTape) -> None:
    tape = make_tape()
    record, close = EpisodeRecord(tape, 50), float(tape.last[101, 0, 3])
    target = (0, -2.0, 110.0, 0.0, 0.0, TARGET)
    for event, reason in (("liquidated", LIQUIDATION), ("stopped", STOP)):
        record.restart(100, 1_000.0)
        record.add(booked(target, filled=-5.0, **{event: 1.0}))
        assert record.events() == [Event(101, 0, reason, -5.0, close)]


@pytest.mark.parametrize("contracts", [1, 3])
def test_what_is_marked_is_what_was_booked(
    make_tape: MakeTape, merge_tapes: MergeTapes, contracts: int
) -> None:
    tape = merge_tapes([make_tape(seed=seed, sigma=0.02, wick=0.02) for seed in range(contracts)])
    config = EnvConfig(window_bars=4, episode_bars=120, action="target", stop_loss=0.02, take_profit=0.03)
    env = PerpEnv(tape, config=config, render_mode="rgb_array")
    env.reset(seed=0)
    env.action_space.seed(0)
    counts, is_over = dict.fromkeys(("fills", "stopped"), 0.0), False
    while not is_over:
        _obs, _reward, terminated, truncated, info = env.step(env.action_space.sample())
        counts = {name: value + info[name] for name, value in counts.items()}
        is_over = terminated or truncated
    assert env._record is not None
    events = env._record.events()
    assert len(env._record.steps) <= 120
    assert {event.asset for event in events} == set(range(contracts))
    closed = [event for event in events if event.reason in (STOP, TARGET)]
    assert len({event.bar for event in closed}) == counts["stopped"] > 10
    assert len(events) == counts["fills"]
    for event in events:
        low, high = tape.last[event.bar, event.asset, 2], tape.last[event.bar, event.asset, 1]
        # impact and the spread may go beyond the bar
        assert 0.99 * low < event.price < 1.01 * high


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
    lines = {(31, 111, 235), (176, 136, 0), (15, 123, 108)}
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
