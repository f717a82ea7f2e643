"""Compiles what an order needs before a client waits for it."""

from __future__ import annotations

import contextlib
from copy import copy

from perpgym.envs.account import CROSS
from perpgym.envs.arrays import read_bar
from perpgym.envs.config import EnvConfig
from perpgym.envs.exchange.engine import AlgoRequest, Engine, OrderRequest
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.margins import position_margin
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.working import fill_maker
from perpgym.envs.execution import round_to_tick
from perpgym.envs.kernel import meet_open
from perpgym.envs.liquidation import ADVERSE_FIRST, STRAIGHT, liquidate_if_short
from perpgym.envs.orders import volume_beyond
from perpgym.envs.path import live_through, walk_leg


def warm_up(market: Replay, config: EnvConfig | None = None) -> None:
    """Compile what an order, a stop and a bar need, on an account of their own.

    Compiling takes a minute or more where nothing is cached: longer than a client waits for its first order.
    """
    plain = copy(market)
    plain.recording = None
    _trade_on(plain, config)
    if market.recording is not None:
        # what happens inside a bar is the same with a recorded book, orders are not
        _trade_on(copy(market), config)


def _trade_on(market: Replay, config: EnvConfig | None) -> None:
    engine = Engine(market, config)
    contract, last = engine.books.contracts[0], market.last_price(0)
    size = contract.min_quantity
    while size * last < 2.0 * contract.min_notional:
        size *= 2.0
    below = float(round_to_tick(0.99 * last, contract.tick_size, -1.0))
    for number, price in enumerate((0.0, below)):
        kind, name = ("LIMIT", f"warm-{number}") if price else ("MARKET", f"warm-{number}")
        with contextlib.suppress(Rejected):
            engine.place(
                OrderRequest(asset=0, side="BUY", kind=kind, quantity=size, price=price, client_id=name)
            )
    with contextlib.suppress(Rejected):
        engine.place_algo(
            AlgoRequest(
                asset=0, side="SELL", kind="STOP_MARKET", trigger_price=below, close_position=True,
                client_id="warm-stop",
            )
        )  # fmt: skip
    for order in engine.registry.open_orders(0):
        fill_maker(engine.books, order, order.left, engine.now_ms)
    bar, fine = engine.market.bar, engine.market.fine
    account, world = engine.books.account, engine.books.world
    liquidate_if_short(account, world, bar, fine, STRAIGHT, 0, 0.0)
    live_through(account, world, bar, fine, engine.books.scratch)
    # what happens before a resting order that enlarges a position
    meet_open(account, world, bar, fine)
    walk_leg(account, world, CROSS, bar, fine, ADVERSE_FIRST, 0, 0.0, 0.5)
    volume_beyond(1.0, below, read_bar(world.market, bar, fine, 0, 0.0), engine.books.rules(0))
    position_margin(engine.books, 0)
    engine.advance(engine.next_ms)
