"""The sides of ``bench_agents.py``: QR-DQN on stretches of a replay, and sb3-contrib's on windows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sb3_contrib import QRDQN
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import DictReplayBufferSamples
from training_sides import ACCOUNTS, BARS, NETWORKS

from perpgym.agents.qrdqn import PerpQRDQN, QRDQNConfig
from perpgym.agents.replay import StretchBatch
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.envs.spaces import PORTFOLIO_NAMES
from perpgym.policies.quantile import PerpQuantilePolicy

NETWORK = NETWORKS["transformer"]
# of decisions; a window of the rival's takes 8 kB with its next
BUFFER, WARM = 20_000, 4_000
# each decision is learnt from eight times, as by sb3-contrib's defaults (32 of them every 4 steps); greedy:
# where the rival explores, it spares itself the network
CONFIG = QRDQNConfig(
    learning_rate=3e-4,
    buffer_size=BUFFER,
    learning_starts=WARM,
    batch_size=2_048,
    stretch_bars=8,
    n_step=1,
    train_freq=16,
    gradient_steps=4,
    n_quantiles=32,
    exploration_initial_eps=0.0,
    exploration_final_eps=0.0,
)


def trained_per_step(config: QRDQNConfig = CONFIG) -> float:
    """Transitions learnt from for each decision of an account."""
    return config.gradient_steps * config.batch_size / (config.train_freq * ACCOUNTS)


def stretches(tape: Tape, paths: int) -> PerpQRDQN:
    """PerpQRDQN on bar indices."""
    return PerpQRDQN(
        PerpQuantilePolicy,
        _env(tape, paths, with_windows=False),
        config=CONFIG,
        policy_kwargs=_policy_kwargs(tape),
        seed=0,
        device="cpu",
    )


def stock(tape: Tape, paths: int) -> QRDQN:
    """sb3-contrib's QR-DQN on the shortest windows that hold what the same policy reads."""
    model = QRDQN(
        PerpQuantilePolicy,  # type: ignore[arg-type]
        _env(tape, paths, with_windows=True).as_sb3(),
        learning_rate=CONFIG.learning_rate,
        buffer_size=BUFFER,
        learning_starts=WARM,
        batch_size=CONFIG.batch_size,
        gamma=CONFIG.gamma,
        train_freq=CONFIG.train_freq,
        gradient_steps=CONFIG.gradient_steps,
        target_update_interval=CONFIG.target_update_interval,
        exploration_initial_eps=0.0,
        exploration_final_eps=0.0,
        max_grad_norm=CONFIG.max_grad_norm,
        policy_kwargs={
            **_policy_kwargs(tape),
            "n_quantiles": CONFIG.n_quantiles,
            "optimizer_class": torch.optim.Adam,
        },
        seed=0,
        device="cpu",
    )
    model.policy.bind(tape)
    return model


def _env(tape: Tape, paths: int, *, with_windows: bool) -> PerpVecEnv:
    config = EnvConfig(window_bars=NETWORK.receptive_field, action="ladder")
    return PerpVecEnv(
        tape, n_paths=paths, accounts_per_path=ACCOUNTS // paths, config=config, with_windows=with_windows
    )


def _policy_kwargs(tape: Tape) -> dict[str, Any]:
    return {
        "config": NETWORK,
        "market_scaler": fit_scaler(tape.features, 0, BARS),
        "risk_scaler": fit_scaler(tape.risk, 0, BARS),
    }


class Given(DictReplayBuffer):
    """A replay that has one batch to give."""

    def __init__(self, samples: DictReplayBufferSamples) -> None:
        self.samples = samples

    def sample(self, batch_size: int, env: Any = None) -> DictReplayBufferSamples:  # type: ignore[override]
        del batch_size, env
        return self.samples


def parity(tape: Tape, paths: int, *, trained: bool) -> float:
    """Largest difference in loss, gradients and greedy levels of one update by either side."""
    ours, theirs = stretches(tape, paths), stock(tape, paths)
    ours.learn(WARM + ACCOUNTS * CONFIG.train_freq * (20 if trained else 1))
    theirs.policy.load_state_dict(ours.policy.state_dict())
    batch = ours.draw(CONFIG.batch_size)
    # sb3-contrib knows no masks
    batch = replace(batch, next_mask=torch.ones_like(batch.next_mask))
    samples = as_windows(batch, tape)
    theirs.replay_buffer = Given(samples)
    theirs._logger = configure(None, [])
    theirs.train(gradient_steps=1, batch_size=len(samples.rewards))
    loss = ours.objective.loss(batch)
    ours.descent.step(loss.total)
    their_loss = theirs.logger.name_to_value["train/loss"]
    worst = abs(float(loss.total.detach()) - their_loss) / max(1.0, abs(their_loss))
    gradients = zip(ours.quantile_net.parameters(), theirs.quantile_net.parameters(), strict=True)
    return max(worst, *(float((a.grad - b.grad).abs().max()) for a, b in gradients))  # type: ignore[operator]


def as_windows(batch: StretchBatch, tape: Tape) -> DictReplayBufferSamples:
    """The same decisions one by one, as the rival's replay would give them."""
    keep = batch.is_decision.unsqueeze(-1).expand(batch.reward.shape)  # G s K
    bar = batch.first_bar[:, None] + torch.arange(keep.shape[1])  # G s
    bars = (
        b[..., None].expand(keep.shape)[keep].numpy()
        for b in (bar, batch.first_bar[:, None] + batch.next_offset)
    )

    def seen(at: np.ndarray, state: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = at[:, None] + np.arange(1 - NETWORK.receptive_field, 1)
        size = state.shape[1] - len(PORTFOLIO_NAMES)
        return {
            "market": torch.from_numpy(tape.features[rows]),
            "risk": torch.from_numpy(tape.risk[rows]),
            "clock": torch.from_numpy(tape.clock(at[:, None])),
            "account": state[:, None, :size],
            "portfolio": state[:, size:],
        }

    now, then = bars
    discount = batch.discount[keep][:, None]
    return DictReplayBufferSamples(
        observations=seen(now, batch.state[keep]),
        actions=batch.action[keep],
        next_observations=seen(then, batch.next_state[keep]),
        dones=(discount == 0.0).float(),
        rewards=batch.reward[keep][:, None],
    )
