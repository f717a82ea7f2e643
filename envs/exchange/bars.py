"""One bar from its open to its close, in the env's order of events (``docs/mechanics.md``).

At the open: liquidation where the mark opens beyond it; resting orders that a recorded book has come to.
While the bar is open, orders fill at its open. At its close, all that happened inside: triggers that enlarge
a position; what the bar opens beyond; resting orders that enlarge, each after what its position meets until
the way has come to its price; the way of prices with stops, liquidations and settlements; resting orders and
triggers that reduce; trailing stops that the way to the close passes; settlements of the closing instant;
margin.
"""

from __future__ import annotations

from perpgym.data.bars import CLOSE, OPEN
from perpgym.envs.account import CROSS
from perpgym.envs.exchange.books import AccountEvent, Books, Fill, OrderEvent
from perpgym.envs.exchange.orders import Order, Side, sign
from perpgym.envs.exchange.trailing import trail_all
from perpgym.envs.exchange.triggers import (
    Protection,
    child_of,
    expire,
    finish,
    is_touched,
    trigger,
)
from perpgym.envs.exchange.working import (
    end_order,
    expire_reduce_only,
    fill_maker,
    meet_recorded_book,
    volume_through,
    wanted_of,
    within_volume,
)
from perpgym.envs.fills import LIQUIDATION, STOP
from perpgym.envs.impact import decay_push
from perpgym.envs.kernel import inside_bar, meet_open, settle_at_close
from perpgym.envs.liquidation import ADVERSE_FIRST, STRAIGHT, is_short_at, liquidate_if_short
from perpgym.envs.matching import begin_fine_bar
from perpgym.envs.path import live_through, walk_leg


def open_bar(books: Books, now_ms: int) -> None:
    """A bar opens: its opening marks are the first thing that can liquidate."""
    account, world, market = books.account, books.world, books.market
    books.begin_bar()
    if world.rules.leaves_trace > 0.0:
        for row in account.orders:
            decay_push(row, world.rules)
    begin_fine_bar(account)
    if is_short_at(account, world, market.fine, OPEN):
        liquidate_if_short(account, world, market.bar, market.fine, STRAIGHT, 0, 0.0)
    _book_inside(books, None, now_ms)
    meet_recorded_book(books, now_ms)


def close_bar(books: Books, close_ms: int) -> None:
    """Everything that the open bar does, up to the instant of its close.

    What happens inside is stamped a millisecond before the close: when exactly, no bar tells.
    """
    account, market = books.account, books.market
    inside_ms = close_ms - 1
    # what a trigger sends rests from the next bar on
    resting = books.registry.open_orders()
    _trigger_all(books, inside_ms, is_enlarging=True)
    _enter_on_the_way(books, resting, inside_ms)
    books.registry.settle()
    protection = Protection(books)
    protection.arm(books)
    world = protection.world
    bar, fine = market.bar, market.fine
    inside_bar(account, world, bar, fine, market.open_ms, books.scratch)
    _book_inside(books, protection, inside_ms)
    sides = [books.position(asset) for asset in range(len(books.contracts))]
    resting = books.registry.open_orders()
    _trigger_all(books, inside_ms, is_enlarging=False)
    for order in resting:
        if order.is_open and not _enlarges(books, order.asset, sign(order.side)):
            _fill_resting(books, order, inside_ms)
    books.registry.settle()
    turned = any(books.position(asset) * side < 0.0 for asset, side in enumerate(sides))
    if turned:
        # the way is walked for the new position too, which nothing protects yet
        live_through(account, world, bar, fine, books.scratch)
        _book_inside(books, protection, inside_ms)
    trail_all(books, inside_ms)
    books.registry.settle()
    settle_at_close(account, world, bar, fine, market.open_ms)
    _book_inside(books, None, close_ms)
    if is_short_at(account, world, fine, CLOSE):
        liquidate_if_short(account, world, bar, fine, STRAIGHT, 0, 1.0)
        _book_inside(books, None, close_ms)


def _trigger_all(books: Books, time_ms: int, *, is_enlarging: bool) -> None:
    """Triggers of one kind, as they came."""
    protection = Protection(books)
    for algo in books.registry.open_algos():
        if protection.holds(algo) or not is_touched(books, algo):
            continue
        # what only closes waits for what opens: an entry may have come first
        opens = not algo.only_closes and _enlarges(books, algo.asset, sign(algo.side))
        if opens == is_enlarging:
            trigger(books, algo, time_ms)


