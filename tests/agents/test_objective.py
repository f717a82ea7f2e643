"""How torch runs the update changes its cost and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

from perpgym.agents.objective import Objective
from perpgym.agents.ppo import PerpPPO, PPOConfig
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.policies import PerpActorCriticPolicy, PolicyConfig

SMALL = PolicyConfig(d_model=8, n_layers=1, n_heads=2, band=6, risk_hidden=0)
STEPS, PATHS, ACCOUNTS = 16, 4, 3


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=400)


def make_model(
    tape: Tape, kind: type[PerpVecEnv] = PerpVecEnv, network: PolicyConfig = SMALL, **config: Any
) -> PerpPPO:
    env_config = EnvConfig(window_bars=SMALL.receptive_field, episode_bars=12, reward_scale=100.0)
    settings = {"n_steps": STEPS, "batch_size": 2 * STEPS * ACCOUNTS, "learning_rate": 3e-3, **config}
    return PerpPPO(
        PerpActorCriticPolicy,
        kind(tape, n_paths=PATHS, accounts_per_path=ACCOUNTS, config=env_config),
        config=PPOConfig(**settings),
        policy_kwargs={
            "config": network,
            "market_scaler": fit_scaler(tape.features, 0, len(tape)),
            "risk_scaler": fit_scaler(tape.risk, 0, len(tape)),
        },
        seed=0,
        device="cpu",
    )


def weights_after(model: PerpPPO, rollouts: int = 3) -> torch.Tensor:
    model.learn(STEPS * PATHS * ACCOUNTS * rollouts)
    return torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


def test_windows_train_the_same_policy_and_read_many_times_the_bars(tape: Tape) -> None:
    stretches, windows = make_model(tape), make_model(tape, observation="window")
    torch.testing.assert_close(weights_after(windows), weights_after(stretches), rtol=0, atol=1e-4)
    assert windows.objective.tokens > 4 * stretches.objective.tokens


# torch warns of its own parts
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_loss_has_the_gradients_of_the_plain_one(tape: Tape) -> None:
    # the smallest network: compiling takes its time
    network = PolicyConfig(
        encoder="mlp", n_layers=1, d_model=8, risk_hidden=0, policy_hidden=(8,), value_hidden=(8,)
    )
    model = make_model(tape, network=network, ent_coef=0.01, popart=True)
    model.learn(STEPS * PATHS * ACCOUNTS)
    batch = next(iter(model.rollout_buffer.minibatches(PATHS, model.shuffle)))
    gradients = []
    for config in (model.config, PPOConfig(**{**vars(model.config), "compile": True})):
        model.policy.optimizer.zero_grad()
        objective = Objective(model.policy, config)
        objective.loss(batch, STEPS, clip_range=0.2, ent_coef=0.01).total.backward()  # type: ignore[no-untyped-call]
        gradients.append([p.grad.clone() for p in model.policy.parameters() if p.grad is not None])
    for plain, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)
    assert max(float(g.abs().max()) for g in gradients[0]) > 1e-3


@pytest.mark.parametrize("name", ["bf16", "cuda_graphs"])
def test_what_only_an_accelerator_can_do_is_refused_elsewhere(tape: Tape, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs a CUDA device, the policy is on cpu.*{name}=false"):
        make_model(tape, **{name: True})


class LargeReward(PerpVecEnv):
    """Every step earns a million, whatever is done."""

    def step_into(self, actions: Any, out: Any) -> None:
        super().step_into(actions, out)
        out.reward[:] = 1e6


def test_a_reward_of_a_million_is_worth_five_million_with_popart_and_out_of_reach_without(
    tape: Tape,
) -> None:
    worth = {}
    for popart in (True, False):
        model = make_model(tape, LargeReward, popart=popart, gamma=0.8, n_epochs=4)
        weights_after(model, rollouts=40)
        worth[popart] = float(model.rollout_buffer.values.mean())
    # 1e6 / (1 - 0.8)
    assert worth[True] == pytest.approx(5e6, rel=0.05)
    assert worth[False] < 1e6


def test_without_popart_no_value_is_ever_rescaled(tape: Tape) -> None:
    plain, scaled = make_model(tape), make_model(tape, popart=True)
    for model in (plain, scaled):
        model.learn(STEPS * PATHS * ACCOUNTS)
    assert plain.policy.value_head.deviation.item() == 1.0
    assert scaled.policy.value_head.count.item() == 1
    assert scaled.policy.value_head.deviation.item() != 1.0


def test_the_entropy_bonus_fades_over_the_run(tape: Tape) -> None:
    model = make_model(tape, ent_coef=0.5, ent_coef_schedule="linear")
    model.learn(STEPS * PATHS * ACCOUNTS * 2)
    batch = next(iter(model.rollout_buffer.minibatches(PATHS, model.shuffle)))
    totals = {}
    for left in (1.0, 0.5, 0.0):
        model._current_progress_remaining = left
        total, policy_loss, value_loss, negative_entropy = model.loss(batch).terms.tolist()
        totals[left] = (total - policy_loss - 0.5 * value_loss) / negative_entropy
    assert totals == pytest.approx({1.0: 0.5, 0.5: 0.25, 0.0: 0.0}, abs=1e-4)
