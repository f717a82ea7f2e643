"""Several contracts in one backtest: every contract's books add up to the account's, and the page says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from perpgym.agents.asking import Asking
from perpgym.agents.baselines import Hold
from perpgym.data.bars import CLOSE
from perpgym.data.tape import Tape
from perpgym.envs.config import EnvConfig
from perpgym.envs.risk.limits import RiskLimits
from perpgym.evaluation.backtest import BacktestResult, matched_random, run_backtest, run_draws
from perpgym.evaluation.by_contract import all_trades, measure_contracts
from perpgym.evaluation.comparison import Comparison, compare
from perpgym.evaluation.judge import ReportInput, RunContext, judge
from perpgym.evaluation.report import write_report

CONFIG = EnvConfig(window_bars=1)
LIMITS = RiskLimits(max_daily_loss=None)
START, LISTED, BARS = 600, 700, 1_400


class Pair:
    """Long one contract and short the other by a seeded coin, anew every day; nothing of the third."""

    name = "pair"

    def __init__(self, seed: int = 0) -> None:
        self.asking = Asking(CONFIG)
        self.sides = np.repeat(np.random.default_rng(seed).integers(-1, 2, 100), 24)

    def act(self, tape, bar, account, portfolio):  # type: ignore[no-untyped-def]
        wanted = np.zeros((len(account), len(tape.contracts)))
        wanted[:, 0], wanted[:, 1] = 0.5 * self.sides[bar], -0.5 * self.sides[bar]
        return self.asking.where(np.zeros(wanted.shape, np.bool_), account, wanted)


@pytest.fixture(scope="module")
def tape(make_portfolio: Callable[..., Tape]) -> Tape:
    return make_portfolio((0, 0, LISTED), bars=BARS, mark_basis=2e-4, funding_rate=3e-4)


@pytest.fixture(scope="module")
def comparison(tape: Tape) -> Comparison:
    return compare(
        [Pair()], tape, start_bar=START, end_bar=BARS, config=CONFIG, limits=LIMITS, random_draws=40
    )


def test_profits_of_contracts_and_of_trades_add_up_to_the_account(comparison: Comparison) -> None:
    assert "Funding harvest" in comparison.roles
    for result in comparison.results:
        change = result.equity[-1] - result.equity[0]
        cards = measure_contracts(result)
        assert sum(card.profit for card in cards) == pytest.approx(change, abs=1e-3), result.name
        assert all_trades(result).profit.sum() == pytest.approx(change, abs=1e-3), result.name
        assert sum(card.trades for card in cards) == len(all_trades(result))
        paid = sum(result.column(name).sum() for name in ("fees", "spread", "impact", "clearance"))
        assert sum(card.costs for card in cards) == pytest.approx(paid, abs=1e-3)
        assert sum(card.funding for card in cards) == pytest.approx(-result.column("funding").sum(), abs=1e-3)
        for card in cards:
            assert card.profit == pytest.approx(card.price_pnl - card.funding - card.costs, abs=1e-3)


def test_nothing_of_a_contract_is_held_before_it_is_valid(tape: Tape, comparison: Comparison) -> None:
    before = LISTED - START
    for result in comparison.results:
        assert not result.contract_column("position")[:before, 2].any(), result.name
    holder = comparison.result("Buy and hold")
    assert holder.contract_column("position")[before, 2] > 0
    np.testing.assert_allclose(holder.contract_column("exposure")[before], 1 / 3, atol=0.02)
    # the negative control: before it the two had a half each
    np.testing.assert_allclose(holder.contract_column("exposure")[0, :2], 1 / 2, atol=0.02)


def test_equal_parts_earn_the_mean_of_the_price_changes(tape: Tape) -> None:
    (held,) = run_backtest(
        [Hold(CONFIG, exposure=1.0)], tape, start_bar=LISTED + 10, end_bar=LISTED + 300,
        config=EnvConfig(window_bars=1, funding_multiplier=0.0, max_drawdown=1.0), limits=LIMITS,
    )  # fmt: skip
    close = tape.mark[LISTED + 10 : LISTED + 300, :, CLOSE]
    earned = (close[-1] / close[0] - 1).mean()
    assert held.equity[-1] / held.equity[0] - 1 == pytest.approx(earned, abs=2e-3)


def test_draws_hold_the_same_book_at_other_times(tape: Tape, comparison: Comparison) -> None:
    own, draws = comparison.result("pair"), comparison.draws
    assert draws is not None
    days = len(own.open_time_ms) / 24
    turnover = (own.column("traded_notional") / own.column("equity_before")).sum() / days
    assert draws.turnover_per_day == pytest.approx(turnover, rel=0.1)
    assert np.ptp(draws.equity[-1]) > 1_000
    # a draw that was not turned is the agent's own path
    timing = matched_random(own, config=CONFIG, start_bar=START, draws=1, seed=0)
    timing.rows[:, 0] = np.arange(len(own.open_time_ms))
    same = run_draws(timing, tape, start_bar=START, end_bar=BARS, config=CONFIG, limits=LIMITS)
    np.testing.assert_allclose(same.equity[:, 0], own.equity, rtol=2e-4)


def report_of(comparison: Comparison, tape: Tape) -> ReportInput:
    return judge(
        comparison, tape=tape, config=CONFIG, limits=LIMITS, context=RunContext(), bootstrap_draws=50
    )


def test_the_page_shows_every_contract_with_what_it_added(
    comparison: Comparison, tape: Tape, tmp_path: Path
) -> None:
    report = report_of(comparison, tape)
    page = write_report(tmp_path, report).read_text("utf-8")
    raw = json.loads((tmp_path / "report.json").read_text("utf-8"))
    symbols = [contract.symbol for contract in tape.contracts]
    assert [card["symbol"] for card in raw["contracts"]] == symbols
    assert raw["contracts"][2]["trades"] == 0
    assert list(raw["price_returns"]) == symbols
    assert "pair, by contract" in page
    assert all(f"<td>{symbol}</td>" in page for symbol in symbols)
    assert (tmp_path / "by_contract.png").exists()
    assert "hold the same book at random times" in page


def test_the_price_change_of_a_young_contract_counts_from_its_first_valid_bar(
    comparison: Comparison, tape: Tape
) -> None:
    changes = report_of(comparison, tape).price_returns
    close = tape.mark[:, :, CLOSE]
    for asset, first in enumerate((START, START, LISTED)):
        expected = close[-1, asset] / close[first, asset] - 1
        assert changes[tape.contracts[asset].symbol] == pytest.approx(expected)


def test_exposure_of_a_hedged_book_is_counted_without_signs(comparison: Comparison, tape: Tape) -> None:
    card = report_of(comparison, tape).card
    result: BacktestResult = comparison.result("pair")
    assert np.abs(result.column("exposure")).mean() < 0.1
    assert card.mean_exposure == pytest.approx(np.abs(result.contract_column("exposure")).sum(1).mean())
    assert card.mean_exposure > 0.5
