"""The account's books: the kernel's arrays, and what each of its calls booked, as trades and income.

Nothing here knows a formula: the kernel moves the money, this file reads what it wrote.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perpgym.envs.account import (
    ENTRY_PRICE,
    ISOLATED_WALLET,
    QUANTITY,
    WALLET,
    on_lot_grid,
    open_account,
)
from perpgym.envs.arrays import ContractRules, World
from perpgym.envs.buffers import make_account
from perpgym.envs.config import EnvConfig
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.orders import AlgoOrder, Income, Order, Registry, Trade
from perpgym.envs.exchange.recorded import Recorded
from perpgym.envs.fills import (
    FILL_ASSET,
    FILL_FEE,
    FILL_PRICE,
    FILL_QUANTITY,
    FILL_REALISED,
    FILL_REASON,
    LIQUIDATION,
)
from perpgym.envs.insolvency import forgive_debt
from perpgym.envs.risk.limits import RiskLimits
from perpgym.envs.rules import make_world
from perpgym.envs.spaces import CONTRACT_LEDGER, LEDGER

Float64 = NDArray[np.float64]

# of money, as the exchange writes it down
MONEY_DECIMALS = 8
# of one kernel call: a reduction from each bracket of every contract, and stops
_MOST_FILLS = 256
# quote: less is what sums of floats leave behind
_NOISE = 1e-9
_FILLS = LEDGER["fills"]
_RECEIVED = CONTRACT_LEDGER["funding"]


@dataclass(frozen=True, kw_only=True)
class OrderEvent:
    """An order changed: ``execution`` says how (NEW, TRADE, AMENDMENT, CANCELED, EXPIRED)."""

    order: Order
    execution: str
    time_ms: int
    trade: Trade | None = None


@dataclass(frozen=True, kw_only=True)
class AlgoEvent:
    """A conditional order changed."""

    algo: AlgoOrder
    time_ms: int


@dataclass(frozen=True, kw_only=True)
class AccountEvent:
    """Wallet and positions changed: what ``assets`` name, for ``reason`` (ORDER, FUNDING_FEE, …)."""

    reason: str
    assets: tuple[int, ...]
    time_ms: int


@dataclass(frozen=True, kw_only=True)
class ConfigEvent:
    """The leverage of a contract changed."""

    asset: int
    leverage: int
    time_ms: int


Event = OrderEvent | AlgoEvent | AccountEvent | ConfigEvent
Listener = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class Fill:
    """One row of the kernel's record; ``quantity`` signed base, ``fee`` a clearance fee if forced."""

    asset: int
    quantity: float
    price: float
    fee: float
    realised: float
    reason: int


def account_config(config: EnvConfig) -> EnvConfig:
    """The env's settings less what a client does with orders of its own.

    Raises:
        ValueError: a setting that this exchange does not have.
    """
    for name, allowed in (("limits", "on"), ("cost", "exchange")):
        if getattr(config, name) != allowed:
            raise ValueError(
                f"the exchange needs {name}={allowed}, was {getattr(config, name)}: an exchange has margin, "
                "fees and spread"
            )
    if config.fees is not None:
        raise ValueError("the exchange has no fee tiers: set taker_rate and maker_rate, and leave fees null")
    return replace(
        config, stop_loss=None, stop_volatility=None, take_profit=None, trailing_stop=False,
        max_bars_held=None, execution="market", action="target", remainder="drop", latency_ms=0.0,
        latency_bars=0, reduce_only=False, terminal="hold",
    )  # fmt: skip


