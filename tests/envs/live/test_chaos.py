"""Faults at random from a seed: in the end the account is what the books say, and it never was too large."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from perpgym.envs.live.limits import DeskLimits

Open = Callable[..., Any]
# slow ones have tests of their own, and a firewall's answer is a pause of two minutes
ROWS = [
    "F02", "F03", "F04", "F04b", "F05", "F05b", "F06", "F06b", "F07", "F07b", "F08", "F08b", "F08c", "F09",
    "F12", "F14", "F18", "F38", "F39",
]  # fmt: skip
CAP = 2.0


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_goes_wrong_the_account_is_known_in_the_end(open_desk: Open, seed: int) -> None:
    async def story() -> None:
        rng = random.Random(seed)
        async with open_desk(
            tape={"wick": 0.01, "seed": seed}, stop_distance=0.02, limits=DeskLimits(max_exposure=CAP),
            timings={"settle_s": 2.0, "reconcile_s": 0.2},
        ) as here:  # fmt: skip
            here.admin("faults", random={"rate": 0.06, "ids": ROWS}, seed=seed)
            for _bar in range(12):
                wanted = rng.choice([-0.4, -0.2, 0.0, 0.2, 0.4])
                change = round(wanted - here.books.quantities.get("TEST/USDT:USDT", 0.0), 3)
                style = rng.choice(["market", "market", "limit"])
                price = {"limit_price": here.last * (1.0 - 0.002 * (change > 0) + 0.002 * (change < 0))}
                if abs(change) > 0.01:
                    await here.trade(change, style=style, **(price if style == "limit" else {}))
                check_cap(here)
                if rng.random() < 0.15:
                    here.admin("listen_key", tell=rng.random() < 0.5)
                if rng.random() < 0.15:
                    here.admin("disconnect", code=1006)
                await here.next_bar()
                check_cap(here)
                await here.settle()
            assert here.hits() >= 5
            here.faults()
            for _try in range(20):
                settled = await here.settle()
                if settled.is_whole:
                    break
            assert settled.is_whole, settled.why
            assert not here.journal.events("order_came_back")
            assert len(here.stops()) == int(here.position != 0.0)
            here.check_sound()

    asyncio.run(story())


def check_cap(here: Any) -> None:
    """I6: positions and everything that rests stay within the cap, but for the market's own way."""
    resting = [(order.side, order.left) for order in here.resting() if not order.reduce_only]
    up = here.position + sum(left for side, left in resting if side == "BUY")
    down = here.position - sum(left for side, left in resting if side == "SELL")
    assert max(abs(up), abs(down)) * here.last <= 1.1 * CAP * here.venue.books.wallet
