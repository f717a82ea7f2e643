"""A perpetual contract: the exchange's rules for one symbol, in the units of the kernel."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from perpgym.data.checks import check_number, is_on_grid

HOUR_MS = 3_600_000

# columns of Contract.bracket_table()
BRACKET_FLOOR, BRACKET_CAP, BRACKET_MMR, BRACKET_CUM, BRACKET_MAX_LEVERAGE = range(5)
# fraction of a bracket's floor by which an exchange may round its cum
_CUM_ROUNDING = 1e-5


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """One row of the exchange's leverage table.

    Attributes:
        floor: quote, notional from which the bracket applies (inclusive).
        cap: quote, notional up to which it applies; ``inf`` for the last one.
        maintenance_margin_rate: fraction of notional.
        cum: quote, the amount that makes maintenance margin continuous across brackets:
            cum_n = floor_n * (mmr_n - mmr_{n-1}) + cum_{n-1}, cum_1 = 0 (Binance USD-M, "Leverage and
            Margin"). Anything else would liquidate a position because its profit grew.
        max_leverage: largest leverage setting the exchange admits in this bracket.
    """

    floor: float
    cap: float
    maintenance_margin_rate: float
    cum: float
    max_leverage: float


@dataclass(frozen=True, kw_only=True)
class Contract:
    """The rules of one perpetual contract.

    Money in quote currency, sizes in base units, every rate a fraction.

    Attributes:
        symbol: ccxt's unified symbol, e.g. ``BTC/USDT:USDT``.
        kind: ``linear`` (margin and profit in quote) or ``inverse``.
        contract_size: base units per contract (linear), quote units per contract (inverse).
        tick_size: quote, price increment.
        lot_size: base, quantity increment.
        min_quantity, max_quantity: base, of one order; the largest is a whole number of lots, or ``inf``.
        min_notional: quote, of one order that opens or increases.
        maker_rate, taker_rate: fraction of a fill's notional; negative is a rebate, which the taker's rate
            covers.
        clearance_rate: fraction of liquidated notional taken by the insurance fund.
        funding_interval_ms: usual time between settlements; the data's stamps are what counts.
        funding_cap: largest absolute rate per settlement.
        brackets: ascending, contiguous, the first floor 0; their rates never fall and their leverage limits
            never rise; a position at the largest leverage can bear its maintenance margin.

    Raises:
        ValueError: a rule is impossible; names the field, or the bracket by its number.
    """

    symbol: str
    kind: Literal["linear", "inverse"] = "linear"
    contract_size: float = 1.0
    tick_size: float = 0.01
    lot_size: float = 0.001
    min_quantity: float = 0.001
    max_quantity: float = 1e9
    min_notional: float = 5.0
    maker_rate: float = 0.0002
    taker_rate: float = 0.0004
    clearance_rate: float = 0.0
    funding_interval_ms: int = 8 * HOUR_MS
    funding_cap: float = 0.03
    brackets: tuple[Bracket, ...] = field(
        default=(
            Bracket(floor=0.0, cap=float("inf"), maintenance_margin_rate=0.005, cum=0.0, max_leverage=100.0),
        )
    )

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "inverse"):
            raise ValueError(f"{self.symbol}: kind must be linear or inverse, was {self.kind!r}")
        for name in _NUMBERS:
            check_number(f"{self.symbol}: {name}", getattr(self, name))
        for name in ("contract_size", "tick_size", "lot_size", "min_quantity"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{self.symbol}: {name} must be positive and finite, was {value}")
        if not self.max_quantity >= self.min_quantity:
            raise ValueError(
                f"{self.symbol}: max_quantity must be at least min_quantity, {self.min_quantity} (base), was "
                f"{self.max_quantity}"
            )
        if not is_on_grid(self.max_quantity, self.lot_size):
            least = math.floor(self.max_quantity / self.lot_size) * self.lot_size
            raise ValueError(
                f"{self.symbol}: max_quantity must be a whole number of lots of {self.lot_size:g} (base), "
                f"was {self.max_quantity:.15g}; the largest order is then {least:.15g}"
            )
        if not 0 <= self.min_notional < math.inf:
            raise ValueError(
                f"{self.symbol}: min_notional must be finite and not negative (quote), "
                f"was {self.min_notional}"
            )
        if not 0 <= self.clearance_rate < 1:
            raise ValueError(
                f"{self.symbol}: clearance_rate must lie between 0 and 1 (a fraction of notional), "
                f"was {self.clearance_rate}"
            )
        for name in ("funding_interval_ms", "funding_cap"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{self.symbol}: {name} must be positive and finite, was {value}")
        for name in ("maker_rate", "taker_rate"):
            value = getattr(self, name)
            if not -0.01 <= value <= 0.01:
                raise ValueError(
                    f"{self.symbol}: {name} must lie between -0.01 and 0.01 (a fraction of notional), "
                    f"was {value}; if you meant {value:g} bp, write {value / 1e4:g}"
                )
        if min(self.maker_rate, 0.0) + self.taker_rate < 0.0:
            raise ValueError(
                f"{self.symbol}: taker_rate must be at least the maker's rebate, was {self.taker_rate:g} "
                f"with a maker_rate of {self.maker_rate:g}: no exchange pays for trading in circles"
            )
        _check_brackets(self.symbol, self.brackets)

    def bracket_table(self) -> NDArray[np.float64]:
        """(B, 5) float64: floor, cap, maintenance margin rate, cum, maximum leverage."""
        return np.array(
            [[b.floor, b.cap, b.maintenance_margin_rate, b.cum, b.max_leverage] for b in self.brackets],
            dtype=np.float64,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; the last bracket's cap is ``null``."""
        out = asdict(self)
        for row in out["brackets"]:
            row["cap"] = None if row["cap"] == float("inf") else row["cap"]
        out["brackets"] = list(out["brackets"])
        return out

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Contract:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: a field is unknown or a value impossible.
        """
        raw = dict(raw)
        unknown = set(raw) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(
                f"contract {raw.get('symbol')}: unknown fields {sorted(unknown)}; "
                f"known are {sorted(cls.__dataclass_fields__)}"
            )
        raw["brackets"] = tuple(
            Bracket(**{**row, "cap": float("inf") if row["cap"] is None else row["cap"]})
            for row in raw["brackets"]
        )
        return cls(**raw)


# the fields of a contract and of a bracket that are numbers
_NUMBERS = (
    "contract_size", "tick_size", "lot_size", "min_quantity", "max_quantity", "min_notional", "maker_rate",
    "taker_rate", "clearance_rate", "funding_interval_ms", "funding_cap",
)  # fmt: skip
_BRACKET_NUMBERS = ("floor", "cap", "maintenance_margin_rate", "cum", "max_leverage")


def _check_brackets(symbol: str, brackets: tuple[Bracket, ...]) -> None:
    for number, bracket in enumerate(brackets, start=1):
        for name in _BRACKET_NUMBERS:
            check_number(f"{symbol}: {name} of bracket {number}", getattr(bracket, name))
    if not brackets or brackets[0].floor != 0:
        raise ValueError(f"{symbol}: brackets must start at a notional of 0")
    for number, bracket in enumerate(brackets, start=1):
        title = f"{symbol}: bracket {number}, from {bracket.floor:g},"
        if not bracket.floor < bracket.cap:
            raise ValueError(f"{title} must end above its floor, ended at {bracket.cap:g}")
        if not 0 <= bracket.maintenance_margin_rate < 1:
            raise ValueError(
                f"{title} must have a maintenance_margin_rate between 0 and 1 (a fraction of notional), was "
                f"{bracket.maintenance_margin_rate:g}"
            )
        if not 0 <= bracket.cum < math.inf:
            raise ValueError(
                f"{title} must have a cum that is finite and not negative (quote), was {bracket.cum:g}"
            )
        if not 1 <= bracket.max_leverage < math.inf:
            raise ValueError(f"{title} must admit a leverage of at least 1, was {bracket.max_leverage:g}")
        if bracket.maintenance_margin_rate * bracket.max_leverage > 1.0 + 1e-9:
            raise ValueError(
                f"{title} must have a maintenance_margin_rate of at most 1 / max_leverage = "
                f"{1.0 / bracket.max_leverage:g}, was {bracket.maintenance_margin_rate:g}: a position opened "
                "at that leverage would be liquidated at once"
            )
    for number, (below, above) in enumerate(pairwise(brackets), start=2):
        if below.cap != above.floor:
            fault = "overlap" if below.cap > above.floor else "leave a gap"
            raise ValueError(
                f"{symbol}: brackets must be contiguous, but {number - 1} ends at {below.cap:g} and {number} "
                f"starts at {above.floor:g}: they {fault}"
            )
        if above.maintenance_margin_rate < below.maintenance_margin_rate:
            raise ValueError(
                f"{symbol}: maintenance_margin_rate must not fall with the notional, but bracket {number} "
                f"has {above.maintenance_margin_rate:g} after {below.maintenance_margin_rate:g}"
            )
        if above.max_leverage > below.max_leverage:
            raise ValueError(
                f"{symbol}: max_leverage must not rise with the notional, but bracket {number} admits "
                f"{above.max_leverage:g} after {below.max_leverage:g}"
            )
    _check_cum(symbol, brackets)


def _check_cum(symbol: str, brackets: tuple[Bracket, ...]) -> None:
    if brackets[0].cum != 0.0:
        raise ValueError(f"{symbol}: bracket 1 must have a cum of 0 (quote), was {brackets[0].cum:g}")
    for number, (below, above) in enumerate(pairwise(brackets), start=2):
        step = above.floor * (above.maintenance_margin_rate - below.maintenance_margin_rate)
        if abs(above.cum - below.cum - step) > _CUM_ROUNDING * above.floor:
            raise ValueError(
                f"{symbol}: maintenance margin must not jump from one bracket to the next: cum of bracket "
                f"{number} must be floor * (its rate - the rate below) + the cum below = "
                f"{below.cum + step:g} (quote), was {above.cum:g}"
            )


@cache
def _shipped() -> dict[str, Contract]:
    text = (resources.files("perpgym.data") / "contracts" / "binance.json").read_text("utf-8")
    return {row["symbol"]: Contract.from_json(row) for row in json.loads(text)["contracts"]}


def shipped_contracts() -> tuple[str, ...]:
    """The symbols whose rules ship with the package."""
    return tuple(sorted(_shipped()))


def load_contract(symbol: str) -> Contract:
    """The shipped snapshot of a contract's rules.

    Args:
        symbol: ccxt's unified symbol, e.g. ``BTC/USDT:USDT``.

    Raises:
        KeyError: no snapshot ships for the symbol.
    """
    try:
        return _shipped()[symbol]
    except KeyError:
        raise KeyError(
            f"no contract rules ship for {symbol!r}; shipped are {', '.join(shipped_contracts())}. "
            "Pass a perpgym.data.Contract of your own instead of the symbol"
        ) from None
