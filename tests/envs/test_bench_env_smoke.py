"""The speed benchmark times an env that does its work: its own parity checks hold, and fail when broken."""

from __future__ import annotations

import bench_env as bench
import env_costs as costs
import numpy as np
import pytest


def test_the_benchmark_sees_every_kind_of_event_before_it_times() -> None:
    said = bench.check_parity(bench.market("2020-01-01"))
    assert "batch = single" in said


def test_the_bare_copies_write_what_the_env_writes() -> None:
    tape = bench.market("2025-01-01")
    ours = bench.Ours(tape, bench.action_tapes(4)["trading"], with_windows=True)
    ours.run(5)
    bench.check_bare_copies(ours)
    ours.windows()[0, 0, 0] += np.float32(1.0)
    with pytest.raises(SystemExit, match="differs from the env's windows"):
        bench.check_bare_copies(ours)


def test_the_cost_of_contracts_is_measured_on_as_many_of_them() -> None:
    tape = costs.widened(bench.market("2025-01-01"), 3)
    assert (tape.mark.shape[1], len(tape.contracts), tape.is_valid.shape[1]) == (3, 3, 3)
    assert costs.cost_of_contracts(bench.market("2025-01-01"), 3, bench.CONFIG, rounds=1) > 0.0
