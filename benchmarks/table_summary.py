"""Units in words: a line for each contender beside the baselines, and whether two levels beat one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from table_units import BASELINES, Plan, Unit

from perpgym.evaluation import metrics
from perpgym.evaluation.bootstrap import Interval, sharpe_difference_interval
from perpgym.evaluation.numerals import decimal, interval, number, percent, share
from perpgym.evaluation.seeds import Spread, interquartile_mean

_COSTS = ("fees", "spread", "impact", "funding")
_LEAST_PAIRS = 3
# two levels, and the one that they must beat
LEVELS = (("hppo", "ppo"), ("hqrdqn", "qrdqn"))
_COLUMNS = (
    "account", "seeds", "steps", "seconds", "Sharpe, chosen [95 %]", "Sharpe, last [95 %]",
    "log growth, chosen [95 %]", "drawdown", "turnover a day", *(f"{cost} a year" for cost in _COSTS),
    "never traded", "stopped",
)  # fmt: skip


def write_table(out: Path, plan: Plan, units: Sequence[Unit], failed: Mapping[Unit, str]) -> str:
    """Markdown of everything that is done, and of what is not."""
    results = {
        unit: json.loads(unit.result(out).read_text("utf-8")) for unit in units if unit.result(out).exists()
    }
    lines: list[str] = []
    for market in dict.fromkeys(unit.market for unit in units):
        found = {unit: result for unit, result in results.items() if unit.market == market}
        if found:
            lines += _market(market, plan, found)
            contenders = {unit.contender for unit in found}
            pairs = [pair for pair in LEVELS if contenders & set(pair)]
            lines += ["", *(compare_levels(out, found, *pair) for pair in pairs), ""]
    lines += _missing(units, results, failed)
    return "\n".join(lines).strip() + "\n"


def _market(market: str, plan: Plan, results: Mapping[Unit, Any]) -> Iterator[str]:
    some = next(iter(results.values()))
    yield f"### {market}: {some['data']}"
    yield ""
    yield (
        f"{some['periods']}. {plan.seconds:g} s of processor time a seed; interquartile means over seeds "
        "with their bootstrap interval over seeds, of the rules the interval over bars. Costs in parts of "
        "the initial equity, funding paid > 0; an account that never traded has a Sharpe ratio of 0; "
        "never traded, stopped (by the drawdown limit or a liquidation): so many of the chosen."
    )
    yield ""
    yield "| " + " | ".join(_COLUMNS) + " |"
    yield "|---" * len(_COLUMNS) + "|"
    for contender in dict.fromkeys(unit.contender for unit in results if unit.contender != BASELINES):
        yield _line(contender, [r for unit, r in results.items() if unit.contender == contender])
    for unit, result in results.items():
        if unit.contender == BASELINES:
            yield from (_rule(name, figures) for name, figures in result["rules"].items())


def _line(contender: str, seeds: Sequence[Any]) -> str:
    chosen = [seed["chosen"] for seed in seeds]
    means = {
        name: interquartile_mean(_values(chosen, name)).mean for name in chosen[0] if name != "end_reason"
    }
    cells = [
        contender,
        str(len(seeds)),
        f"{np.median([seed['steps'] for seed in seeds]):,.0f}",
        f"{np.median([seed['seconds'] for seed in seeds]):.0f}",
        _spread(interquartile_mean(_values(chosen, "sharpe"))),
        _spread(interquartile_mean(_values([seed["last"] for seed in seeds], "sharpe"))),
        _spread(interquartile_mean(_values(chosen, "log_growth"))),
        *_account(means),
        str(sum(figures["turnover_per_day"] == 0.0 for figures in chosen)),
        str(sum(figures["end_reason"] is not None for figures in chosen)),
    ]
    return "| " + " | ".join(cells) + " |"


def _rule(name: str, figures: Mapping[str, Any]) -> str:
    known = {key: 0.0 if value is None else value for key, value in figures.items()}
    sharpe = Spread(known["sharpe"], known["sharpe_low"], known["sharpe_high"])
    ended = "no" if figures["end_reason"] is None else figures["end_reason"]
    cells = [name, "", "", "", _spread(sharpe), "", number(known["log_growth"]), *_account(known), "", ended]
    return "| " + " | ".join(cells) + " |"


def _account(figures: Mapping[str, float]) -> list[str]:
    return [
        share(figures["max_drawdown"]),
        decimal(figures["turnover_per_day"]),
        *(percent(figures[cost], sign="") for cost in _COSTS),
    ]


def _values(figures: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    # what does not exist was written as null: an account without a position had no risk and no return
    return [0.0 if one[name] is None else float(one[name]) for one in figures]


def _spread(spread: Spread) -> str:
    return f"{number(spread.mean)} [{number(spread.low)}, {number(spread.high)}]"


def compare_levels(out: Path, results: Mapping[Unit, Any], one: str, other: str) -> str:
    """One sentence: whether the hierarchy earns its keep, by two intervals that must both say so.

    The first resamples the seeds that both have, in pairs. The second resamples bars, of the mean return of
    all seeds: seeds of one market share its one test period, and are lucky together.
    """
    seeds = [{unit.seed: unit for unit in results if unit.contender == name} for name in (one, other)]
    pairs = [(seeds[0][seed], seeds[1][seed]) for seed in seeds[0] if seed in seeds[1]]
    if not pairs:
        return f"{one} and {other} cannot be compared: no seed of both is done."
    returns = [
        np.array([[np.load(unit.returns(out))["chosen"] for unit in side] for side in pairs])[:, i]
        for i in range(2)
    ]  # of (seeds, bars)
    year = results[pairs[0][0]]["bars_per_year"]
    gaps = [_sharpe(a, year) - _sharpe(b, year) for a, b in zip(*returns, strict=True)]
    by_seed = interquartile_mean(gaps)
    by_bar = sharpe_difference_interval(returns[0].mean(axis=0), returns[1].mean(axis=0), bars_per_year=year)
    return f"{one} less {other}, chosen checkpoints: {verdict(by_seed, by_bar, len(pairs), one, other)}"


def verdict(by_seed: Spread, by_bar: Interval, pairs: int, one: str, other: str) -> str:
    """What two intervals of a difference of Sharpe ratios say together."""
    facts = (
        f"the Sharpe ratio differs by {number(by_seed.mean)}, {number(by_seed.low)} to "
        f"{number(by_seed.high)} over {pairs} pairs of seeds and {interval(by_bar)} over bars"
    )
    if pairs < _LEAST_PAIRS:
        return f"{facts}: too few seeds to say anything."
    if by_seed.low > 0 and by_bar.low > 0:
        return f"{facts}: the hierarchy earns its keep here."
    if by_seed.high < 0 and by_bar.high < 0:
        return f"{facts}: the hierarchy costs more than it brings; {other} is better."
    return f"{facts}: the hierarchy does not earn its keep, for nothing here tells {one} from {other}."


def _sharpe(returns: np.ndarray, year: float) -> float:
    return float(np.nan_to_num(metrics.sharpe_ratio(returns, bars_per_year=year)))


def _missing(units: Sequence[Unit], results: Mapping[Unit, Any], failed: Mapping[Unit, str]) -> Iterator[str]:
    if failed:
        yield f"### {len(failed)} failed"
        yield ""
        yield from (f"- {unit}: {why}" for unit, why in failed.items())
    if left := [unit for unit in units if unit not in results and unit not in failed]:
        yield f"{len(left)} of {len(units)} units are not done: {', '.join(map(str, left[:4]))} ..."
