"""What a fill, a settlement and a liquidation move: account, ledger and the contract's own ledger row."""

from __future__ import annotations

from perpgym.envs.account import (
    ACCRUED_FUNDING,
    ENTRY_PRICE,
    ISOLATED_WALLET,
    QUANTITY,
    WALLET,
    apply_fill,
    flatten,
    notional,
    on_lot_grid,
    sizing_base,
)
from perpgym.envs.compile import kernel
from perpgym.envs.execution import square_root_impact
from perpgym.envs.fees import add_traded, maker_rate, taker_rate
from perpgym.envs.impact import leave_push
from perpgym.envs.margin import bankruptcy_worth, price_of, worth
from perpgym.envs.orders import market_fill_price
from perpgym.envs.spaces import CONTRACT_LEDGER, LEDGER

_PRICE_PNL, _FUNDING, _FEES = LEDGER["price_pnl"], LEDGER["funding"], LEDGER["fees"]
_CLEARANCE, _SPREAD, _IMPACT = LEDGER["clearance"], LEDGER["spread"], LEDGER["impact"]
_INSURANCE, _TRADED, _FILLS = LEDGER["insurance"], LEDGER["traded_notional"], LEDGER["fills"]
_LIQUIDATED, _STOPPED = LEDGER["liquidated"], LEDGER["stopped"]
_FILLED, _PROFIT = CONTRACT_LEDGER["filled"], CONTRACT_LEDGER["profit"]
_COSTS, _RECEIVED = CONTRACT_LEDGER["costs"], CONTRACT_LEDGER["funding"]

# columns of a recorded fill: contract, signed quantity, quote, settle currency paid (fee or clearance),
# settle currency that the price brought to the wallet, and why
FILL_ASSET, FILL_QUANTITY, FILL_PRICE, FILL_FEE, FILL_REALISED, FILL_REASON = range(6)
FILL_COLUMNS = 6
# why a fill happened
ORDER, STOP, TARGET, LIQUIDATION = range(4)


@kernel
def _record_fill(  # type: ignore[no-untyped-def]
    account, asset, quantity, price, reference, mark_close, fee, realised, costs, reason, contract
):
    """``costs``: settle currency, all that the fill took beside the price, for the contract's own row."""
    number = int(account.ledger[_FILLS])
    if number < account.fills.shape[0]:
        row = account.fills[number]
        row[FILL_ASSET] = asset
        row[FILL_QUANTITY] = quantity
        row[FILL_PRICE] = price
        row[FILL_FEE] = fee
        row[FILL_REALISED] = realised
        row[FILL_REASON] = reason
    profit = quantity * (worth(mark_close, contract.is_inverse) - worth(reference, contract.is_inverse))
    account.ledger[_PRICE_PNL] += profit
    traded = abs(quantity * worth(price, contract.is_inverse))
    account.ledger[_TRADED] += traded
    if account.traded.shape[0] > 0:
        add_traded(account.traded, traded)
    account.ledger[_FILLS] += 1.0
    account.holdings[asset, _FILLED] += quantity
    account.holdings[asset, _PROFIT] += profit - costs
    account.holdings[asset, _COSTS] += costs


@kernel
def take(account, asset, quantity, reference, bar, mark_close, reason, contract, rules):  # type: ignore[no-untyped-def]
    """A taker fill at half spread and impact from ``reference``; returns the fill price."""
    touch, price = market_fill_price(account, asset, reference, quantity, bar, contract, rules)
    take_priced(account, asset, quantity, reference, touch, price, bar, mark_close, reason, contract, rules)
    return price


@kernel
def quadratic_rate(account, quantity, reference, contract, rules):  # type: ignore[no-untyped-def]
    """Fraction of a fill's notional that ``cost=quadratic`` takes beside the linear rate; 0 otherwise.

    Trading an exposure of x costs quadratic_cost / 2 * x**2 of what an exposure of 1 is, linear and inverse.
    """
    if rules.quadratic_cost == 0.0:
        return 0.0
    exposure = notional(quantity, reference, contract.is_inverse) / sizing_base(account.wallet, rules)
    return 0.5 * rules.quadratic_cost * exposure


@kernel
def taker_cost_rate(account, quantity, reference, contract, rules):  # type: ignore[no-untyped-def]
    """Fraction of a taker fill's notional."""
    extra = quadratic_rate(account, quantity, reference, contract, rules)
    return taker_rate(account.traded, contract) + extra


@kernel
def maker_cost_rate(account, quantity, reference, contract, rules):  # type: ignore[no-untyped-def]
    """Fraction of a maker fill's notional."""
    extra = quadratic_rate(account, quantity, reference, contract, rules)
    return maker_rate(account.traded, contract) + extra


@kernel
def take_priced(  # type: ignore[no-untyped-def]
    account, asset, quantity, reference, touch, price, bar, mark_close, reason, contract, rules
):
    """A taker fill from ``reference`` over ``touch`` to ``price``, all quote."""
    fee_rate = taker_cost_rate(account, quantity, reference, contract, rules)
    take_at_fee(
        account, asset, quantity, reference, touch, price, fee_rate, bar.root_illiquidity, mark_close, reason,
        contract, rules,
    )  # fmt: skip


