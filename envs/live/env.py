"""LiveEnv: an account at an exchange, behind the interface that its agent was trained on."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from perpgym.data.clock import iso
from perpgym.data.contract import Contract
from perpgym.data.tape import Tape
from perpgym.envs.actions import ACTION_DIM, action_space
from perpgym.envs.batch import first_bad_action
from perpgym.envs.buffers import StepBuffers
from perpgym.envs.config import EnvConfig
from perpgym.envs.live.books import Books, warm_up
from perpgym.envs.live.broker import Broker
from perpgym.envs.live.desk import Desk
from perpgym.envs.live.feed import Feed, IncompleteBar, News
from perpgym.envs.live.insist import insist
from perpgym.envs.live.journal import Journal
from perpgym.envs.live.ring import ClosedBar, Ring, bars_kept
from perpgym.envs.live.thread import DeskThread
from perpgym.envs.live.wishes import Decision, Settled
from perpgym.envs.rules import make_choices
from perpgym.envs.spaces import LEDGER, LEDGER_COLUMNS, TOTAL_COLUMNS, window_space

_LOG = logging.getLogger(__name__)
# how long a settlement says what is: inference and little more
_FRESH_S = 2.0
# summed where several bars pass in one step; of the others the last bar's count
_SUMMED = [LEDGER[name] for name in (*TOTAL_COLUMNS, "fills")]
_EVER = [LEDGER[name] for name in ("liquidated", "stopped", "reward_floored")]
_BEFORE = LEDGER["equity_before"]

Observation = dict[str, NDArray[Any]]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LiveConfig:
    """How a live account is run.

    Attributes:
        late_ms: after the newest close, at most half a bar; a decision that is later is not carried out, and
            a start that is later waits for the next close.
        funding_patience_ms: most that is waited for a settlement's income to be told.
        longest_gap_bars: a restart after more bars takes the exchange's word and begins its memories anew.

    Raises:
        ValueError: a number is negative.
    """

    late_ms: int = 120_000
    funding_patience_ms: int = 10_000
    longest_gap_bars: int = 500

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, was {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What of the market is shown: names of the features and of the risk columns, in the policy's order."""

    features: tuple[str, ...]
    risk: tuple[str, ...]


