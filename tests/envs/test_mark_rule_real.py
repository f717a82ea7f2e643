"""How many liquidations the named rule ``mark=last`` invents on real BTC bars, 2020 to mid 2025."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from perpgym.data.align import align
from perpgym.data.contract import load_contract
from perpgym.data.features import default_names
from perpgym.data.features.build import build_tape
from perpgym.data.sources.freqtrade import read_freqtrade
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.spaces import LEDGER

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mechanics.md"
SYMBOL = "BTC/USDT:USDT"
HOLD_BARS = 24


@pytest.fixture(scope="module")
def tapes(shared_data: Path) -> dict[str, Tape]:
    """The same bars with the exchange's mark, and with traded prices in its place."""
    raw = read_freqtrade(shared_data / "freqtrade", SYMBOL, "1h")

    def build(mark: Literal["require", "last"]) -> Tape:
        bars = align(raw, load_contract(SYMBOL), mark=mark).bars
        one_column = {"features": default_names("market")[:1], "risk": default_names("risk")[:1]}
        return build_tape(bars, source=f"mark={mark}", **one_column)

    return {"mark": build("require"), "last": build("last")}


def liquidations(tape: Tape, leverage: float) -> np.ndarray:
    """(entries, 2) bool: whether the isolated long and short opened at each hour were liquidated in 23 hours.

    Account k of a side opens at every hour that is k modulo 24, with 1 % of its equity as notional, and holds
    what is left of it until the hour before it opens again.
    """
    config = EnvConfig(
        margin_mode="isolated",
        leverage=leverage,
        max_exposure=0.02,
        rebalance_threshold=0.0,
        max_drawdown=1.0,
        window_bars=1,
        episode_bars=10**9,
    )
    env = PerpVecEnv(
        tape,
        n_paths=1,
        accounts_per_path=2 * HOLD_BARS,
        config=config,
        limits=RiskLimits(max_daily_loss=None),
    )
    out = env.make_buffers()
    env.reset_into(out, 0)
    turn = np.tile(np.arange(HOLD_BARS), 2)
    side = np.repeat(np.array([0.5, -0.5], np.float32), HOLD_BARS)
    actions = np.zeros((2 * HOLD_BARS, 2), np.float32)
    steps = len(tape) - 2 - env.first_bar
    hits = np.zeros((steps + HOLD_BARS, 2), bool)
    for step in range(steps):
        opens, closes = turn == step % HOLD_BARS, turn == (step + 1) % HOLD_BARS
        actions[:, 0] = np.where(opens, side, 0.0)
        # a band as wide as the range holds whatever there is
        actions[:, 1] = np.where(opens | closes, -1.0, 1.0)
        env.step_into(actions, out)
        opened = step - (step - turn) % HOLD_BARS
        was_liquidated = out.ledger[:, LEDGER["liquidated"]] > 0
        for account in np.flatnonzero(was_liquidated):
            hits[opened[account], account // HOLD_BARS] = True
    return hits[:steps]


@pytest.mark.parametrize("leverage", [5.0, 10.0, 20.0, 50.0])
def test_marking_at_the_last_price_invents_liquidations(tapes: dict[str, Tape], leverage: float) -> None:
    real, proxy = liquidations(tapes["mark"], leverage), liquidations(tapes["last"], leverage)
    invented, missed = int((proxy & ~real).sum()), int((real & ~proxy).sum())
    text = (
        f"{leverage:g}x isolated, {real.size} positions of 23 hours: {int(real.sum())} liquidated "
        f"on the mark, {int(proxy.sum())} on mark=last; {invented} invented, {missed} missed"
    )
    print(text)
    assert real.sum() > 0, text
    assert proxy.sum() > real.sum(), text
    assert invented > missed, text
    assert text in PAGE.read_text("utf-8"), f"docs/mechanics.md must say: {text}"
