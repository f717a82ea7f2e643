"""The account, its orders and its decisions as a journal tells them, kept up to date row by row."""

from __future__ import annotations

import math
import threading
from array import array
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from perpgym.envs.live.broker import FINAL_STATES, OrderState
from perpgym.envs.live.holds import Holds, Level
from perpgym.envs.live.monitor.facts import BAR_KIND, RunFacts
from perpgym.envs.live.monitor.reader import News, Row

# how much of each list is kept for the page; everything stays in the journal
_DECISIONS, _ORDERS, _EVENTS, _FILLS = 60, 60, 80, 400
_FINAL = {str(state) for state in FINAL_STATES}
# a hold that an older desk noted without its level
_LEVELS: dict[str, Level] = {"alarm": "halted", "warning": "recovering"}


class Curve:
    """Numbers over time, oldest first."""

    def __init__(self) -> None:
        self.at_ms = array("q")
        self.value = array("d")

    def add(self, at_ms: int, value: float | None) -> None:
        """One more; None is what SQLite makes of NaN."""
        self.at_ms.append(at_ms)
        self.value.append(math.nan if value is None else value)

    def __len__(self) -> int:
        return len(self.at_ms)


class LiveView:
    """What is known; ``absorb`` is its only writer, everything else may be read under ``lock``.

    Attributes:
        version: changes with every row.
        facts: what runs, if somebody wrote it down.
        equity, wallet: quote, a point a settlement, as the exchange had them then.
        bar_close_ms: of the bar that the last settlement was for.
        marks, quantities: by contract, quote and base.
        held: entry and liquidation price of what is held, by contract.
        open_orders: rows with their last state, by client id; ``ended`` are the newest that ended.
        orders_by_state: how many orders stand in each state, of all.
        income_by_kind: quote, sums.
        decisions, fills, events: the newest.
        problems: events by (level, kind) that are worse than information.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.version = 0
        self.facts: RunFacts | None = None
        self._holds: Holds | None = None
        self.equity, self.wallet = Curve(), Curve()
        self.bar_close_ms: int | None = None
        self.marks: dict[str, Curve] = {}
        self.quantities: dict[str, Curve] = {}
        self.held: Mapping[str, Mapping[str, float | None]] = {}
        self.open_orders: dict[str, Row] = {}
        self.ended: deque[Row] = deque(maxlen=_ORDERS)
        self.orders_by_state: Counter[str] = Counter()
        self.income_by_kind: Counter[str] = Counter()
        self.fees = 0.0
        self.decisions: deque[Row] = deque(maxlen=_DECISIONS)
        self.fills: deque[Row] = deque(maxlen=_FILLS)
        self.events: deque[Row] = deque(maxlen=_EVENTS)
        self.problems: Counter[tuple[str, str]] = Counter()
        self.last_ms = 0

    def absorb(self, news: News) -> None:
        """Take in what was written."""
        with self.lock:
            if news.meta:
                self.facts = RunFacts.read(news.meta)
            self._absorb_orders(news)
            self._absorb_account(news)
            self.decisions.extend(news.decisions)
            for event in news.events:
                self._absorb_event(event)
            self.version += 1

    @property
    def state(self) -> str:
        """Of the desk, as its last notes leave it."""
        if self._holds is None:
            return "unknown"
        return "stopped" if "stop" in self._holds else self._holds.state

    @property
    def reasons(self) -> tuple[str, ...]:
        """The holds in force, in words."""
        return self._holds.reasons if self._holds else ()

    def unknown(self) -> tuple[str, ...]:
        """Client ids whose outcome is not known."""
        return tuple(k for k, order in self.open_orders.items() if order["state"] == OrderState.UNKNOWN)

    def last_mark(self, contract: str) -> float | None:
        """quote; of the last bar."""
        curve = self.marks.get(contract)
        return curve.value[-1] if curve else None

    def positions(self) -> dict[str, float]:
        """base, signed, of what is not flat, at the last settlement."""
        return {name: curve.value[-1] for name, curve in self.quantities.items() if curve.value[-1] != 0.0}

    def _absorb_orders(self, news: News) -> None:
        for intent in news.intents:
            self.open_orders[intent["client_id"]] = {
                **intent, "state": "prepared", "filled": 0.0, "average": None, "exchange_id": None,
                "at_ms": intent["prepared_ms"],
            }  # fmt: skip
            self.orders_by_state["prepared"] += 1
        for told in news.order_states:
            self._absorb_order_state(told)

    def _absorb_order_state(self, told: Row) -> None:
        self._saw(told["at_ms"])
        order = self.open_orders.get(told["client_id"]) or self._take_back(told["client_id"])
        if order is None:
            return
        self.orders_by_state[order["state"]] -= 1
        self.orders_by_state[told["state"]] += 1
        order |= {key: told[key] for key in ("state", "filled", "average", "exchange_id", "at_ms")}
        if told["state"] in _FINAL:
            self.ended.append(self.open_orders.pop(told["client_id"]))

    def _take_back(self, client_id: str) -> Row | None:
        """An order that was thought to have ended: the exchange may know better."""
        for order in self.ended:
            if order["client_id"] == client_id:
                self.ended.remove(order)
                self.open_orders[client_id] = order
                return order
        return None

    def _absorb_account(self, news: News) -> None:
        for fill in news.fills:
            self.fills.append(fill)
            self.fees += fill["fee"]
            self._saw(fill["time_ms"])
        for income in news.income:
            self.income_by_kind[income["kind"]] += income["amount"]
        for snapshot in news.snapshots:
            self._absorb_snapshot(snapshot)

    def _absorb_snapshot(self, snapshot: Row) -> None:
        at_ms, held = snapshot["at_ms"], snapshot["positions"]
        self._saw(at_ms)
        self.bar_close_ms = snapshot["bar_close_ms"]
        self.equity.add(at_ms, snapshot["equity"])
        self.wallet.add(at_ms, snapshot["wallet"])
        for contract in {*held, *self.quantities}:
            self.quantities.setdefault(contract, Curve()).add(at_ms, held.get(contract, 0.0))

    def _absorb_event(self, event: Row) -> None:
        self._saw(event["at_ms"])
        if event["kind"] == BAR_KIND:
            self._absorb_bar(event["text"])
            return
        self._absorb_hold(event["kind"], event["level"], event["text"])
        if event["level"] != "info":
            self.problems[event["level"], event["kind"]] += 1
        self.events.append(event)

    def _absorb_hold(self, kind: str, level: str, text: Mapping[str, Any]) -> None:
        """What the desk notes of its holds; a start forgets those of the run before."""
        if self._holds is None or (kind == "hold" and text["name"] == "start"):
            self._holds = Holds()
        if kind == "hold":
            self._holds.add(text["name"], text.get("state", _LEVELS.get(level, "recovering")), text["why"])
        elif kind == "lift":
            self._holds.clear(text["name"])
        elif kind == "resume":
            self._holds.clear_halts()

    def _absorb_bar(self, bar: Mapping[str, Any]) -> None:
        for contract, mark in bar["marks"].items():
            self.marks.setdefault(contract, Curve()).add(bar["bar_close_ms"], mark)
        self.held = bar["held"]

    def _saw(self, at_ms: int) -> None:
        self.last_ms = max(self.last_ms, at_ms)
