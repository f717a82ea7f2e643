"""The risk overlay admits, shrinks and flattens as its limits say."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.envs.risk.limits import RiskLimits
from perpgym.envs.risk.overlay import DAILY_LOSS, DRAWDOWN, LEVERAGE, NOTIONAL, admitted_exposure
from perpgym.envs.spaces import LEDGER, PORTFOLIO_NAMES

INF = math.inf


def test_leverage_is_the_cap_when_nothing_else_binds() -> None:
    assert admitted_exposure(100.0, 100.0, 100.0, 100.0, 3.0, INF, INF, 0.3) == (3.0, LEVERAGE)


def test_a_lost_day_admits_nothing_until_midnight() -> None:
    assert admitted_exposure(89.9, 100.0, 100.0, 89.9, 3.0, 0.1, INF, 0.3) == (0.0, DAILY_LOSS)
    assert admitted_exposure(90.1, 100.0, 100.0, 90.1, 3.0, 0.1, INF, 0.3)[0] == 3.0


def test_a_lost_day_stays_lost_when_equity_recovers() -> None:
    assert admitted_exposure(95.0, 100.0, 100.0, 89.9, 3.0, 0.1, INF, 0.3) == (0.0, DAILY_LOSS)


def test_exposure_shrinks_linearly_with_the_drawdown() -> None:
    # half way from 10 % to 30 %
    cap, bit = admitted_exposure(80.0, 100.0, 80.0, 80.0, 3.0, INF, 0.1, 0.3)
    assert cap == pytest.approx(1.5)
    assert bit == DRAWDOWN


@pytest.mark.parametrize(
    ("field", "value"), [("max_leverage", 0.0), ("max_daily_loss", 1.5), ("max_notional", -1.0)]
)
def test_impossible_limits_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        RiskLimits(**{field: value})


def test_the_risk_budget_shown_is_what_the_next_decision_is_held_to(make_tape: Callable[..., Tape]) -> None:
    limits = RiskLimits(max_leverage=5.0, max_notional=3e6, max_daily_loss=0.1, drawdown_start=0.05)
    config = EnvConfig(action="target", max_exposure=5.0, window_bars=1, rebalance_threshold=0.0)
    env = PerpVecEnv(make_tape(sigma=0.02), n_paths=40, config=config, limits=limits)
    out = env.make_buffers()
    env.reset_into(out, 0)
    rng, bits = np.random.default_rng(0), set()
    for _ in range(200):
        budget = out.portfolio[:, PORTFOLIO_NAMES.index("risk_budget")].copy()
        actions = rng.uniform(-1, 1, (40, 1)).astype(np.float32)
        env.step_into(actions, out)
        changed = out.ledger[:, LEDGER["overlay"]]
        np.testing.assert_array_equal(changed > 0, np.abs(actions[:, 0]) > budget)
        bits |= set(changed.tolist())
    assert bits == {0.0, NOTIONAL, DAILY_LOSS, DRAWDOWN}
