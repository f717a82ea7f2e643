"""Real crashes: when leveraged accounts fell, at what price and with what left, against sums made here.

2020-03-12 (BTC), 2021-05-19 (BTC, ETH, XRP), 2022-11-08 (BTC, SOL). The expected numbers share no code with
the env: bars, settlements and leverage tiers are read from their files by pandas and json alone, and the
liquidation price is the closed form of Binance's "How to Calculate Liquidation Price".
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest

from perpgym.data.align import align
from perpgym.data.clock import parse_start_ms
from perpgym.data.contract import load_contract
from perpgym.data.features import default_names
from perpgym.data.features.build import build_tape
from perpgym.data.sources.freqtrade import read_freqtrade
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpEnv, PerpVecEnv, RiskLimits
from perpgym.envs.spaces import LEDGER

DAY_MS = 86_400_000
WALLET, TAKER = 10_000.0, 4e-4
CRASHES = {
    "2020-03-12": ("BTC",),
    "2021-05-19": ("BTC", "ETH", "XRP"),
    "2022-11-08": ("BTC", "SOL"),
}
DAYS = [(coin, day) for day, coins in CRASHES.items() for coin in coins]
Mode = Literal["cross", "isolated"]


@dataclass(frozen=True, kw_only=True)
class Market:
    """One contract around one crash: the tape, and the same numbers straight from the files.

    ``last`` and ``mark`` are indexed by opening time, ``funding`` by settlement time; SOL has no mark series.
    """

    tape: Tape
    last: pd.DataFrame
    mark: pd.DataFrame
    funding: pd.Series
    tiers: list[dict[str, Any]]

    def bar(self, time: str) -> int:
        """Index of the bar that opens then."""
        index = self.tape.bar_at(time)
        assert int(self.tape.open_time_ms[index]) == parse_start_ms(time)
        return index

    def open_time(self, bar: int) -> pd.Timestamp:
        return pd.Timestamp(int(self.tape.open_time_ms[bar]), unit="ms", tz="UTC")


@pytest.fixture(scope="module")
def markets(shared_data: Path) -> Callable[[str, str], Market]:
    """Thirty days before a crash to ten after it; read once."""
    kept: dict[tuple[str, str], Market] = {}
    folder = shared_data / "freqtrade" / "binance" / "futures"
    tiers = json.loads((shared_data / "meta" / "binance_leverage_tiers.json").read_text("utf-8"))

    def read(coin: str, kind: str) -> pd.DataFrame:
        return pd.read_feather(folder / f"{coin}_USDT_USDT-{kind}.feather").set_index("date")

    def build(coin: str, day: str) -> Market:
        symbol = f"{coin}/USDT:USDT"
        midnight = parse_start_ms(day)
        raw = read_freqtrade(folder, symbol, "1h").between(midnight - 30 * DAY_MS, midnight + 10 * DAY_MS)
        # the shipped 1.25 % takes all that maintenance margin leaves; less leaves a wallet to compare
        rules = replace(load_contract(symbol), clearance_rate=0.001)
        bars = align(raw, rules, mark="last" if coin == "SOL" else "require").bars
        columns = {"features": default_names("market")[:1], "risk": default_names("risk")[:1]}
        last = read(coin, "1h-futures")
        return Market(
            tape=build_tape(bars, source="freqtrade", **columns),
            last=last,
            mark=last if coin == "SOL" else read(coin, "1h-mark"),
            funding=read(coin, "8h-funding_rate")["open"],
            tiers=tiers[symbol],
        )

    def get(coin: str, day: str) -> Market:
        if (coin, day) not in kept:
            kept[coin, day] = build(coin, day)
        return kept[coin, day]

    return get


# --- what should have happened ---


def liquidation_price(margin: float, quantity: float, entry: float, tiers: list[dict[str, Any]]) -> float:
    """(margin + cum − q · EP) / (|q| · MMR − q) with the tier that holds the notional at that price."""
    for tier in tiers:
        cum, rate = tier["info"]["cum"], tier["maintenanceMarginRate"]
        price = (margin + cum - quantity * entry) / (abs(quantity) * rate - quantity)
        if tier["minNotional"] <= abs(quantity) * price < tier["maxNotional"]:
            return float(price)
    return -math.inf if quantity > 0 else math.inf


@dataclass(frozen=True, kw_only=True)
class Fate:
    """When the mark first reached the liquidation price, what it was then, and the account afterwards."""

    time: pd.Timestamp | None
    price: float
    funding: float
    equity: float


def fate_of(market: Market, start: str, until: str, exposure: float, leverage: float, mode: Mode) -> Fate:
    """An account that opens once, in the bar after ``start``, and then does nothing."""
    contract = market.tape.contracts[0]
    decided = pd.Timestamp(start, tz="UTC")
    whole = exposure * WALLET / market.mark.loc[decided, "close"] / contract.lot_size
    quantity = math.trunc(whole) * contract.lot_size
    side = math.copysign(1.0, quantity)
    times = pd.date_range(decided + pd.Timedelta("1h"), pd.Timestamp(until, tz="UTC"), freq="1h")
    # old prices have finer ticks than today's contract: rounded against the order
    ticks = market.last.loc[times[0], "open"] / contract.tick_size
    entry = side * math.ceil(side * ticks - 1e-6) * contract.tick_size
    wallet = WALLET - abs(quantity) * entry * TAKER
    margin = abs(quantity) * entry / leverage if mode == "isolated" else wallet
    funding = 0.0
    for time in times:
        mark = market.mark.loc[time]
        price = liquidation_price(margin, quantity, entry, market.tiers)
        worst = mark["low"] if side > 0 else mark["high"]
        if side * worst <= side * price:
            # a bar that opens beyond it is filled at its open, at worst at the bankruptcy price
            filled = side * min(side * price, side * mark["open"])
            filled = side * max(side * filled, side * (entry - margin / quantity))
            left = margin + quantity * (filled - entry)
            left -= min(contract.clearance_rate * abs(quantity) * filled, left)
            return Fate(time=time, price=filled, funding=funding, equity=wallet - margin + left)
        close = time + pd.Timedelta("1h")
        received = -quantity * mark["close"] * float(market.funding.get(close, 0.0))
        wallet, margin, funding = wallet + received, margin + received, funding + received
    equity = wallet + quantity * (market.mark.loc[times[-1], "close"] - entry)
    return Fate(time=None, price=math.nan, funding=funding, equity=equity)


# --- what the env says ---


def settings(**changes: Any) -> EnvConfig:
    """Taker fees and nothing else; no limit but the exchange's."""
    plain: dict[str, Any] = {
        "initial_wallet": WALLET,
        # a power of two, so that float32 holds the exposures; far above them, so that a wide band holds
        "max_exposure": 2.0 ** math.floor(math.log2(changes["leverage"])),
        "half_spread_bps": 0.0,
        "impact_coefficient": 0.0,
        "taker_rate": TAKER,
        "rebalance_threshold": 0.0,
        "max_drawdown": 1.0,
        "window_bars": 1,
        "episode_bars": 10**6,
    }
    return EnvConfig(**(plain | changes))


