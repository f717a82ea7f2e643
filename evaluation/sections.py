"""What each section of the report says; every text is escaped here, whoever wrote it."""

from __future__ import annotations

import math
from html import escape

from perpgym.evaluation.judge import ReportInput, day
from perpgym.evaluation.numerals import (
    base,
    decimal,
    hours,
    interval,
    money,
    number,
    percent,
    probability,
    share,
)
from perpgym.evaluation.scorecard import Scorecard
from perpgym.evaluation.verdict import SIGNIFICANT_Z

WARNING = (
    "This is research software. A backtest is not a promise, a simulated fill is not a fill, and leverage "
    "turns small mistakes into total losses. Do not trade money that you cannot afford to lose."
)
NOT_MODELLED = (
    "queue position and latency below a bar; orders fill in the bar after the decision, at its open.",
    "the depth of the order book; spread and impact follow simple laws.",
    "the agent's effect on marks, funding and other traders; the account is small against the market.",
    "outages, rejected orders, auto-deleveraging, and the exchange's own failure.",
    "taxes, transfers, and the yield of idle collateral.",
)


def alarms(report: ReportInput) -> list[str]:
    """What must not be overlooked, above everything but the verdict."""
    out = list(report.context.alarms)
    if report.context.fallback_reason:
        out.append(f"Not the data that was asked for: {report.context.fallback_reason}")
    if report.has_edge is not None:
        out.append("Simulated market: whatever happens here says nothing about a real one.")
    if markless := _by_mark_rule(report).get("last"):
        out.append(
            f"mark=last for {', '.join(markless)}: no mark price was there, so liquidations and stops follow "
            "the last price, whose spikes liquidate positions that the exchange would have kept."
        )
    return out


def _by_mark_rule(report: ReportInput) -> dict[str, list[str]]:
    rules: dict[str, list[str]] = {}
    for symbol, rule in report.mark_rules.items():
        rules.setdefault(rule, []).append(symbol)
    return rules


def facts(report: ReportInput) -> list[tuple[str, str]]:
    """Where the result comes from."""
    context = report.context
    facts = [("Data", report.source)]
    if report.has_edge is not None:
        facts.append(("Planted edges", "on" if report.has_edge else "off"))
    rules = [
        f"mark={rule}: {', '.join(map(base, symbols))}" for rule, symbols in _by_mark_rule(report).items()
    ]
    facts.append(("Mark price", "; ".join(rules)))
    facts += [(name.capitalize(), f"{first} to {last}") for name, (first, last) in context.folds.items()]
    facts.append(("Judged on", report.evidence.period))
    changes = [f"{base(symbol)} {percent(change)}" for symbol, change in report.price_returns.items()]
    if len(changes) == 1:
        changes = [percent(change) for change in report.price_returns.values()]
    facts.append(("Price change in that period", ", ".join(changes)))
    facts.append(("Seeds", ", ".join(str(seed) for seed in context.seeds) or "–"))
    facts.append(("Commit", context.commit or "unknown"))
    facts.append(("Data hash", report.data_hash[:16]))
    return facts


def cards(report: ReportInput) -> list[str]:
    """The headline agent's numbers, large."""
    card, evidence = report.card, report.evidence
    draws, count = report.draw_sharpes.shape[0], report.trial_summary.count
    rows = [
        (
            "Net return",
            percent(card.total_return),
            f"{money(card.final_equity)} from {money(card.initial_equity)}",
        ),
        (
            "Sharpe ratio ± SE",
            _with_error(card),
            f"95 % interval {interval(card.sharpe_interval)}",
        ),
        ("Maximum drawdown", share(card.max_drawdown), "of peak equity, bar closes"),
        ("Timing p-value", probability(evidence.timing_p_value), f"against {draws} random draws"),
        ("Deflated Sharpe", probability(evidence.deflated_sharpe), f"after {count} trials"),
    ]
    if evidence.oracle_share is not None:
        reached = share(max(0.0, evidence.oracle_share), 0)
        rows.append(("Share of the oracle", reached, "of the Sharpe ratio that was there"))
    return [
        f'<div class="card"><span>{escape(name)}</span><b>{escape(value)}</b>'
        f"<span>{escape(note)}</span></div>"
        for name, value, note in rows
    ]


def other_agents(report: ReportInput) -> str:
    """One line on the agents that the verdict is not about, such as the last checkpoint."""
    lines = [
        f"{name}: net return {percent(card.total_return)}, Sharpe ratio {number(card.sharpe)} ± "
        f"{decimal(card.sharpe_standard_error)}, maximum drawdown {share(card.max_drawdown)}"
        for name, card in report.scorecards.items()
        if report.comparison.roles[name] == "agent" and name != report.comparison.headline
    ]
    return "".join(f'<p class="note">{escape(line)}</p>' for line in lines)


