"""Fixtures that several folders share: small tapes with known prices, and where real data lie."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from perpgym.data.contract import Bracket, Contract
from perpgym.data.tape import Tape

HOUR_MS = 3_600_000
# 2020-01-01 00:00 UTC
START_MS = 1_577_836_800_000
# columns of a tape that stand by contract
SIDE_BY_SIDE = ("last", "mark", "volume", "sigma_per_bar", "features", "risk", "is_valid")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real market data; tests that need it are skipped where it is missing."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("PERPGYM_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set PERPGYM_SHARED_DATA to run this test")
    return folder


@pytest.fixture(scope="session")
def contract() -> Contract:
    """Three brackets with their cum amounts, a 0.1 tick, 0.001 lots."""
    return Contract(
        symbol="TEST/USDT:USDT",
        tick_size=0.1,
        lot_size=0.001,
        min_quantity=0.001,
        min_notional=100.0,
        taker_rate=0.0004,
        clearance_rate=0.0125,
        brackets=(
            Bracket(floor=0.0, cap=50_000.0, maintenance_margin_rate=0.004, cum=0.0, max_leverage=125.0),
            Bracket(
                floor=50_000.0, cap=600_000.0, maintenance_margin_rate=0.005, cum=50.0, max_leverage=100.0
            ),
            Bracket(
                floor=600_000.0,
                cap=float("inf"),
                maintenance_margin_rate=0.01,
                cum=3_050.0,
                max_leverage=50.0,
            ),
        ),
    )


class Capture:
    """Writes streams of TESTUSDT as a recorder keeps them; times are ms after ``START_MS``.

    Args:
        path: the file, gzipped text.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.restart()

    def restart(self) -> None:
        """Begin anew."""
        self.lines: list[str] = []
        self.change, self._diff, self._trade = 1_000, 1_000, 0

    def _write(self, at: int, payload: dict[str, Any], stream: str = "") -> None:
        wrapped = {"stream": f"testusdt@{stream}", "data": payload} if stream else payload
        # a recorder's clock is not the exchange's
        self.lines.append(f"{1000 * (START_MS + at) - 777_777} {json.dumps(wrapped)}")

    def snapshot(self, at: int, bids: dict[float, float], asks: dict[float, float]) -> None:
        """The book as REST answers it, at the newest change."""
        sides = {"bids": _rows(bids), "asks": _rows(asks)}
        self._write(at, {"lastUpdateId": self.change, "E": START_MS + at, "T": START_MS + at, **sides})

    def diff(
        self, at: int, bids: dict[float, float] | None = None, asks: dict[float, float] | None = None
    ) -> None:
        """Ten changes; size 0 removes a level."""
        time_ms, first = START_MS + at, self.change + 1
        self.change += 10
        ids = {"U": first, "u": self.change, "pu": self._diff}
        self._diff = self.change
        rows = {"b": _rows(bids or {}), "a": _rows(asks or {})}
        message = {"e": "depthUpdate", "E": time_ms + 3, "T": time_ms, "s": "TESTUSDT", **ids, **rows}
        self._write(at, message, "depth@0ms")

    def ticker(self, at: int, bid: tuple[float, float], ask: tuple[float, float]) -> None:
        """One change of the best prices."""
        self.change += 1
        touch = {"b": str(bid[0]), "B": str(bid[1]), "a": str(ask[0]), "A": str(ask[1])}
        time_ms = START_MS + at
        message = {"e": "bookTicker", "u": self.change, "s": "TESTUSDT", **touch, "T": time_ms, "E": time_ms}
        self._write(at, message, "bookTicker")

    def trade(
        self, at: int, price: float, quantity: float, *, seller_took: bool = False, kind: str = "MARKET"
    ) -> None:
        """One trade."""
        self._trade += 1
        time_ms = START_MS + at
        row = {"p": str(price), "q": str(quantity), "X": kind, "m": seller_took}
        message = {"e": "trade", "E": time_ms, "T": time_ms, "s": "TESTUSDT", "t": self._trade, **row}
        self._write(at, message, "trade")

    def mark(self, at: int, price: float, rate: float, due: int) -> None:
        """The mark price, the rate that it would settle at, and when it settles (ms after ``START_MS``)."""
        row = {"p": str(price), "i": str(price), "P": str(price), "r": str(rate), "T": START_MS + due}
        message = {"e": "markPriceUpdate", "E": START_MS + at, "s": "TESTUSDT", **row}
        self._write(at, message, "markPrice@1s")

    def write(self) -> Path:
        """The file."""
        self.path.write_bytes(gzip.compress("\n".join(self.lines).encode()))
        return self.path


