"""What an option allows: exposures within the budget, its own direction; when the manager is called back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES
from perpgym.policies.options import HierarchyConfig, Options

UNIT = st.floats(-1.0, 1.0, width=32)
SIZES = (0.25, 0.5, 1.0)


def make(action: str = "heads", n_assets: int = 1, reach: float = 1.0) -> Options:
    choices = {"heads": (4, 3, 2, 2), "ladder": (5,)}.get(action, ())
    levels = SIZES if action == "heads" else (-1.0, -0.5, 0.0, 0.5, 1.0)
    config = HierarchyConfig(reach=reach)
    return Options(config, action=action, levels=levels, choices=choices, n_assets=n_assets)  # type: ignore[arg-type]


def state(n_assets: int = 1, **portfolio: float) -> torch.Tensor:
    out = torch.zeros(n_assets * len(ACCOUNT_NAMES) + len(PORTFOLIO_NAMES))
    for name, value in {"risk_budget": 1.0, **portfolio}.items():
        out[n_assets * len(ACCOUNT_NAMES) + PORTFOLIO_NAMES.index(name)] = value
    return out


@given(action=st.tuples(UNIT, UNIT), target=UNIT, budget=st.sampled_from((0.25, 0.5, 1.0)), held=UNIT)
def test_a_bands_exposure_stays_within_the_budget_whatever_is_held(
    action: tuple[float, float], target: float, budget: float, held: float
) -> None:
    option = torch.tensor([target, budget, 3.0])
    centre, wide = make("band").bind(torch.tensor(action), option).tolist()
    width = 0.5 * (wide + 1.0)
    # what envs.decision does with a band
    exposure = min(centre + width, max(centre - width, held))
    assert abs(exposure) <= budget + 1e-6
    assert -1.0 - 1e-6 <= wide <= 1.0 + 1e-6


def test_a_target_is_departed_from_by_at_most_the_reach() -> None:
    rules = Options(HierarchyConfig(reach=0.25), action="target", levels=(), choices=(), n_assets=2)
    option = torch.tensor([0.5, -1.0, 1.0, 2.0])
    bound = rules.bind(torch.tensor([1.0, 0.4]), option)
    torch.testing.assert_close(bound, torch.tensor([0.75, -0.9]))


@pytest.mark.parametrize(
    ("target", "budget", "reach", "allowed"),
    [
        # hold, long, short, flat; three sizes
        (1.0, 1.0, 1.0, "1101 111"),
        (1.0, 1.0, 0.5, "1101 011"),
        (0.0, 0.5, 1.0, "1111 110"),
        # short up to -1, long up to 0.5: a size must be near enough whichever of the two is taken
        (-0.5, 1.0, 1.0, "1111 110"),
        (-0.5, 0.25, 0.5, "1011 100"),
        # nothing of the grid is near: the position may be held or closed
        (-0.5, 0.25, 0.125, "1001 111"),
        # not even the smallest size was granted
        (0.0, 0.125, 1.0, "1001 111"),
    ],
)
def test_heads_stay_within_budget_and_reach_of_the_target(
    target: float, budget: float, reach: float, allowed: str
) -> None:
    everything = torch.ones(11, dtype=torch.bool)
    mask = make(reach=reach).worker_mask(everything, torch.tensor([target, budget, 3.0]))
    assert "".join(str(int(flag)) for flag in mask[:7]) == allowed.replace(" ", "")
    assert mask[7:].all()
    assert everything.all()


def test_what_the_env_forbids_stays_forbidden() -> None:
    env = torch.ones(11, dtype=torch.bool)
    env[1], env[4] = False, False
    mask = make().worker_mask(env, torch.tensor([1.0, 1.0, 3.0]))
    assert not mask[1]
    assert not mask[4]
    # the budget leaves only the smallest size, which the env forbids: something must be left
    mask = make().worker_mask(env, torch.tensor([1.0, 0.25, 3.0]))
    assert mask[4:7].tolist() == [True, False, False]


@given(option=st.tuples(UNIT, st.floats(0.0, 1.0, width=32)), reach=st.floats(0.0625, 2.0, width=32))
def test_no_exposure_that_heads_can_ask_for_is_beyond_budget_or_reach(
    option: tuple[float, float], reach: float
) -> None:
    mask = make(reach=reach).worker_mask(torch.ones(11, dtype=torch.bool), torch.tensor([*option, 3.0]))
    for decision, sign in ((1, 1.0), (2, -1.0)):
        for size, is_allowed in zip(SIZES, mask[4:7], strict=True):
            if mask[decision] and is_allowed:
                assert size <= option[1] + 1e-4
                assert abs(sign * size - option[0]) <= reach + 1e-4


@pytest.mark.parametrize(
    ("target", "budget", "allowed"),
    [(0.0, 1.0, "11111"), (1.0, 1.0, "00111"), (1.0, 0.5, "00110"), (-0.5, 1.0, "11110")],
)
def test_a_ladder_stays_within_budget_and_reach_of_the_target(
    target: float, budget: float, allowed: str
) -> None:
    option = torch.tensor([target, budget, 3.0])
    mask = make("ladder").worker_mask(torch.ones(5, dtype=torch.bool), option)
    assert "".join(str(int(flag)) for flag in mask) == allowed


@pytest.mark.parametrize("action", ["heads", "ladder"])
def test_one_mask_of_the_env_meets_many_options_one_by_one(action: str) -> None:
    """As where dropout asks for several decisions of each account, and the managers of each differ."""
    rules = make(action)
    rng = torch.Generator().manual_seed(0)
    allowed = torch.rand(3, sum(rules.choices), generator=rng) > 0.3
    target, budget, left = torch.rand(3, 5, 3, generator=rng)
    options = torch.stack((2.0 * target - 1.0, budget, left), dim=-1)
    one_by_one = [
        [rules.worker_mask(row, option) for row, option in zip(allowed, sample, strict=True)]
        for sample in options
    ]
    expected = torch.stack([torch.stack(sample) for sample in one_by_one])
    assert not torch.equal(expected[0], expected[1])
    assert torch.equal(rules.worker_mask(allowed, options), expected)


def test_contracts_are_masked_by_their_own_targets() -> None:
    mask = make(n_assets=2).worker_mask(torch.ones(22, dtype=torch.bool), torch.tensor([1.0, -1.0, 1.0, 3.0]))
    assert mask[1:3].tolist() == [True, False]
    assert mask[12:14].tolist() == [False, True]


@pytest.mark.parametrize(
    ("portfolio", "option", "is_due"),
    [
        ({}, (1.0, 0.5, 3.0), False),
        ({}, (1.0, 0.5, 0.0), True),
        # what a liquidation shows
        ({"margin_ratio": 1.0}, (1.0, 0.5, 3.0), True),
        ({"margin_ratio": 0.5}, (1.0, 0.5, 3.0), True),
        ({"margin_ratio": 0.49}, (1.0, 0.5, 3.0), False),
        # limits admit less than was granted
        ({"risk_budget": 0.4}, (1.0, 0.5, 3.0), True),
        ({"risk_budget": 0.4}, (1.0, 0.25, 3.0), False),
        ({"risk_budget": 0.0}, (1.0, 0.25, 3.0), True),
        # that much was granted
        ({"risk_budget": 0.0}, (1.0, 0.0, 3.0), False),
    ],
)
def test_the_manager_is_called_back_when_the_option_is_over_or_by_a_risk_event(
    portfolio: dict[str, float], option: tuple[float, ...], is_due: bool
) -> None:
    assert bool(make().is_due(torch.tensor(option), state(**portfolio))) is is_due


def test_no_budget_is_granted_beyond_what_the_limits_admit() -> None:
    for admitted, allowed in ((1.0, [1, 1, 1]), (0.6, [1, 1, 0]), (0.0, [1, 0, 0])):
        mask = make().manager_mask(state(risk_budget=admitted))
        assert mask[:5].all()
        assert mask[5:].int().tolist() == allowed
    choice = torch.tensor([[4.0, 0.0], [4.0, 0.0]])
    admitting = torch.stack((state(risk_budget=1.0), state(risk_budget=0.125)))
    option = make().begin(choice, torch.tensor([3.0, 3.0]), admitting)
    assert option.tolist() == [[1.0, 0.25, 3.0], [1.0, 0.125, 3.0]]
    assert not make().is_due(option, admitting).any()


@given(
    targets=st.lists(st.sampled_from((-1.0, -0.5, 0.0, 0.5, 1.0)), min_size=3, max_size=3),
    budget=st.sampled_from((0.25, 0.5, 1.0)),
    admitted=st.floats(0.0, 0.984375, width=32),
)
def test_targets_of_several_contracts_together_fit_into_what_the_limits_admit(
    targets: list[float], budget: float, admitted: float
) -> None:
    rules, limited = make(n_assets=3), state(3, risk_budget=admitted)
    config = HierarchyConfig()
    choice = torch.tensor([*map(config.targets.index, targets), config.budgets.index(budget)]).float()
    option = rules.begin(choice, torch.tensor(3.0), limited)
    granted = float(option[-2])

    def gross(each: float) -> float:
        return sum(min(abs(target), each) for target in targets)

    assert option[:3].tolist() == targets
    assert granted <= min(budget, admitted) + 1e-6
    assert gross(granted) <= admitted + 1e-5
    # and no more is taken away than must be
    assert granted >= min(budget, admitted) - 1e-5 or gross(granted) >= admitted - 1e-5
    assert not bool(rules.is_due(option, limited))


@pytest.mark.parametrize(
    ("admitted", "option", "is_due"),
    [
        # one contract is within its budget, the three are not within the limits
        (0.7, (0.5, -0.5, 0.0, 0.5, 3.0), True),
        (0.7, (0.5, 0.0, 0.0, 0.5, 3.0), False),
        # a budget of 0.25 for each of them is
        (0.7, (0.5, -0.5, 0.0, 0.25, 3.0), False),
        # limits that admit max_exposure or more look alike, and so do targets that take as much
        (1.0, (1.0, -1.0, 1.0, 1.0, 3.0), False),
        (0.95, (1.0, -1.0, 1.0, 0.5, 3.0), True),
    ],
)
def test_the_manager_of_several_contracts_is_called_back_when_their_targets_no_longer_fit(
    admitted: float, option: tuple[float, ...], is_due: bool
) -> None:
    found = make(n_assets=3).is_due(torch.tensor(option), state(3, risk_budget=admitted))
    assert bool(found) is is_due


def test_durations_are_drawn_evenly_between_their_bounds() -> None:
    bars = make().draw_bars(torch.linspace(0.0, 1.0 - 1e-7, 9_000))
    assert torch.bincount(bars.long()).tolist() == [0] * 4 + [1_000] * 9
    assert HierarchyConfig().midpoint == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": (0.5, -0.5)}, "targets must ascend"),
        ({"budgets": (0.0, 1.0)}, "budgets must ascend from at least 1e-06"),
        ({"min_bars": 0}, "min_bars and max_bars must ascend"),
        ({"min_bars": 9, "max_bars": 8}, "min_bars and max_bars must ascend"),
        ({"min_bars": 2.5}, "min_bars must be a whole number of bars, was 2.5"),
        ({"min_bars": "abc"}, "min_bars must be a whole number"),
        ({"targets": 0.5}, "targets must be a list of numbers, was 0.5"),
        ({"budgets": ("all",)}, "budgets must be a list of numbers"),
        ({"reach": "far"}, "reach must be a number"),
        ({"reach": 0.0}, "reach must lie"),
        ({"margin_alert": 1.5}, "margin_alert must lie"),
    ],
)
def test_impossible_choices_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HierarchyConfig(**settings)  # type: ignore[arg-type]
