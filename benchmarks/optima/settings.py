"""How our PPO trains on each problem, with either kind of action."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from training import Settings

from perpgym.agents.ppo import PPOConfig
from perpgym.envs.actions import ActionKind
from perpgym.policies import PolicyConfig

# the signal of the last bar is all there is to know, so no encoder reaches further back
NET = PolicyConfig(
    encoder="mlp",
    d_model=32,
    n_layers=1,
    risk_hidden=0,
    policy_hidden=(32,),
    value_hidden=(32,),
    log_std_init=-1.5,
    band_width_init=-0.7,
)
_PPO = PPOConfig(
    learning_rate=1e-3,
    learning_rate_schedule="linear",
    n_steps=32,
    batch_size=1_024,
    n_epochs=4,
    # a position is worth what it earns over a few dozen bars: the optimum at 0.95 earns 0.9996 of g*
    gamma=0.95,
    gae_lambda=0.9,
    # most of an advantage is what the signal did next, which the accounts of a path have in common
    path_baseline=True,
)
_TARGET = Settings(action="target", ppo=_PPO, policy=NET, steps=1_500_000)
# exploration moves the edges of a band at every bar, and every move trades: so there is little of it, but a
# bonus keeps some; batches are large, since an edge a tenth of a deviation off costs a hundredth of the score
_BAND = Settings(
    action="band",
    ppo=replace(
        _PPO,
        batch_size=4_096,
        # what is held for want of a reason to trade is held for long: at 0.95 the best band earns 0.991
        gamma=0.98,
        ent_coef=0.003,
        ent_coef_schedule="linear",
    ),
    policy=replace(NET, log_std_init=-2.5),
    n_paths=64,
    steps=16_000_000,
)
_LIMITED = replace(
    _BAND,
    ppo=replace(_PPO, batch_size=4_096),
    # with nothing but a limit the best band is as wide as it, or has no width at all
    policy=replace(NET, band_width_init=0.0),
    steps=8_000_000,
)
# bars are independent and trading is free, so that every bar is an episode
_GROWTH = Settings(
    action="target",
    # Adam's steps do not shrink with the gradient, which here is a hundredth of its noise: so they are small
    ppo=replace(
        _PPO, learning_rate=3e-4, gamma=0.0, gae_lambda=0.0, n_steps=64, batch_size=8_192, n_epochs=2
    ),
    # an exploration that the limit on one side cuts off would pull the best mean towards that side
    policy=replace(NET, log_std_init=-1.8, band_width_init=-1.0),
    n_paths=128,
    accounts_per_path=4,
    steps=6_000_000,
    is_spread=True,
)
_COUNTDOWN = Settings(
    action="target",
    ppo=replace(_PPO, gamma=0.99, n_steps=16, path_baseline=False),
    policy=replace(NET, log_std_init=-1.0, band_width_init=-1.0),
    steps=500_000,
)

# what each problem's own number is measured with, chosen before the seeds were run
OWN_ACTION: dict[str, Literal["target", "band"]] = {
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
    # half of Kelly's drift takes more bars to tell from nothing
    "carry": replace(_GROWTH, steps=12_000_000),
    "carry_pays": _COUNTDOWN,
    "carry_does_not_pay": _COUNTDOWN,
    "almgren_chriss": _COUNTDOWN,
}


def settings_of(problem: str, action: ActionKind) -> Settings:
    """The settings for a problem with this kind of action."""
    if action == "band" and problem not in _SPECIAL:
        return _LIMITED if problem == "chaouki_limited" else _BAND
    return replace(_SPECIAL.get(problem, _TARGET), action=action)


# one setting away from the settings above
ABLATIONS: dict[str, Callable[[Settings], Settings]] = {
    "no_baseline": lambda settings: _with(settings, path_baseline=False),
    # as many accounts, each alone on its path; then there is no baseline either
    "one_account": lambda settings: replace(
        _with(settings, path_baseline=False),
        n_paths=settings.n_paths * settings.accounts_per_path,
        accounts_per_path=1,
    ),
    "popart": lambda settings: _with(settings, popart=True),
    "windows": lambda settings: _with(settings, observation="window"),
}


def _with(settings: Settings, **ppo: Any) -> Settings:
    return replace(settings, ppo=replace(settings.ppo, **ppo))
