"""Baselines follow their rule, hold what they hold, and never look ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from perpgym.agents.baselines import (
    BASELINES,
    Flat,
    FundingCarry,
    FundingHarvest,
    Hold,
    Momentum,
    MovingAverageCross,
    VolatilityTarget,
    make_baseline,
    standard_baselines,
)
from perpgym.data.tape import Tape
from perpgym.envs.config import EnvConfig
from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES

TapeFactory = Callable[..., Tape]
CONFIG = EnvConfig()


def _act(agent, tape: Tape, bar: int, *exposures: float) -> np.ndarray:  # type: ignore[no-untyped-def]
    account = np.zeros((len(exposures), 1, len(ACCOUNT_NAMES)), np.float32)
    for column in ("exposure", "asked"):
        account[:, 0, ACCOUNT_NAMES.index(column)] = exposures
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


# --- several contracts ---


def _act_on(agent, tape: Tape, bar: int, *exposures: float) -> np.ndarray:  # type: ignore[no-untyped-def]
    """(A, 2) the bands of one account that holds these exposures."""
    account = np.zeros((1, len(exposures), len(ACCOUNT_NAMES)), np.float32)
    for column in ("exposure", "asked"):
        account[0, :, ACCOUNT_NAMES.index(column)] = exposures
    action = agent.act(tape, bar, account, np.zeros((1, len(PORTFOLIO_NAMES)), np.float32))
    return np.asarray(action.reshape(len(exposures), 2))


def _wishes(action: np.ndarray) -> list[float]:
    """By contract the exposure asked for; ``nan`` where it is held."""
    wishes = np.where(action[:, 1] == 1.0, np.nan, action[:, 0] * CONFIG.max_exposure)
    return [float(wish) for wish in wishes]


def test_a_contract_that_is_not_valid_has_no_part_in_any_rule(make_portfolio: TapeFactory) -> None:
    tape = make_portfolio((0, 0, 750), bars=900)
    for agent in standard_baselines(CONFIG, n_contracts=3):
        before, after = _act_on(agent, tape, 740, 0.0, 0.0, 0.0), _act_on(agent, tape, 760, 0.0, 0.0, 0.0)
        assert np.nan_to_num(_wishes(before)[2]) == 0.0, agent.name
        if agent.name != "Flat" and agent.name != "Funding harvest":
            assert abs(_wishes(after)[2]) > 0.0, agent.name


def test_on_two_equal_contracts_each_rule_asks_for_half_of_what_it_asks_for_on_one(
    make_tape: TapeFactory, merge_tapes: Callable[..., Tape]
) -> None:
    tape = make_tape(bars=900)
    twins = merge_tapes([tape, tape])
    for agent, same in zip(standard_baselines(CONFIG), standard_baselines(CONFIG), strict=True):
        if agent.name != "Flat":
            alone = _asked(_act(agent, tape, 800, 0.0))
            np.testing.assert_allclose(_wishes(_act_on(same, twins, 800, 0.0, 0.0)), alone / 2, rtol=1e-6)


def test_a_calm_contract_is_held_in_as_much_more_as_it_is_calmer(
    make_tape: TapeFactory, merge_tapes: Callable[..., Tape]
) -> None:
    tape = merge_tapes([make_tape(bars=900, sigma=0.01), make_tape(bars=900, sigma=0.005, seed=1)])
    for agent in (
        VolatilityTarget(CONFIG),
        Momentum(CONFIG),
        MovingAverageCross(CONFIG),
        FundingCarry(CONFIG),
    ):
        wild, calm = np.abs(_wishes(_act_on(agent, tape, 800, 0.0, 0.0)))
        assert calm == pytest.approx(2 * wild, rel=1e-6), agent.name
    assert _wishes(_act_on(Hold(CONFIG, exposure=1.0), tape, 800, 0.0, 0.0)) == [0.5, 0.5]


def test_holders_make_room_for_a_new_contract_once_and_then_let_it_drift(make_portfolio: TapeFactory) -> None:
    tape, agent = make_portfolio((0, 50), bars=100), Hold(CONFIG, exposure=1.0)
    assert _wishes(_act_on(agent, tape, 48, 0.0, 0.0))[0] == 1.0
    assert np.isnan(_wishes(_act_on(agent, tape, 49, 1.3, 0.0))).all()
    assert _wishes(_act_on(agent, tape, 50, 1.3, 0.0)) == [0.5, 0.5]
    # the volume took but half of the new one
    assert np.isnan(_wishes(_act_on(agent, tape, 51, 0.5, 0.25))).tolist() == [True, False]
    assert np.isnan(_wishes(_act_on(agent, tape, 52, 0.8, 0.5))).all()


def test_the_harvest_is_long_where_funding_is_low_and_bets_nothing_on_the_market(
    make_tape: TapeFactory, merge_tapes: Callable[..., Tape]
) -> None:
    rates = (3e-4, -1e-4, 1e-4)
    tape = merge_tapes([make_tape(bars=900, funding_rate=rate, seed=i) for i, rate in enumerate(rates)])
    wishes = _wishes(_act_on(FundingHarvest(CONFIG), tape, 800, 0.0, 0.0, 0.0))
    assert wishes[:2] == [-0.5, 0.5]
    assert np.isnan(wishes[2])
    # one contract has nobody to be hedged with
    alone = make_tape(bars=900)
    assert _holds(_act(FundingHarvest(CONFIG), alone, 800, 0.0))


# --- live ---

SIDE_BY_SIDE = ("last", "mark", "volume", "sigma_per_bar", "features", "risk", "is_valid")


def newest(tape: Tape, bar: int, bars: int) -> Tape:
    """The ``bars`` bars up to ``bar``, as a live market shows them."""
    rows = slice(bar + 1 - bars, bar + 1)
    columns = {name: getattr(tape, name)[rows] for name in SIDE_BY_SIDE}
    return replace(
        tape,
        open_time_ms=tape.open_time_ms[rows],
        stamp_start=tape.stamp_start[:, rows.start : rows.stop + 1],
        first_valid_bar=0,
        _cache={},
        **columns,
    )


def volatile_pair(make_tape: TapeFactory, merge_tapes: Callable[..., Tape]) -> Tape:
    """Two contracts whose volatility and funding are others at every bar."""
    tape, rng = merge_tapes([make_tape(bars=900), make_tape(bars=900, seed=1)]), np.random.default_rng(3)
    return replace(
        tape,
        sigma_per_bar=tape.sigma_per_bar * np.exp(rng.standard_normal(tape.sigma_per_bar.shape)),
        stamp_rate=1e-4 * rng.standard_normal(tape.stamp_rate.shape),
        _cache={},
    )


@pytest.mark.parametrize("name", BASELINES)
def test_a_rule_decides_on_its_look_back_alone_what_it_decides_on_the_whole_tape(
    make_tape: TapeFactory, merge_tapes: Callable[..., Tape], name: str
) -> None:
    tape = volatile_pair(make_tape, merge_tapes)
    reach = make_baseline(name, CONFIG, n_contracts=2).lookback_bars(tape.contracts, tape.bar_ms)
    for bar in range(800, 830, 3):
        whole, alone = (make_baseline(name, CONFIG, n_contracts=2) for _ in range(2))
        expected = _act_on(whole, tape, bar, 0.0, 0.0)
        np.testing.assert_array_equal(_act_on(alone, newest(tape, bar, reach), reach - 1, 0.0, 0.0), expected)


@pytest.mark.parametrize("name", ["volatility_target", "momentum", "moving_average_cross", "funding_harvest"])
def test_with_half_of_its_look_back_a_rule_would_decide_otherwise(
    make_tape: TapeFactory, merge_tapes: Callable[..., Tape], name: str
) -> None:
    tape = volatile_pair(make_tape, merge_tapes)
    rule = make_baseline(name, CONFIG, n_contracts=2)
    bars = rule.lookback_bars(tape.contracts, tape.bar_ms) // 2
    assert any(
        not np.array_equal(
            _act_on(rule, newest(tape, bar, bars), bars - 1, 0.0, 0.0), _act_on(rule, tape, bar, 0.0, 0.0)
        )
        for bar in range(800, 830)
    )


def test_a_rule_of_many_settlements_reads_as_far_back_as_they_lie(
    make_tape: TapeFactory, merge_tapes: Callable[..., Tape]
) -> None:
    tape, rule = volatile_pair(make_tape, merge_tapes), FundingCarry(CONFIG, stamps=60)
    reach = rule.lookback_bars(tape.contracts, tape.bar_ms)
    assert reach >= 60 * 8
    for bar in range(800, 830, 3):
        np.testing.assert_array_equal(
            _act_on(rule, newest(tape, bar, reach), reach - 1, 0.0, 0.0), _act_on(rule, tape, bar, 0.0, 0.0)
        )


def test_a_holder_of_the_newest_bars_lets_its_exposure_drift_and_goes_on_after_a_restart(
    make_tape: TapeFactory,
) -> None:
    agent, tape = Hold(CONFIG, exposure=1.0), make_tape()
    assert _asked(_act(agent, newest(tape, 100, 20), 19, 0.0)) == 1.0
    for bar, exposure in ((101, 1.0), (102, 1.4), (103, 0.5)):
        assert _holds(_act(agent, newest(tape, bar, 20), 19, exposure))
    again = Hold(CONFIG, exposure=1.0)
    again.load_state(agent.state_dict())
    assert _holds(_act(again, newest(tape, 110, 20), 19, 0.6))
    # without its memory it cannot know that it has bought, and after a gap in a backtest it begins anew
    assert _asked(_act(Hold(CONFIG, exposure=1.0), newest(tape, 110, 20), 19, 0.6)) == 1.0
    assert _asked(_act(again, newest(tape, 120, 20), 19, 0.6)) == 1.0


@pytest.mark.parametrize("bar", [640, 700])
def test_no_baseline_sees_the_future_of_any_contract(make_portfolio: TapeFactory, bar: int) -> None:
    # the third becomes valid just before or long after
    tape = make_portfolio((0, 0, 650), bars=1_200)
    rng = np.random.default_rng(2)
    future = np.where(np.arange(len(tape))[:, None] > bar, np.exp(rng.standard_normal((len(tape), 3))), 1.0)
    stamps = tape.stamp_rate.copy()
    for start in tape.stamp_start:
        coming = slice(start[bar + 1], start[-1])
        stamps[coming] = rng.standard_normal(stamps[coming].shape[0])
    is_valid = tape.is_valid.copy()
    is_valid[bar + 1 :] = True
    changed = replace(
        tape,
        last=tape.last * future[:, :, None],
        mark=tape.mark * future[:, :, None],
        volume=tape.volume * future,
        sigma_per_bar=tape.sigma_per_bar * future,
        stamp_rate=stamps,
        is_valid=is_valid,
        _cache={},
    )
    pairs = zip(*(standard_baselines(CONFIG, n_contracts=3) for _ in range(2)), strict=True)
    for here, there in pairs:
        seen = [_act_on(agent, t, bar, 0.3, -0.2, 0.0) for agent, t in ((here, tape), (there, changed))]
        np.testing.assert_array_equal(*seen, err_msg=here.name)
        # the negative control: what sizes by volatility has seen another market a week later
        if here.name in ("Volatility-targeted long", "Time-series momentum"):
            later = [_act_on(agent, t, bar + 168, 0, 0, 0) for agent, t in ((here, tape), (there, changed))]
            assert not np.array_equal(*later), here.name
