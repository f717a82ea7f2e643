"""Who fills QR-DQN's replay acts on the path where it is, and closes every episode."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from two_critics import SMALL, network

from perpgym.agents.qrdqn import PerpQRDQN, QRDQNConfig
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.policies.quantile import PerpQuantilePolicy

PATHS, ACCOUNTS = 4, 2


def make_model(tape: Tape, *, episode_bars: int, alpha: float = 1.0) -> PerpQRDQN:
    """It never explores, and has learnt nothing; its env has just been reset."""
    config = EnvConfig(
        action="ladder", max_exposure=1.0, window_bars=SMALL.receptive_field, episode_bars=episode_bars
    )
    model = PerpQRDQN(
        PerpQuantilePolicy,
        PerpVecEnv(tape, n_paths=PATHS, accounts_per_path=ACCOUNTS, config=config),
        config=QRDQNConfig(
            learning_starts=0, exploration_initial_eps=0.0, buffer_size=2_000, n_quantiles=8, alpha=alpha
        ),
        policy_kwargs=network(tape, SMALL),
        seed=0,
        device="cpu",
    )
    model._setup_learn(10**9)
    return model


def test_it_acts_by_its_policys_alpha_on_the_bars_where_a_path_is_now(
    make_tape: Callable[..., Tape],
) -> None:
    """Episodes of eleven bars end within rounds of sixteen, and their paths go on elsewhere on the tape."""
    model = make_model(make_tape(bars=600), episode_bars=11, alpha=0.25)
    torch.nn.init.normal_(model.quantile_net.advantage[-1].weight, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        list(model.explorer.steps(model.env, 16))  # type: ignore[arg-type]
    replay = model.replay
    number = np.arange(replay.capacity)[None]
    is_decision = (number < replay.head[:, None] - 1) & (number != replay.final)
    kept = (replay.bar, replay.state, replay.mask, replay.action)
    bar, state, mask, level = (torch.from_numpy(array[is_decision]) for array in kept)
    # two rounds of every path, in which it jumps, and not with the first bar alone
    assert len(bar) == PATHS * 2 * 16
    assert (replay.final[replay.final >= 0] % 16 != 0).any()
    with torch.no_grad():
        # a bar at a time
        quantiles = model.quantile_net.quantiles(model.policy.stretch_context(bar, 1), state)  # n K A L N
    worth, neutral = (
        quantiles[..., :count].mean(-1).masked_fill(~mask, -torch.inf) for count in (2, 8)
    )  # n K A L
    taken = worth.gather(-1, level.long().unsqueeze(-1))[..., 0]
    torch.testing.assert_close(taken, worth.amax(-1), atol=1e-4, rtol=0.0)
    assert (neutral.argmax(-1) != level).any()


def test_an_episode_that_goes_on_at_the_very_next_bar_is_another_episode(
    make_tape: Callable[..., Tape],
) -> None:
    """So few bars that a path often begins again where it ended."""
    model = make_model(make_tape(bars=SMALL.receptive_field + 6), episode_bars=2)
    replay = model.replay
    ends = sum(ended.reshape(PATHS, ACCOUNTS)[:, 0] for ended in model.explorer.steps(model.env, 64))  # type: ignore[arg-type]
    for path in range(PATHS):
        finals = np.unique(replay.final[path][replay.final[path] >= 0])
        assert len(finals) == ends[path] > 10
        np.testing.assert_array_equal(replay.bar[path, finals], replay.bar[path, finals - 1] + 1)
        # where an episode ended, the next one begins
        assert (replay.bar[path, finals + 1] == replay.bar[path, finals]).any()
