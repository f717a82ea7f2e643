"""Train agents on problems whose best answer is known, and print what share of it they reach.

    python benchmarks/optima/run.py                                  # every problem, our agents, five seeds
    python benchmarks/optima/run.py --problem gp_h --agents target band stock --seeds 5
    python benchmarks/optima/run.py --quick                          # two seeds, a tenth of the steps

The last line is JSON: the share by problem, each with the action chosen for it beforehand
(``settings.OWN_ACTION``), and ``chaouki_linear_score``, the mean of the paper's ten test episodes. Seconds
are processor time of one thread, less what judging on the way took. ``docs/algorithms/known_optima.md``
explains.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from judges import Score
from problems import PROBLEMS, Problem
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from settings import ABLATIONS, OWN_ACTION, settings_of
from stock import STOCK_STEPS, train_stock
from summary import HEADER, interquartile_mean, row
from training import Run, train

# our PPO with either action, the control, and our PPO with one setting changed
_AGENTS = ("target", "band", "stock", *ABLATIONS)
_QUICK_SHARE, _QUICK_SEEDS = 0.1, 2

Told = Callable[[int, int, Score], None]


def train_agent(agent: str, problem: Problem, *, seed: int, share: float, told: Told) -> Run:
    """One seed of one agent on one problem; a condition that it fails makes the fraction 0.

    Args:
        agent: kind of agent.
        problem: what to learn.
        seed: of the run.
        share: of the usual steps.
        told: progress.
    """
    run = _train_one(agent, problem, seed=seed, share=share, told=told)
    for condition in problem.conditions:
        passed = _train_one(agent, condition, seed=seed, share=share, told=told)
        run.score = run.score._replace(fraction=run.score.fraction * passed.score.fraction)
    return run


def _train_one(agent: str, problem: Problem, *, seed: int, share: float, told: Told) -> Run:
    tape = problem.tape(seed)
    if agent == "stock":
        env = replace(problem.env, action="target")
        steps = int(share * STOCK_STEPS)
        return train_stock(tape, env, problem.judge, steps=steps, seed=seed, progress=told)
    if agent in ABLATIONS:
        settings = ABLATIONS[agent](settings_of(problem.name, OWN_ACTION.get(problem.name, "target")))
    else:
        settings = settings_of(problem.name, "band" if agent == "band" else "target")
    settings = replace(settings, steps=int(share * settings.steps))
    env = replace(problem.env, action=settings.action)
    return train(tape, env, problem.judge, settings, seed=seed, progress=told)


def main() -> None:
    arguments = _arguments()
    seeds = _QUICK_SEEDS if arguments.quick else arguments.seeds
    share = _QUICK_SHARE if arguments.quick else arguments.share
    names: Sequence[str] = arguments.problem or tuple(PROBLEMS)
    own: dict[str, list[Run]] = {}
    lines: list[str] = []
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[score]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as bar:
        for name in names:
            problem = PROBLEMS[name]()
            agents: Sequence[str] = arguments.agents or (OWN_ACTION[name],)
            for agent in agents:
                runs = [_seed(bar, agent, problem, seed, share) for seed in range(seeds)]
                lines.append(row(name, agent, runs))
                console.print(lines[-1], soft_wrap=True, markup=False)
                if agent == OWN_ACTION[name]:
                    own[name] = runs
    print(HEADER, *lines, sep="\n")
    print(json.dumps(_results(own)))


def _seed(bar: Progress, agent: str, problem: Problem, seed: int, share: float) -> Run:
    task = bar.add_task(f"{problem.name} {agent} seed {seed}", score="")

    def told(done: int, steps: int, score: Score) -> None:
        bar.update(task, completed=min(done, steps), total=steps, score=f"{score.fraction:.4f}")

    run = train_agent(agent, problem, seed=seed, share=share, told=told)
    bar.remove_task(task)
    return run


def _results(own: dict[str, list[Run]]) -> dict[str, float]:
    """The share of the optimum by problem, and the linear problem's score."""
    results = {
        name: interquartile_mean([run.score.fraction for run in runs]).mean for name, runs in own.items()
    }
    if "chaouki_linear" in own:
        results["chaouki_linear_score"] = float(np.mean([run.score.value for run in own["chaouki_linear"]]))
    return {name: round(value, 6) for name, value in results.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Share of the known optimum that agents reach.")
    parser.add_argument("--problem", nargs="+", choices=tuple(PROBLEMS), help="all by default")
    parser.add_argument("--agents", nargs="+", choices=_AGENTS, help="by default each problem's own action")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="of the usual steps")
    parser.add_argument("--quick", action="store_true", help="two seeds, a tenth of the steps")
    return parser.parse_args()


if __name__ == "__main__":
    main()
