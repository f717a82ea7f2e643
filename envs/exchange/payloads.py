"""What the exchange keeps, in the JSON of its answers: orders, fills, income, positions, the account."""

from __future__ import annotations

from typing import Any

from perpgym.envs.exchange.books import Books
from perpgym.envs.exchange.margins import PositionMargin, available, position_margin
from perpgym.envs.exchange.orders import AlgoOrder, Income, Order, Trade
from perpgym.envs.exchange.symbols import Symbols
from perpgym.envs.exchange.wire import text

Json = dict[str, Any]


def order_json(order: Order, names: Symbols) -> Json:
    """An order as ``GET /fapi/v1/order`` shows it."""
    return {
        "orderId": order.order_id,
        "symbol": names.names[order.asset],
        "status": order.status,
        "clientOrderId": order.client_id,
        "price": text(order.price),
        "avgPrice": text(order.average_price),
        "origQty": text(order.quantity),
        "executedQty": text(order.executed),
        "cumQty": text(order.executed),
        "cumQuote": text(order.cum_quote),
        "timeInForce": order.time_in_force,
        "type": order.kind,
        "reduceOnly": order.reduce_only,
        "closePosition": order.close_position,
        "side": order.side,
        "positionSide": "BOTH",
        "stopPrice": text(order.trigger_price),
        "workingType": order.working_type,
        "priceProtect": False,
        "origType": order.original_kind,
        "priceMatch": "NONE",
        "selfTradePreventionMode": "NONE",
        "goodTillDate": 0,
        "time": order.time_ms,
        "updateTime": order.update_ms,
    }


def algo_json(algo: AlgoOrder, names: Symbols) -> Json:
    """A conditional order as ``GET /fapi/v1/algoOrder`` shows it."""
    return {
        "algoId": algo.algo_id,
        "clientAlgoId": algo.client_id,
        "algoType": "CONDITIONAL",
        "orderType": algo.kind,
        "symbol": names.names[algo.asset],
        "side": algo.side,
        "positionSide": "BOTH",
        "timeInForce": algo.time_in_force,
        "quantity": text(algo.quantity),
        "algoStatus": algo.status,
        "actualOrderId": str(algo.child_id) if algo.child_id else "",
        "triggerPrice": text(algo.trigger_price),
        "price": text(algo.price),
        "icebergQuantity": None,
        "selfTradePreventionMode": "NONE",
        "workingType": algo.working_type,
        "priceMatch": "NONE",
        "closePosition": algo.close_position,
        "priceProtect": algo.price_protect,
        "reduceOnly": algo.reduce_only,
        "activatePrice": text(algo.activate_price) if algo.is_trailing else None,
        "callbackRate": text(round(100.0 * algo.callback_rate, 8)) if algo.is_trailing else None,
        "createTime": algo.time_ms,
        "updateTime": algo.update_ms,
        "triggerTime": algo.trigger_ms,
        "goodTillDate": 0,
    }


def trade_json(trade: Trade, names: Symbols) -> Json:
    """A fill as ``GET /fapi/v1/userTrades`` shows it."""
    return {
        "symbol": names.names[trade.asset],
        "id": trade.trade_id,
        "orderId": trade.order_id,
        "side": trade.side,
        "price": text(trade.price),
        "qty": text(trade.quantity),
        "realizedPnl": text(trade.realised),
        "quoteQty": text(trade.price * trade.quantity),
        "commission": text(trade.commission),
        "commissionAsset": names.currency,
        "time": trade.time_ms,
        "positionSide": "BOTH",
        "buyer": trade.side == "BUY",
        "maker": trade.is_maker,
    }


def income_json(income: Income, names: Symbols) -> Json:
    """A row of ``GET /fapi/v1/income``."""
    return {
        "symbol": names.names[income.asset],
        "incomeType": income.kind,
        "income": text(income.amount),
        "asset": names.currency,
        "info": str(income.trade_id) if income.trade_id else income.kind,
        "time": income.time_ms,
        "tranId": income.tran_id,
        "tradeId": str(income.trade_id) if income.trade_id else "",
    }


def position_json(books: Books, names: Symbols, asset: int, update_ms: int) -> Json:
    """A row of ``GET /fapi/v3/positionRisk``."""
    margin = position_margin(books, asset)
    isolated = books.isolated_wallet(asset)
    return {
        "symbol": names.names[asset],
        "positionSide": "BOTH",
        "positionAmt": text(books.position(asset)),
        "entryPrice": text(books.entry_price(asset)),
        "breakEvenPrice": text(books.entry_price(asset)),
        "markPrice": text(books.market.mark_price(asset)),
        "unRealizedProfit": text(margin.unrealised),
        "liquidationPrice": text(margin.liquidation_price),
        "isolatedMargin": text(isolated + margin.unrealised if isolated else 0.0),
        "notional": text(margin.notional),
        "marginAsset": names.currency,
        "isolatedWallet": text(isolated),
        "initialMargin": text(margin.position_margin + margin.order_margin),
        "maintMargin": text(margin.maintenance),
        "positionInitialMargin": text(margin.position_margin),
        "openOrderInitialMargin": text(margin.order_margin),
        "adl": 0,
        "bidNotional": text(margin.bid_notional),
        "askNotional": text(margin.ask_notional),
        "updateTime": update_ms,
    }


