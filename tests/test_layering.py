"""Imports run one way, from data to the scripts; a backward arrow fails here."""

from __future__ import annotations

import ast
import gc
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = ("data", "envs", "policies", "agents", "evaluation", "experiments")
# policies know no env: only the names and ranges of what they read, and the batch env's buffers nowhere
POLICIES_MAY_READ = {"perpgym.envs.actions", "perpgym.envs.spaces"}


def imports(path: Path) -> set[str]:
    """Modules of perpgym that a file imports at run time, also inside functions."""
    # a collection within the parser makes CPython 3.11 raise a SystemError (its issue 106905)
    gc.disable()
    try:
        tree = ast.parse(path.read_text("utf-8"))
    finally:
        gc.enable()
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If)
        and isinstance(branch.test, ast.Name)
        and branch.test.id == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("perpgym.")}


@pytest.mark.parametrize("package", ORDER)
def test_no_import_runs_backward(package: str) -> None:
    allowed = ORDER[: ORDER.index(package) + 1]
    for path in (ROOT / package).rglob("*.py"):
        for module in imports(path):
            target = module.split(".")[1]
            assert target in allowed, f"{path.relative_to(ROOT)} imports {module}, which lies after {package}"


def test_policies_read_nothing_of_the_env_but_its_columns() -> None:
    for path in (ROOT / "policies").rglob("*.py"):
        read = {m for m in imports(path) if m.startswith("perpgym.envs")}
        assert read <= POLICIES_MAY_READ, f"{path.relative_to(ROOT)} imports {read - POLICIES_MAY_READ}"


def test_data_knows_no_learning_library() -> None:
    for path in [*(ROOT / "data").rglob("*.py"), *(ROOT / "envs").glob("kernel.py")]:
        assert "torch" not in path.read_text("utf-8").split("import ")[-1].split("\n")[0]
        assert "import torch" not in path.read_text("utf-8")