def comparison_table(report: ReportInput) -> str:
    """Every account's return and risk."""
    head = (
        "", "Net return", "Volatility, per year", "Sharpe ± SE", "95 % interval",
        "Sortino", "Calmar", "Max drawdown", "Mean |exposure|", "In market", "Turnover, per day", "End",
    )  # fmt: skip
    rows = []
    for name, card in _ordered(report):
        cells = (
            name,
            percent(card.total_return),
            share(card.volatility),
            _with_error(card),
            interval(card.sharpe_interval),
            number(card.sortino),
            number(card.calmar),
            share(card.max_drawdown),
            decimal(card.mean_exposure),
            share(card.time_in_market, 0),
            decimal(card.turnover_per_day),
            _end(card),
        )
        rows.append(_row(cells, _row_class(report, name)))
    return _row(head, "", tag="th") + "".join(rows)


def comparison_note(report: ReportInput) -> str:
    """What the comparison's rows mean."""
    lines = [
        "All accounts trade in the same environment with the same costs. An account that was liquidated or "
        "hit the drawdown stop is flat from then on; “Buy and hold, no stops” shows what holding without "
        "them did."
    ]
    if len(report.contracts) > 1:
        lines.append(
            "Baselines trade every contract that is valid: holders in equal notionals, arranged anew where a "
            "contract comes in; the others in equal parts of the risk. Exposure is the sum of all "
            "contracts' without signs."
        )
    if report.evidence.oracle_share is not None and report.growth_share is not None:
        lines.append(
            "The oracle sees the planted edge, which no agent can, and pays the same costs. On average "
            "nothing can do better; over one period luck can. "
            f"{report.comparison.headline} reached {share(report.evidence.oracle_share, 0)} of its Sharpe "
            f"ratio and {share(report.growth_share, 0)} of its log growth."
        )
    return "".join(f'<p class="note">{escape(line)}</p>' for line in lines)


def evidence(report: ReportInput) -> list[str]:
    """Every test that the verdict rests on, with its source."""
    lines = [*_sharpe_lines(report), *_hold_lines(report), *_timing_lines(report), *_seed_lines(report)]
    return lines or ["The agent never traded, so there is nothing to measure."]


def _sharpe_lines(report: ReportInput) -> list[str]:
    card = report.card
    if not math.isfinite(card.sharpe):
        return []
    bounds, needed = card.sharpe_interval, SIGNIFICANT_Z * card.sharpe_standard_error
    return [
        f"Over a period of this length a Sharpe ratio can be told from 0 only beyond about ±{needed:.1f} "
        "(1.96 standard errors; Lo 2002, Mertens 2002).",
        f"Stationary bootstrap, {bounds.draws:,} draws in blocks of {bounds.block_bars} bars on average "
        f"(Politis and Romano 1994; Politis and White 2004): {interval(bounds)}.",
        f"Probability that the true Sharpe ratio is above 0: {probability(card.probabilistic_sharpe)}; that "
        f"it is above what the best of {report.trial_summary.count} worthless trials would show: "
        f"{probability(report.evidence.deflated_sharpe)} (Bailey and López de Prado 2012, 2014).",
    ]


def _hold_lines(report: ReportInput) -> list[str]:
    return [
        f"Sharpe ratio of {name} less that of buy and hold: {interval(bounds)} (95 %, paired bootstrap)."
        for name, bounds in report.against_hold.items()
        if math.isfinite(bounds.low)
    ]


def _timing_lines(report: ReportInput) -> list[str]:
    p_value = report.evidence.timing_p_value
    if p_value is None:
        return []
    draws = report.draw_sharpes
    as_good = round(p_value * (draws.shape[0] + 1)) - 1
    return [
        f"Of {draws.shape[0]} accounts that {_same_trades(report)} at random times, {as_good} did at least "
        f"as well (p = {p_value:.3f})."
    ]


def _same_trades(report: ReportInput) -> str:
    return "make the same trades" if len(report.contracts) == 1 else "hold the same book"


def _seed_lines(report: ReportInput) -> list[str]:
    names = report.context.seed_names
    if len(names) < 2:
        return []
    sharpes = sorted(report.scorecards[name].sharpe for name in names)
    return [
        f"{len(names)} seeds, Sharpe ratios {', '.join(number(s) for s in sharpes)}; "
        f"{report.evidence.seeds_above_flat} ended above flat."
    ]


def trades_table(report: ReportInput) -> str:
    """Every account's trades and costs."""
    head = (
        "", "Trades", "Win rate", "Profit factor", "Average trade", "of equity", "Average holding",
        "Fees", "Spread", "Impact", "Funding", "Clearance", "All costs", "Liquidations",
    )  # fmt: skip
    rows = []
    for name, card in _ordered(report):
        costs = (card.fees, card.spread, card.impact, card.funding, card.clearance, card.total_cost)
        cells = (
            name,
            f"{card.trades:,}",
            share(card.win_rate, 0),
            decimal(card.profit_factor),
            money(card.average_trade),
            percent(card.average_trade_fraction),
            hours(card.average_holding_hours),
            *(percent(cost / card.initial_equity, sign="") for cost in costs),
            str(card.liquidations),
        )
        rows.append(_row(cells, _row_class(report, name)))
    return _row(head, "", tag="th") + "".join(rows)


