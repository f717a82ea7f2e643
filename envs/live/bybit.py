"""Bybit USDT perpetuals as a broker: v5, a unified account, one-way positions, through the endpoints of ccxt.

Source of every endpoint and field: Bybit API v5, https://bybit-exchange.github.io/docs/v5/intro. What differs
from the other exchange, and what was not checked, is in ``docs/bybit.md``.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from perpgym.data.contract import Contract
from perpgym.envs.live.broker import (
    AccessDenied,
    AccountTruth,
    BarRow,
    Fill,
    Happening,
    Income,
    Order,
    OrderState,
    PriceKind,
    Rejected,
    Settings,
    TradingStatus,
    Unknown,
)
from perpgym.envs.live.bybit_market import Market
from perpgym.envs.live.bybit_payloads import (
    Json,
    is_waiting,
    read_executions,
    read_order,
    read_position,
    read_transaction,
    trigger_direction,
)
from perpgym.envs.live.bybit_stream import PING_S, PrivateStream
from perpgym.envs.live.bybit_wire import Exchange, Wire
from perpgym.envs.live.rounding import digits, nearest_on_grid, on_grid
from perpgym.envs.live.wire import finite, understood

# rows of a page: orders, executions, transactions, positions
_ORDERS, _EXECUTIONS, _TRANSACTIONS, _POSITIONS = 50, 100, 50, 200
_NO_SUCH_ORDER = 110001
# our id is taken: the order is there
_DUPLICATE = frozenset({110030, 110072})
_NO_NEED = frozenset({110025, 110026, 110043})
_MARGIN_MODES = {"cross": "REGULAR_MARGIN", "isolated": "ISOLATED_MARGIN"}
_ONE_WAY = 0
# a unifiedMarginStatus of 1 is a classic account
_CLASSIC = 1
_LONGEST_ID = 36
_ID = re.compile(r"[A-Za-z0-9_-]+")
# seconds that the exchange admits between the loss of the stream and the cancelling
_SHORTEST_GUARD_S, _LONGEST_GUARD_S = 3, 300


@dataclass(frozen=True, kw_only=True)
class BybitConfig:
    """How to reach the exchange.

    Attributes:
        contracts: ccxt's unified symbols of what is traded, all settled in USDT.
        bar: ccxt's name of the bar, e.g. ``1h``; no months.
        venue: the real exchange, its demo accounts or its testnet; each has keys of its own.
        api_key, secret: from the environment; never shown.
        timeout_ms: after which a request counts as unanswered.
        receive_window_ms: how late a request may arrive at the exchange.
        ping_s: between two pings of the private stream.
        has_dead_man: the exchange has enabled disconnection protection for this account, as it does on
            request for institutions; without it ``arm_dead_man`` does nothing.
        is_paced: ccxt spreads requests over time.

    Raises:
        ValueError: a setting is impossible.
    """

    contracts: tuple[str, ...]
    bar: str = "1h"
    venue: Literal["real", "demo", "testnet"] = "real"
    api_key: str = field(default="", repr=False)
    secret: str = field(default="", repr=False)
    timeout_ms: int = 10_000
    receive_window_ms: int = 5_000
    ping_s: float = PING_S
    has_dead_man: bool = False
    is_paced: bool = True

    def __post_init__(self) -> None:
        strange = [name for name in self.contracts if not name.endswith(":USDT")]
        if not self.contracts or strange:
            raise ValueError(
                f"contracts must name at least one perpetual settled in USDT, e.g. BTC/USDT:USDT, was "
                f"{self.contracts}"
            )
        if self.venue not in ("real", "demo", "testnet"):
            raise ValueError(f"venue must be real, demo or testnet, was {self.venue!r}")
        if not 0 < self.receive_window_ms <= 10_000:
            raise ValueError(
                f"receive_window_ms must lie between 1 and 10000, was {self.receive_window_ms}: an order "
                "that arrives later is an order of another market"
            )
        if not 0.0 < self.ping_s <= 20.0:
            raise ValueError(f"ping_s must lie between 0 and 20 (seconds), was {self.ping_s}")


class Bybit:
    """One unified account at Bybit; see ``Broker`` for what its methods promise.

    Orders and cancels are acknowledged before they are carried out: ``submit`` returns an order that is OPEN
    and ``cancel`` one that is PENDING_CANCEL, and the stream or ``find`` says how it went on.

    Args:
        config: see there.
        point: changes the ccxt exchange before its first request, e.g. to a local server.
        local_ms: a clock that never jumps; the machine's by default.
    """

    def __init__(
        self,
        config: BybitConfig,
        *,
        point: Callable[[Any], Any] | None = None,
        local_ms: Callable[[], int] | None = None,
    ) -> None:
        self.config = config
        exchange = Exchange(
            {
                "apiKey": config.api_key,
                "secret": config.secret,
                "timeout": config.timeout_ms,
                "enableRateLimit": config.is_paced,
                "options": {"fetchCurrencies": False, "recvWindow": config.receive_window_ms},
            }
        )
        if config.venue == "demo":
            exchange.enable_demo_trading(True)
        elif config.venue == "testnet":
            exchange.set_sandbox_mode(True)
        if point is not None:
            point(exchange)
        self._exchange = exchange
        self.wire = Wire(exchange, local_ms)
        self.market = Market(self.wire, config.contracts, config.bar)
        self._stream = PrivateStream(self.wire, self.market.name, ping_s=config.ping_s)
        self._guard_s = 0

    @property
    def account_id(self) -> str:
        text = f"bybit {self.config.venue} {self.config.api_key}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def now_ms(self) -> int:
        return self.wire.now_ms()

    async def server_time_ms(self) -> int:
        return await self.wire.sync_clock()

    @understood
    async def open(self) -> None:
        # a start that failed has closed it
        self._exchange.open()
        await self.wire.sync_clock()
        info = await self.wire.call("privateGetV5AccountInfo", {})
        if int(info.get("unifiedMarginStatus", 0)) == _CLASSIC:
            raise AccessDenied("the account is a classic one; upgrade it to a unified trading account")
        await self.contracts()

    async def open_market(self) -> None:
        """Enough to read the market: the clock and the contracts' names; needs no key."""
        await self.wire.sync_clock()
        await self.market.read_names()

    async def close(self) -> None:
        self._stream.close()
        await self._exchange.close()

    # --- settings ---

    @understood
    async def _margin_mode(self) -> str:
        return str((await self.wire.call("privateGetV5AccountInfo", {}))["marginMode"])

    @understood
    async def settings(self) -> Settings:
        mode = await self._margin_mode()
        leverage, is_hedged = {}, False
        for name in self.config.contracts:
            rows = (await self.wire.call("privateGetV5PositionList", self.market.of(name)))["list"]
            found = [float(row["leverage"] or 0.0) for row in rows]
            # a fraction cannot be said here: 0 differs from whatever is wanted
            leverage[name] = int(found[0]) if found and found[0].is_integer() else 0
            is_hedged = is_hedged or any(int(row["positionIdx"]) != 0 for row in rows)
        return Settings(
            leverage=leverage,
            margin_mode="isolated" if mode == _MARGIN_MODES["isolated"] else "cross",
            # portfolio margin is neither mode: the comparison with what is wanted then fails either way
            is_hedged=is_hedged or mode not in _MARGIN_MODES.values(),
        )

    @understood
    async def set_up(self, settings: Settings) -> None:
        if settings.is_hedged:
            raise Rejected(0, "only one-way positions are traded here; set is_hedged to False")
        mode = _MARGIN_MODES[settings.margin_mode]
        if await self._margin_mode() != mode:
            await self._set("privatePostV5AccountSetMarginMode", {"setMarginMode": mode})
        before = await self.settings()
        for name in self.config.contracts:
            if before.is_hedged:
                await self._set("privatePostV5PositionSwitchMode", {**self.market.of(name), "mode": _ONE_WAY})
            if before.leverage[name] != settings.leverage[name]:
                leverage = str(settings.leverage[name])
                both = {"buyLeverage": leverage, "sellLeverage": leverage}
                await self._set("privatePostV5PositionSetLeverage", {**self.market.of(name), **both})
        found = await self.settings()
        if found != settings:
            raise Rejected(0, f"the account must be set up as {settings}, reads back as {found}")

    async def _set(self, name: str, params: Json) -> None:
        try:
            await self.wire.call(name, params, is_write=True)
        except Rejected as refusal:
            if refusal.code not in _NO_NEED:
                raise

    # --- the account ---

    @understood
    async def account(self) -> AccountTruth:
        in_usdt = {"category": "linear", "settleCoin": "USDT"}
        is_isolated = await self._margin_mode() == _MARGIN_MODES["isolated"]
        wallets = await self.wire.call(
            "privateGetV5AccountWalletBalance", {"accountType": "UNIFIED", "coin": "USDT"}
        )
        coins = [coin for wallet in wallets["list"] for coin in wallet["coin"] if coin["coin"] == "USDT"]
        rows = await self.wire.pages("privateGetV5PositionList", {**in_usdt, "limit": _POSITIONS})
        held = [
            read_position(row, self.market.name, is_isolated=is_isolated)
            for row in rows
            if float(row["size"])
        ]
        orders = await self.wire.pages("privateGetV5OrderRealtime", {**in_usdt, "limit": _ORDERS})
        return AccountTruth(
            time_ms=self.now_ms(),
            # an account without a trace of USDT has no row of it
            wallet=finite(coins[0]["walletBalance"]) if coins else 0.0,
            equity=finite(coins[0]["equity"]) if coins else 0.0,
            positions={position.contract: position for position in held},
            orders=tuple(read_order(row, self.market.name) for row in orders if not is_waiting(row)),
            stops=tuple(read_order(row, self.market.name) for row in orders if is_waiting(row)),
        )

    @understood
    async def fills(self, contract: str, since_ms: int) -> list[Fill]:
        params = {**self.market.of(contract), "limit": _EXECUTIONS}
        rows = await self.wire.weeks("privateGetV5ExecutionList", params, since_ms)
        # newest first; what shares a millisecond keeps the exchange's order
        fills = {fill.trade_id: fill for fill in read_executions(rows[::-1], self.market.name)}
        return sorted(fills.values(), key=lambda fill: fill.time_ms)

    @understood
    async def income(self, since_ms: int) -> list[Income]:
        params = {"accountType": "UNIFIED", "currency": "USDT", "limit": _TRANSACTIONS}
        rows = await self.wire.weeks("privateGetV5AccountTransactionLog", params, since_ms)
        parts = [part for row in rows[::-1] for part in read_transaction(row, self.market.name)]
        return sorted({part.income_id: part for part in parts}.values(), key=lambda part: part.time_ms)

    # --- orders ---

    async def submit(self, order: Order) -> Order:
        if len(order.client_id) > _LONGEST_ID or not _ID.fullmatch(order.client_id):
            raise Rejected(
                0,
                f"an order id must be at most {_LONGEST_ID} letters, digits, dashes and underscores, "
                f"was {order.client_id!r}",
            )
        is_exit = order.reduce_only or order.closes_position or order.is_stop
        name = "privatePostV5OrderCreate"
        try:
            row = await self.wire.call(name, self._order_params(order), is_write=True, is_urgent=is_exit)
        except Rejected as refusal:
            if refusal.code in _DUPLICATE:
                raise Unknown(f"an order has the id {order.client_id} already") from None
            raise
        if row.get("orderLinkId") != order.client_id or not row.get("orderId"):
            raise Unknown(f"{name}: an answer without the order")
        # an acknowledgement has no time: the first event about the order must count as later
        return replace(order, exchange_id=row["orderId"], state=OrderState.OPEN)

    def _order_params(self, order: Order) -> Json:
        contract = self.market.rules(order.contract)
        params: Json = {
            **self.market.of(order.contract),
            "side": "Buy" if math.copysign(1.0, order.quantity) > 0.0 else "Sell",
            "orderType": "Limit" if order.style in ("limit", "post_only") else "Market",
            "qty": digits(abs(on_grid(order.quantity, contract.lot_size))),
            "orderLinkId": order.client_id,
            "positionIdx": _ONE_WAY,
        }
        if order.price is not None and not order.is_stop:
            params["price"] = digits(nearest_on_grid(order.price, contract.tick_size))
            params["timeInForce"] = "PostOnly" if order.style == "post_only" else "GTC"
        if order.is_stop:
            params |= self._trigger_params(order, contract)
        if order.closes_position:
            # nothing as a quantity is whatever is held, and other orders make room for it
            return params | {"qty": "0", "reduceOnly": True, "closeOnTrigger": True}
        return params | ({"reduceOnly": True} if order.reduce_only or order.is_stop else {})

    def _trigger_params(self, order: Order, contract: Contract) -> Json:
        assert order.trigger_price is not None
        return {
            "triggerPrice": digits(nearest_on_grid(order.trigger_price, contract.tick_size)),
            "triggerDirection": trigger_direction(order.style, math.copysign(1.0, order.quantity) > 0.0),
            "triggerBy": "MarkPrice" if order.watches == "mark" else "LastPrice",
        }

    async def cancel(self, order: Order) -> Order:
        params = {**self.market.of(order.contract), "orderLinkId": order.client_id}
        await self.wire.call("privatePostV5OrderCancel", params, is_write=True, is_urgent=True)
        return replace(order, state=OrderState.PENDING_CANCEL)

    @understood
    async def find(self, client_id: str, contract: str, is_stop: bool = False) -> Order | None:
        params = {**self.market.of(contract), "orderLinkId": client_id}
        # open and lately closed orders, then those of the last week, which may be late
        for place in ("privateGetV5OrderRealtime", "privateGetV5OrderHistory"):
            try:
                rows = (await self.wire.call(place, params, is_urgent=True))["list"]
            except Rejected as refusal:
                if refusal.code != _NO_SUCH_ORDER:
                    raise
                continue
            for row in rows:
                if row["orderLinkId"] == client_id:
                    return read_order(row, self.market.name)
        return None

    async def arm_dead_man(self, contract: str, ms: int) -> None:
        """Cancel every derivative order of the account when the private stream has been lost for so long.

        No countdown: it never fires while the stream lives, and it is one window for the whole account.
        ``ms`` is rounded up to seconds and kept between 3 s and 300 s. 0 lets go of the topic without which
        the exchange does nothing. Without ``has_dead_man`` nothing is asked for and nothing guarded.
        """
        if not self.config.has_dead_man:
            return
        window_s = min(max(math.ceil(ms / 1000), _SHORTEST_GUARD_S), _LONGEST_GUARD_S) if ms else 0
        if window_s and window_s != self._guard_s:
            params = {"product": "DERIVATIVES", "timeWindow": window_s}
            await self.wire.call(
                "privatePostV5OrderDisconnectedCancelAll", params, is_write=True, is_urgent=True
            )
        self._guard_s = window_s
        await self._stream.guard(window_s > 0)

    # --- streams and the market ---

    def events(self) -> AsyncIterator[Happening]:
        return self._stream.events()

    async def renew_stream(self) -> None:
        self._stream.renew("the account shows what the user stream did not say")

    async def contracts(self) -> Mapping[str, Contract]:
        return await self.market.contracts()

    async def status(self, contract: str) -> TradingStatus:
        return await self.market.status(contract)

    async def mark_prices(self) -> Mapping[str, float]:
        return await self.market.mark_prices()

    async def last_prices(self) -> Mapping[str, float]:
        """The price of every contract's newest trade, quote."""
        return await self.market.last_prices()

    async def bars(self, contract: str, kind: PriceKind, since_ms: int, limit: int) -> Sequence[BarRow]:
        return await self.market.bars(contract, kind, since_ms, limit)

    async def funding(self, contract: str, since_ms: int) -> Sequence[tuple[int, float]]:
        return await self.market.funding(contract, since_ms)

    async def funding_interval_hours(self, contract: str) -> int:
        return await self.market.funding_interval_hours(contract)
