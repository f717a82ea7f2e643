"""The controls are the libraries' own algorithms, and everything that judges an agent judges them alike."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from sb3_contrib import TQC, MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3 import A2C, SAC
from stable_baselines3.common.callbacks import BaseCallback

from perpgym.agents.algorithms import ALGORITHMS, make_algorithm
from perpgym.agents.artifact import load_artifact, save_artifact
from perpgym.agents.stock import StockAlgorithm
from perpgym.agents.stock_config import (
    A2CConfig,
    MaskablePPOConfig,
    RecurrentPPOConfig,
    SACConfig,
    StockConfig,
    TQCConfig,
)
from perpgym.agents.trained import TrainedAgent
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES
from perpgym.policies import PolicyConfig
from perpgym.policies.stock import MAX_EXACT_BARS, StockPolicy, StockRecurrentPolicy, check_exact

SMALL = PolicyConfig(
    d_model=8, n_layers=1, n_heads=2, band=4, risk_hidden=4, risk_chunk=4, risk_warmup=3,
    policy_hidden=(16,), value_hidden=(16,),
)  # fmt: skip
_CLIPPED = {"n_steps": 8, "batch_size": 16, "n_epochs": 2}
_REPLAYING = {"learning_starts": 24, "batch_size": 16, "buffer_size": 400}
CONFIGS: dict[str, tuple[StockConfig, str]] = {
    "a2c": (A2CConfig(), "band"),
    "maskable_ladder": (MaskablePPOConfig(**_CLIPPED), "ladder"),
    "maskable_heads": (MaskablePPOConfig(**_CLIPPED), "heads"),
    "recurrent": (RecurrentPPOConfig(**_CLIPPED, lstm_hidden_size=6, n_lstm_layers=2), "band"),
    "sac": (SACConfig(**_REPLAYING), "band"),
    "tqc": (TQCConfig(**_REPLAYING, n_quantiles=5, top_quantiles_to_drop_per_net=1), "target"),
}
LIBRARY = {
    A2CConfig: A2C, MaskablePPOConfig: MaskablePPO, RecurrentPPOConfig: RecurrentPPO, SACConfig: SAC,
    TQCConfig: TQC,
}  # fmt: skip
STEPS = 80

each = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=300)


def make_env(tape: Tape, action: Any, *, with_windows: bool = False, paths: int = 2) -> PerpVecEnv:
    config = EnvConfig(window_bars=SMALL.receptive_field, action=action, episode_bars=30, reward_scale=100.0)
    return PerpVecEnv(tape, n_paths=paths, accounts_per_path=2, config=config, with_windows=with_windows)


def scalers(tape: Tape) -> dict[str, Any]:
    return {
        "market_scaler": fit_scaler(tape.features, 0, len(tape)),
        "risk_scaler": fit_scaler(tape.risk, 0, len(tape)),
    }


def make_model(tape: Tape, name: str) -> StockAlgorithm:
    config, action = CONFIGS[name]
    env = make_env(tape, action)
    model = make_algorithm(config, env, policy=SMALL, **scalers(tape), seed=3, device="cpu")
    assert isinstance(model, StockAlgorithm)
    return model


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.policy.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(other)
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=0, atol=0, msg=key)


@each
def test_it_learns_what_the_library_s_own_class_learns(tape: Tape, name: str) -> None:
    config, action = CONFIGS[name]
    ours = make_model(tape, name)
    before = weights(ours)
    ours.learn(STEPS)
    library: Any = LIBRARY[type(config)]
    theirs = library(
        ALGORITHMS[type(config)].policy,
        make_env(tape, action).as_sb3(),
        **config.arguments(),
        policy_kwargs={"config": SMALL, **scalers(tape), **config.policy_arguments()},
        seed=3,
        device="cpu",
    )
    theirs.policy.bind(tape)
    theirs.learn(STEPS)
    assert_same(weights(ours), weights(theirs))
    assert any((value != before[key]).any() for key, value in weights(ours).items())


def observed(env: PerpVecEnv, seed: int = 5) -> Any:
    """Batch observations after some steps, with masks where there are any."""
    env.reset(seed=seed)
    env.action_space.seed(seed)
    for _ in range(4):
        observation = env.step(env.action_space.sample())[0]
    return observation, env.action_masks() if env.config.choices else None


def predicted(policy: Any, observation: Any, masks: Any) -> Any:
    known = {} if masks is None else {"action_masks": masks}
    return policy.predict(observation, deterministic=True, **known)[0]


def trained_policy(model: StockAlgorithm) -> StockPolicy:
    """Trained, and moved far enough that its answers differ from bar to bar and are not all at the edge."""
    model.learn(STEPS)
    rng = torch.Generator().manual_seed(1)
    policy = cast(Any, model.policy)
    torch.nn.init.normal_(policy.actor.mu.weight if hasattr(policy, "actor") else policy.action_net.weight,
                          std=0.5, generator=rng)  # fmt: skip
    return cast(StockPolicy, policy)


@each
def test_index_window_and_backtest_are_given_the_library_s_deterministic_action(
    tape: Tape, name: str, tmp_path: Path
) -> None:
    model = make_model(tape, name)
    policy, action = trained_policy(model), CONFIGS[name][1]
    env = model.native
    save_artifact(
        tmp_path, policy, tape=tape, env_config=env.config, limits=RiskLimits(), seed=3, commit="abc"
    )
    artifact = load_artifact(tmp_path)
    assert artifact.check_parity(tape) <= 1e-5
    assert_same(weights(model), {k: v.clone() for k, v in artifact.policy.state_dict().items()})
    cast(StockPolicy, artifact.policy).bind(tape)
    by_index, masks = observed(make_env(tape, action, paths=8))
    by_window, _ = observed(make_env(tape, action, paths=8, with_windows=True))
    expected = predicted(policy, by_index, masks)
    assert np.unique(expected.reshape(16, -1), axis=0).shape[0] > 1
    for observation in (by_index, by_window):
        # one contract's few distinct bars come through different batches of a matrix product
        np.testing.assert_allclose(predicted(artifact.policy, observation, masks), expected, atol=2e-6)
    for i, bar in enumerate(by_index["bar"][:, 0]):
        acted = TrainedAgent(artifact).act(
            tape, int(bar), by_index["account"][i : i + 1], by_index["portfolio"][i : i + 1],
            None if masks is None else masks[i : i + 1],
        )  # fmt: skip
        np.testing.assert_allclose(acted.reshape(-1), np.reshape(expected[i], -1), atol=2e-6)


class SaveOnce(BaseCallback):
    """Writes a checkpoint half-way, between an update and the next rollout."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def _on_rollout_start(self) -> None:
        if not self.path.exists() and self.num_timesteps >= STEPS:
            cast(StockAlgorithm, self.model).save_checkpoint(self.path)

    def _on_step(self) -> bool:
        return True


