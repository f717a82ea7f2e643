"""One life of the soak's program: the whole live stack, from its journal until it is killed or done."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, RiskLimits
from perpgym.envs.config import ExecutionStyle
from perpgym.envs.exchange.connect import point_at
from perpgym.envs.live import binance_wire
from perpgym.envs.live.binance import Binance, BinanceConfig
from perpgym.envs.live.broker import BrokerError
from perpgym.envs.live.compose import LiveSettings, make_live_env
from perpgym.envs.live.context import DeskTimings
from perpgym.envs.live.crash_points import VARIABLE
from perpgym.envs.live.env import Columns, LiveEnv
from perpgym.envs.live.feed import FeedConfig
from perpgym.envs.live.journal import Journal
from perpgym.envs.live.limits import DeskLimits
from perpgym.envs.live.thread import DeskThread
from perpgym.envs.live.wishes import SLOW_STYLES

CAP = 1.5
# fraction of the entry price
STOP_LOSS = 0.02
_WINDOW = 8
_COLUMNS = ("log_return_1",)
# the waits of a real account, shortened with the round trips: here one takes a millisecond
_TIMINGS = DeskTimings(
    first_wait_s=0.02, longest_wait_s=0.1, absent_after_s=0.3, absent_asks=3, settle_s=3.0, start_s=20.0,
    reconcile_s=0.5, settings_s=2.0, clock_s=10.0, stream_grace_s=0.2, slice_ms=3_600_000 // 4,
)  # fmt: skip
# how many times shorter than shipped: what a bound that the soak has kept does not say
SHORTENED = {
    name: round(getattr(DeskTimings(), name) / getattr(_TIMINGS, name), 1)
    for name in ("reconcile_s", "absent_after_s", "settle_s")
}
STYLES: tuple[ExecutionStyle, ...] = ("market", "limit", "twap", "iceberg")
# what takes a bar gets it in so many steps, and a moment at each for what is due
_STEPS, _MOMENT_S = 4, 0.06
_LIVE = LiveSettings(
    feed=FeedConfig(settle_delay_ms=0, readings=2, reread_ms=5, patience_ms=1_500),
    desk=DeskLimits(max_exposure=CAP),
    timings=_TIMINGS,
)
_TIMEOUT_MS = 400
# how long a program is silent after a firewall's answer: two minutes at a real account
FIREWALL_MS = 1_000
_LOOK_S = 0.002
# an operator sees a halt and resumes
_OPERATOR_S = 0.05
_LAST_TRIES = 40
# where a program died that died at no point of ``crash_points``
MOMENT = "a_moment"


@dataclass(frozen=True, kw_only=True)
class Death:
    """How a life is to end: ``point`` of the code (see ``crash_points``), or a moment where it is empty.

    Attributes:
        from_ms: the exchange's clock; the first bar whose close is not earlier arms it; 0 before the start.
        wait_s: of a moment, from then on.
        until_ms: who lives on until then dies at once.
    """

    point: str
    from_ms: int
    until_ms: int
    wait_s: float


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a life is given.

    Attributes:
        begun_s: of the monotonic clock, when it was started.
        end_ms: the exchange's clock; then it winds down. ``death`` None: it lives until then.
    """

    url: str
    folder: Path
    seed: int
    begun_s: float
    end_ms: int
    death: Death | None


def account(seed: int, wallet: float = 100_000.0) -> EnvConfig:
    """Of program and exchange: a stop on the mark and a target; every seed its way of execution."""
    return EnvConfig(
        initial_wallet=wallet, stop_loss=STOP_LOSS, take_profit=0.04, max_drawdown=1.0, window_bars=_WINDOW,
        execution=STYLES[seed % len(STYLES)], leverage=10.0,
    )  # fmt: skip


def post(url: str, name: str, **body: Any) -> dict[str, Any]:
    """One call of the exchange's admin API."""
    request = urllib.request.Request(f"{url}/admin/soak_{name}", json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=30.0) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


class JumpingClock:
    """The world's clock: real time, and a jump where the program waits for a bar to end.

    Args:
        url: of the exchange.
        step_ms: the longest jump.
    """

    def __init__(self, url: str, step_ms: int) -> None:
        self.url, self._step_ms = url, step_ms
        self.broker: Binance | None = None
        self._ahead_ms = 0
        self._set(post(url, "now"))

    def now_ms(self) -> int:
        """What the machine's clock shows."""
        return int(time.monotonic() * 1000.0) + self._ahead_ms

    def _set(self, told: dict[str, Any]) -> None:
        self._ahead_ms = told["now_ms"] - int(time.monotonic() * 1000.0)

    async def sleep_until(self, time_ms: int) -> None:
        """Ask until it is so."""
        while self.now_ms() < time_ms:
            to_ms = min(time_ms, self.now_ms() + self._step_ms)
            told = await asyncio.to_thread(post, self.url, "jump", to_ms=to_ms)
            self._set(told)
            if told["is_moved"] and to_ms < time_ms:
                await asyncio.sleep(_MOMENT_S)
            elif not told["is_moved"]:
                await asyncio.sleep(0.01)
        assert self.broker is not None
        with suppress(BrokerError):
            await self.broker.server_time_ms()

    async def pause(self, wait_ms: int) -> None:
        """In real time."""
        await asyncio.sleep(wait_ms / 1000.0)


