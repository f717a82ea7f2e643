"""Small markets, some orders, the account after every step: money arithmetic that can be checked by hand.

``python -m perpgym.envs.ledger FILE.json [FILE.json …]`` replays scenarios through the kernel that trades and
prints one JSON object a step; ``docs/ledger.md`` describes the format. Here is only the order of a step at a
bar's open and the writing: every formula is the kernel's.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perpgym.data.bars import CLOSE, OPEN
from perpgym.envs.account import (
    ENTRY_PRICE,
    ISOLATED_WALLET,
    QUANTITY,
    STOP_PRICE,
    TARGET_PRICE,
    WALLET,
    free_wallet,
    notional,
    open_account,
    position_excess,
    unrealised_profit,
)
from perpgym.envs.arrays import Account, ContractRules, World
from perpgym.envs.buffers import make_account
from perpgym.envs.fills import (
    FILL_ASSET,
    FILL_FEE,
    FILL_PRICE,
    FILL_QUANTITY,
    FILL_REALISED,
    FILL_REASON,
    LIQUIDATION,
    ORDER,
    STOP,
    TARGET,
    settle_funding,
    take_at,
)
from perpgym.envs.insolvency import forgive_debt
from perpgym.envs.kernel import inside_bar
from perpgym.envs.ledger_format import Order, Scenario, Step, read_scenario
from perpgym.envs.liquidation import STRAIGHT, liquidate_if_short
from perpgym.envs.margin import liquidation_price, maintenance_margin
from perpgym.envs.rules import one_bar_market
from perpgym.envs.spaces import LEDGER

_REASONS = {ORDER: "order", STOP: "stop_loss", TARGET: "take_profit", LIQUIDATION: "liquidation"}
# of one contract in a step: an order, a stop or target, and a reduction from each bracket that a bar crosses;
# a short whose bar climbs along a bracket's floor is reduced several times there
_MOST_FILLS = 256
# the one bar of a step, behind a bar of which nothing is used
_NOW, _BAR_MS = 1, 3_600_000


class Ledger:
    """One account replaying one scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.symbols = list(scenario.contracts)
        count = len(self.symbols)
        self.account, self.scratch = (make_account(count, count * _MOST_FILLS) for _ in range(2))
        self.contracts = np.array([scenario.contracts[s].rules for s in self.symbols], dtype=np.float64)
        self.sizes = np.array([scenario.contracts[s].contract_size for s in self.symbols])
        self.world = World(None, self.contracts, scenario.bracket_array(), scenario.rules)  # type: ignore[arg-type]
        open_account(self.account.wallet, self.account.positions, scenario.wallet)

    def steps(self) -> Iterator[dict[str, Any]]:
        """Book every step in turn and show the account after it."""
        for number, step in enumerate(self.scenario.steps):
            yield {"scenario": self.scenario.name, "step": number, **self._book(step)}

    def _book(self, step: Step) -> dict[str, Any]:
        last = np.array([step.bars[s].last for s in self.symbols])
        mark = np.array([step.bars[s].mark for s in self.symbols])
        volume = np.full(len(self.symbols), 1e12)
        market = one_bar_market(
            mark_before=mark[:, OPEN], last=last, mark=mark, volume=volume,
            sigma_per_bar=np.zeros_like(volume), bar_ms=_BAR_MS,
        )  # fmt: skip
        world = self.world._replace(market=market)
        self.account.ledger[:], self.account.holdings[:], self.account.fills[:] = 0.0, 0.0, 0.0
        for symbol, rate in step.funding.items():
            asset = self.symbols.index(symbol)
            held_then = self.account.positions[asset, QUANTITY]
            settle_funding(self.account, asset, held_then, mark[asset, OPEN], rate, self._contract(asset))
        held = self.account.positions[:, QUANTITY].copy()
        liquidate_if_short(self.account, world, _NOW, _NOW, STRAIGHT, 0, 0.0)
        refused = [s for s, leverage in step.leverage.items() if not self._set_leverage(s, leverage)]
        forgiven = 0.0
        for symbol, order in step.orders.items():
            asset = self.symbols.index(symbol)
            # a position that has just been liquidated takes its order with it
            if self.account.positions[asset, QUANTITY] == held[asset]:
                self._order(asset, order, last[asset, OPEN], mark[asset, CLOSE])
                forgiven += forgive_debt(self.account, world)
        inside_bar(self.account, world, _NOW, _NOW, 0, self.scratch)
        liquidate_if_short(self.account, world, _NOW, _NOW, STRAIGHT, 0, 1.0)
        forgiven += forgive_debt(self.account, world)
        return self._show(mark[:, CLOSE], forgiven) | ({"refused_leverage": refused} if refused else {})

    def _contract(self, asset: int) -> ContractRules:
        return ContractRules(*self.contracts[asset])

    def _set_leverage(self, symbol: str, leverage: float) -> bool:
        """Whether the exchange accepts it: an open isolated position's leverage can only rise."""
        asset = self.symbols.index(symbol)
        contract = self._contract(asset)
        is_open = self.account.positions[asset, QUANTITY] != 0.0
        if contract.is_isolated > 0.0 and is_open and leverage < contract.leverage:
            return False
        self.contracts[asset] = contract._replace(leverage=leverage)
        return True

    def _order(self, asset: int, order: Order, last_open: float, mark_close: float) -> None:
        position = self.account.positions[asset]
        size = self.sizes[asset]
        delta = 0.0
        if order.target is not None:
            delta = order.target * size - position[QUANTITY]
        elif order.delta is not None:
            delta = order.delta * size
        contract, rules = self._contract(asset), self.world.rules
        if delta != 0.0:
            price = order.price or last_open * (1.0 + math.copysign(self.scenario.half_spread, delta))
            rate = contract.maker_rate if order.is_maker else contract.taker_rate
            take_at(self.account, asset, delta, price, rate, mark_close, ORDER, contract, rules)
        if position[QUANTITY] != 0.0:
            if contract.is_isolated > 0.0:
                # no order is refused here for want of margin: it posts what there is
                free = free_wallet(self.account.wallet, self.account.positions)
                position[ISOLATED_WALLET] += min(free, 0.0)
            if order.stop_loss is not None:
                position[STOP_PRICE] = order.stop_loss
            if order.take_profit is not None:
                position[TARGET_PRICE] = order.take_profit

    def _show(self, marks: np.ndarray, forgiven: float) -> dict[str, Any]:
        account, ledger = self.account, self.account.ledger
        count = int(ledger[LEDGER["fills"]])
        if count > len(account.fills):
            raise ValueError(f"a step had {count} fills, more than the {len(account.fills)} that are kept")
        fills = account.fills[:count]
        is_forced = fills[:, FILL_REASON] == LIQUIDATION
        symbols = {s: self._show_symbol(i, marks) for i, s in enumerate(self.symbols)}
        unrealised = sum(row["unrealised"] for row in symbols.values())
        wallet = float(account.wallet[WALLET])
        forced = fills[is_forced]
        return {
            "wallet": wallet,
            "unrealised": unrealised,
            "equity": wallet + unrealised,
            "fee": float(ledger[LEDGER["fees"]]),
            "funding": float(ledger[LEDGER["funding"]]),
            # what the price took beyond all there was, others bore
            "realised": float(fills[~is_forced, FILL_REALISED].sum()) + forgiven,
            "liquidated": list(dict.fromkeys(self.symbols[int(row[FILL_ASSET])] for row in forced)),
            "liquidation_loss": float((forced[:, FILL_FEE] - forced[:, FILL_REALISED]).sum()),
            "insurance": max(float(ledger[LEDGER["insurance"]]), 0.0),
            "fills": [
                {
                    "symbol": self.symbols[int(row[FILL_ASSET])],
                    "qty": float(row[FILL_QUANTITY] / self.sizes[int(row[FILL_ASSET])]),
                    "price": float(row[FILL_PRICE]),
                    "reason": _REASONS[int(row[FILL_REASON])],
                }
                for row in fills
            ],
            "symbols": symbols,
        }

    def _show_symbol(self, asset: int, marks: np.ndarray) -> dict[str, Any]:
        contract, position = self._contract(asset), self.account.positions[asset]
        brackets, mark = self.world.brackets[asset], marks[asset]
        size = notional(position[QUANTITY], mark, contract.is_inverse)
        price = liquidation_price(
            balance_behind(self.account, self.world, asset, marks),
            position[QUANTITY], position[ENTRY_PRICE], brackets, contract.is_inverse,
        )  # fmt: skip
        return {
            "position": float(position[QUANTITY] / self.sizes[asset]),
            "entry_price": float(position[ENTRY_PRICE]),
            "unrealised": float(unrealised_profit(position, mark, contract.is_inverse)),
            "notional": float(size),
            "maintenance_margin": float(maintenance_margin(size, brackets)),
            "liquidation_price": float(price) if math.isfinite(price) and price > 0.0 else None,
            "isolated_wallet": float(position[ISOLATED_WALLET]),
        }


