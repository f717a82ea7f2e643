"""Our QR-DQN on problems with a ladder for actions, learning from stretches or from single decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from judges import Eyes
from ladder import on_ladder
from play import follow_policy
from problems import Problem
from settings import NET
from training import Progress, Run, Watch, unit_scaler

from perpgym.agents.algorithms import make_algorithm
from perpgym.agents.hierarchical_qrdqn import HierarchicalQRDQNConfig
from perpgym.agents.qrdqn_config import Minibatch, QRDQNConfig
from perpgym.envs import PerpVecEnv
from perpgym.policies import PolicyConfig
from perpgym.policies.options import HierarchyConfig


@dataclass(frozen=True, kw_only=True)
class LadderSettings:
    """How our QR-DQN trains.

    Attributes:
        qrdqn, policy: algorithm and network.
        n_paths, accounts_per_path: of the batch env.
        steps: of all accounts together.
    """

    qrdqn: QRDQNConfig
    policy: PolicyConfig
    n_paths: int = 32
    accounts_per_path: int = 8
    steps: int = 1_000_000


_SETTINGS = LadderSettings(
    qrdqn=QRDQNConfig(
        learning_rate=3e-3,
        learning_rate_schedule="cosine",
        buffer_size=200_000,
        learning_starts=20_000,
        batch_size=1_024,
        # of a signal that halves in seven bars, longer ones would say the same many times
        stretch_bars=4,
        # a random level in between would cost what no good level costs
        n_step=1,
        # at 0.95 the best rule earns 0.983 of the undiscounted optimum of chaouki_linear, at 0.97 0.996
        gamma=0.97,
        train_freq=8,
        gradient_steps=16,
        # a running average over some forty updates
        target_update_interval=256,
        tau=0.03,
        n_quantiles=8,
        # what divides two levels is a few hundredths of a deviation
        huber_kappa=0.1,
        popart=True,
        exploration_fraction=0.4,
        exploration_final_eps=0.05,
    ),
    # what a trade costs has a kink at every level
    policy=replace(NET, policy_hidden=(128, 128), value_hidden=(64,)),
)
# of ``benchmarks/agent_sides.py``
TIMED_DRAW = {"batch_size": 2_048, "stretch_bars": 8}
SETTINGS: dict[str, LadderSettings] = {
    # what a level is worth more than the next is little beside what chance does to a path: it takes more
    # bars, all of them kept, fewer updates for each, and random levels to the end: n_step=1 learns from them
    "chaouki_linear": replace(
        _SETTINGS,
        qrdqn=replace(_SETTINGS.qrdqn, buffer_size=2_000_000, gradient_steps=8, exploration_final_eps=0.2),
        steps=4_000_000,
    ),
    "chaouki_limited": _SETTINGS,
    "proportional": _SETTINGS,
}


def check_ladder(problem: Problem) -> None:
    """Whether a problem has a ladder.

    Raises:
        ValueError: it has none; says which have one.
    """
    if problem.name not in SETTINGS:
        raise ValueError(f"{problem.name} has no ladder: choose --problem among {', '.join(SETTINGS)}")


def train_on_ladder(
    problem: Problem,
    *,
    seed: int,
    share: float,
    progress: Progress,
    minibatch: Minibatch = "stretches",
    draw: Mapping[str, int] | None = None,
    hierarchy: HierarchyConfig | None = None,
) -> Run:
    """Train to the end of the steps, judged by the best there is on the ladder; the last weights count.

    Args:
        problem: with a signal.
        seed: of tape, weights, exploration, minibatches and starts.
        share: of the usual steps.
        progress: told of every score.
        minibatch: what is drawn.
        draw: other ``batch_size`` and ``stretch_bars`` than usual.
        hierarchy: of a manager over the worker; None for one level.

    Raises:
        ValueError: the problem has no ladder.
    """
    check_ladder(problem)
    torch.set_num_threads(1)
    problem, settings, tape = on_ladder(problem), SETTINGS[problem.name], problem.tape(seed)
    n_paths, accounts, steps = settings.n_paths, settings.accounts_per_path, int(share * settings.steps)
    config = replace(settings.qrdqn, minibatch=minibatch, **(draw or {}))
    if hierarchy is not None:
        config = HierarchicalQRDQNConfig(
            **vars(config), hierarchy=replace(hierarchy, targets=problem.env.ladder)
        )
    model = make_algorithm(
        config,
        PerpVecEnv(tape, n_paths=n_paths, accounts_per_path=accounts, config=problem.env, seed=seed),
        policy=settings.policy,
        market_scaler=unit_scaler(tape.features.shape[2]),
        risk_scaler=unit_scaler(tape.risk.shape[2]),
        seed=seed,
        device="cpu",
    )
    agent = follow_policy(model.trained)
    watch = Watch(lambda: problem.judge(agent, Eyes("ladder")), steps, 20, progress)
    model.learn(steps, callback=watch)
    watch.look()
    return watch.run