def position_v2_json(books: Books, names: Symbols, asset: int, update_ms: int) -> Json:
    """The same with what ``GET /fapi/v2/positionRisk`` has besides."""
    rules = books.rules(asset)
    is_isolated = rules.is_isolated > 0.0
    return {
        **position_json(books, names, asset, update_ms),
        "leverage": f"{rules.leverage:g}",
        "maxNotionalValue": text(min(rules.max_position_notional, 1e15)),
        "marginType": "isolated" if is_isolated else "cross",
        "isAutoAddMargin": "false",
        "isolated": is_isolated,
    }


def account_json(books: Books, names: Symbols, update_ms: int, *, is_v2: bool) -> Json:
    """``GET /fapi/v3/account``, or v2 with every contract and its settings."""
    margins = [position_margin(books, asset) for asset in range(len(books.contracts))]
    totals = _totals(books, margins)
    asset_row = {
        "asset": names.currency,
        **totals,
        "maxWithdrawAmount": totals["availableBalance"],
        "updateTime": update_ms,
    }
    positions = [
        _account_position(books, names, asset, margin, update_ms, is_v2)
        for asset, margin in enumerate(margins)
        if is_v2 or margin.notional or margin.order_margin
    ]
    if is_v2:
        asset_row["marginAvailable"] = True
    out: Json = {f"total{name[0].upper()}{name[1:]}": value for name, value in totals.items()}
    out["totalCrossWalletBalance"] = totals["crossWalletBalance"]
    out["totalCrossUnPnl"] = totals["crossUnPnl"]
    out |= {"availableBalance": totals["availableBalance"], "maxWithdrawAmount": totals["availableBalance"]}
    if is_v2:
        flags = {"canTrade": True, "canDeposit": True, "canWithdraw": False, "feeTier": 0}
        out |= {**flags, "multiAssetsMargin": False, "updateTime": 0}
    return out | {"assets": [asset_row], "positions": positions}


def _totals(books: Books, margins: list[PositionMargin]) -> Json:
    wallet, unrealised = books.wallet, sum(m.unrealised for m in margins)
    isolated = [books.isolated_wallet(a) for a in range(len(margins))]
    cross_profit = sum(m.unrealised for a, m in enumerate(margins) if books.rules(a).is_isolated == 0.0)
    return {
        "walletBalance": text(wallet),
        "unrealizedProfit": text(unrealised),
        "marginBalance": text(wallet + unrealised),
        "maintMargin": text(sum(m.maintenance for m in margins)),
        "initialMargin": text(sum(m.position_margin + m.order_margin for m in margins)),
        "positionInitialMargin": text(sum(m.position_margin for m in margins)),
        "openOrderInitialMargin": text(sum(m.order_margin for m in margins)),
        "crossWalletBalance": text(wallet - sum(isolated)),
        "crossUnPnl": text(cross_profit),
        "availableBalance": text(max(available(books), 0.0)),
    }


def _account_position(
    books: Books, names: Symbols, asset: int, margin: PositionMargin, update_ms: int, is_v2: bool
) -> Json:
    isolated = books.isolated_wallet(asset)
    out: Json = {
        "symbol": names.names[asset],
        "positionSide": "BOTH",
        "positionAmt": text(books.position(asset)),
        "unrealizedProfit": text(margin.unrealised),
        "isolatedMargin": text(isolated + margin.unrealised if isolated else 0.0),
        "notional": text(margin.notional),
        "isolatedWallet": text(isolated),
        "initialMargin": text(margin.position_margin + margin.order_margin),
        "maintMargin": text(margin.maintenance),
        "updateTime": update_ms,
    }
    if is_v2:
        rules = books.rules(asset)
        out |= {
            "positionInitialMargin": text(margin.position_margin),
            "openOrderInitialMargin": text(margin.order_margin),
            "leverage": f"{rules.leverage:g}",
            "isolated": rules.is_isolated > 0.0,
            "entryPrice": text(books.entry_price(asset)),
            "maxNotional": text(min(rules.max_position_notional, 1e15)),
            "bidNotional": text(margin.bid_notional),
            "askNotional": text(margin.ask_notional),
        }
    return out
