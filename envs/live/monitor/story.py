"""What a journal says happened, rebuilt from its rows alone, and where it contradicts itself."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from perpgym.data.clock import iso
from perpgym.envs.live.broker import FINAL_STATES, Fill, Income, Order, OrderState
from perpgym.envs.live.monitor.facts import RunFacts
from perpgym.envs.live.monitor.reader import JournalReader, News, Row

WALLET_TOLERANCE = 1e-8
QUANTITY_TOLERANCE = 1e-9
# rows so close to a snapshot may or may not be in it: clocks are read, not exact
_SLACK_MS = 2_000
# what we concluded ourselves; a later word of the exchange overrules it
CONCLUDED = frozenset({OrderState.ABSENT, OrderState.REJECTED})


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One thing that two records tell differently."""

    what: str
    which: str
    journal: str
    other: str


def different(what: str, which: str, journal: object, other: object) -> Difference:
    """A difference of any two things."""
    return Difference(what=what, which=which, journal=str(journal), other=str(other))


@dataclass(frozen=True, kw_only=True)
class Story:
    """What a journal says happened.

    Attributes:
        facts: what ran, if somebody wrote it down.
        orders: as they stand at the end, by client id.
        positions: base, signed, of what is held at the end.
        wallet: quote, at the end; NaN where the journal does not say with what it began.
        ended_ms: of the newest of its rows that the exchange knows too.
        differences: where the journal contradicts itself.
        later: what the exchange says of the time after the journal's end.
    """

    decisions: list[Row]
    orders: dict[str, Order]
    fills: list[Fill]
    income: list[Income]
    began_ms: int
    positions: Mapping[str, float]
    wallet: float
    facts: RunFacts | None = None
    ended_ms: int = 0
    differences: list[Difference] = field(default_factory=list)
    later: list[str] = field(default_factory=list)


def rebuild(path: Path) -> Story:
    """The story of a journal, checked against itself.

    Raises:
        JournalBroken: it cannot be read.
    """
    reader = JournalReader(path)
    try:
        news = reader.read_new()
    finally:
        reader.close()
    fills = [
        Fill(
            **{key: value for key, value in row.items() if key != "row"} | {"is_maker": bool(row["is_maker"])}
        )
        for row in news.fills
    ]
    income = [Income(**{k: v for k, v in row.items() if k != "row"}) for row in news.income]
    began_wallet = float(news.meta.get("began_wallet", "nan"))
    began = _began_positions(news, fills)
    told = [int(row["at_ms"]) for row in news.snapshots]
    story = Story(
        facts=RunFacts.read(news.meta),
        decisions=news.decisions,
        orders=_orders(news),
        fills=fills,
        income=income,
        began_ms=int(news.meta.get("began_ms", 0)),
        positions=_positions(began, fills),
        wallet=math.fsum([began_wallet, *(row.amount for row in income)]),
        ended_ms=max([*told, *(fill.time_ms for fill in fills), *(row.time_ms for row in income)], default=0),
    )
    story.differences.extend(_check_orders(story, news))
    story.differences.extend(_check_decisions(story, news))
    story.differences.extend(_check_snapshots(story, news, began, began_wallet))
    return story


def _orders(news: News) -> dict[str, Order]:
    orders = {
        row["client_id"]: Order(
            client_id=row["client_id"], contract=row["contract"], quantity=row["quantity"],
            style=row["style"], price=row["price"], trigger_price=row["trigger_price"],
            watches=row["watches"],
            reduce_only=bool(row["reduce_only"]), closes_position=bool(row["closes_position"]),
            updated_ms=row["prepared_ms"],
        )
        for row in news.intents
    }  # fmt: skip
    for row in news.order_states:
        if (order := orders.get(row["client_id"])) is not None:
            orders[row["client_id"]] = _become(order, row)
    return orders


def _become(order: Order, row: Row) -> Order:
    return replace(
        order,
        state=OrderState(row["state"]),
        exchange_id=row["exchange_id"],
        filled=row["filled"],
        average=row["average"],
        updated_ms=row["at_ms"],
    )


def _check_orders(story: Story, news: News) -> Iterator[Difference]:
    """Orders never go back from their end, and have as much filled as their trades say."""
    ended: dict[str, str] = {}
    for row in news.order_states:
        name, state = row["client_id"], OrderState(row["state"])
        if name not in story.orders:
            yield different("order", name, state, "no intent was written before it")
        if name in ended and state not in FINAL_STATES:
            yield different("order", name, f"{state} after {ended[name]}", "an end is the end")
        if state in FINAL_STATES - CONCLUDED:
            ended[name] = state
    traded: dict[str, float] = defaultdict(float)
    for fill in story.fills:
        traded[fill.client_id or ""] += fill.quantity
    for name, order in story.orders.items():
        if not order.is_stop and abs(order.filled - traded[name]) > QUANTITY_TOLERANCE:
            yield different("order", name, f"filled {order.filled:g}", f"its trades make {traded[name]:g}")


