"""What a manager of a ladder may choose, how long it holds, and which levels it leaves to the worker."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES
from perpgym.policies.options import HierarchyConfig

# targets and exposures are compared in float32
_SLACK = 1e-5


class LadderOptions:
    """Options of accounts as rows of (..., Z) float32 columns: A targets, A risk budgets, the bars left.

    A choice of the manager is, for each contract, a pair of a target and a risk budget: one number, target *
    budgets + budget. The target is the furthest level that the worker may hold; the budget is the share alpha
    of the worst outcomes by which it picks a level. A row of zeros is no option: one is due.

    Args:
        config: the manager's choices; ``budgets`` are shares alpha here, and ``reach`` is not read.
        levels: of the env's ladder, in units of ``max_exposure``.
        n_assets: A.

    Raises:
        ValueError: a target leaves the worker no level but flat.
    """

    def __init__(self, config: HierarchyConfig, *, levels: Sequence[float], n_assets: int) -> None:
        self.config, self.levels, self.n_assets = config, tuple(levels), n_assets
        for target in config.targets:
            if target and not any(0.0 < level / target <= 1.0 + _SLACK for level in self.levels):
                raise ValueError(
                    f"hierarchy.targets: no level of the ladder {self.levels} lies between flat and "
                    f"{target:g}, so that the worker could only stay flat; choose one of the levels"
                )
        self.size = 2 * n_assets + 1
        self.n_choices = len(config.targets) * len(config.budgets)
        portfolio = n_assets * len(ACCOUNT_NAMES)
        self._margin, self._admitted = (
            portfolio + PORTFOLIO_NAMES.index(name) for name in ("margin_ratio", "risk_budget")
        )
        self._smallest_target = min(abs(target) for target in config.targets)
        self._smallest_level = min(range(len(self.levels)), key=lambda i: abs(self.levels[i]))

    def targets(self, option: torch.Tensor) -> torch.Tensor:
        """(..., A) in units of ``max_exposure``."""
        return option[..., : self.n_assets]

    def alphas(self, option: torch.Tensor) -> torch.Tensor:
        """(..., A) shares of the worst outcomes."""
        return option[..., self.n_assets : 2 * self.n_assets]

    def begin(self, choice: torch.Tensor, bars: torch.Tensor) -> torch.Tensor:
        """(..., Z) options from (..., A) choices and (...,) durations in bars."""
        budgets = self.config.budgets
        targets = torch.tensor(self.config.targets, device=choice.device)[choice // len(budgets)]
        alphas = torch.tensor(budgets, device=choice.device)[choice % len(budgets)]
        return torch.cat((targets, alphas, bars.unsqueeze(-1).to(targets.dtype)), dim=-1)

    def terms(self, option: Sequence[float], contract: int) -> dict[str, float]:
        """What one option (Z,) says about a contract, by name and unit."""
        return {
            "target / max_exposure": option[contract],
            "budget alpha": option[self.n_assets + contract],
            "bars left": option[-1],
        }

    def is_due(self, option: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(...,) whether the manager decides now: no bars are left, or a risk event calls it back.

        Risk events, all in the observation: a margin ratio of ``margin_alert`` or more, which is 1 after a
        liquidation; limits that admit less than the option's target.

        Args:
            option: (..., Z).
            state: (..., S) raw account columns, then portfolio columns.
        """
        furthest = self.targets(option).abs().amax(dim=-1)
        admitted = state[..., self._admitted].clamp(min=self._smallest_target)
        is_alert = state[..., self._margin] >= self.config.margin_alert
        return (option[..., -1] < 0.5) | (furthest > admitted + _SLACK) | is_alert

    def manager_mask(self, state: torch.Tensor) -> torch.Tensor:
        """(..., A, choices) bool: no target beyond what the limits admit, but for the smallest."""
        furthest = state.new_tensor(self.config.targets).abs().repeat_interleave(len(self.config.budgets))
        admitted = state[..., self._admitted, None].clamp(min=self._smallest_target)
        fits = furthest <= admitted + _SLACK  # ... choices
        return fits.unsqueeze(-2).expand(*fits.shape[:-1], self.n_assets, self.n_choices)

    def worker_mask(self, allowed: torch.Tensor, option: torch.Tensor) -> torch.Tensor:
        """(..., A, L) bool: of what the env allows, the levels from flat to the target.

        Where none of them is allowed, the smallest level is: a worker may always leave.

        Args:
            allowed: (..., A, L) bool, of the env.
            option: (..., Z).
        """
        levels, targets = option.new_tensor(self.levels), self.targets(option).unsqueeze(-1)  # L, ... A 1
        low, high = targets.clamp(max=0.0) - _SLACK, targets.clamp(min=0.0) + _SLACK
        fits = allowed & (levels >= low) & (levels <= high)
        fits[..., self._smallest_level] |= ~fits.any(-1)
        return fits

    def scaled(self, option: torch.Tensor) -> torch.Tensor:
        """(..., Z) as the network reads it: bars left as a share of ``max_bars``."""
        return torch.cat((option[..., :-1], option[..., -1:] / self.config.max_bars), dim=-1)
