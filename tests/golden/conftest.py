"""A second account, written from the documents alone, and the pair that drives it beside the kernel's.

The reference shares no code with the kernel and computes in other ways: a wallet is cash plus the cost of
what is held (so realised profit is never written down), maintenance margin is an integral over the brackets
(so ``cum`` is never used), a liquidation price is found by bisection, rounding goes through decimals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

import numpy as np
import pytest

from perpgym.data.contract import Contract
from perpgym.envs.account import (
    ENTRY_PRICE,
    EQUITY,
    ISOLATED_WALLET,
    QUANTITY,
    STOP_PRICE,
    TARGET_PRICE,
    WALLET,
    open_account,
)
from perpgym.envs.arrays import Bar, World
from perpgym.envs.buffers import make_account
from perpgym.envs.config import EnvConfig
from perpgym.envs.kernel import step_account
from perpgym.envs.risk.limits import RiskLimits
from perpgym.envs.rules import make_account_rules, one_bar_market, pack_contracts
from perpgym.envs.spaces import CONTRACT_LEDGER_COLUMNS, LEDGER_COLUMNS

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
NOISE = Decimal("0.000001")


def lots(quantity: float, lot: float) -> float:
    """Towards zero; a millionth of a lot short counts as whole."""
    step = Decimal(repr(lot))
    whole = (Decimal(abs(quantity)) / step + NOISE).to_integral_value(ROUND_FLOOR)
    return math.copysign(float(whole * step), quantity)


def ticks(price: float, tick: float, is_buy: bool) -> float:
    """Against the order: buys up, sells down."""
    step = Decimal(repr(tick))
    count = Decimal(price) / step
    if is_buy:
        whole = (count - NOISE).to_integral_value(ROUND_CEILING)
    else:
        whole = (count + NOISE).to_integral_value(ROUND_FLOOR)
    return float(max(whole, Decimal(1)) * step)


@dataclass
class Reference:
    """One account; ``cash`` is what is left after paying for everything held at its fill price."""

    contract: Contract
    config: EnvConfig
    limits: RiskLimits
    cash: float
    held: float = 0.0
    entry: float = 0.0
    margin: float = 0.0
    stop: float | None = None
    target: float | None = None
    row: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.peak = self.day_open = self.day_low = self.now = self.cash

    # --- what the account is worth ---

    @property
    def wallet(self) -> float:
        return self.cash + self.held * self.entry

    @property
    def is_isolated(self) -> bool:
        return self.config.margin_mode == "isolated"

    @property
    def balance(self) -> float:
        return self.margin if self.is_isolated else self.wallet

    @property
    def fee_rate(self) -> float:
        rate = self.config.taker_rate
        return self.contract.taker_rate if rate is None else rate

    @property
    def largest_notional(self) -> float:
        return max(b.cap for b in self.contract.brackets if b.max_leverage >= self.config.leverage)

    def maintenance(self, notional: float) -> float:
        return sum(
            b.maintenance_margin_rate * (min(notional, b.cap) - b.floor)
            for b in self.contract.brackets
            if notional > b.floor
        )

    def excess(self, mark: float) -> float:
        return self.balance + self.held * (mark - self.entry) - self.maintenance(abs(self.held) * mark)

    def is_liquidated(self, mark: float) -> bool:
        return self.held != 0 and self.excess(mark) <= 0

    def liquidation_price(self, bad: float) -> float:
        """Between ``bad``, where the account is liquidated, and any price where it is not."""
        good = bad
        while self.excess(good) <= 0:
            good = good * 1.5 if self.held > 0 else good / 1.5
            if good < 1e-12:
                return 0.0
        for _ in range(200):
            middle = 0.5 * (good + bad)
            if self.excess(middle) > 0:
                good = middle
            else:
                bad = middle
        return bad

    # --- what changes it ---

    def execute(self, quantity: float, price: float, fee_rate: float) -> None:
        before, lot = self.held, self.contract.lot_size
        after = float(Decimal(repr(lot)) * round(Decimal(before + quantity) / Decimal(repr(lot))))
        # the part of the fill that crosses zero opens anew
        kept = 0.0 if before * after <= 0 else min(abs(before), abs(after))
        opened = abs(after) - kept
        cash = self.cash - quantity * price - abs(quantity) * price * fee_rate
        if kept == 0:
            self.entry, self.margin = price, 0.0
        else:
            self.entry = (kept * self.entry + opened * price) / (kept + opened)
            self.margin *= kept / abs(before)
        self.held = after
        self.cash = cash + (before + quantity - after) * price
        if self.is_isolated:
            self.margin = min(self.margin + opened * price / self.config.leverage, self.wallet)
        if after == 0:
            self.cash, self.entry, self.margin, self.stop, self.target = self.wallet, 0.0, 0.0, None, None
        else:
            self.set_stops()
        self.row["fees"] += abs(quantity) * price * fee_rate

    def set_stops(self) -> None:
        side, tick = math.copysign(1.0, self.held), self.contract.tick_size
        if self.config.stop_loss is not None:
            self.stop = ticks(self.entry * (1 - side * self.config.stop_loss), tick, side < 0)
        if self.config.take_profit is not None:
            self.target = ticks(self.entry * (1 + side * self.config.take_profit), tick, side < 0)

    def note(self, quantity: float, price: float, reference: float, touch: float, bar: Bar) -> None:
        side = math.copysign(1.0, quantity)
        self.row["spread"] += abs(quantity) * side * (touch - reference)
        self.row["impact"] += abs(quantity) * side * (price - touch)
        self.row["price_pnl"] += quantity * (bar.mark_close - reference)
        self.row["traded_notional"] += abs(quantity) * price
        self.row["fills"] += 1

    def prices(self, quantity: float, reference: float, bar: Bar) -> tuple[float, float]:
        """Touch and fill."""
        side, tick = math.copysign(1.0, quantity), self.contract.tick_size
        touch = ticks(reference * (1 + side * self.config.half_spread_bps / 1e4), tick, side > 0)
        slip = self.slippage(quantity, bar)
        return touch, ticks(touch + side * slip * reference, tick, side > 0)

    def slippage(self, quantity: float, bar: Bar) -> float:
        if bar.volume == 0:
            return 0.0
        impact = self.config.impact_coefficient * bar.sigma_per_bar * (abs(quantity) / bar.volume) ** 0.5
        return float(min(impact, 0.5))

    def market(self, quantity: float, reference: float, bar: Bar) -> float:
        touch, price = self.prices(quantity, reference, bar)
        self.execute(quantity, price, self.fee_rate)
        self.note(quantity, price, reference, touch, bar)
        return price

    def settle(self, mark: float, rate: float) -> None:
        received = -self.held * mark * rate * self.config.funding_multiplier
        self.cash += received
        self.row["funding"] += received
        if self.is_isolated:
            self.margin += received

    def liquidate(self, mark: float, bar: Bar) -> None:
        quantity, side = -self.held, -math.copysign(1.0, self.held)
        touch = mark * (1 + side * self.config.half_spread_bps / 1e4)
        free_price = touch + side * mark * self.slippage(quantity, bar)
        bankruptcy = max(self.entry - self.balance / self.held, 0.0)
        price = max(free_price, bankruptcy) if self.held > 0 else min(free_price, bankruptcy)
        remains = self.balance + self.held * (price - self.entry)
        clearance = min(self.contract.clearance_rate * abs(quantity) * price, max(remains, 0.0))
        self.row["insurance"] += abs(quantity) * side * (free_price - price)
        self.row["clearance"] += clearance
        self.row["liquidated"] = 1
        self.note(quantity, free_price, mark, touch, bar)
        self.row["traded_notional"] += abs(quantity) * (price - free_price)
        self.cash += -quantity * price - clearance
        self.held = self.entry = self.margin = 0.0
        self.stop = self.target = None

    # --- from an action to an order ---

    def admitted(self) -> tuple[float, int]:
        limits = self.limits
        if limits.max_daily_loss is not None and self.day_low <= self.day_open * (1 - limits.max_daily_loss):
            return 0.0, 4
        caps = [(limits.max_leverage, 1)]
        if limits.max_notional is not None:
            caps.append((limits.max_notional / self.now, 2))
        drawdown = 1 - self.now / self.peak
        if limits.drawdown_start is not None and drawdown > limits.drawdown_start:
            left = (self.config.max_drawdown - drawdown) / (self.config.max_drawdown - limits.drawdown_start)
            caps.append((limits.max_leverage * max(left, 0.0), 8))
        return min(caps)

    def order(self, action: Any, mark_before: float, bar: Bar) -> float:
        most, lot = self.config.max_exposure, self.contract.lot_size
        exposure = self.held * mark_before / self.now
        wish = float(action[0]) * most
        if self.config.action == "band":
            width = (float(action[1]) + 1) / 2 * most
            wish = float(np.clip(exposure, wish - width, wish + width))
        cap, bit = self.admitted()
        if abs(wish) > cap:
            wish = math.copysign(cap, wish)
            self.row["overlay"] = bit
        if abs(wish - exposure) <= self.config.rebalance_threshold:
            if abs(exposure) <= cap:
                return 0.0
            self.row["overlay"] = bit
        quantity = -self.held if wish == 0 else lots(wish * self.now / mark_before - self.held, lot)
        volume = lots(self.config.max_participation * bar.volume, lot)
        size = min(abs(quantity), self.contract.max_quantity, volume)
        quantity = math.copysign(size, quantity)
        if size == 0:
            return 0.0
        is_reducing = self.held * quantity < 0 and size <= abs(self.held)
        if is_reducing:
            return quantity
        quantity = self.affordable(quantity, bar)
        if self.held * quantity < 0 and abs(quantity) <= abs(self.held):
            return quantity
        if abs(quantity) < self.contract.min_quantity:
            return 0.0
        return quantity if abs(quantity) * bar.last_open >= self.contract.min_notional else 0.0

    def affordable(self, quantity: float, bar: Bar) -> float:
        """What remains after closing must carry the initial margin, fee and open loss of what is opened."""
        side, held = math.copysign(1.0, quantity), self.held
        _, price = self.prices(quantity, bar.last_open, bar)
        closing = abs(held) if held * quantity < 0 else 0.0
        fee = max(self.fee_rate, 0.0) * price
        if self.is_isolated:
            # closing realises; keeping leaves the isolated margin where it is
            budget = self.wallet - (0.0 if closing else self.margin)
            budget += (math.copysign(closing, held) * (price - self.entry)) if closing else 0.0
        else:
            budget = self.wallet + held * (bar.mark_open - self.entry)
            if closing:
                budget += math.copysign(closing, held) * (price - bar.mark_open)
            else:
                budget -= abs(held) * price / self.config.leverage
        budget -= closing * fee
        each = price / self.config.leverage + fee + max(0.0, side * (price - bar.mark_open))
        kept = 0.0 if closing else abs(held)
        opened = min(max(budget, 0.0) / each, max(self.largest_notional / price - kept, 0.0))
        if abs(quantity) - closing <= opened:
            return quantity
        return lots(side * (closing + opened), self.contract.lot_size)

    # --- one bar ---

    def step(
        self,
        action: Any,
        mark_before: float,
        bar: Bar,
        open_ms: int,
        bar_ms: int,
        stamps: list[tuple[int, float]],
    ) -> tuple[float, bool]:
        self.row = dict.fromkeys(LEDGER_COLUMNS, 0.0) | {"position": 0.0}
        self.row["equity_before"] = self.now
        quantity = self.order(action, mark_before, bar)
        self.row["price_pnl"] = self.held * (bar.mark_close - mark_before)
        if self.is_liquidated(bar.mark_open):
            self.liquidate(bar.mark_open, bar)
        elif quantity != 0:
            self.row["fill_price"] = self.market(quantity, bar.last_open, bar)
        close_ms = open_ms + bar_ms
        inside = [(t, r) for t, r in stamps if t < close_ms]
        if self.held != 0:
            self.live_through(bar, open_ms, bar_ms, inside)
        for time_ms, rate in stamps:
            if time_ms >= close_ms and self.held != 0:
                self.settle(bar.mark_close, rate)
        if self.is_liquidated(bar.mark_close):
            self.liquidate(bar.mark_close, bar)
        return self.close(bar, open_ms // DAY_MS != close_ms // DAY_MS)

    def live_through(self, bar: Bar, open_ms: int, bar_ms: int, inside: list[tuple[int, float]]) -> None:
        side = math.copysign(1.0, self.held)
        if self.is_liquidated(bar.mark_open):
            return self.liquidate(bar.mark_open, bar)
        opening = bar.mark_open if self.config.stop_trigger == "mark" else bar.last_open
        if self.stop is not None and bar.volume > 0 and side * opening <= side * self.stop:
            self.market(-self.held, bar.last_open, bar)
            self.row["stopped"] = 1
            return None
        sign = side * self.config.funding_multiplier
        for pays in (True, False):
            for time_ms, rate in inside:
                # paid before the adverse extreme, received after it by who is still there
                if self.held != 0 and ((sign * rate > 0) if pays else (sign * rate < 0)):
                    mark = bar.mark_open + (bar.mark_close - bar.mark_open) * (time_ms - open_ms) / bar_ms
                    self.settle(mark, rate)
                    if pays and self.is_liquidated(mark):
                        return self.liquidate(mark, bar)
            if pays:
                self.extremes(bar, side)
        return None

    def extremes(self, bar: Bar, side: float) -> None:
        def ends(low: float, high: float) -> tuple[float, float]:
            return (low, high) if side > 0 else (high, low)

        mark_worst, mark_best = ends(bar.mark_low, bar.mark_high)
        last_worst, last_best = ends(bar.last_low, bar.last_high)
        on_mark = self.config.stop_trigger == "mark"
        trigger = (mark_worst, mark_best) if on_mark else (last_worst, last_best)
        candidates: list[tuple[float, str]] = []
        if bar.volume > 0 and self.stop is not None and side * trigger[0] <= side * self.stop:
            candidates.append((self.stop, "stop"))
        if self.is_liquidated(mark_worst):
            candidates.append((self.liquidation_price(mark_worst), "liquidation"))
        if candidates:
            # the nearer one comes first, a stop on a tie
            price, what = max(candidates, key=lambda c: (side * c[0], c[1] == "stop"))
            if what == "liquidation":
                return self.liquidate(price, bar)
            if on_mark:
                price = side * min(side * price, side * price * bar.last_open / bar.mark_open)
                price = float(np.clip(price, bar.last_low, bar.last_high))
            self.market(-self.held, price, bar)
            self.row["stopped"] = 1
        elif (
            bar.volume > 0
            and self.target is not None
            and side * self.target <= min(side * trigger[1], side * last_best)
        ):
            price, quantity = self.target, -self.held
            self.execute(quantity, price, self.fee_rate)
            self.note(quantity, price, price, price, bar)
            self.row["stopped"] = 1
        return None

    def close(self, bar: Bar, is_midnight: bool) -> tuple[float, bool]:
        before = self.now
        if self.held == 0 and self.cash < 0:
            self.row["insurance"] -= self.cash
            self.cash = 0.0
        self.now = self.cash + self.held * bar.mark_close
        self.peak = max(self.peak, self.now)
        self.day_low = min(self.day_low, self.now)
        if is_midnight:
            self.day_open = self.day_low = self.now
        drawdown = 1 - self.now / self.peak
        ratio = self.now / before
        floor = self.config.reward_equity_floor
        self.row["equity"], self.row["position"], self.row["drawdown"] = self.now, self.held, drawdown
        self.row["exposure"] = self.held * bar.mark_close / self.now if self.now > 0 else 0.0
        self.row["gross_exposure"] = abs(self.row["exposure"])
        self.row["reward_floored"] = float(ratio < floor)
        is_over = drawdown >= self.config.max_drawdown or self.now <= 0
        is_over |= self.row["liquidated"] == 1 and not self.is_isolated
        growth = math.log(max(ratio, floor))
        worth = growth - (self.config.reward_risk_aversion - 1) * growth**2 / 2
        return self.config.reward_scale * worth, is_over


class Pair:
    """The kernel's account and the reference's, side by side through the same bars."""

    def __init__(self, contract: Contract, config: EnvConfig, limits: RiskLimits) -> None:
        self.reference = Reference(contract, config, limits, config.initial_wallet)
        self.contracts, self.brackets = pack_contracts((contract,), config)
        self.rules = make_account_rules(config, limits)
        self.account, self.scratch = make_account(1), make_account(1)
        self.wallet, self.positions = self.account.wallet, self.account.positions
        self.position = self.positions[0]
        open_account(self.wallet, self.positions, config.initial_wallet)

    def step(
        self,
        action: Any,
        mark_before: float,
        bar: Bar,
        stamps: list[tuple[int, float]],
        *,
        open_ms: int = 0,
        bar_ms: int = HOUR_MS,
    ) -> tuple[dict[str, float], bool]:
        """Both through the same bar; fails where they differ. Returns the ledger and whether it ended."""
        action = np.atleast_1d(np.asarray(action, np.float32))
        market = one_bar_market(
            mark_before=np.array([mark_before]),
            last=np.array([bar[:4]]),
            mark=np.array([bar[4:8]]),
            volume=np.array([bar.volume]),
            sigma_per_bar=np.array([bar.sigma_per_bar]),
            open_ms=open_ms,
            bar_ms=bar_ms,
            stamps=[stamps],
        )
        world = World(market, self.contracts, self.brackets, self.rules)
        reward, is_over = step_account(self.account, world, action, 1, False, self.scratch)
        theirs = self.reference.step(action, mark_before, bar, open_ms, bar_ms, stamps)
        row = dict(zip(LEDGER_COLUMNS, self.account.ledger.tolist(), strict=True))
        row |= dict(zip(CONTRACT_LEDGER_COLUMNS, self.account.holdings[0].tolist(), strict=True))
        self._compare(row, bar)
        assert (reward, is_over) == (pytest.approx(theirs[0], rel=1e-7, abs=1e-9), theirs[1])
        return row, bool(is_over)

    def _compare(self, row: dict[str, float], bar: Bar) -> None:
        account = self.reference
        turnover = account.row["traded_notional"] + abs(account.held) * bar.mark_close
        money = 1e-9 * max(account.config.initial_wallet, turnover, 1.0)
        assert (
            row["profit"]
            == pytest.approx(
                row["price_pnl"]
                + row["funding"]
                - row["fees"]
                - row["clearance"]
                - row["spread"]
                - row["impact"],
                abs=account.config.initial_wallet * 1e-6,
            )
            or row["insurance"] > 0
        )
        for name, value in account.row.items():
            if name in ("fill_price", "exposure", "gross_exposure", "drawdown"):
                tolerance = {"rel": 1e-7, "abs": 1e-9}
            else:
                tolerance = {"rel": 1e-9, "abs": money}
            assert row[name] == pytest.approx(value, **tolerance), name
        mine = [self.wallet[WALLET], self.wallet[EQUITY], self.position[ISOLATED_WALLET]]
        assert mine == pytest.approx([account.wallet, account.now, account.margin], rel=1e-9, abs=money)
        assert self.position[QUANTITY] == pytest.approx(account.held, rel=1e-12, abs=0.0)
        if account.held != 0:
            assert self.position[ENTRY_PRICE] == pytest.approx(account.entry, rel=1e-9)
            for column, price in ((STOP_PRICE, account.stop), (TARGET_PRICE, account.target)):
                want = math.nan if price is None else price
                assert self.position[column] == pytest.approx(want, rel=1e-12, nan_ok=True)


@pytest.fixture(scope="session")
def pair_type() -> type[Pair]:
    """The class; files of tests cannot import one another."""
    return Pair
