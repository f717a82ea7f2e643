"""Which mark prices are believed: a limit is worth what the marks are that it is measured by."""

from __future__ import annotations

import math
from typing import Any

from perpgym.envs.live.broker import Disbelieved

# a mark so many times above or below what is traded, or the index, is a mistake, or a market that nobody
# should open in; exchanges build it from both, so that it strays by a few per cent at most
MOST_APART = 1.1


def believed_mark(contract: str, mark: Any, *, last: Any, index: Any = None) -> float:
    """A mark price, as it was told, once it is known to be one.

    Args:
        contract: for the words.
        mark: as the exchange writes it, quote.
        last: of the newest trade, quote.
        index: quote; a contract without an index has none, or 0.

    Raises:
        Disbelieved: it is not finite, not positive, or away from the others.
        ValueError, TypeError: something is no number at all.
    """
    price = float(mark)
    others = {"last trade": float(last)}
    if index is not None and float(index) != 0.0:
        others["index"] = float(index)
    for name, other in others.items():
        # a comparison with nan is false
        is_near = price > 0.0 and other > 0.0 and 1.0 / MOST_APART <= price / other <= MOST_APART
        if not is_near or not math.isfinite(price):
            raise Disbelieved(
                f"{contract}: the mark price must lie within {MOST_APART:g} times the {name} of {other:g} "
                f"(quote), was {price:g}: nothing is opened until it does"
            )
    return price