FREE = RiskLimits(max_leverage=150.0, max_daily_loss=None)


def live(market: Market, start: str, until: str, exposure: float, leverage: float, mode: Mode) -> Fate:
    """The same account in ``PerpEnv``."""
    config = settings(leverage=leverage, margin_mode=mode)
    first = market.bar(start)
    env = PerpEnv(market.tape, config=config, limits=FREE, start_bar=first, end_bar=market.bar(until) + 1)
    env.reset(seed=0)
    hold = np.array([0.0, 1.0], np.float32)
    action = np.array([exposure / config.max_exposure, -1.0], np.float32)
    funding, is_over, bar, position = 0.0, False, first, 0.0
    while not is_over:
        _obs, _reward, terminated, truncated, info = env.step(action)
        action, is_over, bar = hold, terminated or truncated, bar + 1
        funding += info["funding"]
        if info["liquidated"]:
            assert terminated == (mode == "cross")
            # only the order pays a taker fee
            opened = info["fees"] / TAKER
            size = opened / info["fill_price"] if opened else abs(position)
            price = (info["traded_notional"] - opened) / size
            return Fate(time=market.open_time(bar), price=price, funding=funding, equity=info["equity"])
        position = info["position"]
    return Fate(time=None, price=math.nan, funding=funding, equity=info["equity"])


