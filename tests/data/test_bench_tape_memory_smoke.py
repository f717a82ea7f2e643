"""A tape that several processes hold at once lies in memory once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import bench_tape_memory as bench
import pytest

from perpgym.data.tape import Tape

# six years of hours, seven contracts, the number of default columns
BARS, CONTRACTS, SETTINGS = 52_608, 7, {"n_features": 22, "n_risk": 7}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/smaps, which Linux has")
def test_six_years_of_seven_contracts_in_four_processes_cost_their_size_once(
    make_tape: Callable[..., Tape],
    merge_tapes: Callable[[list[Tape]], Tape],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for folder, bars in (("tape", BARS), ("short", 500)):
        merge_tapes([make_tape(bars=bars, seed=i, **SETTINGS) for i in range(CONTRACTS)]).save(
            tmp_path / folder
        )
    found = bench.footprints(tmp_path / "tape", tmp_path / "short", 4)
    size = bench.size_on_disk(tmp_path / "tape")
    assert size > 60 * 2**20
    together = sum(one.share for one in found)
    assert 0.9 * size < together < 1.1 * size
    for one in found:
        # the negative control: each of them has read nearly all of it
        assert one.mapped > 0.9 * size
        assert one.copied == 0
        assert one.private < 0.25 * size
