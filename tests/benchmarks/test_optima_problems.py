"""The problems as the env plays them: the best rules earn what formulas say, others less, and PPO learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from judges import Eyes, RewardShare, ScheduleShare
from play import Floats, Rule, follow, play
from problems import PROBLEMS, Problem, carry, chaouki_linear, gp_h, kelly
from references import GP_H, Liquidation
from settings import OWN_ACTION, settings_of
from summary import reached
from training import Run, Score, train

TARGET = Eyes("target")


def constant(exposure: float) -> Rule:
    return lambda features, held: np.full(len(held), exposure)


def reward_share(problem: Problem) -> RewardShare:
    assert isinstance(problem.judge, RewardShare)
    return problem.judge


def test_the_closed_form_earns_g_star_in_the_env() -> None:
    judge = reward_share(gp_h())
    # 61,440 bars of a signal that halves in 12: the sample's own mean is within a few percent
    assert judge.unit * judge.best_reward == pytest.approx(GP_H.average_reward(), rel=0.05)


def test_realised_returns_are_the_mean_and_forty_times_as_much_noise_that_no_signal_tells() -> None:
    problem = gp_h().realised()
    assert not problem.env.reward_on_conditional_mean
    tape = problem.tape(0)
    assert tape.planted is not None
    close = tape.last[:, 0, 3]
    noise = close[1:] / close[:-1] - 1.0 - tape.planted[:-1, 0]
    signal = tape.planted[:-1, 0] * GP_H.signal_sd / tape.planted.std()
    held = np.zeros(len(signal))
    for bar in range(1, len(held)):
        held[bar] = GP_H.trade(signal[bar], held[bar - 1])
    # both in the problem's unit of money
    scale = GP_H.signal_sd / tape.planted.std()
    assert scale * np.std(held * noise) / GP_H.average_reward() == pytest.approx(40.0, rel=0.1)
    for lag in (-1, 0, 1):
        told = np.corrcoef(np.roll(tape.planted[:-1, 0], lag), noise)[0, 1]
        assert abs(told) < 4.0 / np.sqrt(len(noise))
    with pytest.raises(ValueError, match="realised is for gp_h: kelly has no second tape to learn from"):
        kelly().realised()


def test_a_myopic_rule_earns_its_known_share_of_g_star_in_the_env() -> None:
    judge = reward_share(gp_h())

    def myopic(features: Floats, held: Floats) -> Floats:
        return (GP_H.signal_sd * features[:, 0] + GP_H.cost * held) / (GP_H.risk + GP_H.cost)

    assert judge(follow(myopic), TARGET).fraction == pytest.approx(0.863, abs=0.02)


@pytest.mark.parametrize(
    ("name", "printed"),
    [("chaouki_quadratic", 341.05), ("chaouki_linear", 1269.42), ("chaouki_limited", 447.81)],
)
def test_the_env_pays_the_best_rules_what_they_earn_on_the_ten_episodes(name: str, printed: float) -> None:
    judge = reward_share(PROBLEMS[name]())
    assert judge.unit * judge.best_reward == pytest.approx(printed, rel=1e-3)


def test_a_band_of_no_width_does_what_a_target_does() -> None:
    problem = chaouki_linear()
    judge = reward_share(problem)
    agent = follow(lambda features, held: features[:, 0])
    band, target = judge(agent, Eyes("band")), judge(agent, TARGET)
    assert band.fraction == pytest.approx(target.fraction, rel=1e-5)
    assert target.fraction < 0.5


def test_kelly_is_net_of_funding() -> None:
    judge = kelly().judge
    assert judge(follow(constant(1.9997)), TARGET).fraction == pytest.approx(1.0, abs=1e-4)
    # growth is a parabola, and 3 is half as far again as the best
    assert judge(follow(constant(3.0)), TARGET).fraction == pytest.approx(0.75, abs=0.01)


def test_carry_is_short_where_funding_pays_for_two_fees_and_flat_where_not() -> None:
    problem = carry()
    assert problem.judge(follow(constant(-0.9996)), TARGET).fraction == pytest.approx(1.0, abs=1e-4)
    pays, does_not = problem.conditions
    short, flat = follow(constant(-1.0)), follow(constant(0.0))
    assert [p.judge(short, TARGET).fraction for p in (pays, does_not)] == [1.0, 0.0]
    assert [p.judge(flat, TARGET).fraction for p in (pays, does_not)] == [0.0, 1.0]


def test_the_env_agrees_on_which_side_of_the_switch_is_better() -> None:
    for condition in carry().conditions:
        env = condition.env
        stretches = getattr(condition.judge, "stretches")  # noqa: B009 - the union has no common attribute
        earned = play(replace(stretches, env=env), follow(constant(-1.0))).reward.sum()
        is_short_better = condition.judge(follow(constant(-1.0)), TARGET).fraction == 1.0
        assert (earned > 0.0) == is_short_better


def test_the_env_books_the_schedule_of_almgren_and_chriss() -> None:
    judge = PROBLEMS["almgren_chriss"]().judge
    assert isinstance(judge, ScheduleShare)
    block = Liquidation()
    # the fee is on what a sale brought, which impact has made a little less
    assert judge.least_cost == pytest.approx(block.utility_cost(block.schedule()), rel=1e-3)
    slices = judge(follow(lambda features, held: 0.8 * features[:, 0]), TARGET)
    assert slices.value == pytest.approx(block.utility_cost(block.equal_slices()), rel=2e-3)


def test_only_tapes_without_chance_serve_for_training_and_for_judging() -> None:
    with_chance = [PROBLEMS[name]() for name in ("gp_h", "chaouki_quadratic", "kelly", "carry")]
    without = [PROBLEMS["almgren_chriss"](), *with_chance[-1].conditions]
    for problem in (*with_chance, *without):
        stretches = getattr(problem.judge, "stretches")  # noqa: B009 - the union has no common attribute
        is_same = stretches.tape is problem.tape(0)
        assert is_same == (problem in without), problem.name
        # a countdown, the same in every stretch
        assert is_same == (len(stretches.tape) <= 10), problem.name


def test_ppo_learns_to_trade_towards_the_aim() -> None:
    problem = gp_h()
    settings = replace(settings_of("gp_h", "target"), steps=300_000)
    env = replace(problem.env, action="target")
    run = train(problem.tape(0), env, problem.judge, settings, seed=0, progress=lambda *_: None)
    # doing nothing earns 0, and so does the untrained network
    assert run.score.fraction > 0.6
    assert run.steps >= 300_000


def test_every_problem_has_settings_for_its_own_action() -> None:
    assert set(OWN_ACTION) == set(PROBLEMS)
    for name, action in OWN_ACTION.items():
        assert settings_of(name, action).action == action


def test_a_threshold_is_reached_when_half_of_the_seeds_have() -> None:
    runs = [Run() for _ in range(3)]
    for run, fraction in zip(runs, (0.91, 0.99, 0.5), strict=True):
        run.note(Score(fraction, fraction), steps=100, seconds=1.0)
    assert reached(runs, 0.9) == (100.0, 1.0)
    assert reached(runs, 0.95) is None
