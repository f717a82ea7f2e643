"""Where downloaded and imported series are kept: parquet by exchange, contract, series and month.

A month is one immutable file named by the hash of its content; a series' ``manifest.json`` says which files
count. Appending writes new month files first and then replaces the manifest in one step, so a crash at any
point leaves the series as it was before or after, and what ``append`` returned from is on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pandas as pd
import platformdirs
from filelock import FileLock

from perpgym.data.clock import iso
from perpgym.data.contract import Contract
from perpgym.data.errors import DataError
from perpgym.data.frames import FUNDING_COLUMNS, KLINE_COLUMNS, empty_frame, rows_where, times

_LOG = logging.getLogger(__name__)

Kind = Literal["last", "mark", "funding", "premium"]
KINDS: tuple[Kind, ...] = ("last", "mark", "funding", "premium")
Span = tuple[int, int]
_MANIFEST_VERSION = 1


@dataclass(frozen=True, kw_only=True, order=True)
class SeriesKey:
    """Names one series of the store.

    Attributes:
        exchange: ccxt's exchange id, e.g. ``binance``.
        symbol: ccxt's unified symbol.
        kind: ``last``, ``mark``, ``funding`` or ``premium``.
        timeframe: of bars, e.g. ``1h``; empty for funding.
    """

    exchange: str
    symbol: str
    kind: Kind
    timeframe: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, was {self.kind!r}")
        if (self.kind == "funding") != (self.timeframe == ""):
            raise ValueError("bars need a timeframe and funding has none")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the series' frames."""
        return FUNDING_COLUMNS if self.kind in ("funding", "premium") else KLINE_COLUMNS

    @property
    def folder(self) -> str:
        """Path below the store's root."""
        series = self.kind if self.kind == "funding" else f"{self.kind}-{self.timeframe}"
        return f"{self.exchange}/{symbol_folder(self.symbol)}/{series}"


def symbol_folder(symbol: str) -> str:
    """``BTC_USDT_USDT`` for ``BTC/USDT:USDT``: the name that freqtrade gives it too."""
    return symbol.replace("/", "_").replace(":", "_")


def default_root() -> str:
    """``$PERPGYM_DATA``, or a folder in the user's cache."""
    return os.environ.get("PERPGYM_DATA") or str(
        Path(platformdirs.user_cache_dir("perpgym", appauthor=False))
    )


