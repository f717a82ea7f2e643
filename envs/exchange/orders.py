"""Orders, conditional orders, trades and income as the exchange keeps them, and who is open.

Quantities are base units, prices and money quote, times UTC milliseconds of the exchange's clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from perpgym.envs.exchange.errors import Rejected

Side = Literal["BUY", "SELL"]
OrderStatus = Literal["NEW", "PARTIALLY_FILLED", "FILLED", "CANCELED", "EXPIRED"]
AlgoStatus = Literal["NEW", "CANCELED", "TRIGGERED", "FINISHED", "REJECTED", "EXPIRED"]
OPEN_STATUSES = ("NEW", "PARTIALLY_FILLED")
MAX_OPEN_ORDERS, MAX_OPEN_ALGOS = 200, 200


def sign(side: Side) -> float:
    """+1 buys, -1 sells."""
    return 1.0 if side == "BUY" else -1.0


@dataclass(kw_only=True)
class Order:
    """An order in the book or out of it.

    Attributes:
        asset: index of the contract.
        kind: ``MARKET`` or ``LIMIT``; ``original_kind`` of what a conditional order sent, or ``LIQUIDATION``.
        price: quote; 0 for a market order.
        quantity: base, unsigned, as ordered; ``executed`` of it filled.
        cum_quote: quote, sum of price times quantity over its fills.
        last_price: quote, of its last fill.
        queued_ms: since when it stands where it is: its arrival, or its last change in place.
        amendments: how often it was changed in place.
    """

    order_id: int
    client_id: str
    asset: int
    side: Side
    kind: Literal["MARKET", "LIMIT"]
    quantity: float
    time_ms: int
    price: float = 0.0
    time_in_force: str = "GTC"
    reduce_only: bool = False
    close_position: bool = False
    original_kind: str = ""
    trigger_price: float = 0.0
    working_type: str = "CONTRACT_PRICE"
    status: OrderStatus = "NEW"
    executed: float = 0.0
    cum_quote: float = 0.0
    last_price: float = 0.0
    update_ms: int = 0
    queued_ms: int = 0
    amendments: int = 0
    end_reason: str = ""

    def __post_init__(self) -> None:
        self.update_ms = self.update_ms or self.time_ms
        self.queued_ms = self.queued_ms or self.time_ms
        self.original_kind = self.original_kind or self.kind

    @property
    def is_open(self) -> bool:
        return self.status in OPEN_STATUSES

    @property
    def left(self) -> float:
        """base, unsigned."""
        return self.quantity - self.executed

    @property
    def average_price(self) -> float:
        """quote; 0 before the first fill."""
        return self.cum_quote / self.executed if self.executed else 0.0


@dataclass(kw_only=True)
class AlgoOrder:
    """A conditional order: a stop or a take-profit that waits for its trigger.

    Attributes:
        kind: ``STOP_MARKET``, ``TAKE_PROFIT_MARKET``, ``TRAILING_STOP_MARKET``, ``STOP`` or ``TAKE_PROFIT``.
        trigger_price: quote; of a trailing stop where it stands now, 0 before it is active.
        activate_price: quote, the price at which a trailing stop becomes active.
        callback_rate: of a trailing stop, fraction of ``best_price`` that the price may give back.
        best_price: quote, the best price for its side since a trailing stop came.
        quantity: base, unsigned; 0 with ``close_position``.
        price: quote, of the limit order that it sends; 0 at the market.
        working_type: ``CONTRACT_PRICE`` (the last price) or ``MARK_PRICE``.
        child_id: the order that it sent; 0 before.
    """

    algo_id: int
    client_id: str
    asset: int
    side: Side
    kind: str
    quantity: float
    trigger_price: float
    time_ms: int
    price: float = 0.0
    working_type: str = "CONTRACT_PRICE"
    time_in_force: str = "GTC"
    reduce_only: bool = False
    close_position: bool = False
    price_protect: bool = False
    activate_price: float = 0.0
    callback_rate: float = 0.0
    best_price: float = 0.0
    status: AlgoStatus = "NEW"
    update_ms: int = 0
    trigger_ms: int = 0
    child_id: int = 0
    end_reason: str = ""

    def __post_init__(self) -> None:
        self.update_ms = self.update_ms or self.time_ms

    @property
    def is_open(self) -> bool:
        return self.status == "NEW"

    @property
    def is_stop(self) -> bool:
        """Whether it waits for the price to move its own way (a stop), not against it (a take-profit)."""
        return "STOP" in self.kind

    @property
    def is_trailing(self) -> bool:
        return self.kind == "TRAILING_STOP_MARKET"

    @property
    def is_armed(self) -> bool:
        """Whether it has a trigger: a trailing stop only once it is active."""
        return self.trigger_price > 0.0

    @property
    def is_at_market(self) -> bool:
        return self.kind.endswith("_MARKET")

    @property
    def trigger_is_above(self) -> bool:
        """Whether it triggers when the price rises to the trigger."""
        return (self.side == "BUY") == self.is_stop

    @property
    def only_closes(self) -> bool:
        return self.reduce_only or self.close_position


@dataclass(frozen=True, kw_only=True)
class Trade:
    """One fill. ``commission`` is paid > 0, ``realised`` gained > 0, both quote."""

    trade_id: int
    order_id: int
    asset: int
    side: Side
    price: float
    quantity: float
    commission: float
    realised: float
    is_maker: bool
    time_ms: int


@dataclass(frozen=True, kw_only=True)
class Income:
    """One change of the wallet: all of them add up to what it is, less what was deposited."""

    tran_id: int
    kind: str
    amount: float
    asset: int
    time_ms: int
    trade_id: int = 0


@dataclass(kw_only=True)
class Registry:
    """Every order, conditional order, trade and income; ids are never used twice."""

    orders: dict[int, Order] = field(default_factory=dict)
    algos: dict[int, AlgoOrder] = field(default_factory=dict)
    trades: list[Trade] = field(default_factory=list)
    incomes: list[Income] = field(default_factory=list)
    _ids: Iterator[int] = field(default_factory=lambda: count(1_000_001))
    _open_orders: dict[int, Order] = field(default_factory=dict)
    _open_algos: dict[int, AlgoOrder] = field(default_factory=dict)

    def next_id(self) -> int:
        return next(self._ids)

    def add(self, order: Order) -> None:
        self.orders[order.order_id] = self._open_orders[order.order_id] = order

    def add_algo(self, algo: AlgoOrder) -> None:
        self.algos[algo.algo_id] = self._open_algos[algo.algo_id] = algo

    def settle(self) -> None:
        """Forget among the open ones what is open no more."""
        self._open_orders = {i: o for i, o in self._open_orders.items() if o.is_open}
        self._open_algos = {i: a for i, a in self._open_algos.items() if a.is_open}

    def open_orders(self, asset: int | None = None) -> list[Order]:
        """In the order of their arrival."""
        return [o for o in self._open_orders.values() if o.is_open and asset in (None, o.asset)]

    def open_algos(self, asset: int | None = None) -> list[AlgoOrder]:
        """In the order of their arrival."""
        return [a for a in self._open_algos.values() if a.is_open and asset in (None, a.asset)]

    def check_room(self, client_id: str) -> None:
        """Raises -4116 where an open order has the id already, -2025 where there is no room."""
        open_orders = self.open_orders()
        if any(o.client_id == client_id for o in open_orders):
            raise Rejected(-4116)
        if len(open_orders) >= MAX_OPEN_ORDERS:
            raise Rejected(-2025)

    def check_algo_room(self, client_id: str) -> None:
        """Raises -20132 or -4045, the same for conditional orders."""
        open_algos = self.open_algos()
        if any(a.client_id == client_id for a in open_algos):
            raise Rejected(-20132)
        if len(open_algos) >= MAX_OPEN_ALGOS:
            raise Rejected(-4045)

    def find(self, asset: int, order_id: int | None, client_id: str | None) -> Order | None:
        """The order with an id; of several with one client id, the newest."""
        if order_id is not None:
            order = self.orders.get(order_id)
            return order if order is not None and order.asset == asset else None
        named = [o for o in self.orders.values() if o.client_id == client_id and o.asset == asset]
        return named[-1] if named else None

    def find_algo(self, algo_id: int | None, client_id: str | None) -> AlgoOrder | None:
        """The same for conditional orders."""
        if algo_id is not None:
            return self.algos.get(algo_id)
        named = [a for a in self.algos.values() if a.client_id == client_id]
        return named[-1] if named else None
