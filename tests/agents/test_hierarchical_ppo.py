"""Two levels on one encoder: what is collected, what is learnt from it, and how a run goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from two_levels import ACCOUNTS, HEADS, N_PATHS, SETTINGS, SMALL, Quiet, build, roll

from perpgym.agents.hierarchical_ppo import HierarchicalPPOConfig
from perpgym.agents.ppo import PerpPPO
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.envs.buffers import StepBuffers
from perpgym.policies.options import HierarchyConfig


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=400)


@pytest.mark.parametrize("action", ["target", "band", "ladder", "heads"])
def test_it_learns_and_predicts_on_every_kind_of_action(tape: Tape, action: Any) -> None:
    model = build(tape, env=replace(HEADS, action=action))
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(2 * 16 * N_PATHS * ACCOUNTS)
    after = model.policy.state_dict()
    for part in (
        "manager_policy",
        "manager_value",
        "option_value",
        "action_net",
        "value_net",
        "market_encoder",
    ):
        assert any(not torch.equal(before[name], after[name]) for name in after if part in name), part
    assert all(torch.isfinite(value).all() for value in after.values())
    observation = model.native.observation(model.env.buffers)  # type: ignore[union-attr]
    actions, state = model.predict(observation, deterministic=True)
    assert actions.shape == (N_PATHS * ACCOUNTS, *(model.action_space.shape or ()))
    assert all(model.action_space.contains(one) for one in actions)
    assert state[0].shape == (N_PATHS * ACCOUNTS, 3)


def test_options_last_as_long_as_they_were_drawn_unless_something_ends_them(tape: Tape) -> None:
    model = build(tape)
    roll(model, 3)
    rollout = model.rollout_buffer
    decided = rollout.decided[:, :-1]
    left = rollout.state[:, :-1, :, -1]
    # at a decision 2 to 5 bars are left, then one less at every bar
    assert left[decided].min() >= 2.0
    assert left[decided].max() <= 5.0
    goes_on = ~decided[:, 1:]
    torch.testing.assert_close(left[:, 1:][goes_on], left[:, :-1][goes_on] - 1.0)
    option = rollout.state[:, :-1, :, rollout.observed_size : -1]
    torch.testing.assert_close(option[:, 1:][goes_on], option[:, :-1][goes_on])
    # after an end of episode the manager decides
    ends = (
        torch.from_numpy(rollout.terminated | rollout.truncated).view(-1, N_PATHS, ACCOUNTS).transpose(0, 1)
    )
    assert ends.any()
    assert rollout.decided[:, 1:][ends].all()
    lengths = left[decided].long().bincount(minlength=6)[2:]
    assert (lengths > 0).all()


def test_an_option_goes_on_in_the_next_rollout(tape: Tape) -> None:
    model = build(tape)
    roll(model)
    last = model.rollout_buffer
    due, kept = last.decided[:, -1].clone(), model.option.clone()
    assert not due.all()
    model.collect_rollouts(model.env, Quiet(model), last, model.n_steps)  # type: ignore[arg-type]
    torch.testing.assert_close(last.decided[:, 0], due)
    now = last.state[:, 0, :, last.observed_size :]
    torch.testing.assert_close(now[~due], kept[~due])


def test_what_was_sampled_has_the_probability_that_the_update_sees(tape: Tape) -> None:
    """Before the first step of the optimiser, both levels' ratios are one."""
    for action in ("heads", "band"):
        model = build(tape, env=replace(HEADS, action=action))  # type: ignore[arg-type]
        roll(model, 2)
        model.rollout_buffer.weigh_advantages(path_baseline=False, normalise=True)
        for batch in model.rollout_buffer.minibatches(1, model.shuffle):
            loss = model.levels_loss(batch, {"worker": True, "manager": True})  # type: ignore[arg-type]
            assert loss.manager.log_ratio.numel() > 0
            for level in (loss.worker, loss.manager):
                torch.testing.assert_close(
                    level.log_ratio, torch.zeros_like(level.log_ratio), atol=1e-5, rtol=0
                )


