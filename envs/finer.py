"""Bars inside bars: a finer series that resolves what happens within a bar of the tape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import Bars
from perpgym.data.soundness import check_clock, check_inside, check_prices, check_volume
from perpgym.data.tape import Tape
from perpgym.data.union import before_listing, listing_bar, union_clock, until

DAY_MS = 86_400_000
# a slot's expected share of volume is its mean over as many days before
PROFILE_DAYS = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Finer:
    """Finer bars of every contract of a tape, aligned with it.

    Attributes:
        last, mark: (Tf, A, 4) float64 quote.
        volume: (Tf, A) float64 base.
        share: (Tf, A) float64, expected share of a finer bar in what is left of its bar's volume, from
            the days before only.
        first: index of the finer bar that opens with the tape's bar 0; negative if the series starts later.
        per_bar: finer bars in a bar.
        start_bar, end_bar: bars ``start_bar`` up to ``end_bar`` of the tape are covered.
    """

    last: NDArray[np.float64]
    mark: NDArray[np.float64]
    volume: NDArray[np.float64]
    share: NDArray[np.float64]
    first: int
    per_bar: int
    start_bar: int
    end_bar: int

    @classmethod
    def same(cls, tape: Tape) -> Finer:
        """The tape's own bars: nothing is resolved."""
        return cls(
            last=tape.last, mark=tape.mark, volume=tape.volume, share=tape.volume, first=0, per_bar=1,
            start_bar=0, end_bar=len(tape),
        )  # fmt: skip

    @classmethod
    def of(cls, tape: Tape, finer: Bars | Sequence[Bars]) -> Finer:
        """Align finer bars with a tape.

        Args:
            tape: the market.
            finer: one contract's bars or one for each contract of the tape, in its order. What is covered is
                covered for every contract, from the bar on from which that one is valid.

        Raises:
            ValueError: another contract, bars that lie on no one grid, a length that does not divide the
                tape's, no bar of the tape covered, bars that hold what no market may, or that do not make
                the tape's own. A mark that is a copy of the last price (``mark=last``) makes no other mark.
        """
        series = [finer] if isinstance(finer, Bars) else list(finer)
        symbols = [b.contract.symbol for b in series]
        if symbols != [c.symbol for c in tape.contracts]:
            raise ValueError(
                f"finer bars are of {symbols}, the tape has {[c.symbol for c in tape.contracts]}: give one "
                "series for each contract, in the tape's order"
            )
        fine_ms, opens = series[0].bar_ms, union_clock(series)
        if tape.bar_ms % fine_ms or (opens[0] - tape.open_time_ms[0]) % fine_ms:
            raise ValueError(f"finer bars of {fine_ms} ms do not divide the tape's bars of {tape.bar_ms} ms")
        for bars in series:
            symbol = bars.contract.symbol
            check_clock(symbol, bars.open_time_ms, fine_ms)
            check_prices(symbol, "last", bars.open_time_ms, bars.last)
            check_prices(symbol, "mark", bars.open_time_ms, bars.mark)
            check_volume(symbol, bars.open_time_ms, bars.volume)
        per_bar = tape.bar_ms // fine_ms
        first = int(tape.open_time_ms[0] - opens[0]) // fine_ms
        start, end = 0, len(tape)
        for asset, bars in enumerate(series):
            from_bar = -(-int(bars.open_time_ms[0] - tape.open_time_ms[0]) // tape.bar_ms)
            if from_bar > np.argmax(tape.is_valid[:, asset]):
                start = max(start, from_bar)
            end = min(end, int(bars.open_time_ms[-1] + fine_ms - tape.open_time_ms[0]) // tape.bar_ms)
        if end - start < 2:
            raise ValueError("finer bars cover no two bars of the tape: load both for one period")
        listings = [listing_bar(b, opens) for b in series]
        series = [until(b, opens) for b in series]
        placed = list(zip(series, listings, strict=True))
        volume = np.stack([np.concatenate([np.zeros(n), b.volume]) for b, n in placed], axis=1)
        last = np.stack([before_listing(b.last, n) for b, n in placed], axis=1)
        mark = np.stack([before_listing(b.mark, n) for b, n in placed], axis=1)
        for asset, bars in enumerate(series):
            pairs = [("last", tape.last, last)]
            if bars.mark_rule == tape.mark_rules[asset]:
                pairs.append(("mark", tape.mark, mark))
            for name, of_bars, inside in pairs:
                _check_one(tape, asset, name, of_bars, inside, volume, range(start, end), first, per_bar)
        return cls(
            last=last,
            mark=mark,
            # where the tape's bar trades nothing, nor does anything inside it
            volume=volume * _inside(tape.volume > 0.0, len(opens), first, per_bar),
            share=_expected_share(volume, first % per_bar, per_bar, DAY_MS // fine_ms),
            first=first,
            per_bar=per_bar,
            start_bar=start,
            end_bar=end,
        )


def _check_one(
    tape: Tape,
    asset: int,
    name: str,
    of_bars: NDArray[np.float64],
    inside: NDArray[np.float64],
    volume: NDArray[np.float64],
    covered: range,
    first: int,
    per_bar: int,
) -> None:
    """One contract's finer prices (Tf, A, 4) against the tape's (T, A, 4), where the tape's bars traded."""
    bar = covered.start + np.flatnonzero(tape.volume[covered.start : covered.stop, asset] > 0.0)
    slots = first + bar[:, None] * per_bar + np.arange(per_bar)
    check_inside(
        tape.contracts[asset].symbol, name, tape.open_time_ms[bar], of_bars[bar, asset], inside[slots, asset],
        volume[slots, asset] > 0.0,
    )  # fmt: skip


def _inside(of_bars: NDArray[np.bool_], fine_bars: int, first: int, per_bar: int) -> NDArray[np.bool_]:
    """(T, A) of the tape's bars -> (fine_bars, A) of the finer ones inside them; True outside the tape."""
    bar = (np.arange(fine_bars) - first) // per_bar
    is_on_tape = (bar >= 0) & (bar < len(of_bars))
    return np.where(is_on_tape[:, None], of_bars[np.clip(bar, 0, len(of_bars) - 1)], True)


def _expected_share(
    volume: NDArray[np.float64], offset: int, per_bar: int, per_day: int
) -> NDArray[np.float64]:
    """Each slot's share of what is left of its bar, by the mean of the same slots over the days before."""
    bars, contracts = volume.shape
    mean = np.zeros_like(volume)
    for day in range(1, PROFILE_DAYS + 1):
        if day * per_day < bars:
            mean[day * per_day :] += volume[: bars - day * per_day] / PROFILE_DAYS
    # without a past, slots are equal
    mean[mean == 0.0] = 1e-12
    share = np.ones_like(volume)
    whole = (bars - offset) // per_bar
    slots = mean[offset : offset + whole * per_bar].reshape(whole, per_bar, contracts)
    left = np.cumsum(slots[:, ::-1], axis=1)[:, ::-1]
    share[offset : offset + whole * per_bar] = (slots / left).reshape(-1, contracts)
    return share