def balance_behind(account: Account, world: World, asset: int, marks: np.ndarray) -> float:
    """What stands behind a position: its isolated wallet, or the free wallet and the other cross positions.

    Args:
        account: ``Account``.
        world: ``World``.
        asset: index of the contract.
        marks: (A,) quote, mark prices of the moment.

    Returns:
        settle currency; what the other cross positions gain is in it, their maintenance margin is not.
    """
    positions = account.positions
    if ContractRules(*world.contracts[asset]).is_isolated > 0.0:
        return float(positions[asset, ISOLATED_WALLET])
    balance = float(account.wallet[WALLET] - positions[:, ISOLATED_WALLET].sum())
    for other in range(len(positions)):
        contract = ContractRules(*world.contracts[other])
        if other != asset and contract.is_isolated == 0.0:
            balance += position_excess(
                positions[other], marks[other], world.brackets[other], contract.is_inverse
            )
    return balance


def replay(path: Path) -> Iterator[dict[str, Any]]:
    """The account after every step of a scenario file.

    Raises:
        ValueError: the file is no scenario; says what is wrong with which part.
        OSError: it cannot be read.
    """
    yield from Ledger(read_scenario(path)).steps()


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay every file named; 1 if one of them could not be read."""
    paths = sys.argv[1:] if arguments is None else list(arguments)
    if not paths or paths[0] in ("-h", "--help"):
        print("usage: python -m perpgym.envs.ledger FILE.json [FILE.json …]", file=sys.stderr)
        print("prints the account after every step, one JSON object a line", file=sys.stderr)
        return 0 if paths else 2
    failed = 0
    for path in map(Path, paths):
        try:
            for row in replay(path):
                # inf and nan are no JSON: a scenario that leads there says so
                print(json.dumps(row, allow_nan=False))
        except (ValueError, OSError) as error:
            print(json.dumps({"scenario": path.stem, "error": str(error)}))
            failed = 1
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
