"""Settings of HierarchicalQRDQN, with what each may be."""

from __future__ import annotations

from dataclasses import dataclass, field

from perpgym.agents.hierarchical_config import hierarchy_of
from perpgym.agents.qrdqn_config import QRDQNConfig
from perpgym.policies.options import HierarchyConfig


@dataclass(frozen=True, kw_only=True)
class HierarchicalQRDQNConfig(QRDQNConfig):
    """Settings of the algorithm: those of QR-DQN are of both levels, but for ``n_step``, the worker's.

    Attributes:
        hierarchy: what the manager may choose, and for how long; ``budgets`` are the shares alpha of the
            worst outcomes by which the worker picks its levels, ``alpha`` itself is the manager's own, and
            ``reach`` is not read.
        manager_coef: weight of the manager's loss beside the worker's.
    """

    hierarchy: HierarchyConfig = field(default_factory=lambda: HierarchyConfig(budgets=(0.25, 1.0)))
    manager_coef: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "hierarchy", hierarchy_of(self.hierarchy))
        if not 0.0 <= self.manager_coef <= 100.0:
            raise ValueError(f"manager_coef must lie between 0 and 100, was {self.manager_coef}")
        if self.minibatch != "stretches":
            raise ValueError(
                f"minibatch must be stretches, in which options are seen to their end, was {self.minibatch!r}"
            )
