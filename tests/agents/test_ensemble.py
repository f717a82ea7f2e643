"""Agents that decide together: what they ask for, how far apart they are, and when they do not trade."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from perpgym.agents.baselines import MovingAverageCross, VolatilityTarget
from perpgym.agents.ensemble import Ensemble
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.actions import ACTION_KINDS
from perpgym.envs.spaces import ACCOUNT_NAMES, CONTRACT_LEDGER, PORTFOLIO_NAMES
from perpgym.evaluation.backtest import run_backtest

FREE = {"max_drawdown": 1.0, "window_bars": 1, "half_spread_bps": 0.0, "max_participation": 1.0}
HOLD, LONG, SHORT, FLAT = range(4)


class Says:
    """Asks for the same again and again."""

    def __init__(self, *action: float) -> None:
        self.name = str(action)
        self.action = np.array(action, np.float32)

    def act(
        self, tape: Tape, bar: int, account: NDArray[np.float32], portfolio: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        return np.tile(self.action, (len(account), 1))


class Random:
    """Draws actions, seeded, of any kind."""

    def __init__(self, env: PerpVecEnv, seed: int) -> None:
        self.name = f"random {seed}"
        self.space = copy.deepcopy(env.single_action_space)
        self.space.seed(seed)

    def act(
        self, tape: Tape, bar: int, account: NDArray[np.float32], portfolio: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        return np.stack([np.atleast_1d(self.space.sample()) for _ in account]).astype(np.float32)


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=120, sigma=0.02, volume=1e7)


def account(exposure: float = 0.0, asked: float = 0.0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One account's observation."""
    columns = np.zeros((1, 1, len(ACCOUNT_NAMES)), np.float32)
    columns[..., ACCOUNT_NAMES.index("exposure")] = exposure
    columns[..., ACCOUNT_NAMES.index("asked")] = asked
    return columns, np.zeros((1, len(PORTFOLIO_NAMES)), np.float32)


def said(tape: Tape, action: str, members: Sequence[Says], rule: Any, **settings: Any) -> list[float]:
    """What the ensemble does at one bar."""
    masks = settings.pop("masks", None)
    state = account(settings.pop("exposure", 0.0), settings.pop("asked", 0.0))
    config = EnvConfig(action=action, **FREE)  # type: ignore[arg-type]
    out = Ensemble(members, config, rule=rule, **settings).act(tape, 50, *state, masks)
    return [round(float(x), 6) for x in out[0]]


@pytest.mark.parametrize("action", ACTION_KINDS)
@pytest.mark.parametrize("rule", ["mean", "vote", "disagreement"])
def test_an_ensemble_of_one_is_its_member(
    make_portfolio: Callable[..., Tape], action: Any, rule: Any
) -> None:
    tape = make_portfolio((0, 0), bars=80)
    config = EnvConfig(action=action, max_exposure=1.7, window_bars=1)
    if rule == "vote" and not config.choices:
        with pytest.raises(ValueError, match="use mean or disagreement"):
            Ensemble([Says(0.0)], config, rule=rule)
        return
    env = PerpVecEnv(tape, n_paths=3, config=config)
    out = env.make_buffers()
    env.reset_into(out, 0)
    alone, together = (Random(env, 7) for _ in range(2))
    ensemble = Ensemble([together], config, rule=rule)
    for bar in range(10, 40):
        expected = alone.act(tape, bar, out.account, out.portfolio)
        acted = ensemble.act(tape, bar, out.account, out.portfolio)
        np.testing.assert_array_equal(acted, expected)
        assert not ensemble.uncertainty.any()
        env.step_into(acted, out)


