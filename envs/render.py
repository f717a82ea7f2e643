"""The picture of a running episode: price with what was traded, exposure, equity with drawdown, costs."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import CLOSE, HIGH, LOW
from perpgym.data.clock import iso
from perpgym.data.tape import Tape
from perpgym.envs.rules import settle_currency
from perpgym.envs.spaces import CONTRACT_LEDGER, LEDGER

INK, MUTED, GRID, SURFACE = "#1b1f24", "#6a737d", "#e1e4e8", "#ffffff"
LINE, BOUGHT, SOLD, LOSS, STOPPED = "#1f6feb", "#1a7f37", "#cf222e", "#cf222e", "#c2570c"
CONTRACT_LINES = (LINE, "#c2570c", "#0f7b6c", "#8250df", "#bf3989", "#6a737d")
# inches at 100 dots each: sharp on a laptop's screen, small enough for a video
SIZE, DOTS = (12.8, 8.0), 100
_STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
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
    "legend.fontsize": 9,
    "lines.linewidth": 1.4,
    "text.parse_math": False,
}


class Step(NamedTuple):
    """One booked bar, as it was when it had been booked.

    ``stop`` is the first contract's stop-loss price when the bar began, nan without one.
    """

    bar: int
    ledger: NDArray[np.float64]
    holdings: NDArray[np.float64]
    stop: float


class EpisodeRecord:
    """The last bars of an episode, kept while an env may be asked for its picture.

    Args:
        tape: the market; its past is drawn too, as the agent knows it.
        bars: how many to keep and to draw.
    """

    def __init__(self, tape: Tape, bars: int) -> None:
        self.tape, self.bars = tape, bars
        self.steps: deque[Step] = deque(maxlen=bars)
        self.start_equity, self.newest = 0.0, 0

    def restart(self, bar: int, equity: float) -> None:
        """A new episode, whose first decision is taken at the close of ``bar``."""
        self.steps.clear()
        self.start_equity, self.newest = equity, bar

    def add(self, step: Step) -> None:
        """One more bar; the arrays are kept."""
        self.steps.append(step)
        self.newest = step.bar

    def column(self, name: str) -> NDArray[np.float64]:
        """(n,) of the ledger."""
        return np.array([step.ledger[LEDGER[name]] for step in self.steps])

    def contract_column(self, name: str) -> NDArray[np.float64]:
        """(n, A) of the contract ledger."""
        rows = [step.holdings[:, CONTRACT_LEDGER[name]] for step in self.steps]
        return np.array(rows).reshape(len(rows), len(self.tape.contracts))

    @property
    def booked(self) -> NDArray[np.int64]:
        """(n,) indices of the bars on the tape."""
        return np.array([step.bar for step in self.steps], np.int64)


def draw(record: EpisodeRecord) -> NDArray[np.uint8]:
    """(800, 1280, 3) uint8, RGB. Touches no state of matplotlib's."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=SIZE, dpi=DOTS)
        canvas: Any = FigureCanvasAgg(figure)
        price, exposure, equity, costs = figure.subplots(
            4, 1, sharex=True, height_ratios=(3.2, 1.2, 1.6, 1.2),
            gridspec_kw={"left": 0.085, "right": 0.985, "top": 0.91, "bottom": 0.055, "hspace": 0.1},
        )  # fmt: skip
        _title(figure, record)
        _draw_price(price, record)
        _draw_exposure(exposure, record)
        _draw_equity(equity, record)
        _draw_costs(costs, record)
        _date_axis(costs, record)
        figure.align_ylabels()
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _title(figure: Any, record: EpisodeRecord) -> None:
    tape = record.tape
    symbols = ", ".join(contract.symbol for contract in tape.contracts)
    close_ms = int(tape.open_time_ms[record.newest]) + tape.bar_ms
    equity, drawdown, exposure = record.start_equity, 0.0, 0.0
    if record.steps:
        equity, drawdown, exposure = (
            float(record.column(name)[-1]) for name in ("equity", "drawdown", "exposure")
        )
    change = 100.0 * (equity / record.start_equity - 1.0)
    figure.text(0.085, 0.965, symbols, size=13, weight="bold")
    figure.text(0.985, 0.965, f"{iso(close_ms)} UTC", size=11, color=MUTED, ha="right")
    figure.text(
        0.085,
        0.928,
        f"equity {equity:,.0f} {settle_currency(tape.contracts[0])} ({change:+.2f} %)    "
        f"drawdown {100.0 * drawdown:.1f} %    exposure {exposure:+.2f}",
        size=12,
    )


def _span(record: EpisodeRecord) -> NDArray[np.int64]:
    """The bars drawn: the newest and those before it."""
    return np.arange(max(record.newest - record.bars + 1, 0), record.newest + 1)


def _draw_price(axes: Any, record: EpisodeRecord) -> None:
    tape, bars = record.tape, _span(record)
    last, mark = tape.last[bars, 0], tape.mark[bars, 0]
    axes.vlines(bars, last[:, LOW], last[:, HIGH], color=MUTED, alpha=0.35, linewidth=1.0)
    axes.plot(bars, last[:, CLOSE], color=INK, linewidth=1.2, label="last")
    if not np.array_equal(last, mark):
        axes.plot(bars, mark[:, CLOSE], color=LINE, linewidth=0.8, alpha=0.7, label="mark")
    low, high = axes.get_ylim()
    stops = np.array([step.stop for step in record.steps])
    if np.isfinite(stops).any():
        axes.step(
            record.booked, stops, where="mid", color=STOPPED, linewidth=0.9, linestyle="--", label="stop-loss"
        )
    _mark_events(axes, record)
    # a stop far away shall not flatten the price, nor the legend hide it
    axes.set_ylim(low, high + 0.13 * (high - low))
    axes.yaxis.set_major_formatter(_thousands)
    axes.set_ylabel("price" if len(tape.contracts) == 1 else tape.contracts[0].symbol)
    axes.legend(loc="upper left", ncols=6, borderaxespad=0.2)


