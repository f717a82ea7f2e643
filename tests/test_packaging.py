"""What is installed is what is on the disk, and importing it does nothing else."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
NOT_PACKAGED = {"tests", "benchmarks", "docs", "build", "runs", "outputs"}


def test_the_package_list_is_the_disk() -> None:
    on_disk = {"perpgym"}
    for init in ROOT.rglob("__init__.py"):
        parts = init.parent.relative_to(ROOT).parts
        if parts and parts[0] not in NOT_PACKAGED and not any(p.startswith(".") for p in parts):
            on_disk.add(".".join(("perpgym", *parts)))
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk


def test_every_data_file_is_packaged() -> None:
    packaged = PROJECT["tool"]["setuptools"]["package-data"]
    for path in [
        *(ROOT / "configs").rglob("*.yaml"),
        *(ROOT / "data").rglob("*.json"),
        *(ROOT / "evaluation").glob("*.html"),
        *(ROOT / "envs").rglob("*.html"),
    ]:
        folder = (
            path.parent if (path.parent / "__init__.py").exists() else ROOT / path.relative_to(ROOT).parts[0]
        )
        package = ".".join(("perpgym", *folder.relative_to(ROOT).parts))
        relative = path.relative_to(folder)
        assert any(relative.match(pattern) for pattern in packaged[package]), path


def test_only_the_scripts_lie_at_the_root() -> None:
    scripts = {path.name for path in ROOT.glob("*.py")} - {"__init__.py"}
    assert scripts <= {"train.py", "evaluate.py", "live.py"}


def test_the_exact_versions_satisfy_the_ranges() -> None:
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pinned[name.lower().replace("_", "-")] = version
    groups = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    for requirement in (r for group in groups for r in group):
        name = requirement.split(">=")[0].lower().replace("_", "-")
        assert name in pinned, f"{name} has no exact version in constraints.txt"
    assert pinned["torch"] == "2.13.0"


def test_importing_perpgym_registers_the_env_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, perpgym, gymnasium;"
        "assert 'perpgym/Perp-v0' in gymnasium.registry;"
        "heavy = {'torch', 'pandas', 'stable_baselines3', 'ccxt', 'matplotlib'} & set(sys.modules);"
        "print(sorted(heavy)); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_called_data_or_envs_reaches_site_packages() -> None:
    code = (
        "import importlib.util as u;"
        "print([n for n in ('envs', 'agents', 'policies', 'evaluation') if u.find_spec(n)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout.strip() == "[]"
