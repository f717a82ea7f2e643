"""Files of other tools are found, read and, where they are broken, named."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perpgym.data.contract import Contract
from perpgym.data.errors import DataError
from perpgym.data.frames import to_ms
from perpgym.data.sources.binance_vision import read_binance_vision
from perpgym.data.sources.binance_vision import symbols as vision_symbols
from perpgym.data.sources.freqtrade import find_folder, read_freqtrade
from perpgym.data.sources.freqtrade import symbols as freqtrade_symbols
from perpgym.data.sources.table import bars_from_frames, frames_from_pandas, read_table

Frames = Callable[..., pd.DataFrame]
Folder = Callable[..., Path]
BTC = "BTC/USDT:USDT"
HOUR_MS = 3_600_000
OCTOBER_MS = 1_727_740_800_000  # 2024-10-01


# freqtrade


def test_a_freqtrade_folder_is_found_from_any_folder_above(freqtrade_folder: Folder) -> None:
    root = freqtrade_folder()
    for path in (root, root / "binance", root / "binance" / "futures"):
        assert find_folder(path) == root / "binance" / "futures"


def test_freqtrade_files_become_settled_frames(
    freqtrade_folder: Folder, klines: Frames, funding: Frames
) -> None:
    raw = read_freqtrade(freqtrade_folder(mark=klines()), BTC)
    assert raw.bar_ms == HOUR_MS
    pd.testing.assert_frame_equal(raw.last, klines())
    assert raw.mark is not None
    assert (raw.mark["volume"] == 0).all()
    assert raw.funding is not None
    # the rate is in freqtrade's column `open`
    pd.testing.assert_frame_equal(raw.funding, funding())


def test_dates_may_be_in_nanoseconds(freqtrade_folder: Folder, klines: Frames) -> None:
    root = freqtrade_folder()
    path = root / "binance" / "futures" / "BTC_USDT_USDT-1h-futures.feather"
    frame = pd.read_feather(path)
    frame["date"] = frame["date"].dt.as_unit("ns")
    frame.to_feather(path)
    pd.testing.assert_frame_equal(read_freqtrade(root, BTC).last, klines())


def test_a_missing_funding_file_is_left_to_the_checks_with_its_name(freqtrade_folder: Folder) -> None:
    raw = read_freqtrade(freqtrade_folder(with_funding=False), BTC)
    assert raw.funding is None
    assert raw.origin["funding"].endswith("BTC_USDT_USDT-8h-funding_rate.feather")


def test_a_mark_of_another_timeframe_is_left_out_and_noted(freqtrade_folder: Folder, klines: Frames) -> None:
    root = freqtrade_folder(mark=klines())
    futures = root / "binance" / "futures"
    (futures / "BTC_USDT_USDT-1h-mark.feather").rename(futures / "BTC_USDT_USDT-8h-mark.feather")
    raw = read_freqtrade(root, BTC)
    assert raw.mark is None
    assert "8h-mark" in raw.notes[0]


def test_the_timeframe_must_be_there_and_unambiguous(freqtrade_folder: Folder) -> None:
    root = freqtrade_folder()
    with pytest.raises(DataError, match="has bars of 1h, but not 5m"):
        read_freqtrade(root, BTC, "5m")
    futures = root / "binance" / "futures"
    (futures / "BTC_USDT_USDT-5m-futures.feather").write_bytes(b"")
    with pytest.raises(DataError, match="1h, 5m, name one"):
        read_freqtrade(root, BTC)


def test_a_contract_that_is_not_there_is_told_which_are(freqtrade_folder: Folder) -> None:
    root = freqtrade_folder()
    assert freqtrade_symbols(root) == (BTC,)
    with pytest.raises(DataError, match="the folder has BTC/USDT:USDT"):
        read_freqtrade(root, "ETH/USDT:USDT")


def test_a_cut_off_feather_file_is_named(freqtrade_folder: Folder) -> None:
    root = freqtrade_folder()
    path = root / "binance" / "futures" / "BTC_USDT_USDT-1h-futures.feather"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=f"{path.name}.*cut off.*download it again"):
        read_freqtrade(root, BTC)


def test_a_folder_without_futures_files_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="freqtrade download-data"):
        find_folder(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        find_folder(tmp_path / "nowhere")


def test_of_several_exchanges_one_must_be_named(freqtrade_folder: Folder) -> None:
    root = freqtrade_folder()
    other = root / "bybit" / "futures"
    other.mkdir(parents=True)
    (other / "BTC_USDT_USDT-1h-futures.feather").write_bytes(b"")
    with pytest.raises(DataError, match="several exchanges"):
        find_folder(root)
    assert find_folder(root, "binance").parent.name == "binance"


# Binance Vision


def vision_csv(frame: pd.DataFrame, *, header: bool, micro: bool = False) -> str:
    table = frame.rename(columns={"time_ms": "open_time"}).assign(
        close_time=frame["time_ms"] + HOUR_MS - 1, count=1
    )
    if micro:
        table["open_time"] *= 1000
    return str(table.to_csv(index=False, header=header))


def write_zip(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{path.stem}.csv", text)
    return path


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("micro", [True, False])
def test_archives_with_and_without_header_in_ms_and_us_are_the_same(
    tmp_path: Path, klines: Frames, header: bool, micro: bool
) -> None:
    frame = klines(48, start_ms=OCTOBER_MS)
    path = write_zip(tmp_path / "BTCUSDT-1h-2024-10.zip", vision_csv(frame, header=header, micro=micro))
    for place in (path, tmp_path):
        raw = read_binance_vision(place, BTC)
        pd.testing.assert_frame_equal(raw.last, frame, check_exact=False, rtol=1e-12)
        assert raw.bar_ms == HOUR_MS


def test_a_tree_of_archives_gives_bars_mark_premium_and_funding(tmp_path: Path, klines: Frames) -> None:
    last = klines(48, start_ms=OCTOBER_MS)
    monthly = tmp_path / "futures" / "um" / "monthly"
    write_zip(monthly / "klines" / "BTCUSDT" / "1h" / "BTCUSDT-1h-2024-10.zip", vision_csv(last, header=True))
    # the first day again, as a daily archive
    day = vision_csv(last.iloc[:24], header=True)
    write_zip(tmp_path / "futures" / "um" / "daily" / "klines" / "BTCUSDT-1h-2024-10-01.zip", day)
    mark = last.assign(volume=0.0)
    mark_path = monthly / "markPriceKlines" / "BTCUSDT" / "1h" / "BTCUSDT-1h-2024-10.zip"
    write_zip(mark_path, vision_csv(mark, header=True))
    premium_path = monthly / "premiumIndexKlines" / "BTCUSDT" / "1h" / "BTCUSDT-1h-2024-10.zip"
    write_zip(premium_path, vision_csv(last.assign(close=-0.0003), header=True))
    spot = tmp_path / "spot" / "monthly" / "klines" / "BTCUSDT-1h-2024-10.zip"
    write_zip(spot, vision_csv(last.assign(close=1.0), header=True))
    settlements = "calc_time,funding_interval_hours,last_funding_rate\n" + "\n".join(
        f"{OCTOBER_MS + i * 8 * HOUR_MS + 3},8,0.0001" for i in range(7)
    )
    write_zip(monthly / "fundingRate" / "BTCUSDT" / "BTCUSDT-fundingRate-2024-10.zip", settlements)
    raw = read_binance_vision(tmp_path, BTC)
    assert vision_symbols(tmp_path) == (BTC,)
    assert len(raw.last) == 48
    assert raw.mark is not None
    pd.testing.assert_frame_equal(raw.mark, mark, check_exact=False, rtol=1e-12)
    assert raw.funding is not None
    assert raw.funding["rate"].tolist() == [0.0001] * 7
    assert raw.premium is not None
    assert raw.premium["rate"].tolist() == [-0.0003] * 48


def test_a_truncated_archive_is_named(tmp_path: Path, klines: Frames) -> None:
    path = write_zip(
        tmp_path / "BTCUSDT-1h-2024-10.zip", vision_csv(klines(48, start_ms=OCTOBER_MS), header=True)
    )
    whole = path.read_bytes()
    for cut in (20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=f"{path.name}.*cut off or damaged.*download it again"):
            read_binance_vision(tmp_path, BTC)
    # one flipped byte inside the compressed table
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 0xFF]) + whole[201:])
    with pytest.raises(DataError, match="cut off or damaged"):
        read_binance_vision(tmp_path, BTC)


def test_a_checksum_beside_an_archive_is_verified(tmp_path: Path, klines: Frames) -> None:
    path = write_zip(
        tmp_path / "BTCUSDT-1h-2024-10.zip", vision_csv(klines(48, start_ms=OCTOBER_MS), header=True)
    )
    beside = tmp_path / f"{path.name}.CHECKSUM"
    beside.write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n", "ascii")
    assert len(read_binance_vision(path, BTC).last) == 48
    beside.write_text(f"{'0' * 64}  {path.name}\n", "ascii")
    with pytest.raises(DataError, match="sha256 differs"):
        read_binance_vision(path, BTC)


def test_an_archive_of_another_month_than_its_name_is_refused(tmp_path: Path, klines: Frames) -> None:
    path = write_zip(
        tmp_path / "BTCUSDT-1h-2024-11.zip", vision_csv(klines(48, start_ms=OCTOBER_MS), header=True)
    )
    with pytest.raises(DataError, match="its name says 2024-11, but it has bars of 2024-10-01"):
        read_binance_vision(path, BTC)


def test_an_archive_with_something_else_inside_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "BTCUSDT-1h-2024-10.zip", "a,b\n1,2\n")
    with pytest.raises(DataError, match="expected open_time"):
        read_binance_vision(path, BTC)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "")
    with pytest.raises(DataError, match="expected one CSV inside, found 0"):
        read_binance_vision(path, BTC)


def test_a_folder_without_the_contract_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ETHUSDT-1h-2024-10"):
        read_binance_vision(tmp_path, "ETH/USDT:USDT")
    with pytest.raises(DataError, match="no such file or folder"):
        read_binance_vision(tmp_path / "nowhere", BTC)


def test_the_exchanges_own_archive_is_read(shared_data: Path) -> None:
    raw = read_binance_vision(shared_data / "binance_vision", BTC, "1h")
    assert len(raw.last) == 24
    assert raw.last.iloc[0].tolist() == [1730073600000, 67992.70, 68094.60, 67804.70, 67835.20, 5179.117]


# tables


def test_a_table_with_usual_names_needs_no_mapping(tmp_path: Path, klines: Frames, funding: Frames) -> None:
    frame = klines()
    bars = frame.rename(columns=str.title).rename(columns={"Time_Ms": "Timestamp"})
    bars.to_csv(tmp_path / "bars.csv", index=False)
    frame.to_parquet(tmp_path / "mark.parquet")
    funding().rename(columns={"time_ms": "fundingTime", "rate": "fundingRate"}).to_feather(
        tmp_path / "f.feather"
    )
    raw = read_table(
        str(tmp_path / "bars.csv"),
        BTC,
        funding_path=str(tmp_path / "f.feather"),
        mark_path=str(tmp_path / "mark.parquet"),
    )
    assert raw.bar_ms == HOUR_MS
    pd.testing.assert_frame_equal(raw.last, frame, check_exact=False, rtol=1e-12)
    assert raw.mark is not None
    assert raw.funding is not None
    pd.testing.assert_frame_equal(raw.funding, funding())


def test_other_names_are_mapped(tmp_path: Path, klines: Frames) -> None:
    names = {"time": "T", "open": "O", "high": "H", "low": "L", "close": "C", "volume": "V"}
    renamed = klines().rename(columns={"time_ms": "T", **{k: v for k, v in names.items() if k != "time"}})
    renamed["T"] = pd.to_datetime(renamed["T"], unit="ms").dt.strftime("%Y-%m-%d %H:%M")
    renamed.to_csv(tmp_path / "bars.csv", index=False)
    raw = read_table(str(tmp_path / "bars.csv"), BTC, columns=names)
    pd.testing.assert_frame_equal(raw.last, klines(), check_exact=False, rtol=1e-12)


def test_a_frame_may_carry_its_time_in_the_index(klines: Frames) -> None:
    frame = klines()
    indexed = frame.drop(columns="time_ms").set_index(pd.to_datetime(frame["time_ms"], unit="ms", utc=True))
    pd.testing.assert_frame_equal(frames_from_pandas(indexed, BTC).last, frame)


def test_a_missing_column_is_told_with_those_there_are(klines: Frames) -> None:
    with pytest.raises(DataError, match=r"no column for 'close'.*the table has time_ms, open"):
        frames_from_pandas(klines().drop(columns="close"), BTC)


def test_text_among_numbers_is_refused(klines: Frames) -> None:
    frame = klines().astype({"close": object})
    frame.loc[3, "close"] = "n/a"
    with pytest.raises(DataError, match="no number"):
        frames_from_pandas(frame, BTC)


def test_times_may_be_in_any_unit_and_must_be_there() -> None:
    ms = np.array([1_704_067_200_000, 1_704_070_800_000])
    for values in (ms // 1000, ms, ms * 1000, ms * 1_000_000):
        np.testing.assert_array_equal(to_ms(pd.Series(values), "x"), ms)
    np.testing.assert_array_equal(to_ms(pd.Series(["2024-01-01", "2024-01-01T01:00Z"]), "x"), ms)
    with pytest.raises(DataError, match="row 2 has no time"):
        to_ms(pd.Series(["2024-01-01", None]), "x")
    with pytest.raises(DataError, match="is no time"):
        to_ms(pd.Series(["yesterday"]), "x")
    with pytest.raises(DataError, match="is no time"):
        to_ms(pd.Series(["03/04/2024"]), "x")


def test_a_missing_cut_off_or_strange_table_is_named(tmp_path: Path, klines: Frames) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_table(str(tmp_path / "bars.csv"), BTC)
    with pytest.raises(DataError, match="must end in"):
        read_table(str(tmp_path / "bars.xlsx"), BTC)
    path = tmp_path / "bars.parquet"
    klines().to_parquet(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"bars\.parquet.*cut off"):
        read_table(str(path), BTC)


def test_one_row_does_not_tell_a_timeframe(klines: Frames) -> None:
    with pytest.raises(DataError, match="cannot tell the timeframe"):
        frames_from_pandas(klines(1), BTC)
    assert frames_from_pandas(klines(1), BTC, "1h").bar_ms == HOUR_MS


def test_frames_become_bars_in_one_call(
    klines: Frames, funding: Frames, caplog: pytest.LogCaptureFixture
) -> None:
    bars = bars_from_frames(klines(), funding=funding(), mark=klines())
    assert (len(bars), bars.stamp_rate.size, bars.mark_rule) == (96, 12, "mark")
    assert caplog.text == ""
    bars = bars_from_frames(klines(), contract=Contract(symbol="X/USDT:USDT"))
    assert (bars.stamp_rate.size, bars.mark_rule, bars.contract.symbol) == (0, "last", "X/USDT:USDT")
    assert "mark=last" in caplog.text
    assert "no funding series" in caplog.text


def test_frames_with_a_gap_are_refused_unless_the_rule_is_named(klines: Frames) -> None:
    holed = klines().drop(index=[40])
    with pytest.raises(DataError, match="frame of bars: 1 bars are missing"):
        bars_from_frames(holed)
    assert len(bars_from_frames(holed, repair=("fill_flat",))) == 96
