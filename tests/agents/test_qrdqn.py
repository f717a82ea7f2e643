"""PerpQRDQN is sb3-contrib's QR-DQN on the same data, learns what is known, and minds the tail if told to."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from two_critics import FREE, LAST_BAR, SMALL, network

from perpgym.agents.artifact import load_artifact, save_artifact
from perpgym.agents.qrdqn import PerpQRDQN, QRDQNConfig
from perpgym.agents.replay import StretchBatch
from perpgym.agents.trained import TrainedAgent
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.envs.buffers import StepBuffers
from perpgym.envs.risk.limits import RiskLimits
from perpgym.envs.spaces import PORTFOLIO_NAMES
from perpgym.policies import PolicyConfig
from perpgym.policies.quantile import PerpQuantilePolicy, cvar_weights, ladder_shape


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
        policy_kwargs=network(tape, policy),
        seed=0,
        device="cpu",
    )


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=600)


def by_decision(model: PerpQRDQN, batch: StretchBatch) -> tuple[dict[str, torch.Tensor], ...]:
    """Window observations of every decision and of its target's observation, and what else belongs to it."""
    tape, window = model.native.tape, SMALL.receptive_field
    keep = batch.is_decision.unsqueeze(-1).expand(batch.reward.shape)
    bar = (batch.first_bar[:, None] + torch.arange(keep.shape[1]))[..., None].expand(keep.shape)
    next_bar = (batch.first_bar[:, None] + batch.next_offset)[..., None].expand(keep.shape)

    def seen(at: torch.Tensor, state: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = at.numpy()[:, None] + np.arange(1 - window, 1)
        size = state.shape[1] - len(PORTFOLIO_NAMES)
        return {
            "market": torch.from_numpy(tape.features[rows]),
            "risk": torch.from_numpy(tape.risk[rows]),
            "clock": torch.from_numpy(tape.clock(at.numpy()[:, None])),
            "account": state[:, None, :size],
            "portfolio": state[:, size:],
        }

    rest = {
        "action": batch.action[keep][:, 0],
        "reward": batch.reward[keep],
        "discount": batch.discount[keep],
        "mask": batch.next_mask[keep][:, 0],
    }
    return seen(bar[keep], batch.state[keep]), seen(next_bar[keep], batch.next_state[keep]), rest


def plain_loss(
    policy: PerpQuantilePolicy, batch: tuple[dict[str, torch.Tensor], ...], alpha: torch.Tensor
) -> torch.Tensor:
    """Dabney et al. 2018, eqs. 9 and 10, decision by decision and quantile by quantile; alpha (n,)."""
    now, after, rest = batch
    n_quantiles = policy.n_quantiles
    with torch.no_grad():
        following = policy.quantile_net_target(after)  # n N L
    current = policy.quantile_net(now)
    total = torch.zeros(())
    for i in range(len(rest["reward"])):
        # the worst share of quantiles, one after the other until it is used up
        left, worth = alpha[i] * n_quantiles, torch.zeros(policy.n_levels)
        for quantile in range(n_quantiles):
            part = float(min(max(left - quantile, 0.0), 1.0))
            worth += part * following[i, quantile] / (alpha[i] * n_quantiles)
        allowed = [level for level in range(policy.n_levels) if rest["mask"][i, level]]
        best = max(allowed, key=lambda level: float(worth[level]))
        target = rest["reward"][i] + rest["discount"][i] * following[i, :, best]
        for quantile in range(n_quantiles):
            error = (target - current[i, quantile, rest["action"][i]]) / policy.quantile_net.deviation
            huber = torch.where(error.abs() <= 1.0, 0.5 * error**2, error.abs() - 0.5)
            below = (error < 0.0).float()
            total = total + ((quantile + 0.5) / n_quantiles - below).abs().mul(huber).mean()
    return total / len(rest["reward"])


@pytest.mark.parametrize("case", ["mean", "tail", "masked", "budgets", "rescaled"])
def test_its_loss_and_gradients_are_a_plain_calculation_on_windows(tape: Tape, case: str) -> None:
    model = make_model(tape, alpha=0.3 if case == "tail" else 1.0, n_step=2, learning_starts=10**9)
    model.learn(800)
    for seed, net in enumerate((model.quantile_net, model.quantile_net_target)):
        # a fresh network says nearly the same of every level, and its target the same as itself
        torch.nn.init.normal_(net.advantage[-1].weight, generator=torch.Generator().manual_seed(seed))
        if case == "rescaled":
            net.rescale(torch.tensor([-3.0, 1.0, 7.0]))
    with torch.no_grad():
        for weight in model.quantile_net_target.features_extractor.parameters():
            weight *= 1.1
    batch = model.draw(64)
    rng, alpha = torch.Generator().manual_seed(2), None
    if case == "masked":
        mask = torch.rand(batch.next_mask.shape, generator=rng) < 0.4
        batch = replace(batch, next_mask=mask | (torch.arange(mask.shape[-1]) == 1))
    if case == "budgets":
        alpha = 0.05 + 0.95 * torch.rand(batch.reward.shape, generator=rng)
    ours = model.objective.loss(batch, alpha)
    ours.total.backward()

    window = PerpVecEnv(tape, n_paths=1, config=model.native.config, with_windows=True)
    theirs = PerpQuantilePolicy(
        window.single_observation_space, model.action_space, lambda _: 0.0,
        **{**model.policy.scalers, "config": SMALL, "n_quantiles": 8},
    )  # fmt: skip
    theirs.load_state_dict(model.policy.state_dict())
    budgets = torch.full(batch.reward.shape, model.policy.alpha) if alpha is None else alpha
    keep = batch.is_decision.unsqueeze(-1).expand(batch.reward.shape)
    expected = plain_loss(theirs, by_decision(model, batch), budgets[keep])
    expected.backward()
    assert float(ours.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    pairs = zip(model.quantile_net.named_parameters(), theirs.quantile_net.parameters(), strict=True)
    for (name, mine), other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_one_wrong_bar_is_enough_to_break_that_equality(tape: Tape) -> None:
    """The negative control: shifted by one bar, the windows no longer say the same."""
    model = make_model(tape, n_step=1, learning_starts=10**9)
    model.learn(400)
    torch.nn.init.normal_(model.quantile_net.value[-1].weight)
    batch = model.draw(64)
    right = float(model.objective.loss(batch).total.detach())
    shifted = float(model.objective.loss(replace(batch, first_bar=batch.first_bar - 1)).total.detach())
    assert shifted != pytest.approx(right, rel=1e-3)


def test_cvar_weighs_the_worst_share_and_a_part_of_the_quantile_in_which_it_ends() -> None:
    np.testing.assert_allclose(cvar_weights(1.0, 4), [0.25] * 4)
    np.testing.assert_allclose(cvar_weights(0.5, 4), [0.5, 0.5, 0.0, 0.0])
    # 0.375 of 4 quantiles is 1.5 of them
    np.testing.assert_allclose(cvar_weights(0.375, 4), [2 / 3, 1 / 3, 0.0, 0.0], rtol=1e-6)
    of_each = cvar_weights(torch.tensor([[1.0], [0.5]]), 2)
    np.testing.assert_allclose(of_each, [[[0.5, 0.5]], [[1.0, 0.0]]])


@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.0])
def test_cvar_of_a_normal_distribution_is_its_closed_form(alpha: float) -> None:
    """CVaR_alpha = -phi(Phi^-1(alpha)) / alpha (Rockafellar and Uryasev 2000)."""
    normal = torch.distributions.Normal(0.0, 1.0)
    midpoints = (torch.arange(4_000, dtype=torch.float64) + 0.5) / 4_000
    quantiles = normal.icdf(midpoints.float())
    known = 0.0
    if alpha < 1.0:
        at = float(normal.icdf(torch.tensor(alpha)))
        known = -np.exp(-0.5 * at**2) / np.sqrt(2.0 * np.pi) / alpha
    assert float(quantiles @ cvar_weights(alpha, 4_000)) == pytest.approx(known, abs=2e-3)


