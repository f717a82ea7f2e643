"""Training, validation and test never share a bar."""

from __future__ import annotations

import numpy as np
import pytest

from perpgym.data.clock import parse_start_ms
from perpgym.data.contract import Contract
from perpgym.data.errors import DataError
from perpgym.data.splits import Splits
from perpgym.data.tape import Tape

HOUR_MS = 3_600_000
SPLITS = Splits(train_end="2024-01-20", valid_end="2024-01-25", test_end="2024-01-30")


def make_tape(start: str = "2024-01-01", bars: int = 30 * 24, first_valid_bar: int = 50) -> Tape:
    ones = np.ones((bars, 1, 4))
    return Tape(
        contracts=(Contract(symbol="X/USDT:USDT"),),
        bar_ms=HOUR_MS,
        open_time_ms=parse_start_ms(start) + HOUR_MS * np.arange(bars, dtype=np.int64),
        last=ones,
        mark=ones,
        volume=ones[..., 0],
        sigma_per_bar=ones[..., 0],
        stamp_start=np.zeros((1, bars + 1), dtype=np.int64),
        stamp_time_ms=np.empty(0, dtype=np.int64),
        stamp_rate=np.empty(0),
        features=np.zeros((bars, 1, 1), dtype=np.float32),
        risk=np.zeros((bars, 1, 1), dtype=np.float32),
        feature_names=("f",),
        risk_names=("r",),
        first_valid_bar=first_valid_bar,
        mark_rules=("mark",),
        source="test",
    )


def test_an_end_date_includes_its_day_and_periods_are_adjacent() -> None:
    split = SPLITS.resolve(make_tape())
    assert (split.train.start, split.train.stop) == (50, 20 * 24)
    assert (split.valid.start, split.valid.stop) == (20 * 24, 25 * 24)
    assert (split.test.start, split.test.stop) == (25 * 24, 30 * 24)
    assert len(split.test) == 5 * 24


def test_an_embargo_opens_a_gap_after_training_and_after_validation() -> None:
    embargo = Splits(train_end="2024-01-20", valid_end="2024-01-25", test_end="2024-01-30", embargo_bars=24)
    split = embargo.resolve(make_tape())
    assert split.valid.start - split.train.stop == 24
    assert split.test.start - split.valid.stop == 24


def test_a_later_test_start_leaves_a_period_out_and_an_embargo_does_not_add_to_it() -> None:
    later = Splits(
        train_end="2024-01-20",
        valid_end="2024-01-25",
        test_start="2024-01-28",
        test_end=None,
        embargo_bars=24,
    )
    split = later.resolve(make_tape())
    assert (split.test.start, split.test.stop) == (27 * 24, 30 * 24)


def test_training_starts_where_look_backs_are_whole() -> None:
    early = Splits(train_start="2024-01-01", train_end="2024-01-20", valid_end="2024-01-25", test_end=None)
    assert early.resolve(make_tape()).train.start == 50
    late = Splits(train_start="2024-01-10", train_end="2024-01-20", valid_end="2024-01-25", test_end=None)
    assert late.resolve(make_tape()).train.start == 9 * 24


def test_a_date_with_a_time_is_that_instant() -> None:
    exact = Splits(train_end="2024-01-20T00:00", valid_end="2024-01-25T12:00", test_end=None)
    split = exact.resolve(make_tape())
    assert split.train.stop == 19 * 24
    assert split.valid.stop == 24 * 24 + 12


@pytest.mark.parametrize(
    "dates",
    [
        {"train_end": "2024-01-25", "valid_end": "2024-01-20"},
        {"train_end": "2024-01-20", "valid_end": "2024-01-20"},
        {"train_end": "2024-01-20", "valid_end": "2024-01-25", "test_start": "2024-01-24"},
        {"train_end": "2024-01-20", "valid_end": "2024-01-25", "train_start": "2024-01-22"},
        {"train_end": "2024-01-20", "valid_end": "2024-01-25", "test_end": "2024-01-22"},
    ],
)
def test_overlapping_or_reversed_periods_are_refused(dates: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="overlap"):
        Splits(**dates)  # type: ignore[arg-type]


def test_a_test_may_start_the_day_after_validation_ends() -> None:
    Splits(train_end="2024-01-20", valid_end="2024-01-25", test_start="2024-01-26", test_end=None)


def test_a_negative_embargo_is_refused() -> None:
    with pytest.raises(ValueError, match="embargo_bars must not be negative"):
        Splits(embargo_bars=-1)


def test_dates_beyond_the_data_are_refused_with_where_they_end() -> None:
    with pytest.raises(DataError, match="valid_end is 2024-01-25, but the data end at 2024-01-24 00:00"):
        SPLITS.resolve(make_tape(bars=23 * 24))


def test_a_period_without_bars_is_refused_with_what_there_is() -> None:
    with pytest.raises(DataError, match="the train period has 0 bars; the tape runs from 2024-01-21"):
        SPLITS.resolve(make_tape(start="2024-01-21"))
    with pytest.raises(DataError, match="the valid period has 0 bars"):
        Splits(train_end="2024-01-20", valid_end="2024-01-25", test_end=None, embargo_bars=500).resolve(
            make_tape()
        )


def test_the_periods_are_told_in_dates() -> None:
    tape = make_tape()
    assert SPLITS.resolve(tape).describe(tape) == (
        "train 2024-01-03 02:00 to 2024-01-21 00:00 (430 bars), "
        "valid 2024-01-21 00:00 to 2024-01-26 00:00 (120 bars), "
        "test 2024-01-26 00:00 to 2024-01-31 00:00 (120 bars)"
    )
