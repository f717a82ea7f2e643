"""What a feature is, and the list of all that are known: the one place that a new one is added to.

    @feature(name="range_{n}", unit="log", lookback=lambda n: n, low=0.0, high=2.0, source="own", over=(24,))
    def price_range(bars, n):
        \"\"\"Log of the highest high over the lowest low of n bars.\"\"\"

registers ``range_24`` and makes ``range_72`` available by name. Import the module before the tape is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import Bars

Group = Literal["market", "risk", "named"]
FeatureFunction = Callable[..., NDArray[np.float64]]

_FEATURES: dict[str, Feature] = {}
_FAMILIES: dict[str, Callable[[int], Feature]] = {}


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One column of the tape: a pure causal function of the last L bars.

    Attributes:
        name: column name.
        group: ``market`` (for the market encoder) or ``risk`` (exogenous risk) by default; ``named`` is in no
            default set.
        unit: what a value of 1.0 is.
        lookback: bars that the value of one bar depends on, itself included.
        memory_ms: wall-clock memory, for what happens by the clock and not by the bar (funding).
        low, high: finite; the column is clipped to this range.
        source: where the definition comes from.
        meaning: one sentence.
        function: ``Bars -> (T,) float64``; what it returns before the look-back is full is discarded.
    """

    name: str
    group: Group
    unit: str
    lookback: int
    memory_ms: int
    low: float
    high: float
    source: str
    meaning: str
    function: Callable[[Bars], NDArray[np.float64]]

    def __post_init__(self) -> None:
        if self.lookback < 1 or self.memory_ms < 0:
            raise ValueError(f"feature {self.name}: lookback must be at least 1 bar and memory_ms at least 0")
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"feature {self.name}: low and high must be finite, low below high")

    def lookback_bars(self, bar_ms: int) -> int:
        """L: bars of ``bar_ms`` that one value depends on, itself included."""
        return max(self.lookback, bars_in(self.memory_ms, bar_ms))

    def compute(self, bars: Bars) -> NDArray[np.float64]:
        """The column, clipped to its range; 0 where fewer than L bars are known.

        Args:
            bars: T bars.

        Returns:
            (T,) float64, finite.

        Raises:
            ValueError: the function returned another shape, or a number that is not finite.
        """
        values = np.array(self.function(bars), dtype=np.float64)
        if values.shape != (len(bars),):
            raise ValueError(f"feature {self.name} must return shape {(len(bars),)}, was {values.shape}")
        warm_up = min(self.lookback_bars(bars.bar_ms) - 1, len(bars))
        values[:warm_up] = 0.0
        if not np.isfinite(values).all():
            at = np.datetime64(int(bars.open_time_ms[np.argmin(np.isfinite(values))]), "ms")
            raise ValueError(
                f"feature {self.name} of {bars.contract.symbol} must be finite, but is not at the bar "
                f"that opens at {at}; check the raw data there (zero or missing prices) or the guards"
            )
        values[warm_up:] = np.clip(values[warm_up:], self.low, self.high)
        return values


def bars_in(memory_ms: int, bar_ms: int) -> int:
    """The least number of bars, at least one, that spans ``memory_ms``."""
    return max(1, -(-memory_ms // bar_ms))


def feature(
    *,
    name: str,
    unit: str,
    low: float,
    high: float,
    source: str,
    lookback: int | Callable[[int], int] = 1,
    memory_ms: int = 0,
    group: Group = "market",
    over: Sequence[int] = (),
) -> Callable[[FeatureFunction], FeatureFunction]:
    """Register the decorated function as a feature, or as a family of features over horizons.

    Args:
        name: column name; of a family a template that ends in ``{n}``, the horizon in bars.
        unit: what a value of 1.0 is.
        low, high: finite; the column is clipped to this range.
        source: where the definition comes from.
        lookback: bars, the present one included; of a family, a function of the horizon.
        memory_ms: wall-clock memory, where the look-back is not a number of bars.
        group: where the column goes by default.
        over: horizons of a family that are in the default set; others are available by name.

    Returns:
        A decorator that leaves the function as it is; a family's function takes ``(bars, n)``.

    Raises:
        ValueError: the name is taken, or a look-back by horizon is given to a single feature.
    """
    is_family = name.endswith("{n}")
    if callable(lookback) and not is_family:
        raise ValueError(f"feature {name!r}: a look-back by horizon needs a name that ends in {{n}}")

    def register(function: FeatureFunction) -> FeatureFunction:
        meaning = (function.__doc__ or name).strip().splitlines()[0]

        def member(n: int) -> Feature:
            return Feature(
                name=name.format(n=n),
                group=group,
                unit=unit,
                lookback=lookback(n) if callable(lookback) else lookback,
                memory_ms=memory_ms,
                low=low,
                high=high,
                source=source,
                meaning=re.sub(r"\bn\b", str(n), meaning) if is_family else meaning,
                function=(lambda bars: function(bars, n)) if is_family else function,
            )

        if is_family:
            _FAMILIES[name] = member
        for n in over if is_family else (0,):
            _add(member(n))
        return function

    return register


def _add(new: Feature) -> None:
    if new.name in _FEATURES:
        raise ValueError(f"a feature named {new.name!r} is registered already; choose another name")
    _FEATURES[new.name] = new


def get_feature(name: str) -> Feature:
    """The feature of that name; members of a family exist for every horizon, e.g. ``log_return_72``.

    Raises:
        KeyError: no feature has the name and no family covers it.
    """
    if name in _FEATURES:
        return _FEATURES[name]
    for template, member in _FAMILIES.items():
        match = re.fullmatch(re.escape(template[: -len("{n}")]) + r"([1-9]\d*)", name)
        if match is not None:
            return member(int(match.group(1)))
    raise KeyError(
        f"no feature is named {name!r}; known are {', '.join(sorted(_FEATURES))}, "
        f"and for any number of bars n {', '.join(sorted(_FAMILIES))}"
    )


def default_names(group: Group) -> tuple[str, ...]:
    """Names of the registered features of a group, in the order of their registration."""
    return tuple(f.name for f in _FEATURES.values() if f.group == group)


def feature_table() -> list[dict[str, Any]]:
    """The registry as rows for documents: name, group, unit, look-back, range, source, meaning."""
    columns = ("name", "group", "unit", "lookback", "memory_ms", "low", "high", "source", "meaning")
    return [{column: getattr(f, column) for column in columns} for f in _FEATURES.values()]


def compute_features(bars: Bars, names: Sequence[str]) -> NDArray[np.float32]:
    """The named columns side by side.

    Args:
        bars: T bars of one contract.
        names: F feature names.

    Returns:
        (T, F) float32, finite; 0 where a column's look-back is not full.
    """
    table = np.empty((len(bars), len(names)), dtype=np.float32)
    for column, name in enumerate(names):
        table[:, column] = get_feature(name).compute(bars)
    return table


def newest_features(bars: Bars, names: Sequence[str]) -> NDArray[np.float32]:
    """The named columns at the newest bar, each from no more bars than it looks back.

    Args:
        bars: T bars of one contract; at least the longest look-back.
        names: F feature names.

    Returns:
        (F,) float32: the last row of :func:`compute_features` on all the bars there are.
    """
    row = np.empty(len(names), dtype=np.float32)
    cuts: dict[int, Bars] = {}
    for column, name in enumerate(names):
        known = get_feature(name)
        lookback = known.lookback_bars(bars.bar_ms)
        if lookback not in cuts:
            cuts[lookback] = bars.slice(max(len(bars) - lookback, 0), len(bars))
        row[column] = known.compute(cuts[lookback])[-1]
    return row
