"""The tape: contracts on one clock, stamps with the bars that own them, and the same thing after a save."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perpgym.data.bars import Bars
from perpgym.data.contract import HOUR_MS, Contract
from perpgym.data.features.build import build_tape, longest_lookback
from perpgym.data.tape import Tape

START_MS = 1_577_836_800_000  # 2020-01-01 00:00 UTC
SHORT = ["log_return_4", "realised_vol_24"]


def walk(symbol: str = "ONE/USDT:USDT", count: int = 120, seed: int = 0) -> Bars:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(rng.normal(0, 0.01, count).cumsum())
    last = np.stack([close, close * 1.01, close * 0.99, close], axis=1)
    hours = np.arange(0, count + 1, 8)
    return Bars(
        contract=Contract(symbol=symbol),
        bar_ms=HOUR_MS,
        open_time_ms=START_MS + np.arange(count) * HOUR_MS,
        last=last,
        mark=last * 1.001,
        volume=rng.lognormal(3, 1, count),
        stamp_time_ms=START_MS + hours * HOUR_MS,
        stamp_rate=rng.normal(0, 1e-4, len(hours)),
    )


def build(bars: Bars | list[Bars], **changes: object) -> Tape:
    arguments = {"features": SHORT, "risk": ["funding_rate"], "source": "test"} | changes
    return build_tape(bars, **arguments)  # type: ignore[arg-type]


def test_the_bar_that_closes_at_eight_owns_the_stamp_of_eight() -> None:
    bars = walk()
    tape = build(bars)
    own = [slice(*tape.stamp_start[0, t : t + 2]) for t in range(len(tape))]
    np.testing.assert_array_equal(tape.stamp_time_ms[own[7]], [START_MS + 8 * HOUR_MS])
    assert tape.stamp_time_ms[own[8]].size == 0
    # the stamp at the open of the first bar belongs to a bar before the tape
    assert tape.stamp_time_ms[0] == START_MS + 8 * HOUR_MS
    assert tape.stamp_start[0, 0] == 0
    assert tape.stamp_start[0, -1] == len(tape.stamp_time_ms) == 15
    np.testing.assert_array_equal(tape.stamp_rate, bars.stamp_rate[1:])


def test_columns_are_zero_until_the_longest_look_back_is_full() -> None:
    tape = build(walk())
    assert tape.first_valid_bar == 24 == longest_lookback(["realised_vol_24"], HOUR_MS) - 1
    assert (tape.features[:24] == 0).all()
    assert (tape.risk[:24] == 0).all()
    assert (tape.features[24:] != 0).all()
    assert (tape.sigma_per_bar[:24] == 1e-6).all()
    assert (tape.sigma_per_bar[24:] > 1e-3).all()


def test_a_tape_without_columns_still_waits_for_sigma() -> None:
    tape = build(walk(), features=[], risk=[])
    assert tape.features.shape == (120, 1, 0)
    assert tape.first_valid_bar == 24


def test_two_contracts_keep_their_own_prices_columns_and_stamps() -> None:
    one, two = walk(), walk("TWO/USDT:USDT", seed=1)
    two = replace(two, stamp_time_ms=two.stamp_time_ms[::2], stamp_rate=two.stamp_rate[::2], mark_rule="last")
    both = build([one, two])
    assert [c.symbol for c in both.contracts] == ["ONE/USDT:USDT", "TWO/USDT:USDT"]
    assert both.mark_rules == ("mark", "last")
    for a, alone in enumerate((build(one), build(two))):
        for name in ("last", "mark", "volume", "sigma_per_bar", "features", "risk"):
            np.testing.assert_array_equal(getattr(both, name)[:, a], getattr(alone, name)[:, 0], err_msg=name)
        owned = slice(both.stamp_start[a, 0], both.stamp_start[a, -1])
        np.testing.assert_array_equal(both.stamp_rate[owned], alone.stamp_rate)
        np.testing.assert_array_equal(both.stamp_start[a] - both.stamp_start[a, 0], alone.stamp_start[0])


def test_a_saved_tape_comes_back_memory_mapped_with_the_same_hash(tmp_path: Path) -> None:
    tape = build(walk(), planted=np.arange(120.0))
    tape.save(tmp_path / "tape")
    again = Tape.load(tmp_path / "tape")
    assert isinstance(again.features, np.memmap)
    assert again.data_hash == tape.data_hash
    assert again.contracts == tape.contracts
    assert again.planted is not None
    np.testing.assert_array_equal(again.planted[:, 0], np.arange(120.0))


def test_one_changed_price_changes_the_hash() -> None:
    bars = walk()
    last = bars.last.copy()
    last[50, 3] *= 1 + 1e-12
    assert build(bars).data_hash == build(walk()).data_hash
    assert build(bars).data_hash != build(replace(bars, last=last)).data_hash
    # a folder that was moved, or a fallback that is read again as what it was, holds the same data
    assert build(bars).data_hash == build(bars, source="elsewhere").data_hash


def test_a_moment_is_found_by_text_milliseconds_and_datetime() -> None:
    tape = build(walk())
    assert tape.bar_at("2020-01-02") == 24
    assert tape.bar_at("2020-01-02T00:30:00Z") == 25
    assert tape.bar_at(START_MS) == 0
    assert tape.bar_at(np.datetime64("2021-01-01")) == 120
    assert tape.bars_per_year == 8_760


def test_too_few_bars_are_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(ValueError, match="look back 721 bars, but there are only 120"):
        build_tape(walk(), source="test")


def test_contracts_on_different_grids_are_refused() -> None:
    shifted = walk("TWO/USDT:USDT")
    later = {name: getattr(shifted, name) + 60_000 for name in ("open_time_ms", "stamp_time_ms")}
    shifted = replace(shifted, **later)
    with pytest.raises(ValueError, match="open at the same times of day"):
        build([walk(), shifted])


def test_a_contract_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="on a tape once"):
        build([walk(), walk()])


@pytest.mark.parametrize(
    ("field", "at", "value", "message"),
    [
        ("last", (3, 1), 0.0, "last price"),
        ("mark", (3, 1), np.nan, "mark price"),
        ("volume", 3, -1.0, "volume"),
        ("stamp_rate", 3, np.nan, "funding rate"),
        ("stamp_time_ms", 3, START_MS, "ascend"),
        ("open_time_ms", 119, START_MS, "without gaps"),
    ],
)
def test_raw_data_that_would_poison_columns_are_refused(
    field: str, at: tuple[int, ...], value: float, message: str
) -> None:
    bars = walk()
    damaged = getattr(bars, field).copy()
    damaged[at] = value
    with pytest.raises(ValueError, match=message):
        build(replace(bars, **{field: damaged}))


def test_nothing_to_build_from_and_columns_named_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one contract"):
        build([])
    with pytest.raises(ValueError, match="named more often: log_return_4"):
        build(walk(), features=["log_return_4", "log_return_4"])
    with pytest.raises(KeyError, match="log_retrun_4"):
        build(walk(), features=["log_retrun_4"])


def test_an_array_of_the_wrong_shape_is_refused() -> None:
    tape = build(walk())
    with pytest.raises(ValueError, match="features must have shape"):
        replace(tape, features=tape.features[1:])


def test_the_clock_counts_bars_from_the_epoch_wherever_the_tape_begins() -> None:
    whole, later = build(walk()), build(walk().slice(40, 120))
    assert whole.epoch_bar(np.array([0]))[0] == START_MS // HOUR_MS
    np.testing.assert_array_equal(whole.clock(np.array([40, 100])), later.clock(np.array([0, 60])))
