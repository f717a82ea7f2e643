"""The report's pictures: each one answers a question that its title asks.

Every figure is drawn once with placeholder colours. As SVG inside the report they become CSS variables, so
one picture serves light and dark pages; as PNG files they keep the light colours.
"""

from __future__ import annotations

import calendar
import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

from perpgym.data.bars import CLOSE
from perpgym.data.clock import iso
from perpgym.evaluation import metrics
from perpgym.evaluation.backtest import BacktestResult
from perpgym.evaluation.comparison import HOLD, UNLIMITED_HOLD
from perpgym.evaluation.explain import Attribution
from perpgym.evaluation.judge import ReportInput
from perpgym.evaluation.numerals import base
from perpgym.evaluation.scorecard import returns_of
from perpgym.evaluation.trials import curves, smooth

# light colours, each also the name of a CSS variable of the report; no two may be equal
INK, MUTED, GRID, SURFACE = "#1b1f24", "#6a737d", "#e1e4e8", "#fefefe"
AGENT, SECOND, THIRD, FOURTH = "#1f6feb", "#c2570c", "#0f7b6c", "#8250df"
FAINT, LOSS = "#afb8c1", "#cf222e"
VARIABLES: Mapping[str, str] = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    SURFACE: "--surface",
    AGENT: "--agent",
    SECOND: "--second",
    THIRD: "--third",
    FOURTH: "--fourth",
    FAINT: "--faint",
    LOSS: "--loss",
}
_MAX_POINTS = 1_200

_STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.01,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": SURFACE,
    "axes.facecolor": SURFACE,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
}

Draw = Callable[[ReportInput], Figure | None]


def draw_figures(report: ReportInput) -> Iterator[tuple[str, str, Figure]]:
    """Draw every figure that the report's data allow.

    Yields:
        (file name without suffix, caption, figure).
    """
    for name, (caption, draw) in _FIGURES.items():
        with _style(name):
            figure = draw(report)
        if figure is not None:
            yield name, caption, figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure with its light colours."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)


def to_inline_svg(name: str, figure: Figure) -> str:
    """A figure as SVG to be put into HTML: no addresses, no clashing ids, colours as CSS variables."""
    buffer = io.StringIO()
    with _style(name):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    # generic ids (figure_1, axes_1) repeat from figure to figure
    svg = re.sub(r'\bid="((?:figure|axes|patch|line2d|matplotlib|text|xtick|ytick|legend)[^"]*)"', "", svg)
    svg = re.sub(r'<svg\b[^>]*viewBox="([^"]*)"[^>]*>', r'<svg role="img" viewBox="\1">', svg, count=1)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


@contextmanager
def _style(name: str) -> Iterator[None]:
    # the salt makes ids unique to a figure and the same in every run
    with mpl.rc_context(_STYLE):
        mpl.rcParams["svg.hashsalt"] = f"perpgym-{name}"
        yield


def _equity(report: ReportInput) -> Figure:
    figure, (top, bottom) = _axes(2, height=4.6, ratios=(3, 1.3))
    for result, colour, width, zorder in _curves(report):
        rows = _thin(result.equity.shape[0])
        growth = result.equity / result.equity[0]
        label = result.name if colour != FAINT else None
        top.plot(_when(result)[rows], growth[rows], color=colour, lw=width, label=label, zorder=zorder)
        if colour != FAINT:
            fall = -metrics.drawdowns(result.equity)
            bottom.plot(_when(result)[rows], fall[rows], color=colour, lw=width * 0.7, zorder=zorder)
    top.plot([], [], color=FAINT, lw=1.0, label="other baselines")
    _log_scale(top)
    top.set_title("Equity, log scale, change since the start")
    top.legend(loc="upper left", ncols=3)
    bottom.set_title("Drawdown")
    bottom.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


