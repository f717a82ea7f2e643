"""Judge a trained run on its held-out period: python evaluate.py run=RUN_FOLDER."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from perpgym.evaluation.judge import ReportInput
from perpgym.evaluation.numerals import decimal, interval, money, number, percent, share
from perpgym.experiments.command_line import run
from perpgym.experiments.console import CONSOLE, errors_in_words, set_up_log, stage_bar
from perpgym.experiments.judging import explain_run, explained_agent, judge_run
from perpgym.experiments.market import open_market, set_threads
from perpgym.experiments.run_folder import RunFolder
from perpgym.experiments.settings import Judging, Settings, build

PERIODS = ("test", "valid", "train")


@hydra.main(version_base="1.3", config_path="configs", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Backtest the run's agents beside baselines, decide the verdict, write the report."""
    set_up_log()
    with errors_in_words():
        call: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
        if call["period"] not in PERIODS:
            raise ValueError(f"period must be one of {', '.join(PERIODS)}, was {call['period']!r}")
        if not isinstance(call["abstain_above"], int | float | None):
            raise ValueError(f"abstain_above must be a number (an exposure), was {call['abstain_above']!r}")
        if call["explain"] and (call["ensemble"] or call["baseline"]):
            raise ValueError("explain=true explains one trained policy: leave out ensemble= and baseline=")
        folder = RunFolder(Path(call["run"]))
        plain = folder.read_config()
        settings = Settings.from_mapping(plain)
        set_threads(settings.training.threads)
        market = open_market(settings)
        agent = None
        if call["explain"]:
            agent = explained_agent(
                folder,
                settings,
                market,
                period=call["period"],
                time=call["explain_time"],
                abstain_above=call["abstain_above"],
            )
        with stage_bar() as progress:
            report, page = judge_run(
                folder,
                settings,
                market,
                period=call["period"],
                judging=build(call["evaluation"], Judging, "evaluation"),
                ensemble=call["ensemble"],
                baseline=call["baseline"],
                abstain_above=call["abstain_above"],
                config=plain,
                progress=progress,
            )
        show(report)
        CONSOLE.print(f"report: {page}", soft_wrap=True)
        if agent is not None:
            with stage_bar() as progress:
                explained = explain_run(
                    folder,
                    market,
                    agent,
                    period=call["period"],
                    time=call["explain_time"],
                    progress=progress,
                )
            CONSOLE.print(f"why it decided: {explained}", soft_wrap=True)


def show(report: ReportInput) -> None:
    """The verdict and the table, for the terminal."""
    seen = report.context.seen_as
    title = "held-out period" if seen is None else f"{seen} period, not held out"
    table = Table(title=f"{title}, net of all costs", title_justify="left")
    table.add_column("account")
    for column in (
        "return",
        "Sharpe",
        "95 % interval",
        "drawdown",
        "turnover/day",
        "trades",
        "fees",
        "funding paid",
    ):
        table.add_column(column, justify="right")
    for name, card in report.scorecards.items():
        table.add_row(
            name,
            percent(card.total_return),
            number(card.sharpe),
            interval(card.sharpe_interval),
            share(card.max_drawdown),
            decimal(card.turnover_per_day),
            f"{card.trades:,}",
            money(card.fees),
            money(card.funding),
        )
    CONSOLE.print(table)
    CONSOLE.print(report.verdict.sentence)


if __name__ == "__main__":
    run(main, "evaluate")
