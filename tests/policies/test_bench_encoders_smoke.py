"""The encoder benchmark compares like with like: its own parity check holds, and fails when broken."""

from __future__ import annotations

from dataclasses import replace

import bench_encoders as bench
import pytest
import torch


def test_both_sides_of_the_benchmark_compute_the_same() -> None:
    entrants = bench.contestants(torch.device("cpu"))
    assert {"transformer", "lstm", "gru", "tcn", "tft", "mlp", "transformer_4_contracts"} == set(entrants)
    assert bench.check_parity(entrants["lstm"]) <= bench.TOLERANCE


def test_windows_that_are_a_bar_late_stop_the_benchmark() -> None:
    entrant = bench.contestants(torch.device("cpu"))["mlp"]
    late = replace(entrant, windows=entrant.windows.roll(1, dims=0))
    with pytest.raises(SystemExit, match="fresh weights: stretches and windows differ"):
        bench.check_parity(late)
