"""The soak, as short as it can be: whole live stacks are killed, and the accounts survive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perpgym.envs.live.crash_points import POINTS

COMMAND = Path(__file__).resolve().parents[2] / "benchmarks" / "soak.py"


def soak(out: Path, *more: str) -> tuple[int, dict[str, float], str]:
    """(exit status, the last line, what was said beside)."""
    done = subprocess.run(
        [sys.executable, str(COMMAND), "--out", str(out), *more], capture_output=True, text=True,
        check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.slow
def test_killed_programs_keep_every_promise_and_finished_seeds_are_not_run_again(tmp_path: Path) -> None:
    asked = ("--days", "1", "--kills-per-seed", "3")
    status, found, said = soak(tmp_path, "--seeds", "2", *asked)
    assert (status, found["violations"]) == (0, 0), said
    assert (found["seeds"], found["kills"]) == (2, 6)
    assert 0 < found["kills_at_points"] <= 6
    assert found["faults_thrown"] > 0
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert len(files) == 2
    first = json.loads((tmp_path / "seed_00.json").read_text())
    assert first["exits"]["killed"] == sum(first["kills_at"].values()) == 3
    assert set(first["kills_at"]) <= {*POINTS, "a_moment"}
    assert first["bars"] >= 24
    assert first["counts"]["orders"] > 0
    assert first["counts"]["ledgers"] > 0
    # what is broken in a file that is there counts, and nothing is run again
    broken = {"rule": "a test", "text": "", "seed": 0, "life": 1, "time_ms": 0}
    (tmp_path / "seed_00.json").write_text(json.dumps({**first, "violations": [broken]}))
    files.pop(tmp_path / "seed_00.json")
    status, again, said = soak(tmp_path, "--seeds", "2", *asked)
    assert (status, again) == (1, {**found, "violations": 1})
    assert "VIOLATION seed 0 life 1" in said
    assert {path: path.stat().st_mtime_ns for path in files} == files
