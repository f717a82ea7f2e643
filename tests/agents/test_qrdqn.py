"""PerpQRDQN is sb3-contrib's QR-DQN on the same data, learns what is known, and minds the tail if told to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib.common.utils import quantile_huber_loss

from perpgym.agents.qrdqn import PerpQRDQN, QRDQNConfig
from perpgym.agents.trained import TrainedAgent
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.policies import PolicyConfig
from perpgym.policies.quantile import PerpQuantilePolicy, cvar_weights, ladder_shape

SMALL = PolicyConfig(
    d_model=8, n_layers=1, n_heads=2, band=4, risk_hidden=0, policy_hidden=(16,), value_hidden=(16,)
)
LAST_BAR = PolicyConfig(
    encoder="mlp", d_model=16, n_layers=1, risk_hidden=0, policy_hidden=(32,), value_hidden=(32,)
)
FREE = {
    "action": "ladder", "max_exposure": 1.0, "half_spread_bps": 0.0, "impact_coefficient": 0.0,
    "taker_rate": 0.0, "max_drawdown": 1.0,
}  # fmt: skip


def make_model(tape: Tape, policy: PolicyConfig = SMALL, **config: Any) -> PerpQRDQN:
    env_config = EnvConfig(
        **FREE | {"window_bars": policy.receptive_field, "episode_bars": 200} | config.pop("env", {})
    )
    env = PerpVecEnv(tape, n_paths=4, accounts_per_path=config.pop("accounts", 2), config=env_config)
    settings = {
        "learning_starts": 64, "buffer_size": 4_000, "batch_size": 64, "stretch_bars": 8, "n_quantiles": 8,
        "target_update_interval": 256,
    }  # fmt: skip
    return PerpQRDQN(
        PerpQuantilePolicy,
        env,
        config=QRDQNConfig(**settings | config),
        policy_kwargs={
            "config": policy,
            "market_scaler": fit_scaler(tape.features, 0, len(tape)),
            "risk_scaler": fit_scaler(tape.risk, 0, len(tape)),
        },
        seed=0,
        device="cpu",
    )


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=600)


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_its_loss_is_that_of_sb3_contrib_on_the_same_decisions(tape: Tape, alpha: float) -> None:
    model = make_model(tape, alpha=alpha, n_step=1, learning_starts=10**9)
    model.learn(400)
    torch.nn.init.normal_(model.quantile_net_target.value[-1].weight)
    batch = model._sample(64)
    ours = model.loss(batch)
    # one by one, through the policy's face for single observations
    flat = [(g, s, k) for g in range(len(batch.first_bar)) for s in range(8) for k in range(2)]
    kept = [(g, s, k) for g, s, k in flat if batch.weight[g, s, 0] > 0]

    def observation(state: torch.Tensor, bar: torch.Tensor) -> dict[str, torch.Tensor]:
        account = model.native.single_observation_space["account"].shape
        size = int(np.prod(account))
        return {
            "bar": bar[:, None],
            "account": state[:, :size].reshape(-1, *account),
            "portfolio": state[:, size:],
        }

    index = tuple(torch.tensor(column) for column in zip(*kept, strict=True))
    g, s, _k = index
    now = observation(batch.state[index], batch.first_bar[g] + s)
    after = observation(batch.next_state[index], batch.first_bar[g] + batch.next_offset[g, s])
    with torch.no_grad():
        following = model.quantile_net_target(after)  # B N L
        tail = cvar_weights(alpha, 8)[None, :, None]
        best = (following * tail).sum(1).argmax(-1)
        value = following.gather(2, best[:, None, None].expand(-1, 8, 1)).squeeze(2)
        target = batch.reward[index][:, None] + batch.discount[index][:, None] * value
    chosen = batch.action[index][:, None, :].expand(-1, 8, 1)
    current = model.quantile_net(now).gather(2, chosen).squeeze(2)
    theirs = quantile_huber_loss(current, target, sum_over_quantiles=True)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-4)


def test_cvar_weighs_the_worst_share_and_a_part_of_the_quantile_in_which_it_ends() -> None:
    np.testing.assert_allclose(cvar_weights(1.0, 4), [0.25] * 4)
    np.testing.assert_allclose(cvar_weights(0.5, 4), [0.5, 0.5, 0.0, 0.0])
    # 0.375 of 4 quantiles is 1.5 of them
    np.testing.assert_allclose(cvar_weights(0.375, 4), [2 / 3, 1 / 3, 0.0, 0.0], rtol=1e-6)
    with pytest.raises(ValueError, match="alpha"):
        cvar_weights(0.0, 4)


def signal_tape(make_tape: Callable[..., Tape], bars: int = 1_500) -> Tape:
    """The first feature is the sign of the coming return of 1 %."""
    rng = np.random.default_rng(3)
    sign = rng.choice([-1.0, 1.0], bars)
    closes = 100.0 * np.exp(np.concatenate([[0.0], np.cumsum(0.01 * sign[:-1])]))
    tape = make_tape(closes, wick=0.0, funding_rate=0.0, volume=1e9)
    features = tape.features.copy()
    features[:, 0, 0] = sign
    return replace(tape, features=features, _cache={})


@pytest.mark.parametrize("stretch_bars", [1, 8])
def test_it_learns_to_follow_a_signal_with_stretches_as_with_single_bars(
    make_tape: Callable[..., Tape], stretch_bars: int
) -> None:
    tape = signal_tape(make_tape)
    model = make_model(
        tape, LAST_BAR, stretch_bars=stretch_bars, gamma=0.5, learning_rate=2e-3, train_freq=8,
        gradient_steps=8, exploration_fraction=0.5, env={"reward_scale": 100.0},
    )  # fmt: skip
    model.learn(8_000)
    env = PerpVecEnv(tape, n_paths=1, config=model.native.config)
    out = env.make_buffers()
    env.reset_into(out, 5)
    agent, right = TrainedAgent(model.policy), 0
    for _ in range(150):
        bar = int(out.bar[0])
        action = agent.act(tape, bar, out.account, out.portfolio)
        right += int(action[0, 0]) == (4 if tape.features[bar, 0, 0] > 0 else 0)
        env.step_into(action, out)
    assert right >= 140


def test_a_small_alpha_keeps_away_from_a_fat_left_tail_that_pays_on_average(
    make_tape: Callable[..., Tape],
) -> None:
    """A long earns 0.3 % in nine bars of ten and loses 2 % in the tenth: 0.07 % on average."""
    rng = np.random.default_rng(7)
    returns = np.where(rng.random(1_500) < 0.1, -0.02, 0.003)
    tape = make_tape(100.0 * np.exp(np.cumsum(returns)), wick=0.0, funding_rate=0.0, volume=1e9)
    exposures = {}
    for alpha in (1.0, 0.2):
        model = make_model(
            tape, LAST_BAR, alpha=alpha, gamma=0.0, n_step=1, learning_rate=2e-3, train_freq=8,
            gradient_steps=8, n_quantiles=16, exploration_fraction=0.5, exploration_final_eps=0.3,
            env={"reward_scale": 100.0, "ladder": (0.0, 1.0)},
        )  # fmt: skip
        model.learn(10_000)
        env = PerpVecEnv(tape, n_paths=8, config=model.native.config)
        observation, _info = env.reset(seed=2)
        levels, _state = model.predict(observation, deterministic=True)
        exposures[alpha] = float(np.mean(levels))
    assert exposures[1.0] > 0.8
    assert exposures[0.2] < 0.2


def test_window_and_index_observations_give_the_same_levels(tape: Tape) -> None:
    model = make_model(tape)
    model.learn(400)
    levels = []
    for with_windows in (False, True):
        env = PerpVecEnv(tape, n_paths=6, config=model.native.config, with_windows=with_windows)
        observation, _info = env.reset(seed=4)
        levels.append(model.predict(observation, deterministic=True)[0])
    np.testing.assert_array_equal(levels[0], levels[1])


def test_it_is_saved_and_loaded_as_sb3_models_are(tape: Tape, tmp_path: Path) -> None:
    model = make_model(tape)
    model.learn(400)
    model.save(tmp_path / "model.zip")
    loaded = PerpQRDQN.load(tmp_path / "model.zip", env=model.native, device="cpu")
    for name, value in model.policy.state_dict().items():
        torch.testing.assert_close(loaded.policy.state_dict()[name], value)
    loaded.learn(200)


def test_two_runs_of_one_seed_are_one_run(tape: Tape) -> None:
    weights = []
    for _ in range(2):
        model = make_model(tape)
        model.learn(600)
        weights.append(torch.cat([p.flatten() for p in model.policy.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_several_contracts_have_a_ladder_each(make_portfolio: Callable[..., Tape]) -> None:
    tape = make_portfolio((0, 0, 0))
    model = make_model(tape)
    model.learn(400)
    assert ladder_shape(model.action_space) == (3, 5)
    env = PerpVecEnv(tape, n_paths=2, config=model.native.config)
    observation, _info = env.reset(seed=0)
    levels, _state = model.predict(observation, deterministic=True)
    assert levels.shape == (2, 3)


def test_another_action_space_is_refused(tape: Tape) -> None:
    with pytest.raises((ValueError, AssertionError), match=r"action=ladder|Discrete"):
        make_model(tape, env={"action": "band"})
