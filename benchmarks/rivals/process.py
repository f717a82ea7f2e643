"""Another project's environment: installed in a virtual environment of its own, timed over a pipe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import venv
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

_INSTALL_TIMEOUT_S = 1_800


class RivalUnavailable(Exception):  # noqa: N818 - a state of the machine, not a mistake
    """The rival could not be installed or did not start; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Rival:
    """What to install and what to run in it.

    Attributes:
        name: of the project, and of its folder in the cache.
        script: beside this file.
        requirements: one ``pip install`` each, in this order.
    """

    name: str
    script: str
    requirements: tuple[str, ...]


GYM_TRADING_ENV = Rival(
    name="gym-trading-env", script="run_gym_trading_env.py", requirements=("gym-trading-env==0.3.5",)
)
GYM_ANYTRADING = Rival(
    name="gym-anytrading", script="run_gym_anytrading.py", requirements=("gym-anytrading==2.0.0",)
)
# the build of torch that runs here (the label after "+"): a machine without a GPU gets no libraries for one
_, _plus, _build = metadata.version("torch").partition("+")
TORCHTRADE = Rival(
    name="torchtrade",
    script="run_torchtrade.py",
    requirements=(f"torch==2.13.0{_plus}{_build}", "torchtrade==0.1.0"),
)


def cache_folder() -> Path:
    """``$PERPGYM_CACHE`` or the user's cache folder for perpgym."""
    named = os.environ.get("PERPGYM_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_path("perpgym"))


def install(rival: Rival) -> Path:
    """The rival's python, installed on first use.

    Raises:
        RivalUnavailable: pip failed; its last words are in the message.
    """
    home = cache_folder() / "rivals" / rival.name
    python, stamp = home / "bin" / "python", home / "requirements.txt"
    wanted = "\n".join(rival.requirements)
    if stamp.exists() and stamp.read_text("utf-8") == wanted:
        return python
    shutil.rmtree(home, ignore_errors=True)
    try:
        venv.create(home, with_pip=True)
        for number in range(len(rival.requirements)):
            # earlier requirements are repeated, so that a later one cannot replace them
            _pip(python, rival.requirements[: number + 1])
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise RivalUnavailable(
            f"{rival.name} could not be installed in {home}: {said.strip().splitlines()[-1]}; "
            "check the network and the disk and run again, or set PERPGYM_CACHE to another folder"
        ) from error
    stamp.write_text(wanted, "utf-8")
    return python


def _pip(python: Path, requirements: tuple[str, ...]) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S)


class RivalProcess:
    """A running rival with its accounts; ``variant`` is the way of stepping that rounds use."""

    def __init__(self, rival: Rival, market_file: Path, accounts: int) -> None:
        self.rival, self.accounts = rival, accounts
        python = install(rival)
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [str(python), str(Path(__file__).parent / rival.script), str(market_file), str(accounts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        hello = self._read()
        self.variants: list[str] = hello["variants"]
        self.variant = self.variants[0]
        self.window: NDArray[np.float32] = np.array(hello["window"], np.float32)

    def speed(self, steps: int) -> float:
        """Account-steps per CPU second over ``steps`` steps of every account."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"variant": self.variant, "steps": steps}) + "\n")
        self._process.stdin.flush()
        return float(self.accounts * steps / self._read()["seconds"])

    def keep_fastest_variant(self, steps: int) -> None:
        """Time each way of stepping twice, for warmth, and keep the best."""
        best = 0.0
        for variant in self.variants:
            self.variant = variant
            speed = max(self.speed(steps) for _ in range(2))
            if speed > best:
                best, fastest = speed, variant
        self.variant = fastest

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()
        self._errors.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # libraries greet on standard output too
            if line.startswith("{"):
                return dict(json.loads(line))
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        self.close()
        raise RivalUnavailable(f"{self.rival.name} stopped: {said[-1] if said else 'it said nothing'}")
