"""The exchange that a live run is asked to trade on, and the replay of what was traded there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from perpgym.agents.artifact import Artifact
from perpgym.envs.config import EnvConfig
from perpgym.envs.exchange.connect import point_at
from perpgym.envs.live.binance import Binance, BinanceConfig
from perpgym.envs.live.broker import Broker, BrokerError, Unreachable
from perpgym.envs.live.bybit import Bybit, BybitConfig
from perpgym.envs.live.clock import ReplayClock
from perpgym.envs.live.journal import JournalBroken
from perpgym.envs.live.monitor.replay import compare, report
from perpgym.envs.live.monitor.story import Difference, Story, rebuild
from perpgym.envs.live.paper import PaperBroker, PriceSource
from perpgym.envs.live.thread import DeskThread
from perpgym.experiments.live_account import Call, Keys, read_keys, timeframe


async def make_broker(call: Call, artifact: Artifact, keys: Keys) -> Broker:
    """The account that a policy trades."""
    symbols = tuple(contract.symbol for contract in artifact.contracts)
    source = await make_exchange(call, symbols, timeframe(artifact.bar_ms), keys)
    if call.mode != "paper":
        return source
    return PaperBroker(source, artifact.contracts, artifact.bar_ms, paper_config(call, artifact.env_config))


def paper_config(call: Call, config: EnvConfig) -> EnvConfig:
    """What a paper account is: as in training, but with the wallet that was asked for."""
    return config if call.wallet is None else replace(config, initial_wallet=call.wallet)


async def make_exchange(call: Call, contracts: Sequence[str], bar: str, keys: Keys) -> PriceSource:
    """The exchange of ``exchange=`` and ``mode=``, not open yet.

    Args:
        call: the command line.
        contracts: ccxt's unified symbols.
        bar: ccxt's name of the bar.
        keys: of the account; empty where only the market is read.

    Raises:
        BrokerError: the simulated exchange does not say what time it is.
    """
    common: dict[str, Any] = {
        "contracts": tuple(contracts), "bar": bar, "api_key": keys.key, "secret": keys.secret,
    }  # fmt: skip
    if call.exchange == "bybit":
        return Bybit(BybitConfig(**common, venue="demo" if call.mode == "demo" else "real"))
    if call.exchange == "binanceusdm":
        return Binance(BinanceConfig(**common), point=_to_demo if call.mode == "demo" else None)
    clock = ReplayClock()
    # a replay may run faster than any signature is valid: it takes the world's time instead
    broker = Binance(
        BinanceConfig(**common, is_paced=False), point=lambda exchange: point_at(exchange, call.url),
        local_ms=clock.now_ms, stamp_ms=lambda: int(1_000 * time.time()),
    )  # fmt: skip
    try:
        await clock.learn(broker.server_time_ms)
    except BrokerError as error:
        await broker.close()
        if isinstance(error, Unreachable):
            raise Unreachable(
                f"nobody answers at {call.url}: start the exchange with python -m perpgym.envs.exchange in "
                f"another terminal, or name its address with url= ({error})"
            ) from error
        raise
    return broker


def _to_demo(exchange: Any) -> None:
    """ccxt's word for the exchange's test accounts."""
    exchange.enable_demo_trading(True)


def replay_journal(
    path: Path, call: Call, environment: Mapping[str, str], say: Callable[[str], Any] = print
) -> int:
    """Rebuild a journal's account, orders and decisions, and compare them with the exchange's records.

    Args:
        path: of the journal.
        call: whose ``exchange`` and ``mode`` have the records; ``paper`` has none, nor has a paper journal.
        environment: where the keys are read.
        say: where the report goes.

    Returns:
        0 where all agree, 1 where anything differs, 2 where the journal cannot be read.

    Raises:
        ValueError: the keys are missing, or the exchange does not answer.
    """
    try:
        story = rebuild(path)
    except JournalBroken as error:
        say(f"error: {error}")
        return 2
    told = None if _has_no_other_records(path, call, story) else _ask_exchange(story, call, environment)
    say(report(story, told))
    return 1 if story.differences or told else 0


def _has_no_other_records(path: Path, call: Call, story: Story) -> bool:
    """Whether nobody but the journal knows the account: it was inside a program that has ended.

    Raises:
        ValueError: it does not say what was traded.
    """
    if call.mode == "paper":
        return True
    if story.facts is None:
        raise ValueError(
            f"{path} does not say which contracts were traded: compare it alone, with mode=paper"
        )
    return story.facts.exchange.endswith(", paper")


def _ask_exchange(story: Story, call: Call, environment: Mapping[str, str]) -> list[Difference]:
    """What the exchange's records say otherwise."""
    assert story.facts is not None
    keys, bar = read_keys(call, environment), timeframe(story.facts.bar_ms)
    with DeskThread() as thread:
        try:
            broker = thread.call(make_exchange(call, story.facts.contracts, bar, keys))
            return thread.call(compare(story, broker))
        except BrokerError as error:
            raise ValueError(f"{call.exchange}, {call.mode}: {error}; mode=paper compares without") from error
