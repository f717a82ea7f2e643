"""Orders and fills: place, change, cancel, look up, and the dead man's switch."""

from __future__ import annotations

import json
import secrets
from typing import Any

from perpgym.envs.exchange.api import Params, by_symbol, endpoint
from perpgym.envs.exchange.engine import OrderRequest
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.filters import check_client_id, check_price, check_quantity
from perpgym.envs.exchange.orders import Order, Side
from perpgym.envs.exchange.payloads import order_json, trade_json
from perpgym.envs.exchange.symbols import TIMES_IN_FORCE
from perpgym.envs.exchange.venue import Venue
from perpgym.envs.exchange.wire import parse_int

ALGO_KINDS = ("STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET", "TRAILING_STOP_MARKET")
_DAY_MS = 86_400_000
_MOST_IN_A_BATCH, _MOST_CANCELLED = 5, 10
# the span of one page of orders or trades
_LONGEST_SPAN_MS = 7 * _DAY_MS


def read_side(params: Params) -> Side:
    """``side``, or -1117."""
    side = params.choice("side", ("BUY", "SELL"), -1117)
    return "BUY" if side == "BUY" else "SELL"


def read_client_id(params: Params, name: str) -> str:
    """The client's own id, or one that is drawn."""
    client_id = params.get(name) or secrets.token_urlsafe(16)
    check_client_id(client_id)
    return client_id


def check_one_way(params: Params) -> None:
    """Raises -4061 for an order of hedge mode."""
    if params.get("positionSide", "BOTH") != "BOTH":
        raise Rejected(-4061)


def read_order(venue: Venue, params: Params) -> OrderRequest:
    """A plain order from a request, through every filter that needs no market.

    Raises:
        Rejected: what is wrong with it.
    """
    asset = venue.names.asset(params.need("symbol"))
    contract, side = venue.books.contracts[asset], read_side(params)
    kind = params.need("type")
    if kind in ALGO_KINDS:
        raise Rejected(-4120)
    if kind not in ("LIMIT", "MARKET"):
        raise Rejected(-1116)
    check_one_way(params)
    quantity = check_quantity(contract, params.number("quantity"))
    price, in_force = 0.0, "GTC"
    if kind == "LIMIT":
        in_force = params.choice("timeInForce", TIMES_IN_FORCE, -1115)
        price = check_price(contract, params.number("price"))
    elif "price" in params:
        raise Rejected(-1106, "price")
    return OrderRequest(
        asset=asset, side=side, kind=kind, quantity=quantity, price=price, time_in_force=in_force,
        reduce_only=params.flag("reduceOnly"), client_id=read_client_id(params, "newClientOrderId"),
    )  # fmt: skip


@endpoint("POST", "/fapi/v1/order", weight=0, is_order=True)
def new_order(venue: Venue, params: Params) -> Any:
    """Place an order; the answer shows it after what filled at once."""
    return order_json(venue.engine.place(read_order(venue, params)), venue.names)


@endpoint("POST", "/fapi/v1/order/test", weight=0)
def test_order(venue: Venue, params: Params) -> Any:
    """Check an order against the filters without placing it."""
    read_order(venue, params)
    return {}


@endpoint("POST", "/fapi/v1/batchOrders", weight=5, is_order=True)
def new_orders(venue: Venue, params: Params) -> Any:
    """Place up to five orders one by one; each row is an order or its refusal."""
    return [_attempt(lambda row=row: new_order(venue, Params(row))) for row in _batch(params, "batchOrders")]


def _batch(params: Params, name: str) -> list[dict[str, str]]:
    params.need(name)
    rows = _list(params, name)
    if not 1 <= len(rows) <= _MOST_IN_A_BATCH:
        raise Rejected(-1130, name)
    if not all(isinstance(row, dict) for row in rows):
        raise Rejected(-1130, name)
    return [{str(k): _plain(v) for k, v in row.items()} for row in rows]


def _list(params: Params, name: str) -> list[Any]:
    """A JSON list, under its name or the same in small letters; empty where there is none."""
    try:
        rows = json.loads(params.get(name) or params.get(name.lower()) or "[]")
    except json.JSONDecodeError:
        raise Rejected(-1130, name) from None
    if not isinstance(rows, list):
        raise Rejected(-1130, name)
    return rows


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _attempt(call: Any) -> Any:
    try:
        return call()
    except Rejected as refusal:
        return refusal.payload()


def _which(params: Params) -> tuple[int | None, str | None]:
    """The order that a request names, by either of its ids."""
    order_id = params.whole("orderId")
    client_id = params.get("origClientOrderId") or None
    if order_id is None and client_id is None:
        raise Rejected(-1102, "orderId")
    return order_id, client_id


def find_order(venue: Venue, params: Params) -> Order:
    """The order that a request names.

    Raises:
        Rejected: -1102, -2013.
    """
    order = venue.books.registry.find(venue.names.asset(params.need("symbol")), *_which(params))
    if order is None:
        raise Rejected(-2013)
    return order


@endpoint("GET", "/fapi/v1/order")
def query_order(venue: Venue, params: Params) -> Any:
    """One order, open or not."""
    return order_json(find_order(venue, params), venue.names)


