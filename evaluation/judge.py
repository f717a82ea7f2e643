"""From books to a judgement: measure every account, weigh the evidence, and decide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import CLOSE
from perpgym.data.tape import Tape
from perpgym.envs.config import EnvConfig
from perpgym.envs.risk.limits import RiskLimits
from perpgym.evaluation import metrics
from perpgym.evaluation.backtest import BacktestResult, Draws
from perpgym.evaluation.bootstrap import Interval, sharpe_difference_interval
from perpgym.evaluation.by_contract import ContractCard, measure_contracts
from perpgym.evaluation.comparison import UNLIMITED_HOLD, Comparison, Stages
from perpgym.evaluation.scorecard import Scorecard, measure, returns_of
from perpgym.evaluation.trials import TrialSummary, summarise_trials
from perpgym.evaluation.verdict import Evidence, Verdict, decide


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Where a run comes from, in words for the report's banner.

    Attributes:
        title: heading.
        folds: by name (``training``, ``validation``, ``test``) the first and last day, in words.
        seeds: training seeds.
        config: resolved config of the run, plain types.
        commit: of the code, None if unknown.
        fallback_reason: why the data is not what was asked for; None if it is.
        seed_names: names of the results that are the chosen checkpoints of the seeds; empty for a single one.
        chosen_step: environment steps of the chosen checkpoint, None if unknown.
        notes: more lines for the list of assumptions.
        alarms: what must not be overlooked, for the first screen.
        seen_as: what the judged period was used for before; None if it is held out.
    """

    title: str = "perpgym"
    folds: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    commit: str | None = None
    fallback_reason: str | None = None
    seed_names: tuple[str, ...] = ()
    chosen_step: int | None = None
    notes: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()
    seen_as: Literal["training", "validation"] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportInput:
    """Everything that the report shows; :func:`~perpgym.evaluation.report.write_report` only lays it out.

    Attributes:
        verdict: first line.
        evidence: what it was decided from.
        context: banner.
        comparison: the books.
        scorecards: by name.
        against_hold: by name, interval of the Sharpe ratio less that of buy and hold.
        draw_sharpes: (D,) Sharpe ratios of the random draws; empty without draws.
        growth_share: log growth over the oracle's; None without an oracle.
        trials: the trial log.
        trial_summary: counted.
        source, data_hash, mark_rules: of the tape; rules by contract.
        price_returns: by contract, change of the mark close over the period or since it became valid,
            fraction.
        contracts: by contract, what it added to the headline account.
        config, limits: of the env.
        has_edge: None on real markets.
    """

    verdict: Verdict
    evidence: Evidence
    context: RunContext
    comparison: Comparison
    scorecards: Mapping[str, Scorecard]
    against_hold: Mapping[str, Interval]
    draw_sharpes: NDArray[np.float64]
    growth_share: float | None
    trials: tuple[Mapping[str, Any], ...]
    trial_summary: TrialSummary
    source: str
    data_hash: str
    mark_rules: Mapping[str, str]
    price_returns: Mapping[str, float]
    contracts: tuple[ContractCard, ...]
    config: EnvConfig
    limits: RiskLimits
    has_edge: bool | None

    @property
    def card(self) -> Scorecard:
        """The headline agent's scorecard."""
        return self.scorecards[self.comparison.headline]


def judge(
    comparison: Comparison,
    *,
    tape: Tape,
    config: EnvConfig,
    limits: RiskLimits,
    context: RunContext,
    trials: Sequence[Mapping[str, Any]] = (),
    bootstrap_draws: int = 2_000,
    seed: int = 0,
    progress: Stages | None = None,
) -> ReportInput:
    """Measure every account and decide the verdict about the headline one.

    Args:
        comparison: from :func:`compare`.
        tape: the market that it was run on.
        config, limits: of the env.
        context: where the run comes from.
        trials: of the run's trial log.
        bootstrap_draws: for every interval.
        seed: of the bootstrap.
        progress: called with (the account that is measured, those before it, accounts in all).
    """
    cards = {}
    for number, result in enumerate(comparison.results):
        if progress is not None:
            progress(f"measuring accounts: {result.name}", number, len(comparison.results))
        cards[result.name] = measure(
            result,
            risk_free_rate=config.risk_free_rate,
            equity_floor=config.reward_equity_floor,
            bootstrap_draws=bootstrap_draws,
            seed=seed,
        )
    summary = summarise_trials(trials)
    has_edge = None if tape.planted is None else bool(np.any(tape.planted))
    draw_sharpes = _draw_sharpes(comparison.draws, config, tape.bars_per_year)
    evidence = _evidence(comparison, cards, config, context, summary, has_edge, draw_sharpes)
    return ReportInput(
        verdict=decide(evidence),
        evidence=evidence,
        context=context,
        comparison=comparison,
        scorecards=cards,
        against_hold=_against_hold(comparison, config, bootstrap_draws, seed),
        draw_sharpes=draw_sharpes,
        growth_share=_share(comparison, cards, "log_growth"),
        trials=tuple(trials),
        trial_summary=summary,
        source=tape.source,
        data_hash=tape.data_hash,
        mark_rules={c.symbol: r for c, r in zip(tape.contracts, tape.mark_rules, strict=True)},
        price_returns=_price_returns(tape, comparison),
        contracts=measure_contracts(comparison.result(comparison.headline)),
        config=config,
        limits=limits,
        has_edge=has_edge,
    )


