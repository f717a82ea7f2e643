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
            "perpgym_decision_latency_seconds", "From the close of a bar to the decision on it.",
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
            ("equity", "Wallet and unrealised profit, quote."),
            ("wallet", "Without unrealised profit, quote."),
            ("drawdown", "Fraction of the highest equity since the journal began."),
            ("exposure", "Signed notional over equity."),
            ("gross_exposure", "Sum of absolute notionals over equity."),
            ("funding", "Received since the journal began, quote; negative when paid."),
            ("fees", "Paid for trades since the journal began, quote."),
        ):
            yield _gauge(name, text, now[name])
        held = self._view.positions()
        yield _gauges("position", "Base, signed.", "contract", held.items())
        marks = ((name, self._view.last_mark(name)) for name in sorted(self._view.marks))
        yield _gauges("mark_price", "Quote, of the last bar.", "contract", marks)

    def _orders(self) -> Iterator[Metric]:
        view = self._view
        yield _gauges("orders", "By the state they stand in.", "state", sorted(view.orders_by_state.items()))
        yield _counter("decisions", "Decisions taken.", self._decisions)
        yield _counter("fills", "Trades.", self._fills)
        events = CounterMetricFamily(
            "perpgym_problems", "Events worse than information.", labels=("level", "kind")
        )
        for (level, kind), count in sorted(view.problems.items()):
            events.add_metric((level, kind), count)
        yield events

    def _desk(self, health: Health | None) -> Iterator[Metric]:
        view, told = self._view, health_json(self._view, health)
        yield _gauge("unknown_intents", "Orders whose outcome is not known.", len(told["unknown"]))
        states = ((state, float(state == told["state"])) for state in STATES)
        yield _gauges("desk_state", "1 for the state that the desk is in.", "state", states)
        yield _gauge("reserved", "Quote, the most that positions and orders can become.", told["reserved"])
        yield _gauge("feed_delay_seconds", "From a bar's close to its final numbers.", told["feed_delay_s"])
        ages = (health or Health()).stream_ages_s
        yield _gauges("stream_age_seconds", "Since a stream was heard last.", "stream", ages.items())
        yield _gauge("journal_age_seconds", "Since the journal was written.", self._journal_age_s())
        last_ms = view.decisions[-1]["made_ms"] if view.decisions else None
        yield _gauge(
            "last_decision_timestamp_seconds",
            "On the exchange's clock.",
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
