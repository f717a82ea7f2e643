"""Trailing stops: a trigger that follows the best price since the order came, and never goes back.

A sale (a purchase is its mirror) is active once the highest price since the order came has reached the
activation price, and triggers once the newest price lies the callback rate below the highest. Inside a bar
its trigger comes first, where the bar's open found it; then the highest price moves with the bar's high; and
where the close lies beyond the trigger that this gives, the way from the high to the close has passed it, and
it acts there. Whether the low came after the high no bar tells: it is taken to have come first.

Source: Binance USD-M futures API, "New Algo Order" and "New Order", notes on TRAILING_STOP_MARKET.
"""

from __future__ import annotations

from perpgym.data.bars import CLOSE, HIGH, LOW
from perpgym.data.contract import Contract
from perpgym.envs.exchange.books import Books
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.orders import AlgoOrder, sign
from perpgym.envs.exchange.triggers import trigger, watched_bar, watched_price
from perpgym.envs.execution import round_to_tick


def start(algo: AlgoOrder, market: Replay, contract: Contract) -> None:
    """An order arrives: it trails from the price of the moment on.

    Raises:
        Rejected: -2021, the activation price is not beyond the price of the moment.
    """
    price = watched_price(algo, market)
    if algo.activate_price and sign(algo.side) * (price - algo.activate_price) <= 0.0:
        raise Rejected(-2021)
    algo.activate_price = algo.activate_price or price
    algo.best_price = price
    _follow(algo, price, contract)


def trail_all(books: Books, time_ms: int) -> None:
    """After the way of the open bar: follow its prices, and act where the close lies beyond the trigger."""
    for algo in books.registry.open_algos():
        volume = books.market.inside.volume[books.market.fine, algo.asset]
        if not algo.is_trailing or volume == 0.0:
            continue
        bar = watched_bar(algo, books.market)
        _follow(algo, float(bar[LOW if algo.side == "BUY" else HIGH]), books.contracts[algo.asset])
        if algo.is_armed and sign(algo.side) * (float(bar[CLOSE]) - algo.trigger_price) >= 0.0:
            trigger(books, algo, time_ms, is_after_open=True)


def _follow(algo: AlgoOrder, price: float, contract: Contract) -> None:
    """The best price so far, and the trigger where it is active."""
    side = sign(algo.side)
    algo.best_price = min(side * price, side * algo.best_price) * side
    if side * (algo.best_price - algo.activate_price) <= 0.0:
        reached = algo.best_price * (1.0 + side * algo.callback_rate)
        # the first price on the grid that is as far away
        algo.trigger_price = float(round_to_tick(reached, contract.tick_size, side))
