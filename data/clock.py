"""How times are written: UTC milliseconds inside, ISO dates and timeframe names for people."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

MINUTE_MS = 60_000
DAY_MS = 86_400_000

_UNIT_MS = {"m": MINUTE_MS, "h": 3_600_000, "d": DAY_MS, "w": 7 * DAY_MS}
_DATE_ONLY = re.compile(r"\d{4}-\d{2}-\d{2}")


def timeframe_ms(timeframe: str) -> int:
    """Length of a bar named as exchanges name it: ``1m``, ``15m``, ``1h``, ``4h``, ``1d``, ``1w``.

    Raises:
        ValueError: the name is not of that form.
    """
    match = re.fullmatch(r"([1-9]\d*)([mhdw])", timeframe)
    if match is None:
        raise ValueError(f"timeframe must look like 1m, 15m, 1h, 4h, 1d or 1w, was {timeframe!r}")
    return int(match[1]) * _UNIT_MS[match[2]]


def timeframe_name(bar_ms: int) -> str:
    """The inverse of :func:`timeframe_ms`, in the largest unit that divides ``bar_ms``."""
    for unit in ("w", "d", "h", "m"):
        if bar_ms % _UNIT_MS[unit] == 0:
            return f"{bar_ms // _UNIT_MS[unit]}{unit}"
    raise ValueError(f"a bar must last whole minutes, was {bar_ms} ms")


def parse_start_ms(text: str) -> int:
    """UTC milliseconds of an ISO date or time; a bare date means its first instant.

    Raises:
        ValueError: not an ISO 8601 date or time.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            f"a date must be ISO 8601, such as 2024-07-01 or 2024-07-01T08:00, was {text!r}"
        ) from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return round(moment.timestamp() * 1000)


def parse_end_ms(text: str) -> int:
    """UTC milliseconds at which a period ends (exclusive).

    A bare date includes its whole day: a period that ends on ``2023-12-31`` ends at
    2024-01-01 00:00. A date with a time is that instant.
    """
    start = parse_start_ms(text)
    return start + DAY_MS if _DATE_ONLY.fullmatch(text.strip()) else start


def iso(time_ms: int) -> str:
    """``2022-02-01 08:00`` of UTC milliseconds, with seconds only where there are some."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=int(time_ms))
    return moment.strftime("%Y-%m-%d %H:%M" if time_ms % MINUTE_MS == 0 else "%Y-%m-%d %H:%M:%S.%f")
