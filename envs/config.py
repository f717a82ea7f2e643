"""What an environment assumes: account, execution, ends and reward, in one frozen dataclass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypeVar

from perpgym.data.checks import check_number, check_row, check_switch, check_whole, check_within
from perpgym.envs.actions import ACTION_KINDS, ActionKind, choices_per_contract
from perpgym.envs.fees import FeeSchedule
from perpgym.envs.impact_model import ImpactModel

T = TypeVar("T")
MarginMode = Literal["cross", "isolated"]
ExecutionStyle = Literal["market", "twap", "vwap", "limit", "iceberg"]
RewardKind = Literal["log_return", "differential_sharpe", "differential_sortino", "mean_variance"]
# in the order of the codes in envs.payoff
REWARD_KINDS: tuple[RewardKind, ...] = (
    "log_return",
    "differential_sharpe",
    "differential_sortino",
    "mean_variance",
)
# in the order of the codes in envs.orders
EXECUTION_STYLES: tuple[ExecutionStyle, ...] = ("market", "twap", "vwap", "limit", "iceberg")


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Settings of an account and of how its orders are executed.

    Attributes:
        initial_wallet: settle currency.
        leverage: the exchange's leverage setting; fixes initial margin, not exposure. One for all
            contracts, or a list with one for each in the tape's order.
        margin_mode: ``cross`` or ``isolated``; one for all contracts, or a list.
        action: ``target`` exposure; no-trade ``band``; ``ladder``, one of a few exposures; ``heads``: trade
            decision, size, stop and execution style.
        ladder: levels in units of ``max_exposure``, ascending, one of them 0. The level that stands means no
            order, however far exposure has drifted; a level that a limit cut does not stand.
        head_sizes: in units of ``max_exposure``, ascending.
        head_stops: times the volatility of a bar; 0 is the account's own stop.
        head_styles: of execution.
        max_exposure: signed notional over equity that an action of ±1 asks for.
        sizing: what an exposure of 1 is: ``equity``, or ``fixed_notional``, the initial wallet whatever
            became of it.
        initial_exposure: of each contract, entered at the mark at no cost where an account starts ``flat``.
        rebalance_threshold: equity; a target closer than this to the present exposure is not traded; 0 holds
            exposure constant, anything else the quantity between trades.
        cost: ``exchange`` is what follows below. ``linear`` charges ``linear_cost_rate`` of every fill's
            notional instead of fee, spread and impact; ``quadratic`` takes, on top of it,
            ``quadratic_cost_rate`` / 2 * x**2 of what an exposure of 1 is for a fill of exposure x.
        linear_cost_rate: fraction of notional.
        quadratic_cost_rate: per exposure traded.
        limits: ``off`` switches margin, liquidation, ruin, brackets, order sizes, participation and the risk
            overlay off: for problems whose best answer is known.
        rounding: ``off`` trades any price and quantity.
        terminal: whether the last bar of an episode ``hold``s the position or sells it at its close
            (``liquidate``).
        half_spread_bps: distance from the last price to the touch.
        impact_coefficient: Y of the square-root law, impact = Y * sigma * sqrt(quantity / bar volume).
        impact: the trace that the account's own fills leave, see ``ImpactModel``; none by default.
        max_participation: largest share of a bar's volume that one order may take.
        execution: how orders reach the book: ``market`` at the open; ``twap`` in equal slices and ``vwap``
            by the past volume profile along the bar; ``limit``, post-only at ``limit_offset_bps`` behind the
            last close, for one bar; ``iceberg``, the same in clips.
        limit_offset_bps: distance of a resting order from the last close.
        iceberg_clip: fraction of the order that an iceberg shows.
        latency_ms: from the decision to the book; what is no whole number of bars needs finer bars. One order
            of a contract is on its way at a time: what is decided until it arrives is not sent.
        latency_bars: the same in bars, added to it.
        reduce_only: orders close and never open, add or turn: an account is wound down.
        remainder: what the volume left of an order is ``drop``-ped, or ``carry``-ied on until it is filled or
            another decision replaces it, which one on its way to the book cannot be.
        taker_rate, maker_rate: fraction of notional; None takes the contract's.
        fees: tiers by traded volume, discount and rebates instead of the two rates; see ``FeeSchedule``.
        stop_loss, take_profit: fraction of the entry price, None for none.
        stop_volatility: a stop-loss this many times the volatility of a bar away, as known when the position
            is opened or enlarged; with ``stop_loss`` too, the tighter one counts.
        trailing_stop: the stop-loss follows the best price since entry at its distance.
        max_bars_held: bars after which a position is closed at the market, None for no such time stop.
        stop_trigger: the series that stops watch.
        liquidation: ``full``, or ``brackets``: a position above its lowest bracket is reduced bracket by
            bracket until margin suffices.
        extremes: with several cross positions, ``worse`` walks all lows then all highs and the reverse and
            keeps the worse; ``joint_adverse`` has every contract at its own adverse extreme at once.
        funding_multiplier: scales every settlement.
        risk_free_rate: per year; Sharpe ratios are measured over it.
        max_drawdown: fraction of peak equity at which the episode ends as ruin.
        reward: what a step is worth; ``envs.rewards`` has a class for each, which sets these numbers.
        reward_scale: multiplies it.
        reward_equity_floor: the log return of a step is floored at its logarithm.
        reward_risk_aversion: gamma; log return g is worth g - (gamma - 1) / 2 * g**2: 1 is plain log growth.
        reward_half_life_bars: memory of the differential ratios' moments.
        reward_variance: kappa of ``mean_variance``.
        reward_on_conditional_mean: ``mean_variance`` pays the tape's planted mean, not what happened.
        reward_drawdown, reward_turnover, reward_liquidation: what an increase of the drawdown by 1, trading
            the equity once, and a liquidation cost.
        episode_bars: length of a path before it is truncated.
        restart: a terminated account restarts ``flat``, or with ``random`` exposure and wallet.
        window_bars: R, bars in a window observation.
    """

    initial_wallet: float = 1_000_000.0
    leverage: float | tuple[float, ...] = 20.0
    margin_mode: MarginMode | tuple[MarginMode, ...] = "cross"
    action: ActionKind = "band"
    ladder: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.5, 1.0)
    head_sizes: tuple[float, ...] = (0.25, 0.5, 1.0)
    head_stops: tuple[float, ...] = (0.0, 2.0, 4.0)
    head_styles: tuple[ExecutionStyle, ...] = ("market", "limit")
    max_exposure: float = 2.0
    sizing: Literal["equity", "fixed_notional"] = "equity"
    initial_exposure: float = 0.0
    rebalance_threshold: float = 0.02
    cost: Literal["exchange", "linear", "quadratic"] = "exchange"
    linear_cost_rate: float = 0.0
    quadratic_cost_rate: float = 0.0
    limits: Literal["on", "off"] = "on"
    rounding: Literal["on", "off"] = "on"
    terminal: Literal["hold", "liquidate"] = "hold"
    half_spread_bps: float = 1.0
    impact_coefficient: float = 1.0
    impact: ImpactModel = field(default_factory=ImpactModel)
    max_participation: float = 0.10
    execution: ExecutionStyle = "market"
    limit_offset_bps: float = 1.0
    iceberg_clip: float = 0.1
    latency_ms: float = 0.0
    latency_bars: int = 0
    reduce_only: bool = False
    remainder: Literal["drop", "carry"] = "drop"
    taker_rate: float | None = 0.0004
    maker_rate: float | None = None
    fees: FeeSchedule | None = None
    stop_loss: float | None = None
    stop_volatility: float | None = None
    trailing_stop: bool = False
    max_bars_held: int | None = None
    take_profit: float | None = None
    stop_trigger: Literal["last", "mark"] = "mark"
    liquidation: Literal["full", "brackets"] = "full"
    extremes: Literal["worse", "joint_adverse"] = "worse"
    funding_multiplier: float = 1.0
    risk_free_rate: float = 0.0
    max_drawdown: float = 0.30
    reward: RewardKind = "log_return"
    reward_scale: float = 1.0
    reward_equity_floor: float = 0.01
    reward_risk_aversion: float = 1.0
    reward_half_life_bars: float = 168.0
    reward_variance: float = 0.0
    reward_on_conditional_mean: bool = False
    reward_drawdown: float = 0.0
    reward_turnover: float = 0.0
    reward_liquidation: float = 0.0
    episode_bars: int = 2_160
    restart: Literal["flat", "random"] = "flat"
    window_bars: int = 63

    def __post_init__(self) -> None:
        # a file gives mappings
        impact: object = self.impact
        fees: object = self.fees
        if isinstance(impact, Mapping):
            object.__setattr__(self, "impact", ImpactModel(**impact))
        if isinstance(fees, Mapping):
            object.__setattr__(self, "fees", FeeSchedule.from_mapping(fees))
        if not isinstance(self.impact, ImpactModel):
            raise ValueError(f"impact must be an ImpactModel or its settings, was {self.impact!r}")
        if self.fees is not None and not isinstance(self.fees, FeeSchedule):
            raise ValueError(f"fees must be a FeeSchedule, its settings or null, was {self.fees!r}")
        for name in ("leverage", "margin_mode"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("ladder", "head_sizes", "head_stops", "head_styles"):
            # a file gives lists
            object.__setattr__(self, name, check_row(name, getattr(self, name)))
        for name in ("reduce_only", "trailing_stop", "reward_on_conditional_mean"):
            check_switch(name, getattr(self, name))
        _ascending("ladder", self.ladder, -1.0, 1.0)
        if 0.0 not in self.ladder:
            raise ValueError(f"ladder must have the level 0, which is flat; was {self.ladder}")
        _ascending("head_sizes", self.head_sizes, 1e-6, 1.0)
        _ascending("head_stops", self.head_stops, 0.0, 1e3)
        unknown = [style for style in self.head_styles if style not in EXECUTION_STYLES]
        if unknown or not self.head_styles or len(set(self.head_styles)) != len(self.head_styles):
            raise ValueError(
                f"head_styles must be distinct ones of {', '.join(EXECUTION_STYLES)}, were {self.head_styles}"
            )
        for name in ("limits", "rounding"):
            # YAML reads a bare ``off`` as a truth value
            if isinstance(getattr(self, name), bool):
                object.__setattr__(self, name, "on" if getattr(self, name) else "off")
        check_within("initial_wallet", self.initial_wallet, 1e-9, 1e15, "settle currency")
        for leverage in self.leverages():
            check_within("leverage", leverage, 1.0, 150.0, "times")
        most = math.inf if self.limits == "off" else max(self.leverages())
        check_within("max_exposure", self.max_exposure, 1e-6, most, "notional over equity, at most leverage")
        check_within(
            "initial_exposure", self.initial_exposure, -self.max_exposure, self.max_exposure, "equity"
        )
        check_within("linear_cost_rate", self.linear_cost_rate, 0.0, 1.0, "a fraction of notional")
        check_within("quadratic_cost_rate", self.quadratic_cost_rate, 0.0, 1e6, "per exposure traded")
        check_within("rebalance_threshold", self.rebalance_threshold, 0.0, self.max_exposure, "equity")
        check_within("half_spread_bps", self.half_spread_bps, 0.0, 1_000.0, "basis points")
        check_within("impact_coefficient", self.impact_coefficient, 0.0, 100.0, "dimensionless")
        check_within("max_participation", self.max_participation, 1e-9, 1.0, "a fraction of the bar's volume")
        check_within("limit_offset_bps", self.limit_offset_bps, -1_000.0, 1_000.0, "basis points")
        check_within("iceberg_clip", self.iceberg_clip, 1e-3, 1.0, "a fraction of the order")
        check_within("latency_ms", self.latency_ms, 0.0, 1e9, "milliseconds")
        check_whole("latency_bars", self.latency_bars, 0, 10_000, "bars")
        for name in ("taker_rate", "maker_rate"):
            rate = getattr(self, name)
            if rate is not None:
                least = 0.0 if name == "taker_rate" else -0.01
                check_within(name, rate, least, 0.01, "a fraction of notional; 4 bp is 0.0004")
        if (self.taker_rate or 0.0) + (self.maker_rate or 0.0) < 0.0 and self.taker_rate is not None:
            raise ValueError(
                f"a maker rebate of {-(self.maker_rate or 0.0):g} exceeds the taker fee of "
                f"{self.taker_rate:g}: no exchange pays for trading in circles"
            )
        if self.cost != "exchange" and (self.fees is not None or self.impact.kind != "none"):
            raise ValueError(
                f"cost={self.cost} replaces fee, spread and impact: leave fees null and impact.kind none"
            )
        for name in ("stop_loss", "take_profit"):
            value = getattr(self, name)
            if value is not None:
                check_within(
                    name, value, 1e-6, 0.99 if name == "stop_loss" else 100.0, "a fraction of the entry price"
                )
        if self.stop_volatility is not None:
            check_within("stop_volatility", self.stop_volatility, 1e-3, 1e3, "times the volatility of a bar")
        if self.trailing_stop and self.stop_loss is None and self.stop_volatility is None:
            raise ValueError("trailing_stop needs a distance: set stop_loss or stop_volatility")
        if self.max_bars_held is not None:
            check_whole("max_bars_held", self.max_bars_held, 1, 10**9, "bars")
        check_within("funding_multiplier", self.funding_multiplier, -100.0, 100.0, "times")
        check_within("risk_free_rate", self.risk_free_rate, -1.0, 1.0, "a fraction per year")
        check_within("max_drawdown", self.max_drawdown, 1e-6, 1.0, "a fraction of peak equity")
        check_within("reward_equity_floor", self.reward_equity_floor, 1e-12, 0.999, "a fraction of equity")
        check_within("reward_scale", self.reward_scale, 1e-12, 1e12, "per log return")
        check_within(
            "reward_risk_aversion", self.reward_risk_aversion, 0.0, 1e6, "dimensionless; 1 is log growth"
        )
        check_within("reward_half_life_bars", self.reward_half_life_bars, 1e-3, 1e9, "bars")
        check_within("reward_variance", self.reward_variance, 0.0, 1e12, "per squared exposure and bar")
        for name in ("reward_drawdown", "reward_turnover", "reward_liquidation"):
            check_within(
                name, getattr(self, name), 0.0, 1e12, "reward before its scale; a bonus is not offered"
            )
        check_whole("episode_bars", self.episode_bars, 2, 10**9, "bars")
        check_whole("window_bars", self.window_bars, 1, 100_000, "bars")
        if self.reward_on_conditional_mean and self.reward != "mean_variance":
            raise ValueError("reward_on_conditional_mean needs reward=mean_variance")
        for name, allowed in (
            ("action", ACTION_KINDS),
            ("stop_trigger", ("last", "mark")),
            ("liquidation", ("full", "brackets")),
            ("extremes", ("worse", "joint_adverse")),
            ("restart", ("flat", "random")),
            ("execution", EXECUTION_STYLES),
            ("remainder", ("drop", "carry")),
            ("sizing", ("equity", "fixed_notional")),
            ("cost", ("exchange", "linear", "quadratic")),
            ("limits", ("on", "off")),
            ("rounding", ("on", "off")),
            ("terminal", ("hold", "liquidate")),
            ("reward", REWARD_KINDS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, was {getattr(self, name)!r}")
        if unknown_modes := [mode for mode in self.margin_modes() if mode not in ("cross", "isolated")]:
            raise ValueError(
                f"margin_mode must be cross or isolated, was {', '.join(map(str, unknown_modes))}"
            )

    def leverages(self, n_contracts: int | None = None) -> tuple[float, ...]:
        """The leverage setting of each contract; without a number of contracts, those that are given.

        Raises:
            ValueError: a list has another length than there are contracts.
        """
        return _one_each("leverage", self.leverage, n_contracts)

    def margin_modes(self, n_contracts: int | None = None) -> tuple[MarginMode, ...]:
        """The margin mode of each contract; the arguments are those of :meth:`leverages`."""
        return _one_each("margin_mode", self.margin_mode, n_contracts)

    @property
    def choices(self) -> tuple[int, ...]:
        """How many choices each number of a contract's action has; empty for continuous actions."""
        return choices_per_contract(
            self.action, self.ladder, self.head_sizes, self.head_stops, self.head_styles
        )


def _one_each(name: str, setting: T | tuple[T, ...], n_contracts: int | None) -> tuple[T, ...]:
    if not isinstance(setting, tuple):
        return (setting,) * (n_contracts or 1)
    if n_contracts is not None and len(setting) != n_contracts:
        raise ValueError(
            f"{name} must be one for all or a list of {n_contracts}, one a contract; was {setting}"
        )
    return setting


def _ascending(name: str, values: tuple[float, ...], low: float, high: float) -> None:
    for value in values:
        check_number(name, value)
    if not values or any(not low <= value <= high for value in values):
        raise ValueError(f"{name} must be numbers between {low:g} and {high:g}, were {values}")
    if any(not below < above for below, above in pairwise(values)):
        raise ValueError(f"{name} must ascend, were {values}")
