"""What happens at an exchange beside requests: somebody else acts, rules change, keys die, streams go silent.

Each is one call of the admin API, named with the row of the fault matrix that it makes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from perpgym.data.contract import Contract
from perpgym.envs.config import MarginMode
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.faults import make_book, summary
from perpgym.envs.exchange.orders import Order
from perpgym.envs.exchange.payloads import order_json
from perpgym.envs.exchange.working import end_order, fill_at_limit
from perpgym.envs.rules import make_contract_rules

if TYPE_CHECKING:
    from perpgym.envs.exchange.server import Server

Json = dict[str, Any]


def faults(server: Server, body: Json) -> Json:
    """Put faults of the wire in force, in the place of those before; an empty body shows what happened."""
    if body:
        server.hub.faults = make_book(body)
    return summary(server.hub.faults)


def _order(server: Server, body: Json) -> Order:
    order = server.venue.books.registry.orders.get(int(body["orderId"]))
    if order is None or not order.is_open:
        raise Rejected(-2011)
    return order


def fill(server: Server, body: Json) -> Json:
    """F13, F14: somebody trades against a resting order: ``{"orderId": …, "quantity": …}``, or all of it."""
    venue, order = server.venue, _order(server, body)
    quantity = float(body.get("quantity", order.left))
    fill_at_limit(venue.books, order, min(quantity, order.left), venue.now_ms)
    venue.books.registry.settle()
    return order_json(order, venue.names)


def expire(server: Server, body: Json) -> Json:
    """F13: the exchange takes an order out of the book: ``{"orderId": …}``."""
    venue, order = server.venue, _order(server, body)
    end_order(venue.books, order, "EXPIRED", "by the exchange", venue.now_ms)
    venue.books.registry.settle()
    return order_json(order, venue.names)


def leverage(server: Server, body: Json) -> Json:
    """F22: the user turns the leverage: ``{"symbol": …, "leverage": 5}``."""
    venue = server.venue
    venue.engine.set_leverage(venue.names.asset(body["symbol"]), int(body["leverage"]))
    return {}


def margin_mode(server: Server, body: Json) -> Json:
    """F22: the user changes the margin mode: ``{"symbol": …, "isolated": true}``."""
    venue = server.venue
    venue.engine.set_margin_mode(venue.names.asset(body["symbol"]), bool(body["isolated"]))
    return {}


def contract(server: Server, body: Json) -> Json:
    """F19, F48: rules change: ``{"symbol": …, "tick_size": …}``, any field as ``Contract.to_json`` has it.

    There may be no more brackets than there were.
    """
    venue = server.venue
    books, asset = venue.books, venue.names.asset(body["symbol"])
    changes = {name: value for name, value in body.items() if name != "symbol"}
    changed = Contract.from_json({**books.contracts[asset].to_json(), **changes})
    table, room = changed.bracket_table(), books.world.brackets[asset]
    if len(table) > len(room):
        raise ValueError(f"brackets must be at most {len(room)}, were {len(table)}")
    room[:] = np.concatenate([table, np.repeat(table[-1:], len(room) - len(table), axis=0)])
    books.contracts = (*books.contracts[:asset], changed, *books.contracts[asset + 1 :])
    venue.names.contracts = books.contracts
    now = books.rules(asset)
    mode: MarginMode = "isolated" if now.is_isolated > 0.0 else "cross"
    books.set_rules(asset, make_contract_rules(changed, books.config, now.leverage, mode))
    return {}


def status(server: Server, body: Json) -> Json:
    """F47: a contract's status: ``{"symbol": …, "status": "SETTLING"}``; new orders get -4141."""
    venue = server.venue
    asset = venue.names.asset(body["symbol"])
    venue.engine.closed.discard(asset)
    venue.status[asset] = str(body["status"])
    if body["status"] != "TRADING":
        venue.engine.closed.add(asset)
    return {}


def keys(server: Server, body: Json) -> Json:
    """F26: the key is revoked, or works again: ``{"revoked": true}``."""
    server.venue.keys.is_revoked = bool(body["revoked"])
    return {}


def skew(server: Server, body: Json) -> Json:
    """F27: the exchange's clock and the client's drift apart: ``{"ms": 20000}``."""
    server.venue.skew_ms = int(body["ms"])
    return {}


def ban(server: Server, body: Json) -> Json:
    """F24: the address is banned: ``{"seconds": 120}``."""
    limits = server.venue.limits
    limits.banned_until_ms = server.venue.client_ms + int(1000 * float(body["seconds"]))
    return {"banned_until_ms": limits.banned_until_ms}


def stall(server: Server, body: Json) -> Json:
    """F30, F31: the streams say nothing: ``{"on": true}``; with ``"deaf"`` they answer no ping either."""
    server.hub.faults.is_stalled = bool(body["on"])
    server.hub.set_deaf(bool(body["on"]) and bool(body.get("deaf", False)))
    return {}


def listen_key(server: Server, body: Json) -> Json:
    """F36, F37: the user stream's key dies: ``{"tell": true}``, or without a word."""
    if body.get("tell", True):
        server.hub.expire_key()
    server.venue.listen_key.text = ""
    return {}


def replay(server: Server, body: Json) -> Json:
    """F38: the last user events come again: ``{"last": 3}``."""
    rows = server.hub.recent_events[-int(body["last"]) :]
    for row in rows:
        server.hub.tell_user(row, is_new=False)
    return {"sent": len(rows)}


def event(server: Server, body: Json) -> Json:
    """F41: an event that the client does not know: the body is sent as it is."""
    server.hub.tell_user(body)
    return {}


def forget_algo(server: Server, body: Json) -> Json:
    """F45: a conditional order is gone without a word: ``{"algoId": …}``."""
    registry = server.venue.books.registry
    algo = registry.algos.pop(int(body["algoId"]), None)
    if algo is None:
        raise Rejected(-2011)
    algo.status = "EXPIRED"
    registry.settle()
    return {}


def restart(server: Server, body: Json) -> Json:
    """F46: the exchange comes back from maintenance: connections are closed and book ids begin anew."""
    venue = server.venue
    venue.depth_updates = [int(body.get("update_id", 1))] * len(venue.depth_updates)
    server.hub.close_all(1001)
    return {}


HANDLERS: dict[str, Callable[[Server, Json], Any]] = {
    handler.__name__: handler
    for handler in (
        faults, fill, expire, leverage, margin_mode, contract, status, keys, skew, ban, stall, listen_key,
        replay, event, forget_algo, restart,
    )
}  # fmt: skip
