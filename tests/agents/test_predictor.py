"""A rule is asked as a trained model is, by code that knows models only, and trades as in a backtest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy

from perpgym.agents.baselines import BASELINES, make_baseline, standard_baselines
from perpgym.agents.predictor import Predictor
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.actions import ACTION_KINDS
from perpgym.evaluation.backtest import run_backtest


@pytest.fixture(scope="module")
def tape(make_portfolio: Callable[..., Tape]) -> Tape:
    return make_portfolio((0, 0), bars=400, sigma=0.01, volume=1e7)


@pytest.mark.parametrize("action", ACTION_KINDS)
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_predicts_what_it_does_in_a_backtest(tape: Tape, name: str, action: Any) -> None:
    start, bars = 100, 40
    config = EnvConfig(action=action, window_bars=1, episode_bars=bars, max_drawdown=1.0)
    period = {"start_bar": start, "end_bar": start + bars + 1}
    agent = make_baseline(name, config, n_contracts=2)
    (backtest,) = run_backtest([agent], tape, config=config, limits=RiskLimits(), **period)
    env = PerpVecEnv(tape, n_paths=1, config=config, limits=RiskLimits(), **period)
    observation, _ = env.reset(seed=0)
    model, state = Predictor(make_baseline(name, config, n_contracts=2), tape, config), None
    for row in range(bars):
        actions, state = model.predict(observation, state, deterministic=True)
        assert env.single_action_space.contains(actions[0])
        np.testing.assert_array_equal(np.ravel(actions), backtest.actions[row])
        observation, *_ = env.step(actions)


def test_stable_baselines_evaluates_a_rule_as_it_does_a_model(tape: Tape) -> None:
    config = EnvConfig(window_bars=1, episode_bars=50)
    env = PerpVecEnv(tape, n_paths=2, accounts_per_path=2, config=config, seed=0)
    flat = Predictor(make_baseline("flat", config), tape, config)
    returns, lengths = evaluate_policy(
        flat, env.as_sb3(), n_eval_episodes=4, return_episode_rewards=True, warn=False
    )  # type: ignore[arg-type]
    assert returns == [0.0] * 4
    assert max(lengths) <= 50


class Counts:
    """Asks for a tenth more of the range each time that it is asked."""

    name = "counts"
    asked = 0

    def act(self, tape: Tape, bar: int, account: Any, portfolio: Any) -> Any:
        self.asked += 1
        return np.full((len(account), 2), 0.1 * self.asked, np.float32)


def test_an_account_that_starts_anew_forgets_and_the_others_remember(tape: Tape) -> None:
    config = EnvConfig(window_bars=1, action="target")
    observation, _ = PerpVecEnv(tape, n_paths=2, config=config, seed=0).reset(seed=1)
    model, state = Predictor(Counts(), tape, config), None
    for expected in (0.1, 0.2, 0.3):
        actions, state = model.predict(observation, state)
        np.testing.assert_allclose(actions, expected)
    actions, _ = model.predict(observation, state, episode_start=np.array([True, False]))
    np.testing.assert_allclose(actions[:, 0], [0.1, 0.4])
    # what went in is as it was: the same question has the same answer
    np.testing.assert_allclose(model.predict(observation, state)[0], 0.4)
    np.testing.assert_allclose(model.predict(observation)[0], 0.1)


def test_one_account_is_asked_without_a_batch(tape: Tape) -> None:
    config = EnvConfig(window_bars=1, action="ladder")
    env = PerpVecEnv(tape, n_paths=1, config=config)
    observation, _ = env.reset(seed=0)
    single = {name: part[0] for name, part in observation.items()}
    model = Predictor(make_baseline("buy_and_hold", config), tape, config)
    action, _ = model.predict(single)
    np.testing.assert_array_equal(action, model.predict(observation)[0][0])
    assert env.single_action_space.contains(action)


def test_windows_a_wrong_name_and_a_lonely_contract_are_refused(tape: Tape) -> None:
    config = EnvConfig(window_bars=4)
    env = PerpVecEnv(tape, n_paths=1, config=config, with_windows=True)
    observation, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match="with_windows=False"):
        Predictor(make_baseline("momentum", config), tape, config).predict(observation)
    with pytest.raises(ValueError, match="baseline must be one of flat, buy_and_hold"):
        make_baseline("buy-and-hold", config)
    with pytest.raises(ValueError, match="needs at least two, was 1"):
        make_baseline("funding_harvest", config)


def test_the_rules_that_an_agent_is_judged_beside_all_have_a_name() -> None:
    config = EnvConfig()
    names = [agent.name for agent in standard_baselines(config, n_contracts=2)]
    assert names == [make_baseline(name, config, n_contracts=2).name for name in BASELINES]
    assert len(set(names)) == len(names) == len(standard_baselines(config)) + 1
