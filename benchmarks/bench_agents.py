"""What our agents beyond PPO learn from in a second, beside their rivals.

    python benchmarks/bench_agents.py

``qrdqn_vs_sb3``: transitions trained a second by PerpQRDQN over sb3-contrib's QR-DQN with the same network on
windows. 64 accounts on 8 paths (``unshared``: on 64), 16 features, width 32, 2 layers, 4 heads, receptive
field 63, five levels, 32 quantiles; batches of 2,048, four updates for every 16 bars of all accounts, one
step to the bootstrap, one thread, median of interleaved rounds in processor time. A round is acting, booking,
drawing and updating. Parity comes first: one update of either side on the same decisions must agree in loss
and gradients.

``hppo_vs_ppo``: account steps a second of HierarchicalPPO over PerpPPO, rollout and update, same network, env
and settings, options of 4 to 12 bars; with the multi-head actions, and (``_band``) with the no-trade band.
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
from agent_sides import CONFIG, parity, stock, stretches, trained_per_step
from hierarchy_sides import side
from rich.console import Console
from rounds import machine, measure, speed_table
from stable_baselines3.common.base_class import BaseAlgorithm
from training_sides import ACCOUNTS, random_walk_tape

from perpgym.agents.path_algorithm import PathAlgorithm
from perpgym.agents.qrdqn import PerpQRDQN
from perpgym.data.tape import Tape
from perpgym.envs.actions import ActionKind

TOLERANCE = 1e-4
# figure: paths of the 64 accounts
FIGURES = {"qrdqn_vs_sb3": 8, "qrdqn_vs_sb3_unshared": 64}


def one_round(model: BaseAlgorithm) -> Callable[[], float]:
    """Transitions trained a second, once learning has started; more rounds of updates of the short ones."""
    model.learn(CONFIG.learning_starts + ACCOUNTS * CONFIG.train_freq)
    steps = ACCOUNTS * CONFIG.train_freq * (20 if isinstance(model, PerpQRDQN) else 1)

    def run() -> float:
        started = time.process_time()
        model.learn(steps, reset_num_timesteps=False)
        return trained_per_step() * steps / (time.process_time() - started)

    return run


def qrdqn(console: Console, tape: Tape, rounds: int) -> dict[str, float]:
    """PerpQRDQN over sb3-contrib's, and its own transitions a second.

    Raises:
        SystemExit: the two sides do not compute the same.
    """
    contestants = {}
    for figure, paths in FIGURES.items():
        for trained in (False, True):
            worst = parity(tape, paths, trained=trained)
            weights = "trained" if trained else "fresh"
            console.print(f"parity, {paths} paths, {weights} weights: {worst:.1e}")
            if not worst <= TOLERANCE:
                raise SystemExit(f"stretches and windows differ by {worst:.1e}, allowed are {TOLERANCE:g}")
        contestants[f"{figure} PerpQRDQN"] = one_round(stretches(tape, paths))
        contestants[f"{figure} sb3-contrib"] = one_round(stock(tape, paths))
    speeds = measure(contestants, rounds)
    console.print(speed_table(speeds, unit="transitions/s"))
    found: dict[str, float] = {}
    for figure in FIGURES:
        ours, theirs = (
            statistics.median(speeds[f"{figure} {side}"]) for side in ("PerpQRDQN", "sb3-contrib")
        )
        found[figure] = round(ours / theirs, 2)
        found[f"{figure}_transitions_per_s"] = round(ours)
    return found


def steps_per_second(model: PathAlgorithm) -> Callable[[], float]:
    """Account steps a second of two rollouts and their updates."""
    steps = 2 * model.steps_per_rollout

    def run() -> float:
        started = time.process_time()
        model.learn(steps, reset_num_timesteps=False)
        return steps / (time.process_time() - started)

    return run


def hppo(console: Console, tape: Tape, rounds: int) -> dict[str, float]:
    """HierarchicalPPO over PerpPPO."""
    figures: dict[str, ActionKind] = {"hppo_vs_ppo": "heads", "hppo_vs_ppo_band": "band"}
    contestants = {
        f"{figure} {'two levels' if levels else 'one level'}": steps_per_second(
            side(tape, action, is_hierarchical=levels)
        )
        for figure, action in figures.items()
        for levels in (True, False)
    }
    speeds = measure(contestants, rounds)
    console.print(speed_table(speeds))
    middle = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        figure: round(middle[f"{figure} two levels"] / middle[f"{figure} one level"], 2) for figure in figures
    }


def main() -> None:
    """The figures; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, tape = Console(), random_walk_tape()
    figures = hppo(console, tape, arguments.rounds) | qrdqn(console, tape, arguments.rounds)
    console.print(machine())
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
