"""The same actions through the env and through the exchange's engine: the same money, to 1e-8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perpgym.data.align import align
from perpgym.data.bars import CLOSE
from perpgym.data.contract import Bracket, Contract, load_contract, shipped_contracts
from perpgym.data.features.build import build_tape
from perpgym.data.sources.freqtrade import read_freqtrade
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.account import QUANTITY, WALLET
from perpgym.envs.decision import limit_price, wanted_quantity
from perpgym.envs.exchange.bars import close_bar, open_bar
from perpgym.envs.exchange.books import Books
from perpgym.envs.exchange.engine import AlgoRequest, Engine, OrderRequest
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.market import Replay
from perpgym.envs.execution import round_to_tick
from perpgym.envs.rules import make_account_rules
from perpgym.envs.spaces import LEDGER

MakeTape = Callable[..., Tape]
FREE = RiskLimits(max_leverage=150.0, max_daily_loss=None)
START = 3
SYMBOL = "TEST/USDT:USDT"
# an exchange whose rules never stand in the way: what is compared is money
OPEN_RULES = Contract(
    symbol="TEST/USDT:USDT", tick_size=0.1, lot_size=0.001, min_quantity=0.001, min_notional=0.0,
    clearance_rate=0.0125,
    brackets=(
        Bracket(floor=0.0, cap=500_000.0, maintenance_margin_rate=0.004, cum=0.0, max_leverage=125.0),
        Bracket(
            floor=500_000.0, cap=float("inf"), maintenance_margin_rate=0.005, cum=500.0, max_leverage=100.0
        ),
    ),
)  # fmt: skip


class Client:
    """Trades on the engine as the env's account does, with stops and targets of its own."""

    def __init__(self, tape: Tape, config: EnvConfig, start: int = START) -> None:
        self.config, self.tape = config, tape
        # all digits of the env's arithmetic: what is compared is the arithmetic
        self.engine = Engine(Replay(tape, start_bar=start + 1), config, money_decimals=None)
        self.books: Books = self.engine.books
        self.count = 0
        self.entries = [0.0] * len(tape.contracts)

    def equity(self, bar: int) -> float:
        """quote, at the mark close of a bar."""
        profits = [
            self.books.position(a) * (self.tape.mark[bar, a, CLOSE] - self.books.entry_price(a))
            for a in range(len(self.tape.contracts))
        ]
        return float(self.books.wallet + sum(profits))

    def trade(self, targets: np.ndarray, bar: int) -> None:
        """Orders for exposures decided at the close of ``bar``, what closes first."""
        base, orders = self.equity(bar), []
        for asset, target in enumerate(targets):
            exposure = float(np.float32(target)) * self.config.max_exposure
            quantity = wanted_quantity(
                self.books.account.positions[asset], exposure, base, self.tape.mark[bar, asset, CLOSE],
                self.books.rules(asset),
            )  # fmt: skip
            if quantity != 0.0:
                orders.append((self.books.position(asset) * quantity >= 0.0, asset, float(quantity)))
        for _opens, asset, quantity in sorted(orders):
            self.count += 1
            self.market_order(asset, "BUY" if quantity > 0.0 else "SELL", abs(quantity))
            self.protect(asset)

    def market_order(self, asset: int, side: Any, quantity: float) -> None:
        held = self.books.position(asset)
        # what only closes says so: then it may be as small as it is
        closes = held * (1.0 if side == "BUY" else -1.0) < 0.0 and quantity <= abs(held)
        request = OrderRequest(
            asset=asset, side=side, kind="MARKET", quantity=quantity, client_id=f"o{self.count}",
            reduce_only=closes,
        )  # fmt: skip
        try:
            self.engine.place(request)
        except Rejected as refusal:
            # too small to open with: the env leaves it out, the exchange refuses it
            if refusal.code != -4164:
                raise

    def stop_order(self, asset: int, side: Any, kind: str, price: float) -> None:
        self.engine.place_algo(
            AlgoRequest(
                asset=asset, side=side, kind=kind, close_position=True, trigger_price=price,
                client_id=f"a{self.count}", working_type=self.working_type,
            )
        )  # fmt: skip

    def cancel_stops(self, asset: int) -> None:
        self.engine.cancel_all_algos(asset)

    @property
    def working_type(self) -> str:
        return "MARK_PRICE" if self.config.stop_trigger == "mark" else "CONTRACT_PRICE"

    def protect(self, asset: int) -> None:
        """A stop and a target for the whole position wherever its entry has moved."""
        entry, held = self.books.entry_price(asset), self.books.position(asset)
        if entry == self.entries[asset] or held == 0.0:
            return
        self.entries[asset] = entry
        self.cancel_stops(asset)
        side = 1.0 if held > 0.0 else -1.0
        stop, target = self.config.stop_loss, self.config.take_profit
        for kind, distance, sign in (("STOP_MARKET", stop, -1.0), ("TAKE_PROFIT_MARKET", target, 1.0)):
            if distance is not None:
                self.count += 1
                price = float(
                    round_to_tick(
                        entry * (1.0 + sign * side * distance), self.tape.contracts[asset].tick_size, -side
                    )
                )
                self.stop_order(asset, "SELL" if held > 0.0 else "BUY", kind, price)

    def close_bar(self) -> None:
        market = self.engine.market
        close_bar(self.books, market.close_ms)

    def open_bar(self) -> None:
        market = self.engine.market
        if market.move_on():
            self.engine.now_ms = market.open_ms
            open_bar(self.books, market.open_ms)


