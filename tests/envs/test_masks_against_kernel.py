"""A mask forbids what the exchange would cut, and nothing else, while the market does not move."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from perpgym.data.contract import Bracket, Contract
from perpgym.envs import EnvConfig, RiskLimits
from perpgym.envs.account import (
    DAY_EQUITY,
    DAY_LOW_EQUITY,
    EQUITY,
    PEAK_EQUITY,
    QUANTITY,
    WALLET,
    apply_fill,
    open_account,
    unrealised_profit,
)
from perpgym.envs.arrays import Account, ContractRules, World
from perpgym.envs.buffers import make_account
from perpgym.envs.kernel import step_account
from perpgym.envs.liquidation import is_short_at
from perpgym.envs.masks import is_admitted
from perpgym.envs.orders import BRACKET, MARGIN, TOO_SMALL
from perpgym.envs.rules import frozen, make_account_rules, one_bar_market, pack_contracts
from perpgym.envs.spaces import CONTRACT_LEDGER, LEDGER

BRACKETS = (
    Bracket(floor=0.0, cap=20_000.0, maintenance_margin_rate=0.01, cum=0.0, max_leverage=50.0),
    Bracket(floor=20_000.0, cap=90_000.0, maintenance_margin_rate=0.02, cum=200.0, max_leverage=20.0),
)
MAX_EXPOSURE, HOUR_MS = 10.0, 3_600_000


class Still:
    """An account on a market that stands still from here on; fills are (contract, quantity, price), free."""

    def __init__(
        self, wallet: float, marks: list[float], fills: list[tuple[int, float, float]], **settings: Any
    ) -> None:
        plain: dict[str, Any] = {
            "leverage": 10.0, "max_exposure": MAX_EXPOSURE, "max_drawdown": 1.0, "rebalance_threshold": 0.0,
        }  # fmt: skip
        self.config = EnvConfig(**plain | settings)
        limits = RiskLimits(max_leverage=150.0, max_daily_loss=None)
        contracts = tuple(Contract(symbol=f"{n}/USDT:USDT", brackets=BRACKETS) for n in "ABC"[: len(marks)])
        packed, brackets = pack_contracts(contracts, self.config)
        flat = np.repeat(np.array(marks)[:, None], 4, axis=1)
        market = one_bar_market(
            mark_before=flat[:, 0], last=flat, mark=flat, volume=np.full(len(marks), 1e9),
            sigma_per_bar=np.full(len(marks), 0.01), open_ms=HOUR_MS,
        )  # fmt: skip
        market = market._replace(volume=frozen(np.full((2, len(marks)), 1e9)))
        self.world = World(market, packed, brackets, make_account_rules(self.config, limits))
        self.account = make_account(len(marks))
        self.contracts = [ContractRules(*row) for row in packed.tolist()]
        wallet_row, positions = self.account.wallet, self.account.positions
        open_account(wallet_row, positions, wallet)
        for asset, quantity, price in fills:
            rules = self.contracts[asset]
            apply_fill(wallet_row, positions, asset, quantity, price, 0.0, rules, self.world.rules)
        profits = [unrealised_profit(p, m, 0.0) for p, m in zip(positions, marks, strict=True)]
        equity = float(wallet_row[WALLET]) + float(sum(profits))
        wallet_row[[EQUITY, PEAK_EQUITY, DAY_EQUITY, DAY_LOW_EQUITY]] = equity
        self.marks, self.equity = marks, equity

    @property
    def is_sound(self) -> bool:
        sizes = np.abs(self.account.positions[:, QUANTITY] * self.marks)
        # a band of the whole range holds no exposure beyond it
        is_held = self.equity > 0.0 and bool((sizes < MAX_EXPOSURE * self.equity).all())
        return is_held and not is_short_at(self.account, self.world, 1, 0)

    def is_allowed(self, asset: int, wish: float) -> bool:
        return bool(is_admitted(self.account, self.world, asset, wish, 0))

    def is_filled_whole(self, asset: int, wish: float) -> bool:
        """What the kernel makes of it in the next bar, of a copy; the other contracts hold."""
        band = np.zeros((len(self.marks), 2), np.float32)
        band[:, 1] = 1.0
        band[asset] = (wish / MAX_EXPOSURE, -1.0)
        copy = Account(*(part.copy() for part in self.account))
        step_account(copy, self.world, band.ravel(), 1, False, make_account(len(self.marks)))
        reason = int(copy.holdings[asset, CONTRACT_LEDGER["reason"]])
        assert reason & ~(MARGIN | BRACKET | TOO_SMALL) == 0
        return reason == 0 and copy.ledger[LEDGER["overlay"]] == 0.0


def exactly(wish: float) -> float:
    """The exposure that an action of this many bits can ask for."""
    return float(np.float32(wish / MAX_EXPOSURE)) * MAX_EXPOSURE


def test_profit_of_a_kept_isolated_position_carries_nothing_and_its_old_margin_stays() -> None:
    # 100 posted for 10 at 100, 50 of free wallet; at 200 a unit more needs 20, and its fee and spread
    account = Still(150.0, [200.0], [(0, 10.0, 100.0)], margin_mode="isolated")
    allowed = [account.is_allowed(0, exactly(q * 200.0 / account.equity)) for q in (12.0, 12.4, 12.6, 14.0)]
    assert allowed == [True, True, False, False]


def test_profit_of_an_isolated_position_is_no_margin_of_a_cross_one() -> None:
    settings = {"margin_mode": ["cross", "isolated"]}
    account = Still(1_000.0, [100.0, 125.0], [(1, 20.0, 100.0)], **settings)
    # 800 of free wallet carry 80 at 100
    allowed = [account.is_allowed(0, exactly(q * 100.0 / account.equity)) for q in (75.0, 79.0, 80.5, 95.0)]
    assert allowed == [True, True, False, False]


@pytest.mark.parametrize("seed", range(8))
def test_the_mask_and_the_kernel_agree_on_a_market_that_stands_still(seed: int) -> None:
    rng = np.random.default_rng(seed)
    seen = {True: 0, False: 0}
    for _ in range(60):
        count = int(rng.integers(1, 4))
        marks = (100.0 * rng.uniform(0.5, 2.0, count)).round(2).tolist()
        fills = [
            (asset, float(round(rng.normal(0.0, 30.0), 3)), float(round(rng.uniform(50.0, 200.0), 2)))
            for asset in range(count)
            if rng.random() < 0.7
        ]
        account = Still(
            float(rng.uniform(300.0, 3_000.0)), marks, fills,
            margin_mode=tuple(rng.choice(["cross", "isolated"], count).tolist()),
            leverage=tuple(rng.choice([10.0, 20.0, 25.0], count).tolist()),
            half_spread_bps=float(rng.choice([0.0, 20.0])), taker_rate=float(rng.choice([0.0, 0.001])),
        )  # fmt: skip
        if not account.is_sound:
            continue
        for asset in range(count):
            for wish in map(exactly, [*rng.uniform(-10.0, 10.0, 4), rng.normal(0.0, 0.01), 0.0]):
                allowed = account.is_allowed(asset, wish)
                assert allowed == account.is_filled_whole(asset, wish), (account.config, fills, asset, wish)
                seen[allowed] += account.account.positions[asset, QUANTITY] != 0.0
    assert min(seen.values()) > 5, seen
