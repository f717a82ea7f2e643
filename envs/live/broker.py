"""What an exchange must offer to be traded on, in plain numbers, and how it says no.

Quantities are signed base units (> 0 buys or is long), prices and money quote, times UTC milliseconds of the
exchange's clock, ``contract`` ccxt's unified symbol. An implementation turns every failure into one of the
:class:`BrokerError` classes by HTTP status and numeric code: what matters is whether something happened.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol

from perpgym.data.contract import Contract

Style = Literal["market", "limit", "post_only", "stop", "take_profit"]
IncomeKind = Literal["funding", "fee", "pnl", "clearance", "transfer", "other"]
TradingStatus = Literal["trading", "close_only", "halted"]
PriceKind = Literal["last", "mark"]
# why an exchange refuses, as far as the desk acts on it: the price is beyond a stop's trigger; a closing stop
# of that side is there; a post-only order would take; nothing is to be reduced; only exits are taken; a
# filter or a leverage bracket is not as we know it; it is too busy, and takes the same a moment later
RefusalReason = Literal[
    "would_trigger",
    "stop_exists",
    "would_take",
    "nothing_to_reduce",
    "only_exits",
    "filter",
    "bracket",
    "busy",
    "other",
]
# open time, open, high, low, close, volume
BarRow = tuple[int, float, float, float, float, float]


class OrderState(StrEnum):
    """Where an order stands. The last five are final."""

    PREPARED = "prepared"
    SENT = "sent"
    UNKNOWN = "unknown"
    OPEN = "open"
    PARTIAL = "partial"
    PENDING_CANCEL = "pending_cancel"
    FILLED = "filled"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REJECTED = "rejected"
    ABSENT = "absent"

    @property
    def is_final(self) -> bool:
        """Nothing can happen to the order any more."""
        return self in FINAL_STATES


FINAL_STATES = frozenset(
    {OrderState.FILLED, OrderState.CANCELLED, OrderState.EXPIRED, OrderState.REJECTED, OrderState.ABSENT}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One order, from intent to end.

    Attributes:
        client_id: ours, used once and never again.
        exchange_id: None until the exchange has named it.
        quantity: base, signed; only its sign counts where ``closes_position``.
        filled: base, signed, cumulative.
        average: quote, of what is filled; None before.
        price: quote, of limit orders.
        trigger_price: quote, of stops and take-profits.
        watches: which price triggers.
        reduce_only: it may only make the position smaller.
        closes_position: it closes whatever is held when it triggers.
        updated_ms: when the exchange last changed it.
    """

    client_id: str
    contract: str
    quantity: float
    style: Style = "market"
    exchange_id: str | None = None
    filled: float = 0.0
    average: float | None = None
    price: float | None = None
    trigger_price: float | None = None
    watches: PriceKind = "last"
    reduce_only: bool = False
    closes_position: bool = False
    state: OrderState = OrderState.PREPARED
    updated_ms: int = 0

    @property
    def is_stop(self) -> bool:
        """It waits for a trigger."""
        return self.style in ("stop", "take_profit")

    @property
    def left(self) -> float:
        """base, signed: what may still fill."""
        return 0.0 if self.state.is_final else self.quantity - self.filled


@dataclass(frozen=True, kw_only=True, slots=True)
class Fill:
    """One trade of ours; ``fee`` is a positive cost in ``fee_currency``."""

    trade_id: str
    contract: str
    quantity: float
    price: float
    fee: float
    time_ms: int
    client_id: str | None = None
    fee_currency: str = "USDT"
    is_maker: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Income:
    """One change of the wallet; ``amount`` is positive when received."""

    income_id: str
    kind: IncomeKind
    amount: float
    time_ms: int
    contract: str | None = None
    currency: str = "USDT"


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """What is held of one contract; ``isolated_wallet`` is 0 in cross margin."""

    contract: str
    quantity: float
    entry_price: float
    mark_price: float
    liquidation_price: float | None = None
    isolated_wallet: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class AccountTruth:
    """What the exchange says now.

    Attributes:
        wallet: quote, without unrealised profit.
        equity: quote, with it.
        positions: those that are not flat, by contract.
        orders: the plain orders that rest.
        stops: the conditional orders that wait.
    """

    time_ms: int
    wallet: float
    equity: float
    positions: Mapping[str, Position] = field(default_factory=dict)
    orders: tuple[Order, ...] = ()
    stops: tuple[Order, ...] = ()

    def quantity(self, contract: str) -> float:
        """base, signed; 0 when flat."""
        position = self.positions.get(contract)
        return 0.0 if position is None else position.quantity


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How the account is set up, by contract where the exchange has it so."""

    leverage: Mapping[str, int]
    margin_mode: Literal["cross", "isolated"] = "cross"
    is_hedged: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class StopWish:
    """A protective order that the exchange should hold.

    ``quantity`` is base, signed as the order (it sells what is long); it closes the whole position.
    """

    contract: str
    quantity: float
    trigger_price: float
    kind: Literal["stop", "take_profit"] = "stop"
    watches: PriceKind = "mark"


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingsChanged:
    """Somebody changed leverage, margin mode or position mode."""

    text: str
    contract: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamBroken:
    """The user stream was cut or its key died: what happened meanwhile was not heard."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamOpened:
    """The user stream hears from now on."""


