"""Bybit's JSON of orders, executions, transactions and events, in the desk's words.

Source: Bybit API v5, "Get Open & Closed Orders", "Get Trade History", "Get Transaction Log",
"Get Position Info", "Enums Definitions", and the private streams "Order", "Execution", "Position".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perpgym.data.contract import Bracket
from perpgym.envs.live.broker import (
    Fill,
    Happening,
    Income,
    IncomeKind,
    Order,
    OrderState,
    Position,
    SettingsChanged,
    Style,
)
from perpgym.envs.live.wire import finite

Json = dict[str, Any]
Names = Callable[[str], str]

# the way that a price must go to trigger
RISES, FALLS = 1, 2

_STATES = {
    "New": OrderState.OPEN,
    "Untriggered": OrderState.OPEN,
    # what a conditional order sent is on its way
    "Triggered": OrderState.PARTIAL,
    "PartiallyFilled": OrderState.PARTIAL,
    "Filled": OrderState.FILLED,
    "Cancelled": OrderState.CANCELLED,
    "PartiallyFilledCanceled": OrderState.CANCELLED,
    "Deactivated": OrderState.CANCELLED,
    "Rejected": OrderState.REJECTED,
}
# rows of the transaction log that come of a position: profit, funding and fee apart
_TRADES = frozenset({"TRADE", "SETTLEMENT", "LIQUIDATION", "ADL", "DELIVERY"})
_TRANSFERS = frozenset({"TRANSFER_IN", "TRANSFER_OUT"})
# an execution that moves money and no position
_FUNDING = "Funding"
# orders and executions that the exchange forces on the account, by the names that the desk knows them by
_FORCED = {
    "CreateByLiq": "autoclose-",
    "CreateByTakeOver_PassThrough": "autoclose-",
    "CreateByAdminClosing": "autoclose-",
    "BustTrade": "autoclose-",
    "CreateByAdl_PassThrough": "adl_autoclose-",
    "AdlTrade": "adl_autoclose-",
    "CreateBySettle": "settlement_autoclose-",
    "Settle": "settlement_autoclose-",
    "Delivery": "settlement_autoclose-",
}


def _signed(side: str, quantity: Any) -> float:
    return finite(quantity) if side == "Buy" else -finite(quantity)


def _number(value: Any) -> float | None:
    return finite(value) if value not in (None, "") and finite(value) != 0.0 else None


def _client_id(row: Json) -> str:
    """The order's name: ours, or the exchange's for an order that was given none and so is not ours."""
    forced = _FORCED.get(row.get("createType", "")) or _FORCED.get(row.get("execType", "")) or ""
    return str(row.get("orderLinkId") or forced + row["orderId"])


def is_waiting(row: Json) -> bool:
    """A conditional order that has not been triggered."""
    return bool(row["orderStatus"] == "Untriggered")


def trigger_direction(style: Style, is_buy: bool) -> int:
    """Which way the price must go: a stop that buys waits for a rise, a take-profit that buys for a fall."""
    return RISES if (style == "stop") == is_buy else FALLS


def _style(row: Json) -> Style:
    if _number(row.get("triggerPrice")) is not None:
        direction = int(row.get("triggerDirection") or 0)
        if direction in (RISES, FALLS):
            is_stop = trigger_direction("stop", row["side"] == "Buy") == direction
        else:
            # set on the position by hand: only the kind tells
            is_stop = "TakeProfit" not in row.get("stopOrderType", "")
        return "stop" if is_stop else "take_profit"
    if row["orderType"] == "Limit":
        return "post_only" if row.get("timeInForce") == "PostOnly" else "limit"
    return "market"


def _state(row: Json) -> OrderState:
    state = _STATES.get(row["orderStatus"], OrderState.UNKNOWN)
    if state is OrderState.CANCELLED and row.get("cancelType") != "CancelByUser":
        # nobody asked for it: post-only would have crossed, no liquidity, liquidation, delisting
        return OrderState.EXPIRED
    return state


def read_order(row: Json, names: Names) -> Order:
    """A row of ``/v5/order/realtime``, ``/v5/order/history`` or of the order stream."""
    return Order(
        client_id=_client_id(row),
        exchange_id=row["orderId"],
        contract=names(row["symbol"]),
        quantity=_signed(row["side"], row["qty"]),
        filled=_signed(row["side"], row.get("cumExecQty") or 0.0),
        average=_number(row.get("avgPrice")),
        style=_style(row),
        # of a market order it is the worst price that the exchange would take
        price=_number(row.get("price")) if row["orderType"] == "Limit" else None,
        trigger_price=_number(row.get("triggerPrice")),
        watches="mark" if row.get("triggerBy") == "MarkPrice" else "last",
        reduce_only=bool(row.get("reduceOnly")),
        # asked for by orders that close whatever is held, and by no other of ours
        closes_position=bool(row.get("closeOnTrigger")),
        state=_state(row),
        updated_ms=int(row.get("updatedTime") or 0),
    )


def read_executions(rows: list[Json], names: Names) -> list[Fill]:
    """Rows of ``/v5/execution/list`` or of the execution stream that changed a position.

    Liquidations, deleveraging and settlements are among them; funding is not.
    """
    return [_fill(row, names) for row in rows if row["execType"] != _FUNDING]


def _fill(row: Json, names: Names) -> Fill:
    return Fill(
        trade_id=row["execId"],
        client_id=_client_id(row),
        contract=names(row["symbol"]),
        quantity=_signed(row["side"], row["execQty"]),
        price=finite(row["execPrice"]),
        fee=finite(row.get("execFee") or 0.0),
        # empty for contracts settled in USDT
        fee_currency=row.get("feeCurrency") or "USDT",
        is_maker=bool(row.get("isMaker")),
        time_ms=int(row["execTime"]),
    )


def read_transaction(row: Json, names: Names) -> list[Income]:
    """A row of ``/v5/account/transaction-log``: one change of the wallet, or two where a trade's profit
    and fee share a row. They sum to the row's ``change`` = cashFlow + funding - fee.
    """
    kind, is_linear = row["type"], row.get("category") == "linear"
    if kind in _TRANSFERS:
        parts: list[tuple[IncomeKind, float]] = [("transfer", finite(row["change"]))]
    elif is_linear and kind in _TRADES:
        fee = -finite(row["fee"] or 0.0)
        parts = [
            ("pnl", finite(row["cashFlow"] or 0.0)),
            ("funding", finite(row["funding"] or 0.0)),
            ("fee", fee),
        ]
    else:
        # spot, interest, bonus, conversion: USDT came or went and no contract traded here knows of it
        parts = [("other", finite(row["change"]))]
    # the log's own ids repeat across types
    number = f"{kind}-{row.get('id', '')}-{row.get('tradeId', '')}"
    return [
        Income(
            income_id=f"{number}-{part}",
            kind=part,
            contract=names(row["symbol"]) if is_linear and row["symbol"] else None,
            amount=amount,
            currency=row["currency"],
            time_ms=int(row["transactionTime"]),
        )
        for part, amount in parts
        if amount != 0.0
    ]


def read_position(row: Json, names: Names, *, is_isolated: bool = False) -> Position:
    """A row of ``/v5/position/list`` or of the position stream; the margin mode is the account's."""
    return Position(
        contract=names(row["symbol"]),
        quantity=_signed(row["side"], row["size"]),
        entry_price=finite(row.get("avgPrice") or row.get("entryPrice") or 0.0),
        mark_price=finite(row.get("markPrice") or 0.0),
        liquidation_price=_number(row.get("liqPrice")),
        isolated_wallet=finite(row.get("positionBalance") or 0.0) if is_isolated else 0.0,
    )


