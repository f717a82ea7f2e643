"""A pandas frame whose owner has prepared features too, as other environments take it, becomes a tape."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from perpgym.data.clock import iso
from perpgym.data.contract import Contract
from perpgym.data.errors import DataError
from perpgym.data.features.build import build_tape
from perpgym.data.frames import frame_times
from perpgym.data.sources.table import bars_from_frames
from perpgym.data.tape import Tape

if TYPE_CHECKING:
    import pandas as pd

_LOG = logging.getLogger(__name__)

# what marks a column as a feature elsewhere: ``feature_*`` (gym-trading-env), ``features_*`` (torchtrade)
FEATURE_MARK = "feature"
# observations are float32 in a bounded Box
_LARGEST = 1e6


def tape_from_frame(
    df: pd.DataFrame,
    *,
    contract: str | Contract = "BTC/USDT:USDT",
    funding: pd.DataFrame | None = None,
    mark: pd.DataFrame | None = None,
    features: Sequence[str] | None = None,
    own: Sequence[str] | None = None,
    risk: Sequence[str] | None = None,
    repair: Collection[str] = (),
) -> Tape:
    """A tape from a frame of bars and features, as users of other environments hold it.

    gym-trading-env's frame (a ``DatetimeIndex``; open, high, low, close, volume; ``feature_*``), torchtrade's
    (``timestamp``; …; ``features_*``), gym-anytrading's (``Open`` … ``Volume``) and freqtrade's go in as they
    are. Times are opening times, UTC where they name no zone.

    **What a prepared column knows is its owner's promise.** Its look-back is unknown, so nothing here can
    test that a row holds nothing of later bars, nor compute it for a live account; the log says so.

    Args:
        df: bars of equal spacing, in quote and base units.
        contract: a shipped symbol, or rules of your own.
        funding: ``date, rate`` of settlements; None means that nothing is ever charged, and logs it.
        mark: mark-price bars; None is the named rule ``mark=last``, and logs it.
        features: the prepared columns; None takes every one with ``feature`` in its name.
        own: perpgym's features beside them, by name; None takes none if there are prepared ones, else all.
        risk: perpgym's risk columns; None takes all, which look back 30 days.
        repair: named rules of ``quality.REPAIRS`` by which faults may be repaired.

    Returns:
        The tape; a bar that a repair filled has the prepared columns of the bar before it.

    Raises:
        DataError: a column is missing or holds no finite number after its first one, or a fault in the bars
            that no named rule repairs.
        KeyError: no rules ship for the symbol, or a feature of ours is unknown.
        ValueError: there are fewer bars than the longest look-back.
    """
    prepared = _prepared_names(df, features)
    bars = bars_from_frames(df, funding=funding, mark=mark, contract=contract, repair=repair)
    names = () if own is None and prepared else own
    tape = build_tape(bars, features=names, risk=risk, source="frame")
    if not prepared:
        return tape
    twice = sorted(set(prepared) & set(tape.feature_names))
    if twice:
        raise DataError(f"perpgym has features named {', '.join(twice)} too; rename the frame's columns")
    symbol = tape.contracts[0].symbol
    _LOG.warning(
        "%s: %d prepared columns (%s): that no row knows a later bar is your promise, and a live account "
        "would need the code that computes them",
        symbol, len(prepared), ", ".join(prepared),
    )  # fmt: skip
    return _with_prepared(tape, prepared, _on_clock(df, prepared, tape.open_time_ms, symbol))


def _prepared_names(df: pd.DataFrame, features: Sequence[str] | None) -> tuple[str, ...]:
    if features is None:
        return tuple(str(name) for name in df.columns if FEATURE_MARK in str(name).lower())
    missing = [name for name in features if name not in df.columns]
    if missing:
        raise DataError(
            f"frame of bars: no column {', '.join(map(repr, missing))}; "
            f"it has {', '.join(map(str, df.columns))}"
        )
    return tuple(features)


def _on_clock(
    df: pd.DataFrame, names: tuple[str, ...], open_time_ms: NDArray[np.int64], symbol: str
) -> NDArray[np.float64]:
    """(T, F) values of the rows that open with the bars, or of the last row before a bar that was filled."""
    times = frame_times(df, "frame of bars")
    # of rows that repeat a time the later one counts, as in ``drop_duplicates``
    order = np.argsort(times, kind="stable")
    row = order[np.searchsorted(times[order], open_time_ms, side="right") - 1]
    try:
        table = df[list(names)].to_numpy(dtype=np.float64, na_value=np.nan)[row]
    except (ValueError, TypeError) as error:
        raise DataError(f"{symbol}: a prepared column holds something that is no number: {error}") from None
    is_ready = np.isfinite(table).all(axis=1)
    first = int(np.argmax(is_ready)) if is_ready.any() else len(table)
    bad = ~(np.abs(table) <= _LARGEST)
    bad[:first] = False
    if first == len(table):
        bad = ~np.isfinite(table)
    if bad.any():
        bar, column = np.argwhere(bad)[0]
        raise DataError(
            f"{symbol}: prepared columns must be finite and lie between ±{_LARGEST:g}, but "
            f"{names[int(column)]} was {table[bar, column]:g} at {iso(int(open_time_ms[bar]))}; only the "
            "first rows may be empty, as a rolling window leaves them"
        )
    return table


def _with_prepared(tape: Tape, names: tuple[str, ...], table: NDArray[np.float64]) -> Tape:
    """The tape with the columns before its own ones; rows before all of them are ready are 0."""
    first = max(tape.first_valid_bar, int(np.argmax(np.isfinite(table).all(axis=1))))
    if first >= len(tape) - 1:
        raise DataError(
            f"{tape.contracts[0].symbol}: prepared columns and look-backs leave none of {len(tape)} bars; "
            "give more bars"
        )
    features = np.concatenate([table.astype(np.float32)[:, None], tape.features], axis=2)
    risk = tape.risk.copy()
    features[:first], risk[:first] = 0.0, 0.0
    return replace(
        tape,
        features=features,
        risk=risk,
        feature_names=(*names, *tape.feature_names),
        first_valid_bar=first,
        is_valid=tape.is_valid & (np.arange(len(tape)) >= first)[:, None],
        _cache={},
    )