class LiveEnv(gym.Env[Observation, NDArray[np.float32]]):
    """One account at an exchange. Spaces, overlay, sizing, books, reward and order of events are PerpEnv's.

    ``reset`` starts the desk (which finds out what the account is), reads the history and returns the
    observation of the newest closed bar. ``step`` decides at that close, has the desk trade, waits for the
    next final bar, has the desk settle, and books the bar from what the exchange says happened. A step lasts
    until a decision is possible again: where a bar was not final in time it spans several, whose rewards are
    summed (``info["bars"]``).

    An action that is not finite or not in the space is not sent: nothing is traded in that bar, and ``info``
    says so. *terminated* as in PerpEnv (liquidation of the cross positions, drawdown of ``max_drawdown``);
    never *truncated*.

    ``info`` is PerpEnv's, with ``bars``; ``is_whole`` and ``why`` of the settlement; ``desk``, the desk's
    state, and ``reasons``; ``skipped``, why nothing was decided.

    Args:
        broker, journal, desk: of one account; they run in ``thread``.
        books: the desk's.
        feed: the market.
        thread: the desk thread.
        contracts: their rules, in the policy's order.
        columns: what of the market is shown.
        live: see there.
        lookback_bars: valid bars that the agent reads, where its window is shorter.
        keeps_observations: whether the journal keeps them whole, not only their hash.

    Raises:
        ValueError: the env's settings cannot be traded live.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's

    def __init__(
        self,
        *,
        broker: Broker,
        journal: Journal,
        desk: Desk,
        books: Books,
        feed: Feed,
        thread: DeskThread,
        contracts: Sequence[Contract],
        columns: Columns,
        live: LiveConfig | None = None,
        lookback_bars: int = 0,
        keeps_observations: bool = False,
    ) -> None:
        self.config = books.config
        check_live(self.config)
        self.broker, self.journal, self.desk, self.books = broker, journal, desk, books
        self.feed, self.thread, self.columns = feed, thread, columns
        self.live = live or LiveConfig()
        self._lookback_bars, self._keeps_observations = lookback_bars, keeps_observations
        window, count = self.config.window_bars, len(contracts)
        space: Any = window_space(count, len(columns.features), len(columns.risk), window)
        self.observation_space = space
        self.action_space = action_space(self.config.action, count, self.config.choices)
        self._counts = make_choices(self.config).counts
        self._width = ACTION_DIM[self.config.action] * count
        self._buffers = StepBuffers.allocate(1, count, None, len(columns.features), len(columns.risk))
        self._totals = np.zeros(len(TOTAL_COLUMNS))
        self._ring: Ring | None = None
        self._is_open = self._is_trading = False
        # until when what the last settlement said counts as what is
        self._settled_until_s = 0.0
        self._observation: Observation | None = None

    # --- what an agent is shown ---

    @property
    def ring(self) -> Ring:
        """The newest bars. Raises ResetNeeded before there are any."""
        if self._ring is None:
            raise gym.error.ResetNeeded("the live env has not started: call reset() first")
        return self._ring

    @property
    def is_started(self) -> bool:
        """Whether there is a desk to stop."""
        return self._is_trading

    @property
    def tape(self) -> Tape:
        """The newest bars as agents read them (``agents.protocol.Agent``)."""
        return self.ring.tape

    @property
    def bar(self) -> int:
        """Index on :attr:`tape` of the newest closed bar."""
        return self.ring.newest

    @property
    def close_ms(self) -> int:
        """When it closed."""
        return self.ring.next_open_ms

    def action_masks(self) -> NDArray[np.bool_]:
        """Which choices are allowed now, (A * sum(choices),) bool."""
        return self.thread.do(self.books.masks)

    # --- starting ---

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start the desk and warm up; ``seed`` and ``options`` mean nothing to an exchange.

        Raises:
            perpgym.envs.live.insist.StartRefused: the account cannot be what it must be.
            perpgym.envs.live.instance_lock.AccountTaken: somebody else trades on it.
            perpgym.envs.live.feed.IncompleteBar: the exchange has too little history, for as long as a start
                may take.
            perpgym.envs.live.broker.BrokerError: it did not answer for so long.
            Interrupted: somebody wants to stop.
        """
        super().reset(seed=seed)
        self._totals[:] = 0.0
        self._is_open = True
        self._ask(self.broker.open)
        saved = self._saved_books()
        close_ms = None if saved is None else int(saved["close_ms"])
        config = self.config
        usual = max(config.impact.usual_bars(self.feed.bar_ms), self._lookback_bars)
        names = (self.columns.features, self.columns.risk)
        keep = bars_kept(*names, self.feed.bar_ms, config.window_bars, usual)
        bars = self._ask(lambda: self.feed.history(keep, close_ms))
        self._ring = Ring(
            bars, features=names[0], risk=names[1], window_bars=config.window_bars, usual_bars=usual
        )
        warm_up(config, self.books.limits, self.tape)
        self.thread.do(lambda: self._begin_books(saved))
        self.thread.call(self.desk.start(), is_patient=False)
        self._is_trading = True
        if saved is not None and self.feed.newest_open_ms() >= self.close_ms:
            self._pass_without_decision()
        elif saved is None and self._is_late():
            _LOG.info("the close of %s UTC is too long ago: waiting for the next one", iso(self.close_ms))
            self._pass_without_decision()
        seen = self.thread.do(self._observe)
        return seen, {"time_ms": self.close_ms, **self._desk_info()}

    def _ask(self, question: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What a start must know; asked again for as long as the desk's own start is tried."""
        asking = insist(
            question, self.broker, self.desk.timings,
            lambda why: _LOG.warning("the start waits: %s", why), missing=IncompleteBar,
        )  # fmt: skip
        return self.thread.call(asking, is_patient=False)

    def _saved_books(self) -> dict[str, NDArray[Any]] | None:
        """What the journal kept of the books, if it is not too old."""
        snapshot = self.journal.last_snapshot()
        if snapshot is None or "close_ms" not in snapshot.books:
            return None
        gap = (
            self.feed.newest_open_ms() + self.feed.bar_ms - int(snapshot.books["close_ms"])
        ) / self.feed.bar_ms
        return snapshot.books if 0 <= gap <= self.live.longest_gap_bars else None

    def _begin_books(self, saved: dict[str, NDArray[Any]] | None) -> None:
        """Show them the market, and what they knew, before the desk looks: it holds the stops that they want.

        The desk books what happened since, and takes the exchange's word where that does not explain the
        account.
        """
        self.books.see(self.tape)
        if saved is not None:
            self.books.load_state(saved)
            self.books.expect(order for order in self.journal.orders() if not order.is_stop)

    def _pass_without_decision(self) -> None:
        news = self.thread.call(self.feed.wait(self.ring), is_patient=False)
        self.thread.call(self._settle_undecided(news))

    async def _settle_undecided(self, news: News) -> None:
        settled, *_rest = await self._settle(news)
        # books that were saved before a decision do not know its stops
        self.books.keep_stops(settled.truth)

    # --- one decision ---

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Decide at the newest close, trade, wait for the next final bar, settle.

        Raises:
            Interrupted: somebody wants to stop; the account is as the desk has it.
        """
        if self._observation is None:
            raise gym.error.ResetNeeded("the live env has not started: call reset() first")
        skipped = self.thread.call(self._trade(np.asarray(action, np.float32).reshape(-1)))
        news = self.thread.call(self.feed.wait(self.ring), is_patient=False)
        settled, reward, is_terminated, info = self.thread.call(self._settle(news))
        info |= {"is_whole": settled.is_whole, "why": settled.why, "skipped": skipped, **self._desk_info()}
        assert self._observation is not None
        return self._observation, reward, is_terminated, False, info

    def _is_late(self) -> bool:
        """Whether the newest close is too long ago to decide on it."""
        return self.broker.now_ms() - self.close_ms > min(self.live.late_ms, self.feed.bar_ms // 2)

    async def _trade(self, action: NDArray[np.float32]) -> str:
        """Carry out an action, in the desk thread; returns why it was skipped, empty if it was not."""
        note = ""
        if action.shape != (self._width,) or first_bad_action(action[None], self._counts) >= 0:
            note = f"the action is not finite or not in {self.action_space}: {action}; nothing is traded"
        elif self._is_late():
            note = f"the decision for the close of {iso(self.close_ms)} UTC came too late; nothing is traded"
        if note:
            _LOG.error(note)
        bits = self._decide(action, is_skipped=bool(note))
        decision = Decision(
            id=self.journal.last_decision_id() + 1, bar_close_ms=self.close_ms, limits_hit=bits, note=note,
            observation_hash=observation_hash(self._observation or {}),
            action=[float(x) for x in action if math.isfinite(x)],
        )  # fmt: skip
        wishes = [] if note else self.books.wishes()
        kept = self._observation if self._keeps_observations else None
        is_settled = time.monotonic() < self._settled_until_s
        self.books.expect(await self.desk.trade(decision, wishes, kept, is_settled=is_settled))
        return note

    def _decide(self, action: NDArray[np.float32], *, is_skipped: bool) -> int:
        if is_skipped:
            self.books.keep_still()
            return 0
        return self.books.decide(action)

    async def _settle(self, news: News) -> tuple[Settled, float, bool, dict[str, Any]]:
        """Book every bar that closed, from what the exchange says of it, and observe; in the desk thread.

        Nothing is waited for once the account is settled: nobody else books in between.
        """
        close_ms = news.bars[-1].open_time_ms + self.feed.bar_ms
        settled = await self._settle_whole(close_ms, news.bars[-1])
        self.books.expect(settled.orders)
        self._take_in(news)
        ledger, reward, is_over = np.zeros(len(LEDGER_COLUMNS)), 0.0, False
        for number, bar in enumerate(news.bars):
            if number > 0:
                self.ring.push(bar)
            gained, is_terminated = self._close_bar(number == 0)
            reward, is_over = reward + gained, is_over or is_terminated
            _add(ledger, self.books.account.ledger, is_first=number == 0)
        # something may have filled since
        if settled.is_whole and not self.books.compare(settled.truth):
            self.books.trust(settled.truth)
            self._settled_until_s = time.monotonic() + _FRESH_S
        self._totals += ledger[[LEDGER[name] for name in TOTAL_COLUMNS]]
        info: dict[str, Any] = dict(zip(LEDGER_COLUMNS, ledger.tolist(), strict=True))
        info |= {
            f"total_{name}": total for name, total in zip(TOTAL_COLUMNS, self._totals.tolist(), strict=True)
        }
        info["contracts"] = self.books.account.holdings.copy()
        info["time_ms"], info["bars"] = self.close_ms, len(news.bars)
        self._observe()
        return settled, reward, is_over, info

    def _take_in(self, news: News) -> None:
        """What the exchange has revised, and the first of the bars that closed."""
        if news.revised:
            _LOG.warning("%d closed bars were revised by the exchange", len(news.revised))
            self.ring.revise(news.revised)
        self.ring.push(news.bars[0])

    async def _settle_whole(self, close_ms: int, bar: ClosedBar) -> Settled:
        """Settle, and wait a while for a settlement that is due and not told."""
        settled = await self.desk.settle(close_ms)
        until = self.broker.now_ms() + self.live.funding_patience_ms
        while self.books.awaits_funding(bar) and self.broker.now_ms() < until:
            await self.feed.clock.pause(self.feed.config.reread_ms)
            again = await self.desk.settle(close_ms)
            settled = Settled(
                fills=settled.fills + again.fills, income=settled.income + again.income, truth=again.truth,
                is_whole=again.is_whole, why=again.why, orders=settled.orders + again.orders,
            )  # fmt: skip
        if missing := self.books.awaits_funding(bar):
            _LOG.warning("the settlement of %s was not told yet; it is booked when it is", ", ".join(missing))
        return settled

    def _close_bar(self, is_decided: bool) -> tuple[float, bool]:
        if not is_decided:
            self.books.keep_still()
        return self.books.close_bar(self.tape)

    def _observe(self) -> Observation:
        self._observation = self.books.observe(self.tape, self._buffers)
        return self._observation

    def _desk_info(self) -> dict[str, Any]:
        status = self.desk.status()
        return {"desk": status.state, "reasons": status.reasons}

    def close(self) -> None:
        """Stop the desk: what rests is cancelled, positions are left to their stops."""
        if self._is_trading:
            self.thread.call(self.desk.stop())
        elif self._is_open:
            self.thread.call(self.broker.close())
        self._ring, self._observation = None, None
        self._is_trading = self._is_open = False


def check_live(config: EnvConfig) -> None:
    """Raises ValueError where an env's settings mean nothing at an exchange, or cannot be had there."""
    for name, allowed in (("limits", "on"), ("cost", "exchange"), ("terminal", "hold"), ("rounding", "on")):
        if getattr(config, name) != allowed:
            raise ValueError(
                f"live trading needs env.{name}={allowed}, was {getattr(config, name)}: train the policy so"
            )
    if config.latency_ms or config.latency_bars:
        raise ValueError("live trading has the latency that it has: train with latency_ms and latency_bars 0")
    if config.reward_on_conditional_mean:
        raise ValueError("reward_on_conditional_mean needs a market that knows its mean: no real one does")


def observation_hash(observation: Mapping[str, NDArray[Any]]) -> str:
    """sha256 of what an agent saw, over names and bytes."""
    digest = hashlib.sha256()
    for name in sorted(observation):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(observation[name]).tobytes())
    return digest.hexdigest()


def _add(ledger: NDArray[np.float64], booked: NDArray[np.float64], *, is_first: bool) -> None:
    """Several bars' ledgers as one."""
    summed, ever, before = ledger[_SUMMED], ledger[_EVER], ledger[_BEFORE]
    ledger[:] = booked
    ledger[_SUMMED] += summed
    ledger[_EVER] = np.maximum(ledger[_EVER], ever)
    if not is_first:
        ledger[_BEFORE] = before
