"""Several contracts from one config: each its own files, together on a tape, all real or all simulated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from perpgym.data.bars import CLOSE
from perpgym.data.clock import iso
from perpgym.data.config import DataConfig
from perpgym.data.errors import DataError
from perpgym.data.features.build import build_tape
from perpgym.data.load import load_bars
from perpgym.data.portfolio import load_contracts
from perpgym.data.sources.ccxt_exchange import DownloadError

Frames = Callable[..., pd.DataFrame]
Folder = Callable[..., Path]
THREE = ("BTC/USDT:USDT", "ETH/USDT:USDT", "SOL/USDT:USDT")
HOUR_MS = 3_600_000


def config(**settings: Any) -> DataConfig:
    plain = {"source": "simulated", "contracts": THREE, "start": "2024-01-01", "end": "2024-06-30"}
    return DataConfig(**{**plain, **settings})


def test_each_contract_of_a_folder_keeps_its_own_history(freqtrade_folder: Folder, klines: Frames) -> None:
    folder = freqtrade_folder()
    late = klines(bars=48, start_ms=1_704_067_200_000 + 48 * HOUR_MS)
    freqtrade_folder(late, pair="ETH_USDT_USDT")
    btc, eth = load_contracts(
        config(source="freqtrade", path=str(folder), contracts=THREE[:2], start=None, end=None)
    )
    assert [d.bars.contract.symbol for d in (btc, eth)] == list(THREE[:2])
    assert (len(btc.bars), len(eth.bars)) == (96, 48)
    tape = build_tape([btc.bars, eth.bars], features=[], risk=[], source="test")
    assert tape.is_valid.sum(axis=0).tolist() == [96 - 24, 48 - 24]


def test_a_fault_of_one_contract_names_it(freqtrade_folder: Folder, klines: Frames) -> None:
    folder = freqtrade_folder()
    freqtrade_folder(klines().drop(index=range(20, 30)).reset_index(drop=True), pair="ETH_USDT_USDT")
    with pytest.raises(DataError, match=r"(?s)ETH_USDT_USDT-1h.*10 bars are missing.*fill_flat"):
        load_contracts(config(source="freqtrade", path=str(folder), contracts=THREE[:2]))


def test_every_table_is_found_by_its_base_currency(tmp_path: Path, klines: Frames) -> None:
    for base, bars in (("BTC", 96), ("ETH", 60)):
        klines(bars=bars).rename(columns={"time_ms": "time"}).to_csv(tmp_path / f"{base}.csv", index=False)
    loaded = load_contracts(
        DataConfig(
            source="table",
            path=str(tmp_path / "{base}.csv"),
            contracts=THREE[:2],
            repair=("no_funding",),
        )
    )
    assert [len(d.bars) for d in loaded] == [96, 60]
    # whoever holds what ends first cannot sell it
    assert any("ETH/USDT:USDT: its bars end at 2024-01-03 12:00" in note for note in loaded[1].notes)
    assert not any("its bars end" in note for note in loaded[0].notes)


def test_one_symbol_is_one_contract_as_before() -> None:
    (one,) = load_contracts(config(contracts=()))
    np.testing.assert_array_equal(one.bars.last, load_bars(config(contracts=())).bars.last)


def test_simulated_contracts_move_together_and_differ() -> None:
    loaded = load_contracts(config(simulated={"seed": 3, "correlation": 0.8}))
    closes = [np.log(d.bars.last[:, CLOSE]) for d in loaded]
    found = np.corrcoef(np.diff(closes))[np.triu_indices(3, 1)]
    # half a year of fat tails
    assert (np.abs(found - 0.8) < 0.1).all()
    assert [d.bars.contract.symbol for d in loaded] == list(THREE)
    assert all(d.planted is not None for d in loaded)
    # a lot of each is worth as much at the start
    worth = [d.bars.contract.lot_size * d.bars.last[0, 0] for d in loaded]
    np.testing.assert_allclose(worth, worth[0], rtol=1e-2)


def test_the_company_of_one_seed_shares_no_market_with_that_of_the_next() -> None:
    six, seven = (load_contracts(config(simulated={"seed": seed})) for seed in (6, 7))
    returns = [np.diff(np.log(d.bars.last[:, CLOSE])) for d in (*six, *seven)]
    across = np.corrcoef(returns)[:3, 3:]
    assert np.abs(across).max() < 0.1


def test_the_first_contracts_of_a_list_are_simulated_and_listed_when_they_are_said_to_be() -> None:
    loaded = load_contracts(
        config(simulated={"contracts": 2, "listed": [None, "2024-03-01"], "start_price": 600_000.0})
    )
    assert [d.bars.contract.symbol for d in loaded] == list(THREE[:2])
    assert [iso(int(d.bars.open_time_ms[0])) for d in loaded] == ["2024-01-01 00:00", "2024-03-01 00:00"]
    planted = loaded[1].planted
    assert planted is not None
    assert len(planted) == len(loaded[1].bars)


class Offline:
    """An exchange that nobody reaches."""

    def __init__(self) -> None:
        raise DownloadError("no answer", reason="there is no network here")


def test_without_a_network_all_contracts_are_simulated_and_it_is_said(tmp_path: Path) -> None:
    settings = config(source="auto", store=str(tmp_path), simulated={"seed": 2, "correlation": 0.5})
    loaded = load_contracts(settings, exchange_factory=Offline, sleep=lambda seconds: None)
    assert {d.fallback_reason for d in loaded} == {"there is no network here"}
    assert all("NOT REAL DATA" in d.notes[0] for d in loaded)
    assert all(symbol in loaded[0].notes[0] for symbol in THREE)
    together = load_contracts(config(simulated={"seed": 2, "correlation": 0.5}))
    for mine, theirs in zip(loaded, together, strict=True):
        np.testing.assert_array_equal(mine.bars.last, theirs.bars.last)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contracts": (THREE[0], THREE[0])}, "contracts must be distinct"),
        ({"source": "table", "path": "bars.csv"}, r"write \{base\} in path"),
        ({"simulated": {"listed": [None] * 4}}, "first day for 4 contracts, 3 are simulated"),
        ({"simulated": {"listed": ["2025-01-01"]}}, "cannot be listed on 2025-01-01"),
        ({"simulated": {"correlaton": 0.5}}, "unknown or of the wrong type"),
        ({"contracts": ("BTC/USDT:USDT", "NONE/USDT:USDT")}, "needs shipped contracts"),
    ],
)
def test_an_impossible_company_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_contracts(config(**settings))


def test_the_loader_of_one_contract_refuses_several() -> None:
    with pytest.raises(ValueError, match="load_contracts for several"):
        load_bars(config())
