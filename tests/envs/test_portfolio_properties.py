"""What must hold for every market of several contracts: books, order of contracts, independence, parity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpEnv, PerpVecEnv, RiskLimits
from perpgym.envs.account import ISOLATED_WALLET, QUANTITY, WALLET
from perpgym.envs.spaces import CONTRACT_LEDGER, LEDGER, LEDGER_COLUMNS

FREE = RiskLimits(max_leverage=100.0, max_daily_loss=None)
MakeTape = Callable[..., Tape]
MergeTapes = Callable[[list[Tape]], Tape]


def three(make_tape: MakeTape, seed: int, **changes: Any) -> list[Tape]:
    plain: dict[str, Any] = {"bars": 160, "sigma": 0.02, "funding_rate": 1e-3} | changes
    return [make_tape(seed=3 * seed + i, mark_basis=0.002 * i, **plain) for i in range(3)]


def play(tape: Tape, actions: np.ndarray, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ledgers (T, N, L) and contract ledgers (T, N, A, H) of accounts on one path."""
    config = EnvConfig(
        **{"action": "target", "window_bars": 1, "episode_bars": 10**6, "max_exposure": 6.0} | settings
    )
    env = PerpVecEnv(tape, n_paths=1, accounts_per_path=actions.shape[1], config=config, limits=FREE)
    out = env.make_buffers()
    env.reset_into(out, 0)
    ledgers, holdings = [], []
    for action in actions:
        env.step_into(np.ascontiguousarray(action, np.float32), out)
        ledgers.append(out.ledger.copy())
        holdings.append(out.holdings.copy())
        if out.truncated.any():
            break
    return np.array(ledgers), np.array(holdings)


@pytest.mark.parametrize("margin_mode", ["cross", "isolated", ["isolated", "cross", "cross"]])
@pytest.mark.parametrize("liquidation", ["full", "brackets"])
@pytest.mark.parametrize(
    "orders",
    [
        {"execution": "market"},
        {"execution": "limit"},
        {"execution": "limit", "limit_offset_bps": 200.0, "remainder": "carry", "trailing_stop": True},
        {"execution": "twap", "latency_bars": 1},
        {"execution": "iceberg", "latency_bars": 2, "remainder": "carry", "extremes": "joint_adverse"},
    ],
    ids=["market", "limit", "carried limit", "late slices", "late clips"],
)
def test_the_books_add_up_to_the_cent_in_every_mode(
    make_tape: MakeTape,
    merge_tapes: MergeTapes,
    margin_mode: str | list[str],
    liquidation: str,
    orders: dict[str, Any],
) -> None:
    seen = np.zeros(len(LEDGER_COLUMNS))
    for seed in range(4):
        tape = merge_tapes(three(make_tape, seed, sigma=0.05, wick=0.05))
        actions = np.random.default_rng(seed).uniform(-1, 1, (150, 16, 3))
        ledger, holdings = play(
            tape, actions, max_exposure=12.0, margin_mode=margin_mode, liquidation=liquidation,
            stop_loss=0.12, take_profit=0.1, max_drawdown=0.99, **orders,
        )  # fmt: skip
        get = {name: ledger[..., i] for name, i in LEDGER.items()}
        parts = get["price_pnl"] + get["funding"] + get["insurance"]
        parts = parts - get["fees"] - get["clearance"] - get["spread"] - get["impact"]
        change = get["equity"] - get["equity_before"]
        # 1e-9 of a million
        np.testing.assert_allclose(parts, change, atol=1e-3)
        profit = holdings[..., CONTRACT_LEDGER["profit"]].sum(-1)
        np.testing.assert_allclose(profit, change, atol=1e-3)
        costs = holdings[..., CONTRACT_LEDGER["costs"]].sum(-1)
        paid = get["fees"] + get["clearance"] + get["spread"] + get["impact"] - get["insurance"]
        np.testing.assert_allclose(costs, paid, atol=1e-3)
        funding = holdings[..., CONTRACT_LEDGER["funding"]].sum(-1)
        np.testing.assert_allclose(funding, get["funding"], atol=1e-3)
        assert (get["equity"] >= -1e-6).all()
        seen += np.nan_to_num(np.abs(ledger)).sum((0, 1))
    for name in ("funding", "fees", "stopped", "liquidated"):
        assert seen[LEDGER[name]] > 0, name


@pytest.mark.parametrize("margin_mode", ["cross", "isolated", ["isolated", "cross", "isolated"]])
@pytest.mark.parametrize("execution", ["market", "limit", "twap"])
def test_no_account_owes_where_last_prices_crash_through_stops(
    make_tape: MakeTape, merge_tapes: MergeTapes, margin_mode: str | list[str], execution: str
) -> None:
    forgiven = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        tape = merge_tapes(three(make_tape, seed, sigma=0.01))
        # one bar in ten trades far off a mark that does not move with it
        is_off = rng.random(tape.volume.shape) < 0.1
        factor = np.where(is_off, rng.uniform(0.5, 1.6, tape.volume.shape), 1.0)
        last = tape.last * factor[..., None]
        tape = replace(tape, last=last, _cache={})
        actions = rng.uniform(-1, 1, (150, 16, 3))
        ledger, holdings = play(
            tape, actions, max_exposure=12.0, margin_mode=margin_mode, stop_loss=0.05, stop_trigger="last",
            max_drawdown=1.0, leverage=20.0, execution=execution, limit_offset_bps=50.0,
        )  # fmt: skip
        get = {name: ledger[..., i] for name, i in LEDGER.items()}
        assert (get["equity"] >= -1e-6).all()
        change = get["equity"] - get["equity_before"]
        profit = holdings[..., CONTRACT_LEDGER["profit"]].sum(-1)
        np.testing.assert_allclose(profit, change, atol=1e-3)
        forgiven += int(((get["insurance"] > 1.0) & (get["liquidated"] == 0)).sum())
    assert forgiven > 0


