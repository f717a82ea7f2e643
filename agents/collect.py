"""Fill a rollout: encode each path's stretch of tape in one pass, then step the accounts along it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from perpgym.agents.objective import Objective
from perpgym.agents.rollout import PathRollout
from perpgym.envs.buffers import StepBuffers
from perpgym.envs.vector import PerpVecEnv
from perpgym.policies.stretch_actor import StretchActor

# of the values, which are computed after the last step
_SAMPLES_AT_ONCE = 1_024


class Driver(Protocol):
    """Who acts along encoded paths, and keeps in the rollout what its update needs of that.

    A rollout calls ``act`` and then ``booked`` once a step, and ``finish`` after the last.
    """

    def act(self, step: int) -> torch.Tensor:
        """(P, K, a) actions of the env, from ``rollout.state[:, step]``, which holds what is observed."""
        ...

    def booked(self, step: int, out: StepBuffers, ended: NDArray[np.bool_]) -> None:
        """The env has booked the step; ``ended`` (N,) says for whom an episode is over."""
        ...

    def finish(self) -> None:
        """``rollout.state`` holds what is observed after the last step too."""
        ...


class FlatDriver:
    """One policy that acts at every bar.

    Args:
        objective: of the policy.
        env: the batch env.
        rollout: filled in place.
        context: (P, T + 1, C), which follows the paths as they jump.
        noise: of the exploration.
    """

    def __init__(
        self,
        objective: Objective,
        env: PerpVecEnv,
        rollout: PathRollout,
        context: torch.Tensor,
        noise: torch.Generator,
    ) -> None:
        self.policy, self.env, self.rollout, self.context = objective.policy, env, rollout, context
        self.heads = self.policy.action_heads
        # cut up once: at the size of one step, finding the place costs as much as the work
        perturbation = self.heads.perturbation(self.heads.noise(rollout.log_prob.shape, noise))  # P T K .
        self._perturbation = perturbation.unbind(1)  # T of P K .
        self._actions, self._state = rollout.actions.unbind(1), rollout.state.unbind(1)
        self._masks: Sequence[torch.Tensor | None] = [None] * rollout.n_steps
        if rollout.masks is not None:
            self._masks = rollout.masks.unbind(1)  # T of P K m
        self.actor = StretchActor(self.policy, context)
        self._parameters: list[torch.Tensor] = []
        self.final_value = np.zeros(rollout.reward.shape)  # T N

    def act(self, step: int) -> torch.Tensor:
        """Sample; see :class:`Driver`."""
        parameters = self.actor.parameters(step, self._state[step])
        return self.sample(step, parameters, self.allowed(step))

    def allowed(self, step: int) -> torch.Tensor | None:
        """(P, K, m) bool of the rollout, which choices the env allows now; None for continuous actions."""
        if (allowed := self._masks[step]) is not None:
            allowed.copy_(torch.from_numpy(self.env.action_masks()).view(allowed.shape))
        return allowed

    def sample(self, step: int, parameters: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
        """(P, K, a) actions, kept in the rollout with what their probabilities are computed from."""
        self._parameters.append(parameters)
        sampled = self.heads.sample(parameters, self._perturbation[step], allowed)
        self._actions[step].copy_(sampled)
        return self._actions[step]

    def booked(self, step: int, out: StepBuffers, ended: NDArray[np.bool_]) -> None:
        """Value the observations at which accounts were truncated."""
        accounts = np.flatnonzero(out.truncated)
        if accounts.size:
            context, state = self.final_states(step, out, accounts)
            self.final_value[step, accounts] = self.policy.state_values(context, state).cpu().numpy()

    def final_states(
        self, step: int, out: StepBuffers, accounts: NDArray[np.int64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, C) contexts and (n, S) states of the observations before these accounts' restart.

        The final bar is the next one of the stretch that was left, so its context is already there.
        """
        paths = torch.from_numpy(accounts // self.env.accounts_per_path).to(self.context.device)
        account = torch.from_numpy(out.final_account[accounts]).flatten(1)
        portfolio = torch.from_numpy(out.final_portfolio[accounts])
        state = torch.cat((account, portfolio), dim=1).to(self.context.device)  # n S
        return self.context[paths, step + 1], state

    def finish(self) -> None:
        """Values and probabilities of the whole rollout at once, then advantages."""
        rollout = self.rollout
        # what no step depends on is computed for all steps at once, but for few paths: what fits the cache
        # need not be fetched
        paths = -(-_SAMPLES_AT_ONCE // rollout.state[0, :, :, 0].numel())
        for first in range(0, rollout.n_paths, paths):
            self.value(slice(first, first + paths))
        parameters = torch.stack(self._parameters, 1)
        rollout.log_prob.copy_(self.heads.log_prob(parameters, rollout.actions, rollout.masks))
        rollout.finish(self.final_value)

    def value(self, some: slice) -> None:
        """Put the values of some paths' states into the rollout."""
        rollout = self.rollout
        values = self.policy.state_values(self.context[some].unsqueeze(2), rollout.state[some])
        rollout.values[some] = values


# makes a driver from objective, env, rollout, context and noise
DriverFactory = Callable[[Objective, PerpVecEnv, PathRollout, torch.Tensor, torch.Generator], Driver]


@torch.inference_mode()
def collect(
    objective: Objective,
    env: PerpVecEnv,
    out: StepBuffers,
    rollout: PathRollout,
    noise: torch.Generator,
    on_step: Callable[[NDArray[np.bool_]], bool],
    driver_factory: DriverFactory = FlatDriver,
) -> bool:
    """Step every account T times with sampled actions and leave a finished rollout.

    Args:
        objective: of the policy, which is bound to the env's tape.
        env: the batch env.
        out: its buffers, holding the present observation; they hold the last one afterwards.
        rollout: filled in place.
        noise: of the exploration, on the policy's device.
        on_step: called after every step with (N,) which episodes ended; False stops.
        driver_factory: makes who acts.

    Returns:
        False if ``on_step`` stopped it: the rollout is then not finished.
    """
    n_steps = rollout.n_steps
    sent = np.empty((env.num_envs, env.action_dim), np.float32)
    host_actions = torch.from_numpy(sent).view(env.n_paths, env.accounts_per_path, -1)  # P K a
    bars = out.bar[:: env.accounts_per_path].copy()  # P
    rollout.start(bars)
    context = _encode(objective, rollout, slice(None), bars, 0)  # P T+1 C
    driver = driver_factory(objective, env, rollout, context, noise)
    write_state = rollout.state_writer(out.account, out.portfolio)
    for step in range(n_steps):
        write_state(step)
        host_actions.copy_(driver.act(step))
        env.step_into(sent, out)
        rollout.reward[step] = out.reward
        rollout.terminated[step], rollout.truncated[step] = out.terminated, out.truncated
        bars += 1
        ended = out.terminated | out.truncated
        driver.booked(step, out, ended)
        if ended.any():
            _follow_jumps(objective, out.bar[:: env.accounts_per_path], rollout, step + 1, bars, context)
        if not on_step(ended):
            return False
    write_state(n_steps)
    driver.finish()
    return True


def _encode(
    objective: Objective,
    rollout: PathRollout,
    paths: slice | torch.Tensor,
    bars: NDArray[np.int64],
    step: int,
) -> torch.Tensor:
    """(n, T + 1 - step, C) contexts of n paths from ``step`` on, where they stand at ``bars``."""
    first_bar = torch.from_numpy(bars).to(rollout.device)
    embedding = objective.embed(first_bar, rollout.n_steps + 1 - step)  # n . M
    if rollout.embedding is not None:
        rollout.embedding[paths, step:] = embedding
    return objective.features.context_of(embedding)


def _follow_jumps(
    objective: Objective,
    new_bars: NDArray[np.int64],
    rollout: PathRollout,
    step: int,
    bars: NDArray[np.int64],
    context: torch.Tensor,
) -> None:
    """Re-encode, from ``step`` on, the paths that did not simply move one bar on; ``bars`` follows them."""
    jumped = np.flatnonzero(new_bars != bars)
    bars[jumped] = new_bars[jumped]
    if jumped.size == 0 or step == rollout.n_steps:
        # after the last step no value of the new path is needed: its predecessor ended
        return
    paths = torch.from_numpy(jumped).to(context.device)
    context[paths, step:] = _encode(objective, rollout, paths, bars[jumped], step)
    for path in jumped:
        rollout.jump(int(path), step, int(bars[path]))