@pytest.mark.parametrize("mode", ["cross", "isolated"])
@pytest.mark.parametrize(("coin", "day"), DAYS)
def test_a_leveraged_long_falls_in_the_bar_and_at_the_price_of_the_closed_form(
    coin: str, day: str, mode: Mode, markets: Callable[[str, str], Market]
) -> None:
    market = markets(coin, day)
    end = str(pd.Timestamp(day) + pd.Timedelta("71h"))
    exposure, leverage = (5.0, 64.0) if mode == "cross" else (1.0, 5.0)
    expected = fate_of(market, day, end, exposure, leverage, mode)
    assert expected.time is not None, "the story needs a liquidation"
    assert_same(live(market, day, end, exposure, leverage, mode), expected)


@pytest.mark.parametrize("mode", ["cross", "isolated"])
@pytest.mark.parametrize(
    ("coin", "start", "exposure"),
    [
        ("BTC", "2020-03-13T02:00", -8.0),
        ("BTC", "2021-05-19T13:00", -8.0),
        ("ETH", "2021-05-19T13:00", -6.0),
        ("XRP", "2021-05-19T12:00", -8.0),
        ("BTC", "2022-11-09T22:00", -8.0),
        ("SOL", "2022-11-09T21:00", -8.0),
    ],
)
def test_a_short_opened_at_the_bottom_falls_in_the_rebound(
    coin: str, start: str, exposure: float, mode: Mode, markets: Callable[[str, str], Market]
) -> None:
    market = markets(coin, next(day for coin_, day in DAYS if coin_ == coin and day[:7] == start[:7]))
    end = str(pd.Timestamp(start) + pd.Timedelta("48h"))
    exposure, leverage = (exposure, 64.0) if mode == "cross" else (-1.0, 10.0)
    expected = fate_of(market, start, end, exposure, leverage, mode)
    assert expected.time is not None, "the story needs a liquidation"
    assert_same(live(market, start, end, exposure, leverage, mode), expected)


