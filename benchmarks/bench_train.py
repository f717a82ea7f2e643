"""Environment steps per second of PerpPPO beside stock SB3 PPO with the same network on windows.

    python benchmarks/bench_train.py

Setting of every figure: 16 features, width 32, 2 layers, 4 heads, receptive field 63, policy and value heads
64-64, 64 accounts x 128 steps, 4 epochs, minibatch 2,048 on both sides, one thread, median of interleaved
rounds. A round is one rollout and its update; ten of PerpPPO's, which are short. Both sides step the same
env and train the same policy class with the same optimiser; the rival reads (63, 16) windows, PerpPPO reads
bar indices. Parity comes first: one stock update on windows and one of PerpPPO on indices must agree in
losses, gradients and chosen actions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure

from perpgym.agents.ppo import PerpPPO, PPOConfig
from perpgym.data.contract import Contract
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import PerpVecEnv
from perpgym.policies import PerpActorCriticPolicy, PolicyConfig

BARS, FEATURES, RISK, HOUR_MS = 20_000, 16, 7, 3_600_000
ACCOUNTS, STEPS, TOLERANCE = 64, 128, 1e-4
CONFIG = PPOConfig(n_steps=STEPS, batch_size=2_048, n_epochs=4)


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


def policy_kwargs(tape: Tape, risk_hidden: int) -> dict[str, Any]:
    """The network of every figure; both sides get it."""
    return {
        "config": PolicyConfig(risk_hidden=risk_hidden),
        "market_scaler": fit_scaler(tape.features, 0, BARS),
        "risk_scaler": fit_scaler(tape.risk, 0, BARS),
    }


def encode_once(tape: Tape, paths: int, risk_hidden: int, config: PPOConfig = CONFIG) -> PerpPPO:
    """PerpPPO on bar indices."""
    env = PerpVecEnv(tape, n_paths=paths, accounts_per_path=ACCOUNTS // paths)
    kwargs = policy_kwargs(tape, risk_hidden)
    return PerpPPO(PerpActorCriticPolicy, env, config=config, policy_kwargs=kwargs, seed=0, device="cpu")


def stock(tape: Tape, paths: int, risk_hidden: int, *, batch_size: int = 2_048, n_epochs: int = 4) -> PPO:
    """Stable-Baselines3's PPO on windows of the same env, with the same policy class."""
    env = PerpVecEnv(tape, n_paths=paths, accounts_per_path=ACCOUNTS // paths, with_windows=True)
    return PPO(
        PerpActorCriticPolicy,
        env.as_sb3(),
        n_steps=STEPS,
        batch_size=batch_size,
        n_epochs=n_epochs,
        policy_kwargs=policy_kwargs(tape, risk_hidden),
        seed=0,
        device="cpu",
    )


def parity(tape: Tape, paths: int, risk_hidden: int, *, trained: bool) -> float:
    """Largest difference in loss, gradients and actions of one full-batch update by either side."""
    config = PPOConfig(n_steps=STEPS, batch_size=ACCOUNTS * STEPS, n_epochs=1, learning_rate=3e-3)
    ours = encode_once(tape, paths, risk_hidden, config)
    ours.learn(ACCOUNTS * STEPS * (6 if trained else 1))
    theirs = stock(tape, paths, risk_hidden, batch_size=ACCOUNTS * STEPS, n_epochs=1)
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
    rows = bars[..., None] + np.arange(-62, 1)  # T N R

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


def one_round(model: PPO) -> Callable[[], float]:
    """Environment steps per second over some rollouts and their updates; more of the short ones."""
    steps = ACCOUNTS * STEPS * (10 if isinstance(model, PerpPPO) else 1)

    def run() -> float:
        started = time.perf_counter()
        model.learn(steps, reset_num_timesteps=False)
        return steps / (time.perf_counter() - started)

    return run


def measure(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Interleaved rounds after one of warm-up."""
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("timing", total=(rounds + 1) * len(contestants))
        for number in range(rounds + 1):
            for name, run in contestants.items():
                progress.update(task, description=name)
                speed = run()
                if number > 0:
                    speeds[name].append(speed)
                progress.advance(task)
    return speeds


def main() -> None:
    """Parity, then the figures; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--with-risk-lstm", action="store_true", help="also the product's network: risk LSTM on"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, tape = Console(), random_walk_tape()
    settings = {"": 0, "_risk_lstm": 16} if arguments.with_risk_lstm else {"": 0}
    figures: dict[str, float] = {}
    for suffix, hidden in settings.items():
        for paths in (8, 64):
            for trained in (False, True):
                worst = parity(tape, paths, hidden, trained=trained)
                console.print(
                    f"parity, {paths} paths, {'trained' if trained else 'fresh'} weights{suffix}: {worst:.1e}"
                )
                if worst > TOLERANCE:
                    raise SystemExit(
                        f"stretches and windows differ by {worst:.1e}, allowed are {TOLERANCE:g}"
                    )
        contestants = {
            f"{name} {paths}x{ACCOUNTS // paths}": one_round(build(tape, paths, hidden))
            for paths in (8, 64)
            for name, build in (("PerpPPO", encode_once), ("stock PPO", stock))
        }
        speeds = measure(contestants, arguments.rounds)
        console.print(_table(speeds))
        for figure, layout in (("transformer_vs_sb3", "8x8"), ("transformer_vs_sb3_unshared", "64x1")):
            ours, theirs = (statistics.median(speeds[f"{who} {layout}"]) for who in ("PerpPPO", "stock PPO"))
            figures[f"{figure}{suffix}"] = round(ours / theirs, 2)
            figures[f"{figure}{suffix}_steps_per_s"] = round(ours)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    machine = f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread"
    console.print(f"commit {commit.stdout.strip() or 'unknown'}; {machine}")
    print(json.dumps(figures))


def _table(speeds: dict[str, list[float]]) -> Table:
    table = Table("", "steps/s, median", "lowest", "highest")
    for name, values in speeds.items():
        table.add_row(name, f"{statistics.median(values):,.0f}", f"{min(values):,.0f}", f"{max(values):,.0f}")
    return table


if __name__ == "__main__":
    main()
