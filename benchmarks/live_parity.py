"""Does a live account earn what its env says? The same actions, bar after bar, through PerpEnv, and through
LiveEnv, the desk, unmodified ccxt and the simulated exchange; prints the largest differences. First the
exchange keeps all digits of its money, as the env does; then it rounds to 8 decimals, as a real one does.

    python benchmarks/live_parity.py --bars 1000                       # a simulated market
    python benchmarks/live_parity.py --data FREQTRADE_FOLDER           # real BTC, then seven contracts
    python benchmarks/live_parity.py --policy runs/ppo_btc/seed_0/policies/step_0004030464
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

from perpgym.agents.artifact import Artifact, load_artifact
from perpgym.agents.trained import TrainedAgent
from perpgym.data.align import align
from perpgym.data.bars import Bars
from perpgym.data.contract import load_contract, shipped_contracts
from perpgym.data.features import default_names
from perpgym.data.features.build import build_tape
from perpgym.data.sources.freqtrade import read_freqtrade
from perpgym.data.synthetic import SimulatedMarketConfig, simulate_market
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpEnv, RiskLimits
from perpgym.envs.exchange.books import MONEY_DECIMALS
from perpgym.envs.exchange.clock import Clock
from perpgym.envs.exchange.connect import point_at
from perpgym.envs.exchange.engine import Engine
from perpgym.envs.exchange.gate import Keys
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.server import Server, ServerThread
from perpgym.envs.exchange.venue import Venue
from perpgym.envs.live.binance import Binance, BinanceConfig
from perpgym.envs.live.compose import LiveSettings, make_live_env
from perpgym.envs.live.context import DeskTimings
from perpgym.envs.live.env import Columns, LiveEnv
from perpgym.envs.live.feed import FeedConfig
from perpgym.envs.live.journal import Journal
from perpgym.envs.live.limits import DeskLimits
from perpgym.envs.live.paper import PaperBroker
from perpgym.envs.live.thread import DeskThread
from perpgym.envs.spaces import CONTRACT_LEDGER, LEDGER_COLUMNS

Act = Callable[[Any, dict[str, NDArray[Any]]], NDArray[np.float32]]

# far enough for whatever a random policy asks for
_LIMITS = DeskLimits(max_exposure=150.0, max_order_notional=1e12, max_orders_per_minute=100_000)
# nothing has to be waited for where the clock stands
_TIMINGS = DeskTimings(first_wait_s=0.02, reconcile_s=3600.0, settings_s=3600.0, stream_grace_s=3600.0)
# before the first decision: a tape shows no volume before its columns are whole, and a live account that is
# warmed up from the exchange needs it for one look-back more
_HISTORY = 1_600
LIVE = LiveSettings(
    feed=FeedConfig(settle_delay_ms=0, readings=1, reread_ms=0), desk=_LIMITS, timings=_TIMINGS
)


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
def exchange(
    tape: Tape, start_bar: int, config: EnvConfig, money_decimals: int | None = MONEY_DECIMALS
) -> Iterator[Server]:
    """A simulated exchange on a tape whose open bar is ``start_bar``; its clock is stepped."""
    engine = Engine(Replay(tape, start_bar=start_bar), config, money_decimals)
    venue = Venue(engine=engine, clock=Clock(engine.now_ms, 0.0), keys=Keys(is_strict=True), has_admin=True)
    with ServerThread(venue) as server:
        yield server


@contextmanager
def live_env(
    server: Server,
    config: EnvConfig,
    limits: RiskLimits,
    folder: Path,
    columns: Columns,
    *,
    is_paper: bool = False,
    money_decimals: int | None = MONEY_DECIMALS,
    live: LiveSettings = LIVE,
    lookback_bars: int = 0,
) -> Iterator[LiveEnv]:
    """A LiveEnv on the exchange, through unmodified ccxt; its journal lies in ``folder``.

    Args:
        is_paper: on a paper account that follows the exchange's market, instead of on its own account.
        money_decimals: of the paper account.
        live: settings of its rooms.
        lookback_bars: that its agent reads.
    """
    tape, venue = server.venue.market.tape, server.venue
    names = tuple(contract.symbol for contract in tape.contracts)
    with DeskThread() as thread:

        async def make_broker() -> Binance:
            return Binance(
                BinanceConfig(
                    contracts=names, bar=f"{tape.bar_ms // 3_600_000}h", api_key="key", secret="secret",
                    is_paced=False, weight_per_minute=10**9,
                ),
                point=lambda exchange: point_at(exchange, server.url),
                local_ms=venue.clock.now_ms,
            )  # fmt: skip

        broker: Any = thread.call(make_broker())
        clock = SteppedClock(venue, broker)
        if is_paper:
            broker = PaperBroker(broker, tape.contracts, tape.bar_ms, config, money_decimals)
        journal = Journal.open(folder / "journal.sqlite")
        env = make_live_env(
            broker, journal, thread, config=config, limits=limits, contracts=tape.contracts,
            columns=columns, bar_ms=tape.bar_ms,
            settings=live, clock=clock, lock_folder=folder / "locks", lookback_bars=lookback_bars,
        )  # fmt: skip
        try:
            yield env
        finally:
            env.close()
            journal.close()


def columns_of(tape: Tape) -> Columns:
    """Everything that the tape shows."""
    return Columns(features=tape.feature_names, risk=tape.risk_names)


@dataclass
class Differences:
    """The largest ones seen, absolute; ``counts`` of what happened on the way."""

    bars: int = 0
    reward: float = 0.0
    ledger: dict[str, float] = field(default_factory=dict)
    contracts: float = 0.0
    observation: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    action: float = 0.0
    settlements: int = 0

    @property
    def largest(self) -> float:
        """Of all money, rewards and observations."""
        return max(self.reward, self.contracts, *self.ledger.values(), *self.observation.values())

    @property
    def rounded_away(self) -> float:
        """quote: most that rounding every fee, profit and settlement to 8 decimals can add up to."""
        rows = 2.0 * self.counts.get("fills", 0.0) + self.settlements
        return 0.5 * 10.0**-MONEY_DECIMALS * rows

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
        self.settlements += int(np.count_nonzero(info["contracts"][:, CONTRACT_LEDGER["funding"]]))
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
                f"action {self.action:.3e}; "
                "observation " + ", ".join(f"{name} {off:.3e}" for name, off in self.observation.items()),
            )
        )


def compare(
    tape: Tape,
    config: EnvConfig,
    limits: RiskLimits,
    *,
    start_bar: int,
    bars: int,
    act: Act,
    shadow: Act | None = None,
    exchange_config: EnvConfig | None = None,
    is_paper: bool = False,
    money_decimals: int | None = None,
    lookback_bars: int = 0,
) -> Differences:
    """Step both side by side with the same actions.

    Args:
        tape: the market; the exchange replays it, the env trades on it.
        config, limits: of both.
        start_bar: the first decision is taken at its close.
        bars: how many decisions.
        act: (live env, what it sees) -> action.
        shadow: (env, what it sees) -> action, which is compared with the other one and not taken.
        exchange_config: of the exchange, if it is not the env's: a control that must fail.
        is_paper: live on a paper account beside the exchange.
        money_decimals: to which the exchange rounds; None for the env's own digits.
        lookback_bars: valid bars that the live agent reads.
    """
    env = env_at(tape, config, limits, start_bar, bars)
    found = Differences()
    with (
        tempfile.TemporaryDirectory() as folder,
        exchange(tape, start_bar + 1, exchange_config or config, money_decimals) as server,
        live_env(
            server,
            config,
            limits,
            Path(folder),
            columns_of(tape),
            is_paper=is_paper,
            money_decimals=money_decimals,
            lookback_bars=lookback_bars,
        ) as live,
    ):
        seen, _ = env.reset(seed=0)
        live_seen, _ = live.reset()
        found.see_observation(seen, live_seen)
        for _bar in range(bars):
            action = act(live, live_seen)
            if shadow is not None:
                found.action = max(found.action, float(np.abs(action - shadow(env, seen)).max()))
            mine, theirs = env.step(action), live.step(action)
            found.see(mine, theirs)
            seen, live_seen = mine[0], theirs[0]
            if mine[2] or mine[3]:
                break
    return found


def env_at(tape: Tape, config: EnvConfig, limits: RiskLimits, start_bar: int, bars: int) -> PerpEnv:
    """A PerpEnv whose one episode begins at a bar."""
    whole = replace(config, episode_bars=bars + 1, restart="flat")
    env = PerpEnv(tape, config=whole, limits=limits, start_bar=start_bar, end_bar=start_bar + bars + 2)
    env.reset(seed=0)
    if int(env.batch.state_dict()["path_bar"][0]) != start_bar:
        raise SystemExit(f"the env cannot begin at bar {start_bar} with {len(tape)} bars")
    return env


def trained(artifact: Artifact) -> tuple[Act, Act]:
    """The policy as it acts live, and beside an env."""

    def live(env: Any, seen: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        action: NDArray[np.float32] = agents[0].act(
            env.tape, env.bar, seen["account"][None], seen["portfolio"][None]
        )[0]
        return action

    def beside(env: Any, seen: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        bar = int(env.batch.state_dict()["path_bar"][0])
        action: NDArray[np.float32] = agents[1].act(
            env.tape, bar, seen["account"][None], seen["portfolio"][None]
        )[0]
        return action

    agents = [TrainedAgent(artifact.policy, config=artifact.env_config) for _ in range(2)]
    return live, beside


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
    days = (bars + _HISTORY) // 24 + 2
    end = np.datetime64("2024-01-01") + np.timedelta64(days, "D")
    config = SimulatedMarketConfig(start="2024-01-01", end=str(end), seed=seed)
    return build_tape(simulate_market(config).bars, source=f"simulated (seed {seed})")


def real_tape(folder: Path, symbols: tuple[str, ...], begin: str, bars: int) -> Tape:
    """Hourly bars as freqtrade stores them: ``bars`` decisions from ``begin`` on, and the history before."""
    found: list[Bars] = []
    for symbol in symbols:
        raw = read_freqtrade(folder, symbol, "1h")
        mark = "require" if len(symbols) == 1 else "last"
        whole = align(raw, load_contract(symbol), mark=mark, repair=["fill_flat"]).bars  # type: ignore[arg-type]
        first = int(np.searchsorted(whole.open_time_ms, np.datetime64(begin, "ms").astype(np.int64)))
        found.append(whole.slice(first - _HISTORY, first + bars + 3))
    return build_tape(found, features=default_names("market"), risk=default_names("risk"), source="freqtrade")


def report(title: str, tape: Tape, config: EnvConfig, bars: int, acts: tuple[Act, Act | None]) -> float:
    """Print one comparison; returns its largest difference."""
    begun = time.perf_counter()
    found = compare(tape, config, RiskLimits(), start_bar=_HISTORY, bars=bars, act=acts[0], shadow=acts[1])
    print(f"\n{title}\n{found.text()}\n{time.perf_counter() - begun:.0f} s", flush=True)
    return found.largest


def report_rounded(title: str, tape: Tape, config: EnvConfig, bars: int, act: Act) -> float:
    """The same at an exchange that rounds; returns what of equity's difference that does not explain."""
    found = compare(
        tape, config, RiskLimits(), start_bar=_HISTORY, bars=bars, act=act, money_decimals=MONEY_DECIMALS
    )
    off, allowed = found.ledger["equity"], found.rounded_away
    print(f"\n{title}, money of {MONEY_DECIMALS} decimals\n{found.text()}")
    print(f"equity differs by {off:.3e}; rounding explains up to {allowed:.3e}", flush=True)
    return max(off - allowed, 0.0)


