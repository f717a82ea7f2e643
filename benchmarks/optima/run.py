"""Train agents on problems whose best answer is known, and print what share of it they reach.

    python benchmarks/optima/run.py                                  # every problem, our agents, five seeds
    python benchmarks/optima/run.py --problem gp_h --agents target band stock --seeds 5
    python benchmarks/optima/run.py --quick                          # two seeds, a tenth of the steps

The last line is JSON: the share by problem, each with the action chosen for it beforehand
(``settings.OWN_ACTION``) and any other agent by its name too (``gp_h hppo``), and ``chaouki_linear_score``,
the mean of the paper's ten test episodes. Seconds are processor time of one thread, less what judging on the
way took. ``docs/algorithms/known_optima.md`` explains.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import numpy as np
from contenders import AGENTS, check_agent, count_failures, train_agent
from judges import Score
from problems import PROBLEMS, Problem
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from settings import OWN_ACTION
from summary import HEADER, row
from training import Run

from perpgym.evaluation.seeds import interquartile_mean

_QUICK_SHARE, _QUICK_SEEDS = 0.1, 2


def main() -> None:
    arguments = _arguments()
    seeds = _QUICK_SEEDS if arguments.quick else arguments.seeds
    share = _QUICK_SHARE if arguments.quick else arguments.share
    names: Sequence[str] = arguments.problem or tuple(PROBLEMS)
    played: dict[str, list[Run]] = {}
    lines: list[str] = []
    notes: list[str] = []
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[score]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as bar:
        problems = {name: PROBLEMS[name]() for name in names}
        asked = {name: arguments.agents or (OWN_ACTION[name],) for name in names}
        for name, agents in asked.items():
            for agent in agents:
                check_agent(agent, problems[name])
        for name, problem in problems.items():
            for agent in asked[name]:
                runs = [_seed(bar, agent, problem, seed, share) for seed in range(seeds)]
                if failures := count_failures(runs):
                    notes.append(f"{name} {agent} counts as 0: it fails {failures}")
                lines.append(row(name, agent, runs))
                console.print(lines[-1], soft_wrap=True, markup=False)
                played[name if agent == OWN_ACTION[name] else f"{name} {agent}"] = runs
    print(HEADER, *lines, *notes, sep="\n")
    print(json.dumps(_results(played)))


def _seed(bar: Progress, agent: str, problem: Problem, seed: int, share: float) -> Run:
    task = bar.add_task(f"{problem.name} {agent} seed {seed}", score="")

    def told(done: int, steps: int, score: Score) -> None:
        bar.update(task, completed=min(done, steps), total=steps, score=f"{score.fraction:.4f}")

    run = train_agent(agent, problem, seed=seed, share=share, progress=told)
    bar.remove_task(task)
    return run


def _results(played: dict[str, list[Run]]) -> dict[str, float]:
    """The share of the optimum by problem, and the linear problem's score."""
    results = {
        name: interquartile_mean([run.score.fraction for run in runs]).mean for name, runs in played.items()
    }
    if "chaouki_linear" in played:
        results["chaouki_linear_score"] = float(
            np.mean([run.score.value for run in played["chaouki_linear"]])
        )
    return {name: round(value, 6) for name, value in results.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Share of the known optimum that agents reach.")
    parser.add_argument("--problem", nargs="+", choices=tuple(PROBLEMS), help="all by default")
    parser.add_argument("--agents", nargs="+", choices=tuple(AGENTS), help="each problem's own action")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="of the usual steps")
    parser.add_argument("--quick", action="store_true", help="two seeds, a tenth of the steps")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
