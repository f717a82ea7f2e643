"""From agents to a page: what is there is found, what is not is not, and the report says which."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perpgym.agents.baselines import Flat, Hold
from perpgym.data.features.build import build_tape
from perpgym.data.synthetic import SimulatedMarketConfig, simulate_market
from perpgym.data.tape import Tape
from perpgym.envs.actions import exposure_to_action
from perpgym.envs.config import EnvConfig
from perpgym.envs.risk.limits import RiskLimits
from perpgym.evaluation.comparison import UNLIMITED_HOLD, Comparison, compare
from perpgym.evaluation.figures import monthly_returns
from perpgym.evaluation.judge import ReportInput, RunContext, judge
from perpgym.evaluation.report import report_html, write_report

TapeFactory = Callable[..., Tape]
CONFIG = EnvConfig()
LIMITS = RiskLimits()
TRIALS = [
    {
        "seed": 0,
        "step": 1_000 * i,
        "config_hash": "a",
        "validation_sharpe": s,
        "validation_log_growth": 0.1 * s,
    }
    for i, s in enumerate([0.2, 0.5, 0.8, 1.0, 0.9])
]
EVIL = "<script>alert('x')</script> & $money$"


def _simulated(edge: float) -> Tape:
    market = simulate_market(SimulatedMarketConfig(start="2022-01-01", end="2023-03-31", edge=edge, seed=1))
    return build_tape(market.bars, planted=market.planted, source="simulated market")


class Seer:
    """Follows a planted return that it should not know, with a band to save costs."""

    def __init__(self, name: str, planted: np.ndarray) -> None:
        self.name = name
        self.wish = np.clip(planted[:, 0] / planted.std(), -1.5, 1.5)

    def act(self, tape, bar, account, portfolio):  # type: ignore[no-untyped-def]
        present = account[:, 0, 0].astype(np.float64)
        wanted = np.clip(present, self.wish[bar] - 0.7, self.wish[bar] + 0.7)
        return exposure_to_action(wanted, action=CONFIG.action, max_exposure=CONFIG.max_exposure)


def _judge(comparison: Comparison, tape: Tape, **context: object) -> ReportInput:
    return judge(
        comparison,
        tape=tape,
        config=CONFIG,
        limits=LIMITS,
        context=RunContext(**context),  # type: ignore[arg-type]
        trials=TRIALS,
        bootstrap_draws=100,
    )


@pytest.fixture(scope="module")
def edged() -> tuple[Comparison, Tape]:
    """An agent that knows what is planted, beside the oracle, on a market with its edges on."""
    tape = _simulated(3.0)
    assert tape.planted is not None
    comparison = compare(
        [Seer("best checkpoint", tape.planted), Hold(CONFIG, exposure=0.5, name="last checkpoint")],
        tape,
        start_bar=len(tape) - 4_000,
        end_bar=len(tape),
        config=CONFIG,
        limits=LIMITS,
        oracle=Seer("oracle", tape.planted),
        random_draws=99,
    )
    return comparison, tape


def test_what_is_planted_is_found_by_who_can_see_it(edged: tuple[Comparison, Tape]) -> None:
    report = _judge(*edged)
    assert report.verdict.kind == "better", report.verdict.sentence
    assert report.evidence.oracle_share == pytest.approx(1.0)
    assert report.growth_share == pytest.approx(1.0)
    assert report.evidence.timing_p_value == pytest.approx(0.01)
    assert report.card.sharpe_interval.low > 0


def test_on_the_edgeless_market_there_is_nothing_and_the_verdict_says_so() -> None:
    tape, other = _simulated(0.0), _simulated(1.0)
    assert other.planted is not None
    comparison = compare(
        # what is planted in the other market means nothing here
        [Seer("best checkpoint", other.planted)],
        tape,
        start_bar=len(tape) - 4_000,
        end_bar=len(tape),
        config=CONFIG,
        limits=LIMITS,
        oracle=Flat(CONFIG, name="oracle"),
        random_draws=49,
    )
    report = _judge(comparison, tape)
    assert report.verdict.kind == "nothing"
    assert report.verdict.sentence.startswith("There is nothing to find")
    assert report.evidence.oracle_share is None
    # and whoever did not know that the edges are off could not have believed it either
    unknowing = _judge(comparison, replace(tape, planted=None))
    assert unknowing.verdict.kind in ("luck", "loses", "ruined")


def test_an_agent_that_never_trades_is_judged_as_such(make_tape: TapeFactory) -> None:
    tape = make_tape(bars=800)
    flat = Flat(CONFIG, name="best checkpoint")
    comparison = compare([flat], tape, start_bar=100, end_bar=800, config=CONFIG, limits=LIMITS)
    report = _judge(comparison, tape)
    assert report.verdict.kind == "flat"
    assert comparison.draws is None
    assert np.isnan(report.card.sharpe)


@pytest.fixture(scope="module")
def written(edged: tuple[Comparison, Tape], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the edged market's report, with everything beside it."""
    report = _judge(
        *edged, title="ppo_btc", seeds=(0,), commit="abc1234", chosen_step=3_000, config={"path": Path("x")}
    )
    return write_report(tmp_path_factory.mktemp("run") / "report", report)


