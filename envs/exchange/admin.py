"""The admin API, for tests and demonstrations: time, the true state, somebody else's orders, disconnections.

Off unless asked for, on a prefix of its own, unsigned, JSON in and out. A client under test never sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from perpgym.envs.exchange import incidents
from perpgym.envs.exchange.api import Params
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.margins import equity
from perpgym.envs.exchange.payloads import algo_json, order_json, position_v2_json
from perpgym.envs.exchange.rest_algos import new_algo
from perpgym.envs.exchange.rest_orders import new_order

if TYPE_CHECKING:
    from perpgym.envs.exchange.server import Server

Json = dict[str, Any]
PREFIX = "/admin/"


def state(server: Server, body: Json) -> Json:
    """Everything that is true of the account and the exchange."""
    venue = server.venue
    books, names = venue.books, venue.names
    return {
        "now_ms": venue.now_ms,
        "bar": venue.market.bar,
        "next_ms": venue.engine.next_ms,
        "is_over": venue.market.is_over,
        "wallet": books.wallet,
        "equity": equity(books),
        "positions": [
            position_v2_json(books, names, asset, venue.updated_ms[asset])
            for asset in range(len(names.names))
        ],
        "open_orders": [order_json(order, names) for order in books.registry.open_orders()],
        "open_algos": [algo_json(algo, names) for algo in books.registry.open_algos()],
        "orders": len(books.registry.orders),
        "trades": len(books.registry.trades),
        "incomes": len(books.registry.incomes),
        "weight": venue.limits.weight,
        "banned_until_ms": venue.limits.banned_until_ms,
        "calls_while_banned": venue.limits.calls_while_banned,
        "sockets": len(server.hub.sockets),
    }


def advance(server: Server, body: Json) -> Json:
    """Let time pass: ``{"bars": 3}``, ``{"ms": 1000}`` or ``{"to_ms": …}``; answers with the state then."""
    venue = server.venue
    if "bars" in body:
        for _bar in range(int(body["bars"])):
            venue.clock.move_to(venue.engine.next_ms)
            server.pass_time()
    elif "ms" in body:
        venue.clock.move_to(venue.now_ms + int(body["ms"]))
    else:
        venue.clock.move_to(int(body["to_ms"]))
    server.pass_time()
    return state(server, body)


def order(server: Server, body: Json) -> Any:
    """F40, F42: an order of somebody else on the same account: parameters as of ``POST /fapi/v1/order``."""
    return new_order(server.venue, _params(body))


def algo(server: Server, body: Json) -> Any:
    """A conditional order of somebody else."""
    return new_algo(server.venue, _params({"algoType": "CONDITIONAL", **body}))


def _params(body: Json) -> Params:
    return Params({k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in body.items()})


def disconnect(server: Server, body: Json) -> Json:
    """F32: close every websocket with ``code`` (1001), as the exchange does daily; 1006 cuts the line."""
    count = len(server.hub.sockets)
    server.hub.close_all(int(body.get("code", 1001)))
    return {"closed": count}


HANDLERS: dict[str, Callable[[Server, Json], Any]] = {
    "state": state,
    "advance": advance,
    "order": order,
    "algo": algo,
    "disconnect": disconnect,
}


def call(server: Server, name: str, body: Json) -> tuple[int, Any]:
    """(HTTP status, answer) of one admin request."""
    handlers = HANDLERS | incidents.HANDLERS
    if name not in handlers:
        return 404, {"error": f"no such admin call: {name}; there are {', '.join(sorted(handlers))}"}
    try:
        return 200, handlers[name](server, body)
    except Rejected as refusal:
        return refusal.status, refusal.payload()
    except (KeyError, ValueError, TypeError) as error:
        return 400, {"error": f"{name}: {type(error).__name__}: {error}"}
