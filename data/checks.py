"""What a setting may be: numbers, whole numbers and truth values; anything else is refused by its name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def check_number(name: str, value: object, unit: str = "") -> None:
    """Refuse what is no number; infinity and nan are left to the check of the range.

    Raises:
        ValueError: a text, a truth value, nothing; a file that quotes a number gives a text.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        of = f" ({unit})" if unit else ""
        raise ValueError(f"{name} must be a number{of}, was {value!r}; write it without quotes")


def check_within(name: str, value: Any, low: float, high: float, unit: str) -> None:
    """Refuse what is no number from ``low`` to ``high``, both included.

    Raises:
        ValueError: names the setting, what is allowed and its unit.
    """
    check_number(name, value, unit)
    if not low <= value <= high:
        raise ValueError(f"{name} must lie between {low:g} and {high:g} ({unit}), was {value}")


def check_whole(name: str, value: object, low: int, high: int, unit: str) -> None:
    """Refuse what is no whole number from ``low`` to ``high``, both included.

    Raises:
        ValueError: as :func:`check_within`.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} must be a whole number from {low:g} to {high:g} ({unit}), was {value!r}")
    check_within(name, value, low, high, unit)


def check_switch(name: str, value: object) -> None:
    """Refuse what is neither true nor false: ``"false"`` in quotes would count as true.

    Raises:
        ValueError: names the setting.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, was {value!r}; write it without quotes")


def check_row(name: str, value: object) -> tuple[Any, ...]:
    """A list of a file, as a tuple.

    Raises:
        ValueError: one value, a text or a mapping.
    """
    if isinstance(value, str | Mapping) or not hasattr(value, "__iter__"):
        raise ValueError(f"{name} must be a list, was {value!r}; write [{value}] for one value")
    return tuple(value)


def is_on_grid(quantity: float, step: float) -> bool:
    """Whether a quantity is a whole number of steps, up to the noise of their division; inf is."""
    if math.isinf(quantity):
        return True
    count = quantity / step
    return abs(count - round(count)) <= max(1e-6, 4.0 * math.ulp(count))
