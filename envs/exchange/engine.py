"""The exchange without its wire: places, cancels, changes settings, and lets time pass.

It knows no HTTP. Money moves through the kernel's functions only; ``bars.py`` is what happens while time
passes.
"""

from __future__ import annotations

from dataclasses import dataclass

from perpgym.envs.arrays import read_bar
from perpgym.envs.config import EnvConfig
from perpgym.envs.exchange.bars import close_bar, open_bar
from perpgym.envs.exchange.books import (
    MONEY_DECIMALS,
    AccountEvent,
    AlgoEvent,
    Books,
    ConfigEvent,
    OrderEvent,
)
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.filters import check_band, check_notional
from perpgym.envs.exchange.margins import available, refusal
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.orders import AlgoOrder, Order, Side, sign
from perpgym.envs.exchange.trailing import start
from perpgym.envs.exchange.triggers import is_beyond
from perpgym.envs.exchange.working import end_order, take, take_levels, wanted_of, within_volume
from perpgym.envs.execution import quote, to_lots
from perpgym.envs.fills import maker_cost_rate, taker_cost_rate
from perpgym.envs.orders import admitted_by_volume, market_fill_price
from perpgym.envs.rules import max_position_notional

# a filter of the exchange's on the number of lots tried when a limit cuts a taker order
_BISECTIONS = 60
# changes in place that one order may have
_MOST_AMENDMENTS = 10_000


@dataclass(frozen=True, kw_only=True)
class OrderRequest:
    """What a client asks for; quantity and price have passed the filters. See ``Order`` for the fields."""

    asset: int
    side: Side
    kind: str
    quantity: float
    client_id: str
    price: float = 0.0
    time_in_force: str = "GTC"
    reduce_only: bool = False


@dataclass(frozen=True, kw_only=True)
class AlgoRequest:
    """A conditional order as a client asks for it; see ``AlgoOrder``."""

    asset: int
    side: Side
    kind: str
    client_id: str
    trigger_price: float = 0.0
    quantity: float = 0.0
    price: float = 0.0
    working_type: str = "CONTRACT_PRICE"
    time_in_force: str = "GTC"
    reduce_only: bool = False
    close_position: bool = False
    price_protect: bool = False
    activate_price: float = 0.0
    callback_rate: float = 0.0


