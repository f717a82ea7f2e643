"""One finished run for all tests of the scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
from calling import SMALL, call


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run with two seeds."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    done = call("train.py", *SMALL, "seeds=[0,1]", f"run_dir={folder}", is_traced=True)
    assert done.returncode == 0, done.stdout + done.stderr
    # what is printed can be pasted, wherever the environment lies
    assert f"python -m tensorboard.main --logdir {folder}/tensorboard" in done.stdout
    return folder
