"""What passes between an env that decides and the desk that trades: decisions, wishes, what was booked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from perpgym.envs.live.broker import AccountTruth, Fill, Income, Order, StopWish

WishStyle = Literal["market", "limit", "post_only", "twap", "vwap", "iceberg"]
NoteLevel = Literal["info", "warning", "alarm"]
# carried out by more than one order, over a time
SLOW_STYLES = ("twap", "vwap", "iceberg")
DeskState = Literal["starting", "ready", "recovering", "reduce_only", "halted", "stopped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What an agent decided, as the journal keeps it.

    Attributes:
        id: counts up and is never used twice.
        bar_close_ms: of the bar that it saw last.
        observation_hash: of what it saw.
        action: as the agent gave it.
        limits_hit: bits of ``perpgym.envs.reasons``.
        note: for people.
    """

    id: int
    bar_close_ms: int
    observation_hash: str
    action: list[float]
    limits_hit: int = 0
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """One change of one position.

    Attributes:
        quantity: base, signed: what to trade, not what to hold.
        limit_price: quote; of limit, post-only and iceberg wishes.
        end_ms: of the exchange's clock, when a TWAP or VWAP is to be done and an iceberg is given up.
        clip: base, what an iceberg shows.
        reduce_only: it may only make the position smaller.

    Raises:
        ValueError: a number is not finite or not positive where it must be.
    """

    contract: str
    quantity: float
    style: WishStyle = "market"
    limit_price: float | None = None
    reduce_only: bool = False
    end_ms: int = 0
    clip: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.quantity) or self.quantity == 0.0:
            raise ValueError(
                f"{self.contract}: a wish must have a finite quantity other than 0 (base), "
                f"was {self.quantity}"
            )
        needs_price = self.style in ("limit", "post_only", "iceberg")
        if needs_price and not 0.0 < (self.limit_price or 0.0) < math.inf:
            raise ValueError(
                f"{self.contract}: a {self.style} wish must have a positive limit_price (quote), "
                f"was {self.limit_price}"
            )
        if self.style in SLOW_STYLES and self.end_ms <= 0:
            raise ValueError(
                f"{self.contract}: a {self.style} wish must have an end_ms (exchange's ms), was {self.end_ms}"
            )
        if self.style == "iceberg" and not 0.0 < self.clip < math.inf:
            raise ValueError(
                f"{self.contract}: an iceberg wish must have a positive clip (base), was {self.clip}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """Everything that was booked since the last settlement.

    Attributes:
        orders: sent since then beside those that ``Desk.trade`` returned.
        is_whole: no outcome is unknown and the books are the exchange's.
        why: what is missing, where it is not whole.
    """

    fills: tuple[Fill, ...]
    income: tuple[Income, ...]
    truth: AccountTruth
    is_whole: bool
    why: str = ""
    orders: tuple[Order, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DeskStatus:
    """Where the desk stands, for a page or a monitor.

    Attributes:
        reasons: why it is not ready, in words.
        unknown: client ids whose outcome is not known.
        reserved: quote, the most that positions and open orders can become.
        counts: of what has happened since the start: orders, fills, rejects, unknowns and so on.
    """

    state: DeskState
    reasons: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    reserved: float = 0.0
    wallet: float = 0.0
    equity: float = 0.0
    time_ms: int = 0
    counts: dict[str, int] = field(default_factory=dict)


class Books(Protocol):
    """The account as we book it; ``perpgym.envs.live.books`` is the real one."""

    def open(self, truth: AccountTruth) -> None:
        """Take the exchange's word for everything; a stop that protects what is held stays wanted."""

    def keep_stops(self, truth: AccountTruth) -> None:
        """Want the stops of ours that rest at the exchange for what is held."""

    def book_fill(self, fill: Fill) -> None:
        """Book a trade, once for each trade id."""

    def book_income(self, income: Income) -> None:
        """Book what was not part of a trade: funding, clearance, transfers. Fees and profits of trades
        are booked with the trades and pass here without effect.
        """

    def wanted_stops(self) -> Sequence[StopWish]:
        """The protective orders that the exchange should hold now."""

    def state_dict(self) -> Mapping[str, NDArray[Any]]:
        """What a later start may go on from, as arrays."""

    def compare(self, truth: AccountTruth) -> list[str]:
        """What differs by more than the tolerance, in words."""
