"""Reports of an order, however they come, become one state that never goes back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpgym.envs.live.broker import Order, OrderState
from perpgym.envs.live.order_table import OrderTable, merged

SENT = Order(client_id="pg1", contract="TEST/USDT:USDT", quantity=0.3, state=OrderState.SENT)
# what an exchange says of one order, in the order in which it happens
STORY = [
    replace(SENT, state=OrderState.OPEN, exchange_id="7"),
    replace(SENT, state=OrderState.PARTIAL, exchange_id="7", filled=0.1, average=100.0),
    replace(SENT, state=OrderState.PARTIAL, exchange_id="7", filled=0.2, average=101.0),
    replace(SENT, state=OrderState.CANCELLED, exchange_id="7", filled=0.2, average=101.0),
]


@given(st.permutations(STORY), st.lists(st.sampled_from(STORY), max_size=4))
def test_any_order_of_reports_ends_in_the_same_state(reports: list[Order], again: list[Order]) -> None:
    known, filled, was_final = SENT, 0.0, False
    for report in [*reports, *again]:
        known = merged(known, report)
        assert known.filled >= filled
        assert known.state.is_final or not was_final
        filled, was_final = known.filled, known.state.is_final
    assert known == STORY[-1]


@pytest.mark.parametrize("concluded", [OrderState.ABSENT, OrderState.REJECTED])
def test_the_exchange_overrules_what_was_concluded(concluded: OrderState) -> None:
    assert merged(replace(SENT, state=concluded), STORY[1]).state is OrderState.PARTIAL
    assert merged(STORY[3], replace(SENT, state=concluded)).state is OrderState.CANCELLED


def test_an_order_that_is_being_cancelled_stays_reserved() -> None:
    waiting = merged(replace(STORY[1], state=OrderState.PENDING_CANCEL), STORY[2])
    assert waiting.state is OrderState.PENDING_CANCEL
    table = OrderTable([waiting, replace(SENT, client_id="pg2", quantity=-0.5, state=OrderState.UNKNOWN)])
    assert table.reserved(SENT.contract) == (pytest.approx(0.1), -0.5)
    table.put(STORY[3])
    assert table.reserved(SENT.contract) == (0.0, -0.5)


def test_an_exit_reserves_nothing() -> None:
    table = OrderTable([replace(SENT, reduce_only=True)])
    assert table.reserved(SENT.contract) == (0, 0)
