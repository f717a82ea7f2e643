"""What the exchange refuses before an order reaches the book: its filters, in exact decimals.

Source: Binance USD-M futures API, "Filters" and "Error Code".
"""

from __future__ import annotations

from decimal import Decimal

from perpgym.data.contract import Contract
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.wire import decimal_of

# a limit price may stand off the mark by this much against its side (PERCENT_PRICE)
MULTIPLIER_UP, MULTIPLIER_DOWN = Decimal("1.15"), Decimal("0.85")
MAX_PRICE = Decimal(10**9)


def decimals(step: float) -> int:
    """Digits after the point of a tick or lot."""
    return max(0, -int(decimal_of(step).normalize().as_tuple().exponent))


def is_on_grid(value: Decimal, step: float) -> bool:
    """Whether a price or quantity is a whole number of steps."""
    return value % decimal_of(step) == 0


def check_quantity(contract: Contract, quantity: Decimal) -> float:
    """A quantity that the exchange takes, base.

    Raises:
        Rejected: -4003, -1111, -4023, -4004, -4005.
    """
    if quantity <= 0:
        raise Rejected(-4003)
    if -int(quantity.normalize().as_tuple().exponent) > decimals(contract.lot_size):
        raise Rejected(-1111)
    if not is_on_grid(quantity, contract.lot_size):
        raise Rejected(-4023)
    if quantity < decimal_of(contract.min_quantity):
        raise Rejected(-4004)
    if quantity > decimal_of(contract.max_quantity):
        raise Rejected(-4005)
    return float(quantity)


def check_price(contract: Contract, price: Decimal) -> float:
    """A price that the exchange takes, quote.

    Raises:
        Rejected: -4001, -4002, -1111, -4014.
    """
    if price <= 0:
        raise Rejected(-4001)
    if price > MAX_PRICE:
        raise Rejected(-4002)
    if -int(price.normalize().as_tuple().exponent) > decimals(contract.tick_size):
        raise Rejected(-1111)
    if not is_on_grid(price, contract.tick_size):
        raise Rejected(-4014)
    return float(price)


def check_band(price: float, mark_price: float, is_buy: bool) -> None:
    """A limit price that stands off the mark too far to its own harm.

    Raises:
        Rejected: -4016, -4024.
    """
    mark = decimal_of(mark_price)
    if is_buy and decimal_of(price) > mark * MULTIPLIER_UP:
        raise Rejected(-4016, (mark * MULTIPLIER_UP).normalize())
    if not is_buy and decimal_of(price) < mark * MULTIPLIER_DOWN:
        raise Rejected(-4024, (mark * MULTIPLIER_DOWN).normalize())


def check_notional(contract: Contract, quantity: float, price: float) -> None:
    """An order that opens or adds must be worth something.

    Raises:
        Rejected: -4164.
    """
    if quantity * price < contract.min_notional:
        raise Rejected(-4164, f"{contract.min_notional:g}")


def check_client_id(client_id: str) -> None:
    """At most 36 of the characters that the exchange allows.

    Raises:
        Rejected: -4015, -1100.
    """
    if not 1 <= len(client_id) <= 36:
        raise Rejected(-4015)
    if not all(c.isascii() and (c.isalnum() or c in ".:/_-") for c in client_id):
        raise Rejected(-1100, "newClientOrderId")
