"""On a market whose next price is on average the present one, nothing that an account can do earns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from perpgym.data.contract import Contract
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.config import EXECUTION_STYLES, ExecutionStyle
from perpgym.envs.spaces import LEDGER

MakeTape = Callable[..., Tape]
BARS, ACCOUNTS, STEPS, MOVES = 16_000, 512, 300, 900
# an account is new after so many bars, so that none becomes rich or poor
EPISODE = 100
CENTRE, BAR_MOVE, GAP = 60_000.0, 60.0, 40.0
STOPS: dict[str, dict[str, Any]] = {
    "none": {},
    "stop and target": {"stop_loss": 0.0012, "take_profit": 0.0012},
    "near target, far stop": {"stop_loss": 0.005, "take_profit": 0.0004},
    "on the last price": {"stop_loss": 0.0008, "take_profit": 0.0008, "stop_trigger": "last"},
    "trailing": {"stop_loss": 0.0012, "trailing_stop": True},
    "time": {"max_bars_held": 3},
}


@pytest.fixture(scope="module")
def driftless(make_tape: MakeTape, contract: Contract) -> Tape:
    """A walk in many small moves, a gap before every third bar; nothing is rounded away."""
    rng = np.random.default_rng(0)
    moves = BAR_MOVE / np.sqrt(MOVES) * (2.0 * rng.integers(0, 2, (BARS, MOVES), np.int8) - 1.0)
    gaps = GAP * rng.standard_normal(BARS) * (np.arange(BARS) % 3 == 0)
    inside = np.cumsum(moves, axis=1)
    ends = np.cumsum(gaps + inside[:, -1])
    opens = CENTRE + np.concatenate([[0.0], ends[:-1]]) + gaps
    path = opens[:, None] + np.concatenate([np.zeros((BARS, 1)), inside], axis=1)
    prices = np.stack([path[:, 0], path.max(1), path.min(1), path[:, -1]], axis=1)[:, None]
    fine = replace(contract, tick_size=1e-6, lot_size=1e-9, min_quantity=1e-9, min_notional=0.0)
    tape = make_tape(bars=BARS, rules=fine, funding_rate=0.0, volume=1e9)
    sigma = np.full((BARS, 1), BAR_MOVE / CENTRE)
    return replace(tape, last=prices, mark=prices, sigma_per_bar=sigma, _cache={})


# what an account wants, from the bars at which it stands (N,) and the exposures that it has (N,)
Policy = Callable[[np.ndarray, np.ndarray], np.ndarray]


def t_of_the_mean(tape: Tape, policy: Policy, **settings: Any) -> float:
    """The profit of all accounts over its standard error, without costs."""
    free: dict[str, Any] = {
        "half_spread_bps": 0.0, "impact_coefficient": 0.0, "taker_rate": 0.0, "maker_rate": 0.0,
        "action": "target", "max_exposure": 1.0, "rebalance_threshold": 0.0, "sizing": "fixed_notional",
        "max_participation": 1.0, "max_drawdown": 1.0, "window_bars": 1, "episode_bars": EPISODE,
    }  # fmt: skip
    config = EnvConfig(**free | settings)
    env = PerpVecEnv(tape, n_paths=ACCOUNTS, config=config, limits=RiskLimits(max_daily_loss=None))
    out = env.make_buffers()
    env.reset_into(out, 0)
    profits = np.zeros(len(tape))
    for _ in range(STEPS):
        bars = out.bar + 1
        env.step_into(policy(out.bar, out.account[:, 0, 0])[:, None].astype(np.float32), out)
        np.add.at(profits, bars, out.ledger[:, LEDGER["equity"]] - out.ledger[:, LEDGER["equity_before"]])
    # accounts that live through one bar do not count as independent
    return float(profits.sum() / np.sqrt((profits**2).sum()))


def random_targets() -> Policy:
    """Long, short or flat, drawn anew every four bars by every account."""
    drawn = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], (BARS // 4 + 1, ACCOUNTS))
    targets = np.repeat(drawn, 4, axis=0)[:BARS]
    return lambda bar, _exposure: targets[bar, np.arange(ACCOUNTS)]


def adding() -> Policy:
    """A little first; the rest once that is there; again after every stop. Every second account is short."""
    side = np.where(np.arange(ACCOUNTS) % 2 == 0, 1.0, -1.0)
    return lambda _bar, exposure: side * np.where(side * exposure > 0.05, 1.0, 0.1)


@pytest.mark.parametrize("stops", STOPS)
@pytest.mark.parametrize("execution", EXECUTION_STYLES)
def test_no_way_to_trade_and_no_stop_earns(driftless: Tape, execution: ExecutionStyle, stops: str) -> None:
    t = t_of_the_mean(driftless, random_targets(), execution=execution, limit_offset_bps=2.0, **STOPS[stops])
    # a stop's price is better than the end of the small move through it: 2.4 with moves of this size
    assert t < 3.0


@pytest.mark.parametrize("stops", ["none", "near", "trailing", "trailing on the last price"])
@pytest.mark.parametrize(
    "orders",
    [
        {"execution": "market"},
        {"execution": "limit", "limit_offset_bps": 2.0},
        {"execution": "limit", "limit_offset_bps": 8.0},
        {"execution": "limit", "limit_offset_bps": 8.0, "remainder": "carry"},
        {"execution": "iceberg", "limit_offset_bps": 8.0, "latency_bars": 1},
        {"execution": "twap"},
        {"execution": "vwap", "latency_bars": 1},
    ],
    ids=lambda orders: " ".join(map(str, orders.values())),
)
def test_adding_to_a_position_under_a_stop_neither_earns_nor_costs(
    driftless: Tape, orders: dict[str, Any], stops: str
) -> None:
    settings: dict[str, Any] = {
        "none": {}, "near": {"stop_loss": 0.0006}, "trailing": {"stop_loss": 0.0006, "trailing_stop": True},
        "trailing on the last price": {"stop_loss": 0.0012, "trailing_stop": True, "stop_trigger": "last"},
    }[stops]  # fmt: skip
    t = t_of_the_mean(driftless, adding(), **{"rebalance_threshold": 0.02} | orders | settings)
    assert abs(t) < 3.0


def test_who_knows_the_next_bar_earns(driftless: Tape) -> None:
    last = driftless.last[:, 0]
    coming = np.append(np.sign(last[1:, 3] - last[1:, 0]), 0.0)
    assert t_of_the_mean(driftless, lambda bar, _exposure: coming[bar]) > 50.0
