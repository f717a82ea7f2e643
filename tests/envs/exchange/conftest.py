"""A venue on a small tape, a server around it, and unmodified ccxt exchanges that are pointed at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import ccxt
import numpy as np
import pytest

from perpgym.data.contract import Bracket, Contract
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig
from perpgym.envs.exchange.books import MONEY_DECIMALS
from perpgym.envs.exchange.clock import Clock
from perpgym.envs.exchange.connect import point_at
from perpgym.envs.exchange.engine import Engine
from perpgym.envs.exchange.gate import Keys, Limits
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.server import ServerThread
from perpgym.envs.exchange.venue import Venue

SYMBOL = "TEST/USDT:USDT"


def make_client(kind: Any, url: str, venue: Venue, **settings: Any) -> Any:
    """A ccxt exchange at ``url`` whose clock is the exchange's."""
    client = point_at(kind({"apiKey": "key", "secret": "secret", **settings}), url)
    client.milliseconds = lambda: venue.clock.now_ms()
    return client


class Local:
    """A running server and a sync client at it."""

    def __init__(self, venue: Venue, url: str) -> None:
        self.venue, self.url = venue, url
        self.client = make_client(ccxt.binanceusdm, url, venue)
        self.engine = venue.engine

    def next_bar(self, bars: int = 1) -> None:
        """Let bars close; the next request finds them closed."""
        for _bar in range(bars):
            self.venue.clock.move_to(self.venue.market.close_ms)
            self.client.fapiPublicGetPing()


@pytest.fixture(scope="session")
def make_venue(make_tape: Callable[..., Tape]) -> Callable[..., Venue]:
    """A venue on a tape of ``make_tape``; ``config`` are settings of the env."""

    def make(
        tape: Tape | None = None,
        *,
        start_bar: int = 50,
        speed: float = 0.0,
        config: dict[str, Any] | None = None,
        exact_config: EnvConfig | None = None,
        limits: bool = False,
        strict: bool = True,
        **settings: Any,
    ) -> Venue:
        tape = make_tape(**settings) if tape is None else tape
        account = exact_config or EnvConfig(**{"initial_wallet": 10_000.0, **(config or {})})
        # what is compared with an env keeps all its digits
        decimals = MONEY_DECIMALS if exact_config is None else None
        engine = Engine(Replay(tape, start_bar=start_bar), account, decimals)
        return Venue(
            engine=engine,
            clock=Clock(engine.now_ms, speed),
            keys=Keys(is_strict=strict),
            limits=Limits(is_enforced=limits),
            has_admin=True,
        )

    return make


@pytest.fixture
def local(make_venue: Callable[..., Venue]) -> Iterator[Callable[..., Local]]:
    """Start a server on a venue of ``make_venue``; it stops with the test."""
    with ExitStack() as stack:

        def start(**settings: Any) -> Local:
            venue = make_venue(**settings)
            server = stack.enter_context(ServerThread(venue))
            local = Local(venue, server.url)
            stack.callback(local.client.session.close)
            return local

        yield start


@pytest.fixture(scope="session")
def plain_rules() -> Contract:
    """One bracket, ticks of 0.1 and lots of 0.001."""
    bracket = Bracket(floor=0.0, cap=float("inf"), maintenance_margin_rate=0.01, cum=0.0, max_leverage=50.0)
    return Contract(
        symbol=SYMBOL, tick_size=0.1, lot_size=0.001, min_quantity=0.001, min_notional=5.0,
        clearance_rate=0.0125, brackets=(bracket,),
    )  # fmt: skip


@pytest.fixture
def engine_on(make_tape: Callable[..., Tape], plain_rules: Contract) -> Callable[..., Engine]:
    """An engine on bars (open, high, low, close) without spread; two quiet bars at the first open before."""

    def make(*bars: tuple[float, float, float, float], volume: float = 1e6, **settings: Any) -> Engine:
        rows = np.array([(bars[0][0],) * 4] * 2 + list(bars))[:, None, :]
        tape = make_tape(rows[:, 0, 3], rules=plain_rules, volume=volume, funding_rate=0.0, sigma=0.0)
        tape = replace(tape, last=rows, mark=rows.copy(), _cache={})
        free = {"half_spread_bps": 0.0, "impact_coefficient": 0.0, "taker_rate": 0.0004}
        config = EnvConfig(**{"initial_wallet": 10_000.0, **free, **settings})
        return Engine(Replay(tape, start_bar=2), config)

    return make