def test_no_action_is_taken_that_env_or_option_forbids(tape: Tape) -> None:
    model = build(tape, env=replace(HEADS, initial_wallet=2_000.0))
    roll(model, 3)
    rollout = model.rollout_buffer
    assert rollout.masks is not None
    actions, first = rollout.actions.long(), 0
    for number, count in enumerate(HEADS.choices):
        mask = rollout.masks[..., first : first + count]
        assert mask.gather(-1, actions[..., number : number + 1]).all()
        first += count
    # something was forbidden, and no order asks for more than the budget or leaves the target's reach
    assert not rollout.masks.all()
    target, budget = rollout.state[:, :-1, :, -3], rollout.state[:, :-1, :, -2]
    size = torch.tensor(HEADS.head_sizes)[actions[..., 1]]
    trades = (actions[..., 0] == 1) | (actions[..., 0] == 2)
    assert trades.any()
    assert (size[trades] <= budget[trades] + 1e-4).all()
    exposure = torch.where(actions[..., 0] == 1, size, -size)
    away = (exposure - target)[trades].abs()
    assert (away <= SETTINGS.hierarchy.reach + 1e-4).all()
    assert (away > 0.5).any()


def test_shaping_the_worker_leaves_the_managers_returns_alone(tape: Tape) -> None:
    plain, shaped = (build(tape, replace(SETTINGS, worker_shaping=weight)) for weight in (0.0, 3.0))
    for model in (plain, shaped):
        roll(model, 2)
    one, other = plain.rollout_buffer, shaped.rollout_buffer
    # the second rollout ends within options, which the value of the option, not the worker's, goes on from
    assert not one.decided[:, -1].all()
    torch.testing.assert_close(one.actions, other.actions)
    assert not np.allclose(one.reward, other.reward)
    np.testing.assert_array_equal(one.raw_reward, other.raw_reward)
    torch.testing.assert_close(one.manager_advantages, other.manager_advantages)
    torch.testing.assert_close(one.option_returns, other.option_returns)
    assert not torch.allclose(one.advantages, other.advantages)


def test_a_rollout_that_ends_within_an_option_goes_on_from_the_options_value(tape: Tape) -> None:
    model = build(tape)
    roll(model, 2)
    rollout, policy = model.rollout_buffer, model.policy
    due = rollout.decided[:, -1]
    bars = torch.from_numpy(model.env.buffers.bar[::ACCOUNTS])  # type: ignore[union-attr]
    context = policy.stretch_context(bars, 1)  # P 1 C
    last = rollout.state[:, -1]
    ends = torch.from_numpy(rollout.terminated[-1] | rollout.truncated[-1]).view(N_PATHS, ACCOUNTS)
    with torch.no_grad():
        within, at = policy.option_values(context, last), policy.manager_values(context, last)
    expected = torch.from_numpy(rollout.raw_reward[-1]).view(N_PATHS, ACCOUNTS)
    expected = expected + rollout.gamma * torch.where(due, at, within)
    torch.testing.assert_close(rollout.option_returns[:, -1][~ends], expected[~ends])
    assert (within - at).abs().max() > 1e-4