def compare(
    tape: Tape,
    config: EnvConfig,
    seed: int,
    bars: int,
    client: Client | None = None,
    start: int = START,
) -> dict[str, float]:
    """Step both side by side; returns what happened on the way."""
    env = PerpVecEnv(tape, n_paths=1, config=config, limits=FREE, start_bar=start)
    out = env.make_buffers()
    env.reset_into(out, seed=0)
    assert int(out.bar[0]) == start
    client, rng = client or Client(tape, config, start), np.random.default_rng(seed)
    happened = {"fills": 0.0, "liquidated": 0.0, "stopped": 0.0, "funding": 0.0}
    for bar in range(start, start + bars):
        targets = rng.uniform(-1.0, 1.0, len(tape.contracts)).astype(np.float32)
        targets[rng.random(targets.size) < 0.3] = 0.0
        client.trade(targets, bar)
        known = len(client.engine.registry.incomes)
        client.close_bar()
        env.step_into(targets[None], out)
        ledger = out.ledger[0]
        for name in happened:
            happened[name] += abs(float(ledger[LEDGER[name]]))
        assert client.equity(bar + 1) == pytest.approx(ledger[LEDGER["equity"]], abs=1e-8)
        funding = sum(i.amount for i in client.engine.registry.incomes[known:] if i.kind == "FUNDING_FEE")
        assert funding == pytest.approx(ledger[LEDGER["funding"]], abs=1e-8)
        if out.terminated[0] or out.truncated[0]:
            break
        state = env.state_dict()
        assert client.books.wallet == pytest.approx(state["wallets"][0, WALLET], abs=1e-8)
        held = [client.books.position(a) for a in range(len(tape.contracts))]
        assert held == pytest.approx(state["positions"][0, :, QUANTITY], abs=1e-12)
        client.open_bar()
    incomes = client.engine.registry.incomes
    assert config.initial_wallet + sum(i.amount for i in incomes) == pytest.approx(
        client.books.wallet, abs=1e-8
    )
    return happened


class RestingClient(Client):
    """Trades with post-only orders behind the last close, for one bar each, as ``execution=limit`` does."""

    def __init__(self, tape: Tape, config: EnvConfig) -> None:
        super().__init__(tape, config)
        self.rules = make_account_rules(config, FREE)
        self.refused = 0

    def market_order(self, asset: int, side: Any, quantity: float) -> None:
        signed = quantity if side == "BUY" else -quantity
        last = self.tape.last[self.engine.market.bar - 1, asset, CLOSE]
        price = float(limit_price(signed, last, self.books.rules(asset), self.rules))
        try:
            self.engine.place(
                OrderRequest(
                    asset=asset, side=side, kind="LIMIT", quantity=quantity, price=price,
                    time_in_force="GTX", client_id=f"o{self.count}",
                )
            )  # fmt: skip
        except Rejected as refusal:
            if refusal.code != -5022:
                raise
            self.refused += 1

    def close_bar(self) -> None:
        super().close_bar()
        for asset in range(len(self.tape.contracts)):
            self.engine.cancel_all(asset)


