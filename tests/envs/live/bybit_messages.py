"""Messages in the shape that Bybit v5 gives them, with numbers of our own.

Each function names the page of https://bybit-exchange.github.io/docs/v5 that shows its shape. Numbers are
strings where the exchange sends strings.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

# 2024-01-04 00:00 UTC
START_MS = 1_704_326_400_000
HOUR_MS = 3_600_000


def answer(result: Any, *, code: int = 0, text: str = "OK", now_ms: int = START_MS) -> Json:
    """/intro: every answer; HTTP 200 whatever the code."""
    return {"retCode": code, "retMsg": text, "result": result, "retExtInfo": {}, "time": now_ms}


def page(rows: list[Any], cursor: str = "") -> Json:
    """/order/open-order and others: a page of a list; the last page may name a cursor too."""
    return {"list": rows, "nextPageCursor": cursor, "category": "linear"}


def instrument(symbol: str = "BTCUSDT", base: str = "BTC", **more: Any) -> Json:
    """/market/instrument"""
    row = {
        "symbol": symbol, "contractType": "LinearPerpetual", "status": "Trading", "baseCoin": base,
        "quoteCoin": "USDT", "launchTime": "1584230400000", "deliveryTime": "0", "deliveryFeeRate": "",
        "priceScale": "2",
        "leverageFilter": {"minLeverage": "1", "maxLeverage": "100.00", "leverageStep": "0.01"},
        "priceFilter": {"minPrice": "0.10", "maxPrice": "1999999.80", "tickSize": "0.10"},
        "lotSizeFilter": {
            "maxOrderQty": "1190.000", "minOrderQty": "0.001", "qtyStep": "0.001",
            "postOnlyMaxOrderQty": "1190.000", "maxMktOrderQty": "119.000", "minNotionalValue": "5",
        },
        "unifiedMarginTrade": True, "fundingInterval": 480, "settleCoin": "USDT", "copyTrading": "both",
        "upperFundingRate": "0.00375", "lowerFundingRate": "-0.00375", "isPreListing": False,
        "preListingInfo": None,
    }  # fmt: skip
    return row | more


def tier(number: int, limit: str, rate: str, leverage: str, deduction: str, symbol: str = "BTCUSDT") -> Json:
    """/market/risk-limit"""
    return {
        "id": number, "symbol": symbol, "riskLimitValue": limit, "maintenanceMargin": rate,
        "initialMargin": "0.01", "isLowestRisk": int(number == 1), "maxLeverage": leverage,
        "mmDeduction": deduction,
    }  # fmt: skip


TIERS = [
    tier(1, "2000000", "0.005", "100.00", ""),
    tier(2, "2600000", "0.0056", "90.00", "1200"),
    tier(3, "3200000", "0.0062", "80.00", "2760"),
]


def order(link: str, order_id: str = "fd4300ae-7847-404e-b947-b46980a4d140", **more: Any) -> Json:
    """/order/open-order; the order stream has the same fields and ``category``"""
    row = {
        "orderId": order_id, "orderLinkId": link, "blockTradeId": "", "symbol": "BTCUSDT", "price": "42000",
        "qty": "0.010", "side": "Buy", "isLeverage": "", "positionIdx": 0, "orderStatus": "New",
        "createType": "CreateByUser", "cancelType": "UNKNOWN", "rejectReason": "EC_NoError", "avgPrice": "",
        "leavesQty": "0.010", "leavesValue": "420", "cumExecQty": "0.000", "cumExecValue": "0",
        "cumExecFee": "0", "timeInForce": "GTC", "orderType": "Limit", "stopOrderType": "", "orderIv": "",
        "triggerPrice": "", "takeProfit": "", "stopLoss": "", "tpTriggerBy": "", "slTriggerBy": "",
        "triggerDirection": 0, "triggerBy": "", "lastPriceOnCreated": "42100.5", "reduceOnly": False,
        "closeOnTrigger": False, "smpType": "None", "smpGroup": 0, "smpOrderId": "", "tpslMode": "",
        "tpLimitPrice": "", "slLimitPrice": "", "placeType": "", "createdTime": str(START_MS),
        "updatedTime": str(START_MS),
    }  # fmt: skip
    return row | more


def waiting_stop(link: str, **more: Any) -> Json:
    """/order/open-order: a conditional order that closes whatever is held"""
    row = order(link, orderType="Market", price="0", qty="0", timeInForce="IOC", orderStatus="Untriggered")
    row |= {
        "side": "Sell", "stopOrderType": "Stop", "triggerPrice": "40000.00", "triggerDirection": 2,
        "triggerBy": "MarkPrice", "reduceOnly": True, "closeOnTrigger": True, "leavesQty": "0",
    }  # fmt: skip
    return row | more


def execution(number: int, link: str = "", *, time_ms: int = START_MS, **more: Any) -> Json:
    """/order/execution; the execution stream has the same fields and ``category``"""
    row = {
        "symbol": "BTCUSDT", "orderType": "Market", "underlyingPrice": "", "orderLinkId": link, "side": "Buy",
        "indexPrice": "", "orderId": "8c065341-7b52-4ca9-ac2c-37e31ac55c94", "stopOrderType": "UNKNOWN",
        "leavesQty": "0", "execTime": str(time_ms), "feeCurrency": "", "isMaker": False,
        "execFee": "0.2310000", "feeRate": "0.00055", "execId": f"e0cbe81d-0f18-5866-9415-{number:012d}",
        "createType": "CreateByUser", "tradeIv": "", "blockTradeId": "", "markPrice": "42000.00",
        "execPrice": "42000.0", "markIv": "", "orderQty": "0.010", "orderPrice": "44100.0",
        "execValue": "420", "execType": "Trade", "execQty": "0.010", "closedSize": "0", "extraFees": "",
        "seq": 4688002127,
    }  # fmt: skip
    return row | more


def funding_execution(number: int, *, time_ms: int) -> Json:
    """/order/execution: funding is told as an execution that changes no position"""
    return execution(
        number, time_ms=time_ms, execType="Funding", orderType="UNKNOWN", orderPrice="0", orderQty="0",
        createType="", execFee="0.042", feeRate="0.0001",
    )  # fmt: skip


def transaction(number: int, kind: str, *, time_ms: int = START_MS, **more: Any) -> Json:
    """/account/transaction-log: change = cashFlow + funding - fee"""
    row = {
        "id": f"592324_BTCUSDT_{number}", "symbol": "BTCUSDT", "side": "Buy", "funding": "",
        "orderLinkId": "", "orderId": f"order-{number}", "fee": "0", "change": "0", "cashFlow": "0",
        "transactionTime": str(time_ms), "type": kind, "feeRate": "0.0001", "bonusChange": "",
        "size": "0.01", "qty": "0.01", "cashBalance": "10000", "currency": "USDT", "category": "linear",
        "tradePrice": "42000", "tradeId": f"534c0003-4bf7-486f-aa02-{number:012d}", "extraFees": "",
        "transSubType": "",
    }  # fmt: skip
    return row | more


def transfer(number: int, amount: str, *, time_ms: int = START_MS) -> Json:
    """/account/transaction-log: money that came into the unified wallet"""
    return transaction(
        number, "TRANSFER_IN", time_ms=time_ms, symbol="", category="", side="None", cashFlow=amount,
        change=amount, orderId="", tradeId="",
    )  # fmt: skip


def wallet(balance: str, equity: str) -> Json:
    """/account/wallet-balance"""
    coin = {
        "availableToBorrow": "", "bonus": "0", "accruedInterest": "0", "availableToWithdraw": "",
        "totalOrderIM": "0", "equity": equity, "totalPositionMM": "2.1", "usdValue": equity,
        "unrealisedPnl": "0", "collateralSwitch": True, "spotHedgingQty": "0",
        "borrowAmount": "0.000000000000000000", "totalPositionIM": "42", "walletBalance": balance,
        "cumRealisedPnl": "0", "locked": "0", "marginCollateral": True, "coin": "USDT",
    }  # fmt: skip
    # the account's own sums are in dollars and count other coins too
    row = {
        "totalEquity": "99999", "accountIMRate": "0.01", "totalMarginBalance": "99999",
        "totalInitialMargin": "42", "accountType": "UNIFIED", "totalAvailableBalance": "99000",
        "accountMMRate": "0", "totalPerpUPL": "0", "totalWalletBalance": "99999", "accountLTV": "0",
        "totalMaintenanceMargin": "2.1", "coin": [coin],
    }  # fmt: skip
    return {"list": [row]}


def position(size: str, side: str = "Buy", symbol: str = "BTCUSDT", **more: Any) -> Json:
    """/position"""
    row = {
        "positionIdx": 0, "riskId": 1, "riskLimitValue": "2000000", "symbol": symbol, "side": side,
        "size": size, "avgPrice": "42000", "positionValue": "420", "tradeMode": 0, "positionStatus": "Normal",
        "autoAddMargin": 0, "adlRankIndicator": 2, "leverage": "10", "positionBalance": "42.2",
        "markPrice": "42100.00", "liqPrice": "", "bustPrice": "", "positionMM": "2.3", "positionIM": "42.2",
        "takeProfit": "", "stopLoss": "", "trailingStop": "0", "unrealisedPnl": "1", "curRealisedPnl": "0",
        "cumRealisedPnl": "0", "seq": 5723621632, "isReduceOnly": False, "createdTime": "1676538056258",
        "updatedTime": "1697673600012", "tpslMode": "Full", "sessionAvgPrice": "",
    }  # fmt: skip
    return row | more


def account_info(margin_mode: str = "REGULAR_MARGIN", status: int = 5) -> Json:
    """/account/account-info"""
    return {
        "marginMode": margin_mode, "updatedTime": "1697078946000", "unifiedMarginStatus": status,
        "dcpStatus": "OFF", "timeWindow": 0, "smpGroup": 0, "isMasterTrader": False,
        "spotHedgingStatus": "OFF",
    }  # fmt: skip


def candle(open_ms: int, close: float, *, is_mark: bool = False) -> list[str]:
    """/market/kline: time, open, high, low, close, volume, turnover; /market/mark-kline ends with close"""
    prices = [str(open_ms), "42000", "42500", "41500", str(close)]
    return prices if is_mark else [*prices, "3199.431", "138878389.2519"]


def event(topic: str, *rows: Json) -> Json:
    """/websocket/private/order, /execution, /position"""
    return {
        "id": "592324803b2785-26fa-4214-9963-bdd4727f07be", "topic": topic, "creationTime": START_MS,
        "data": [{"category": "linear"} | row for row in rows],
    }  # fmt: skip


def position_event(size: str, side: str = "Buy", **more: Any) -> Json:
    """/websocket/private/position: the average is called entryPrice"""
    row = position(size, side, **more)
    row["entryPrice"] = row.pop("avgPrice")
    return row
