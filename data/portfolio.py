"""Several contracts from one config: read one by one, or simulated in company, but never some of each."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from perpgym.data.clock import iso, parse_start_ms
from perpgym.data.config import DataConfig
from perpgym.data.errors import DataError
from perpgym.data.load import LoadedData, load_bars, simulation_of
from perpgym.data.synthetic import (
    SimulatedMarket,
    SimulatedMarketConfig,
    simulate_markets,
    simulated_contract,
)

if TYPE_CHECKING:
    from perpgym.data.sources.ccxt_download import ExchangeFactory, Sleep

_LOG = logging.getLogger(__name__)


def load_contracts(
    config: DataConfig, *, exchange_factory: ExchangeFactory | None = None, sleep: Sleep | None = None
) -> tuple[LoadedData, ...]:
    """Load and check every contract of the config, in its order.

    Args:
        config: what to load; ``config.contracts``, or ``config.symbol`` alone.
        exchange_factory, sleep: of the download, see ``ccxt_download.download``.

    Raises:
        DataError: the data of one of them are not there, or have faults that no named rule repairs.
        ValueError: ``config.simulated`` asks for an impossible company.
    """
    if not config.contracts:
        return (load_bars(config, exchange_factory=exchange_factory, sleep=sleep),)
    if config.source == "simulated":
        return simulate_contracts(config)
    loaded = []
    for symbol in config.contracts:
        one = load_bars(config.of(symbol), exchange_factory=exchange_factory, sleep=sleep)
        if one.fallback_reason is not None:
            return _all_simulated(config, one)
        loaded.append(one)
    return _with_end_notes(loaded)


def simulate_contracts(config: DataConfig) -> tuple[LoadedData, ...]:
    """One simulated market for each contract, moving together.

    ``config.simulated`` may hold, beside the settings of each market: ``correlation`` of returns;
    ``contracts``, how many of them are simulated, the first ones; ``listed``, by contract the first day, None
    for the start.
    """
    settings = config.simulated
    symbols = config.contracts[: settings.get("contracts")]
    listed = tuple(settings.get("listed") or ())
    if len(listed) > len(symbols):
        raise ValueError(
            f"data.simulated.listed has a first day for {len(listed)} contracts, {len(symbols)} are simulated"
        )
    first = simulation_of(config.of(symbols[0]))
    correlation = float(settings.get("correlation", 0.6))
    try:
        configs = tuple(_in_company(first, symbol, number) for number, symbol in enumerate(symbols))
        markets = simulate_markets(configs, correlation=correlation, seed=first.seed)
    except KeyError as error:
        raise DataError(f"the simulated market needs shipped contracts: {error.args[0]}") from None
    source = (
        f"simulated (seed {first.seed}, edge {first.edge:g}, {len(symbols)} contracts correlated "
        f"{correlation:g})"
    )
    days = [*listed, *[None] * (len(symbols) - len(listed))]
    return tuple(_from_listing(market, day, source) for market, day in zip(markets, days, strict=True))


def _in_company(first: SimulatedMarketConfig, symbol: str, number: int) -> SimulatedMarketConfig:
    """The first market's settings for another contract, at a price at which its lots are worth as much."""
    if number == 0:
        return first
    # far from the small seeds that people choose, or the second market of one would be the first of the next
    seed = int(np.random.SeedSequence([first.seed, number]).generate_state(1)[0])
    lots = [simulated_contract(name).lot_size for name in (first.symbol, symbol)]
    return replace(first, symbol=symbol, seed=seed, start_price=first.start_price * lots[0] / lots[1])


def _from_listing(market: SimulatedMarket, day: str | None, source: str) -> LoadedData:
    bars, planted = market.bars, market.planted
    if day is not None:
        first = int(np.searchsorted(bars.open_time_ms, parse_start_ms(day)))
        if first >= len(bars):
            raise ValueError(
                f"data.simulated.listed: {bars.contract.symbol} cannot be listed on {day}: the market "
                f"ends on {iso(int(bars.close_time_ms[-1]))}"
            )
        bars, planted = bars.slice(first, len(bars)), planted[first:]
    return LoadedData(bars=bars, source=source, planted=planted)


def _all_simulated(config: DataConfig, fallen: LoadedData) -> tuple[LoadedData, ...]:
    """After one contract could not be had: bars that were traded and bars that were drawn do not mix."""
    symbols = ", ".join(config.contracts)
    _LOG.warning("NOT REAL DATA: all contracts (%s) are simulated together", symbols)
    note = f"NOT REAL DATA: the simulated market stands in for {symbols}, because {fallen.fallback_reason}"
    simulated = simulate_contracts(config)
    return tuple(
        replace(one, source=fallen.source, fallback_reason=fallen.fallback_reason, notes=(note,))
        for one in simulated
    )


def _with_end_notes(loaded: list[LoadedData]) -> tuple[LoadedData, ...]:
    """Say of contracts that end before the others that what is held of them then cannot be sold."""
    end = max(int(one.bars.close_time_ms[-1]) for one in loaded)
    out = []
    for one in loaded:
        last = int(one.bars.close_time_ms[-1])
        notes: tuple[str, ...] = ()
        if last < end:
            notes = (
                f"{one.bars.contract.symbol}: its bars end at {iso(last)}, before the others' at {iso(end)}; "
                "a position held then stays at its last price, so let the data end there if that matters",
            )
            _LOG.warning("%s", notes[0])
        out.append(replace(one, notes=(*one.notes, *notes)))
    return tuple(out)
