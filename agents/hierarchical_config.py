"""Settings of HierarchicalPPO, with what each may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from perpgym.agents.ppo_config import PPOConfig
from perpgym.policies.options import HierarchyConfig


@dataclass(frozen=True, kw_only=True)
class HierarchicalPPOConfig(PPOConfig):
    """Settings of the algorithm: those of PPO are the worker's, the manager has its own.

    Attributes:
        hierarchy: what the manager may choose, and for how long.
        manager_gae_lambda: decay of the manager's trace, a decision.
        manager_clip_range: of the ratio of the manager's probabilities.
        manager_ent_coef: weight of the manager's entropy.
        manager_vf_coef: weight of the manager's value loss, and of that of the value within an option.
        manager_target_kl: as ``target_kl``, of the manager: either level stops by itself.
        manager_path_baseline: ``path_baseline`` for the manager, whose advantages are then measured against
            what options brought the other accounts of its path at that bar.
        worker_shaping: what the worker loses a bar for each ``max_exposure`` of distance from the target, in
            the unit of the reward; 0 leaves it the env's reward.
        warmup_steps: account steps at the beginning in which the manager draws its choices evenly and learns
            nothing, so that the worker learns to follow them.
    """

    hierarchy: HierarchyConfig = field(default_factory=HierarchyConfig)
    manager_gae_lambda: float = 0.95
    manager_clip_range: float = 0.2
    manager_ent_coef: float = 0.01
    manager_vf_coef: float = 0.5
    manager_target_kl: float | None = None
    manager_path_baseline: bool = False
    worker_shaping: float = 0.0
    warmup_steps: int = 0

    @property
    def compares_accounts(self) -> bool:
        """Whether accounts are measured against the others of their path, at either level."""
        return self.path_baseline or self.manager_path_baseline

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "hierarchy", hierarchy_of(self.hierarchy))
        for name, low, high in (
            ("manager_gae_lambda", 0.0, 1.0),
            ("manager_clip_range", 1e-6, 10.0),
            ("manager_ent_coef", 0.0, 100.0),
            ("manager_vf_coef", 0.0, 100.0),
            ("worker_shaping", 0.0, 1e6),
            ("warmup_steps", 0, 10**12),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie between {low:g} and {high:g}, was {getattr(self, name)}")
        if self.manager_target_kl is not None and not self.manager_target_kl > 0:
            raise ValueError(
                f"manager_target_kl must be positive, was {self.manager_target_kl}; null for no limit"
            )
        if self.cuda_graphs:
            raise ValueError("cuda_graphs needs fixed shapes, decisions come when they come: set it false")


def hierarchy_of(given: HierarchyConfig | dict[str, Any]) -> HierarchyConfig:
    """Settings of the hierarchy; a config that comes from YAML or JSON brings a mapping.

    Raises:
        ValueError: it is neither, a key is unknown, or a value impossible.
    """
    if isinstance(given, HierarchyConfig):
        return given
    if not isinstance(given, dict):
        raise ValueError(f"hierarchy must be a HierarchyConfig or names with values, was {given!r}")
    known = {f.name for f in fields(HierarchyConfig)}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"hierarchy has no setting {', '.join(unknown)}; known are {sorted(known)}")
    return HierarchyConfig(**given)


def with_hierarchy(policy_kwargs: dict[str, Any] | None, hierarchy: HierarchyConfig) -> dict[str, Any]:
    """Arguments of a policy that has this hierarchy.

    Raises:
        ValueError: they bring another one.
    """
    kwargs = dict(policy_kwargs or {})
    if "hierarchy" in kwargs and hierarchy_of(kwargs["hierarchy"]) != hierarchy:
        raise ValueError("policy_kwargs has another hierarchy than config: leave it out of policy_kwargs")
    return {**kwargs, "hierarchy": hierarchy}


def check_actions(policy: Mapping[str, Any], env: Mapping[str, Any]) -> None:
    """Whether a policy's options bind the actions that an env has.

    Args:
        policy: its own settings.
        env: those of them that the env determines.

    Raises:
        ValueError: they differ; says in what.
    """
    for name, value in env.items():
        mine, its = (tuple(v) if isinstance(v, (tuple, list)) else v for v in (policy[name], value))
        if mine != its:
            raise ValueError(
                f"the policy's options bind {name} {mine}, the env has {its}: build the env as the policy "
                "was trained, or a new model for this env"
            )
