"""The verdict follows its rules in their order, and says what it was decided from."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from perpgym.evaluation.verdict import Evidence, decide, is_significant

# everything that there is to prove, proven
GOOD = Evidence(
    period="2024-07-01 to 2025-06-30",
    total_return=0.8,
    sharpe=3.0,
    standard_error=1.0,
    interval=(0.9, 5.0),
    trades=120,
    timing_p_value=0.005,
    deflated_sharpe=0.98,
    trials=40,
    beat_flat_on_validation=True,
    hold_sharpe=0.7,
)


def test_everything_proven_is_better_than_luck() -> None:
    verdict = decide(GOOD)
    assert verdict.kind == "better"
    assert verdict.tone == "good"
    assert verdict.sentence.startswith("Better than luck: +80.00 % over 2024-07-01 to 2025-06-30")
    assert "more than the Sharpe ratio" in verdict.sentence


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"is_simulated": True, "has_edge": False}, "nothing", "There is nothing to find"),
        ({"end_reason": "liquidation", "ended_on": "2024-08-05"}, "ruined", "was liquidated on 2024-08-05"),
        ({"end_reason": "drawdown stop", "ended_on": "2024-08-05"}, "ruined", "Stopped out"),
        ({"trades": 0, "sharpe": math.nan, "standard_error": math.nan}, "flat", "never traded"),
        ({"beat_flat_on_validation": False}, "no_edge", "nothing in training beat staying flat"),
        ({"sharpe": 1.9}, "luck", "Not distinguishable from luck"),
        ({"interval": (-0.1, 5.0)}, "luck", "Not distinguishable from luck"),
        ({"sharpe": -3.0, "interval": (-5.0, -1.0)}, "loses", "Loses money"),
        ({"timing_p_value": 0.06}, "not_timing", "not by timing"),
        ({"timing_p_value": None}, "unproven", "no random draws"),
        ({"deflated_sharpe": 0.94}, "unproven", "after 40 trials"),
        ({"deflated_sharpe": math.nan}, "unproven", "after 40 trials"),
        ({"deflated_sharpe": None}, "unproven", "no record of how many trials"),
    ],
)
def test_one_missing_proof_changes_the_verdict(change: dict, kind: str, words: str) -> None:
    verdict = decide(replace(GOOD, **change))
    assert verdict.kind == kind
    assert verdict.tone != "good"
    assert words in verdict.sentence


def test_on_the_edgeless_market_even_a_splendid_result_is_nothing() -> None:
    verdict = decide(replace(GOOD, is_simulated=True, has_edge=False, sharpe=9.0, interval=(6.0, 12.0)))
    assert verdict.kind == "nothing"
    assert "luck and costs" in verdict.sentence
    # the negative control: the same numbers with the edges on are believed
    assert decide(replace(GOOD, is_simulated=True, has_edge=True)).kind == "better"


def test_the_share_of_the_oracle_is_said() -> None:
    verdict = decide(replace(GOOD, is_simulated=True, has_edge=True, oracle_share=0.62))
    assert "It reached 62 % of the Sharpe ratio" in verdict.sentence.replace("it reached", "It reached")


def test_several_seeds_are_said() -> None:
    assert "2 of 3 seeds ended above flat" in decide(replace(GOOD, seeds=3, seeds_above_flat=2)).sentence


def test_falling_short_of_buy_and_hold_is_said() -> None:
    sentence = decide(replace(GOOD, hold_sharpe=4.0)).sentence
    assert "less than the Sharpe ratio of +4.00 of buy and hold without stops" in sentence


def test_significance_needs_the_standard_error_and_the_bootstrap_to_agree() -> None:
    assert is_significant(GOOD)
    assert not is_significant(replace(GOOD, standard_error=1.6))
    assert not is_significant(replace(GOOD, interval=(-0.01, 4.0)))
    assert not is_significant(replace(GOOD, interval=(math.nan, math.nan)))
    assert not is_significant(replace(GOOD, sharpe=math.nan))


def test_a_loss_carries_a_true_minus_sign() -> None:
    sentence = decide(replace(GOOD, sharpe=-0.5, total_return=-0.12, interval=(-2.0, 1.0))).sentence
    assert "−12.00 %" in sentence
    assert "-12" not in sentence


@pytest.mark.parametrize("change", [{"trades": 0}, {"end_reason": "drawdown stop", "ended_on": "2024-08-05"}])
def test_the_verdict_says_when_no_checkpoint_beat_flat_on_validation(change: dict[str, Any]) -> None:
    verdict = decide(replace(GOOD, beat_flat_on_validation=False, **change))
    assert "no checkpoint beat flat on validation" in verdict.sentence.lower()


@pytest.mark.parametrize(("use", "words"), [("training", "trained on"), ("validation", "chosen by")])
def test_a_period_that_was_seen_before_is_never_judged_nor_called_held_out(use: Any, words: str) -> None:
    for change in ({}, {"beat_flat_on_validation": False}, {"trades": 0}):
        verdict = decide(replace(GOOD, seen_as=use, **change))
        assert verdict.kind == "seen"
        assert verdict.tone == "neutral"
        assert f"this is the {use} period" in verdict.sentence
        assert words in verdict.sentence
        assert "held-out" not in verdict.sentence