class Engine:
    """One account on a replayed market.

    Args:
        market: what is replayed; its cursor moves with :meth:`advance`.
        config: account and execution, as of the env; what concerns the agent's own orders is ignored.
        money_decimals: see ``Books``.
    """

    def __init__(
        self,
        market: Replay,
        config: EnvConfig | None = None,
        money_decimals: int | None = MONEY_DECIMALS,
    ) -> None:
        self.market = market
        self.books = Books(market, config or EnvConfig(), money_decimals)
        self.registry = self.books.registry
        self.now_ms = market.open_ms
        # by contract, when the dead man's switch cancels its orders
        self.countdowns: dict[int, int] = {}
        # contracts that take no new orders
        self.closed: set[int] = set()
        open_bar(self.books, self.now_ms)

    # --- time ---

    @property
    def next_ms(self) -> int:
        """When something happens next: the close of the open bar."""
        return self.market.close_ms

    def advance(self, to_ms: int) -> None:
        """Let time pass; every bar that closes by then is booked, and the next one opens."""
        while not self.market.is_over and self.next_ms <= to_ms:
            self._count_down(self.next_ms)
            self.now_ms = self.next_ms
            close_bar(self.books, self.now_ms)
            if self.market.move_on():
                open_bar(self.books, self.now_ms)
            self.registry.settle()
        self._count_down(to_ms)
        self.now_ms = max(self.now_ms, to_ms)

    def set_countdown(self, asset: int, wait_ms: int) -> None:
        """Cancel a contract's orders that many milliseconds from now, unless told again; 0 for never."""
        self.countdowns.pop(asset, None)
        if wait_ms:
            self.countdowns[asset] = self.now_ms + wait_ms

    def _count_down(self, to_ms: int) -> None:
        due = sorted((at_ms, asset) for asset, at_ms in self.countdowns.items() if at_ms <= to_ms)
        for at_ms, asset in due:
            self.now_ms = max(self.now_ms, at_ms)
            del self.countdowns[asset]
            self.cancel_all(asset)

    # --- orders ---

    def place(self, request: OrderRequest) -> Order:
        """Take an order to the book; a market order fills at the open of the bar that is open.

        Raises:
            Rejected: nothing was done.
        """
        self._check_open(request.asset)
        self.registry.check_room(request.client_id)
        order = Order(
            order_id=self.registry.next_id(), client_id=request.client_id, asset=request.asset,
            side=request.side, kind="MARKET" if request.kind == "MARKET" else "LIMIT",
            quantity=request.quantity, price=request.price, time_in_force=request.time_in_force,
            reduce_only=request.reduce_only, time_ms=self.now_ms,
        )  # fmt: skip
        self._check_reduce_only(order)
        last = self.market.last_price(order.asset)
        if not order.reduce_only:
            contract = self.books.contracts[order.asset]
            check_notional(contract, order.quantity, order.price if order.kind == "LIMIT" else last)
        if order.kind == "LIMIT":
            check_band(order.price, self.market.mark_price(order.asset), order.side == "BUY")
        return self._send(order)

    def _is_trading(self, asset: int) -> bool:
        is_open = not self.market.is_over and asset not in self.closed
        return is_open and self.market.is_trading(asset)

    def _check_open(self, asset: int) -> None:
        if not self._is_trading(asset):
            raise Rejected(-4141)

    def _check_reduce_only(self, order: Order) -> None:
        if not order.reduce_only:
            return
        held = self.books.position(order.asset)
        if held * sign(order.side) >= 0.0:
            raise Rejected(-2022)
        resting = [
            o for o in self.registry.open_orders(order.asset) if o.reduce_only and o.side == order.side
        ]
        if sum(o.left for o in resting) >= abs(held):
            raise Rejected(-4118)

    def _send(self, order: Order) -> Order:
        """Margin, the taker's part, and what rests of the order."""
        due, is_crossing = self._takeable(order)
        if order.time_in_force == "GTX" and is_crossing:
            raise Rejected(-5022)
        if order.time_in_force == "FOK" and due < wanted_of(self.books, order):
            raise Rejected(-5021)
        self._check_margin(order, due)
        self.registry.add(order)
        self.books.emit(OrderEvent(order=order, execution="NEW", time_ms=self.now_ms))
        self._take(order, due)
        if order.is_open and (order.kind == "MARKET" or order.time_in_force in ("IOC", "FOK")):
            self.end(order, "EXPIRED", "not filled at once")
        self.registry.settle()
        return order

    def _take(self, order: Order, due: float) -> None:
        if due > 0.0 and self.books.recorded is not None:
            take_levels(self.books, order, self.books.recorded.walk(order, due), self.now_ms)
        elif due > 0.0:
            take(self.books, order, due, self.market.last_price(order.asset), self.now_ms)

    def amend(self, order: Order, quantity: float, price: float) -> Order:
        """Change quantity and price of a resting order; what was executed of it stays.

        It queues anew, and takes at once what its new price admits. It is cancelled where the new quantity is
        executed already, or where it is post-only and would take.

        Args:
            quantity: base, unsigned, what is executed included.
            price: quote; both have passed the filters.

        Raises:
            Rejected: the order stays as it was.
        """
        self._check_amendment(order, quantity, price)
        if quantity <= order.executed:
            self.end(order, "CANCELED", "executed beyond its new quantity")
            self.registry.settle()
            return order
        before = order.quantity, order.price
        order.quantity, order.price = quantity, price
        due, is_crossing = self._takeable(order)
        try:
            self._check_margin(order, due)
        except Rejected:
            order.quantity, order.price = before
            raise
        order.amendments, order.queued_ms = order.amendments + 1, self.now_ms
        if order.time_in_force == "GTX" and is_crossing:
            self.end(order, "CANCELED", "post-only at a price that takes")
        else:
            order.update_ms = self.now_ms
            self.books.emit(OrderEvent(order=order, execution="AMENDMENT", time_ms=self.now_ms))
            self._take(order, due)
        self.registry.settle()
        return order

    def _check_amendment(self, order: Order, quantity: float, price: float) -> None:
        if not order.is_open:
            raise Rejected(-2013)
        if not self._is_trading(order.asset):
            raise Rejected(-5024)
        if (quantity, price) == (order.quantity, order.price):
            raise Rejected(-5027)
        if order.amendments >= _MOST_AMENDMENTS:
            raise Rejected(-5026)
        least = self.books.contracts[order.asset].min_notional
        if not order.reduce_only and quantity * price < least:
            raise Rejected(-5029, f"{least:g}")
        check_band(price, self.market.mark_price(order.asset), order.side == "BUY")

    def _takeable(self, order: Order) -> tuple[float, bool]:
        """(base, unsigned, that fills at once as a taker; whether a limit crosses the book)."""
        books, asset, side = self.books, order.asset, sign(order.side)
        if books.recorded is not None:
            due = sum(size for _price, size in books.recorded.walk(order, wanted_of(books, order)))
            return float(to_lots(due, books.rules(asset))), due > 0.0
        rules, world, market = books.rules(asset), books.world, self.market
        last = market.last_price(asset)
        bar = read_bar(world.market, market.bar, market.fine, asset, rules.is_inverse)
        wanted = within_volume(books, asset, wanted_of(books, order))
        most, _reason = admitted_by_volume(side * wanted, bar.volume, bar, rules, world.rules)
        if order.kind == "MARKET":
            return abs(float(most)), False
        is_crossing = side * (order.price - float(quote(last, world.rules.half_spread, rules, side))) >= 0.0
        if not is_crossing:
            return 0.0, False

        def fits(quantity: float) -> bool:
            _touch, price = market_fill_price(
                books.account, asset, last, side * quantity, bar, rules, world.rules
            )
            return bool(side * (order.price - price) >= 0.0)

        high = abs(float(most))
        if fits(high):
            return high, True
        low = 0.0
        for _step in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if fits(middle) else (low, middle)
        return float(to_lots(low, rules)), True

    def _check_margin(self, order: Order, due: float) -> None:
        """Raises -2019 or -2027: by what fills at once of a market order, by all of a limit order."""
        if order.reduce_only:
            return
        books, asset, side = self.books, order.asset, sign(order.side)
        rules, world, last = books.rules(asset), books.world, self.market.last_price(asset)
        size, price = order.left, order.price
        if order.kind == "MARKET":
            size = due
        if size == 0.0:
            return
        if order.kind == "MARKET":
            price = self._taker_price(order, due)
        rate_of = taker_cost_rate if due > 0.0 else maker_cost_rate
        rate = rate_of(books.account, side * size, last, rules, world.rules)
        code = refusal(books, order, size, float(price), float(rate))
        if code:
            raise Rejected(code)

    def _taker_price(self, order: Order, due: float) -> float:
        """quote, the mean price at which ``due`` of a market order fills."""
        books, asset, market = self.books, order.asset, self.market
        if books.recorded is not None:
            return sum(price * size for price, size in books.recorded.walk(order, due)) / due
        rules, world, last = books.rules(asset), books.world, market.last_price(asset)
        bar = read_bar(world.market, market.bar, market.fine, asset, rules.is_inverse)
        signed = sign(order.side) * due
        _touch, price = market_fill_price(books.account, asset, last, signed, bar, rules, world.rules)
        return float(price)

    def cancel(self, asset: int, order_id: int | None, client_id: str | None) -> Order:
        """Take an open order out of the book.

        Raises:
            Rejected: -2011, there is no such open order.
        """
        order = self.registry.find(asset, order_id, client_id)
        if order is None or not order.is_open:
            raise Rejected(-2011)
        self.end(order, "CANCELED", "by the client")
        self.registry.settle()
        return order

    def cancel_all(self, asset: int) -> None:
        """Take every open order of a contract out of the book; conditional orders stay."""
        for order in self.registry.open_orders(asset):
            self.end(order, "CANCELED", "by the client")
        self.registry.settle()

    def end(self, order: Order, status: str, reason: str) -> None:
        """An order leaves the book without (further) fills."""
        end_order(self.books, order, status, reason, self.now_ms)

    # --- conditional orders ---

    def place_algo(self, request: AlgoRequest) -> AlgoOrder:
        """Keep a conditional order until its trigger.

        Raises:
            Rejected: nothing was done.
        """
        self._check_open(request.asset)
        self.registry.check_algo_room(request.client_id)
        algo = AlgoOrder(
            algo_id=self.registry.next_id(), time_ms=self.now_ms,
            **{name: getattr(request, name) for name in AlgoRequest.__dataclass_fields__},
        )  # fmt: skip
        if algo.close_position and any(
            a.close_position and a.kind == algo.kind and a.side == algo.side
            for a in self.registry.open_algos(algo.asset)
        ):
            raise Rejected(-4130)
        if algo.is_trailing:
            start(algo, self.market, self.books.contracts[algo.asset])
        if is_beyond(algo, self.market):
            raise Rejected(-2021)
        if algo.reduce_only and self.books.position(algo.asset) * sign(algo.side) >= 0.0:
            raise Rejected(-2022)
        self.registry.add_algo(algo)
        self.books.emit(AlgoEvent(algo=algo, time_ms=self.now_ms))
        return algo

    def cancel_algo(self, algo_id: int | None, client_id: str | None) -> AlgoOrder:
        """Forget a conditional order.

        Raises:
            Rejected: -2011, there is no such open order.
        """
        algo = self.registry.find_algo(algo_id, client_id)
        if algo is None or not algo.is_open:
            raise Rejected(-2011)
        self._end_algo(algo)
        self.registry.settle()
        return algo

    def cancel_all_algos(self, asset: int) -> None:
        """Forget every conditional order of a contract."""
        for algo in self.registry.open_algos(asset):
            self._end_algo(algo)
        self.registry.settle()

    def _end_algo(self, algo: AlgoOrder) -> None:
        algo.status, algo.update_ms = "CANCELED", self.now_ms
        self.books.emit(AlgoEvent(algo=algo, time_ms=self.now_ms))

    # --- settings ---

    def set_leverage(self, asset: int, leverage: int) -> float:
        """Change a contract's leverage; returns the largest position's notional that it admits, quote.

        Raises:
            Rejected: -4028, -4161, -2027, -2028.
        """
        contract, rules = self.books.contracts[asset], self.books.rules(asset)
        try:
            if leverage < 1:
                raise ValueError
            cap = max_position_notional(contract, float(leverage))
        except ValueError:
            raise Rejected(-4028, leverage) from None
        held = abs(self.books.position(asset))
        if rules.is_isolated > 0.0 and held and leverage < rules.leverage:
            raise Rejected(-4161)
        if held * self.market.mark_price(asset) > cap:
            raise Rejected(-2027)
        changed = rules._replace(leverage=float(leverage), max_position_notional=cap)
        self.books.set_rules(asset, changed)
        if leverage < rules.leverage and available(self.books) < 0.0:
            self.books.set_rules(asset, rules)
            raise Rejected(-2028)
        self.books.emit(ConfigEvent(asset=asset, leverage=leverage, time_ms=self.now_ms))
        return cap

    def set_margin_mode(self, asset: int, is_isolated: bool) -> None:
        """Change a contract's margin mode.

        Raises:
            Rejected: -4046, -4047, -4048.
        """
        rules = self.books.rules(asset)
        if (rules.is_isolated > 0.0) == is_isolated:
            raise Rejected(-4046)
        if self.registry.open_orders(asset) or self.registry.open_algos(asset):
            raise Rejected(-4047)
        if self.books.position(asset) != 0.0:
            raise Rejected(-4048)
        self.books.set_rules(asset, rules._replace(is_isolated=float(is_isolated)))
        self.books.emit(AccountEvent(reason="MARGIN_TYPE_CHANGE", assets=(asset,), time_ms=self.now_ms))
