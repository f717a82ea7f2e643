"""Index and window observations are two faces of one policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.policies import ENCODERS, PerpActorCriticPolicy, PolicyConfig
from perpgym.policies.scaler import FrozenScaler

SMALL = PolicyConfig(
    d_model=8,
    n_layers=2,
    n_heads=2,
    band=6,
    chunk=4,
    warmup=3,
    risk_hidden=4,
    risk_chunk=4,
    risk_warmup=4,
    policy_hidden=(8,),
)


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=200)


def make_env(tape: Tape, *, with_windows: bool, window_bars: int = SMALL.receptive_field) -> PerpVecEnv:
    config = EnvConfig(window_bars=window_bars)
    return PerpVecEnv(tape, n_paths=3, accounts_per_path=2, config=config, with_windows=with_windows)


def make_policy(
    tape: Tape, env: PerpVecEnv, config: PolicyConfig = SMALL, **changes: Any
) -> PerpActorCriticPolicy:
    torch.manual_seed(0)
    policy = PerpActorCriticPolicy(
        env.single_observation_space,
        env.single_action_space,
        lambda _: 1e-3,
        config=config,
        market_scaler=fit_scaler(tape.features, 0, 100),
        risk_scaler=fit_scaler(tape.risk, 0, 100),
        **changes,
    )
    # fresh heads answer almost nothing to everything: make differences visible
    torch.nn.init.normal_(policy.action_net.weight, std=0.1)
    return policy


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_index_and_window_observations_give_equal_actions_and_values(tape: Tape, encoder: str) -> None:
    config, faces = replace(SMALL, encoder=encoder), {}
    for with_windows in (False, True):
        env = make_env(tape, with_windows=with_windows)
        policy = make_policy(tape, env, config)
        policy.bind(tape)
        observation, _ = env.reset(seed=5)
        observation, *_ = env.step(np.full((6, 2), 0.7, np.float32))
        action, _ = policy.predict(observation, deterministic=True)
        with torch.no_grad():
            value = policy.predict_values(policy.obs_to_tensor(observation)[0])
        faces[with_windows] = (action, value.numpy())
    assert 0.01 < np.abs(faces[True][0]).max() < 1.0
    for index, window in zip(faces[False], faces[True], strict=True):
        np.testing.assert_allclose(index, window, atol=1e-5)


def test_longer_windows_than_the_receptive_field_change_nothing(tape: Tape) -> None:
    env = make_env(tape, with_windows=True, window_bars=SMALL.receptive_field + 5)
    policy = make_policy(tape, env)
    policy.bind(tape)
    observation, _ = env.reset(seed=5)
    longer, _ = policy.predict(observation, deterministic=True)
    observation["market"] = observation["market"][:, 5:]
    observation["risk"] = observation["risk"][:, 5:]
    with torch.no_grad():
        exact = policy._predict({k: torch.as_tensor(v) for k, v in observation.items()}, deterministic=True)
    np.testing.assert_allclose(longer, exact.clamp(-1, 1).numpy(), atol=1e-6)


def test_window_shorter_than_the_receptive_field_is_refused(tape: Tape) -> None:
    env = make_env(tape, with_windows=True, window_bars=SMALL.receptive_field - 1)
    observation, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match=f"set window_bars={SMALL.receptive_field}"):
        make_policy(tape, env).predict(observation)


def test_single_observation_gives_a_single_action_within_the_space(tape: Tape) -> None:
    env = make_env(tape, with_windows=False)
    policy = make_policy(tape, env)
    policy.bind(tape)
    observation, _ = env.reset(seed=0)
    single = {name: values[0] for name, values in observation.items()}
    for deterministic in (False, True):
        action, state = policy.predict(single, deterministic=deterministic)
        assert action.shape == env.single_action_space.shape
        assert state is None
        assert env.single_action_space.contains(action)


def test_fast_path_gives_the_numbers_of_sb3s_own_methods(tape: Tape) -> None:
    env = make_env(tape, with_windows=False)
    policy = make_policy(tape, env)
    policy.bind(tape)
    observation, _ = env.reset(seed=1)
    tensors, _ = policy.obs_to_tensor(observation)
    actions = torch.randn(6, 2)
    values, log_prob, entropy = policy.evaluate_actions(tensors, actions)
    context = policy.stretch_context(tensors["bar"][:, 0], 1)[:, 0]  # type: ignore[index]
    state = torch.cat((tensors["account"].flatten(1), tensors["portfolio"]), dim=1)  # type: ignore[index]
    fast = policy.evaluate_states(context, state, actions)
    torch.testing.assert_close(fast.values, values.flatten())
    torch.testing.assert_close(fast.log_prob, log_prob)
    torch.testing.assert_close(fast.entropy.expand(6), entropy)
    torch.testing.assert_close(policy.state_values(context, state), fast.values)
    torch.testing.assert_close(
        policy.action_parameters(context, state), policy.get_distribution(tensors).mode()
    )


def test_index_observation_without_a_tape_says_what_to_do(tape: Tape) -> None:
    env = make_env(tape, with_windows=False)
    observation, _ = env.reset(seed=0)
    with pytest.raises(RuntimeError, match=r"call model\.policy\.bind\(tape\), load it with env="):
        make_policy(tape, env).predict(observation)


def test_tape_with_other_columns_cannot_be_bound(tape: Tape, make_tape: Callable[..., Tape]) -> None:
    policy = make_policy(tape, make_env(tape, with_windows=False))
    with pytest.raises(ValueError, match="the policy reads 4 feature columns, the tape has 6"):
        policy.bind(make_tape(bars=50, n_features=6))
    with pytest.raises(ValueError, match="the policy reads 3 risk columns, the tape has 2"):
        policy.bind(make_tape(bars=50, n_risk=2))


def test_memory_mapped_tape_is_read_without_a_copy(tape: Tape, tmp_path: Any) -> None:
    tape.save(tmp_path)
    mapped = Tape.load(tmp_path)
    policy = make_policy(tape, make_env(tape, with_windows=False))
    policy.bind(mapped)
    bound = policy.features_extractor.bound
    assert bound.market.data_ptr() == np.asarray(mapped.features).__array_interface__["data"][0]


def test_policys_scaler_computes_what_the_fitted_scaler_computes(tape: Tape) -> None:
    scaler = fit_scaler(tape.features, 0, 100)
    raw = tape.features * 7.0
    frozen = FrozenScaler(scaler)(torch.from_numpy(raw))
    np.testing.assert_array_equal(frozen.numpy(), scaler.transform(raw))
    assert FrozenScaler(scaler, n_assets=2).center.shape == (8,)


def test_scalers_are_frozen_parts_of_the_weights(tape: Tape) -> None:
    policy = make_policy(tape, make_env(tape, with_windows=False))
    assert "features_extractor.market_scaler.center" in policy.state_dict()
    assert not any("scaler" in name for name, _ in policy.named_parameters())
    # SB3 registers the extractor three times; on disk it has one name
    assert not any(name.startswith(("pi_", "vf_")) for name in policy.state_dict())


def test_embedding_has_no_gradient_from_later_bars(tape: Tape) -> None:
    policy = make_policy(tape, make_env(tape, with_windows=False))
    market = torch.from_numpy(tape.features[:30, 0]).unsqueeze(0).requires_grad_()
    risk = torch.from_numpy(tape.risk[:30, 0]).unsqueeze(0)
    context = policy.features_extractor.context(market, risk, torch.tensor([0]))
    context[0, 0].sum().backward()  # type: ignore[no-untyped-call]
    assert market.grad is not None
    # the first output stands at bar R - 1: nothing after it moves it
    assert not market.grad[0, SMALL.receptive_field :].any()


def test_temporal_fusion_policy_shows_which_features_and_bars_it_looked_at(tape: Tape) -> None:
    policy = make_policy(tape, make_env(tape, with_windows=False), replace(SMALL, encoder="tft"))
    policy.bind(tape)
    features, first = policy.features_extractor, torch.tensor([50, 120])
    shown = features.explain(first, 10)
    assert shown.selection.shape == (2, 1, 10, 4)
    assert shown.attention.shape == (2, 1, 10, SMALL.band)
    later = features.explain(first + 3, 1)
    for whole, alone in zip(shown, later, strict=True):
        assert whole is not None
        assert alone is not None
        torch.testing.assert_close(alone[:, :, 0], whole[:, :, 3], rtol=0, atol=1e-5)
        assert whole.std() > 0.01


def test_encoder_without_weights_to_show_says_which_one_has_them(tape: Tape) -> None:
    policy = make_policy(tape, make_env(tape, with_windows=False), replace(SMALL, encoder="mlp"))
    with pytest.raises(ValueError, match=r"LastBar has no weights to show: .* or policy=tft"):
        policy.features_extractor.explain(torch.tensor([50]), 1)


def test_state_dependent_exploration_is_refused(tape: Tape) -> None:
    with pytest.raises(ValueError, match="leave use_sde=False"):
        make_policy(tape, make_env(tape, with_windows=False), use_sde=True)


def test_without_risk_lstm_risk_columns_change_nothing(tape: Tape) -> None:
    env = make_env(tape, with_windows=True)
    policy = PerpActorCriticPolicy(
        env.single_observation_space,
        env.single_action_space,
        lambda _: 1e-3,
        config=replace(SMALL, risk_hidden=0),
        market_scaler=fit_scaler(tape.features, 0, 100),
        risk_scaler=fit_scaler(tape.risk, 0, 100),
    )
    observation, _ = env.reset(seed=0)
    before, _ = policy.predict(observation, deterministic=True)
    observation["risk"] = observation["risk"] * 3.0
    np.testing.assert_array_equal(policy.predict(observation, deterministic=True)[0], before)


@pytest.mark.parametrize("state_clip", [2.0, 5.0])
def test_an_account_column_is_heard_up_to_the_clip_and_no_further(tape: Tape, state_clip: float) -> None:
    policy = make_policy(tape, make_env(tape, with_windows=False), replace(SMALL, state_clip=state_clip))
    features = policy.features_extractor
    divisor = 1.0 / features.inverse_divisors
    assert float(features.scale_state(1e6 * divisor).max()) == state_clip
    assert float(features.scale_state(-1e6 * divisor).min()) == -state_clip
    policy.bind(tape)
    with torch.no_grad():
        context = policy.stretch_context(torch.tensor([100]), 1)[0]
        within, at, beyond = (
            policy.action_parameters(context, size * state_clip * divisor) for size in (0.9, 1.0, 30.0)
        )
    assert torch.equal(at, beyond)
    assert not torch.equal(at, within)


def test_a_market_column_is_heard_up_to_its_scalers_clip_and_no_further(tape: Tape) -> None:
    scaler = fit_scaler(tape.features, 0, 100, clip=3.0)
    layer = FrozenScaler(scaler)
    raw = torch.tensor(scaler.center + np.float32(1e6) * scaler.scale)
    torch.testing.assert_close(layer(raw), torch.full_like(raw, 3.0), rtol=0, atol=0)
    torch.testing.assert_close(layer(-raw), torch.full_like(raw, -3.0), rtol=0, atol=0)
