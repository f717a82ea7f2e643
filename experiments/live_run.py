"""The loop of a live account: see, decide, trade, settle; and how it stops."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perpgym.agents.protocol import Agent, LiveAgent, MaskedAgent
from perpgym.envs.live.env import LiveEnv, Observation
from perpgym.envs.live.instance_lock import AccountTaken
from perpgym.envs.live.recovery import StartRefused
from perpgym.envs.live.thread import DeskThread, Interrupted
from perpgym.envs.live.wishes import NoteLevel

_LOG = logging.getLogger(__name__)
# how often somebody looks for the kill file
_LOOK_S = 0.5
# under which a journal keeps whose memory it is
_OWNER = "agent"
# how loudly an end is told
ORDINARY: NoteLevel = "info"
TROUBLE: NoteLevel = "alarm"


@dataclass(frozen=True, kw_only=True)
class Decided:
    """One decision and what came of it.

    Attributes:
        number: as the journal and the page count them.
        bar_close_ms: at which it was taken.
        action: what the agent asked for.
        reward, info: of the step.
        seconds: that the agent took to decide.
    """

    number: int
    bar_close_ms: int
    action: NDArray[np.float32]
    reward: float
    info: dict[str, Any]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended.

    Attributes:
        why: in words.
        is_done: the account is as ``on_stop`` asks; else somebody must look at it.
        left: what stays open, in words, a line each.
    """

    why: str
    is_done: bool
    left: tuple[str, ...] = ()


class Stop:
    """Somebody wants the program to end: a signal, a file, or another thread.

    Attributes:
        reason: why; empty while nobody does.
    """

    def __init__(self, thread: DeskThread, kill_file: Path) -> None:
        self._thread, self._kill_file = thread, kill_file
        self.reason = ""
        self._is_over = threading.Event()

    def want(self, reason: str) -> None:
        """End as soon as nothing is half done."""
        self.reason = self.reason or reason
        self._thread.stop_wanted.set()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self.want(f"{name} (Ctrl-C)" if number == signal.SIGINT else name)

    def _watch(self) -> None:
        while not self._is_over.wait(_LOOK_S):
            if self._kill_file.exists():
                self.want(f"the kill file {self._kill_file}")
                return

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear signals and look for the kill file.

        Raises:
            ValueError: the kill file is there already.
        """
        if self._kill_file.exists():
            raise ValueError(f"the kill file {self._kill_file} is there: remove it to trade again")
        before = {name: signal.signal(name, self._on_signal) for name in (signal.SIGINT, signal.SIGTERM)}
        watcher = threading.Thread(target=self._watch, name="perpgym-kill-file", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self._is_over.set()
            watcher.join()
            for name, handler in before.items():
                signal.signal(name, handler)


def run_live(
    env: LiveEnv,
    agent: LiveAgent,
    stop: Stop,
    *,
    on_stop: str,
    decisions: int | None = None,
    on_start: Callable[[dict[str, Any]], None] = lambda _info: None,
    on_decision: Callable[[Decided], None] = lambda _decided: None,
    seconds: Callable[[], float],
) -> Ended:
    """Trade until somebody wants to stop, the episode ends, or ``decisions`` are made; then stop as asked.

    Args:
        env: not started yet.
        agent: what decides.
        stop: listening.
        on_stop: ``freeze`` or ``flatten``.
        decisions: at most so many.
        on_start, on_decision: told what happens.
        seconds: a clock, for how long a decision takes.

    Returns:
        Why it stopped, and how it left the account.
    """
    reason, told = "", TROUBLE
    try:
        seen, info = env.reset()
        on_start(info)
        _restore(env, agent)
        reason, told = _decide_on(env, agent, stop, seen, decisions, on_decision, seconds)
    except Interrupted:
        reason, told = stop.reason or "a stop was asked for", ORDINARY
    except (StartRefused, AccountTaken) as error:
        # what is not to be traded on is not to be closed either
        on_stop, reason = "nothing", f"the start was refused: {error}"
        raise
    except BaseException as error:
        reason = f"the program failed: {type(error).__name__}: {error}"
        raise
    finally:
        ended = _wind_down(env, on_stop, reason, told)
    return ended


def _decide_on(
    env: LiveEnv,
    agent: LiveAgent,
    stop: Stop,
    seen: Observation,
    decisions: int | None,
    on_decision: Callable[[Decided], None],
    seconds: Callable[[], float],
) -> tuple[str, NoteLevel]:
    """Decide bar by bar; (why it ended, how loudly that is told)."""
    made = 0
    while decisions is None or made < decisions:
        if stop.reason:
            return stop.reason, ORDINARY
        made += 1
        begun, close_ms = seconds(), env.close_ms
        action = decide(env, agent, seen)
        memory = {_OWNER: np.array(agent.name), **agent.state_dict()}
        env.journal.agent_state(env.journal.last_decision_id() + 1, memory)
        took = seconds() - begun
        seen, reward, is_over, _cut, info = env.step(action)
        number = env.journal.last_decision_id()
        on_decision(
            Decided(
                number=number, bar_close_ms=close_ms, action=action, reward=reward, info=info, seconds=took
            )
        )  # fmt: skip
        if is_over:
            return "the episode is over: liquidation or ruin", TROUBLE
    return "all decisions are made", ORDINARY


def decide(env: LiveEnv, agent: Agent, seen: Observation) -> NDArray[np.float32]:
    """The agent's action at the newest close, within the masks if it reads them."""
    shown = env.tape, env.bar, seen["account"][None], seen["portfolio"][None]
    actions: NDArray[np.float32]  # 1 A*d
    if env.config.choices and isinstance(agent, MaskedAgent):
        actions = agent.act(*shown, env.action_masks()[None])
    else:
        actions = agent.act(*shown)
    action: NDArray[np.float32] = actions[0]
    return action


