"""What an answer says of a request: done, not done, or nobody knows."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from perpgym.envs.exchange.connect import point_at
from perpgym.envs.live.binance import Binance, BinanceConfig
from perpgym.envs.live.binance_wire import HttpFailure, judge
from perpgym.envs.live.broker import AccessDenied, Banned, Rejected, Throttled, Unknown, Unreachable

HTML = "<html><body>502</body></html>"
# status, code, text; what it says of an order; what it says of a read
ANSWERS: list[tuple[int, int, str, Any, Any]] = [
    (400, -2019, "Margin is insufficient.", Rejected, Rejected),
    (400, -2013, "Order does not exist.", Rejected, Rejected),
    (400, -1021, "Timestamp for this request is outside of the recvWindow.", Rejected, Rejected),
    (400, -4400, "only reduceOnly order is allowed", Rejected, Rejected),
    (400, -1006, "An unexpected response was received.", Unknown, Unreachable),
    (408, -1007, "Timeout waiting for response.", Unknown, Unreachable),
    (503, -1000, "Unknown error, please check your request.", Unknown, Unreachable),
    (503, 0, "Unknown error, please check your request or try again later.", Unknown, Unreachable),
    (503, 0, "Service Unavailable.", Rejected, Unreachable),
    (503, -1001, "Internal error; unable to process your request. Please try again.", Rejected, Rejected),
    (503, -1008, "Server is currently overloaded", Rejected, Rejected),
    (502, 0, HTML, Unknown, Unreachable),
    (504, 0, HTML, Unknown, Unreachable),
    (403, 0, HTML, Unknown, Unreachable),
    (429, -1003, "Too many requests.", Throttled, Throttled),
    (418, -1003, "Way too many requests.", Banned, Banned),
    (401, -2015, "Invalid API-key", AccessDenied, AccessDenied),
    (400, -1022, "Signature for this request is not valid.", AccessDenied, AccessDenied),
]


@pytest.mark.parametrize(("status", "code", "text", "of_order", "of_read"), ANSWERS)
def test_an_answer_is_judged_by_status_and_code(
    status: int, code: int, text: str, of_order: Any, of_read: Any
) -> None:
    failure = HttpFailure(status, code, text, None)
    assert type(judge(failure, 0, is_write=True)) is of_order
    assert type(judge(failure, 0, is_write=False)) is of_read


def test_the_exchange_says_how_long_to_be_quiet() -> None:
    error = judge(HttpFailure(429, -1003, "", 30.0), 1_000, is_write=True)
    assert isinstance(error, Throttled)
    assert error.until_ms == 31_000


def test_a_wide_window_for_late_orders_is_refused() -> None:
    with pytest.raises(ValueError, match="receive_window_ms must lie between 1 and 10000, was 60000"):
        BinanceConfig(contracts=("BTC/USDT:USDT",), receive_window_ms=60_000)
    with pytest.raises(ValueError, match="must name at least one contract"):
        BinanceConfig(contracts=())
    assert "hush" not in repr(BinanceConfig(contracts=("X",), api_key="hush", secret="hush"))


def test_one_account_has_one_id_that_does_not_show_the_key() -> None:
    def name(url: str | None = None, **more: Any) -> str:
        config = BinanceConfig(**({"contracts": ("BTC/USDT:USDT",), "api_key": "abc"} | more))
        return Binance(config, point=None if url is None else partial(point_at, url=url)).account_id

    assert name() == name(bar="1d")
    assert name() != name(api_key="abd")
    assert "abc" not in name()
    # two local exchanges know the same key, and are two accounts
    assert len({name(), name("http://127.0.0.1:8787"), name("http://127.0.0.1:8788")}) == 3
