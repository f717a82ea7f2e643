"""Every number that the report shows about one account, in one place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perpgym.evaluation import metrics
from perpgym.evaluation.backtest import BacktestResult
from perpgym.evaluation.bootstrap import Interval, sharpe_interval
from perpgym.evaluation.by_contract import all_trades

_DAY_MS = 86_400_000


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """One account over one period: ratios are fractions, money is quote, ``nan`` is a figure without sense.

    Attributes:
        initial_equity, final_equity: quote.
        total_return: fraction.
        log_growth: net log growth, the sum of the bar log returns.
        annual_growth: compound, fraction per year.
        volatility: of bar log returns, per square root of a year.
        sharpe: over the risk-free rate, per square root of a year.
        sharpe_standard_error: in its unit.
        sharpe_interval: stationary bootstrap.
        probabilistic_sharpe: probability that the true Sharpe ratio is above 0.
        sortino, calmar: per square root of a year, and per year.
        max_drawdown: fraction of the peak.
        turnover_per_day: traded notional over equity.
        mean_exposure: mean |signed notional over equity| at bar closes, of several contracts their sum.
        time_in_market: share of bar closes with any position.
        trades, win_rate, profit_factor: see ``evaluation.trades``.
        average_trade: quote, net profit of the mean trade.
        average_trade_fraction: the same over the equity before the trade.
        average_holding_hours: hours.
        fees, spread, impact, clearance: quote, paid > 0.
        funding: quote, paid > 0: the ledger's sign turned, to stand among the costs.
        insurance: quote, what the insurance fund took over.
        liquidations: bars in which a position was liquidated.
        ended_at_ms: UTC, when the account was liquidated or stopped for good; None if it lived on.
        end_reason: in words.
    """

    initial_equity: float
    final_equity: float
    total_return: float
    log_growth: float
    annual_growth: float
    volatility: float
    sharpe: float
    sharpe_standard_error: float
    sharpe_interval: Interval
    probabilistic_sharpe: float
    sortino: float
    calmar: float
    max_drawdown: float
    turnover_per_day: float
    mean_exposure: float
    time_in_market: float
    trades: int
    win_rate: float
    profit_factor: float
    average_trade: float
    average_trade_fraction: float
    average_holding_hours: float
    fees: float
    spread: float
    impact: float
    funding: float
    clearance: float
    insurance: float
    liquidations: int
    ended_at_ms: int | None
    end_reason: str | None

    @property
    def total_cost(self) -> float:
        """Quote, everything paid to trade and to hold."""
        return self.fees + self.spread + self.impact + self.funding + self.clearance


def returns_of(result: BacktestResult, *, floor: float) -> metrics.Floats:
    """(n,) bar log returns of a backtest, floored as the reward is."""
    return metrics.log_returns(result.equity, floor=floor)


def measure(
    result: BacktestResult,
    *,
    risk_free_rate: float,
    equity_floor: float,
    bootstrap_draws: int = 2_000,
    seed: int = 0,
) -> Scorecard:
    """Fill the scorecard of one account.

    Args:
        result: its books.
        risk_free_rate: fraction per year.
        equity_floor: ``EnvConfig.reward_equity_floor``.
        bootstrap_draws: for the Sharpe ratio's interval.
        seed: of the bootstrap.
    """
    year = result.bars_per_year
    equity = result.equity
    returns = returns_of(result, floor=equity_floor)
    excess = metrics.excess_returns(returns, risk_free_rate=risk_free_rate, bars_per_year=year)
    if not result.column("traded_notional").any():
        # nothing at risk: a Sharpe ratio made of the risk-free rate alone would be minus infinity
        excess = np.zeros_like(excess)
    trades = all_trades(result)
    before = np.maximum(result.column("equity_before"), 1e-12)
    days = len(returns) * result.bar_ms / _DAY_MS
    return Scorecard(
        initial_equity=float(equity[0]),
        final_equity=float(equity[-1]),
        total_return=metrics.total_return(equity),
        log_growth=float(returns.sum()),
        annual_growth=metrics.annual_growth(equity, bars_per_year=year),
        volatility=metrics.annual_volatility(returns, bars_per_year=year),
        sharpe=metrics.sharpe_ratio(excess, bars_per_year=year),
        sharpe_standard_error=metrics.sharpe_standard_error(excess, bars_per_year=year),
        sharpe_interval=sharpe_interval(excess, bars_per_year=year, draws=bootstrap_draws, seed=seed),
        probabilistic_sharpe=metrics.probabilistic_sharpe(excess),
        sortino=metrics.sortino_ratio(excess, bars_per_year=year),
        calmar=metrics.calmar_ratio(equity, bars_per_year=year),
        max_drawdown=metrics.max_drawdown(equity),
        turnover_per_day=float((result.column("traded_notional") / before).sum() / days),
        mean_exposure=float(result.column("gross_exposure").mean()),
        time_in_market=float(np.mean(result.contract_column("position").any(axis=1))),
        trades=len(trades),
        win_rate=trades.win_rate,
        profit_factor=trades.profit_factor,
        average_trade=float(trades.profit.mean()) if len(trades) else np.nan,
        average_trade_fraction=float(trades.profit_fraction.mean()) if len(trades) else np.nan,
        average_holding_hours=(
            float(trades.holding_bars.mean()) * result.bar_ms / 3_600_000 if len(trades) else np.nan
        ),
        fees=float(result.column("fees").sum()),
        spread=float(result.column("spread").sum()),
        impact=float(result.column("impact").sum()),
        funding=0.0 - float(result.column("funding").sum()),
        clearance=float(result.column("clearance").sum()),
        insurance=float(result.column("insurance").sum()),
        liquidations=int(np.count_nonzero(result.column("liquidated"))),
        ended_at_ms=None if result.ended_at is None else int(result.close_time_ms[result.ended_at + 1]),
        end_reason=result.end_reason,
    )