def read_brackets(rows: list[Json]) -> tuple[Bracket, ...]:
    """Rows of ``/v5/market/risk-limit``: ``riskLimitValue`` is a tier's upper end, ``mmDeduction`` its cum.

    The last bracket is open upwards, so that the margin of any position is defined.
    """
    brackets: list[Bracket] = []
    for row in sorted(rows, key=lambda row: finite(row["riskLimitValue"])):
        rate, told = finite(row["maintenanceMargin"]), row.get("mmDeduction")
        below = brackets[-1] if brackets else None
        floor = 0.0 if below is None else below.cap
        computed = 0.0 if below is None else floor * (rate - below.maintenance_margin_rate) + below.cum
        brackets.append(
            Bracket(
                floor=floor,
                cap=finite(row["riskLimitValue"]) if len(brackets) < len(rows) - 1 else float("inf"),
                maintenance_margin_rate=rate,
                cum=finite(told) if told else computed,
                max_leverage=finite(row["maxLeverage"]),
            )
        )
    return tuple(brackets)


def read_event(message: Json, names: Names, leverages: dict[str, str]) -> list[Happening]:
    """What a message of the private stream says; nothing for a topic that nobody knows.

    Args:
        message: as it came.
        names: from the exchange's symbol to ours.
        leverages: by symbol, as last heard; kept up to date here, because the position stream is all that
            tells of a changed leverage.
    """
    topic = message.get("topic", "").split(".")[0]
    rows = [row for row in message.get("data", []) if row.get("category") == "linear"]
    if topic == "order":
        return [read_order(row, names) for row in rows]
    if topic == "execution":
        return list(read_executions(rows, names))
    if topic == "position":
        return [happening for row in rows for happening in _position_event(row, names, leverages)]
    return []


def _position_event(row: Json, names: Names, leverages: dict[str, str]) -> list[Happening]:
    name, leverage = names(row["symbol"]), str(row.get("leverage", ""))
    if int(row.get("positionIdx") or 0) != 0:
        return [SettingsChanged(text="a position of hedge mode", contract=name)]
    out: list[Happening] = [read_position(row, names)]
    before = leverages.get(row["symbol"], leverage)
    leverages[row["symbol"]] = leverage
    if before != leverage:
        out.append(SettingsChanged(text=f"leverage {before} became {leverage}", contract=name))
    return out
