"""A simulated market: hourly BTC as it behaves, with one planted edge that is stated and can be switched off.

What is hidden: a stationary Gaussian AR(1) z, the crowding of the market. What it does, per hour:

    expected total return of a long over the next bar (price change less funding) = -edge * planted_sd * z

and how it shows: basis of last to mark at the close = trace * (z + noise), and the funding rate leans on z.
A crowded market (high basis, high funding) falls, so a short earns the drift.

Everything else is a martingale. A return is -sigma^2 / 2 + sigma N with a sigma drawn independently of the
normal N, and the price makes good the funding of the bar that owns its stamp, so that neither volatility,
regime, season, noise of the basis nor funding as such earns anything. With ``edge=0`` every series is drawn
from the same numbers except for the drift: the trace is there and means nothing.

Calibration and how it was measured: ``data/stylised_facts.py`` and ``docs/simulated_market.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perpgym.data import synthetic_series as series
from perpgym.data.bars import OPEN, Bars
from perpgym.data.clock import parse_end_ms, parse_start_ms
from perpgym.data.contract import HOUR_MS, Contract, load_contract

Floats = NDArray[np.float64]

_STREAMS = (
    "signal", "shock", "fast", "slow", "regime", "tail",
    "jump", "wick", "basis", "funding", "volume", "spread", "company",
)  # fmt: skip
# drawn for all markets jointly, in part: returns and volatility move together
_COMMON_STREAMS = ("shock", "fast", "slow", "tail", "jump", "regime")
_COMMON_NORMALS = ("shock", "fast", "slow", "tail")
_FUNDING_MS = 8 * HOUR_MS
# a finer tick and lot than the exchange's, see simulated_contract
_RULE_SCALE = 1e-2


@dataclass(frozen=True, kw_only=True)
class SimulatedMarketConfig:
    """What is simulated.

    Attributes:
        symbol: a shipped contract; its tick and lot are made finer, see ``simulated_contract``.
        start, end: UTC, ISO 8601; a bare ``end`` date includes its day.
        bar_ms: length of a bar; divides 8 hours.
        seed: of every random number; two seeds are independent markets. The default is an ordinary one: what
            there was to earn from 2024-07 to 2025-06 is close to its mean over seeds.
        edge: scale of the planted expected return; 0 switches it off and leaves a martingale.
        planted_sd_bps: per hour, stationary deviation of the planted expected return at ``edge=1``.
        signal_half_life_hours: of the planted expected return.
        trace_bps: deviation of the part of the basis that follows the signal.
        trace_noise: variance of the basis's noise over that of its signal part.
        sigma_per_hour: fraction, typical volatility in the middle regime.
        start_price: quote.
        volume_notional: quote per hour, median.
        half_spread_bps: typical.
    """

    symbol: str = "BTC/USDT:USDT"
    start: str = "2012-01-01"
    end: str = "2025-06-30"
    bar_ms: int = HOUR_MS
    seed: int = 6
    edge: float = 1.0
    planted_sd_bps: float = 1.8
    signal_half_life_hours: float = 48.0
    trace_bps: float = 2.5
    trace_noise: float = 0.25
    sigma_per_hour: float = 0.0039
    start_price: float = 20_000.0
    volume_notional: float = 4.0e8
    half_spread_bps: float = 1.0

    def __post_init__(self) -> None:
        if self.bar_ms <= 0 or _FUNDING_MS % self.bar_ms:
            raise ValueError(f"bar_ms must divide 8 hours (28800000 ms), was {self.bar_ms}")
        if parse_end_ms(self.end) - parse_start_ms(self.start) < 2 * self.bar_ms:
            raise ValueError(f"end must lie at least two bars after start, was {self.start} to {self.end}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, was {self.seed}")
        for name in (
            "signal_half_life_hours",
            "trace_bps",
            "sigma_per_hour",
            "start_price",
            "volume_notional",
            "half_spread_bps",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, was {getattr(self, name)}")
        if not abs(self.edge) * self.planted_sd_bps <= 100:
            raise ValueError(
                "edge * planted_sd_bps must stay within 100 bp per hour, "
                f"was {self.edge} * {self.planted_sd_bps}; edge is a multiple, 1 is the stated market"
            )
        if not self.trace_noise >= 0:
            raise ValueError(
                f"trace_noise must not be negative (a ratio of variances), was {self.trace_noise}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedMarket:
    """Bars, and the truth behind them that only an oracle and a test may read.

    Attributes:
        bars: what an agent may know.
        planted: (T,) float64, expected simple total return of a long over bar t + 1 (close to close of the
            last price, less the funding of that bar), given everything hidden at the close of t;
            all zero without edge.
        signal: (T,) float64, z at the close, mean 0 and variance 1; there with and without edge.
        persistence: correlation of ``signal`` with itself one bar later.
        planted_sd: stationary deviation of ``planted``, fraction per bar.
        regime: (T,) int64, 0 calm, 1 normal, 2 stressed, in force during the bar.
        half_spread_bps: (T,) float64, half of the quoted spread; wide in quiet hours and rough markets.
    """

    bars: Bars
    planted: Floats
    signal: Floats
    persistence: float
    planted_sd: float
    regime: NDArray[np.int64]
    half_spread_bps: Floats


def simulated_contract(symbol: str) -> Contract:
    """The shipped rules with a finer tick and lot.

    A martingale at 65 % a year wanders over decades of price within ten years; the real tick would be
    invisible at one end and several basis points at the other.
    """
    rules = load_contract(symbol)
    return replace(
        rules,
        tick_size=rules.tick_size * _RULE_SCALE,
        lot_size=rules.lot_size * _RULE_SCALE,
        min_quantity=rules.min_quantity * _RULE_SCALE,
    )


def simulate_market(config: SimulatedMarketConfig) -> SimulatedMarket:
    """Simulate one contract; the same config gives the same market, bit for bit."""
    return _simulate(config, None, 0.0)


def simulate_markets(
    configs: tuple[SimulatedMarketConfig, ...], *, correlation: float = 0.6, seed: int = 0
) -> tuple[SimulatedMarket, ...]:
    """Simulate several contracts with a common factor in returns, volatility and jumps.

    Signals, funding, basis and noise are each contract's own: what one plants says nothing about another.

    Args:
        configs: one clock (start, end and bar_ms); different seeds.
        correlation: of any two contracts' returns, [0, 1]; the shocks, the log volatilities and the jumps
            share a little more. The regime of volatility is one for all.
        seed: of the common part.

    Raises:
        ValueError: clocks differ, seeds repeat, or the correlation is impossible.
    """
    if len({(c.start, c.end, c.bar_ms) for c in configs}) > 1:
        raise ValueError("simulated markets must share start, end and bar_ms")
    if len({c.seed for c in configs}) < len(configs):
        raise ValueError(
            "simulated markets need different seeds, or they would be copies: "
            f"were {[c.seed for c in configs]}"
        )
    if not 0.0 <= correlation <= 1.0:
        raise ValueError(f"correlation must lie between 0 and 1, was {correlation}")
    return tuple(_simulate(c, seed, correlation) for c in configs)


def _simulate(config: SimulatedMarketConfig, common_seed: int | None, correlation: float) -> SimulatedMarket:
    """Draw everything: states at the closes of bars -1 ... T - 1 (T + 1 of them), flows by bar (T)."""
    contract = simulated_contract(config.symbol)
    open_time_ms = _clock(config)
    bars = open_time_ms.shape[0]
    rng = _streams(0, config.seed, _STREAMS)
    shared = _shared(bars, config.bar_ms, rng, common_seed, correlation)

    rho = series.persistence(config.signal_half_life_hours, config.bar_ms)
    signal = series.autoregression(rng["signal"].standard_normal(bars + 1), rho)
    planted_sd = config.edge * config.planted_sd_bps * 1e-4 * config.bar_ms / HOUR_MS
    planted = -planted_sd * signal if planted_sd != 0 else np.zeros(bars + 1)

    # settled at these bars' closes, from what was there before they opened
    owners = np.flatnonzero((open_time_ms + config.bar_ms) % _FUNDING_MS == 0)
    stamp_rate = series.funding_rates(
        _trailing_mean(signal, config.bar_ms)[owners], contract.funding_cap, rng["funding"]
    )
    compensation = np.zeros(bars)
    compensation[owners] = stamp_rate

    core, excess = series.sigma_core(
        open_time_ms, config.bar_ms, config.sigma_per_hour, shared.regime, shared.slow, shared.fast
    )
    sigma, tail = series.sigma_of_bars(core, config.bar_ms, shared.tail, shared.jump)
    log_return = series.log_returns(planted[:-1] + compensation, sigma, shared.shock)

    close = config.start_price * np.exp(np.concatenate([[0.0], np.cumsum(log_return)]))
    noise = rng["basis"].standard_normal(bars + 1)
    basis = config.trace_bps * 1e-4 * (signal + np.sqrt(config.trace_noise) * noise)
    beyond = series.excursions(log_return, sigma, rng["wick"])
    last, mark = series.last_and_mark(close, basis, beyond, sigma, config.bar_ms, rng["wick"])
    notional = series.traded_notional(
        open_time_ms, config.bar_ms, config.volume_notional, excess, tail, rng["volume"]
    )
    return SimulatedMarket(
        bars=Bars(
            contract=contract,
            bar_ms=config.bar_ms,
            open_time_ms=open_time_ms,
            last=_to_multiple(last, contract.tick_size),
            mark=mark,
            volume=_to_multiple(notional / last[:, OPEN], contract.lot_size),
            stamp_time_ms=open_time_ms[owners] + config.bar_ms,
            stamp_rate=stamp_rate,
        ),
        planted=planted[1:],
        signal=signal[1:],
        persistence=rho,
        planted_sd=abs(planted_sd),
        regime=shared.regime,
        half_spread_bps=series.half_spreads(open_time_ms, config.half_spread_bps, excess, rng["spread"]),
    )


def _clock(config: SimulatedMarketConfig) -> NDArray[np.int64]:
    """(T,) open times, on multiples of the bar since the epoch."""
    first = -(-parse_start_ms(config.start) // config.bar_ms) * config.bar_ms
    return np.arange(first, parse_end_ms(config.end) - config.bar_ms + 1, config.bar_ms, dtype=np.int64)


def _streams(kind: int, seed: int, names: tuple[str, ...]) -> dict[str, np.random.Generator]:
    """One generator a mechanism, so that a change to one leaves the others' numbers alone."""
    children = np.random.SeedSequence([kind, seed]).spawn(len(names))
    return {name: np.random.default_rng(child) for name, child in zip(names, children, strict=True)}


