"""From settings to the checked bars of a contract: which source is used, and what is said about it."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from perpgym.data.align import align
from perpgym.data.bars import Bars
from perpgym.data.clock import iso, timeframe_ms
from perpgym.data.config import DataConfig
from perpgym.data.contract import Contract, load_contract, shipped_contracts
from perpgym.data.errors import DataError
from perpgym.data.frames import RawFrames, times
from perpgym.data.quality import Finding
from perpgym.data.sources.binance_vision import read_binance_vision
from perpgym.data.sources.freqtrade import read_freqtrade
from perpgym.data.sources.table import read_table
from perpgym.data.store import KINDS, SeriesKey, Store

if TYPE_CHECKING:
    from perpgym.data.sources.ccxt_download import ExchangeFactory, Sleep
    from perpgym.data.synthetic import SimulatedMarketConfig

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedData:
    """Checked bars with what has to be known about them.

    Attributes:
        bars: fit for training.
        source: where they came from, in words for people; begins with ``simulated`` if nobody traded them.
        findings: of the quality checks; none is an error.
        notes: sentences for the log and the report's first screen: the mark rule, repairs, short spans.
        fallback_reason: why the simulated market stands in for the one asked for; None if it does not.
        planted: (T,) float64 or None: the simulated market's truth, for the oracle only.
    """

    bars: Bars
    source: str
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    fallback_reason: str | None = None
    planted: NDArray[np.float64] | None = None


def load_bars(
    config: DataConfig,
    *,
    contract: Contract | None = None,
    exchange_factory: ExchangeFactory | None = None,
    sleep: Sleep | None = None,
) -> LoadedData:
    """Load and check one contract's bars.

    Args:
        config: what to load; ``portfolio.load_contracts`` reads several.
        contract: its rules; None takes the shipped snapshot or what was kept at the download.
        exchange_factory, sleep: of the download, see ``ccxt_download.download``.

    Raises:
        DataError: the data are not there, or have faults that no named rule repairs; the message names the
            file and says what to do.
        ValueError: the config names several contracts.
    """
    if config.contracts:
        raise ValueError(
            "load_bars loads one contract: call perpgym.data.portfolio.load_contracts for several"
        )
    if config.source == "simulated":
        return _simulate(config)
    if config.source == "auto":
        return _auto(config, contract, exchange_factory, sleep)
    if config.source == "download":
        _download(config, exchange_factory, sleep)
    return _checked(config, read_frames(config), contract)


def read_frames(config: DataConfig) -> RawFrames:
    """The raw frames of a source that keeps data, before any check; not for ``simulated``.

    Raises:
        DataError: the source has no such data.
    """
    path = config.path or ""
    if config.source == "freqtrade":
        return read_freqtrade(path, config.symbol, config.timeframe, exchange=config.exchange)
    if config.source == "binance_vision":
        return read_binance_vision(path, config.symbol, config.timeframe)
    if config.source == "table":
        return read_table(
            path,
            config.symbol,
            config.timeframe,
            funding_path=config.funding_path,
            mark_path=config.mark_path,
            columns=config.columns,
        )
    return _read_store(config)


def contract_of(config: DataConfig) -> Contract:
    """The rules of the configured contract: shipped, or kept in the store at its download.

    Raises:
        DataError: neither is there.
    """
    kept = Store(config.store).contract(config.exchange, config.symbol)
    if config.symbol in shipped_contracts() and (config.exchange == "binance" or kept is None):
        return load_contract(config.symbol)
    if kept is None:
        raise DataError(
            f"no contract rules for {config.symbol}: shipped are {', '.join(shipped_contracts())}. Download "
            "the contract, which keeps its rules, or pass a perpgym.data.contract.Contract of your own"
        )
    return kept


def _checked(config: DataConfig, raw: RawFrames, contract: Contract | None) -> LoadedData:
    start, end = config.span_ms
    raw = raw.between(start, end)
    aligned = align(raw, contract or contract_of(config), repair=config.repair, mark=config.mark)
    notes = (*aligned.notes, *_span_notes(aligned.bars, start, end))
    for note in notes:
        _LOG.warning("%s", note)
    return LoadedData(bars=aligned.bars, source=raw.source, findings=aligned.findings, notes=notes)


def _span_notes(bars: Bars, start: int | None, end: int | None) -> tuple[str, ...]:
    """What to say if the data are shorter than the dates asked for."""
    first, last = int(bars.open_time_ms[0]), int(bars.open_time_ms[-1]) + bars.bar_ms
    late = start is not None and first - start >= bars.bar_ms
    early = end is not None and end - last >= bars.bar_ms
    if not late and not early:
        return ()
    return (
        f"{bars.contract.symbol}: the data cover only {iso(first)} to {iso(last)} of the dates asked for",
    )


def _read_store(config: DataConfig) -> RawFrames:
    store = Store(config.store)
    key = SeriesKey(exchange=config.exchange, symbol=config.symbol, kind="last", timeframe=config.timeframe)
    start, end = config.span_ms
    last = store.read(key, start, end)
    if last.empty:
        there = ", ".join(
            f"{k.exchange} {k.symbol} {k.timeframe}" for k in store.series() if k.kind == "last"
        )
        raise DataError(
            f"{store.root}: the store has no {config.timeframe} bars of {config.symbol} ({config.exchange}) "
            f"for these dates; it has {there or 'nothing'}. Fill it with: python -m perpgym.data import, or "
            "download"
        )
    # the stamp at the end instant belongs to the bar that closes there
    stamp_end = None if end is None else end + 60_000
    mark = store.read(replace(key, kind="mark"), start, end)
    premium = store.read(replace(key, kind="premium"), start, end)
    funding = store.read(replace(key, kind="funding", timeframe=""), start, stamp_end)
    return RawFrames(
        symbol=config.symbol,
        bar_ms=timeframe_ms(config.timeframe),
        last=last,
        mark=None if mark.empty else mark,
        funding=None if funding.empty else funding,
        premium=None if premium.empty else premium,
        origin={kind: f"store {store.root}, {kind} of {config.symbol}" for kind in KINDS},
        source=f"store {store.root} ({config.exchange})",
    )


def _auto(
    config: DataConfig, contract: Contract | None, factory: ExchangeFactory | None, sleep: Sleep | None
) -> LoadedData:
    from perpgym.data.sources.ccxt_exchange import DownloadError

    try:
        _download(config, factory, sleep)
    except DownloadError as error:
        if not _store_reaches(config):
            return _fall_back(config, error.reason)
        _LOG.warning("the store has the bars, but could not be brought up to date: %s", error.reason)
    return _checked(config, _read_store(config), contract)


def _store_reaches(config: DataConfig) -> bool:
    """Whether the store has bars and funding from the first date asked for to the last."""
    start, end = config.span_ms
    assert start is not None
    assert end is not None
    key = SeriesKey(exchange=config.exchange, symbol=config.symbol, kind="last", timeframe=config.timeframe)
    store = Store(config.store)
    bars = times(store.read(key, start, end))
    stamps = store.read(replace(key, kind="funding", timeframe=""), start, end)
    bar_ms = timeframe_ms(config.timeframe)
    return bool(bars.size and bars[0] - start < bar_ms and end - bars[-1] <= bar_ms and len(stamps))


def _download(config: DataConfig, factory: ExchangeFactory | None, sleep: Sleep | None) -> None:
    """Bring the store up to the config's dates; asks nobody if it has them."""
    import time

    from perpgym.data.sources.ccxt_download import DownloadRequest, download

    assert config.start is not None
    assert config.end is not None
    request = DownloadRequest(
        symbol=config.symbol,
        timeframe=config.timeframe,
        exchange=config.exchange,
        start=config.start,
        end=config.end,
        kinds=("last", "funding") if config.mark == "last" else ("last", "mark", "funding"),
        timeout_s=config.download_timeout_s,
    )
    download(
        request,
        Store(config.store),
        exchange_factory=factory,
        sleep=sleep or time.sleep,
        show_progress=sys.stderr.isatty(),
    )


