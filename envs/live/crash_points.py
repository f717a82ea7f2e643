"""Places where a test lets the program die as if its power were cut.

Each is a call of :func:`reach` in the desk. It does nothing unless ``PERPGYM_CRASH_AT`` names it; then the
process kills itself with a signal that nothing can catch.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "PERPGYM_CRASH_AT"
# in the order in which an order reaches them
POINTS = ("before_intent", "after_intent", "after_mark", "after_send", "after_ack", "after_fill")


def reach(point: str) -> None:
    """Die here if the environment says so."""
    if os.environ.get(VARIABLE) == point:
        os.kill(os.getpid(), signal.SIGKILL)