def main() -> int:
    """1 if anything differs by more than 1e-8, or by more than rounding explains where money is rounded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bars", type=int, default=1_000)
    parser.add_argument("--data", type=Path, help="a freqtrade data folder; default: the simulated market")
    parser.add_argument(
        "--policy", type=Path, nargs="*", default=[],
        help="policies of runs (RUN/seed_0/policies/step_…) beside, each on the markets that it can trade",
    )  # fmt: skip
    arguments = parser.parse_args()
    n = arguments.bars
    one = [("simulated market", simulated_tape(n))]
    if arguments.data is not None:
        bitcoin = real_tape(arguments.data, ("BTC/USDT:USDT",), "2022-05-01", n)
        one.append(("real BTC from 2022-05-01", bitcoin))
    worst = [report(f"{t}, random bands", tape, settings(), n, (random_policy(1), None)) for t, tape in one]
    worst += [report_rounded(t, tape, settings(), n, random_policy(1)) for t, tape in one]
    markets = list(one)
    if arguments.data is not None:
        seven = real_tape(arguments.data, shipped_contracts(), "2022-05-01", n)
        config = settings(action="target", initial_wallet=1e6, max_exposure=1.0, stop_loss=0.03)
        worst.append(report("seven contracts, random targets", seven, config, n, (random_policy(3), None)))
        markets.append(("seven contracts", seven))
    for path in arguments.policy:
        artifact = load_artifact(path)
        config = replace(artifact.env_config, episode_bars=10**6)
        for title, tape in markets:
            if len(tape.contracts) == len(artifact.contracts):
                worst.append(report(f"{title}, {path}", tape, config, n, trained(artifact)))
    return int(max(worst) > 1e-8)


if __name__ == "__main__":
    sys.exit(main())
