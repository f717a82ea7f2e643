"""The registry grows by one decorator and refuses what would mislead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from perpgym.data.bars import Bars
from perpgym.data.contract import HOUR_MS, Contract
from perpgym.data.features import (
    compute_features,
    default_names,
    feature,
    feature_table,
    get_feature,
    registry,
)


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations of a test end with it."""
    monkeypatch.setattr(registry, "_FEATURES", dict(registry._FEATURES))
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))


@pytest.fixture
def bars() -> Bars:
    prices = np.linspace(100, 120, 60)[:, None].repeat(4, axis=1)
    return Bars(
        contract=Contract(symbol="TEST/USDT:USDT"),
        bar_ms=HOUR_MS,
        open_time_ms=np.arange(60) * HOUR_MS,
        last=prices,
        mark=prices,
        volume=np.ones(60),
        stamp_time_ms=np.array([], dtype=np.int64),
        stamp_rate=np.array([]),
    )


def test_the_default_set_has_the_documented_columns() -> None:
    assert set(default_names("market")) == {
        *("log_return_1", "log_return_4", "log_return_24", "log_return_168", "basis"),
        *("realised_vol_24", "realised_vol_168", "parkinson_vol_24", "atr_14"),
        *("rsi_14", "macd_12_26", "macd_histogram_12_26_9", "bollinger_20"),
        *("volume_z_168", "vwap_distance_24", "funding_rate", "funding_z", "time_to_settlement"),
        *("hour_sin", "hour_cos", "weekday_sin", "weekday_cos"),
    }
    assert set(default_names("risk")) == {
        *("unit_var_95_720", "unit_es_95_720", "vol_regime_720", "market_drawdown_720"),
        *("amihud_168", "realised_vol_72", "funding_pressure"),
    }


def test_every_row_of_the_table_says_unit_source_and_meaning() -> None:
    rows = feature_table()
    assert [r["name"] for r in rows if r["group"] == "risk"] == list(default_names("risk"))
    for row in rows:
        assert row["unit"], row
        assert row["source"], row
        assert row["meaning"].endswith("."), row
        assert row["low"] < row["high"], row


def test_a_family_answers_for_any_horizon(bars: Bars) -> None:
    member = get_feature("log_return_7")
    assert member.lookback_bars(HOUR_MS) == 8
    assert "7 bars" in member.meaning
    column = compute_features(bars, ["log_return_7"])
    assert column.shape == (60, 1)
    assert column.dtype == np.float32
    assert (column[:7] == 0).all()
    assert (column[7:] > 0).all()


def test_wall_clock_memory_is_more_bars_when_bars_are_shorter() -> None:
    assert [get_feature("funding_rate").lookback_bars(m * 60_000) for m in (1, 60, 1440)] == [1440, 24, 1]


@pytest.mark.parametrize("name", ["log_return_0", "log_return_-4", "log_return_", "LOG_RETURN_4", "alpha"])
def test_an_unknown_name_lists_what_is_known(name: str) -> None:
    with pytest.raises(KeyError, match="known are"):
        get_feature(name)


@pytest.mark.usefixtures("own_registry")
def test_a_new_feature_joins_the_default_set_of_its_group(bars: Bars) -> None:
    @feature(name="share_of_high", group="risk", unit="fraction", low=0.0, high=1.0, source="test")
    def share_of_high(bars: Bars) -> NDArray[np.float64]:
        """Close over high."""
        return bars.last[:, 3] / bars.last[:, 1]

    assert default_names("risk")[-1] == "share_of_high"
    assert get_feature("share_of_high").compute(bars) == pytest.approx(np.ones(60))
    with pytest.raises(ValueError, match="registered already"):
        feature(name="share_of_high", unit="fraction", low=0.0, high=1.0, source="test")(share_of_high)


def test_a_lookback_by_horizon_needs_a_family_name() -> None:
    with pytest.raises(ValueError, match=r"ends in \{n\}"):
        feature(name="wrong", unit="x", low=0, high=1, source="test", lookback=lambda n: n)


def test_a_column_that_is_not_finite_is_named_with_its_bar(bars: Bars) -> None:
    broken = replace(get_feature("basis"), function=lambda b: np.where(np.arange(60) == 30, np.inf, 0.0))
    with pytest.raises(ValueError, match=r"feature basis of TEST/USDT:USDT .* 1970-01-02T06"):
        broken.compute(bars)


def test_a_column_of_another_length_is_refused(bars: Bars) -> None:
    with pytest.raises(ValueError, match=r"must return shape \(60,\)"):
        replace(get_feature("basis"), function=lambda b: np.zeros(59)).compute(bars)


def test_a_feature_never_writes_into_the_bars(bars: Bars) -> None:
    volume = replace(get_feature("basis"), function=lambda b: b.volume, lookback=10).compute(bars)
    assert volume[0] == 0
    assert (bars.volume == 1).all()


@pytest.mark.parametrize(
    "wrong", [{"lookback": 0}, {"memory_ms": -1}, {"low": -np.inf}, {"low": 2.0, "high": 1.0}]
)
def test_an_impossible_declaration_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="feature basis"):
        replace(get_feature("basis"), **wrong)
