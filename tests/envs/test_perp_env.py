"""PerpEnv: made from nothing or from frames, it tells its own story and refuses what cannot be."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest

from perpgym.data import DataError
from perpgym.data.synthetic import SimulatedMarketConfig, simulate_market
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpEnv
from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES


def test_gymnasium_makes_the_registered_env_without_data() -> None:
    env = gym.make("perpgym/Perp-v0")
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    _obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert isinstance(reward, float)
    assert not terminated
    assert not truncated
    assert info["equity"] > 0


def test_an_episode_that_is_over_must_be_reset(make_tape: Callable[..., Tape]) -> None:
    env = PerpEnv(make_tape(), config=EnvConfig(window_bars=8, episode_bars=2))
    env.reset(seed=0)
    hold = np.zeros(2, np.float32)
    env.step(hold)
    _obs, _reward, _terminated, truncated, _info = env.step(hold)
    assert truncated
    with pytest.raises(gym.error.ResetNeeded):
        env.step(hold)


def test_the_docstring_lists_every_column() -> None:
    assert PerpEnv.__doc__ is not None
    for name in ACCOUNT_NAMES + PORTFOLIO_NAMES:
        assert name in PerpEnv.__doc__


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("taker_rate", 4.0),
        ("leverage", 0.5),
        ("max_exposure", 30.0),
        ("max_participation", 2.0),
        ("margin_mode", "hedge"),
        ("max_drawdown", 0.0),
    ],
)
def test_impossible_settings_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        EnvConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["episode_bars", "window_bars", "max_bars_held", "latency_bars"])
@pytest.mark.parametrize("value", [2.5, 2.0, True, "2"])
def test_a_number_of_bars_is_a_whole_number(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be a whole number from .* \(bars\), was {value!r}"):
        EnvConfig(**{field: value})  # type: ignore[arg-type]
    assert getattr(EnvConfig(**{field: np.int64(2)}), field) == 2  # type: ignore[arg-type]


def test_three_lines_turn_a_frame_into_an_env(caplog: pytest.LogCaptureFixture) -> None:
    market = simulate_market(SimulatedMarketConfig(start="2024-01-01", end="2024-03-31"))
    bars = market.bars
    frame = pd.DataFrame(bars.last[:, :4], columns=["open", "high", "low", "close"])
    frame.insert(0, "date", pd.to_datetime(bars.open_time_ms, unit="ms", utc=True))
    frame["volume"] = bars.volume
    env = PerpEnv.from_frame(frame, contract="BTC/USDT:USDT")
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert env.tape.mark_rules == ("last",)
    assert "mark=last" in caplog.text
    assert "no funding series" in caplog.text


def test_a_frame_with_a_gap_is_refused_unless_the_rule_is_named() -> None:
    market = simulate_market(SimulatedMarketConfig(start="2024-01-01", end="2024-03-31"))
    frame = pd.DataFrame(market.bars.last, columns=["open", "high", "low", "close"])
    frame.insert(0, "date", pd.to_datetime(market.bars.open_time_ms, unit="ms", utc=True))
    frame["volume"] = market.bars.volume
    broken = frame.drop(index=range(900, 903))
    with pytest.raises(DataError, match="fill_flat"):
        PerpEnv.from_frame(broken)
    assert len(PerpEnv.from_frame(broken, repair=["fill_flat"]).tape) == len(frame)
