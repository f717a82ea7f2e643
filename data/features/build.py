"""From raw bars to a tape: columns computed, contracts aligned, funding stamps handed to their bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import Bars
from perpgym.data.features import compute_features, default_names, get_feature, sigma_per_bar
from perpgym.data.features.volatility import SIGMA_FLOOR, SIGMA_LOOKBACK
from perpgym.data.soundness import check_clock, check_prices, check_stamps, check_volume
from perpgym.data.tape import Tape
from perpgym.data.union import before_listing, listing_bar, union_clock, until

Column = TypeVar("Column", NDArray[np.float64], NDArray[np.float32])


def build_tape(
    bars: Bars | Sequence[Bars],
    *,
    features: Sequence[str] | None = None,
    risk: Sequence[str] | None = None,
    planted: NDArray[np.float64] | Sequence[NDArray[np.float64]] | None = None,
    source: str,
) -> Tape:
    """Compute every column once and put one or several contracts on one clock.

    Columns are computed from a contract's own bars. On the union of the clocks a contract is valid from the
    bar on at which all of them have their whole look-back; before that its columns are 0, and so is its
    volume: nobody trades what no policy sees and no sigma tells the impact of. Settlements belong to the bars
    since its listing.

    Args:
        bars: one contract, or A contracts whose bars lie on one grid.
        features: names of the market columns; None takes every registered one of group ``market``.
        risk: names of the risk columns; None takes every registered one of group ``risk``.
        planted: (T_a,) float64 of the contract, or of each of them, see ``Tape.planted``; only simulated
            markets have it.
        source: where the data came from, in words for people.

    Returns:
        The tape.

    Raises:
        ValueError: the grids differ, a contract has fewer bars than the longest look-back, or the bars hold
            what no market may (``data/soundness.py``).
        KeyError: a feature is unknown.
    """
    contracts = (bars,) if isinstance(bars, Bars) else tuple(bars)
    names = tuple(default_names("market") if features is None else features)
    risk_names = tuple(default_names("risk") if risk is None else risk)
    _check(contracts, names, risk_names)
    clock = union_clock(contracts)
    lookback = longest_lookback((*names, *risk_names), contracts[0].bar_ms)
    for one in contracts:
        _check_length(one, lookback)
    listings = [listing_bar(b, clock) for b in contracts]
    valid_from = [listing + lookback - 1 for listing in listings]
    contracts = tuple(until(b, clock) for b in contracts)
    stamp_start, stamp_time_ms, stamp_rate = owned_stamps(contracts, listings, len(clock))
    by_contract = list(zip(contracts, listings, valid_from, strict=True))
    return Tape(
        contracts=tuple(b.contract for b in contracts),
        bar_ms=contracts[0].bar_ms,
        open_time_ms=clock,
        last=np.stack([before_listing(b.last, listing) for b, listing, _ in by_contract], axis=1),
        mark=np.stack([before_listing(b.mark, listing) for b, listing, _ in by_contract], axis=1),
        volume=np.stack([_placed(b.volume, *at) for b, *at in by_contract], axis=1),
        sigma_per_bar=np.stack(
            [_placed(sigma_per_bar(b), at, at, SIGMA_FLOOR) for b, at, _ in by_contract], axis=1
        ),
        stamp_start=stamp_start,
        stamp_time_ms=stamp_time_ms,
        stamp_rate=stamp_rate,
        features=np.stack([_placed(compute_features(b, names), *at) for b, *at in by_contract], axis=1),
        risk=np.stack([_placed(compute_features(b, risk_names), *at) for b, *at in by_contract], axis=1),
        feature_names=names,
        risk_names=risk_names,
        first_valid_bar=min(valid_from),
        is_valid=np.stack([np.arange(len(clock)) >= first for first in valid_from], axis=1),
        mark_rules=tuple(b.mark_rule for b in contracts),
        source=source,
        planted=_place_planted(planted, listings, len(clock)),
    )


def _placed(column: Column, listing: int, valid_from: int, outside: float = 0.0) -> Column:
    """(T_a, ...) of a contract's own bars -> (T, ...) on the clock; ``outside`` before ``valid_from``."""
    out = np.concatenate([np.full((listing, *column.shape[1:]), outside, column.dtype), column])
    # some columns are ready earlier; half a row of them would be an observation of another kind
    out[:valid_from] = outside
    return out


def _place_planted(
    planted: NDArray[np.float64] | Sequence[NDArray[np.float64]] | None, listings: Sequence[int], bars: int
) -> NDArray[np.float64] | None:
    if planted is None:
        return None
    columns = [planted] if isinstance(planted, np.ndarray) else list(planted)
    out = np.zeros((bars, len(listings)))
    for asset, (column, listing) in enumerate(zip(columns, listings, strict=True)):
        out[listing : listing + len(column), asset] = column
    return out


def longest_lookback(names: Sequence[str], bar_ms: int) -> int:
    """Bars that one row of these columns, and the impact model's sigma, depends on; what live must keep."""
    return max([SIGMA_LOOKBACK, *(get_feature(name).lookback_bars(bar_ms) for name in names)])


def owned_stamps(
    contracts: Sequence[Bars], listings: Sequence[int], bars: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Stamps that a bar owns, contract after contract, and (A, T + 1) where each bar's begin.

    None before the listing. Missing bars own what the exchange published for them: who holds a position
    through a gap pays and is paid.
    """
    starts, times, rates, offset = [], [], [], 0
    for own, listing in zip(contracts, listings, strict=True):
        owner = own.stamp_bar() + listing
        owned = (owner >= listing) & (owner < bars)
        starts.append(offset + np.searchsorted(owner[owned], np.arange(bars + 1), side="left"))
        times.append(own.stamp_time_ms[owned])
        rates.append(own.stamp_rate[owned])
        offset += int(owned.sum())
    return (
        np.stack(starts).astype(np.int64),
        np.concatenate(times).astype(np.int64),
        np.concatenate(rates).astype(np.float64),
    )


def _check(contracts: Sequence[Bars], names: Sequence[str], risk_names: Sequence[str]) -> None:
    if not contracts:
        raise ValueError("a tape needs the bars of at least one contract")
    for group in (names, risk_names):
        twice = sorted({name for name in group if list(group).count(name) > 1})
        if twice:
            raise ValueError(f"each column may be named once; named more often: {', '.join(twice)}")
    symbols = [bars.contract.symbol for bars in contracts]
    if len(set(symbols)) < len(symbols):
        raise ValueError(f"each contract may be on a tape once, these were {', '.join(symbols)}")
    for bars in contracts:
        _check_contract(bars)


def _check_length(bars: Bars, lookback: int) -> None:
    if len(bars) < lookback:
        raise ValueError(
            f"{bars.contract.symbol}: the columns look back {lookback} bars, but there are only {len(bars)}; "
            "give more bars, leave the contract out, or choose columns with a shorter look-back"
        )


def _check_contract(bars: Bars) -> None:
    symbol = bars.contract.symbol
    check_clock(symbol, bars.open_time_ms, bars.bar_ms)
    check_prices(symbol, "last", bars.open_time_ms, bars.last)
    check_prices(symbol, "mark", bars.open_time_ms, bars.mark)
    check_volume(symbol, bars.open_time_ms, bars.volume)
    span = int(bars.open_time_ms[0]), int(bars.open_time_ms[-1]) + bars.bar_ms
    check_stamps(symbol, bars.stamp_time_ms, bars.stamp_rate, *span)
