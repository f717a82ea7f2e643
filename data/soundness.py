"""What no market may hold: impossible prices, volumes, times and settlements.

``data/quality.py`` reports and repairs what sources deliver; here is the last gate before money is booked,
for tapes and bars from anywhere. An error names the contract, the bar and the rule.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perpgym.data.clock import iso

_ADVICE = "check the data (python -m perpgym.data check) and repair or cut them"
_OPEN, _HIGH, _LOW, _CLOSE = range(4)
# finer bars of one exchange add up to its bars to the last digit (tests/envs/test_finer.py); prices
# of another market, even of the same coin, differ by basis points at once
SAME_PRICE = 1e-4


def check_clock(symbol: str, open_time_ms: NDArray[np.int64], bar_ms: int) -> None:
    """Bars follow one another without gaps.

    Raises:
        ValueError: names the first bar that does not.
    """
    if bar_ms <= 0:
        raise ValueError(f"{symbol}: bar_ms must be positive (milliseconds), was {bar_ms}")
    odd = np.flatnonzero(np.diff(open_time_ms) != bar_ms)
    if odd.size:
        before, after = (int(open_time_ms[odd[0] + i]) for i in range(2))
        raise ValueError(
            f"{symbol}: bars must be {bar_ms} ms apart without gaps, but the one after {iso(before)} opens "
            f"at {iso(after)}; fill or repair them first"
        )


def check_prices(
    symbol: str, series: str, open_time_ms: NDArray[np.int64], prices: NDArray[np.float64]
) -> None:
    """Prices are finite and positive, the high is the highest and the low the lowest of their bar.

    Args:
        symbol: of the contract.
        series: ``last`` or ``mark``.
        open_time_ms: (T,) UTC.
        prices: (T, 4) quote, open high low close.

    Raises:
        ValueError: names the first bar at fault and its prices.
    """
    # comparisons with nan are false
    is_possible: NDArray[np.bool_] = np.all((prices > 0.0) & (prices < np.inf), axis=1)
    if not is_possible.all():
        rule = f"every {series} price must be finite and positive (quote)"
        raise ValueError(_fault(symbol, open_time_ms, ~is_possible, rule, prices))
    is_ordered = (prices[:, _HIGH] >= prices.max(axis=1)) & (prices[:, _LOW] <= prices.min(axis=1))
    if not is_ordered.all():
        rule = f"the high must be the highest and the low the lowest {series} price of a bar"
        raise ValueError(_fault(symbol, open_time_ms, ~is_ordered, rule, prices))


def check_volume(symbol: str, open_time_ms: NDArray[np.int64], volume: NDArray[np.float64]) -> None:
    """Volume (T,) is finite and not negative.

    Raises:
        ValueError: names the first bar at fault.
    """
    is_possible = (volume >= 0.0) & (volume < np.inf)
    if not is_possible.all():
        rule = "volume must be finite and not negative (base units)"
        raise ValueError(_fault(symbol, open_time_ms, ~is_possible, rule, volume[:, None]))


def check_inside(
    symbol: str,
    series: str,
    open_time_ms: NDArray[np.int64],
    prices: NDArray[np.float64],
    inside: NDArray[np.float64],
    is_traded: NDArray[np.bool_],
) -> None:
    """Finer bars make the bars that they lie in: their open, high, low and close are its own.

    A finer bar without volume may stand for one that is missing, so a bar that holds such only has to hold
    the prices of the others.

    Args:
        symbol: of the contract.
        series: ``last`` or ``mark``.
        open_time_ms: (T,) UTC.
        prices: (T, 4) quote, open high low close.
        inside: (T, n, 4) quote, of the finer bars.
        is_traded: (T, n), whether a finer bar has volume.

    Raises:
        ValueError: names the first bar that they do not make, with both prices.
    """
    is_whole = is_traded.all(axis=1)
    high = np.where(is_traded, inside[..., _HIGH], -np.inf).max(axis=1)
    low = np.where(is_traded, inside[..., _LOW], np.inf).min(axis=1)
    made = np.stack([inside[:, 0, _OPEN], high, low, inside[:, -1, _CLOSE]], axis=1)
    differs = (np.abs(made - prices) > SAME_PRICE * prices).any(axis=1)
    lies_beyond = (high > prices[:, _HIGH] * (1.0 + SAME_PRICE)) | (
        low < prices[:, _LOW] * (1.0 - SAME_PRICE)
    )
    is_at_fault = np.where(is_whole, differs, lies_beyond)
    if is_at_fault.any():
        wanted = ", ".join(f"{price:g}" for price in prices[int(np.argmax(is_at_fault))])
        rule = f"finer bars must make its {series} open, high, low and close, {wanted} (to 1 bp)"
        raise ValueError(
            _fault(symbol, open_time_ms, is_at_fault, rule, made).removesuffix(_ADVICE)
            + "give finer bars of the same exchange, contract and scale"
        )


def check_stamps(
    symbol: str, time_ms: NDArray[np.int64], rate: NDArray[np.float64], first_open_ms: int, last_close_ms: int
) -> None:
    """Settlements ascend, each once, with a finite rate, none outside of the bars.

    Args:
        symbol: of the contract.
        time_ms: (S,) UTC.
        rate: (S,) fraction of notional.
        first_open_ms, last_close_ms: UTC, what the bars span; a stamp at the first open is of the bar before.

    Raises:
        ValueError: names the first settlement at fault.
    """
    ascends = np.diff(time_ms) > 0
    if not ascends.all():
        at = iso(int(time_ms[int(np.argmin(ascends)) + 1]))
        raise ValueError(
            f"{symbol}: funding stamps must ascend, each once, but {at} does not come after the one before; "
            "sort and de-duplicate them"
        )
    is_finite = np.isfinite(rate)
    if not is_finite.all():
        first = int(np.argmin(is_finite))
        raise ValueError(
            f"{symbol}: every funding rate must be finite (a fraction of notional), at "
            f"{iso(int(time_ms[first]))} it was {rate[first]}; {_ADVICE}"
        )
    is_inside = (time_ms >= first_open_ms) & (time_ms <= last_close_ms)
    if not is_inside.all():
        at = iso(int(time_ms[int(np.argmin(is_inside))]))
        raise ValueError(
            f"{symbol}: the funding stamp at {at} lies outside of the "
            f"bars, {iso(first_open_ms)} to {iso(last_close_ms)}: nobody could be charged; "
            "cut the settlements to the bars"
        )


def _fault(
    symbol: str,
    open_time_ms: NDArray[np.int64],
    is_at_fault: NDArray[np.bool_],
    rule: str,
    values: NDArray[np.float64],
) -> str:
    first = int(np.argmax(is_at_fault))
    found = ", ".join(f"{value:g}" for value in values[first])
    more = int(is_at_fault.sum()) - 1
    others = f" (and {more} more bars)" if more else ""
    bar = iso(int(open_time_ms[first]))
    return f"{symbol}: at the bar that opens at {bar}{others} {rule}, was {found}; {_ADVICE}"