@pytest.mark.parametrize(
    ("action", "members", "rule", "expected"),
    [
        # continuous: the mean of targets, of both edges of bands
        ("target", [Says(0.8), Says(0.2)], "mean", [0.5]),
        ("band", [Says(0.6, -1.0), Says(0.2, 0.0)], "mean", [0.4, -0.5]),
        # m = 0.5, s = 0.3: 0.25 / 0.34 of it
        ("target", [Says(0.8), Says(0.2)], "disagreement", [round(0.5 * 0.25 / 0.34, 6)]),
        ("target", [Says(0.7), Says(0.7)], "disagreement", [0.7]),
        # who cancel each other do nothing
        ("target", [Says(0.5), Says(-0.5)], "disagreement", [0.0]),
        ("band", [Says(0.5, -1.0), Says(-0.5, -1.0)], "disagreement", [0.0, -1.0]),
        # levels of -1, -0.5, 0, 0.5 and 1 times the range
        ("ladder", [Says(4), Says(0), Says(4)], "mean", [3.0]),
        ("ladder", [Says(4), Says(0), Says(4)], "vote", [4.0]),
        ("ladder", [Says(4), Says(2), Says(4)], "disagreement", [3.0]),
        # long 0.5 with two, flat with one: a third of the range is nearest to 0.25 of it
        ("heads", [Says(LONG, 1, 2, 1), Says(LONG, 1, 2, 1), Says(FLAT, 0, 0, 0)], "mean", [LONG, 0, 0, 0]),
        ("heads", [Says(LONG, 1, 2, 1), Says(LONG, 0, 1, 0), Says(LONG, 1, 0, 1)], "mean", [LONG, 1, 2, 1]),
        ("heads", [Says(LONG, 1, 2, 1), Says(SHORT, 1, 2, 1)], "mean", [HOLD, 0, 0, 0]),
        # the loser's size does not count
        ("heads", [Says(LONG, 1, 2, 1), Says(LONG, 1, 0, 0), Says(FLAT, 2, 2, 0)], "vote", [LONG, 1, 0, 0]),
        ("heads", [Says(LONG, 1, 2, 1), Says(SHORT, 1, 2, 1)], "vote", [HOLD, 0, 0, 0]),
    ],
)
def test_members_decide_together(
    tape: Tape, action: str, members: list[Says], rule: str, expected: list[float]
) -> None:
    assert said(tape, action, members, rule) == expected


def test_between_levels_with_as_many_votes_the_one_nearest_to_what_stands_wins(tape: Tape) -> None:
    members = [Says(4), Says(1)]
    assert said(tape, "ladder", members, "vote", asked=1.5) == [4.0]
    assert said(tape, "ladder", members, "vote", asked=-0.5) == [1.0]


def test_a_mean_that_is_not_allowed_becomes_the_nearest_that_is(tape: Tape) -> None:
    members = [Says(4), Says(0), Says(4)]
    allowed = np.array([[True, True, True, False, True]])
    assert said(tape, "ladder", members, "mean", masks=allowed) == [2.0]
    shorts_only = np.ones((1, 4 + 3 + 3 + 2), np.bool_)
    shorts_only[0, LONG] = False
    mixed = [Says(LONG, 2, 0, 0), Says(FLAT, 0, 0, 0), Says(HOLD, 0, 0, 0)]
    assert said(tape, "heads", mixed, "mean")[0] == LONG
    assert said(tape, "heads", mixed, "mean", masks=shorts_only)[0] != LONG


def test_uncertainty_is_the_spread_of_exposures_and_holding_counts_as_what_stands(tape: Tape) -> None:
    config = EnvConfig(action="heads", **FREE)  # type: ignore[arg-type]
    ensemble = Ensemble([Says(HOLD, 0, 0, 0), Says(LONG, 1, 0, 0)], config)
    ensemble.act(tape, 50, *account(exposure=1.0, asked=1.0))
    assert ensemble.uncertainty.tolist() == [[0.0]]
    ensemble.act(tape, 50, *account(exposure=-1.0, asked=-1.0))
    assert ensemble.uncertainty.tolist() == [[1.0]]


@pytest.mark.parametrize("action", ACTION_KINDS)
def test_abstaining_trades_nothing_and_a_higher_threshold_does(tape: Tape, action: Any) -> None:
    config = EnvConfig(action=action, **FREE)  # type: ignore[arg-type]
    members = [VolatilityTarget(config), MovingAverageCross(config, fast_days=0.2, slow_days=1.0)]
    agents = [
        Ensemble(members, config, name="abstains", abstain_above=-1.0),
        Ensemble(members, config, name="sure enough", abstain_above=10.0),
        Ensemble(members, config, name="unlimited"),
    ]
    abstains, sure, unlimited = run_backtest(
        agents, tape, start_bar=30, end_bar=110, config=config, limits=RiskLimits()
    )
    assert abstains.column("traded_notional").sum() == 0.0
    assert unlimited.column("traded_notional").sum() > 0.0
    np.testing.assert_array_equal(sure.actions, unlimited.actions)
    assert np.abs(unlimited.holdings[:, 0, CONTRACT_LEDGER["position"]]).max() > 0.0


def test_an_ensemble_without_members_or_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one member"):
        Ensemble([], EnvConfig())
    with pytest.raises(ValueError, match="must be one of mean, vote, disagreement"):
        Ensemble([Says(0.0)], EnvConfig(), rule="median")  # type: ignore[arg-type]
