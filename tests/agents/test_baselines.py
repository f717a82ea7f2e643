"""Baselines follow their rule, hold what they hold, and never look ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from perpgym.agents.baselines import (
    Flat,
    FundingCarry,
    Hold,
    Momentum,
    MovingAverageCross,
    RandomTiming,
    VolatilityTarget,
    hold_action,
    standard_baselines,
)
from perpgym.data.tape import Tape
from perpgym.envs.config import EnvConfig
from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES

TapeFactory = Callable[..., Tape]
CONFIG = EnvConfig()


def _act(agent, tape: Tape, bar: int, *exposures: float) -> np.ndarray:  # type: ignore[no-untyped-def]
    account = np.zeros((len(exposures), 1, len(ACCOUNT_NAMES)), np.float32)
    account[:, 0, 0] = exposures
    return agent.act(tape, bar, account, np.zeros((len(exposures), len(PORTFOLIO_NAMES)), np.float32))


def _asked(action: np.ndarray) -> float:
    """The exposure that a zero-width band asks for."""
    assert action[0, 1] == -1.0, "this action holds"
    return float(action[0, 0]) * CONFIG.max_exposure


def _holds(action: np.ndarray) -> bool:
    return bool((action[:, 1] == 1.0).all())


@pytest.mark.parametrize("bar", [700, 801, 950])
@pytest.mark.parametrize("exposure", [0.0, 1.0, -0.7])
def test_no_baseline_sees_the_future(make_tape: TapeFactory, bar: int, exposure: float) -> None:
    tape = make_tape(bars=1_200)
    rng = np.random.default_rng(1)
    future = np.arange(len(tape)) > bar
    noise = np.where(future, np.exp(rng.standard_normal(len(tape))), 1.0)
    stamps = tape.stamp_rate.copy()
    known = tape.stamp_start[0, bar + 1]
    stamps[known:] = rng.standard_normal(stamps.shape[0] - known)
    changed = replace(
        tape,
        last=tape.last * noise[:, None, None],
        mark=tape.mark * noise[:, None, None],
        volume=tape.volume * noise[:, None],
        sigma_per_bar=tape.sigma_per_bar * noise[:, None],
        stamp_rate=stamps,
        features=(tape.features * noise[:, None, None]).astype(np.float32),
        _cache={},
    )
    assert not np.array_equal(changed.last, tape.last)
    for here, there in zip(standard_baselines(CONFIG), standard_baselines(CONFIG), strict=True):
        before, after = _act(here, tape, bar, exposure), _act(there, changed, bar, exposure)
        np.testing.assert_array_equal(before, after, err_msg=here.name)


def test_every_baseline_acts_within_the_action_range_in_both_spaces(make_tape: TapeFactory) -> None:
    tape = make_tape(bars=800)
    for config, width in ((CONFIG, 2), (EnvConfig(action="target"), 1)):
        for agent in standard_baselines(config):
            action = _act(agent, tape, 750, 0.0, 1.9, -1.9)
            assert action.shape == (3, width)
            assert action.dtype == np.float32
            assert (np.abs(action) <= 1.0).all()


def test_baselines_have_distinct_names() -> None:
    names = [agent.name for agent in standard_baselines(CONFIG)]
    assert len(set(names)) == len(names) == 7


def test_flat_asks_for_nothing(make_tape: TapeFactory) -> None:
    assert _holds(_act(Flat(CONFIG), make_tape(), 10, 0.0))
    assert _asked(_act(Flat(CONFIG), make_tape(), 10, 0.5)) == 0.0


def test_buy_and_hold_asks_once_and_then_lets_the_exposure_drift(make_tape: TapeFactory) -> None:
    agent, tape = Hold(CONFIG, exposure=1.0), make_tape()
    assert _asked(_act(agent, tape, 10, 0.0)) == 1.0
    for bar, exposure in ((11, 1.0), (12, 1.4), (13, 0.5)):
        assert _holds(_act(agent, tape, bar, exposure))
    # something closed it: bought again
    assert _asked(_act(agent, tape, 14, 0.0)) == 1.0


def test_buy_and_hold_asks_again_for_what_the_volume_could_not_fill(make_tape: TapeFactory) -> None:
    agent, tape = Hold(CONFIG, exposure=-1.0), make_tape()
    assert _asked(_act(agent, tape, 10, 0.0)) == -1.0
    assert _asked(_act(agent, tape, 11, -0.4)) == -1.0
    assert _holds(_act(agent, tape, 12, -0.95))
    # a new period starts anew
    assert _asked(_act(agent, tape, 99, -0.4)) == -1.0


def test_the_volatility_target_is_met_by_the_sizing(make_tape: TapeFactory) -> None:
    tape = make_tape(sigma=0.006)
    exposure = _asked(_act(VolatilityTarget(CONFIG, target_volatility=0.30), tape, 300, 0.0))
    assert exposure * 0.006 * np.sqrt(8_760) == pytest.approx(0.30, rel=1e-6)
    assert _asked(_act(VolatilityTarget(CONFIG, target_volatility=9.0), tape, 300, 0.0)) == 2.0


def test_momentum_is_long_after_a_rise_and_short_after_a_fall(make_tape: TapeFactory) -> None:
    up = make_tape(np.linspace(100.0, 200.0, 800))
    down = make_tape(np.linspace(200.0, 100.0, 800))
    assert _asked(_act(Momentum(CONFIG), up, 700, 0.0)) > 0
    assert _asked(_act(Momentum(CONFIG), down, 700, 0.0)) < 0
    assert _holds(_act(Momentum(CONFIG), up, 100, 0.0)), "28 days are not there yet"


def test_the_moving_average_turns_with_the_trend_and_holds_between(make_tape: TapeFactory) -> None:
    up = make_tape(np.linspace(100.0, 200.0, 800))
    agent = MovingAverageCross(CONFIG)
    assert _asked(_act(agent, up, 700, 0.0)) == 1.0
    assert _holds(_act(agent, up, 700, 1.6))
    assert _asked(_act(agent, up, 700, -1.0)) == 1.0
    with pytest.raises(ValueError, match="fast_days must lie between 0 and slow_days"):
        MovingAverageCross(CONFIG, fast_days=20.0, slow_days=5.0)


def test_carry_is_short_while_longs_pay_and_long_while_shorts_pay(make_tape: TapeFactory) -> None:
    assert _asked(_act(FundingCarry(CONFIG), make_tape(funding_rate=1e-4), 300, 0.0)) == -1.0
    assert _asked(_act(FundingCarry(CONFIG), make_tape(funding_rate=-1e-4), 300, 0.0)) == 1.0


def test_carry_learns_a_rate_at_the_close_that_settles_it_and_not_before(make_tape: TapeFactory) -> None:
    tape = make_tape(funding_rate=1e-4)
    # the 07:00 bar closes at 08:00 and owns that stamp
    assert tape.stamp_start[0, 8] == 1
    agent = FundingCarry(CONFIG, stamps=1)
    assert _holds(_act(agent, tape, 6, 0.0))
    assert _asked(_act(agent, tape, 7, 0.0)) == -1.0
    with pytest.raises(ValueError, match="stamps must be at least 1"):
        FundingCarry(CONFIG, stamps=0)


def test_a_hold_is_the_widest_band_or_the_present_target() -> None:
    present = np.array([0.5, -3.0])
    np.testing.assert_allclose(
        hold_action(present, action="band", max_exposure=2.0), [[0.25, 1.0], [-1.0, 1.0]]
    )
    np.testing.assert_allclose(hold_action(present, action="target", max_exposure=2.0), [[0.25], [-1.0]])


def _path() -> tuple[np.ndarray, np.ndarray]:
    """Flat, long 1 then 2, short 1, flat, long 0.5: with holds in between."""
    nan = np.nan
    exposure = np.array([nan, nan, 1.0, nan, 2.0, nan, -1.0, nan, nan, 0.0, nan, 0.5])
    side = np.array([0, 0, 1, 1, 1, 1, -1, -1, -1, 0, 0, 1], dtype=np.int64)
    return exposure, side


def _random(draws: int, seed: int = 0) -> RandomTiming:
    exposure, side = _path()
    return RandomTiming(CONFIG, exposure=exposure, side=side, first_bar=0, draws=draws, seed=seed)


def _held(path: np.ndarray) -> np.ndarray:
    """Exposure held at each decision, when nothing drifts."""
    out, now = np.empty_like(path), 0.0
    for i, value in enumerate(path):
        now = now if np.isnan(value) else value
        out[i] = now
    return out


def test_random_timing_keeps_exposures_and_time_in_market() -> None:
    exposure, _ = _path()
    own = np.sort(_held(exposure))
    paths = _random(50).paths
    assert paths.shape == (12, 50)
    for path in paths.T:
        np.testing.assert_allclose(np.sort(_held(path)), own)


def test_random_timing_differs_from_draw_to_draw_and_repeats_with_its_seed() -> None:
    paths = _random(50).paths
    assert len({path.tobytes() for path in paths.T}) > 20
    np.testing.assert_array_equal(paths, _random(50).paths)
    assert not np.array_equal(paths, _random(50, seed=1).paths, equal_nan=True)


def test_random_timing_follows_each_accounts_own_path(make_tape: TapeFactory) -> None:
    agent = _random(3)
    action = _act(agent, make_tape(), 2, 0.3, 0.3, 0.3)
    for i in range(3):
        wanted = agent.paths[2, i]
        expected = [0.15, 1.0] if np.isnan(wanted) else [wanted / 2, -1.0]
        np.testing.assert_allclose(action[i], expected, rtol=1e-6)
