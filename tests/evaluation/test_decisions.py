"""What is explained is a decision that asked for a trade, not the stop that came upon an idle policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, RiskLimits
from perpgym.envs.actions import DECISIONS
from perpgym.evaluation.decisions import CHOSEN_TIME, LARGEST_TRADE, NOTHING_ASKED, Decision, replay_decision

TapeFactory = Callable[..., Tape]
CONFIG = EnvConfig(action="heads", window_bars=1, stop_loss=0.01, max_drawdown=1.0)
NO_LIMITS = RiskLimits(max_daily_loss=None)
QUARTER, HALF, WHOLE = range(3)
MARKET, LIMIT = range(2)
CRASH = 60


class Plan:
    """Holds, but at the bars of a plan: there it does what the plan says."""

    name = "plan"
    reads_masks = True

    def __init__(self, plan: Mapping[int, tuple[str, int, int]]) -> None:
        self.plan = plan

    def act(
        self,
        tape: Tape,
        bar: int,
        account: NDArray[np.float32],
        portfolio: NDArray[np.float32],
        masks: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        """(1, 4) decision, size, stop and style."""
        word, size, style = self.plan.get(bar, ("hold", 0, 0))
        return np.array([[DECISIONS.index(word), size, 0, style]], np.float32)


@pytest.fixture
def tape(make_tape: TapeFactory) -> Tape:
    """Flat, but for a fall of a twentieth in one bar."""
    closes = np.where(np.arange(100) < CRASH, 30_000.0, 28_500.0)
    return make_tape(closes, funding_rate=0.0, wick=1e-5, volume=50_000.0)


def chosen(
    tape: Tape, plan: Mapping[int, tuple[str, int, int]], config: EnvConfig = CONFIG, bar: int | None = None
) -> Decision:
    return replay_decision(
        Plan(plan), tape, start_bar=10, end_bar=90, config=config, limits=NO_LIMITS, bar=bar
    )


def test_a_stop_moves_the_account_most_and_the_largest_trade_asked_for_is_explained(tape: Tape) -> None:
    steps = {
        20: ("long", QUARTER, MARKET),
        30: ("long", HALF, MARKET),
        40: ("long", WHOLE, MARKET),
    }
    found = chosen(tape, steps)
    assert found.bar == 40
    assert found.action[0] == DECISIONS.index("long")
    assert found.exposure == pytest.approx(1.0, abs=0.01)
    assert found.chosen_as == LARGEST_TRADE
    # what moved the exposure most was the stop, in the bar after this one, at which the policy held
    stopped = [chosen(tape, steps, bar=bar) for bar in (CRASH - 1, CRASH)]
    assert stopped[0].exposure == pytest.approx(2.0, abs=0.02)
    assert stopped[1].exposure == pytest.approx(0.0, abs=1e-6)
    assert stopped[0].chosen_as == CHOSEN_TIME


def test_of_a_small_sale_into_a_stop_only_what_was_asked_counts(tape: Tape) -> None:
    # the last order asks to sell one; its bar sells a little more than the two that the first one bought
    assert chosen(tape, {20: ("long", WHOLE, MARKET), CRASH - 1: ("long", HALF, MARKET)}).bar == 20


def test_an_order_that_did_not_fill_is_no_trade(tape: Tape) -> None:
    steps = {20: ("long", QUARTER, MARKET), 30: ("long", WHOLE, LIMIT)}
    assert chosen(tape, steps).bar == 20


def test_where_nothing_was_asked_for_the_largest_change_is_explained_and_says_so(tape: Tape) -> None:
    found = chosen(tape, {}, EnvConfig(**{**vars(CONFIG), "initial_exposure": 1.0}))
    assert found.bar == CRASH - 1
    assert found.action[0] == DECISIONS.index("hold")
    assert found.chosen_as == NOTHING_ASKED
