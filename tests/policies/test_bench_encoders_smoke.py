"""The encoder benchmark compares like with like: its own parity check holds, and fails when broken."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bench_encoders")


def test_both_sides_of_the_benchmark_compute_the_same(bench: ModuleType) -> None:
    entrants = bench.contestants(torch.device("cpu"))
    assert {"transformer", "lstm", "gru", "tcn", "tft", "mlp", "transformer_4_contracts"} == set(entrants)
    assert bench.check_parity(entrants["lstm"]) <= bench.TOLERANCE


def test_windows_that_are_a_bar_late_stop_the_benchmark(bench: ModuleType) -> None:
    entrant = bench.contestants(torch.device("cpu"))["mlp"]
    late = replace(entrant, windows=entrant.windows.roll(1, dims=0))
    with pytest.raises(SystemExit, match="fresh weights: stretches and windows differ"):
        bench.check_parity(late)