Happening = Order | Fill | Income | Position | SettingsChanged | StreamBroken | StreamOpened


class BrokerError(Exception):
    """A request that did not simply succeed."""


class Rejected(BrokerError):  # noqa: N818 - what happened to the request, not to the program
    """The exchange refuses for certain; nothing was done.

    Attributes:
        code: the exchange's number, 0 where it gave none.
        reason: the same in words that every exchange shares.
    """

    def __init__(self, code: int, message: str, reason: RefusalReason = "other") -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.reason = code, message, reason


class Unknown(BrokerError):  # noqa: N818
    """It may have happened or not; only asking tells."""


class Throttled(BrokerError):  # noqa: N818
    """Too many requests: nothing was done, nothing may be asked until ``until_ms``."""

    def __init__(self, until_ms: int, message: str = "") -> None:
        super().__init__(message or f"too many requests; quiet until {until_ms}")
        self.until_ms = until_ms


class Banned(Throttled):
    """The address is banned: every request until ``until_ms`` makes it longer."""


class AccessDenied(BrokerError):  # noqa: N818
    """The key is wrong, revoked or may not do this."""


class Unreachable(BrokerError):  # noqa: N818
    """A read that was not answered; nothing can have happened."""


class Disbelieved(BrokerError):  # noqa: N818
    """An answer that was read and cannot be so: nothing may be built on it."""


class Broker(Protocol):
    """An exchange with one account. Every call may raise a :class:`BrokerError`."""

    @property
    def account_id(self) -> str:
        """Names the account and reveals nothing: two programs on one account have the same."""

    async def open(self) -> None:
        """Connect, read the rules, learn the clock."""

    async def close(self) -> None:
        """Let go of every connection."""

    async def server_time_ms(self) -> int:
        """The exchange's clock, asked now."""

    def now_ms(self) -> int:
        """The exchange's clock, as kept here."""

    async def contracts(self) -> Mapping[str, Contract]:
        """The rules of the contracts traded here, read anew."""

    async def account(self) -> AccountTruth:
        """Wallet, positions, resting and waiting orders."""

    async def settings(self) -> Settings:
        """Leverage, margin and position mode, read back."""

    async def mark_prices(self) -> Mapping[str, float]:
        """The mark price of every contract traded here, quote.

        Raises:
            Disbelieved: one is no price, or away from what is traded.
        """

    async def set_up(self, settings: Settings) -> None:
        """Bring the account to ``settings`` and read them back; what is so already is left alone.

        Raises:
            Rejected: the exchange will not have it so.
        """

    async def submit(self, order: Order) -> Order:
        """Send an order, once.

        Raises:
            Rejected: it does not exist. Unknown: it may.
        """

    async def cancel(self, order: Order) -> Order:
        """Cancel an order, once.

        Raises:
            Rejected: the exchange knows no such open order. Unknown: it may be cancelled.
        """

    async def find(self, client_id: str, contract: str, is_stop: bool = False) -> Order | None:
        """An order by our id wherever the exchange keeps it; None where it is in none of its lists."""

    async def fills(self, contract: str, since_ms: int) -> list[Fill]:
        """Our trades since then, oldest first."""

    async def income(self, since_ms: int) -> list[Income]:
        """Every change of the wallet since then, oldest first."""

    async def arm_dead_man(self, contract: str, ms: int) -> None:
        """Let the exchange cancel the contract's plain orders so long from now; 0 disarms."""

    async def renew_stream(self) -> None:
        """Open the user stream anew: it says nothing of what the account shows."""

    def events(self) -> AsyncIterator[Happening]:
        """The user stream; ends when the broker is closed. Never to be trusted alone."""

    async def bars(self, contract: str, kind: PriceKind, since_ms: int, limit: int) -> Sequence[BarRow]:
        """Closed bars that opened at ``since_ms`` or later, oldest first."""

    async def funding(self, contract: str, since_ms: int) -> Sequence[tuple[int, float]]:
        """(settlement time, rate) since then, oldest first."""

    async def funding_interval_hours(self, contract: str) -> int:
        """Hours between settlements, as the exchange has them now."""

    async def status(self, contract: str) -> TradingStatus:
        """Whether the contract trades."""
