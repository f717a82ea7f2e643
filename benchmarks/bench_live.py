"""How long a live account takes from a final bar to its order, on this machine.

    python benchmarks/bench_live.py

``decision_ms``: from the moment the newest bar is known to be final until the order is handed to the socket,
on loopback: the account settled and compared with the exchange, features, books, observation, the default
transformer on one core, overlay, journal on the disk, the account checked again, signature. The exchange runs
in a process of its own. The feed's delay after a close is set apart: it is a choice (``settle_delay_ms``).
Parity first: the bars that are timed must give the numbers of an env beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from live_parity import LIVE, Differences, columns_of, env_at, settings, simulated_tape
from rich.console import Console
from rich.table import Table
from rounds import machine

from perpgym.agents.trained import TrainedAgent
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, RiskLimits
from perpgym.envs.actions import action_space
from perpgym.envs.exchange.connect import point_at
from perpgym.envs.live.binance import Binance, BinanceConfig
from perpgym.envs.live.compose import make_live_env
from perpgym.envs.live.env import LiveEnv
from perpgym.envs.live.journal import Journal
from perpgym.envs.live.thread import DeskThread
from perpgym.envs.spaces import window_space
from perpgym.policies import PerpActorCriticPolicy, PolicyConfig

TOLERANCE = 1e-8
TARGET_P50_MS, TARGET_P99_MS = 10.0, 25.0
_START = 1_600
# kernels, connections and caches are warm by then
_WARM_UP = 20


class SteppedFromAfar:
    """Lets the exchange's bars close as soon as somebody waits for them, through its admin API."""

    def __init__(self, url: str, broker: Binance) -> None:
        self.url, self.broker = url, broker

    async def sleep_until(self, time_ms: int) -> None:
        """The exchange's next moment is now."""
        body = json.dumps({"to_ms": time_ms}).encode()
        request = urllib.request.Request(f"{self.url}/admin/advance", body, method="POST")
        with urllib.request.urlopen(request) as answer:
            answer.read()
        await self.broker.server_time_ms()

    async def pause(self, wait_ms: int) -> None:
        """Nothing changes while the clock stands."""


@dataclass
class Stopwatch:
    """When what happened, in seconds; one list of durations (ms) a part."""

    final_s: float = 0.0
    parts: dict[str, list[float]] = field(default_factory=dict)
    _now: dict[str, float] = field(default_factory=dict)

    def add(self, part: str, seconds: float) -> None:
        """A part of the decision that is being timed."""
        self._now[part] = self._now.get(part, 0.0) + 1e3 * seconds

    def sent(self) -> None:
        """The first order of a decision is handed to the socket."""
        if self.final_s:
            self.add("decision", time.perf_counter() - self.final_s)
            self.final_s = 0.0
            for part, duration in self._now.items():
                self.parts.setdefault(part, []).append(duration)
        self._now = {}