class Cuts(BaseCallback):
    """Where accounts were truncated in a rollout: step, account, the bar and state that they saw last."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, int, int, torch.Tensor]] = []

    def _on_rollout_start(self) -> None:
        self.found.clear()
        self._step, self._bar = 0, self._out().bar.copy()

    def _on_step(self) -> bool:
        out = self._out()
        for account in np.flatnonzero(out.truncated):
            seen = np.concatenate((out.final_account[account].ravel(), out.final_portfolio[account]))
            self.found.append((self._step, account, self._bar[account] + 1, torch.from_numpy(seen)))
        self._step, self._bar = self._step + 1, out.bar.copy()
        return True

    def _out(self) -> StepBuffers:
        return self.model.env.buffers  # type: ignore[union-attr]


def test_both_levels_go_on_from_a_truncation_as_from_the_end_of_a_rollout(tape: Tape) -> None:
    """In the option that was cut off, a bar later; where it is over, in the likeliest next one."""
    model = build(tape, replace(SETTINGS, worker_shaping=0.5), replace(HEADS, episode_bars=7))
    with torch.no_grad():
        # a manager that prefers something
        model.policy.manager_policy[-1].bias.copy_(torch.arange(8.0))  # type: ignore[union-attr]
    cuts = Cuts()
    cuts.init_callback(model)
    model._setup_learn(10**9)
    model.collect_rollouts(model.env, cuts, model.rollout_buffer, model.n_steps)  # type: ignore[arg-type]
    rollout, policy = model.rollout_buffer, model.policy
    options, gamma = policy.options, rollout.gamma
    steps, accounts, bars = (torch.tensor(row) for row in list(zip(*cuts.found, strict=True))[:3])
    place = (accounts // ACCOUNTS, steps, accounts % ACCOUNTS)
    observed = torch.stack([cut[3] for cut in cuts.found])  # n S
    before = rollout.state[:, :-1, :, rollout.observed_size :][place]  # n Z
    is_over = before[:, -1] == 1.0
    assert 0 < is_over.sum() < len(is_over)
    with torch.no_grad():
        context = policy.stretch_context(bars, 1)[:, 0]  # n C
        assert not options.is_due(before, observed).any()
        left = before - torch.tensor([0.0, 0.0, 1.0])
        option = torch.where(is_over.unsqueeze(-1), policy.choose(context, observed), left)
        state = torch.cat((observed, option), dim=-1)
        worker, stale = policy.state_values(context, state), torch.cat((observed, before), dim=-1)
        within = policy.option_values(context, state)
        manager = torch.where(is_over, policy.manager_values(context, observed), within)
        # the controls: an option that is a bar older than the state, and no value at all
        assert (policy.state_values(context, stale) - worker)[~is_over].abs().max() > 1e-2
        assert min(worker.abs().max(), manager.abs().max()) > 1e-1
    rewards = (torch.from_numpy(found[steps, accounts]) for found in (rollout.reward, rollout.raw_reward))
    for found, reward, ahead in zip(
        (rollout.returns, rollout.option_returns), rewards, (worker, manager), strict=True
    ):
        torch.testing.assert_close(found[place], reward + gamma * ahead, atol=1e-5, rtol=0)


def test_the_value_within_an_option_learns_raw_returns(make_tape: Callable[..., Tape]) -> None:
    """Under a shaping that dwarfs the reward, it still explains what the manager earns.

    The market always rises, by as much as the first feature says, which stays the same for ten bars. No
    budget reaches a target, so that the worker always loses.
    """
    rise = np.repeat(np.random.default_rng(0).random(40), 10)
    closes = 30_000.0 * np.exp(np.concatenate([[0.0], 0.004 * np.cumsum(rise[:-1])]))
    tape = make_tape(closes, wick=0.0, funding_rate=0.0, volume=1e9)
    features = tape.features.copy()
    features[:, 0, 0] = 2.0 * rise - 1.0
    model = build(
        replace(tape, features=features, _cache={}),
        replace(
            SETTINGS,
            hierarchy=replace(SETTINGS.hierarchy, targets=(0.75, 1.0), budgets=(0.25,)),
            worker_shaping=5.0,
            n_epochs=8,
            learning_rate=3e-3,
            gamma=0.5,
        ),
        replace(HEADS, reward_scale=800.0),
    )
    model.learn(20 * 16 * N_PATHS * ACCOUNTS)
    rollout = model.rollout_buffer

    def explained(returns: torch.Tensor) -> float:
        """By the values before the update that learnt from these returns."""
        return 1.0 - float((returns - rollout.within).square().mean() / returns.var())

    # a head that always says the same explains nothing
    assert rollout.option_returns.std() > 0.3
    assert explained(rollout.option_returns) > 0.6
    # and of what the worker earns it knows nothing
    assert explained(rollout.returns) < -1.0


def test_a_stopped_level_learns_no_more_while_the_other_does(tape: Tape) -> None:
    for stopped, going in (("manager", "worker"), ("worker", "manager")):
        limits = {"target_kl" if stopped == "worker" else "manager_target_kl": 1e-12}
        model = build(tape, replace(SETTINGS, n_epochs=4, **limits))  # type: ignore[arg-type]
        roll(model)
        learning: list[dict[str, bool]] = []
        losses = model.levels_loss

        def watch(batch: Any, flags: dict[str, bool], losses: Any = losses, seen: Any = learning) -> Any:
            seen.append(dict(flags))
            return losses(batch, flags)

        model.levels_loss = watch  # type: ignore[method-assign]
        model.set_logger(configure(None, []))
        model.train()
        assert learning[0] == {"worker": True, "manager": True}
        assert learning[-1] == {stopped: False, going: True}


def test_while_it_warms_up_the_managers_policy_stays_and_its_choices_are_even(tape: Tape) -> None:
    per_rollout = 16 * N_PATHS * ACCOUNTS
    model = build(tape, replace(SETTINGS, warmup_steps=6 * per_rollout))
    with torch.no_grad():
        model.policy.manager_policy[-1].bias.copy_(torch.arange(8.0) * 5.0)  # type: ignore[union-attr]
    weights = list(model.policy.manager_policy.parameters())
    before = [p.clone() for p in weights]
    model.learn(6 * per_rollout)
    assert all(
        torch.equal(p, q) for p, q in zip(before, model.policy.manager_policy.parameters(), strict=True)
    )
    chosen = model.rollout_buffer.choices[model.rollout_buffer.decided[:, :-1]][:, 0].long()
    assert len(chosen.unique()) == 5
    model.learn(per_rollout, reset_num_timesteps=False)
    assert any(not torch.equal(p, q) for p, q in zip(before, weights, strict=True))


def test_a_resumed_run_equals_one_that_never_stopped(tape: Tape, tmp_path: Path) -> None:
    per_rollout = 16 * N_PATHS * ACCOUNTS
    whole, stopped = build(tape), build(tape)
    whole.learn(4 * per_rollout)
    stopped.learn(4 * per_rollout, callback=lambda *_: stopped.num_timesteps < 2 * per_rollout)
    stopped = build(tape)
    stopped.learn(2 * per_rollout)
    # in the middle of options
    assert (stopped.option[..., -1] > 0.0).any()
    stopped._total_timesteps = 4 * per_rollout
    stopped.save_checkpoint(tmp_path / "state")
    resumed = build(tape, seed=0)
    resumed.load_checkpoint(tmp_path / "state")
    torch.testing.assert_close(resumed.option, stopped.option)
    resumed.learn(2 * per_rollout, reset_num_timesteps=False)
    torch.testing.assert_close(resumed.option, whole.option, atol=0, rtol=0)
    for name, value in whole.policy.state_dict().items():
        torch.testing.assert_close(resumed.policy.state_dict()[name], value, atol=0, rtol=0)


@pytest.mark.parametrize(("alert", "is_called_back"), [(1.0, False), (1e-9, True)])
def test_an_end_of_episode_is_no_risk_event(tape: Tape, alert: float, is_called_back: bool) -> None:
    """Options of five bars in episodes of seven: every episode cuts one off."""
    hierarchy = HierarchyConfig(budgets=(1.0,), min_bars=5, max_bars=5, margin_alert=alert)
    env = EnvConfig(action="target", window_bars=SMALL.receptive_field, episode_bars=7, limits="off")
    model = build(tape, replace(SETTINGS, hierarchy=hierarchy), env)
    model.set_logger(configure(None, []))
    roll(model)
    rollout = model.rollout_buffer
    assert rollout.truncated.any()
    share = model.logger.name_to_value["options/called_back"]
    assert (share > 0.0) == is_called_back
    # by hand, account by account
    decided, left = (part.numpy() for part in (rollout.decided, rollout.state[:, :-1, :, -1]))
    ends = (rollout.terminated | rollout.truncated).reshape(-1, N_PATHS, ACCOUNTS)
    forced = due = 0
    for path, step, account in zip(*np.nonzero(decided[:, 1:]), strict=True):
        due += 1
        forced += left[path, step, account] > 1.0 and not ends[step, path, account]
    assert share == pytest.approx(forced / due)


def test_flat_ppo_takes_no_forbidden_choice_and_starts_at_ratio_one(tape: Tape) -> None:
    from perpgym.policies import PerpActorCriticPolicy

    env = PerpVecEnv(tape, n_paths=N_PATHS, accounts_per_path=ACCOUNTS, config=HEADS, seed=0)
    model = PerpPPO(
        PerpActorCriticPolicy,
        env,
        config=SETTINGS,
        policy_kwargs={
            "config": SMALL,
            "market_scaler": fit_scaler(tape.features, 0, 300),
            "risk_scaler": fit_scaler(tape.risk, 0, 300),
        },
        seed=0,
        device="cpu",
    )
    model._setup_learn(10**9)
    model.collect_rollouts(model.env, Quiet(model), model.rollout_buffer, model.n_steps)  # type: ignore[arg-type]
    rollout = model.rollout_buffer
    assert rollout.masks is not None
    assert not rollout.masks.all()
    rollout.weigh_advantages(path_baseline=False, normalise=True)
    for batch in rollout.minibatches(1, model.shuffle):
        log_ratio = model.loss(batch).log_ratio
        torch.testing.assert_close(log_ratio, torch.zeros_like(log_ratio), atol=1e-5, rtol=0)
    first = 0
    for number, count in enumerate(HEADS.choices):
        mask = rollout.masks[..., first : first + count]
        assert mask.gather(-1, rollout.actions[..., number : number + 1].long()).all()
        first += count


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"manager_clip_range": 0.0}, "manager_clip_range must lie between"),
        ({"manager_target_kl": 0.0}, "manager_target_kl must be positive"),
        ({"hierarchy": {"min_bar": 3}}, "hierarchy has no setting min_bar"),
        ({"hierarchy": None}, "hierarchy must be a HierarchyConfig or names with values, was None"),
        ({"cuda_graphs": True}, "cuda_graphs needs fixed shapes"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HierarchicalPPOConfig(**settings)


def test_what_a_market_did_to_all_accounts_of_a_path_is_no_managers_merit(tape: Tape) -> None:
    model = build(tape)
    roll(model, 2)
    rollout, policy = model.rollout_buffer, model.policy
    decided = rollout.decided[:, :-1]
    assert 0.0 < decided.float().mean() < 1.0
    # between decisions: what the option brought beyond the value of being in it
    context = policy.stretch_context(torch.tensor([s.first_bar for s in rollout.segments[:N_PATHS]]), 16)
    with torch.no_grad():
        within = policy.option_values(context.unsqueeze(2), rollout.state[:, :-1])
    assert len(rollout.segments) == N_PATHS
    expected = torch.where(
        decided, rollout.option_returns - rollout.manager_values, rollout.option_returns - within
    )
    torch.testing.assert_close(rollout.manager_advantages, expected, atol=1e-5, rtol=0.0)

    def weighed() -> torch.Tensor:
        rollout.weigh_decisions(path_baseline=True, normalise=True)
        batch = next(iter(rollout.minibatches(N_PATHS, np.random.default_rng(0))))
        return batch.choice_advantages  # type: ignore[attr-defined, no-any-return]

    before = weighed()
    market = torch.randn(N_PATHS, 16, 1, generator=torch.Generator().manual_seed(1))
    rollout.manager_advantages += market
    torch.testing.assert_close(weighed(), before, atol=1e-4, rtol=0.0)
    rollout.weigh_decisions(path_baseline=False, normalise=True)
    batch = next(iter(rollout.minibatches(N_PATHS, np.random.default_rng(0))))
    assert not torch.allclose(batch.choice_advantages, before, atol=0.1)  # type: ignore[attr-defined]


def test_a_lone_account_has_nothing_to_be_compared_with(tape: Tape) -> None:
    with pytest.raises(ValueError, match="compares the accounts of a path, there is 1"):
        build(tape, replace(SETTINGS, manager_path_baseline=True), accounts=1)


def test_a_budget_of_nothing_has_no_share_that_is_used(tape: Tape) -> None:
    model = build(tape)
    model.set_logger(configure(None, []))
    roll(model)
    budgets = model.rollout_buffer.state[:, :-1, :, -2]
    budgets[:, ::2] = 0.0
    model._record_options()
    used = model.logger.name_to_value["options/budget_used"]
    size = model.policy.options.exposure_columns
    exposures = model.rollout_buffer.state[:, 1:, :, size].abs().amax(-1)
    granted = budgets > 0.0
    by_hand = (exposures[granted] / (HEADS.max_exposure * budgets[granted])).mean()
    assert used == pytest.approx(float(by_hand))
    budgets[:] = 0.0
    model.logger.name_to_value.clear()
    model._record_options()
    assert "options/budget_used" not in model.logger.name_to_value
