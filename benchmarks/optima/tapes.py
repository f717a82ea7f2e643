"""Tapes whose feature is the signal of a problem, and whose planted return is its expected return."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from references import CHAOUKI_BARS, CHAOUKI_PERSISTENCE

from perpgym.data.bars import CLOSE, HIGH, LOW, OPEN
from perpgym.data.contract import HOUR_MS, Contract
from perpgym.data.synthetic_series import autoregression
from perpgym.data.tape import Tape

Floats = NDArray[np.float64]

# 2020-01-01 00:00 UTC; nothing depends on it
_START_MS = 1_577_836_800_000
_PRICE = 100.0


def make_tape(
    features: Floats, *, planted: Floats, returns: Floats | None = None, funding_rate: Floats | None = None
) -> Tape:
    """A tape of one contract without fees, spread or wicks.

    Args:
        features: (T, F), known at the close of each bar.
        planted: (T,) expected simple return of a long over the bar after, net of funding.
        returns: (T,) simple return of each bar; None for a price that stands still, so that an exposure stays
            what it was traded to.
        funding_rate: (T,) fraction of notional, settled at the close of each bar; None for no settlement.
    """
    bars = len(features)
    close = np.full(bars, _PRICE) if returns is None else _PRICE * np.cumprod(1.0 + returns)
    opens = np.concatenate(([_PRICE], close[:-1]))
    prices = np.empty((bars, 1, 4))
    prices[:, 0, OPEN], prices[:, 0, CLOSE] = opens, close
    prices[:, 0, HIGH], prices[:, 0, LOW] = np.maximum(opens, close), np.minimum(opens, close)
    open_time_ms = _START_MS + HOUR_MS * np.arange(bars, dtype=np.int64)
    is_settled = funding_rate is not None
    return Tape(
        contracts=(Contract(symbol="OPTIMUM/USDT:USDT"),),
        bar_ms=HOUR_MS,
        open_time_ms=open_time_ms,
        last=prices,
        mark=prices,
        volume=np.full((bars, 1), 1e12),
        sigma_per_bar=np.full((bars, 1), 0.01),
        # bar t owns the stamp of its own close
        stamp_start=np.arange(bars + 1, dtype=np.int64)[None] * int(is_settled),
        stamp_time_ms=open_time_ms + HOUR_MS if is_settled else np.empty(0, np.int64),
        stamp_rate=np.empty(0) if funding_rate is None else funding_rate,
        features=np.asarray(features, np.float32)[:, None, :],
        risk=np.zeros((bars, 1, 0), np.float32),
        feature_names=tuple(f"signal_{i}" for i in range(features.shape[1])),
        risk_names=(),
        first_valid_bar=0,
        mark_rules=("mark",),
        source="a problem whose optimum is known",
        planted=planted[:, None],
    )


def signal_tape(signal: Floats, *, mean_per_signal: float, noise_sd: float = 0.0, seed: int = 0) -> Tape:
    """The signal is the feature, and ``mean_per_signal`` times it the expected return of the next bar.

    Args:
        signal: (T,), of size one.
        mean_per_signal: fraction per bar.
        noise_sd: deviation of a bar's return around its mean; 0 for a price that stands still, on which only
            a reward of conditional means earns anything.
        seed: of the noise.
    """
    planted = mean_per_signal * signal
    returns = None
    if noise_sd > 0.0:
        noise = noise_sd * np.random.default_rng(seed).standard_normal(signal.size)
        returns = np.concatenate(([0.0], planted[:-1])) + noise
    return make_tape(signal[:, None], planted=planted, returns=returns)


def stationary_signal(bars: int, persistence: float, seed: int) -> Floats:
    """(T,) a Gaussian AR(1) of mean 0 and variance 1."""
    return autoregression(np.random.default_rng(seed).standard_normal(bars), persistence)


def chaouki_signal(seed: int) -> Floats:
    """(5000,) the signal of a test episode of Chaouki et al.: an AR(1) from 0, innovation variance 0.2."""
    normals = np.random.RandomState(seed).normal(0.0, 1.0, CHAOUKI_BARS)
    signal = np.empty(CHAOUKI_BARS)
    state = 0.0
    for bar, normal in enumerate(normals.tolist()):
        state = CHAOUKI_PERSISTENCE * state + np.sqrt(0.2) * normal
        signal[bar] = state
    return signal


def mirrored_tape(
    *,
    pairs: int,
    half_bars: int,
    drift: float,
    sigma_per_bar: float,
    funding_rate: float,
    seed: int,
) -> Tape:
    """Independent returns in stretches, each followed by its mirror image, so the sample's drift is exact.

    Args:
        pairs: stretches and mirrors.
        half_bars: bars of a stretch.
        drift: mean simple return of a bar before funding.
        sigma_per_bar: its deviation, exact over every pair.
        funding_rate: settled at every close, fraction of notional.
        seed: of the returns.
    """
    noise = np.random.default_rng(seed).standard_normal((pairs, half_bars))
    noise /= np.sqrt(np.square(noise).mean(axis=1, keepdims=True))
    shocks = sigma_per_bar * np.concatenate((noise, -noise), axis=1).ravel()
    bars = shocks.size
    return make_tape(
        np.zeros((bars, 1)),
        planted=np.full(bars, drift - funding_rate),
        returns=drift + shocks,
        funding_rate=np.full(bars, funding_rate),
    )


def countdown_tape(bars: int, *, funding_rate: float = 0.0) -> Tape:
    """A price that stands still, and how much of the episode is left as the feature: 1 at first, then less.

    Args:
        bars: of an episode; the tape has one more, on which the first decision is taken.
        funding_rate: settled at every close.
    """
    left = np.arange(bars, -1, -1) / bars
    rates = np.full(bars + 1, funding_rate) if funding_rate != 0.0 else None
    return make_tape(left[:, None], planted=np.full(bars + 1, -funding_rate), funding_rate=rates)


def net_returns(tape: Tape) -> Floats:
    """(T,) what a long earned over each bar, over its notional at the bar's start.

    The env settles funding on the notional at the close, so the rate is on 1 + return.
    """
    opens, close = tape.mark[:, 0, OPEN], tape.mark[:, 0, CLOSE]
    returns = close / opens - 1.0
    rate = np.zeros(len(tape)) if tape.stamp_rate.size == 0 else tape.stamp_rate
    return np.asarray(returns - rate * (1.0 + returns))
