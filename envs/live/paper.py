"""Paper trading: a real market, and an account of the simulated exchange that follows it; no key is needed.

The simulated exchange runs in this process on a tape that grows with the market. An order fills at the price
of the moment, half spread, impact and fee worse; when a bar is over, stops, liquidations and settlements
happen to the account as they do in the env. The account is asked through the same ccxt as a real one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from perpgym.data.bars import Bars
from perpgym.data.contract import Contract
from perpgym.data.features.build import build_tape
from perpgym.data.tape import Tape
from perpgym.envs.config import EnvConfig
from perpgym.envs.exchange.books import MONEY_DECIMALS
from perpgym.envs.exchange.clock import Clock
from perpgym.envs.exchange.connect import point_at
from perpgym.envs.exchange.engine import Engine
from perpgym.envs.exchange.gate import Keys
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.server import Server
from perpgym.envs.exchange.venue import Venue
from perpgym.envs.exchange.warm import warm_up
from perpgym.envs.finer import Finer
from perpgym.envs.live.binance import Binance, BinanceConfig
from perpgym.envs.live.broker import (
    AccountTruth,
    BarRow,
    Broker,
    Fill,
    Happening,
    Income,
    Order,
    PriceKind,
    Settings,
    TradingStatus,
)
from perpgym.envs.live.clock import ExchangeClock
from perpgym.envs.live.feed import Feed, FeedConfig, IncompleteBar
from perpgym.envs.live.ring import ClosedBar, grown
from perpgym.envs.rules import market_arrays

# before the account begins: what volatility and the exchange's day look back
_HISTORY = 64
# bars never go
_ALL = 10**9


class PriceSource(Broker, Protocol):
    """A broker whose market may be read without a key."""

    async def open_market(self) -> None:
        """Connect and learn the clock."""

    async def last_prices(self) -> Mapping[str, float]:
        """The price of every contract's newest trade, quote."""


class PaperMarket(Replay):
    """A replay whose last bar is open, and whose tape grows when it closes.

    The open bar shows the prices of the moment and the volume of the bar before: its own is not known yet.
    """

    def __init__(self, bars: Sequence[Bars], last: np.ndarray, mark: np.ndarray) -> None:
        self._closed = list(bars)
        super().__init__(self._with_open_bar(last, mark), start_bar=len(bars[0]))

    def _with_open_bar(self, last: np.ndarray, mark: np.ndarray) -> Tape:
        before = self._closed[0]
        open_bar = ClosedBar(
            open_time_ms=int(before.open_time_ms[-1]) + before.bar_ms,
            last=np.repeat(last[:, None], 4, axis=1), mark=np.repeat(mark[:, None], 4, axis=1),
            volume=np.array([own.volume[-1] for own in self._closed]), stamps=((),) * len(self._closed),
        )  # fmt: skip
        bars = [grown(own, open_bar, asset, _ALL) for asset, own in enumerate(self._closed)]
        return build_tape(bars, features=(), risk=(), source="paper")

    def show(self, closed: Sequence[ClosedBar], last: np.ndarray, mark: np.ndarray) -> None:
        """Bars have closed, and these are the prices now: (A,) quote. Time moves with the engine's clock."""
        for bar in closed:
            self._closed = [grown(own, bar, asset, _ALL) for asset, own in enumerate(self._closed)]
        self.tape = self._with_open_bar(last, mark)
        self.inside = Finer.same(self.tape)
        self._end = len(self.tape)


class _PaperClock(Clock):
    """The source's clock, held back before the close of a bar that is not known yet."""

    def __init__(self, source: Broker, start_ms: int) -> None:
        super().__init__(start_ms, 0.0)
        self._source, self.held_at_ms = source, start_ms

    def now_ms(self) -> int:
        return min(self._source.now_ms(), self.held_at_ms)


