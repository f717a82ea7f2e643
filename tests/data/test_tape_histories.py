"""Contracts with different histories on one tape: listed late, with a hole, gone early, never ahead."""

from __future__ import annotations

from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from perpgym.data.bars import CLOSE, OPEN, Bars
from perpgym.data.contract import HOUR_MS, Contract
from perpgym.data.features import fit_scaler
from perpgym.data.features.build import build_tape
from perpgym.data.tape import Tape

START_MS = 1_577_836_800_000  # 2020-01-01 00:00 UTC
BARS, LATE, GONE = 400, 90, 300
HOLE = slice(160, 200)
# the longest look-back of the columns, bars; valid from the 25th own bar on
LOOKBACK = 25
OLD, YOUNG, DEAD = range(3)


def history(symbol: str, first: int, stop: int, seed: int) -> Bars:
    """Hourly bars ``first`` ... ``stop - 1`` of the common clock, settled every eight hours."""
    rng = np.random.default_rng(seed)
    count = stop - first
    close = 100 * np.exp(rng.normal(0, 0.01, count).cumsum())
    opening = np.concatenate([[100.0], close[:-1]])
    high, low = np.maximum(opening, close) * 1.02, np.minimum(opening, close) * 0.98
    last = np.stack([opening, high, low, close], axis=1)
    hours = np.arange(first - first % 8 + 8, stop + 1, 8)
    return Bars(
        contract=Contract(symbol=symbol),
        bar_ms=HOUR_MS,
        open_time_ms=START_MS + np.arange(first, stop) * HOUR_MS,
        last=last,
        mark=last * 1.001,
        volume=rng.lognormal(3, 1, count),
        stamp_time_ms=START_MS + hours * HOUR_MS,
        stamp_rate=rng.normal(0, 1e-4, hours.size),
    )


def with_hole(bars: Bars, hole: slice) -> Bars:
    """Filled flat, as the repair rule ``fill_flat`` leaves it; the settlements stay."""
    last, mark, volume = bars.last.copy(), bars.mark.copy(), bars.volume.copy()
    last[hole], mark[hole], volume[hole] = last[hole.start - 1, CLOSE], mark[hole.start - 1, CLOSE], 0.0
    return replace(bars, last=last, mark=mark, volume=volume)


@pytest.fixture(scope="module")
def contracts() -> list[Bars]:
    return [
        with_hole(history("OLD/USDT:USDT", 0, BARS, 0), HOLE),
        history("YOUNG/USDT:USDT", LATE, BARS, 1),
        history("DEAD/USDT:USDT", 0, GONE, 2),
    ]


def build(contracts: list[Bars]) -> Tape:
    return build_tape(
        contracts, features=["log_return_4", "realised_vol_24"], risk=["funding_rate"], source="test"
    )


@pytest.fixture(scope="module")
def tape(contracts: list[Bars]) -> Tape:
    return build(contracts)


def test_the_clock_runs_from_the_first_bar_of_any_to_the_last_of_any(tape: Tape) -> None:
    np.testing.assert_array_equal(tape.open_time_ms, START_MS + np.arange(BARS) * HOUR_MS)
    assert tape.first_valid_bar == LOOKBACK - 1


def test_a_contract_is_valid_once_its_own_look_back_is_whole(tape: Tape) -> None:
    assert tape.is_valid.argmax(axis=0).tolist() == [LOOKBACK - 1, LATE + LOOKBACK - 1, LOOKBACK - 1]
    assert tape.is_valid[LATE + LOOKBACK - 1 :].all()
    invalid = ~tape.is_valid
    assert not tape.features[invalid].any()
    assert not tape.risk[invalid].any()
    assert not tape.volume[invalid].any()


