"""Who bears what an account cannot pay: the insurance fund, never the account and never another margin."""

from __future__ import annotations

from perpgym.envs.account import ISOLATED_WALLET, QUANTITY, WALLET, free_wallet
from perpgym.envs.arrays import contract_rules
from perpgym.envs.compile import cold_kernel, kernel
from perpgym.envs.spaces import CONTRACT_LEDGER, LEDGER

_INSURANCE = LEDGER["insurance"]
_PROFIT, _COSTS = CONTRACT_LEDGER["profit"], CONTRACT_LEDGER["costs"]


@kernel
def forgive_debt(account, world):  # type: ignore[no-untyped-def]
    """Raise a free wallet below zero to zero, if no cross position's profit stands behind it.

    A fill beyond bankruptcy (an order, or a stop over a gap) can lose more than the margin that was posted
    and the free wallet together. The isolated wallets of other positions are not touched: they stand for
    nothing but their own. While a cross position is open its margin check decides, and a liquidation never
    loses more than there is.

    Args:
        account: ``Account``, in place: wallet, ledger and the contracts' own rows.
        world: ``World``; an account without limits may owe.

    Returns:
        settle currency, what the insurance fund bore; 0 if nothing was owed.
    """
    if world.rules.is_unlimited > 0.0:
        return 0.0
    owed = -free_wallet(account.wallet, account.positions)
    posted = 0.0
    for asset in range(account.positions.shape[0]):
        posted += account.positions[asset, ISOLATED_WALLET]
    # isolated wallets that take all there is add up to the wallet but for rounding
    if owed <= 1e-12 * posted:
        return 0.0
    for asset in range(account.positions.shape[0]):
        is_isolated = contract_rules(world.contracts[asset]).is_isolated > 0.0
        if account.positions[asset, QUANTITY] != 0.0 and not is_isolated:
            return 0.0
    account.wallet[WALLET] += owed
    account.ledger[_INSURANCE] += owed
    _credit_losers(account, owed)
    return owed


@kernel
def bear_rest(account, asset, owed):  # type: ignore[no-untyped-def]
    """What an isolated position that was liquidated still owes is nobody's but the insurance fund's.

    Its isolated wallet was below zero by more than any price of what remained could bring.

    Args:
        account: ``Account``, in place.
        asset: index of the contract.
        owed: settle currency, > 0.
    """
    account.wallet[WALLET] += owed
    account.ledger[_INSURANCE] += owed
    account.holdings[asset, _PROFIT] += owed
    account.holdings[asset, _COSTS] -= owed


@cold_kernel
def _credit_losers(account, owed):  # type: ignore[no-untyped-def]
    """Book it to the contracts that lost in this step, in proportion, so that their rows add up as well.

    Where none has lost (the mark rose after a sale far below it), the one that earned least has it.
    """
    lost, least = 0.0, 0
    for asset in range(account.holdings.shape[0]):
        lost += max(-account.holdings[asset, _PROFIT], 0.0)
        if account.holdings[asset, _PROFIT] < account.holdings[least, _PROFIT]:
            least = asset
    for asset in range(account.holdings.shape[0]):
        row = account.holdings[asset]
        share = 1.0 if asset == least else 0.0
        if lost > 0.0:
            share = max(-row[_PROFIT], 0.0) / lost
        row[_PROFIT] += owed * share
        row[_COSTS] -= owed * share
