"""Binance's JSON of orders, trades, income and events, in the desk's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perpgym.envs.live.broker import (
    Fill,
    Happening,
    Income,
    IncomeKind,
    Order,
    OrderState,
    Position,
    SettingsChanged,
    StreamBroken,
    Style,
)
from perpgym.envs.live.wire import finite

Json = dict[str, Any]
Names = Callable[[str], str]

_STATES = {
    "NEW": OrderState.OPEN,
    "PARTIALLY_FILLED": OrderState.PARTIAL,
    "FILLED": OrderState.FILLED,
    "CANCELED": OrderState.CANCELLED,
    "EXPIRED": OrderState.EXPIRED,
    "EXPIRED_IN_MATCH": OrderState.EXPIRED,
    "REJECTED": OrderState.REJECTED,
    # of conditional orders: what they sent is on its way, or has ended
    "TRIGGERING": OrderState.PARTIAL,
    "TRIGGERED": OrderState.PARTIAL,
    "FINISHED": OrderState.FILLED,
}
_STYLES: dict[str, Style] = {
    "MARKET": "market", "LIMIT": "limit", "STOP": "stop", "STOP_MARKET": "stop", "TAKE_PROFIT": "take_profit",
    "TAKE_PROFIT_MARKET": "take_profit", "LIQUIDATION": "market",
}  # fmt: skip
_INCOME_KINDS: dict[str, IncomeKind] = {
    "FUNDING_FEE": "funding", "COMMISSION": "fee", "REALIZED_PNL": "pnl", "INSURANCE_CLEAR": "clearance",
    "TRANSFER": "transfer",
}  # fmt: skip


def _signed(side: str, quantity: Any) -> float:
    return finite(quantity) if side == "BUY" else -finite(quantity)


def _number(value: Any) -> float | None:
    return finite(value) if value not in (None, "") and finite(value) != 0.0 else None


def _style(kind: str, time_in_force: str) -> Style:
    return "post_only" if kind == "LIMIT" and time_in_force == "GTX" else _STYLES.get(kind, "market")


def read_order(row: Json, names: Names) -> Order:
    """A row of ``/order``, ``/openOrders`` or ``/allOrders``."""
    return Order(
        client_id=row["clientOrderId"],
        exchange_id=str(row["orderId"]),
        contract=names(row["symbol"]),
        quantity=_signed(row["side"], row["origQty"]),
        filled=_signed(row["side"], row["executedQty"]),
        average=_number(row.get("avgPrice")),
        style=_style(row.get("origType") or row["type"], row.get("timeInForce", "")),
        price=_number(row.get("price")),
        trigger_price=_number(row.get("stopPrice")),
        watches="mark" if row.get("workingType") == "MARK_PRICE" else "last",
        reduce_only=bool(row.get("reduceOnly")),
        closes_position=bool(row.get("closePosition")),
        state=_STATES.get(row["status"], OrderState.UNKNOWN),
        updated_ms=int(row.get("updateTime") or 0),
    )


def read_algo(row: Json, names: Names) -> Order:
    """A row of ``/algoOrder`` or ``/openAlgoOrders``."""
    return Order(
        client_id=row["clientAlgoId"],
        exchange_id=str(row["algoId"]),
        contract=names(row["symbol"]),
        quantity=_signed(row["side"], row.get("quantity") or 0.0),
        style=_style(row["orderType"], row.get("timeInForce", "")),
        price=_number(row.get("price")),
        trigger_price=_number(row["triggerPrice"]),
        watches="mark" if row.get("workingType") == "MARK_PRICE" else "last",
        reduce_only=bool(row.get("reduceOnly")),
        closes_position=bool(row.get("closePosition")),
        state=_STATES.get(row["algoStatus"], OrderState.UNKNOWN),
        updated_ms=int(row.get("updateTime") or 0),
    )


def read_trade(row: Json, names: Names, client_id: str | None) -> Fill:
    """A row of ``/userTrades``; its id is the exchange's, unique within the contract."""
    return Fill(
        trade_id=str(row["id"]),
        client_id=client_id,
        contract=names(row["symbol"]),
        quantity=_signed(row["side"], row["qty"]),
        price=finite(row["price"]),
        fee=finite(row["commission"]),
        fee_currency=row["commissionAsset"],
        is_maker=bool(row["maker"]),
        time_ms=int(row["time"]),
    )


