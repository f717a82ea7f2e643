"""Trailing stops: where their trigger stands, when they act, and what of them is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ccxt
import pytest

from perpgym.envs.exchange.engine import AlgoRequest, Engine, OrderRequest
from perpgym.envs.exchange.errors import Rejected

On = Callable[..., Engine]
SYMBOL = "TEST/USDT:USDT"


def buy(engine: Engine, quantity: float) -> None:
    engine.place(OrderRequest(asset=0, side="BUY", kind="MARKET", quantity=quantity, client_id="in"))


def trailing(side: Any, callback_rate: float, **more: Any) -> AlgoRequest:
    fields = {"quantity": 1.0, "reduce_only": True, "client_id": "trail"} | more
    return AlgoRequest(asset=0, side=side, kind="TRAILING_STOP_MARKET", callback_rate=callback_rate, **fields)


def step(engine: Engine, bars: int = 1) -> None:
    for _bar in range(bars):
        engine.advance(engine.next_ms)


def trades(engine: Engine) -> list[tuple[str, float, float]]:
    return [(t.side, t.quantity, t.price) for t in engine.registry.trades]


def test_the_trigger_follows_the_high_and_never_falls(engine_on: On) -> None:
    engine = engine_on((100, 100, 100, 100), (100, 110, 100, 109.5), (109.5, 109.5, 109, 109), (109,) * 4)
    buy(engine, 1.0)
    algo = engine.place_algo(trailing("SELL", 0.01))
    assert algo.trigger_price == 99.0
    step(engine)
    assert algo.trigger_price == 99.0
    step(engine)
    # 1 % below 110
    assert algo.trigger_price == 108.9
    step(engine)
    assert (algo.trigger_price, algo.status) == (108.9, "NEW")
    assert len(trades(engine)) == 1


def test_it_sells_at_its_trigger(engine_on: On) -> None:
    engine = engine_on((100, 110, 100, 110), (110, 110, 107, 108), (108,) * 4)
    buy(engine, 1.0)
    algo = engine.place_algo(trailing("SELL", 0.01))
    step(engine, 2)
    assert trades(engine)[1:] == [("SELL", 1.0, 108.9)]
    assert (algo.status, engine.books.position(0)) == ("FINISHED", 0.0)
    child = engine.registry.orders[algo.child_id]
    assert (child.original_kind, child.kind, child.reduce_only) == ("TRAILING_STOP_MARKET", "MARKET", True)


def test_a_bar_that_opens_beyond_the_trigger_sells_at_the_open(engine_on: On) -> None:
    engine = engine_on((100, 110, 100, 110), (105, 106, 104, 105), (105,) * 4)
    buy(engine, 1.0)
    engine.place_algo(trailing("SELL", 0.01))
    step(engine, 2)
    assert trades(engine)[1:] == [("SELL", 1.0, 105.0)]


def test_the_adverse_extreme_comes_before_the_high(engine_on: On) -> None:
    # had the high come first, the stop would have sold at 108.9
    engine = engine_on((100, 110, 98, 110), (110,) * 4)
    buy(engine, 1.0)
    engine.place_algo(trailing("SELL", 0.01))
    step(engine)
    assert trades(engine)[1:] == [("SELL", 1.0, 99.0)]


def test_the_way_from_the_high_to_the_close_passes_the_new_trigger(engine_on: On) -> None:
    engine = engine_on((100, 110, 100, 105), (105,) * 4)
    buy(engine, 1.0)
    algo = engine.place_algo(trailing("SELL", 0.01))
    step(engine)
    # not at the open of 100, which lies below a trigger that was not there then
    assert trades(engine)[1:] == [("SELL", 1.0, 108.9)]
    assert algo.status == "FINISHED"


def test_a_low_that_may_have_come_first_does_not_trigger(engine_on: On) -> None:
    engine = engine_on((108, 110, 107.5, 109.5), (109.5,) * 4)
    buy(engine, 1.0)
    algo = engine.place_algo(trailing("SELL", 0.01))
    step(engine)
    assert (algo.status, algo.trigger_price) == ("NEW", 108.9)


def test_it_waits_for_its_activation(engine_on: On) -> None:
    engine = engine_on((100, 100, 90, 95), (95, 104, 95, 104), (104, 105, 104, 105), (105, 105, 100, 100))
    buy(engine, 1.0)
    algo = engine.place_algo(trailing("SELL", 0.01, activate_price=105.0))
    step(engine)
    # below 1 % under the best price, but never active
    assert (algo.is_armed, len(trades(engine))) == (False, 1)
    step(engine)
    assert not algo.is_armed
    step(engine)
    assert algo.trigger_price == 103.9
    step(engine)
    assert trades(engine)[1:] == [("SELL", 1.0, 103.9)]


def test_an_entry_follows_the_low_and_buys_above_it(engine_on: On) -> None:
    engine = engine_on((100, 100, 90, 90), (90, 90.5, 89, 89.5), (89.5, 91, 89.5, 91), (91,) * 4)
    algo = engine.place_algo(trailing("BUY", 0.02, reduce_only=False))
    assert algo.trigger_price == 102.0
    step(engine)
    assert algo.trigger_price == 91.8
    step(engine)
    # 89 * 1.02 = 90.78: the first price on the grid at or above it
    assert algo.trigger_price == 90.8
    step(engine)
    assert trades(engine) == [("BUY", 1.0, 90.8)]


def test_one_for_a_part_leaves_the_rest(engine_on: On) -> None:
    engine = engine_on((100, 100, 98, 98.5), (98.5,) * 4)
    buy(engine, 1.0)
    engine.place_algo(trailing("SELL", 0.01, quantity=0.4))
    step(engine)
    assert trades(engine)[1:] == [("SELL", 0.4, 99.0)]
    assert engine.books.position(0) == 0.6


@pytest.mark.parametrize(("side", "activate_price"), [("SELL", 99.0), ("SELL", 100.0), ("BUY", 101.0)])
def test_an_activation_that_the_price_has_passed_is_refused(
    engine_on: On, side: Any, activate_price: float
) -> None:
    engine = engine_on((100, 100, 100, 100), (100,) * 4)
    with pytest.raises(Rejected, match="-2021"):
        engine.place_algo(trailing(side, 0.01, reduce_only=False, activate_price=activate_price))
    assert engine.registry.open_algos() == []


def test_unmodified_ccxt_trails(local: Callable[..., Any]) -> None:
    here = local(wick=0.01)
    client, market = here.client, here.venue.market
    last = market.last_price(0)
    client.create_order(SYMBOL, "market", "buy", 0.05)
    order = client.create_trailing_percent_order(
        SYMBOL, "market", "sell", 0.05, None, 0.5, round(1.001 * last, 1), {"reduceOnly": True}
    )
    assert order["info"]["orderType"] == "TRAILING_STOP_MARKET"
    assert (order["info"]["callbackRate"], float(order["info"]["activatePrice"])) == (
        "0.5", round(1.001 * last, 1),
    )  # fmt: skip
    while client.fetch_positions([SYMBOL]):
        here.next_bar()
    sold = client.fetch_my_trades(SYMBOL)[-1]
    (algo,) = here.venue.books.registry.algos.values()
    assert algo.best_price >= round(1.001 * last, 1)
    # a bar may open beyond the trigger, and half a spread is paid
    assert sold["price"] <= algo.best_price * 0.995
    assert (sold["side"], sold["amount"]) == ("sell", 0.05)


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"callbackRate": "0.05"}, -2007),
        ({"callbackRate": "10.1"}, -2007),
        ({}, -1102),
        ({"callbackRate": "1", "closePosition": "true"}, -4136),
        ({"callbackRate": "1", "activatePrice": "1"}, -2021),
        ({"callbackRate": "1", "activatePrice": "31000.05"}, -1111),
    ],
)
def test_what_is_no_trailing_stop_is_refused(
    local: Callable[..., Any], params: dict[str, str], code: int
) -> None:
    client = local().client
    request = {"symbol": "TESTUSDT", "side": "SELL", "algoType": "CONDITIONAL", "quantity": "0.05"}
    with pytest.raises(ccxt.BaseError, match=str(code)):
        client.fapiPrivatePostAlgoOrder({**request, "type": "TRAILING_STOP_MARKET", **params})
    with pytest.raises(ccxt.BaseError, match="-4120"):
        client.fapiPrivatePostOrder(
            {"symbol": "TESTUSDT", "side": "SELL", "type": "TRAILING_STOP_MARKET", "quantity": "0.05"}
        )
