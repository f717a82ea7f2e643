"""The optimum on a ladder is what formulas and the env say, and QR-DQN finds it."""

from __future__ import annotations

from dataclasses import replace

import agent_sides
import numpy as np
import pytest
from contenders import train_agent
from judges import Eyes, RewardShare
from ladder import LADDERS, LadderProblem, on_ladder
from play import Floats, follow, play
from problems import PROBLEMS
from qrdqn import TIMED_DRAW
from references import CHAOUKI_LINEAR_COST, CHAOUKI_PERSISTENCE, CHAOUKI_RISK, CHAOUKI_SD, chaouki_linear_band

CHAOUKI = LadderProblem(
    levels=(-2.0, -1.0, 0.0, 1.0, 2.0),
    persistence=CHAOUKI_PERSISTENCE,
    signal_sd=CHAOUKI_SD,
    risk=CHAOUKI_RISK,
    linear_cost=CHAOUKI_LINEAR_COST,
)


def test_where_trading_is_free_the_best_level_is_the_nearest_to_signal_over_risk() -> None:
    rule = replace(CHAOUKI, linear_cost=0.0).solve()
    signal = np.array([-3.0, -0.7, -0.2, 0.29, 0.31, 1.0])
    np.testing.assert_array_equal(rule.trade(signal, np.zeros(6)), np.array([-2.0, -1.0, 0.0, 0.0, 1.0, 2.0]))


def test_a_ladder_of_many_levels_trades_as_the_band_does() -> None:
    """Chaouki et al.'s linear problem, solved for a continuous exposure by another program."""
    fine = replace(CHAOUKI, levels=tuple(np.linspace(-4.0, 4.0, 161).tolist())).solve(points=201)
    signal = np.linspace(-2.5, 2.5, 21)
    held = np.linspace(-2.0, 2.0, 21)[::-1].copy()
    expected = chaouki_linear_band().trade(signal, held)
    np.testing.assert_allclose(fine.trade(signal, held), expected, atol=0.12)


def test_the_solved_average_is_what_its_rule_earns() -> None:
    rule = CHAOUKI.solve()
    rng = np.random.default_rng(0)
    held, signal, total, bars = np.zeros(2_000), CHAOUKI_SD * rng.standard_normal(2_000), 0.0, 400
    for bar in range(bars + 50):
        wanted = rule.trade(signal, held)
        earned = (
            signal * wanted - 0.5 * CHAOUKI_RISK * wanted**2 - CHAOUKI_LINEAR_COST * np.abs(wanted - held)
        )
        total += float(earned.mean()) if bar >= 50 else 0.0
        held = wanted
        noise = np.sqrt(1.0 - CHAOUKI_PERSISTENCE**2) * CHAOUKI_SD * rng.standard_normal(2_000)
        signal = CHAOUKI_PERSISTENCE * signal + noise
    assert total / bars == pytest.approx(rule.average_reward, rel=0.03)


@pytest.mark.parametrize("name", sorted(LADDERS))
def test_no_other_rule_on_the_ladder_earns_as_much_in_the_env(name: str) -> None:
    problem = on_ladder(PROBLEMS[name]())
    judge = problem.judge
    assert isinstance(judge, RewardShare)
    assert judge(follow(judge.rule), Eyes("target")).fraction == pytest.approx(1.0, abs=1e-9)
    levels = problem.env.max_exposure * np.array(problem.env.ladder)

    def slower(features: Floats, held: Floats) -> Floats:
        """As the best, on signals a quarter smaller."""
        return judge.rule(0.75 * features, held)

    def nearest(features: Floats, held: Floats) -> Floats:
        """As if trading were free."""
        wanted = problem.env.max_exposure * np.sign(features[:, 0])
        return levels[np.abs(wanted[:, None] - levels).argmin(axis=1)]

    for rule in (slower, nearest):
        assert play(judge.stretches, follow(rule)).reward.mean() < judge.best_reward
    assert judge.best_reward <= 1.001 * float(PROBLEMS[name]().judge.best_reward)  # type: ignore[attr-defined]


def test_qr_dqn_comes_near_the_optimum_of_a_ladder() -> None:
    """Short of what it reaches with all its steps; docs/algorithms/known_optima.md has the whole table."""
    problem = PROBLEMS["chaouki_limited"]()
    run = train_agent("ladder", problem, seed=0, share=0.1, progress=lambda *_: None)
    assert run.score.fraction > 0.8


def test_a_problem_without_a_ladder_is_refused() -> None:
    with pytest.raises(ValueError, match="kelly has no ladder"):
        train_agent("ladder", PROBLEMS["kelly"](), seed=0, share=1.0, progress=lambda *_: None)


def test_the_draw_whose_score_is_compared_is_the_one_that_is_timed() -> None:
    timed = agent_sides.CONFIG
    assert {name: getattr(timed, name) for name in TIMED_DRAW} == TIMED_DRAW
    assert timed.minibatch == "stretches"