def _check_decisions(story: Story, news: News) -> Iterator[Difference]:
    """Every order of a decision follows from one of its wishes, and no larger."""
    wished: dict[tuple[int, str], float] = defaultdict(float)
    for row in story.decisions:
        for wish in row["wanted"]:
            wished[row["id"], wish["contract"]] += wish["quantity"]
    planned: dict[tuple[int, str], float] = defaultdict(float)
    for intent in news.intents:
        if intent["decision_id"] is not None:
            planned[intent["decision_id"], intent["contract"]] += intent["quantity"]
    for (decision, contract), quantity in planned.items():
        wish = wished[decision, contract]
        if quantity * wish <= 0.0 or abs(quantity) > abs(wish) * (1.0 + 1e-9):
            which = f"{decision}, {contract}"
            yield different("decision", which, f"wished for {wish:g}", f"its orders make {quantity:g}")


def _check_snapshots(
    story: Story, news: News, began: Mapping[str, float], began_wallet: float
) -> Iterator[Difference]:
    """Wallet and positions of every settlement, from what was booked until then."""
    amounts = _Sums(began_wallet, [(row.time_ms, row.amount) for row in story.income])
    contracts = sorted({*began, *(fill.contract for fill in story.fills)})
    held = {
        name: _Sums(
            began.get(name, 0.0), [(f.time_ms, f.quantity) for f in story.fills if f.contract == name]
        )
        for name in contracts
    }
    for snapshot in news.snapshots:
        when, at_ms = iso(snapshot["at_ms"]), snapshot["at_ms"]
        if not math.isnan(began_wallet):
            off = amounts.off(at_ms, snapshot["wallet"])
            if not abs(off) <= WALLET_TOLERANCE:
                yield different("wallet", when, f"booked {snapshot['wallet'] + off!r}", snapshot["wallet"])
        for name in {*contracts, *snapshot["positions"]}:
            told = snapshot["positions"].get(name, 0.0)
            off = held[name].off(at_ms, told) if name in held else -told
            if not abs(off) <= QUANTITY_TOLERANCE:
                yield different("position", f"{name} at {when}", f"booked {told + off:g}", f"{told:g}")


class _Sums:
    """A sum that grows over time."""

    def __init__(self, began: float, rows: Iterable[tuple[int, float]]) -> None:
        self._rows = sorted(rows, key=lambda row: row[0])
        self._before = list(itertools.accumulate((value for _at, value in self._rows), initial=began))
        self._first = self._last = 0

    def off(self, at_ms: int, told: float) -> float:
        """The sum at a time less what was told; times must not fall from call to call."""
        rows = self._rows
        while self._first < len(rows) and rows[self._first][0] < at_ms - _SLACK_MS:
            self._first += 1
        while self._last < len(rows) and rows[self._last][0] <= at_ms + _SLACK_MS:
            self._last += 1
        return min((self._before[i] - told for i in range(self._first, self._last + 1)), key=_size)


def _size(number: float) -> float:
    return math.inf if math.isnan(number) else abs(number)


def _began_positions(news: News, fills: Sequence[Fill]) -> dict[str, float]:
    """What was held before the first trade: what the first settlement shows, less the trades until then.

    Of several answers, because trades stand at the settlement's own time, the smallest: most begin flat.
    """
    found = {}
    for first in news.snapshots[:1]:
        for name in {*first["positions"], *(fill.contract for fill in fills)}:
            sums = _Sums(0.0, [(fill.time_ms, fill.quantity) for fill in fills if fill.contract == name])
            began = -sums.off(first["at_ms"], first["positions"].get(name, 0.0))
            found[name] = 0.0 if abs(began) <= QUANTITY_TOLERANCE else began
    return found


def _positions(began: Mapping[str, float], fills: Iterable[Fill]) -> dict[str, float]:
    held: dict[str, list[float]] = defaultdict(list)
    for name, quantity in began.items():
        held[name].append(quantity)
    for fill in fills:
        held[fill.contract].append(fill.quantity)
    summed = {name: math.fsum(quantities) for name, quantities in held.items()}
    return {name: quantity for name, quantity in summed.items() if abs(quantity) > QUANTITY_TOLERANCE}