def read_income(row: Json, names: Names) -> Income:
    """A row of ``/income``; transaction ids are unique within a kind."""
    return Income(
        income_id=f"{row['incomeType']}-{row['tranId']}-{row['symbol']}",
        kind=_INCOME_KINDS.get(row["incomeType"], "other"),
        contract=names(row["symbol"]) if row["symbol"] else None,
        amount=finite(row["income"]),
        currency=row["asset"],
        time_ms=int(row["time"]),
    )


def read_position(row: Json, names: Names) -> Position:
    """A row of ``/positionRisk``."""
    return Position(
        contract=names(row["symbol"]),
        quantity=finite(row["positionAmt"]),
        entry_price=finite(row["entryPrice"]),
        mark_price=finite(row["markPrice"]),
        liquidation_price=_number(row["liquidationPrice"]),
        isolated_wallet=finite(row.get("isolatedWallet") or 0.0),
    )


def read_event(message: Json, names: Names) -> list[Happening]:
    """What a message of the user stream says; nothing for a kind that nobody knows."""
    kind = message.get("e")
    if kind == "ORDER_TRADE_UPDATE":
        return _order_event(message["o"], names)
    if kind == "ALGO_UPDATE":
        return [_algo_event(message["o"], names)]
    if kind == "ACCOUNT_UPDATE":
        return _account_event(message["a"], names)
    if kind == "ACCOUNT_CONFIG_UPDATE":
        row: Json = message.get("ac") or message.get("ai") or {}
        return [SettingsChanged(text=str(row), contract=names(row["s"]) if "s" in row else None)]
    if kind == "listenKeyExpired":
        return [StreamBroken(text="the user stream's key has expired")]
    return []


def _order_event(row: Json, names: Names) -> list[Happening]:
    order = Order(
        client_id=row["c"],
        exchange_id=str(row["i"]),
        contract=names(row["s"]),
        quantity=_signed(row["S"], row["q"]),
        filled=_signed(row["S"], row["z"]),
        average=_number(row["ap"]),
        style=_style(row.get("ot") or row["o"], row.get("f", "")),
        price=_number(row["p"]),
        trigger_price=_number(row.get("sp")),
        watches="mark" if row.get("wt") == "MARK_PRICE" else "last",
        reduce_only=bool(row.get("R")),
        closes_position=bool(row.get("cp")),
        state=_STATES.get(row["X"], OrderState.UNKNOWN),
        updated_ms=int(row["T"]),
    )
    if row["x"] != "TRADE":
        return [order]
    fill = Fill(
        trade_id=str(row["t"]),
        client_id=row["c"],
        contract=order.contract,
        quantity=_signed(row["S"], row["l"]),
        price=finite(row["L"]),
        fee=finite(row.get("n") or 0.0),
        fee_currency=row.get("N") or "USDT",
        is_maker=bool(row.get("m")),
        time_ms=int(row["T"]),
    )
    return [fill, order]


def _algo_event(row: Json, names: Names) -> Order:
    return Order(
        client_id=row["caid"],
        exchange_id=str(row["aid"]),
        contract=names(row["s"]),
        quantity=_signed(row["S"], row.get("q") or 0.0),
        style=_style(row["o"], row.get("f", "")),
        price=_number(row.get("p")),
        trigger_price=_number(row.get("tp")),
        watches="mark" if row.get("wt") == "MARK_PRICE" else "last",
        reduce_only=bool(row.get("R")),
        closes_position=bool(row.get("cp")),
        state=_STATES.get(row["X"], OrderState.UNKNOWN),
    )


def _account_event(row: Json, names: Names) -> list[Happening]:
    out: list[Happening] = [
        Position(
            contract=names(p["s"]),
            quantity=finite(p["pa"]),
            entry_price=finite(p["ep"]),
            mark_price=0.0,
            isolated_wallet=finite(p.get("iw") or 0.0),
        )
        for p in row.get("P", [])
    ]
    if row.get("m") == "MARGIN_TYPE_CHANGE":
        out.append(SettingsChanged(text="margin mode changed"))
    return out