def _exposure(report: ReportInput) -> Figure:
    result = _headline(report)
    if len(result.contracts) > 1:
        return _exposures(result)
    figure, (top, bottom) = _axes(2, height=3.8, ratios=(1.4, 1))
    rows = _thin(result.equity.shape[0])
    top.plot(_when(result)[rows], result.mark_close[rows, 0], color=MUTED, lw=1.0)
    top.set_title("Mark price, quote")
    top.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}"))
    _fill_exposure(bottom, result, result.column("exposure"))
    bottom.set_title("Exposure, signed notional over equity")
    return figure


def _exposures(result: BacktestResult) -> Figure:
    """The whole account's exposure, and below it that of every contract, all on one scale."""
    count = len(result.contracts)
    figure, (top, *rest) = _axes(1 + count, height=1.9 + 0.72 * count, ratios=(1.9, *[1.0] * count))
    gross, net = result.column("gross_exposure"), result.column("exposure")
    rows = _thin(gross.shape[0])
    when = _when(result)[1:][rows]
    top.step(when, gross[rows], where="post", color=MUTED, lw=0.9, label="sum without signs")
    top.step(when, net[rows], where="post", color=AGENT, lw=1.2, label="with signs")
    top.axhline(0, color=MUTED, lw=0.7)
    top.set_title("Exposure of all contracts, notional over equity")
    top.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=2)
    exposures = result.contract_column("exposure")
    bound = max(float(np.abs(exposures).max()), 1e-3) * 1.05
    for asset, axes in enumerate(rest):
        _fill_exposure(axes, result, exposures[:, asset])
        axes.set_ylim(-bound, bound)
        axes.set_ylabel(base(result.contracts[asset].symbol), rotation=0, ha="right", va="center")
    rest[0].set_title("of each contract: long above zero, short below")
    return figure


def _fill_exposure(axes: Axes, result: BacktestResult, exposure: NDArray[np.float64]) -> None:
    rows = _thin(exposure.shape[0])
    when = _when(result)[1:][rows]
    axes.fill_between(when, np.maximum(exposure[rows], 0), color=AGENT, lw=0, step="post")
    axes.fill_between(when, np.minimum(exposure[rows], 0), color=SECOND, lw=0, step="post")
    axes.axhline(0, color=MUTED, lw=0.7)


def _by_contract(report: ReportInput) -> Figure | None:
    if len(report.contracts) == 1:
        return None
    figure, (axes,) = _axes(1, height=1.1 + 0.34 * len(report.contracts))
    initial = report.card.initial_equity
    # funding and costs are paid where they are positive
    parts = (
        ("price", "price_pnl", 1.0, AGENT),
        ("funding", "funding", -1.0, THIRD),
        ("costs", "costs", -1.0, SECOND),
    )
    for y, card in enumerate(reversed(report.contracts)):
        values = [(sign * getattr(card, name) / initial, colour) for _, name, sign, colour in parts]
        _stack(axes, y, values)
        axes.plot([card.profit / initial], [y], marker="D", ms=4.5, color=INK, ls="none", zorder=4)
    for label, _, _, colour in parts:
        axes.bar(0, 0, width=0, color=colour, label=label)
    axes.plot([], [], marker="D", ms=4.5, color=INK, ls="none", label="profit")
    axes.set_yticks(range(len(report.contracts)), [base(card.symbol) for card in reversed(report.contracts)])
    _finish_bars(axes, len(report.contracts))
    axes.set_title(f"Profit of {report.comparison.headline} by contract, share of initial equity")
    return figure


def _costs(report: ReportInput) -> Figure:
    names = [r.name for r in report.comparison.results if report.scorecards[r.name].trades]
    figure, (axes,) = _axes(1, height=0.9 + 0.3 * max(len(names), 1))
    parts = (("fees", AGENT), ("spread", SECOND), ("impact", FOURTH), ("funding", THIRD), ("clearance", LOSS))
    for y, name in enumerate(reversed(names)):
        card = report.scorecards[name]
        _stack(axes, y, [(getattr(card, part) / card.initial_equity, colour) for part, colour in parts])
    for part, colour in parts:
        axes.bar(0, 0, width=0, color=colour, label=part)
    axes.set_yticks(range(len(names)), list(reversed(names)))
    _finish_bars(axes, len(names))
    axes.set_title("What trading and holding cost, share of initial equity (left of 0: received)")
    return figure