def _enter_on_the_way(books: Books, resting: list[Order], time_ms: int) -> None:
    """Resting orders that enlarge, in the order in which the adverse leg of their positions comes to them.

    Before each one the kernel walks its margin group to its price: a stop or a liquidation that lies nearer
    comes first. One group at a time; with several cross positions each at its own adverse extreme.
    """
    account, market = books.account, books.market
    waiting = sorted(
        (_share_of(books, o), number, o)
        for number, o in enumerate(resting)
        if o.is_open and volume_through(books, o) > 0.0 and _enlarges(books, o.asset, sign(o.side))
    )
    if not waiting:
        return
    protection = Protection(books)
    protection.arm(books)
    meet_open(account, protection.world, market.bar, market.fine)
    _book_inside(books, protection, time_ms)
    come: dict[int, float] = {}
    for share, _number, order in waiting:
        group = order.asset if books.rules(order.asset).is_isolated > 0.0 else CROSS
        protection = Protection(books)
        protection.arm(books)
        begin = come.get(group, 0.0)
        walk_leg(account, protection.world, group, market.bar, market.fine, ADVERSE_FIRST, 0, begin, share)
        come[group] = share
        _book_inside(books, protection, time_ms)
        if order.is_open and _enlarges(books, order.asset, sign(order.side)):
            _fill_resting(books, order, time_ms)


def _share_of(books: Books, order: Order) -> float:
    """The share of the way from the open to the extreme at which the last price comes to its limit."""
    market = books.market
    opening, high, low, _close = market.inside.last[market.fine, order.asset].tolist()
    extreme = low if order.side == "BUY" else high
    if sign(order.side) * (opening - order.price) <= 0.0:
        return 0.0
    return float((order.price - opening) / (extreme - opening))


def _enlarges(books: Books, asset: int, side: float) -> bool:
    return books.position(asset) * side >= 0.0


def _fill_resting(books: Books, order: Order, time_ms: int) -> None:
    wanted = within_volume(books, order.asset, wanted_of(books, order))
    if wanted > 0.0:
        fill_maker(books, order, wanted, time_ms)


def _book_inside(books: Books, protection: Protection | None, time_ms: int) -> None:
    """Fills that no order of the moment asked for: stops, targets, liquidations; and settlements."""
    books.settle_funding(time_ms)
    forced: dict[int, Order] = {}
    for fill in books.collect():
        if fill.reason == LIQUIDATION:
            order = forced.get(fill.asset) or _forced_order(books, fill, time_ms)
            forced[fill.asset] = order
            order.quantity += abs(fill.quantity)
            books.book(order, fill, time_ms)
        else:
            assert protection is not None, "the kernel met a stop that nobody has placed"
            algo = (protection.stops if fill.reason == STOP else protection.targets)[fill.asset]
            books.book(child_of(books, algo, abs(fill.quantity), time_ms), fill, time_ms)
            finish(books, algo, time_ms)
    for asset in forced:
        _clear(books, asset, time_ms)
    books.forgive(next(iter(forced), 0), time_ms)
    expire_reduce_only(books, time_ms)
    books.registry.settle()


def _forced_order(books: Books, fill: Fill, time_ms: int) -> Order:
    """The exchange's own order that liquidates: its client id begins with ``autoclose-``."""
    side: Side = "BUY" if fill.quantity > 0.0 else "SELL"
    number = books.registry.next_id()
    order = Order(
        order_id=number, client_id=f"autoclose-{number}", asset=fill.asset, side=side, kind="LIMIT",
        quantity=0.0, price=fill.price, time_in_force="IOC", original_kind="LIQUIDATION", time_ms=time_ms,
    )  # fmt: skip
    books.registry.add(order)
    books.emit(OrderEvent(order=order, execution="NEW", time_ms=time_ms))
    return order


def _clear(books: Books, asset: int, time_ms: int) -> None:
    """A liquidation takes the contract's orders with it; of a cross account, every contract's in the book."""
    is_cross = books.rules(asset).is_isolated == 0.0
    for order in books.registry.open_orders(None if is_cross else asset):
        end_order(books, order, "EXPIRED", "liquidation", time_ms)
    for algo in books.registry.open_algos(asset):
        # what is left of a position that was reduced keeps its stop
        if books.position(asset) == 0.0:
            expire(books, algo, "liquidation", time_ms)
    books.emit(AccountEvent(reason="ORDER", assets=(asset,), time_ms=time_ms))
