"""Does a live account earn what its env says? The same actions through PerpEnv, and through LiveEnv, the desk,
unmodified ccxt and the simulated exchange, bar after bar; prints the largest differences.

    python benchmarks/live_parity.py --bars 1000                       # a simulated market
    python benchmarks/live_parity.py --data FREQTRADE_FOLDER           # real BTC, then seven contracts
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perpgym.data.align import align
from perpgym.data.bars import Bars
from perpgym.data.contract import load_contract, shipped_contracts
from perpgym.data.features import default_names
from perpgym.data.features.build import build_tape
from perpgym.data.sources.freqtrade import read_freqtrade
from perpgym.data.synthetic import SimulatedMarketConfig, simulate_market
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpEnv, RiskLimits
from perpgym.envs.exchange.clock import Clock
from perpgym.envs.exchange.connect import point_at
from perpgym.envs.exchange.engine import Engine
from perpgym.envs.exchange.gate import Keys
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.server import ServerThread
from perpgym.envs.exchange.venue import Venue
from perpgym.envs.live.binance import Binance, BinanceConfig
from perpgym.envs.live.compose import LiveSettings, make_live_env
from perpgym.envs.live.context import DeskTimings
from perpgym.envs.live.env import Columns, LiveEnv
from perpgym.envs.live.feed import FeedConfig
from perpgym.envs.live.journal import Journal
from perpgym.envs.live.limits import DeskLimits
from perpgym.envs.live.thread import DeskThread
from perpgym.envs.spaces import CONTRACT_LEDGER, LEDGER_COLUMNS

Act = Callable[[Any, dict[str, NDArray[Any]]], NDArray[np.float32]]

# far enough for whatever a random policy asks for
_LIMITS = DeskLimits(max_exposure=150.0, max_order_notional=1e12, max_orders_per_minute=100_000)
# nothing has to be waited for where the clock stands
_TIMINGS = DeskTimings(first_wait_s=0.02, reconcile_s=3600.0, settings_s=3600.0, stream_grace_s=3600.0)
_FEED = FeedConfig(settle_delay_ms=0, readings=1, reread_ms=0)


class SteppedClock:
    """Lets the venue's bars close as soon as somebody waits for them."""

    def __init__(self, venue: Venue, broker: Binance) -> None:
        self.venue, self.broker = venue, broker

    async def sleep_until(self, time_ms: int) -> None:
        """The exchange's next moment is now."""
        self.venue.clock.move_to(time_ms)
        await self.broker.server_time_ms()

    async def pause(self, wait_ms: int) -> None:
        """Nothing changes while the clock stands."""


@contextmanager
def live_env(
    tape: Tape, start_bar: int, config: EnvConfig, limits: RiskLimits, folder: Path
) -> Iterator[LiveEnv]:
    """A LiveEnv on a simulated exchange whose open bar is ``start_bar``."""
    engine = Engine(Replay(tape, start_bar=start_bar), config)
    venue = Venue(engine=engine, clock=Clock(engine.now_ms, 0.0), keys=Keys(is_strict=True))
    hours = tape.bar_ms // 3_600_000
    with ServerThread(venue) as server, DeskThread() as thread:
        names = tuple(contract.symbol for contract in tape.contracts)

        async def make_broker() -> Binance:
            return Binance(
                BinanceConfig(
                    contracts=names, bar=f"{hours}h", api_key="key", secret="secret", is_paced=False,
                    weight_per_minute=10**9,
                ),
                point=lambda exchange: point_at(exchange, server.url),
                local_ms=venue.clock.now_ms,
            )  # fmt: skip

        broker = thread.call(make_broker())
        journal = Journal.open(folder / "journal.sqlite")
        env = make_live_env(
            broker, journal, thread, config=config, limits=limits, contracts=tape.contracts,
            columns=Columns(features=tape.feature_names, risk=tape.risk_names), bar_ms=tape.bar_ms,
            settings=LiveSettings(feed=_FEED, desk=_LIMITS, timings=_TIMINGS),
            clock=SteppedClock(venue, broker), lock_folder=folder / "locks",
        )  # fmt: skip
        try:
            yield env
        finally:
            env.close()
            journal.close()


