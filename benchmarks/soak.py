"""Does an account survive whatever happens to its program? The whole live stack, killed again and again on an
exchange that misbehaves; judged from the exchange's own state.

    python benchmarks/soak.py                                       # 20 seeds, 10 days, 25 kills each
    python benchmarks/soak.py --seeds 2 --days 1 --kills-per-seed 5

A seed is an exchange in a process of its own and a program that is killed (SIGKILL) at named points of its
code and at random moments, and started again from its journal. One file a seed is written to ``--out``; a
seed whose file is there is not run again. The last line is JSON; the exit status is 1 if a promise was
broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from soak_exchange import exchange, make_venue
from soak_life import CAP, Death, Life, Told, account, post

from perpgym.data.features.build import build_tape
from perpgym.data.synthetic import SimulatedMarketConfig, simulate_market
from perpgym.data.tape import Tape
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.warm import warm_up
from perpgym.envs.live.crash_points import POINTS
from perpgym.envs.live.recovery import StartRefused

# bars before the first decision
_HISTORY = 800
_REHEARSED = 8
# no life may hang for so long
_PATIENCE_S = 90.0
_LOOK_S = 0.005
_MOST_LIVES = 10
# of the kills, at a random moment; before the first decision of a life
_AT_MOMENTS, _IN_RECOVERY = 0.35, 0.2
# exit status of a program that would not start on the account as it was
REFUSED = 3
# how often a dead program stays away for bars
_AWAY, _MOST_AWAY = 0.25, 8


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked for on the command line."""

    seeds: int
    days: int
    kills: int
    out: Path

    @property
    def bars(self) -> int:
        """Hours of one seed."""
        return 24 * self.days


