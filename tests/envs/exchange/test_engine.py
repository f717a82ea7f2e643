"""The engine by itself, on bars that can be checked by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from perpgym.data.bars import Bars
from perpgym.data.contract import Contract
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.account import WALLET
from perpgym.envs.exchange.api import ENDPOINTS, Params
from perpgym.envs.exchange.clock import Clock
from perpgym.envs.exchange.engine import AlgoRequest, Engine, OrderRequest
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.margins import available, equity
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.server import ROOMS
from perpgym.envs.exchange.venue import Venue
from perpgym.envs.finer import Finer
from perpgym.envs.spaces import LEDGER

MakeTape = Callable[..., Tape]


def order(side: Any, quantity: float, price: float = 0.0, **more: Any) -> OrderRequest:
    kind = "LIMIT" if price else "MARKET"
    name = f"{side}-{quantity}-{price}-{sorted(more.items())}"[:36]
    fields = {"asset": 0, "side": side, "kind": kind, "quantity": quantity, "price": price, "client_id": name}
    return OrderRequest(**fields | more)


def conditional(side: Any, kind: str, trigger: float, **more: Any) -> AlgoRequest:
    name = f"{kind}-{trigger}"
    return AlgoRequest(asset=0, side=side, kind=kind, trigger_price=trigger, client_id=name, **more)


def step(engine: Engine, bars: int = 1) -> None:
    for _bar in range(bars):
        engine.advance(engine.next_ms)


def trades(engine: Engine) -> list[tuple[str, float, float]]:
    return [(t.side, t.quantity, t.price) for t in engine.registry.trades]


def test_an_entry_stop_buys_where_the_price_passes_it(engine_on: Callable[..., Engine]) -> None:
    engine = engine_on((100, 100, 100, 100), (100, 106, 99, 104), (104, 104, 104, 104))
    algo = engine.place_algo(conditional("BUY", "STOP_MARKET", 105.0, quantity=1.0))
    step(engine)
    assert algo.is_open
    step(engine)
    assert (algo.status, trades(engine)) == ("FINISHED", [("BUY", 1.0, 105.0)])
    assert engine.books.position(0) == 1.0


def test_a_stop_that_the_bar_opens_beyond_fills_at_the_open(engine_on: Callable[..., Engine]) -> None:
    engine = engine_on((100, 100, 100, 100), (90, 91, 89, 90), (90, 90, 90, 90))
    engine.place(order("BUY", 1.0))
    engine.place_algo(conditional("SELL", "STOP_MARKET", 95.0, close_position=True))
    step(engine, 2)
    assert trades(engine) == [("BUY", 1.0, 100.0), ("SELL", 1.0, 90.0)]


def test_a_stop_for_a_part_sells_that_part(engine_on: Callable[..., Engine]) -> None:
    engine = engine_on((100, 100, 94, 96), (96, 96, 96, 96))
    engine.place(order("BUY", 1.0))
    engine.place_algo(conditional("SELL", "STOP_MARKET", 95.0, quantity=0.4, reduce_only=True))
    step(engine)
    assert trades(engine)[1:] == [("SELL", 0.4, 95.0)]
    assert engine.books.position(0) == 0.6


def test_of_two_stops_the_nearer_one_acts_and_the_other_waits(engine_on: Callable[..., Engine]) -> None:
    engine = engine_on((100, 100, 90, 96), (96, 96, 96, 96))
    engine.place(order("BUY", 1.0))
    far = engine.place_algo(conditional("SELL", "STOP_MARKET", 92.0, quantity=1.0, reduce_only=True))
    near = engine.place_algo(conditional("SELL", "STOP_MARKET", 95.0, close_position=True))
    step(engine)
    assert trades(engine)[1:] == [("SELL", 1.0, 95.0)]
    # the other was touched too, and found nothing to reduce
    assert (near.status, far.status) == ("FINISHED", "REJECTED")
    assert far.end_reason == "ReduceOnly Order is rejected."


def test_a_stop_that_waits_for_its_entry_protects_it_in_the_same_bar(
    engine_on: Callable[..., Engine],
) -> None:
    engine = engine_on((100, 100, 94, 96), (96, 96, 96, 96))
    stop = engine.place_algo(conditional("SELL", "STOP_MARKET", 95.0, close_position=True))
    engine.place(order("BUY", 1.0, 98.0))
    step(engine)
    assert trades(engine) == [("BUY", 1.0, 98.0), ("SELL", 1.0, 95.0)]
    assert stop.status == "FINISHED"


def test_a_stop_on_the_mark_ignores_the_last_price(
    engine_on: Callable[..., Engine],
) -> None:
    engine = engine_on((100, 100, 90, 99), (99, 99, 99, 99))
    market = engine.market
    market.inside.mark[2, 0] = (100, 100, 97, 99)
    engine = Engine(market, engine.books.config)
    engine.place(order("BUY", 1.0))
    on_mark = engine.place_algo(
        conditional("SELL", "STOP_MARKET", 95.0, close_position=True, working_type="MARK_PRICE")
    )
    step(engine)
    assert on_mark.is_open
    assert engine.books.position(0) == 1.0


def test_a_stop_limit_fills_at_once_where_its_limit_admits_and_rests_where_not(
    engine_on: Callable[..., Engine],
) -> None:
    bars = ((100, 100, 94, 94), (94, 94.5, 93, 94), (94, 97, 94, 96), (96, 96, 96, 96))
    for limit, expected in ((94.0, [("SELL", 1.0, 95.0)]), (96.0, [("SELL", 1.0, 96.0)])):
        engine = engine_on(*bars)
        engine.place(order("BUY", 1.0))
        engine.place_algo(conditional("SELL", "STOP", 95.0, quantity=1.0, price=limit, reduce_only=True))
        step(engine, 3)
        assert trades(engine)[1:] == expected


def test_a_trigger_that_is_passed_already_is_refused(engine_on: Callable[..., Engine]) -> None:
    engine = engine_on((100, 100, 100, 100), (100, 100, 100, 100))
    for side, kind, trigger in (
        ("SELL", "STOP_MARKET", 101.0), ("BUY", "STOP_MARKET", 99.0), ("SELL", "TAKE_PROFIT_MARKET", 99.0),
        ("BUY", "TAKE_PROFIT_MARKET", 101.0),
    ):  # fmt: skip
        with pytest.raises(Rejected, match="-2021"):
            engine.place_algo(conditional(side, kind, trigger, quantity=1.0))


def test_reduce_only_never_turns_a_position(engine_on: Callable[..., Engine]) -> None:
    engine = engine_on((100, 100, 100, 100), (100, 104, 100, 101), (101, 101, 101, 101))
    engine.place(order("BUY", 1.0))
    resting = engine.place(order("SELL", 1.0, 102.0, reduce_only=True))
    with pytest.raises(Rejected, match="-4118"):
        engine.place(order("SELL", 0.5, 103.0, reduce_only=True))
    engine.cancel(0, resting.order_id, None)
    larger = engine.place(order("SELL", 3.0, reduce_only=True))
    assert (larger.executed, larger.status, engine.books.position(0)) == (1.0, "EXPIRED", 0.0)
    with pytest.raises(Rejected, match="-2022"):
        engine.place(order("SELL", 1.0, reduce_only=True))


def test_what_has_nothing_to_reduce_leaves_the_book_at_once(engine_on: Callable[..., Engine]) -> None:
    engine = engine_on((100, 100, 100, 100), (100, 100, 100, 100))
    engine.place(order("BUY", 1.0))
    resting = engine.place(order("SELL", 1.0, 102.0, reduce_only=True))
    engine.place(order("SELL", 1.0))
    assert (resting.status, resting.end_reason) == ("EXPIRED", "nothing to reduce")


def test_a_crossing_limit_takes_what_its_price_admits(engine_on: Callable[..., Engine]) -> None:
    settings = {"half_spread_bps": 1.0, "impact_coefficient": 1.0, "initial_wallet": 1e6}
    still = ((100.0, 100.0, 100.0, 100.0),) * 3
    whole = engine_on(*still, volume=1_000.0, **settings)
    whole.market.tape.sigma_per_bar[:] = 0.01
    engine = Engine(whole.market, whole.books.config)
    with pytest.raises(Rejected, match="-5022"):
        engine.place(order("BUY", 50.0, 100.1, time_in_force="GTX"))
    with pytest.raises(Rejected, match="-5021"):
        engine.place(order("BUY", 50.0, 100.1, time_in_force="FOK"))
    taken = engine.place(order("BUY", 50.0, 100.1, time_in_force="IOC"))
    # touch 100.1 after rounding: anything more moves the price beyond it
    assert taken.status == "EXPIRED"
    assert taken.executed < 1.0
    part = engine.place(order("BUY", 90.0, 100.2, time_in_force="GTC"))
    assert part.status == "PARTIALLY_FILLED"
    assert part.last_price <= 100.2


def test_many_small_orders_take_no_more_of_a_bar_than_one(engine_on: Callable[..., Engine]) -> None:
    still = ((100.0, 100.0, 100.0, 100.0),) * 3
    engine = engine_on(*still, volume=100.0)
    done = [engine.place(order("BUY", 3.0, client_id=f"part-{n}")).executed for n in range(5)]
    assert done == [3.0, 3.0, 3.0, 1.0, 0.0]
    step(engine)
    assert engine.place(order("BUY", 3.0)).executed == 3.0


def test_a_position_is_the_sum_of_its_trades_and_the_wallet_that_of_its_income(
    make_portfolio: MakeTape, plain_rules: Contract
) -> None:
    """Random orders of every kind; what is true of an account at any moment is true here."""
    tape = make_portfolio((0, 0), seed=3, bars=160, sigma=0.015, wick=0.03, rules=plain_rules)
    config = EnvConfig(initial_wallet=50_000.0, leverage=(20.0, 10.0), margin_mode=("cross", "isolated"))
    engine, rng = Engine(Replay(tape, start_bar=2), config), np.random.default_rng(5)
    books, refused, number = engine.books, 0, 0
    for _bar in range(150):
        for _order in range(int(rng.integers(0, 4))):
            number += 1
            asset, side = int(rng.integers(2)), "BUY" if rng.random() < 0.5 else "SELL"
            last = engine.market.last_price(asset)
            price = round(last * float(rng.uniform(0.98, 1.02)), 1)
            size = round(float(rng.exponential(8_000.0)) / last + 0.001, 3)
            is_reduce = bool(rng.random() < 0.2)
            common: dict[str, Any] = {"asset": asset, "side": side, "client_id": f"id-{number}"}
            try:
                kind = rng.integers(4)
                if kind == 0:
                    engine.place(OrderRequest(kind="MARKET", quantity=size, reduce_only=is_reduce, **common))
                elif kind == 1:
                    engine.place(
                        OrderRequest(
                            kind="LIMIT", quantity=size, price=price, reduce_only=is_reduce,
                            time_in_force=str(rng.choice(["GTC", "IOC", "GTX", "FOK"])), **common,
                        )
                    )  # fmt: skip
                else:
                    name = "STOP" if kind == 2 else "TAKE_PROFIT"
                    at_market, closes = bool(rng.random() < 0.7), bool(rng.random() < 0.4)
                    engine.place_algo(
                        AlgoRequest(
                            kind=f"{name}_MARKET" if at_market or closes else name, trigger_price=price,
                            quantity=0.0 if closes else size, price=0.0 if at_market or closes else price,
                            close_position=closes, reduce_only=is_reduce and not closes,
                            working_type=str(rng.choice(["MARK_PRICE", "CONTRACT_PRICE"])), **common,
                        )
                    )  # fmt: skip
            except Rejected:
                refused += 1
        step(engine)
        registry = engine.registry
        for asset in range(2):
            signed = [
                t.quantity * (1.0 if t.side == "BUY" else -1.0) for t in registry.trades if t.asset == asset
            ]
            assert sum(signed) == pytest.approx(books.position(asset), abs=1e-9)
        income = sum(i.amount for i in registry.incomes)
        assert config.initial_wallet + income == pytest.approx(books.wallet, abs=1e-8)
        assert books.wallet >= -1e-9
        assert equity(books) >= -1e-9
        assert all(o.status in ("NEW", "PARTIALLY_FILLED") for o in registry.open_orders())
        for one in registry.orders.values():
            mine = [t for t in registry.trades if t.order_id == one.order_id]
            assert sum(t.quantity for t in mine) == pytest.approx(one.executed, abs=1e-9)
            assert one.executed <= one.quantity
            if one.kind == "LIMIT" and one.original_kind != "LIQUIDATION":
                beyond = [t.price > one.price if t.side == "BUY" else t.price < one.price for t in mine]
                assert not any(beyond)
        assert np.isfinite(available(books))
    kinds = {o.original_kind for o in engine.registry.orders.values()}
    assert {"MARKET", "LIMIT", "STOP_MARKET", "TAKE_PROFIT_MARKET"} <= kinds
    assert refused > 20
    assert len(engine.registry.trades) > 100


def public_answers(tape: Tape, bars: int) -> list[str]:
    """Everything that anyone may ask for after so many bars."""
    assert ROOMS
    engine = Engine(Replay(tape, start_bar=20), EnvConfig(initial_wallet=10_000.0))
    venue = Venue(engine=engine, clock=Clock(engine.now_ms))
    for _bar in range(bars):
        venue.clock.move_to(engine.next_ms)
        venue.pass_time()
    params = {"symbol": "TESTUSDT", "pair": "TESTUSDT", "interval": "1h", "limit": "100"}
    return [
        f"{path} {json.dumps(found.handle(venue, Params(dict(params))))}"
        for (_method, path), found in sorted(ENDPOINTS.items())
        if found.security == "none"
    ]


def test_nothing_that_is_shown_knows_more_than_the_moment(make_tape: MakeTape) -> None:
    tape = make_tape(bars=60, seed=4)
    other = make_tape(bars=60, seed=5)
    now = 25
    last, mark, volume = tape.last.copy(), tape.mark.copy(), tape.volume.copy()
    # of the open bar the open is known
    last[now + 1 :], mark[now + 1 :], volume[now:] = other.last[now + 1 :], other.mark[now + 1 :], 77.0
    last[now, 0, 1:] = last[now, 0, 0] * np.array([1.05, 0.95, 1.01])
    mark[now, 0, 1:] = mark[now, 0, 0] * np.array([1.05, 0.95, 1.01])
    rates = tape.stamp_rate.copy()
    rates[tape.stamp_time_ms > tape.open_time_ms[now]] = 0.01
    sigma = tape.sigma_per_bar.copy()
    sigma[now:] = 0.5
    changed = replace(
        tape, last=last, mark=mark, volume=volume, stamp_rate=rates, sigma_per_bar=sigma, _cache={}
    )
    before, after = public_answers(tape, now - 20), public_answers(changed, now - 20)
    assert before == after
    assert len(before) > 15
    # and one bar later all of it shows
    assert public_answers(tape, now - 19) != public_answers(changed, now - 19)


def test_finer_bars_give_the_envs_money_too(make_tape: MakeTape, plain_rules: Contract) -> None:
    quarters = make_tape(bars=400, seed=6, rules=plain_rules, bar_ms=900_000, sigma=0.004)
    hours = quarters.last[:, 0].reshape(-1, 4, 4)
    last = np.stack([hours[:, 0, 0], hours[:, :, 1].max(1), hours[:, :, 2].min(1), hours[:, 3, 3]], -1)
    tape = make_tape(bars=100, seed=6, rules=plain_rules, volume=20_000.0)
    tape = replace(tape, last=last[:, None], mark=last[:, None].copy(), _cache={})
    bars = Bars(
        contract=plain_rules, bar_ms=900_000, open_time_ms=quarters.open_time_ms, last=quarters.last[:, 0],
        mark=quarters.last[:, 0], volume=quarters.volume[:, 0], stamp_time_ms=np.empty(0, np.int64),
        stamp_rate=np.empty(0),
    )  # fmt: skip
    config = EnvConfig(
        initial_wallet=10_000.0, action="target", rebalance_threshold=0.0, max_drawdown=1.0, window_bars=1,
    )  # fmt: skip
    limits = RiskLimits(max_leverage=150.0, max_daily_loss=None)
    env = PerpVecEnv(tape, n_paths=1, config=config, limits=limits, start_bar=3, finer=bars)
    out = env.make_buffers()
    env.reset_into(out, seed=0)
    engine = Engine(Replay(tape, Finer.of(tape, bars), start_bar=4), config)
    rng = np.random.default_rng(0)
    for bar in range(3, 90):
        target = np.float32(rng.uniform(-1.0, 1.0))
        held, close = engine.books.position(0), tape.mark[bar, 0, 3]
        worth = engine.books.wallet + held * (close - engine.books.entry_price(0))
        delta = float(target) * config.max_exposure * worth / close - held
        size = float(np.floor(abs(delta) * 1_000.0 + 1e-6) / 1_000.0)
        if size:
            engine.place(order("BUY" if delta > 0.0 else "SELL", size, client_id=f"id-{bar}"))
        env.step_into(np.array([[target]], np.float32), out)
        assert engine.next_ms == tape.open_time_ms[bar + 1] + 900_000
        step(engine, 4)
        assert engine.books.wallet == pytest.approx(env.state_dict()["wallets"][0, WALLET], abs=1e-8)
    assert out.ledger[0, LEDGER["fills"]] >= 0.0
    assert len(engine.registry.trades) > 70


def test_the_same_story_twice_is_the_same_to_the_last_bit(engine_on: Callable[..., Engine]) -> None:
    def story() -> list[Any]:
        engine = engine_on((100, 101, 99, 100), (100, 103, 98, 102), (102, 104, 97, 98), volume=1_000.0)
        engine.place(order("BUY", 5.0))
        engine.place(order("SELL", 2.0, 102.5))
        engine.place_algo(conditional("SELL", "STOP_MARKET", 98.5, close_position=True))
        step(engine, 2)
        return [*engine.registry.trades, *engine.registry.incomes, *engine.registry.orders.values()]

    assert story() == story()


@pytest.mark.parametrize("margin_mode", ["cross", "isolated"])
def test_money_moves_in_whole_units_of_eight_decimals(make_tape: MakeTape, margin_mode: Any) -> None:
    """Every row is rounded as the real exchange rounds it, and the wallet is the sum of its rows."""
    tape = make_tape(bars=40, seed=3)
    config = EnvConfig(initial_wallet=100_000.0, margin_mode=margin_mode)
    rounded, whole = (Engine(Replay(tape, start_bar=2), config, decimals) for decimals in (8, None))
    for engine in (rounded, whole):
        rng = np.random.default_rng(3)
        for number in range(60):
            side = "BUY" if engine.books.position(0) <= 0.0 or number % 3 else "SELL"
            engine.place(order(side, float(rng.integers(5, 90)) / 1_000.0, client_id=f"o{number}"))
            if number % 4 == 0:
                step(engine)
    kinds = {income.kind for income in rounded.registry.incomes}
    assert kinds == {"COMMISSION", "REALIZED_PNL", "FUNDING_FEE"}
    amounts = [Decimal(repr(income.amount)) for income in rounded.registry.incomes]
    assert all(amount == round(amount, 8) for amount in amounts)
    assert Decimal(repr(rounded.books.wallet)) == 100_000 + sum(amounts)
    for trade in rounded.registry.trades:
        assert (trade.commission, trade.realised) == (round(trade.commission, 8), round(trade.realised, 8))
    # the same rows with all their digits are half a unit away at most
    assert len(whole.registry.incomes) == len(amounts)
    off = rounded.books.wallet - whole.books.wallet
    assert 0.0 < abs(off) <= 0.5e-8 * len(amounts)
