"""Why an order was cut or dropped, in words: the bits of the contract ledger's ``reason``."""

from __future__ import annotations

from perpgym.envs.orders import (
    BRACKET,
    MARGIN,
    MAX_QUANTITY,
    NO_MARKET,
    NOT_REACHED,
    PARTICIPATION,
    TOO_SMALL,
    WOULD_CROSS,
)

REASONS: dict[int, str] = {
    MAX_QUANTITY: "max_quantity: the contract's largest order",
    PARTICIPATION: "max_participation: share of the bar's volume",
    MARGIN: "initial margin: notional / leverage, the fee and the loss to the mark were not there",
    BRACKET: "bracket: the largest position that admits the leverage setting",
    TOO_SMALL: "min_quantity or min_notional: smaller than the contract's smallest order",
    NO_MARKET: "no market: the bar has no volume",
    WOULD_CROSS: "post-only: it would have taken when it arrived",
    NOT_REACHED: "limit price: not traded through",
}


def reasons(code: float) -> tuple[str, ...]:
    """The rules that cut or dropped an order, each named first.

    Args:
        code: bits, the column ``reason`` of the contract ledger, e.g.
            ``info["contracts"][0, CONTRACT_LEDGER["reason"]]``; 0 for an order that stood.

    Raises:
        ValueError: no reason has one of these bits.
    """
    bits = int(code)
    if bits != code or bits & ~sum(REASONS) or bits < 0:
        raise ValueError(
            f"a reason is a sum of the bits {', '.join(map(str, REASONS))}, was {code}; read it from "
            "the contract ledger's column reason"
        )
    return tuple(words for bit, words in REASONS.items() if bits & bit)
