"""A live row is the row of the whole tape: the same bars, seen through a ring, give the same features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from perpgym.data.align import align
from perpgym.data.bars import Bars
from perpgym.data.contract import load_contract
from perpgym.data.features import default_names
from perpgym.data.features.build import build_tape
from perpgym.data.sources.freqtrade import read_freqtrade
from perpgym.data.synthetic import SimulatedMarketConfig, simulate_market
from perpgym.data.tape import Tape
from perpgym.envs.live.ring import ClosedBar, Ring, bars_kept

WINDOW = 24
MARKET, RISK = default_names("market"), default_names("risk")


def closed_bar(tape: Tape, bar: int) -> ClosedBar:
    stamps = []
    for start in tape.stamp_start:
        owned = slice(int(start[bar]), int(start[bar + 1]))
        times, rates = tape.stamp_time_ms[owned].tolist(), tape.stamp_rate[owned].tolist()
        stamps.append(tuple(zip(times, rates, strict=True)))
    return ClosedBar(
        open_time_ms=int(tape.open_time_ms[bar]), last=tape.last[bar], mark=tape.mark[bar],
        volume=tape.volume[bar], stamps=tuple(stamps),
    )  # fmt: skip


def ring_until(bars: Sequence[Bars], stop: int) -> Ring:
    return Ring([b.slice(0, stop) for b in bars], features=MARKET, risk=RISK, window_bars=WINDOW)


def assert_rows_are_the_tapes(bars: Sequence[Bars], start: int, count: int) -> None:
    whole = build_tape(bars, features=MARKET, risk=RISK, source="whole")
    ring = ring_until(bars, start)
    for bar in range(start, start + count):
        ring.push(closed_bar(whole, bar))
        rows = slice(bar - WINDOW + 1, bar + 1)
        assert len(ring.tape) == ring.keep
        for name in ("features", "risk", "sigma_per_bar", "last", "mark", "volume", "is_valid"):
            live, offline = getattr(ring.tape, name)[-WINDOW:], getattr(whole, name)[rows]
            np.testing.assert_allclose(live, offline, rtol=0.0, atol=1e-8, err_msg=f"{name} at {bar}")
        assert ring.tape.clock(np.array([ring.newest])) == whole.clock(np.array([bar]))


def simulated(seed: int = 3, start: str = "2024-01-01") -> Bars:
    return simulate_market(SimulatedMarketConfig(seed=seed, start=start, end="2024-04-01")).bars


def test_a_ring_on_a_simulated_market_gives_the_rows_of_the_whole_tape() -> None:
    assert_rows_are_the_tapes([simulated()], 1_200, 200)


def test_a_ring_after_a_restart_gives_the_same_rows() -> None:
    bars = [simulated()]
    whole = build_tape(bars, features=MARKET, risk=RISK, source="whole")
    ring = ring_until(bars, 1_000)
    ring.restart([b.slice(100, 1_100) for b in bars])
    np.testing.assert_allclose(
        ring.tape.features[-WINDOW:], whole.features[1_100 - WINDOW : 1_100], atol=1e-8
    )
    ring.push(closed_bar(whole, 1_100))
    np.testing.assert_allclose(ring.tape.risk[-1], whole.risk[1_100], atol=1e-8)


@pytest.mark.parametrize("symbols", [("BTC/USDT:USDT",), ("BTC/USDT:USDT", "ETH/USDT:USDT", "SOL/USDT:USDT")])
def test_a_ring_on_real_bars_gives_the_rows_of_the_whole_tape(
    shared_data: Path, symbols: tuple[str, ...]
) -> None:
    bars = []
    for symbol in symbols:
        raw = read_freqtrade(shared_data / "freqtrade", symbol, "1h")
        whole = align(raw, load_contract(symbol), mark="last", repair=["fill_flat"]).bars
        first = int(np.searchsorted(whole.open_time_ms, np.datetime64("2022-09-01", "ms").astype(np.int64)))
        bars.append(whole.slice(first, first + 2_200))
    # the days in which a large exchange failed, and SOL settled every two hours
    assert_rows_are_the_tapes(bars, 1_600, 150)


def test_a_bar_that_is_not_the_next_one_is_refused() -> None:
    bars = [simulated()]
    whole = build_tape(bars, features=MARKET, risk=RISK, source="whole")
    ring = ring_until(bars, 1_000)
    with pytest.raises(ValueError, match="must open at"):
        ring.push(closed_bar(whole, 1_001))


def test_too_short_a_history_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        ring_until([simulated()], 700)


def test_a_column_that_no_live_market_feeds_is_refused() -> None:
    with pytest.raises(ValueError, match="premium index"):
        bars_kept(("predicted_funding",), (), 3_600_000, 1)


def test_a_wrong_price_shows_in_the_newest_row() -> None:
    bars = [simulated()]
    whole = build_tape(bars, features=MARKET, risk=RISK, source="whole")
    ring = ring_until(bars, 1_000)
    right = closed_bar(whole, 1_000)
    ring.push(
        ClosedBar(
            open_time_ms=right.open_time_ms, last=right.last * 1.001, mark=right.mark, volume=right.volume,
            stamps=right.stamps,
        )
    )  # fmt: skip
    assert np.abs(ring.tape.features[-1] - whole.features[1_000]).max() > 1e-4
