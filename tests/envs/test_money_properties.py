"""What must hold for every kind of account: linear and inverse, cross and isolated, one contract and several,
every execution style. No money from nothing, mirrors, costs, units, maintenance margin."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, Literal

import numpy as np
import pytest

from perpgym.data.contract import Bracket, Contract, load_contract, shipped_contracts
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.account import ISOLATED_WALLET, QUANTITY, WALLET, position_excess
from perpgym.envs.config import EXECUTION_STYLES, ExecutionStyle
from perpgym.envs.impact_model import ImpactModel
from perpgym.envs.margin import maintenance_margin
from perpgym.envs.spaces import LEDGER

MakeTape = Callable[..., Tape]
MergeTapes = Callable[[list[Tape]], Tape]
FREE = RiskLimits(max_leverage=150.0, max_daily_loss=None)
PRICE = 30_000.0
NO_COSTS: dict[str, Any] = {
    "half_spread_bps": 0.0,
    "impact_coefficient": 0.0,
    "taker_rate": 0.0,
    "maker_rate": 0.0,
}
TAKERS: tuple[ExecutionStyle, ...] = ("market", "twap", "vwap")


@dataclass(frozen=True)
class Kind:
    """Of an account: contract, margin and how many contracts share the wallet."""

    contract: Literal["linear", "inverse"]
    margin: Literal["cross", "isolated"]
    count: int

    def __str__(self) -> str:
        return f"{self.contract}-{self.margin}-{self.count}"

    @property
    def wallet(self) -> float:
        """A million, in quote or in coin."""
        return 1e6 if self.contract == "linear" else 1e6 / PRICE

    def rules(self, contract: Contract, **changes: Any) -> Contract:
        """The contract, with brackets in its own settle currency, and steps that round little away."""
        fine: dict[str, Any] = {"lot_size": 2.0**-20, "min_quantity": 2.0**-20, "tick_size": 2.0**-20}
        if self.contract == "inverse":
            return in_units(replace(contract, kind="inverse", **fine | changes), money=1 / PRICE)
        return replace(contract, **fine | changes)


KINDS = [Kind(*kind) for kind in product(("linear", "inverse"), ("cross", "isolated"), (1, 3))]  # type: ignore[arg-type]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def in_units(contract: Contract, *, price: float = 1.0, size: float = 1.0, money: float = 1.0) -> Contract:
    """The contract with prices, quantities and amounts of money so many times as large."""
    brackets = tuple(
        replace(b, floor=b.floor * money, cap=b.cap * money, cum=b.cum * money) for b in contract.brackets
    )
    return replace(
        contract, tick_size=contract.tick_size * price, lot_size=contract.lot_size * size,
        min_quantity=contract.min_quantity * size, max_quantity=contract.max_quantity * size,
        # quote, which is what an inverse contract counts
        min_notional=contract.min_notional * (size if contract.kind == "inverse" else money),
        brackets=brackets,
    )  # fmt: skip


@pytest.fixture
def make_market(make_tape: MakeTape, merge_tapes: MergeTapes, contract: Contract) -> Callable[..., Tape]:
    """So many contracts of a kind, independent, with settlements."""

    def make(kind: Kind, seed: int = 0, **settings: Any) -> Tape:
        plain = {"rules": kind.rules(contract), "bars": 160} | settings
        return merge_tapes([make_tape(seed=31 * seed + i, **plain) for i in range(kind.count)])

    return make


class Played:
    """Accounts of one path that live through ``exposures`` (T, N, A), nan to hold: what was booked."""

    def __init__(self, tape: Tape, kind: Kind, exposures: np.ndarray, **settings: Any) -> None:
        plain: dict[str, Any] = {
            "initial_wallet": kind.wallet, "margin_mode": kind.margin, "max_exposure": 16.0,
            "rebalance_threshold": 0.0, "window_bars": 1, "episode_bars": 10**6, "max_drawdown": 1.0,
        }  # fmt: skip
        config = EnvConfig(**plain | settings)
        self.tape = tape
        self.env = PerpVecEnv(
            tape, n_paths=1, accounts_per_path=exposures.shape[1], config=config, limits=FREE
        )
        out = self.env.make_buffers()
        self.env.reset_into(out, 0)
        rows, wallets, positions = [], [], []
        is_held = np.isnan(exposures)
        centre = np.where(is_held, 0.0, exposures / config.max_exposure)
        # a band without width is a target, the widest one holds
        bands = np.stack([centre, np.where(is_held, 1.0, -1.0)], axis=-1)
        for band in bands.reshape(*exposures.shape[:2], -1).astype(np.float32):
            self.env.step_into(band, out)
            rows.append(out.ledger.copy())
            state = self.env.state_dict()
            wallets.append(state["wallets"])
            positions.append(state["positions"])
            if out.truncated.any():
                break
        self.rows, self.wallets, self.positions = np.array(rows), np.array(wallets), np.array(positions)

    def __getitem__(self, name: str) -> np.ndarray:
        """(T, N) of the ledger."""
        return np.asarray(self.rows[..., LEDGER[name]])


def random_exposures(kind: Kind, steps: int, accounts: int, most: float, seed: int = 0) -> np.ndarray:
    shape = (steps, accounts, kind.count)
    return np.random.default_rng(seed).uniform(-most, most, shape)


# --- no money from nothing ---


@pytest.mark.parametrize("execution", EXECUTION_STYLES)
@each_kind
def test_trading_in_circles_on_a_flat_market_only_costs(
    make_market: Callable[..., Tape], kind: Kind, execution: ExecutionStyle
) -> None:
    traces = (
        ImpactModel(),
        ImpactModel(kind="exponential", transient_coefficient=50.0, half_life_minutes=90.0),
    )
    plan = np.concatenate([random_exposures(kind, 40, 8, 3.0), np.zeros((4, 8, kind.count))])
    for basis, trace in product((0.0, 0.004, -0.004), traces):
        tape = make_market(
            kind, closes=np.full(60, PRICE), bars=60, wick=0.0, funding_rate=0.0, mark_basis=basis
        )
        # what is half a percent away from a market that stands still is never traded
        played = Played(tape, kind, plan, execution=execution, limit_offset_bps=50.0, impact=trace)
        assert not played.positions[-1, :, :, QUANTITY].any()
        traded, equity = played["traded_notional"].sum(0), played["equity"][-1]
        assert (traded > 0).all() == (execution in TAKERS)
        assert (equity < kind.wallet).all() if execution in TAKERS else (equity == kind.wallet).all()


def test_a_settlement_that_pays_every_holder_would_be_noticed(make_market: Callable[..., Tape]) -> None:
    """The negative control: shorts are paid at every stamp, and nothing else happens."""
    kind = Kind("linear", "cross", 1)
    tape = make_market(kind, closes=np.full(60, PRICE), bars=60, wick=0.0, funding_rate=1e-4)
    shorts = np.concatenate([-np.abs(random_exposures(kind, 40, 8, 3.0)), np.zeros((1, 8, 1))])
    assert (Played(tape, kind, shorts, **NO_COSTS)["equity"][-1] > kind.wallet).all()


# --- mirrors ---


def mirrored(tape: Tape) -> Tape:
    """Every contract's worth reflected at that of its first close: price, or one over price if inverse.

    The same amount of money settles: rates grow as the notional shrinks.
    """

    def reflect(prices: np.ndarray) -> np.ndarray:
        centre = tape.last[:1, :, 3:]
        if tape.contracts[0].kind == "inverse":
            other = 1.0 / (2.0 / centre - 1.0 / prices)
        else:
            other = 2.0 * centre - prices
        return np.asarray(other[..., [0, 2, 1, 3]])

    last, rates = reflect(tape.last), tape.stamp_rate.copy()
    for asset in range(len(tape.contracts)):
        owned = slice(*tape.stamp_start[asset, [0, -1]])
        owner = np.repeat(np.arange(len(tape)), np.diff(tape.stamp_start[asset]))
        ratio = tape.mark[owner, asset, 3] / last[owner, asset, 3]
        rates[owned] *= -(1.0 / ratio if tape.contracts[0].kind == "inverse" else ratio)
    return replace(tape, last=last, mark=last, stamp_rate=rates, _cache={})


@pytest.mark.parametrize("execution", EXECUTION_STYLES)
@each_kind
def test_a_long_and_a_short_on_the_mirrored_market_earn_the_same(
    make_market: Callable[..., Tape], kind: Kind, execution: ExecutionStyle
) -> None:
    if kind.contract == "inverse" and execution in ("twap", "vwap"):
        pytest.skip("slices fill at the mean of open and close, whose worth is not the mean of their worths")
    changed = 0
    for seed in range(4):
        tape = make_market(kind, seed, sigma=0.004, wick=0.01, funding_rate=5e-4, bars=60, volume=1e12)
        side = np.random.default_rng(seed).choice([-1.0, 1.0], (1, 1, kind.count))
        # opened where both markets stand at the same price, held, and closed
        plan = np.full((40, 1, kind.count), np.nan)
        plan[0], plan[25:] = 0.9 * side[0] / kind.count, 0.0
        # a resting order that is as far from the close on both markets: at it
        resting = {"limit_offset_bps": 0.0, "half_spread_bps": 0.0 if execution in TAKERS else 1.0}
        # margin so wide that nothing is liquidated, since the mirror of maintenance margin is another one
        settings = NO_COSTS | {"execution": execution, "leverage": 2.0, "max_exposure": 2.0} | resting
        if execution == "market" and kind.contract == "linear":
            # what is entered at that price has its stop and its target mirrored too
            settings |= {"stop_loss": 0.03, "take_profit": 0.03}
        one = Played(tape, kind, plan, **settings)
        other = Played(mirrored(tape), kind, -plan, **settings)
        for name in ("equity", "funding", "stopped", "fills"):
            np.testing.assert_allclose(
                one[name], other[name], rtol=1e-7, atol=1e-7 * kind.wallet, err_msg=name
            )
        same_side = Played(mirrored(tape), kind, plan, **settings)
        changed += not np.allclose(one["equity"], same_side["equity"], rtol=1e-4)
    assert changed >= 3, "the market was meant to move"


# --- costs ---


@pytest.mark.parametrize("execution", EXECUTION_STYLES)
@each_kind
def test_a_larger_fee_or_spread_never_makes_richer(
    make_market: Callable[..., Tape], kind: Kind, execution: ExecutionStyle
) -> None:
    plan = np.full((35, 2, kind.count), np.nan)
    plan[0], plan[20:] = np.array([[0.8], [-0.8]]) / kind.count, 0.0
    grids: list[tuple[str, tuple[float, ...]]] = [("taker_rate", (0.0, 1e-4, 1e-3, 0.01))]
    if execution in TAKERS:
        grids += [("half_spread_bps", (0.0, 1.0, 20.0)), ("impact_coefficient", (0.0, 1.0, 4.0))]
    else:
        grids = [("maker_rate", grids[0][1])]
    for name, values in grids:
        # the quantity is held between the two decisions, so that all accounts hold the same
        held = {"execution": execution, "limit_offset_bps": 20.0}
        tape = make_market(kind, 5, sigma=0.004, wick=0.01, bars=60)
        played = [Played(tape, kind, plan, **held | {name: value}) for value in values]
        for cheap, dear in pairwise(played):
            assert (cheap["fills"].sum(0) > 0).all()
            np.testing.assert_array_equal(cheap["fills"], dear["fills"])
            assert (dear["equity"][-1] < cheap["equity"][-1]).all(), name


# --- units ---


@pytest.mark.parametrize("execution", EXECUTION_STYLES)
@each_kind
def test_prices_and_quantities_in_other_units_give_the_same_account(
    make_market: Callable[..., Tape], contract: Contract, kind: Kind, execution: ExecutionStyle
) -> None:
    rules = kind.rules(contract, tick_size=0.25, lot_size=2.0**-8)
    market = {"sigma": 0.02, "wick": 0.02, "mark_basis": 0.001, "bars": 90}
    # powers of four change no digit, not of a root either, so that the same things happen to the cent
    settings: dict[str, Any] = {
        "execution": execution, "remainder": "carry", "stop_loss": 0.15, "take_profit": 0.05,
        "liquidation": "brackets", "impact": ImpactModel(kind="exponential", transient_coefficient=10.0),
    }  # fmt: skip
    plan = random_exposures(kind, 80, 6, 15.0)
    base = make_market(kind, 2, rules=rules, **market)
    one = Played(base, kind, plan, **settings)
    seen = {name: one[name].sum() for name in ("fills", "stopped", "liquidated")}
    assert min(seen.values()) > 0, seen
    for price, size in ((4.0, 1.0), (1.0, 16.0), (2.0**-10, 2.0**10)):
        is_linear = kind.contract == "linear"
        # quantities of an inverse contract are quote, money and volume are base
        money, volume = (price * size, size) if is_linear else (size / price, size / price)
        tape = replace(
            base, last=base.last * price, mark=base.mark * price, volume=base.volume * volume, _cache={},
            contracts=tuple(in_units(c, price=price, size=size, money=money) for c in base.contracts),
        )  # fmt: skip
        other = Played(tape, kind, plan, initial_wallet=kind.wallet * money, **settings)
        for name in ("equity", "fees", "funding", "spread", "impact", "insurance", "clearance"):
            np.testing.assert_allclose(
                other[name], one[name] * money, rtol=1e-9, atol=1e-9 * kind.wallet * money
            )
        for name in ("fills", "stopped", "liquidated"):
            np.testing.assert_array_equal(other[name], one[name], name)


# --- margin ---


@pytest.mark.parametrize("execution", EXECUTION_STYLES)
@each_kind
def test_no_account_stands_below_its_maintenance_margin_and_the_books_add_up(
    make_market: Callable[..., Tape], kind: Kind, execution: ExecutionStyle
) -> None:
    tape = make_market(kind, 3, sigma=0.03, wick=0.03, mark_basis=0.002, bars=160)
    played = Played(
        tape, kind, random_exposures(kind, 150, 24, 16.0), execution=execution, remainder="carry",
        funding_multiplier=5.0, restart="random",
    )  # fmt: skip
    change = played["price_pnl"] + played["funding"] + played["insurance"]
    for cost in ("fees", "clearance", "spread", "impact"):
        change = change - played[cost]
    left = played["equity"] - played["equity_before"] - change
    assert np.abs(left).max() < 1e-9 * kind.wallet
    assert played["equity"].min() > -1e-9 * kind.wallet
    tables = [contract.bracket_table() for contract in tape.contracts]
    is_inverse, standing = float(kind.contract == "inverse"), 0
    for step, (wallets, positions) in enumerate(zip(played.wallets, played.positions, strict=True)):
        marks = tape.mark[1 + step, :, 3]
        for wallet, rows in zip(wallets, positions, strict=True):
            excess = [position_excess(rows[a], marks[a], tables[a], is_inverse) for a in range(kind.count)]
            held = rows[:, QUANTITY] != 0.0
            standing += int(held.any())
            if kind.margin == "isolated":
                assert (rows[held, ISOLATED_WALLET] + np.array(excess)[held] > 0.0).all()
            elif held.any():
                assert wallet[WALLET] + sum(excess) > 0.0
    assert standing > 500
    assert played["liquidated"].sum() > 10, "the market was meant to be wild enough to liquidate"


@pytest.mark.parametrize("symbol", shipped_contracts())
def test_maintenance_margin_of_a_shipped_contract_is_the_integral_of_its_marginal_rates(symbol: str) -> None:
    contract = load_contract(symbol)
    table = contract.bracket_table()
    caps = [b.cap if math.isfinite(b.cap) else 3.0 * b.floor + 1e6 for b in contract.brackets]
    for notional in np.concatenate([np.geomspace(1.0, caps[-1], 60), caps]):
        integral = sum(marginal(bracket, notional) for bracket in contract.brackets)
        assert maintenance_margin(notional, table) == pytest.approx(integral, rel=1e-9, abs=1e-6)


def marginal(bracket: Bracket, notional: float) -> float:
    """What a bracket's own slice of a notional asks for."""
    return bracket.maintenance_margin_rate * max(min(notional, bracket.cap) - bracket.floor, 0.0)
