"""Units in words: a line for each contender beside the baselines, and whether two levels beat one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from table_plan import Plan, is_of
from table_units import BASELINES, Unit

from perpgym.evaluation.bootstrap import Interval, sharpe_difference_interval
from perpgym.evaluation.numerals import decimal, interval, number, percent, share
from perpgym.evaluation.seeds import Spread, mean_over_seeds

_COSTS = ("fees", "spread", "impact", "funding")
_LEAST_PAIRS = 3
# two levels, and the one that they must beat: the same algorithm with the same actions
LEVELS = (("hppo", "ppo_heads"), ("hqrdqn", "qrdqn"))
# pairs that differ by more than the second level
ASIDES = (("hppo", "ppo"),)
_COLUMNS = (
    "account", "seeds", "steps", "updates", "seconds", "Sharpe, chosen [95 %]", "Sharpe, last [95 %]",
    "log growth, chosen [95 %]", "drawdown", "turnover a day", *(f"{cost} a year" for cost in _COSTS),
    "never traded", "stopped",
)  # fmt: skip


def write_table(out: Path, plan: Plan, units: Sequence[Unit], failed: Mapping[Unit, str]) -> str:
    """Markdown of everything that is done, and of what is not."""
    found = {
        unit: json.loads(unit.result(out).read_text("utf-8")) for unit in units if unit.result(out).exists()
    }
    results = {unit: result for unit, result in found.items() if is_of(result, out, plan)}
    lines: list[str] = []
    for market in dict.fromkeys(unit.market for unit in results):
        here = {unit: result for unit, result in results.items() if unit.market == market}
        lines += [*_market(market, plan, here), "", *_comparisons(out, here)]
    lines += _missing(units, found, failed)
    lines += _refused([unit for unit in found if unit not in results])
    return "\n".join(lines).strip() + "\n"


def _market(market: str, plan: Plan, results: Mapping[Unit, Any]) -> Iterator[str]:
    some = next(iter(results.values()))
    yield f"### {market}: {some['data']}"
    yield ""
    commits = ", ".join(dict.fromkeys(str(result["commit"]) for result in results.values()))
    yield (
        f"{some['periods']}; data {some['data_hash'][:12]}, code {plan.code} (commit {commits})"
        + "".join(f", {override}" for override in plan.overrides)
        + f". {plan.seconds:g} s of processor time a seed; means over seeds with Student's t-interval over "
        "seeds, of the rules the bootstrap interval over bars. Updates are steps of the optimiser. Costs in "
        "parts of the initial equity, funding paid > 0; an account that never traded has a Sharpe ratio of "
        "0; never traded, stopped (by the drawdown limit or a liquidation): so many of the chosen."
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
    means = {name: mean_over_seeds(_values(chosen, name)).mean for name in chosen[0] if name != "end_reason"}
    cells = [
        contender,
        str(len(seeds)),
        f"{np.median([seed['steps'] for seed in seeds]):,.0f}",
        f"{np.median([seed['updates'] for seed in seeds]):,.0f}",
        f"{np.median([seed['seconds'] for seed in seeds]):.0f}",
        _spread(mean_over_seeds(_values(chosen, "sharpe"))),
        _spread(mean_over_seeds(_values([seed["last"] for seed in seeds], "sharpe"))),
        _spread(mean_over_seeds(_values(chosen, "log_growth"))),
        *_account(means),
        str(sum(figures["turnover_per_day"] == 0.0 for figures in chosen)),
        str(sum(figures["end_reason"] is not None for figures in chosen)),
    ]
    return "| " + " | ".join(cells) + " |"


def _rule(name: str, figures: Mapping[str, Any]) -> str:
    known = {key: 0.0 if value is None else value for key, value in figures.items()}
    sharpe = Spread(known["sharpe"], known["sharpe_low"], known["sharpe_high"])
    ended = "no" if figures["end_reason"] is None else figures["end_reason"]
    cells = [
        name,
        "",
        "",
        "",
        "",
        _spread(sharpe),
        "",
        number(known["log_growth"]),
        *_account(known),
        "",
        ended,
    ]
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
    if not math.isfinite(spread.low):
        return number(spread.mean)
    return f"{number(spread.mean)} [{number(spread.low)}, {number(spread.high)}]"


def _comparisons(out: Path, results: Mapping[Unit, Any]) -> Iterator[str]:
    contenders = {unit.contender for unit in results}
    for one, other in (*LEVELS, *ASIDES):
        is_fair = (one, other) in LEVELS
        if one in contenders and (is_fair or other in contenders):
            yield from (compare(out, results, one, other, is_fair=is_fair), "")


def compare(out: Path, results: Mapping[Unit, Any], one: str, other: str, *, is_fair: bool) -> str:
    """One sentence about two contenders, by two intervals of the difference of their Sharpe ratios.

    The first is over the seeds that both have, in pairs. The second resamples bars, jointly for all seeds:
    seeds of one market share its one test period, and are lucky together. Both are of the mean over seeds.

    Args:
        out: of the table.
        results: of one market.
        one, other: contenders.
        is_fair: whether they differ by the second level alone, so that a verdict about it follows.
    """
    sides = [{unit.seed: unit for unit in results if unit.contender == name} for name in (one, other)]
    seeds = [seed for seed in sides[0] if seed in sides[1]]
    if not seeds:
        return f"{one} and {other} cannot be compared: no seed of both is done."
    returns = [[np.load(side[seed].returns(out))["chosen"] for seed in seeds] for side in sides]
    lengths = {len(series) for side in returns for series in side}
    if len(lengths) > 1:
        bars = " and ".join(map(str, sorted(lengths)))
        return (
            f"{one} and {other} cannot be compared: their test periods have {bars} bars. Delete the units "
            "that were cut short, and run again."
        )
    sharpes = [_values([results[side[seed]]["chosen"] for seed in seeds], "sharpe") for side in sides]
    by_seed = mean_over_seeds([a - b for a, b in zip(*sharpes, strict=True)])
    by_bar = sharpe_difference_interval(
        *(np.column_stack(side) for side in returns),
        bars_per_year=results[sides[0][seeds[0]]]["bars_per_year"],
    )
    said = (
        verdict(by_seed, by_bar, len(seeds), one, other) if is_fair else _facts(by_seed, by_bar, len(seeds))
    )
    aside = "" if is_fair else "; they differ by more than the second level."
    return f"{one} less {other}, chosen checkpoints: {said}{aside}"


def verdict(by_seed: Spread, by_bar: Interval, pairs: int, one: str, other: str) -> str:
    """What two intervals of a difference of Sharpe ratios say together; both must say so."""
    facts = _facts(by_seed, by_bar, pairs)
    if pairs < _LEAST_PAIRS:
        return f"{facts}: too few seeds to say anything."
    if by_seed.low > 0 and by_bar.low > 0:
        return f"{facts}: the hierarchy earns its keep here."
    if by_seed.high < 0 and by_bar.high < 0:
        return f"{facts}: the hierarchy costs more than it brings; {other} is better."
    undecided = f"seeds and bars together do not tell {one} from {other}"
    return f"{facts}: the hierarchy does not earn its keep, for {undecided}."


def _facts(by_seed: Spread, by_bar: Interval, pairs: int) -> str:
    return (
        f"the Sharpe ratio differs by {_spread(by_seed)} over {pairs} pairs of seeds and by "
        f"{interval(by_bar)} over bars"
    )


def _missing(units: Sequence[Unit], results: Mapping[Unit, Any], failed: Mapping[Unit, str]) -> Iterator[str]:
    if failed:
        yield f"### {len(failed)} failed"
        yield ""
        yield from (f"- {unit}: {why}" for unit, why in failed.items())
    if left := [unit for unit in units if unit not in results and unit not in failed]:
        yield f"{len(left)} of {len(units)} units are not done: {', '.join(map(str, left[:4]))} ..."


def _refused(units: Sequence[Unit]) -> Iterator[str]:
    if units:
        yield f"### {len(units)} left out"
        yield ""
        yield "Made by other code or from other data than this table's; delete their folders, and run again:"
        yield ""
        yield from (f"- {unit}" for unit in units)