def test_a_late_contract_has_the_columns_of_its_own_tape(contracts: list[Bars], tape: Tape) -> None:
    alone = build([contracts[YOUNG]])
    for name in ("last", "mark", "volume", "sigma_per_bar", "features", "risk", "is_valid"):
        np.testing.assert_array_equal(
            getattr(tape, name)[LATE:, YOUNG], getattr(alone, name)[:, 0], err_msg=name
        )
    np.testing.assert_array_equal(tape.stamp_start[YOUNG, LATE:] - tape.stamp_start[YOUNG, LATE],
                                  alone.stamp_start[0])  # fmt: skip


def test_before_its_listing_a_contract_stands_at_its_first_open_and_owes_nothing(
    contracts: list[Bars], tape: Tape
) -> None:
    for name in ("last", "mark"):
        first_open = getattr(contracts[YOUNG], name)[0, OPEN]
        assert (getattr(tape, name)[:LATE, YOUNG] == first_open).all()
    assert tape.stamp_start[YOUNG, LATE] == tape.stamp_start[YOUNG, 0]
    owned = tape.stamp_time_ms[tape.stamp_start[YOUNG, 0] : tape.stamp_start[YOUNG, -1]]
    assert owned[0] > START_MS + LATE * HOUR_MS


def test_in_a_hole_the_last_price_stands_nothing_trades_and_published_funding_is_due(
    contracts: list[Bars], tape: Tape
) -> None:
    assert not tape.volume[HOLE, OLD].any()
    assert (tape.last[HOLE, OLD] == tape.last[HOLE.start - 1, OLD, CLOSE]).all()
    assert tape.is_valid[HOLE, OLD].all()
    due = tape.stamp_start[OLD, HOLE.stop] - tape.stamp_start[OLD, HOLE.start]
    assert due == (HOLE.stop - HOLE.start) // 8


def test_after_its_last_bar_a_contract_stands_where_it_was(contracts: list[Bars], tape: Tape) -> None:
    assert (tape.last[GONE:, DEAD] == contracts[DEAD].last[-1, CLOSE]).all()
    assert (tape.mark[GONE:, DEAD] == contracts[DEAD].mark[-1, CLOSE]).all()
    assert not tape.volume[GONE:, DEAD].any()
    assert tape.stamp_start[DEAD, GONE] == tape.stamp_start[DEAD, -1]


def another_future(bars: Bars, close_ms: int, rng: np.random.Generator) -> Bars:
    """The same up to an instant; later prices, volumes and settlements are others."""
    later = bars.close_time_ms > close_ms
    last, mark, volume, rate = bars.last.copy(), bars.mark.copy(), bars.volume.copy(), bars.stamp_rate.copy()
    last[later] *= np.exp(rng.normal(size=(later.sum(), 1)))
    mark[later] *= np.exp(rng.normal(size=(later.sum(), 1)))
    volume[later] = rng.lognormal(5, 2, later.sum())
    due = bars.stamp_time_ms > close_ms
    rate[due] = rng.normal(0, 0.01, due.sum())
    return replace(bars, last=last, mark=mark, volume=volume, stamp_rate=rate)


# before the second listing, after it, in the hole, after the third contract's end
@pytest.mark.parametrize("t", [60, 130, 170, 320])
def test_nothing_that_is_seen_up_to_a_close_changes_with_what_comes_later(
    contracts: list[Bars], tape: Tape, t: int
) -> None:
    rng = np.random.default_rng(t)
    close_ms = int(tape.open_time_ms[t]) + HOUR_MS
    other = build([another_future(bars, close_ms, rng) for bars in contracts])
    for name in ("features", "risk", "sigma_per_bar", "volume", "is_valid"):
        seen, changed = getattr(tape, name), getattr(other, name)
        np.testing.assert_array_equal(changed[: t + 1], seen[: t + 1], err_msg=name)
        # the negative control
        if name != "is_valid":
            assert not np.array_equal(changed[t + 1 :], seen[t + 1 :]), name


