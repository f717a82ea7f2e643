"""Whatever is asked, the exchange answers or refuses in its own words, and never breaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from perpgym.envs.exchange.api import ENDPOINTS, Params
from perpgym.envs.exchange.errors import CODES, Rejected
from perpgym.envs.exchange.server import ROOMS
from perpgym.envs.exchange.venue import Venue

VALUES = {
    "symbol": ["TESTUSDT", "testusdt", "NONE", ""],
    "pair": ["TESTUSDT", "NONE"],
    "interval": ["1h", "4h", "1m", "1w", "nonsense"],
    "side": ["BUY", "SELL", "HOLD"],
    "type": ["MARKET", "LIMIT", "STOP", "STOP_MARKET", "TRAILING_STOP_MARKET", "TAKE_PROFIT_MARKET", "NONE"],
    "callbackRate": ["1", "0.1", "0", "11", "x"],
    "activatePrice": ["33000", "29000", "0", "nan"],
    "timeInForce": ["GTC", "IOC", "FOK", "GTX", "GTD"],
    "quantity": ["0.05", "0.001", "0", "-1", "1e3", "nan", "inf", "x", "0.0005", "1e400", "99999999"],
    "price": ["29000", "31000", "0", "-5", "1e9", "1e-9", "abc", "29000.05"],
    "triggerPrice": ["29000", "33000", "0", "nan"],
    "algoType": ["CONDITIONAL", "VP"],
    "workingType": ["MARK_PRICE", "CONTRACT_PRICE", "x"],
    "closePosition": ["true", "false", "maybe"],
    "reduceOnly": ["true", "false", "1"],
    "orderId": ["1000001", "1000005", "-1", "x", "9" * 30],
    "algoId": ["1000001", "x"],
    "origClientOrderId": ["mine", "x" * 99],
    "clientAlgoId": ["mine", "a b"],
    "newClientOrderId": ["mine", "", "ä", "x" * 99],
    "limit": ["1", "5", "1000", "5000", "0", "-3", "x"],
    "startTime": ["0", "1577836800000", "1578016800000", "9999999999999", "-1", "x"],
    "endTime": ["0", "1578016800000", "9999999999999", "-1"],
    "fromId": ["0", "1000003", "x"],
    "leverage": ["1", "20", "125", "126", "0", "-1", "2.5"],
    "marginType": ["ISOLATED", "CROSSED", "x"],
    "dualSidePosition": ["true", "false", "x"],
    "multiAssetsMargin": ["true", "false"],
    "countdownTime": ["0", "1000", "-1", "x"],
    "incomeType": ["FUNDING_FEE", "x"],
    "page": ["1", "2", "0", "-1", "x"],
    "batchOrders": ["[]", "{", "[1]", '[{"symbol": "TESTUSDT"}]', "[[]]", "null"],
    "orderIdList": ["[1000001]", "[", '["x"]', "5", "[null]"],
    "origClientOrderIdList": ['["mine"]', "7"],
    "positionSide": ["BOTH", "LONG"],
}


@pytest.mark.parametrize("seed", range(4))
def test_no_request_breaks_the_exchange(make_venue: Callable[..., Venue], seed: int) -> None:
    assert ROOMS
    venue, rng = make_venue(), np.random.default_rng(seed)
    answered = refused = 0
    codes: set[int] = set()
    names = list(VALUES)
    for _request in range(6_000):
        found = list(ENDPOINTS.values())[int(rng.integers(len(ENDPOINTS)))]
        # most requests are nearly right
        asked = {
            n: VALUES[n][int(rng.exponential(1.0)) % len(VALUES[n])] for n in names if rng.random() < 0.7
        }
        params = Params(asked)
        try:
            found.weigh(params)
            answer: Any = found.handle(venue, params)
            json.dumps(answer, allow_nan=False)
            answered += 1
        except Rejected as refusal:
            codes.add(refusal.code)
            refused += 1
        if rng.random() < 0.002:
            venue.clock.move_to(venue.engine.next_ms)
            venue.pass_time()
    assert answered > 1_000
    assert refused > 1_000
    assert codes <= set(CODES)
    assert len(codes) > 15
    income = sum(row.amount for row in venue.books.registry.incomes)
    assert 10_000.0 + income == pytest.approx(venue.books.wallet, abs=1e-8)
