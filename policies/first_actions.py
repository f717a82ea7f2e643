"""What a policy does before it has learnt anything: it follows its forecasts, and trades seldom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import nn

from perpgym.envs.actions import ACTION_DIM, DECISIONS
from perpgym.policies.config import PolicyConfig

# that an exposure of one is worth: choices are then as little explored as exposures with a log_std of -2.5
_LOGITS = 16.0


def follow_forecasts(
    layer: nn.Linear, space: spaces.Space[Any], n_assets: int, n_forecasts: int, config: PolicyConfig
) -> None:
    """Let the last layer of a policy that acts answer each contract's mean forecast.

    Exposures follow it in proportion. ``heads`` go long or short where it is worth more than ``hold_init``,
    which is a no-trade band too. A ladder starts even.

    Args:
        layer: whose last ``n_forecasts`` inputs are the forecasts, contract by contract.
        space: of the actions.
        n_assets: A.
        n_forecasts: A * H.
        config: of the policy.
    """
    trade_seldom(layer, space, n_assets, config.band_width_init, config.hold_init)
    n_rows = layer.out_features // n_assets
    if isinstance(space, spaces.Box):
        _answer(layer, [[n_rows * asset] for asset in range(n_assets)], [1.0], n_forecasts, config)
    elif _are_heads(space, n_assets):
        sides = [DECISIONS.index("long"), DECISIONS.index("short")]
        rows = [[n_rows * asset + side for side in sides] for asset in range(n_assets)]
        _answer(layer, rows, [_LOGITS, -_LOGITS], n_forecasts, config)


def trade_seldom(
    layer: nn.Linear, space: spaces.Space[Any], n_assets: int, band_width: float, hold: float
) -> None:
    """Let the last layer of a policy that acts begin with a no-trade band, or with holding what there is.

    Args:
        layer, space, n_assets: as of :func:`follow_forecasts`.
        band_width: the second of a contract's exposure actions, where there is one.
        hold: logit of holding, of ``heads``.
    """
    n_rows = layer.out_features // n_assets
    with torch.no_grad():
        if isinstance(space, spaces.Box) and n_rows == ACTION_DIM["band"]:
            layer.bias[1::2].fill_(band_width)
        elif _are_heads(space, n_assets):
            layer.bias[DECISIONS.index("hold") :: n_rows].fill_(hold)


def _are_heads(space: spaces.Space[Any], n_assets: int) -> bool:
    return isinstance(space, spaces.MultiDiscrete) and len(space.nvec) == n_assets * ACTION_DIM["heads"]


def aim_at_forecasts(
    layer: nn.Linear, targets: Sequence[float], n_assets: int, n_forecasts: int, config: PolicyConfig
) -> None:
    """Let the last layer of a manager find targets likely in proportion to the contract's mean forecast.

    Args:
        layer: whose first outputs are logits of ``targets``, contract by contract.
        targets: in units of ``max_exposure``.
        n_assets, n_forecasts, config: as of :func:`follow_forecasts`.
    """
    rows = [list(range(len(targets) * asset, len(targets) * (asset + 1))) for asset in range(n_assets)]
    _answer(layer, rows, [_LOGITS * target for target in targets], n_forecasts, config)


def _answer(
    layer: nn.Linear,
    rows: Sequence[Sequence[int]],
    slopes: Sequence[float],
    n_forecasts: int,
    config: PolicyConfig,
) -> None:
    """Of each contract these outputs, with these slopes in units of ``forecast_response``; no others."""
    if not n_forecasts:
        return
    horizons = len(config.forecast_bars)
    with torch.no_grad():
        direct = layer.weight[:, -n_forecasts:]
        direct.zero_()
        for asset, outputs in enumerate(rows):
            for output, slope in zip(outputs, slopes, strict=True):
                own = slice(asset * horizons, (asset + 1) * horizons)
                direct[output, own].fill_(slope * config.forecast_response / horizons)
