"""What an agent sees and what is booked: every column of observation and ledger, with unit and range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from perpgym.data.tape import CLOCK_PERIOD, Tape


@dataclass(frozen=True)
class Column:
    """One observation column. All are known at the close of the newest bar.

    Attributes:
        name: identifier.
        unit: what a value of 1.0 is.
        low, high: the column is clipped to this range.
        meaning: one sentence.
    """

    name: str
    unit: str
    low: float
    high: float
    meaning: str


# one row per contract
ACCOUNT_COLUMNS: tuple[Column, ...] = (
    Column("exposure", "equity", -10.0, 10.0, "signed notional at the mark close over equity"),
    Column("unrealised", "equity", -5.0, 5.0, "unrealised profit at the mark close over equity"),
    Column("liquidation_distance", "mark", 0.0, 1.0, "|mark - liquidation price| / mark; 1 if there is none"),
    Column("stop_distance", "mark", 0.0, 1.0, "|mark - stop-loss price| / mark; 1 if there is none"),
    Column("target_distance", "mark", 0.0, 1.0, "|take-profit price - mark| / mark; 1 if there is none"),
    Column("bars_held", "1000 bars", 0.0, 10.0, "age of the position's present direction"),
    Column(
        "asked", "equity", -10.0, 10.0, "ladder level that stands, else exposure with what is being worked"
    ),
    Column("tradable", "0 or 1", 0.0, 1.0, "whether the contract traded in the newest bar"),
    Column("impact", "1 % of price", -10.0, 10.0, "what its own earlier fills still add to its price"),
)

PORTFOLIO_COLUMNS: tuple[Column, ...] = (
    Column("log_equity", "log", -5.0, 5.0, "log of equity over the initial wallet"),
    Column(
        "margin_ratio",
        "fraction",
        0.0,
        1.0,
        "maintenance margin over margin balance; 1 liquidates, and says so for the bar that did",
    ),
    Column("drawdown", "fraction", 0.0, 1.0, "1 - equity / highest equity of the episode"),
    Column("day_return", "fraction", -1.0, 1.0, "equity over equity at the last UTC midnight, minus 1"),
    Column("risk_budget", "fraction", 0.0, 1.0, "exposure the overlay admits now, over max_exposure"),
    Column("accrued_funding", "1 % equity", -10.0, 10.0, "funding received since the last UTC midnight"),
    Column(
        "recent_costs",
        "1 % equity",
        0.0,
        10.0,
        "fees, spread and impact, decaying with a half-life of 24 bars",
    ),
    # 0 with other rewards, which remember nothing
    Column("return_mean", "deviations", -5.0, 5.0, "differential ratios: running mean of the log return"),
    Column("return_deviation", "1 % equity", 0.0, 10.0, "differential ratios: its running deviation"),
)

ACCOUNT_NAMES = tuple(c.name for c in ACCOUNT_COLUMNS)
PORTFOLIO_NAMES = tuple(c.name for c in PORTFOLIO_COLUMNS)

# of one step, by account:
# equity change = price_pnl + funding - fees - clearance - spread - impact + insurance
LEDGER_COLUMNS: tuple[str, ...] = (
    "equity",  # settle currency (as all money here), after the step, before an automatic reset
    "equity_before",
    "price_pnl",
    "funding",  # received > 0
    "fees",  # paid > 0
    "clearance",  # paid > 0
    "spread",  # paid > 0
    "impact",  # paid > 0; the trace of earlier fills may give back
    "insurance",  # received from the insurance fund
    "traded_notional",  # sum of |fill notional|
    "exposure",  # signed notional over equity at the mark close, after the step, all contracts
    "gross_exposure",  # the same without signs
    "position",  # after the step, of the first contract; all are in the contract ledger
    "fill_price",  # quote, the first contract's
    "fills",  # number of fills in the step
    "liquidated",  # 1 if a liquidation closed a position in the step
    "stopped",  # 1 if a stop-loss or take-profit filled in the step
    "reward_floored",  # 1 if the log return hit reward_equity_floor
    "overlay",  # bits of envs.risk.overlay that changed the action; 0 = none
    "drawdown",  # fraction, after the step
)
# the parts that add up to the equity change, and what was traded: these are summed over an episode
TOTAL_COLUMNS: tuple[str, ...] = LEDGER_COLUMNS[2:10]
FIRST_PART = 2
LEDGER = {name: i for i, name in enumerate(LEDGER_COLUMNS)}

# of one step, by account and contract
CONTRACT_LEDGER_COLUMNS: tuple[str, ...] = (
    "position",  # signed, after the step: base (linear) or quote (inverse)
    "exposure",  # signed notional over equity at the mark close, after the step
    "fill_price",  # quote, of the order decided at the last close; 0 without a fill
    "filled",  # signed, all that was bought less all that was sold in the step
    "profit",  # settle currency: price_pnl + funding - costs; of all contracts, the equity change
    "costs",  # paid > 0: fees, spread, impact and clearance, less what the insurance fund bore
    "funding",  # received > 0
    "reason",  # bits of envs.orders: why the order was cut or dropped; 0 = it was not
)
CONTRACT_LEDGER = {name: i for i, name in enumerate(CONTRACT_LEDGER_COLUMNS)}

# raw features are finite and clipped by their registry; this bound only makes the Box finite
FEATURE_BOUND = 1e6
# the same for every tape, so that a saved model meets the same space on another one
MAX_BAR = 2**40


def observation_space(tape: Tape, window: int, with_windows: bool) -> gym.spaces.Dict:
    """One account's observation, with bar indices or with R-bar windows.

    Args:
        tape: gives the number of contracts, features and risk columns.
        window: R, bars.
        with_windows: windows and ``clock`` instead of ``bar``.
    """
    assets = len(tape.contracts)
    if with_windows:
        return window_space(assets, tape.features.shape[2], tape.risk.shape[2], window)
    return gym.spaces.Dict({**_account_spaces(assets), "bar": gym.spaces.Box(0, MAX_BAR, (1,), np.int64)})


def window_space(assets: int, n_features: int, n_risk: int, window: int) -> gym.spaces.Dict:
    """One account's observation with windows of R = ``window`` bars."""
    spaces = _account_spaces(assets)
    for name, width in (("market", n_features), ("risk", n_risk)):
        spaces[name] = gym.spaces.Box(-FEATURE_BOUND, FEATURE_BOUND, (window, assets, width), np.float32)
    spaces["clock"] = gym.spaces.Box(0, CLOCK_PERIOD - 1, (1,), np.int64)
    if assets > 1:
        spaces["valid"] = gym.spaces.Box(0.0, 1.0, (window, assets), np.float32)
    return gym.spaces.Dict(spaces)


def _account_spaces(assets: int) -> dict[str, gym.spaces.Space[Any]]:
    return {
        "account": _columns_box(ACCOUNT_COLUMNS, (assets,)),
        "portfolio": _columns_box(PORTFOLIO_COLUMNS, ()),
    }


def _columns_box(columns: tuple[Column, ...], leading: tuple[int, ...]) -> gym.spaces.Box:
    low = np.broadcast_to(np.array([c.low for c in columns], np.float32), (*leading, len(columns)))
    high = np.broadcast_to(np.array([c.high for c in columns], np.float32), (*leading, len(columns)))
    return gym.spaces.Box(low, high, dtype=np.float32)


def observation_table() -> str:
    """The account and portfolio columns as a plain-text table, for docstrings and docs."""
    rows = [("column", "unit", "range", "meaning")]
    rows += [
        (c.name, c.unit, f"{c.low:g} … {c.high:g}", c.meaning) for c in ACCOUNT_COLUMNS + PORTFOLIO_COLUMNS
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows
    )
