"""Conditional orders: stops, trailing ones too, and take-profits, kept until their trigger."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from perpgym.data.contract import Contract
from perpgym.envs.exchange.api import Params, by_symbol, endpoint
from perpgym.envs.exchange.engine import AlgoRequest
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.filters import check_price, check_quantity
from perpgym.envs.exchange.orders import AlgoOrder
from perpgym.envs.exchange.payloads import algo_json
from perpgym.envs.exchange.rest_orders import (
    ALGO_KINDS,
    check_one_way,
    in_span,
    read_client_id,
    read_side,
)
from perpgym.envs.exchange.symbols import TIMES_IN_FORCE
from perpgym.envs.exchange.venue import Venue

_LEAST_CALLBACK_PCT, _MOST_CALLBACK_PCT = Decimal("0.1"), Decimal(10)


def read_algo(venue: Venue, params: Params) -> AlgoRequest:
    """A conditional order from a request.

    Raises:
        Rejected: what is wrong with it.
    """
    asset = venue.names.asset(params.need("symbol"))
    contract, side = venue.books.contracts[asset], read_side(params)
    params.choice("algoType", ("CONDITIONAL",), -1130)
    kind = params.need("type")
    if kind not in ALGO_KINDS:
        raise Rejected(-1116)
    check_one_way(params)
    closes, is_trailing = params.flag("closePosition"), kind == "TRAILING_STOP_MARKET"
    if closes and is_trailing:
        raise Rejected(-4136, kind)
    quantity = price = 0.0
    if closes:
        if "quantity" in params:
            raise Rejected(-4137)
        if "reduceOnly" in params or not kind.endswith("_MARKET"):
            raise Rejected(-1128)
    else:
        quantity = check_quantity(contract, params.number("quantity"))
    if not kind.endswith("_MARKET"):
        price = check_price(contract, params.number("price"))
    working = params.choice("workingType", ("CONTRACT_PRICE", "MARK_PRICE"), -1130, "CONTRACT_PRICE")
    return AlgoRequest(
        asset=asset, side=side, kind=kind, quantity=quantity, price=price, working_type=working,
        trigger_price=0.0 if is_trailing else check_price(contract, params.number("triggerPrice")),
        activate_price=_activation(contract, params) if is_trailing else 0.0,
        callback_rate=_callback(params) if is_trailing else 0.0,
        time_in_force=params.choice("timeInForce", TIMES_IN_FORCE, -1115, "GTC"),
        reduce_only=params.flag("reduceOnly"), close_position=closes,
        price_protect=params.flag("priceProtect"), client_id=read_client_id(params, "clientAlgoId"),
    )  # fmt: skip


def _activation(contract: Contract, params: Params) -> float:
    """quote; 0 for the price of the moment. The documentation has called it by both names."""
    name = "activatePrice" if "activatePrice" in params else "activationPrice"
    return check_price(contract, params.number(name)) if name in params else 0.0


def _callback(params: Params) -> float:
    """Fraction of the price, from percent."""
    rate = params.number("callbackRate")
    if not _LEAST_CALLBACK_PCT <= rate <= _MOST_CALLBACK_PCT:
        raise Rejected(-2007)
    return float(rate / 100)


@endpoint("POST", "/fapi/v1/algoOrder", weight=0, is_order=True)
def new_algo(venue: Venue, params: Params) -> Any:
    """Keep a stop or take-profit until its trigger."""
    return algo_json(venue.engine.place_algo(read_algo(venue, params)), venue.names)


def _which_algo(params: Params) -> tuple[int | None, str | None]:
    algo_id, client_id = params.whole("algoId"), params.get("clientAlgoId") or None
    if algo_id is None and client_id is None:
        raise Rejected(-1102, "algoId")
    return algo_id, client_id


@endpoint("GET", "/fapi/v1/algoOrder")
def query_algo(venue: Venue, params: Params) -> Any:
    """One conditional order, open or not."""
    algo = venue.books.registry.find_algo(*_which_algo(params))
    if algo is None:
        raise Rejected(-2013)
    return algo_json(algo, venue.names)


@endpoint("DELETE", "/fapi/v1/algoOrder")
def cancel_algo(venue: Venue, params: Params) -> Any:
    """Forget a conditional order."""
    algo = venue.engine.cancel_algo(*_which_algo(params))
    ids = {"algoId": algo.algo_id, "clientAlgoId": algo.client_id}
    return {**ids, "code": "200", "msg": "success"}


@endpoint("DELETE", "/fapi/v1/algoOpenOrders")
def cancel_algos(venue: Venue, params: Params) -> Any:
    """Forget every conditional order of a contract."""
    venue.engine.cancel_all_algos(venue.names.asset(params.need("symbol")))
    return {"code": 200, "msg": "The operation of cancel all open order is done."}


def _algos(venue: Venue, algos: list[AlgoOrder]) -> Any:
    return [algo_json(algo, venue.names) for algo in algos]


@endpoint("GET", "/fapi/v1/openAlgoOrders", weight=by_symbol(1, 40))
def open_algos(venue: Venue, params: Params) -> Any:
    """Conditional orders that wait."""
    asset = venue.names.asset(params.need("symbol")) if "symbol" in params else None
    return _algos(venue, venue.books.registry.open_algos(asset))


@endpoint("GET", "/fapi/v1/allAlgoOrders", weight=5)
def all_algos(venue: Venue, params: Params) -> Any:
    """Conditional orders of a contract, waiting or not, oldest first."""
    asset, limit = venue.names.asset(params.need("symbol")), params.limit(500, 1000)
    rows = [
        algo
        for algo in venue.books.registry.algos.values()
        if algo.asset == asset and in_span(venue, params, algo.time_ms)
    ]
    return _algos(venue, rows[-limit:])
