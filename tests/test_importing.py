"""Importing has no side effects: a process that imports perpgym is otherwise as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# what other packages change when they are imported is theirs, and not looked at
SCRIPT = """
import logging, os, signal, sys, warnings
import aiohttp.web, arch.bootstrap, ccxt.pro, gymnasium, hydra, matplotlib, numba, numpy as np, pandas
import scipy.stats, stable_baselines3, torch

def state():
    root = logging.getLogger()
    return {{
        "warning filters": [tuple(map(str, rule)) for rule in warnings.filters],
        "numpy's errors": np.geterr(),
        "numpy's printing": str(np.get_printoptions()),
        "numpy's generator": np.random.get_state()[1].tobytes(),
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        "torch's threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch's default type": torch.get_default_dtype(),
        "torch's determinism": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "root logger": (root.level, root.handlers[:], root.filters[:]),
        "matplotlib's settings": dict(matplotlib.rcParams),
        "pandas' settings": pandas.get_option("display.max_columns"),
        "environment": dict(os.environ),
        "working folder": os.getcwd(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "excepthook": sys.excepthook,
        "search path": sys.path[:],
    }}

before = state()
{code}
after = state()
print(*[name for name in before if before[name] != after[name]], sep="\\n")
"""


def changed_by(code: str) -> list[str]:
    said = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(code=code)], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    return said.stdout.split("\n")[:-1] if said.stdout.strip() else []


def test_importing_every_module_changes_nothing_in_the_process() -> None:
    folders = ("data", "envs", "policies", "agents", "evaluation", "experiments")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    names = {
        ".".join(("perpgym", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for path in files
        if path.stem != "__main__"
    }
    assert len(names) > 80
    imports = "\n".join(f"import {name}" for name in ["perpgym", *sorted(names)])
    assert changed_by(imports) == []


def test_side_effects_would_be_noticed() -> None:
    effects = {
        "warning filters": "warnings.filterwarnings('error')",
        "numpy's errors": "np.seterr(all='raise')",
        "numpy's generator": "np.random.seed(1)",
        "torch's threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
        "root logger": "logging.basicConfig()",
        "environment": "os.environ['MINE'] = '1'",
    }
    assert changed_by("\n".join(effects.values())) == list(effects)