@each
def test_a_run_that_goes_on_from_a_checkpoint_is_the_run_that_was_never_stopped(
    tape: Tape, name: str, tmp_path: Path
) -> None:
    whole = make_model(tape, name)
    whole.learn(2 * STEPS)
    stopped = make_model(tape, name)

    stopped.learn(2 * STEPS, callback=SaveOnce(tmp_path / "resume.ckpt"))
    resumed = make_model(tape, name)
    resumed.load_checkpoint(tmp_path / "resume.ckpt")
    assert STEPS <= resumed.num_timesteps < 2 * STEPS
    resumed.learn(2 * STEPS - resumed.num_timesteps, reset_num_timesteps=False)
    assert_same(weights(whole), weights(resumed))
    assert resumed.num_timesteps == whole.num_timesteps
    assert list(resumed.ep_info_buffer or ()) == list(whole.ep_info_buffer or ())


class SaveAlways(BaseCallback):
    """Tries to write a checkpoint at every moment that a callback has, and keeps when it could."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.written = path, dict[tuple[str, int], bool]()

    def _try(self, moment: str) -> None:
        with suppress(RuntimeError):
            cast(StockAlgorithm, self.model).save_checkpoint(self.path / f"{moment}_{self.num_timesteps}")
        self.written[moment, self.num_timesteps] = (self.path / f"{moment}_{self.num_timesteps}").exists()

    def _on_rollout_start(self) -> None:
        self._try("rollout_start")

    def _on_step(self) -> bool:
        self._try("step")
        return True

    def _on_rollout_end(self) -> None:
        self._try("rollout_end")


@each
def test_a_checkpoint_within_a_rollout_is_refused(tape: Tape, name: str, tmp_path: Path) -> None:
    model = make_model(tape, name)
    tries = SaveAlways(tmp_path)
    model.learn(STEPS, callback=tries)
    assert {moment for moment, _ in tries.written} == {"rollout_start", "step", "rollout_end"}
    for (moment, steps), is_written in tries.written.items():
        assert is_written == (moment == "rollout_start"), (moment, steps)
    model.save_checkpoint(tmp_path / "end.ckpt")
    # stopped by a callback, in the middle of a rollout
    if model.steps_per_rollout > model.n_envs:
        model.learn(10 * STEPS, callback=lambda *_: False)
        with pytest.raises(RuntimeError, match="call save_checkpoint in a callback's _on_rollout_start"):
            model.save_checkpoint(tmp_path / "stopped.ckpt")
        model.learn(STEPS)
        model.save_checkpoint(tmp_path / "again.ckpt")


def test_a_replay_that_has_not_begun_to_learn_can_be_kept_at_the_end_of_learn(
    tape: Tape, tmp_path: Path
) -> None:
    model = make_model(tape, "sac")
    model.learn(8)
    assert model.num_timesteps < cast(Any, model).learning_starts
    model.save_checkpoint(tmp_path / "resume.ckpt")


@each
def test_sb3_s_own_save_and_load_keep_the_policy(tape: Tape, name: str, tmp_path: Path) -> None:
    model = make_model(tape, name)
    model.learn(STEPS)
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip", env=make_env(tape, CONFIGS[name][1]))
    assert_same(weights(model), weights(loaded))
    before = loaded.num_timesteps
    loaded.learn(STEPS, reset_num_timesteps=False)
    assert loaded.num_timesteps > before


def test_a_recurrent_policy_remembers_in_a_backtest_what_it_remembers_in_the_library(tape: Tape) -> None:
    model = make_model(tape, "recurrent")
    policy = trained_policy(model)
    torch.nn.init.normal_(
        cast(StockRecurrentPolicy, policy).lstm_actor.weight_hh_l0, generator=torch.Generator().manual_seed(0)
    )
    agent, state, chosen = TrainedAgent(cast(Any, policy)), None, []
    rng = np.random.default_rng(0)
    for bar in range(100, 120):
        account = rng.uniform(-1, 1, (3, 1, len(ACCOUNT_NAMES))).astype(np.float32)
        portfolio = rng.uniform(-1, 1, (3, len(PORTFOLIO_NAMES))).astype(np.float32)
        observation = {"bar": np.full((3, 1), bar), "account": account, "portfolio": portfolio}
        expected, state = policy.predict(observation, state, deterministic=True)
        chosen.append(agent.act(tape, bar, account, portfolio))
        np.testing.assert_allclose(chosen[-1], expected, atol=2e-6)
    # the last bar again, with nothing before it
    alone = TrainedAgent(cast(Any, policy)).act(tape, bar, account, portfolio)
    assert np.abs(alone - chosen[-1]).max() > 1e-4
    fresh, _ = policy.predict(observation, None, deterministic=True)
    np.testing.assert_allclose(alone, fresh, atol=2e-6)


@pytest.mark.parametrize("name", ["maskable_ladder", "maskable_heads"])
def test_each_account_is_given_its_own_masks_and_trains_within_them(tape: Tape, name: str) -> None:
    config, action = CONFIGS[name]
    # a wallet of less than an order's least notional: some can open nothing
    rich = EnvConfig(window_bars=SMALL.receptive_field, action=cast(Any, action), restart="random")
    env = PerpVecEnv(tape, n_paths=3, accounts_per_path=2, config=replace(rich, initial_wallet=60.0))
    face = env.as_sb3()
    face.seed(2)
    face.reset()
    masks = get_action_masks(face)
    np.testing.assert_array_equal(masks, env.action_masks())
    assert masks.shape == (6, sum(rich.choices))
    assert 0.0 < masks.mean() < 1.0
    model = make_algorithm(config, env, policy=SMALL, **scalers(tape), seed=3, device="cpu")
    model.learn(96)
    rollout = cast(Any, model).rollout_buffer
    held, taken = rollout.action_masks.reshape(-1, sum(rich.choices)), rollout.actions
    taken = taken.reshape(len(held), -1).astype(int)
    first = np.cumsum([0, *rich.choices])[:-1]
    assert np.take_along_axis(held, first + taken, axis=1).all()
    assert held.mean() < 1.0


def test_a_policy_without_forecasts_of_its_own_is_asked_for(tape: Tape) -> None:
    with pytest.raises(ValueError, match=r"set policy.forecast_bars=\[\]"):
        make_algorithm(
            SACConfig(), make_env(tape, "band"), policy=replace(SMALL, forecast_bars=(8,)), **scalers(tape),
            seed=0, device="cpu",
        )  # fmt: skip


def test_bar_indices_that_a_float_cannot_hold_are_refused() -> None:
    exact = np.arange(MAX_EXACT_BARS - 3, MAX_EXACT_BARS + 3)
    is_kept = exact.astype(np.float32).astype(np.int64) == exact
    # the highest index of an admitted tape is one below its length, and every lower one is exact too
    assert is_kept[exact < MAX_EXACT_BARS].all()
    assert not is_kept.all()
    check_exact(MAX_EXACT_BARS)
    with pytest.raises(ValueError, match="exact up to 16,777,216: use a shorter period"):
        check_exact(MAX_EXACT_BARS + 1)


@pytest.mark.parametrize("name", ["a2c", "sac"])
def test_first_actions_trade_within_the_narrow_band_that_ppo_starts_with(tape: Tape, name: str) -> None:
    config = CONFIGS[name][0]
    env, policy = make_env(tape, "band"), replace(SMALL, band_width_init=-0.7)
    model = make_algorithm(config, env, policy=policy, **scalers(tape), seed=3, device="cpu")
    action = predicted(model.policy, *observed(env))
    np.testing.assert_allclose(action[:, 1], -0.7, atol=0.15)


@pytest.mark.parametrize(
    ("config", "settings", "words"),
    [
        (SACConfig, {"tau": 1.5}, "tau must lie between 0 and 1"),
        (SACConfig, {"ent_coef": "automatic0"}, "auto or auto_0.1"),
        (A2CConfig, {"learning_rate_schedule": "steep"}, "learning_rate_schedule must be one of constant"),
        (RecurrentPPOConfig, {"lstm_hidden_size": 0}, "lstm_hidden_size must lie between 1"),
        (TQCConfig, {"n_quantiles": 2, "top_quantiles_to_drop_per_net": 2}, "must be below n_quantiles"),
    ],
)
def test_an_impossible_setting_is_refused_in_words(
    config: type[StockConfig], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        config(**settings)
