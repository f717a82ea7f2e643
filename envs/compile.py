"""How kernels are compiled: numba with an on-disk cache that notices a change in any kernel file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit, typeof, types
from numba.core.caching import IndexDataCacheFile

_HERE = Path(__file__).parent
# Kernels call each other across these files.
KERNEL_FILES = (
    "compile.py",
    "execution.py",
    "fees.py",
    "impact.py",
    "margin.py",
    "arrays.py",
    "account.py",
    "risk/overlay.py",
    "orders.py",
    "decision.py",
    "fills.py",
    "insolvency.py",
    "liquidation.py",
    "path.py",
    "matching.py",
    "payoff.py",
    "kernel.py",
    "masks.py",
    "batch.py",
    "booking.py",
)


# Kernels allocate nothing, so numba's runtime, which would count references to every array view with atomic
# operations, is left out: a step takes 54 ns instead of 480 (600 without inlining). Division by zero gives
# IEEE's inf or nan: no exceptions inside kernels.
_OPTIONS: dict[str, Any] = {"_nrt": False, "error_model": "numpy", "forceinline": True}


@cache
def _sources_stamp() -> str:
    digest = hashlib.sha256()
    for name in KERNEL_FILES:
        path = _HERE / name
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a scalar or batch kernel in nopython mode, IEEE arithmetic, inlined, cached on disk."""
    return _compile(function, _OPTIONS)


def cold_kernel(function: Callable[..., Any]) -> Any:
    """The same for what rarely runs: a function of its own, so that the path that always runs stays short."""
    return _compile(function, {**_OPTIONS, "forceinline": False})


def bind(function: Any, *arguments: Any) -> Callable[..., Any]:
    """A kernel's machine code for arguments of these types, compiled if need be.

    Finding out the types of some fifty arrays takes numba 7 us a call, more than stepping a dozen accounts.
    The caller vouches that later arguments have the same types and layout.
    """
    if not hasattr(function, "compile"):
        return function  # type: ignore[no-any-return]  # NUMBA_DISABLE_JIT: plain Python
    entry: Callable[..., Any] = function.compile(tuple(map(typeof, arguments)))
    return entry


def _take_constants_as_values(dispatcher: Any) -> None:
    """Numba compiles a function anew for every constant that a caller passes; inlining does as well without.

    It saves a quarter of the time to compile. Where numba's dispatcher has another shape, nothing changes.
    """
    if not hasattr(dispatcher, "get_call_template"):
        return
    by_literal = dispatcher.get_call_template

    def by_value(args: Any, kws: Any) -> Any:
        unliteral: Callable[[Any], Any] = types.unliteral
        return by_literal(tuple(map(unliteral, args)), {name: unliteral(kind) for name, kind in kws.items()})

    dispatcher.get_call_template = by_value


def _compile(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Compile and cache.

    Numba stamps a cached function with the time of its own file only, so a changed ``margin.py`` would leave
    yesterday's arithmetic inside ``kernel.py``'s cache. Here the cache's files carry the hash of every kernel
    file in their name. Where numba's cache has another shape than expected, the function is compiled anew in
    each process instead.
    """
    dispatcher = njit(cache=True, **options)(function)
    _take_constants_as_values(dispatcher)
    stamp = _sources_stamp()
    try:
        files = dispatcher._cache
        files._cache_file = IndexDataCacheFile(  # type: ignore[no-untyped-call]
            cache_path=files._cache_path,
            filename_base=f"{files._impl.filename_base}.{stamp[:12]}",
            source_stamp=stamp,
        )
    except AttributeError:
        return njit(**options)(function)
    return dispatcher