class Store:
    """Series of bars and funding on a local folder or any fsspec path (``s3://…``, ``memory://…``).

    One writer at a time per series: on a local folder a lock sees to it, on an object store the caller must.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = str(root) if root is not None else default_root()
        self._files, self._base = fsspec.core.url_to_fs(self.root)
        protocol = self._files.protocol
        self._is_local = "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def append(self, key: SeriesKey, frame: pd.DataFrame, *, covered: Span | None = None) -> int:
        """Merge rows into a series; where a time is there already, the later row wins.

        Args:
            key: the series.
            frame: columns ``key.columns``, in any order of rows.
            covered: UTC milliseconds [start, end) about which the source has said all it knows, so that
                nobody asks again; by default from the first row to the last.

        Returns:
            How many rows are new or changed. Once this returns, a crash loses none of them.
        """
        frame = frame[list(key.columns)]
        if covered is None and not frame.empty:
            covered = (int(times(frame).min()), int(times(frame).max()) + 1)
        with self._lock(key):
            manifest = self._manifest(key)
            replaced: list[str] = []
            changed = 0
            for month, rows in frame.groupby(_month(frame), sort=True):
                changed += self._merge_month(key, manifest, str(month), rows, replaced)
            if covered is not None:
                manifest["covered"] = merge_spans([*map(tuple, manifest["covered"]), covered])
            self._write(f"{key.folder}/manifest.json", json.dumps(manifest, indent=1).encode())
            for name in replaced:
                self._files.rm_file(self._path(f"{key.folder}/{name}"))
        return changed

    def read(self, key: SeriesKey, start_ms: int | None = None, end_ms: int | None = None) -> pd.DataFrame:
        """The rows of a series with start <= time < end, in order of time; empty if there are none.

        Raises:
            DataError: a file is missing or damaged.
        """
        first = "" if start_ms is None else _month_name(start_ms)
        last = "9999" if end_ms is None else _month_name(end_ms)
        try:
            parts = self._read_months(key, first, last)
        except FileNotFoundError:
            # a writer may have replaced a month since the manifest was read
            try:
                parts = self._read_months(key, first, last)
            except FileNotFoundError as error:
                raise DataError(
                    f"{error.filename}: named in the manifest, but it is not there; {self._advice(key)}"
                ) from None
        if not parts:
            return empty_frame(key.columns)
        frame = pd.concat(parts, ignore_index=True)
        time = times(frame)
        keep = np.ones(time.size, dtype=bool)
        if start_ms is not None:
            keep &= time >= start_ms
        if end_ms is not None:
            keep &= time < end_ms
        return rows_where(frame, keep)

    def covered(self, key: SeriesKey) -> list[Span]:
        """The spans [start, end) that need not be asked for again, ascending and apart."""
        return [(int(a), int(b)) for a, b in self._manifest(key)["covered"]]

    def content_hash(self, key: SeriesKey) -> str:
        """sha256 over the series' content; equal content has an equal hash wherever it lies."""
        months = self._manifest(key)["months"]
        return hashlib.sha256("".join(months[m]["sha256"] for m in sorted(months)).encode()).hexdigest()

    def series(self) -> list[SeriesKey]:
        """Every series that the store holds."""
        if not self._files.exists(self._base):
            return []
        found = self._files.glob(f"{self._base}/*/*/*/manifest.json")
        keys = [json.loads(self._files.cat_file(path))["key"] for path in found]
        return sorted(SeriesKey(**key) for key in keys)

    def rows(self, key: SeriesKey) -> int:
        """How many rows a series has."""
        return sum(int(m["rows"]) for m in self._manifest(key)["months"].values())

    def save_contract(self, exchange: str, contract: Contract) -> None:
        """Keep a contract's rules beside its series."""
        text = json.dumps(contract.to_json(), indent=1)
        self._write(f"{exchange}/{symbol_folder(contract.symbol)}/contract.json", text.encode())

    def contract(self, exchange: str, symbol: str) -> Contract | None:
        """The rules that were kept for a contract, if any."""
        path = self._path(f"{exchange}/{symbol_folder(symbol)}/contract.json")
        if not self._files.exists(path):
            return None
        return Contract.from_json(json.loads(self._files.cat_file(path)))

    def _merge_month(
        self, key: SeriesKey, manifest: dict[str, Any], month: str, rows: pd.DataFrame, replaced: list[str]
    ) -> int:
        """Write one month's file if its content changes, and enter it in the manifest."""
        known = manifest["months"].get(month)
        before = self._read_month(key, known) if known else empty_frame(key.columns)
        merged = pd.concat([before, rows], ignore_index=True) if known else rows
        merged = merged.drop_duplicates("time_ms", keep="last").sort_values("time_ms", ignore_index=True)
        digest = _hash(merged)
        if known and known["sha256"] == digest:
            return 0
        name = f"{month}.{digest[:16]}.parquet"
        self._write(f"{key.folder}/{name}", merged.to_parquet(index=False))
        manifest["months"][month] = {"file": name, "rows": len(merged), "sha256": digest}
        if known:
            replaced.append(known["file"])
        same = merged.merge(before, on=list(key.columns), how="inner")
        return len(merged) - len(same)

    def _read_months(self, key: SeriesKey, first: str, last: str) -> list[pd.DataFrame]:
        months = self._manifest(key)["months"]
        return [self._read_month(key, months[m]) for m in sorted(months) if first <= m <= last]

    def _advice(self, key: SeriesKey) -> str:
        return f"delete the folder {self._path(key.folder)} and import or download the series again"

    def _read_month(self, key: SeriesKey, entry: dict[str, Any]) -> pd.DataFrame:
        path = self._path(f"{key.folder}/{entry['file']}")
        try:
            with self._files.open(path, "rb") as file:
                frame = pd.read_parquet(file)
        except FileNotFoundError as error:
            raise FileNotFoundError(error.errno, "missing", path) from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: the file is damaged ({error}); {self._advice(key)}") from None
        if _hash(frame) != entry["sha256"]:
            raise DataError(
                f"{path}: the content is not what was written (its hash differs); {self._advice(key)}"
            )
        return frame

    def _manifest(self, key: SeriesKey) -> dict[str, Any]:
        path = self._path(f"{key.folder}/manifest.json")
        try:
            manifest: dict[str, Any] = json.loads(self._files.cat_file(path))
        except FileNotFoundError:
            names = ("exchange", "symbol", "kind", "timeframe")
            named = {name: getattr(key, name) for name in names}
            return {"version": _MANIFEST_VERSION, "key": named, "months": {}, "covered": []}
        except ValueError as error:
            raise DataError(
                f"{path}: the manifest is damaged ({error}); delete its folder and import again"
            ) from None
        if manifest.get("version") != _MANIFEST_VERSION:
            raise DataError(
                f"{path}: written by another version of perpgym; delete its folder and import again"
            )
        return manifest

    def _path(self, below: str) -> str:
        return f"{self._base}/{below}"

    def _write(self, below: str, content: bytes) -> None:
        """Put a whole file in place at once."""
        path = self._path(below)
        self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        if not self._is_local:
            # object stores replace an object in one step
            self._files.pipe_file(path, content)
            return
        temporary = Path(f"{path}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(temporary.parent)
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _lock(self, key: SeriesKey) -> Iterator[None]:
        if not self._is_local:
            yield
            return
        folder = Path(self._path(key.folder))
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            yield


def _sync_folder(folder: Path) -> None:
    """Make a rename outlast a power cut, where the system lets a folder be synced."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def merge_spans(spans: list[Span]) -> list[Span]:
    """Spans [start, end), ascending, touching ones joined."""
    merged: list[Span] = []
    for start, end in sorted(s for s in spans if s[1] > s[0]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def missing_spans(wanted: Span, have: list[Span]) -> list[Span]:
    """What of ``wanted`` lies in none of the spans ``have``."""
    missing: list[Span] = []
    at = wanted[0]
    for start, end in merge_spans(have):
        if end <= at or start >= wanted[1]:
            continue
        if start > at:
            missing.append((at, start))
        at = max(at, end)
    if at < wanted[1]:
        missing.append((at, wanted[1]))
    return missing


def _month_name(time_ms: int) -> str:
    return iso(time_ms)[:7]


def _month(frame: pd.DataFrame) -> pd.Series:
    stamps = pd.Series(times(frame).astype("datetime64[ms]").astype("datetime64[M]").astype(str))
    return stamps.set_axis(frame.index)


def _hash(frame: pd.DataFrame) -> str:
    digest = hashlib.sha256()
    for name in frame.columns:
        kind = np.int64 if name == "time_ms" else np.float64
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(frame[name].to_numpy(dtype=kind)).tobytes())
    return digest.hexdigest()