def _rows(levels: dict[float, float]) -> list[list[str]]:
    return [[f"{price:.2f}", f"{size:.3f}"] for price, size in levels.items()]


@pytest.fixture
def capture(tmp_path: Path) -> Capture:
    """An empty capture."""
    return Capture(tmp_path / "testusdt.gz")


TapeFactory = Callable[..., Tape]


@pytest.fixture(scope="session")
def make_tape(contract: Contract) -> TapeFactory:
    """Build a tape from closes (opens are the closes before), or a seeded random walk of ``bars`` bars."""

    def make(
        closes: NDArray[np.float64] | None = None,
        *,
        bars: int = 600,
        seed: int = 0,
        sigma: float = 0.006,
        funding_rate: float = 1e-4,
        n_features: int = 4,
        n_risk: int = 3,
        wick: float = 0.002,
        mark_basis: float = 0.0,
        volume: float = 5_000.0,
        rules: Contract | None = None,
        bar_ms: int = HOUR_MS,
    ) -> Tape:
        rng = np.random.default_rng(seed)
        if closes is None:
            closes = 30_000.0 * np.exp(np.cumsum(sigma * rng.standard_normal(bars)))
        closes = np.asarray(closes, np.float64)
        count = closes.size
        opens = np.concatenate([closes[:1], closes[:-1]])
        spread = 1.0 + wick * rng.random(count)
        last = np.stack(
            [opens, np.maximum(opens, closes) * spread, np.minimum(opens, closes) / spread, closes], axis=-1
        )[:, None, :]
        open_time = START_MS + bar_ms * np.arange(count, dtype=np.int64)
        closing = np.arange(START_MS, open_time[-1] + bar_ms + 1, 8 * HOUR_MS, dtype=np.int64)
        stamps = closing[closing > START_MS]
        owner = np.ceil((stamps - START_MS) / bar_ms).astype(np.int64) - 1
        return Tape(
            contracts=(rules or contract,),
            bar_ms=bar_ms,
            open_time_ms=open_time,
            last=last,
            mark=last * (1.0 + mark_basis),
            volume=np.full((count, 1), volume),
            sigma_per_bar=np.full((count, 1), sigma),
            stamp_start=np.searchsorted(owner, np.arange(count + 1))[None].astype(np.int64),
            stamp_time_ms=stamps,
            stamp_rate=np.full(stamps.size, funding_rate),
            features=rng.standard_normal((count, 1, n_features)).astype(np.float32),
            risk=rng.standard_normal((count, 1, n_risk)).astype(np.float32),
            feature_names=tuple(f"feature_{i}" for i in range(n_features)),
            risk_names=tuple(f"risk_{i}" for i in range(n_risk)),
            first_valid_bar=0,
            mark_rules=("mark",),
            source="test",
        )

    return make


@pytest.fixture(scope="session")
def merge_tapes() -> Callable[[list[Tape]], Tape]:
    """Put several one-contract tapes on one clock side by side."""

    def merge(tapes: list[Tape]) -> Tape:
        offsets = np.cumsum([0, *(t.stamp_time_ms.size for t in tapes)])[:-1]

        def side_by_side(name: str) -> np.ndarray:
            return np.concatenate([getattr(t, name) for t in tapes], axis=1)

        return replace(
            tapes[0],
            contracts=tuple(replace(t.contracts[0], symbol=f"C{i}/USDT:USDT") for i, t in enumerate(tapes)),
            stamp_start=np.concatenate([t.stamp_start + o for t, o in zip(tapes, offsets, strict=True)]),
            stamp_time_ms=np.concatenate([t.stamp_time_ms for t in tapes]),
            stamp_rate=np.concatenate([t.stamp_rate for t in tapes]),
            mark_rules=tuple(t.mark_rules[0] for t in tapes),
            _cache={},
            **{n: side_by_side(n) for n in SIDE_BY_SIDE},
        )

    return merge


@pytest.fixture(scope="session")
def make_portfolio(make_tape: TapeFactory, merge_tapes: Callable[[list[Tape]], Tape]) -> TapeFactory:
    """Independent contracts on one clock, each valid from its own bar on; settings as of ``make_tape``."""

    def make(valid_from: tuple[int, ...] = (0, 0), *, seed: int = 0, **settings: Any) -> Tape:
        tape = merge_tapes([make_tape(seed=100 * seed + i, **settings) for i in range(len(valid_from))])
        is_valid = np.arange(len(tape))[:, None] >= np.array(valid_from)
        columns = {name: getattr(tape, name).copy() for name in ("volume", "features", "risk")}
        for column in columns.values():
            column[~is_valid] = 0.0
        return replace(tape, first_valid_bar=min(valid_from), is_valid=is_valid, _cache={}, **columns)

    return make