class Life:
    """One program.

    Args:
        told: see there.
        tape: gives the contracts.
    """

    def __init__(self, told: Told, tape: Tape) -> None:
        self.told, self.tape = told, tape
        self._armed: threading.Timer | None = None
        self._is_over = threading.Event()

    def run(self) -> None:
        """Live."""
        binance_wire._FIREWALL_MS = FIREWALL_MS
        told, bar_ms = self.told, self.tape.bar_ms
        is_slow = account(told.seed).execution in SLOW_STYLES
        clock = JumpingClock(told.url, bar_ms // _STEPS if is_slow else bar_ms)
        self._arm(0)
        with DeskThread() as thread:

            async def make_broker() -> Binance:
                return Binance(
                    BinanceConfig(
                        contracts=(self.tape.contracts[0].symbol,), api_key="key", secret="secret",
                        is_paced=False, weight_per_minute=10**9, timeout_ms=_TIMEOUT_MS,
                    ),
                    point=lambda exchange: point_at(exchange, told.url),
                    local_ms=clock.now_ms,
                )  # fmt: skip

            clock.broker = thread.call(make_broker())
            journal = Journal.open(told.folder / "journal.sqlite")
            env = make_live_env(
                clock.broker, journal, thread, config=account(told.seed), limits=RiskLimits(),
                contracts=self.tape.contracts, columns=Columns(features=_COLUMNS, risk=()),
                bar_ms=self.tape.bar_ms, settings=_LIVE, clock=clock, lock_folder=told.folder / "locks",
            )  # fmt: skip
            for watch in (self._tell_start, self._operate):
                threading.Thread(target=watch, args=(env,), daemon=True).start()
            env.reset()
            while env.close_ms < told.end_ms:
                self._arm(env.close_ms)
                _seen, _reward, _over, _cut, info = env.step(self._decide(env))
                if info["is_whole"]:
                    post(told.url, "settle")
            self._wind_down(env)
            env.close()
            journal.close()

    def _decide(self, env: LiveEnv) -> NDArray[np.float32]:
        """A random band, the same for a bar whenever it is asked for."""
        rng = np.random.default_rng([self.told.seed, env.close_ms // env.feed.bar_ms])
        space: Any = env.action_space
        action = rng.uniform(space.low, space.high).astype(np.float32)
        return np.asarray(action * (rng.random() < 0.85), np.float32)

    def _wind_down(self, env: LiveEnv) -> None:
        """Nothing goes wrong any more: the account must become known, and flat or protected."""
        url = self.told.url
        self._arm(env.close_ms)
        post(url, "calm")
        for _try in range(_LAST_TRIES):
            settled = env.thread.call(env.desk.settle(env.close_ms))
            if settled.is_whole:
                break
            time.sleep(_OPERATOR_S)
        if settled.is_whole:
            post(url, "settle")
        else:
            post(url, "blame", rule="end", text=f"the account is not known: {settled.why}")
        self._is_over.set()
        stop = env.desk.freeze if self.told.seed % 3 else env.desk.flatten
        if not env.thread.call(stop("the soak ends")):
            post(url, "blame", rule="end", text="the desk could not stop")

    # --- beside the loop ---

    def _arm(self, close_ms: int) -> None:
        """Die soon, if it is time."""
        death = self.told.death
        if death is None or close_ms < death.from_ms:
            return
        if close_ms >= death.until_ms:
            self._die_here()
        os.environ[VARIABLE] = death.point
        if self._armed is None and not death.point:
            self._armed = threading.Timer(death.wait_s, self._die_here)
            self._armed.daemon = True
            self._armed.start()

    def _die_here(self) -> None:
        """Where the code has no name for it; who finds the body can tell."""
        (self.told.folder / MOMENT).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def _tell_start(self, env: LiveEnv) -> None:
        """Say when the program has recovered, and how long it took until it was ready."""
        while env.desk.status().state in ("stopped", "starting"):
            time.sleep(_LOOK_S)
        post(self.told.url, "rise")
        while env.desk.status().state != "ready":
            time.sleep(_LOOK_S)
        post(self.told.url, "ready", seconds=time.monotonic() - self.told.begun_s)

    def _operate(self, env: LiveEnv) -> None:
        """Somebody looks at the desk and lifts what only a person can lift."""
        while not self._is_over.wait(_OPERATOR_S):
            if env.desk.status().state in ("halted", "reduce_only"):
                with suppress(BrokerError):
                    env.thread.call(env.desk.resume())
