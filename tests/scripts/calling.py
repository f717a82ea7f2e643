"""How the scripts are called, and a run that is small enough for a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# two years to train on, three months each to choose and to judge
SMALL = (
    "+experiment=ppo_btc",
    "data=simulated",
    "data.start=2022-01-01",
    "data.end=2024-09-30",
    "split.train_end=2023-12-31",
    "split.valid_end=2024-03-31",
    "split.test_end=2024-06-30",
    "training.n_paths=4",
    "training.accounts_per_path=2",
    "training.total_steps=4096",
    "training.checkpoints=4",
    "agent.n_steps=64",
    "agent.batch_size=256",
    "policy.d_model=16",
    "policy.band=8",
    "policy.risk_hidden=8",
    "policy.risk_chunk=8",
    "policy.risk_warmup=7",
)


# a tracer slows a training threefold, and Hydra shows a traceback to anything that looks like a debugger
UNTRACED = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}


def call(
    script: str, *arguments: str, timeout: int = 240, is_traced: bool = False
) -> subprocess.CompletedProcess[str]:
    environment = {**(os.environ if is_traced else UNTRACED), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        capture_output=True, text=True, timeout=timeout, env=environment, check=False,
    )  # fmt: skip