def _fall_back(config: DataConfig, reason: str) -> LoadedData:
    _LOG.warning(
        "NOT REAL DATA: %s %s to %s could not be downloaded (%s). The simulated market stands in for it; "
        "nothing learnt or reported from here on is about %s",
        config.symbol,
        config.start,
        config.end,
        reason,
        config.symbol,
    )
    simulated = _simulate(config)
    note = f"NOT REAL DATA: the simulated market stands in for {config.symbol}, because {reason}"
    return replace(
        simulated,
        source=f"simulated (fallback: {reason})",
        notes=(note, *simulated.notes),
        fallback_reason=reason,
    )


def simulation_of(config: DataConfig) -> SimulatedMarketConfig:
    """The simulated market that the config describes.

    Raises:
        ValueError: a setting of ``simulated`` is unknown or of the wrong type.
    """
    from perpgym.data.synthetic import SimulatedMarketConfig

    settings: dict[str, Any] = {"symbol": config.symbol, "bar_ms": timeframe_ms(config.timeframe)}
    settings |= {
        name: getattr(config, name) for name in ("start", "end") if getattr(config, name) is not None
    }
    settings |= config.simulated
    try:
        return SimulatedMarketConfig(**settings)
    except TypeError as error:
        known = ", ".join(SimulatedMarketConfig.__dataclass_fields__)
        raise ValueError(
            f"data.simulated: a setting is unknown or of the wrong type ({error}); known are {known}"
        ) from None


def _simulate(config: DataConfig) -> LoadedData:
    from perpgym.data.synthetic import simulate_market

    market_config = simulation_of(config)
    try:
        market = simulate_market(market_config)
    except KeyError as error:
        raise DataError(f"the simulated market needs a shipped contract: {error.args[0]}") from None
    return LoadedData(
        bars=market.bars,
        source=f"simulated (seed {market_config.seed}, edge {market_config.edge:g})",
        planted=market.planted,
    )
