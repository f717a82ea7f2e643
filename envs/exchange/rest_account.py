"""The account: balances, positions, settings, income, and the key of its stream."""

from __future__ import annotations

from typing import Any

from perpgym.envs.exchange.api import Params, endpoint
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.payloads import account_json, income_json, position_json, position_v2_json
from perpgym.envs.exchange.venue import LISTEN_KEY_MS, Venue
from perpgym.envs.exchange.wire import text
from perpgym.envs.fees import maker_rate, taker_rate

_DONE = {"code": 200, "msg": "success"}


@endpoint("GET", "/fapi/v3/account", "/fapi/v1/account", weight=5)
def account(venue: Venue, params: Params) -> Any:
    """Wallet, margins and the contracts that have a position or orders."""
    return account_json(venue.books, venue.names, venue.now_ms, is_v2=False)


@endpoint("GET", "/fapi/v2/account", weight=5)
def account_v2(venue: Venue, params: Params) -> Any:
    """The same with every contract and its settings."""
    return account_json(venue.books, venue.names, venue.now_ms, is_v2=True)


@endpoint("GET", "/fapi/v3/balance", "/fapi/v2/balance", "/fapi/v1/balance", weight=5)
def balance(venue: Venue, params: Params) -> Any:
    """The one currency of the account."""
    row = account_json(venue.books, venue.names, venue.now_ms, is_v2=False)["assets"][0]
    return [
        {
            "accountAlias": "perpgym",
            "asset": row["asset"],
            "balance": row["walletBalance"],
            "crossWalletBalance": row["crossWalletBalance"],
            "crossUnPnl": row["crossUnPnl"],
            "availableBalance": row["availableBalance"],
            "maxWithdrawAmount": row["maxWithdrawAmount"],
            "marginAvailable": True,
            "updateTime": venue.now_ms,
        }
    ]


@endpoint("GET", "/fapi/v3/positionRisk", weight=5)
def position_risk(venue: Venue, params: Params) -> Any:
    """The contracts that have a position or open orders; one that is asked for by name."""
    rows = []
    for asset in _asked(venue, params):
        row = position_json(venue.books, venue.names, asset, venue.updated_ms[asset])
        if "symbol" in params or venue.books.position(asset) or venue.books.registry.open_orders(asset):
            rows.append(row)
    return rows


@endpoint("GET", "/fapi/v2/positionRisk", "/fapi/v1/positionRisk", weight=5)
def position_risk_v2(venue: Venue, params: Params) -> Any:
    """Every contract, with leverage and margin mode."""
    return [
        position_v2_json(venue.books, venue.names, asset, venue.updated_ms[asset])
        for asset in _asked(venue, params)
    ]


def _asked(venue: Venue, params: Params) -> list[int]:
    if "symbol" in params:
        return [venue.names.asset(params.need("symbol"))]
    return list(range(len(venue.names.names)))


@endpoint("GET", "/fapi/v1/symbolConfig", weight=5)
def symbol_config(venue: Venue, params: Params) -> Any:
    """Leverage and margin mode as they are set."""
    rows = []
    for asset in _asked(venue, params):
        rules = venue.books.rules(asset)
        rows.append(
            {
                "symbol": venue.names.names[asset],
                "marginType": "ISOLATED" if rules.is_isolated > 0.0 else "CROSSED",
                "isAutoAddMargin": False,
                "leverage": int(rules.leverage),
                "maxNotionalValue": text(min(rules.max_position_notional, 1e15)),
            }
        )
    return rows


@endpoint("GET", "/fapi/v1/accountConfig", weight=5)
def account_config(venue: Venue, params: Params) -> Any:
    """What the account may do."""
    return {
        "feeTier": 0,
        "canTrade": True,
        "canDeposit": True,
        "canWithdraw": False,
        "dualSidePosition": False,
        "updateTime": 0,
        "multiAssetsMargin": False,
        "tradeGroupId": -1,
    }


@endpoint("POST", "/fapi/v1/leverage")
def set_leverage(venue: Venue, params: Params) -> Any:
    """Change a contract's leverage."""
    asset, leverage = venue.names.asset(params.need("symbol")), params.whole("leverage")
    if leverage is None:
        raise Rejected(-1102, "leverage")
    cap = venue.engine.set_leverage(asset, leverage)
    return {
        "leverage": leverage,
        "maxNotionalValue": text(min(cap, 1e15)),
        "symbol": venue.names.names[asset],
    }