class WireClient(Client):
    """The same, through unmodified ccxt and the wire; the clock is stepped by hand on both ends."""

    def __init__(self, tape: Tape, config: EnvConfig, local: Any) -> None:
        super().__init__(tape, config)
        self.wire = local.client
        self.engine, self.books, self.venue = local.engine, local.engine.books, local.venue

    def equity(self, bar: int) -> float:
        """quote: the wallet and the position as the exchange tells them, at the mark close of its klines."""
        rows = self.wire.fetch_ohlcv(SYMBOL, "1h", limit=3, params={"price": "mark"})
        (close,) = [row[4] for row in rows if row[0] == self.tape.open_time_ms[bar]]
        wallet = float(self.wire.fetch_balance()["info"]["totalWalletBalance"])
        for position in self.wire.fetch_positions([SYMBOL]):
            held = float(position["info"]["positionAmt"])
            wallet += held * (close - position["entryPrice"])
        return float(wallet)

    def market_order(self, asset: int, side: Any, quantity: float) -> None:
        self.wire.create_order(SYMBOL, "market", side.lower(), quantity)

    def stop_order(self, asset: int, side: Any, kind: str, price: float) -> None:
        name = "stopLossPrice" if kind == "STOP_MARKET" else "takeProfitPrice"
        params = {name: price, "closePosition": True, "workingType": self.working_type}
        self.wire.create_order(SYMBOL, "market", side.lower(), None, None, params)

    def cancel_stops(self, asset: int) -> None:
        self.wire.cancel_all_orders(SYMBOL, {"trigger": True})

    def close_bar(self) -> None:
        super().close_bar()
        # the wire shows a bar that has closed once the next one is open
        super().open_bar()
        self.venue.clock.move_to(self.engine.now_ms)

    def open_bar(self) -> None:
        pass


def settings(**changes: Any) -> EnvConfig:
    plain: dict[str, Any] = {
        "initial_wallet": 10_000.0, "action": "target", "rebalance_threshold": 0.0, "max_drawdown": 1.0,
        "episode_bars": 10_000, "window_bars": 1,
    }  # fmt: skip
    return EnvConfig(**plain | changes)


def test_market_orders_and_funding_book_as_in_the_env(make_tape: MakeTape) -> None:
    tape = make_tape(bars=300, seed=1, rules=OPEN_RULES, mark_basis=3e-4)
    happened = compare(tape, settings(), 1, 250)
    assert happened["fills"] > 200
    assert happened["funding"] > 0.0


@pytest.mark.parametrize("trigger", ["mark", "last"])
def test_stops_and_targets_at_the_exchange_act_as_the_envs_own(make_tape: MakeTape, trigger: Any) -> None:
    tape = make_tape(bars=400, seed=2, rules=OPEN_RULES, wick=0.004, mark_basis=5e-4)
    happened = compare(tape, settings(stop_loss=0.012, take_profit=0.015, stop_trigger=trigger), 2, 300)
    assert happened["stopped"] > 10


@pytest.mark.parametrize("mode", ["cross", "isolated"])
@pytest.mark.parametrize("liquidation", ["full", "brackets"])
def test_liquidations_take_the_same(make_tape: MakeTape, mode: Any, liquidation: Any) -> None:
    total = 0.0
    for seed in range(6):
        tape = make_tape(bars=120, seed=seed, sigma=0.02, wick=0.12, rules=OPEN_RULES)
        config = settings(
            initial_wallet=100_000.0, leverage=25.0, max_exposure=12.0, margin_mode=mode,
            liquidation=liquidation, half_spread_bps=0.5, impact_coefficient=0.1,
        )  # fmt: skip
        total += compare(tape, config, seed, 100)["liquidated"]
    assert total > 3


def test_several_contracts_share_one_margin_as_in_the_env(make_portfolio: MakeTape) -> None:
    tape = make_portfolio((0, 0, 0), seed=5, bars=200, rules=OPEN_RULES, sigma=0.01)
    happened = compare(tape, settings(leverage=50.0, max_exposure=6.0, stop_loss=0.02), 7, 150)
    assert happened["fills"] > 200


@pytest.mark.parametrize("offset_bps", [5.0, 0.0])
def test_resting_orders_fill_as_the_envs(make_tape: MakeTape, offset_bps: float) -> None:
    # the next bar opens a little off the close before, so that some orders would take
    tape = make_tape(bars=320, seed=9, rules=OPEN_RULES, wick=0.004, mark_basis=2e-4, volume=60.0)
    jumps = 1.0 + 2e-4 * np.random.default_rng(1).standard_normal(len(tape))
    last = tape.last * jumps[:, None, None]
    tape = replace(tape, last=last, mark=last * 1.0002, _cache={})
    config = settings(execution="limit", limit_offset_bps=offset_bps, half_spread_bps=0.5)
    client = RestingClient(tape, config)
    happened = compare(tape, config, 3, 300, client)
    assert happened["fills"] > 100
    assert all(trade.is_maker for trade in client.engine.registry.trades)
    assert client.refused > 0


