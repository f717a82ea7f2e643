"""The market as one immutable object: prices, funding, features and market risk on one clock."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from perpgym.data.clock import iso
from perpgym.data.contract import Contract
from perpgym.data.soundness import check_clock, check_prices, check_stamps, check_volume

# float32 counts bars exactly up to 2**24; grids of encoders must divide this period
CLOCK_PERIOD = 2**20

Index = TypeVar("Index", int, NDArray[np.int64])

_ARRAYS: dict[str, type[np.generic]] = {
    "open_time_ms": np.int64,
    "last": np.float64,
    "mark": np.float64,
    "volume": np.float64,
    "sigma_per_bar": np.float64,
    "stamp_start": np.int64,
    "stamp_time_ms": np.int64,
    "stamp_rate": np.float64,
    "features": np.float32,
    "risk": np.float32,
    "is_valid": np.bool_,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Tape:
    """T bars of A contracts; shared by every account, process and batch; never written to.

    A tape is checked when it is made, also when it is loaded: no account meets an impossible price.

    Attributes:
        contracts: A contracts.
        bar_ms: length of a bar, milliseconds.
        open_time_ms: (T,) int64 UTC.
        last: (T, A, 4) float64 quote, open high low close of traded prices; flat at the last known price
            where a bar is missing, at the first open before the contract is listed.
        mark: (T, A, 4) float64 quote, open high low close of the mark price; the same.
        volume: (T, A) float64 base; 0 where the account can trade nothing: where a bar is missing, and before
            the contract is valid.
        sigma_per_bar: (T, A) float64, volatility of a bar's log return as known at the close of that bar.
        stamp_start: (A, T + 1) int64: bar t of contract a owns the funding stamps
            ``stamp_start[a, t]:stamp_start[a, t + 1]`` of the two arrays below.
        stamp_time_ms: (S,) int64 UTC, settlement times.
        stamp_rate: (S,) float64, fraction of notional per settlement; longs pay when > 0.
        features: (T, A, F) float32, raw (unscaled) market features.
        risk: (T, A, K) float32, raw exogenous risk features.
        feature_names, risk_names: column names.
        first_valid_bar: the first bar at which any contract is valid.
        is_valid: (T, A) bool, whether every column of the contract has its whole look-back since its listing;
            left out, every contract is from ``first_valid_bar`` on.
        mark_rules: by contract, ``mark`` or ``last`` (see ``Bars.mark_rule``).
        source: where the data came from, in words for people.
        planted: (T, A) float64 or None: on simulated markets, the expected simple return of a long over
            bar t + 1, net of its funding, given everything hidden at the close of t. For the oracle only:
            no feature may read it.

    Raises:
        ValueError: an array has another shape, or holds what no market may; names the bar and the contract.
    """

    contracts: tuple[Contract, ...]
    bar_ms: int
    open_time_ms: NDArray[np.int64]
    last: NDArray[np.float64]
    mark: NDArray[np.float64]
    volume: NDArray[np.float64]
    sigma_per_bar: NDArray[np.float64]
    stamp_start: NDArray[np.int64]
    stamp_time_ms: NDArray[np.int64]
    stamp_rate: NDArray[np.float64]
    features: NDArray[np.float32]
    risk: NDArray[np.float32]
    feature_names: tuple[str, ...]
    risk_names: tuple[str, ...]
    first_valid_bar: int
    mark_rules: tuple[str, ...]
    source: str
    planted: NDArray[np.float64] | None = None
    is_valid: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), np.bool_))
    _cache: dict[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name, kind in _ARRAYS.items():
            # machine code is compiled anew, for a minute, where prices happen to be whole numbers
            if (given := getattr(self, name)).dtype != kind:
                object.__setattr__(self, name, given.astype(kind, casting="same_kind"))
        bars, assets = len(self), len(self.contracts)
        if self.is_valid.size == 0:
            rows = np.arange(bars)[:, None] >= self.first_valid_bar
            object.__setattr__(self, "is_valid", np.repeat(rows, assets, axis=1))
        expected = {
            "last": (bars, assets, 4),
            "mark": (bars, assets, 4),
            "volume": (bars, assets),
            "sigma_per_bar": (bars, assets),
            "stamp_start": (assets, bars + 1),
            "features": (bars, assets, len(self.feature_names)),
            "risk": (bars, assets, len(self.risk_names)),
            "is_valid": (bars, assets),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"tape: {name} must have shape {shape}, was {getattr(self, name).shape}")
        if not 0 <= self.first_valid_bar < max(bars, 1):
            raise ValueError(
                f"tape: first_valid_bar must lie between 0 and {bars - 1} (a bar), was {self.first_valid_bar}"
            )
        for asset, contract in enumerate(self.contracts):
            self._check_contract(asset, contract.symbol)
        for name in ("sigma_per_bar", "features", "risk"):
            self._check_columns(name)

    def _check_contract(self, asset: int, symbol: str) -> None:
        check_clock(symbol, self.open_time_ms, self.bar_ms)
        check_prices(symbol, "last", self.open_time_ms, self.last[:, asset])
        check_prices(symbol, "mark", self.open_time_ms, self.mark[:, asset])
        check_volume(symbol, self.open_time_ms, self.volume[:, asset])
        start = self.stamp_start[asset]
        if start[0] < 0 or start[-1] > self.stamp_time_ms.size or (np.diff(start) < 0).any():
            raise ValueError(
                f"{symbol}: stamp_start must ascend within the tape's {self.stamp_time_ms.size} settlements"
            )
        owned = slice(int(start[0]), int(start[-1]))
        times = self.stamp_time_ms[owned]
        span = int(self.open_time_ms[0]), int(self.open_time_ms[-1]) + self.bar_ms
        check_stamps(symbol, times, self.stamp_rate[owned], *span)
        opens = np.repeat(self.open_time_ms, np.diff(start))
        is_inside = (times > opens) & (times <= opens + self.bar_ms)
        if not is_inside.all():
            first = int(np.argmin(is_inside))
            raise ValueError(
                f"{symbol}: the settlement at {iso(int(times[first]))} is not in the bar that opens at "
                f"{iso(int(opens[first]))}, which is said to own it: a bar owns the stamps in (open, close]"
            )

    def _check_columns(self, name: str) -> None:
        is_finite = np.isfinite(getattr(self, name)).reshape(len(self), -1).all(axis=1)
        if not is_finite.all():
            at = iso(int(self.open_time_ms[int(np.argmin(is_finite))]))
            raise ValueError(f"tape: {name} must be finite, but is not at the bar that opens at {at}")

    def __len__(self) -> int:
        return int(self.open_time_ms.shape[0])

    @property
    def bars_per_year(self) -> float:
        """Bars in a year of 365 days: perpetuals never close."""
        return 365 * 86_400_000 / self.bar_ms

    @property
    def data_hash(self) -> str:
        """sha256 over every array, name and contract rule, wherever they were read from."""
        if "hash" not in self._cache:
            digest = hashlib.sha256()
            for name in _ARRAYS:
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
            # the same bars from another folder, or from the market that a download fell back to, are the same
            meta = {name: value for name, value in self._meta().items() if name != "source"}
            digest.update(json.dumps(meta, sort_keys=True).encode())
            self._cache["hash"] = digest.hexdigest()
        return self._cache["hash"]

    def bar_at(self, time: str | int | np.datetime64) -> int:
        """Index of the first bar that opens at or after ``time`` (UTC; ISO text or milliseconds)."""
        if isinstance(time, str):
            time = np.datetime64(time.replace("Z", ""), "ms")
        stamp = (
            int(time.astype("datetime64[ms]").astype(np.int64)) if isinstance(time, np.datetime64) else time
        )
        return int(np.searchsorted(self.open_time_ms, stamp, side="left"))

    def epoch_bar(self, bar: Index) -> Index:
        """Bars since the epoch of the bars at these indices: what absolute grids count."""
        return bar + self._first_epoch_bar

    def clock(self, bar: Index) -> Index:
        """``epoch_bar`` modulo ``CLOCK_PERIOD``, exact in float32."""
        return (bar + self._first_epoch_bar) & (CLOCK_PERIOD - 1)

    @cached_property
    def _first_epoch_bar(self) -> int:
        # every step of every env asks for it
        return int(self.open_time_ms[0]) // self.bar_ms

    def _meta(self) -> dict[str, object]:
        return {
            "contracts": [c.to_json() for c in self.contracts],
            "bar_ms": self.bar_ms,
            "feature_names": list(self.feature_names),
            "risk_names": list(self.risk_names),
            "first_valid_bar": self.first_valid_bar,
            "mark_rules": list(self.mark_rules),
            "source": self.source,
        }

    def save(self, folder: Path) -> None:
        """Write the tape as plain ``.npy`` arrays beside a ``tape.json``, for memory-mapping."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        if self.planted is not None:
            np.save(folder / "planted.npy", self.planted, allow_pickle=False)
        (folder / "tape.json").write_text(json.dumps(self._meta(), indent=1), "utf-8")

    @classmethod
    def load(cls, folder: Path) -> Tape:
        """Memory-map a tape that :meth:`save` wrote; processes that load it share its pages."""
        meta = json.loads((folder / "tape.json").read_text("utf-8"))
        arrays = {n: np.load(folder / f"{n}.npy", mmap_mode="r", allow_pickle=False) for n in _ARRAYS}
        planted = folder / "planted.npy"
        return cls(
            contracts=tuple(Contract.from_json(c) for c in meta["contracts"]),
            bar_ms=meta["bar_ms"],
            feature_names=tuple(meta["feature_names"]),
            risk_names=tuple(meta["risk_names"]),
            first_valid_bar=meta["first_valid_bar"],
            mark_rules=tuple(meta["mark_rules"]),
            source=meta["source"],
            planted=np.load(planted, mmap_mode="r", allow_pickle=False) if planted.exists() else None,
            **arrays,
        )
