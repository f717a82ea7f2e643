"""What Prometheus may ask: account, orders, desk, and how late everything is, in a registry of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from perpgym.envs.live.monitor.facts import Health, ask
from perpgym.envs.live.monitor.picture import account, health_json
from perpgym.envs.live.monitor.reader import News
from perpgym.envs.live.monitor.view import LiveView

# seconds from the close of a bar to the decision on it
LATENCY_BUCKETS_S = (0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0, 60.0, 120.0, 300.0)
STATES = ("starting", "ready", "recovering", "reduce_only", "halted", "stopped", "unknown")
Labelled = Iterable[tuple[str, float | None]]


class Metrics(Collector):
    """Counts what the journal tells and measures the rest when it is asked.

    Args:
        view: kept up to date by somebody else.
        health: of the running program; None where it runs elsewhere.
        journal_age_s: since the journal was written.
    """

    def __init__(
        self,
        view: LiveView,
        health: Callable[[], Health] | None = None,
        journal_age_s: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._view, self._health, self._journal_age_s = view, health, journal_age_s
        self._decisions = self._fills = 0
        self._registry = CollectorRegistry()
        self._latency = Histogram(
            "perpgym_decision_latency_seconds", "Seconds from the close of a bar to the decision on it.",
            registry=self._registry, buckets=LATENCY_BUCKETS_S,
        )  # fmt: skip
        self._registry.register(self)

    def absorb(self, news: News) -> None:
        """Count what was written, since the journal began."""
        self._decisions += len(news.decisions)
        self._fills += len(news.fills)
        for decision in news.decisions:
            self._latency.observe((decision["made_ms"] - decision["bar_close_ms"]) / 1000.0)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Asked by the registry."""
        health, _trouble = ask(self._health)
        with self._view.lock:
            yield from self._money()
            yield from self._orders()
            yield from self._desk(health)

    def _money(self) -> Iterator[Metric]:
        now = account(self._view)
        for name, text in (
            ("equity", "Wallet plus unrealised profit, in the settle currency, at the last settlement."),
            ("wallet", "Wallet balance without unrealised profit, in the settle currency."),
            (
                "drawdown",
                "Loss from the highest equity since the journal began, as a fraction of it: 0.1 is 10 %.",
            ),
            ("exposure", "Net exposure: notional of longs less that of shorts, over equity."),
            ("gross_exposure", "Gross exposure: notional of longs plus that of shorts, over equity."),
            (
                "funding",
                "Funding received since the journal began, in the settle currency; negative when paid.",
            ),
            ("fees", "Trading fees paid since the journal began, in the settle currency."),
        ):
            yield _gauge(name, text, now[name])
        held = self._view.positions()
        yield _gauges(
            "position",
            "Position in units of the base currency; negative when short.",
            "contract",
            held.items(),
        )
        marks = ((name, self._view.last_mark(name)) for name in sorted(self._view.marks))
        yield _gauges(
            "mark_price", "Mark price at the close of the last bar, in the quote currency.", "contract", marks
        )

    def _orders(self) -> Iterator[Metric]:
        view = self._view
        yield _gauges(
            "orders",
            "Number of orders by the state they are in, of all since the journal began.",
            "state",
            sorted(view.orders_by_state.items()),
        )
        yield _counter("decisions", "Decisions of the agent since the journal began.", self._decisions)
        yield _counter("fills", "Trades (fills) since the journal began.", self._fills)
        events = CounterMetricFamily(
            "perpgym_problems", "Warnings and alarms since the journal began.", labels=("level", "kind")
        )
        for (level, kind), count in sorted(view.problems.items()):
            events.add_metric((level, kind), count)
        yield events

    def _desk(self, health: Health | None) -> Iterator[Metric]:
        view, told = self._view, health_json(self._view, health)
        yield _gauge(
            "unknown_intents",
            "Orders whose outcome the exchange has not told yet: they may or may not be executed.",
            len(told["unknown"]),
        )
        states = ((state, float(state == told["state"])) for state in STATES)
        yield _gauges("desk_state", "1 for the state that the desk is in.", "state", states)
        yield _gauge(
            "reserved",
            "Gross notional if every open order filled, settle currency; NaN if another program trades.",
            told["reserved"],
        )
        yield _gauge(
            "feed_delay_seconds",
            "Seconds from the close of the last bar until its final numbers were here.",
            told["feed_delay_s"],
        )
        ages = (health or Health()).stream_ages_s
        yield _gauges("stream_age_seconds", "Seconds since a stream was heard last.", "stream", ages.items())
        yield _gauge(
            "journal_age_seconds",
            "Seconds since the journal was written, by this machine's clock.",
            self._journal_age_s(),
        )
        last_ms = view.decisions[-1]["made_ms"] if view.decisions else None
        yield _gauge(
            "last_decision_timestamp_seconds",
            "When the last decision was made, in Unix seconds by the exchange's clock.",
            None if last_ms is None else last_ms / 1000.0,
        )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _gauge(name: str, text: str, value: float | None) -> Metric:
    return GaugeMetricFamily(f"perpgym_{name}", text, value=_number(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"perpgym_{name}", text, value=value)


def _gauges(name: str, text: str, label: str, values: Labelled) -> Metric:
    family = GaugeMetricFamily(f"perpgym_{name}", text, labels=(label,))
    for key, value in values:
        family.add_metric((key,), _number(value))
    return family