class Books:
    """One account on the contracts of a replayed market.

    Args:
        market: what is replayed.
        config: account and execution, as of the env.
        money_decimals: to which each fee, profit and settlement is rounded before it moves the wallet; None
            for all the digits of the env's arithmetic.

    Attributes:
        world: the kernel's view; leverage and margin mode of its contracts change in place.
        account: the kernel's arrays.
        registry: orders, trades, income.
        recorded: the recorded book as this account has left it; None on bars alone.
        listeners: called with every event, in order.
    """

    def __init__(
        self, market: Replay, config: EnvConfig, money_decimals: int | None = MONEY_DECIMALS
    ) -> None:
        self.market, self.config = market, account_config(config)
        self.money_decimals = money_decimals
        self.contracts = market.tape.contracts
        for contract in self.contracts:
            if contract.kind != "linear":
                raise ValueError(f"{contract.symbol}: the exchange speaks USD-M, which is linear contracts")
        # the kernel's tables of finer bars were checked when they were made
        inside = None if market.inside.per_bar == 1 else market.inside
        self.world: World = make_world(market.tape, self.config, RiskLimits(), inside)
        self.account, self.scratch = (make_account(len(self.contracts), _MOST_FILLS) for _ in range(2))
        open_account(self.account.wallet, self.account.positions, self.config.initial_wallet)
        self.registry = Registry()
        self.listeners: list[Listener] = []
        self._wallet = self.wallet
        self.recorded = None if market.recording is None else Recorded(market, self.contracts[0])
        # base that this account's fills have taken of the open bar's volume, by contract
        self.taken: Float64 = np.zeros(len(self.contracts))

    @property
    def wallet(self) -> float:
        """quote: what was deposited and every income."""
        return float(self.account.wallet[WALLET])

    def position(self, asset: int) -> float:
        """base, signed."""
        return float(self.account.positions[asset, QUANTITY])

    def entry_price(self, asset: int) -> float:
        """quote; 0 without a position."""
        return float(self.account.positions[asset, ENTRY_PRICE])

    def isolated_wallet(self, asset: int) -> float:
        """quote."""
        return float(self.account.positions[asset, ISOLATED_WALLET])

    def rules(self, asset: int) -> ContractRules:
        """The kernel's rules of a contract at its present leverage and margin mode."""
        return ContractRules(*self.world.contracts[asset].tolist())

    def set_rules(self, asset: int, rules: ContractRules) -> None:
        """Change leverage or margin mode."""
        self.world.contracts[asset] = rules

    def emit(self, event: Event) -> None:
        """Tell every listener; orders are copied, for they change."""
        if isinstance(event, OrderEvent):
            event = replace(event, order=replace(event.order))
        elif isinstance(event, AlgoEvent):
            event = replace(event, algo=replace(event.algo))
        for listener in self.listeners:
            listener(event)

    def begin_bar(self) -> None:
        """A bar opens: nothing of its volume is taken yet; with a bar of the tape the rows start anew."""
        self.taken[:] = 0.0
        if self.market.number == 0:
            self.account.holdings[:] = 0.0
            self.account.ledger[:] = 0.0

    def collect(self) -> list[Fill]:
        """The fills that the kernel has booked since the last call."""
        count = int(self.account.ledger[_FILLS])
        if count > _MOST_FILLS:
            raise RuntimeError(f"one call of the kernel booked {count} fills, more than {_MOST_FILLS}")
        self.account.ledger[_FILLS] = 0.0
        # the kernel reads it off the wallet, whose last bits are noise
        noise = 4.0 * math.ulp(max(abs(self.wallet), abs(self._wallet)))
        return [
            Fill(
                asset=int(row[FILL_ASSET]), quantity=float(row[FILL_QUANTITY]), price=float(row[FILL_PRICE]),
                fee=float(row[FILL_FEE]), reason=int(row[FILL_REASON]),
                realised=float(row[FILL_REALISED]) if abs(row[FILL_REALISED]) > noise else 0.0,
            )
            for row in self.account.fills[:count]
        ]  # fmt: skip

    def book(self, order: Order, fill: Fill, time_ms: int, *, is_maker: bool = False) -> Trade:
        """Turn one fill into a trade of ``order`` and its income, and say so."""
        is_forced = fill.reason == LIQUIDATION
        trade = Trade(
            trade_id=self.registry.next_id(), order_id=order.order_id, asset=fill.asset, side=order.side,
            price=fill.price, quantity=abs(fill.quantity),
            commission=0.0 if is_forced else self._as_written(fill.fee),
            realised=self._as_written(fill.realised), is_maker=is_maker, time_ms=time_ms,
        )  # fmt: skip
        self.registry.trades.append(trade)
        if is_maker or self.recorded is None:
            # what is taken of a recorded book was no part of what traded
            self.taken[fill.asset] += trade.quantity
        # whole lots, without the noise of their addition
        rules = self.rules(fill.asset)
        order.executed = float(on_lot_grid(order.executed + trade.quantity, trade.quantity, rules))
        order.cum_quote += trade.price * trade.quantity
        order.last_price, order.update_ms = trade.price, time_ms
        is_whole = abs(order.left) <= 1e-9 * order.quantity
        if is_whole:
            order.executed = order.quantity
        order.status = "FILLED" if is_whole else "PARTIALLY_FILLED"
        if fill.realised != 0.0:
            self._credit("REALIZED_PNL", fill.realised, fill.asset, time_ms, trade.trade_id)
        if fill.fee != 0.0:
            kind = "INSURANCE_CLEAR" if is_forced else "COMMISSION"
            self._credit(kind, -fill.fee, fill.asset, time_ms, trade.trade_id)
        self.emit(OrderEvent(order=order, execution="TRADE", time_ms=time_ms, trade=trade))
        self.emit(AccountEvent(reason="ORDER", assets=(fill.asset,), time_ms=time_ms))
        return trade

    def settle_funding(self, until_ms: int) -> None:
        """Book what settlements brought since the last call, at the time of the last one until then."""
        received = self.account.holdings[:, _RECEIVED].copy()
        self.account.holdings[:, _RECEIVED] = 0.0
        for asset in np.flatnonzero(received).tolist():
            times, _rates = self.market.settlements(asset, until_ms)
            self._credit("FUNDING_FEE", float(received[asset]), asset, int(times[-1]))
            event = AccountEvent(reason="FUNDING_FEE", assets=(asset,), time_ms=int(times[-1]))
            self.emit(event)

    def forgive(self, asset: int, time_ms: int) -> None:
        """The insurance fund pays what an account without positions owes; all income then adds up."""
        forgive_debt(self.account, self.world)
        rest = self.wallet - self._wallet
        if abs(rest) > 1e-9 * max(1.0, abs(self.wallet)):
            self._credit("INSURANCE_CLEAR", rest, asset, time_ms)
        # the order of additions leaves rounding noise
        self._wallet = self.wallet

    def _as_written(self, amount: float) -> float:
        return amount if self.money_decimals is None else round(amount, self.money_decimals)

    def _credit(self, kind: str, reckoned: float, asset: int, time_ms: int, trade_id: int = 0) -> None:
        """One row of income, and the wallet as the row has it, where the kernel has moved all digits."""
        amount = self._as_written(reckoned)
        wallet = self.account.wallet
        wallet[WALLET] += amount - reckoned
        self._wallet = self._as_written(self._wallet + amount)
        if abs(wallet[WALLET] - self._wallet) < _NOISE:
            wallet[WALLET] = self._wallet
        if amount == 0.0:
            return
        income = Income(
            tran_id=self.registry.next_id(), kind=kind, amount=amount, asset=asset, time_ms=time_ms,
            trade_id=trade_id,
        )  # fmt: skip
        self.registry.incomes.append(income)
