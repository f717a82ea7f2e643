"""Orders on their way arrive, whatever is decided meanwhile: one order of a contract in flight at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.spaces import LEDGER

MakeTape = Callable[..., Tape]
# the bit of the overlay that the time stop sets
TIME_STOP = 16


def env_on(tape: Tape, **settings: Any) -> PerpVecEnv:
    plain: dict[str, Any] = {
        "action": "target", "max_exposure": 1.0, "max_drawdown": 1.0, "impact_coefficient": 0.0,
        "rebalance_threshold": 0.0, "window_bars": 1,
    }  # fmt: skip
    return PerpVecEnv(
        tape, n_paths=1, config=EnvConfig(**plain | settings), limits=RiskLimits(max_daily_loss=None)
    )


def play(tape: Tape, actions: Sequence[Any], **settings: Any) -> dict[str, list[float]]:
    """Ledger columns by step."""
    env = env_on(tape, **settings)
    out = env.make_buffers()
    env.reset_into(out, 0)
    rows: dict[str, list[float]] = {name: [] for name in LEDGER}
    for action in actions:
        env.step_into(np.array(action, np.float32).reshape(1, -1), out)
        for name, column in LEDGER.items():
            rows[name].append(float(out.ledger[0, column]))
    return rows


@pytest.mark.parametrize("latency_bars", [1, 2, 5])
def test_who_changes_the_target_every_bar_still_trades(make_tape: MakeTape, latency_bars: int) -> None:
    targets = np.random.default_rng(0).uniform(-1.0, 1.0, 120)
    rows = play(make_tape(), targets, latency_bars=latency_bars)
    # sent, on its way for so many bars, filled at the open after them; then the next one is sent
    assert rows["fills"] == [float((i + 1) % (latency_bars + 1) == 0) for i in range(120)]


def test_what_arrives_is_what_was_sent_first(make_tape: MakeTape) -> None:
    tape = make_tape(np.full(20, 100.0), wick=0.0, volume=1e9)
    rows = play(
        tape, [0.5, -1.0, 0.25, -1.0, -1.0, -1.0], latency_bars=2, half_spread_bps=0.0, taker_rate=0.0
    )
    assert np.sign(rows["exposure"]).tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, -1.0]
    assert rows["exposure"][2] == pytest.approx(0.5)


@pytest.mark.parametrize("latency_bars", [0, 1, 3])
def test_the_time_stop_closes_once_its_order_has_arrived(make_tape: MakeTape, latency_bars: int) -> None:
    rows = play(make_tape(), [0.5] * 40, latency_bars=latency_bars, max_bars_held=3, rebalance_threshold=0.3)
    held = np.array(rows["position"]) != 0.0
    first = int(np.argmax(held))
    # three closes with it, the decision after the third closes, and the order is on its way
    assert held[first : first + 3 + latency_bars].all()
    assert not held[first + 3 + latency_bars]
    # the one decision that sent it says so
    assert [int(bits) & TIME_STOP for bits in rows["overlay"][: first + 4 + latency_bars]].count(
        TIME_STOP
    ) == 1


def test_an_agent_that_wavers_between_leaving_and_a_rest_leaves(make_tape: MakeTape) -> None:
    rows = play(make_tape(), [1.0] * 3 + [0.0, 0.03] * 10, latency_bars=1, rebalance_threshold=0.02)
    assert rows["exposure"][3] > 0.9
    assert max(rows["exposure"][6:]) < 0.05


@pytest.mark.parametrize("action", ["ladder", "heads"])
def test_while_an_order_is_on_its_way_only_what_sends_nothing_is_allowed(
    make_tape: MakeTape, action: str
) -> None:
    env = env_on(make_tape(), action=action, latency_bars=2)
    out = env.make_buffers()
    env.reset_into(out, 0)
    sent = [4.0] if action == "ladder" else [1.0, 2.0, 0.0, 0.0]
    before = env.action_masks()[0]
    env.step_into(np.array([sent], np.float32), out)
    on_its_way = env.action_masks()[0]
    for _ in range(2):
        env.step_into(np.array([sent], np.float32), out)
    arrived = env.action_masks()[0]
    if action == "ladder":
        assert [mask.tolist() for mask in (before, on_its_way, arrived)] == [
            [True] * 5, [False, False, False, False, True], [True] * 5
        ]  # fmt: skip
    else:
        # hold, long, short, flat
        decisions = [mask[:4].tolist() for mask in (before, on_its_way, arrived)]
        assert decisions[1] == [True, False, False, False]
        assert decisions[0] == [True, True, True, False]
        assert decisions[2][3]
