"""Who must wait for the compiler is told so, once; who need not hears nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LINE = "compiling kernels, once for each version of perpgym"
# a small kernel for two kinds of number, and one of another room before it
PROGRAM = """
import logging, sys
import numpy as np
from perpgym.data.features.windows import lowest_of_window
from perpgym.envs.announce import announce_compiling
from perpgym.envs.margin import worth

logging.basicConfig(level=logging.INFO, stream=sys.stdout)
announce_compiling()
announce_compiling()
lowest_of_window(np.arange(9.0), 3, 1)
print("features")
worth(1.0, 0.0)
worth(1, 0)
print("done")
"""


def run(cache: Path) -> list[str]:
    """What the program says, with numba's cache in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True, text=True, check=True, timeout=240,
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
    )  # fmt: skip
    return done.stdout.splitlines()


def test_compiling_is_announced_once_and_never_where_the_cache_has_it(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert [LINE in line for line in first] == [False, True, False]
    assert (first[0], first[2]) == ("features", "done")
    assert run(tmp_path) == ["features", "done"]