def _stack(axes: Axes, y: int, values: list[tuple[float, str]]) -> None:
    """One bar of several parts: those below zero left of it, the others right."""
    left, right = 0.0, 0.0
    for value, colour in values:
        axes.barh(y, value, left=right if value >= 0 else left, color=colour, height=0.65)
        left, right = left + min(value, 0.0), right + max(value, 0.0)


def _finish_bars(axes: Axes, count: int) -> None:
    axes.grid(axis="y", visible=False)
    axes.axvline(0, color=MUTED, lw=0.7)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.18 - 0.5 / (count + 1)), ncols=5)


def _monthly(report: ReportInput) -> Figure | None:
    result = _headline(report)
    months, years, table = monthly_returns(result)
    if not months:
        return None
    figure, (axes,) = _axes(1, height=0.95 + 0.42 * len(years))
    bound = max(float(np.nanmax(np.abs(table))), 1e-6)
    for (row, month), value in np.ndenumerate(table):
        if np.isnan(value):
            continue
        colour, alpha = (AGENT if value >= 0 else SECOND), 0.12 + 0.6 * abs(value) / bound
        axes.barh(row, 0.96, left=month - 0.48, height=0.92, color=colour, alpha=alpha)
        text = f"{100 * value:+.1f}".replace("-", "−") if value else "0"
        axes.text(month, row, text, ha="center", va="center", fontsize=8)
    axes.set_xticks(range(12), [calendar.month_abbr[month] for month in range(1, 13)])
    axes.set_yticks(range(len(years)), [str(year) for year in years])
    axes.set_ylim(len(years) - 0.5, -0.5)
    axes.set_xlim(-0.5, 11.5)
    axes.grid(visible=False)
    axes.set_title(f"Monthly returns of {result.name}, %")
    return figure


def _rolling(report: ReportInput) -> Figure | None:
    window = round(30 * 86_400_000 / _headline(report).bar_ms)
    if len(_headline(report).open_time_ms) < 2 * window:
        return None
    figure, (axes,) = _axes(1, height=2.6)
    hold = UNLIMITED_HOLD if UNLIMITED_HOLD in report.scorecards else report.comparison.headline
    for name, colour, width in ((hold, MUTED, 1.0), (report.comparison.headline, AGENT, 1.5)):
        result = report.comparison.result(name)
        returns = returns_of(result, floor=report.config.reward_equity_floor)
        excess = metrics.excess_returns(
            returns, risk_free_rate=report.config.risk_free_rate, bars_per_year=result.bars_per_year
        )
        sharpe = metrics.rolling_sharpe(excess, window=window, bars_per_year=result.bars_per_year)
        rows = _thin(sharpe.shape[0])
        axes.plot(_when(result)[1:][rows], sharpe[rows], color=colour, lw=width, label=name)
    axes.axhline(0, color=MUTED, lw=0.7)
    axes.set_title("Sharpe ratio of the last 30 days, annualised")
    axes.legend(loc="upper left", ncols=2)
    return figure