def _price_returns(tape: Tape, comparison: Comparison) -> dict[str, float]:
    """By contract; ``nan`` for one that is not valid before the period's last bar."""
    last, out = comparison.end_bar - 1, {}
    for asset, contract in enumerate(tape.contracts):
        first = max(comparison.start_bar, int(tape.is_valid[:, asset].argmax()))
        close = tape.mark[:, asset, CLOSE]
        out[contract.symbol] = float(close[last] / close[first] - 1.0) if first < last else math.nan
    return out


def day(time_ms: int) -> str:
    """A UTC time as an ISO date."""
    return str(np.datetime64(int(time_ms), "ms").astype("datetime64[D]"))


def _evidence(
    comparison: Comparison,
    cards: Mapping[str, Scorecard],
    config: EnvConfig,
    context: RunContext,
    summary: TrialSummary,
    has_edge: bool | None,
    draw_sharpes: NDArray[np.float64],
) -> Evidence:
    result, card = comparison.result(comparison.headline), cards[comparison.headline]
    deflated = None
    if summary.count >= 2:
        deflated = metrics.deflated_sharpe(
            _excess(result, config),
            trials=summary.count,
            trial_sharpe_std=summary.sharpe_std / math.sqrt(result.bars_per_year),
        )
    seeds = context.seed_names or (comparison.headline,)
    return Evidence(
        period=f"{day(result.open_time_ms[0])} to {day(result.open_time_ms[-1])}",
        total_return=card.total_return,
        sharpe=card.sharpe,
        standard_error=card.sharpe_standard_error,
        interval=(card.sharpe_interval.low, card.sharpe_interval.high),
        trades=card.trades,
        end_reason=card.end_reason,
        ended_on="" if card.ended_at_ms is None else day(card.ended_at_ms),
        max_drawdown=card.max_drawdown,
        timing_p_value=(metrics.timing_p_value(card.sharpe, draw_sharpes) if draw_sharpes.shape[0] else None),
        deflated_sharpe=deflated,
        trials=summary.count,
        beat_flat_on_validation=summary.beat_flat,
        hold_sharpe=cards[UNLIMITED_HOLD].sharpe if UNLIMITED_HOLD in cards else math.nan,
        is_simulated=has_edge is not None,
        has_edge=has_edge,
        oracle_share=_share(comparison, cards, "sharpe"),
        seeds=len(seeds),
        seeds_above_flat=sum(cards[name].total_return > 0 for name in seeds),
        seen_as=context.seen_as,
    )


def _share(comparison: Comparison, cards: Mapping[str, Scorecard], figure: str) -> float | None:
    """The headline agent's figure over the oracle's; None without an oracle or where it found nothing."""
    for name, role in comparison.roles.items():
        if role == "oracle":
            there = getattr(cards[name], figure)
            reached = getattr(cards[comparison.headline], figure)
            return float(np.nan_to_num(reached) / there) if there > 0 else None
    return None


def _excess(result: BacktestResult, config: EnvConfig) -> metrics.Floats:
    return metrics.excess_returns(
        returns_of(result, floor=config.reward_equity_floor),
        risk_free_rate=config.risk_free_rate,
        bars_per_year=result.bars_per_year,
    )


def _draw_sharpes(draws: Draws | None, config: EnvConfig, bars_per_year: float) -> NDArray[np.float64]:
    if draws is None:
        return np.zeros(0)
    out = []
    for equity in draws.equity.T:
        returns = metrics.log_returns(equity, floor=config.reward_equity_floor)
        excess = metrics.excess_returns(
            returns, risk_free_rate=config.risk_free_rate, bars_per_year=bars_per_year
        )
        out.append(metrics.sharpe_ratio(excess, bars_per_year=bars_per_year))
    return np.array(out)


def _against_hold(comparison: Comparison, config: EnvConfig, draws: int, seed: int) -> dict[str, Interval]:
    """Of the agents only: the paired bootstrap of their Sharpe ratio less that of buy and hold."""
    if UNLIMITED_HOLD not in comparison.roles:
        return {}
    hold = comparison.result(UNLIMITED_HOLD)
    return {
        result.name: sharpe_difference_interval(
            _excess(result, config),
            _excess(hold, config),
            bars_per_year=result.bars_per_year,
            draws=draws,
            seed=seed,
        )
        for result in comparison.results
        if comparison.roles[result.name] == "agent"
    }
