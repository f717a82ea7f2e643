"""Every contender and every rule on the same bars with the same processor time, as one table.

    python benchmarks/real_table.py --data DATA --out runs/table    # BTC, seven contracts; five seeds
    python benchmarks/real_table.py --out runs/table --show         # what is done, without running
    python benchmarks/real_table.py --out runs/small --markets simulated --seeds 2 --seconds 10

Trains to 2023-12-31, chooses checkpoints to 2024-06-30, judges to 2025-06-30 (``configs/config.yaml``). Each
seed is a process of its own and is kept when it is done: the same command goes on where it was stopped, and
tries again what failed. Units of other settings, code or data are refused: run a long table from a checkout
that nobody changes. A contender is the experiment ``<name>_btc`` of the config folder, or one of them with
settings of its own; all of these trade seven contracts as well as one.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from table_plan import Plan
from table_summary import write_table
from table_units import CONTENDERS, MARKETS, Unit, list_units, run_unit

from perpgym.experiments.console import set_up_log
from perpgym.experiments.training import StopRequestedError

_STOPPED = 130


def main() -> None:
    """Run what is not done, then print the table; exit code 1 if a unit failed."""
    arguments = _arguments()
    if arguments.unit is not None:
        market, contender, seed = arguments.unit
        _run_here(Unit(market, contender, int(seed)), _asked(arguments), arguments.out)
        return
    try:
        plan = _plan_of(arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    units = list_units(arguments.markets, arguments.contenders, arguments.seeds)
    failed: dict[Unit, str] = {}
    try:
        if not arguments.show:
            failed = run_all(units, plan, arguments.out)
    except KeyboardInterrupt:
        print("stopped; what is done is kept, and the same command goes on", file=sys.stderr)
        sys.exit(_STOPPED)
    print(write_table(arguments.out, plan, units, failed))
    sys.exit(1 if failed else 0)


def _plan_of(arguments: argparse.Namespace) -> Plan:
    if arguments.show:
        # what is only looked at keeps its own settings and code
        return Plan.read(arguments.out)
    plan = _asked(arguments)
    plan.claim(arguments.out)
    return plan


def _asked(arguments: argparse.Namespace) -> Plan:
    return Plan(
        data=arguments.data,
        seconds=arguments.seconds,
        checkpoints=arguments.checkpoints,
        overrides=tuple(arguments.set),
    )


def run_all(units: list[Unit], plan: Plan, out: Path) -> dict[Unit, str]:
    """Every unit that is not done, one process after the other.

    Returns:
        The last line that each failed unit wrote.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM, once the running unit has saved.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed: dict[Unit, str] = {}
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(units))
        for unit in units:
            bar.update(task, description=str(unit))
            if not unit.result(out).exists() and (why := _run_apart(unit, plan, out)) is not None:
                failed[unit] = why
                console.print(f"{unit} failed: {why}", soft_wrap=True, markup=False)
            bar.advance(task)
    return failed


def _run_apart(unit: Unit, plan: Plan, out: Path) -> str | None:
    """Run in a process of its own; why it failed, or None."""
    folder = unit.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, __file__, "--unit", unit.market, unit.contender, str(unit.seed), "--out", str(out),
        "--data", plan.data, "--seconds", str(plan.seconds), "--checkpoints", str(plan.checkpoints),
        "--set", *plan.overrides,
    ]  # fmt: skip
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    log = folder / "log.txt"
    with log.open("ab") as lines:
        # a group of its own: Ctrl-C reaches it once, through us
        process = subprocess.Popen(
            command, stdout=lines, stderr=lines, env={**os.environ, **one_thread}, start_new_session=True
        )
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    if code == 0 and unit.result(out).exists():
        return None
    last = log.read_text("utf-8", "replace").strip().splitlines()[-1:]
    return f"{last[0].strip() if last else 'it wrote nothing'} (exit code {code}; {log})"


def _run_here(unit: Unit, plan: Plan, out: Path) -> None:
    set_up_log()
    try:
        run_unit(unit, plan, out)
    except StopRequestedError:
        sys.exit(_STOPPED)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="All contenders on the same bars with the same processor time."
    )
    parser.add_argument("--data", default="", help="freqtrade data folder, with futures/ in it")
    parser.add_argument("--out", type=Path, required=True, help="where units are kept")
    parser.add_argument("--markets", nargs="+", choices=tuple(MARKETS), default=["btc", "seven"])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), help="experiments, without _btc")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="processor time of training a seed")
    parser.add_argument("--checkpoints", type=int, default=6, help="how often validation looks")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the config, for every unit")
    parser.add_argument("--show", action="store_true", help="print what is done; run nothing")
    parser.add_argument(
        "--unit", nargs=3, metavar=("MARKET", "CONTENDER", "SEED"), help="this one, in this process"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
