"""QR-DQN on two levels: what acts, what is learnt from it, and that with options of one bar it is QR-DQN."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib.common.utils import quantile_huber_loss as over_all_pairs
from stable_baselines3.common.logger import configure
from two_critics import (
    HIERARCHY,
    LAST_BAR,
    SETTINGS,
    SMALL,
    held,
    make_env,
    make_model,
    network,
    speak_clearly,
)

from perpgym.agents.artifact import load_artifact, save_artifact
from perpgym.agents.hierarchical_qrdqn import HierarchicalQRDQN, HierarchicalQRDQNConfig
from perpgym.agents.hierarchical_quantile_loss import worker_rows
from perpgym.agents.qrdqn import PerpQRDQN, QRDQNConfig
from perpgym.agents.trained import TrainedAgent
from perpgym.data.tape import Tape
from perpgym.envs import PerpVecEnv, RiskLimits
from perpgym.envs.buffers import StepBuffers
from perpgym.policies.hierarchical_quantile import HierarchicalQuantilePolicy
from perpgym.policies.options import HierarchyConfig
from perpgym.policies.quantile import PerpQuantilePolicy


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=600)


# --- acting ---


def test_options_last_as_long_as_they_were_drawn_unless_something_ends_them(tape: Tape) -> None:
    model = make_model(tape, learning_starts=10**9)
    model.learn(2_000)
    replay = model.options_replay
    options, due, _levels = held(model)
    left = options[..., -1]
    assert set(np.unique(left[due])) == {2.0, 3.0, 4.0, 5.0}
    # on one path between two ends, one less at every bar
    for path in range(4):
        for at in range(int(replay.head[path]) - 1):
            if replay.final[path, at] == at:
                continue
            now, then = replay.state[path, at], replay.state[path, at + 1]
            goes_on = ~replay.due[path, at + 1]
            size = replay.observed_size
            np.testing.assert_array_equal(then[goes_on, size:-1], now[goes_on, size:-1])
            np.testing.assert_array_equal(then[goes_on, -1], now[goes_on, -1] - 1.0)
            # nothing but an option's last bar, or an end, makes one due here
            over = now[:, -1] == 1.0
            is_final = replay.final[path, at + 1] == at + 1
            np.testing.assert_array_equal(replay.due[path, at + 1], over | is_final)
    assert model.explorer.called_back == 0


def test_no_level_is_taken_beyond_the_target_or_against_it(tape: Tape) -> None:
    model = make_model(tape, exploration_final_eps=0.3)
    model.learn(4_000)
    options, _due, levels = held(model)
    exposure = np.array(model.native.config.ladder)[levels[..., 0]]
    target = options[..., 0]
    assert (exposure * target >= 0.0).all()
    assert (np.abs(exposure) <= np.abs(target)).all()
    # and the worker does not merely copy its target
    assert 0.1 < np.mean(exposure == target) < 0.9


def test_limits_that_admit_less_call_the_manager_back(make_tape: Callable[..., Tape]) -> None:
    model = make_model(
        make_tape(bars=600, sigma=0.05),
        env={"max_drawdown": 0.5, "max_exposure": 2.0},
        learning_starts=10**9,
        hierarchy=HierarchyConfig(budgets=(1.0,), min_bars=50, max_bars=50),
    )
    limits = RiskLimits(max_leverage=2.0, drawdown_start=0.05)
    env = PerpVecEnv(
        model.native.tape, n_paths=4, accounts_per_path=2, config=model.native.config, limits=limits
    )
    model.set_env(env)
    model.learn(2_000)
    assert model.explorer.called_back > 20


def test_both_levels_act_by_their_own_alpha_on_the_bars_where_a_path_is_now(tape: Tape) -> None:
    """The manager by the policy's, the worker by the option's; episodes end within rounds of sixteen bars."""
    model = make_model(
        tape, alpha=0.5, learning_starts=0, exploration_initial_eps=0.0, env={"episode_bars": 11}
    )
    speak_clearly(model)
    model._setup_learn(10**9)
    for _ in range(2):
        list(model.explorer.steps(model.env, 16))  # type: ignore[arg-type]
    replay, policy, net = model.options_replay, model.policy, model.quantile_net
    number = np.arange(replay.capacity)[None]
    is_decision = (number < replay.head[:, None] - 1) & (number != replay.final)
    kept = (replay.bar, replay.state, replay.mask, replay.due, replay.action, replay.choice)
    bar, state, mask, due, level, choice = (torch.from_numpy(array[is_decision]) for array in kept)
    account, option = state[..., : replay.observed_size], state[..., replay.observed_size :]
    with torch.no_grad():
        # a bar at a time
        context = policy.stretch_context(bar, 1)  # n 1 C
        of_manager, of_worker = net.quantiles(context, account), net.worker_quantiles(context, state)
    # budgets of a quarter and of all of eight quantiles
    is_averse = (option[..., 1] == 0.25)[..., None, None]
    assert 0.0 < is_averse.float().mean() < 1.0
    tail, whole = of_worker[..., :2].mean(-1), of_worker.mean(-1)  # n K A L
    fits, targets = policy.options.worker_mask(mask, option), policy.options.manager_mask(account)
    for neutral, worth, allowed, taken, where in (
        (whole, torch.where(is_averse, tail, whole), fits, level, due | True),
        (of_manager.mean(-1), of_manager[..., :4].mean(-1), targets, choice, due),
    ):
        bound = worth.masked_fill(~allowed, -torch.inf)
        found = bound.gather(-1, taken.long().unsqueeze(-1))[..., 0]
        torch.testing.assert_close(found[where], bound.amax(-1)[where], atol=1e-4, rtol=0.0)
        assert (neutral.masked_fill(~allowed, -torch.inf).argmax(-1) != taken)[where].any()


def test_no_option_outlives_its_account_or_a_reset_of_the_env(make_tape: Callable[..., Tape]) -> None:
    model = make_model(
        make_tape(bars=600, sigma=0.05),
        env={"max_drawdown": 0.08},
        learning_starts=10**9,
        hierarchy=HierarchyConfig(budgets=(1.0,), min_bars=50, max_bars=50),
    )
    model.learn(1_000)
    replay = model.options_replay
    path, at, account = np.nonzero(replay.terminated)
    is_alone = replay.final[path, at + 1] != at + 1
    path, at, account = path[is_alone], at[is_alone], account[is_alone]
    assert len(at) > 5
    # bars were left, and the next life begins with an option of its own
    assert (replay.state[path, at, account, -1] > 1.0).any()
    assert replay.due[path, at + 1, account].all()
    known = at + 1 < replay.head[path] - 1
    assert (replay.state[path, at + 1, account, -1][known] == 50.0).all()
    # in the middle of options
    assert (replay.newest()[0][..., -1] > 1.0).any()
    model._setup_learn(10**9)
    next(iter(model.explorer.steps(model.env, 1)))  # type: ignore[arg-type]
    assert replay.due[np.arange(4), replay.head - 2].all()


# --- learning ---


def test_with_options_of_one_bar_the_managers_targets_are_those_of_qrdqn(tape: Tape) -> None:
    """Same data, same weights: k = 1 and one budget, alpha = 1, leave QR-DQN's one-step targets."""
    single = HierarchyConfig(budgets=(1.0,), min_bars=1, max_bars=1)
    model = make_model(tape, hierarchy=single, n_step=1, learning_starts=10**9)
    model.learn(2_000)
    # as if the worker had meant it: where it explores, its own value stands in
    model.options_replay.explored[:] = False
    speak_clearly(model)
    flat = PerpQRDQN(
        PerpQuantilePolicy,
        model.native,
        config=QRDQNConfig(**SETTINGS | {"n_step": 1}),
        policy_kwargs=network(tape, SMALL),
        seed=1,
        device="cpu",
    )
    for mine, theirs in (
        (flat.quantile_net, model.quantile_net),
        (flat.quantile_net_target, model.quantile_net_target),
    ):
        assert not mine.load_state_dict(theirs.state_dict(), strict=False).missing_keys
    how: dict[str, Any] = {"n_step": 1, "gamma": 0.99}
    of_options = model.options_replay.sample_options(256, 8, max_bars=1, rng=np.random.default_rng(5), **how)
    # the flat agent's batch of the same draws; its levels are the manager's choices
    batch = model.replay.sample(256, 8, rng=np.random.default_rng(5), **how)
    batch = replace(
        batch,
        next_state=batch.next_state[..., : -model.policy.options.size],
        next_mask=torch.ones_like(batch.next_mask),
    )
    rows = worker_rows(of_options)
    assert (of_options.begins == rows).all()
    assert (of_options.manager.discount[rows] < 0.991).all()
    _of_worker, of_manager = model.objective.targets(of_options)
    expected = flat.objective.targets(batch)[rows]
    torch.testing.assert_close(of_manager, expected)


