"""What Bybit tells everybody: contracts and their rules, prices, bars, funding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perpgym.data.contract import Contract
from perpgym.envs.live.broker import BarRow, PriceKind, Rejected, TradingStatus
from perpgym.envs.live.bybit_payloads import Json, read_brackets
from perpgym.envs.live.bybit_wire import Wire
from perpgym.envs.live.marks import believed_mark
from perpgym.envs.live.wire import finite, understood

_MINUTE_MS = 60_000
# rows of a page: instruments, bars, funding rates
_INSTRUMENTS, _BARS, _RATES = 1_000, 1_000, 200


class Market:
    """The contracts traded here.

    Args:
        wire: for every request.
        contracts: ccxt's unified symbols.
        bar: ccxt's name of the bar.

    Raises:
        ValueError: the exchange has no such bars, or bars of no fixed length.
    """

    def __init__(self, wire: Wire, contracts: tuple[str, ...], bar: str) -> None:
        known = {name: code for name, code in wire.exchange.timeframes.items() if not name.endswith("M")}
        if bar not in known:
            raise ValueError(f"bar must be one of {', '.join(known)}, was {bar!r}")
        self._wire, self._wanted = wire, contracts
        self._interval = known[bar]
        self._bar_ms = int(1000 * wire.exchange.parse_timeframe(bar))
        self._symbols: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._contracts: dict[str, Contract] = {}

    def name(self, symbol: str) -> str:
        """Our name of the exchange's symbol; the symbol where the exchange has not named it yet."""
        return self._names.get(symbol, symbol)

    def of(self, contract: str) -> Json:
        """The parameters that name a contract."""
        if contract not in self._symbols:
            raise Rejected(-404, f"{contract} is not traded here")
        return {"category": "linear", "symbol": self._symbols[contract]}

    def rules(self, contract: str) -> Contract:
        """As read last."""
        return self._contracts[contract]

    @understood
    async def contracts(self) -> Mapping[str, Contract]:
        """Their rules, fees and brackets, read anew."""
        by_name = await self.read_names()
        for name in self._wanted:
            if name in by_name or name not in self._contracts:
                self._contracts[name] = await self._read_contract(name, by_name)
        return dict(self._contracts)

    @understood
    async def read_names(self) -> Mapping[str, Json]:
        """The exchange's symbols of everything that it lists, and what it says of them; needs no key."""
        params = {"category": "linear", "limit": _INSTRUMENTS}
        rows = await self._wire.pages("publicGetV5MarketInstrumentsInfo", params)
        perpetuals = [row for row in rows if row["contractType"] == "LinearPerpetual"]
        # what is listed no more keeps its name: positions and orders in it still carry the symbol
        self._names |= {row["symbol"]: self._unified(row) for row in perpetuals}
        self._symbols = {name: symbol for symbol, name in self._names.items()}
        return {self._names[row["symbol"]]: row for row in perpetuals}

    def _unified(self, row: Json) -> str:
        base, quote, settle = (
            self._wire.exchange.safe_currency_code(row[key])
            for key in ("baseCoin", "quoteCoin", "settleCoin")
        )
        return f"{base}/{quote}:{settle}"

    async def _read_contract(self, name: str, rows: Mapping[str, Json]) -> Contract:
        symbol = self.of(name)
        tiers = await self._wire.pages("publicGetV5MarketRiskLimit", symbol)
        rates = (await self._wire.call("privateGetV5AccountFeeRate", symbol))["list"][0]
        row, lots = rows[name], rows[name]["lotSizeFilter"]
        most = [lots.get("maxOrderQty"), lots.get("maxMktOrderQty")]
        caps = [abs(float(row.get(key) or 0.0)) for key in ("upperFundingRate", "lowerFundingRate")]
        optional: dict[str, Any] = {"funding_cap": max(caps)} if max(caps) > 0.0 else {}
        return Contract(
            symbol=name,
            tick_size=float(row["priceFilter"]["tickSize"]),
            lot_size=float(lots["qtyStep"]),
            min_quantity=float(lots["minOrderQty"]),
            max_quantity=min(float(quantity) for quantity in most if quantity),
            min_notional=float(lots.get("minNotionalValue") or 0.0),
            maker_rate=float(rates["makerFeeRate"]),
            taker_rate=float(rates["takerFeeRate"]),
            funding_interval_ms=int(row["fundingInterval"]) * _MINUTE_MS,
            brackets=read_brackets([tier for tier in tiers if tier["symbol"] == symbol["symbol"]]),
            **optional,
        )

    async def _instrument(self, contract: str) -> Json | None:
        rows = (await self._wire.call("publicGetV5MarketInstrumentsInfo", self.of(contract)))["list"]
        return rows[0] if rows else None

    @understood
    async def status(self, contract: str) -> TradingStatus:
        """Whether it trades; the exchange lists by default what does."""
        row = await self._instrument(contract)
        return "trading" if row is not None and row["status"] == "Trading" else "halted"

    @understood
    async def mark_prices(self) -> Mapping[str, float]:
        """Of every contract, quote."""
        rows = {name: await self._ticker(name) for name in self._wanted}
        return {
            name: believed_mark(name, row["markPrice"], last=row["lastPrice"], index=row.get("indexPrice"))
            for name, row in rows.items()
        }

    @understood
    async def last_prices(self) -> Mapping[str, float]:
        """Of every contract's newest trade, quote."""
        return {name: finite((await self._ticker(name))["lastPrice"]) for name in self._wanted}

    async def _ticker(self, name: str) -> Json:
        rows = (await self._wire.call("publicGetV5MarketTickers", self.of(name)))["list"]
        row: Json = rows[0]
        return row

    @understood
    async def bars(self, contract: str, kind: PriceKind, since_ms: int, limit: int) -> Sequence[BarRow]:
        """Closed bars that opened then or later, oldest first; mark prices have a volume of 0."""
        name = "publicGetV5MarketKline" if kind == "last" else "publicGetV5MarketMarkPriceKline"
        count = min(limit, _BARS)
        # both ends: with one the exchange may count from the other
        span = {"start": since_ms, "end": since_ms + count * self._bar_ms - 1, "limit": count}
        answer = await self._wire.call(name, {**self.of(contract), "interval": self._interval, **span})
        newest_open = self._wire.now_ms() - self._bar_ms
        closed = [row for row in reversed(answer["list"]) if since_ms <= int(row[0]) <= newest_open]
        return [(int(row[0]), *map(float, [*row, "0"][1:6])) for row in closed]  # type: ignore[misc]

    @understood
    async def funding(self, contract: str, since_ms: int) -> Sequence[tuple[int, float]]:
        """(settlement time, rate) since then, oldest first."""
        rates: dict[int, float] = {}
        end = self._wire.now_ms()
        while end >= since_ms:
            # a start alone is an error, and of a longer span the latest come
            span = {**self.of(contract), "startTime": since_ms, "endTime": end, "limit": _RATES}
            rows = (await self._wire.call("publicGetV5MarketFundingHistory", span))["list"]
            rates |= {int(row["fundingRateTimestamp"]): float(row["fundingRate"]) for row in rows}
            if len(rows) < _RATES:
                break
            end = min(rates) - 1
        return sorted(rates.items())

    @understood
    async def funding_interval_hours(self, contract: str) -> int:
        """As the exchange has it now."""
        row = await self._instrument(contract)
        if row is None:
            raise Rejected(-404, f"{contract} is not traded now")
        return int(row["fundingInterval"]) // 60
