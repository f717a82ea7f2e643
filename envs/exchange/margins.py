"""What margin the account has and needs at the moment: positions, resting orders, what is free.

Every formula is the kernel's; the margin of resting orders follows Binance, "Initial margin of open
orders": of a contract, the larger of what its bids and what its asks would make of the position.
"""

from __future__ import annotations

from dataclasses import dataclass

from perpgym.envs.account import QUANTITY, WALLET, free_wallet, notional, unrealised_profit
from perpgym.envs.arrays import read_bar
from perpgym.envs.exchange.books import Books
from perpgym.envs.exchange.orders import AlgoOrder, Order, sign
from perpgym.envs.ledger import balance_behind
from perpgym.envs.margin import liquidation_price, maintenance_margin
from perpgym.envs.orders import BRACKET, MARGIN, admitted_by_margin


@dataclass(frozen=True, kw_only=True)
class PositionMargin:
    """One contract's position and orders; quote.

    Attributes:
        notional: signed, at the mark.
        bid_notional, ask_notional: of resting orders that can open, at their limits.
        order_margin: initial margin that they tie up beside the position's.
        liquidation_price: 0 for none.
    """

    notional: float
    unrealised: float
    position_margin: float
    order_margin: float
    maintenance: float
    liquidation_price: float
    bid_notional: float
    ask_notional: float


def position_margin(books: Books, asset: int, without: Order | AlgoOrder | None = None) -> PositionMargin:
    """The margin of one contract at the mark of the moment, ``without`` one of its orders."""
    rules, mark = books.rules(asset), books.market.mark_price(asset)
    position, brackets = books.account.positions[asset], books.world.brackets[asset]
    quantity = float(position[QUANTITY])
    size = float(notional(quantity, mark, rules.is_inverse))
    signed = size if quantity > 0.0 else -size
    resting = [o for o in books.registry.open_orders(asset) if not o.reduce_only and o is not without]
    bids = sum(notional(o.left, o.price, rules.is_inverse) for o in resting if o.side == "BUY")
    asks = sum(notional(o.left, o.price, rules.is_inverse) for o in resting if o.side == "SELL")
    worst = max(abs(signed + bids), abs(signed - asks))
    price = 0.0
    if quantity != 0.0:
        balance = balance_behind(books.account, books.world, asset, books.market.marks())
        found = liquidation_price(balance, quantity, books.entry_price(asset), brackets, rules.is_inverse)
        price = float(found) if 0.0 < found < float("inf") else 0.0
    return PositionMargin(
        notional=signed,
        unrealised=float(unrealised_profit(position, mark, rules.is_inverse)),
        position_margin=size / rules.leverage,
        order_margin=max(worst - size, 0.0) / rules.leverage,
        maintenance=float(maintenance_margin(size, brackets)) if quantity else 0.0,
        liquidation_price=price,
        bid_notional=float(bids),
        ask_notional=float(asks),
    )


def available(books: Books, without: Order | AlgoOrder | None = None) -> float:
    """quote that can carry new orders: free wallet and cross profit less every initial margin."""
    free = float(free_wallet(books.account.wallet, books.account.positions))
    for asset in range(len(books.contracts)):
        margin = position_margin(books, asset, without)
        free -= margin.order_margin
        if books.rules(asset).is_isolated == 0.0:
            free += margin.unrealised - margin.position_margin
    return free


def equity(books: Books) -> float:
    """quote: wallet and every unrealised profit at the marks of the moment."""
    profits = [position_margin(books, asset).unrealised for asset in range(len(books.contracts))]
    return books.wallet + sum(profits)


def refusal(books: Books, order: Order | AlgoOrder, quantity: float, price: float, fee_rate: float) -> int:
    """What the exchange says to an order of this size at this price: 0, -2019 (margin) or -2027 (bracket).

    Args:
        quantity: base, unsigned, what would fill.
        price: quote, of the fill.
        fee_rate: fraction of notional.
    """
    account, market, asset = books.account, books.market, order.asset
    others = [a for a in range(len(books.contracts)) if a != asset]
    locked = sum(position_margin(books, other).order_margin for other in others)
    locked += _locked_before(books, order, quantity * price)
    signed = sign(order.side) * quantity
    bar = read_bar(books.world.market, market.bar, market.fine, asset, books.rules(asset).is_inverse)
    # what resting orders tie up is not there for this one
    account.wallet[WALLET] -= locked
    _admitted, cut = admitted_by_margin(
        account, books.world, market.fine, asset, signed, signed, price, fee_rate, bar, books.rules(asset)
    )
    account.wallet[WALLET] += locked
    if int(cut) & MARGIN:
        return -2019
    return -2027 if int(cut) & BRACKET else 0


def _locked_before(books: Books, order: Order | AlgoOrder, worth: float) -> float:
    """Margin that the orders resting on an order's own side tie up beside it, quote.

    Those on the other side stand on the same margin: they and it cannot both make the position larger.
    """
    side, margin = sign(order.side), position_margin(books, order.asset, order)
    before = margin.bid_notional if side > 0.0 else margin.ask_notional
    alone, together = margin.notional + side * worth, margin.notional + side * (worth + before)
    return max(abs(together) - abs(alone), 0.0) / books.rules(order.asset).leverage