def by_contract(report: ReportInput) -> str:
    """What each contract added to the headline account; nothing where there is but one."""
    if len(report.contracts) == 1:
        return ""
    head = (
        "", "Price change", "Profit", "from the price", "Funding paid", "Costs", "Trades", "Win rate",
        "Mean |exposure|", "Mean exposure", "In market",
    )  # fmt: skip
    initial = report.card.initial_equity
    rows = [
        (
            card.symbol,
            percent(report.price_returns[card.symbol]),
            percent(card.profit / initial),
            percent(card.price_pnl / initial),
            percent(card.funding / initial, sign=""),
            percent(card.costs / initial, sign=""),
            f"{card.trades:,}",
            share(card.win_rate, 0),
            decimal(card.mean_exposure),
            number(card.net_exposure),
            share(card.time_in_market, 0),
        )
        for card in report.contracts
    ]
    table = _row(head, "", tag="th") + "".join(_row(cells, "") for cells in rows)
    return (
        f"<h2>{escape(report.comparison.headline)}, by contract</h2>\n"
        f'<section><div class="scroll"><table>{table}</table></div>\n'
        '<p class="note">Shares of initial equity. Profits add up to the net return: price, less funding '
        "paid, less costs (fees, spread, impact and clearance).</p></section>"
    )


def trials(report: ReportInput) -> str:
    """What the chosen checkpoint was chosen from."""
    summary = report.trial_summary
    if not summary.count:
        return "<p>No trial log: how many attempts this result was chosen from is unknown.</p>"
    text = (
        f"Checkpoints looked at on the validation period: {summary.count:,} (seeds: {summary.seeds}, "
        f"configurations: {summary.configs}). Their Sharpe ratios scatter by {decimal(summary.sharpe_std)}, "
        f"the highest was {number(summary.best_sharpe)}. The best mean of three neighbours grew by "
        f"{number(summary.best_log_growth, 4)} (net log growth), so it "
        f"{'beat flat' if summary.beat_flat else 'did not beat flat'}."
    )
    return f"<p>{escape(text)}</p>"


def assumptions(report: ReportInput) -> list[str]:
    """What the numbers take for granted."""
    env, limits = report.config, report.limits
    taker = "the contract's" if env.taker_rate is None else f"{100 * env.taker_rate:g} %"
    each = " in each contract" if len(report.contracts) > 1 else ""
    modes, leverages = " / ".join(env.margin_modes()), " / ".join(f"{one:g}" for one in env.leverages())
    loss = "none" if limits.max_daily_loss is None else share(limits.max_daily_loss, 0)
    return [
        f"Account: {money(env.initial_wallet)} in the settle currency, {modes} margin, leverage setting "
        f"{leverages}×, exposure up to ±{env.max_exposure:g}{each}, traded when off by more than "
        f"{env.rebalance_threshold:g} of equity.",
        f"Costs: taker fee {taker} of notional, half spread {env.half_spread_bps:g} bp, impact "
        f"{env.impact_coefficient:g} × volatility × √participation, at most "
        f"{share(env.max_participation, 0)} of a bar's volume, funding × {env.funding_multiplier:g}.",
        f"Ends: drawdown stop at {share(env.max_drawdown, 0)} of peak equity. Overlay: leverage up to "
        f"{limits.max_leverage:g}×, daily loss limit {loss}.",
        f"Risk-free rate {share(env.risk_free_rate)} a year; a year has 365 days; statistics are of bar log "
        "returns.",
        *report.context.notes,
        *(f"Not modelled: {text}" for text in NOT_MODELLED),
    ]


def items(lines: list[str]) -> str:
    """List items."""
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


def _end(card: Scorecard) -> str:
    if card.ended_at_ms is None:
        return ""
    return f"{'liquidated' if card.end_reason == 'liquidation' else 'stopped'} {day(card.ended_at_ms)}"


def _with_error(card: Scorecard) -> str:
    if not math.isfinite(card.sharpe):
        return "–"
    return f"{number(card.sharpe)} ± {decimal(card.sharpe_standard_error)}"


def _ordered(report: ReportInput) -> list[tuple[str, Scorecard]]:
    """Agents first, then the oracle, then baselines."""
    rank = {"agent": 0, "oracle": 1, "baseline": 2}
    return sorted(report.scorecards.items(), key=lambda item: rank[report.comparison.roles[item[0]]])


def _row_class(report: ReportInput, name: str) -> str:
    return f"{report.comparison.roles[name]}{' headline' if name == report.comparison.headline else ''}"


def _row(cells: tuple[str, ...], kind: str, *, tag: str = "td") -> str:
    inner = "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)
    return f'<tr class="{escape(kind)}">{inner}</tr>'
