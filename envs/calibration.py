"""How much an order moves the price: Y of the square-root law, fitted to recorded trades.

``python -m perpgym.envs.calibration FILE [FILE …] [--bin-s S]`` reads captures of the exchange's trade
stream and prints Y with its interval; set it as ``env.impact_coefficient``.

In each bin of time the net order flow q (what buyers took less what sellers took) meets the bin's log
return r. The law says r = Y * sigma * sign(q) * sqrt(|q| / V), with sigma the deviation of r and V the mean
volume of a bin: Y is the slope through the origin, by least squares. Assumptions: the aggregate flow of all
takers stands in for one order of the same size, so what others do in the same direction at the same time is
counted as impact, and Y comes out high; the interval resamples whole blocks of bins, because order flow is
persistent.

Source of the law: Tóth et al. 2011, eq. 1; of the aggregated form: Bouchaud, Bonart, Donier, Gould 2018,
    "Trades,
Quotes and Prices", section 11.4.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perpgym.data.errors import DataError
from perpgym.data.sources.capture import read_trades

_LEAST_BINS = 100
_BLOCKS = 50
_DRAWS = 1_000


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Y and what it rests on.

    Attributes:
        coefficient: Y, dimensionless.
        low, high: bounds of its 95 % interval.
        bins: how many bins had trades.
        sigma_per_bin: deviation of a bin's log return.
        explained: share of the variance of returns that the law explains.
    """

    coefficient: float
    low: float
    high: float
    bins: int
    sigma_per_bin: float
    explained: float


def fit_impact(trades: pd.DataFrame, *, bin_ms: int = 1_000, seed: int = 0) -> Calibration:
    """Fit Y of the square-root law to trades.

    Args:
        trades: columns ``time_ms``, ``price`` and signed ``quantity``, as ``read_trades`` gives them;
            ascending.
        bin_ms: length of a bin, milliseconds.
        seed: of the resampling.

    Raises:
        DataError: fewer than 100 bins have trades, or the price never moves.
    """
    returns, flow, volume = _binned(trades, bin_ms)
    if returns.size < _LEAST_BINS:
        raise DataError(
            f"{returns.size} bins of {bin_ms} ms have trades, at least {_LEAST_BINS} are needed: "
            "record longer, or use shorter bins"
        )
    sigma = float(returns.std())
    if sigma == 0.0:
        raise DataError("the price never moves in these trades: nothing can be fitted")
    law = sigma * np.sign(flow) * np.sqrt(np.abs(flow) / volume.mean())
    coefficient = _slope(law, returns)
    draws = _resampled_slopes(law, returns, np.random.default_rng(seed))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Calibration(
        coefficient=coefficient,
        low=float(low),
        high=float(high),
        bins=int(returns.size),
        sigma_per_bin=sigma,
        explained=1.0 - float(np.mean((returns - coefficient * law) ** 2) / np.mean(returns**2)),
    )


def _binned(trades: pd.DataFrame, bin_ms: int) -> tuple[NDArray[np.float64], ...]:
    """Log return since the last trade before, net flow and volume of each bin with trades but the first."""
    rows = trades.assign(bin=trades["time_ms"] // bin_ms, volume=trades["quantity"].abs())
    bins = rows.groupby("bin", sort=True).agg(price=("price", "last"), flow=("quantity", "sum"),
                                              volume=("volume", "sum"))  # fmt: skip
    returns = np.diff(np.log(bins["price"].to_numpy(np.float64)))
    return returns, bins["flow"].to_numpy(np.float64)[1:], bins["volume"].to_numpy(np.float64)[1:]


def _slope(law: NDArray[np.float64], returns: NDArray[np.float64]) -> float:
    return float(law @ returns / (law @ law))


def _resampled_slopes(
    law: NDArray[np.float64], returns: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """(draws,) slopes of resampled blocks of consecutive bins."""
    blocks = np.array_split(np.arange(law.size), min(_BLOCKS, law.size))
    upper = np.array([law[block] @ returns[block] for block in blocks])
    lower = np.array([law[block] @ law[block] for block in blocks])
    picks = rng.integers(0, len(blocks), (_DRAWS, len(blocks)))
    return np.asarray(upper[picks].sum(axis=1) / lower[picks].sum(axis=1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print Y of every file named; 1 if one of them could not be used."""
    parser = argparse.ArgumentParser(prog="python -m perpgym.envs.calibration", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="capture of the trade stream, plain or .gz")
    parser.add_argument("--bin-s", type=float, default=1.0, help="length of a bin in seconds")
    options = parser.parse_args(arguments)
    failed = 0
    for path in options.files:
        try:
            fit = fit_impact(read_trades(path), bin_ms=max(1, round(options.bin_s * 1_000)))
        except (DataError, OSError) as error:
            print(error, file=sys.stderr)
            failed = 1
            continue
        print(
            f"{path}: Y = {fit.coefficient:.2f} (95 % {fit.low:.2f} to {fit.high:.2f}), {fit.bins} bins of "
            f"{options.bin_s:g} s, sigma {1e4 * fit.sigma_per_bin:.3f} bp, {fit.explained:.0%} explained"
        )
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
