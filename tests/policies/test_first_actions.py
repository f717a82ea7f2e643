"""What a fresh policy does: nothing without a forecast, and what a large enough forecast asks for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from perpgym.envs.actions import DECISIONS
from perpgym.policies import PolicyConfig
from perpgym.policies.action_heads import ChoiceActions
from perpgym.policies.first_actions import aim_at_forecasts, follow_forecasts

COUNTS = (4, 3, 2, 2)
CONFIG = PolicyConfig(forecast_bars=(4, 8), forecast_response=0.5, band_width_init=-0.7, hold_init=6.0)
N_ASSETS, HIDDEN = 2, 3


def make(space: spaces.Space[object], outputs: int, n_forecasts: int = 4) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(HIDDEN + n_forecasts, outputs)
    nn.init.orthogonal_(layer.weight, 0.01)
    nn.init.zeros_(layer.bias)
    config = CONFIG if n_forecasts else PolicyConfig(hold_init=6.0)
    follow_forecasts(layer, space, N_ASSETS, n_forecasts, config)
    return layer


def answer(layer: nn.Linear, *forecasts: float) -> torch.Tensor:
    """(outputs,) of a forecast for each contract, the same for either horizon."""
    seen = torch.zeros(layer.in_features)
    if forecasts:
        seen[HIDDEN:] = torch.tensor(forecasts).repeat_interleave(2)
    return layer(seen).detach()  # type: ignore[no-any-return]


HEADS = spaces.MultiDiscrete(np.tile(np.array(COUNTS), N_ASSETS))


def decisions(layer: nn.Linear, *forecasts: float) -> list[str]:
    logits = answer(layer, *forecasts)
    choice = ChoiceActions(COUNTS * N_ASSETS).mode(logits).view(N_ASSETS, -1)[:, 0]
    return [DECISIONS[int(number)] for number in choice]


@pytest.mark.parametrize(
    ("forecasts", "expected"),
    [
        ((0.0, 0.0), ["hold", "hold"]),
        # 8 logits to a forecast of one, against the 6 of holding
        ((0.7, -0.7), ["hold", "hold"]),
        ((0.8, -0.8), ["long", "short"]),
        ((-2.0, 0.0), ["short", "hold"]),
    ],
)
def test_heads_trade_where_a_forecast_is_worth_more_than_holding(
    forecasts: tuple[float, float], expected: list[str]
) -> None:
    assert decisions(make(HEADS, 22), *forecasts) == expected


def test_fresh_heads_hold_nearly_always() -> None:
    for layer in (make(HEADS, 22), make(HEADS, 22, n_forecasts=0)):
        forecasts = (0.0, 0.0) if layer.in_features > HIDDEN else ()
        logits = answer(layer, *forecasts).view(N_ASSETS, -1)[:, :4]
        trades = 1.0 - logits.softmax(-1)[:, DECISIONS.index("hold")]
        torch.testing.assert_close(1.0 / trades, torch.tensor([135.5, 135.5]), atol=0.5, rtol=0.0)


def test_exposures_follow_the_mean_forecast_of_their_contract_in_a_band() -> None:
    layer = make(spaces.Box(-1.0, 1.0, (4,)), 4)
    torch.testing.assert_close(answer(layer, 0.6, -0.2), torch.tensor([0.3, -0.7, -0.1, -0.7]))


def test_a_ladder_starts_even() -> None:
    layer = make(spaces.MultiDiscrete(np.array([5, 5])), 10)
    assert answer(layer, 1.0, 1.0).abs().max() < 0.1


def test_a_manager_aims_where_its_forecasts_point() -> None:
    targets = (-1.0, 0.0, 1.0)
    layer = nn.Linear(HIDDEN + 4, len(targets) * N_ASSETS + 2)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    aim_at_forecasts(layer, targets, N_ASSETS, 4, CONFIG)
    expected = torch.tensor([-4.0, 0.0, 4.0, 2.0, 0.0, -2.0, 0.0, 0.0])
    torch.testing.assert_close(answer(layer, 0.5, -0.25), expected)
