"""The least that making windows can cost: copies of rows, which ``bench_env.py`` times beside the env."""

from __future__ import annotations

import numba


@numba.njit(cache=True)
def plain_copy(columns, newest, window, out):  # type: ignore[no-untyped-def]
    """Copy the ``window`` rows of (T, F) ``columns`` that end at ``newest[i]`` into ``out[i]``, (R, F)."""
    for i in range(newest.shape[0]):
        out[i] = columns[newest[i] - window + 1 : newest[i] + 1]


@numba.njit(cache=True)
def flat_copy(columns, newest, window, out):  # type: ignore[no-untyped-def]
    """The same as one run of numbers, which becomes vector moves."""
    size = window * columns.shape[1]
    for i in range(newest.shape[0]):
        source = columns[newest[i] - window + 1 : newest[i] + 1].reshape(size)
        target = out[i].reshape(size)
        for j in range(size):
            target[j] = source[j]


BARE_COPIES = {"plain copy": plain_copy, "flat copy": flat_copy}
