"""What a manager may choose, how long it holds, and how it binds the worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from perpgym.envs.actions import DECISIONS, ActionKind
from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES

# budgets and exposures are compared in float32
_SLACK = 1e-5


@dataclass(frozen=True, kw_only=True)
class HierarchyConfig:
    """The manager's choices and their terms.

    Attributes:
        targets: exposures that it may ask of a contract, in units of ``max_exposure``, ascending; the sign is
            the direction.
        budgets: largest |exposure| of any contract that it may grant the worker, in the same unit, ascending.
        min_bars, max_bars: an option lasts k bars, drawn uniformly between these; the deterministic policy
            takes their midpoint, rounded down.
        reach: how far from the target the exposure may lie that the worker asks for, in units of
            ``max_exposure``.
        margin_alert: maintenance margin over margin balance at which the manager is called back.
    """

    targets: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.5, 1.0)
    budgets: tuple[float, ...] = (0.25, 0.5, 1.0)
    min_bars: int = 4
    max_bars: int = 12
    reach: float = 1.0
    margin_alert: float = 0.5

    def __post_init__(self) -> None:
        for name, low in (("targets", -1.0), ("budgets", 1e-6)):
            given = getattr(self, name)
            if not isinstance(given, (tuple, list)) or not all(_is_number(value) for value in given):
                raise ValueError(f"{name} must be a list of numbers, was {given!r}")
            values = tuple(float(value) for value in given)
            if not values or list(values) != sorted(set(values)) or values[0] < low or values[-1] > 1.0:
                raise ValueError(f"{name} must ascend from at least {low:g} to at most 1, were {values}")
            object.__setattr__(self, name, values)
        for name in ("min_bars", "max_bars"):
            if not _is_number(getattr(self, name), int):
                raise ValueError(f"{name} must be a whole number of bars, was {getattr(self, name)!r}")
        for name in ("reach", "margin_alert"):
            if not _is_number(getattr(self, name)):
                raise ValueError(f"{name} must be a number, was {getattr(self, name)!r}")
        if not 1 <= self.min_bars <= self.max_bars:
            raise ValueError(
                f"min_bars and max_bars must ascend from at least 1, were {self.min_bars}, {self.max_bars}"
            )
        if not 0.0 < self.reach <= 2.0:
            raise ValueError(f"reach must lie in (0, 2] (max_exposure), was {self.reach}")
        if not 0.0 < self.margin_alert <= 1.0:
            raise ValueError(f"margin_alert must lie in (0, 1] (a margin ratio), was {self.margin_alert}")

    @property
    def midpoint(self) -> int:
        """Bars of the deterministic policy's options."""
        return (self.min_bars + self.max_bars) // 2

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _is_number(value: Any, kind: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def after_bars(option: torch.Tensor, bars: int) -> torch.Tensor:
    """(..., Z) the same options with so many bars less; the bars left are the last column."""
    return torch.cat((option[..., :-1], (option[..., -1:] - bars).clamp(min=0.0)), dim=-1)


class Options:
    """Options of accounts as rows of (..., Z) float32 columns: A targets, the budget, the bars left.

    A row of zeros is no option: one is due. ``exposure_columns`` are where a state has the exposures.

    Args:
        config: the manager's choices.
        action: the env's kind of action, which the worker takes.
        levels: of ``ladder`` its levels, of ``heads`` its sizes, in units of ``max_exposure``.
        choices: of one contract's discrete action.
        n_assets: A.
    """

    def __init__(
        self,
        config: HierarchyConfig,
        *,
        action: ActionKind,
        levels: Sequence[float],
        choices: Sequence[int],
        n_assets: int,
    ) -> None:
        self.config, self.action, self.n_assets = config, action, n_assets
        self.levels, self.choices = tuple(levels), tuple(choices)
        # columns of an option, and choices of the manager's numbers: a target a contract, then the budget
        self.size = n_assets + 2
        self.counts = (len(config.targets),) * n_assets + (len(config.budgets),)
        portfolio = n_assets * len(ACCOUNT_NAMES)
        self.exposure_columns = [
            n * len(ACCOUNT_NAMES) + ACCOUNT_NAMES.index("exposure") for n in range(n_assets)
        ]
        self._margin, self._admitted = (
            portfolio + PORTFOLIO_NAMES.index(name) for name in ("margin_ratio", "risk_budget")
        )

    # --- from the manager's choice to an option ---

    def begin(self, choice: torch.Tensor, bars: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(..., Z) options from (..., A + 1) indices and (...,) durations in bars.

        The smallest budget may be chosen where the limits admit less: granted is what they admit. They hold
        for the gross exposure: of several contracts, what is granted is the largest budget at which all
        targets together fit.

        Args:
            choice, bars: see above.
            state: (..., S) of the accounts.
        """
        targets = choice.new_tensor(self.config.targets)[choice[..., :-1].long()]
        budget = choice.new_tensor(self.config.budgets)[choice[..., -1:].long()]
        admitted = state[..., self._admitted, None].clamp(min=0.0)
        granted = budget.minimum(self._admitted_each(targets, admitted))
        return torch.cat((targets, granted, bars.unsqueeze(-1).to(choice.dtype)), dim=-1)

    def _admitted_each(self, targets: torch.Tensor, admitted: torch.Tensor) -> torch.Tensor:
        """(..., 1) the largest b, at most what is admitted, with sum(min(|target|, b)) <= admitted.

        As sum(min(|target|, b)) is the least of k b + (sum of all but the k largest) over k, b is the largest
        of what these leave.
        """
        sizes = targets.abs().sort(dim=-1, descending=True).values  # ... A
        gross = sizes.sum(dim=-1, keepdim=True)
        k = torch.arange(1, self.n_assets + 1, device=sizes.device)
        level = ((admitted - (gross - sizes.cumsum(dim=-1))) / k).amax(dim=-1, keepdim=True)
        # limits that admit max_exposure or more look alike in an observation: they are the env's to hold
        return torch.where((gross <= admitted) | (admitted >= 1.0), admitted, level)

    def terms(self, option: Sequence[float], contract: int) -> dict[str, float]:
        """What one option (Z,) says about a contract, by name and unit."""
        return {
            "target / max_exposure": option[contract],
            "budget / max_exposure": option[-2],
            "bars left": option[-1],
        }

    def draw_bars(self, uniform: torch.Tensor) -> torch.Tensor:
        """Durations from (...,) numbers in [0, 1)."""
        low, high = self.config.min_bars, self.config.max_bars
        return low + (uniform * (high - low + 1)).floor().clamp(max=high - low)

    def is_due(self, option: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(...,) whether the manager decides now: no bars are left, or a risk event calls it back.

        Risk events, all in the observation: a margin ratio of ``margin_alert`` or more, which is 1 after a
        liquidation; limits that by now admit less than the budget that was granted, or than the targets of
        several contracts take together.

        Args:
            option: (..., Z).
            state: (..., S) raw account columns, then portfolio columns.
        """
        budget, left = option[..., -2], option[..., -1]
        taken = budget
        if self.n_assets > 1:
            gross = option[..., : self.n_assets].abs().minimum(budget.unsqueeze(-1)).sum(dim=-1)
            taken = taken.maximum(gross.clamp(max=1.0))
        is_cut = state[..., self._admitted].clamp(min=0.0) < taken - _SLACK
        is_alert = state[..., self._margin] >= self.config.margin_alert
        return (left < 0.5) | is_cut | is_alert

    def manager_mask(self, state: torch.Tensor) -> torch.Tensor:
        """(..., sum of counts) bool: no budget beyond what the limits admit, but for the smallest."""
        budgets = state.new_tensor(self.config.budgets)
        allowed = budgets <= state[..., self._admitted, None] + _SLACK
        allowed[..., 0] = True
        everything = allowed.new_ones(*state.shape[:-1], sum(self.counts) - len(budgets))
        return torch.cat((everything, allowed), dim=-1)

    # --- what the worker sees, and what it may do ---

    def scaled(self, option: torch.Tensor) -> torch.Tensor:
        """(..., Z) as the network reads it: bars left as a share of ``max_bars``."""
        return torch.cat((option[..., :-1], option[..., -1:] / self.config.max_bars), dim=-1)

    def bind(self, action: torch.Tensor, option: torch.Tensor) -> torch.Tensor:
        """The env's action from the worker's: choices as they are, exposures around the target.

        ``target``: clip(target + reach * a, -budget, budget). ``band``: the same for the centre, and a width
        that keeps the band within the budget.

        Args:
            action: (..., action_dim), of the worker.
            option: (..., Z).
        """
        if self.choices:
            return action
        targets, budget = option[..., : self.n_assets], option[..., -2:-1]
        stride = action.shape[-1] // self.n_assets
        centre = targets + self.config.reach * action[..., ::stride].clamp(-1.0, 1.0)
        centre = torch.minimum(torch.maximum(centre, -budget), budget)  # ... A
        if stride == 1:
            return centre
        width = 0.5 * (action[..., 1::2].clamp(-1.0, 1.0) + 1.0)
        width = torch.minimum(width, budget - centre.abs())
        return torch.stack((centre, 2.0 * width - 1.0), dim=-1).flatten(-2)

    def worker_mask(self, allowed: torch.Tensor, option: torch.Tensor) -> torch.Tensor:
        """What the env allows and the option too.

        ``ladder``: levels within the budget, and within ``reach`` of the target. ``heads``: the directions in
        which some size is, and the sizes that are in each of these directions; holding and closing stay.
        Where no level is left, the smallest is; where no size is, no direction.

        Args:
            allowed: (..., A * sum of choices) bool, of the env.
            option: (..., Z); to its leading axes those of ``allowed`` are broadcast.
        """
        # in dropout's many decisions of an account the options differ and what the env allows does not
        allowed = allowed.expand(*option.shape[:-1], -1)
        targets, budget = option[..., : self.n_assets, None], option[..., -2, None, None]  # ... A 1
        by_contract = allowed.unflatten(-1, (self.n_assets, -1)).clone()  # type: ignore[no-untyped-call]
        levels = option.new_tensor(self.levels)  # L

        def fits(level: torch.Tensor) -> torch.Tensor:
            is_near = (level - targets).abs() <= self.config.reach + _SLACK
            return is_near & (level.abs() <= budget + _SLACK)  # ... A L

        first = len(DECISIONS) if self.action == "heads" else 0
        last = first + len(self.levels)
        sizes = by_contract[..., first:last]
        if self.action == "heads":
            sides = {"long": fits(levels), "short": fits(-levels)}
            for side in sides.values():
                sizes = sizes & (side | ~side.any(-1, keepdim=True))
            for decision, side in sides.items():
                by_contract[..., DECISIONS.index(decision)] &= side.any(-1) & sizes.any(-1)
        else:
            sizes = sizes & fits(levels)
        # a number of which nothing is left has no distribution
        smallest = min(range(len(self.levels)), key=lambda i: abs(self.levels[i]))
        sizes[..., smallest] |= ~sizes.any(-1)
        by_contract[..., first:last] = sizes
        mask: torch.Tensor = by_contract.flatten(-2)
        return mask
