"""What size costs: contracts, accounts, cores and steps; ``bench_env.py`` prints the figures."""

from __future__ import annotations

import gc
import multiprocessing
import os
import statistics
import time
import tracemalloc
from dataclasses import replace

import numpy as np

from perpgym.data.synthetic import SimulatedMarketConfig, simulate_market
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.envs.risk.limits import RiskLimits

_FREE = RiskLimits(max_leverage=100.0, max_daily_loss=None)


def widened(tape: Tape, contracts: int) -> Tape:
    """The one contract of a tape, so many times over under other names."""
    if contracts == 1:
        return tape
    names = [f"C{i}/USDT:USDT" for i in range(contracts)]
    owned = np.diff(tape.stamp_start[0])
    stamps = int(owned.sum())
    return replace(
        tape,
        contracts=tuple(replace(tape.contracts[0], symbol=name) for name in names),
        last=np.repeat(tape.last, contracts, axis=1),
        mark=np.repeat(tape.mark, contracts, axis=1),
        volume=np.repeat(tape.volume, contracts, axis=1),
        sigma_per_bar=np.repeat(tape.sigma_per_bar, contracts, axis=1),
        stamp_start=np.concatenate([tape.stamp_start + i * stamps for i in range(contracts)]),
        stamp_time_ms=np.tile(tape.stamp_time_ms, contracts),
        stamp_rate=np.tile(tape.stamp_rate, contracts),
        features=np.repeat(tape.features, contracts, axis=1),
        risk=np.repeat(tape.risk, contracts, axis=1),
        is_valid=np.repeat(tape.is_valid, contracts, axis=1),
        mark_rules=tape.mark_rules * contracts,
        planted=None,
        _cache={},
    )


def cost_of_contracts(tape: Tape, contracts: int, config: EnvConfig, rounds: int) -> float:
    """Time of an account-step on so many contracts over that on one, in turns; linear is ``contracts``.

    Random targets of the same gross exposure on both, so nearly every contract trades on every step.
    """
    runs = []
    for count in (1, contracts):
        sized = replace(config, action="target", max_exposure=2.0 / count, rebalance_threshold=0.0)
        env = PerpVecEnv(widened(tape, count), n_paths=16, accounts_per_path=8, config=sized, limits=_FREE)
        out = env.make_buffers()
        env.reset_into(out, 0)
        actions = np.random.default_rng(0).uniform(-1, 1, (50, 128, count)).astype(np.float32)
        runs.append((env, out, actions, max(2_000 // count, 50)))
    ratios = []
    for _ in range(rounds + 1):
        taken = []
        for env, out, actions, steps in runs:
            started = time.process_time()
            for number in range(steps):
                env.step_into(actions[number % len(actions)], out)
            taken.append((time.process_time() - started) / steps)
        ratios.append(taken[1] / taken[0])
    return statistics.median(ratios[1:])


def bytes_per_account(tape: Tape, config: EnvConfig) -> int:
    """Memory that another account takes: state and buffers, without windows."""

    def held(accounts: int) -> int:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        env = PerpVecEnv(tape, n_paths=1, accounts_per_path=accounts, config=config, limits=_FREE)
        out = env.make_buffers()
        env.reset_into(out, 0)
        grown = tracemalloc.get_traced_memory()[0] - before
        del env, out
        return grown

    tracemalloc.start()
    held(1)
    few, many = held(1_000), held(11_000)
    tracemalloc.stop()
    return round((many - few) / 10_000)


def bytes_allocated_per_step(tape: Tape, config: EnvConfig, steps: int = 10_000) -> int:
    """Growth of traced memory's peak over so many warm steps, over the steps; whole bytes."""
    one_episode = replace(config, episode_bars=10**6, max_drawdown=1.0)
    env = PerpVecEnv(tape, n_paths=1, accounts_per_path=64, config=one_episode, limits=_FREE)
    out = env.make_buffers()
    env.reset_into(out, 0)
    actions = np.random.default_rng(0).uniform(-0.1, 0.1, (50, 64, 2)).astype(np.float32)
    for number in range(100):
        env.step_into(actions[number % 50], out)
    tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[1]
    for number in range(steps):
        env.step_into(actions[number % 50], out)
    grown = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return round(grown / steps)


def second_core_gain(rounds: int) -> float | None:
    """Account-steps of two pinned processes over those of one, best of the pairs; None on one core."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        return None
    context = multiprocessing.get_context("spawn")
    queues = [(context.Queue(), context.Queue()) for _ in range(2)]
    workers = [
        context.Process(target=_serve, args=(core, *pair), daemon=True)
        for core, pair in zip(cores[:2], queues, strict=True)
    ]
    for worker in workers:
        worker.start()
    for _asked, told in queues:
        told.get()
    gains = []
    for _ in range(rounds):
        alone = _ask(queues[:1])
        together = _ask(queues)
        gains.append(together / alone)
    for asked, _told in queues:
        asked.put(None)
    for worker in workers:
        worker.join()
    return round(max(gains), 2)


def _ask(queues: list[tuple[multiprocessing.Queue, multiprocessing.Queue]]) -> float:  # type: ignore[type-arg]
    for asked, _told in queues:
        asked.put(600)
    return float(sum(told.get() for _asked, told in queues))


def _serve(core: int, asked: multiprocessing.Queue, told: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    """A process of its own: account-steps per second of wall time, for as many steps as it is asked."""
    from perpgym.data.features.build import build_tape

    os.sched_setaffinity(0, {core})
    simulated = simulate_market(SimulatedMarketConfig(start="2024-01-01"))
    tape = build_tape(simulated.bars, risk=(), source="simulated")
    env = PerpVecEnv(tape, n_paths=128, accounts_per_path=8, limits=_FREE)
    out = env.make_buffers()
    env.reset_into(out, 0)
    actions = np.random.default_rng(core).uniform(-1, 1, (50, 1_024, 2)).astype(np.float32)
    env.step_into(actions[0], out)
    told.put(0.0)
    while (steps := asked.get()) is not None:
        started = time.perf_counter()
        for number in range(steps):
            env.step_into(actions[number % 50], out)
        told.put(1_024 * steps / (time.perf_counter() - started))
