"""A venue on a small tape, a server around it, and unmodified ccxt exchanges that are pointed at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import ccxt
import pytest

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