def _random(report: ReportInput) -> Figure | None:
    if not report.draw_sharpes.shape[0]:
        return None
    figure, (axes,) = _axes(1, height=2.6)
    draws = np.nan_to_num(report.draw_sharpes)
    axes.hist(draws, bins=min(30, max(5, draws.shape[0] // 6)), color=FAINT, edgecolor=SURFACE)
    axes.axvline(report.card.sharpe, color=AGENT, lw=2.0, label=report.comparison.headline)
    axes.axvline(float(np.median(draws)), color=MUTED, lw=1.0, ls="--", label="median of the draws")
    axes.set_xlabel("Sharpe ratio, annualised")
    axes.set_ylabel("draws")
    what = "trades" if len(report.contracts) == 1 else "book"
    axes.set_title(f"The same {what} at random times, {draws.shape[0]} draws")
    axes.legend(loc="upper left")
    return figure


def _validation(report: ReportInput) -> Figure | None:
    if not report.trials:
        return None
    figure, (axes,) = _axes(1, height=2.6)
    palette = (AGENT, SECOND, THIRD, FOURTH)
    for i, ((_, seed), run) in enumerate(curves(report.trials).items()):
        colour = palette[i % len(palette)]
        steps = [int(trial["step"]) for trial in run]
        growth = np.array([t["validation_log_growth"] for t in run], dtype=np.float64)
        axes.plot(steps, growth, color=colour, lw=0.6, marker="o", ms=2.5, alpha=0.6)
        label = f"seed {seed}, mean of three" if i < 8 else None
        axes.plot(steps, smooth(growth), color=colour, lw=1.6, label=label)
    axes.axhline(0, color=MUTED, lw=0.8, ls="--")
    if report.context.chosen_step is not None:
        axes.axvline(report.context.chosen_step, color=INK, lw=1.0, ls=":", label="chosen")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1e6:g}"))
    axes.set_xlabel("environment steps trained, millions")
    axes.set_ylabel("net log growth")
    axes.set_title("Validation over checkpoints; flat is 0")
    axes.legend(loc="best", ncols=3)
    return figure


_FIGURES: dict[str, tuple[str, Draw]] = {
    "equity": ("Did it make money, and how deep did it fall?", _equity),
    "exposure": ("What did it hold, and when?", _exposure),
    "by_contract": ("Which contracts made the result?", _by_contract),
    "random": ("Was it the timing?", _random),
    "validation": ("What was the checkpoint chosen from?", _validation),
    "rolling_sharpe": ("Was it steady?", _rolling),
    "monthly": ("Which months made the result?", _monthly),
    "costs": ("Where did the money go?", _costs),
}


def monthly_returns(result: BacktestResult) -> tuple[list[int], list[int], NDArray[np.float64]]:
    """Returns by UTC month.

    Returns:
        Month numbers since 1970-01, the years they lie in, and (years, 12) fractions with ``nan`` where the
        period has no bar. A month's return runs from the close before its first bar to that of its last.
    """
    month = result.open_time_ms.astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64)
    present, first = np.unique(month, return_index=True)
    edges = np.concatenate((first, [month.shape[0]]))
    change = result.equity[edges[1:]] / np.maximum(result.equity[edges[:-1]], 1e-12) - 1.0
    years = list(range(1970 + int(present[0]) // 12, 1970 + int(present[-1]) // 12 + 1))
    table = np.full((len(years), 12), np.nan)
    table[1970 + present // 12 - years[0], present % 12] = change
    return present.tolist(), years, table


def _headline(report: ReportInput) -> BacktestResult:
    return report.comparison.result(report.comparison.headline)


def _curves(report: ReportInput) -> Iterator[tuple[BacktestResult, str, float, int]]:
    """(result, colour, width, zorder): the headline strong, what it must beat named, the rest faint."""
    others = iter((FOURTH, THIRD, LOSS))
    for result in report.comparison.results:
        role = report.comparison.roles[result.name]
        if result.name == report.comparison.headline:
            yield result, AGENT, 1.9, 5
        elif role == "oracle":
            yield result, SECOND, 1.2, 4
        elif role == "agent":
            yield result, next(others, FAINT), 1.1, 3
        elif result.name == UNLIMITED_HOLD:
            yield result, MUTED, 1.2, 3
        elif result.name != HOLD:
            yield result, FAINT, 0.8, 1


def _axes(rows: int, *, height: float, ratios: tuple[float, ...] = (1,)) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(9.0, height), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=rows > 1, height_ratios=ratios, squeeze=False)
    return figure, list(axes[:, 0])


def _log_scale(axes: Axes) -> None:
    """Log scale of equity over initial equity, labelled with round changes that lie far enough apart."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks, gap = [1.0], 0.08 * np.log(high / low)
    for change in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4, 9, 19, 49, 99):
        for level in (1 + change, 1 - change):
            if low <= level <= high and all(abs(np.log(level / t)) > gap for t in ticks):
                ticks.append(level)
    labels = [f"{100 * (t - 1):+.0f}%".replace("-", "−") if t != 1 else "0%" for t in ticks]
    axes.set_yticks(ticks, labels)
    axes.yaxis.set_minor_locator(NullLocator())


def _when(result: BacktestResult) -> NDArray[np.datetime64]:
    return result.close_time_ms.astype("datetime64[ms]")


def _thin(points: int) -> NDArray[np.int64]:
    """Indices of at most ``_MAX_POINTS`` points, the last among them: a screen shows no more."""
    return np.unique(np.linspace(0, points - 1, min(points, _MAX_POINTS)).round().astype(np.int64))


def draw_attribution(found: Attribution) -> Figure:
    """Why a decision was taken: the price it saw, what each bar, feature and account column did to it."""
    with _style("attribution"):
        figure = Figure(figsize=(9.2, 6.4), layout="constrained")
        (top_left, top_right), (bottom_left, bottom_right) = figure.subplots(
            2, 2, width_ratios=(1.25, 1.0), height_ratios=(1.0, 1.0)
        )
        _price_and_bars(found, top_left, bottom_left)
        _parts(top_right, found.by_feature, "Market and risk columns, all bars")
        _parts(bottom_right, found.by_state, "Account and portfolio columns")
        decision = found.decision
        symbol = decision.tape.contracts[found.contract].symbol
        when = iso(int(decision.tape.open_time_ms[decision.bar]) + decision.tape.bar_ms)
        lines = [
            f"{symbol} at {when} UTC: {found.what} was {found.answer:+.4g},",
            f"{found.baseline_answer:+.4g} on average over earlier markets with a flat account",
            f"this decision: {decision.chosen_as}",
        ]
        if found.manager is not None:
            lines.insert(2, _manager_in_words(found.manager))
        if found.warning is not None:
            lines.append(found.warning)
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10)
    return figure


def _manager_in_words(terms: Mapping[str, float]) -> str:
    return "its manager had set: " + ", ".join(f"{name} = {value:.3g}" for name, value in terms.items())


def _price_and_bars(found: Attribution, top: Axes, bottom: Axes) -> None:
    tape, bar = found.decision.tape, found.decision.bar
    back = np.arange(1 - len(found.by_bar), 1)
    rows = np.clip(bar + back, 0, None)
    top.plot(back, tape.mark[rows, found.contract, CLOSE], color=INK)
    top.set_title("Mark close that it saw")
    parts = found.by_bar
    bottom.bar(back, parts, width=0.9, color=np.where(parts >= 0.0, AGENT, LOSS))
    bottom.axhline(0.0, color=MUTED, lw=0.7)
    bottom.set_title("What each bar did to the answer")
    bottom.set_xlabel("bars before the decision")
    if found.attention is not None:
        weights = bottom.twinx()
        attention = found.attention[found.contract]
        weights.plot(-np.arange(len(attention)), attention, color=SECOND, lw=1.0)
        weights.set_ylabel("attention", color=SECOND)
        weights.set_ylim(0.0)
        weights.grid(visible=False)


def _parts(axes: Axes, parts: Mapping[str, float], title: str, most: int = 12) -> None:
    """The largest parts as bars, largest on top."""
    largest = sorted(parts.items(), key=lambda item: abs(item[1]))[-most:]
    names, values = [name for name, _ in largest], np.array([value for _, value in largest])
    axes.barh(names, values, color=np.where(values >= 0.0, AGENT, LOSS))
    axes.axvline(0.0, color=MUTED, lw=0.7)
    axes.tick_params(axis="y", labelsize=7.5)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(title)
