"""Which of an account's decisions is taken apart, and what was known when it was taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perpgym.agents.asking import Asking
from perpgym.agents.protocol import MaskedAgent
from perpgym.agents.trained import TrainedAgent
from perpgym.data.bars import CLOSE
from perpgym.data.tape import Tape
from perpgym.envs.buffers import StepBuffers
from perpgym.envs.config import EnvConfig
from perpgym.envs.margin import worth
from perpgym.envs.risk.limits import RiskLimits
from perpgym.envs.spaces import ACCOUNT_NAMES, CONTRACT_LEDGER, LEDGER
from perpgym.envs.vector import PerpVecEnv
from perpgym.evaluation.backtest import Progress
from perpgym.policies.deciding import Remembering

Floats = NDArray[np.float64]
# exposures are compared in float32
_SLACK = 1e-5

LARGEST_TRADE = "the largest trade that the policy asked for and got"
NOTHING_ASKED = "the largest change of exposure: in this period the policy asked for no trade that filled"
CHOSEN_TIME = "the time that was asked for"


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """What an account's agent knew at a close, and what it did.

    Attributes:
        tape: the market.
        bar: index of the newest closed bar.
        state: (S,) raw account columns, portfolio columns, then what the policy remembered.
        action: (action_dim,).
        exposure: (A,) signed, before the decision.
        chosen_as: in words, why this decision and no other.
    """

    tape: Tape
    bar: int
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    exposure: Floats
    chosen_as: str = CHOSEN_TIME


def replay_decision(
    agent: MaskedAgent,
    tape: Tape,
    *,
    start_bar: int,
    end_bar: int,
    config: EnvConfig,
    limits: RiskLimits,
    bar: int | None = None,
    progress: Progress | None = None,
) -> Decision:
    """Let the agent trade from ``start_bar`` on, as a backtest does, and return one of its decisions.

    Args:
        agent: usually a trained one; whatever it remembers at a decision is kept with it.
        tape: the market.
        start_bar, end_bar: the period.
        config, limits: of the account.
        bar: of the decision, within the period. None takes the one that asked for the largest trade and got
            it: stops, liquidations and limits move an account too, and were not decided. Where no trade was
            asked for, the decision before the largest change of exposure; ``chosen_as`` says so.
        progress: called with (bars booked, bars of the period) after every bar.

    Raises:
        ValueError: ``bar`` is outside the period, or the account had ended before.
    """
    if bar is not None and not start_bar <= bar < end_bar - 1:
        raise ValueError(f"the decision must lie at a bar from {start_bar} to {end_bar - 2}, was {bar}")
    traded: tuple[float, Decision | None] = 0.0, None
    moved: tuple[float, Decision | None] = -1.0, None
    for decision, trade, move in _decisions(agent, tape, start_bar, end_bar, config, limits):
        if progress is not None:
            progress(decision.bar + 1 - start_bar, end_bar - start_bar - 1)
        if decision.bar == bar:
            return decision
        if trade > traded[0]:
            traded = trade, replace(decision, chosen_as=LARGEST_TRADE)
        if move > moved[0]:
            moved = move, replace(decision, chosen_as=NOTHING_ASKED)
    found = traded[1] or moved[1]
    if bar is not None or found is None:
        raise ValueError(f"the account had ended before bar {bar}: choose an earlier one")
    return found


def _decisions(
    agent: MaskedAgent,
    tape: Tape,
    start_bar: int,
    end_bar: int,
    config: EnvConfig,
    limits: RiskLimits,
) -> Iterator[tuple[Decision, float, float]]:
    """Every decision until the account ends, the exposure that it asked for and got, and how far it moved."""
    bars = end_bar - start_bar - 1
    env = PerpVecEnv(
        tape, n_paths=1, config=replace(config, episode_bars=bars, restart="flat"), limits=limits,
        start_bar=start_bar, end_bar=end_bar, seed=0,
    )  # fmt: skip
    out, asking = env.make_buffers(), Asking(config)
    env.reset_into(out, seed=0)
    for _ in range(bars):
        now, before = int(out.bar[0]), out.account[0, :, ACCOUNT_NAMES.index("exposure")].astype(np.float64)
        state = np.concatenate((out.account[0].ravel(), out.portfolio[0]))
        masks = env.action_masks() if config.choices else None
        action = agent.act(tape, now, out.account, out.portfolio, masks)
        if isinstance(agent, TrainedAgent) and isinstance(agent.policy, Remembering):
            state = np.concatenate((state, agent.in_force[0].cpu().numpy()))
        asked = (asking.exposures(action, out.account) - asking.asked(out.account))[0]  # A
        env.step_into(action, out)
        yield (
            Decision(tape=tape, bar=now, state=state, action=action[0].copy(), exposure=before),
            float(_got(asked, out, tape, now).sum()),
            float(np.abs(out.holdings[0, :, CONTRACT_LEDGER["exposure"]] - before).sum()),
        )
        if out.terminated[0]:
            return


def _got(asked: Floats, out: StepBuffers, tape: Tape, bar: int) -> Floats:
    """(A,) of the change of exposure that was asked for, what its order filled; never what a stop did.

    Args:
        asked: (A,) signed notional over equity, beyond what stood.
        out: after the step.
        tape, bar: of the decision.
    """
    column, books = CONTRACT_LEDGER, out.holdings[0]  # A H
    units = [
        abs(worth(tape.mark[bar, asset, CLOSE], float(contract.kind == "inverse")))
        for asset, contract in enumerate(tape.contracts)
    ]
    filled = books[:, column["filled"]] * units / out.ledger[0, LEDGER["equity_before"]]
    # the price is that of the order alone; what a stop filled in the same bar stands in the amount too
    is_own = (books[:, column["fill_price"]] != 0.0) & (np.abs(asked) > _SLACK)
    # what a limit sold where more was asked for, nobody asked for
    return np.where(is_own, np.clip(np.sign(asked) * filled, 0.0, np.abs(asked)), 0.0)
