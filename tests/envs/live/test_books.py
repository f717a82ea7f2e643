"""What the env books of its own fills, the live books book of the same fills, to the last column."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.account import ORDER_STYLE, STOP_PRICE
from perpgym.envs.arrays import BatchState
from perpgym.envs.batch import observe_batch
from perpgym.envs.buffers import StepBuffers
from perpgym.envs.exchange.engine import Engine, OrderRequest
from perpgym.envs.exchange.market import Replay
from perpgym.envs.fills import (
    FILL_ASSET,
    FILL_FEE,
    FILL_PRICE,
    FILL_QUANTITY,
    FILL_REASON,
    LIQUIDATION,
    ORDER,
)
from perpgym.envs.live.books import Books
from perpgym.envs.live.broker import AccountTruth, Fill, Income, Order, Position
from perpgym.envs.orders import LIMIT
from perpgym.envs.spaces import CONTRACT_LEDGER, LEDGER, LEDGER_COLUMNS

MakeTape = Callable[..., Tape]
START = 3
SYMBOL = "TEST/USDT:USDT"
FREE = RiskLimits(max_leverage=150.0, max_daily_loss=None)


def settings(**changes: Any) -> EnvConfig:
    plain: dict[str, Any] = {
        "initial_wallet": 10_000.0, "action": "target", "max_drawdown": 1.0, "episode_bars": 10_000,
        "window_bars": 1, "impact_coefficient": 0.5,
    }  # fmt: skip
    return EnvConfig(**plain | changes)


def cut(tape: Tape, bars: int) -> Tape:
    """The tape as it was known when its first ``bars`` bars had closed."""
    columns = ("open_time_ms", "last", "mark", "volume", "sigma_per_bar", "features", "risk", "is_valid")
    start = tape.stamp_start[:, : bars + 1]
    return replace(tape, stamp_start=start, _cache={}, **{n: getattr(tape, n)[:bars] for n in columns})


def truth(wallet: float, positions: dict[str, Position] | None = None) -> AccountTruth:
    return AccountTruth(time_ms=0, wallet=wallet, equity=wallet, positions=positions or {})


class Told:
    """An env, and books that are told of its fills and settlements as an exchange would tell them."""

    def __init__(self, tape: Tape, config: EnvConfig, limits: RiskLimits = FREE) -> None:
        self.tape, self.config = tape, config
        self.env = PerpVecEnv(tape, n_paths=1, config=config, limits=limits, start_bar=START)
        self.out = self.env.make_buffers()
        self.fills = self.env.keep_fills(64)
        self.env.reset_into(self.out, seed=0)
        self.books = Books(config, limits)
        self.books.see(cut(tape, START + 1))
        self.books.open(truth(config.initial_wallet))
        self.seen = StepBuffers.allocate(1, len(tape.contracts), None, 0, 0)
        self.count = 0

    def step(self, action: np.ndarray, bar: int) -> tuple[float, bool]:
        """Both through bar ``bar + 1``; returns what the books say of reward and end."""
        self.books.decide(action)
        self.env.step_into(action[None], self.out)
        open_ms = int(self.tape.open_time_ms[bar + 1])
        rows = self.fills[: int(self.out.ledger[0, LEDGER["fills"]])]
        for row in rows:
            self._tell(row, open_ms)
        for asset, held in enumerate(self.out.holdings[0]):
            self.count += 1
            self.books.book_income(
                Income(
                    income_id=str(self.count), kind="funding", amount=held[CONTRACT_LEDGER["funding"]],
                    contract=self.tape.contracts[asset].symbol, time_ms=open_ms + self.tape.bar_ms,
                )
            )  # fmt: skip
        self.bits = int(self.books.account.ledger[LEDGER["overlay"]])
        return self.books.close_bar(cut(self.tape, bar + 2))

    def _tell(self, row: np.ndarray, open_ms: int) -> None:
        self.count += 1
        reason = int(row[FILL_REASON])
        client_id = (
            "autoclose-1" if reason == LIQUIDATION else f"{'o' if reason == ORDER else 's'}{self.count}"
        )
        symbol = self.tape.contracts[int(row[FILL_ASSET])].symbol
        fill = Fill(
            trade_id=str(self.count), contract=symbol, quantity=row[FILL_QUANTITY], price=row[FILL_PRICE],
            fee=0.0 if reason == LIQUIDATION else row[FILL_FEE], client_id=client_id,
            time_ms=open_ms if reason == ORDER else open_ms + self.tape.bar_ms - 1,
            is_maker=reason == ORDER and self.books.account.orders[0, ORDER_STYLE] >= LIMIT,
        )  # fmt: skip
        self.books.book_fill(fill)
        # an exchange tells a trade as often as it likes
        self.books.book_fill(fill)
        if reason == ORDER:
            order = Order(client_id=client_id, contract=symbol, quantity=fill.quantity)
            self.books.expect([order])
        elif reason == LIQUIDATION:
            self.books.book_income(
                Income(
                    income_id=f"c{self.count}", kind="clearance", amount=-row[FILL_FEE], contract=symbol,
                    time_ms=fill.time_ms,
                )
            )  # fmt: skip

    def observe(self, bars: int) -> None:
        account = self.books.account
        state = BatchState(*(account.wallet[None],) * len(BatchState._fields))._replace(
            positions=account.positions[None], orders=account.orders[None]
        )
        self.seen.bar[:] = bars - 1
        assert self.books.world is not None
        observe_batch(self.books.world, state, self.seen.bar, self.seen.account, self.seen.portfolio)


def random_actions(config: EnvConfig, n_contracts: int, rng: np.random.Generator) -> np.ndarray:
    if config.choices:
        return np.tile(rng.integers(0, config.choices), n_contracts).astype(np.float32)
    width = n_contracts * (2 if config.action == "band" else 1)
    action = rng.uniform(-1.0, 1.0, width).astype(np.float32)
    action[rng.random(width) < 0.2] = 0.0
    return action


def compare(told: Told, bars: int, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    happened = dict.fromkeys(LEDGER_COLUMNS, 0.0)
    for bar in range(START, START + bars):
        action = random_actions(told.config, len(told.tape.contracts), rng)
        reward, is_terminated = told.step(action, bar)
        ledger, booked = told.out.ledger[0], told.books.account.ledger
        for name, value in zip(LEDGER_COLUMNS, ledger, strict=True):
            happened[name] += abs(float(value))
        np.testing.assert_allclose(booked, ledger, rtol=0.0, atol=1e-8, err_msg=str(bar))
        reason = CONTRACT_LEDGER["reason"]
        mine, theirs = told.books.account.holdings.copy(), told.out.holdings[0].copy()
        # which limit cut an order only the env can tell
        mine[:, reason], theirs[:, reason] = mine[:, reason] != 0.0, theirs[:, reason] != 0.0
        np.testing.assert_allclose(mine, theirs, rtol=0.0, atol=1e-8, err_msg=str(bar))
        assert reward == pytest.approx(float(told.out.reward[0]), abs=1e-10)
        assert is_terminated == told.out.terminated[0]
        if is_terminated:
            break
        told.observe(bar + 2)
        np.testing.assert_allclose(told.seen.account, told.out.account, rtol=0.0, atol=1e-7)
        np.testing.assert_allclose(told.seen.portfolio, told.out.portfolio, rtol=0.0, atol=1e-7)
    return happened


def test_the_envs_own_fills_give_the_envs_books(make_tape: MakeTape) -> None:
    tape = make_tape(bars=300, seed=1, mark_basis=3e-4)
    happened = compare(Told(tape, settings()), 250, 1)
    assert happened["fills"] > 200
    assert happened["funding"] > 0.0
    assert happened["impact"] > 0.0


@pytest.mark.parametrize(
    "changes",
    [
        {"stop_loss": 0.012, "take_profit": 0.015},
        {"stop_volatility": 2.0, "trailing_stop": True, "stop_trigger": "last"},
        {"stop_loss": 0.02, "action": "band", "reward": "differential_sharpe"},
        {"action": "ladder", "take_profit": 0.01, "reward_drawdown": 0.1},
        {"action": "heads", "stop_loss": 0.03},
        {"margin_mode": "isolated", "stop_loss": 0.02},
        {"execution": "limit", "limit_offset_bps": 5.0},
        {"execution": "iceberg", "limit_offset_bps": 5.0, "iceberg_clip": 0.3},
        {"execution": "twap", "impact": {"kind": "exponential"}},
        {"action": "heads", "head_styles": ("market", "vwap", "iceberg"), "stop_loss": 0.03},
        {"impact": {"kind": "exponential"}, "stop_loss": 0.02},
        {"max_bars_held": 5, "rebalance_threshold": 0.1},
    ],
)
def test_stops_styles_and_memories_are_booked_as_in_the_env(
    make_tape: MakeTape, changes: dict[str, Any]
) -> None:
    tape = make_tape(bars=330, seed=2, wick=0.004, mark_basis=5e-4)
    happened = compare(Told(tape, settings(**changes)), 320, 2)
    assert happened["fills"] > 20


def test_several_contracts_share_the_wallet_as_in_the_env(make_portfolio: MakeTape) -> None:
    tape = make_portfolio((0, 0, 0), seed=5, bars=200, sigma=0.01)
    config = settings(stop_loss=0.02, action="band")
    happened = compare(Told(tape, config, RiskLimits(max_leverage=2.0)), 150, 7)
    assert happened["fills"] > 200
    assert happened["overlay"] > 0.0


def test_plain_python_books_the_same() -> None:
    """The kernel's own functions as Python, against an env that is plain Python too."""
    chosen = "envs_own_fills or several_contracts"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__)), "-k", chosen],
        capture_output=True, text=True, check=False, cwd=Path(__file__).resolve().parents[3],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_a_liquidation_ends_the_episode_as_in_the_env(make_tape: MakeTape) -> None:
    tape = make_tape(bars=60, seed=3, sigma=0.05)
    told = Told(tape, settings(max_exposure=20.0, leverage=25.0))
    is_terminated, bar = False, START
    while not is_terminated:
        _reward, is_terminated = told.step(np.array([1.0], np.float32), bar)
        bar += 1
    assert told.out.terminated[0]
    assert told.books.equity == pytest.approx(told.out.ledger[0, LEDGER["equity"]], abs=1e-6)
    assert told.books.account.ledger[LEDGER["liquidated"]] == 1.0


