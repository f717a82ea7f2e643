"""What a table says of two contenders follows from both intervals, and can go against the hierarchy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from table_summary import compare, verdict
from table_units import Unit

from perpgym.evaluation.bootstrap import Interval
from perpgym.evaluation.metrics import sharpe_ratio
from perpgym.evaluation.seeds import Spread

YEAR = 8_760


def put(out: Path, contender: str, returns: Sequence[np.ndarray]) -> dict[Unit, Any]:
    """Units of one contender, a seed for each series of bar log returns."""
    results = {}
    for seed, series in enumerate(returns):
        unit = Unit("btc", contender, seed)
        unit.folder(out).mkdir(parents=True)
        np.savez_compressed(unit.returns(out), chosen=series)
        sharpe = sharpe_ratio(series, bars_per_year=YEAR)
        # as it is read from the result's JSON
        results[unit] = {"bars_per_year": YEAR, "chosen": {"sharpe": sharpe if np.isfinite(sharpe) else None}}
    return results


def traded(mean: float, seeds: int = 5, bars: int = 1_000) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(mean, 0.005, bars) for _ in range(seeds)]


def said(out: Path, one: Sequence[np.ndarray], other: Sequence[np.ndarray], *, is_fair: bool = True) -> str:
    results = put(out, "hppo", one) | put(out, "ppo_heads", other)
    return compare(out, results, "hppo", "ppo_heads", is_fair=is_fair)


def test_a_hierarchy_that_never_trades_is_worse_than_one_level_that_earns(tmp_path: Path) -> None:
    flat = [np.zeros(1_000)] * 5
    assert "the hierarchy costs more than it brings; ppo_heads is better" in said(
        tmp_path, flat, traded(8e-4)
    )


def test_a_hierarchy_that_never_trades_is_better_than_one_level_that_loses(tmp_path: Path) -> None:
    flat = [np.zeros(1_000)] * 5
    assert "the hierarchy earns its keep here" in said(tmp_path, flat, traded(-8e-4))


def test_two_that_never_trade_do_not_differ(tmp_path: Path) -> None:
    flat = [np.zeros(1_000)] * 5
    words = said(tmp_path, flat, flat)
    assert "differs by +0.00 [+0.00, +0.00] over 5 pairs of seeds and by +0.00 to +0.00 over bars" in words
    assert "does not earn its keep" in words


def test_only_seeds_of_both_are_compared(tmp_path: Path) -> None:
    assert "over 2 pairs" in said(tmp_path, traded(8e-4, seeds=4), traded(0.0, seeds=2))


def test_what_differs_by_more_than_the_second_level_gets_no_verdict_about_it(tmp_path: Path) -> None:
    words = said(tmp_path, traded(8e-4), traded(-8e-4), is_fair=False)
    assert "keep" not in words
    assert "they differ by more than the second level" in words


def test_test_periods_of_different_length_are_named_and_not_compared(tmp_path: Path) -> None:
    words = said(tmp_path, traded(8e-4), [*traded(0.0)[1:], np.zeros(976)])
    assert "cannot be compared: their test periods have 976 and 1000 bars" in words


@pytest.mark.parametrize(
    ("by_seed", "by_bar", "pairs", "says"),
    [
        ((0.1, 0.9), (0.1, 0.9), 5, "earns its keep here"),
        ((0.1, 0.9), (-0.1, 0.9), 5, "does not earn its keep"),
        ((-0.1, 0.9), (0.1, 0.9), 5, "does not earn its keep"),
        ((-0.9, -0.1), (-0.9, -0.1), 5, "costs more than it brings"),
        ((-0.9, -0.1), (-0.9, 0.1), 5, "does not earn its keep"),
        ((0.1, 0.9), (0.1, 0.9), 2, "too few seeds"),
    ],
)
def test_the_hierarchy_earns_its_keep_only_if_seeds_and_bars_both_say_so(
    by_seed: tuple[float, float], by_bar: tuple[float, float], pairs: int, says: str
) -> None:
    bars = Interval(low=by_bar[0], high=by_bar[1], level=0.95, draws=1, block_bars=1)
    assert says in verdict(Spread(0.5, *by_seed), bars, pairs, "hppo", "ppo_heads")