def test_the_report_needs_nothing_but_itself_and_opens_with_the_verdict(written: Path) -> None:
    page = written.read_text("utf-8")
    assert written.stat().st_size < 5_000_000
    body = re.sub(r"<[^>]+>", " ", page[page.index("<body>") :])
    assert body.split(maxsplit=3)[:3] == ["Better", "than", "luck:"]
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import|url\((?!#)", page)
    for words in ("abc1234", "ppo_btc", "mark=mark", "oracle", UNLIMITED_HOLD, "100 %", "Simulated market"):
        assert words in page
    figures = {p.stem for p in written.parent.glob("*.png")}
    assert figures >= {"equity", "exposure", "costs", "monthly", "rolling_sharpe", "random", "validation"}
    assert page.count("<svg") == len(figures)


def test_inlined_pictures_share_no_ids_and_no_fixed_colours(written: Path) -> None:
    page = written.read_text("utf-8")
    pictures = page[page.index("<svg") : page.rindex("</svg>")]
    assert "#1b1f24" not in pictures
    assert "var(--ink)" in pictures
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", pictures))
    defined = re.findall(r'\bid="([^"]+)"', pictures)
    assert used <= set(defined)
    assert all(defined.count(name) == 1 for name in used)


def test_the_numbers_are_there_as_plain_json(written: Path) -> None:
    raw = json.loads((written.parent / "report.json").read_text("utf-8"))
    assert raw["verdict"]["kind"] == "better"
    assert raw["accounts"]["Flat"]["sharpe"] is None
    best = raw["accounts"]["best checkpoint"]
    assert best["role"] == "agent"
    assert {"fees", "spread", "impact", "funding", "trades", "win_rate", "profit_factor"} <= set(best)
    assert len(raw["random_timing_sharpes"]) == 99


def test_text_from_outside_cannot_become_markup(edged: tuple[Comparison, Tape]) -> None:
    comparison, tape = edged
    report = _judge(
        comparison,
        replace(tape, source=EVIL, _cache={}),
        title=EVIL,
        config={EVIL: EVIL},
        commit=EVIL,
        fallback_reason=EVIL,
        folds={EVIL: (EVIL, EVIL)},
        notes=(EVIL,),
    )
    page = report_html(report, pictures="")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8


def test_a_missing_mark_price_and_a_fallback_are_loud(edged: tuple[Comparison, Tape], tmp_path: Path) -> None:
    comparison, tape = edged
    report = _judge(
        comparison,
        replace(tape, mark_rules=("last",), _cache={}),
        fallback_reason="the exchange answered 451",
    )
    page = report_html(report, pictures="")
    assert "mark=last for BTC/USDT:USDT" in page
    assert "Not the data that was asked for: the exchange answered 451" in page
    assert page.index("mark=last") < page.index("Beside what it must beat")


def test_seeds_are_listed_with_their_spread(edged: tuple[Comparison, Tape]) -> None:
    names = ("best checkpoint", "last checkpoint")
    report = _judge(*edged, seeds=(0, 1), seed_names=names)
    assert "of 2 seeds ended above flat" in report.verdict.sentence
    assert "2 seeds, Sharpe ratios" in report_html(report, pictures="")


def test_two_agents_of_one_name_are_refused(make_tape: TapeFactory) -> None:
    tape = make_tape(bars=400)
    twins = [Flat(CONFIG), Flat(CONFIG)]
    with pytest.raises(ValueError, match="distinct names"):
        compare(twins, tape, start_bar=100, end_bar=400, config=CONFIG, limits=LIMITS)
    with pytest.raises(ValueError, match="at least one agent"):
        compare([], tape, start_bar=100, end_bar=400, config=CONFIG, limits=LIMITS)


def test_monthly_returns_multiply_to_the_whole(edged: tuple[Comparison, Tape]) -> None:
    result = edged[0].result("best checkpoint")
    months, years, table = monthly_returns(result)
    assert len(months) == np.count_nonzero(np.isfinite(table))
    assert years == [2022, 2023]
    assert np.nanprod(1 + table) == pytest.approx(result.equity[-1] / result.equity[0])


def test_a_name_that_nobody_has_is_an_error(edged: tuple[Comparison, Tape]) -> None:
    with pytest.raises(KeyError, match="no result is called 'nobody'"):
        edged[0].result("nobody")
