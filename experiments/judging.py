"""Judges a finished run on a period that it has never seen, beside everything it must be compared with."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perpgym.agents.artifact import load_artifact
from perpgym.agents.baselines import make_baseline
from perpgym.agents.ensemble import Ensemble, Rule
from perpgym.agents.oracle import OracleAgent
from perpgym.agents.protocol import Agent
from perpgym.agents.trained import TrainedAgent
from perpgym.data.clock import iso
from perpgym.data.splits import BarRange
from perpgym.data.tape import Tape
from perpgym.evaluation.comparison import Stages, compare
from perpgym.evaluation.judge import ReportInput, RunContext, judge
from perpgym.evaluation.numerals import base
from perpgym.evaluation.report import write_report
from perpgym.evaluation.trials import TrialLog, curves, smooth
from perpgym.experiments.market import Market
from perpgym.experiments.run_folder import RunError, RunFolder
from perpgym.experiments.settings import Judging, Settings

_LOG = logging.getLogger(__name__)
_SEEN_AS: dict[str, Literal["training", "validation"] | None] = {
    "train": "training",
    "valid": "validation",
    "test": None,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """The agents to be judged, the one that the verdict is about first.

    Attributes:
        agents: chosen and last checkpoint of every seed, behind their ensemble if there is one.
        chosen: names of the chosen checkpoints, one a seed.
        step: of the judged one; None of an ensemble or a baseline.
        unfinished: seeds that are left out.
    """

    agents: tuple[Agent, ...]
    chosen: tuple[str, ...] = ()
    step: int | None = None
    unfinished: tuple[int, ...] = ()


def load_candidates(
    folder: RunFolder, settings: Settings, tape: Tape, *, abstain_above: float | None = None
) -> Candidates:
    """Load every finished seed; the seed that did best on validation is the one that is judged.

    Args:
        folder, settings: of the run.
        tape: that they will trade on.
        abstain_above: uncertainty beyond which each of them holds its position.

    Raises:
        RunError: no seed is finished, or the trial log has lost one.
        perpgym.agents.checkpoint.DamagedFileError: a file was altered or truncated.
        ValueError: the policy was trained on other features or contract rules.
    """
    trials = TrialLog(folder.trials).read()
    growth: dict[int, float] = {}
    for (_digest, seed), run in curves(trials).items():
        values = smooth(np.array([float(t["validation_log_growth"]) for t in run]))
        if np.isfinite(values).any():
            growth[seed] = float(np.nanmax(values))
    finished = [seed for seed in settings.seeds if folder.selection(seed).exists()]
    missing = sorted(set(settings.seeds) - set(finished))
    if lost := [seed for seed in finished if seed not in growth]:
        raise RunError(
            f"{folder.trials} is missing or has lost seeds {lost}: without it nobody knows how many "
            "attempts the result was chosen from; restore it or train anew"
        )
    if not finished:
        raise RunError(f"no seed of {folder.path} is finished: python train.py resume={folder.path}")
    finished.sort(key=lambda seed: -growth[seed])
    best: list[TrainedAgent] = []
    last: list[TrainedAgent] = []
    steps: list[int] = []
    for seed in finished:
        selection = folder.read_selection(seed)
        for kind, agents in (("best", best), ("last", last)):
            artifact = load_artifact(folder.policy(seed, int(selection[kind])))
            artifact.check_tape(tape)
            name = f"seed {seed}, {kind} checkpoint"
            agents.append(TrainedAgent(artifact, name=name, abstain_above=abstain_above))
        steps.append(int(selection["best"]))
    return Candidates(
        agents=(*best, *last),
        chosen=tuple(a.name for a in best),
        step=steps[0],
        unfinished=tuple(missing),
    )


def with_ensemble(
    candidates: Candidates, rule: Rule, settings: Settings, abstain_above: float | None
) -> Candidates:
    """Put the chosen checkpoints of all seeds, as one agent, before the seeds themselves."""
    members = [agent for agent in candidates.agents if agent.name in candidates.chosen]
    # seeds act for themselves beside it: what one remembers of its own account is not the ensemble's
    copies = [
        TrainedAgent(agent.policy, name=agent.name) for agent in members if isinstance(agent, TrainedAgent)
    ]
    together = Ensemble(copies, settings.env, rule=rule, abstain_above=abstain_above)
    return replace(candidates, agents=(together, *candidates.agents), step=None)


def judge_run(
    folder: RunFolder,
    settings: Settings,
    market: Market,
    *,
    period: str = "test",
    judging: Judging,
    config: Mapping[str, Any],
    ensemble: Rule | None = None,
    baseline: str | None = None,
    abstain_above: float | None = None,
    progress: Stages | None = None,
) -> tuple[ReportInput, Path]:
    """Run agents, baselines, oracle and random timing over the period and write the report.

    Args:
        folder: of the run.
        settings, market: of the run.
        period: ``train``, ``valid`` or ``test``.
        judging: draws and seed.
        config: resolved config, for the report's banner.
        ensemble: how the seeds decide together, which is then judged before them; None for each by itself.
        baseline: name of a rule that is judged instead of the run's agents; None for these.
        abstain_above: uncertainty beyond which the ensemble, or without one each seed, holds its position.
        progress: told (what is being done, how much is done, of how much).

    Returns:
        What the report shows, and the path of its HTML file.
    """
    facts = folder.read_provenance()
    warn_of_fallback(facts)
    if baseline is not None:
        if ensemble is not None or abstain_above is not None:
            raise ValueError(f"baseline={baseline} is judged by itself: leave out ensemble and abstain_above")
        rule = make_baseline(baseline, settings.env, n_contracts=len(market.tape.contracts))
        candidates = Candidates(agents=(rule,))
    elif ensemble is None:
        candidates = load_candidates(folder, settings, market.tape, abstain_above=abstain_above)
    else:
        candidates = load_candidates(folder, settings, market.tape)
        candidates = with_ensemble(candidates, ensemble, settings, abstain_above)
    first, stop = _first_and_stop(market, period)
    comparison = compare(
        candidates.agents,
        market.tape,
        start_bar=first,
        end_bar=stop,
        config=market.env_config,
        limits=market.limits,
        oracle=_oracle(market),
        random_draws=judging.random_draws,
        seed=judging.seed,
        progress=progress,
    )
    context = RunContext(
        title=f"{settings.name}, {', '.join(contract.symbol for contract in market.tape.contracts)}",
        folds=_folds(market),
        seeds=settings.seeds if baseline is None else (),
        config=config,
        commit=facts.get("commit"),
        fallback_reason=market.fallback_reason or facts.get("fallback_reason"),
        seed_names=candidates.chosen if len(candidates.chosen) > 1 else (),
        chosen_step=candidates.step,
        notes=tuple(dict.fromkeys((*facts.get("notes", ()), *market.notes, *_about_oracle(market)))),
        alarms=tuple(_alarms(folder, facts, market, candidates)),
        seen_as=_SEEN_AS[period],
    )
    for alarm in context.alarms:
        _LOG.warning("%s", alarm)
    report = judge(
        comparison,
        tape=market.tape,
        config=market.env_config,
        limits=market.limits,
        context=context,
        # nobody chose a rule by trying it
        trials=TrialLog(folder.trials).read() if baseline is None else (),
        bootstrap_draws=judging.bootstrap_draws,
        seed=judging.seed,
        progress=progress,
    )
    if progress is not None:
        progress("writing the report", 0, 1)
    parts = ("report", ensemble, baseline, None if period == "test" else period)
    return report, write_report(folder.path / "_".join(part for part in parts if part), report)


def explained_agent(
    folder: RunFolder,
    settings: Settings,
    market: Market,
    *,
    period: str,
    time: str | None = None,
    abstain_above: float | None,
) -> TrainedAgent:
    """The agent that is judged, for :func:`explain_run`; what cannot be explained is told at once.

    Args:
        folder, settings, market, abstain_above: as of :func:`judge_run`.
        period, time: as of :func:`explain_run`.

    Raises:
        ImportError: captum is not installed.
        RunError, perpgym.agents.checkpoint.DamagedFileError: as :func:`load_candidates`.
        ValueError: its kind of policy has no explanation, or the time lies outside the period.
    """
    from perpgym.evaluation.explain import check_explainable

    if time is not None:
        _bar_of(market, period, time)
    agent = load_candidates(folder, settings, market.tape, abstain_above=abstain_above).agents[0]
    assert isinstance(agent, TrainedAgent)
    check_explainable(agent.policy)
    return agent


def explain_run(
    folder: RunFolder,
    market: Market,
    agent: TrainedAgent,
    *,
    period: str,
    time: str | None = None,
    progress: Stages | None = None,
) -> Path:
    """Take a decision of the judged agent apart; one figure and one JSON file for each contract.

    Args:
        folder, market: of the run.
        agent: from :func:`explained_agent`; it has not acted yet.
        period: ``train``, ``valid`` or ``test``.
        time: the close (UTC) at which it was taken; None takes the largest trade that it asked for and got.
        progress: told (what is being done, how much is done, of how much).

    Returns:
        The folder with the files.

    Raises:
        ImportError: captum is not installed.
        ValueError: the time lies outside the period, or no earlier market can be compared with it.
    """
    from perpgym.evaluation.decisions import NOTHING_ASKED, replay_decision
    from perpgym.evaluation.explain import explain
    from perpgym.evaluation.figures import draw_attribution, save_png

    tape = market.tape
    first, stop = _first_and_stop(market, period)
    decision = replay_decision(
        agent,
        tape,
        start_bar=first,
        end_bar=stop,
        config=market.env_config,
        limits=market.limits,
        bar=None if time is None else _bar_of(market, period, time),
        progress=None if progress is None else partial(progress, "looking for the decision, bars"),
    )
    if decision.chosen_as == NOTHING_ASKED:
        _LOG.warning("the decision that is explained: %s", NOTHING_ASKED)
    out = folder.path / ("explanation" if period == "test" else f"explanation_{period}")
    for number, contract in enumerate(tape.contracts):
        if progress is not None:
            progress(f"explaining {contract.symbol}", number, len(tape.contracts))
        found = explain(agent.policy, decision, contract=number)
        if found.warning is not None:
            _LOG.warning("%s: %s", contract.symbol, found.warning)
        # made by what there is to write: an empty one would look like an answer
        out.mkdir(exist_ok=True)
        found.write(out / f"{base(contract.symbol)}.json")
        save_png(draw_attribution(found), out / f"{base(contract.symbol)}.png")
    return out


def _first_and_stop(market: Market, period: str) -> tuple[int, int]:
    """The first bar that is decided at, and the end of the period."""
    # the first bars of training have no whole window before them
    bars: BarRange = getattr(market.split, period)
    return max(bars.start, market.tape.first_valid_bar + market.env_config.window_bars - 1), bars.stop


def _bar_of(market: Market, period: str, time: str) -> int:
    """The bar of the decision at a close.

    Raises:
        ValueError: it is no time, or none of the period's decisions was taken then.
    """
    tape, (first, stop) = market.tape, _first_and_stop(market, period)
    # a bar is decided at when it closes
    bar = tape.bar_at(time) - 1
    if not first <= bar < stop - 1:
        closes = (iso(int(tape.open_time_ms[at]) + tape.bar_ms) for at in (first, stop - 2))
        raise ValueError(f"explain_time must lie from {' to '.join(closes)} (period={period}), was {time!r}")
    return bar


def _alarms(
    folder: RunFolder, facts: Mapping[str, Any], market: Market, candidates: Candidates
) -> Iterator[str]:
    """Whatever makes this another judgement than that of the run as it was trained."""
    if folder.is_config_altered():
        yield (
            "config.yaml was changed after training: costs, periods or the account here are not those that "
            "the agent was trained and chosen with."
        )
    if facts.get("data_hash") != market.tape.data_hash:
        yield "The data are not those of training: their hash differs."
    if candidates.unfinished:
        yield f"Seeds {', '.join(map(str, candidates.unfinished))} are not finished and are left out."


def _oracle(market: Market) -> Agent | None:
    if market.tape.planted is None or len(market.tape.contracts) > 1:
        return None
    config = market.env_config
    return OracleAgent(
        market.tape,
        action=config.action,
        max_exposure=config.max_exposure,
        levels=config.ladder if config.action == "ladder" else config.head_sizes,
    )


def _about_oracle(market: Market) -> tuple[str, ...]:
    if market.tape.planted is None or len(market.tape.contracts) == 1:
        return ()
    return (
        f"No oracle stands beside the agent: it solves one contract at a time, and here are "
        f"{len(market.tape.contracts)}.",
    )


def _folds(market: Market) -> dict[str, tuple[str, str]]:
    split, times = market.split, market.tape.open_time_ms
    named = {"training": split.train, "validation": split.valid, "test": split.test}
    return {
        name: (iso(int(times[bars.start]))[:10], iso(int(times[bars.stop - 1]))[:10])
        for name, bars in named.items()
    }


def warn_of_fallback(facts: Mapping[str, Any]) -> None:
    """Say again, whenever a run is used, that its market stands in for a real one."""
    if facts.get("fallback_reason"):
        _LOG.warning(
            "NOT REAL DATA: this run is on the simulated market, because %s; nothing in it is about %s",
            facts["fallback_reason"],
            facts.get("symbol"),
        )
