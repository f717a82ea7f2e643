"""Lays a judged result out: report.json, one PNG a figure, and one HTML file that needs nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from perpgym.evaluation import sections
from perpgym.evaluation.figures import draw_figures, save_png, to_inline_svg
from perpgym.evaluation.judge import ReportInput
from perpgym.evaluation.trials import plain


def write_report(folder: Path, report: ReportInput) -> Path:
    """Write ``report.json``, ``<figure>.png`` and ``report.html``.

    Args:
        folder: created if it is missing.
        report: from :func:`~perpgym.evaluation.judge.judge`.

    Returns:
        The path of the HTML file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report_json(report), indent=1, allow_nan=False, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", "utf-8")
    pictures = []
    for name, caption, figure in draw_figures(report):
        save_png(figure, folder / f"{name}.png")
        svg = to_inline_svg(name, figure)
        pictures.append(
            f"<section><figure><figcaption>{escape(caption)}</figcaption>{svg}</figure></section>"
        )
    path = folder / "report.html"
    path.write_text(report_html(report, "\n".join(pictures)), "utf-8")
    return path


def report_json(report: ReportInput) -> dict[str, Any]:
    """Everything in the report but the pictures, as plain JSON types; a figure without sense is null."""
    out: dict[str, Any] = plain(
        {
            "verdict": asdict(report.verdict),
            "evidence": asdict(report.evidence),
            "headline": report.comparison.headline,
            "accounts": {
                name: {"role": report.comparison.roles[name], **asdict(card)}
                for name, card in report.scorecards.items()
            },
            "sharpe_less_buy_and_hold": {n: asdict(i) for n, i in report.against_hold.items()},
            "random_timing_sharpes": report.draw_sharpes,
            "oracle_growth_share": report.growth_share,
            "price_returns": report.price_returns,
            "contracts": [asdict(card) for card in report.contracts],
            "trials": asdict(report.trial_summary),
            "source": report.source,
            "fallback_reason": report.context.fallback_reason,
            "mark_rules": report.mark_rules,
            "data_hash": report.data_hash,
            "folds": report.context.folds,
            "seeds": report.context.seeds,
            "commit": report.context.commit,
            "env": asdict(report.config),
            "risk_limits": asdict(report.limits),
            "config": report.context.config,
        }
    )
    return out


def report_html(report: ReportInput, pictures: str) -> str:
    """The page; every text that came from outside is escaped.

    Args:
        report: what to show.
        pictures: HTML of the figures.
    """
    page = (resources.files("perpgym.evaluation") / "report.html").read_text("utf-8")
    verdict = report.verdict
    return Template(page).substitute(
        title=escape(report.context.title),
        tone=verdict.tone,
        verdict=escape(verdict.sentence),
        alarms="\n".join(f'<p class="loud">{escape(text)}</p>' for text in sections.alarms(report)),
        facts="".join(
            f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in sections.facts(report)
        ),
        headline=escape(report.comparison.headline),
        numbers="".join(sections.cards(report)),
        other_agents=sections.other_agents(report),
        comparison=sections.comparison_table(report),
        comparison_note=sections.comparison_note(report),
        evidence=sections.items(sections.evidence(report)),
        figures=pictures,
        by_contract=sections.by_contract(report),
        trades=sections.trades_table(report),
        trials=sections.trials(report),
        assumptions=sections.items(sections.assumptions(report)),
        config=escape(json.dumps(plain(report.context.config), indent=2, ensure_ascii=False)),
        footer=escape(sections.WARNING),
    )
