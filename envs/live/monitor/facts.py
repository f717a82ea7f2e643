"""What a page must know that no table of the journal holds: what the run is, and its account bar by bar."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from perpgym.envs.live.broker import Position
from perpgym.envs.live.journal import Journal
from perpgym.envs.live.wishes import DeskStatus

# where RunFacts lie in the journal's meta, and the kind of event that note_bar writes
RUN_KEY = "run"
BAR_KIND = "bar"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What is running.

    Attributes:
        name: of the agent, for people.
        exchange: where it trades, e.g. ``binance USD-M, demo``.
        contracts: ccxt symbols.
        bar_ms: between two decisions.
        limits: what the account may never do, by the names of ``RiskLimits``, ``EnvConfig`` and
            ``DeskLimits``; None is no limit.
    """

    name: str
    exchange: str
    contracts: tuple[str, ...]
    bar_ms: int
    currency: str = "USDT"
    limits: Mapping[str, float | None] = field(default_factory=dict)

    def write(self, journal: Journal) -> None:
        """Keep them where every page of this journal finds them."""
        journal.set_meta(RUN_KEY, json.dumps(asdict(self)))

    @classmethod
    def read(cls, meta: Mapping[str, str]) -> RunFacts | None:
        """From the journal's meta; None where nobody wrote them."""
        text = meta.get(RUN_KEY)
        if text is None:
            return None
        found = json.loads(text)
        return cls(**{**found, "contracts": tuple(found["contracts"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """What only the running program knows.

    Attributes:
        status: of the desk; None where it does not run here.
        now_ms: the exchange's clock.
        feed_delay_s: from the close of the last bar until its final numbers were here.
        stream_ages_s: since each stream was heard last.
    """

    status: DeskStatus | None = None
    now_ms: int | None = None
    feed_delay_s: float | None = None
    stream_ages_s: Mapping[str, float] = field(default_factory=dict)


def ask(health: Callable[[], Health] | None) -> tuple[Health | None, str]:
    """(how the program is, why it does not say): who watches goes on when what he watches is in trouble."""
    if health is None:
        return None, ""
    try:
        return health(), ""
    except Exception as error:
        return None, f"the program does not say how it is: {type(error).__name__}"


def note_bar(
    journal: Journal, bar_close_ms: int, marks: Mapping[str, float], positions: Mapping[str, Position]
) -> None:
    """Keep mark prices, entries and liquidation prices of a bar that was settled.

    Args:
        bar_close_ms: of the bar.
        marks: its mark close by contract, quote.
        positions: what is held then, as the exchange says.
    """
    held = {
        name: {"entry_price": position.entry_price, "liquidation_price": position.liquidation_price}
        for name, position in positions.items()
    }
    journal.event(bar_close_ms, "info", BAR_KIND, bar_close_ms=bar_close_ms, marks=dict(marks), held=held)
