"""The agents that are compared, by name; one that is added to ``AGENTS`` can be asked for by the runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Protocol

from problems import Problem
from qrdqn import TIMED_DRAW, check_ladder, train_on_ladder
from settings import ABLATIONS, OWN_ACTION, settings_of
from stock import STOCK_STEPS, train_stock
from training import Progress, Run, Settings, train

from perpgym.agents.hierarchical_config import HierarchicalPPOConfig
from perpgym.envs.actions import ActionKind
from perpgym.policies.options import HierarchyConfig


class Trainer(Protocol):
    """Trains one seed of an agent."""

    def __call__(self, problem: Problem, *, seed: int, share: float, progress: Progress) -> Run:
        """Train.

        Args:
            problem: what to learn.
            seed: of tape, weights and everything else.
            share: of the agent's usual steps.
            progress: told of every score on the way.
        """


def _ours(settings_for: Callable[[Problem], Settings]) -> Trainer:
    """Our PPO with the settings that a problem gets."""

    def trainer(problem: Problem, *, seed: int, share: float, progress: Progress) -> Run:
        settings = settings_for(problem)
        settings = replace(settings, steps=int(share * settings.steps))
        env = replace(problem.env, action=settings.action)
        return train(problem.tape(seed), env, problem.judge, settings, seed=seed, progress=progress)

    return trainer


def _acting(action: ActionKind) -> Trainer:
    return _ours(lambda problem: settings_of(problem.name, action))


def _ablated(change: Callable[[Settings], Settings]) -> Trainer:
    """With the problem's own action and one setting changed."""
    return _ours(lambda problem: change(settings_of(problem.name, OWN_ACTION.get(problem.name, "target"))))


def _realised(problem: Problem, *, seed: int, share: float, progress: Progress) -> Run:
    return AGENTS["target"](problem.realised(), seed=seed, share=share, progress=progress)


def _stock(problem: Problem, *, seed: int, share: float, progress: Progress) -> Run:
    env, steps = replace(problem.env, action="target"), int(share * STOCK_STEPS)
    return train_stock(problem.tape(seed), env, problem.judge, steps=steps, seed=seed, progress=progress)


_WORKER_FIRST = ("carry_pays", "carry_does_not_pay")
# what is best lies at the end of a worker's range: exploration that is cut off there pulls its mean away
_WHOLE_RANGE = ("almgren_chriss",)


def _hierarchical(problem: Problem) -> Settings:
    """Two levels with the flat agent's action, settings and steps."""
    settings = settings_of(problem.name, OWN_ACTION.get(problem.name, "target"))
    flat = {f.name: getattr(settings.ppo, f.name) for f in fields(settings.ppo)}
    reach = 2.0 if problem.name in _WHOLE_RANGE else 1.0
    hierarchy = HierarchyConfig(budgets=(1.0,), min_bars=2, max_bars=6, reach=reach)
    # a manager that learns from the first step settles where exploration is cut off and so costs the least
    warmup = int(0.3 * settings.steps) if problem.name in _WORKER_FIRST else 0
    ppo = HierarchicalPPOConfig(
        **flat,
        hierarchy=hierarchy,
        # as of the flat agent where it learns a target: noise is large, and the manager needs no bonus to try
        manager_path_baseline=settings.ppo.path_baseline,
        manager_ent_coef=0.0,
        warmup_steps=warmup,
    )
    return replace(settings, ppo=ppo)


AGENTS: dict[str, Trainer] = {
    "target": _acting("target"),
    "band": _acting("band"),
    "stock": _stock,
    "hppo": _ours(_hierarchical),
    # learns from the returns that came, with all their noise
    "realised": _realised,
    # QR-DQN, judged by the best on its ladder
    "ladder": train_on_ladder,
    # what bench_agents.py draws and times, and as many decisions drawn one by one
    "ladder_stretches": partial(train_on_ladder, draw=TIMED_DRAW),
    "ladder_decisions": partial(train_on_ladder, draw=TIMED_DRAW, minibatch="decisions"),
    "ladder_hierarchical": partial(
        train_on_ladder, hierarchy=HierarchyConfig(budgets=(1.0,), min_bars=2, max_bars=6)
    ),
    **{name: _ablated(change) for name, change in ABLATIONS.items()},
}


def check_agent(name: str, problem: Problem) -> None:
    """Before hours of training: whether an agent can play a problem.

    Raises:
        ValueError: it cannot; says which it can.
    """
    if name == "realised":
        problem.realised()
    if name.startswith("ladder"):
        check_ladder(problem)


def train_agent(name: str, problem: Problem, *, seed: int, share: float, progress: Progress) -> Run:
    """One seed of one agent on one problem, and the conditions that it fails."""
    trainer = AGENTS[name]
    run = trainer(problem, seed=seed, share=share, progress=progress)
    for condition in problem.conditions:
        if trainer(condition, seed=seed, share=share, progress=progress).score.fraction < 1.0:
            run.failed += (condition.name,)
    return run


def count_failures(runs: Sequence[Run]) -> str:
    """A condition that any seed fails makes the fraction of all of them 0; returns what failed how often.

    An interquartile mean would leave out one seed of five.
    """
    failed = Counter(name for run in runs for name in run.failed)
    if failed:
        for run in runs:
            run.score = run.score._replace(fraction=0.0)
    return ", ".join(f"{name} with {count} of {len(runs)} seeds" for name, count in failed.items())
