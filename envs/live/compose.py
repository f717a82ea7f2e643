"""One live account from its parts: broker and journal in, an env and its desk thread out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perpgym.data.contract import Contract
from perpgym.envs.config import EnvConfig
from perpgym.envs.live.books import Books
from perpgym.envs.live.broker import Broker, Settings
from perpgym.envs.live.clock import Clock, ExchangeClock
from perpgym.envs.live.context import DeskTimings
from perpgym.envs.live.desk import Desk
from perpgym.envs.live.env import Columns, LiveConfig, LiveEnv
from perpgym.envs.live.feed import Feed, FeedConfig
from perpgym.envs.live.journal import Journal
from perpgym.envs.live.limits import DeskLimits
from perpgym.envs.live.thread import DeskThread
from perpgym.envs.risk.limits import RiskLimits


@dataclass(frozen=True, kw_only=True)
class LiveSettings:
    """Everything about a live account that is not the policy's.

    Attributes:
        feed, live, desk, timings: of the rooms of those names.
        wallet_tolerance: quote, by which the exchange's wallet may differ from the books.
        keeps_observations: whether the journal keeps observations whole.
    """

    feed: FeedConfig = field(default_factory=FeedConfig)
    live: LiveConfig = field(default_factory=LiveConfig)
    desk: DeskLimits = field(default_factory=DeskLimits)
    timings: DeskTimings = field(default_factory=DeskTimings)
    wallet_tolerance: float = 1e-8
    keeps_observations: bool = False


def account_settings(contracts: Sequence[Contract], config: EnvConfig) -> Settings:
    """What the exchange's account must be set up as for an env's settings.

    Raises:
        ValueError: a leverage is no whole number, or contracts have different margin modes.
    """
    leverages, modes = config.leverages(len(contracts)), set(config.margin_modes(len(contracts)))
    if any(leverage != int(leverage) for leverage in leverages):
        raise ValueError(f"an exchange's leverage is a whole number, env.leverage was {config.leverage}")
    if len(modes) != 1:
        raise ValueError(f"live contracts share one margin mode, env.margin_mode was {config.margin_mode}")
    names = [contract.symbol for contract in contracts]
    return Settings(
        leverage={name: int(x) for name, x in zip(names, leverages, strict=True)}, margin_mode=modes.pop()
    )


def make_live_env(
    broker: Broker,
    journal: Journal,
    thread: DeskThread,
    *,
    config: EnvConfig,
    limits: RiskLimits,
    contracts: Sequence[Contract],
    columns: Columns,
    bar_ms: int,
    settings: LiveSettings | None = None,
    lookback_bars: int = 0,
    clock: Clock | None = None,
    lock_folder: Path | None = None,
) -> LiveEnv:
    """An env on an account; ``reset`` starts it.

    Args:
        broker, journal: of the account; the env uses them in ``thread`` only.
        thread: the desk thread.
        config, limits: as the policy was trained.
        contracts: the exchange's rules, in the policy's order.
        columns: the policy's.
        bar_ms: length of a bar.
        settings: see there.
        lookback_bars: valid bars that the agent reads, where its window is shorter.
        clock: by which bars are waited for; None for the exchange's.
        lock_folder: of the files that keep a second program from the account.

    Raises:
        ValueError: the env's settings cannot be traded live.
    """
    settings = settings or LiveSettings()
    books = Books(config, limits, wallet_tolerance=settings.wallet_tolerance)
    account = account_settings(contracts, config)
    feed = Feed(broker, contracts, bar_ms, clock or ExchangeClock(broker), settings.feed)

    def make_desk() -> Desk:
        return Desk(
            broker, journal, books, account, limits=settings.desk, timings=settings.timings,
            lock_folder=lock_folder,
        )  # fmt: skip

    return LiveEnv(
        broker=broker,
        journal=journal,
        # its locks belong to the loop of the thread
        desk=thread.do(make_desk),
        books=books,
        feed=feed,
        thread=thread,
        contracts=contracts,
        columns=columns,
        live=settings.live,
        lookback_bars=lookback_bars,
        keeps_observations=settings.keeps_observations,
    )
