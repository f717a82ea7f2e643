"""What a live run says on the console, with times and money written as its page writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perpgym.data.clock import iso
from perpgym.envs.live.monitor.facts import RunFacts
from perpgym.experiments.live_account import Call
from perpgym.experiments.live_run import Decided

CLOCKS = (
    "below: “close 05:00 UTC  #4 of 04:00” is decision 4, taken at the close of 04:00, and the account once "
    "the bar after it has closed. Bars and page: UTC, the exchange's clock; messages: this machine's time"
)
LOG_TIME = "%H:%M:%S local"


def money(amount: float) -> str:
    """Quote with two decimals; a true minus, a dash for what is no number."""
    return f"{amount:,.2f}".replace("-", "−") if math.isfinite(amount) else "–"


def signed(amount: float) -> str:
    """Money that may come or go; nothing has no sign."""
    return f"+{money(amount)}" if amount > 0.0 else money(amount)


def multiple(exposure: float) -> str:
    """Signed notional over equity."""
    return f"{exposure:,.3f} ×".replace("-", "−") if math.isfinite(exposure) else "–"


def opening_line(facts: RunFacts, journal: Path, kill_file: Path, page: str) -> str:
    """Before anything is asked of the exchange: what trades where, and how it is stopped and watched."""
    return f"{facts.name}; {facts.exchange}; journal {journal}; stop with Ctrl-C or {kill_file}" + (
        f"; page {page}" if page else ""
    )


def paper_line(call: Call, wallet: float, currency: str) -> str:
    """What a paper account begins with and why; empty of another account."""
    if call.mode != "paper":
        return ""
    source = "the run's env.initial_wallet; wallet=AMOUNT sets another" if call.wallet is None else "wallet="
    return f"paper account, begins with {money(wallet)} {currency} ({source})"


def start_line(info: Mapping[str, Any], wallet: float, currency: str) -> str:
    """When everything is ready."""
    reasons = "".join(f"; {reason}" for reason in info["reasons"])
    return (
        f"close {iso(info['time_ms'])} UTC  wallet {money(wallet)} {currency}  desk {info['desk']}{reasons}"
    )


def decision_line(decided: Decided, currency: str) -> str:
    """One decision, once the bar after it is over: equity at that close, fills and costs since the last."""
    info = decided.info
    notes = [
        f"desk {info['desk']}",
        *info["reasons"],
        info["skipped"],
        "" if info["is_whole"] else info["why"],
        f"{info['bars']} bars without a decision between" if info["bars"] > 1 else "",
    ]
    costs = info["fees"] + info["spread"] + info["impact"]
    return "  ".join(
        (
            f"close {iso(info['time_ms'])} UTC",
            f"#{decided.number} of {_clock(decided.bar_close_ms, info['time_ms'])}",
            f"equity {money(info['equity'])} {currency}",
            f"exposure {multiple(info['exposure'])}",
            f"fills {info['fills']:.0f}",
            f"costs {money(costs)}",
            f"funding {signed(info['funding'])}",
            f"decided in {1e3 * decided.seconds:.1f} ms",
            "; ".join(note for note in notes if note),
        )
    )


def _clock(time_ms: int, beside_ms: int) -> str:
    """``04:00``, and the day where it is another than that of the time beside it."""
    day, _, clock = iso(time_ms).partition(" ")
    return clock if iso(beside_ms).startswith(day) else f"{day} {clock}"