def test_a_fee_that_was_not_told_shows(make_tape: MakeTape) -> None:
    tape = make_tape(bars=30, seed=1)
    told = Told(tape, settings())
    told.books.book_fill = lambda fill: Books.book_fill(told.books, replace(fill, fee=0.0))  # type: ignore[method-assign]
    told.step(np.array([1.0], np.float32), START)
    assert told.books.equity - told.out.ledger[0, LEDGER["equity"]] > 1.0


def test_stops_are_wanted_as_soon_as_a_fill_is_booked(make_tape: MakeTape) -> None:
    tape = make_tape(bars=30, seed=1)
    books = Books(settings(stop_loss=0.02, take_profit=0.03), FREE)
    books.see(cut(tape, 10))
    books.open(truth(10_000.0))
    assert books.wanted_stops() == []
    symbol = tape.contracts[0].symbol
    books.book_fill(
        Fill(trade_id="1", contract=symbol, quantity=-0.1, price=30_000.0, fee=1.2, time_ms=0, client_id="x")
    )
    stop, target = books.wanted_stops()
    assert (stop.kind, stop.quantity, stop.trigger_price) == ("stop", 0.1, 30_600.0)
    assert (target.kind, target.trigger_price, target.watches) == ("take_profit", 29_100.0, "mark")


