"""What an answer of Bybit says of a request, and when nothing may be asked."""

from __future__ import annotations

import asyncio

import pytest
from bybit_server import (
    SECRET,
    SYMBOL,
    be_silent,
    broker_on,
    cut,
    page_of,
    refuse,
    say_only,
    serving,
    trading,
)

from perpgym.envs.live.broker import (
    AccessDenied,
    Banned,
    BrokerError,
    Order,
    Rejected,
    Throttled,
    Unknown,
    Unreachable,
)
from perpgym.envs.live.bybit_wire import judge
from perpgym.envs.live.wire import HttpFailure

NOW_MS = 1_700_000_000_000
ORDER = Order(client_id="pg1-1", contract=SYMBOL, quantity=0.01)
CREATE, TICKERS = "/v5/order/create", "/v5/market/tickers"


def verdict(code: int, *, status: int = 200, is_write: bool = True) -> BrokerError:
    return judge(HttpFailure(status, code, "text", None), NOW_MS, is_write=is_write)


@pytest.mark.parametrize(
    "code", [10001, 10002, 110001, 110003, 110007, 110012, 110017, 110023, 110043, 110072]
)
def test_a_numbered_refusal_means_that_nothing_was_done(code: int) -> None:
    found = verdict(code)
    assert type(found) is Rejected
    assert found.code == code


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (110092, "would_trigger"), (110093, "would_trigger"), (110017, "nothing_to_reduce"),
        (110023, "only_exits"), (10001, "filter"), (110094, "filter"), (110016, "bracket"), (110007, "other"),
    ],
)  # fmt: skip
def test_a_refusal_says_why_in_words_that_every_exchange_shares(code: int, reason: str) -> None:
    found = verdict(code)
    assert isinstance(found, Rejected)
    assert found.reason == reason


@pytest.mark.parametrize("code", [10000, 10014, 10016, 10019, 3400214])
def test_a_server_error_leaves_the_outcome_of_a_write_unknown(code: int) -> None:
    assert type(verdict(code)) is Unknown
    assert type(verdict(code, is_write=False)) is Unreachable


@pytest.mark.parametrize("code", [10003, 10004, 10005, 10007, 10010, 10024, 10027, 10028, 33004])
def test_a_wrong_key_or_right_is_no_access(code: int) -> None:
    assert type(verdict(code)) is AccessDenied


@pytest.mark.parametrize("code", [429, 10006, 10018, 10429])
def test_too_many_requests_are_throttled_and_nothing_was_done(code: int) -> None:
    assert type(verdict(code)) is Throttled


@pytest.mark.parametrize(
    ("status", "expected"), [(429, Throttled), (403, Banned), (401, AccessDenied), (404, Rejected)]
)
def test_a_status_without_a_code_speaks_for_itself(status: int, expected: type[BrokerError]) -> None:
    assert type(verdict(0, status=status)) is expected


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_gateway_that_fails_leaves_the_outcome_of_a_write_unknown(status: int) -> None:
    assert type(verdict(0, status=status)) is Unknown
    assert type(verdict(0, status=status, is_write=False)) is Unreachable


def test_a_limit_is_over_when_the_exchange_says_so_and_a_reset_in_the_past_is_not_believed() -> None:
    def until(reset_ms: int | None) -> int:
        found = judge(HttpFailure(200, 10006, "", None, reset_ms), NOW_MS, is_write=False)
        assert isinstance(found, Throttled)
        return found.until_ms

    assert until(NOW_MS + 740) == NOW_MS + 740
    assert until(NOW_MS - 5) > NOW_MS
    assert until(None) > NOW_MS


def test_an_address_over_its_limit_is_quiet_for_ten_minutes() -> None:
    found = verdict(0, status=403)
    assert isinstance(found, Banned)
    assert found.until_ms == NOW_MS + 600_000


def test_a_wrong_signature_is_reported_without_the_key_in_it() -> None:
    async def play() -> None:
        async with trading() as (_server, broker):
            broker.wire.exchange.secret = "another"
            with pytest.raises(AccessDenied) as told:
                await broker.submit(ORDER)
            # the exchange's own text repeats what was signed
            assert "local-key" not in str(told.value)
            assert SECRET not in str(told.value)

    asyncio.run(play())


