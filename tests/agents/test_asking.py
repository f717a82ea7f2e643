"""Asking for an exposure, and for nothing, in every kind of action: judged by what the env then trades."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from perpgym.agents.asking import Asking
from perpgym.data.bars import CLOSE
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.actions import ACTION_KINDS
from perpgym.envs.spaces import CONTRACT_LEDGER

FREE = RiskLimits(max_leverage=100.0, max_daily_loss=None)


def env_of(tape: Tape, action: str) -> PerpVecEnv:
    config = EnvConfig(
        action=action,  # type: ignore[arg-type]
        max_exposure=4.0, window_bars=1, max_drawdown=1.0, max_participation=1.0
    )  # fmt: skip
    return PerpVecEnv(tape, n_paths=1, config=config, limits=FREE)


@pytest.mark.parametrize("action", ACTION_KINDS)
def test_a_wish_is_reached_and_a_hold_trades_nothing_in_one_contract_or_all(
    make_portfolio: Callable[..., Tape], action: str
) -> None:
    env = env_of(make_portfolio((0, 0), sigma=0.02, volume=1e7), action)
    asking, out = Asking(env.config), env.make_buffers()
    env.reset_into(out, 0)
    wanted = np.array([[2.0, -2.0]])
    np.testing.assert_array_equal(asking.nearest(wanted), wanted)
    nothing, everything = np.zeros((1, 2), np.bool_), np.ones((1, 2), np.bool_)
    env.step_into(asking.where(nothing, out.account, wanted), out)
    position = out.holdings[0, :, CONTRACT_LEDGER["position"]].copy()
    decided_at = env.tape.mark[int(out.bar[0]) - 1, :, CLOSE]
    np.testing.assert_allclose(position * decided_at / env.config.initial_wallet, wanted[0], atol=1e-3)
    drifted = np.zeros(2)
    for _ in range(5):
        drifted = np.maximum(drifted, np.abs(out.holdings[0, :, CONTRACT_LEDGER["exposure"]] - wanted[0]))
        env.step_into(asking.where(everything, out.account, wanted), out)
        np.testing.assert_array_equal(out.holdings[0, :, CONTRACT_LEDGER["position"]], position)
    # it had drifted, so that asking again would have traded
    assert (drifted > env.config.rebalance_threshold).all()
    env.step_into(asking.where(np.array([[True, False]]), out.account, np.zeros((1, 2))), out)
    assert out.holdings[0, :, CONTRACT_LEDGER["position"]].tolist() == [position[0], 0.0]


@pytest.mark.parametrize("action", ["target", "band"])
def test_what_is_out_of_range_is_clipped_where_the_action_is_continuous(action: str) -> None:
    asking = Asking(EnvConfig(action=action))  # type: ignore[arg-type]
    assert asking.nearest(np.array([-9.0, 0.123, 9.0])).tolist() == [-2.0, 0.123, 2.0]


def test_on_choices_a_wish_becomes_the_nearest_choice() -> None:
    ladder, heads = (Asking(EnvConfig(action=kind)) for kind in ("ladder", "heads"))
    wishes = np.array([-9.0, -0.4, 0.2, 0.6, 1.7])
    assert ladder.nearest(wishes).tolist() == [-2.0, 0.0, 0.0, 1.0, 2.0]
    assert heads.nearest(wishes).tolist() == [-2.0, -0.5, 0.0, 0.5, 2.0]