def test_books_begin_with_what_the_exchange_holds(make_tape: MakeTape) -> None:
    tape = make_tape(bars=30, seed=1)
    books = Books(settings(stop_loss=0.02), FREE)
    books.see(cut(tape, 10))
    symbol, mark = tape.contracts[0].symbol, float(tape.mark[9, 0, 3])
    held = Position(contract=symbol, quantity=0.5, entry_price=mark - 100.0, mark_price=mark)
    there = truth(9_000.0, {symbol: held})
    books.open(there)
    assert books.compare(there) == []
    assert books.equity == pytest.approx(9_050.0)
    assert float(books.account.positions[0, STOP_PRICE]) == pytest.approx(0.98 * (mark - 100.0), abs=0.1)


def test_a_difference_is_told_in_words(make_tape: MakeTape) -> None:
    tape = make_tape(bars=30, seed=1)
    books = Books(settings(), FREE)
    books.see(cut(tape, 10))
    books.open(truth(10_000.0))
    symbol = tape.contracts[0].symbol
    there = truth(
        10_000.001, {symbol: Position(contract=symbol, quantity=0.001, entry_price=1.0, mark_price=1.0)}
    )
    found = books.compare(there)
    assert len(found) == 2
    assert "10000.001" in found[0]
    assert symbol in found[1]


def test_a_settlement_that_is_told_a_moment_late_belongs_to_its_bar(make_tape: MakeTape) -> None:
    tape = make_tape(bars=30, seed=1)
    books = Books(settings(), FREE)
    books.see(cut(tape, 10))
    books.open(truth(10_000.0))
    books.keep_still()
    symbol, close_ms = tape.contracts[0].symbol, int(tape.open_time_ms[11])
    books.book_income(
        Income(income_id="1", kind="funding", amount=-7.0, contract=symbol, time_ms=close_ms + 2_000)
    )
    books.close_bar(cut(tape, 11))
    assert books.equity == 9_993.0
    assert books.account.ledger[LEDGER["funding"]] == -7.0


