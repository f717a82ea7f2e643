"""How our PPO trains on each problem, with either kind of action."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from training import Settings

from perpgym.agents.ppo import PPOConfig
from perpgym.envs.actions import ActionKind
from perpgym.policies import PolicyConfig

# the signal of the last bar is all there is to know, so no encoder reaches further back
_NET = PolicyConfig(
    encoder="mlp",
    d_model=32,
    n_layers=1,
    risk_hidden=0,
    policy_hidden=(32,),
    value_hidden=(32,),
    log_std_init=-1.5,
    band_width_init=-0.8,
)
_PPO = PPOConfig(
    learning_rate=1e-3,
    anneal_learning_rate=True,
    n_steps=32,
    batch_size=512,
    n_epochs=4,
    # what an episode is worth reaches a few dozen bars: the optimum at 0.95 earns 0.9996 of g*
    gamma=0.95,
    gae_lambda=0.95,
)
_TARGET = Settings(
    action="target", ppo=replace(_PPO, batch_size=2_048), policy=_NET, n_paths=64, accounts_per_path=8
)
# exploration moves the edges of a band at every bar, which trades; so little of it, and a critic that sees past it
_BAND = Settings(
    action="band",
    ppo=replace(_PPO, gae_lambda=0.5),
    policy=replace(_NET, log_std_init=-2.5),
    steps=8_000_000,
)
# bars are independent and trading is free, so every bar is an episode; accounts of a path take out its returns
_GROWTH = Settings(
    action="target",
    ppo=replace(_PPO, gamma=0.0, gae_lambda=0.0, n_steps=64, batch_size=8_192, path_baseline=True),
    policy=replace(_NET, log_std_init=-1.0, band_width_init=-1.0),
    n_paths=128,
    accounts_per_path=4,
    steps=5_000_000,
    is_spread=True,
)
_COUNTDOWN = Settings(
    action="target",
    ppo=replace(_PPO, gamma=0.99, n_steps=16),
    policy=replace(_NET, band_width_init=-1.0),
    steps=500_000,
)

# what each problem's own number is measured with, chosen before the seeds were run
OWN_ACTION: dict[str, ActionKind] = {
    "gp_h": "target",
    "chaouki_quadratic": "target",
    "chaouki_linear": "band",
    "chaouki_limited": "band",
    "kelly": "target",
    "carry": "target",
    "proportional": "band",
    "almgren_chriss": "target",
}
_SPECIAL: dict[str, Settings] = {
    "kelly": _GROWTH,
    "carry": _GROWTH,
    "carry_pays": _COUNTDOWN,
    "carry_does_not_pay": _COUNTDOWN,
    "almgren_chriss": _COUNTDOWN,
}


def settings_of(problem: str, action: ActionKind) -> Settings:
    """The settings for a problem with this kind of action."""
    usual = _TARGET if action == "target" else _BAND
    return replace(_SPECIAL.get(problem, usual), action=action)
