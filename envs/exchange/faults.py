"""Faults of the wire, by schedule or at random rates from a seed: what exchange and network do to a client.

A fault names the requests or messages it may hit and what happens to them. ``PRESETS`` holds the rows of the
fault matrix (F01 …) that are faults of a request or a message; ``incidents.py`` has what happens beside them.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

Json = dict[str, Any]

# what may happen to a request; ``…_after``: once it was executed
REQUEST_KINDS = (
    "reply", "reply_after", "hang", "hang_after", "reset", "reset_after", "delay", "delay_after", "cut_after",
    "omit_bar", "revise_bar", "spike_bar", "fill_then_refuse",
)  # fmt: skip
# what may happen to a message of a stream
MESSAGE_KINDS = ("drop", "duplicate", "swap")
STREAM_KINDS = tuple(f"{what}_{of}" for of in ("event", "depth", "kline") for what in MESSAGE_KINDS)
KINDS = REQUEST_KINDS + STREAM_KINDS


@dataclass(kw_only=True)
class Fault:
    """One fault.

    Attributes:
        kind: of ``KINDS``.
        method, path: of the requests it may hit; ``*`` and other wildcards match.
        after: how many of them pass first.
        times: how many it hits then; None for all.
        rate: with which probability it hits one of them.
        from_ms, until_ms: of the exchange's clock.
        status, code, text: of a reply; a code makes it JSON, else the text is sent as it is.
        delay_ms: real milliseconds.
        size: a factor (``spike_bar``, ``revise_bar``).
        spares_exits: requests that can only close are not hit.
        name: where it comes from, e.g. ``F04``.
    """

    kind: str
    method: str = "*"
    path: str = "*"
    after: int = 0
    times: int | None = 1
    rate: float = 1.0
    from_ms: int = 0
    until_ms: int = 2**62
    status: int = 503
    code: int | None = None
    text: str = ""
    retry_after_s: int | None = None
    delay_ms: int = 0
    size: float = 1.001
    spares_exits: bool = False
    name: str = ""
    seen: int = 0
    hits: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, was {self.kind!r}")
        if not 0.0 <= self.rate <= 1.0:
            raise ValueError(f"rate must lie between 0 and 1 (a probability), was {self.rate}")

    def strikes(self, rng: random.Random, now_ms: int) -> bool:
        """Whether it hits the request or message that it matches now."""
        if not self.from_ms <= now_ms < self.until_ms or (self.times is not None and self.hits >= self.times):
            return False
        self.seen += 1
        if self.seen <= self.after or (self.rate < 1.0 and rng.random() >= self.rate):
            return False
        self.hits += 1
        return True

    def body(self) -> tuple[str, str]:
        """(text, content type) of a reply."""
        if self.code is None:
            return self.text, "text/html" if self.text.startswith("<") else "text/plain"
        return json.dumps({"code": self.code, "msg": self.text}), "application/json"


@dataclass(kw_only=True)
class FaultBook:
    """The faults in force, and the generator that their rates are drawn from.

    Attributes:
        log: (exchange's time, fault's name or kind, what it hit), in order.
        is_stalled: the streams say nothing.
    """

    faults: list[Fault] = field(default_factory=list)
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    log: list[tuple[int, str, str]] = field(default_factory=list)
    is_stalled: bool = False
    _held: dict[str, Any] = field(default_factory=dict)

    def of_request(self, method: str, path: str, now_ms: int, body: str = "") -> Fault | None:
        """The first fault that hits a request."""
        is_exit = "reduceOnly=true" in body or "closePosition=true" in body
        for fault in self.faults:
            if fault.spares_exits and is_exit:
                continue
            if fault.kind not in REQUEST_KINDS or not fnmatchcase(path, fault.path):
                continue
            if fault.method in ("*", method) and fault.strikes(self.rng, now_ms):
                self.log.append((now_ms, fault.name or fault.kind, f"{method} {path}"))
                return fault
        return None

    def of_message(self, of: str, message: Any, now_ms: int) -> list[Any]:
        """What becomes of a message of kind ``of`` (event, depth, kline): nothing, itself, or more."""
        if self.is_stalled:
            return []
        held = [self._held.pop(of)] if of in self._held else []
        for fault in self.faults:
            if not fault.kind.endswith(f"_{of}") or fault.kind not in STREAM_KINDS:
                continue
            if fault.strikes(self.rng, now_ms):
                self.log.append((now_ms, fault.name or fault.kind, of))
                if fault.kind.startswith("drop"):
                    return held
                if fault.kind.startswith("duplicate"):
                    return [message, *held, message]
                if not held:
                    self._held[of] = message
                    return []
        return [message, *held]


_ORDER = {"method": "POST", "path": "/fapi/v1/*rder"}
_UNKNOWN = "Unknown error, please check your request or try again later."
_TIMEOUT = "Timeout waiting for response from backend server. Send status unknown; execution status unknown."
_BUSY = "Server is currently overloaded with other requests. Please try again in a few minutes."
_GATEWAY = "<html><body><h1>504 Gateway Time-out</h1></body></html>"
_WAF = "<html><head><title>403 Forbidden</title></head></html>"

# a row of the matrix, as faults; a row with several ways has a letter to each
PRESETS: dict[str, Json] = {
    "F01": {"kind": "hang_after", **_ORDER},
    "F02": {"kind": "reset_after", **_ORDER},
    "F03": {"kind": "reset", **_ORDER},
    "F04": {"kind": "reply_after", "status": 503, "code": -1000, "text": _UNKNOWN, **_ORDER},
    "F04b": {"kind": "reply_after", "status": 503, "text": _UNKNOWN, **_ORDER},
    "F05": {"kind": "reply", "status": 503, "text": "Service Unavailable.", **_ORDER},
    "F05b": {"kind": "reply", "status": 503, "code": -1008, "text": _BUSY, "spares_exits": True,
             **_ORDER},
    "F06": {"kind": "reply_after", "status": 408, "code": -1007, "text": _TIMEOUT, **_ORDER},
    "F06b": {"kind": "reply_after", "status": 400, "code": -1006,
             "text": "An unexpected response was received from the message bus. Execution status unknown.",
             **_ORDER},
    "F07": {"kind": "reply_after", "status": 504, "text": _GATEWAY, **_ORDER},
    "F07b": {"kind": "reply", "status": 502, "text": _GATEWAY.replace("504", "502"), **_ORDER},
    "F08": {"kind": "reply_after", "status": 200, "text": "", **_ORDER},
    "F08b": {"kind": "cut_after", **_ORDER},
    "F08c": {"kind": "reply_after", "status": 200, "text": "{}", **_ORDER},
    "F09": {"kind": "reply", "status": 400, "code": -2013, "text": "Order does not exist.", "times": 5,
            "method": "GET", "path": "/fapi/v1/*rder"},
    "F11": {"kind": "delay_after", "delay_ms": 1_000, **_ORDER},
    "F12": {"kind": "drop_event", "times": 3},
    "F14": {"kind": "fill_then_refuse", "method": "DELETE", "path": "/fapi/v1/order"},
    "F15": {"kind": "hang", "method": "DELETE", "path": "/fapi/v1/*rder"},
    "F18": {"kind": "reply", "status": 400, "code": -2019, "text": "Margin is insufficient.", **_ORDER},
    "F20": {"kind": "reply", "status": 400, "code": -4400,
            "text": "Futures Trading Quantitative Rules violated, only reduceOnly order is allowed, please "
            "try again later.", **_ORDER},
    "F23": {"kind": "reply", "status": 429, "code": -1003, "text": "Too many requests.", "retry_after_s": 30},
    "F25": {"kind": "reply", "status": 403, "text": _WAF},
    "F29": {"kind": "revise_bar", "path": "/fapi/v1/*lines"},
    "F29b": {"kind": "omit_bar", "path": "/fapi/v1/*lines"},
    "F33": {"kind": "drop_depth"},
    "F33b": {"kind": "duplicate_depth"},
    "F33c": {"kind": "swap_depth"},
    "F35": {"kind": "spike_bar", "size": 10.0, "path": "/fapi/v1/*lines"},
    "F35b": {"kind": "spike_bar", "size": 0.0, "path": "/fapi/v1/*lines"},
    "F38": {"kind": "duplicate_event"},
    "F39": {"kind": "swap_event"},
    "F46": {"kind": "reply", "status": 503, "text": "Service Unavailable.", "path": "/fapi/*", "times": None},
}  # fmt: skip


def make_fault(row: Json, **changes: Any) -> Fault:
    """A fault from JSON: its fields, or ``{"id": "F04"}`` with what differs from the row of the matrix.

    Raises:
        ValueError: no such row or field.
    """
    row = dict(row)
    name = row.pop("id", "")
    if name and name not in PRESETS:
        raise ValueError(f"id must be one of {', '.join(PRESETS)}, was {name!r}")
    fields = {**PRESETS.get(name, {}), **row, **changes}
    unknown = sorted(set(fields) - set(Fault.__dataclass_fields__))
    if unknown or "kind" not in fields:
        raise ValueError(
            f"a fault needs a kind or an id, and no {', '.join(unknown) or 'other fields'}; known are "
            f"{', '.join(Fault.__dataclass_fields__)}"
        )
    return Fault(**fields, name=name) if "name" not in fields else Fault(**fields)


def make_book(body: Json) -> FaultBook:
    """The faults of an admin request.

    ``{"faults": [{"id": "F04", "after": 2}, …]}`` by schedule, ``{"random": {"rate": 0.02, "ids": ["F01",
    …]}, "seed": 7}`` at random, or both; without any, none.

    Raises:
        ValueError: no such fault.
    """
    book = FaultBook(rng=random.Random(int(body.get("seed", 0))))
    book.faults = [make_fault(row) for row in body.get("faults", [])]
    drawn = body.get("random")
    if drawn is not None:
        ids = drawn.get("ids", [name for name in PRESETS if name != "F46"])
        rate = float(drawn.get("rate", 0.01))
        book.faults += [make_fault({"id": name}, times=None, after=0, rate=rate) for name in ids]
    return book


def spoil_bars(fault: Fault, rows: Any) -> Any:
    """Klines with a bar missing, the newest closed one not final yet, or a bad tick."""
    if not isinstance(rows, list) or len(rows) < 3:
        return rows
    if fault.kind == "omit_bar":
        return rows[:-3] + rows[-2:]
    closed = list(rows[-2])
    closed[4] = repr(float(closed[4]) * fault.size)
    return [*rows[:-2], closed, rows[-1]]


def summary(book: FaultBook) -> Json:
    """What is in force and what has happened."""
    return {
        "faults": [
            {"name": f.name or f.kind, "kind": f.kind, "seen": f.seen, "hits": f.hits} for f in book.faults
        ],
        "log": [{"time": t, "name": name, "hit": hit} for t, name, hit in book.log],
        "is_stalled": book.is_stalled,
    }
