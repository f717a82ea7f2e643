"""What sizes cost in training and where the time goes; ``bench_train.py`` prints it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from training_sides import ACCOUNTS, NETWORKS, STEPS

from perpgym.agents.ppo import PerpPPO
from perpgym.policies import PolicyConfig

_BASE = NETWORKS["transformer"]
Entrant = tuple[PolicyConfig, int, int, int]  # network, paths, accounts, threads

SWEEPS: dict[str, dict[str, Entrant]] = {
    "width, heads of twice that": {
        f"{width}": (
            replace(_BASE, d_model=width, policy_hidden=2 * (2 * width,), value_hidden=2 * (2 * width,)),
            8,
            ACCOUNTS,
            1,
        )
        for width in (16, 32, 64, 128)
    },
    "receptive field, bars": {
        f"{replace(_BASE, band=band).receptive_field}": (replace(_BASE, band=band), 8, ACCOUNTS, 1)
        for band in (16, 32, 64, 128)
    },
    "paths x accounts": {
        f"{paths} x {ACCOUNTS // paths}": (_BASE, paths, ACCOUNTS, 1) for paths in (64, 32, 16, 8, 4, 2)
    },
    "paths x 8 accounts": {f"{paths} x 8": (_BASE, paths, 8 * paths, 1) for paths in (2, 8, 32)},
    "threads": {f"{threads}": (_BASE, 8, ACCOUNTS, threads) for threads in (1, 2)},
}


def bytes_per_step(model: PerpPPO) -> float:
    """What a rollout keeps of one step of one account."""
    return model.rollout_buffer.nbytes / model.rollout_buffer.reward.size


def pieces(model: PerpPPO, repeats: int = 30) -> dict[str, float]:
    """Milliseconds of the parts of one rollout and its update; the first ones add up to ``all``.

    Parts are timed alone, many times over, and scaled by how often they occur.
    """
    model.learn(2 * model.n_envs * STEPS)
    rollout, policy, callback = model.rollout_buffer, model.policy, model._init_callback(None)
    per_batch = max(1, model.batch_size // (rollout.n_steps * rollout.n_accounts))
    batches = list(rollout.minibatches(per_batch, model.shuffle))
    count, batch = model.n_epochs * len(batches), batches[0]

    def encode() -> torch.Tensor:
        return policy.stretch_context(batch.first_bar, rollout.n_steps)

    context = batch.arrange(encode().detach()).requires_grad_()

    def heads() -> torch.Tensor:
        now = policy.evaluate_states(context.unsqueeze(2), batch.state, batch.actions)
        return now.values.mean() + now.log_prob.mean()

    def time_of(call: Callable[[], object]) -> float:
        call()
        spent = []
        for _ in range(repeats):
            started = time.perf_counter()
            call()
            spent.append(time.perf_counter() - started)
        return 1e3 * statistics.median(spent)

    def step_env() -> None:
        env, out = model.native, model.env.buffers  # type: ignore[union-attr]
        actions = out.account[:, 0, : env.action_dim] * 0.0
        for _ in range(rollout.n_steps):
            env.step_into(actions, out)

    stepping = time_of(step_env)
    collecting = time_of(
        lambda: model.collect_rollouts(model.env, callback, rollout, rollout.n_steps)  # type: ignore[arg-type]
    )
    encoding = count * time_of(lambda: encode().sum().backward())  # type: ignore[no-untyped-call]
    answering = count * time_of(lambda: heads().backward())  # type: ignore[no-untyped-call]
    updating = time_of(model.train)
    return {
        "rollout: env": stepping,
        "rollout: encoder, heads, books": collecting - stepping,
        "update: encoder, forward and backward": encoding,
        "update: heads, forward and backward": answering,
        "update: loss, clipping, Adam, indexing": updating - encoding - answering,
        "all": collecting + updating,
    }
