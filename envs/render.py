"""The picture of a running episode: price with what was traded, exposure, equity with drawdown, costs."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import CLOSE, HIGH, LOW
from perpgym.data.clock import iso
from perpgym.data.tape import Tape
from perpgym.envs.fills import (
    FILL_ASSET,
    FILL_PRICE,
    FILL_QUANTITY,
    FILL_REASON,
    LIQUIDATION,
    ORDER,
    STOP,
    TARGET,
)
from perpgym.envs.rules import settle_currency
from perpgym.envs.spaces import CONTRACT_LEDGER, LEDGER

INK, MUTED, GRID, SURFACE = "#1b1f24", "#6a737d", "#e1e4e8", "#ffffff"
LINE, BOUGHT, SOLD, LOSS, STOPPED = "#1f6feb", "#1a7f37", "#cf222e", "#cf222e", "#c2570c"
TAKEN = "#8250df"
CONTRACT_LINES = (LINE, "#b08800", "#0f7b6c", "#bf3989", "#6a737d", "#54aeff")
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

    Attributes:
        bar: on the tape.
        ledger, holdings: rows of the account and of its contracts.
        stop: the first contract's stop-loss price when the bar began, nan without one.
        fills: (n, 6), columns ``envs.fills.FILL_*``.
    """

    bar: int
    ledger: NDArray[np.float64]
    holdings: NDArray[np.float64]
    stop: float
    fills: NDArray[np.float64]


class Event(NamedTuple):
    """What was traded of a contract in a bar for one reason (``envs.fills``), at its mean price."""

    bar: int
    asset: int
    reason: int
    quantity: float
    price: float


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

    def events(self) -> list[Event]:
        """What was traded, bar by bar.

        Of a bar that was walked in two ways, the fills that were written down may be those of the way that
        was not kept: what they do not add up to is one event at the close instead.
        """
        return [event for step in self.steps for event in self._events_of(step)]

    def _events_of(self, step: Step) -> list[Event]:
        filled = step.holdings[:, CONTRACT_LEDGER["filled"]]
        is_liquidated, is_stopped = (step.ledger[LEDGER[name]] > 0 for name in ("liquidated", "stopped"))
        events: list[Event] = []
        for asset in range(len(filled)):
            fills = step.fills[step.fills[:, FILL_ASSET] == asset]
            if not np.isclose(fills[:, FILL_QUANTITY].sum(), filled[asset], rtol=1e-6, atol=1e-12):
                reason = LIQUIDATION if is_liquidated else STOP if is_stopped else ORDER
                close = float(self.tape.last[step.bar, asset, CLOSE])
                events.append(Event(step.bar, asset, reason, float(filled[asset]), close))
                continue
            for reason in np.unique(fills[:, FILL_REASON]):
                rows = fills[fills[:, FILL_REASON] == reason]
                quantity, sizes = rows[:, FILL_QUANTITY].sum(), np.abs(rows[:, FILL_QUANTITY])
                price = float(np.average(rows[:, FILL_PRICE], weights=sizes))
                events.append(Event(step.bar, asset, int(reason), float(quantity), price))
        return events

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
    """One contract's prices, or how far each of several has gone since the left edge."""
    tape, bars = record.tape, _span(record)
    if len(tape.contracts) == 1:
        _draw_one_price(axes, record, bars)
        axes.set_ylabel("price")
        axes.yaxis.set_major_formatter(_thousands)
    else:
        for asset, contract in enumerate(tape.contracts):
            closes = tape.last[bars, asset, CLOSE]
            axes.plot(bars, 100.0 * (closes / closes[0] - 1.0), color=_colour(asset), label=contract.symbol)
        axes.set_ylabel("price, %")
    low, high = axes.get_ylim()
    _mark_events(axes, record, bars)
    # a stop far away shall not flatten the price, nor the legend hide it
    axes.set_ylim(low - 0.03 * (high - low), high + 0.13 * (high - low))
    axes.legend(loc="upper left", ncols=8, borderaxespad=0.2, columnspacing=1.2)