def timed(watch: Stopwatch, part: str, owner: Any, name: str) -> None:
    """Count the time inside a method; also of a coroutine."""
    inner = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        try:
            return inner(*arguments, **named)
        finally:
            watch.add(part, time.perf_counter() - begun)

    async def wait(*arguments: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        try:
            return await inner(*arguments, **named)
        finally:
            watch.add(part, time.perf_counter() - begun)

    setattr(owner, name, wait if part == "settle" else call)


def watch_env(env: LiveEnv, broker: Binance) -> Stopwatch:
    """Time the parts of every decision of an env that has started."""
    watch = Stopwatch()
    wait, fetch = env.feed.wait, broker.wire.exchange.fetch

    async def final(*arguments: Any) -> Any:
        news = await wait(*arguments)
        watch.final_s = time.perf_counter()
        return news

    async def send(url: str, method: str = "GET", *arguments: Any, **named: Any) -> Any:
        if method == "POST" and url.partition("?")[0].endswith("/order"):
            watch.sent()
        return await fetch(url, method, *arguments, **named)

    env.feed.wait = final  # type: ignore[method-assign]
    broker.wire.exchange.fetch = send
    timed(watch, "settle", env.desk, "settle")
    timed(watch, "features", env.ring, "push")
    timed(watch, "books", env.books, "close_bar")
    timed(watch, "observation", env.books, "observe")
    return watch


@contextmanager
def exchange_process(tape: Tape) -> Iterator[str]:
    """The simulated exchange in a process of its own, its clock stepped; yields its address."""
    with tempfile.TemporaryDirectory() as folder:
        tape.save(Path(folder))
        start = str(np.datetime64(int(tape.open_time_ms[_START + 1]), "ms"))
        command = [
            sys.executable, "-m", "perpgym.envs.exchange", "--tape", folder, "--speed", "0", "--admin",
            "--port", "0", "--start", start, "--wallet", "100000",
        ]  # fmt: skip
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                assert process.stdout is not None
                found = re.search(r"http://[\d.]+:\d+", process.stdout.readline())
                if found is None:
                    raise SystemExit("the exchange did not start")
                yield found.group()
            finally:
                process.terminate()


@contextmanager
def live_env(tape: Tape, url: str, config: EnvConfig, folder: Path) -> Iterator[tuple[LiveEnv, Binance]]:
    """A live env on the exchange at ``url``."""
    with DeskThread() as thread:

        async def make_broker() -> Binance:
            return Binance(
                BinanceConfig(
                    contracts=tuple(contract.symbol for contract in tape.contracts), api_key="key",
                    secret="secret", is_paced=False, weight_per_minute=10**9,
                ),
                point=lambda exchange: point_at(exchange, url),
                local_ms=lambda: 0,
            )  # fmt: skip

        broker = thread.call(make_broker())
        journal = Journal.open(folder / "journal.sqlite")
        env = make_live_env(
            broker, journal, thread, config=config, limits=RiskLimits(), contracts=tape.contracts,
            columns=columns_of(tape), bar_ms=tape.bar_ms, settings=LIVE,
            clock=SteppedFromAfar(url, broker), lock_folder=folder / "locks",
        )  # fmt: skip
        try:
            yield env, broker
        finally:
            env.close()
            journal.close()


def make_policy(tape: Tape, config: PolicyConfig, env_config: EnvConfig) -> PerpActorCriticPolicy:
    """The default transformer with the weights that it is born with."""
    scalers = [fit_scaler(columns, 720, _START) for columns in (tape.features, tape.risk)]
    return PerpActorCriticPolicy(
        window_space(1, len(tape.feature_names), len(tape.risk_names), env_config.window_bars),
        action_space(env_config.action, 1), lambda _: 0.0, config=config, market_scaler=scalers[0],
        risk_scaler=scalers[1],
    )  # fmt: skip


def run(decisions: int) -> tuple[dict[str, list[float]], Differences]:
    """Durations (ms) of the parts of every decision, and how far the env beside is."""
    tape = simulated_tape(decisions + _WARM_UP)
    policy_config = PolicyConfig()
    config = settings(action="target", window_bars=policy_config.receptive_field)
    agent = TrainedAgent(make_policy(tape, policy_config, config), config=config)
    env = env_at(tape, config, RiskLimits(), _START, decisions + _WARM_UP)
    env.reset(seed=0)
    found = Differences()
    with (
        exchange_process(tape) as url,
        tempfile.TemporaryDirectory() as folder,
        live_env(tape, url, config, Path(folder)) as (live, broker),
    ):
        seen, _ = live.reset()
        watch = watch_env(live, broker)
        for number in range(decisions + _WARM_UP):
            begun = time.perf_counter()
            agent.act(live.tape, live.bar, seen["account"][None], seen["portfolio"][None])
            watch.add("inference", time.perf_counter() - begun)
            # an order at every bar, whatever a policy without training would do
            action = np.array([0.3 if number % 2 else -0.3], np.float32)
            theirs = live.step(action)
            found.see(env.step(action), theirs)
            seen = theirs[0]
    return {part: values[_WARM_UP - 1 :] for part, values in watch.parts.items()}, found


def main() -> None:
    """Print the table; fails where the account is not the env's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--decisions", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts, found = run(arguments.decisions)
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(f"parity: {found.bars} bars, largest difference {found.largest:.1e}")
    if found.largest > TOLERANCE:
        raise SystemExit(f"the live account differs from its env by {found.largest:.3e}")
    table = Table("ms", "p50", "p99", "highest")
    for part in ("decision", "settle", "features", "books", "observation", "inference"):
        values = np.array(parts[part])
        table.add_row(part, *(f"{x:.2f}" for x in (*np.percentile(values, (50, 99)), values.max())))
    console.print(table)
    p50, p99 = np.percentile(parts["decision"], (50, 99))
    console.print(
        f"decision_ms_p50 {p50:.2f} (target {TARGET_P50_MS:g}), decision_ms_p99 {p99:.2f} "
        f"(target {TARGET_P99_MS:g}), of {len(parts['decision'])} decisions"
    )
    console.print(machine(), soft_wrap=True)


if __name__ == "__main__":
    main()
