"""A bar is believed when it is final and possible; everything else is asked for again, and says why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from perpgym.data.bars import CLOSE
from perpgym.data.features.build import build_tape
from perpgym.data.synthetic import SimulatedMarketConfig, simulate_market
from perpgym.data.tape import Tape
from perpgym.envs.live.broker import BarRow, Broker, PriceKind, Unreachable
from perpgym.envs.live.clock import ExchangeClock
from perpgym.envs.live.feed import Feed, FeedConfig, IncompleteBar
from perpgym.envs.live.ring import Ring

HOUR_MS = 3_600_000
WARM = 60
FEATURES = ("log_return_1", "realised_vol_24", "funding_rate")
QUICK = FeedConfig(settle_delay_ms=0, reread_ms=0, patience_ms=5_000)


class Market(Broker):
    """Market data from a tape, up to the moment; a second passes with every question about a bar.

    ``tells`` may change what one series of bars is told as: (kind, how many questions before, rows) -> rows.
    """

    def __init__(self, tape: Tape, bar: int) -> None:
        self.tape, self.time_ms = tape, int(tape.open_time_ms[bar])
        self.tells: Callable[[PriceKind, int, list[BarRow]], Sequence[BarRow]] = lambda _k, _n, rows: rows
        self.late_stamps_ms = 0
        self.asked: dict[str, int] = {}

    def now_ms(self) -> int:
        return self.time_ms

    async def server_time_ms(self) -> int:
        return self.time_ms

    async def bars(self, contract: str, kind: PriceKind, since_ms: int, limit: int) -> Sequence[BarRow]:
        self.time_ms += 500
        prices = self.tape.last if kind == "last" else self.tape.mark
        rows: list[BarRow] = []
        for i in range(max(self.tape.bar_at(since_ms), 0), len(self.tape)):
            opened = int(self.tape.open_time_ms[i])
            if opened + HOUR_MS <= self.time_ms and len(rows) < limit:
                rows.append((opened, *prices[i, 0].tolist(), float(self.tape.volume[i, 0])))
        number = self.asked[kind] = self.asked.get(kind, -1) + 1
        return self.tells(kind, number, rows)

    async def funding(self, contract: str, since_ms: int) -> Sequence[tuple[int, float]]:
        known = self.time_ms - self.late_stamps_ms
        pairs = zip(self.tape.stamp_time_ms.tolist(), self.tape.stamp_rate.tolist(), strict=True)
        return [(time + 7, rate) for time, rate in pairs if since_ms <= time <= known]

    async def funding_interval_hours(self, contract: str) -> int:
        return 8

    async def mark_prices(self) -> Mapping[str, float]:
        return {}


class Jump:
    """A clock that is there at once."""

    def __init__(self, market: Market) -> None:
        self.market = market

    async def sleep_until(self, time_ms: int) -> None:
        self.market.time_ms = max(self.market.time_ms, time_ms)

    async def pause(self, wait_ms: int) -> None:
        await asyncio.sleep(0)


@pytest.fixture(scope="module")
def tape() -> Tape:
    config = SimulatedMarketConfig(start="2024-01-01", end="2024-01-10", seed=2)
    bars = simulate_market(config).bars
    return build_tape(bars, features=FEATURES, risk=(), source="test")


class Story:
    """A feed on a market, and a ring that it fills."""

    def __init__(self, tape: Tape, bar: int = 100, config: FeedConfig = QUICK) -> None:
        self.market = Market(tape, bar)
        self.feed = Feed(self.market, tape.contracts, HOUR_MS, Jump(self.market), config)
        bars = asyncio.run(self.feed.history(WARM))
        self.ring = Ring(bars, features=FEATURES, risk=(), window_bars=8)
        self.market.asked.clear()

    def wait(self) -> Any:
        return asyncio.run(self.feed.wait(self.ring))


def test_history_and_the_next_bar_are_the_tapes(tape: Tape) -> None:
    story = Story(tape)
    assert int(story.ring.tape.open_time_ms[-1]) == int(tape.open_time_ms[99])
    for bar in range(100, 120):
        (told,) = story.wait().bars
        story.ring.push(told)
        assert told.open_time_ms == int(tape.open_time_ms[bar])
        np.testing.assert_array_equal(told.last, tape.last[bar])
        np.testing.assert_array_equal(told.mark, tape.mark[bar])
        np.testing.assert_allclose(story.ring.tape.features[-1], tape.features[bar], atol=1e-8)
    assert not np.array_equal(tape.last, tape.mark)
    assert story.feed.complaints == []


def test_a_bar_that_changes_after_its_close_is_taken_as_it_ends(tape: Tape) -> None:
    story = Story(tape)

    def late(kind: PriceKind, number: int, rows: list[BarRow]) -> Sequence[BarRow]:
        if kind == "mark" or number > 1:
            return rows
        time, opened, high, low, _close, volume = rows[-1]
        return [*rows[:-1], (time, opened, high, low, low + 0.1 * number, volume)]

    story.market.tells = late
    (told,) = story.wait().bars
    assert told.last[0, CLOSE] == tape.last[100, 0, CLOSE]
    assert story.market.asked["last"] == 3


def test_a_bar_that_is_missing_at_first_is_waited_for(tape: Tape) -> None:
    story = Story(tape)
    story.market.tells = lambda _k, n, rows: rows[:-1] if n < 2 else rows
    (told,) = story.wait().bars
    assert told.open_time_ms == int(tape.open_time_ms[100])
    assert "newest bar is missing" in story.feed.complaints[0]


def test_a_bar_that_does_not_come_is_no_reason_to_decide_and_comes_with_the_next(tape: Tape) -> None:
    story = Story(tape)
    missing = int(tape.open_time_ms[100])

    def hidden(_kind: PriceKind, _number: int, rows: list[BarRow]) -> Sequence[BarRow]:
        over = story.market.time_ms > missing + 2 * HOUR_MS
        return rows if over else [row for row in rows if row[0] != missing]

    story.market.tells = hidden
    first, second = story.wait().bars
    assert (first.open_time_ms, second.open_time_ms) == (missing, missing + HOUR_MS)
    np.testing.assert_array_equal(first.last, tape.last[100])
    assert any("nothing is decided" in text for text in story.feed.complaints)


def test_a_bar_that_never_comes_is_flat_and_without_volume_as_in_training(tape: Tape) -> None:
    story = Story(tape)
    missing = int(tape.open_time_ms[100])
    story.market.tells = lambda _k, _n, rows: [row for row in rows if row[0] != missing]
    first, _second = story.wait().bars
    np.testing.assert_array_equal(first.last[0], np.repeat(tape.last[99, 0, CLOSE], 4))
    assert first.volume[0] == 0.0


@pytest.mark.parametrize("wrong", [0.0, float("nan"), -1.0])
@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_no_impossible_price_is_believed(tape: Tape, wrong: float, place: int) -> None:
    story = Story(tape)

    def bad(_kind: PriceKind, number: int, rows: list[BarRow]) -> Sequence[BarRow]:
        if number > 0:
            return rows
        row: list[Any] = list(rows[-1])
        row[place] = wrong
        return [*rows[:-1], tuple(row)]  # type: ignore[list-item]

    story.market.tells = bad
    (told,) = story.wait().bars
    np.testing.assert_array_equal(told.last, tape.last[100])
    np.testing.assert_array_equal(told.mark, tape.mark[100])
    assert "cannot be" in story.feed.complaints[0]


def test_a_price_ten_times_too_high_is_asked_for_again(tape: Tape) -> None:
    story = Story(tape)

    def spike(_kind: PriceKind, number: int, rows: list[BarRow]) -> Sequence[BarRow]:
        time, *prices, volume = rows[-1]
        return rows if number > 2 else [*rows[:-1], (time, *(10.0 * p for p in prices), volume)]  # type: ignore[list-item]

    story.market.tells = spike
    (told,) = story.wait().bars
    np.testing.assert_array_equal(told.last, tape.last[100])
    assert "cannot be" in story.feed.complaints[0]


def test_an_older_bar_that_the_exchange_revises_is_told(tape: Tape) -> None:
    story = Story(tape)

    def revised(kind: PriceKind, _number: int, rows: list[BarRow]) -> Sequence[BarRow]:
        changed = int(tape.open_time_ms[98])
        return [
            (t, o, h, low, c, 3.0 * v) if t == changed and kind == "last" else (t, o, h, low, c, v)
            for t, o, h, low, c, v in rows
        ]

    story.market.tells = revised
    news = story.wait()
    (bar,) = news.revised
    assert bar.open_time_ms == int(tape.open_time_ms[98])
    story.ring.revise(news.revised)
    assert story.ring.tape.volume[-2, 0] == 3.0 * tape.volume[98, 0]


def test_a_settlement_is_waited_for_and_stands_on_its_minute(tape: Tape) -> None:
    story = Story(tape, bar=103)
    story.market.late_stamps_ms = 2_500
    (told,) = story.wait().bars
    close_ms = int(tape.open_time_ms[104])
    assert [time for time, _rate in told.stamps[0]] == [close_ms]
    assert "settlement" in story.feed.complaints[0]


def test_settlements_are_waited_for_by_the_interval_in_force(tape: Tape) -> None:
    story = Story(tape)
    (told,) = story.wait().bars
    # every eight hours, this is none of them
    assert told.stamps == ((),)
    story.ring.push(told)
    close_ms = int(tape.open_time_ms[102])

    async def every_hour(_contract: str) -> int:
        return 1

    async def late(_contract: str, since_ms: int) -> Sequence[tuple[int, float]]:
        return [(close_ms, -2e-3)] if since_ms <= close_ms <= story.market.time_ms - 1_500 else []

    story.market.funding_interval_hours = every_hour  # type: ignore[method-assign]
    story.market.funding = late  # type: ignore[method-assign]
    (told,) = story.wait().bars
    assert told.stamps == (((close_ms, -2e-3),),)
    assert "is not told yet" in story.feed.complaints[0]


def test_a_rate_that_cannot_be_is_no_settlement(tape: Tape) -> None:
    story = Story(tape, bar=103)

    async def wild(contract: str, since_ms: int) -> Sequence[tuple[int, float]]:
        rate = 5.0 if story.market.asked["last"] < 2 else 1e-4
        return [(int(tape.open_time_ms[104]), rate)]

    story.market.funding = wild  # type: ignore[method-assign]
    (told,) = story.wait().bars
    assert told.stamps[0][0][1] == 1e-4
    assert "cannot be 5.0" in story.feed.complaints[0]


def test_an_exchange_that_does_not_answer_is_asked_again(tape: Tape) -> None:
    story = Story(tape)

    def silent(_kind: PriceKind, number: int, rows: list[BarRow]) -> Sequence[BarRow]:
        if number < 2:
            raise Unreachable("no answer")
        return rows

    story.market.tells = silent
    (told,) = story.wait().bars
    assert told.open_time_ms == int(tape.open_time_ms[100])


def test_after_a_long_sleep_every_bar_is_there_and_only_the_newest_is_decided_on(tape: Tape) -> None:
    story = Story(tape)
    story.market.time_ms += 7 * HOUR_MS
    news = story.wait()
    assert [bar.open_time_ms for bar in news.bars] == tape.open_time_ms[100:107].tolist()
    assert story.feed.newest_open_ms() == news.bars[-1].open_time_ms


def test_a_history_that_is_too_short_is_refused(tape: Tape) -> None:
    market = Market(tape, 20)
    feed = Feed(market, tape.contracts, HOUR_MS, Jump(market), QUICK)
    with pytest.raises(IncompleteBar, match="oldest"):
        asyncio.run(feed.history(WARM))


def test_the_exchanges_clock_is_waited_for_at_any_speed() -> None:
    class Fast(Market):
        def __init__(self) -> None:
            self.looks = 0

        async def server_time_ms(self) -> int:
            self.looks += 1
            return int(asyncio.get_running_loop().time() * 1_000_000)

    async def story() -> tuple[int, int, int]:
        market = Fast()
        target = await market.server_time_ms() + 200_000
        clock = ExchangeClock(market)
        await clock.sleep_until(target)
        before = asyncio.get_running_loop().time()
        await clock.pause(10_000)
        assert asyncio.get_running_loop().time() - before < 1.0
        return target, await market.server_time_ms(), market.looks

    target, shown, looks = asyncio.run(story())
    assert shown >= target
    assert looks < 20


def test_a_line_that_shakes_makes_nobody_early_or_much_too_late() -> None:
    class Shaking(Market):
        def __init__(self) -> None:
            self.rng = np.random.default_rng(0)

        async def server_time_ms(self) -> int:
            return self.now_ms() + int(self.rng.integers(-120, 121))

        def now_ms(self) -> int:
            return int(asyncio.get_running_loop().time() * 1_000)

    async def story() -> int:
        market = Shaking()
        target = market.now_ms() + 700
        await ExchangeClock(market).sleep_until(target)
        return market.now_ms() - target

    assert -120 <= asyncio.run(story()) < 1_000


def test_a_clock_that_stands_still_is_not_waited_for(tape: Tape) -> None:
    market = Market(tape, 100)
    asyncio.run(ExchangeClock(market).sleep_until(market.time_ms + HOUR_MS))
    assert market.time_ms == int(tape.open_time_ms[100])


@pytest.mark.parametrize(("name", "value"), [("readings", 0), ("patience_ms", 0), ("max_jump", 1.0)])
def test_impossible_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        FeedConfig(**{name: value})  # type: ignore[arg-type]