def _draw_one_price(axes: Any, record: EpisodeRecord, bars: NDArray[np.int64]) -> None:
    last, mark = record.tape.last[bars, 0], record.tape.mark[bars, 0]
    axes.vlines(bars, last[:, LOW], last[:, HIGH], color=MUTED, alpha=0.35, linewidth=1.0)
    axes.plot(bars, last[:, CLOSE], color=INK, linewidth=1.2, label="last")
    if not np.array_equal(last, mark):
        axes.plot(bars, mark[:, CLOSE], color=LINE, linewidth=0.8, alpha=0.7, label="mark")
    stops = np.array([step.stop for step in record.steps])
    if np.isfinite(stops).any():
        limits = axes.get_ylim()
        axes.step(
            record.booked, stops, where="mid", color=STOPPED, linewidth=0.9, linestyle="--", label="stop"
        )
        axes.set_ylim(limits)


def _mark_events(axes: Any, record: EpisodeRecord, bars: NDArray[np.int64]) -> None:
    """Every trade at the price that it had."""
    events = record.events()
    kinds: tuple[tuple[int, float, str, int, str, str], ...] = (
        (ORDER, 1.0, "^", 52, BOUGHT, "bought"),
        (ORDER, -1.0, "v", 52, SOLD, "sold"),
        (TARGET, 0.0, "P", 64, TAKEN, "target taken"),
        (STOP, 0.0, "X", 64, STOPPED, "stopped"),
        (LIQUIDATION, 0.0, "X", 150, INK, "liquidated"),
    )
    for reason, side, marker, size, colour, label in kinds:
        chosen = [e for e in events if e.reason == reason and e.quantity * side >= 0.0]
        if chosen:
            axes.scatter(
                [event.bar for event in chosen], [_height(record, event, bars[0]) for event in chosen],
                s=size, marker=marker, color=colour, label=label, edgecolor=SURFACE, linewidth=0.6, zorder=5,
            )  # fmt: skip


def _height(record: EpisodeRecord, event: Event, first: np.int64) -> float:
    """Where a price is in the panel."""
    if len(record.tape.contracts) == 1:
        return event.price
    return 100.0 * (event.price / float(record.tape.last[first, event.asset, CLOSE]) - 1.0)


def _colour(asset: int) -> str:
    return CONTRACT_LINES[asset % len(CONTRACT_LINES)]


def _draw_exposure(axes: Any, record: EpisodeRecord) -> None:
    exposure = record.contract_column("exposure")
    axes.axhline(0.0, color=MUTED, linewidth=0.8)
    for asset in range(len(record.tape.contracts)):
        axes.step(record.booked, exposure[:, asset], where="mid", color=_colour(asset))
    if len(record.tape.contracts) == 1:
        axes.fill_between(record.booked, exposure[:, 0], step="mid", color=LINE, alpha=0.15, linewidth=0.0)
    axes.set_ylabel("exposure")


def _draw_equity(axes: Any, record: EpisodeRecord) -> None:
    equity, drawdown = record.column("equity"), record.column("drawdown")
    # the highest equity of the whole episode, which may lie before what is kept
    peak = equity / np.maximum(1.0 - drawdown, 1e-9)
    peak = np.where(drawdown < 1.0, peak, np.nan)
    axes.fill_between(record.booked, equity, peak, color=LOSS, alpha=0.18, linewidth=0.0, label="drawdown")
    axes.plot(record.booked, equity, color=LINE, label="equity")
    axes.axhline(record.start_equity, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_ylabel("equity")
    axes.yaxis.set_major_formatter(_thousands)
    if record.steps:
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.2 * (high - low), high)
        axes.legend(loc="lower left", ncols=2, borderaxespad=0.2)


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
