"""Seven real contracts on one tape, 2020-01 to 2025-06: listed one after the other, two of them with holes.

What is expected is read from the files by pandas alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perpgym.data.bars import CLOSE, OPEN
from perpgym.data.config import DataConfig
from perpgym.data.features.build import build_tape
from perpgym.data.portfolio import load_contracts
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.orders import NO_MARKET
from perpgym.envs.spaces import ACCOUNT_NAMES, CONTRACT_LEDGER, LEDGER

COINS = ("BTC", "ETH", "XRP", "BNB", "DOGE", "SOL", "AVAX")
START, END = "2020-01-01", "2025-06-30"
# the longest of the default columns looks back thirty days
LOOKBACK = 720
FREE = RiskLimits(max_leverage=100.0, max_daily_loss=None)
TRADABLE = ACCOUNT_NAMES.index("tradable")


@dataclass(frozen=True, kw_only=True)
class Market:
    """The tape, and by coin the opening times of its bars and its settlements straight from the files."""

    tape: Tape
    times: dict[str, pd.DatetimeIndex]
    settled: dict[str, pd.DatetimeIndex]

    def bars_of(self, times: pd.DatetimeIndex) -> np.ndarray:
        """Indices on the tape of the bars that open then."""
        return np.searchsorted(self.tape.open_time_ms, times.as_unit("ms").asi8)

    def missing(self, coin: str) -> np.ndarray:
        """Indices of the hours after the first for which the file has no bar."""
        have = self.times[coin]
        hours = pd.date_range(have[0], have[-1], freq="h")
        return self.bars_of(hours.difference(have))


@pytest.fixture(scope="module")
def market(shared_data: Path) -> Market:
    folder = shared_data / "freqtrade" / "binance"
    config = DataConfig(
        source="freqtrade",
        path=str(folder),
        contracts=tuple(f"{coin}/USDT:USDT" for coin in COINS),
        start=START,
        end=END,
        repair=("fill_flat",),
    )
    loaded = load_contracts(config)

    def dates(coin: str, kind: str) -> pd.DatetimeIndex:
        frame = pd.read_feather(folder / "futures" / f"{coin}_USDT_USDT-{kind}.feather")
        found = pd.DatetimeIndex(frame["date"]).round("min")
        return found[
            (found >= pd.Timestamp(START, tz="UTC")) & (found < pd.Timestamp("2025-07-01", tz="UTC"))
        ]

    return Market(
        tape=build_tape([one.bars for one in loaded], source="freqtrade"),
        times={coin: dates(coin, "1h-futures") for coin in COINS},
        settled={coin: dates(coin, "8h-funding_rate") for coin in COINS},
    )


def test_every_contract_is_masked_until_it_has_been_listed_for_a_whole_look_back(market: Market) -> None:
    tape = market.tape
    assert len(tape) == len(pd.date_range(START, "2025-07-01", freq="h", inclusive="left"))
    listed = [int(market.bars_of(market.times[coin][:1])[0]) for coin in COINS]
    assert listed == sorted(listed)
    assert listed[-1] > 6_000
    assert tape.is_valid.argmax(axis=0).tolist() == [bar + LOOKBACK for bar in listed]
    for asset, bar in enumerate(listed):
        valid = bar + LOOKBACK
        assert tape.is_valid[valid:, asset].all()
        assert not tape.volume[:valid, asset].any()
        assert not tape.features[:valid, asset].any()
        assert (tape.last[:bar, asset] == tape.last[bar, asset, OPEN]).all()
        owned = tape.stamp_time_ms[tape.stamp_start[asset, 0] : tape.stamp_start[asset, -1]]
        assert owned.min() > tape.open_time_ms[bar]
    assert (tape.mark > 0).all()


@pytest.mark.parametrize("coin", ["SOL", "XRP"])
def test_missing_hours_neither_trade_nor_mark_to_zero(market: Market, coin: str) -> None:
    tape, asset, hole = market.tape, COINS.index(coin), market.missing(coin)
    assert len(hole) == 120
    assert not tape.volume[hole, asset].any()
    assert tape.is_valid[hole, asset].all()
    for run in np.split(hole, np.flatnonzero(np.diff(hole) > 1) + 1):
        before = tape.last[run[0] - 1, asset, CLOSE]
        assert (tape.last[run, asset] == before).all()
        # SOL has no mark series, so the last price stands; XRP's mark was published all along
        away = np.abs(tape.mark[run, asset] / before - 1.0).max()
        assert away == 0.0 if coin == "SOL" else 0.0 < away < 0.2


@pytest.mark.parametrize("coin", ["SOL", "XRP"])
def test_whoever_holds_a_contract_through_its_hole_waits_and_settles_what_was_published(
    market: Market, coin: str
) -> None:
    tape, asset, hole = market.tape, COINS.index(coin), market.missing(coin)
    config = EnvConfig(
        action="target", window_bars=1, episode_bars=10**6, max_drawdown=1.0, rebalance_threshold=0.01
    )
    start = int(hole[0]) - 4
    env = PerpVecEnv(
        tape, n_paths=1, config=config, limits=FREE, start_bar=start, end_bar=int(hole[-1]) + 4
    )  # fmt: skip
    out = env.make_buffers()
    env.reset_into(out, 0)
    in_hole, wish = np.isin(np.arange(len(tape)), hole), np.zeros((1, len(COINS)), np.float32)
    wish[0, asset] = 0.25
    settled = set(market.bars_of(market.settled[coin] - pd.Timedelta("1h")).tolist())
    held, refused, paid = [], 0, 0
    while not out.truncated.any():
        bar = int(out.bar[0])
        # from the last close before a hole to its end it wants to be short
        wish[0, asset] = -0.25 if in_hole[bar] or in_hole[bar + 1] else 0.25
        assert out.account[0, asset, TRADABLE] == float(not in_hole[bar])
        env.step_into(wish, out)
        row, booked = out.holdings[0, asset], bar + 1
        if not in_hole[booked]:
            continue
        held.append(row[CONTRACT_LEDGER["position"]])
        assert row[CONTRACT_LEDGER["filled"]] == 0.0
        assert np.isfinite(out.ledger[0, LEDGER["equity"]])
        refused += (int(row[CONTRACT_LEDGER["reason"]]) & NO_MARKET) > 0
        assert (row[CONTRACT_LEDGER["funding"]] != 0.0) == (booked in settled)
        paid += booked in settled
        moved = tape.mark[booked, asset, CLOSE] - tape.mark[booked - 1, asset, CLOSE]
        expected = held[-1] * moved + row[CONTRACT_LEDGER["funding"]]
        assert row[CONTRACT_LEDGER["profit"]] == pytest.approx(expected, abs=1e-6)
        if coin == "SOL" and in_hole[booked - 1]:
            assert moved == 0.0
    assert len(held) == 120
    assert min(held) > 0.0
    # once at each of the two holes; inside nothing is asked
    assert refused == 2
    assert paid == 15
    # between the two holes it traded
    assert len(set(held)) == 2


def test_random_actions_over_five_and_a_half_years_keep_books_that_add_up(market: Market) -> None:
    tape = market.tape
    config = EnvConfig(action="target", window_bars=1, episode_bars=10**6, restart="random")
    env = PerpVecEnv(tape, n_paths=1, accounts_per_path=4, config=config, limits=RiskLimits())
    out, rng = env.make_buffers(), np.random.default_rng(0)
    env.reset_into(out, 0)
    start = int(out.bar[0])
    ledgers, holdings, tradable = [], [], []
    wish = np.zeros((4, len(COINS)), np.float32)
    while not out.truncated.any():
        # some wishes change, most are kept: who pays fees for every contract each hour is dead soon
        changes = rng.random(wish.shape) < 0.02
        wish[changes] = rng.uniform(-1, 1, int(changes.sum()))
        tradable.append(tape.volume[int(out.bar[0]) + 1] > 0)
        env.step_into(wish, out)
        ledgers.append(out.ledger.copy())
        holdings.append(out.holdings.copy())
    ledger, held = np.array(ledgers), np.array(holdings)  # T N L, T N A H
    assert start == LOOKBACK
    assert len(ledger) == len(tape) - 1 - start
    get = {name: ledger[..., i] for name, i in LEDGER.items()}
    gained = get["price_pnl"] + get["funding"] + get["insurance"]
    lost = get["fees"] + get["clearance"] + get["spread"] + get["impact"]
    assert np.isfinite(get["equity"]).all()
    assert (get["equity"] >= 0).all()
    change = get["equity"] - get["equity_before"]
    # of a wallet of a million
    np.testing.assert_allclose(gained - lost, change, rtol=0, atol=1e-9 * config.initial_wallet)
    by_contract = held[..., CONTRACT_LEDGER["profit"]].sum(-1)
    np.testing.assert_allclose(by_contract, change, rtol=0, atol=1e-9 * config.initial_wallet)
    filled = held[..., CONTRACT_LEDGER["filled"]] != 0.0
    can_trade = np.array(tradable)[:, None]
    assert not (filled & ~can_trade).any()
    assert (filled.any(axis=(0, 1))).all()
    # the negative control: leave a part out, and the sum is wrong
    assert not np.allclose(gained - lost + get["spread"], change, rtol=0, atol=1e-9 * config.initial_wallet)
