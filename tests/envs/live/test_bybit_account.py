"""The account at Bybit: rules, settings, wallet, positions, trades and every change of the wallet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import bybit_messages as say
import pytest
from bybit_server import SYMBOL, LocalBybit, broker_on, refuse, serving, trading

from perpgym.envs.live.bookkeeping import FORCED_PREFIXES
from perpgym.envs.live.broker import AccessDenied, Fill, Rejected, Settings, Unreachable
from perpgym.envs.live.bybit import Bybit, BybitConfig
from perpgym.envs.live.bybit_payloads import read_transaction

DAY_MS = 24 * say.HOUR_MS
EXECUTIONS, LOG, POSITIONS = "/v5/execution/list", "/v5/account/transaction-log", "/v5/position/list"
SETTINGS = Settings(leverage={SYMBOL: 10})
Step = Callable[[LocalBybit, Bybit], Awaitable[None]]


def play(step: Step, **settings: Any) -> None:
    async def run() -> None:
        async with trading(**settings) as (server, broker):
            await step(server, broker)

    asyncio.run(run())


# --- rules ---


def test_a_contracts_rules_are_the_exchanges() -> None:
    async def step(_server: LocalBybit, broker: Bybit) -> None:
        contract = (await broker.contracts())[SYMBOL]
        assert (contract.tick_size, contract.lot_size, contract.min_notional) == (0.1, 0.001, 5.0)
        # the smaller of what a limit and a market order may be
        assert contract.max_quantity == 119.0
        assert (contract.maker_rate, contract.taker_rate) == (0.0002, 0.00055)
        assert contract.funding_interval_ms == 8 * say.HOUR_MS
        assert contract.funding_cap == 0.00375

    play(step)


def test_risk_limits_become_brackets_whose_margin_does_not_jump() -> None:
    async def step(_server: LocalBybit, broker: Bybit) -> None:
        brackets = (await broker.contracts())[SYMBOL].brackets
        assert [b.floor for b in brackets] == [0.0, 2_000_000.0, 2_600_000.0]
        assert [b.cap for b in brackets] == [2_000_000.0, 2_600_000.0, float("inf")]
        # 1200 = 2,000,000 * 0.0006; 2760 = 2,600,000 * 0.0006 + 1200
        assert [b.cum for b in brackets] == [0.0, 1_200.0, 2_760.0]
        assert [b.max_leverage for b in brackets] == [100.0, 90.0, 80.0]

    play(step)


def test_without_a_deduction_the_cum_is_computed() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.rows["/v5/market/risk-limit"] = [row | {"mmDeduction": ""} for row in say.TIERS]
        brackets = (await broker.contracts())[SYMBOL].brackets
        assert [b.cum for b in brackets] == pytest.approx([0.0, 1_200.0, 2_760.0])

    play(step)


def test_a_contract_that_is_not_listed_is_refused_by_name() -> None:
    async def run() -> None:
        async with serving() as server:
            broker = broker_on(server, contracts=("NO/USDT:USDT",))
            try:
                with pytest.raises(Rejected, match="NO/USDT:USDT is not traded here"):
                    await broker.open()
            finally:
                await broker.close()

    asyncio.run(run())


def test_a_contract_that_is_listed_no_more_keeps_its_name_and_rules() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        before = await broker.contracts()
        server.rows["/v5/market/instruments-info"] = [say.instrument("ETHUSDT", "ETH")]
        assert await broker.contracts() == before
        assert await broker.status(SYMBOL) == "halted"

    play(step)


def test_a_classic_account_is_refused() -> None:
    async def run() -> None:
        async with serving() as server:
            server.results["/v5/account/info"] = say.account_info(status=1)
            broker = broker_on(server)
            try:
                with pytest.raises(AccessDenied, match="unified"):
                    await broker.open()
            finally:
                await broker.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"contracts": ()}, "contracts"),
        ({"contracts": ("BTC/USD:BTC",)}, "settled in USDT"),
        ({"venue": "paper"}, "venue"),
        ({"receive_window_ms": 60_000}, "receive_window_ms"),
        ({"ping_s": 60.0}, "ping_s"),
    ],
)
def test_an_impossible_setting_is_named(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        BybitConfig(**({"contracts": (SYMBOL,)} | wrong))


def test_a_configuration_does_not_show_its_keys() -> None:
    assert "hush" not in repr(BybitConfig(contracts=(SYMBOL,), api_key="hush", secret="hush"))


# --- settings ---


def test_settings_that_are_right_already_are_left_alone() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        await broker.set_up(SETTINGS)
        assert [path for method, path, _params in server.requests if method == "POST"] == []

    play(step)


def test_leverage_and_margin_mode_are_set_and_read_back() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.rows[POSITIONS] = [say.position("0", "", leverage="25")]

        async def set_leverage(request: Any) -> Any:
            server.rows[POSITIONS] = [say.position("0", "", leverage="10")]
            return refuse(0)(request)

        async def set_mode(request: Any) -> Any:
            server.results["/v5/account/info"] = say.account_info("ISOLATED_MARGIN")
            return refuse(0)(request)

        server.after["/v5/position/set-leverage"] = [set_leverage]
        server.after["/v5/account/set-margin-mode"] = [set_mode]
        wanted = Settings(leverage={SYMBOL: 10}, margin_mode="isolated")
        await broker.set_up(wanted)
        assert await broker.settings() == wanted
        asked = server.asked("/v5/position/set-leverage")[0]
        assert (asked["buyLeverage"], asked["sellLeverage"]) == ("10", "10")

    play(step)


def test_settings_that_read_back_otherwise_are_refused() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.rows[POSITIONS] = [say.position("0", "", leverage="25")]
        # "not modified" is no failure; that it stays 25 is
        server.failures["/v5/position/set-leverage"] = [refuse(110043)]
        with pytest.raises(Rejected, match="reads back"):
            await broker.set_up(SETTINGS)

    play(step)


def test_hedge_mode_is_switched_off_and_never_on() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.rows[POSITIONS] = [say.position("0", "", positionIdx=index) for index in (1, 2)]
        assert (await broker.settings()).is_hedged

        async def switch(request: Any) -> Any:
            server.rows[POSITIONS] = [say.position("0", "")]
            return refuse(0)(request)

        server.after["/v5/position/switch-mode"] = [switch]
        await broker.set_up(SETTINGS)
        assert server.asked("/v5/position/switch-mode")[0]["mode"] == 0
        with pytest.raises(Rejected, match="one-way"):
            await broker.set_up(Settings(leverage={SYMBOL: 10}, is_hedged=True))

    play(step)


@pytest.mark.parametrize("code", [110024, 110028, 110013, 3400045])
def test_settings_that_the_exchange_will_not_have_are_refused(code: int) -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.results["/v5/account/info"] = say.account_info("PORTFOLIO_MARGIN")
        server.failures["/v5/account/set-margin-mode"] = [refuse(code)]
        with pytest.raises(Rejected) as told:
            await broker.set_up(SETTINGS)
        assert told.value.code == code

    play(step)


def test_a_broken_leverage_is_not_rounded_to_the_one_that_is_wanted() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.rows[POSITIONS] = [say.position("0", "", leverage="10.5")]
        assert (await broker.settings()).leverage[SYMBOL] != 10

    play(step)


# --- wallet, positions, orders ---


def test_wallet_and_equity_are_those_of_usdt_and_not_the_accounts_in_dollars() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.results["/v5/account/wallet-balance"] = say.wallet("3322.25896609", "3304.29766609")
        truth = await broker.account()
        assert (truth.wallet, truth.equity) == (3322.25896609, 3304.29766609)

    play(step)


def test_an_account_that_never_held_usdt_has_none() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.results["/v5/account/wallet-balance"] = {"list": [{"accountType": "UNIFIED", "coin": []}]}
        truth = await broker.account()
        assert (truth.wallet, truth.equity) == (0.0, 0.0)

    play(step)


def test_positions_are_signed_and_flat_ones_left_out() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.rows[POSITIONS] = [
            say.position("0.010", "Sell", liqPrice="83000"),
            say.position("0", "", "ETHUSDT"),
        ]
        (position,) = (await broker.account()).positions.values()
        assert (position.contract, position.quantity, position.entry_price) == (SYMBOL, -0.01, 42_000.0)
        assert (position.mark_price, position.liquidation_price) == (42_100.0, 83_000.0)
        # cross margin has no wallet of its own
        assert position.isolated_wallet == 0.0

    play(step)


def test_an_isolated_position_has_its_own_margin() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.results["/v5/account/info"] = say.account_info("ISOLATED_MARGIN")
        server.rows[POSITIONS] = [say.position("0.010")]
        assert (await broker.account()).positions[SYMBOL].isolated_wallet == 42.2

    play(step)


def test_resting_orders_and_waiting_stops_are_told_apart_over_many_pages() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        resting = [say.order(f"pg1-{n}", f"id-{n}") for n in range(120)]
        server.rows["/v5/order/realtime"] = [*resting, say.waiting_stop("pg1-stop")]
        truth = await broker.account()
        assert len(truth.orders) == 120
        assert [stop.client_id for stop in truth.stops] == ["pg1-stop"]

    play(step)


def test_an_order_without_our_id_is_named_by_the_exchanges() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.rows["/v5/order/realtime"] = [say.order("", "by-hand")]
        assert (await broker.account()).orders[0].client_id == "by-hand"

    play(step)


def test_an_account_that_cannot_be_read_is_unreachable() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.results["/v5/account/wallet-balance"] = {"list": [{"coin": [{"coin": "USDT"}]}]}
        with pytest.raises(Unreachable, match="walletBalance"):
            await broker.account()

    play(step)


# --- trades and income ---


def test_trades_come_oldest_first_from_every_page_and_every_week() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        times = [server.now_ms() - (number // 30) * DAY_MS - number for number in range(420)]
        server.rows[EXECUTIONS] = [say.execution(n, "pg1-1", time_ms=at) for n, at in enumerate(times)]
        fills = await broker.fills(SYMBOL, min(times))
        assert len({fill.trade_id for fill in fills}) == len(fills) == 420
        assert [fill.time_ms for fill in fills] == sorted(times)

    play(step)


def test_trades_before_the_time_asked_for_are_left_out() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        now = server.now_ms()
        server.rows[EXECUTIONS] = [say.execution(2, time_ms=now - 10), say.execution(1, time_ms=now - 20)]
        assert [fill.time_ms for fill in await broker.fills(SYMBOL, now - 15)] == [now - 10]

    play(step)


def test_trades_of_one_millisecond_keep_the_exchanges_order() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        at = server.now_ms() - 10
        # newest first
        server.rows[EXECUTIONS] = [say.execution(number, time_ms=at) for number in (3, 1, 2)]
        fills = await broker.fills(SYMBOL, at - 10)
        assert [int(fill.trade_id[-12:]) for fill in fills] == [2, 1, 3]

    play(step)


def only_fill(row: dict[str, Any]) -> Fill:
    """What one execution is read as."""
    out: list[Fill] = []

    async def step(server: LocalBybit, broker: Bybit) -> None:
        server.rows[EXECUTIONS] = [row | {"execTime": str(server.now_ms() - 5)}]
        out.extend(await broker.fills(SYMBOL, server.now_ms() - 1_000))

    play(step)
    (fill,) = out
    return fill


def test_a_trade_has_our_id_its_sign_and_what_it_cost() -> None:
    fill = only_fill(say.execution(1, "pg1-7", side="Sell", execFee="-0.084", isMaker=True))
    assert (fill.client_id, fill.quantity, fill.price) == ("pg1-7", -0.01, 42_000.0)
    # a rebate is a negative cost, and an empty fee currency is USDT
    assert (fill.fee, fill.fee_currency, fill.is_maker) == (-0.084, "USDT", True)


@pytest.mark.parametrize("kind", ["BustTrade", "AdlTrade", "Settle", "Delivery"])
def test_what_the_exchange_forces_on_the_account_is_a_trade_with_a_name_that_says_so(kind: str) -> None:
    fill = only_fill(say.execution(1, side="Sell", execType=kind, createType=""))
    assert fill.quantity == -0.01
    assert fill.client_id is not None
    assert fill.client_id.startswith(FORCED_PREFIXES)


def test_a_trade_of_an_order_without_our_id_is_certainly_not_ours() -> None:
    assert only_fill(say.execution(1, orderId="by-hand")).client_id == "by-hand"


def test_funding_is_no_trade() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        at = server.now_ms() - 5
        server.rows[EXECUTIONS] = [say.funding_execution(2, time_ms=at), say.execution(1, time_ms=at)]
        assert [fill.fee for fill in await broker.fills(SYMBOL, at - 10)] == [0.231]

    play(step)


def test_income_comes_oldest_first_from_every_page() -> None:
    async def step(server: LocalBybit, broker: Bybit) -> None:
        now = server.now_ms()
        server.rows[LOG] = [
            say.transaction(n, "SETTLEMENT", time_ms=now - n * say.HOUR_MS, funding="-0.01", change="-0.01")
            for n in range(1, 130)
        ]
        income = await broker.income(now - 200 * say.HOUR_MS)
        assert len(income) == 129
        assert [row.time_ms for row in income] == sorted(row.time_ms for row in income)
        assert {(row.kind, row.amount, row.contract) for row in income} == {("funding", -0.01, SYMBOL)}

    play(step)


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        (
            say.transaction(1, "TRADE", cashFlow="12.5", fee="0.231", change="12.269"),
            [("pnl", 12.5), ("fee", -0.231)],
        ),
        (say.transaction(1, "TRADE", fee="-0.084", change="0.084"), [("fee", 0.084)]),
        (say.transaction(1, "SETTLEMENT", funding="-0.042", change="-0.042"), [("funding", -0.042)]),
        (
            say.transaction(1, "LIQUIDATION", cashFlow="-40", fee="0.2", change="-40.2"),
            [("pnl", -40.0), ("fee", -0.2)],
        ),
        (say.transfer(1, "250"), [("transfer", 250.0)]),
        (say.transaction(1, "INTEREST", category="", symbol="", change="-0.01"), [("other", -0.01)]),
        # bought coins: no trade of a contract, and yet USDT went
        (say.transaction(1, "TRADE", category="spot", change="-420"), [("other", -420.0)]),
    ],
)
def test_a_transaction_is_told_in_parts_that_sum_to_its_change(
    row: dict[str, Any], parts: list[tuple[str, float]]
) -> None:
    income = read_transaction(row, lambda _symbol: SYMBOL)
    assert [(part.kind, part.amount) for part in income] == parts
    assert sum(part.amount for part in income) == pytest.approx(float(row["change"]), abs=1e-12)


def test_parts_of_one_transaction_and_rows_that_share_an_id_are_told_apart() -> None:
    # the exchange's own example repeats an id in a settlement and a trade
    rows = [
        say.transaction(1, "TRADE", cashFlow="1", fee="0.1", change="0.9"),
        say.transaction(1, "SETTLEMENT", funding="0.2", change="0.2"),
    ]
    income = [part for row in rows for part in read_transaction(row, lambda _symbol: SYMBOL)]
    assert len({part.income_id for part in income}) == 3


def test_one_account_has_one_id_that_does_not_show_the_key() -> None:
    def name(**more: Any) -> str:
        return Bybit(BybitConfig(**({"contracts": (SYMBOL,), "api_key": "abc"} | more))).account_id

    assert name() == name(bar="1d")
    assert name() != name(venue="demo")
    assert name() != name(api_key="abd")
    assert "abc" not in name()
