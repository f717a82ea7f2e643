"""The risk overlay admits, shrinks and flattens as its limits say."""

from __future__ import annotations

import math

import pytest

from perpgym.envs.risk.limits import RiskLimits
from perpgym.envs.risk.overlay import (
    DAILY_LOSS,
    DRAWDOWN,
    LEVERAGE,
    NOTIONAL,
    admitted_exposure,
    apply_overlay,
)

INF = math.inf


def test_leverage_is_the_cap_when_nothing_else_binds() -> None:
    assert admitted_exposure(100.0, 100.0, 100.0, 100.0, 3.0, INF, INF, INF, 0.3) == (3.0, LEVERAGE)


def test_a_notional_limit_caps_exposure_by_equity() -> None:
    assert admitted_exposure(100.0, 100.0, 100.0, 100.0, 3.0, 150.0, INF, INF, 0.3) == (1.5, NOTIONAL)


def test_a_lost_day_admits_nothing_until_midnight() -> None:
    assert admitted_exposure(89.9, 100.0, 100.0, 89.9, 3.0, INF, 0.1, INF, 0.3) == (0.0, DAILY_LOSS)
    assert admitted_exposure(90.1, 100.0, 100.0, 90.1, 3.0, INF, 0.1, INF, 0.3)[0] == 3.0


def test_exposure_shrinks_linearly_with_the_drawdown() -> None:
    # half way from 10 % to 30 %
    cap, bit = admitted_exposure(80.0, 100.0, 80.0, 80.0, 3.0, INF, INF, 0.1, 0.3)
    assert cap == pytest.approx(1.5)
    assert bit == DRAWDOWN


def test_the_overlay_keeps_the_sign_and_reports_only_what_it_changed() -> None:
    assert apply_overlay(-5.0, 2.0, NOTIONAL) == (-2.0, NOTIONAL)
    assert apply_overlay(-1.0, 2.0, NOTIONAL) == (-1.0, 0)


@pytest.mark.parametrize(
    ("field", "value"), [("max_leverage", 0.0), ("max_daily_loss", 1.5), ("max_notional", -1.0)]
)
def test_impossible_limits_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        RiskLimits(**{field: value})