@kernel
def take_at_fee(  # type: ignore[no-untyped-def]
    account, asset, quantity, reference, touch, price, fee_rate, root_illiquidity, mark_close, reason,
    contract, rules,
):  # fmt: skip
    """The same at a fee that is known, a fraction of notional."""
    wallet = account.wallet[WALLET]
    fee = apply_fill(account.wallet, account.positions, asset, quantity, price, fee_rate, contract, rules)
    touch_worth = worth(touch, contract.is_inverse)
    spread = abs(quantity * (touch_worth - worth(reference, contract.is_inverse)))
    # the trace of earlier fills may give back
    impact = quantity * (worth(price, contract.is_inverse) - touch_worth)
    if rules.leaves_trace > 0.0:
        value = quantity * abs(worth(reference, contract.is_inverse))
        leave_push(account.orders[asset], value, root_illiquidity, rules)
    account.ledger[_FEES] += fee
    account.ledger[_SPREAD] += spread
    account.ledger[_IMPACT] += impact
    realised = account.wallet[WALLET] - wallet + fee
    _record_fill(
        account, asset, quantity, price, reference, mark_close, fee, realised, fee + spread + impact, reason,
        contract,
    )  # fmt: skip


@kernel
def take_at(account, asset, quantity, price, fee_rate, mark_close, reason, contract, rules):  # type: ignore[no-untyped-def]
    """A fill at exactly ``price``: a take-profit or a resting order."""
    wallet = account.wallet[WALLET]
    fee = apply_fill(account.wallet, account.positions, asset, quantity, price, fee_rate, contract, rules)
    account.ledger[_FEES] += fee
    realised = account.wallet[WALLET] - wallet + fee
    _record_fill(account, asset, quantity, price, price, mark_close, fee, realised, fee, reason, contract)


@kernel
def settle_funding(account, asset, mark_price, rate, contract):  # type: ignore[no-untyped-def]
    """Move one settlement: a long pays when the rate is positive.

    Args:
        mark_price: quote, at the settlement.
        rate: fraction of notional, the funding multiplier included.
    """
    quantity = account.positions[asset, QUANTITY]
    credit_funding(account, asset, -quantity * abs(worth(mark_price, contract.is_inverse)) * rate, contract)


@kernel
def credit_funding(account, asset, received, contract):  # type: ignore[no-untyped-def]
    """Book what a settlement brought: settle currency, received > 0."""
    account.wallet[WALLET] += received
    account.wallet[ACCRUED_FUNDING] += received
    if contract.is_isolated > 0.0:
        account.positions[asset, ISOLATED_WALLET] += received
    account.ledger[_FUNDING] += received
    account.holdings[asset, _PROFIT] += received
    account.holdings[asset, _RECEIVED] += received


@kernel
def close_by_force(account, asset, size, balance, mark_price, bar, mark_close, contract, rules):  # type: ignore[no-untyped-def]
    """Liquidate ``size`` of a position at the mark less half spread and impact, never beyond bankruptcy.

    The clearance fee comes out of what remains of the margin balance; the insurance fund bears the rest of
    a fill beyond the bankruptcy price.

    Args:
        size: base (linear) or quote (inverse), at most the position's.
        balance: settle currency behind this position before its own unrealised profit.
    """
    position = account.positions[asset]
    held, entry = position[QUANTITY], position[ENTRY_PRICE]
    side = 1.0 if held > 0.0 else -1.0
    share = square_root_impact(size, bar.volume, bar.sigma_per_bar, rules.impact_coefficient)
    touch = mark_price * (1.0 - side * rules.half_spread)
    market = worth(touch - side * mark_price * min(share, 0.5), contract.is_inverse)
    bankruptcy = bankruptcy_worth(balance, held, entry, contract.is_inverse)
    value = max(market, bankruptcy) if side > 0.0 else min(market, bankruptcy)
    if rules.liquidates_at_bankruptcy > 0.0 and size >= abs(held):
        value = bankruptcy
    remains = balance + held * (value - worth(entry, contract.is_inverse))
    clearance = min(contract.clearance_rate * size * abs(value), max(remains, 0.0))
    realised = side * size * (value - worth(entry, contract.is_inverse))
    account.wallet[WALLET] += realised - clearance
    touch_worth = worth(touch, contract.is_inverse)
    spread = size * abs(worth(mark_price, contract.is_inverse) - touch_worth)
    impact = size * abs(market - touch_worth)
    # below zero where the fund keeps what a fill at bankruptcy leaves
    insurance = side * size * (value - market)
    account.ledger[_SPREAD] += spread
    account.ledger[_IMPACT] += impact
    account.ledger[_INSURANCE] += insurance
    account.ledger[_CLEARANCE] += clearance
    account.ledger[_LIQUIDATED] = 1.0
    costs = spread + impact + clearance - insurance
    price = price_of(value, contract.is_inverse)
    _record_fill(
        account, asset, -side * size, price, mark_price, mark_close, clearance, realised, costs, LIQUIDATION,
        contract,
    )  # fmt: skip
    left = on_lot_grid(held - side * size, held, contract)
    if left == 0.0:
        flatten(position)
        return
    position[QUANTITY] = left
    if contract.is_isolated > 0.0:
        # a forced reduction releases nothing: what it realised and cost moves the isolated wallet
        position[ISOLATED_WALLET] += realised - clearance
