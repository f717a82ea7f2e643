"""Fill a rollout: encode each path's stretch of tape in one pass, then step the accounts along it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from perpgym.agents.objective import Objective
from perpgym.agents.rollout import Float64, PathRollout
from perpgym.envs.buffers import StepBuffers
from perpgym.envs.vector import PerpVecEnv
from perpgym.policies.actor_critic import PerpActorCriticPolicy, gaussian_log_prob
from perpgym.policies.stretch_actor import StretchActor

# of the values, which are computed after the last step
_SAMPLES_AT_ONCE = 1_024


@torch.inference_mode()
def collect(
    objective: Objective,
    env: PerpVecEnv,
    out: StepBuffers,
    rollout: PathRollout,
    noise: torch.Generator,
    on_step: Callable[[NDArray[np.bool_]], bool],
) -> bool:
    """Step every account T times with sampled actions and leave a finished rollout.

    Args:
        objective: of the policy, which is bound to the env's tape.
        env: the batch env.
        out: its buffers, holding the present observation; they hold the last one afterwards.
        rollout: filled in place.
        noise: of the exploration, on the policy's device.
        on_step: called after every step with (N,) which episodes ended; False stops.

    Returns:
        False if ``on_step`` stopped it: the rollout is then not finished.
    """
    policy, n_steps = objective.policy, rollout.n_steps
    sent = np.empty((env.num_envs, env.action_dim), np.float32)
    host_actions = torch.from_numpy(sent).view(env.n_paths, env.accounts_per_path, -1)  # P K a
    bars = out.bar[:: env.accounts_per_path].copy()  # P
    rollout.start(bars)
    context = _encode(objective, rollout, slice(None), bars, 0)  # P T+1 C
    standard_noise = torch.randn(rollout.actions.shape, generator=noise, device=rollout.device)  # P T K a
    # cut up once: at the size of one step, finding the place costs as much as the work
    deviation = (standard_noise * policy.log_std.exp()).unbind(1)  # T of P K a
    actor, actions = StretchActor(policy, context), rollout.actions.unbind(1)
    state, write_state = rollout.state.unbind(1), rollout.state_writer(out.account, out.portfolio)
    final_value = np.zeros(rollout.reward.shape)  # T N
    for step in range(n_steps):
        write_state(step)
        torch.add(actor.mean(step, state[step]), deviation[step], out=actions[step])
        host_actions.copy_(actions[step])
        env.step_into(sent, out)
        rollout.reward[step] = out.reward
        rollout.terminated[step], rollout.truncated[step] = out.terminated, out.truncated
        bars += 1
        ended = out.terminated | out.truncated
        if ended.any():
            _value_truncated(policy, env, out, context[:, step + 1], final_value[step])
            _follow_jumps(objective, out.bar[:: env.accounts_per_path], rollout, step + 1, bars, context)
        if not on_step(ended):
            return False
    write_state(n_steps)
    # what no step depends on is computed for all steps at once, but for few paths: what fits the cache need
    # not be fetched
    paths = -(-_SAMPLES_AT_ONCE // rollout.state[0, :, :, 0].numel())
    for first in range(0, rollout.n_paths, paths):
        some = slice(first, first + paths)
        rollout.values[some] = policy.state_values(context[some].unsqueeze(2), rollout.state[some])
    zero = torch.zeros_like(policy.log_std)
    torch.sub(gaussian_log_prob(zero, zero, standard_noise), policy.log_std.sum(), out=rollout.log_prob)
    rollout.finish(final_value)
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


def _value_truncated(
    policy: PerpActorCriticPolicy,
    env: PerpVecEnv,
    out: StepBuffers,
    context: torch.Tensor,
    final_value: Float64,
) -> None:
    """Values of the observations at which accounts were truncated, into (N,) ``final_value``.

    The final bar is the next one of the stretch that was left, so its context, (P, C), is already there.
    """
    accounts = np.flatnonzero(out.truncated)
    if accounts.size == 0:
        return
    paths = torch.from_numpy(accounts // env.accounts_per_path).to(context.device)
    account = torch.from_numpy(out.final_account[accounts]).flatten(1)
    portfolio = torch.from_numpy(out.final_portfolio[accounts])
    state = torch.cat((account, portfolio), dim=1).to(context.device)  # n S
    final_value[accounts] = policy.state_values(context[paths], state).cpu().numpy()


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
