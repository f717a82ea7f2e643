"""What an account sees, written in one place for the batch env, the single env and the live env."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from perpgym.data.tape import Tape
from perpgym.envs.rules import frozen


def as_rows(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """(T, A, F) as (T, A * F), sharing memory."""
    return frozen(frozen(columns).reshape(columns.shape[0], -1))


def observation_dict(
    tape: Tape,
    bar: NDArray[np.int64],
    account: NDArray[np.float32],
    portfolio: NDArray[np.float32],
    market: NDArray[np.float32] | None,
    risk: NDArray[np.float32] | None,
) -> dict[str, NDArray[Any]]:
    """All accounts' observation as Gymnasium's dictionary: copies, as ``spaces.observation_space`` has them.

    Args:
        tape: the market.
        bar: (N,) newest bars.
        account, portfolio: (N, A, Ca) and (N, Cp).
        market, risk: (N, R, A, F) and (N, R, A, K) windows; None for an index observation.
    """
    observation: dict[str, NDArray[Any]] = {"account": account.copy(), "portfolio": portfolio.copy()}
    if market is None or risk is None:
        observation["bar"] = bar[:, None].copy()
        return observation
    observation["market"], observation["risk"] = market.copy(), risk.copy()
    observation["clock"] = tape.clock(bar[:, None])
    if len(tape.contracts) > 1:
        window = np.arange(1 - market.shape[1], 1)
        observation["valid"] = tape.is_valid[bar[:, None] + window].astype(np.float32)  # N R A
    return observation


def single_observation(
    tape: Tape, window_bars: int, bar: int, account: NDArray[np.float32], portfolio: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """One account's observation with windows, at the close of a bar: copies, which may be kept and changed.

    Args:
        tape: the market.
        window_bars: R.
        bar: index of the newest bar.
        account, portfolio: (A, Ca) and (Cp,).
    """
    window = slice(bar + 1 - window_bars, bar + 1)
    observation: dict[str, NDArray[Any]] = {
        "account": account.copy(),
        "portfolio": portfolio.copy(),
        "market": tape.features[window].copy(),
        "risk": tape.risk[window].copy(),
        "clock": np.array([tape.clock(bar)]),
    }
    if len(tape.contracts) > 1:
        observation["valid"] = tape.is_valid[window].astype(np.float32)
    return observation