@endpoint("POST", "/fapi/v1/marginType")
def set_margin_type(venue: Venue, params: Params) -> Any:
    """Change a contract's margin mode."""
    mode = params.choice("marginType", ("ISOLATED", "CROSSED"), -1130)
    venue.engine.set_margin_mode(venue.names.asset(params.need("symbol")), mode == "ISOLATED")
    return _DONE


@endpoint("GET", "/fapi/v1/positionSide/dual", weight=30)
def position_mode(venue: Venue, params: Params) -> Any:
    """One-way: a contract has one position."""
    return {"dualSidePosition": False}


@endpoint("POST", "/fapi/v1/positionSide/dual")
def set_position_mode(venue: Venue, params: Params) -> Any:
    """Hedge mode is refused: the kernel nets a contract's positions."""
    params.need("dualSidePosition")
    if params.flag("dualSidePosition"):
        raise Rejected(-4084)
    raise Rejected(-4059)


@endpoint("GET", "/fapi/v1/multiAssetsMargin", weight=30)
def asset_mode(venue: Venue, params: Params) -> Any:
    """One currency of margin."""
    return {"multiAssetsMargin": False}


@endpoint("GET", "/fapi/v1/feeBurn", weight=30)
def fee_burn(venue: Venue, params: Params) -> Any:
    """Fees are paid in the currency of margin."""
    return {"feeBurn": False}


@endpoint("POST", "/fapi/v1/multiAssetsMargin")
def set_asset_mode(venue: Venue, params: Params) -> Any:
    """Several currencies of margin are refused."""
    params.need("multiAssetsMargin")
    raise Rejected(-4084 if params.flag("multiAssetsMargin") else -4171)


@endpoint("GET", "/fapi/v1/commissionRate", weight=20)
def commission_rate(venue: Venue, params: Params) -> Any:
    """What a fill costs."""
    asset = venue.names.asset(params.need("symbol"))
    rules, traded = venue.books.rules(asset), venue.books.account.traded
    return {
        "symbol": venue.names.names[asset],
        "makerCommissionRate": text(float(maker_rate(traded, rules))),
        "takerCommissionRate": text(float(taker_rate(traded, rules))),
        "rpiCommissionRate": "0",
    }


@endpoint("GET", "/fapi/v1/leverageBracket")
def leverage_bracket(venue: Venue, params: Params) -> Any:
    """Brackets with their cum; of one contract an object, of all a list."""
    rows = [venue.names.brackets(asset) for asset in _asked(venue, params)]
    return rows[0] if "symbol" in params else rows


@endpoint("GET", "/fapi/v1/income", weight=30)
def income(venue: Venue, params: Params) -> Any:
    """Every change of the wallet, oldest first; without a span, the newest week."""
    start, end = params.span()
    limit, page = params.limit(100, 1000), params.whole("page", 1)
    kind = params.get("incomeType")
    asset = venue.names.asset(params.need("symbol")) if "symbol" in params else None
    if start is None and end is None:
        start = venue.now_ms - 7 * 86_400_000
    rows = [
        row
        for row in venue.books.registry.incomes
        if (not kind or row.kind == kind)
        and asset in (None, row.asset)
        and (start is None or row.time_ms >= start)
        and (end is None or row.time_ms <= end)
    ]
    assert page is not None
    newest = start is None or "startTime" not in params
    shown = rows[-limit:] if newest and page == 1 else rows[(page - 1) * limit : page * limit]
    return [income_json(row, venue.names) for row in shown]


@endpoint("POST", "/fapi/v1/listenKey", security="key")
def open_stream(venue: Venue, params: Params) -> Any:
    """The key of the user stream; the one there is lives an hour from now."""
    return {"listenKey": venue.new_listen_key()}


@endpoint("PUT", "/fapi/v1/listenKey", security="key")
def keep_stream(venue: Venue, params: Params) -> Any:
    """Let the key live an hour from now."""
    if not venue.has_listen_key:
        raise Rejected(-1125)
    venue.listen_key.until_ms = venue.wall_ms() + LISTEN_KEY_MS
    return {"listenKey": venue.listen_key.text}


@endpoint("DELETE", "/fapi/v1/listenKey", security="key")
def close_stream(venue: Venue, params: Params) -> Any:
    """Forget the key."""
    if not venue.listen_key.text:
        raise Rejected(-1125)
    venue.listen_key.text = ""
    return {}
