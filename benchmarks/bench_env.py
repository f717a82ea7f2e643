"""Account-steps per second of PerpVecEnv.step_into, beside a bare copy of its windows and three rivals.

    python benchmarks/bench_env.py

Every figure times the public ``step_into`` with account columns and ledger written and with funding,
brackets, stops, overlay, impact and liquidation on, on 48,192 hourly bars of the simulated market, in CPU
seconds of one thread; contestants take turns, and a ratio is the median of the ratios of each turn.
1,024 accounts are 128 paths of eight accounts, as ``ppo_btc`` trains. Four action tapes:

- random band: centre and width drawn anew every bar, uniform in the default action space; half of the steps
  fill an order. Quoted, without windows, as ``account_steps_per_s_1024``, and with windows as
  ``window_copy_fraction``; with trailing and time stops, fee tiers, lasting impact and bracket-wise
  liquidation too as ``..._1024_everything``.
- trading, the hardest: a new random target every bar, no band; nearly every step fills an order. Quoted as
  ``..._1024_trading``, and with 1,024 paths of one account, where no two share a bar and the latency of
  memory shows, as ``..._1024_trading_unshared``.
- daily: a band drawn anew every 24 bars, at hours that differ between accounts.
- holding: long half of the equity, with a band of a tenth around it.

``window_copy_fraction`` is steps/s with windows of 64 bars x 22 float32, over a bare numba copy of as many
such windows of the same bars into the same buffer: ``out[i] = features[bar - 63 : bar + 1]``. The env copies
windows as flat runs, which is faster than that by itself; ``..._of_flat_copy_<tape>`` is steps/s over a bare
copy written that way too, the fastest form found, and says how much of the memory's speed a step leaves.

A single ``PerpEnv`` is stepped as anyone would, beside one env of each Gymnasium rival. ``env_costs.py``
measures what size costs: 50 contracts over one, memory of an account, memory allocated by a step, a second
core.

Rivals: gym-trading-env, gym-anytrading and torchtrade from the package registry, each in its own environment
under the cache folder, on the same bars, columns, window and tape (a new level of -1, -0.5, 0, 0.5, 1 for
every account and bar; gym-anytrading, which knows long and flat and no margin, is
long on those above 0), each stepped in the fastest of its ways. The first run installs them (about 2 GB).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numba
import numpy as np
from action_tapes import STEPS_PER_TAPE, Actions, action_tapes
from bare_copies import BARE_COPIES
from env_costs import bytes_allocated_per_step, bytes_per_account, cost_of_contracts, second_core_gain
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rivals.process import GYM_ANYTRADING, GYM_TRADING_ENV, TORCHTRADE, RivalProcess, RivalUnavailable

from perpgym.data.features.build import build_tape
from perpgym.data.synthetic import SimulatedMarketConfig, simulate_market
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpEnv, PerpVecEnv
from perpgym.envs.actions import exposure_to_action
from perpgym.envs.risk.limits import RiskLimits
from perpgym.envs.spaces import LEDGER

WINDOW, ACCOUNTS_PER_PATH = 64, 8
CONFIG = EnvConfig(window_bars=WINDOW, stop_loss=0.05, take_profit=0.10)
EVERYTHING = replace(
    CONFIG, trailing_stop=True, max_bars_held=100, liquidation="brackets", impact={"kind": "exponential"},
    fees={"tiers": [[0, 0.0002, 0.0005], [15_000_000, 0.00016, 0.0004]]},
)  # fmt: skip
# no drawdown_start, which calms down accounts that lose: they shall trade on, be ruined and restart
LIMITS = RiskLimits(max_notional=10_000_000.0)
LEVELS = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
RIVALS = (
    (GYM_TRADING_ENV, 1),
    (GYM_TRADING_ENV, 64),
    (GYM_ANYTRADING, 1),
    (GYM_ANYTRADING, 64),
    (TORCHTRADE, 64),
    (TORCHTRADE, 1_024),
)

Round = Callable[[], float]


def market(start: str) -> Tape:
    """The simulated market from ``start`` to 2025-06-30: 22 feature columns, no risk columns."""
    return build_tape(simulate_market(SimulatedMarketConfig(start=start)).bars, risk=(), source="simulated")


class Ours:
    """A PerpVecEnv with its buffers and actions: many paths, or one long episode for all."""

    def __init__(
        self,
        tape: Tape,
        actions: Actions,
        *,
        with_windows: bool,
        config: EnvConfig = CONFIG,
        accounts_per_path: int = 1,
    ) -> None:
        accounts = actions.shape[1]
        paths = accounts // accounts_per_path
        self.env = PerpVecEnv(
            tape,
            n_paths=paths,
            accounts_per_path=accounts_per_path,
            config=config,
            limits=LIMITS,
            with_windows=with_windows,
        )
        self.actions, self.out = actions, self.env.make_buffers()
        self.env.reset_into(self.out, 0)
        self.number = 0

    def run(self, steps: int) -> None:
        """Step every account so many times."""
        for _ in range(steps):
            self.env.step_into(self.actions[self.number % STEPS_PER_TAPE], self.out)
            self.number += 1

    def fills_per_step(self) -> float:
        """Share of account-steps with a fill, over one pass of the action tape."""
        fills = 0.0
        for _ in range(STEPS_PER_TAPE):
            self.run(1)
            fills += float((self.out.ledger[:, LEDGER["fills"]] > 0).mean())
        return fills / STEPS_PER_TAPE

    def round(self) -> Round:
        """Account-steps per CPU second."""
        accounts = self.env.num_envs
        steps = max(1_000_000 // accounts, 1)
        return lambda: accounts * steps / cpu_seconds(lambda: self.run(steps))

    def bare_round(self, copy: Callable[..., None]) -> Round:
        """Windows per CPU second of a bare copy into this env's own buffer, a bar further each time."""
        columns, market = self.env.tape.features[:, 0], self.windows()
        accounts = self.env.num_envs
        steps = max(1_000_000 // accounts, 1)
        newest = np.empty(accounts, np.int64)

        def copies() -> None:
            for step in range(steps):
                np.add(self.out.bar, step, out=newest)
                np.minimum(newest, len(columns) - 1, out=newest)
                copy(columns, newest, WINDOW, market)

        return lambda: accounts * steps / cpu_seconds(copies)

    def windows(self) -> NDArray[np.float32]:
        """(N, R, F), the buffer's windows of the one contract."""
        assert self.out.market is not None
        windows: NDArray[np.float32] = self.out.market[:, :, 0]
        return windows


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process, which other programs on the machine disturb less than wall time."""
    started = time.process_time()
    work()
    return time.process_time() - started


# --- parity, before anything is timed ---


def check_parity(tape: Tape, steps: int = 400) -> str:
    """Accounts in a batch equal themselves alone, ledgers add up, windows are rows of the tape.

    Returns:
        What was seen, in words.

    Raises:
        SystemExit: something differs.
    """
    # exposures up to 45, so that liquidations happen too
    config = replace(CONFIG, leverage=50.0, max_exposure=45.0, max_drawdown=0.95, episode_bars=10**6)
    limits = RiskLimits(max_leverage=45.0, max_daily_loss=0.5, drawdown_start=0.8)
    accounts = 8
    batch = PerpVecEnv(
        tape, n_paths=1, accounts_per_path=accounts, config=config, limits=limits, with_windows=True
    )
    out = batch.make_buffers()
    batch.reset_into(out, 0)
    assert out.market is not None
    actions = np.random.default_rng(1).uniform(-1, 1, (steps, accounts, 2)).astype(np.float32)
    ledgers = []
    for number in range(steps):
        batch.step_into(actions[number], out)
        ledgers.append(out.ledger.copy())
        bar = out.bar[0]
        rows = tape.features[bar - WINDOW + 1 : bar + 1]
        _require(all(np.array_equal(w, rows) for w in out.market), "a window is not the rows of the tape")
    for account in range(accounts):
        alone = PerpVecEnv(tape, n_paths=1, config=config, limits=limits)
        single = alone.make_buffers()
        alone.reset_into(single, 1)
        for number in range(steps):
            alone.step_into(actions[number, account : account + 1], single)
            same = np.array_equal(single.ledger[0], ledgers[number][account], equal_nan=True)
            _require(same, f"account {account} alone differs from itself in the batch at step {number}")
    booked = np.concatenate(ledgers)
    column = {name: booked[:, i] for name, i in LEDGER.items()}
    change = column["price_pnl"] + column["funding"] + column["insurance"]
    change = change - column["fees"] - column["clearance"] - column["spread"] - column["impact"]
    worst = float(np.abs(column["equity"] - column["equity_before"] - change).max()) / CONFIG.initial_wallet
    _require(worst < 1e-9, f"a ledger is off by {worst:.1e} of the initial wallet")
    seen = {name: int((column[name] != 0).sum()) for name in ("funding", "impact", "liquidated", "stopped")}
    seen["overlay"] = int((column["overlay"] > 0).sum())
    _require(min(seen.values()) > 0, f"the check saw none of one kind of event: {seen}")
    return f"batch = single, windows = tape, ledger adds up to {worst:.0e}; saw {seen}"


def check_bare_copies(ours: Ours) -> None:
    """The bare copies write what the env wrote."""
    written = ours.windows().copy()
    for name, copy in BARE_COPIES.items():
        ours.windows()[...] = math.nan
        copy(ours.env.tape.features[:, 0], ours.out.bar, WINDOW, ours.windows())
        _require(np.array_equal(written, ours.windows()), f"the {name} differs from the env's windows")


def _require(is_met: bool, otherwise: str) -> None:
    if not is_met:
        raise SystemExit(f"parity: {otherwise}; nothing was timed")


# --- the figures ---


def start_rivals(tape: Tape, folder: Path, progress: Progress) -> tuple[list[RivalProcess], list[str]]:
    """Those that can run, each on its fastest way of stepping, and why the others cannot."""
    task = progress.add_task("rivals", total=len(RIVALS))
    running: list[RivalProcess] = []
    missing: list[str] = []
    for rival, accounts in RIVALS:
        progress.update(task, description=f"{rival.name} (the first run installs it)")
        try:
            process = RivalProcess(rival, save_market(folder, tape, accounts), accounts)
            check_window(process, tape)
            process.keep_fastest_variant(max(6_400 // accounts, 20))
            running.append(process)
        except RivalUnavailable as error:
            if str(error) not in missing:
                missing.append(str(error))
        progress.advance(task)
    return running, missing


def save_market(folder: Path, tape: Tape, accounts: int) -> Path:
    """Bars, columns and actions for a rival."""
    names = ("open", "high", "low", "close")
    path = folder / f"market_{accounts}.npz"
    np.savez(
        path,
        open_time_ms=tape.open_time_ms,
        **{name: tape.last[:, 0, i] for i, name in enumerate(names)},
        volume=tape.volume[:, 0],
        features=tape.features[:, 0],
        levels=LEVELS,
        actions=level_tape(accounts),
        window=WINDOW,
        fee=CONFIG.taker_rate,
    )
    return path


def level_tape(accounts: int) -> NDArray[np.int64]:
    """(STEPS_PER_TAPE, accounts) indices into LEVELS, drawn anew for every account and bar."""
    tape: NDArray[np.int64] = np.random.default_rng(2).integers(0, len(LEVELS), (STEPS_PER_TAPE, accounts))
    return tape


def level_actions(accounts: int) -> Actions:
    """The same tape for us, in shares of ``max_exposure``: 2, which is also torchtrade's at its leverage."""
    exposure = LEVELS[level_tape(accounts)] * CONFIG.max_exposure
    return exposure_to_action(exposure, action=CONFIG.action, max_exposure=CONFIG.max_exposure)


def check_window(process: RivalProcess, tape: Tape) -> None:
    """The rival's window is rows of the tape."""
    columns = tape.features[:, 0]
    newest = np.flatnonzero((columns == process.window[-1]).all(axis=1))
    is_on_tape = any(np.array_equal(columns[bar - WINDOW + 1 : bar + 1], process.window) for bar in newest)
    _require(is_on_tape, f"the window of {process.rival.name} is not rows of the tape")


def contestants(tape: Tape, rivals: list[RivalProcess]) -> dict[str, Round]:
    """Everything that takes its turn in a round, by name."""
    rounds: dict[str, Round] = {}
    for name, actions in action_tapes(1_024).items():
        shared = Ours(tape, actions, with_windows=False, accounts_per_path=ACCOUNTS_PER_PATH)
        rounds[f"1,024 accounts, {name}"] = shared.round()
        windowed = Ours(tape, actions, with_windows=True, accounts_per_path=ACCOUNTS_PER_PATH)
        check_bare_copies(windowed)
        rounds[f"1,024 accounts, {name}, windows"] = windowed.round()
    unshared = Ours(tape, action_tapes(1_024)["trading"], with_windows=False)
    rounds["1,024 accounts, trading, a path each"] = unshared.round()
    band = action_tapes(1_024)["random band"]
    everything = Ours(tape, band, with_windows=False, config=EVERYTHING, accounts_per_path=ACCOUNTS_PER_PATH)
    rounds["1,024 accounts, everything on"] = everything.round()
    for name, copy in BARE_COPIES.items():
        rounds[f"{name} of 1,024 windows"] = windowed.bare_round(copy)
    for accounts in (64, 1_024):
        levels = Ours(tape, level_actions(accounts), with_windows=True)
        rounds[f"{accounts:,} accounts, levels, windows"] = levels.round()
    rounds["PerpEnv, a window a step"] = single_round(tape)
    for rival in rivals:
        rounds[f"{rival.rival.name}, {rival.accounts:,} accounts ({rival.variant})"] = rival_round(rival)
    return rounds


def single_round(tape: Tape) -> Round:
    """Steps of one ``PerpEnv`` with its observation and info, episodes begun anew as they end."""
    env = PerpEnv(tape, config=CONFIG, limits=LIMITS)
    actions = level_actions(1)[:, 0]
    env.reset(seed=0)

    def steps() -> None:
        for number in range(20_000):
            _obs, _reward, is_terminated, is_truncated, _info = env.step(actions[number % STEPS_PER_TAPE])
            if is_terminated or is_truncated:
                env.reset()

    return lambda: 20_000 / cpu_seconds(steps)


def rival_round(rival: RivalProcess) -> Round:
    """As ``Ours.round``: shorter, because it is slower."""
    return lambda: rival.speed(max(25_600 // rival.accounts, 50))


def measure(rounds: dict[str, Round], number: int, progress: Progress) -> dict[str, list[float]]:
    """Interleaved rounds after one of warm-up: account-steps per CPU second, by contestant."""
    speeds: dict[str, list[float]] = {name: [] for name in rounds}
    task = progress.add_task("timing", total=(number + 1) * len(rounds))
    for turn in range(number + 1):
        for name, run in rounds.items():
            progress.update(task, description=name)
            speed = run()
            if turn > 0:
                speeds[name].append(speed)
            progress.advance(task)
    return speeds


def flat_cost(tape: Tape, steps: int = 100_000) -> tuple[float, float]:
    """Median wall seconds of the second and of the last thousand steps of one episode.

    64 accounts on one path, windows copied. Two such episodes take turns step by step, one at its beginning
    and one near its end, so that whatever else the machine does slows both.
    """
    actions = action_tapes(64)["trading"]
    config, accounts = replace(CONFIG, episode_bars=steps + 1), actions.shape[1]
    young, old = (
        Ours(tape, actions, with_windows=True, config=config, accounts_per_path=accounts) for _ in range(2)
    )
    first_bar = int(old.out.bar[0])
    young.run(1_000)
    old.run(steps - 1_000)
    taken = np.zeros((2, 1_000))
    for number in range(1_000):
        for row, episode in enumerate((young, old)):
            started = time.perf_counter()
            episode.run(1)
            taken[row, number] = time.perf_counter() - started
    _require(old.out.bar[0] == first_bar + steps, f"{steps:,} steps were not one episode")
    return float(np.median(taken[0])), float(np.median(taken[1]))


def flat_costs(tape: Tape, repeats: int, progress: Progress) -> list[tuple[float, float]]:
    """``flat_cost`` some times over."""
    task = progress.add_task("100,000 steps of one episode", total=repeats)
    costs = []
    for _ in range(repeats):
        costs.append(flat_cost(tape))
        progress.advance(task)
    return costs


def ratio(speeds: dict[str, list[float]], ours: str, theirs: str) -> float | None:
    """Median over the rounds of one speed over another in the same round; None without the rival."""
    rival = next((name for name in speeds if name.startswith(theirs)), None)
    if rival is None:
        return None
    return round(statistics.median(a / b for a, b in zip(speeds[ours], speeds[rival], strict=True)), 2)


def figures(speeds: dict[str, list[float]]) -> dict[str, float | None]:
    """The last line, but for the flat cost."""
    found: dict[str, float | None] = {
        "account_steps_per_s_1024": round(statistics.median(speeds["1,024 accounts, random band"])),
        "account_steps_per_s_1024_everything": round(
            statistics.median(speeds["1,024 accounts, everything on"])
        ),
        "account_steps_per_s_1024_trading": round(statistics.median(speeds["1,024 accounts, trading"])),
        "account_steps_per_s_1024_trading_unshared": round(
            statistics.median(speeds["1,024 accounts, trading, a path each"])
        ),
        "window_copy_fraction": ratio(speeds, "1,024 accounts, random band, windows", "plain copy"),
        "batch64_vs_gym_trading_env": ratio(speeds, "64 accounts, levels, windows", "gym-trading-env, 64"),
        "batch64_vs_torchtrade": ratio(speeds, "64 accounts, levels, windows", "torchtrade, 64"),
        "batch64_vs_gym_anytrading": ratio(speeds, "64 accounts, levels, windows", "gym-anytrading, 64"),
        "single_vs_gym_anytrading": ratio(speeds, "PerpEnv, a window a step", "gym-anytrading, 1 "),
        "single_vs_gym_trading_env": ratio(speeds, "PerpEnv, a window a step", "gym-trading-env, 1 "),
        "env_steps_per_s_64_window": round(statistics.median(speeds["64 accounts, levels, windows"])),
        "batch1024_vs_torchtrade": ratio(speeds, "1,024 accounts, levels, windows", "torchtrade, 1,024"),
    }
    for name in action_tapes(1):
        key = f"window_copy_fraction_of_flat_copy_{name.replace(' ', '_')}"
        found[key] = ratio(speeds, f"1,024 accounts, {name}, windows", "flat copy")
    return found


def main() -> None:
    """Parity, then the figures; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-rivals", action="store_true", help="time this project alone")
    arguments = parser.parse_args()
    console, tape = Console(width=100), market("2020-01-01")
    console.print(f"parity: {check_parity(tape)}")
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        rivals, missing = (
            ([], ["not asked for"])
            if arguments.without_rivals
            else start_rivals(tape, Path(folder), progress)
        )
        try:
            speeds = measure(contestants(tape, rivals), arguments.rounds, progress)
        finally:
            for rival in rivals:
                rival.close()
        costs = flat_costs(market("2013-01-01"), arguments.rounds, progress)
        task = progress.add_task("contracts, memory, cores", total=None)
        sizes = {
            "cost_50_contracts_over_1": round(cost_of_contracts(tape, 50, CONFIG, arguments.rounds), 1),
            "bytes_per_account": bytes_per_account(tape, CONFIG),
            "bytes_allocated_per_step": bytes_allocated_per_step(tape, CONFIG),
            "second_core_gain": second_core_gain(arguments.rounds),
        }
        progress.remove_task(task)
    console.print(report(speeds))
    console.print(f"fills per account-step: {fills_in_words(tape)}")
    second, last = (statistics.median(cost[i] for cost in costs) for i in range(2))
    console.print(
        f"100,000 steps of one episode, 64 accounts with windows: {second * 1e6:.1f} us a step in the second "
        f"thousand, {last * 1e6:.1f} us in the last"
    )
    for reason in missing:
        console.print(f"no figure beside a rival: {reason}")
    console.print(machine(), soft_wrap=True)
    growth = statistics.median(last / second for second, last in costs)
    print(json.dumps({**figures(speeds), "flat_cost_ratio": round(growth, 3), **sizes}))


def fills_in_words(tape: Tape) -> str:
    """How much each action tape trades."""
    tapes = {**action_tapes(64), "levels": level_actions(64)}
    shares = {name: Ours(tape, a, with_windows=False).fills_per_step() for name, a in tapes.items()}
    return ", ".join(f"{name} {share:.2f}" for name, share in shares.items())


def report(speeds: dict[str, list[float]]) -> Table:
    """Medians and spread."""
    table = Table("", "account-steps/s, median", "lowest", "highest")
    for name, values in speeds.items():
        table.add_row(name, f"{statistics.median(values):,.0f}", f"{min(values):,.0f}", f"{max(values):,.0f}")
    return table


def machine() -> str:
    """Commit, processor, versions and load."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    )  # fmt: skip
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    processor = names[0].partition(":")[2].strip() if names else platform.machine()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"commit {said.stdout.strip() or 'unknown'}; {processor}, {os.cpu_count()} cores{load}; "
        f"Python {platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}; one thread"
    )


if __name__ == "__main__":
    main()
