"""PerpVecEnv: paths, restarts, seeds, resuming, windows and both of its faces."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.buffers import StepBuffers
from perpgym.envs.spaces import LEDGER

MakeTape = Callable[..., Tape]


def actions_of(env: PerpVecEnv, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (env.num_envs, env.action_dim)).astype(np.float32)


def started(env: PerpVecEnv, seed: int = 0) -> StepBuffers:
    out = env.make_buffers()
    env.reset_into(out, seed)
    return out


def test_accounts_of_a_path_share_its_bar_and_truncate_together(make_tape: MakeTape) -> None:
    env = PerpVecEnv(
        make_tape(), n_paths=3, accounts_per_path=4, config=EnvConfig(window_bars=8, episode_bars=20)
    )
    out = started(env)
    truncations = 0
    for step in range(100):
        env.step_into(actions_of(env, step), out)
        bars, ends = out.bar.reshape(3, 4), out.truncated.reshape(3, 4)
        assert (bars == bars[:, :1]).all()
        assert (ends == ends[:, :1]).all()
        truncations += int(ends[:, 0].sum())
    assert truncations >= 3 * (100 // 20 - 1)


def test_first_episodes_are_staggered_so_that_paths_do_not_end_together(make_tape: MakeTape) -> None:
    env = PerpVecEnv(make_tape(), n_paths=16, config=EnvConfig(window_bars=8, episode_bars=100))
    out = started(env)
    ends = []
    for step in range(100):
        env.step_into(actions_of(env, step), out)
        ends.append(int(out.truncated.sum()))
    assert max(ends) < 8
    assert sum(ends) >= 16


def test_every_bar_shown_and_booked_lies_in_the_period(make_tape: MakeTape) -> None:
    tape = make_tape()
    env = PerpVecEnv(
        tape, n_paths=8, config=EnvConfig(window_bars=16, episode_bars=30), start_bar=100, end_bar=200
    )
    out = started(env)
    seen = [out.bar.copy()]
    for step in range(300):
        env.step_into(actions_of(env, step), out)
        seen += [out.bar.copy(), np.where(out.truncated, out.final_bar, out.bar)]
    assert np.min(seen) >= 100
    assert np.max(seen) == 199


def test_a_period_too_short_for_a_step_is_refused_in_words(make_tape: MakeTape) -> None:
    with pytest.raises(ValueError, match="use a longer period"):
        PerpVecEnv(make_tape(bars=64), n_paths=1, config=EnvConfig(window_bars=64))


def test_a_ruined_account_restarts_in_place_and_reports_its_last_observation(make_tape: MakeTape) -> None:
    closes = np.full(60, 30_000.0)
    closes[30:] = 20_000.0
    env = PerpVecEnv(
        make_tape(closes),
        n_paths=1,
        accounts_per_path=2,
        config=EnvConfig(window_bars=1, action="target", episode_bars=58),
        limits=RiskLimits(max_daily_loss=None),
    )
    out = started(env)
    plan = np.array([[0.9], [0.0]], np.float32)
    while not out.terminated.any():
        env.step_into(plan, out)
    assert out.terminated.tolist() == [True, False]
    assert out.final_bar[0] == out.bar[0] == 30
    assert out.final_portfolio[0, 2] > 0.3
    assert out.portfolio[0, 2] == 0.0
    assert out.account[0, 0, 0] == 0.0


def test_the_same_seed_gives_the_same_columns_and_another_seed_does_not(make_tape: MakeTape) -> None:
    def play(seed: int) -> np.ndarray:
        env = PerpVecEnv(
            make_tape(),
            n_paths=4,
            accounts_per_path=2,
            config=EnvConfig(window_bars=8, episode_bars=25, restart="random"),
        )
        out = started(env, seed)
        rows = []
        for step in range(80):
            env.step_into(actions_of(env, step), out)
            rows.append(np.concatenate([out.ledger.ravel(), out.account.ravel(), out.bar]))
        return np.array(rows)

    np.testing.assert_array_equal(play(3), play(3))
    assert not np.array_equal(play(3), play(4), equal_nan=True)


@pytest.mark.parametrize("restart", ["flat", "random"])
def test_a_run_continues_from_its_saved_state_to_the_bit(make_tape: MakeTape, restart: str) -> None:
    config = EnvConfig(window_bars=8, episode_bars=25, restart=restart)  # type: ignore[arg-type]
    env = PerpVecEnv(make_tape(), n_paths=4, accounts_per_path=2, config=config)
    out = started(env)
    for step in range(40):
        env.step_into(actions_of(env, step), out)
    other = PerpVecEnv(make_tape(), n_paths=4, accounts_per_path=2, config=config)
    other.load_state_dict(pickle.loads(pickle.dumps(env.state_dict())))
    again = other.make_buffers()
    other.observe_into(again)
    np.testing.assert_array_equal(again.account, out.account)
    for step in range(60):
        env.step_into(actions_of(env, step), out)
        other.step_into(actions_of(env, step), again)
        np.testing.assert_array_equal(again.ledger, out.ledger)
        np.testing.assert_array_equal(again.bar, out.bar)


def test_a_state_of_another_size_is_refused(make_tape: MakeTape) -> None:
    small = PerpVecEnv(make_tape(), n_paths=1, config=EnvConfig(window_bars=8))
    large = PerpVecEnv(make_tape(), n_paths=2, config=EnvConfig(window_bars=8))
    with pytest.raises(ValueError, match="n_paths"):
        large.load_state_dict(small.state_dict())


def test_windows_are_the_rows_of_the_tape_that_end_at_the_bar(make_tape: MakeTape) -> None:
    tape = make_tape()
    env = PerpVecEnv(tape, n_paths=3, config=EnvConfig(window_bars=8, episode_bars=10), with_windows=True)
    out = started(env)
    assert out.market is not None
    assert out.final_market is not None
    assert out.risk is not None
    for step in range(40):
        env.step_into(actions_of(env, step), out)
        for i in range(3):
            np.testing.assert_array_equal(out.market[i], tape.features[out.bar[i] - 7 : out.bar[i] + 1])
            np.testing.assert_array_equal(out.risk[i], tape.risk[out.bar[i] - 7 : out.bar[i] + 1])
            if out.truncated[i]:
                expected = tape.features[out.final_bar[i] - 7 : out.final_bar[i] + 1]
                np.testing.assert_array_equal(out.final_market[i], expected)


def test_an_action_that_is_not_a_number_is_refused_and_books_nothing(make_tape: MakeTape) -> None:
    env = PerpVecEnv(make_tape(), n_paths=2, config=EnvConfig(window_bars=8))
    out = started(env)
    before = env.state_dict()
    bad = actions_of(env)
    bad[1, 0] = np.nan
    with pytest.raises(ValueError, match="must have shape"):
        env.step_into(np.zeros((env.num_envs + 1, env.action_dim), np.float32), out)
    with pytest.raises(ValueError, match="account 1 is not finite"):
        env.step_into(bad, out)
    np.testing.assert_array_equal(env.state_dict()["wallets"], before["wallets"])
    np.testing.assert_array_equal(env.state_dict()["path_bar"], before["path_bar"])


def test_the_gymnasium_face_autoresets_in_the_same_step(make_tape: MakeTape) -> None:
    env = PerpVecEnv(make_tape(), n_paths=2, config=EnvConfig(window_bars=8, episode_bars=12))
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    for step in range(30):
        observation, _reward, terminated, truncated, info = env.step(actions_of(env, step))
        assert env.observation_space.contains(observation)
        done = terminated | truncated
        if done.any():
            i = int(np.flatnonzero(done)[0])
            assert info["_final_obs"][i]
            assert info["final_obs"][i]["bar"] != observation["bar"][i]
            return
    pytest.fail("no episode ended")


def test_sb3s_adapter_reports_truncation_and_the_terminal_observation(make_tape: MakeTape) -> None:
    env = PerpVecEnv(
        make_tape(), n_paths=2, config=EnvConfig(window_bars=8, episode_bars=12), with_windows=True
    ).as_sb3()
    env.seed(0)
    env.reset()
    for step in range(30):
        _obs, _rewards, dones, infos = env.step(actions_of(env.native, step))
        for i in np.flatnonzero(dones):
            assert infos[i]["TimeLimit.truncated"]
            assert env.observation_space.contains(infos[i]["terminal_observation"])
            assert infos[i]["episode"]["l"] <= 12
            return
    pytest.fail("no episode ended")


def test_stock_ppo_trains_on_window_observations(make_tape: MakeTape) -> None:
    env = PerpVecEnv(make_tape(), n_paths=4, config=EnvConfig(window_bars=4), with_windows=True).as_sb3()
    model = PPO("MultiInputPolicy", env, n_steps=16, batch_size=32, n_epochs=1, seed=0, device="cpu")
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(128)
    moved = [
        not np.allclose(a.numpy(), b.detach().numpy())
        for a, b in zip(before, model.policy.parameters(), strict=True)
    ]
    assert any(moved)


def test_a_band_holds_while_the_exposure_lies_inside_it(make_tape: MakeTape) -> None:
    env = PerpVecEnv(make_tape(), n_paths=1, config=EnvConfig(window_bars=1))
    out = started(env)
    env.step_into(np.array([[0.25, -1.0]], np.float32), out)
    assert out.ledger[0, LEDGER["fills"]] == 1
    for _ in range(20):
        # centre 0.5, half width 0.5: the drift of a held quantity stays inside
        env.step_into(np.array([[0.25, -0.5]], np.float32), out)
        assert out.ledger[0, LEDGER["fills"]] == 0


def test_a_repeated_target_is_not_rebalanced_below_the_threshold(make_tape: MakeTape) -> None:
    env = PerpVecEnv(make_tape(sigma=0.001), n_paths=1, config=EnvConfig(window_bars=1, action="target"))
    out = started(env)
    fills = 0
    for _ in range(20):
        env.step_into(np.array([[0.5]], np.float32), out)
        fills += int(out.ledger[0, LEDGER["fills"]])
    assert fills == 1


def test_step_and_reset_before_their_time_are_refused(make_tape: MakeTape) -> None:
    env = PerpVecEnv(make_tape(), n_paths=1, config=EnvConfig(window_bars=1))
    with pytest.raises(gym.error.ResetNeeded):
        env.step(actions_of(env))
    with pytest.raises(ValueError, match="one integer seed"):
        env.reset(seed=[1])


def test_the_bar_that_liquidated_shows_a_margin_ratio_of_one_and_no_other_does(
    make_tape: Callable[..., Tape],
) -> None:
    closes = np.full(40, 30_000.0)
    closes[20:] = 25_000.0
    config = EnvConfig(
        action="target", margin_mode="isolated", leverage=10.0, window_bars=1, max_drawdown=1.0,
        stop_loss=None, take_profit=None,
    )  # fmt: skip
    tape = make_tape(closes, wick=0.0, funding_rate=0.0)
    env = PerpVecEnv(tape, n_paths=1, config=config, limits=RiskLimits(max_daily_loss=None))
    out = started(env)
    env.load_state_dict(env.state_dict() | {"path_bar": np.array([12]), "path_end": np.array([35])})
    seen = []
    for bar in range(13, 28):
        env.step_into(np.full((1, 1), 0.5 if bar < 21 else 0.0, np.float32), out)
        seen.append((float(out.ledger[0, LEDGER["liquidated"]]), float(out.portfolio[0, 1])))
    assert sum(was for was, _ in seen) == 1.0
    assert [ratio == 1.0 for _, ratio in seen] == [was == 1.0 for was, _ in seen]
