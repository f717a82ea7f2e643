"""One policy for several contracts, of which one is listed late: masked, trained, saved, the same live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perpgym.agents.artifact import Artifact, load_artifact, save_artifact
from perpgym.agents.forecast import ForecastTask
from perpgym.agents.ppo import PerpPPO, PPOConfig
from perpgym.agents.trained import TrainedAgent
from perpgym.data.bars import CLOSE
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES
from perpgym.policies import PerpActorCriticPolicy, PolicyConfig

LATE, BARS = 300, 700
SMALL = PolicyConfig(
    d_model=8,
    n_layers=2,
    n_heads=2,
    band=4,
    risk_hidden=4,
    risk_chunk=4,
    risk_warmup=2,
    policy_hidden=(16,),
    value_hidden=(16,),
    forecast_bars=(1, 6),
    forecast_response=0.5,
    band_width_init=-0.8,
)
STEPS, PATHS, ACCOUNTS = 32, 4, 2


@pytest.fixture(scope="module")
def tape(make_portfolio: Callable[..., Tape]) -> Tape:
    return make_portfolio((0, LATE), bars=BARS)


def make_env(tape: Tape, policy: PolicyConfig, **settings: Any) -> PerpVecEnv:
    config = EnvConfig(window_bars=policy.receptive_field, episode_bars=40)
    return PerpVecEnv(tape, n_paths=PATHS, accounts_per_path=ACCOUNTS, config=config, end_bar=600, **settings)


def make_model(tape: Tape, policy: PolicyConfig = SMALL) -> PerpPPO:
    scalers = {
        f"{name}_scaler": fit_scaler(columns, 0, 600, is_valid=tape.is_valid)
        for name, columns in (("market", tape.features), ("risk", tape.risk))
    }
    return PerpPPO(
        PerpActorCriticPolicy,
        make_env(tape, policy),
        config=PPOConfig(n_steps=STEPS, batch_size=128, forecast_coef=1.0, learning_rate=3e-3),
        policy_kwargs={"config": policy, **scalers},
        seed=0,
        device="cpu",
    )


@pytest.fixture(scope="module")
def trained(tape: Tape) -> PerpPPO:
    return make_model(tape).learn(PATHS * ACCOUNTS * STEPS * 4)


def saved(model: PerpPPO, tape: Tape, folder: Path) -> Artifact:
    """The policy as it comes back from disk, with both faces."""
    env = model.native
    save_artifact(
        folder, model.policy, tape=tape, env_config=env.config, limits=env.limits, seed=0, commit="abc"
    )
    return load_artifact(folder)


@pytest.mark.parametrize("cross_asset", [True, False])
@pytest.mark.parametrize("encoder", ["transformer", "gru"])
def test_a_policy_trains_across_a_listing(tape: Tape, encoder: str, cross_asset: bool) -> None:
    policy = replace(SMALL, encoder=encoder, chunk=4, warmup=3, cross_asset=cross_asset)
    model = make_model(tape, policy)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(PATHS * ACCOUNTS * STEPS * 2)
    after = model.policy.state_dict()
    assert all(bool(value.isfinite().all()) for value in after.values())
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any(name.startswith("features_extractor.market_encoder") for name in moved)
    assert any("attention" in name for name in moved) == cross_asset or encoder == "transformer"


def test_a_window_and_the_tape_show_the_policy_the_same_on_both_sides_of_a_listing(
    tape: Tape, trained: PerpPPO, tmp_path: Path
) -> None:
    policy = saved(trained, tape, tmp_path).policy
    policy.bind(tape)
    index, window = (make_env(tape, SMALL, with_windows=w) for w in (False, True))
    seen, _ = index.reset(seed=3)
    shown, _ = window.reset(seed=3)
    sides = set()
    for _ in range(80):
        actions, _ = policy.predict(seen, deterministic=True)
        same, _ = policy.predict(shown, deterministic=True)
        np.testing.assert_allclose(same, actions, atol=1e-5)
        sides |= set(tape.is_valid[seen["bar"][:, 0], 1].tolist())
        seen, *_ = index.step(actions)
        shown, *_ = window.step(actions)
    assert sides == {True, False}
    assert window.single_observation_space.contains({k: v[0] for k, v in shown.items()})


def test_what_a_contract_that_is_not_valid_would_show_is_not_looked_at(tape: Tape, trained: PerpPPO) -> None:
    features = tape.features.copy()
    features[: LATE - 1, 1] = 7.0
    other = replace(tape, features=features, _cache={})
    bars = torch.tensor([50])
    contexts = []
    for market in (tape, other):
        trained.policy.bind(market)
        with torch.no_grad():
            contexts.append(trained.policy.stretch_context(bars, LATE - 51))
    trained.policy.bind(tape)
    torch.testing.assert_close(*contexts, rtol=0, atol=0)
    assert contexts[0].isfinite().all()


def test_nothing_is_forecast_of_a_contract_that_is_not_valid(trained: PerpPPO) -> None:
    with torch.no_grad():
        context = trained.policy.stretch_context(torch.tensor([LATE - 20]), 40)
    forecast = trained.policy.features_extractor.split(context).forecasts[0].view(40, 2, 2)  # n A H
    assert not forecast[:20, 1].any()
    assert forecast[20:, 1].any(dim=-1).all()
    assert forecast[:, 0].any(dim=-1).all()


def test_each_action_starts_from_the_forecast_of_its_own_contract(tape: Tape) -> None:
    policy = make_model(tape).policy
    context = policy.stretch_context(torch.tensor([LATE + 50]), 1)[0]
    state = torch.zeros(1, 2 * len(ACCOUNT_NAMES) + len(PORTFOLIO_NAMES))
    with torch.no_grad():
        flat = policy.action_parameters(context, state)
        context[:, -2:] = 0.1  # both horizons of the second contract explain 1 % of their variance
        bold = policy.action_parameters(context, state)
    torch.testing.assert_close(bold - flat, torch.tensor([[0.0, 0.0, 0.5, 0.0]]), rtol=0, atol=0.02)
    assert flat[0, 1::2].tolist() == pytest.approx([-0.8, -0.8], abs=0.02)


def test_each_contract_has_its_own_targets_from_its_first_valid_bar_on(tape: Tape) -> None:
    task = ForecastTask(tape, (6,), np.array([50.0, 20.0]), device="cpu")
    first = LATE - 10
    targets, known = task.targets(torch.tensor([first]), torch.tensor([32]), 32)
    assert known[0, :, 0].tolist() == [True] * 27 + [False] * 5
    assert known[0, :, 1].tolist() == [False] * 10 + [True] * 17 + [False] * 5
    bar = LATE + 3
    stamps = tape.stamp_start[1]
    funding = tape.stamp_rate[stamps[bar + 1] : stamps[bar + 7]].sum()
    earned = np.log(tape.mark[bar + 6, 1, CLOSE] / tape.mark[bar, 1, CLOSE]) - funding
    assert float(targets[0, bar - first, 1]) == pytest.approx(earned * 20.0 / np.sqrt(6), abs=1e-5)


def test_forecasts_of_both_contracts_are_learnt_by_one_head(tape: Tape) -> None:
    # the sign of the first feature says where the price goes over the next bar
    sign = np.sign(tape.features[:, :, 0]).astype(np.float64)
    closes = 30_000 * np.exp(np.cumsum(0.005 * np.roll(sign, 1, axis=0), axis=0))
    prices = np.repeat(closes[:, :, None], 4, axis=2)
    planted = replace(tape, last=prices, mark=prices, _cache={})
    model = make_model(planted, replace(SMALL, forecast_bars=(1,)))
    model.learn(PATHS * ACCOUNTS * STEPS * 20)
    with torch.no_grad():
        context = model.policy.stretch_context(torch.tensor([600]), 90)
        forecast = model.policy.features_extractor.split(context).forecasts[0].numpy()  # n A
    for asset in (0, 1):
        assert np.corrcoef(forecast[:, asset], sign[600:690, asset])[0, 1] > 0.8


def test_an_artifact_of_several_contracts_comes_back_and_acts_the_same(
    tape: Tape, trained: PerpPPO, tmp_path: Path
) -> None:
    loaded = saved(trained, tape, tmp_path)
    assert loaded.parity_error < 1e-5
    loaded.check_tape(tape)
    with pytest.raises(ValueError, match="trained on 2, the tape has 1"):
        loaded.check_tape(replace_contracts(tape))
    account = np.zeros((3, 2, len(ACCOUNT_NAMES)), np.float32)
    portfolio = np.zeros((3, len(PORTFOLIO_NAMES)), np.float32)
    for bar in (100, LATE + 100):
        mine, theirs = (TrainedAgent(p).act(tape, bar, account, portfolio) for p in (trained.policy, loaded))
        np.testing.assert_array_equal(mine, theirs)


def replace_contracts(tape: Tape) -> Tape:
    """The first contract alone."""
    columns = {n: getattr(tape, n)[:, :1] for n in ("last", "mark", "volume", "sigma_per_bar", "features",
                                                    "risk", "is_valid")}  # fmt: skip
    return replace(tape, contracts=tape.contracts[:1], stamp_start=tape.stamp_start[:1], _cache={}, **columns)
