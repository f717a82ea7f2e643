"""The same actions through the env, and through LiveEnv, the desk, unmodified ccxt and the exchange: the same
fills, fees, funding, equity, rewards and observations. ``benchmarks/live_parity.py`` does it for longer.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import live_parity as parity
import numpy as np
import pytest
import torch

from perpgym.agents.artifact import load_artifact, save_artifact
from perpgym.agents.baselines import make_baseline
from perpgym.data.contract import shipped_contracts
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import RiskLimits
from perpgym.envs.actions import action_space
from perpgym.envs.impact_model import ImpactKind, ImpactModel
from perpgym.envs.spaces import window_space
from perpgym.experiments.live_run import decide
from perpgym.policies import PerpActorCriticPolicy, PolicyConfig

EXACT = 1e-8


@pytest.fixture(scope="module")
def tape() -> Tape:
    found: Tape = parity.simulated_tape(200)
    return found


def play(tape: Tape, bars: int, seed: int = 1, **changes: Any) -> Any:
    return parity.compare(
        tape, parity.settings(**changes), RiskLimits(), start_bar=parity._HISTORY, bars=bars,
        act=parity.random_policy(seed),
    )  # fmt: skip


def test_a_live_account_earns_and_sees_what_its_env_does(tape: Tape) -> None:
    found = play(tape, 120, stop_loss=0.01, take_profit=0.012)
    assert found.largest <= EXACT
    assert found.counts["fills"] > 60
    assert found.counts["stopped"] > 5
    assert found.counts["funding"] > 0.0


def test_an_exchange_that_rounds_its_money_halts_nobody_and_earns_what_rounding_leaves(tape: Tape) -> None:
    """To 8 decimals a row, as the real one does: the desk stays ready (``see`` raises where it does not)."""
    config = parity.settings(stop_loss=0.01, take_profit=0.012)
    found = parity.compare(
        tape, config, RiskLimits(), start_bar=parity._HISTORY, bars=120, act=parity.random_policy(1),
        money_decimals=8,
    )  # fmt: skip
    assert found.counts["fills"] > 60
    assert EXACT < found.ledger["equity"] <= found.rounded_away < 1e-5
    assert found.reward <= 1e-10
    assert max(found.observation.values()) <= 1e-6


@pytest.mark.parametrize(
    "changes",
    [
        {"action": "ladder", "stop_loss": None, "take_profit": None},
        {"action": "heads", "head_styles": ("market",), "reward": "differential_sortino"},
        {"execution": "limit", "limit_offset_bps": 5.0, "stop_loss": None, "take_profit": None},
        {"margin_mode": "isolated", "trailing_stop": True, "stop_trigger": "last", "take_profit": None},
        {"stop_volatility": 2.0, "stop_loss": None, "impact": {"kind": "exponential"}},
    ],
)
def test_every_kind_of_action_stop_and_margin_does(tape: Tape, changes: dict[str, Any]) -> None:
    found = play(tape, 30, seed=2, **changes)
    assert found.largest <= EXACT
    assert found.counts["fills"] > 5


def test_real_bitcoin_does(shared_data: Path) -> None:
    tape = parity.real_tape(shared_data / "freqtrade", ("BTC/USDT:USDT",), "2022-05-08", 100)
    found = play(tape, 100, stop_loss=0.015)
    assert found.largest <= EXACT
    assert found.counts["stopped"] > 3


def test_seven_contracts_on_one_wallet_do(shared_data: Path) -> None:
    tape = parity.real_tape(shared_data / "freqtrade", shipped_contracts(), "2022-05-08", 15)
    found = play(tape, 12, action="target", max_exposure=1.0, initial_wallet=1e6)
    assert found.largest <= EXACT
    assert found.counts["fills"] > 50


def test_a_policy_from_disk_decides_live_as_beside_the_env(tape: Tape, tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy_config = PolicyConfig(
        d_model=16, n_heads=2, risk_hidden=8, policy_hidden=(16,), value_hidden=(16,)
    )
    config = parity.settings(action="target", window_bars=policy_config.receptive_field, reward_scale=100.0)
    scalers = {n: fit_scaler(c, 720, 1_600) for n, c in (("market", tape.features), ("risk", tape.risk))}
    policy = PerpActorCriticPolicy(
        window_space(1, len(tape.feature_names), len(tape.risk_names), config.window_bars),
        action_space(config.action, 1), lambda _: 0.0, config=policy_config,
        market_scaler=scalers["market"], risk_scaler=scalers["risk"],
    )  # fmt: skip
    with torch.no_grad():
        for weights in policy.parameters():
            weights.add_(0.3 * torch.randn_like(weights))
    save_artifact(tmp_path, policy, tape=tape, env_config=config, limits=RiskLimits(), seed=0, commit="abc")
    act, shadow = parity.trained(load_artifact(tmp_path))
    found = parity.compare(
        tape, config, RiskLimits(), start_bar=parity._HISTORY, bars=40, act=act, shadow=shadow
    )
    assert found.largest <= EXACT
    assert found.action <= 1e-5
    assert found.counts["fills"] > 3


@pytest.mark.parametrize("name", ["buy_and_hold", "momentum"])
def test_a_rule_decides_live_as_beside_the_env(tape: Tape, name: str) -> None:
    """Though it is shown the newest bars alone: momentum reads four weeks of closes and one of volatility."""
    config = parity.settings(stop_loss=None, take_profit=None)
    here, there = (make_baseline(name, config) for _ in range(2))

    def beside(env: Any, seen: dict[str, Any]) -> Any:
        bar = int(env.batch.state_dict()["path_bar"][0])
        return there.act(env.tape, bar, seen["account"][None], seen["portfolio"][None])[0]

    found = parity.compare(
        tape, config, RiskLimits(), start_bar=parity._HISTORY, bars=20,
        act=lambda env, seen: decide(env, here, seen), shadow=beside,
        lookback_bars=here.lookback_bars(tape.contracts, tape.bar_ms),
    )  # fmt: skip
    assert found.largest <= EXACT
    assert found.action <= 1e-6
    assert found.counts["fills"] > 0


@pytest.mark.parametrize("trace", ["none", "power_law"])
def test_a_paper_account_beside_the_market_does_too(tape: Tape, trace: ImpactKind) -> None:
    """Without the impact of an order, which needs the volume of a bar that is not over."""
    config = parity.settings(
        impact_coefficient=0.0,
        stop_loss=0.01,
        take_profit=0.012,
        impact=ImpactModel(kind=trace, permanent_coefficient=0.5),
    )
    found = parity.compare(
        tape, config, RiskLimits(), start_bar=parity._HISTORY, bars=50, act=parity.random_policy(1),
        is_paper=True,
    )  # fmt: skip
    assert found.largest <= EXACT
    assert found.counts["fills"] > 20
    assert found.counts["stopped"] > 1
    assert found.counts["funding"] > 0.0


def test_another_fee_at_the_exchange_shows(tape: Tape) -> None:
    config = parity.settings()
    found = parity.compare(
        tape, config, RiskLimits(), start_bar=parity._HISTORY, bars=10, act=parity.random_policy(1),
        exchange_config=replace(config, taker_rate=0.0005),
    )  # fmt: skip
    assert found.ledger["fees"] > 1.0
    assert found.reward > 1e-6
    assert np.isfinite(found.largest)