def _restore(env: LiveEnv, agent: LiveAgent) -> None:
    """What the agent remembered when the program ended; it goes on from there at whichever bar is now.

    What another one remembered means nothing to it: it takes over the account, and begins without a memory.
    """
    kept = env.journal.last_agent_state()
    if kept is None:
        return
    memory = dict(kept[1])
    owner = str(memory.pop(_OWNER, ""))
    if owner == agent.name:
        agent.load_state(memory)
    else:
        _LOG.warning("%s traded here before; %s takes the account over", owner or "somebody else", agent.name)


def _wind_down(env: LiveEnv, on_stop: str, reason: str, told: NoteLevel) -> Ended:
    """Freeze or flatten, say what stays open, then let go."""
    is_done, left = False, ["what stays open is not known"]
    try:
        is_done = on_stop != "nothing" and env.thread.call(_end(env, on_stop)(reason, told))
        left = env.thread.call(env.desk.left())
    except Exception as error:
        # whoever reads this must look at the account, whatever it was
        left = [f"what stays open is not known ({type(error).__name__})"]
        _LOG.critical("%s has failed: %s", on_stop, error)
    finally:
        if not is_done and on_stop != "nothing":
            _LOG.critical("%s is not complete: look at the account yourself, now", on_stop)
        if told != ORDINARY or not is_done:
            # nobody may be left to print what is returned
            for line in left:
                _LOG.warning("left open: %s", line)
        env.close()
    return Ended(why=reason, is_done=is_done, left=tuple(left))


def _end(env: LiveEnv, on_stop: str) -> Callable[[str, NoteLevel], Coroutine[Any, Any, bool]]:
    """How the desk is ended; a start that failed may have left orders and positions of an earlier program."""
    if env.is_started:
        return env.desk.flatten if on_stop == "flatten" else env.desk.freeze
    return env.desk.flatten_unstarted if on_stop == "flatten" else env.desk.freeze_unstarted
