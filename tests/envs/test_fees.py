"""Fees by traded volume: tiers at midnight, discount, rebates, and the parts of an episode's costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpEnv, PerpVecEnv, RiskLimits
from perpgym.envs.fees import (
    TRADED_30D,
    TRADED_COLUMNS,
    FeeSchedule,
    FeeTier,
    add_traded,
    fee_rate,
    open_traded,
    roll_day,
)
from perpgym.envs.spaces import LEDGER, TOTAL_COLUMNS

MakeTape = Callable[..., Tape]
FREE = RiskLimits(max_leverage=150.0, max_daily_loss=None)
TIERS = FeeSchedule(
    tiers=(
        FeeTier(floor=0.0, maker_rate=0.0002, taker_rate=0.0005),
        FeeTier(floor=1_500_000.0, maker_rate=0.0001, taker_rate=0.0004),
        FeeTier(floor=5_000_000.0, maker_rate=-0.0001, taker_rate=0.0003),
    ),
)


def fees_paid(make_tape: MakeTape, exposures: list[float], **changed: Any) -> list[tuple[float, float]]:
    """(fee, traded notional) of every hour from midnight on."""
    free: dict[str, Any] = {
        "action": "target", "max_exposure": 2.0, "window_bars": 1, "half_spread_bps": 0.0,
        "impact_coefficient": 0.0, "rebalance_threshold": 0.0, "fees": TIERS,
    }  # fmt: skip
    tape = make_tape(np.full(120, 30_000.0), wick=0.0, funding_rate=0.0)
    env = PerpVecEnv(tape, n_paths=1, config=EnvConfig(**free | changed), limits=FREE, end_bar=119)
    out = env.make_buffers()
    env.reset_into(out, 0)
    rows = []
    for exposure in exposures:
        env.step_into(np.array([[exposure / 2.0]], np.float32), out)
        rows.append((out.ledger[0, LEDGER["fees"]], out.ledger[0, LEDGER["traded_notional"]]))
    return rows


def test_a_days_own_fills_move_the_tier_of_the_days_after_it(make_tape: MakeTape) -> None:
    # the first bar that fills opens at 01:00; 2,000,000 on the first day, 1,000,000 on the second
    rows = fees_paid(make_tape, [1.0, 0.0] + [0.0] * 21 + [1.0])
    assert rows[0][0] / rows[0][1] == pytest.approx(0.0005)
    assert rows[1][0] / rows[1][1] == pytest.approx(0.0005)
    assert rows[23][0] / rows[23][1] == pytest.approx(0.0004)


def test_volume_from_before_the_episode_counts(make_tape: MakeTape) -> None:
    busy = FeeSchedule(tiers=TIERS.tiers, traded_before=6_000_000.0)
    fee, traded = fees_paid(make_tape, [1.0], fees=busy)[0]
    assert fee / traded == pytest.approx(0.0003)


def test_a_discount_lowers_fees_and_not_rebates() -> None:
    table = TIERS.tier_table()
    assert fee_rate(0.0, False, table, 0.9) == pytest.approx(0.00045)
    assert fee_rate(1_500_000.0, True, table, 0.9) == pytest.approx(0.00009)
    assert fee_rate(5_000_000.0, True, table, 0.9) == -0.0001


def test_a_discount_reaches_the_account(make_tape: MakeTape) -> None:
    fee, traded = fees_paid(make_tape, [1.0], fees=FeeSchedule(tiers=TIERS.tiers, discount_factor=0.9))[0]
    assert fee / traded == pytest.approx(0.00045)


def test_a_rebate_is_received_by_a_resting_order(make_tape: MakeTape) -> None:
    config = EnvConfig(
        action="target", window_bars=1, execution="limit", rebalance_threshold=0.0, max_participation=1.0,
        fees=FeeSchedule(tiers=TIERS.tiers, traded_before=6_000_000.0),
    )  # fmt: skip
    env = PerpVecEnv(make_tape(np.full(9, 30_000.0), wick=0.004), n_paths=1, config=config, limits=FREE)
    out = env.make_buffers()
    env.reset_into(out, 0)
    env.step_into(np.array([[0.5]], np.float32), out)
    traded = out.ledger[0, LEDGER["traded_notional"]]
    assert traded > 0.0
    assert out.ledger[0, LEDGER["fees"]] == pytest.approx(-0.0001 * traded)


@settings(max_examples=60, deadline=None)
@given(
    fills=st.lists(st.tuples(st.integers(0, 40), st.floats(0.0, 1e6)), max_size=30),
    before=st.floats(0.0, 1e7),
)
def test_the_ring_of_days_is_the_sum_of_the_thirty_days_before(
    fills: list[tuple[int, float]], before: float
) -> None:
    row, table = np.zeros(TRADED_COLUMNS), TIERS.tier_table()
    start = 19_000
    open_traded(row, start, before, table, 1.0)
    booked = {start - back: before / 30 for back in range(1, 31)}
    day = start
    for wait, amount in fills:
        day += wait
        roll_day(row, day, table, 1.0)
        expected = sum(amount for when, amount in booked.items() if day - 30 <= when < day)
        assert row[TRADED_30D] == pytest.approx(expected, rel=1e-9, abs=1e-6)
        add_traded(row, amount)
        booked[day] = booked.get(day, 0.0) + amount


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({"tiers": []}, "start at a traded notional of 0"),
        ({"tiers": [[0, 0.0, 0.0005], [0, 0.0, 0.0004]]}, "ascending"),
        ({"tiers": [[0, -0.0006, 0.0005]]}, "trading in circles"),
        ({"tiers": [[0, 0.0002, 5.0]]}, "if you meant 5 bp"),
        ({"tiers": [[0, 0.0002]]}, "fees"),
        ({"tiers": [[0, 0.0, 0.0005]], "discount_factor": 2.0}, "what remains to be paid"),
        ({"tiers": [[0, 0.0, 0.0005]], "cashback": 2.0}, "cashback"),
    ],
)
def test_an_impossible_schedule_is_refused_in_words(schedule: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EnvConfig(fees=schedule)  # type: ignore[arg-type]


def test_a_file_may_give_the_schedule_as_plain_types() -> None:
    raw = {"tiers": [[0, 0.0002, 0.0005], [1_500_000, 0.0001, 0.0004], [5_000_000, -0.0001, 0.0003]]}
    assert EnvConfig(fees=raw).fees == TIERS  # type: ignore[arg-type]


@pytest.mark.parametrize("with_tiers", [False, True])
def test_the_parts_of_an_episode_add_up_to_its_equity_change(make_tape: MakeTape, with_tiers: bool) -> None:
    config = EnvConfig(
        window_bars=8, episode_bars=60, fees=TIERS if with_tiers else None, stop_loss=0.01,
        impact={"kind": "exponential", "transient_coefficient": 5.0},  # type: ignore[arg-type]
    )  # fmt: skip
    env = PerpEnv(make_tape(sigma=0.02), config=config)
    env.action_space.seed(0)
    for seed in range(5):
        _observation, _info = env.reset(seed=seed)
        summed = dict.fromkeys(TOTAL_COLUMNS, 0.0)
        is_over = False
        while not is_over:
            _, _, terminated, truncated, info = env.step(env.action_space.sample())
            is_over = terminated or truncated
            summed = {name: value + info[name] for name, value in summed.items()}
        for name, value in summed.items():
            assert info[f"total_{name}"] == pytest.approx(value, rel=1e-12, abs=1e-9)
        received = sum(info[f"total_{name}"] for name in ("price_pnl", "funding", "insurance"))
        paid = sum(info[f"total_{name}"] for name in ("fees", "clearance", "spread", "impact"))
        assert info["equity"] - 1_000_000.0 == pytest.approx(received - paid, abs=1e-9 * 1_000_000)
