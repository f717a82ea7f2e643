"""Who may pass: signatures, clocks, filters, weights and bans, with the exchange's own codes."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any

import ccxt
import pytest
import requests

SYMBOL = "TEST/USDT:USDT"
Start = Callable[..., Any]


def signed(here: Any, query: str, secret: str = "secret") -> str:
    signature = hmac.new(secret.encode(), query.encode(), hashlib.sha256).hexdigest()
    return f"{here.url}/fapi/v3/balance?{query}&signature={signature}"


def ask(url: str, key: str | None = "key") -> tuple[int, int]:
    """(HTTP status, code; 0 for none)."""
    answer = requests.get(url, headers={} if key is None else {"X-MBX-APIKEY": key}, timeout=5)
    body = answer.json()
    return answer.status_code, body["code"] if isinstance(body, dict) else 0


def test_a_signature_covers_exactly_what_was_sent(local: Start) -> None:
    here = local()
    stamp = f"timestamp={here.venue.now_ms}"
    assert ask(signed(here, stamp)) == (200, 0)
    assert ask(signed(here, stamp, secret="other")) == (400, -1022)
    assert ask(signed(here, stamp) + "&recvWindow=1000") == (400, -1022)
    assert ask(f"{here.url}/fapi/v3/balance?{stamp}") == (400, -1102)
    assert ask(signed(here, "recvWindow=5000")) == (400, -1102)


def test_a_key_must_be_known(local: Start) -> None:
    here = local()
    url = signed(here, f"timestamp={here.venue.now_ms}")
    assert ask(url, None) == (401, -2014)
    assert ask(url, "stranger") == (401, -2015)
    here.venue.keys.is_revoked = True
    assert ask(url) == (401, -2015)


@pytest.mark.parametrize(("ahead_ms", "expected"), [(0, 0), (1_000, 0), (1_001, -1021), (-5_001, -1021)])
def test_a_request_must_be_of_the_moment(local: Start, ahead_ms: int, expected: int) -> None:
    here = local()
    assert ask(signed(here, f"timestamp={here.venue.now_ms + ahead_ms}"))[1] == expected


def test_on_a_virtual_clock_the_walls_time_is_taken_unless_the_exchange_is_strict(local: Start) -> None:
    here = local(strict=False)
    wall = here.venue.wall_ms()
    here.venue.wall_ms = lambda: wall
    assert ask(signed(here, f"timestamp={wall}")) == (200, 0)
    here.venue.keys.is_strict = True
    assert ask(signed(here, f"timestamp={wall}")) == (400, -1021)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"quantity": "0"}, -4003),
        ({"quantity": "0.0015"}, -1111),
        ({"quantity": "0.05", "price": "29000.05"}, -1111),
        ({"quantity": "0.001"}, -4164),
        ({"quantity": "0.05", "price": "90000"}, -4016),
        ({"quantity": "0.05", "price": "31500", "timeInForce": "GTX"}, -5022),
        ({"quantity": "0.05", "reduceOnly": "true"}, -2022),
        ({"quantity": "100"}, -2019),
        ({"quantity": "0.05", "type": "STOP_MARKET"}, -4120),
        ({"quantity": "0.05", "type": "TWAP"}, -1116),
        ({"quantity": "0.05", "side": "HOLD"}, -1117),
        ({"quantity": "0.05", "timeInForce": "GTD"}, -1115),
        ({"quantity": "0.05", "symbol": "NONEUSDT"}, -1121),
        ({"quantity": "0.05", "positionSide": "LONG"}, -4061),
        ({"quantity": ""}, -1102),
        ({"quantity": "0.05", "newClientOrderId": "x" * 37}, -4015),
    ],
)
def test_a_bad_order_gets_the_exchanges_code_and_changes_nothing(
    local: Start, request_: dict[str, str], code: int
) -> None:
    here = local()
    plain = {"symbol": "TESTUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "price": "29000"}
    with pytest.raises(ccxt.BaseError, match=str(code)):
        here.client.fapiPrivatePostOrder({**plain, **request_})
    assert here.venue.books.registry.orders == {}
    assert here.venue.books.wallet == 10_000.0


def test_futures_error_classes_are_those_of_the_real_exchange(local: Start) -> None:
    here = local()
    with pytest.raises(ccxt.InsufficientFunds):
        here.client.create_order(SYMBOL, "market", "buy", 100.0)
    with pytest.raises(ccxt.OrderNotFillable):
        here.client.create_order(SYMBOL, "limit", "buy", 0.05, 31_500.0, {"postOnly": True})
    here.client.create_order(SYMBOL, "limit", "buy", 0.05, 29_000.0, {"clientOrderId": "one"})
    with pytest.raises(ccxt.InvalidOrder, match="-4116"):
        here.client.create_order(SYMBOL, "limit", "buy", 0.05, 29_000.0, {"clientOrderId": "one"})


def test_a_position_beyond_its_brackets_is_refused(local: Start) -> None:
    here = local(config={"initial_wallet": 1e7})
    here.client.set_leverage(125, SYMBOL)
    with pytest.raises(ccxt.OperationRejected, match="-2027"):
        here.client.create_order(SYMBOL, "market", "buy", 2.0)
    here.client.create_order(SYMBOL, "market", "buy", 1.0)
    with pytest.raises(ccxt.BadRequest, match="-4028"):
        here.client.fapiPrivatePostLeverage({"symbol": "TESTUSDT", "leverage": 126})


def test_resting_orders_tie_up_margin(local: Start) -> None:
    here = local(config={"leverage": 10.0})
    here.client.create_order(SYMBOL, "limit", "buy", 2.0, 29_000.0)
    free = here.client.fetch_balance()["USDT"]["free"]
    assert free == pytest.approx(10_000.0 - 2.0 * 29_000.0 / 10.0)
    with pytest.raises(ccxt.InsufficientFunds):
        here.client.create_order(SYMBOL, "limit", "buy", 2.0, 29_000.0)
    with pytest.raises(ccxt.InsufficientFunds):
        here.client.create_order(SYMBOL, "market", "buy", 2.0)
    # an order of the other side stands on the same margin
    here.client.create_order(SYMBOL, "limit", "sell", 1.8, 32_000.0)
    assert here.client.fetch_balance()["USDT"]["free"] == pytest.approx(free)


def test_every_answer_says_what_weight_is_used(local: Start) -> None:
    here = local()
    here.client.fetch_order_book(SYMBOL, 1000)
    before = int(here.client.last_response_headers["X-MBX-USED-WEIGHT-1M"])
    here.client.fetch_order_book(SYMBOL, 1000)
    assert int(here.client.last_response_headers["X-MBX-USED-WEIGHT-1M"]) == before + 20


def test_too_much_weight_is_refused_then_banned_for_longer_each_time(local: Start) -> None:
    here = local(limits=True)
    here.venue.limits._minute, here.venue.limits.weight = here.venue.now_ms // 60_000, 2_400
    ping = f"{here.url}/fapi/v1/ping"
    answer = requests.get(ping, timeout=5)
    assert (answer.status_code, answer.json()["code"]) == (429, -1003)
    assert answer.headers["Retry-After"] == "60"
    for _call in range(10):
        status = requests.get(ping, timeout=5).status_code
    assert status == 418
    until = here.venue.limits.banned_until_ms
    assert until == here.venue.now_ms + 120_000
    assert "banned until" in requests.get(ping, timeout=5).json()["msg"]
    assert here.venue.limits.calls_while_banned == 1
    here.venue.clock.move_to(until - 1)
    assert requests.get(ping, timeout=5).status_code == 418
    here.venue.clock.move_to(until)
    assert requests.get(ping, timeout=5).status_code == 200


def test_an_unknown_path_is_no_json(local: Start) -> None:
    here = local()
    answer = requests.get(f"{here.url}/fapi/v1/nothing", timeout=5)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"].startswith("text/html")
