"""Plays accounts drawn from their numbers on the tapes of a folder, compiled or in plain Python.

python play_random_worlds.py FOLDER WORLDS TARGET.npz

A process of its own decides by ``NUMBA_DISABLE_JIT`` which of the two; ``test_compiled_parity.py`` compares.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np

from perpgym.data.bars import Bars
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.actions import ACTION_KINDS
from perpgym.envs.config import EXECUTION_STYLES, REWARD_KINDS
from perpgym.envs.fees import FeeSchedule, FeeTier
from perpgym.envs.impact_model import IMPACT_KINDS, ImpactModel

# each has its turn; the last is lived through bar by finer bar
TAPES = ("one", "three", "inverse", "coarse")
SHOWN = ("ledger", "holdings", "account", "portfolio", "reward", "bar", "terminated", "market", "risk")
STEPS = 25
TIERS = FeeSchedule(
    tiers=(
        FeeTier(floor=0.0, maker_rate=0.0002, taker_rate=0.0005),
        FeeTier(floor=2e6, maker_rate=-0.00005, taker_rate=0.0003),
    ),
    discount_factor=0.9,
)


def pick(rng: np.random.Generator, *values: Any) -> Any:
    """One of these, each as likely."""
    return values[int(rng.integers(len(values)))]


def draw_config(rng: np.random.Generator, has_finer: bool, n_contracts: int) -> EnvConfig:
    """An account, its orders, costs, stops, ends and rewards."""
    mixed = tuple(rng.choice(["cross", "isolated"], n_contracts).tolist())
    leverage = pick(rng, 5.0, 20.0, 50.0)
    chosen: dict[str, tuple[Any, ...]] = {
        "episode_bars": (12, 25),
        "restart": ("flat", "random"),
        "max_exposure": (0.3 * leverage, 0.9 * leverage),
        "action": ACTION_KINDS,
        "execution": EXECUTION_STYLES,
        "remainder": ("drop", "carry"),
        "margin_mode": ("cross", "isolated", mixed),
        "sizing": ("equity", "fixed_notional"),
        "cost": ("exchange", "exchange", "linear", "quadratic"),
        "limits": ("on", "on", "on", "off"),
        "terminal": ("hold", "liquidate"),
        "rebalance_threshold": (0.0, 0.3),
        "half_spread_bps": (0.0, 1.0),
        "limit_offset_bps": (5.0, 50.0),
        "iceberg_clip": (0.1, 0.3),
        "latency_ms": (0.0, 3_600_000.0) if has_finer else (0.0,),
        "latency_bars": (0, 0, 1, 2),
        "fees": (None, None, TIERS),
        "stop_loss": (None, 0.02, 0.1),
        "stop_volatility": (None, 2.0),
        "take_profit": (None, 0.02),
        "max_bars_held": (None, 5),
        "stop_trigger": ("mark", "last"),
        "liquidation": ("full", "brackets"),
        "extremes": ("worse", "joint_adverse"),
        "funding_multiplier": (1.0, -3.0),
        "max_drawdown": (0.5, 1.0),
        "reward": REWARD_KINDS,
    }
    settings: dict[str, Any] = {name: pick(rng, *values) for name, values in chosen.items()}
    has_stop = settings["stop_loss"] is not None or settings["stop_volatility"] is not None
    kind = pick(rng, *IMPACT_KINDS)
    if settings["cost"] != "exchange":
        # it replaces what an exchange charges
        settings["fees"], kind = None, "none"
    impact = ImpactModel(kind=kind, transient_coefficient=20.0, permanent_coefficient=2.0)
    return EnvConfig(
        **settings, leverage=leverage, window_bars=3, impact=impact, head_styles=EXECUTION_STYLES,
        trailing_stop=has_stop and pick(rng, False, True), linear_cost_rate=1e-3, quadratic_cost_rate=1e-3,
        reward_risk_aversion=3.0, reward_variance=2.0, reward_drawdown=0.1, reward_turnover=0.01,
        reward_liquidation=1.0,
    )  # fmt: skip


def play(env: PerpVecEnv, seed: int) -> dict[str, np.ndarray]:
    """Everything that an env writes over some random steps, stacked."""
    out = env.make_buffers()
    env.reset_into(out, seed)
    env.action_space.seed(seed)
    seen: dict[str, list[Any]] = {}
    for _ in range(STEPS):
        env.step_into(env.action_space.sample(), out)
        shown = {name: getattr(out, name).copy() for name in SHOWN} | {"totals": env.totals(out)}
        if env.config.choices:
            shown["masks"] = env.action_masks()
        for name, array in shown.items():
            seen.setdefault(name, []).append(array)
    return {name: np.array(arrays) for name, arrays in seen.items()}


def main(folder: Path, worlds: int, target: str) -> None:
    """Draw, play and save every world."""
    tapes = [Tape.load(folder / name) for name in TAPES]
    fine = Tape.load(folder / "fine")
    finer = Bars(
        contract=fine.contracts[0], bar_ms=fine.bar_ms, open_time_ms=fine.open_time_ms, last=fine.last[:, 0],
        mark=fine.mark[:, 0], volume=fine.volume[:, 0], stamp_time_ms=fine.stamp_time_ms,
        stamp_rate=fine.stamp_rate,
    )  # fmt: skip
    seen = {"is_plain": np.array(bool(numba.config.DISABLE_JIT))}
    for number in range(worlds):
        rng, which = np.random.default_rng(number), number % len(TAPES)
        has_finer = TAPES[which] == "coarse"
        limits = RiskLimits(max_leverage=pick(rng, 10.0, 60.0), max_daily_loss=pick(rng, None, 0.2))
        env = PerpVecEnv(
            tapes[which], n_paths=2, accounts_per_path=2, limits=limits, with_windows=True,
            config=draw_config(rng, has_finer, len(tapes[which].contracts)),
            finer=finer if has_finer else None,
        )  # fmt: skip
        seen |= {f"{number} {name}": array for name, array in play(env, number).items()}
    np.savez(target, **seen)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