def _mark_events(axes: Any, record: EpisodeRecord) -> None:
    """Orders at their fill prices; stops at their price; liquidations at the extreme that hurt."""
    if not record.steps:
        return
    prices, filled = record.contract_column("fill_price")[:, 0], record.contract_column("filled")[:, 0]
    after = record.contract_column("position")[:, 0]
    before = after - filled
    is_stopped, is_liquidated = record.column("stopped") > 0, record.column("liquidated") > 0
    bars = record.booked
    has_order = np.isfinite(prices)
    # where an order and a stop filled in one bar, the order was on the side of what the stop closed
    bought = np.where(is_stopped | is_liquidated, before <= 0, filled > 0)
    shape = {"edgecolor": SURFACE, "linewidth": 0.6, "zorder": 5}
    for chosen, marker, colour, label in (
        (has_order & bought, "^", BOUGHT, "bought"),
        (has_order & ~bought, "v", SOLD, "sold"),
    ):
        if chosen.any():
            axes.scatter(
                bars[chosen], prices[chosen], s=52, marker=marker, color=colour, label=label, **shape
            )
    low, high = record.tape.last[bars, 0, LOW], record.tape.last[bars, 0, HIGH]
    stops = np.array([step.stop for step in record.steps])
    at_stop = np.clip(np.where(np.isfinite(stops), stops, 0.5 * (low + high)), low, high)
    mark_low, mark_high = record.tape.mark[bars, 0, LOW], record.tape.mark[bars, 0, HIGH]
    was_long = np.where(before != 0.0, before > 0.0, bought)
    worst = np.where(was_long, mark_low, mark_high)
    for chosen, where, marker, size, colour, label in (
        (is_stopped, at_stop, "X", 70, STOPPED, "stop or target"),
        (is_liquidated, worst, "X", 150, INK, "liquidated"),
    ):
        if chosen.any():
            axes.scatter(
                bars[chosen], where[chosen], s=size, marker=marker, color=colour, label=label, **shape
            )


def _draw_exposure(axes: Any, record: EpisodeRecord) -> None:
    exposure = record.contract_column("exposure")
    axes.axhline(0.0, color=MUTED, linewidth=0.8)
    for asset, contract in enumerate(record.tape.contracts):
        colour = CONTRACT_LINES[asset % len(CONTRACT_LINES)]
        axes.step(record.booked, exposure[:, asset], where="mid", color=colour, label=contract.symbol)
    if len(record.tape.contracts) == 1:
        axes.fill_between(record.booked, exposure[:, 0], step="mid", color=LINE, alpha=0.15, linewidth=0.0)
    else:
        axes.legend(loc="upper left", ncols=6, borderaxespad=0.2)
    axes.set_ylabel("exposure")


def _draw_equity(axes: Any, record: EpisodeRecord) -> None:
    equity, drawdown = record.column("equity"), record.column("drawdown")
    # the highest equity of the whole episode, which may lie before what is kept
    peak = equity / np.maximum(1.0 - drawdown, 1e-9)
    peak = np.where(drawdown < 1.0, peak, np.nan)
    axes.fill_between(record.booked, equity, peak, color=LOSS, alpha=0.18, linewidth=0.0)
    axes.plot(record.booked, equity, color=LINE)
    axes.axhline(record.start_equity, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_ylabel("equity\n(red: drawdown)")
    axes.yaxis.set_major_formatter(_thousands)


def _draw_costs(axes: Any, record: EpisodeRecord) -> None:
    """Sums over the bars that are drawn; what was received is above zero."""
    costs = sum(record.column(name) for name in ("fees", "spread", "impact", "clearance"))
    axes.axhline(0.0, color=MUTED, linewidth=0.8)
    for sums, colour, label in (
        (np.cumsum(record.column("funding")), LINE, "funding received"),
        (-np.cumsum(costs), LOSS, "fees, spread and impact paid"),
    ):
        axes.step(record.booked, sums, where="mid", color=colour, label=label)
    axes.set_ylabel("funding, costs")
    axes.yaxis.set_major_formatter(_thousands)
    if record.steps:
        axes.legend(loc="lower left", ncols=2, borderaxespad=0.2)


def _thousands(value: float, _position: int) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == 0 else f"{value:.3g}"


def _date_axis(axes: Any, record: EpisodeRecord) -> None:
    """A few whole bars with their times; the axis counts bars, so that gaps in time do not show as lines."""
    bars, tape = _span(record), record.tape
    # not at the ends, where half of a text would be cut off
    edge = 0.05 * (bars[-1] - bars[0])
    ticks = np.unique(np.linspace(bars[0] + edge, bars[-1] - edge, min(6, bars.size)).astype(np.int64))
    axes.set_xticks(ticks, [iso(int(tape.open_time_ms[bar]))[2:] for bar in ticks])
    axes.set_xlim(bars[0] - 1, max(bars[-1], bars[0] + 2) + 1)