class PaperBroker:
    """One paper account; see ``Broker`` for what its methods promise. It begins anew with every program.

    Args:
        source: the market; its account is never asked.
        contracts: their rules, as the policy was trained: the exchange shows brackets to its customers only.
        bar_ms: length of a bar.
        config: wallet, spread, impact and fees.
        money_decimals: to which money is rounded, as an exchange does; None for all digits.
    """

    def __init__(
        self,
        source: PriceSource,
        contracts: Sequence[Contract],
        bar_ms: int,
        config: EnvConfig,
        money_decimals: int | None = MONEY_DECIMALS,
    ) -> None:
        self._money_decimals = money_decimals
        self._source, self._contracts, self._config = source, tuple(contracts), config
        self._bar_ms = bar_ms
        self._feed = Feed(source, contracts, bar_ms, ExchangeClock(source), FeedConfig(readings=1))
        self._turn = asyncio.Lock()
        self._server: Server | None = None
        self._account: Binance | None = None

    @property
    def account_id(self) -> str:
        # no other program can reach an account that lives in this one
        return f"paper_{os.getpid()}"

    async def open(self) -> None:
        if self._server is not None:
            return
        await self._source.open_market()
        bars = await self._feed.history(max(_HISTORY, self._config.impact.usual_bars(self._bar_ms)))
        self._market = PaperMarket(bars, *await self._prices())
        engine = Engine(self._market, self._config, self._money_decimals)
        self._clock = _PaperClock(self._source, engine.now_ms)
        self._clock.held_at_ms = engine.next_ms - 1
        warm_up(self._market, self._config)
        self._server = Server(Venue(engine=engine, clock=self._clock, keys=Keys(is_strict=True)))
        url = await self._server.start()
        names = tuple(contract.symbol for contract in self._contracts)
        toy = BinanceConfig(
            contracts=names, api_key="key", secret="secret", is_paced=False, weight_per_minute=10**9
        )
        self._account = Binance(
            toy, point=lambda exchange: point_at(exchange, url), local_ms=self._clock.now_ms
        )
        await self._account.open()

    async def close(self) -> None:
        if self._account is not None:
            await self._account.close()
        if self._server is not None:
            await self._server.stop()
        await self._source.close()

    async def _prices(self) -> tuple[np.ndarray, np.ndarray]:
        """(A,) last and (A,) mark prices of the moment."""
        last, mark = await self._source.last_prices(), await self._source.mark_prices()
        names = [contract.symbol for contract in self._contracts]
        return np.array([last[name] for name in names]), np.array([mark[name] for name in names])

    async def _now(self, *, is_priced: bool = False) -> Binance:
        """The account, once everything that the market has shown has happened to it."""
        assert self._account is not None, "open() comes first"
        assert self._server is not None
        async with self._turn:
            venue = self._server.venue
            newest, first = self._feed.newest_open_ms(), self._market.open_ms
            bars: tuple[ClosedBar, ...] = ()
            if newest >= first:
                try:
                    bars = await self._feed.bars_between(first, newest, self._market.tape)
                except IncompleteBar:
                    # it closes when the exchange says how
                    return self._account
            if bars or is_priced:
                self._market.show(bars, *await self._prices())
                market = market_arrays(self._market.tape, venue.books.config)
                venue.books.world = venue.books.world._replace(market=market)
                self._clock.held_at_ms = int(self._market.tape.open_time_ms[-1]) + self._bar_ms - 1
                self._server.pass_time()
        return self._account

    # --- the account ---

    async def contracts(self) -> Mapping[str, Contract]:
        return {contract.symbol: contract for contract in self._contracts}

    async def account(self) -> AccountTruth:
        return await (await self._now()).account()

    async def settings(self) -> Settings:
        return await (await self._now()).settings()

    async def set_up(self, settings: Settings) -> None:
        await (await self._now()).set_up(settings)

    async def submit(self, order: Order) -> Order:
        return await (await self._now(is_priced=True)).submit(order)

    async def cancel(self, order: Order) -> Order:
        return await (await self._now()).cancel(order)

    async def find(self, client_id: str, contract: str, is_stop: bool = False) -> Order | None:
        return await (await self._now()).find(client_id, contract, is_stop)

    async def fills(self, contract: str, since_ms: int) -> list[Fill]:
        return await (await self._now()).fills(contract, since_ms)

    async def income(self, since_ms: int) -> list[Income]:
        return await (await self._now()).income(since_ms)

    async def arm_dead_man(self, contract: str, ms: int) -> None:
        """Nobody has to be protected from a program that takes its exchange along."""

    async def renew_stream(self) -> None:
        await (await self._now()).renew_stream()

    def events(self) -> AsyncIterator[Happening]:
        assert self._account is not None, "open() comes first"
        return self._account.events()

    # --- the market ---

    def now_ms(self) -> int:
        return self._source.now_ms()

    async def server_time_ms(self) -> int:
        return await self._source.server_time_ms()

    async def mark_prices(self) -> Mapping[str, float]:
        return await self._source.mark_prices()

    async def bars(self, contract: str, kind: PriceKind, since_ms: int, limit: int) -> Sequence[BarRow]:
        return await self._source.bars(contract, kind, since_ms, limit)

    async def funding(self, contract: str, since_ms: int) -> Sequence[tuple[int, float]]:
        return await self._source.funding(contract, since_ms)

    async def funding_interval_hours(self, contract: str) -> int:
        return await self._source.funding_interval_hours(contract)

    async def status(self, contract: str) -> TradingStatus:
        return await self._source.status(contract)
