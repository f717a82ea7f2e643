"""Contestants take turns round by round, and what they are is printed with the machine."""

from __future__ import annotations

import platform
import statistics
import subprocess
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table


def measure(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Interleaved rounds after one of warm-up."""
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("timing", total=(rounds + 1) * len(contestants))
        for number in range(rounds + 1):
            for name, run in contestants.items():
                progress.update(task, description=name)
                speed = run()
                if number > 0:
                    speeds[name].append(speed)
                progress.advance(task)
    return speeds


def machine() -> str:
    """Commit, processor and torch."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    machine = f"{platform.processor() or platform.machine()}, torch {torch.__version__}"
    return f"commit {commit.stdout.strip() or 'unknown'}; {machine}; one thread unless said"


def speed_table(speeds: dict[str, list[float]], title: str = "", unit: str = "steps/s") -> Table:
    """Median, lowest and highest of each contestant."""
    table = Table(title, f"{unit}, median", "lowest", "highest")
    for name, values in speeds.items():
        table.add_row(name, f"{statistics.median(values):,.0f}", f"{min(values):,.0f}", f"{max(values):,.0f}")
    return table
