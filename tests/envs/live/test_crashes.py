"""F49-F53: power cuts at every step of an order, damaged journals, two programs, and long absences."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perpgym.envs.live.broker import OrderState
from perpgym.envs.live.crash_points import POINTS, VARIABLE, reach

Open = Callable[..., Any]
Die = Callable[..., Any]
SYMBOL = "TEST/USDT:USDT"


@pytest.fixture(scope="module")
def runner() -> Iterator[subprocess.Popen[str]]:
    """A process that forks programs and says how they ended."""
    script = Path(__file__).with_name("crash_runner.py")
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def die(runner: subprocess.Popen[str]) -> Die:
    """Run a program until it dies at a point; the exchange goes on in this one."""

    async def dying(here: Any, point: str, *quantities: float) -> None:
        here.journal.close()
        told = {"url": here.server.url, "folder": str(here.folder), "point": point, "quantities": quantities}
        assert runner.stdin is not None
        assert runner.stdout is not None
        runner.stdin.write(json.dumps(told) + "\n")
        runner.stdin.flush()
        ended = await asyncio.to_thread(runner.stdout.readline)
        assert int(ended) == (-signal.SIGKILL if point else 0)
        here.build()

    return dying


# point, and whether the exchange has the order by then
CUTS = [
    ("before_intent", False), ("after_intent", False), ("after_mark", False), ("after_send", True),
    ("after_ack", True), ("after_fill", True),
]  # fmt: skip


@pytest.mark.parametrize(("point", "is_sent"), CUTS)
def test_a_power_cut_never_doubles_or_loses_an_order(
    open_desk: Open, die: Die, point: str, is_sent: bool
) -> None:
    async def story() -> None:
        async with open_desk(start=False) as here:
            await die(here, point, 0.05)
            assert here.position == (0.05 if is_sent else 0.0)
            truth = await here.desk.start()
            # one order an intent, and what is held is protected
            assert truth.quantity(SYMBOL) == here.position == (0.05 if is_sent else 0.0)
            assert len(here.orders()) == int(is_sent)
            assert len(here.stops()) == int(is_sent)
            states = [order.state for order in here.journal.orders() if not order.is_stop]
            ended = OrderState.FILLED if is_sent else OrderState.ABSENT
            assert states == ([] if point == "before_intent" else [ended])
            assert here.desk.status().state == "ready"
            here.check_sound()
            await here.trade(0.01)
            here.check_sound()

    asyncio.run(story())


def test_every_point_is_cut_somewhere() -> None:
    assert [point for point, _is_sent in CUTS] == list(POINTS)


def test_a_point_does_nothing_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    for point in POINTS:
        reach(point)
    monkeypatch.setenv(VARIABLE, "elsewhere")
    reach("after_send")
