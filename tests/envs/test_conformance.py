"""Gymnasium, Stable-Baselines3, CleanRL and RLlib take the envs as they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers import FlattenObservation, RecordEpisodeStatistics
from gymnasium.wrappers.vector import DictInfoToList
from gymnasium.wrappers.vector import RecordEpisodeStatistics as VectorStatistics
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check
from stable_baselines3.common.env_util import make_vec_env

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpEnv, PerpVecEnv
from perpgym.envs.actions import ACTION_KINDS, ActionKind
from perpgym.envs.spaces import LEDGER_COLUMNS

MakeTape = Callable[..., Tape]
MergeTapes = Callable[[list[Tape]], Tape]
SHORT = EnvConfig(window_bars=8, episode_bars=20)


@contextmanager
def sb3_prefers_flat_vectors() -> Iterator[None]:
    """SB3 takes (R, A, F) windows for images and asks for flat vectors; the encoders want the three axes."""
    with warnings.catch_warnings():
        for text in (".*unconventional shape", ".*is an image", ".*minimal resolution", ".*channels-last"):
            warnings.filterwarnings("ignore", message=text)
        yield


@pytest.mark.parametrize("contracts", [1, 3])
@pytest.mark.parametrize("action", ACTION_KINDS)
def test_both_checkers_accept_every_kind_of_action(
    make_tape: MakeTape, merge_tapes: MergeTapes, action: ActionKind, contracts: int
) -> None:
    tape = merge_tapes([make_tape(seed=seed) for seed in range(contracts)])
    env = PerpEnv(tape, config=EnvConfig(window_bars=8, episode_bars=50, action=action))
    gymnasium_check(env, skip_render_check=True)
    with sb3_prefers_flat_vectors():
        sb3_check(env)


def test_gymnasium_makes_one_env_and_many() -> None:
    one = gym.make("perpgym/Perp-v0", config=SHORT)
    many = gym.make_vec("perpgym/Perp-v0", num_envs=4, config=SHORT)
    loop = gym.make_vec("perpgym/Perp-v0", num_envs=2, vectorization_mode="sync", config=SHORT)
    assert isinstance(one.unwrapped, PerpEnv)
    assert isinstance(many.unwrapped, PerpVecEnv)
    assert many.num_envs == 4
    for envs in (many, loop):
        assert envs.single_observation_space == one.observation_space
        assert envs.single_action_space == one.action_space
        assert lives(envs, 60) > 0
        envs.close()


def lives(envs: VectorEnv[Any, Any, Any], steps: int) -> int:
    """Step with random actions, check shapes and spaces; the number of episodes that ended."""
    observation, info = envs.reset(seed=3)
    assert envs.observation_space.contains(observation)
    assert isinstance(info, dict)
    envs.action_space.seed(0)
    ended = 0
    for _ in range(steps):
        observation, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
        assert envs.observation_space.contains(observation)
        assert np.isfinite(reward).all()
        for column, kind in ((reward, np.floating), (terminated, np.bool_), (truncated, np.bool_)):
            assert column.shape == (envs.num_envs,)
            assert np.issubdtype(column.dtype, kind)
        assert not (terminated & truncated).any()
        ended += int((terminated | truncated).sum())
    return ended


@pytest.mark.parametrize("with_windows", [False, True])
@pytest.mark.parametrize("action", ACTION_KINDS)
def test_the_batch_env_keeps_the_contract_of_a_vector_env(
    make_tape: MakeTape, action: ActionKind, with_windows: bool
) -> None:
    config = EnvConfig(window_bars=8, episode_bars=12, action=action)
    envs = PerpVecEnv(make_tape(), n_paths=3, accounts_per_path=2, config=config, with_windows=with_windows)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert lives(envs, 40) > 0
    single = envs.single_observation_space
    for step in range(40):
        observation, _reward, terminated, truncated, info = envs.step(envs.action_space.sample())
        done = terminated | truncated
        assert set(LEDGER_COLUMNS) <= info.keys()
        assert all(info[name].shape == (6,) for name in LEDGER_COLUMNS)
        assert done.any() == ("final_obs" in info)
        for i in np.flatnonzero(done):
            assert info["_final_obs"][i], step
            assert single.contains(info["final_obs"][i])
            assert single.contains({name: column[i] for name, column in observation.items()})


# --- CleanRL: thunks, statistics, flat observations ---


def thunk(tape: Tape, number: int, config: EnvConfig = SHORT) -> gym.Env[Any, Any]:
    """CleanRL's ``make_env``."""
    env = gym.make("perpgym/Perp-v0", tape=tape, config=config)
    env.action_space.seed(number)
    return RecordEpisodeStatistics(FlattenObservation(env))


