"""Reading a ledger scenario: plain data with checks, so that nothing is booked from a file that is wrong."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perpgym.data.contract import Bracket, Contract
from perpgym.envs.arrays import AccountRules, ContractRules

Prices = tuple[float, float, float, float]

_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, kw_only=True)
class ScenarioContract:
    """One contract: the kernel's rules, brackets, and base or (inverse) quote units of a contract."""

    rules: ContractRules
    brackets: NDArray[np.float64]
    contract_size: float


@dataclass(frozen=True, kw_only=True)
class Candle:
    """Open, high, low and close of the last price and of the mark."""

    last: Prices
    mark: Prices


@dataclass(frozen=True, kw_only=True)
class Order:
    """A change of position, and stops that are kept until changed or flat; quantities in contracts."""

    target: float | None
    delta: float | None
    stop_loss: float | None
    take_profit: float | None
    price: float | None
    is_maker: bool


@dataclass(frozen=True, kw_only=True)
class Step:
    """One bar of every contract and what is done at its open."""

    bars: Mapping[str, Candle]
    funding: Mapping[str, float]
    leverage: Mapping[str, float]
    orders: Mapping[str, Order]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A whole file."""

    name: str
    contracts: Mapping[str, ScenarioContract]
    wallet: float
    rules: AccountRules
    half_spread: float
    steps: tuple[Step, ...]

    def bracket_array(self) -> NDArray[np.float64]:
        """(A, B, 5), short tables filled up with their last row."""
        tables = [c.brackets for c in self.contracts.values()]
        rows = max(len(t) for t in tables)
        return np.stack([np.concatenate([t, np.repeat(t[-1:], rows - len(t), axis=0)]) for t in tables])


def read_scenario(path: Path) -> Scenario:
    """Read and check a scenario file.

    Raises:
        ValueError: it is no JSON, a key is missing or unknown, or a value impossible; names the place.
        OSError: it cannot be read.
    """
    try:
        raw = json.loads(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: {error}") from error
    except RecursionError:
        raise ValueError("not a scenario: brackets nested too deeply to be read") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    body = _mapping(
        raw, "the file", {"contracts", "account", "rules", "steps"}, {"contracts", "account", "steps"}
    )
    account = _mapping(
        body["account"], "account", {"wallet", "margin_mode", "leverage"}, {"wallet", "leverage"}
    )
    mode = _choice(account.get("margin_mode", "cross"), "account.margin_mode", ("cross", "isolated"))
    contracts = {
        symbol: _contract(symbol, spec, mode, _leverage(account["leverage"], symbol))
        for symbol, spec in _mapping(body["contracts"], "contracts").items()
    }
    if not contracts:
        raise ValueError("contracts must name at least one contract")
    rules, half_spread = _rules(body.get("rules", {}))
    steps = body["steps"]
    if not isinstance(steps, list):
        raise ValueError("steps must be a list, one entry a bar")
    return Scenario(
        name=path.stem,
        contracts=contracts,
        wallet=_number(account["wallet"], "account.wallet", low=0.0),
        rules=rules,
        half_spread=half_spread,
        steps=tuple(_step(step, f"steps[{i}]", tuple(contracts)) for i, step in enumerate(steps)),
    )


def _contract(symbol: str, raw: Any, margin_mode: str, leverage: float) -> ScenarioContract:
    where = f"contracts.{symbol}"
    known = {"type", "contract_size", "taker", "maker", "clearance_fee", "brackets"}
    spec = _mapping(raw, where, known, {"brackets"})
    kind = _choice(spec.get("type", "linear"), f"{where}.type", ("linear", "inverse"))
    # the brackets' own checks are the contract's
    contract = Contract(symbol=symbol, brackets=_brackets(spec["brackets"], f"{where}.brackets"))
    rules = ContractRules(
        is_inverse=float(kind == "inverse"),
        is_isolated=float(margin_mode == "isolated"),
        tick_size=0.0,
        tick_inverse=0.0,
        lot_size=0.0,
        lot_inverse=0.0,
        min_quantity=0.0,
        max_quantity=math.inf,
        min_notional=0.0,
        # only who waits in the book is paid for trading, and no more than a hundredth
        taker_rate=_number(spec.get("taker", 0), f"{where}.taker", low=0.0, high=1.0),
        maker_rate=_number(spec.get("maker", 0), f"{where}.maker", low=-0.01, high=1.0),
        clearance_rate=_number(spec.get("clearance_fee", 0), f"{where}.clearance_fee", low=0.0, high=1.0),
        leverage=leverage,
        max_position_notional=math.inf,
    )
    size = _number(spec.get("contract_size", 1), f"{where}.contract_size", above=0.0)
    return ScenarioContract(rules=rules, brackets=contract.bracket_table(), contract_size=size)


def _brackets(raw: Any, where: str) -> tuple[Bracket, ...]:
    if not isinstance(raw, list) or not raw:
        raise ValueError(f"{where} must be a list of at least one bracket")
    rows = []
    for i, row in enumerate(raw):
        keys = {"floor", "cap", "mmr", "cum"}
        spec = _mapping(row, f"{where}[{i}]", keys | {"max_leverage"}, {"mmr"})
        cap = spec.get("cap")
        # a bracket's leverage limit is no part of this format: it is checked and left out
        _number(spec.get("max_leverage", 1), f"{where}[{i}].max_leverage", above=0.0)
        rows.append(
            Bracket(
                floor=_number(spec.get("floor", 0), f"{where}[{i}].floor", low=0.0),
                cap=math.inf if cap is None else _number(cap, f"{where}[{i}].cap", above=0.0),
                maintenance_margin_rate=_number(spec["mmr"], f"{where}[{i}].mmr", low=0.0, high=1.0),
                cum=_number(spec.get("cum", 0), f"{where}[{i}].cum"),
                max_leverage=1.0,
            )
        )
    return tuple(rows)


def _leverage(raw: Any, symbol: str) -> float:
    if isinstance(raw, Mapping):
        if symbol not in raw:
            raise ValueError(f"account.leverage has no entry for {symbol}")
        return _number(raw[symbol], f"account.leverage.{symbol}", above=0.0)
    return _number(raw, "account.leverage", above=0.0)


def _rules(raw: Any) -> tuple[AccountRules, float]:
    keys = {"half_spread", "impact", "stop_trigger", "liq_fill", "liquidation"}
    spec = _mapping(raw, "rules", keys)
    if _number(spec.get("impact", 0), "rules.impact") != 0.0:
        raise ValueError("rules.impact must be 0: this format has no impact")
    trigger = _choice(spec.get("stop_trigger", "last"), "rules.stop_trigger", ("last", "mark"))
    fill = _choice(spec.get("liq_fill", "liq_price"), "rules.liq_fill", ("liq_price", "bankruptcy"))
    liquidation = _choice(spec.get("liquidation", "full"), "rules.liquidation", ("full", "brackets"))
    # what the format has not: costs of stops and liquidations, sizing, limits, rewards
    off = dict.fromkeys(AccountRules._fields, 0.0) | {"funding_multiplier": 1.0, "max_bars_held": math.inf}
    rules = AccountRules(
        **off
        | {
            "stop_on_mark": float(trigger == "mark"),
            "liquidates_by_bracket": float(liquidation == "brackets"),
            "liquidates_at_bankruptcy": float(fill == "bankruptcy"),
        }
    )
    return rules, _number(spec.get("half_spread", 0), "rules.half_spread", low=0.0, high=1.0)


def _step(raw: Any, where: str, symbols: tuple[str, ...]) -> Step:
    spec = _mapping(raw, where, {"bars", "funding", "set_leverage", "orders"}, {"bars"})
    bars = _by_symbol(spec["bars"], f"{where}.bars", symbols)
    missing = [s for s in symbols if s not in bars]
    if missing:
        raise ValueError(f"{where}.bars has no bar for {', '.join(missing)}")
    return Step(
        bars={s: _candle(bar, f"{where}.bars.{s}") for s, bar in bars.items()},
        funding={
            s: _number(rate, f"{where}.funding.{s}")
            for s, rate in _by_symbol(spec.get("funding", {}), f"{where}.funding", symbols).items()
        },
        leverage={
            s: _number(value, f"{where}.set_leverage.{s}", above=0.0)
            for s, value in _by_symbol(spec.get("set_leverage", {}), f"{where}.set_leverage", symbols).items()
        },
        orders={
            s: _order(order, f"{where}.orders.{s}")
            for s, order in _by_symbol(spec.get("orders", {}), f"{where}.orders", symbols).items()
        },
    )


def _candle(raw: Any, where: str) -> Candle:
    spec = _mapping(raw, where, {"o", "h", "l", "c", "v", "mark"}, {"o", "h", "l", "c"})
    last = _prices(spec, where)
    mark = spec.get("mark")
    if mark is None:
        return Candle(last=last, mark=last)
    return Candle(
        last=last, mark=_prices(_mapping(mark, f"{where}.mark", set("ohlc"), set("ohlc")), f"{where}.mark")
    )


def _prices(spec: Mapping[str, Any], where: str) -> Prices:
    o, h, low, c = (_number(spec[key], f"{where}.{key}", above=0.0) for key in "ohlc")
    if not low <= min(o, c) <= max(o, c) <= h:
        raise ValueError(f"{where}: low must not exceed open and close, and these not the high")
    return o, h, low, c


def _order(raw: Any, where: str) -> Order:
    keys = {"target", "delta", "stop_loss", "take_profit", "price", "maker"}
    spec = _mapping(raw, where, keys)
    if "target" in spec and "delta" in spec:
        raise ValueError(f"{where} has both target and delta: give one")
    if not isinstance(spec.get("maker", False), bool):
        raise ValueError(f"{where}.maker must be true or false")

    def optional(key: str, **bounds: float) -> float | None:
        return None if spec.get(key) is None else _number(spec[key], f"{where}.{key}", **bounds)

    return Order(
        target=optional("target"),
        delta=optional("delta"),
        stop_loss=optional("stop_loss", above=0.0),
        take_profit=optional("take_profit", above=0.0),
        price=optional("price", above=0.0),
        is_maker=bool(spec.get("maker", False)),
    )


def _mapping(
    raw: Any, where: str, known: set[str] | None = None, needed: set[str] | None = None
) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where} must be an object, was {type(raw).__name__}")
    unknown = set(raw) - known if known is not None else set()
    if unknown:
        raise ValueError(f"{where} has unknown keys {sorted(unknown)}; known are {sorted(known or ())}")
    missing = (needed or set()) - set(raw)
    if missing:
        raise ValueError(f"{where} lacks {sorted(missing)}")
    return raw


def _by_symbol(raw: Any, where: str, symbols: tuple[str, ...]) -> Mapping[str, Any]:
    return _mapping(raw, where, set(symbols))


def _choice(value: Any, where: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{where} must be one of {', '.join(allowed)}, was {value!r}")
    return str(value)


def _number(
    raw: Any, where: str, *, low: float | None = None, above: float | None = None, high: float | None = None
) -> float:
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise ValueError(f"{where} must be a number or a decimal string, was {raw!r}")
    if isinstance(raw, str) and not _DECIMAL.fullmatch(raw):
        raise ValueError(f"{where} must be a number or a decimal string, was {raw!r}")
    try:
        value = float(raw)
    except OverflowError:
        raise ValueError(f"{where} must be below 1.8e308, was a whole number of more digits") from None
    if not math.isfinite(value):
        raise ValueError(f"{where} must be finite, was {raw!r}")
    if (low is not None and value < low) or (above is not None and value <= above):
        bound = f"at least {low:g}" if low is not None else f"more than {above:g}"
        raise ValueError(f"{where} must be {bound}, was {value:g}")
    if high is not None and value > high:
        raise ValueError(f"{where} must be at most {high:g}, was {value:g}")
    return value