@endpoint("GET", "/fapi/v1/openOrder")
def query_open_order(venue: Venue, params: Params) -> Any:
    """One open order."""
    order = find_order(venue, params)
    if not order.is_open:
        raise Rejected(-2013)
    return order_json(order, venue.names)


@endpoint("PUT", "/fapi/v1/order", weight=0, is_order=True)
def change_order(venue: Venue, params: Params) -> Any:
    """Change price and quantity of a resting order; its side is sent to be compared."""
    order = find_order(venue, params)
    contract = venue.books.contracts[order.asset]
    if read_side(params) != order.side:
        raise Rejected(-1130, "side")
    quantity = check_quantity(contract, params.number("quantity"))
    price = check_price(contract, params.number("price"))
    return order_json(venue.engine.amend(order, quantity, price), venue.names)


@endpoint("DELETE", "/fapi/v1/order")
def cancel_order(venue: Venue, params: Params) -> Any:
    """Take an order out of the book."""
    asset = venue.names.asset(params.need("symbol"))
    return order_json(venue.engine.cancel(asset, *_which(params)), venue.names)


@endpoint("DELETE", "/fapi/v1/batchOrders")
def cancel_orders(venue: Venue, params: Params) -> Any:
    """Take up to ten orders out of the book; each row is an order or its refusal."""
    asset = venue.names.asset(params.need("symbol"))
    ids, names = (_list(params, name) for name in ("orderIdList", "origClientOrderIdList"))
    wanted: list[tuple[int | None, str | None]] = []
    wanted += [(parse_int("orderIdList", str(i)), None) for i in ids]
    wanted += [(None, str(name)) for name in names]
    if not 1 <= len(wanted) <= _MOST_CANCELLED:
        raise Rejected(-1130, "orderIdList")
    return [
        _attempt(lambda which=which: order_json(venue.engine.cancel(asset, *which), venue.names))
        for which in wanted
    ]


@endpoint("DELETE", "/fapi/v1/allOpenOrders")
def cancel_all(venue: Venue, params: Params) -> Any:
    """Take every order of a contract out of the book; conditional orders stay."""
    venue.engine.cancel_all(venue.names.asset(params.need("symbol")))
    return {"code": 200, "msg": "The operation of cancel all open order is done."}


@endpoint("GET", "/fapi/v1/openOrders", weight=by_symbol(1, 40))
def open_orders(venue: Venue, params: Params) -> Any:
    """Open orders of a contract, or of all."""
    asset = venue.names.asset(params.need("symbol")) if "symbol" in params else None
    return [order_json(order, venue.names) for order in venue.books.registry.open_orders(asset)]


def in_span(venue: Venue, params: Params, time_ms: int) -> bool:
    """Whether a time lies between ``startTime`` and ``endTime``; without them, in the newest week."""
    start, end = params.span()
    if start is None and end is None:
        start = venue.now_ms - _LONGEST_SPAN_MS
    return (start is None or time_ms >= start) and (end is None or time_ms <= end)


@endpoint("GET", "/fapi/v1/allOrders", weight=5)
def all_orders(venue: Venue, params: Params) -> Any:
    """Orders of a contract, open or not, oldest first; from an id on, or of a span."""
    asset, limit = venue.names.asset(params.need("symbol")), params.limit(500, 1000)
    from_id = params.whole("orderId")
    rows = [
        order
        for order in venue.books.registry.orders.values()
        if order.asset == asset
        and (order.order_id >= from_id if from_id is not None else in_span(venue, params, order.time_ms))
    ]
    shown = rows[:limit] if from_id is not None else rows[-limit:]
    return [order_json(order, venue.names) for order in shown]


@endpoint("GET", "/fapi/v1/userTrades", weight=5)
def user_trades(venue: Venue, params: Params) -> Any:
    """Fills of a contract, oldest first; from an id on, of one order, or of a span."""
    asset, limit = venue.names.asset(params.need("symbol")), params.limit(500, 1000)
    from_id, order_id = params.whole("fromId"), params.whole("orderId")
    rows = [
        trade
        for trade in venue.books.registry.trades
        if trade.asset == asset
        and order_id in (None, trade.order_id)
        and (trade.trade_id >= from_id if from_id is not None else in_span(venue, params, trade.time_ms))
    ]
    shown = rows[:limit] if from_id is not None or params.span()[0] is not None else rows[-limit:]
    return [trade_json(trade, venue.names) for trade in shown]


@endpoint("GET", "/fapi/v1/forceOrders", weight=by_symbol(20, 50))
def force_orders(venue: Venue, params: Params) -> Any:
    """The account's own liquidations."""
    asset = venue.names.asset(params.need("symbol")) if "symbol" in params else None
    return [
        order_json(order, venue.names)
        for order in venue.books.registry.orders.values()
        if order.original_kind == "LIQUIDATION" and asset in (None, order.asset)
    ]


@endpoint("POST", "/fapi/v1/countdownCancelAll", weight=10)
def countdown(venue: Venue, params: Params) -> Any:
    """The dead man's switch: without another call in time, every open order of the contract is cancelled."""
    asset, wait_ms = venue.names.asset(params.need("symbol")), params.whole("countdownTime")
    if wait_ms is None or wait_ms < 0:
        raise Rejected(-1102, "countdownTime")
    venue.engine.set_countdown(asset, wait_ms)
    return {"symbol": venue.names.names[asset], "countdownTime": str(wait_ms)}