@dataclass
class Differences:
    """The largest ones seen, absolute; ``counts`` of what happened on the way."""

    bars: int = 0
    reward: float = 0.0
    ledger: dict[str, float] = field(default_factory=dict)
    contracts: float = 0.0
    observation: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    @property
    def largest(self) -> float:
        """Of all money, rewards and observations."""
        return max(self.reward, self.contracts, *self.ledger.values(), *self.observation.values())

    def see(self, mine: Any, theirs: Any) -> None:
        """Compare two steps, the env's and the live env's."""
        self.bars += 1
        (seen, reward, over, _cut, info), (live_seen, live_reward, live_over, _never, live) = mine, theirs
        if over != live_over:
            raise SystemExit(f"bar {self.bars}: the env ended: {over}, the live env: {live_over}")
        self.reward = max(self.reward, abs(reward - live_reward))
        for name in LEDGER_COLUMNS:
            self.ledger[name] = max(self.ledger.get(name, 0.0), abs(info[name] - live[name]))
            self.counts[name] = self.counts.get(name, 0.0) + abs(info[name])
        booked, lived = info["contracts"].copy(), live["contracts"].copy()
        # which limit cut an order only the env can tell
        for rows in (booked, lived):
            rows[:, CONTRACT_LEDGER["reason"]] = rows[:, CONTRACT_LEDGER["reason"]] != 0.0
        self.contracts = max(self.contracts, float(np.abs(booked - lived).max()))
        self.see_observation(seen, live_seen)
        if not live["is_whole"] or live["desk"] != "ready":
            raise SystemExit(f"bar {self.bars}: the desk is {live['desk']}, {live['reasons']}, {live['why']}")

    def see_observation(self, seen: dict[str, NDArray[Any]], live: dict[str, NDArray[Any]]) -> None:
        """Compare two observations."""
        for name, values in seen.items():
            off = np.abs(values.astype(np.float64) - live[name].astype(np.float64)).max()
            self.observation[name] = max(self.observation.get(name, 0.0), float(off))

    def text(self) -> str:
        """For the terminal."""
        worst = {name: off for name, off in self.ledger.items() if off > 0.0}
        happened = ("fills", "stopped", "liquidated", "funding", "fees", "overlay")
        return "\n".join(
            (
                f"bars {self.bars}; " + ", ".join(f"{n} {self.counts.get(n, 0.0):.6g}" for n in happened),
                f"largest difference {self.largest:.3e}: reward {self.reward:.3e}, by contract "
                f"{self.contracts:.3e}",
                "ledger " + ", ".join(f"{name} {off:.3e}" for name, off in worst.items()),
                "observation " + ", ".join(f"{name} {off:.3e}" for name, off in self.observation.items()),
            )
        )


def compare(
    tape: Tape, config: EnvConfig, limits: RiskLimits, *, start_bar: int, bars: int, act: Act
) -> Differences:
    """Step both side by side.

    Args:
        tape: the market; the exchange replays it, the env trades on it.
        config, limits: of both.
        start_bar: the first decision is taken at its close.
        bars: how many decisions.
        act: (env, observation) -> action; is asked with the live env and what it sees.
    """
    end = start_bar + bars + 1
    env = PerpEnv(
        tape, config=replace(config, episode_bars=bars + 10), limits=limits, start_bar=start_bar,
        end_bar=min(end + 1, len(tape)),
    )  # fmt: skip
    env.batch.end_bar = end + 1
    found = Differences()
    with tempfile.TemporaryDirectory() as folder:
        seen, _ = reset_at(env, start_bar)
        with live_env(tape, start_bar + 1, config, limits, Path(folder)) as live:
            live_seen, _ = live.reset()
            found.see_observation(seen, live_seen)
            for _bar in range(bars):
                action = act(live, live_seen)
                mine, theirs = env.step(action), live.step(action)
                found.see(mine, theirs)
                live_seen = theirs[0]
                if mine[2] or mine[3]:
                    break
    return found


