"""Options on a ladder: a target and a risk budget for each contract, levels from flat to the target."""

from __future__ import annotations

import pytest
import torch

from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES
from perpgym.policies.ladder_options import LadderOptions
from perpgym.policies.options import HierarchyConfig, after_bars

LEVELS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def make(n_assets: int = 1, levels: tuple[float, ...] = LEVELS, **config: object) -> LadderOptions:
    settings = HierarchyConfig(**{"budgets": (0.25, 1.0), **config})  # type: ignore[arg-type]
    return LadderOptions(settings, levels=levels, n_assets=n_assets)


def state(n_assets: int = 1, **portfolio: float) -> torch.Tensor:
    out = torch.zeros(n_assets * len(ACCOUNT_NAMES) + len(PORTFOLIO_NAMES))
    for name, value in {"risk_budget": 1.0, **portfolio}.items():
        out[n_assets * len(ACCOUNT_NAMES) + PORTFOLIO_NAMES.index(name)] = value
    return out


def test_a_choice_is_a_pair_of_a_target_and_a_risk_budget_for_each_contract() -> None:
    rules = make(n_assets=2)
    # the second target with the first budget, the fifth with the second
    option = rules.begin(torch.tensor([2, 9]), torch.tensor(7.0))
    assert option.tolist() == [-0.5, 1.0, 0.25, 1.0, 7.0]
    assert rules.targets(option).tolist() == [-0.5, 1.0]
    assert rules.alphas(option).tolist() == [0.25, 1.0]
    assert rules.scaled(option).tolist() == pytest.approx([-0.5, 1.0, 0.25, 1.0, 7.0 / 12.0])


def test_a_bar_passes_and_never_fewer_than_none_are_left() -> None:
    assert after_bars(torch.tensor([1.0, 0.25, 3.0]), 1).tolist() == [1.0, 0.25, 2.0]
    assert after_bars(torch.zeros(3), 2).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("target", "left"),
    [(1.0, "00111"), (0.5, "00110"), (0.0, "00100"), (-0.5, "01100"), (-1.0, "11100")],
)
def test_the_worker_picks_from_flat_to_the_target(target: float, left: str) -> None:
    allowed = torch.ones(1, 5, dtype=torch.bool)
    mask = make().worker_mask(allowed, torch.tensor([target, 1.0, 4.0]))
    assert "".join(str(int(one)) for one in mask[0]) == left


def test_what_the_env_forbids_stays_forbidden_and_flat_is_what_remains() -> None:
    option = torch.tensor([1.0, 1.0, 4.0])
    only_whole = torch.tensor([[True, False, False, False, True]])
    assert make().worker_mask(only_whole, option).tolist() == [[False, False, False, False, True]]
    only_short = torch.tensor([[True, True, False, False, False]])
    assert make().worker_mask(only_short, option).tolist() == [[False, False, True, False, False]]


def test_contracts_are_bound_by_their_own_targets() -> None:
    allowed = torch.ones(2, 5, dtype=torch.bool)
    mask = make(n_assets=2).worker_mask(allowed, torch.tensor([-1.0, 0.5, 1.0, 1.0, 3.0]))
    assert mask.int().tolist() == [[1, 1, 1, 0, 0], [0, 0, 1, 1, 0]]


@pytest.mark.parametrize(
    ("portfolio", "option", "is_due"),
    [
        ({}, (1.0, 0.25, 3.0), False),
        ({}, (1.0, 0.25, 0.0), True),
        # what a liquidation shows
        ({"margin_ratio": 1.0}, (1.0, 0.25, 3.0), True),
        ({"margin_ratio": 0.5}, (1.0, 0.25, 3.0), True),
        ({"margin_ratio": 0.49}, (1.0, 0.25, 3.0), False),
        # limits admit less than the target
        ({"risk_budget": 0.4}, (-0.5, 0.25, 3.0), True),
        ({"risk_budget": 0.5}, (-0.5, 0.25, 3.0), False),
        ({"risk_budget": 0.0}, (0.0, 0.25, 3.0), False),
    ],
)
def test_the_manager_is_called_back_when_the_option_is_over_or_by_a_risk_event(
    portfolio: dict[str, float], option: tuple[float, ...], is_due: bool
) -> None:
    assert bool(make().is_due(torch.tensor(option), state(**portfolio))) is is_due


def test_no_target_is_chosen_beyond_what_the_limits_admit() -> None:
    for admitted, left in ((1.0, "11111"), (0.6, "01110"), (0.0, "00100")):
        mask = make().manager_mask(state(risk_budget=admitted))
        assert mask.shape == (1, 10)
        # both budgets of a target
        assert "".join(str(int(one)) for one in mask[0, ::2]) == left
        assert (mask[0, ::2] == mask[0, 1::2]).all()


def test_without_a_flat_target_the_smallest_stays_and_calls_nobody_back() -> None:
    rules = make(targets=(-1.0, 0.5))
    assert rules.manager_mask(state(risk_budget=0.0)).int().tolist() == [[0, 0, 1, 1]]
    assert not bool(rules.is_due(torch.tensor([0.5, 1.0, 3.0]), state(risk_budget=0.0)))


@pytest.mark.parametrize("target", [-0.25, 0.25])
def test_a_target_that_leaves_no_level_but_flat_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match=f"lies between flat and {target:g}"):
        make(targets=tuple(sorted((target, 0.0))))
    # it may lie between two levels
    make(targets=(-0.75, 0.0, 0.75))
