"""The arrays that a step writes: allocated once, the same for every face of the environment."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from perpgym.envs.account import ORDER_COLUMNS, POSITION_COLUMNS, WALLET_COLUMNS
from perpgym.envs.arrays import Account, StepArrays
from perpgym.envs.fees import TRADED_COLUMNS
from perpgym.envs.fills import FILL_COLUMNS
from perpgym.envs.spaces import (
    ACCOUNT_COLUMNS,
    CONTRACT_LEDGER_COLUMNS,
    LEDGER_COLUMNS,
    PORTFOLIO_COLUMNS,
    TOTAL_COLUMNS,
)

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class StepBuffers:
    """One step of N accounts, A contracts.

    Attributes:
        bar: (N,) int64, index on the tape of the newest closed bar.
        account: (N, A, Ca) float32, columns ``ACCOUNT_COLUMNS``.
        portfolio: (N, Cp) float32, columns ``PORTFOLIO_COLUMNS``.
        reward: (N,) float64, what ``EnvConfig.reward`` chooses, less penalties, times reward_scale.
        terminated: (N,) bool, cross liquidation or ruin.
        truncated: (N,) bool, end of the episode or of the data.
        ledger: (N, L) float64, columns ``LEDGER_COLUMNS``, of the step just booked.
        holdings: (N, A, H) float64, columns ``CONTRACT_LEDGER_COLUMNS``, of the same step.
        final_totals: (N, 8) float64, columns ``TOTAL_COLUMNS``, of the whole episode.
        final_bar, final_account, final_portfolio: the observation before an automatic restart; these and
            the totals are valid where terminated or truncated.
        market, risk: (N, R, A, F) and (N, R, A, K) float32 windows, newest bar last; None without windows.
        final_market, final_risk: windows at ``final_bar``; valid where done.
    """

    bar: NDArray[np.int64]
    account: Float32
    portfolio: Float32
    reward: Float64
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    ledger: Float64
    holdings: Float64
    final_totals: Float64
    final_bar: NDArray[np.int64]
    final_account: Float32
    final_portfolio: Float32
    market: Float32 | None = None
    risk: Float32 | None = None
    final_market: Float32 | None = None
    final_risk: Float32 | None = None

    @cached_property
    def step_arrays(self) -> StepArrays:
        """The arrays that the compiled step writes."""
        return StepArrays(*(getattr(self, name) for name in StepArrays._fields))

    @classmethod
    def allocate(
        cls, n_accounts: int, n_contracts: int, window: int | None, n_features: int, n_risk: int
    ) -> StepBuffers:
        """Zeroed buffers; ``window`` is R, or None for index observations only."""
        n, a = n_accounts, n_contracts
        windows: dict[str, Float32] = {}
        if window is not None:
            for prefix in ("", "final_"):
                windows[f"{prefix}market"] = np.zeros((n, window, a, n_features), np.float32)
                windows[f"{prefix}risk"] = np.zeros((n, window, a, n_risk), np.float32)
        return cls(
            bar=np.zeros(n, np.int64),
            account=np.zeros((n, a, len(ACCOUNT_COLUMNS)), np.float32),
            portfolio=np.zeros((n, len(PORTFOLIO_COLUMNS)), np.float32),
            reward=np.zeros(n, np.float64),
            terminated=np.zeros(n, np.bool_),
            truncated=np.zeros(n, np.bool_),
            ledger=np.zeros((n, len(LEDGER_COLUMNS)), np.float64),
            holdings=np.zeros((n, a, len(CONTRACT_LEDGER_COLUMNS)), np.float64),
            final_totals=np.zeros((n, len(TOTAL_COLUMNS)), np.float64),
            final_bar=np.zeros(n, np.int64),
            final_account=np.zeros((n, a, len(ACCOUNT_COLUMNS)), np.float32),
            final_portfolio=np.zeros((n, len(PORTFOLIO_COLUMNS)), np.float32),
            **windows,
        )


def make_account(n_contracts: int, n_fills: int = 0, *, has_tiers: bool = False) -> Account:
    """Zeroed rows of one account, with room for the first ``n_fills`` fills of a step, and for fee tiers."""
    return Account(
        wallet=np.zeros(WALLET_COLUMNS),
        positions=np.zeros((n_contracts, POSITION_COLUMNS)),
        ledger=np.zeros(len(LEDGER_COLUMNS)),
        holdings=np.zeros((n_contracts, len(CONTRACT_LEDGER_COLUMNS))),
        orders=np.zeros((n_contracts, ORDER_COLUMNS)),
        fills=np.zeros((n_fills, FILL_COLUMNS)),
        traded=np.zeros(TRADED_COLUMNS if has_tiers else 0),
    )
