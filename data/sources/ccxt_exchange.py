"""Opens an exchange through ccxt, says in words why it cannot be reached, and reads a contract's rules."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Literal

from perpgym.data.contract import Bracket, Contract
from perpgym.data.errors import DataError

# ccxt's class for perpetuals where it is another than the exchange's plain name
_PERPETUAL_CLASS = {"binance": "binanceusdm", "kraken": "krakenfutures", "kucoin": "kucoinfutures"}


class DownloadError(DataError):
    """The exchange did not give the data; ``reason`` says why in a few words.

    Attributes:
        reason: for a log line or a report.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def make_exchange(exchange: str, *, timeout_s: float = 10.0, base_url: str | None = None) -> Any:
    """A ccxt exchange for public market data of perpetuals, rate limited.

    Args:
        exchange: ccxt's exchange id; ``binance`` means its USD-M futures.
        timeout_s: of one request.
        base_url: takes the place of scheme and host in every address, e.g. a mirror or a local server.

    Raises:
        DataError: ccxt knows no such exchange.
    """
    import ccxt  # takes a second to import, and only downloads need it

    name = _PERPETUAL_CLASS.get(exchange, exchange)
    if name not in ccxt.exchanges:
        raise DataError(f"ccxt knows no exchange {exchange!r}; the names are in ccxt.exchanges")
    made = getattr(ccxt, name)(
        {"enableRateLimit": True, "timeout": int(timeout_s * 1000), "options": {"defaultType": "swap"}}
    )
    if base_url is not None:
        made.urls["api"] = _rebase(made.urls["api"], base_url.rstrip("/"))
        made.enableRateLimit = False
    else:
        # proxies of the environment are how many machines reach the outside
        made.session.trust_env = True
        made.requests_trust_env = True
    return made


def _rebase(urls: Any, base_url: str) -> Any:
    if isinstance(urls, str):
        return re.sub(r"^\w+://[^/]+", base_url, urls)
    return {name: _rebase(url, base_url) for name, url in urls.items()}


def failure_reason(error: BaseException, exchange: str) -> str:
    """Why an exchange could not be reached, for people."""
    chain = []
    link: BaseException | None = error
    while link is not None:
        chain.append(f"{type(link).__name__} {link}")
        link = link.__cause__ or link.__context__
    text = " ".join(chain)
    lowered = text.lower()
    if re.search(r"\b451\b", text) or "restricted location" in lowered:
        return f"{exchange} does not serve this region (HTTP 451)"
    if "getaddrinfo" in lowered or "nameresolution" in lowered or "name or service" in lowered:
        return f"no network: the address of {exchange} cannot be resolved"
    if "proxyerror" in lowered:
        return f"the network's proxy refuses {exchange}"
    if "timeout" in lowered or "timed out" in lowered:
        return f"no network, or {exchange} did not answer in time"
    if "connection" in lowered or "networkerror" in lowered:
        return f"no network: no connection to {exchange}"
    return str(error).splitlines()[0][:200]


def contract_from_ccxt(
    market: Mapping[str, Any], tiers: Iterable[Mapping[str, Any]] | None = None
) -> Contract:
    """A contract's rules from ccxt's unified structures.

    Args:
        market: one entry of ``exchange.load_markets()``.
        tiers: its entry of ``exchange.fetch_leverage_tiers()``, which most exchanges give to signed requests
            only; None leaves the one default bracket of :class:`Contract`.

    Raises:
        DataError: the market is no perpetual, or a field is missing.
    """
    if not market.get("swap"):
        raise DataError(
            f"{market.get('symbol')}: a {market.get('type')} market; perpgym trades perpetuals (swap)"
        )
    limits = market["limits"]
    fields: dict[str, Any] = {
        "symbol": market["symbol"],
        "kind": _kind(market),
        "contract_size": _number(market, "contractSize", market.get("contractSize")),
        "tick_size": _number(market, "precision.price", market["precision"]["price"]),
        "lot_size": _number(market, "precision.amount", market["precision"]["amount"]),
    }
    optional = {
        "min_quantity": limits["amount"]["min"],
        "max_quantity": limits["amount"]["max"],
        "min_notional": limits["cost"]["min"],
        "maker_rate": market.get("maker"),
        "taker_rate": market.get("taker"),
        "clearance_rate": market.get("info", {}).get("liquidationFee"),
    }
    fields |= {name: float(value) for name, value in optional.items() if value is not None}
    if "min_quantity" not in fields:
        fields["min_quantity"] = fields["lot_size"]
    if "max_quantity" in fields:
        fields["max_quantity"] = _whole_lots(fields["max_quantity"], fields["lot_size"])
    if tiers is not None:
        fields["brackets"] = brackets_from_ccxt(tiers)
    return Contract(**fields)


def _whole_lots(quantity: float, lot_size: float) -> float:
    """The largest order that the lot admits: exchanges name limits that lie between two of them."""
    lot = Decimal(repr(lot_size))
    return float(Decimal(repr(quantity)) // lot * lot) if lot > 0 and math.isfinite(quantity) else quantity


def _kind(market: Mapping[str, Any]) -> Literal["linear", "inverse"]:
    return "inverse" if market.get("inverse") else "linear"


def _number(market: Mapping[str, Any], name: str, value: Any) -> float:
    if value is None:
        raise DataError(f"{market['symbol']}: the exchange names no {name}; pass a Contract of your own")
    return float(value)


def brackets_from_ccxt(tiers: Iterable[Mapping[str, Any]]) -> tuple[Bracket, ...]:
    """Leverage tiers in ccxt's form; ``cum`` is the exchange's where it gives one, else computed.

    cum_n = floor_n * (mmr_n - mmr_{n-1}) + cum_{n-1} (Binance USD-M, "Leverage and Margin"); the last bracket
    is open upwards, so that the margin of any position is defined.
    """
    rows = sorted(tiers, key=lambda tier: float(tier["minNotional"]))
    brackets: list[Bracket] = []
    for i, tier in enumerate(rows):
        rate, floor = float(tier["maintenanceMarginRate"]), float(tier["minNotional"])
        below = brackets[-1] if brackets else None
        computed = 0.0 if below is None else floor * (rate - below.maintenance_margin_rate) + below.cum
        told = (tier.get("info") or {}).get("cum")
        brackets.append(
            Bracket(
                floor=floor,
                cap=float("inf") if i == len(rows) - 1 else float(tier["maxNotional"]),
                maintenance_margin_rate=rate,
                cum=computed if told is None else float(told),
                max_leverage=float(tier["maxLeverage"]),
            )
        )
    return tuple(brackets)
