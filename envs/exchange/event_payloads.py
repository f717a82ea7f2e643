"""What the user stream says of an order, a conditional order, the account and its settings."""

from __future__ import annotations

from perpgym.envs.exchange.books import AccountEvent, AlgoEvent, Books, ConfigEvent, Event, OrderEvent
from perpgym.envs.exchange.margins import position_margin
from perpgym.envs.exchange.payloads import Json
from perpgym.envs.exchange.symbols import Symbols
from perpgym.envs.exchange.wire import text


def event_jsons(event: Event, books: Books, names: Symbols) -> list[Json]:
    """What the user stream says of an event, as it is when the event happens."""
    if isinstance(event, OrderEvent):
        update = _order_update(event, books, names)
        return [update] if event.trade is None else [_trade_lite(event, names), update]
    if isinstance(event, AlgoEvent):
        return [_algo_update(event, books, names)]
    if isinstance(event, AccountEvent):
        return [_account_update(event, books, names)]
    return [_config_update(event, names)]


def _order_update(event: OrderEvent, books: Books, names: Symbols) -> Json:
    order, trade = event.order, event.trade
    margin = position_margin(books, order.asset)
    out: Json = {
        "s": names.names[order.asset],
        "c": order.client_id,
        "S": order.side,
        "o": order.kind if order.original_kind != "LIQUIDATION" else "LIQUIDATION",
        "f": order.time_in_force,
        "q": text(order.quantity),
        "p": text(order.price),
        "ap": text(order.average_price),
        "sp": text(order.trigger_price),
        "x": event.execution,
        "X": order.status,
        "i": order.order_id,
        "l": text(trade.quantity if trade else 0.0),
        "z": text(order.executed),
        "L": text(trade.price if trade else 0.0),
        "T": event.time_ms,
        "t": trade.trade_id if trade else 0,
        "b": text(margin.bid_notional),
        "a": text(margin.ask_notional),
        "m": bool(trade and trade.is_maker),
        "R": order.reduce_only,
        "wt": order.working_type,
        "ot": order.original_kind,
        "ps": "BOTH",
        "cp": order.close_position,
        "rp": text(trade.realised if trade else 0.0),
        "pP": False,
        "si": 0,
        "ss": 0,
        "V": "NONE",
        "pm": "NONE",
        "gtd": 0,
        "er": "0",
    }
    if trade is not None:
        out |= {"n": text(trade.commission), "N": names.currency}
    return {"e": "ORDER_TRADE_UPDATE", "E": event.time_ms, "T": event.time_ms, "o": out}


def _trade_lite(event: OrderEvent, names: Symbols) -> Json:
    order, trade = event.order, event.trade
    assert trade is not None
    return {
        "e": "TRADE_LITE",
        "E": event.time_ms,
        "T": event.time_ms,
        "s": names.names[order.asset],
        "q": text(order.quantity),
        "p": text(order.price),
        "m": trade.is_maker,
        "c": order.client_id,
        "S": order.side,
        "L": text(trade.price),
        "l": text(trade.quantity),
        "t": trade.trade_id,
        "i": order.order_id,
    }


def _algo_update(event: AlgoEvent, books: Books, names: Symbols) -> Json:
    algo = event.algo
    child = books.registry.orders.get(algo.child_id)
    out = {
        "caid": algo.client_id,
        "aid": algo.algo_id,
        "at": "CONDITIONAL",
        "o": algo.kind,
        "s": names.names[algo.asset],
        "S": algo.side,
        "ps": "BOTH",
        "f": algo.time_in_force,
        "q": text(algo.quantity),
        "X": algo.status,
        "ai": str(algo.child_id) if algo.child_id else "",
        "ap": text(child.average_price if child else 0.0),
        "aq": text(child.executed if child else 0.0),
        "act": child.kind if child else "0",
        "tp": text(algo.trigger_price),
        "p": text(algo.price),
        "V": "NONE",
        "wt": algo.working_type,
        "pm": "NONE",
        "cp": algo.close_position,
        "pP": algo.price_protect,
        "R": algo.reduce_only,
        "tt": algo.trigger_ms,
        "gtd": 0,
        "rm": algo.end_reason,
    }
    return {"e": "ALGO_UPDATE", "E": event.time_ms, "T": event.time_ms, "o": out}


def _account_update(event: AccountEvent, books: Books, names: Symbols) -> Json:
    isolated = sum(books.isolated_wallet(a) for a in range(len(books.contracts)))
    balance = {
        "a": names.currency,
        "wb": text(books.wallet),
        "cw": text(books.wallet - isolated),
        "bc": "0",
    }
    # funding on a cross position names the balance only
    is_funding = event.reason == "FUNDING_FEE"
    shown = [a for a in event.assets if not is_funding or books.rules(a).is_isolated > 0.0]
    return {
        "e": "ACCOUNT_UPDATE",
        "E": event.time_ms,
        "T": event.time_ms,
        "a": {
            "m": event.reason,
            "B": [balance],
            "P": [_position_update(books, names, asset) for asset in shown],
        },
    }


def _position_update(books: Books, names: Symbols, asset: int) -> Json:
    is_isolated = books.rules(asset).is_isolated > 0.0
    return {
        "s": names.names[asset],
        "pa": text(books.position(asset)),
        "ep": text(books.entry_price(asset)),
        "bep": text(books.entry_price(asset)),
        "cr": "0",
        "up": text(position_margin(books, asset).unrealised),
        "mt": "isolated" if is_isolated else "cross",
        "iw": text(books.isolated_wallet(asset)),
        "ps": "BOTH",
        "ma": names.currency,
    }


def _config_update(event: ConfigEvent, names: Symbols) -> Json:
    return {
        "e": "ACCOUNT_CONFIG_UPDATE",
        "E": event.time_ms,
        "T": event.time_ms,
        "ac": {"s": names.names[event.asset], "l": event.leverage},
    }
