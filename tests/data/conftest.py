"""Small markets and data folders for the tests of sources, store and quality."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

HOUR_MS = 3_600_000
START_MS = 1_704_067_200_000  # 2024-01-01 00:00 UTC


@pytest.fixture
def shared_data() -> Path:
    """The folder with real market data; tests that need it skip where it is missing."""
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("PERPGYM_SHARED_DATA", default))
    if not (folder / "freqtrade").is_dir():
        pytest.skip("no real market data: set PERPGYM_SHARED_DATA to the folder that holds it")
    return folder


def make_klines(bars: int = 96, start_ms: int = START_MS, bar_ms: int = HOUR_MS) -> pd.DataFrame:
    """A quiet market with the columns of a settled frame."""
    rng = np.random.default_rng(7)
    close = 40_000 * np.exp(np.cumsum(rng.normal(0, 0.002, bars)))
    opened = np.concatenate((close[:1], close[:-1]))
    return pd.DataFrame(
        {
            "time_ms": start_ms + bar_ms * np.arange(bars, dtype=np.int64),
            "open": opened,
            "high": np.maximum(opened, close) * 1.001,
            "low": np.minimum(opened, close) * 0.999,
            "close": close,
            "volume": rng.uniform(100, 200, bars),
        }
    )


def make_funding(bars: int = 96, start_ms: int = START_MS, every_ms: int = 8 * HOUR_MS) -> pd.DataFrame:
    """Settlements that go with :func:`make_klines`."""
    time = np.arange(start_ms, start_ms + bars * HOUR_MS + 1, every_ms, dtype=np.int64)
    return pd.DataFrame({"time_ms": time, "rate": 1e-4 + 1e-6 * np.arange(time.size)})


@pytest.fixture
def klines() -> Callable[..., pd.DataFrame]:
    return make_klines


@pytest.fixture
def funding() -> Callable[..., pd.DataFrame]:
    return make_funding


def as_freqtrade(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of freqtrade's files; a funding frame keeps its rate in ``open``."""
    date = pd.to_datetime(frame["time_ms"], unit="ms", utc=True)
    if "rate" in frame:
        zeros = np.zeros(len(frame))
        return pd.DataFrame(
            {
                "date": date,
                "open": frame["rate"],
                "high": zeros,
                "low": zeros,
                "close": zeros,
                "volume": zeros,
            }
        )
    return frame.drop(columns="time_ms").assign(date=date)[["date", "open", "high", "low", "close", "volume"]]


@pytest.fixture
def freqtrade_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a freqtrade folder from settled frames; a frame of None leaves its file out."""

    def write(
        last: pd.DataFrame | None = None,
        *,
        mark: pd.DataFrame | None = None,
        funding: pd.DataFrame | None = None,
        pair: str = "BTC_USDT_USDT",
        with_funding: bool = True,
    ) -> Path:
        folder = tmp_path / "freqtrade" / "binance" / "futures"
        folder.mkdir(parents=True, exist_ok=True)
        as_freqtrade(make_klines() if last is None else last).to_feather(
            folder / f"{pair}-1h-futures.feather"
        )
        if mark is not None:
            as_freqtrade(mark).to_feather(folder / f"{pair}-1h-mark.feather")
        if with_funding:
            stamps = make_funding() if funding is None else funding
            as_freqtrade(stamps).to_feather(folder / f"{pair}-8h-funding_rate.feather")
        return tmp_path / "freqtrade"

    return write
