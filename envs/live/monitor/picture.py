"""What the page is sent: one JSON object with numbers, lists, and curves thinned to what a screen shows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perpgym.data.clock import DAY_MS
from perpgym.envs.live.monitor.facts import Health
from perpgym.envs.live.monitor.reader import Row
from perpgym.envs.live.monitor.view import Curve, LiveView
from perpgym.envs.reasons import reasons

Json = dict[str, Any]
MAX_POINTS = 800
_ORDER_KEYS = (
    "client_id", "decision_id", "contract", "quantity", "filled", "average", "style", "price",
    "trigger_price", "watches", "reduce_only", "closes_position", "state", "prepared_ms", "at_ms",
)  # fmt: skip
_DECISION_KEYS = (
    "id", "bar_close_ms", "made_ms", "observation_hash", "action", "wanted", "limits_hit", "note",
)  # fmt: skip
_SHOWN_FILLS = 20


def picture(view: LiveView, health: Health | None = None, *, days: float | None = None) -> Json:
    """Everything the page shows.

    Args:
        view: what the journal tells.
        health: of the running program; None where it runs elsewhere or no more.
        days: of the curves, counted back from the last point; None for all.

    Returns:
        Plain JSON types without NaN.
    """
    with view.lock:
        facts = view.facts
        since_ms = 0 if days is None else view.last_ms - round(days * DAY_MS)
        out = {
            "version": view.version,
            "name": facts.name if facts else "",
            "exchange": facts.exchange if facts else "",
            "currency": facts.currency if facts else "",
            "bar_ms": facts.bar_ms if facts else None,
            "last_ms": view.last_ms,
            "account": account(view),
            "limits": limits(view, health),
            "curves": curves(view, since_ms),
            "orders": [_pick(order, _ORDER_KEYS) for order in _orders(view)],
            "decisions": [
                {**_pick(row, _DECISION_KEYS), "cut_by": _cut_by(row["limits_hit"])}
                for row in reversed(view.decisions)
            ],
            "fills": [dict(row) for row in itertools.islice(reversed(view.fills), _SHOWN_FILLS)],
            "events": [dict(row) for row in reversed(view.events)],
            "health": health_json(view, health),
        }
    clean: Json = _finite(out)
    return clean


def health_json(view: LiveView, health: Health | None) -> Json:
    """State of the desk and ages; small, sent often."""
    status = None if health is None else health.status
    known = health or Health()
    clean: Json = _finite(
        {
            "is_live": status is not None,
            "state": view.state if status is None else status.state,
            "reasons": list(view.reasons if status is None else status.reasons),
            "unknown": list(view.unknown() if status is None else status.unknown),
            "reserved": None if status is None else status.reserved,
            "counts": {} if status is None else dict(status.counts),
            "now_ms": known.now_ms,
            "feed_delay_s": known.feed_delay_s,
            "stream_ages_s": {name: round(age) for name, age in known.stream_ages_s.items()},
        }
    )
    return clean


def account(view: LiveView) -> Json:
    """Equity, wallet, sums, and what is held; quote unless said otherwise."""
    equity = _last(view.equity)
    positions = [_position(view, name, quantity, equity) for name, quantity in view.positions().items()]
    notionals = [p["notional"] for p in positions if p["notional"] is not None]
    first = view.equity.value[0] if view.equity else None
    # money that was paid in is no profit
    earned = None if equity is None else equity - view.income_by_kind["transfer"]
    return {
        "at_ms": view.equity.at_ms[-1] if view.equity else None,
        "bar_close_ms": view.bar_close_ms,
        "equity": equity,
        "wallet": _last(view.wallet),
        "change": None if earned is None or not first else earned / first - 1.0,
        "day_change": _day_change(view),
        "drawdown": _drawdown(view),
        "gross_notional": sum(map(abs, notionals)),
        "exposure": sum(notionals) / equity if equity else None,
        "gross_exposure": sum(map(abs, notionals)) / equity if equity else None,
        "funding": view.income_by_kind["funding"],
        "fees": view.fees,
        "positions": positions,
    }


def limits(view: LiveView, health: Health | None = None) -> list[Json]:
    """Each limit with what of it is used, where that can be read off the journal.

    Only what all of them need: the desk itself is what holds them.
    """
    found = view.facts.limits if view.facts else {}
    now = account(view)
    # what open orders could still add counts, where somebody knows it
    reserved = health.status.reserved if health and health.status else 0.0
    notional, equity = max(reserved, now["gross_notional"]), now["equity"]
    day_loss = None if now["day_change"] is None else max(0.0, -now["day_change"])
    used: Mapping[str, float | None] = {
        "max_leverage": now["gross_exposure"],
        "max_exposure": notional / equity if equity else None,
        "max_notional": notional,
        "max_daily_loss": day_loss,
        "drawdown_start": now["drawdown"],
        "max_drawdown": now["drawdown"],
    }
    return [
        {"name": name, "allowed": value, "used": used.get(name)}
        for name, value in found.items()
        if value is not None
    ]


def curves(view: LiveView, since_ms: int) -> Json:
    """Equity and wallet, and by contract mark price, position and fills; at most ``MAX_POINTS`` a curve."""
    contracts = sorted({*view.marks, *view.quantities})
    return {
        "equity": thin(view.equity, since_ms),
        "wallet": thin(view.wallet, since_ms),
        "contracts": {
            name: {
                "mark": thin(view.marks.get(name, Curve()), since_ms),
                "quantity": thin(view.quantities.get(name, Curve()), since_ms),
                "fills": [
                    [fill["time_ms"], fill["price"], fill["quantity"]]
                    for fill in view.fills
                    if fill["contract"] == name and fill["time_ms"] >= since_ms
                ],
            }
            for name in contracts
        },
    }


def thin(curve: Curve, since_ms: int = 0, most: int = MAX_POINTS) -> list[list[float]]:
    """[time, value] of a curve; where there are too many, the lowest and highest of each stretch stay.

    Args:
        curve: oldest first.
        since_ms: leave out what is older.
        most: how many may be left.
    """
    at_ms, values = np.array(curve.at_ms), np.array(curve.value)
    first = int(np.searchsorted(at_ms, since_ms))
    at_ms, values = at_ms[first:], values[first:]
    kept = _extremes(values, most)
    return [[int(at_ms[i]), float(values[i])] for i in kept]


def _extremes(values: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    if values.size <= most:
        return np.arange(values.size)
    edges = np.linspace(0, values.size, most // 2).astype(np.int64)
    kept = [0, values.size - 1]
    for begin, end in itertools.pairwise(edges):
        kept += [begin + int(values[begin:end].argmin()), begin + int(values[begin:end].argmax())]
    return np.unique(kept)


def _position(view: LiveView, name: str, quantity: float, equity: float | None) -> Json:
    mark = view.last_mark(name)
    notional = None if mark is None else quantity * mark
    held = view.held.get(name, {})
    return {
        "contract": name,
        "quantity": quantity,
        "mark_price": mark,
        "notional": notional,
        "exposure": notional / equity if notional is not None and equity else None,
        "entry_price": held.get("entry_price"),
        "liquidation_price": held.get("liquidation_price"),
    }


def _orders(view: LiveView) -> list[Row]:
    """Open ones first, each group newest first."""
    return [*reversed(view.open_orders.values()), *reversed(view.ended)]


def _day_change(view: LiveView) -> float | None:
    """fraction of the equity at the last UTC midnight, or at the start where that came later."""
    if not view.equity:
        return None
    at_ms = np.array(view.equity.at_ms)
    midnight_ms = at_ms[-1] // DAY_MS * DAY_MS
    start = view.equity.value[max(int(np.searchsorted(at_ms, midnight_ms, "right")) - 1, 0)]
    return view.equity.value[-1] / start - 1.0 if start else None


def _drawdown(view: LiveView) -> float | None:
    """fraction of the highest equity since the start."""
    if not view.equity:
        return None
    peak = float(np.nanmax(np.array(view.equity.value)))
    return 1.0 - view.equity.value[-1] / peak if peak > 0 else None


def _cut_by(bits: int) -> list[str]:
    """Names of the limits that cut a decision."""
    try:
        return [words.partition(":")[0] for words in reasons(bits)]
    except ValueError:
        return [f"bits {bits}"]


def _last(curve: Curve) -> float | None:
    return curve.value[-1] if curve else None


def _pick(row: Row, keys: tuple[str, ...]) -> Json:
    return {key: row[key] for key in keys}


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is not finite becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
