"""Settings of the libraries' algorithms, under the libraries' own names and with their defaults."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, get_args

from perpgym.agents.path_algorithm import AgentConfig
from perpgym.agents.schedule import Schedule, Shape

# what a setting of this name may be, whichever algorithm has it
_RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (0.0, 1.0),
    "n_steps": (2, 10**6),
    "batch_size": (1, 10**9),
    "n_epochs": (1, 1_000),
    "gamma": (0.0, 1.0),
    "gae_lambda": (0.0, 1.0),
    "clip_range": (1e-6, 10.0),
    "vf_coef": (0.0, 100.0),
    "max_grad_norm": (1e-9, 1e9),
    "buffer_size": (1, 10**10),
    "learning_starts": (0, 10**10),
    "tau": (0.0, 1.0),
    "train_freq": (1, 10**5),
    "gradient_steps": (1, 10**5),
    "lstm_hidden_size": (1, 10**5),
    "n_lstm_layers": (1, 100),
    "n_critics": (1, 100),
    "n_quantiles": (1, 10_000),
    "top_quantiles_to_drop_per_net": (0, 10_000),
}


@dataclass(frozen=True, kw_only=True)
class StockConfig(AgentConfig):
    """What all of them have in common. ``ent_coef`` and the rest mean what the library says they do.

    Attributes:
        learning_rate: at the beginning of the run.
        learning_rate_schedule: ``constant``, or ``linear`` or ``cosine`` to zero over ``total_timesteps``.
        gamma: discount a bar.
    """

    learning_rate: float = 3e-4
    learning_rate_schedule: Shape = "constant"
    gamma: float = 0.99

    def __post_init__(self) -> None:
        settings = asdict(self)
        for name, value in settings.items():
            low, high = _RANGES.get(name, (-float("inf"), float("inf")))
            if not isinstance(value, str) and not low <= value <= high:
                raise ValueError(f"{name} must lie between {low:g} and {high:g}, was {value}")
        if self.learning_rate_schedule not in get_args(Shape):
            raise ValueError(
                f"learning_rate_schedule must be one of {', '.join(get_args(Shape))}, was "
                f"{self.learning_rate_schedule!r}"
            )

    def arguments(self) -> dict[str, Any]:
        """Of the library's algorithm."""
        kept = {
            k: v for k, v in asdict(self).items() if k not in ("learning_rate_schedule", *self._of_policy())
        }
        return kept | {"learning_rate": Schedule(self.learning_rate, self.learning_rate_schedule)}

    def policy_arguments(self) -> dict[str, Any]:
        """Of the library's policy."""
        return {name: getattr(self, name) for name in self._of_policy()}

    def _of_policy(self) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True, kw_only=True)
class A2CConfig(StockConfig):
    """``stable_baselines3.A2C``: advantage actor-critic (Mnih et al. 2016)."""

    learning_rate: float = 7e-4
    n_steps: int = 5
    gae_lambda: float = 1.0
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    normalize_advantage: bool = False
    use_rms_prop: bool = True


@dataclass(frozen=True, kw_only=True)
class _ClippedConfig(StockConfig):
    """What the two kinds of PPO have in common (Schulman et al. 2017), with RecurrentPPO's defaults."""

    n_steps: int = 128
    batch_size: int = 128
    n_epochs: int = 10
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    normalize_advantage: bool = True
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5


@dataclass(frozen=True, kw_only=True)
class MaskablePPOConfig(_ClippedConfig):
    """``sb3_contrib.MaskablePPO``: PPO among allowed choices only (Huang and Ontanon 2022)."""


@dataclass(frozen=True, kw_only=True)
class RecurrentPPOConfig(_ClippedConfig):
    """``sb3_contrib.RecurrentPPO``: PPO with an LSTM that remembers the account's past.

    Attributes:
        lstm_hidden_size, n_lstm_layers: of the actor's LSTM and of the critic's.
    """

    lstm_hidden_size: int = 256
    n_lstm_layers: int = 1

    def _of_policy(self) -> tuple[str, ...]:
        return ("lstm_hidden_size", "n_lstm_layers")


@dataclass(frozen=True, kw_only=True)
class SACConfig(StockConfig):
    """``stable_baselines3.SAC``: soft actor-critic (Haarnoja et al. 2018).

    Attributes:
        ent_coef: a weight of the entropy, or ``auto``, learnt from ``auto_0.1`` on if it begins there.
        train_freq: bars that every account steps between two rounds of ``gradient_steps`` updates.
        n_critics: of which the lowest counts.
    """

    buffer_size: int = 1_000_000
    learning_starts: int = 100
    batch_size: int = 256
    tau: float = 0.005
    train_freq: int = 1
    gradient_steps: int = 1
    ent_coef: float | str = "auto"
    n_critics: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.ent_coef, str) and not re.fullmatch(r"auto(_\d*\.?\d+)?", self.ent_coef):
            raise ValueError(f"ent_coef must be a number, auto or auto_0.1, was {self.ent_coef!r}")

    def _of_policy(self) -> tuple[str, ...]:
        return ("n_critics",)


@dataclass(frozen=True, kw_only=True)
class TQCConfig(SACConfig):
    """``sb3_contrib.TQC``: SAC whose critics are distributions without their top (Kuznetsov et al. 2020).

    Attributes:
        n_quantiles: of each critic.
        top_quantiles_to_drop_per_net: of them, against overestimation.
    """

    n_quantiles: int = 25
    top_quantiles_to_drop_per_net: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_quantiles_to_drop_per_net >= self.n_quantiles:
            raise ValueError(
                f"top_quantiles_to_drop_per_net must be below n_quantiles ({self.n_quantiles}), was "
                f"{self.top_quantiles_to_drop_per_net}"
            )

    def _of_policy(self) -> tuple[str, ...]:
        return ("n_critics", "n_quantiles")
