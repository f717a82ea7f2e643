"""The account's state as the network sees it: one fixed divisor a column, nothing fitted."""

from __future__ import annotations

import torch

from perpgym.envs.spaces import ACCOUNT_COLUMNS, PORTFOLIO_COLUMNS, Column

# what counts as a large value, in the column's unit; a column that is not listed is divided by its range
_TYPICAL = {
    "exposure": 1.0,
    "unrealised": 0.1,
    "liquidation_distance": 1.0,
    "stop_distance": 0.1,
    "target_distance": 0.1,
    "bars_held": 0.1,
    "log_equity": 0.25,
    "margin_ratio": 0.25,
    "drawdown": 0.1,
    "day_return": 0.05,
    "risk_budget": 1.0,
    "accrued_funding": 0.1,
    "recent_costs": 0.1,
}


def state_divisors(n_assets: int) -> torch.Tensor:
    """(A * Ca + Cp,) float32: the divisors of flattened account columns, then of portfolio columns."""
    account = [_divisor(column) for column in ACCOUNT_COLUMNS]
    portfolio = [_divisor(column) for column in PORTFOLIO_COLUMNS]
    return torch.tensor(account * n_assets + portfolio)


def _divisor(column: Column) -> float:
    return _TYPICAL.get(column.name, max(abs(column.low), abs(column.high)))
