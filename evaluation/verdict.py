"""One or two sentences that say whether a result is more than luck, by rules that were fixed beforehand.

The rules, in order; the first that applies is the verdict:

1. ``nothing``   the market is simulated and its edges are off: whatever happened is luck and costs.
2. ``seen``      the period is not held out: the agent was trained on it, or chosen by it.
3. ``ruined``    the account was liquidated, or hit the drawdown stop.
4. ``flat``      the agent never traded.
5. ``no_edge``   no checkpoint beat flat on validation, so nothing was found, whatever the test period says.
6. ``luck``      the Sharpe ratio is within 1.96 standard errors of 0, or its bootstrap interval contains 0.
7. ``loses``     both exclude 0, on the losing side.
8. ``not_timing`` a profit, but random timing with the same trades does as well (p > 0.05).
9. ``unproven``  a profit and timing, but the deflated Sharpe ratio is below 0.95 after the trials on record,
   or no random draws or no trials exist to measure against.
10. ``better``   everything holds. Whether it also beat buy and hold is said beside it, not required: a market
   that went straight up would make every honest agent a failure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "nothing", "seen", "ruined", "flat", "no_edge", "luck", "loses", "not_timing", "unproven", "better"
]

SIGNIFICANT_Z = 1.96
TIMING_LEVEL = 0.05
DEFLATED_LEVEL = 0.95

_TONE: dict[Kind, Literal["good", "neutral", "bad"]] = {
    "nothing": "neutral",
    "seen": "neutral",
    "ruined": "bad",
    "flat": "neutral",
    "no_edge": "bad",
    "luck": "neutral",
    "loses": "bad",
    "not_timing": "neutral",
    "unproven": "neutral",
    "better": "good",
}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the verdict is decided from.

    Attributes:
        period: in words, e.g. ``2024-07-01 to 2025-06-30``.
        total_return: fraction, of the chosen checkpoint on the held-out period.
        sharpe, standard_error: annualised; ``nan`` if the account never moved.
        interval: (low, high) of the bootstrap.
        trades: number of trades.
        end_reason: ``liquidation``, ``drawdown stop`` or None.
        ended_on: the date of that, in words.
        max_drawdown: fraction.
        timing_p_value: against random draws; None if there were none.
        deflated_sharpe: probability; None without at least two trials.
        trials: number of trials on record.
        beat_flat_on_validation: None if there is no record.
        hold_sharpe: of buy and hold on the same bars, ``nan`` if there is none.
        is_simulated: whether the market is simulated.
        has_edge: whether a simulated market has its edges on; None on real markets.
        oracle_share: the agent's Sharpe ratio over the oracle's; None without an oracle.
        seeds: number of seeds that were evaluated.
        seeds_above_flat: how many of them ended above flat.
        seen_as: what the period was used for before (``training``, ``validation``); None if it is held out.
    """

    period: str
    total_return: float
    sharpe: float
    standard_error: float
    interval: tuple[float, float]
    trades: int
    end_reason: str | None = None
    ended_on: str = ""
    max_drawdown: float = 0.0
    timing_p_value: float | None = None
    deflated_sharpe: float | None = None
    trials: int = 0
    beat_flat_on_validation: bool | None = None
    hold_sharpe: float = math.nan
    is_simulated: bool = False
    has_edge: bool | None = None
    oracle_share: float | None = None
    seeds: int = 1
    seeds_above_flat: int = 0
    seen_as: Literal["training", "validation"] | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The first line of the report.

    Attributes:
        kind: the rule that applied.
        sentence: in words.
        tone: for its colour.
    """

    kind: Kind
    sentence: str
    tone: Literal["good", "neutral", "bad"]


def decide(evidence: Evidence) -> Verdict:
    """Apply the rules at the top of this module."""
    kind = _kind(evidence)
    sentence = f"{_SENTENCES[kind](evidence)} {_beside(evidence, kind)}".strip()
    return Verdict(kind=kind, sentence=sentence, tone=_TONE[kind])


def is_significant(evidence: Evidence) -> bool:
    """Whether both the standard error and the bootstrap interval exclude a Sharpe ratio of 0."""
    if not (math.isfinite(evidence.sharpe) and evidence.standard_error > 0):
        return False
    low, high = evidence.interval
    return abs(evidence.sharpe) > SIGNIFICANT_Z * evidence.standard_error and (low > 0 or high < 0)


def _kind(e: Evidence) -> Kind:
    if e.is_simulated and e.has_edge is False:
        return "nothing"
    if e.seen_as is not None:
        return "seen"
    if e.end_reason is not None:
        return "ruined"
    if e.trades == 0:
        return "flat"
    if e.beat_flat_on_validation is False:
        return "no_edge"
    if not is_significant(e):
        return "luck"
    if e.sharpe < 0:
        return "loses"
    if e.timing_p_value is not None and e.timing_p_value > TIMING_LEVEL:
        return "not_timing"
    if e.timing_p_value is None or e.deflated_sharpe is None or not e.deflated_sharpe >= DEFLATED_LEVEL:
        return "unproven"
    return "better"


def _nothing(e: Evidence) -> str:
    return (
        "There is nothing to find: this simulated market has its planted edges switched off, so the agent's "
        f"{_result(e)} is luck and costs."
    )


def _seen(e: Evidence) -> str:
    use = "the agent was trained on" if e.seen_as == "training" else "its checkpoint was chosen by"
    return (
        f"No judgement: this is the {e.seen_as} period, which {use}; {_result(e)}, and no evidence of skill."
    )


def _ruined(e: Evidence) -> str:
    if e.end_reason == "liquidation":
        return f"Ruined: the account was liquidated on {e.ended_on}; {_result(e)}."
    return (
        f"Stopped out: the account fell {100 * e.max_drawdown:.0f} % from its peak and hit the drawdown stop "
        f"on {e.ended_on}; {_result(e)}."
    )


def _flat(e: Evidence) -> str:
    return f"Nothing to judge: the agent never traded from {e.period}, so it neither made nor lost anything."


def _no_edge(e: Evidence) -> str:
    return (
        "No edge found: nothing in training beat staying flat on the validation period, so the held-out "
        f"{_result(e)} is no evidence of skill."
    )


def _luck(e: Evidence) -> str:
    return (
        f"Not distinguishable from luck: {_result(e)}, where a Sharpe ratio of 0 is compatible with the data "
        f"(95 % interval {_interval(e)})."
    )


def _loses(e: Evidence) -> str:
    return f"Loses money beyond bad luck: {_result(e)}, 95 % interval {_interval(e)}, all below 0."


def _not_timing(e: Evidence) -> str:
    return (
        f"Profitable, but not by timing: {_result(e)}, yet the same trades at random times do as well "
        f"(p = {e.timing_p_value:.2f}); the market paid for the exposure, not for the decisions."
    )


def _unproven(e: Evidence) -> str:
    if e.timing_p_value is None:
        reason = "there were no random draws to compare its timing with"
    elif e.deflated_sharpe is None:
        reason = "there is no record of how many trials it was chosen from"
    else:
        reason = (
            f"after {e.trials} trials the chance that it is more than the best of worthless ones is "
            f"{100 * e.deflated_sharpe:.0f} %, and 95 % are asked for"
        )
    return f"Promising, not proven: {_result(e)}, interval {_interval(e)}, but {reason}."


def _better(e: Evidence) -> str:
    assert e.timing_p_value is not None
    assert e.deflated_sharpe is not None
    return (
        f"Better than luck: {_result(e)}, 95 % interval {_interval(e)}; timing beats random draws "
        f"(p = {e.timing_p_value:.3f}) and the deflated Sharpe ratio after {e.trials} trials is "
        f"{e.deflated_sharpe:.2f}."
    )


_SENTENCES = {
    "nothing": _nothing,
    "seen": _seen,
    "ruined": _ruined,
    "flat": _flat,
    "no_edge": _no_edge,
    "luck": _luck,
    "loses": _loses,
    "not_timing": _not_timing,
    "unproven": _unproven,
    "better": _better,
}


def _beside(e: Evidence, kind: Kind) -> str:
    """The second sentence: what the number stands beside."""
    parts = []
    if kind in ("flat", "ruined") and e.beat_flat_on_validation is False:
        parts.append("no checkpoint beat flat on validation")
    if kind not in ("nothing", "flat", "ruined") and math.isfinite(e.hold_sharpe):
        relation = "more" if e.sharpe > e.hold_sharpe else "less"
        parts.append(
            f"that is {relation} than the Sharpe ratio of {_signed(e.hold_sharpe)} of buy and hold "
            "without stops"
        )
    if kind != "nothing" and e.oracle_share is not None:
        reached = max(0.0, e.oracle_share)
        parts.append(f"it reached {100 * reached:.0f} % of the Sharpe ratio that the oracle shows was there")
    if e.seeds > 1:
        parts.append(f"{e.seeds_above_flat} of {e.seeds} seeds ended above flat")
    if not parts:
        return ""
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."


def _result(e: Evidence) -> str:
    if not math.isfinite(e.sharpe):
        return f"{_signed(100 * e.total_return)} % over {e.period}"
    return (
        f"{_signed(100 * e.total_return)} % over {e.period} "
        f"(Sharpe ratio {_signed(e.sharpe)} ± {e.standard_error:.2f})"
    )


def _interval(e: Evidence) -> str:
    return f"{_signed(e.interval[0])} to {_signed(e.interval[1])}"


def _signed(value: float) -> str:
    # a typographic minus, so that a loss is not read as a hyphen
    return f"{value:+.2f}".replace("-", "−")
