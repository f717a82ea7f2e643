"""Settings of PerpQRDQN, with what each may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from perpgym.agents.path_algorithm import AgentConfig
from perpgym.agents.schedule import Shape

Minibatch = Literal["stretches", "decisions"]


@dataclass(frozen=True, kw_only=True)
class QRDQNConfig(AgentConfig):
    """Settings of the algorithm; names and meanings are sb3-contrib's where it has them.

    Attributes:
        learning_rate: of Adam, at the beginning of the run.
        learning_rate_schedule: ``constant``, or ``linear`` or ``cosine`` to zero over ``total_timesteps``.
        buffer_size: decisions of accounts that the replay holds.
        learning_starts: decisions before the first update.
        batch_size: decisions of an update: max(1, batch_size // (stretch_bars * K)) stretches.
        stretch_bars: s, consecutive decisions that share one pass of the encoder.
        minibatch: ``stretches``; or ``decisions``, each of one account at one bar and drawn by itself, which
            changes the cost and how alike the samples of a batch are.
        n_step: bars of reward before the bootstrap.
        gamma: discount a bar.
        train_freq: bars that every account steps between two rounds of updates.
        gradient_steps: updates in a round.
        target_update_interval: decisions between two updates of the target network.
        tau: share of the online network that goes into the target then; 1 copies it.
        n_quantiles: N of the return's distribution.
        huber_kappa: error, in the unit of the reward or with ``popart`` in deviations of the returns, below
            which the loss is quadratic; what is learnt of smaller ones lies between quantiles and expectiles.
        alpha: share of the worst outcomes by which levels are chosen, when acting and in the bootstrap; 1 is
            the mean. A risk-averse selection at each step, no time-consistent objective.
        exploration_fraction: of training, over which random choices fade from ``exploration_initial_eps`` to
            ``exploration_final_eps``.
        popart: returns are learnt in units of their own moments (PopArt), answered in the reward's.
        forecast_coef: weight of the loss of the policy's forecasts; 0 where it makes none.
        max_grad_norm: of all gradients together; None for no limit.
    """

    learning_rate: float = 3e-4
    learning_rate_schedule: Shape = "constant"
    buffer_size: int = 500_000
    learning_starts: int = 20_000
    batch_size: int = 512
    stretch_bars: int = 16
    minibatch: Minibatch = "stretches"
    n_step: int = 3
    gamma: float = 0.99
    train_freq: int = 16
    gradient_steps: int = 4
    target_update_interval: int = 8_000
    tau: float = 1.0
    n_quantiles: int = 32
    huber_kappa: float = 1.0
    alpha: float = 1.0
    exploration_fraction: float = 0.3
    exploration_initial_eps: float = 1.0
    exploration_final_eps: float = 0.02
    popart: bool = False
    forecast_coef: float = 0.0
    max_grad_norm: float | None = 10.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("learning_rate", 0.0, 1.0),
            ("buffer_size", 2, 10**10),
            ("learning_starts", 0, 10**10),
            ("batch_size", 1, 10**7),
            ("stretch_bars", 1, 10**5),
            ("n_step", 1, 1_000),
            ("gamma", 0.0, 1.0),
            ("train_freq", 1, 10**5),
            ("gradient_steps", 1, 10**5),
            ("target_update_interval", 1, 10**10),
            ("tau", 0.0, 1.0),
            ("n_quantiles", 1, 10_000),
            ("huber_kappa", 1e-6, 1e6),
            ("forecast_coef", 0.0, 1e4),
            ("exploration_fraction", 0.0, 1.0),
            ("exploration_initial_eps", 0.0, 1.0),
            ("exploration_final_eps", 0.0, 1.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie between {low:g} and {high:g}, was {getattr(self, name)}")
        for name, choices in (
            ("learning_rate_schedule", get_args(Shape)),
            ("minibatch", get_args(Minibatch)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, was {getattr(self, name)!r}")
        if not 0.0 < self.alpha <= 1.0:
            raise ValueError(f"alpha must lie in (0, 1], a share of the worst outcomes, was {self.alpha}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be positive, was {self.max_grad_norm}; null for no limit")
