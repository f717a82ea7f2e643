"""Compiled kernels equal plain Python, number by number, on random markets, accounts and actions."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perpgym.data.contract import Contract
from perpgym.data.tape import Tape
from perpgym.envs.spaces import LEDGER

MakeTape = Callable[..., Tape]
MergeTapes = Callable[[list[Tape]], Tape]
PLAY, WORLDS = Path(__file__).parent / "play_random_worlds.py", 48


def coarser(tape: Tape, per_bar: int) -> Tape:
    """The tape in bars of so many of its own."""
    count = len(tape) // per_bar

    def joined(prices: np.ndarray) -> np.ndarray:
        parts = prices[: count * per_bar].reshape(count, per_bar, 1, 4)
        columns = (parts[:, 0, :, 0], parts[..., 1].max(1), parts[..., 2].min(1), parts[:, -1, :, 3])
        return np.stack(columns, axis=-1)

    return replace(
        tape, bar_ms=tape.bar_ms * per_bar, open_time_ms=tape.open_time_ms[::per_bar][:count],
        last=joined(tape.last), mark=joined(tape.mark),
        volume=tape.volume[: count * per_bar].reshape(count, per_bar, 1).sum(1),
        sigma_per_bar=2.0 * tape.sigma_per_bar[:count],
        stamp_start=tape.stamp_start[:, : count * per_bar + 1 : per_bar],
        features=tape.features[:count], risk=tape.risk[:count], is_valid=tape.is_valid[:count], _cache={},
    )  # fmt: skip


@pytest.fixture
def tapes(make_tape: MakeTape, merge_tapes: MergeTapes, contract: Contract, tmp_path: Path) -> Path:
    """A folder of tapes: one contract, three, an inverse one, and one with the bars inside its bars."""
    wild: dict[str, Any] = {
        "bars": 160,
        "sigma": 0.03,
        "wick": 0.02,
        "funding_rate": 2e-3,
        "mark_basis": 0.001,
    }
    # lots so small that the last bit of a number decides nothing
    fine = replace(contract, lot_size=1e-12, min_quantity=1e-12, tick_size=1e-9)
    small = replace(fine, brackets=tuple(
        replace(b, floor=b.floor / 3e4, cap=b.cap / 3e4, cum=b.cum / 3e4) for b in contract.brackets
    ))  # fmt: skip
    hours = make_tape(seed=9, rules=fine, **wild | {"bars": 400, "sigma": 0.015})
    made = {
        "one": make_tape(seed=1, **wild),
        "three": merge_tapes([make_tape(seed=seed, rules=fine, **wild) for seed in (2, 3, 4)]),
        "inverse": make_tape(seed=5, rules=replace(small, symbol="C/USD:C", kind="inverse"), **wild),
        "fine": hours,
        "coarse": coarser(hours, 4),
    }
    for name, tape in made.items():
        tape.save(tmp_path / name)
    return tmp_path


def test_compiled_kernels_equal_plain_python_number_by_number(tapes: Path) -> None:
    played = []
    for disabled in ("0", "1"):
        target = tapes / f"{disabled}.npz"
        subprocess.run(
            [sys.executable, str(PLAY), str(tapes), str(WORLDS), str(target)],
            check=True, env={**os.environ, "NUMBA_DISABLE_JIT": disabled},
        )  # fmt: skip
        played.append(np.load(target))
    compiled, plain = played
    assert compiled.files == plain.files
    assert (bool(compiled["is_plain"]), bool(plain["is_plain"])) == (False, True)
    for name in compiled.files[1:]:
        np.testing.assert_allclose(
            compiled[name], plain[name], rtol=1e-9, atol=1e-7, equal_nan=True, err_msg=name
        )
    ledgers = [compiled[f"{world} ledger"].reshape(-1, len(LEDGER)) for world in range(WORLDS)]
    for event, least in (
        ("fills", 40),
        ("stopped", 20),
        ("liquidated", 10),
        ("funding", 40),
        ("insurance", 3),
    ):
        worlds = sum(bool((ledger[:, LEDGER[event]] != 0.0).any()) for ledger in ledgers)
        assert worlds >= least, (event, worlds)
    assert math.isfinite(sum(float(ledger[:, LEDGER["equity"]].sum()) for ledger in ledgers))