class _Shared(NamedTuple):
    """What a market has in common with others, (T,) each: normals, uniforms of the jumps, regime."""

    shock: Floats
    fast: Floats
    slow: Floats
    tail: Floats
    jump: Floats
    regime: NDArray[np.int64]


def _shared(
    bars: int, bar_ms: int, own: dict[str, np.random.Generator], common_seed: int | None, correlation: float
) -> _Shared:
    """Draws that correlate with those of every market of the same common seed."""
    normals = {name: own[name].standard_normal(bars) for name in _COMMON_NORMALS}
    jump = own["jump"].random(bars)
    if common_seed is None:
        return _Shared(jump=jump, regime=series.regimes(bars, bar_ms, own["regime"]), **normals)
    common = _streams(1, common_seed, _COMMON_STREAMS)
    share = series.shock_correlation(correlation)
    mixed = {
        name: np.sqrt(share) * common[name].standard_normal(bars) + np.sqrt(1.0 - share) * mine
        for name, mine in normals.items()
    }
    # two markets that both take the common draw jump together
    is_common = own["company"].random(bars) < np.sqrt(share)
    jump = np.where(is_common, common["jump"].random(bars), jump)
    return _Shared(jump=jump, regime=series.regimes(bars, bar_ms, common["regime"]), **mixed)


def _trailing_mean(signal: Floats, bar_ms: int) -> Floats:
    """(T + 1,) mean over the funding interval that ends at each close; shorter at the very start."""
    window = _FUNDING_MS // bar_ms
    total = np.concatenate([[0.0], np.cumsum(signal)])
    index = np.arange(signal.shape[0])
    first = np.maximum(index + 1 - window, 0)
    return np.asarray((total[index + 1] - total[first]) / (index + 1 - first), dtype=np.float64)


def _to_multiple(values: Floats, step: float) -> Floats:
    """Rounded to the nearest multiple, at least one of it."""
    return np.asarray(np.maximum(np.round(values / step), 1.0) * step, dtype=np.float64)
