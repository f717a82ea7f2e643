"""Lets programs die at a named point: forks one for each line of JSON that it reads, and prints how it ended.

A line has ``url``, ``folder``, ``point`` and ``quantities``: one decision each; then ``sliced``, if not 0, as
a TWAP in six slices, whose first one has been sent before the point is armed. Forking spares every program
the seconds that its imports take.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_SPEC = importlib.util.spec_from_file_location("live_conftest", Path(__file__).with_name("conftest.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
conftest = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(conftest)


_HOUR_MS = 3_600_000


async def trade(told: dict[str, Any]) -> None:
    """Start on the journal that is there, and decide."""
    # a clock that stands still, as the exchange's does; the desk asks for the difference
    venue = SimpleNamespace(clock=SimpleNamespace(now_ms=lambda: 0), now_ms=0)
    settings = {"timings": {"slice_ms": _HOUR_MS // 6}}
    here = conftest.Here(SimpleNamespace(url=told["url"], venue=venue), Path(told["folder"]), settings)
    await here.build().start()
    for quantity in told["quantities"]:
        await here.trade(quantity)
        await here.settle()
    if told["sliced"]:
        await slice_up(here, told)
    await here.close()


async def slice_up(here: Any, told: dict[str, Any]) -> None:
    """Trade over an hour, by the exchange's clock, which somebody else moves."""
    os.environ["PERPGYM_CRASH_AT"] = ""
    end_ms = here.broker.now_ms() // _HOUR_MS * _HOUR_MS + _HOUR_MS
    await here.trade(told["sliced"], style="twap", end_ms=end_ms)
    os.environ["PERPGYM_CRASH_AT"] = told["point"]
    while here.broker.now_ms() < end_ms:
        await asyncio.sleep(0.02)
        await here.broker.server_time_ms()


def main() -> None:
    for line in sys.stdin:
        told = json.loads(line)
        child = os.fork()
        if child == 0:
            os.environ["PERPGYM_CRASH_AT"] = told["point"]
            asyncio.run(trade(told))
            os._exit(0)
        _pid, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
