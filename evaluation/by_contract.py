"""What each contract added to an account: profit, what it is made of, exposure and trades."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perpgym.evaluation.backtest import BacktestResult
from perpgym.evaluation.trades import Trades, find_trades, join_trades


@dataclass(frozen=True, kw_only=True)
class ContractCard:
    """One contract of one account over one period.

    The profits of all contracts add up to the account's change of equity.

    Attributes:
        symbol: ccxt's.
        profit: settle currency, price profit + funding received less costs.
        price_pnl: settle currency.
        funding: settle currency, paid > 0: the ledger's sign turned, to stand among the costs.
        costs: settle currency, paid > 0: fees, spread, impact and clearance, less the insurance fund's part.
        trades, win_rate: see ``evaluation.trades``.
        mean_exposure: mean |signed notional over equity| at bar closes.
        net_exposure: the same with signs.
        time_in_market: share of bar closes with a position.
    """

    symbol: str
    profit: float
    price_pnl: float
    funding: float
    costs: float
    trades: int
    win_rate: float
    mean_exposure: float
    net_exposure: float
    time_in_market: float


def trades_by_contract(result: BacktestResult) -> list[Trades]:
    """The trades of every contract, in the tape's order."""
    equity = result.column("equity_before")
    return [
        find_trades(result.holdings[:, asset], result.worth(asset), equity)
        for asset in range(len(result.contracts))
    ]


def all_trades(result: BacktestResult) -> Trades:
    """The trades of all contracts, in the order of their entry."""
    return join_trades(trades_by_contract(result))


def measure_contracts(result: BacktestResult) -> tuple[ContractCard, ...]:
    """Fill the card of every contract, in the tape's order."""
    names = ("profit", "costs", "funding", "exposure", "position")
    columns = {name: result.contract_column(name) for name in names}  # n A
    return tuple(
        _card(contract.symbol, trades, **{name: column[:, asset] for name, column in columns.items()})
        for asset, (contract, trades) in enumerate(
            zip(result.contracts, trades_by_contract(result), strict=True)
        )
    )


def _card(
    symbol: str,
    trades: Trades,
    *,
    profit: np.ndarray,
    costs: np.ndarray,
    funding: np.ndarray,
    exposure: np.ndarray,
    position: np.ndarray,
) -> ContractCard:
    received = float(funding.sum())
    return ContractCard(
        symbol=symbol,
        profit=float(profit.sum()),
        price_pnl=float(profit.sum() + costs.sum()) - received,
        funding=0.0 - received,
        costs=float(costs.sum()),
        trades=len(trades),
        win_rate=trades.win_rate,
        mean_exposure=float(np.abs(exposure).mean()),
        net_exposure=float(exposure.mean()),
        time_in_market=float(np.mean(position != 0)),
    )
