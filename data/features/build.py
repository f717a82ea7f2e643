"""From raw bars to a tape: columns computed, contracts aligned, funding stamps handed to their bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import Bars
from perpgym.data.features import compute_features, default_names, get_feature, sigma_per_bar
from perpgym.data.features.volatility import SIGMA_LOOKBACK
from perpgym.data.tape import Tape


def build_tape(
    bars: Bars | Sequence[Bars],
    *,
    features: Sequence[str] | None = None,
    risk: Sequence[str] | None = None,
    planted: NDArray[np.float64] | None = None,
    source: str,
) -> Tape:
    """Compute every column once and put one or several contracts on one clock.

    Args:
        bars: one contract, or A contracts with equal clocks.
        features: names of the market columns; None takes every registered one of group ``market``.
        risk: names of the risk columns; None takes every registered one of group ``risk``.
        planted: (T,) or (T, A) float64, see ``Tape.planted``; only simulated markets have it.
        source: where the data came from, in words for people.

    Returns:
        The tape; columns are 0, and sigma its floor, before ``first_valid_bar``.

    Raises:
        ValueError: clocks differ, prices are not positive, stamps not ascending, or there are fewer bars
            than the longest look-back.
        KeyError: a feature is unknown.
    """
    contracts = (bars,) if isinstance(bars, Bars) else tuple(bars)
    names = tuple(default_names("market") if features is None else features)
    risk_names = tuple(default_names("risk") if risk is None else risk)
    _check(contracts, names, risk_names)
    first = contracts[0]
    first_valid_bar = longest_lookback((*names, *risk_names), first.bar_ms) - 1
    if len(first) <= first_valid_bar:
        raise ValueError(
            f"the columns look back {first_valid_bar + 1} bars, but there are only {len(first)}; "
            "give more bars, or choose columns with a shorter look-back"
        )
    stamp_start, stamp_time_ms, stamp_rate = _owned_stamps(contracts)
    market_columns = np.stack([compute_features(b, names) for b in contracts], axis=1)
    risk_columns = np.stack([compute_features(b, risk_names) for b in contracts], axis=1)
    # some columns are ready earlier; half a row of them would be an observation of another kind
    market_columns[:first_valid_bar] = 0.0
    risk_columns[:first_valid_bar] = 0.0
    return Tape(
        contracts=tuple(b.contract for b in contracts),
        bar_ms=first.bar_ms,
        open_time_ms=first.open_time_ms.astype(np.int64),
        last=np.stack([b.last for b in contracts], axis=1),
        mark=np.stack([b.mark for b in contracts], axis=1),
        volume=np.stack([b.volume for b in contracts], axis=1),
        sigma_per_bar=np.stack([sigma_per_bar(b) for b in contracts], axis=1),
        stamp_start=stamp_start,
        stamp_time_ms=stamp_time_ms,
        stamp_rate=stamp_rate,
        features=market_columns,
        risk=risk_columns,
        feature_names=names,
        risk_names=risk_names,
        first_valid_bar=first_valid_bar,
        mark_rules=tuple(b.mark_rule for b in contracts),
        source=source,
        planted=None if planted is None else np.asarray(planted, np.float64).reshape(len(first), -1),
    )


def longest_lookback(names: Sequence[str], bar_ms: int) -> int:
    """Bars that one row of these columns, and the impact model's sigma, depends on; what live must keep."""
    return max([SIGMA_LOOKBACK, *(get_feature(name).lookback_bars(bar_ms) for name in names)])


def _owned_stamps(
    contracts: Sequence[Bars],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Stamps that a bar owns, contract after contract, and (A, T + 1) where each bar's begin."""
    starts, times, rates, offset = [], [], [], 0
    for bars in contracts:
        owner = bars.stamp_bar()
        owned = (owner >= 0) & (owner < len(bars))
        starts.append(offset + np.searchsorted(owner[owned], np.arange(len(bars) + 1), side="left"))
        times.append(bars.stamp_time_ms[owned])
        rates.append(bars.stamp_rate[owned])
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
    for bars in contracts:
        _check_contract(bars, contracts[0])


def _check_contract(bars: Bars, first: Bars) -> None:
    symbol = bars.contract.symbol
    if bars.bar_ms != first.bar_ms or not np.array_equal(bars.open_time_ms, first.open_time_ms):
        raise ValueError(
            f"{symbol} and {first.contract.symbol} must have the same clock (bar length and open times); "
            "cut both to their common span first"
        )
    if not (np.diff(bars.open_time_ms) == bars.bar_ms).all():
        raise ValueError(
            f"{symbol}: bars must be {bars.bar_ms} ms apart without gaps; fill or repair them first"
        )
    for name in ("last", "mark"):
        prices = getattr(bars, name)
        if not (np.isfinite(prices).all() and (prices > 0).all()):
            raise ValueError(
                f"{symbol}: every {name} price must be finite and positive; check and repair the data"
            )
    if not (np.isfinite(bars.volume).all() and (bars.volume >= 0).all()):
        raise ValueError(f"{symbol}: volume must be finite and not negative (base units); repair the data")
    if not np.isfinite(bars.stamp_rate).all():
        raise ValueError(f"{symbol}: every funding rate must be finite (a fraction of notional)")
    if not (np.diff(bars.stamp_time_ms) > 0).all():
        raise ValueError(f"{symbol}: funding stamps must ascend, each once; sort and de-duplicate them")
