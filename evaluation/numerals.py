"""How numbers are written for people: units, signs, a true minus, and a dash for what does not exist."""

from __future__ import annotations

import math

from perpgym.evaluation.bootstrap import Interval


def percent(value: float, *, sign: str = "+") -> str:
    """A fraction as percent with its sign, for profits; ``sign=""`` for costs."""
    if not math.isfinite(value):
        return "–"
    # nothing is not "+0.00 %", and a year made of three lucky bars needs no decimals
    digits = 2 if abs(value) < 100 else 0
    text = f"{100 * value:{sign},.{digits}f} %"
    return _minus(f"{0:.{digits}f} %" if value == 0 else text)


def share(value: float, digits: int = 1) -> str:
    """A fraction as percent without a sign."""
    return _minus(f"{100 * value:.{digits}f} %") if math.isfinite(value) else "–"


def number(value: float, digits: int = 2) -> str:
    """A ratio with its sign."""
    return _minus(f"{value:+.{digits}f}") if math.isfinite(value) else "–"


def decimal(value: float) -> str:
    """A number that is not negative by nature, two decimals."""
    if math.isinf(value):
        return "∞"
    return _minus(f"{value:.2f}") if math.isfinite(value) else "–"


def money(value: float) -> str:
    """Quote, whole units."""
    return _minus(f"{value:,.0f}") if math.isfinite(value) else "–"


def hours(value: float) -> str:
    """A duration, in days if it is long."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.1f} h" if value < 72 else f"{value / 24:.1f} d"


def base(symbol: str) -> str:
    """A contract in a narrow place: its base currency."""
    return symbol.partition("/")[0]


def probability(value: float | None) -> str:
    """A probability, three decimals."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def interval(bounds: Interval) -> str:
    """Both ends with their signs."""
    if not math.isfinite(bounds.low):
        return "–"
    return f"{number(bounds.low)} to {number(bounds.high)}"


def _minus(text: str) -> str:
    return text.replace("-", "−")
