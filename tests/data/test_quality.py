"""Every fault of raw data is found, refused by default, and repaired only by the rule that was named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from perpgym.data.align import Aligned, align, inspect
from perpgym.data.clock import iso, parse_end_ms, parse_start_ms, timeframe_ms, timeframe_name
from perpgym.data.contract import Contract
from perpgym.data.errors import DataError
from perpgym.data.frames import RawFrames

Frames = Callable[..., pd.DataFrame]
HOUR_MS = 3_600_000
CONTRACT = Contract(symbol="BTC/USDT:USDT")


@pytest.fixture
def raw(klines: Frames, funding: Frames) -> RawFrames:
    return RawFrames(
        symbol="BTC/USDT:USDT",
        bar_ms=HOUR_MS,
        last=klines(),
        mark=klines(),
        funding=funding(),
        origin={"last": "bars.csv", "mark": "mark.csv", "funding": "funding.csv"},
        source="test",
    )


def refused(raw: RawFrames, *, repair: Sequence[str] = ()) -> str:
    with pytest.raises(DataError) as error:
        align(raw, CONTRACT, repair=repair)
    return str(error.value)


def rules(aligned: Aligned) -> set[str]:
    return {f.rule for f in aligned.findings}


def test_whole_data_pass_without_a_finding(raw: RawFrames) -> None:
    aligned = align(raw, CONTRACT)
    assert aligned.findings == ()
    assert len(aligned.bars) == 96
    assert aligned.bars.mark_rule == "mark"
    np.testing.assert_array_equal(aligned.bars.last[:, 3], raw.last["close"])


def test_a_gap_is_refused_and_filled_only_by_name(raw: RawFrames) -> None:
    holed = replace(raw, last=raw.last.drop(index=range(10, 15)))
    message = refused(holed)
    assert "bars.csv" in message
    assert "5 bars are missing" in message
    assert "fill_flat" in message
    bars = align(holed, CONTRACT, repair=["fill_flat"]).bars
    assert len(bars) == 96
    np.testing.assert_array_equal(bars.volume[10:15], 0.0)
    np.testing.assert_array_equal(bars.last[10:15], raw.last["close"].iloc[9])


def test_a_filled_bar_keeps_the_real_mark(raw: RawFrames) -> None:
    bars = align(replace(raw, last=raw.last.drop(index=[10])), CONTRACT, repair=["fill_flat"]).bars
    assert raw.mark is not None
    assert bars.mark[10, 3] == raw.mark["close"].iloc[10]


def test_a_gap_of_more_than_120_hours_is_refused_even_by_name(
    klines: Frames, raw: RawFrames, funding: Frames
) -> None:
    long = replace(raw, last=klines(300).drop(index=range(50, 171)), mark=None, funding=funding(300))
    assert "120 hours" in refused(long, repair=["fill_flat"])
    short = replace(raw, last=klines(300).drop(index=range(50, 170)), mark=None, funding=funding(300))
    assert len(align(short, CONTRACT, repair=["fill_flat"]).bars) == 300


def test_unsorted_rows_are_refused_and_sorted_only_by_name(raw: RawFrames) -> None:
    shuffled = replace(raw, last=raw.last.iloc[::-1].reset_index(drop=True))
    assert "not sorted" in refused(shuffled)
    bars = align(shuffled, CONTRACT, repair=["sort"]).bars
    np.testing.assert_array_equal(bars.last[:, 3], raw.last["close"])


def test_of_duplicate_rows_the_later_wins_once_named(raw: RawFrames) -> None:
    again = raw.last.iloc[[20]].assign(close=raw.last["high"].iloc[20])
    doubled = replace(raw, last=pd.concat([raw.last.iloc[:21], again, raw.last.iloc[21:]], ignore_index=True))
    message = refused(doubled)
    assert "repeat a time (1 with other values)" in message
    bars = align(doubled, CONTRACT, repair=["drop_duplicates"]).bars
    assert bars.last[20, 3] == raw.last["high"].iloc[20]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("close", np.nan, "NaN"),
        ("volume", np.nan, "NaN"),
        ("open", np.inf, "NaN or infinite"),
        ("low", 0.0, "price of zero or less"),
        ("volume", -1.0, "negative volume"),
        ("high", 1.0, "high that is not the highest"),
        ("high", 4e6, "over 5 times off"),
    ],
)
def test_an_impossible_row_is_refused_and_dropped_only_by_name(
    raw: RawFrames, column: str, value: float, words: str
) -> None:
    last = raw.last.copy()
    last.loc[30, column] = value
    bad = replace(raw, last=last)
    message = refused(bad)
    assert words in message
    assert iso(int(raw.last["time_ms"].iloc[30])) in message
    assert "fill_flat" in refused(bad, repair=["drop_invalid"])
    bars = align(bad, CONTRACT, repair=["drop_invalid", "fill_flat"]).bars
    assert bars.volume[30] == 0.0
    assert np.isfinite(bars.last).all()


def test_a_halving_within_an_hour_is_a_warning_and_stays(raw: RawFrames) -> None:
    last = raw.last.copy()
    last.loc[40, "low"] *= 0.5
    aligned = align(replace(raw, last=last), CONTRACT)
    assert [(f.rule, f.severity) for f in aligned.findings] == [("spikes", "warning")]
    assert aligned.bars.last[40, 2] == last["low"].iloc[40]


def test_a_lasting_step_in_price_is_no_spike(raw: RawFrames) -> None:
    last = raw.last.copy()
    last.loc[50:, ["open", "high", "low", "close"]] *= 2.0
    assert "spikes" not in rules(inspect(replace(raw, last=last, mark=None), CONTRACT))


def test_mixed_timeframes_are_refused(raw: RawFrames, klines: Frames) -> None:
    quarter = klines(8, start_ms=int(raw.last["time_ms"].iloc[-1]) + HOUR_MS, bar_ms=HOUR_MS // 4)
    message = refused(replace(raw, last=pd.concat([raw.last, quarter], ignore_index=True)))
    assert "not all bars are 1h long" in message
    assert "15m" in message


def test_longer_bars_in_a_file_of_hours_are_mixed_timeframes_and_no_gaps(
    raw: RawFrames, klines: Frames
) -> None:
    four = klines(20, start_ms=int(raw.last["time_ms"].iloc[-1]) + HOUR_MS, bar_ms=4 * HOUR_MS)
    message = refused(replace(raw, last=pd.concat([raw.last, four], ignore_index=True)), repair=["fill_flat"])
    assert "not all bars are 1h long" in message


def test_every_fault_is_told_at_once(raw: RawFrames) -> None:
    last = raw.last.copy()
    last.loc[30, "close"] = np.nan
    broken = replace(raw, last=last.drop(index=[50]).iloc[::-1], funding=None)
    message = refused(broken)
    for words in ("not sorted", "NaN", "missing in", "no funding series"):
        assert words in message


def test_an_unknown_repair_is_refused_with_the_known_ones(raw: RawFrames) -> None:
    with pytest.raises(ValueError, match=r"known are:\n  sort +put the rows in order of time\n"):
        align(raw, CONTRACT, repair=["fill_falt"])


def test_without_a_mark_the_rule_is_written_on_the_bars_and_told(raw: RawFrames) -> None:
    aligned = align(replace(raw, mark=None), CONTRACT)
    assert aligned.bars.mark_rule == "last"
    assert "mark=last" in aligned.notes[0]
    np.testing.assert_array_equal(aligned.bars.mark, aligned.bars.last)
    assert aligned.bars.mark is not aligned.bars.last


def test_a_required_mark_that_is_missing_is_refused(raw: RawFrames) -> None:
    with pytest.raises(DataError, match="no 1h mark series"):
        align(replace(raw, mark=None), CONTRACT, mark="require")


def test_the_mark_can_be_ignored_by_name(raw: RawFrames) -> None:
    assert raw.mark is not None
    bars = align(replace(raw, mark=raw.mark * 1.01), CONTRACT, mark="last").bars
    np.testing.assert_array_equal(bars.mark, bars.last)


def test_a_mark_bar_that_is_missing_is_filled_from_last_only_by_name(raw: RawFrames) -> None:
    assert raw.mark is not None
    holed = replace(raw, mark=raw.mark.drop(index=[5, 6]))
    assert "2 of 96 bars have no mark price" in refused(holed)
    bars = align(holed, CONTRACT, repair=["mark_from_last"]).bars
    np.testing.assert_array_equal(bars.mark[5], bars.last[5])
    assert bars.mark_rule == "mark"


def test_mark_history_outside_the_bars_is_dropped(raw: RawFrames) -> None:
    bars = align(replace(raw, last=raw.last.iloc[24:72]), CONTRACT).bars
    assert bars.mark.shape == (48, 4)
    assert raw.mark is not None
    assert bars.mark[0, 0] == raw.mark["open"].iloc[24]


def test_the_mark_of_another_contract_is_refused(raw: RawFrames) -> None:
    assert raw.mark is not None
    prices = ["open", "high", "low", "close"]
    other = raw.mark.assign(**{c: raw.mark[c] * 1.5 for c in prices})
    assert "as of another contract" in refused(replace(raw, mark=other))


def test_missing_funding_is_refused_and_absent_only_by_name(raw: RawFrames) -> None:
    message = refused(replace(raw, funding=None))
    assert "funding.csv" in message
    assert "no_funding" in message
    bars = align(replace(raw, funding=None), CONTRACT, repair=["no_funding"]).bars
    assert bars.stamp_time_ms.size == 0


def test_a_funding_hole_is_refused_and_carried_forward_only_by_name(raw: RawFrames) -> None:
    assert raw.funding is not None
    holed = replace(raw, funding=raw.funding.drop(index=[4]))
    assert "settlements are missing" in refused(holed)
    bars = align(holed, CONTRACT, repair=["fill_funding"]).bars
    whole = align(raw, CONTRACT).bars
    np.testing.assert_array_equal(bars.stamp_time_ms, whole.stamp_time_ms)
    # the stamp at the first open belongs to the bar before, so the fourth is at index 3
    assert bars.stamp_rate[3] == bars.stamp_rate[2]


def test_a_missing_settlement_among_frequent_ones_is_found(raw: RawFrames, funding: Frames) -> None:
    four_hourly = funding(every_ms=4 * HOUR_MS)
    assert align(replace(raw, funding=four_hourly), CONTRACT).bars.stamp_rate.size == 24
    assert "settlements are missing" in refused(replace(raw, funding=four_hourly.drop(index=[9])))


def test_settling_more_often_for_a_while_is_no_fault(raw: RawFrames) -> None:
    assert raw.funding is not None
    start = int(raw.funding["time_ms"].iloc[4])
    extra = pd.DataFrame({"time_ms": start + 2 * HOUR_MS * np.arange(1, 4), "rate": -1e-3})
    both = pd.concat([raw.funding, extra]).sort_values("time_ms", ignore_index=True)
    aligned = align(replace(raw, funding=both), CONTRACT)
    assert aligned.bars.stamp_rate.size == 15
    assert [(f.rule, f.severity) for f in aligned.findings] == [("funding_cadence", "info")]


def test_funding_that_starts_late_or_ends_early_is_refused(raw: RawFrames) -> None:
    assert raw.funding is not None
    assert "set start to 2024-01-02 00:00" in refused(replace(raw, funding=raw.funding.iloc[3:]))
    assert "settlements are missing" in refused(replace(raw, funding=raw.funding.iloc[:-3]))


def test_the_stamp_at_the_last_close_may_be_missing(raw: RawFrames) -> None:
    assert raw.funding is not None
    assert align(replace(raw, funding=raw.funding.iloc[:-1]), CONTRACT).findings == ()


def test_funding_stamps_are_rounded_to_the_minute_before_bars_own_them(raw: RawFrames) -> None:
    assert raw.funding is not None
    jitter = np.resize([5, -2, 0], len(raw.funding))
    bars = align(
        replace(raw, funding=raw.funding.assign(time_ms=raw.funding["time_ms"] + jitter)), CONTRACT
    ).bars
    assert (bars.stamp_time_ms % (8 * HOUR_MS) == 0).all()
    # the 07:00 bar owns the 08:00 stamp
    np.testing.assert_array_equal(bars.stamp_bar()[:2], [7, 15])


def test_rates_beyond_the_cap_are_a_warning(raw: RawFrames) -> None:
    assert raw.funding is not None
    aligned = align(replace(raw, funding=raw.funding.assign(rate=0.05)), CONTRACT)
    assert {(f.rule, f.severity) for f in aligned.findings} == {("rate_cap", "warning")}


def test_a_cadence_that_divides_no_day_is_a_warning(raw: RawFrames, funding: Frames) -> None:
    aligned = align(replace(raw, funding=funding(every_ms=7 * HOUR_MS)), CONTRACT)
    assert [(f.rule, f.severity) for f in aligned.findings] == [("funding_cadence", "warning")]


def test_a_hole_in_funding_too_long_to_fill_is_refused_even_by_name(
    raw: RawFrames, klines: Frames, funding: Frames
) -> None:
    holed = funding(400).drop(index=range(10, 27))
    long = replace(raw, last=klines(400), mark=None, funding=holed)
    assert "too long to fill" in refused(long, repair=["fill_funding"])


def test_a_mark_far_off_for_a_while_is_a_warning(raw: RawFrames) -> None:
    assert raw.mark is not None
    mark = raw.mark.copy()
    mark.loc[10:12, ["open", "high", "low", "close"]] *= 1.1
    aligned = align(replace(raw, mark=mark), CONTRACT)
    assert [(f.rule, f.count, f.severity) for f in aligned.findings] == [("basis", 3, "warning")]


def test_a_file_without_usable_bars_is_named(raw: RawFrames) -> None:
    with pytest.raises(DataError, match=r"bars\.csv: no usable bar"):
        align(replace(raw, last=raw.last.assign(close=np.nan)), CONTRACT)
    with pytest.raises(ValueError, match="mark must be one of"):
        align(raw, CONTRACT, mark="index")  # type: ignore[arg-type]


def test_a_settlement_without_a_rate_is_refused(raw: RawFrames) -> None:
    assert raw.funding is not None
    funding = raw.funding.copy()
    funding.loc[3, "rate"] = np.nan
    assert "have no rate" in refused(replace(raw, funding=funding))


def test_dates_are_cut_before_the_checks(raw: RawFrames) -> None:
    holed = replace(raw, last=raw.last.drop(index=[10]))
    cut = holed.between(parse_start_ms("2024-01-02"), parse_end_ms("2024-01-03"))
    bars = align(cut, CONTRACT).bars
    assert len(bars) == 48
    assert iso(int(bars.close_time_ms[-1])) == "2024-01-04 00:00"
    # the stamp at the end instant belongs to the last bar
    assert bars.stamp_time_ms[-1] == bars.close_time_ms[-1]


def test_dates_without_data_are_told_what_there_is(raw: RawFrames) -> None:
    with pytest.raises(DataError, match="the file covers 2024-01-01 00:00 to 2024-01-04 23:00"):
        raw.between(parse_start_ms("2025-01-01"), None)


def test_an_end_date_includes_its_day_and_an_end_time_does_not() -> None:
    assert iso(parse_end_ms("2023-12-31")) == "2024-01-01 00:00"
    assert iso(parse_end_ms("2023-12-31T00:00")) == "2023-12-31 00:00"
    assert iso(parse_start_ms("2023-12-31T02:00+02:00")) == "2023-12-31 00:00"
    with pytest.raises(ValueError, match="ISO 8601"):
        parse_start_ms("31.12.2023")


def test_timeframes_have_names() -> None:
    for name in ("1m", "15m", "1h", "8h", "1d", "1w"):
        assert timeframe_name(timeframe_ms(name)) == name
    with pytest.raises(ValueError, match="must look like"):
        timeframe_ms("hourly")
    with pytest.raises(ValueError, match="whole minutes"):
        timeframe_name(1_500)
