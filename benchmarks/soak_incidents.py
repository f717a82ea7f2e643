"""What goes wrong at the soak's exchange: rows of the fault matrix, drawn from a seed, bar after bar."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from soak_judge import Judge
from soak_life import FIREWALL_MS

from perpgym.envs.exchange.admin import call
from perpgym.envs.exchange.faults import make_book, make_fault
from perpgym.envs.exchange.server import Server

# with which probability a request or message that a row may hit is hit
_RATE = 0.02
_ANY_REQUEST_RATE = 0.001
# depth diffs (F33…) are left out: this program reads no book
WIRE = (
    "F01", "F02", "F03", "F04", "F04b", "F05", "F05b", "F06", "F06b", "F07", "F07b", "F08", "F08b", "F08c",
    "F09", "F11", "F12", "F14", "F15", "F18", "F20", "F29", "F29b", "F35", "F35b", "F38", "F39",
)  # fmt: skip
# of any request
_PAUSES = {"F23": 1_000, "F25": FIREWALL_MS}
# an incident a bar, so often
_PER_BAR = 0.35
_BRIEF_MS = 300
# of equity: what a stranger trades
_STRANGERS_SHARE = 0.02

Undo = Callable[[], object]


class Incidents:
    """Throws incidents at one exchange.

    Args:
        server, judge: of it.
        seed: of everything that is drawn.
    """

    def __init__(self, server: Server, judge: Judge, seed: int) -> None:
        self.server, self.judge, self.venue = server, judge, server.venue
        self.rng = random.Random(f"incidents {seed}")
        self.thrown: Counter[str] = Counter()
        self._symbol = self.venue.names.names[0]
        self._leverage = int(self.venue.books.rules(0).leverage)
        self._due: list[tuple[asyncio.TimerHandle, Undo]] = []
        self._table: dict[str, Callable[[], Undo | None]] = {
            "F13": self._somebody_trades, "F13b": self._expire, "F19": self._change_rules,
            "F22": self._turn_leverage, "F24": self._ban, "F26": self._revoke, "F27": self._skew,
            "F30": lambda: self._stall(False), "F31": lambda: self._stall(True),
            "F32": lambda: self._call("disconnect", code=1001),
            "F32b": lambda: self._call("disconnect", code=1006),
            "F36": lambda: self._call("listen_key", tell=True),
            "F37": lambda: self._call("listen_key", tell=False),
            "F38b": lambda: self._call("replay", last=3), "F40": self._stranger, "F41": self._unknown_event,
            "F45": self._forget_stop, "F46": self._maintain, "F46b": lambda: self._call("restart"),
            "F47": self._close_contract,
        }  # fmt: skip
        drawn = {"rate": _RATE, "ids": WIRE}
        server.hub.faults = make_book({"random": drawn, "seed": self.rng.randrange(2**32)})
        for name, pause_ms in _PAUSES.items():
            fault = {"id": name, "times": None, "rate": _ANY_REQUEST_RATE, "path": "/fapi/*"}
            after = {"retry_after_s": pause_ms // 1000} if name == "F23" else {}
            server.hub.faults.faults.insert(0, make_fault({**fault, **after}))

    @property
    def total(self) -> Counter[str]:
        """How often which row has struck."""
        log = self.server.hub.faults.log
        # maintenance counts once, not once a request
        return self.thrown + Counter(name for _ms, name, _hit in log if name not in self.thrown)

    def begin_bar(self) -> None:
        """A bar opens: perhaps something happens in it, at once or a moment later."""
        if self.rng.random() >= _PER_BAR or not self._table:
            return
        name = self.rng.choice(sorted(self._table))
        self._later(self.rng.choice((0, 20, 60, 150)), lambda: self._throw(name))

    @property
    def are_under_way(self) -> bool:
        """Whether something will happen or end in this bar."""
        return bool(self._due)

    def end_bar(self) -> None:
        """What has begun ends, so that nothing lasts over a jump of the clock."""
        while self._due:
            timer, what = self._due.pop(0)
            timer.cancel()
            what()

    def calm(self) -> None:
        """Nothing goes wrong any more."""
        self.end_bar()
        self.server.hub.faults.faults.clear()
        self._table = {}

    def see_pauses(self) -> None:
        """A client that was told to be silent is silent."""
        now_ms = self.venue.now_ms
        for at_ms, name, _hit in self.server.hub.faults.log[-20:]:
            if name in _PAUSES and at_ms + _PAUSES[name] > now_ms:
                self.judge.shut_until_ms = max(self.judge.shut_until_ms, at_ms + _PAUSES[name])

    def _later(self, wait_ms: int, what: Undo) -> None:
        timer: Any = None

        def now() -> None:
            self._due = [row for row in self._due if row[0] is not timer]
            what()

        timer = asyncio.get_running_loop().call_later(wait_ms / 1000.0, now)
        self._due.append((timer, what))

    def _throw(self, name: str) -> None:
        if name not in self._table:
            return
        self.server.pass_time()
        undo = self._table[name]()
        self.thrown[name] += 1
        if undo is not None:
            self._later(_BRIEF_MS, undo)

    def _call(self, name: str, **body: Any) -> None:
        # a refusal: there is nothing that it could happen to
        call(self.server, name, body)

    def _shut(self, for_ms: int = _BRIEF_MS) -> None:
        self.judge.shut_until_ms = max(self.judge.shut_until_ms, self.venue.now_ms + for_ms)

    # --- the rows ---

    def _resting(self) -> int | None:
        orders = self.venue.books.registry.open_orders(0)
        return self.rng.choice(orders).order_id if orders else None

    def _somebody_trades(self) -> None:
        order = self._resting()
        self.judge.booked_ms = self.venue.now_ms
        if order is not None:
            left = self.venue.books.registry.orders[order].left
            self._call("fill", orderId=order, quantity=round(left * self.rng.choice((0.3, 1.0)), 5))

    def _expire(self) -> None:
        self._call("expire", orderId=self._resting() or 0)

    def _change_rules(self) -> Undo:
        contract = self.venue.books.contracts[0]
        # a coarser lot would round the position itself, which no exchange does
        self._call("contract", symbol=self._symbol, tick_size=10 * contract.tick_size)
        return lambda: self._call("contract", symbol=self._symbol, tick_size=contract.tick_size)

    def _turn_leverage(self) -> Undo:
        self._call("leverage", symbol=self._symbol, leverage=self._leverage - 1)
        return lambda: self._call("leverage", symbol=self._symbol, leverage=self._leverage)

    def _ban(self) -> None:
        self._shut()
        self._call("ban", seconds=_BRIEF_MS / 1000.0)

    def _revoke(self) -> Undo:
        self._call("keys", revoked=True)
        # a program whose key was refused stays shut out until somebody resumes it
        self._shut(3_600_000)

        def undo() -> None:
            self._call("keys", revoked=False)
            self.judge.shut_until_ms = self.venue.now_ms + _BRIEF_MS

        return undo

    def _skew(self) -> Undo:
        self._call("skew", ms=self.rng.choice((-20_000, 20_000)))
        return lambda: self._call("skew", ms=0)

    def _stall(self, is_deaf: bool) -> Undo:
        self._call("stall", on=True, deaf=is_deaf)
        return lambda: self._call("stall", on=False)

    def _stranger(self) -> None:
        price = self.venue.market.last_price(0)
        quantity = round(_STRANGERS_SHARE * self.venue.books.wallet / price, 3)
        side = self.rng.choice(("BUY", "SELL"))
        self.judge.booked_ms = self.venue.now_ms
        self._call("order", symbol=self._symbol, side=side, type="MARKET", quantity=quantity)

    def _unknown_event(self) -> None:
        self._call("event", e="NOBODY_KNOWS", E=self.venue.now_ms)

    def _forget_stop(self) -> None:
        algos = self.venue.books.registry.open_algos(0)
        if algos:
            self._call("forget_algo", algoId=self.rng.choice(algos).algo_id)

    def _maintain(self) -> None:
        fault = make_fault({"id": "F46", "until_ms": self.venue.now_ms + _BRIEF_MS})
        self.server.hub.faults.faults.insert(0, fault)
        self._shut()

    def _close_contract(self) -> Undo:
        self._call("status", symbol=self._symbol, status="SETTLING")
        self._shut()
        return lambda: self._call("status", symbol=self._symbol, status="TRADING")