def test_targets_are_a_plain_calculation_decision_by_decision(tape: Tape) -> None:
    model = make_model(tape, n_step=2, alpha=0.5, learning_starts=10**9)
    model.learn(2_000)
    explored = model.options_replay.explored
    explored &= np.random.default_rng(1).random(explored.shape) < 0.2
    speak_clearly(model)
    batch = model.draw(128)
    of_worker, of_manager = model.objective.targets(batch)
    policy, net = model.policy, model.quantile_net_target
    size, ladder = policy.options.size, model.native.config.ladder

    def worst(quantiles: torch.Tensor, share: float) -> torch.Tensor:
        count = round(share * 8)
        return quantiles[..., :count].mean(-1)

    def after(at: tuple[int, ...], level: str) -> torch.Tensor:
        what = getattr(batch, level)
        bar = batch.first_bar[at[0]] + what.offset[at]
        context = net.features_extractor.stretch_context(bar[None], 1)[0, 0]
        state = what.state[at]
        if what.is_due[at]:
            quantiles = net.quantiles(context, state[:-size])[0]  # choices N
            best = int(worst(quantiles, 0.5).argmax())
        else:
            quantiles = net.worker_quantiles(context, state)[0]  # L N
            target, alpha = float(state[-size]), float(state[-size + 1])
            within = [i for i, x in enumerate(ladder) if x * target >= 0 and abs(x) <= abs(target)]
            allowed = [i for i in within if what.mask[at][0, i]] or [ladder.index(0.0)]
            best = max(allowed, key=lambda i: float(worst(quantiles[i], alpha)))
        return what.reward[at] + what.discount[at] * quantiles[best]

    with torch.no_grad():
        for level, rows, found in (
            ("worker", worker_rows(batch), of_worker),
            ("manager", batch.begins, of_manager),
        ):
            places = [tuple(place) for place in rows.nonzero().tolist()]
            assert len(places) == len(found) > 8
            expected = torch.stack([after(place, level) for place in places])
            torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-5)
    # both kinds of observation were among them, on both levels
    assert 0 < int(batch.worker.is_due[worker_rows(batch)].sum()) < len(of_worker)
    assert 0 < int(batch.manager.is_due[batch.begins].sum()) < len(of_manager)


