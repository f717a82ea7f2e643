"""Binance USD-M futures as a broker, through the endpoints of ccxt; errors and events are read here."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from perpgym.data.contract import Contract
from perpgym.data.sources.ccxt_exchange import contract_from_ccxt
from perpgym.envs.live.binance_payloads import (
    Json,
    read_algo,
    read_income,
    read_order,
    read_position,
    read_trade,
)
from perpgym.envs.live.binance_stream import KEEP_ALIVE_S, UserStream
from perpgym.envs.live.binance_wire import WEIGHT_PER_MINUTE, Exchange, Wire
from perpgym.envs.live.broker import (
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
from perpgym.envs.live.marks import believed_mark
from perpgym.envs.live.rounding import digits, nearest_on_grid, on_grid
from perpgym.envs.live.wire import finite, rows_of, understood

_DAY_MS = 86_400_000
_WEEK_MS = 7 * _DAY_MS
_PAGE = 1_000
_NO_SUCH_ORDER = frozenset({-2011, -2013})
# the id is taken by an open order: ours, then
_DUPLICATE = frozenset({-4116, -20132})
_NO_NEED = frozenset({-4046, -4059})
_STATUSES: dict[str, TradingStatus] = {"TRADING": "trading", "CANCEL_ONLY": "close_only"}


@dataclass(frozen=True, kw_only=True)
class BinanceConfig:
    """How to reach the exchange.

    Attributes:
        contracts: ccxt's unified symbols of what is traded.
        bar: ccxt's name of the bar, e.g. ``1h``.
        api_key, secret: from the environment; never shown.
        timeout_ms: after which a request counts as unanswered.
        receive_window_ms: how late a request may arrive at the exchange.
        keep_alive_s: between two prolongations of the user stream's key.
        is_paced: ccxt spreads requests over time.
        weight_per_minute: of requests, as the exchange admits; reads leave a fifth of it to exits.

    Raises:
        ValueError: a setting is impossible.
    """

    contracts: tuple[str, ...]
    bar: str = "1h"
    api_key: str = field(default="", repr=False)
    secret: str = field(default="", repr=False)
    timeout_ms: int = 10_000
    receive_window_ms: int = 5_000
    keep_alive_s: float = KEEP_ALIVE_S
    is_paced: bool = True
    weight_per_minute: int = WEIGHT_PER_MINUTE

    def __post_init__(self) -> None:
        if not self.contracts:
            raise ValueError("contracts must name at least one contract, e.g. BTC/USDT:USDT")
        if not 0 < self.receive_window_ms <= 10_000:
            raise ValueError(
                f"receive_window_ms must lie between 1 and 10000, was {self.receive_window_ms}: an order "
                "that arrives later is an order of another market"
            )


class Binance:
    """One account at Binance USD-M; see ``Broker`` for what its methods promise.

    Args:
        config: see there.
        point: changes the ccxt exchange before its first request, e.g. to a local server.
        local_ms: a clock that never jumps; the machine's by default.
        stamp_ms: the clock that signed requests carry; None for the exchange's as kept here.
    """

    def __init__(
        self,
        config: BinanceConfig,
        *,
        point: Callable[[Any], Any] | None = None,
        local_ms: Callable[[], int] | None = None,
        stamp_ms: Callable[[], int] | None = None,
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
        if point is not None:
            point(exchange)
        self._exchange = exchange
        self.wire = Wire(exchange, local_ms, config.weight_per_minute, stamp_ms)
        self._stream = UserStream(self.wire, self._name, keep_alive_s=config.keep_alive_s)
        self._contracts: dict[str, Contract] = {}
        self._currency = ""
        # client id by the exchange's id, for trades, which carry the latter only
        self._client_ids: dict[str, str] = {}

    @property
    def account_id(self) -> str:
        # the same key at another address, e.g. of a second local exchange, is another account
        text = f"binanceusdm {self._exchange.urls['api']['fapiPrivate']} {self.config.api_key}"
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
        await self.contracts()

    async def close(self) -> None:
        self._stream.close()
        await self._exchange.close()

    def _name(self, symbol: str) -> str:
        rows = (self._exchange.markets_by_id or {}).get(symbol)
        return str(rows[0]["symbol"]) if rows else symbol

    def _symbol(self, contract: str) -> str:
        return str(self._exchange.market(contract)["id"])

    async def _rows(self, name: str, params: Json | None = None, *, is_urgent: bool = False) -> list[Json]:
        return rows_of(await self.wire.call(name, params or {}, is_urgent=is_urgent))

    # --- rules and settings ---

    @understood
    async def contracts(self) -> Mapping[str, Contract]:
        await self._read_names()
        for name in self.config.contracts:
            self._contracts[name] = await self._read_contract(name)
        currencies = sorted({self._exchange.markets[name]["settle"] for name in self._contracts})
        if len(currencies) > 1:
            raise Rejected(0, f"contracts must have one currency of margin, had {' and '.join(currencies)}")
        self._currency = currencies[0]
        return dict(self._contracts)

    @understood
    async def open_market(self) -> None:
        """Enough to read the market: the clock and the contracts' names; needs no key."""
        await self.wire.sync_clock()
        await self._read_names()

    async def _read_names(self) -> None:
        info = await self.wire.call("fapiPublicGetExchangeInfo", {})
        self._exchange.set_markets(self._exchange.parse_markets(info["symbols"]))
        for name in self.config.contracts:
            if name not in self._exchange.markets:
                raise Rejected(-1121, f"{name} is not traded here")

    async def _read_contract(self, name: str) -> Contract:
        symbol = {"symbol": self._symbol(name)}
        brackets = await self.wire.call("fapiPrivateGetLeverageBracket", symbol)
        row = brackets[0] if isinstance(brackets, list) else brackets
        market = self._exchange.markets[name]
        tiers = self._exchange.parse_market_leverage_tiers(row, market)
        rates = await self.wire.call("fapiPrivateGetCommissionRate", symbol)
        contract = contract_from_ccxt(market, tiers)
        most = [contract.max_quantity, market["limits"].get("market", {}).get("max")]
        return replace(
            contract,
            maker_rate=float(rates["makerCommissionRate"]),
            taker_rate=float(rates["takerCommissionRate"]),
            max_quantity=min(float(m) for m in most if m),
        )

    @understood
    async def settings(self) -> Settings:
        rows = {row["symbol"]: row for row in await self._rows("fapiPrivateGetSymbolConfig")}
        side = await self.wire.call("fapiPrivateGetPositionSideDual", {})
        ours = {name: rows[self._symbol(name)] for name in self.config.contracts}
        is_isolated = {row["marginType"] == "ISOLATED" for row in ours.values()}
        return Settings(
            leverage={name: int(row["leverage"]) for name, row in ours.items()},
            # mixed modes are neither: the comparison with what is wanted then fails either way
            margin_mode="isolated" if is_isolated == {True} else "cross",
            is_hedged=_flag(side["dualSidePosition"]) or len(is_isolated) > 1,
        )

    @understood
    async def set_up(self, settings: Settings) -> None:
        await self._check_currency()
        rows = {row["symbol"]: row for row in await self._rows("fapiPrivateGetSymbolConfig")}
        wanted_mode = "ISOLATED" if settings.margin_mode == "isolated" else "CROSSED"
        if (await self.settings()).is_hedged != settings.is_hedged:
            flag = str(settings.is_hedged).lower()
            await self._set("fapiPrivatePostPositionSideDual", {"dualSidePosition": flag})
        for name in self.config.contracts:
            symbol = self._symbol(name)
            if rows[symbol]["marginType"] != wanted_mode:
                await self._set("fapiPrivatePostMarginType", {"symbol": symbol, "marginType": wanted_mode})
            if int(rows[symbol]["leverage"]) != settings.leverage[name]:
                leverage = {"symbol": symbol, "leverage": settings.leverage[name]}
                await self._set("fapiPrivatePostLeverage", leverage)
        found = await self.settings()
        if found != settings:
            raise Rejected(0, f"the account must be set up as {settings}, reads back as {found}")

    async def _check_currency(self) -> None:
        """Raises Rejected where margin or fees are not in the one currency that is booked."""
        burn = await self.wire.call("fapiPrivateGetFeeBurn", {})
        if _flag(burn["feeBurn"]):
            raise Rejected(0, "fees must be paid in the currency of margin, are paid in BNB: turn that off")
        assets = await self.wire.call("fapiPrivateGetMultiAssetsMargin", {})
        if _flag(assets["multiAssetsMargin"]):
            raise Rejected(0, "margin must be of one currency, the multi-assets mode is on: turn it off")

    async def _set(self, name: str, params: Json) -> None:
        try:
            await self.wire.call(name, params, is_write=True)
        except Rejected as refusal:
            if refusal.code not in _NO_NEED:
                raise

    @understood
    async def status(self, contract: str) -> TradingStatus:
        info = await self.wire.call("fapiPublicGetExchangeInfo", {})
        symbol = self._symbol(contract)
        found = [row["status"] for row in info["symbols"] if row["symbol"] == symbol]
        return _STATUSES.get(found[0], "halted") if found else "halted"

    # --- the account ---

    @understood
    async def account(self) -> AccountTruth:
        account = await self.wire.call("fapiPrivateV3GetAccount", {})
        risks = await self._rows("fapiPrivateV3GetPositionRisk")
        positions = [read_position(row, self._name) for row in risks if float(row["positionAmt"]) != 0.0]
        orders, stops = [], []
        for name in self.config.contracts:
            symbol = {"symbol": self._symbol(name)}
            orders += await self._rows("fapiPrivateGetOpenOrders", symbol)
            stops += await self._rows("fapiPrivateGetOpenAlgoOrders", symbol)
        money = [row for row in rows_of(account["assets"]) if row["asset"] == self._currency]
        return AccountTruth(
            time_ms=self.now_ms(),
            # the exchange's totals are of USDT only
            wallet=sum(finite(row["walletBalance"]) for row in money),
            equity=sum(finite(row["marginBalance"]) for row in money),
            positions={position.contract: position for position in positions},
            orders=tuple(self._order(row) for row in orders),
            stops=tuple(read_algo(row, self._name) for row in stops),
        )

    @understood
    async def mark_prices(self) -> Mapping[str, float]:
        out = {}
        for name in self.config.contracts:
            row = await self.wire.call("fapiPublicGetPremiumIndex", {"symbol": self._symbol(name)})
            last = await self._last_price(name)
            out[name] = believed_mark(name, row["markPrice"], last=last, index=row.get("indexPrice"))
        return out

    @understood
    async def last_prices(self) -> Mapping[str, float]:
        """The price of every contract's newest trade, quote."""
        return {name: await self._last_price(name) for name in self.config.contracts}

    async def _last_price(self, name: str) -> float:
        row = await self.wire.call("fapiPublicV2GetTickerPrice", {"symbol": self._symbol(name)})
        return finite(row["price"])

    def _order(self, row: Json) -> Order:
        self._client_ids[str(row["orderId"])] = row["clientOrderId"]
        return read_order(row, self._name)

    @understood
    async def fills(self, contract: str, since_ms: int) -> list[Fill]:
        symbol = {"symbol": self._symbol(contract), "limit": _PAGE}
        rows: dict[int, Json] = {}
        start = since_ms
        while True:
            page = await self._rows("fapiPrivateGetUserTrades", {**symbol, "startTime": start})
            rows |= {int(row["id"]): row for row in page}
            while len(page) == _PAGE:
                after = {**symbol, "fromId": int(page[-1]["id"]) + 1}
                page = await self._rows("fapiPrivateGetUserTrades", after)
                rows |= {int(row["id"]): row for row in page}
            start += _WEEK_MS
            if start > self.now_ms():
                break
        return [await self._fill(rows[number]) for number in sorted(rows)]

    async def _fill(self, row: Json) -> Fill:
        number = str(row["orderId"])
        if number not in self._client_ids:
            order = {"symbol": row["symbol"], "orderId": number}
            try:
                self._order(await self.wire.call("fapiPrivateGetOrder", order))
            except Rejected as refusal:
                # a copy of the exchange's that lags behind its trades
                if refusal.code not in _NO_SUCH_ORDER:
                    raise
        return read_trade(row, self._name, self._client_ids.get(number))

    @understood
    async def income(self, since_ms: int) -> list[Income]:
        rows: list[Json] = []
        for page in range(1, 1_000):
            span = {"startTime": since_ms, "limit": _PAGE, "page": page}
            found = await self._rows("fapiPrivateGetIncome", span)
            rows += found
            if len(found) < _PAGE:
                break
        return [read_income(row, self._name) for row in rows if row["asset"] == self._currency]

    # --- orders ---

    async def submit(self, order: Order) -> Order:
        is_exit = order.reduce_only or order.closes_position or order.is_stop
        name = "fapiPrivatePostAlgoOrder" if order.is_stop else "fapiPrivatePostOrder"
        params = self._stop_params(order) if order.is_stop else self._order_params(order)
        try:
            row = await self.wire.call(name, params, is_write=True, is_urgent=is_exit)
        except Rejected as refusal:
            if refusal.code in _DUPLICATE:
                raise Unknown(f"an open order has the id {order.client_id} already") from None
            raise
        try:
            return read_algo(row, self._name) if order.is_stop else self._order(row)
        except (KeyError, ValueError, TypeError):
            raise Unknown(f"{name}: an answer without an order") from None

    def _order_params(self, order: Order) -> Json:
        contract = self._contracts[order.contract]
        params: Json = {
            "symbol": self._symbol(order.contract),
            "side": "BUY" if order.quantity > 0.0 else "SELL",
            "type": "MARKET" if order.style == "market" else "LIMIT",
            "quantity": digits(abs(on_grid(order.quantity, contract.lot_size))),
            "newClientOrderId": order.client_id,
            "newOrderRespType": "RESULT",
        }
        if order.price is not None:
            params["price"] = digits(nearest_on_grid(order.price, contract.tick_size))
            params["timeInForce"] = "GTX" if order.style == "post_only" else "GTC"
        return params | ({"reduceOnly": "true"} if order.reduce_only else {})

    def _stop_params(self, order: Order) -> Json:
        contract = self._contracts[order.contract]
        assert order.trigger_price is not None
        params: Json = {
            "algoType": "CONDITIONAL",
            "symbol": self._symbol(order.contract),
            "side": "BUY" if order.quantity > 0.0 else "SELL",
            "type": "STOP_MARKET" if order.style == "stop" else "TAKE_PROFIT_MARKET",
            "triggerPrice": digits(nearest_on_grid(order.trigger_price, contract.tick_size)),
            "workingType": "MARK_PRICE" if order.watches == "mark" else "CONTRACT_PRICE",
            "clientAlgoId": order.client_id,
        }
        if order.closes_position:
            return params | {"closePosition": "true"}
        quantity = digits(abs(on_grid(order.quantity, contract.lot_size)))
        return params | {"quantity": quantity, "reduceOnly": "true"}

    async def cancel(self, order: Order) -> Order:
        symbol = self._symbol(order.contract)
        if order.is_stop:
            params = {"symbol": symbol, "clientAlgoId": order.client_id}
            await self.wire.call("fapiPrivateDeleteAlgoOrder", params, is_write=True, is_urgent=True)
            return replace(order, state=OrderState.CANCELLED, updated_ms=self.now_ms())
        params = {"symbol": symbol, "origClientOrderId": order.client_id}
        row = await self.wire.call("fapiPrivateDeleteOrder", params, is_write=True, is_urgent=True)
        try:
            return self._order(row)
        except (KeyError, ValueError, TypeError):
            raise Unknown("a cancel was answered without an order") from None

    @understood
    async def find(self, client_id: str, contract: str, is_stop: bool = False) -> Order | None:
        symbol = {"symbol": self._symbol(contract)}
        name, key = ("AlgoOrder", "clientAlgoId") if is_stop else ("Order", "origClientOrderId")
        read = self._algo if is_stop else self._order
        try:
            return read(
                await self.wire.call(f"fapiPrivateGet{name}", {**symbol, key: client_id}, is_urgent=True)
            )
        except Rejected as refusal:
            if refusal.code not in _NO_SUCH_ORDER:
                raise
        for place in (f"fapiPrivateGetOpen{name}s", f"fapiPrivateGetAll{name}s"):
            for row in await self._rows(place, symbol, is_urgent=True):
                if row.get("clientAlgoId" if is_stop else "clientOrderId") == client_id:
                    return read(row)
        return None

    def _algo(self, row: Json) -> Order:
        return read_algo(row, self._name)

    async def arm_dead_man(self, contract: str, ms: int) -> None:
        params = {"symbol": self._symbol(contract), "countdownTime": ms}
        await self.wire.call("fapiPrivatePostCountdownCancelAll", params, is_write=True, is_urgent=True)

    # --- streams and the market ---

    def events(self) -> AsyncIterator[Happening]:
        return self._stream.events()

    async def renew_stream(self) -> None:
        self._stream.renew("the account shows what the user stream did not say")

    @understood
    async def bars(self, contract: str, kind: PriceKind, since_ms: int, limit: int) -> Sequence[BarRow]:
        name = "fapiPublicGetKlines" if kind == "last" else "fapiPublicGetMarkPriceKlines"
        span = {"interval": self.config.bar, "startTime": since_ms, "limit": min(limit, _PAGE)}
        rows: list[Any] = await self._rows(name, {"symbol": self._symbol(contract), **span})
        now = self.now_ms()
        # the last row may be a bar that is still open
        closed = [row for row in rows if int(row[6]) < now]
        return [(int(r[0]), *(float(x) for x in r[1:5]), float(r[5])) for r in closed]  # type: ignore[misc]

    @understood
    async def funding(self, contract: str, since_ms: int) -> Sequence[tuple[int, float]]:
        span = {"symbol": self._symbol(contract), "startTime": since_ms, "limit": _PAGE}
        rows = await self._rows("fapiPublicGetFundingRate", span)
        return sorted((int(row["fundingTime"]), float(row["fundingRate"])) for row in rows)

    @understood
    async def funding_interval_hours(self, contract: str) -> int:
        symbol = self._symbol(contract)
        rows = await self._rows("fapiPublicGetFundingInfo")
        found = [int(row["fundingIntervalHours"]) for row in rows if row["symbol"] == symbol]
        # contracts with the usual interval are not listed
        return found[0] if found else 8


def _flag(value: Any) -> bool:
    return value is True or str(value).lower() == "true"
