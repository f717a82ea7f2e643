"""``python -m perpgym.data`` imports, checks and lists, and fails with a sentence instead of a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from perpgym.data.__main__ import main
from perpgym.data.load import DataConfig
from perpgym.data.quality import REPAIRS
from perpgym.data.store import Store

Frames = Callable[..., pd.DataFrame]
Folder = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PERPGYM_DATA", str(tmp_path / "store"))
    return str(tmp_path / "store")


def test_an_import_is_listed_and_checked(
    root: str, freqtrade_folder: Folder, klines: Frames, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", "freqtrade", str(freqtrade_folder(mark=klines()))]) == 0
    assert "96 new last rows, 96 new mark rows, 13 new funding rows" in capsys.readouterr().out
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert "last 1h" in listed
    assert "2024-01-04 23:00" in listed
    assert main(["check"]) == 0
    checked = capsys.readouterr().out
    assert "mark=mark" in checked
    assert "usable" in checked


def test_importing_again_adds_nothing(
    root: str, freqtrade_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(freqtrade_folder())
    main(["import", "freqtrade", folder])
    capsys.readouterr()
    assert main(["import", "freqtrade", folder]) == 0
    assert "0 new last rows, 0 new funding rows; no mark series" in capsys.readouterr().out


def test_the_check_shows_the_mark_rule_of_each_contract(
    root: str, freqtrade_folder: Folder, klines: Frames, capsys: pytest.CaptureFixture[str]
) -> None:
    freqtrade_folder(mark=klines())
    folder = freqtrade_folder(pair="SOL_USDT_USDT")
    assert main(["check", "freqtrade", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("BTC/USDT:USDT" in line and "mark=mark" in line for line in lines)
    assert any("SOL/USDT:USDT" in line and "mark=last" in line for line in lines)


def test_the_check_fails_for_data_that_training_refuses(
    root: str, freqtrade_folder: Folder, klines: Frames, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(freqtrade_folder(klines().drop(index=[20, 21]).reset_index(drop=True)))
    assert main(["check", "freqtrade", folder]) == 1
    out = capsys.readouterr().out
    assert "refused" in out
    assert "2 bars are missing" in out
    assert main(["check", "freqtrade", folder, "--repair", "fill_flat"]) == 0


def test_gaps_are_imported_as_they_are_and_judged_at_loading(
    root: str, freqtrade_folder: Folder, klines: Frames, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(freqtrade_folder(klines().drop(index=[20, 21]).reset_index(drop=True)))
    for repair in ([], ["--repair", "fill_flat"]):
        assert main(["import", "freqtrade", folder, *repair]) == 0
        out = capsys.readouterr().out
        assert "2 bars are missing" in out
        assert "the store keeps what is missing as missing; train with data.repair=[fill_flat]" in out
        assert main(["check"]) == 1
        capsys.readouterr()
    assert main(["check", "--repair", "fill_flat"]) == 0


def test_an_import_refuses_what_the_store_could_not_tell_any_more(
    root: str, freqtrade_folder: Folder, klines: Frames, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(freqtrade_folder(klines().iloc[::-1].reset_index(drop=True)))
    assert main(["import", "freqtrade", folder]) == 1
    assert "not sorted" in capsys.readouterr().err
    assert Store(root).series() == []
    assert main(["import", "freqtrade", folder, "--repair", "sort"]) == 0


@pytest.mark.parametrize("command", ["import", "check"])
def test_help_and_a_wrong_name_say_what_every_repair_rule_does(
    root: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--help"], ["table", "bars.csv", "--repair", "fill"]):
        with pytest.raises(SystemExit):
            main([command, *arguments])
        told = "".join(capsys.readouterr())
        for name, what in REPAIRS.items():
            assert any(line.split() == [name, *what.split()] for line in told.splitlines())
    assert "unknown repair rules ['fill']" in told


def test_a_fault_says_what_its_rule_would_do_and_what_it_did(
    root: str, freqtrade_folder: Folder, klines: Frames, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(freqtrade_folder(klines().iloc[::-1].reset_index(drop=True)))
    assert main(["import", "freqtrade", folder]) == 1
    assert f"--repair sort of python -m perpgym.data): {REPAIRS['sort']}" in capsys.readouterr().err
    assert main(["import", "freqtrade", folder, "--repair", "sort"]) == 0
    assert f"repaired by the rule sort: {REPAIRS['sort']}" in capsys.readouterr().out


@pytest.mark.parametrize("spelling", ["binance_vision", "binance-vision"])
def test_a_source_may_be_spelt_with_a_hyphen(
    root: str, tmp_path: Path, spelling: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", spelling, str(tmp_path), "--symbol", "BTC/USDT:USDT"]) == 1
    assert "no kline archive" in capsys.readouterr().err
    assert DataConfig(source=spelling, path="/x").source == "binance_vision"  # type: ignore[arg-type]


def test_a_table_is_imported_with_its_column_names(
    root: str, tmp_path: Path, klines: Frames, funding: Frames, capsys: pytest.CaptureFixture[str]
) -> None:
    klines().rename(columns={"time_ms": "When"}).to_csv(tmp_path / "bars.csv", index=False)
    funding().to_csv(tmp_path / "funding.csv", index=False)
    table = ["import", "table", str(tmp_path / "bars.csv"), "--funding", str(tmp_path / "funding.csv")]
    assert main(table) == 1
    assert "name it with --symbol" in capsys.readouterr().err
    assert main([*table, "--symbol", "BTC/USDT:USDT", "--columns", "time When"]) == 1
    assert "ours=theirs" in capsys.readouterr().err
    assert main([*table, "--symbol", "BTC/USDT:USDT", "--columns", "time=When"]) == 0
    assert "96 new last rows" in capsys.readouterr().out


def test_errors_are_one_sentence_and_exit_code_1(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "freqtrade", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert main(["check"]) == 1
    assert "no contract found in the store" in capsys.readouterr().err
    assert main(["download", "--start", "2024-01-01", "--end", "2024-01-02"]) == 1
    assert "--symbol" in capsys.readouterr().err
    assert main(["list"]) == 0
    assert "empty" in capsys.readouterr().out


def test_a_failed_download_names_the_reason(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["download", "--symbol", "BTC/USDT:USDT", "--start", "2024-01-01", "--end", "2024-01-02"]
    assert main([*arguments, "--exchange", "nowhere"]) == 1
    assert "ccxt knows no exchange 'nowhere'" in capsys.readouterr().err


def test_real_data_are_imported_and_checked(
    root: str, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(shared_data / "freqtrade")
    assert main(["import", "freqtrade", folder, "--symbol", "BTC/USDT:USDT"]) == 0
    capsys.readouterr()
    assert main(["check", "store", "--symbol", "BTC/USDT:USDT"]) == 0
    assert "48192 x 1h" in capsys.readouterr().out
