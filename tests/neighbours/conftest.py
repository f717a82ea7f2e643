"""Small markets on which a neighbour's wrong sum and the env's right one can be told apart by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from perpgym.data.contract import Bracket, Contract
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpEnv, RiskLimits

HOUR_MS = 3_600_000
# 2021-01-04 00:00 UTC, a Monday
START_MS = 1_609_718_400_000
Prices = tuple[float, float, float, float]

PLAIN = Contract(
    symbol="PLAIN/USDT:USDT",
    tick_size=1e-6,
    lot_size=1e-6,
    min_quantity=1e-6,
    min_notional=1e-6,
    brackets=(Bracket(floor=0.0, cap=math.inf, maintenance_margin_rate=0.01, cum=0.0, max_leverage=100.0),),
)
# nothing costs anything and no limit binds unless a test asks for it
FREE: dict[str, Any] = {
    "initial_wallet": 1_000.0,
    "leverage": 64.0,
    "max_exposure": 8.0,
    "action": "band",
    "rebalance_threshold": 0.0,
    "half_spread_bps": 0.0,
    "impact_coefficient": 0.0,
    "taker_rate": 0.0,
    "maker_rate": 0.0,
    "max_drawdown": 1.0,
    "max_participation": 1.0,
    "window_bars": 1,
    "episode_bars": 10**6,
}


def flat(price: float) -> Prices:
    """A bar that does not move."""
    return (price, price, price, price)


def tape_of(
    bars: Sequence[Prices],
    *,
    mark: Sequence[Prices] | None = None,
    stamps: Sequence[tuple[float, float]] = (),
    contract: Contract = PLAIN,
    bar_ms: int = HOUR_MS,
    volume: float = 1e9,
) -> Tape:
    """A tape of these open, high, low, close; ``stamps`` are (hours after the first open, rate)."""
    last = np.array(bars, np.float64)[:, None, :]
    count = len(last)
    times = np.array([START_MS + round(hours * HOUR_MS) for hours, _rate in stamps], np.int64)
    owner = -((START_MS - times) // bar_ms) - 1
    return Tape(
        contracts=(contract,),
        bar_ms=bar_ms,
        open_time_ms=START_MS + bar_ms * np.arange(count, dtype=np.int64),
        last=last,
        mark=last if mark is None else np.array(mark, np.float64)[:, None, :],
        volume=np.full((count, 1), volume),
        sigma_per_bar=np.full((count, 1), 0.01),
        stamp_start=np.searchsorted(owner, np.arange(count + 1))[None].astype(np.int64),
        stamp_time_ms=times,
        stamp_rate=np.array([rate for _hours, rate in stamps], np.float64),
        features=np.arange(2 * count, dtype=np.float32).reshape(count, 1, 2),
        risk=np.zeros((count, 1, 1), np.float32),
        feature_names=("first", "second"),
        risk_names=("risk",),
        first_valid_bar=0,
        mark_rules=("mark",),
        source="test",
    )


class Played:
    """An env that has lived through its bars, and what it said on the way."""

    def __init__(self, tape: Tape, exposures: Sequence[float | None], **settings: Any) -> None:
        config = EnvConfig(**(FREE | settings))
        self.env = PerpEnv(tape, config=config, limits=RiskLimits(max_leverage=150.0, max_daily_loss=None))
        self.observations = [self.env.reset(seed=0)[0]]
        self.rows: list[dict[str, Any]] = []
        self.rewards: list[float] = []
        self.terminated = False
        for exposure in exposures:
            observation, reward, self.terminated, _truncated, info = self.env.step(
                self.action(exposure, config)
            )
            self.observations.append(observation)
            self.rewards.append(reward)
            self.rows.append(info)
            if self.terminated:
                break

    @staticmethod
    def action(exposure: float | None, config: EnvConfig) -> np.ndarray:
        """Of the band action, unless ``target`` is configured: None holds the quantity that there is."""
        if config.action == "target":
            assert exposure is not None
            return np.array([exposure / config.max_exposure], np.float32)
        band = [0.0, 1.0] if exposure is None else [exposure / config.max_exposure, -1.0]
        return np.array(band, np.float32)

    def __getitem__(self, name: str) -> list[float]:
        """A ledger column over the steps."""
        return [float(row[name]) for row in self.rows]


@pytest.fixture(scope="session")
def plain() -> Contract:
    """A contract with one bracket of 1 %, and steps so small that nothing is rounded away."""
    return PLAIN


@pytest.fixture(scope="session")
def make_market() -> Callable[..., Tape]:
    """Bars to a tape; test files cannot import one another."""
    return tape_of


@pytest.fixture(scope="session")
def play() -> Callable[..., Played]:
    """Bars and one exposure a step (None holds), played through ``PerpEnv``."""

    def run(
        bars: Sequence[Prices],
        exposures: Sequence[float | None],
        *,
        mark: Sequence[Prices] | None = None,
        stamps: Sequence[tuple[float, float]] = (),
        contract: Contract = PLAIN,
        bar_ms: int = HOUR_MS,
        volume: float = 1e9,
        **settings: Any,
    ) -> Played:
        market = tape_of(bars, mark=mark, stamps=stamps, contract=contract, bar_ms=bar_ms, volume=volume)
        return Played(market, exposures, **settings)

    return run