def test_its_loss_is_a_plain_calculation_bar_by_bar_in_the_unit_of_both_levels_targets(tape: Tape) -> None:
    network = replace(SMALL, forecast_bars=(2,))
    model = make_model(tape, network, manager_coef=0.3, forecast_coef=0.2, learning_starts=10**9)
    model.learn(2_000)
    speak_clearly(model)
    batch, net = model.draw(128), model.quantile_net
    targets = model.objective.targets(batch)
    loss = model.objective.loss(batch)
    both = torch.cat([target.flatten() for target in targets])
    for either in (net, model.quantile_net_target):
        assert float(either.mean) == pytest.approx(float(both.mean()), abs=1e-6)
        assert float(either.deviation) == pytest.approx(float(both.std(correction=0)), rel=1e-3)
    expected = []
    for rows, wanted, taken in (
        (worker_rows(batch), targets[0], batch.action),
        (batch.begins, targets[1], batch.choice),
    ):
        stretch, offset, _account = rows.nonzero().unbind(1)
        context = model.policy.stretch_context(batch.first_bar[stretch] + offset, 1)[:, 0]  # n C
        state = batch.state[rows]
        if taken is batch.action:
            quantiles = net.worker_quantiles(context, state)
        else:
            quantiles = net.quantiles(context, state[:, : -model.policy.options.size])
        of_taken = quantiles[torch.arange(len(state)), 0, taken[rows][:, 0]]  # n N
        expected.append(over_all_pairs(of_taken / net.deviation, wanted[:, 0] / net.deviation))
    worker, manager = expected
    assert min(worker, manager, loss.forecast) > 0.01
    torch.testing.assert_close(loss.worker, worker.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss.manager, manager.detach(), rtol=1e-4, atol=1e-6)
    total = worker + 0.3 * manager + 0.2 * loss.forecast
    torch.testing.assert_close(loss.total.detach(), total.detach(), rtol=1e-4, atol=1e-6)
    # what it is descended by, where no forecast stands between
    weights = [part[-1].weight for pair in net._pairs() for part in pair]
    slopes = (torch.autograd.grad(found, weights, retain_graph=True) for found in (loss.total, total))  # type: ignore[arg-type]
    for mine, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_every_part_learns_and_both_levels_share_one_unit(tape: Tape) -> None:
    model = make_model(tape)
    before = {name: value.clone() for name, value in model.quantile_net.state_dict().items()}
    model.learn(1_500)
    after = model.quantile_net.state_dict()
    for part in ("value.", "advantage.", "worker_value.", "worker_advantage.", "market_encoder."):
        names = [name for name in after if name.startswith(part) or f".{part}" in name]
        assert any(not torch.equal(before[name], after[name]) for name in names), part
    assert all(torch.isfinite(value).all() for value in after.values())
    batch = model.draw(64)
    expected = model.objective.targets(batch)
    for net in (model.quantile_net, model.quantile_net_target):
        net.rescale(torch.tensor([-30.0, 10.0, 70.0]))
    for found, wanted in zip(model.objective.targets(batch), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_it_earns_what_slow_moods_pay(make_tape: Callable[..., Tape]) -> None:
    """The first feature is the drift of the coming bars, which lasts for twenty; the best follows it."""
    sign = np.repeat(np.random.default_rng(3).choice([-1.0, 1.0], 75), 20)
    closes = 100.0 * np.exp(np.concatenate([[0.0], np.cumsum(0.01 * sign[:-1])]))
    tape = make_tape(closes, wick=0.0, funding_rate=0.0, volume=1e9)
    features = tape.features.copy()
    features[:, 0, 0] = sign
    tape = replace(tape, features=features, _cache={})
    model = make_model(
        tape, LAST_BAR, gamma=0.5, learning_rate=2e-3, train_freq=8, gradient_steps=8,
        env={"reward_scale": 100.0}, hierarchy=HierarchyConfig(budgets=(1.0,), min_bars=1, max_bars=3),
    )  # fmt: skip
    model.learn(5_000)
    agent = TrainedAgent(model.policy)

    def earned(act: Callable[[StepBuffers], np.ndarray]) -> float:
        env = PerpVecEnv(tape, n_paths=1, config=replace(model.native.config, episode_bars=400))
        out, total = env.make_buffers(), 0.0
        env.reset_into(out, 5)
        for _ in range(300):
            env.step_into(act(out), out)
            total += float(out.reward[0])
        return total

    best = earned(lambda out: np.array([[4.0 if sign[out.bar[0]] > 0 else 0.0]], np.float32))
    found = earned(lambda out: agent.act(tape, int(out.bar[0]), out.account, out.portfolio))
    # an option of two bars that a turn catches costs a bar of twenty, in one of two of them
    assert found >= 0.93 * best


# --- going on, and on disk ---


def test_a_resumed_run_equals_one_that_never_stopped(tape: Tape, tmp_path: Path) -> None:
    per_round = 16 * 8
    whole, stopped = make_model(tape), make_model(tape)
    whole.learn(12 * per_round)
    stopped.learn(12 * per_round, callback=SaveAt(6 * per_round, tmp_path / "state"))
    resumed = make_model(tape)
    resumed.load_checkpoint(tmp_path / "state")
    assert resumed.num_timesteps == 6 * per_round
    # in the middle of options
    assert (resumed.replay.newest()[0][..., -1] > 0.0).any()
    resumed.learn(6 * per_round, reset_num_timesteps=False)
    for name, value in whole.policy.state_dict().items():
        torch.testing.assert_close(resumed.policy.state_dict()[name], value, atol=0, rtol=0)
    np.testing.assert_array_equal(resumed.replay.newest()[0], whole.replay.newest()[0])


@pytest.mark.parametrize("contracts", [1, 3])
def test_predict_with_its_state_is_what_backtests_and_artifacts_do(
    make_portfolio: Callable[..., Tape], tmp_path: Path, contracts: int
) -> None:
    """Window observations and ``predict``'s state, against the stretch and the agent's own memory."""
    tape = make_portfolio((0,) * contracts)
    model = make_model(tape)
    model.learn(600)
    config = model.native.config
    save_artifact(
        tmp_path, model.policy, tape=tape, env_config=config, limits=RiskLimits(), seed=0, commit="none"
    )
    artifact = load_artifact(tmp_path)
    agent, policy = TrainedAgent(artifact), artifact.policy
    assert isinstance(policy, HierarchicalQuantilePolicy)
    assert policy.options.config == HIERARCHY
    env = PerpVecEnv(tape, n_paths=1, accounts_per_path=2, config=config, with_windows=True, seed=3)
    out = env.make_buffers()
    env.reset_into(out, 3)
    state, left = None, []
    for _ in range(40):
        masks = env.action_masks()
        mine = agent.act(tape, int(out.bar[0]), out.account, out.portfolio, masks)
        theirs, state = policy.predict(env.observation(out), state, action_masks=masks)
        np.testing.assert_array_equal(mine, theirs.reshape(mine.shape))
        assert state is not None
        np.testing.assert_allclose(agent.policy.forget(agent.in_force).numpy(), state[0], atol=1e-6)
        left.append(state[0][0, -1])
        env.step_into(mine, out)
    # options of the midpoint's three bars
    assert left[:6] == [2.0, 1.0, 0.0, 2.0, 1.0, 0.0]


def test_a_saved_model_predicts_the_same(tape: Tape, tmp_path: Path) -> None:
    model = make_model(tape)
    model.learn(600)
    model.save(tmp_path / "model.zip")
    loaded = HierarchicalQRDQN.load(tmp_path / "model.zip", env=model.native, device="cpu")
    observation = model.native.observation(model.env.buffers)  # type: ignore[union-attr]
    mine, theirs = (m.predict(observation) for m in (model, loaded))
    np.testing.assert_array_equal(mine[0], theirs[0])
    assert mine[1] is not None
    assert theirs[1] is not None
    np.testing.assert_array_equal(mine[1][0], theirs[1][0])


def test_a_prediction_without_an_option_is_refused(tape: Tape) -> None:
    model = make_model(tape)
    tensors, _ = model.policy.obs_to_tensor(model.native.observation(model.env.buffers))  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="acts in an option"):
        model.policy(tensors)


