"""How numbers travel: as decimal strings that lose nothing, as the exchange sends them."""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation

from perpgym.envs.exchange.errors import Rejected


def decimal_of(value: float) -> Decimal:
    """The shortest decimal that reads back as the same float."""
    return Decimal(repr(float(value)))


def text(value: float) -> str:
    """A number without exponent that reads back as the same float; ``0`` for what is no number."""
    if value == 0.0 or not math.isfinite(value):
        return "0"
    written = repr(float(value))
    if "e" in written:
        written = format(Decimal(written), "f")
    return written[:-2] if written.endswith(".0") else written


def parse_decimal(name: str, value: str) -> Decimal:
    """A number from a request.

    Raises:
        Rejected: -1102, it is none.
    """
    try:
        number = Decimal(value)
    except InvalidOperation:
        raise Rejected(-1102, name) from None
    if not number.is_finite():
        raise Rejected(-1102, name)
    return number


def parse_int(name: str, value: str) -> int:
    """A whole number from a request.

    Raises:
        Rejected: -1102, it is none.
    """
    try:
        return int(value)
    except ValueError:
        raise Rejected(-1102, name) from None


def parse_bool(name: str, value: str) -> bool:
    """``true`` or ``false`` in any case.

    Raises:
        Rejected: -1102, it is neither.
    """
    if value.lower() not in ("true", "false"):
        raise Rejected(-1102, name)
    return value.lower() == "true"