def test_the_order_of_contracts_does_not_matter_while_margin_is_plenty(
    make_tape: MakeTape, merge_tapes: MergeTapes
) -> None:
    tapes = three(make_tape, 1, sigma=0.005)
    actions = np.random.default_rng(0).uniform(-1, 1, (120, 4, 3))
    one, _ = play(merge_tapes(tapes), actions, max_exposure=1.0, max_drawdown=1.0)
    other, _ = play(merge_tapes(tapes[::-1]), actions[..., ::-1], max_exposure=1.0, max_drawdown=1.0)
    for name in ("equity", "fees", "funding", "impact"):
        np.testing.assert_allclose(one[..., LEDGER[name]], other[..., LEDGER[name]], rtol=1e-9, atol=1e-6)


def test_a_contract_that_is_never_traded_changes_nothing(
    make_tape: MakeTape, merge_tapes: MergeTapes
) -> None:
    first, second, _ = three(make_tape, 2)
    actions = np.random.default_rng(1).uniform(-1, 1, (120, 4, 1))
    alone, _ = play(first, actions, stop_loss=0.03)
    padded = np.concatenate([actions, np.zeros_like(actions)], axis=-1)
    beside, holdings = play(merge_tapes([first, second]), padded, stop_loss=0.03)
    np.testing.assert_allclose(alone, beside[: len(alone)], rtol=1e-12, atol=1e-6, equal_nan=True)
    assert not holdings[:, :, 1, CONTRACT_LEDGER["position"]].any()


def test_joint_adverse_liquidates_whatever_the_worse_way_liquidates_and_more(
    make_tape: MakeTape, merge_tapes: MergeTapes
) -> None:
    more = 0
    for seed in range(12):
        tape = merge_tapes(three(make_tape, seed, sigma=0.03, wick=0.05))
        # one decision, booked in the very bar that is compared
        actions = np.random.default_rng(seed).uniform(-1, 1, (1, 32, 3))
        worse, _ = play(tape, actions, max_drawdown=1.0)
        joint, _ = play(tape, actions, max_drawdown=1.0, extremes="joint_adverse")
        fell, fell_jointly = (rows[0, :, LEDGER["liquidated"]] > 0 for rows in (worse, joint))
        assert not (fell & ~fell_jointly).any()
        more += int((fell_jointly & ~fell).sum())
    assert more > 0, "the market was meant to be wild enough to tell the two apart"


def test_an_account_alone_equals_itself_in_a_batch(make_tape: MakeTape, merge_tapes: MergeTapes) -> None:
    tape = merge_tapes(three(make_tape, 5))
    actions = np.random.default_rng(3).uniform(-1, 1, (100, 5, 3))
    batch, holdings = play(tape, actions, max_drawdown=1.0)
    for account in range(5):
        alone, rows = play(tape, actions[:, account : account + 1], max_drawdown=1.0)
        np.testing.assert_array_equal(alone[:, 0], batch[: len(alone), account])
        np.testing.assert_array_equal(rows[:, 0], holdings[: len(rows), account])


@pytest.mark.parametrize("margin_mode", ["cross", "isolated"])
def test_random_restarts_hold_no_more_than_the_wallet_can_margin(
    make_tape: MakeTape, merge_tapes: MergeTapes, margin_mode: str
) -> None:
    config = EnvConfig(
        window_bars=1, leverage=10.0, max_exposure=10.0, margin_mode=margin_mode, restart="random"
    )
    env = PerpVecEnv(merge_tapes(three(make_tape, 0)), n_paths=200, config=config, limits=FREE)
    out = env.make_buffers()
    env.reset_into(out, 0)
    state = env.state_dict()
    assert (np.abs(out.account[:, :, 0]).sum(1) > 5.0).sum() > 50
    free = state["wallets"][:, WALLET] - state["positions"][:, :, ISOLATED_WALLET].sum(1)
    assert (free >= -1e-6).all()
    if margin_mode == "isolated":
        held = state["positions"][:, :, QUANTITY] != 0.0
        posted = state["positions"][:, :, ISOLATED_WALLET] / state["wallets"][:, :1]
        np.testing.assert_allclose(posted[held], np.abs(out.account[:, :, 0])[held] / 10.0, rtol=1e-5)


def test_a_single_env_shows_every_contract(make_tape: MakeTape, merge_tapes: MergeTapes) -> None:
    env = PerpEnv(merge_tapes(three(make_tape, 0)), config=EnvConfig(window_bars=4))
    observation, _ = env.reset(seed=0)
    assert env.action_space.shape == (6,)
    assert observation["account"].shape[0] == 3
    assert observation["market"].shape[:2] == (4, 3)
    observation, *_ = env.step(np.array([0.5, -1, -0.5, -1, 0.2, -1], np.float32))
    np.testing.assert_allclose(observation["account"][:, 0], [1.0, -1.0, 0.4], atol=0.1)
