"""Copies of an env continue identically, and nothing that an env handed out is written to again."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from numba import typeof

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpEnv, PerpVecEnv
from perpgym.envs.actions import ACTION_KINDS, ActionKind
from perpgym.envs.impact_model import ImpactModel
from perpgym.envs.rules import market_arrays, one_bar_market

MakeTape = Callable[..., Tape]
CONFIG = EnvConfig(window_bars=8, episode_bars=30, restart="random", execution="limit", remainder="carry")
COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
    "cloudpickle": lambda env: pickle.loads(cloudpickle.dumps(env)),
    "deepcopy": copy.deepcopy,
}


def single(tape: Tape, config: EnvConfig) -> PerpEnv:
    env = PerpEnv(tape, config=config)
    env.reset(seed=0)
    return env


def batch(tape: Tape, config: EnvConfig) -> PerpVecEnv:
    env = PerpVecEnv(tape, n_paths=3, accounts_per_path=2, config=config, with_windows=True)
    env.reset(seed=0)
    return env


def sb3_face(tape: Tape, config: EnvConfig) -> Any:
    env = batch(tape, config).as_sb3()
    env.seed(0)
    env.reset()
    return env


FACES: dict[str, Callable[[Tape, EnvConfig], Any]] = {
    "PerpEnv": single,
    "PerpVecEnv": batch,
    "SB3": sb3_face,
}


def leaves(value: Any) -> list[Any]:
    """Every array and number of a nested answer, in order."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in leaves(value[key])]
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [leaf for item in value for leaf in leaves(item)]
    return [] if value is None else [value]


def assert_same(first: Any, second: Any) -> None:
    ours, theirs = leaves(first), leaves(second)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def actions_of(env: Any, steps: int) -> list[Any]:
    """The same actions for an env and for its copy."""
    space = env.native.action_space if hasattr(env, "native") else env.action_space
    space.seed(7)
    return [space.sample() for _ in range(steps)]


def advance(env: Any, actions: list[Any]) -> list[Any]:
    """What the env answers; a single env starts a new episode where one has ended."""
    said: list[Any] = []
    for action in actions:
        answer = env.step(action)
        said.append(answer)
        if isinstance(env, PerpEnv) and (answer[2] or answer[3]):
            said.append(env.reset())
    return said


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("face", FACES)
def test_a_copy_made_in_the_middle_of_an_episode_continues_identically(
    make_tape: MakeTape, face: str, how: str
) -> None:
    env = FACES[face](make_tape(sigma=0.02), CONFIG)
    actions = actions_of(env, 80)
    advance(env, actions[:17])
    twin = COPIES[how](env)
    assert_same(advance(env, actions[17:]), advance(twin, actions[17:]))


def test_a_copy_and_its_original_share_no_account(make_tape: MakeTape) -> None:
    env = single(make_tape(), CONFIG)
    twin = pickle.loads(pickle.dumps(env))
    actions = actions_of(env, 10)
    untouched = pickle.loads(pickle.dumps(env))
    advance(twin, actions)
    assert_same(advance(env, actions), advance(untouched, actions))


def test_a_pickled_env_holds_its_tape_once(make_tape: MakeTape) -> None:
    tape = make_tape(bars=4_000)
    assert len(pickle.dumps(single(tape, CONFIG))) < 1.1 * len(pickle.dumps(tape))


def test_every_tape_meets_the_same_machine_code(make_tape: MakeTape, tmp_path: Path) -> None:
    """Numba compiles anew, for a minute or more, where the type of an array differs."""
    tape = make_tape()
    tape.save(tmp_path)
    one = make_tape().last
    turned = replace(tape, last=np.asfortranarray(one), mark=one[:, :, [0, 1, 2, 3]], _cache={})
    rounded = {name: getattr(tape, name).round().astype(np.int64) for name in ("last", "mark")}
    whole = replace(tape, **rounded, _cache={})
    envs = [single(market, CONFIG) for market in (tape, Tape.load(tmp_path), turned, whole)]
    envs += [
        pickle.loads(pickle.dumps(envs[0])),
        single(tape, replace(CONFIG, impact=ImpactModel(kind="permanent"))),
        # whole numbers, where a setting may have a fraction
        single(tape, replace(CONFIG, max_bars_held=4, latency_bars=1, max_exposure=1, reward_scale=1)),
    ]
    assert len({typeof(env.batch._world) for env in envs}) == 1
    assert len({typeof((env.batch._features, env.batch._risk)) for env in envs}) == 1
    # bars that arrive one by one, of a growing tape or of a worked case, are no other kind of market
    prices = np.array([[100, 101, 99, 100]])
    one_bar = one_bar_market(
        mark_before=np.array([100]), last=prices, mark=prices, volume=np.array([1]), sigma_per_bar=np.zeros(1)
    )
    markets = (envs[0].batch._world.market, market_arrays(tape, CONFIG), one_bar)
    assert len({typeof(market) for market in markets}) == 1


@pytest.mark.parametrize("action", ACTION_KINDS)
@pytest.mark.parametrize("face", FACES)
def test_nothing_that_a_step_returned_is_written_by_a_later_one(
    make_tape: MakeTape, face: str, action: ActionKind
) -> None:
    env = FACES[face](make_tape(sigma=0.02), EnvConfig(window_bars=8, episode_bars=12, action=action))
    kept: list[Any] = []
    frozen: list[Any] = []
    for move in actions_of(env, 30):
        answer = env.step(move)
        kept.append(answer)
        frozen.append(copy.deepcopy(answer))
        if isinstance(env, PerpEnv) and (answer[2] or answer[3]):
            env.reset()
    assert_same(kept, frozen)
    # and no two observations look at one memory
    observations = [leaves(answer[0]) for answer in kept]
    for before, after in pairwise(observations):
        assert not any(np.shares_memory(a, b) for a, b in zip(before, after, strict=True))