@pytest.mark.parametrize("t", [60, 130, 170, 320])
def test_a_tape_that_ends_is_the_beginning_of_one_that_goes_on(
    contracts: list[Bars], tape: Tape, t: int
) -> None:
    # nobody knows at a missing bar whether another will come: a hole and an end look alike up to there
    known = [(a, b.slice(0, min(len(b), t + 1 - skip))) for a, b, skip in
             zip(range(3), contracts, (0, LATE, 0), strict=True) if t + 1 - skip >= LOOKBACK]  # fmt: skip
    cut = build([bars for _, bars in known])
    places = [a for a, _ in known]
    for name in ("features", "risk", "sigma_per_bar", "volume", "is_valid", "last", "mark"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(tape, name)[: t + 1, places], err_msg=name)
    if YOUNG not in places:
        assert not tape.is_valid[: t + 1, YOUNG].any()


def test_a_contract_too_young_for_any_column_is_refused(contracts: list[Bars]) -> None:
    short = contracts[YOUNG].slice(0, LOOKBACK - 1)
    with pytest.raises(ValueError, match=r"YOUNG/USDT:USDT: the columns look back 25 bars.*leave the"):
        build([contracts[OLD], short])


def test_what_was_planted_lies_at_the_bars_of_its_contract(contracts: list[Bars]) -> None:
    planted = [np.arange(1.0, len(b) + 1) for b in contracts]
    tape = build_tape(contracts, features=[], risk=[], planted=planted, source="test")
    assert tape.planted is not None
    np.testing.assert_array_equal(tape.planted[LATE:, YOUNG], planted[YOUNG])
    np.testing.assert_array_equal(tape.planted[:GONE, DEAD], planted[DEAD])
    assert not tape.planted[:LATE, YOUNG].any()
    assert not tape.planted[GONE:, DEAD].any()


def test_validity_is_part_of_the_hash_and_of_what_is_saved(tape: Tape, tmp_path: Path) -> None:
    everywhere = replace(tape, is_valid=np.ones_like(tape.is_valid), _cache={})
    assert everywhere.data_hash != tape.data_hash
    tape.save(tmp_path)
    again = Tape.load(tmp_path)
    assert again.data_hash == tape.data_hash
    np.testing.assert_array_equal(again.is_valid, tape.is_valid)


def test_without_a_mask_every_contract_is_valid_from_the_first_valid_bar_on(tape: Tape) -> None:
    plain = replace(tape, is_valid=np.zeros((0, 0), np.bool_))
    assert not plain.is_valid[: tape.first_valid_bar].any()
    assert plain.is_valid[tape.first_valid_bar :].all()


def test_a_scaler_is_fitted_on_valid_rows_of_the_training_period_alone(tape: Tape) -> None:
    start, stop = 50, 250
    rows = [tape.features[start:stop, a][tape.is_valid[start:stop, a]] for a in range(3)]
    pooled = np.concatenate(rows)
    fitted = fit_scaler(tape.features, start, stop, is_valid=tape.is_valid, winsor=0.0)
    np.testing.assert_allclose(fitted.center, pooled.mean(axis=0), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(fitted.scale, pooled.std(axis=0), rtol=1e-4)
    # the zeros of a contract that is not there yet would pull the scale
    assert not np.allclose(fit_scaler(tape.features, start, stop, winsor=0.0).scale, fitted.scale, rtol=1e-2)


def describe_arrays(folder: Path) -> dict[str, tuple[bool, bool, str]]:
    """By array: whether it is memory-mapped and read-only, and on which file."""
    tape = Tape.load(folder)
    arrays: dict[str, NDArray] = {n: getattr(tape, n) for n in ("features", "risk", "last", "is_valid")}
    return {
        name: (isinstance(array, np.memmap), not array.flags.writeable, str(array.filename))
        for name, array in arrays.items()
    }


def test_every_process_that_loads_a_tape_maps_the_same_files(tape: Tape, tmp_path: Path) -> None:
    tape.save(tmp_path)
    with get_context("spawn").Pool(2) as pool:
        here, there = pool.map(describe_arrays, [tmp_path] * 2)
    assert here == there
    for name, (is_mapped, is_read_only, path) in here.items():
        assert is_mapped, name
        assert is_read_only, name
        assert Path(path) == tmp_path / f"{name}.npy"
