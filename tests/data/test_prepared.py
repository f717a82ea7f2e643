"""Frames with prepared features: each neighbour's own frame goes in as it is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

import perpgym.data
from perpgym.data import DataError, tape_from_frame
from perpgym.data.features import default_names
from perpgym.envs import EnvConfig, PerpEnv

# perpgym's own columns look back up to a month
BARS = 800


def prices(bars: int = BARS) -> pd.DataFrame:
    """open, high, low, close, volume of hourly bars."""
    rng = np.random.default_rng(0)
    close = 30_000.0 * np.exp(rng.normal(0.0, 0.01, bars).cumsum())
    opens = np.concatenate([close[:1], close[:-1]])
    return pd.DataFrame(
        {
            "open": opens,
            "high": np.maximum(opens, close) * 1.001,
            "low": np.minimum(opens, close) * 0.999,
            "close": close,
            "volume": rng.lognormal(8.0, 1.0, bars),
        }
    )


def dates(bars: int = BARS, tz: str | None = None) -> pd.DatetimeIndex:
    return pd.date_range("2024-01-01", periods=bars, freq="1h", tz=tz)


def gym_trading_env() -> pd.DataFrame:
    """As its downloader and its tutorial leave it: index ``date_open``, naive; the features beside."""
    df = prices().set_index(dates().rename("date_open"))
    df["date_close"] = df.index + pd.Timedelta("1h")
    df["feature_close"] = df["close"].pct_change()
    df["feature_volume"] = df["volume"] / df["volume"].rolling(24).max()
    return df.dropna()


def torchtrade() -> pd.DataFrame:
    """As it asks for it: a column ``timestamp``, features with ``features_`` before their names."""
    df = prices()
    df.insert(0, "timestamp", dates())
    df["features_return"] = df["close"].pct_change().fillna(0.0)
    df["features_range"] = df["high"] / df["low"] - 1.0
    return df


def gym_anytrading() -> pd.DataFrame:
    """As its data sets come: capital letters, an index ``Time``."""
    df = prices().set_index(dates().rename("Time"))
    return df.rename(columns=str.capitalize)


def freqtrade() -> pd.DataFrame:
    """As its dataframes are: ``date`` in UTC, indicators by any name."""
    df = prices()
    df.insert(0, "date", dates(tz="UTC"))
    df["rsi"] = np.linspace(20.0, 80.0, BARS)
    return df


FRAMES: dict[str, Callable[[], pd.DataFrame]] = {
    "gym-trading-env": gym_trading_env,
    "torchtrade": torchtrade,
    "gym-anytrading": gym_anytrading,
    "freqtrade": freqtrade,
}


@pytest.mark.parametrize("owner", FRAMES)
def test_every_neighbours_frame_becomes_an_env_as_it_is(owner: str) -> None:
    df = FRAMES[owner]()
    before = df.copy()
    tape = tape_from_frame(df, risk=())
    pd.testing.assert_frame_equal(df, before)
    np.testing.assert_array_equal(tape.last[:, 0, 3], df.filter(regex="(?i)^close$").to_numpy()[:, 0])
    env = PerpEnv(tape, config=EnvConfig(window_bars=8))
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert env.step(env.action_space.sample())[4]["equity"] > 0.0


@pytest.mark.parametrize("owner", ["gym-trading-env", "torchtrade"])
def test_prepared_columns_stand_at_their_bars(owner: str) -> None:
    df = FRAMES[owner]()
    names = [name for name in df.columns if name.startswith("feature")]
    tape = tape_from_frame(df, risk=())
    assert tape.feature_names == tuple(names)
    valid = slice(tape.first_valid_bar, None)
    np.testing.assert_array_equal(tape.features[valid, 0], df[names].to_numpy(np.float32)[valid])
    assert not tape.features[: tape.first_valid_bar].any()


def test_without_prepared_columns_there_are_perpgyms() -> None:
    df = prices().set_index(dates())
    assert tape_from_frame(df).feature_names == default_names("market")
    env = PerpEnv.from_frame(df.assign(feature_a=1.0))
    assert env.tape.feature_names == ("feature_a",)


def test_both_can_stand_side_by_side_and_any_column_can_be_named() -> None:
    tape = tape_from_frame(freqtrade(), features=["rsi"], own=["log_return_4"], risk=["funding_rate"])
    assert tape.feature_names == ("rsi", "log_return_4")
    assert tape.features.shape == (BARS, 1, 2)
    np.testing.assert_allclose(tape.features[-1, 0, 0], 80.0)
    assert tape.features[tape.first_valid_bar, 0, 1] != 0.0
    with pytest.raises(DataError, match="no column 'macd'; it has date, open"):
        tape_from_frame(freqtrade(), features=["macd"])
    clash = freqtrade().rename(columns={"rsi": "log_return_4"})
    with pytest.raises(DataError, match="perpgym has features named log_return_4 too"):
        tape_from_frame(clash, features=["log_return_4"], own=["log_return_4"], risk=())


def test_what_a_prepared_column_knows_is_its_owners_promise(caplog: pytest.LogCaptureFixture) -> None:
    tape_from_frame(torchtrade(), risk=())
    assert "2 prepared columns (features_return, features_range)" in caplog.text
    assert "your promise" in caplog.text
    caplog.clear()
    tape_from_frame(gym_anytrading(), own=["log_return_4"], risk=())
    assert "promise" not in caplog.text


def test_a_rolling_windows_empty_rows_are_waited_for_but_no_later_hole() -> None:
    df = torchtrade()
    df.loc[:59, "features_range"] = np.nan
    tape = tape_from_frame(df, risk=())
    assert tape.first_valid_bar == 60
    assert tape.is_valid[:, 0].tolist() == [bar >= 60 for bar in range(BARS)]
    df.loc[150, "features_range"] = np.nan
    with pytest.raises(DataError, match="features_range was nan at 2024-01-07 06:00"):
        tape_from_frame(df, risk=())
    df.loc[150, "features_range"] = 1e7
    with pytest.raises(DataError, match=r"must be finite and lie between ±1e\+06"):
        tape_from_frame(df, risk=())
    with pytest.raises(DataError, match="features_range was nan at 2024-01-01 00:00"):
        tape_from_frame(df.assign(features_range=np.nan), risk=())
    with pytest.raises(DataError, match="no number"):
        tape_from_frame(df.assign(features_range="high"), risk=())


def test_columns_follow_their_rows_through_every_repair() -> None:
    df = torchtrade().assign(features_row=np.arange(BARS, dtype=float))
    shuffled = pd.concat([df.iloc[100:], df.iloc[:100], df.iloc[[50]]]).drop(index=[120, 121])
    tape = tape_from_frame(shuffled, risk=(), repair=["sort", "drop_duplicates", "fill_flat"])
    rows = tape.features[tape.first_valid_bar :, 0, 2]
    expected = np.arange(tape.first_valid_bar, BARS, dtype=np.float32)
    # a filled bar shows what was known before it
    expected[[120 - tape.first_valid_bar, 121 - tape.first_valid_bar]] = 119.0
    np.testing.assert_array_equal(rows, expected)
    assert (tape.volume[120:122] == 0.0).all()


def test_funding_and_mark_come_along() -> None:
    df = torchtrade()
    stamps = pd.date_range("2024-01-01", periods=BARS // 8 + 1, freq="8h")
    funding = pd.DataFrame({"date": stamps, "rate": 1e-4})
    mark = prices()[["open", "high", "low", "close"]] * 1.001
    mark.insert(0, "date", dates())
    tape = tape_from_frame(df, funding=funding, mark=mark, risk=())
    assert tape.mark_rules == ("mark",)
    np.testing.assert_allclose(tape.mark, tape.last * 1.001)
    assert tape.stamp_rate.size == BARS // 8


def test_importing_the_data_package_does_not_wait_for_pandas() -> None:
    assert "tape_from_frame" in perpgym.data.__all__
    with pytest.raises(AttributeError, match="has no attribute 'tape_from_farm'"):
        perpgym.data.tape_from_farm  # noqa: B018
