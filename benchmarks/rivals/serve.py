"""The rival's end of the pipe: answers each request with the CPU seconds of that many steps."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(window: Any, reset: Callable[[], None], variants: dict[str, Callable[[int], None]]) -> None:
    """Say what can be timed, then time what is asked for until the pipe closes.

    Args:
        window: (R, F) float32, the first account's newest observation, for the parity check.
        reset: starts new episodes; called before each round, not timed.
        variants: ways to run this many steps of every account; the other end keeps the fastest.
    """
    answer({"window": window.tolist(), "variants": list(variants)})
    for line in sys.stdin:
        request = json.loads(line)
        reset()
        started = time.process_time()
        variants[request["variant"]](request["steps"])
        answer({"seconds": time.process_time() - started})


def answer(message: dict[str, Any]) -> None:
    """One JSON object a line."""
    print(json.dumps(message), flush=True)