def assert_same(lived: Fate, expected: Fate) -> None:
    assert lived.time == expected.time
    assert lived.price == pytest.approx(expected.price, rel=1e-9, nan_ok=True)
    assert lived.funding == pytest.approx(expected.funding, rel=1e-9, abs=1e-9)
    assert lived.equity == pytest.approx(expected.equity, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("exposure", [0.5, -0.5])
@pytest.mark.parametrize(("coin", "day"), DAYS)
def test_an_account_that_survives_pays_every_settlement_of_the_ten_days(
    coin: str, day: str, exposure: float, markets: Callable[[str, str], Market]
) -> None:
    market = markets(coin, day)
    start, end = (str(pd.Timestamp(day) + pd.Timedelta(days=days)) for days in (-2, 9))
    expected = fate_of(market, start, end, exposure, 5.0, "cross")
    assert expected.time is None, "the story needs a survivor"
    assert abs(expected.funding) > 0.0
    assert_same(live(market, start, end, exposure, 5.0, "cross"), expected)


def test_sol_settled_every_two_and_four_hours_and_each_one_is_charged(
    markets: Callable[[str, str], Market],
) -> None:
    market = markets("SOL", "2022-11-08")
    held = market.funding["2022-11-06 01:00":"2022-11-17 00:00"]  # type: ignore[misc]
    hours = set(np.diff(held.index) / pd.Timedelta("1h"))
    assert {2.0, 4.0, 8.0} <= hours
    lived = live(market, "2022-11-06", "2022-11-16T23:00", -0.5, 5.0, "cross")
    lot = market.tape.contracts[0].lot_size
    quantity = -lot * math.trunc(0.5 * WALLET / market.mark.loc["2022-11-06 00:00+00:00", "close"] / lot)
    by_hand = -quantity * sum(
        float(rate) * market.mark.loc[stamp - pd.Timedelta("1h"), "close"] for stamp, rate in held.items()
    )
    assert lived.funding == pytest.approx(by_hand, rel=1e-9)
    # one settlement in eight hours is a quite different sum
    eight = [stamp for stamp in held.index if stamp.hour % 8 == 0]
    fewer = -quantity * sum(
        float(held[stamp]) * market.mark.loc[stamp - pd.Timedelta("1h"), "close"] for stamp in eight
    )
    assert abs(fewer - by_hand) > 0.2 * abs(by_hand)


@pytest.mark.parametrize(
    ("coin", "day", "hour"),
    [("BTC", "2020-03-12", 10), ("ETH", "2021-05-19", 13), ("XRP", "2021-05-19", 13)],
)
def test_a_last_price_far_below_the_mark_liquidates_nobody_whom_the_mark_spares(
    coin: str, day: str, hour: int, markets: Callable[[str, str], Market]
) -> None:
    market = markets(coin, day)
    time = pd.Timestamp(day, tz="UTC") + pd.Timedelta(hours=hour)
    last_low, mark_low = market.last.loc[time, "low"], market.mark.loc[time, "low"]
    assert last_low < 0.96 * mark_low
    before = str((time - pd.Timedelta("1h")).tz_localize(None))
    until = str(time.tz_localize(None))
    spared = []
    for exposure in np.arange(2.0, 16.0, 0.25):
        quantity = exposure * WALLET / market.mark.loc[time - pd.Timedelta("1h"), "close"]
        price = liquidation_price(WALLET, quantity, market.last.loc[time, "open"], market.tiers)
        lived = live(market, before, until, float(exposure), 64.0, "cross")
        # the fee moves the price by less than half a percent
        if last_low < price < 0.995 * mark_low:
            spared.append(exposure)
            assert lived.time is None
        elif price > 1.005 * mark_low:
            assert lived.time == time
    assert spared


@pytest.mark.parametrize("mode", ["cross", "isolated"])
@pytest.mark.parametrize(("coin", "day"), DAYS)
def test_nobody_ends_the_crash_with_a_debt(
    coin: str, day: str, mode: Mode, markets: Callable[[str, str], Market]
) -> None:
    market = markets(coin, day)
    config = settings(
        leverage=20.0, margin_mode=mode, half_spread_bps=2.0, impact_coefficient=1.0, stop_loss=0.1
    )
    env = PerpVecEnv(
        market.tape,
        n_paths=1,
        accounts_per_path=64,
        config=config,
        limits=FREE,
        start_bar=market.bar(day) - 24,
        end_bar=market.bar(day) + 96,
    )
    out = env.make_buffers()
    env.reset_into(out, 0)
    rng = np.random.default_rng(0)
    seen = []
    while not out.truncated.any():
        env.step_into(rng.uniform(-1, 1, (64, 2)).astype(np.float32), out)
        seen.append(out.ledger.copy())
        assert np.isfinite(out.reward).all()
    ledger = np.concatenate(seen)
    column = {name: ledger[:, index] for name, index in LEDGER.items()}
    assert column["liquidated"].sum() > 5
    assert column["equity"].min() >= 0.0
    change = column["price_pnl"] + column["funding"] + column["insurance"]
    change -= column["fees"] + column["clearance"] + column["spread"] + column["impact"]
    np.testing.assert_allclose(column["equity"] - column["equity_before"], change, atol=1e-6)
