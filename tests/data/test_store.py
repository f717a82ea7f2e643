"""The store keeps what it acknowledged, names a damaged file, and may be told the same thing twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpgym.data.contract import load_contract
from perpgym.data.errors import DataError
from perpgym.data.store import SeriesKey, Store, default_root, merge_spans, missing_spans

Frames = Callable[..., pd.DataFrame]
HOUR_MS = 3_600_000
MONTHS_MS = 1_704_067_200_000 - 100 * HOUR_MS  # so that 200 bars span two months
KEY = SeriesKey(exchange="binance", symbol="BTC/USDT:USDT", kind="last", timeframe="1h")


def test_what_was_written_is_read_back(tmp_path: Path, klines: Frames) -> None:
    frame = klines(200, start_ms=MONTHS_MS)
    assert Store(tmp_path).append(KEY, frame) == 200
    pd.testing.assert_frame_equal(Store(tmp_path).read(KEY), frame)
    assert len(list((tmp_path / KEY.folder).glob("*.parquet"))) == 2


def test_reading_takes_only_the_dates_asked_for(tmp_path: Path, klines: Frames) -> None:
    frame = klines(200, start_ms=MONTHS_MS)
    store = Store(tmp_path)
    store.append(KEY, frame)
    time = frame["time_ms"]
    part = store.read(KEY, int(time[90]), int(time[110]))
    pd.testing.assert_frame_equal(part, frame.iloc[90:110].reset_index(drop=True))
    assert store.read(KEY, int(time[199]) + HOUR_MS).empty


def test_appending_twice_changes_nothing(tmp_path: Path, klines: Frames) -> None:
    store, frame = Store(tmp_path), klines(200, start_ms=MONTHS_MS)
    store.append(KEY, frame)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / KEY.folder).glob("*.parquet")}
    assert store.append(KEY, frame.sample(frac=1, random_state=0)) == 0
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / KEY.folder).glob("*.parquet")} == before


def test_the_order_of_appends_does_not_change_the_hash(tmp_path: Path, klines: Frames) -> None:
    frame = klines(200, start_ms=MONTHS_MS)
    forwards, backwards = Store(tmp_path / "a"), Store(tmp_path / "b")
    for part in (frame.iloc[:80], frame.iloc[80:]):
        forwards.append(KEY, part)
    for part in (frame.iloc[80:], frame.iloc[:80]):
        backwards.append(KEY, part)
    assert forwards.content_hash(KEY) == backwards.content_hash(KEY)


def test_of_rows_with_the_same_time_the_later_wins(tmp_path: Path, klines: Frames) -> None:
    store, frame = Store(tmp_path), klines(10)
    store.append(KEY, frame)
    revised = frame.iloc[[4]].assign(volume=1.0)
    assert store.append(KEY, revised) == 1
    assert store.read(KEY)["volume"].iloc[4] == 1.0
    assert store.rows(KEY) == 10
    assert len(list((tmp_path / KEY.folder).glob("*.parquet"))) == 1


class DiskFullError(OSError):
    pass


def test_a_crash_before_the_manifest_loses_nothing_that_was_acknowledged(
    tmp_path: Path, klines: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, frame = Store(tmp_path), klines(200, start_ms=MONTHS_MS)
    store.append(KEY, frame.iloc[:120])
    original = Path.replace

    def fail_on_manifest(self: Path, target: str) -> Path:
        if str(target).endswith("manifest.json"):
            raise DiskFullError("no space left on device")
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail_on_manifest)
        with pytest.raises(DiskFullError):
            store.append(KEY, frame.iloc[120:])
    pd.testing.assert_frame_equal(Store(tmp_path).read(KEY), frame.iloc[:120])
    assert not list((tmp_path / KEY.folder).glob("*.tmp"))
    Store(tmp_path).append(KEY, frame.iloc[120:])
    pd.testing.assert_frame_equal(Store(tmp_path).read(KEY), frame)


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, klines: Frames) -> None:
    store = Store(tmp_path)
    store.append(KEY, klines(10))
    path = next((tmp_path / KEY.folder).glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"{path.name}.*damaged.*download the series again"):
        store.read(KEY)
    path.unlink()
    with pytest.raises(DataError, match=f"{path.name}.*not there"):
        store.read(KEY)


def test_a_file_with_other_content_is_refused(tmp_path: Path, klines: Frames) -> None:
    store = Store(tmp_path)
    store.append(KEY, klines(10))
    path = next((tmp_path / KEY.folder).glob("*.parquet"))
    klines(10).assign(volume=1.0).to_parquet(path, index=False)
    with pytest.raises(DataError, match="hash differs"):
        store.read(KEY)


def test_a_damaged_or_foreign_manifest_is_refused(tmp_path: Path, klines: Frames) -> None:
    store = Store(tmp_path)
    store.append(KEY, klines(10))
    manifest = tmp_path / KEY.folder / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace('"version": 1', '"version": 9'), "utf-8")
    with pytest.raises(DataError, match="another version"):
        store.read(KEY)
    manifest.write_text("{", "utf-8")
    with pytest.raises(DataError, match="manifest is damaged"):
        store.read(KEY)


def test_an_object_store_path_works_the_same(klines: Frames) -> None:
    store = Store("memory://perpgym-test-store")
    frame = klines(200, start_ms=MONTHS_MS)
    store.append(KEY, frame.iloc[:150])
    store.append(KEY, frame.iloc[100:])
    pd.testing.assert_frame_equal(store.read(KEY), frame)
    assert store.series() == [KEY]


def test_the_store_says_what_it_holds(tmp_path: Path, klines: Frames, funding: Frames) -> None:
    store = Store(tmp_path)
    assert store.series() == []
    settlements = replace(KEY, kind="funding", timeframe="")
    store.append(KEY, klines(10))
    store.append(settlements, funding(10))
    assert store.series() == [settlements, KEY]
    assert store.read(settlements).columns.tolist() == ["time_ms", "rate"]


def test_the_root_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERPGYM_DATA", str(tmp_path / "here"))
    assert Store().root == str(tmp_path / "here")
    monkeypatch.delenv("PERPGYM_DATA")
    assert default_root().endswith("perpgym")


def test_a_contract_is_kept_beside_its_series(tmp_path: Path) -> None:
    store, btc = Store(tmp_path), load_contract("BTC/USDT:USDT")
    assert store.contract("binance", btc.symbol) is None
    store.save_contract("binance", btc)
    assert store.contract("binance", btc.symbol) == btc
    assert store.series() == []


def test_a_series_must_be_possible() -> None:
    with pytest.raises(ValueError, match="bars need a timeframe"):
        SeriesKey(exchange="binance", symbol="X/USDT:USDT", kind="last")
    with pytest.raises(ValueError, match="kind must be one of"):
        SeriesKey(exchange="binance", symbol="X/USDT:USDT", kind="trades")  # type: ignore[arg-type]


def test_an_answered_span_without_rows_is_remembered(tmp_path: Path, klines: Frames) -> None:
    store = Store(tmp_path)
    store.append(KEY, klines(0), covered=(0, 10 * HOUR_MS))
    store.append(KEY, klines(0), covered=(10 * HOUR_MS, 12 * HOUR_MS))
    assert store.covered(KEY) == [(0, 12 * HOUR_MS)]
    assert store.read(KEY).empty


spans = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda s: (min(s), max(s))), max_size=6
)


@given(have=spans, wanted=st.tuples(st.integers(0, 50), st.integers(0, 50)))
def test_missing_spans_are_exactly_what_is_not_there(
    have: list[tuple[int, int]], wanted: tuple[int, int]
) -> None:
    wanted = (min(wanted), max(wanted))

    def cells(parts: list[tuple[int, int]]) -> set[int]:
        return {i for start, end in parts for i in range(start, end)}

    assert cells(missing_spans(wanted, have)) == cells([wanted]) - cells(have)
    assert cells(merge_spans(have)) == cells(have)
    assert all(a[1] < b[0] for a, b in zip(merge_spans(have), merge_spans(have)[1:], strict=False))


def test_a_reader_sees_a_month_that_was_replaced_after_it_read_the_manifest(
    tmp_path: Path, klines: Frames
) -> None:
    store, frame = Store(tmp_path), klines(10)
    store.append(KEY, frame)
    stale = store._manifest(KEY)
    store.append(KEY, frame.assign(volume=1.0))
    answers = iter([stale])

    class Late(Store):
        def _manifest(self, key: SeriesKey) -> dict[str, object]:
            return next(answers, None) or super()._manifest(key)

    assert np.all(Late(tmp_path).read(KEY)["volume"] == 1.0)
