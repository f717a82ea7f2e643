"""Let an agent act on given stretches of a tape, all at once, and keep what it held and earned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.envs.actions import ActionKind, exposure_to_action
from perpgym.envs.buffers import StepBuffers
from perpgym.envs.spaces import ACCOUNT_NAMES, LEDGER
from perpgym.policies.bound_tape import BoundTape
from perpgym.policies.deciding import Policy, Remembering

Floats = NDArray[np.float64]
Actions = NDArray[np.float32]
# from how many bars were played and what is seen now to the actions of all accounts
Act = Callable[[int, StepBuffers], Actions]
# from the features (N, F) of a bar and the exposures (N,) held to those to hold next
Rule = Callable[[Floats, Floats], Floats]

_EXPOSURE = ACCOUNT_NAMES.index("exposure")


@dataclass(frozen=True, kw_only=True)
class Stretches:
    """Where an agent is judged.

    Attributes:
        tape: the market.
        env: the account; it starts flat, or with the env's ``initial_exposure``.
        starts: (N,) bars at whose close the first decision is taken.
        bars: booked from each start on.
        warmup: of these, bars that do not count.
        with_windows: whether the market is seen in windows instead of by the index of a bar.
    """

    tape: Tape
    env: EnvConfig
    starts: NDArray[np.int64]
    bars: int
    warmup: int = 0
    with_windows: bool = False

    def seen_by(self, *, action: ActionKind, with_windows: bool) -> Stretches:
        """The same market, for an agent with these actions and eyes."""
        return replace(self, env=replace(self.env, action=action), with_windows=with_windows)


# what an agent does on given stretches
Agent = Callable[[Stretches], Act]


@dataclass(frozen=True, kw_only=True)
class Played:
    """What happened after the warm-up, over T = ``bars - warmup`` bars of N accounts.

    Attributes:
        reward: (T, N), the env's, before ``reward_scale``.
        exposure: (T, N), at the end of each bar.
    """

    reward: Floats
    exposure: Floats


def play(stretches: Stretches, agent: Agent) -> Played:
    """Book every stretch at once, one account each."""
    env, out = _env_at_starts(stretches)
    act = agent(stretches)
    reward = np.empty((stretches.bars, env.num_envs))
    exposure = np.empty_like(reward)
    for step in range(stretches.bars):
        env.step_into(act(step, out), out)
        reward[step], exposure[step] = out.reward, out.ledger[:, LEDGER["exposure"]]
    counted = slice(stretches.warmup, None)
    return Played(reward=reward[counted] / stretches.env.reward_scale, exposure=exposure[counted])


def _env_at_starts(stretches: Stretches) -> tuple[PerpVecEnv, StepBuffers]:
    """An env whose paths begin where the stretches do; by itself it draws its starts at random."""
    env = PerpVecEnv(
        stretches.tape,
        n_paths=stretches.starts.size,
        config=replace(stretches.env, restart="flat"),
        with_windows=stretches.with_windows,
    )
    out = env.make_buffers()
    env.reset_into(out, 0)
    state = env.state_dict()
    env.load_state_dict(state | {"path_bar": stretches.starts, "path_end": stretches.starts + stretches.bars})
    env.observe_into(out)
    return env, out


def follow(rule: Rule) -> Agent:
    """Act by a rule on the tape's features."""

    def agent(stretches: Stretches) -> Act:
        features = stretches.tape.features[:, 0].astype(np.float64)
        env = stretches.env

        def act(step: int, out: StepBuffers) -> Actions:
            del step
            held = out.account[:, 0, _EXPOSURE].astype(np.float64)
            wanted = rule(features[out.bar], held)
            return exposure_to_action(wanted, action=env.action, max_exposure=env.max_exposure)

        return act

    return agent


def follow_policy(policy: Policy) -> Agent:
    """Act as a policy decides, deterministically; every bar is encoded once."""

    @torch.no_grad()
    def agent(stretches: Stretches) -> Act:
        bound = BoundTape.of(stretches.tape, policy.device)
        starts = torch.from_numpy(stretches.starts)
        context = policy.features_extractor.stretch_context(starts, stretches.bars, bound)  # N T C

        memory = torch.zeros(len(starts), policy.memory_size if isinstance(policy, Remembering) else 0)

        @torch.no_grad()
        def act(step: int, out: StepBuffers) -> Actions:
            nonlocal memory
            account = torch.from_numpy(out.account).flatten(1)
            state = torch.cat((account, torch.from_numpy(out.portfolio)), dim=1)  # N S
            if isinstance(policy, Remembering):
                memory = policy.remember(context[:, step], state, memory)
                state = torch.cat((state, memory), dim=1)
                memory = policy.forget(memory)
            actions: Actions = policy.decide(context[:, step], state).numpy()  # N a
            return actions

        return act

    return agent
