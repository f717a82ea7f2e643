"""Recorded L2: what a capture knows at each moment, what it cannot know, and when it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpgym.data.contract import Contract, load_contract
from perpgym.data.errors import DataError
from perpgym.data.sources.l2 import Recording, main, read_l2, touch_agreement
from perpgym.data.sources.l2_book import RebuiltBook

START_MS = 1_577_836_800_000


def read(capture: Any, contract: Contract, **settings: Any) -> Recording:
    return read_l2([capture.write()], contract, **settings)


def begin(capture: Any) -> None:
    """A whole book of two levels a side, and one trade, before the first second."""
    capture.snapshot(100, {30_000.0: 1.0, 29_999.0: 2.0}, {30_000.1: 1.5, 30_002.0: 3.0})
    capture.trade(200, 30_000.1, 0.4)


def levels(rows: np.ndarray) -> list[tuple[float, float]]:
    return [(price, size) for price, size, _change in rows.tolist()]


def test_a_book_is_what_messages_up_to_its_moment_have_said(capture: Any, contract: Contract) -> None:
    begin(capture)
    capture.diff(2_000, {29_999.0: 0.0, 29_998.5: 4.0}, {30_001.0: 0.7})
    capture.diff(2_001, {30_000.0: 9.0})
    capture.diff(4_000)
    recording = read(capture, contract)
    assert recording.bars.open_time_ms.tolist() == [START_MS + 1_000 * s for s in (1, 2, 3)]
    before, after, later, _end = recording.books
    assert levels(before.bids) == [(30_000.0, 1.0), (29_999.0, 2.0)]
    assert levels(before.asks) == [(30_000.1, 1.5), (30_002.0, 3.0)]
    assert levels(after.bids) == [(30_000.0, 1.0), (29_998.5, 4.0)]
    assert levels(after.asks) == [(30_000.1, 1.5), (30_001.0, 0.7), (30_002.0, 3.0)]
    assert levels(later.bids)[0] == (30_000.0, 9.0)
    assert recording.is_whole
    assert recording.gaps == ()


def test_nothing_that_came_later_is_known(capture: Any, contract: Contract) -> None:
    begin(capture)
    rng = np.random.default_rng(3)
    for at in range(500, 9_000, 70):
        capture.diff(at, {round(29_990.0 + rng.integers(0, 90) / 10, 1): float(rng.integers(0, 4))})
        capture.trade(at, round(30_000.0 + rng.integers(-20, 20) / 10, 1), 0.1, seller_took=bool(at % 2))
    whole = read(capture, contract)
    capture.lines = capture.lines[: len(capture.lines) // 2]
    part = read(capture, contract)
    bars = len(part.bars)
    assert 2 < bars < len(whole.bars)
    assert part.bars.last.tolist() == whole.bars.last[:bars].tolist()
    assert part.bars.mark.tolist() == whole.bars.mark[:bars].tolist()
    assert part.bars.volume.tolist() == whole.bars.volume[:bars].tolist()
    for one, other in zip(part.books, whole.books, strict=False):
        assert one.bids.tolist() == other.bids.tolist()


def test_a_hole_in_the_diffs_is_told_and_the_book_begins_anew(capture: Any, contract: Contract) -> None:
    begin(capture)
    capture.diff(1_500, {29_998.0: 1.0})
    capture.diff(2_500, {29_997.0: 1.0})
    lost = len(capture.lines) - 1
    capture.diff(3_500, {29_996.0: 1.0}, {30_003.0: 2.0})
    capture.diff(5_000)
    whole = read(capture, contract)
    del capture.lines[lost]
    holed = read(capture, contract)
    assert (len(whole.gaps), len(holed.gaps)) == (0, 1)
    (gap,) = holed.gaps
    assert (gap.time_ms, gap.last_id, gap.next_id) == (START_MS + 3_500, 1_010, 1_021)
    assert not holed.is_whole
    assert "holes in the diffs: 1 (the first before 2020-01-01 00:00:03.500000)" in holed.describe()
    assert levels(holed.books[2].bids)[0] == (30_000.0, 1.0)
    assert levels(holed.books[3].bids) == [(29_996.0, 1.0)]
    assert levels(whole.books[3].bids)[0] == (30_000.0, 1.0)
    # a snapshot heals the book; that it was wrong for a while is told all the same
    healing = {
        "lastUpdateId": 1_025,
        "T": START_MS + 3_400,
        "bids": [["29000", "1"]],
        "asks": [["31000", "1"]],
    }
    capture.lines.append(f"1 {json.dumps(healing)}")
    healed = read(capture, contract)
    assert (len(healed.gaps), healed.is_whole) == (1, True)
    assert levels(healed.books[3].bids) == [(29_996.0, 1.0), (29_000.0, 1.0)]


def test_a_snapshot_counts_from_its_own_change_on(capture: Any, contract: Contract) -> None:
    capture.diff(100, {30_000.0: 1.0, 29_000.0: 5.0}, {30_000.1: 1.0})
    capture.snapshot(150, {30_000.0: 1.0}, {30_000.1: 1.0})
    capture.diff(300, {29_999.0: 2.0})
    # the answer of REST arrives late
    capture.lines[1], capture.lines[2] = capture.lines[2], capture.lines[1]
    capture.lines.append(capture.lines[0])
    capture.trade(400, 30_000.0, 0.1)
    capture.diff(3_000)
    recording = read(capture, contract)
    assert levels(recording.books[0].bids) == [(30_000.0, 1.0), (29_999.0, 2.0)]
    assert recording.is_whole
    assert recording.gaps == ()


def test_a_book_ticker_is_newer_than_the_diff_before_it(capture: Any, contract: Contract) -> None:
    begin(capture)
    capture.ticker(900, (29_999.0, 0.3), (29_999.5, 0.2))
    capture.diff(3_000)
    recording = read(capture, contract)
    assert levels(recording.books[0].bids) == [(29_999.0, 0.3)]
    assert levels(recording.books[0].asks)[:2] == [(29_999.5, 0.2), (30_000.1, 1.5)]


def test_without_a_snapshot_the_book_is_what_was_named(capture: Any, contract: Contract) -> None:
    capture.diff(100, {29_990.0: 1.0})
    capture.trade(150, 30_000.0, 0.1)
    capture.diff(1_500, {}, {30_010.0: 2.0})
    capture.ticker(3_500, (30_000.0, 1.0), (30_000.1, 1.0))
    capture.diff(6_000)
    recording = read(capture, contract)
    # before the third second nobody has said where the asks are
    assert recording.bars.open_time_ms[0] == START_MS + 2_000
    assert levels(recording.books[0].asks) == [(30_010.0, 2.0)]
    assert levels(recording.books[2].bids) == [(30_000.0, 1.0), (29_990.0, 1.0)]
    assert "a book without a snapshot, holes in the diffs: 0" in recording.describe()


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.dictionaries(st.integers(90, 110), st.integers(0, 3), max_size=4),
            st.dictionaries(st.integers(90, 110), st.integers(0, 3), max_size=4),
        ),
        max_size=30,
    )
)
def test_no_messages_make_a_book_cross(said: list[tuple[bool, dict[int, int], dict[int, int]]]) -> None:
    book = RebuiltBook()
    for change, (is_ticker, bids, asks) in enumerate(said, start=1):
        message: dict[str, Any] = {"e": "depthUpdate", "U": change, "u": change, "pu": change - 1, "T": 0}
        message |= {"b": [[str(p), str(s)] for p, s in bids.items()]}
        message |= {"a": [[str(p), str(s)] for p, s in asks.items()]}
        if is_ticker:
            bid = min([*bids, *asks], default=100)
            message = {"e": "bookTicker", "u": change, "b": str(bid), "B": "1", "a": str(bid + 1), "A": "2"}
        book.apply(message)
        assert not book.is_known or book.bids.best < book.asks.best
        for rows, side in ((book.ladder().bids, -1.0), (book.ladder().asks, 1.0)):
            assert np.all(np.diff(rows[:, 0]) * side > 0.0)
            assert np.all(rows[:, 1] > 0.0)


def test_bars_are_made_of_trades_and_marks_and_open_where_the_bar_before_closed(
    capture: Any, contract: Contract
) -> None:
    begin(capture)
    capture.mark(0, 30_000.0, 1e-4, 3_000)
    capture.trade(1_100, 30_002.0, 0.5)
    capture.trade(1_200, 29_998.0, 0.25, seller_took=True)
    capture.trade(1_300, 0.0, 9.0, kind="INSURANCE_FUND")
    capture.mark(2_000, 30_010.0, 2e-4, 3_000)
    capture.trade(2_000, 30_001.0, 0.125)
    capture.mark(3_000, 30_020.0, 9e-4, 28_803_000)
    capture.diff(4_000)
    bars = read(capture, contract).bars
    assert bars.last.tolist() == [
        [30_000.1, 30_002.0, 29_998.0, 30_001.0], [30_001.0] * 4, [30_001.0] * 4,
    ]  # fmt: skip
    assert bars.volume.tolist() == [0.875, 0.0, 0.0]
    assert bars.mark[:, [0, 3]].tolist() == [
        [30_000.0, 30_010.0], [30_010.0, 30_020.0], [30_020.0, 30_020.0],
    ]  # fmt: skip
    # the rate that was shown last before the settlement, not the next one's
    assert (bars.stamp_time_ms.tolist(), bars.stamp_rate.tolist()) == ([START_MS + 3_000], [2e-4])
    assert bars.mark_rule == "mark"


def test_without_a_mark_the_mid_stands_for_it(capture: Any, contract: Contract) -> None:
    begin(capture)
    capture.diff(1_500, {}, {30_000.1: 0.0})
    capture.diff(3_000)
    recording = read(capture, contract)
    assert recording.bars.mark[0].tolist() == pytest.approx([30_000.05, 30_001.0, 30_000.05, 30_001.0])
    assert "the mid for a mark" in recording.describe()
    assert recording.bars.stamp_time_ms.size == 0


def test_what_is_no_recording_of_the_contract_is_refused(capture: Any, contract: Contract) -> None:
    begin(capture)
    with pytest.raises(DataError, match="0 whole bars of 1000 ms, at least 2"):
        read(capture, contract)
    with pytest.raises(DataError, match="bar_ms must divide a minute"):
        read(capture, contract, bar_ms=700)
    with pytest.raises(DataError, match="no trade of BTCUSDT was recorded, only of TESTUSDT"):
        read(capture, load_contract("BTC/USDT:USDT"))
    capture.lines.append('1 {"e": "bookTicker", "s": "TESTUSDT", "u": 1}')
    with pytest.raises(DataError, match="lacks or garbles 'T'"):
        read(capture, contract)


def test_the_share_of_agreement_notices_a_wrong_book(capture: Any, contract: Contract) -> None:
    begin(capture)
    capture.ticker(300, (30_000.0, 1.0), (30_000.1, 1.5))
    capture.diff(400)
    capture.ticker(500, (29_999.0, 1.0), (30_000.1, 1.5))
    # the diff should have removed the bid at 30,000
    capture.diff(600)
    capture.diff(3_000, {30_000.0: 0.0})
    assert touch_agreement([capture.write()], contract) == (2, 3)


def test_the_command_says_what_captures_hold(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared_data / "l2_binance_usdm"
    for year in ("2023", "2024"):
        assert main([str(path) for path in sorted(folder.glob(f"*_{year}*"))]) == 0
        said = capsys.readouterr().out
        assert "a whole book, holes in the diffs: 0" in said
        assert float(said.rpartition("(")[2].rstrip("%)\n")) > 99.9
    assert main([str(shared_data / "README.md")]) == 1
    assert "line 1" in capsys.readouterr().err
