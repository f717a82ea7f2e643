"""Does an account survive whatever happens to its program? The whole live stack, killed again and again on an
exchange that misbehaves; judged from the exchange's own state.

    python benchmarks/soak.py                                       # 20 seeds, 10 days, 40 kills each
    python benchmarks/soak.py --seeds 2 --days 1 --kills-per-seed 5

A seed is an exchange in a process of its own and a program that is killed (SIGKILL) at named points of its
code and at random moments, and started again from its journal. One file a seed is written to ``--out``; a
seed whose file is there is not run again. The last line is JSON; the exit status is 1 if a promise was
broken.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from soak_life import MOMENT, SHORTENED
from soak_seed import Asked, Soak, rehearse


def write(path: Path, found: dict[str, Any]) -> None:
    """All of it or nothing."""
    half = path.with_suffix(".part")
    half.write_text(json.dumps(found, indent=1))
    half.replace(path)


def read(path: Path, asked: Asked) -> dict[str, Any] | None:
    """A finished seed.

    Raises:
        SystemExit: it was asked for otherwise.
    """
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    if (found["days"], found["kills_asked"]) != (asked.days, asked.kills):
        raise SystemExit(
            f"{path} holds {found['days']} days with {found['kills_asked']} kills, {asked.days} days with "
            f"{asked.kills} kills are asked for: name another folder with --out, or remove it"
        )
    return found


def summary(asked: Asked, results: list[dict[str, Any]]) -> dict[str, Any]:
    """The last line."""
    seconds = [s for found in results for s in found["recovery_s"]]
    thrown = sum((Counter(found["thrown"]) for found in results), Counter[str]())
    return {
        "seeds": len(results),
        "days": asked.days,
        "kills": sum(found["kills"] for found in results),
        "kills_at_points": sum(_at_points(found).total() for found in results),
        "faults_thrown": sum(thrown.values()),
        "violations": sum(len(found["violations"]) for found in results),
        "recovery_s_median": round(statistics.median(seconds), 3) if seconds else None,
        "recovery_s_worst": round(max(seconds), 3) if seconds else None,
        "bare_s_worst": max(found["worst_bare_ms"] for found in results) / 1000.0,
        "waits_shortened": SHORTENED,
    }


def _at_points(found: dict[str, Any]) -> Counter[str]:
    """How many died where, of those that died at a named point of the code."""
    return Counter({point: count for point, count in found["kills_at"].items() if point != MOMENT})


def read_command() -> Asked:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--days", type=int, default=10, help="of hourly bars, each seed")
    parser.add_argument("--kills-per-seed", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("build/soak"), help="of one file a seed")
    given = parser.parse_args()
    for name, least in (("seeds", 1), ("days", 1), ("kills_per_seed", 0)):
        if getattr(given, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, was {getattr(given, name)}")
    return Asked(seeds=given.seeds, days=given.days, kills=given.kills_per_seed, out=given.out)


def main() -> int:
    """1 if a promise was broken."""
    asked = read_command()
    asked.out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    results = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # forks want no threads: the bar is drawn by hand
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        bar = progress.add_task("compiling", total=asked.seeds * asked.bars)
        progress.refresh()
        if not all((asked.out / f"seed_{seed:02d}.json").exists() for seed in range(asked.seeds)):
            rehearse()

        def tell(violation: dict[str, Any]) -> None:
            progress.console.print(
                "VIOLATION seed {seed} life {life} at {time_ms}: {rule}: {text}".format(**violation)
            )

        for seed in range(asked.seeds):
            path = asked.out / f"seed_{seed:02d}.json"
            before = seed * asked.bars

            def show(bars: int, before: int = before) -> None:
                progress.update(bar, completed=before + min(bars, asked.bars), refresh=True)

            progress.update(bar, description=f"seed {seed}", completed=before, refresh=True)
            found = read(path, asked)
            if found is None:
                found = Soak(seed, asked, tell, show).run()
                write(path, found)
            else:
                for violation in found["violations"]:
                    tell(violation)
            results.append(found)
        progress.update(bar, completed=asked.seeds * asked.bars, refresh=True)
    found = summary(asked, results)
    print(json.dumps(found))
    return int(found["violations"] > 0)


if __name__ == "__main__":
    sys.exit(main())
