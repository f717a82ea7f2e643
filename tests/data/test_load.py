"""A few settings become checked bars, or an error that names the file and says what to do."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from perpgym.data.clock import iso
from perpgym.data.contract import load_contract
from perpgym.data.errors import DataError
from perpgym.data.load import DataConfig, LoadedData, load_bars

Frames = Callable[..., pd.DataFrame]
Folder = Callable[..., Path]


def load(path: Path, source: str = "freqtrade", **changes: Any) -> LoadedData:
    return load_bars(DataConfig(source=source, path=str(path), store=str(path / "store"), **changes))  # type: ignore[arg-type]


def test_a_freqtrade_folder_becomes_bars(freqtrade_folder: Folder, klines: Frames) -> None:
    data = load(freqtrade_folder(mark=klines()))
    assert len(data.bars) == 96
    assert data.bars.contract == load_contract("BTC/USDT:USDT")
    assert data.bars.mark_rule == "mark"
    assert data.source.startswith("freqtrade folder")
    assert (data.notes, data.findings, data.fallback_reason, data.planted) == ((), (), None, None)


def test_start_and_end_cut_the_bars_and_their_stamps(freqtrade_folder: Folder) -> None:
    bars = load(freqtrade_folder(), start="2024-01-02", end="2024-01-03").bars
    assert iso(int(bars.open_time_ms[0])) == "2024-01-02 00:00"
    assert iso(int(bars.close_time_ms[-1])) == "2024-01-04 00:00"
    # the stamp at the first open belongs to the bar before, the one at the last close to the last bar
    assert [iso(int(t)) for t in bars.stamp_time_ms[[0, -1]]] == ["2024-01-02 08:00", "2024-01-04 00:00"]


def test_data_shorter_than_the_dates_asked_for_are_noted(freqtrade_folder: Folder, klines: Frames) -> None:
    data = load(freqtrade_folder(mark=klines()), start="2023-06-01", end="2024-01-03")
    assert data.notes == (
        "BTC/USDT:USDT: the data cover only 2024-01-01 00:00 to 2024-01-04 00:00 of the dates asked for",
    )


def test_the_mark_rule_is_logged_and_noted(
    freqtrade_folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    data = load(freqtrade_folder())
    assert data.bars.mark_rule == "last"
    assert "mark=last" in caplog.text
    assert "mark=last" in data.notes[0]


# each kind of bad input, through the loader


def break_gap(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(index=range(20, 30))


def break_nan(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(close=frame["close"].where(frame.index != 30))


def break_order(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[::-1].reset_index(drop=True)


def break_duplicate(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.iloc[-1:]], ignore_index=True)


def break_timeframe(frame: pd.DataFrame) -> pd.DataFrame:
    half = frame.iloc[:50].assign(time_ms=frame["time_ms"].iloc[:50] + 1_800_000)
    return pd.concat([frame, half]).sort_values("time_ms", ignore_index=True)


@pytest.mark.parametrize(
    ("damage", "fault", "what_to_do"),
    [
        (break_gap, "10 bars are missing", "name the rule fill_flat"),
        (break_nan, "NaN", "name the rule drop_invalid"),
        (break_order, "not sorted by time", "name the rule sort"),
        (break_duplicate, "repeat a time", "name the rule drop_duplicates"),
        (break_timeframe, "not all bars are 1h long", "keep each timeframe in a file of its own"),
    ],
)
def test_a_bad_file_is_named_with_its_fault_and_what_to_do(
    freqtrade_folder: Folder,
    klines: Frames,
    damage: Callable[[pd.DataFrame], pd.DataFrame],
    fault: str,
    what_to_do: str,
) -> None:
    root = freqtrade_folder(damage(klines()).reset_index(drop=True))
    with pytest.raises(DataError) as error:
        load(root)
    for words in ("BTC_USDT_USDT-1h-futures.feather", fault, what_to_do):
        assert words in str(error.value)


def test_a_missing_funding_file_is_an_error_that_names_it(freqtrade_folder: Folder) -> None:
    with pytest.raises(DataError, match=r"(?s)8h-funding_rate\.feather.*freqtrade download-data.*no_funding"):
        load(freqtrade_folder(with_funding=False))


def test_a_truncated_archive_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "BTCUSDT-1h-2024-01.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("BTCUSDT-1h-2024-01.csv", "1704067200000,1,1,1,1,1\n" * 100)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"2024-01\.zip.*cut off or damaged.*download it again"):
        load(path, source="binance_vision")


def test_a_contract_without_rules_is_told_which_ship(freqtrade_folder: Folder) -> None:
    root = freqtrade_folder(pair="PEPE_USDT_USDT")
    with pytest.raises(DataError, match="no contract rules for PEPE/USDT:USDT: shipped are AVAX"):
        load(root, symbol="PEPE/USDT:USDT")


def test_an_empty_store_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"it has nothing\. Fill it with"):
        load(tmp_path, source="store")


def test_a_table_becomes_bars(tmp_path: Path, klines: Frames, funding: Frames) -> None:
    klines().to_parquet(tmp_path / "bars.parquet")
    funding().to_csv(tmp_path / "funding.csv", index=False)
    config = DataConfig(
        source="table", path=str(tmp_path / "bars.parquet"), funding_path=str(tmp_path / "funding.csv")
    )
    assert len(load_bars(config).bars) == 96


# the simulated market


def test_the_simulated_market_needs_nothing() -> None:
    config = DataConfig(source="simulated", start="2024-01-01", end="2024-02-29", simulated={"seed": 3})
    data = load_bars(config)
    assert len(data.bars) == 60 * 24
    assert data.source.startswith("simulated")
    assert data.fallback_reason is None
    assert data.planted is not None
    assert data.planted.shape == (60 * 24,)
    np.testing.assert_array_equal(load_bars(config).bars.last, data.bars.last)


def test_a_misspelt_setting_of_the_simulated_market_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"data.simulated: a setting is unknown.*sede.*known are symbol"):
        load_bars(DataConfig(source="simulated", simulated={"sede": 3}))


def test_the_simulated_market_of_an_unknown_contract_is_told_which_ship() -> None:
    with pytest.raises(DataError, match=r"needs a shipped contract.*shipped are AVAX"):
        load_bars(DataConfig(source="simulated", symbol="PEPE/USDT:USDT"))


# impossible settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": "csv"}, "source must be one of auto, freqtrade"),
        ({"source": "freqtrade"}, "source=freqtrade needs a path"),
        ({"source": "auto"}, "needs start and end"),
        ({"source": "store", "mark": "index"}, "mark must be one of require, last, auto"),
        ({"source": "store", "repair": ["fill"]}, "unknown repair rules"),
        ({"source": "store", "timeframe": "hourly"}, "timeframe must look like"),
        ({"source": "store", "start": "2024-02-01", "end": "2024-01-01"}, "start must lie before end"),
        ({"source": "store", "start": "1.2.2024"}, "ISO 8601"),
        ({"source": "store", "download_timeout_s": 0}, "download_timeout_s must be positive"),
    ],
)
def test_an_impossible_setting_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DataConfig(**settings)


def test_empty_sections_of_a_config_file_are_no_settings() -> None:
    config = DataConfig(source="store", repair=None, columns=None, simulated=None)  # type: ignore[arg-type]
    assert (config.repair, config.columns, config.simulated) == ((), {}, {})


# real data


@pytest.mark.parametrize("asset", ["BTC", "ETH"])
def test_real_bars_load_with_real_marks(shared_data: Path, asset: str) -> None:
    bars = load(shared_data / "freqtrade", symbol=f"{asset}/USDT:USDT", mark="require", end="2025-06-30").bars
    assert len(bars) == 48_192
    assert bars.mark_rule == "mark"
    assert not np.array_equal(bars.mark, bars.last)
    assert (bars.stamp_time_ms.size, iso(int(bars.stamp_time_ms[0]))) == (6023, "2020-01-01 08:00")


def test_marks_spare_the_lows_of_the_last_price(shared_data: Path) -> None:
    bars = load(shared_data / "freqtrade", mark="require").bars
    excess_bps = (np.log(bars.mark[:, 2]) - np.log(bars.last[:, 2])) * 1e4
    # the README of the data: last lows lie up to 811 bp below the mark's
    assert (bars.mark[:, 2] / bars.last[:, 2] - 1).max() * 1e4 == pytest.approx(811, abs=100)
    assert np.median(np.abs(excess_bps)) < 10


@pytest.mark.parametrize(("asset", "mark_rule"), [("SOL", "last"), ("XRP", "mark")])
def test_120_missing_hours_are_refused_without_the_rule_and_filled_with_it(
    shared_data: Path, asset: str, mark_rule: str
) -> None:
    root, symbol = shared_data / "freqtrade", f"{asset}/USDT:USDT"
    with pytest.raises(DataError, match=f"{asset}_USDT_USDT-1h-futures.feather: 120 bars are missing"):
        load(root, symbol=symbol)
    data = load(root, symbol=symbol, repair=("fill_flat",))
    assert np.unique(np.diff(data.bars.open_time_ms)).tolist() == [3_600_000]
    assert (data.bars.volume == 0).sum() >= 120
    assert data.bars.mark_rule == mark_rule
    assert any("fill_flat" in note for note in data.notes)


def test_sol_settled_more_often_in_november_2022(shared_data: Path) -> None:
    data = load(shared_data / "freqtrade", symbol="SOL/USDT:USDT", start="2022-11-01", end="2022-11-30")
    step = np.diff(data.bars.stamp_time_ms) // 3_600_000
    assert set(step.tolist()) == {2, 4, 8}
    assert [f.rule for f in data.findings if f.severity == "error"] == []


def test_minutes_with_stamps_off_by_milliseconds_load(shared_data: Path) -> None:
    root = shared_data / "freqtrade_1m"
    bars = load(root, timeframe="1m", end="2025-06-03T00:00").bars
    assert len(bars) == 42_267
    assert (bars.stamp_time_ms % 60_000 == 0).all()
    with pytest.raises(DataError, match="has bars of 1m, but not 1h"):
        load(root)
