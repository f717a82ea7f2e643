"""What the exchange calls its contracts, and what it publishes about their rules."""

from __future__ import annotations

import math
from typing import Any

from perpgym.data.contract import Contract
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.filters import MAX_PRICE, MULTIPLIER_DOWN, MULTIPLIER_UP, decimals
from perpgym.envs.exchange.orders import MAX_OPEN_ALGOS, MAX_OPEN_ORDERS
from perpgym.envs.exchange.wire import text
from perpgym.envs.rules import settle_currency

WEIGHT_PER_MINUTE, ORDERS_PER_MINUTE, ORDERS_PER_10_S = 2_400, 1_200, 300
ORDER_TYPES = (
    "LIMIT", "MARKET", "STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET", "TRAILING_STOP_MARKET",
)  # fmt: skip
TIMES_IN_FORCE = ("GTC", "IOC", "FOK", "GTX")
# perpetuals are delivered on Christmas of 2100
_NEVER_MS = 4_133_404_800_000


class Symbols:
    """The exchange's names of a tape's contracts (``BTCUSDT``) and back.

    Raises:
        ValueError: two contracts have one name, or a name is no pair.
    """

    def __init__(self, contracts: tuple[Contract, ...]) -> None:
        self.contracts = contracts
        self.names = tuple(_name(c) for c in contracts)
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"contracts must have different names, were {', '.join(self.names)}")
        self.currency = settle_currency(contracts[0])
        self._by_name = {name: asset for asset, name in enumerate(self.names)}

    def asset(self, name: str) -> int:
        """Index of a contract.

        Raises:
            Rejected: -1121, there is none of that name.
        """
        try:
            return self._by_name[name.upper()]
        except KeyError:
            raise Rejected(-1121) from None

    def exchange_info(self, now_ms: int, status: dict[int, str]) -> dict[str, Any]:
        """``GET /fapi/v1/exchangeInfo``; ``status`` of the contracts that do not trade."""
        limits = (
            ("REQUEST_WEIGHT", "MINUTE", 1, WEIGHT_PER_MINUTE),
            ("ORDERS", "MINUTE", 1, ORDERS_PER_MINUTE),
            ("ORDERS", "SECOND", 10, ORDERS_PER_10_S),
        )
        rows = zip(self.names, self.contracts, strict=True)
        return {
            "timezone": "UTC",
            "serverTime": now_ms,
            "futuresType": "U_MARGINED",
            "rateLimits": [
                {"rateLimitType": kind, "interval": unit, "intervalNum": number, "limit": limit}
                for kind, unit, number, limit in limits
            ],
            "exchangeFilters": [],
            "assets": [{"asset": self.currency, "marginAvailable": True, "autoAssetExchange": "0"}],
            "symbols": [_symbol(name, c, status.get(i, "TRADING")) for i, (name, c) in enumerate(rows)],
        }

    def brackets(self, asset: int) -> dict[str, Any]:
        """One row of ``GET /fapi/v1/leverageBracket``."""
        rows = [
            {
                "bracket": number,
                "initialLeverage": int(bracket.max_leverage),
                # the exchange's last bracket ends, the kernel's goes on
                "notionalCap": bracket.cap if math.isfinite(bracket.cap) else 1e15,
                "notionalFloor": bracket.floor,
                "maintMarginRatio": bracket.maintenance_margin_rate,
                "cum": bracket.cum,
            }
            for number, bracket in enumerate(self.contracts[asset].brackets, start=1)
        ]
        return {"symbol": self.names[asset], "notionalCoef": 1.0, "brackets": rows}


def _name(contract: Contract) -> str:
    pair = contract.symbol.partition(":")[0]
    base, _, quote = pair.partition("/")
    if not base or not quote:
        raise ValueError(f"contracts must be named like BTC/USDT:USDT, was {contract.symbol}")
    return (base + quote).upper()


def _symbol(name: str, contract: Contract, status: str) -> dict[str, Any]:
    base, _, quote = contract.symbol.partition(":")[0].partition("/")
    first = contract.brackets[0]
    return {
        "symbol": name,
        "pair": name,
        "contractType": "PERPETUAL",
        "deliveryDate": _NEVER_MS,
        "onboardDate": 1_569_398_400_000,
        "status": status,
        "maintMarginPercent": text(100.0 * first.maintenance_margin_rate),
        "requiredMarginPercent": text(100.0 / first.max_leverage),
        "baseAsset": base,
        "quoteAsset": quote,
        "marginAsset": settle_currency(contract),
        "pricePrecision": decimals(contract.tick_size),
        "quantityPrecision": decimals(contract.lot_size),
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "underlyingType": "COIN",
        "underlyingSubType": [],
        "settlePlan": 0,
        "triggerProtect": "0.0500",
        "liquidationFee": text(contract.clearance_rate),
        "marketTakeBound": "0.05",
        "maxMoveOrderLimit": 10_000,
        "filters": _filters(contract),
        "orderTypes": list(ORDER_TYPES),
        "timeInForce": list(TIMES_IN_FORCE),
    }


def _filters(contract: Contract) -> list[dict[str, Any]]:
    tick, lot = text(contract.tick_size), text(contract.lot_size)
    sizes = {"minQty": text(contract.min_quantity), "maxQty": text(contract.max_quantity), "stepSize": lot}
    return [
        {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": str(MAX_PRICE), "tickSize": tick},
        {"filterType": "LOT_SIZE", **sizes},
        {"filterType": "MARKET_LOT_SIZE", **sizes},
        {"filterType": "MAX_NUM_ORDERS", "limit": MAX_OPEN_ORDERS},
        {"filterType": "MAX_NUM_ALGO_ORDERS", "limit": MAX_OPEN_ALGOS},
        {"filterType": "MIN_NOTIONAL", "notional": text(contract.min_notional)},
        {
            "filterType": "PERCENT_PRICE",
            "multiplierUp": str(MULTIPLIER_UP),
            "multiplierDown": str(MULTIPLIER_DOWN),
            "multiplierDecimal": "4",
        },
    ]
