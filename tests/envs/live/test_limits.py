"""A wish becomes orders on the exchange's grid that never turn a position by accident."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpgym.data.contract import Contract
from perpgym.envs.live.limits import DeskLimits, pieces
from perpgym.envs.live.rounding import digits, nearest_on_grid, on_grid, order_sizes
from perpgym.envs.live.wishes import Wish

CONTRACT = Contract(symbol="TEST/USDT:USDT", lot_size=0.001, min_quantity=0.002, max_quantity=1.5)
LOTS = st.integers(-9_000, 9_000)


def lots(value: float) -> int:
    """Whole lots; fails off the grid."""
    count = value / CONTRACT.lot_size
    assert abs(count - round(count)) < 1e-6
    return round(count)


@given(st.floats(-50.0, 50.0))
def test_orders_are_on_the_grid_and_add_up_to_the_wish(quantity: float) -> None:
    sizes = order_sizes(CONTRACT, quantity)
    total = sum(lots(size) for size in sizes)
    assert all(0.0 < abs(size) <= CONTRACT.max_quantity for size in sizes)
    assert all(math.copysign(1.0, size) == math.copysign(1.0, quantity) for size in sizes)
    if sizes:
        # towards zero, but for the noise of floats
        assert 0.0 <= abs(quantity) - abs(total) * 0.001 + 1e-9 < 0.001 + 2e-9
    else:
        assert abs(quantity) < CONTRACT.min_quantity


@given(LOTS, LOTS.filter(bool), st.booleans(), st.booleans())
def test_exits_never_turn_a_position(held: int, wanted: int, only: bool, may: bool) -> None:
    wish = Wish(contract=CONTRACT.symbol, quantity=wanted * 0.001, reduce_only=only)
    found = pieces(wish, held * 0.001, CONTRACT, may_increase=may)
    change = sum(lots(piece.quantity) for piece in found)
    exits = sum(lots(piece.quantity) for piece in found if piece.reduce_only)
    assert abs(held + exits) <= abs(held)
    assert (held + exits) * held >= 0
    if only or not may:
        assert change == exits
    elif abs(wanted) >= 2:
        assert change == wanted


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [(0.3 - 1e-17, 0.001, "0.3"), (0.1 + 0.2, 0.1, "0.3"), (0.0129, 0.001, "0.012"), (7.0, 1e-05, "7")],
)
def test_quantities_lose_the_noise_of_floats_and_no_lot(value: float, step: float, text: str) -> None:
    assert digits(on_grid(value, step)) == text
    assert digits(-on_grid(-value, step)) == text


def test_prices_go_to_the_nearest_tick() -> None:
    assert digits(nearest_on_grid(30_000.07, 0.1)) == "30000.1"
    assert digits(nearest_on_grid(1e-7, 1e-8)) == "0.0000001"


def test_impossible_wishes_and_limits_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="finite quantity other than 0"):
        Wish(contract="X", quantity=math.nan)
    with pytest.raises(ValueError, match="a limit wish must have a positive limit_price"):
        Wish(contract="X", quantity=1.0, style="limit")
    with pytest.raises(ValueError, match="max_exposure must be positive, was 0"):
        DeskLimits(max_exposure=0.0)
    with pytest.raises(ValueError, match="a twap wish must have an end_ms"):
        Wish(contract="X", quantity=1.0, style="twap")
    with pytest.raises(ValueError, match="an iceberg wish must have a positive clip"):
        Wish(contract="X", quantity=1.0, style="iceberg", limit_price=1.0, end_ms=1)