def test_a_deposit_is_no_profit(make_tape: MakeTape) -> None:
    tape = make_tape(bars=30, seed=1)
    books = Books(settings(), FREE)
    books.see(cut(tape, 10))
    books.open(truth(10_000.0))
    books.keep_still()
    books.book_income(
        Income(income_id="1", kind="transfer", amount=5_000.0, time_ms=int(tape.open_time_ms[10]))
    )
    reward, is_terminated = books.close_bar(cut(tape, 11))
    assert (reward, is_terminated) == (pytest.approx(0.0, abs=1e-12), False)
    assert books.equity == 15_000.0


def test_a_fee_in_another_currency_leaves_this_wallet_alone(make_tape: MakeTape) -> None:
    tape = make_tape(bars=30, seed=1)
    wallets = []
    for currency in ("USDT", "BNB"):
        books = Books(settings(), FREE)
        books.see(cut(tape, 10))
        books.open(truth(10_000.0))
        books.book_fill(
            Fill(
                trade_id="1", contract=tape.contracts[0].symbol, quantity=0.1, price=30_000.0, fee=1.2,
                fee_currency=currency, time_ms=0,
            )
        )  # fmt: skip
        wallets.append(books.wallet)
    assert wallets == pytest.approx([9_998.8, 10_000.0])


def test_books_that_were_saved_go_on_as_if_nothing_had_been(make_tape: MakeTape) -> None:
    tape = make_tape(bars=60, seed=4, wick=0.004)
    config = settings(stop_loss=0.02)
    told, again = Told(tape, config), Told(tape, config)
    rng = np.random.default_rng(0)
    for bar in range(START, START + 40):
        action = random_actions(config, 1, rng)
        told.step(action, bar)
        again.step(action, bar)
        saved = again.books.state_dict()
        again.books = Books(config, FREE)
        again.books.see(cut(tape, bar + 2))
        assert again.books.load_state(saved) == int(tape.open_time_ms[bar + 1]) + tape.bar_ms
        np.testing.assert_array_equal(again.books.account.wallet, told.books.account.wallet)
        np.testing.assert_array_equal(again.books.account.positions, told.books.account.positions)


@pytest.mark.parametrize("settled_every", [1, 40, 3_000])
def test_thousands_of_trades_at_an_exchange_that_rounds_are_no_drift(
    make_tape: MakeTape, settled_every: int
) -> None:
    """Its profits have 8 decimals, ours have all: by what each trade may lose the wallets may differ."""
    tape = make_tape(bars=60, seed=4)
    engine = Engine(Replay(tape, start_bar=50), EnvConfig(initial_wallet=100_000.0))
    config, rng = settings(initial_wallet=100_000.0), np.random.default_rng(4)
    books, naive = Books(config, FREE), Books(config, FREE, wallet_tolerance=0.0)
    for each in (books, naive):
        each.see(cut(tape, 50))
        each.open(truth(100_000.0))
    worst = 0.0
    for number in range(3_000):
        held = engine.books.position(0)
        is_buy = held <= 0.0 if abs(held) > 1.0 else bool(rng.integers(2))
        size = float(rng.integers(5, 300)) / 1_000.0
        engine.place(
            OrderRequest(
                asset=0, side="BUY" if is_buy else "SELL", kind="MARKET", quantity=size,
                client_id=f"o{number}",
            )
        )  # fmt: skip
        trade = engine.registry.trades[-1]
        fill = Fill(
            trade_id=str(number), contract=SYMBOL, quantity=trade.quantity if is_buy else -trade.quantity,
            price=trade.price, fee=trade.commission, time_ms=trade.time_ms,
        )  # fmt: skip
        books.book_fill(fill)
        naive.book_fill(fill)
        said = said_by(engine)
        worst = max(worst, abs(naive.wallet - said.wallet))
        if (number + 1) % settled_every == 0:
            assert books.compare(said) == []
            books.trust(said)
            assert books.wallet == said.wallet
    # ten times what was once allowed, whatever had been traded
    assert worst > 1e-7
    # and what no rounding explains is seen
    assert books.compare(replace(said_by(engine), wallet=books.wallet + 2e-8))
    assert naive.compare(replace(said_by(engine), wallet=naive.wallet + 4e-5))


def said_by(engine: Engine) -> AccountTruth:
    held = engine.books.position(0)
    position = Position(
        contract=SYMBOL, quantity=held, entry_price=engine.books.entry_price(0), mark_price=1.0
    )
    return truth(engine.books.wallet, {SYMBOL: position} if held else {})
