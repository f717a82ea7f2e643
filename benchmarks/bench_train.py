"""Environment steps per second of PerpPPO beside stock SB3 PPO with the same network on windows.

    python benchmarks/bench_train.py
    python benchmarks/bench_train.py --sweep     # against width, reach, accounts a path and threads
    python benchmarks/bench_train.py --profile   # where the time goes

Setting of every figure: 16 features, width 32, 2 layers, 4 heads, receptive field 63 (the MLP's is 1), policy
and value heads 64-64, 64 accounts x 128 steps, 4 epochs, minibatch 2,048 on both sides, one thread, median of
interleaved rounds; 8 paths x 8 accounts, ``unshared`` 64 x 1. A round is one rollout and its update; ten of
PerpPPO's, which are short. Both sides step the same env and train the same policy class with the same
optimiser; the rival reads windows just as long as the policy's reach, PerpPPO reads bar indices. Parity comes
first: one stock update on windows and one of PerpPPO on indices must agree in losses, gradients and actions.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table
from rounds import machine, measure, speed_table
from stable_baselines3 import PPO
from training_costs import SWEEPS, bytes_per_step, pieces
from training_sides import NETWORKS, STEPS, encode_once, parity, random_walk_tape, stock

from perpgym.agents.ppo import PerpPPO
from perpgym.data.tape import Tape

TOLERANCE = 1e-4
# figure: network and paths
FIGURES = {
    "transformer_vs_sb3": ("transformer", 8),
    "transformer_vs_sb3_unshared": ("transformer", 64),
    "lstm_vs_sb3": ("lstm", 8),
    "mlp_vs_sb3": ("mlp", 8),
}
WITH_RISK_LSTM = {"transformer_risk_lstm_vs_sb3": ("transformer_risk_lstm", 8)}


def one_round(model: PPO) -> Callable[[], float]:
    """Environment steps per second over some rollouts and their updates; more of the short ones."""
    steps = model.n_envs * STEPS * (10 if isinstance(model, PerpPPO) else 1)

    def run() -> float:
        started = time.perf_counter()
        model.learn(steps, reset_num_timesteps=False)
        return steps / (time.perf_counter() - started)

    return run


def check_parity(console: Console, tape: Tape, figures: dict[str, tuple[str, int]]) -> None:
    """Both sides of every figure compute the same, with fresh and with trained weights.

    Raises:
        SystemExit: they do not.
    """
    for network, paths in figures.values():
        for trained in (False, True):
            worst = parity(tape, NETWORKS[network], paths, trained=trained)
            weights = "trained" if trained else "fresh"
            console.print(f"parity, {network}, {paths} paths, {weights} weights: {worst:.1e}")
            if not worst <= TOLERANCE:
                raise SystemExit(f"stretches and windows differ by {worst:.1e}, allowed are {TOLERANCE:g}")


def ratios(console: Console, tape: Tape, wanted: dict[str, tuple[str, int]], rounds: int) -> dict[str, float]:
    """PerpPPO over stock PPO, and PerpPPO's own steps per second."""
    contestants = {}
    for figure, (network, paths) in wanted.items():
        for side, build in (("PerpPPO", encode_once), ("stock PPO", stock)):
            contestants[f"{figure} {side}"] = one_round(build(tape, NETWORKS[network], paths))
    speeds = measure(contestants, rounds)
    console.print(speed_table(speeds))
    found: dict[str, float] = {}
    for figure in wanted:
        ours, theirs = (statistics.median(speeds[f"{figure} {side}"]) for side in ("PerpPPO", "stock PPO"))
        found[figure] = round(ours / theirs, 2)
        found[f"{figure}_steps_per_s"] = round(ours)
    return found


def sweep(console: Console, tape: Tape, rounds: int) -> None:
    """PerpPPO's steps per second against one size at a time, all else as in ``transformer_vs_sb3``."""
    for title, entrants in SWEEPS.items():
        contestants = {}
        for name, (network, paths, accounts, threads) in entrants.items():
            run = one_round(encode_once(tape, network, paths, accounts=accounts))
            contestants[name] = _with_threads(run, threads)
        console.print(speed_table(measure(contestants, rounds), title))


def _with_threads(run: Callable[[], float], threads: int) -> Callable[[], float]:
    def on_threads() -> float:
        torch.set_num_threads(threads)
        try:
            return run()
        finally:
            torch.set_num_threads(1)

    return on_threads


def profile(console: Console, tape: Tape) -> None:
    """Where a rollout and its update spend their time."""
    for figure, (network, paths) in FIGURES.items():
        model = encode_once(tape, NETWORKS[network], paths)
        table = Table(figure, "ms a rollout and update", "share")
        found = pieces(model)
        for name, milliseconds in found.items():
            table.add_row(name, f"{milliseconds:.1f}", f"{milliseconds / found['all']:.0%}")
        console.print(table)


def main() -> None:
    """Parity, then the figures; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--with-risk-lstm", action="store_true", help="also the product's network: risk LSTM on"
    )
    parser.add_argument("--sweep", action="store_true", help="PerpPPO alone, against sizes and threads")
    parser.add_argument("--profile", action="store_true", help="where the time goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, tape = Console(), random_walk_tape()
    if arguments.sweep or arguments.profile:
        if arguments.sweep:
            sweep(console, tape, arguments.rounds)
        if arguments.profile:
            profile(console, tape)
        console.print(machine())
        return
    wanted = FIGURES | (WITH_RISK_LSTM if arguments.with_risk_lstm else {})
    check_parity(console, tape, wanted)
    figures = ratios(console, tape, wanted, arguments.rounds)
    figures["bytes_per_stored_step"] = round(bytes_per_step(encode_once(tape, NETWORKS["transformer"], 8)), 1)
    console.print(machine())
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
