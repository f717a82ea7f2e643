"""Settings of PerpPPO, with what each may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from perpgym.agents.path_algorithm import AgentConfig
from perpgym.agents.schedule import Shape

Observation = Literal["index", "window"]


@dataclass(frozen=True, kw_only=True)
class PPOConfig(AgentConfig):
    """Settings of the algorithm; names and meanings are SB3's.

    Attributes:
        learning_rate: of Adam, at the beginning of the run.
        learning_rate_schedule: ``constant``, or ``linear`` or ``cosine`` to zero over ``total_timesteps``.
        n_steps: T, steps of each account in a rollout.
        batch_size: samples of a minibatch, made of whole paths: max(1, batch_size // (T * K)) of them.
        n_epochs: passes over a rollout.
        gamma: discount a bar.
        gae_lambda: decay of the advantage trace.
        clip_range: of the probability ratio.
        normalize_advantage: over the whole rollout. Over a minibatch of a few correlated paths the mean would
            subtract the market's own move.
        ent_coef: weight of the entropy bonus at the beginning of the run.
        ent_coef_schedule: as the learning rate's.
        vf_coef: weight of the value loss.
        popart: values are learnt in units of their targets' own moments (PopArt), answered in the reward's.
        max_grad_norm: of all gradients together.
        forecast_coef: weight of the loss of the policy's forecasts; 0 where it makes none.
        path_baseline: measure each advantage against the mean of its path's accounts at the same bar, which
            takes out the market's own move; needs at least two accounts a path.
        observation: what the encoders read, which changes the cost and nothing else: ``index``, each path's
            stretch of tape once; ``window``, the window of R bars of every decision by itself.
        compile: run encoders and loss of the update through ``torch.compile``: a minute at the beginning, a
            C++ compiler needed.
        cuda_graphs: the same, captured as CUDA graphs.
        bf16: encode in bfloat16, CUDA only; heads, loss and weights stay float32.
        target_kl: no further epoch once the mean KL of an epoch exceeds 1.5 times this; None for no limit.
    """

    learning_rate: float = 3e-4
    learning_rate_schedule: Shape = "constant"
    n_steps: int = 128
    batch_size: int = 2_048
    n_epochs: int = 4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    normalize_advantage: bool = True
    ent_coef: float = 0.0
    ent_coef_schedule: Shape = "constant"
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    forecast_coef: float = 0.0
    path_baseline: bool = False
    popart: bool = False
    observation: Observation = "index"
    compile: bool = False
    cuda_graphs: bool = False
    bf16: bool = False
    target_kl: float | None = None

    @property
    def compares_accounts(self) -> bool:
        """Whether accounts are measured against the others of their path."""
        return self.path_baseline

    def __post_init__(self) -> None:
        for name, low, high in (
            ("learning_rate", 0.0, 1.0),
            ("n_steps", 2, 10**6),
            ("batch_size", 1, 10**9),
            ("n_epochs", 1, 1_000),
            ("gamma", 0.0, 1.0),
            ("gae_lambda", 0.0, 1.0),
            ("clip_range", 1e-6, 10.0),
            ("ent_coef", 0.0, 100.0),
            ("vf_coef", 0.0, 100.0),
            ("forecast_coef", 0.0, 1e4),
            ("max_grad_norm", 1e-9, 1e9),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie between {low:g} and {high:g}, was {getattr(self, name)}")
        for name, choices in (
            ("learning_rate_schedule", get_args(Shape)),
            ("ent_coef_schedule", get_args(Shape)),
            ("observation", get_args(Observation)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, was {getattr(self, name)!r}")
        if self.target_kl is not None and not self.target_kl > 0:
            raise ValueError(f"target_kl must be positive, was {self.target_kl}; null for no limit")