def test_both_levels_have_curves(tape: Tape, tmp_path: Path) -> None:
    model = make_model(tape)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(2_000, log_interval=1)
    model.logger.close()
    with (tmp_path / "progress.csv").open() as file:
        curves = [row for row in csv.DictReader(file) if row.get("train/loss")]
    last = curves[-1]
    for name in ("train/loss", "train/target", "manager/loss", "manager/target", "options/alpha"):
        assert np.isfinite(float(last[name])), name
    # two to five bars, shorter where an episode ends
    assert 2.0 < float(last["options/bars_per_decision"]) < 4.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"manager_coef": -1.0}, "manager_coef must lie"),
        ({"minibatch": "decisions"}, "minibatch must be stretches"),
        ({"hierarchy": {"bars": 3}}, "hierarchy has no setting bars"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HierarchicalQRDQNConfig(**settings)


def test_another_env_s_ladder_is_refused(tape: Tape, tmp_path: Path) -> None:
    model = make_model(tape)
    other = make_env(tape, ladder=(0.0, 0.25, 0.5, 0.75, 1.0))
    with pytest.raises(ValueError, match=r"bind levels \(-1.0, -0.5, 0.0, 0.5, 1.0\), the env has \(0.0,"):
        model.set_env(other)
    model.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="bind levels"):
        HierarchicalQRDQN.load(tmp_path / "model.zip", env=other, device="cpu")
    with pytest.raises(
        TypeError, match="HierarchicalQRDQN takes a HierarchicalQRDQNConfig, was a QRDQNConfig"
    ):
        HierarchicalQRDQN(HierarchicalQuantilePolicy, other, config=QRDQNConfig())  # type: ignore[arg-type]


def SaveAt(steps: int, path: Path) -> Any:  # noqa: N802 - a callback
    from stable_baselines3.common.callbacks import BaseCallback

    class Save(BaseCallback):
        def _on_rollout_start(self) -> None:
            if self.model.num_timesteps == steps:
                self.model.save_checkpoint(path)

        def _on_step(self) -> bool:
            return True

    return Save()
