"""Which bars train, which choose the checkpoint, and which judge: periods that never touch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from perpgym.data.clock import iso, parse_end_ms, parse_start_ms
from perpgym.data.errors import DataError
from perpgym.data.tape import Tape


@dataclass(frozen=True, kw_only=True)
class BarRange:
    """Bars ``start`` up to, not including, ``stop`` of a tape."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class SplitBars:
    """The three periods as bars of one tape: ascending, apart, none empty.

    The first decision of a period is taken at the close of its first bar and the last bar booked is inside
    it, so a position held across a border is never counted twice. Look-backs may reach into the period
    before: what was known then is known.
    """

    train: BarRange
    valid: BarRange
    test: BarRange

    def describe(self, tape: Tape) -> str:
        """The dates of the periods, for a log."""
        named = (("train", self.train), ("valid", self.valid), ("test", self.test))
        return ", ".join(
            f"{name} {iso(int(tape.open_time_ms[r.start]))} to {iso(_close_ms(tape, r.stop))} ({len(r)} bars)"
            for name, r in named
        )


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Dates that cut a tape into training, validation and test.

    Dates are UTC and ISO 8601. A bare end date includes its day: training that ends on 2023-12-31 ends at
    2024-01-01 00:00.

    Attributes:
        train_start: None, or a date before the features' look-back is whole, means the first valid bar.
        train_end: end of training.
        valid_end: end of validation, which follows training.
        test_start: None means right after validation.
        test_end: None means the end of the tape.
        embargo_bars: left out at the start of validation and of test, so that nothing which the period
            before was judged by (a position's outcome, an autocorrelated return) reaches into them.
    """

    train_end: str = "2023-12-31"
    valid_end: str = "2024-06-30"
    test_end: str | None = "2025-06-30"
    train_start: str | None = None
    test_start: str | None = None
    embargo_bars: int = 0

    def __post_init__(self) -> None:
        if self.embargo_bars < 0:
            raise ValueError(f"embargo_bars must not be negative, was {self.embargo_bars}")
        named = [(n, m) for n, m in self._borders() if m is not None]
        for (earlier, before), (later, after) in pairwise(named):
            # a test may start the instant that validation ends
            if after < before or (after == before and later != "test_start"):
                raise ValueError(
                    f"{later} must come after {earlier}, was {getattr(self, later)} after "
                    f"{getattr(self, earlier)}: the periods would overlap"
                )

    def _borders(self) -> list[tuple[str, int | None]]:
        borders: list[tuple[str, int | None]] = []
        for name in ("train_start", "train_end", "valid_end", "test_start", "test_end"):
            text = getattr(self, name)
            parse = parse_start_ms if name.endswith("start") else parse_end_ms
            borders.append((name, None if text is None else parse(text)))
        return borders

    def resolve(self, tape: Tape) -> SplitBars:
        """The periods as bars of ``tape``.

        Raises:
            DataError: the tape does not reach the dates, or a period is too short to hold two bars.
        """
        at = dict(self._borders())
        self._check_reach(tape, at)
        start = tape.first_valid_bar
        if at["train_start"] is not None:
            start = max(start, tape.bar_at(at["train_start"]))
        train_stop, valid_stop = (_first_bar_from(tape, at[n]) for n in ("train_end", "valid_end"))
        test_start = valid_stop if at["test_start"] is None else _first_bar_from(tape, at["test_start"])
        test_stop = _first_bar_from(tape, at["test_end"])
        split = SplitBars(
            train=BarRange(start=start, stop=train_stop),
            valid=BarRange(start=train_stop + self.embargo_bars, stop=valid_stop),
            test=BarRange(start=max(test_start, valid_stop + self.embargo_bars), stop=test_stop),
        )
        for name in ("train", "valid", "test"):
            _check_length(tape, name, getattr(split, name))
        return split

    def _check_reach(self, tape: Tape, at: dict[str, int | None]) -> None:
        end = _close_ms(tape, len(tape))
        for name in ("train_end", "valid_end", "test_end"):
            wanted = at[name]
            if wanted is not None and wanted > end:
                raise DataError(
                    f"{name} is {getattr(self, name)}, but the data end at {iso(end)}; get the missing bars, "
                    "or move the splits' dates"
                )


def _check_length(tape: Tape, name: str, period: BarRange) -> None:
    bars = period.stop - period.start
    if bars < 2:
        raise DataError(
            f"the {name} period has {max(bars, 0)} bars; the tape runs from {iso(_open_ms(tape, 0))} to "
            f"{iso(_close_ms(tape, len(tape)))}, its look-backs are whole from "
            f"{iso(_open_ms(tape, tape.first_valid_bar))}. Change the dates of the splits or of the data"
        )


def _first_bar_from(tape: Tape, time_ms: int | None) -> int:
    return len(tape) if time_ms is None else tape.bar_at(time_ms)


def _open_ms(tape: Tape, bar: int) -> int:
    return int(tape.open_time_ms[min(bar, len(tape) - 1)])


def _close_ms(tape: Tape, stop: int) -> int:
    return int(tape.open_time_ms[stop - 1]) + tape.bar_ms
