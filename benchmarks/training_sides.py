"""The two sides of ``bench_train.py``: one network and one env, fed by bar indices and by windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure

from perpgym.agents.ppo import PerpPPO, PPOConfig
from perpgym.data.contract import Contract
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.policies import PerpActorCriticPolicy, PolicyConfig

BARS, FEATURES, RISK, HOUR_MS = 20_000, 16, 7, 3_600_000
ACCOUNTS, STEPS = 64, 128
CONFIG = PPOConfig(n_steps=STEPS, batch_size=2_048, n_epochs=4)
# width 32, 2 layers, 4 heads; the transformer and the LSTM reach 63 bars, the MLP one
NETWORKS = {
    "transformer": PolicyConfig(risk_hidden=0),
    "lstm": PolicyConfig(encoder="lstm", n_layers=2, risk_hidden=0),
    "mlp": PolicyConfig(encoder="mlp", n_layers=2, risk_hidden=0),
    "transformer_risk_lstm": PolicyConfig(risk_hidden=16),
}


def random_walk_tape() -> Tape:
    """A seeded random walk with 16 columns of noise: what the numbers say does not matter here."""
    rng = np.random.default_rng(0)
    close = 30_000.0 * np.exp(np.cumsum(rng.normal(0.0, 0.005, BARS)))
    opens = np.concatenate(([30_000.0], close[:-1]))
    last = np.stack((opens, np.maximum(opens, close), np.minimum(opens, close), close), axis=1)[:, None]
    open_time_ms = (438_291 + np.arange(BARS, dtype=np.int64)) * HOUR_MS
    stamps = open_time_ms[open_time_ms % (8 * HOUR_MS) == 0][1:]
    edges = np.append(open_time_ms, open_time_ms[-1] + HOUR_MS)
    return Tape(
        contracts=(Contract(symbol="BTC/USDT:USDT"),),
        bar_ms=HOUR_MS,
        open_time_ms=open_time_ms,
        last=last,
        mark=last,
        volume=np.full((BARS, 1), 5_000.0),
        sigma_per_bar=np.full((BARS, 1), 0.005),
        stamp_start=np.searchsorted(stamps, edges, side="right")[None],
        stamp_time_ms=stamps,
        stamp_rate=rng.normal(0.0, 1e-4, stamps.size),
        features=rng.standard_normal((BARS, 1, FEATURES)).astype(np.float32),
        risk=rng.standard_normal((BARS, 1, RISK)).astype(np.float32),
        feature_names=tuple(f"feature_{i}" for i in range(FEATURES)),
        risk_names=tuple(f"risk_{i}" for i in range(RISK)),
        first_valid_bar=0,
        mark_rules=("mark",),
        source="a random walk",
    )


def encode_once(
    tape: Tape, network: PolicyConfig, paths: int, config: PPOConfig = CONFIG, accounts: int = ACCOUNTS
) -> PerpPPO:
    """PerpPPO on bar indices."""
    env = _env(tape, network, paths, accounts, with_windows=False)
    kwargs = _policy_kwargs(tape, network)
    return PerpPPO(PerpActorCriticPolicy, env, config=config, policy_kwargs=kwargs, seed=0, device="cpu")


def stock(
    tape: Tape, network: PolicyConfig, paths: int, *, batch_size: int = 2_048, n_epochs: int = 4
) -> PPO:
    """Stable-Baselines3's PPO on the shortest windows that hold what the same policy reads."""
    env = _env(tape, network, paths, ACCOUNTS, with_windows=True)
    return PPO(
        PerpActorCriticPolicy,
        env.as_sb3(),
        n_steps=STEPS,
        batch_size=batch_size,
        n_epochs=n_epochs,
        policy_kwargs=_policy_kwargs(tape, network),
        seed=0,
        device="cpu",
    )


def _env(tape: Tape, network: PolicyConfig, paths: int, accounts: int, *, with_windows: bool) -> PerpVecEnv:
    config = EnvConfig(window_bars=network.receptive_field)
    per_path = accounts // paths
    return PerpVecEnv(
        tape, n_paths=paths, accounts_per_path=per_path, config=config, with_windows=with_windows
    )


def _policy_kwargs(tape: Tape, network: PolicyConfig) -> dict[str, Any]:
    return {
        "config": network,
        "market_scaler": fit_scaler(tape.features, 0, BARS),
        "risk_scaler": fit_scaler(tape.risk, 0, BARS),
    }


def parity(tape: Tape, network: PolicyConfig, paths: int, *, trained: bool) -> float:
    """Largest difference in loss, gradients and actions of one full-batch update by either side."""
    config = PPOConfig(n_steps=STEPS, batch_size=ACCOUNTS * STEPS, n_epochs=1, learning_rate=3e-3)
    ours = encode_once(tape, network, paths, config)
    ours.learn(ACCOUNTS * STEPS * (6 if trained else 1))
    theirs = stock(tape, network, paths, batch_size=ACCOUNTS * STEPS, n_epochs=1)
    ours.collect_rollouts(ours.env, ours._init_callback(None), ours.rollout_buffer, STEPS)
    theirs.policy.load_state_dict(ours.policy.state_dict())
    windows = copy_rollout(ours, theirs, tape)
    with torch.no_grad():
        indices = {k: windows[k] for k in ("account", "portfolio")} | {"bar": windows["bar"]}
        chosen = [face.policy._predict(obs, True) for face, obs in ((ours, indices), (theirs, windows))]
    worst = float((chosen[0] - chosen[1]).abs().max())
    ours._logger = theirs._logger = configure(None, [])
    ours.train()
    theirs.train()
    ours_loss, their_loss = (m.logger.name_to_value["train/loss"] for m in (ours, theirs))
    worst = max(worst, abs(ours_loss - their_loss) / max(1.0, abs(their_loss)))
    gradients = zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True)
    return max(worst, *(float((a.grad - b.grad).abs().max()) for a, b in gradients))  # type: ignore[operator]


def copy_rollout(ours: PerpPPO, theirs: PPO, tape: Tape) -> dict[str, torch.Tensor]:
    """Give the rival's buffer the same rollout as windows; returns all its observations and their bars."""
    mine, buffer = ours.rollout_buffer, theirs.rollout_buffer
    bars = np.zeros((mine.n_paths, STEPS), np.int64)
    for path, first_step, first_bar in mine.segments:
        bars[path, first_step:] = first_bar + np.arange(STEPS - first_step)
    bars = np.repeat(bars.T, mine.n_accounts, axis=1)  # T N
    reach = ours.policy.receptive_field
    rows = bars[..., None] + np.arange(1 - reach, 1)  # T N R

    def by_step(tensor: torch.Tensor) -> np.ndarray:
        return tensor.transpose(0, 1).flatten(1, 2).numpy()

    state = by_step(mine.state[:, :-1])
    buffer.reset()
    buffer.observations = {
        "market": tape.features[rows],
        "risk": tape.risk[rows],
        "clock": tape.clock(bars)[..., None],
        "account": state[..., : mine.account_size][:, :, None],
        "portfolio": state[..., mine.account_size :],
    }
    observations = {k: torch.from_numpy(v).flatten(0, 1) for k, v in buffer.observations.items()}
    observations["bar"] = torch.from_numpy(bars.reshape(-1, 1))
    buffer.actions, buffer.log_probs = by_step(mine.actions), by_step(mine.log_prob)
    buffer.values, buffer.returns = by_step(mine.values[:, :-1]), by_step(mine.returns)
    buffer.advantages = by_step(mine.advantages).copy()
    buffer.full = True
    return observations