@pytest.mark.parametrize(
    "broken",
    [
        cut,
        be_silent(2.0),
        page_of(502),
        say_only(""),
        say_only('{"retCode":0,"retM'),
        say_only("{}"),
        say_only('{"retCode":0,"result":[]}'),
    ],
)
def test_an_order_that_was_carried_out_but_not_answered_is_unknown_and_is_not_sent_again(
    broken: object,
) -> None:
    async def play() -> None:
        async with trading() as (server, broker):
            server.after[CREATE] = [broken]
            with pytest.raises(Unknown):
                await broker.submit(ORDER)
            assert len(server.asked(CREATE)) == 1

    asyncio.run(play())


@pytest.mark.parametrize(
    "broken", [cut, page_of(503), say_only('{"retCode":0,"result":{}}'), say_only("no json")]
)
def test_a_read_that_was_not_answered_is_unreachable(broken: object) -> None:
    async def play() -> None:
        async with trading() as (server, broker):
            # a lost connection is tried again once below ccxt, as reads may be
            server.failures[TICKERS] = [broken, broken]
            with pytest.raises(Unreachable):
                await broker.mark_prices()

    asyncio.run(play())


def test_an_error_holds_no_part_of_the_signed_request() -> None:
    async def play() -> None:
        async with trading() as (server, broker):
            server.failures["/v5/order/realtime"] = [cut, cut]
            with pytest.raises(Unreachable) as told:
                await broker.find("pg1-1", SYMBOL)
            assert "pg1-1" not in str(told.value)

    asyncio.run(play())


def test_a_clock_that_went_wrong_is_set_and_the_order_goes_out_once() -> None:
    async def play() -> None:
        async with trading() as (server, broker):
            server.skew_ms += 20_000
            assert abs(broker.now_ms() - server.now_ms()) > 15_000
            await broker.submit(ORDER)
            assert abs(broker.now_ms() - server.now_ms()) < 1_000
            # the first was refused before it was read
            assert len(server.asked(CREATE)) == 1

    asyncio.run(play())


def test_a_clock_error_that_stays_is_a_refusal() -> None:
    async def play() -> None:
        async with trading() as (server, broker):
            server.failures[CREATE] = [refuse(10002), refuse(10002)]
            with pytest.raises(Rejected) as told:
                await broker.submit(ORDER)
            assert told.value.code == 10002
            assert server.asked(CREATE) == []

    asyncio.run(play())


def test_one_endpoints_limit_keeps_that_endpoint_quiet_and_lets_an_exit_through() -> None:
    async def play() -> None:
        async with trading() as (server, broker):
            reset_ms = server.now_ms() + 60_000
            server.failures[TICKERS] = [
                refuse(10006, "Too many visits!", X_Bapi_Limit_Reset_Timestamp=str(reset_ms))
            ]
            for _attempt in range(2):
                with pytest.raises(Throttled) as told:
                    await broker.mark_prices()
                assert told.value.until_ms == reset_ms
            # the second question was not asked
            assert server.failures[TICKERS] == []
            assert server.asked(TICKERS) == []
            await broker.cancel(ORDER)
            assert len(server.asked("/v5/order/cancel")) == 1

    asyncio.run(play())


def test_a_banned_address_asks_nothing_at_all() -> None:
    async def play() -> None:
        async with trading() as (server, broker):
            server.failures[TICKERS] = [page_of(403, "access too frequent")]
            with pytest.raises(Banned):
                await broker.mark_prices()
            before = len(server.requests)
            with pytest.raises(Banned):
                await broker.cancel(ORDER)
            assert len(server.requests) == before

    asyncio.run(play())


def test_reads_leave_a_part_of_the_addresss_requests_to_exits() -> None:
    async def play() -> None:
        async with serving() as server:
            # a clock that stands: every request falls into one window
            broker = broker_on(server)
            broker.wire._local_ms = lambda: NOW_MS
            try:
                await broker.open()
                for _request in range(400):
                    await broker.status(SYMBOL)
                broker.wire._sent_ms.extend([NOW_MS] * 80)
                with pytest.raises(Throttled):
                    await broker.status(SYMBOL)
                await broker.cancel(ORDER)
            finally:
                await broker.close()

    asyncio.run(play())
