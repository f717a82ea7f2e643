"""Says what keeps a program waiting when its kernels are not in numba's cache."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from numba.core import event

_LOG = logging.getLogger(__name__)


class _Announcer(event.Listener):
    """Speaks once. Numba sends this event when it compiles, and none when its cache had something to load."""

    def __init__(self) -> None:
        self.has_spoken = False

    def on_start(self, event: Any) -> None:
        module: str = event.data["dispatcher"].py_func.__module__
        if not self.has_spoken and module.startswith("perpgym.envs"):
            self.has_spoken = True
            _LOG.info("compiling kernels, once for each version of perpgym: a minute or two ...")

    def on_end(self, event: Any) -> None:
        pass


@cache
def announce_compiling() -> None:
    """From now on, log one line (INFO) when the first kernel is compiled; none where all are cached."""
    event.register("numba:compile", _Announcer())  # type: ignore[no-untyped-call]