@pytest.mark.parametrize("mode", ["cross", "isolated"])
def test_resting_orders_and_liquidations_come_in_the_same_order(make_tape: MakeTape, mode: Any) -> None:
    total = 0.0
    for seed in range(8):
        tape = make_tape(bars=120, seed=seed, sigma=0.02, wick=0.06, rules=OPEN_RULES)
        config = settings(
            execution="limit", limit_offset_bps=50.0, initial_wallet=100_000.0, leverage=25.0,
            max_exposure=12.0, margin_mode=mode, half_spread_bps=0.5, impact_coefficient=0.1,
        )  # fmt: skip
        total += compare(tape, config, seed, 100, RestingClient(tape, config))["liquidated"]
    assert total > 2


def test_a_thin_market_cuts_the_same_part_of_an_order(make_tape: MakeTape) -> None:
    tape = make_tape(bars=80, seed=3, rules=OPEN_RULES, volume=2.0)
    happened = compare(tape, settings(), 3, 60)
    assert happened["fills"] > 40


def test_an_unpaid_fee_would_show(make_tape: MakeTape) -> None:
    tape = make_tape(bars=60, seed=1, rules=OPEN_RULES)
    env = PerpVecEnv(tape, n_paths=1, config=settings(), limits=FREE, start_bar=START)
    out = env.make_buffers()
    env.reset_into(out, seed=0)
    client = Client(tape, settings(taker_rate=0.0))
    client.trade(np.array([1.0]), START)
    client.close_bar()
    env.step_into(np.array([[1.0]], np.float32), out)
    assert abs(client.equity(START + 1) - out.ledger[0, LEDGER["equity"]]) > 1.0


def test_trading_through_ccxt_and_the_wire_gives_the_same_money(
    make_tape: MakeTape, local: Callable[..., Any]
) -> None:
    tape = make_tape(bars=100, seed=8, rules=OPEN_RULES, wick=0.004, mark_basis=5e-4)
    config = settings(stop_loss=0.012, take_profit=0.015)
    client = WireClient(tape, config, local(tape=tape, start_bar=START + 1, exact_config=config))
    happened = compare(tape, config, 2, 80, client)
    assert happened["fills"] > 60
    assert happened["stopped"] > 2
    assert happened["funding"] > 0.0


def real_tape(shared_data: Path, *symbols: str) -> Tape:
    """Hourly bars with the exchange's funding, of one contract its mark too; features move no money."""
    bars = []
    for symbol in symbols:
        raw = read_freqtrade(shared_data / "freqtrade", symbol, "1h")
        # of some contracts the files have no mark, and a gap in another year
        mark = "require" if len(symbols) == 1 else "last"
        bars.append(align(raw, load_contract(symbol), mark=mark, repair=["fill_flat"]).bars)
    return build_tape(bars, features=(), risk=(), source="freqtrade")


def test_seven_real_contracts_on_one_margin_give_the_same_money(shared_data: Path) -> None:
    tape = real_tape(shared_data, *shipped_contracts())
    config = settings(
        initial_wallet=1e6, leverage=20.0, max_exposure=1.0, stop_loss=0.03, episode_bars=100_000
    )
    happened = compare(tape, config, 6, 200, start=tape.bar_at("2022-05-05"))
    assert len(tape.contracts) == 7
    assert happened["fills"] > 900
    assert happened["stopped"] > 10


def test_a_thousand_bars_of_real_bitcoin_give_the_same_money(shared_data: Path) -> None:
    """The months of 2022 in which the market broke; mark and last differ as they did."""
    tape = real_tape(shared_data, "BTC/USDT:USDT")
    config = settings(
        initial_wallet=100_000.0, leverage=10.0, max_exposure=5.0, stop_loss=0.02, take_profit=0.03,
        episode_bars=100_000,
    )  # fmt: skip
    happened = compare(tape, config, 4, 1_000, start=tape.bar_at("2022-05-01"))
    assert happened["fills"] > 900
    assert happened["stopped"] > 20
    assert happened["funding"] > 100.0
