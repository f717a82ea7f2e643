"""Lets programs die at a named point: forks one for each line of JSON that it reads, and prints how it ended.

A line has ``url``, ``folder``, ``point`` and ``quantities``: one decision each. Forking spares every program
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


async def trade(told: dict[str, Any]) -> None:
    """Start on the journal that is there, and decide."""
    # a clock that stands still, as the exchange's does; the desk asks for the difference
    venue = SimpleNamespace(clock=SimpleNamespace(now_ms=lambda: 0), now_ms=0)
    here = conftest.Here(SimpleNamespace(url=told["url"], venue=venue), Path(told["folder"]), {})
    await here.build().start()
    for quantity in told["quantities"]:
        await here.trade(quantity)
        await here.settle()
    await here.close()


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
