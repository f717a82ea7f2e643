"""Settings of PerpPPO, with what each may be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Settings of the algorithm; names and meanings are SB3's.

    Attributes:
        learning_rate: of Adam.
        anneal_learning_rate: linearly to zero over ``total_timesteps``.
        n_steps: T, steps of each account in a rollout.
        batch_size: samples of a minibatch, made of whole paths: max(1, batch_size // (T * K)) of them.
        n_epochs: passes over a rollout.
        gamma: discount a bar.
        gae_lambda: decay of the advantage trace.
        clip_range: of the probability ratio.
        normalize_advantage: over the whole rollout. Over a minibatch of a few correlated paths the mean would
            subtract the market's own move.
        ent_coef, vf_coef: weights of entropy bonus and value loss.
        max_grad_norm: of all gradients together.
        forecast_coef: weight of the loss of the policy's forecasts; 0 where it makes none.
        path_baseline: measure each advantage against the mean of its path's accounts at the same bar, which
            takes out the market's own move; needs at least two accounts a path.
        target_kl: no further epoch once the mean KL of an epoch exceeds 1.5 times this; None for no limit.
    """

    learning_rate: float = 3e-4
    anneal_learning_rate: bool = False
    n_steps: int = 128
    batch_size: int = 2_048
    n_epochs: int = 4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    normalize_advantage: bool = True
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    forecast_coef: float = 0.0
    path_baseline: bool = False
    target_kl: float | None = None

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
        if self.target_kl is not None and not self.target_kl > 0:
            raise ValueError(f"target_kl must be positive, was {self.target_kl}; null for no limit")
