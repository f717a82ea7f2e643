"""What a tape costs in memory when several processes share it: its size once, whatever their number.

    python benchmarks/bench_tape_memory.py
    python benchmarks/bench_tape_memory.py --processes 8 --contracts 7 --years 6

A simulated tape is saved, and every process loads it, steps accounts over it and reads every one of its
numbers. Linux counts a page that k processes map as 1/k of a page for each (``Pss`` of
``/proc/self/smaps``), so the sum over the processes is what the machine really holds. *Private* is what a
process holds beside it: the growth of its anonymous memory while it loads the tape and steps, after the same
with a short tape (code and libraries are no cost of the tape).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from rich.console import Console
from rich.table import Table

from perpgym.data.config import DataConfig
from perpgym.data.features.build import build_tape
from perpgym.data.portfolio import load_contracts
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv

SYMBOLS = tuple(f"{base}/USDT:USDT" for base in ("BTC", "ETH", "XRP", "BNB", "DOGE", "SOL", "AVAX"))
ACCOUNTS, STEPS = 64, 200
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Footprint:
    """What one process holds of a tape, bytes.

    Attributes:
        mapped: pages of the tape's files that it has read.
        share: the same, each page divided by the number of processes that map it.
        copied: pages of them that it has of its own.
        private: growth of its anonymous memory.
    """

    mapped: int
    share: int
    copied: int
    private: int


def size_on_disk(folder: Path) -> int:
    """Bytes of a saved tape."""
    return sum(path.stat().st_size for path in folder.glob("*.npy"))


def footprints(folder: Path, short: Path, processes: int) -> list[Footprint]:
    """Let several processes hold a tape at the same time.

    Args:
        folder: of the saved tape.
        short: of a short tape with as many contracts and columns, to warm up.
        processes: their number.
    """
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    started = [
        context.Process(target=_hold, args=(folder, short, barrier, results)) for _ in range(processes)
    ]
    for process in started:
        process.start()
    found = [results.get(timeout=PATIENCE_S) for _ in started]
    for process in started:
        process.join()
    return found


def _hold(folder: Path, short: Path, barrier: Barrier, results: multiprocessing.Queue[Footprint]) -> None:
    _use(Tape.load(short))
    before = _anonymous()
    held = _use(Tape.load(folder))
    # nobody measures before everybody holds it, nor lets go before everybody has measured
    barrier.wait(PATIENCE_S)
    lines = _mappings(folder)
    found = Footprint(
        mapped=sum(lines["Rss"]),
        share=sum(lines["Pss"]),
        copied=sum(lines["Private_Dirty"]),
        private=_anonymous() - before,
    )
    barrier.wait(PATIENCE_S)
    del held
    results.put(found)


def _use(tape: Tape) -> tuple[PerpVecEnv, float]:
    """Step accounts over it and read all of it; what is returned keeps it alive."""
    env = PerpVecEnv(tape, n_paths=ACCOUNTS, config=EnvConfig(action="target", episode_bars=STEPS))
    out, rng = env.make_buffers(), np.random.default_rng(0)
    env.reset_into(out, 0)
    for _ in range(STEPS):
        env.step_into(rng.uniform(-1, 1, (ACCOUNTS, len(tape.contracts))).astype(np.float32), out)
    arrays = (tape.features, tape.risk, tape.last, tape.mark, tape.volume, tape.sigma_per_bar, tape.is_valid)
    return env, sum(float(array.sum()) for array in arrays)


def _anonymous() -> int:
    """Bytes of this process's memory that stand for no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: this needs Linux 4.5 or newer")


def _mappings(folder: Path) -> dict[str, list[int]]:
    """Bytes by kind of every mapping of a file in ``folder``."""
    found: dict[str, list[int]] = {"Rss": [], "Pss": [], "Private_Dirty": []}
    is_inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if "-" in name.split(" ", 1)[0]:
            is_inside = str(folder) in line
        elif is_inside and name in found:
            found[name].append(int(value.split()[0]) * 1024)
    return found


def simulated_tape(contracts: int, start: str, end: str) -> Tape:
    """Several contracts with the default columns."""
    config = DataConfig(source="simulated", contracts=SYMBOLS[:contracts], start=start, end=end)
    return build_tape([one.bars for one in load_contracts(config)], source="simulated")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--contracts", type=int, default=7, choices=range(1, len(SYMBOLS) + 1))
    parser.add_argument("--years", type=int, default=6)
    call = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, short = Path(temporary) / "tape", Path(temporary) / "short"
        tape = simulated_tape(call.contracts, "2019-01-01", f"{2018 + call.years}-12-31")
        tape.save(folder)
        simulated_tape(call.contracts, "2019-01-01", "2019-03-31").save(short)
        found, size = footprints(folder, short, call.processes), size_on_disk(folder)
    table = Table(title=f"{len(tape):,} bars of {call.contracts} contracts in {call.processes} processes")
    for column in ("", "MiB", "of its size"):
        table.add_column(column, justify="right" if column else "left")
    rows = {
        "the tape on disk": size,
        "in memory, all processes together": sum(one.share for one in found),
        "copied by any process": sum(one.copied for one in found),
        "private to one process (largest)": max(one.private for one in found),
    }
    for name, count in rows.items():
        table.add_row(name, f"{count / 2**20:.1f}", f"{count / size:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
