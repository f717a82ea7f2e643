"""The account as the env books it, fed with what the exchange says really happened.

Between two closes everything is booked at once, so that it can be compared with the exchange and protected.
When the bar is final the same events are booked again from the last close on, now knowing the bar: then
spread, impact and profit are told apart as in the env, and the books are closed by the kernel's own code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import CLOSE
from perpgym.data.contract import Contract
from perpgym.data.tape import Tape
from perpgym.envs.account import (
    ENTRY_PRICE,
    EQUITY,
    ISOLATED_WALLET,
    ORDER_LIMIT,
    ORDER_QUANTITY,
    ORDER_STYLE,
    QUANTITY,
    STOP_DISTANCE,
    STOP_PRICE,
    TARGET_PRICE,
    WALLET,
)
from perpgym.envs.actions import ACTION_DIM
from perpgym.envs.arrays import Account, BatchState, World, contract_rules
from perpgym.envs.batch import observe_batch
from perpgym.envs.booking import EVENT_COLUMNS, book_bar, book_events, keep_still, open_books
from perpgym.envs.buffers import StepBuffers, make_account
from perpgym.envs.config import EXECUTION_STYLES, EnvConfig
from perpgym.envs.decision import decide
from perpgym.envs.live.broker import AccountTruth, Fill, Income, Order, StopWish
from perpgym.envs.live.context import PREFIX
from perpgym.envs.live.events import Event, fill_event, income_event, rows_of
from perpgym.envs.live.ring import ClosedBar
from perpgym.envs.live.wishes import Wish, WishStyle
from perpgym.envs.masks import mask_batch
from perpgym.envs.observation import single_observation
from perpgym.envs.orders import is_reduce_only
from perpgym.envs.risk.limits import RiskLimits
from perpgym.envs.rules import make_world, market_arrays, settle_currency
from perpgym.envs.spaces import LEDGER, TOTAL_COLUMNS

Float64 = NDArray[np.float64]

_OVERLAY = LEDGER["overlay"]
_STYLES: dict[str, WishStyle] = {
    "market": "market", "twap": "twap", "vwap": "vwap", "limit": "post_only", "iceberg": "iceberg",
}  # fmt: skip
# settle currency: most by which the exchange's rounding of one trade's profit to 8 decimals moves the wallet,
# whichever way it rounds
_ROUNDING = 1e-8
# trades and incomes that may be told a second time
_REMEMBERED = 5_000


class Books:
    """One account on A contracts.

    Args:
        config, limits: as of the env that the policy was trained in.
        wallet_tolerance: quote, by how much the exchange's wallet may differ, beside the rounding of sums and
            of the profit of every trade since it was last compared.

    Attributes:
        account: the kernel's arrays, everything booked that is known.
        world: what the kernel reads; None before :meth:`see`.
    """

    def __init__(self, config: EnvConfig, limits: RiskLimits, *, wallet_tolerance: float = 1e-8) -> None:
        self.config, self.limits = config, limits
        self.wallet_tolerance = wallet_tolerance
        self.world: World | None = None
        self._contracts: tuple[Contract, ...] = ()
        self._symbols: tuple[str, ...] = ()
        self._now = 0
        self._close_ms = self._bar_ms = 0
        self._events: list[Event] = []
        self._booked: dict[str, None] = {}
        self._expected: set[str] = set()
        # trades since the exchange's last digits were taken over
        self._rounded = 0

    def see(self, tape: Tape) -> None:
        """Take the newest bars; the last one has just closed, or is the newest there is at the start."""
        if self.world is None:
            self.world = make_world(tape, self.config, self.limits)
            self._contracts = tape.contracts
            self._symbols = tuple(contract.symbol for contract in tape.contracts)
            self.account, self._base = (make_account(len(self._symbols)) for _ in range(2))
        else:
            self.world = self.world._replace(market=market_arrays(tape, self.config))
        self._now = len(tape)
        self._bar_ms = tape.bar_ms
        self._close_ms = int(tape.open_time_ms[-1]) + tape.bar_ms

    def _seen(self) -> World:
        if self.world is None:
            raise RuntimeError("the books know no market yet: call see() with a tape first")
        return self.world

    @property
    def equity(self) -> float:
        """quote, at the last close."""
        return float(self.account.wallet[EQUITY])

    @property
    def wallet(self) -> float:
        """quote."""
        return float(self.account.wallet[WALLET])

    def quantity(self, symbol: str) -> float:
        """base, signed."""
        return float(self.account.positions[self._symbols.index(symbol), QUANTITY])

    # --- the exchange's word ---

    def open(self, truth: AccountTruth) -> None:
        """Begin with what the exchange has: its wallet, positions and stops; other memories begin now.

        What was booked for a position of the same side protects it where nothing rests at the exchange.
        """
        before = self.account.positions.copy()
        held = np.zeros((len(self._symbols), 3))
        for asset, symbol in enumerate(self._symbols):
            if symbol in truth.positions:
                position = truth.positions[symbol]
                held[asset] = position.quantity, position.entry_price, position.isolated_wallet
        open_books(self.account, self._seen(), self._now - 1, truth.wallet, held)
        for position, booked in zip(self.account.positions, before, strict=True):
            if position[QUANTITY] * booked[QUANTITY] > 0.0 and not math.isnan(booked[STOP_PRICE]):
                kept = [STOP_PRICE, TARGET_PRICE, STOP_DISTANCE]
                position[kept] = booked[kept]
        self._events.clear()
        self._rounded = 0
        self._keep_base()
        self.keep_stops(truth)

    def keep_stops(self, truth: AccountTruth) -> None:
        """Want the stops of ours that rest at the exchange for what is held, whatever has been forgotten.

        Of two that trail the tighter one counts: it never moves back.
        """
        for stop in truth.stops:
            is_ours = stop.closes_position and stop.client_id.startswith(PREFIX)
            if is_ours and stop.contract in self._symbols and stop.trigger_price is not None:
                asset = self._symbols.index(stop.contract)
                for account in (self.account, self._base):
                    self._want(stop, stop.trigger_price, asset, account.positions[asset])

    def _want(self, stop: Order, trigger: float, asset: int, position: Float64) -> None:
        side = -math.copysign(1.0, stop.quantity)
        column = STOP_PRICE if stop.style == "stop" else TARGET_PRICE
        ahead = side * (float(position[column]) - trigger)
        # what differs by less is the same price in other digits; a comparison with nan is false
        is_same = abs(ahead) < 0.5 * self._contracts[asset].tick_size
        is_further = column == STOP_PRICE and self.config.trailing_stop and ahead > 0.0
        if side * position[QUANTITY] <= 0.0 or is_same or is_further:
            return
        position[column] = trigger
        if column == STOP_PRICE and position[STOP_DISTANCE] == 0.0 and self.config.stop_loss is None:
            position[STOP_DISTANCE] = abs(1.0 - trigger / position[ENTRY_PRICE])

    def book_fill(self, fill: Fill) -> None:
        """Book a trade, once for each trade id.

        Raises:
            KeyError: of a contract that is not traded here.
        """
        if not self._is_new(f"{fill.contract} {fill.trade_id}"):
            return
        asset = self._asset(fill.contract)
        self._rounded += 1
        is_fee_ours = fill.fee_currency == settle_currency(self._contracts[asset])
        self._book(fill_event(fill, asset, self.account.positions[asset], is_fee_ours=is_fee_ours))

    def book_income(self, income: Income) -> None:
        """Book what was not part of a trade, once; fees and profits of trades are booked with the trades."""
        event = income_event(income, -1 if income.contract is None else self._asset(income.contract))
        if event is not None and self._is_new(f"income {income.income_id}"):
            self._book(event)

    def _asset(self, symbol: str) -> int:
        if symbol not in self._symbols:
            raise KeyError(f"{symbol} is not traded here, only {', '.join(self._symbols)} are")
        return self._symbols.index(symbol)

    def _is_new(self, key: str) -> bool:
        if key in self._booked:
            return False
        self._booked[key] = None
        if len(self._booked) > _REMEMBERED:
            del self._booked[next(iter(self._booked))]
        return True

    def _book(self, event: Event) -> None:
        self._events.append(event)
        book_events(self.account, self._seen(), self._now, event.row[None], 0.0)

    def trust(self, truth: AccountTruth) -> None:
        """Take over the last digits, and isolated wallets, from an account that :meth:`compare` passed."""
        off = truth.wallet - self.wallet
        margins = np.zeros(len(self._symbols))
        for asset, symbol in enumerate(self._symbols):
            if symbol in truth.positions:
                margins[asset] = truth.positions[symbol].isolated_wallet
        for account in (self.account, self._base):
            account.wallet[WALLET] += off
        self._rounded = 0
        if not self._events:
            self.account.positions[:, ISOLATED_WALLET] = margins
            self._keep_base()

    def compare(self, truth: AccountTruth) -> list[str]:
        """What differs by more than the tolerance, in words."""
        found = []
        # sums of many numbers of this size
        allowed = self.wallet_tolerance + 64.0 * math.ulp(max(abs(truth.wallet), 1.0))
        allowed += _ROUNDING * self._rounded
        if not abs(self.wallet - truth.wallet) <= allowed:
            found.append(f"the wallet is {truth.wallet!r}, {self.wallet!r} is booked")
        for asset, symbol in enumerate(self._symbols):
            contract = contract_rules(self._seen().contracts[asset])
            booked, real = self.quantity(symbol), truth.quantity(symbol)
            if not abs(booked - real) <= max(1e-3 * contract.lot_size, 1e-12):
                found.append(f"{symbol}: the position is {real!r}, {booked!r} is booked")
        unknown = sorted(set(truth.positions) - set(self._symbols))
        if unknown:
            found.append(f"there are positions in {', '.join(unknown)}, which is not traded here")
        return found

    # --- what the account wants ---

    def decide(self, action: NDArray[np.float32]) -> int:
        """Wanted orders for an action at the last close, by the overlay and sizing of the env.

        Args:
            action: (A * action_dim,) float32, finite and in the space.

        Returns:
            Bits of the limits that changed it.
        """
        self.account.ledger[:] = 0.0
        bits = int(decide(self.account, self._seen(), action, self._now))
        self.account.ledger[_OVERLAY] = bits
        self._keep_orders()
        return bits

    def wishes(self) -> list[Wish]:
        """What :meth:`decide` wants traded: what closes first, which frees margin, then what turns.

        What is too small to open with is left out, as the env leaves it.
        """
        wishes: list[tuple[int, Wish]] = []
        for asset, symbol in enumerate(self._symbols):
            order = self.account.orders[asset]
            quantity, held = float(order[ORDER_QUANTITY]), float(self.account.positions[asset, QUANTITY])
            if quantity == 0.0:
                continue
            is_exit = bool(is_reduce_only(held, quantity))
            if not is_exit and self._is_too_small(asset, abs(quantity)):
                continue
            style = _STYLES[EXECUTION_STYLES[int(order[ORDER_STYLE])]]
            turn = 0 if is_exit else 1 if held * quantity < 0.0 else 2
            limit_price = float(order[ORDER_LIMIT]) if style in ("post_only", "iceberg") else None
            wish = Wish(
                contract=symbol, quantity=quantity, style=style, limit_price=limit_price, reduce_only=is_exit,
                end_ms=self._close_ms + self._bar_ms, clip=abs(quantity) * self.config.iceberg_clip,
            )  # fmt: skip
            wishes.append((turn, wish))
        return [wish for _, wish in sorted(wishes, key=lambda pair: pair[0])]

    def _is_too_small(self, asset: int, size: float) -> bool:
        world = self._seen()
        contract = contract_rules(world.contracts[asset])
        close = float(world.market.last[self._now - 1, asset, CLOSE])
        value = size if contract.is_inverse > 0.0 else size * close
        return bool(size < contract.min_quantity or value < contract.min_notional)

    def keep_still(self) -> None:
        """Begin a bar without a decision."""
        keep_still(self.account)
        self._keep_orders()

    def expect(self, orders: Iterable[Order]) -> None:
        """These orders are the decision's: what fills of them is neither a stop nor somebody else's."""
        self._expected |= {order.client_id for order in orders}

    def wanted_stops(self) -> list[StopWish]:
        """The protective orders that the exchange should hold now."""
        watches = self.config.stop_trigger
        wishes = []
        for symbol, position in zip(self._symbols, self.account.positions, strict=True):
            quantity = float(position[QUANTITY])
            for kind, column in (("stop", STOP_PRICE), ("take_profit", TARGET_PRICE)):
                price = float(position[column])
                if quantity != 0.0 and not math.isnan(price):
                    wishes.append(
                        StopWish(
                            contract=symbol, quantity=-quantity, trigger_price=price, watches=watches,
                            kind="stop" if kind == "stop" else "take_profit",
                        )
                    )  # fmt: skip
        return wishes

    def awaits_funding(self, bar: ClosedBar) -> list[str]:
        """Contracts held at the close of ``bar`` whose settlement there has not been booked yet."""
        missing = []
        for asset, stamps in enumerate(bar.stamps):
            due = [time for time, rate in stamps if rate != 0.0]
            told = [event.time_ms for event in self._events if event.funded_asset == asset]
            if due and self.account.positions[asset, QUANTITY] != 0.0 and max(told, default=0) < due[-1]:
                missing.append(self._symbols[asset])
        return missing

    # --- what an agent sees ---

    def observe(self, tape: Tape, out: StepBuffers) -> dict[str, NDArray[Any]]:
        """The observation at the newest bar of ``tape``, written by the code of the batch env.

        Args:
            tape: the one that the books saw last.
            out: buffers of one account.
        """
        bar = len(tape) - 1
        out.bar[:] = bar
        observe_batch(self._seen(), self._as_batch(), out.bar, out.account, out.portfolio)
        return single_observation(tape, self.config.window_bars, bar, out.account[0], out.portfolio[0])

    def masks(self) -> NDArray[np.bool_]:
        """Which choices are allowed now; see ``PerpVecEnv.action_masks``."""
        masks = np.zeros((1, len(self._symbols) * sum(self.config.choices)), np.bool_)
        scratch = make_account(len(self._symbols))
        mask_batch(self._seen(), self._as_batch(), scratch, np.array([self._now - 1], np.int64), masks)
        allowed: NDArray[np.bool_] = masks[0]
        return allowed

    def _as_batch(self) -> BatchState:
        """The account as a batch of one; episodes and restarts mean nothing here."""
        account, nothing = self.account, np.zeros(1, np.int64)
        return BatchState(
            wallets=account.wallet[None], positions=account.positions[None], orders=account.orders[None],
            traded=np.zeros((1, 0)), totals=np.zeros((1, len(TOTAL_COLUMNS))), path_bar=nothing,
            path_end=nothing, next_start=nothing, next_end=nothing, restart_wallet=np.zeros(1),
            restart_exposure=np.zeros((1, len(self._symbols))),
        )  # fmt: skip

    # --- time ---

    def close_bar(self, tape: Tape) -> tuple[float, bool]:
        """Book the bar that ``tape`` ends with, from everything that happened in it, and close its books.

        Args:
            tape: with one bar more than the books have seen.

        Returns:
            (reward, is_terminated), as the env's.
        """
        self.see(tape)
        self._now -= 1
        inside = [event for event in self._events if event.is_in(self._close_ms)]
        self._events = [event for event in self._events if not event.is_in(self._close_ms)]
        _copy(self._base, self.account)
        reward, is_terminated = book_bar(
            self.account, self._seen(), self._now, rows_of(inside, self._expected)
        )
        self._now += 1
        self._expected.clear()
        self._keep_base()
        # what came after the close is known, too
        book_events(self.account, self._seen(), self._now, rows_of(self._events, self._expected), 0.0)
        return float(reward), bool(is_terminated)

    def _keep_base(self) -> None:
        _copy(self.account, self._base)

    def _keep_orders(self) -> None:
        """A decision changes orders and ledger only, whatever has been booked since the close."""
        self._base.orders[:] = self.account.orders
        self._base.ledger[:] = self.account.ledger

    # --- across a restart ---

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """Everything that the next bar depends on, as plain arrays."""
        parts = {
            f"{name}_{part}": getattr(account, part).copy()
            for name, account in (("account", self.account), ("base", self._base))
            for part in ("wallet", "positions", "orders", "ledger", "holdings")
        }
        return {
            **parts,
            "event_rows": np.array([event.row for event in self._events]).reshape(-1, EVENT_COLUMNS),
            "event_times": np.array([event.time_ms for event in self._events], np.int64),
            "event_ids": np.array([event.client_id for event in self._events], np.str_),
            "booked": np.array(list(self._booked), np.str_),
            "expected": np.array(sorted(self._expected), np.str_),
            "close_ms": np.array(self._close_ms, np.int64),
            "rounded": np.array(self._rounded, np.int64),
        }

    def load_state(self, state: dict[str, NDArray[np.generic]]) -> int:
        """Continue where :meth:`state_dict` was taken.

        Returns:
            The close (ms) at which it was taken: bars that closed since are to be booked one by one.

        Raises:
            ValueError: it belongs to another number of contracts.
        """
        for name, account in (("account", self.account), ("base", self._base)):
            for part in ("wallet", "positions", "orders", "ledger", "holdings"):
                mine, theirs = getattr(account, part), state[f"{name}_{part}"]
                if mine.shape != theirs.shape:
                    raise ValueError(
                        f"the saved books have {part} of shape {theirs.shape}, these {mine.shape}: resume "
                        "with the contracts of the saved run, or start with a new journal"
                    )
                mine[...] = theirs
        ids = [str(client_id) for client_id in state["event_ids"]]
        times, rows = state["event_times"].tolist(), np.asarray(state["event_rows"], np.float64)
        self._events = [
            Event(time_ms=time, row=row, client_id=client_id)
            for time, row, client_id in zip(times, rows, ids, strict=True)
        ]
        self._booked = dict.fromkeys(str(key) for key in state["booked"])
        self._expected = {str(client_id) for client_id in state["expected"]}
        # a journal of before knows the open bar only
        self._rounded = int(state.get("rounded", np.array(len(rows))))
        return int(state["close_ms"])


def _copy(source: Account, target: Account) -> None:
    for part in ("wallet", "positions", "orders", "ledger", "holdings"):
        getattr(target, part)[...] = getattr(source, part)


def warm_up(config: EnvConfig, limits: RiskLimits, tape: Tape) -> None:
    """Compile what a decision, a fill and a close need, on books of their own.

    Compiling takes a minute or more where nothing is cached: longer than a market waits.
    """
    books = Books(config, limits)
    books.see(tape)
    books.open(AccountTruth(time_ms=0, wallet=config.initial_wallet, equity=config.initial_wallet))
    books.decide(np.zeros(len(tape.contracts) * ACTION_DIM[config.action], np.float32))
    books.wishes()
    close = float(tape.last[-1, 0, CLOSE])
    name, size = tape.contracts[0].symbol, tape.contracts[0].min_quantity
    books.book_fill(Fill(trade_id="", contract=name, quantity=size, price=close, fee=0.0, time_ms=0))
    books.keep_still()
    books.close_bar(tape)
    books.observe(
        tape,
        StepBuffers.allocate(
            1, len(tape.contracts), config.window_bars, tape.features.shape[2], tape.risk.shape[2]
        ),
    )
    if config.choices:
        books.masks()