def make_tape(seed: int, bars: int) -> Tape:
    """An hourly market, its own for every seed."""
    begin = np.datetime64("2024-01-01")
    end = begin + np.timedelta64((bars + _HISTORY) // 24 + 3, "D")
    config = SimulatedMarketConfig(start=str(begin), end=str(end), seed=seed)
    # an exchange shows prices; columns are its clients' business
    return build_tape(simulate_market(config).bars, features=(), risk=(), source=f"simulated (seed {seed})")


def fork(work: Callable[[], None], log: Path) -> int:
    """Run ``work`` in a process of its own, its words in ``log``; returns its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with log.open("a") as words:
            os.dup2(words.fileno(), 1)
            os.dup2(words.fileno(), 2)
            logging.basicConfig(stream=words, level=logging.WARNING, format="%(asctime)s %(message)s")
            try:
                work()
                status = 0
            except StartRefused as error:
                status = REFUSED
                print(f"refused: {error}", flush=True)
            except Exception:
                traceback.print_exc(file=words)
                words.flush()
    finally:
        # no handlers of the driver's
        os._exit(status)


def open_exchange(tape: Tape, folder: Path, seed: int, count: Callable[[int], None]) -> tuple[int, str]:
    """An exchange in a process of its own: (its id, its address)."""
    ear, mouth = os.pipe()

    def tell(url: str) -> None:
        os.write(mouth, url.encode())
        os.close(mouth)

    def work() -> None:
        venue = make_venue(tape, _HISTORY, account(seed))
        asyncio.run(exchange(venue, folder / "journal.sqlite", seed, CAP, count, tell))

    server = fork(work, folder / "exchange.log")
    os.close(mouth)
    with os.fdopen(ear) as hearing:
        url = hearing.read()
    if not url:
        raise SystemExit(f"the exchange did not start: see {folder / 'exchange.log'}")
    return server, url


def close_exchange(server: int) -> None:
    """End its process."""
    os.kill(server, signal.SIGKILL)
    os.waitpid(server, 0)


def tell_life(url: str, folder: Path, seed: int, end_ms: int, death: Death | None) -> Told:
    """What a life that begins now is given."""
    return Told(url=url, folder=folder, seed=seed, begun_s=time.monotonic(), end_ms=end_ms, death=death)


def rehearse() -> None:
    """A few quiet bars in this process: every fork has what it has compiled and loaded."""
    for seed in (0, 1):
        tape = make_tape(seed, 24)
        warm_up(Replay(tape, start_bar=_HISTORY), account(seed))
        with tempfile.TemporaryDirectory() as folder:
            server, url = open_exchange(tape, Path(folder), seed, lambda _bars: None)
            try:
                post(url, "calm")
                post(url, "begin", life=1)
                end_ms = int(tape.open_time_ms[_HISTORY]) + _REHEARSED * tape.bar_ms
                Life(tell_life(url, Path(folder), seed, end_ms, None), tape).run()
            finally:
                close_exchange(server)


def plan_deaths(seed: int, asked: Asked, begin_ms: int, bar_ms: int) -> list[Death]:
    """When and how the program dies, in the order of time."""
    rng = random.Random(f"deaths {seed}")
    bars = sorted(rng.randrange(asked.bars) for _ in range(asked.kills))
    times = [begin_ms + bar * bar_ms for bar in bars]
    return [
        Death(
            point="" if rng.random() < _AT_MOMENTS else rng.choice(POINTS),
            from_ms=0 if rng.random() < _IN_RECOVERY else at_ms,
            until_ms=after_ms,
            wait_s=rng.uniform(0.0, 0.5),
        )
        for at_ms, after_ms in zip(times, [*times[1:], begin_ms + (asked.bars - 1) * bar_ms], strict=True)
    ]


class Soak:
    """One seed.

    Args:
        seed: of everything that is drawn.
        asked: see there.
        tell: called with a violation.
        show: called with the number of bars that have closed.
    """

    def __init__(
        self, seed: int, asked: Asked, tell: Callable[[dict[str, Any]], None], show: Callable[[int], None]
    ) -> None:
        self.seed, self.asked = seed, asked
        self._tell, self._show = tell, show
        self._told = 0
        self._folder = asked.out / f"seed_{seed:02d}"
        self._bars = multiprocessing.RawValue("q", 0)
        self._rng = random.Random(f"absences {seed}")
        self._exits: Counter[str] = Counter()

    def run(self) -> dict[str, Any]:
        """Play it; returns what its file holds."""
        begun_s = time.monotonic()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        tape = make_tape(self.seed, self.asked.bars)
        server, url = open_exchange(
            tape, self._folder, self.seed, lambda bars: setattr(self._bars, "value", bars)
        )
        try:
            self._live(tape, url)
            found = post(url, "verdict")
        finally:
            close_exchange(server)
        self._tell_new(found)
        return {
            "seed": self.seed, "days": self.asked.days, "kills_asked": self.asked.kills,
            "kills": self._exits["killed"], "exits": dict(self._exits), "seconds": time.monotonic() - begun_s,
            **found,
        }  # fmt: skip

    def _live(self, tape: Tape, url: str) -> None:
        """Life after life, until one lives to the end."""
        begin_ms = int(tape.open_time_ms[_HISTORY])
        deaths = plan_deaths(self.seed, self.asked, begin_ms, tape.bar_ms)
        end_ms = begin_ms + self.asked.bars * tape.bar_ms
        for number in range(1, _MOST_LIVES * (self.asked.kills + 1)):
            death = deaths[0] if deaths else None
            post(url, "begin", life=number)
            life = Life(tell_life(url, self._folder, self.seed, end_ms, death), tape)
            how = self._wait(fork(life.run, self._folder / "program.log"))
            self._exits[how] += 1
            self._tell_new(post(url, "end"))
            if how == "done":
                return
            if how == "killed" and deaths:
                deaths.pop(0)
            if how == "crashed":
                post(url, "blame", rule="crash", text=f"see the end of {self._folder / 'program.log'}")
            if how == "stuck":
                post(url, "blame", rule="stuck", text=f"nothing happened for {_PATIENCE_S:g} s")
            if self._rng.random() < _AWAY:
                post(url, "leave", bars=self._rng.randint(1, _MOST_AWAY))
        post(url, "blame", rule="end", text="no life came to its end")

    def _wait(self, life: int) -> str:
        """How a life ended."""
        seen, until_s = self._bars.value, time.monotonic() + _PATIENCE_S
        while True:
            ended, status = os.waitpid(life, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return {0: "done", -signal.SIGKILL: "killed", REFUSED: "refused"}.get(code, "crashed")
            if self._bars.value != seen:
                seen, until_s = self._bars.value, time.monotonic() + _PATIENCE_S
                self._show(seen)
            if time.monotonic() > until_s:
                os.kill(life, signal.SIGKILL)
                os.waitpid(life, 0)
                return "stuck"
            time.sleep(_LOOK_S)

    def _tell_new(self, found: dict[str, Any]) -> None:
        for violation in found["violations"][self._told :]:
            self._tell(violation)
        self._told = len(found["violations"])


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
        "faults": sum(thrown.values()),
        "violations": sum(len(found["violations"]) for found in results),
        "recovery_s_median": round(statistics.median(seconds), 3) if seconds else None,
        "recovery_s_worst": round(max(seconds), 3) if seconds else None,
        "bare_s_worst": max(found["worst_bare_ms"] for found in results) / 1000.0,
    }


def read_command() -> Asked:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--days", type=int, default=10, help="of hourly bars, each seed")
    parser.add_argument("--kills-per-seed", type=int, default=25)
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
