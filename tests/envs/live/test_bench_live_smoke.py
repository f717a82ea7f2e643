"""The benchmark of live decisions times what it says, on an account that is its env's."""

from __future__ import annotations

import bench_live as bench
import pytest


def test_every_decision_is_timed_from_its_final_bar_to_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_WARM_UP", 2)
    parts, found = bench.run(4)
    assert found.largest <= bench.TOLERANCE
    assert found.counts["fills"] == 6
    # the first order of all has no bar before it
    for part in ("decision", "settle", "features", "books", "observation", "inference"):
        assert len(parts[part]) == 4, part
    for part in ("settle", "features", "inference"):
        assert all(whole > share > 0.0 for whole, share in zip(parts["decision"], parts[part], strict=True))