def test_cleanrls_loop_of_thunks_sees_whole_episodes(make_tape: MakeTape) -> None:
    tape = make_tape()
    envs = gym.vector.SyncVectorEnv(
        [partial(thunk, tape, number) for number in range(3)], autoreset_mode=AutoresetMode.SAME_STEP
    )
    assert envs.single_observation_space.shape is not None
    assert len(envs.single_observation_space.shape) == 1
    envs.reset(seed=1)
    lengths: list[int] = []
    for _ in range(45):
        _obs, _reward, terminated, truncated, info = envs.step(envs.action_space.sample())
        done = terminated | truncated
        if done.any():
            lengths += info["final_info"]["episode"]["l"][done].tolist()
    assert lengths
    assert max(lengths) == SHORT.episode_bars


def test_cleanrls_envs_run_in_processes_of_their_own(make_tape: MakeTape) -> None:
    # the id names the module, which a fresh process has to import first
    make = partial(gym.make, "perpgym.envs:perpgym/Perp-v0", tape=make_tape(bars=60), config=SHORT)
    # a forked copy of a process with threads may hang, and says so
    apart = gym.vector.AsyncVectorEnv([make, make], context="spawn")
    together = gym.vector.SyncVectorEnv([make, make])
    try:
        first = [envs.reset(seed=5)[0] for envs in (apart, together)]
        actions = together.action_space.sample()
        second = [envs.step(actions)[:2] for envs in (apart, together)]
    finally:
        apart.close()
        together.close()
    for name in first[0]:
        np.testing.assert_array_equal(first[0][name], first[1][name])
        np.testing.assert_array_equal(second[0][0][name], second[1][0][name])
    np.testing.assert_array_equal(second[0][1], second[1][1])


def test_statistics_of_the_batch_env_are_those_of_its_rewards(make_tape: MakeTape) -> None:
    native = PerpVecEnv(make_tape(), n_paths=3, config=SHORT)
    envs = VectorStatistics(native)
    envs.reset(seed=2)
    envs.action_space.seed(2)
    running, lengths, checked = np.zeros(3), np.zeros(3, int), 0
    for _ in range(60):
        _obs, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
        running, lengths = running + reward, lengths + 1
        done = terminated | truncated
        if done.any():
            np.testing.assert_allclose(info["episode"]["r"][done], running[done], rtol=1e-5)
            np.testing.assert_array_equal(info["episode"]["l"][done], lengths[done])
            running[done], lengths[done] = 0.0, 0
            checked += int(done.sum())
    assert checked >= 6


# --- RLlib: a registered creator, a dictionary of settings, infos as a list ---


def test_rllibs_env_runner_drives_a_registered_env(make_tape: MakeTape) -> None:
    """What ``SingleAgentEnvRunner.make_env`` of ray 2.60 does, without ray."""
    tape, settings = make_tape(), {"window_bars": 8, "episode_bars": 20}
    name = "rllib-single-agent-env-v0"
    gym.register(name, entry_point=lambda: PerpEnv(tape, config=EnvConfig(**settings)))
    try:
        envs = DictInfoToList(gym.make_vec(name, num_envs=2, vectorization_mode="sync"))
        _obs, infos = envs.reset(seed=[1, 2])
        assert [type(info) for info in infos] == [dict, dict]
        seen = 0
        for _ in range(50):
            _obs, _reward, terminated, truncated, infos = envs.step(envs.action_space.sample())
            seen += int((terminated | truncated).sum())
            assert len(infos) == 2
        assert seen >= 4
        assert infos[0].keys() >= set(LEDGER_COLUMNS)
    finally:
        del gym.registry[name]


# --- Stable-Baselines3 ---


def test_sb3_makes_and_trains_on_the_registered_env() -> None:
    settings = {"config": EnvConfig(window_bars=4, episode_bars=20)}
    envs = make_vec_env("perpgym/Perp-v0", n_envs=2, seed=0, env_kwargs=settings)
    model = PPO("MultiInputPolicy", envs, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu")
    model.learn(64)
    assert model.num_timesteps == 64
    assert len(model.ep_info_buffer or ()) > 0
