"""What an account sees, written in one place for the batch env, the single env and the live env."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from perpgym.data.tape import Tape
from perpgym.envs.arrays import BatchState, World
from perpgym.envs.batch import copy_windows, observe_batch
from perpgym.envs.buffers import StepBuffers
from perpgym.envs.rules import frozen

Parts = tuple[
    NDArray[np.int64],
    NDArray[np.float32],
    NDArray[np.float32],
    NDArray[np.float32] | None,
    NDArray[np.float32] | None,
]


def write_observation(
    world: World,
    state: BatchState,
    features: NDArray[np.float32],
    risk: NDArray[np.float32],
    window_bars: int,
    out: StepBuffers,
) -> None:
    """Write every account's observation at ``out.bar``, without stepping.

    Args:
        world, state: of the accounts.
        features, risk: (T, A * F) and (T, A * K) of the tape, see :func:`as_rows`.
        window_bars: R.
        out: buffers; windows are written where there are any.
    """
    observe_batch(world, state, out.bar, out.account, out.portfolio)
    if out.market is not None and out.risk is not None:
        copy_windows(features, risk, out.bar, window_bars, out.market, out.risk)


def as_rows(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """(T, A, F) as (T, A * F), sharing memory."""
    return frozen(frozen(columns).reshape(columns.shape[0], -1))


def observation_dict(tape: Tape, parts: Parts, chosen: int | None) -> dict[str, NDArray[Any]]:
    """The observation as Gymnasium's dictionary.

    Args:
        tape: the market.
        parts: bar, account, portfolio, and the windows of market and risk, or None.
        chosen: one account; None for all.

    Returns:
        Copies, as ``spaces.observation_space`` has them.
    """
    bar, account, portfolio, market, risk = parts
    rows = ... if chosen is None else chosen
    observation: dict[str, NDArray[Any]] = {
        "account": account[rows].copy(),
        "portfolio": portfolio[rows].copy(),
    }
    if market is None or risk is None:
        observation["bar"] = bar[rows, None].copy()
    else:
        observation["market"], observation["risk"] = market[rows].copy(), risk[rows].copy()
        observation["clock"] = tape.clock(bar[rows, None])
        if len(tape.contracts) > 1:
            window = np.arange(1 - market.shape[1], 1)
            observation["valid"] = tape.is_valid[bar[rows, None] + window].astype(np.float32)  # N R A, or R A
    return observation