@pytest.mark.parametrize("alpha", [0.0, 1.2])
def test_a_share_of_nothing_or_of_more_than_all_is_refused(tape: Tape, alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha must lie in \(0, 1\]"):
        make_model(tape, alpha=alpha)


def test_popart_changes_the_unit_and_no_quantile(tape: Tape) -> None:
    model = make_model(tape, popart=True, learning_starts=10**9)
    model.learn(400)
    batch = model.draw(64)
    before = model.objective.targets(batch)
    nets = (model.quantile_net, model.quantile_net_target)
    model.objective.loss(batch)
    learnt = before[batch.is_decision]
    for net in nets:
        assert float(net.mean) == pytest.approx(float(learnt.mean()), abs=1e-6)
        assert float(net.deviation) == pytest.approx(float(learnt.std(correction=0)), rel=1e-3)
        net.count.zero_()
    for net in nets:
        net.rescale(torch.tensor([-30.0, 10.0, 70.0]))
    torch.testing.assert_close(model.objective.targets(batch), before, rtol=1e-4, atol=1e-4)
    assert float(nets[0].mean) == pytest.approx(50.0 / 3.0)
    assert float(nets[0].deviation) > 30.0
    model.train(4, 64)
    # averaged or copied, the two networks must have one unit
    assert nets[0].mean == nets[1].mean
    assert nets[0].deviation == nets[1].deviation


def signal_tape(make_tape: Callable[..., Tape], bars: int = 1_500) -> Tape:
    """The first feature is the sign of the coming return of 1 %."""
    rng = np.random.default_rng(3)
    sign = rng.choice([-1.0, 1.0], bars)
    closes = 100.0 * np.exp(np.concatenate([[0.0], np.cumsum(0.01 * sign[:-1])]))
    tape = make_tape(closes, wick=0.0, funding_rate=0.0, volume=1e9)
    features = tape.features.copy()
    features[:, 0, 0] = sign
    return replace(tape, features=features, _cache={})


@pytest.mark.parametrize("minibatch", ["stretches", "decisions"])
def test_it_earns_what_a_known_signal_pays_from_stretches_as_from_single_decisions(
    make_tape: Callable[..., Tape], minibatch: str
) -> None:
    """The best there is takes the end of the ladder that the signal names."""
    tape = signal_tape(make_tape)
    model = make_model(
        tape, LAST_BAR, minibatch=minibatch, gamma=0.5, learning_rate=2e-3, train_freq=8,
        gradient_steps=8, exploration_fraction=0.5, env={"reward_scale": 100.0},
    )  # fmt: skip
    model.learn(8_000)
    agent = TrainedAgent(model.policy)

    def earned(act: Callable[[StepBuffers], np.ndarray]) -> float:
        env = PerpVecEnv(tape, n_paths=1, config=model.native.config)
        out, total = env.make_buffers(), 0.0
        env.reset_into(out, 5)
        for _ in range(150):
            env.step_into(act(out), out)
            total += float(out.reward[0])
        return total

    best = earned(lambda out: np.array([[4.0 if tape.features[out.bar[0], 0, 0] > 0 else 0.0]], np.float32))
    assert earned(lambda out: agent.act(tape, int(out.bar[0]), out.account, out.portfolio)) >= 0.97 * best


def two_moods(make_tape: Callable[..., Tape]) -> Tape:
    """The first feature tells calm bars, +0.1 %, from wild ones: +0.4 %, or in one of ten -2 %."""
    rng = np.random.default_rng(7)
    is_wild = rng.random(2_000) < 0.5
    wild = np.where(rng.random(2_000) < 0.1, -0.02, 0.004)
    returns = np.where(is_wild, wild, 0.001)
    closes = 100.0 * np.exp(np.concatenate([[0.0], np.cumsum(returns[:-1])]))
    tape = make_tape(closes, wick=0.0, funding_rate=0.0, volume=1e9)
    features = np.zeros_like(tape.features)
    features[:, 0, 0] = np.where(is_wild, 1.0, -1.0)
    return replace(tape, features=features, _cache={})


def test_a_small_alpha_keeps_away_from_a_fat_left_tail_that_pays_on_average(
    make_tape: Callable[..., Tape],
) -> None:
    """A wild bar pays 0.16 % on average and -0.8 % in the worst fifth; a calm bar always pays."""
    tape = two_moods(make_tape)
    is_wild = tape.features[:, 0, 0] > 0.0
    held, earned = {}, {}
    for alpha in (1.0, 0.2):
        model = make_model(
            tape, LAST_BAR, alpha=alpha, gamma=0.0, n_step=1, learning_rate=2e-3, train_freq=8,
            gradient_steps=8, n_quantiles=20, exploration_fraction=0.5, exploration_final_eps=0.3,
            env={"reward_scale": 1_000.0, "ladder": (0.0, 1.0)},
        )  # fmt: skip
        model.learn(12_000)
        config = replace(model.native.config, restart="flat")
        env = PerpVecEnv(tape, n_paths=1, config=replace(config, episode_bars=1_000))
        out, agent = env.make_buffers(), TrainedAgent(model.policy)
        env.reset_into(out, 2)
        levels, rewards, moods = [], [], []
        for _ in range(1_000):
            moods.append(is_wild[out.bar[0]])
            action = agent.act(tape, int(out.bar[0]), out.account, out.portfolio)
            env.step_into(action, out)
            levels.append(action[0, 0])
            rewards.append(out.reward[0])
        held[alpha] = {mood: np.mean(np.array(levels)[np.array(moods) == mood]) for mood in (False, True)}
        earned[alpha] = np.sort(rewards)
    assert held[1.0][False] > 0.95
    assert held[1.0][True] > 0.95
    assert held[0.2][False] > 0.95
    assert held[0.2][True] < 0.05
    # the return that it gives up, and the tail that it is spared
    assert earned[0.2].mean() < earned[1.0].mean()
    assert earned[0.2][:200].mean() > earned[1.0][:200].mean() + 1.0


def test_a_risk_budget_for_each_decision_stands_in_for_its_own(tape: Tape) -> None:
    model = make_model(tape, alpha=1.0)
    model.learn(800)
    torch.nn.init.normal_(model.quantile_net.advantage[-1].weight, generator=torch.Generator().manual_seed(1))
    batch = model.draw(64)
    context = model.policy.stretch_context(batch.first_bar, 8).unsqueeze(2)
    budget = torch.full(batch.reward.shape, 0.1)
    with torch.no_grad():
        neutral, averse = (model.policy.decide(context, batch.state, alpha=a) for a in (None, budget))
        quantiles = model.quantile_net.quantiles(context, batch.state)[..., 0, :, :]  # G s K L N
        # a tenth of eight quantiles is four fifths of the lowest
        torch.testing.assert_close(averse[..., 0], quantiles[..., 0].argmax(dim=-1).float())
    assert (neutral != averse).any()


def test_no_forbidden_level_is_ever_chosen(tape: Tape) -> None:
    model = make_model(tape, exploration_final_eps=0.5)
    model.learn(600)
    env = PerpVecEnv(tape, n_paths=6, config=model.native.config)
    observation, _info = env.reset(seed=4)
    free, _state = model.predict(observation, deterministic=True)
    mask = np.ones((6, 5), np.bool_)
    mask[np.arange(6), free] = False
    bound, _state = model.predict(observation, deterministic=True, action_masks=mask)
    assert (bound != free).all()
    for _ in range(20):
        wandering, _state = model.predict(observation, action_masks=mask)
        assert mask[np.arange(6), wandering].all()
    model.policy.bind(tape)
    agent = TrainedAgent(model.policy)
    bars = np.flatnonzero(observation["bar"][:, 0] == observation["bar"][0, 0])
    seen = observation["account"][bars], observation["portfolio"][bars]
    acted = agent.act(tape, int(observation["bar"][0, 0]), *seen, mask[bars])
    np.testing.assert_array_equal(acted[:, 0], bound[bars])


def test_training_acts_within_the_masks_of_its_env(make_tape: Callable[..., Tape]) -> None:
    """At a leverage of one, the fee leaves no margin for the whole range."""
    tape = make_tape(bars=400)
    model = make_model(tape, env={"leverage": 1.0, "taker_rate": 0.01}, exploration_final_eps=0.5)
    model.learn(800)
    replay = model.replay
    held = replay.mask[:, :50]
    assert 0.0 < held.mean() < 1.0
    taken = np.take_along_axis(held, replay.action[:, :50, ..., None].astype(np.int64), axis=-1)
    # the newest observation has no action yet
    booked = np.arange(50) < (replay.head[:, None] - 1)
    is_final = np.arange(50)[None] == replay.final[:, :50]
    assert taken[booked & ~is_final].all()


def test_a_saved_policy_decides_the_same_from_windows_and_from_indices(tape: Tape, tmp_path: Path) -> None:
    model = make_model(tape, alpha=0.25, popart=True)
    model.learn(600)
    save_artifact(
        tmp_path, model.policy, tape=tape, env_config=model.native.config, limits=RiskLimits(), seed=0,
        commit="abc",
    )  # fmt: skip
    policy = load_artifact(tmp_path).policy
    assert isinstance(policy, PerpQuantilePolicy)
    assert (policy.alpha, policy.n_quantiles) == (0.25, 8)
    policy.bind(tape)
    levels = []
    for with_windows in (False, True):
        env = PerpVecEnv(tape, n_paths=6, config=model.native.config, with_windows=with_windows)
        observation, _info = env.reset(seed=4)
        levels.append(policy.predict(observation, deterministic=True)[0])
        if not with_windows:
            levels.append(model.predict(observation, deterministic=True)[0])
    np.testing.assert_array_equal(levels[0], levels[1])
    np.testing.assert_array_equal(levels[0], levels[2])


def test_forecasts_train_the_encoders_where_there_are_any(tape: Tape) -> None:
    network = replace(SMALL, forecast_bars=(2,))
    model = make_model(tape, network, forecast_coef=0.3, learning_starts=0)
    encoder = model.policy.features_extractor.market_encoder
    before = [p.detach().clone() for p in encoder.parameters()]
    model.learn(400)
    loss = model.objective.loss(model.draw(64))
    assert float(loss.forecast) > 0.0
    torch.testing.assert_close(loss.total.detach(), loss.quantile + 0.3 * loss.forecast)
    assert any((p != old).any() for p, old in zip(encoder.parameters(), before, strict=True))
    with pytest.raises(ValueError, match="forecast_coef"):
        make_model(tape, network)


def test_it_is_saved_and_loaded_as_sb3_models_are(tape: Tape, tmp_path: Path) -> None:
    model = make_model(tape)
    model.learn(400)
    model.save(tmp_path / "model.zip")
    loaded = PerpQRDQN.load(tmp_path / "model.zip", env=model.native, device="cpu")
    for name, value in model.policy.state_dict().items():
        torch.testing.assert_close(loaded.policy.state_dict()[name], value)
    loaded.learn(200)


def test_a_model_that_was_loaded_without_an_env_predicts_and_takes_one_later(
    tape: Tape, tmp_path: Path
) -> None:
    model = make_model(tape)
    model.learn(400)
    model.save(tmp_path / "model.zip")
    loaded = PerpQRDQN.load(tmp_path / "model.zip", device="cpu")
    loaded.policy.bind(tape)
    env = PerpVecEnv(tape, n_paths=6, config=model.native.config)
    observation, _info = env.reset(seed=4)
    expected, _state = model.predict(observation, deterministic=True)
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], expected)
    loaded.set_env(PerpVecEnv(tape, n_paths=4, accounts_per_path=2, config=model.native.config))
    loaded.learn(200)
    # two rounds of sixteen bars
    assert len(loaded.replay) >= 2 * 16 * 8


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
    with pytest.raises(ValueError, match="set action=ladder"):
        make_model(tape, env={"action": "band"})


def test_callbacks_and_curves_are_sb3s(tape: Tape, tmp_path: Path) -> None:
    model = make_model(tape, env={"episode_bars": 20})
    model.set_logger(configure(str(tmp_path), ["csv"]))
    steps = 0

    class StopAtLast(BaseCallback):
        def _on_step(self) -> bool:
            nonlocal steps
            steps += 1
            assert {"rewards", "dones", "infos"} <= self.locals.keys()
            return steps < 100

    model.learn(10_000, callback=StopAtLast())
    model.logger.close()
    assert (steps, model.num_timesteps) == (100, 800)
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    last = rows[-1]
    # the first episode of a path is cut short to stagger them
    assert 10.0 < float(last["rollout/ep_len_mean"]) <= 20.0
    curves = ("rollout/ep_rew_mean", "rollout/exploration_rate", "train/loss", "train/target", "time/fps")
    assert all(any(row[name] for row in rows) for name in curves)
