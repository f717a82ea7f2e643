"""One account gives the same columns alone, in a batch and in a Gymnasium env; the future changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpEnv, PerpVecEnv, RiskLimits
from perpgym.envs.config import EXECUTION_STYLES, ExecutionStyle
from perpgym.envs.spaces import LEDGER_COLUMNS

MakeTape = Callable[..., Tape]
MergeTapes = Callable[[list[Tape]], Tape]
MarginMode = Literal["cross", "isolated"]
LIMITS = RiskLimits(max_leverage=10.0, max_daily_loss=0.5)


def test_an_account_alone_equals_itself_in_a_batch_column_by_column(make_tape: MakeTape) -> None:
    tape = make_tape(sigma=0.02)
    config = EnvConfig(window_bars=8, episode_bars=10**6, max_exposure=5.0)
    batch = PerpVecEnv(tape, n_paths=1, accounts_per_path=5, config=config)
    out = batch.make_buffers()
    batch.reset_into(out, 0)
    plan = np.random.default_rng(0).uniform(-1, 1, (400, 5, 2)).astype(np.float32)
    ledgers = []
    for actions in plan:
        batch.step_into(actions, out)
        ledgers.append(out.ledger.copy())
    for account in range(5):
        alone = PerpVecEnv(tape, n_paths=1, config=config)
        single = alone.make_buffers()
        alone.reset_into(single, 1)
        for step, actions in enumerate(plan):
            alone.step_into(actions[account : account + 1].copy(), single)
            np.testing.assert_array_equal(single.ledger[0], ledgers[step][account])


@pytest.mark.parametrize("margin_mode", ["cross", "isolated"])
@pytest.mark.parametrize("contracts", [1, 3])
@pytest.mark.parametrize("execution", EXECUTION_STYLES)
def test_perp_env_equals_its_account_of_a_batch_column_by_column(
    make_tape: MakeTape,
    merge_tapes: MergeTapes,
    execution: ExecutionStyle,
    contracts: int,
    margin_mode: MarginMode,
) -> None:
    tape = merge_tapes([make_tape(bars=150, seed=seed, sigma=0.02, wick=0.01) for seed in range(contracts)])
    config = EnvConfig(
        window_bars=8,
        episode_bars=10**6,
        execution=execution,
        remainder="carry",
        margin_mode=margin_mode,
        max_exposure=5.0,
        stop_loss=0.03,
        take_profit=0.03,
        max_drawdown=0.9,
    )
    batch = PerpVecEnv(tape, n_paths=1, accounts_per_path=3, config=config, limits=LIMITS, with_windows=True)
    env = PerpEnv(tape, config=config, limits=LIMITS)
    observations, _ = batch.reset(seed=9)
    observation, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    seen = dict.fromkeys(("fills", "stopped", "funding"), 0.0)
    terminated = truncated = False
    while not (terminated or truncated):
        for name, column in observation.items():
            np.testing.assert_array_equal(column, observations[name][1], name)
        actions = rng.uniform(-1, 1, (3, 2 * contracts)).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(actions[1])
        observations, rewards, terminations, truncations, infos = batch.step(actions)
        assert (reward, terminated, truncated) == (rewards[1], terminations[1], truncations[1])
        for name in LEDGER_COLUMNS:
            # the single env's infos can be compared: a fill price that there was not is 0
            np.testing.assert_array_equal(info[name], np.nan_to_num(infos[name][1]), name)
        for name in seen:
            seen[name] += abs(info[name])
    for name, column in observation.items():
        np.testing.assert_array_equal(column, infos["final_obs"][1][name], name)
    assert min(seen.values()) > 0.0, seen


def test_changing_the_future_changes_nothing_seen_or_booked_before_it(make_tape: MakeTape) -> None:
    tape = make_tape(sigma=0.01)
    cut = 300
    changed = {
        name: np.concatenate([getattr(tape, name)[:cut], getattr(tape, name)[cut:] * 1.7])
        for name in ("last", "mark", "volume", "sigma_per_bar", "features", "risk")
    }
    rates = np.where(tape.stamp_time_ms > tape.open_time_ms[cut - 1] + tape.bar_ms, 0.01, tape.stamp_rate)
    other = replace(tape, **changed, stamp_rate=rates)
    records = []
    for market in (tape, other):
        env = PerpVecEnv(
            market, n_paths=1, config=EnvConfig(window_bars=8, episode_bars=10**6), with_windows=True
        )
        out = env.make_buffers()
        env.reset_into(out, 0)
        rng, rows = np.random.default_rng(0), []
        while out.bar[0] < cut - 1:
            env.step_into(rng.uniform(-1, 1, (1, 2)).astype(np.float32), out)
            assert out.market is not None
            rows.append(np.concatenate([out.ledger[0], out.account.ravel(), out.market.ravel(), out.reward]))
        records.append(np.array(rows))
    np.testing.assert_array_equal(records[0], records[1])


def test_the_cost_of_a_step_is_independent_of_the_position_in_the_episode(make_tape: MakeTape) -> None:
    """The state that a step reads and writes has a fixed size; nothing accumulates with an episode."""
    env = PerpVecEnv(make_tape(bars=2_000), n_paths=1, config=EnvConfig(window_bars=8, episode_bars=10**6))
    out = env.make_buffers()
    env.reset_into(out, 0)
    sizes = []
    for _ in range(1_500):
        env.step_into(np.zeros((1, 2), np.float32), out)
        sizes.append(sum(np.asarray(v).nbytes for k, v in env.state_dict().items() if k != "rng"))
    assert len(set(sizes)) == 1