def reset_at(env: PerpEnv, start_bar: int) -> Any:
    """Begin at one bar, not at a random one."""
    found = env.reset(seed=0)
    bar = int(env.batch.state_dict()["path_bar"][0])
    if bar != start_bar:
        raise SystemExit(f"the env began at bar {bar} instead of {start_bar}")
    return found


def random_policy(seed: int, is_flat: float = 0.15) -> Act:
    """Uniform in the action space, sometimes nothing."""
    rng = np.random.default_rng(seed)

    def act(env: Any, _observation: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        space = env.action_space
        if hasattr(space, "low"):
            action = rng.uniform(space.low, space.high).astype(np.float32)
            action[rng.random(action.shape) < is_flat] = 0.0
            return np.asarray(action, np.float32)
        nvec = getattr(space, "nvec", None)
        choices = rng.integers(0, space.n if nvec is None else nvec)
        return np.atleast_1d(np.asarray(choices, np.float32))

    return act


def settings(**changes: Any) -> EnvConfig:
    """A protective stop and a target, both on the mark."""
    plain: dict[str, Any] = {
        "initial_wallet": 100_000.0, "stop_loss": 0.02, "take_profit": 0.04, "max_drawdown": 1.0,
        "window_bars": 63,
    }  # fmt: skip
    return EnvConfig(**plain | changes)


def simulated_tape(bars: int, seed: int = 6) -> Tape:
    """Hourly bars of the simulated market with the default columns, long enough for ``bars`` decisions."""
    days = (bars + 900) // 24 + 2
    end = np.datetime64("2024-01-01") + np.timedelta64(days, "D")
    config = SimulatedMarketConfig(start="2024-01-01", end=str(end), seed=seed)
    return build_tape(simulate_market(config).bars, source=f"simulated (seed {seed})")


def real_tape(folder: Path, symbols: tuple[str, ...], begin: str, bars: int) -> Tape:
    """Hourly bars as freqtrade stores them; ``bars`` decisions from ``begin`` on, and the look-back before."""
    found: list[Bars] = []
    for symbol in symbols:
        raw = read_freqtrade(folder, symbol, "1h")
        mark = "require" if len(symbols) == 1 else "last"
        whole = align(raw, load_contract(symbol), mark=mark, repair=["fill_flat"]).bars  # type: ignore[arg-type]
        first = int(np.searchsorted(whole.open_time_ms, np.datetime64(begin, "ms").astype(np.int64)))
        found.append(whole.slice(first - 900, first + bars + 3))
    return build_tape(found, features=default_names("market"), risk=default_names("risk"), source="freqtrade")


def report(title: str, tape: Tape, config: EnvConfig, bars: int, act: Act) -> float:
    """Print one comparison; returns its largest difference."""
    begun = time.perf_counter()
    start = tape.first_valid_bar + max(config.window_bars, 900 - tape.first_valid_bar)
    found = compare(tape, config, RiskLimits(), start_bar=start, bars=bars, act=act)
    print(f"\n{title}\n{found.text()}\n{time.perf_counter() - begun:.0f} s", flush=True)
    return found.largest


def main() -> int:
    """1 if anything differs by more than 1e-8 (observations are float32: by more than their last digit)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bars", type=int, default=1_000)
    parser.add_argument("--data", type=Path, help="a freqtrade data folder; default: the simulated market")
    arguments = parser.parse_args()
    n = arguments.bars
    worst = [report("simulated market, band", simulated_tape(n), settings(), n, random_policy(1))]
    if arguments.data is not None:
        bitcoin = real_tape(arguments.data, ("BTC/USDT:USDT",), "2022-05-01", n)
        worst.append(report("real BTC from 2022-05-01, band", bitcoin, settings(), n, random_policy(2)))
        seven = real_tape(arguments.data, shipped_contracts(), "2022-05-01", n)
        config = settings(action="target", initial_wallet=1e6, max_exposure=1.0, stop_loss=0.03)
        worst.append(report("seven contracts, target", seven, config, n, random_policy(3)))
    return int(max(worst) > 1e-8)


if __name__ == "__main__":
    sys.exit(main())
