"""The problems: on what to train, in which account, and how the result is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from judges import GrowthShare, Judge, RewardShare, ScheduleShare, SideOfSwitch, starts_of
from play import Floats, Stretches
from references import (
    CHAOUKI_BARS,
    CHAOUKI_LIMIT,
    CHAOUKI_LINEAR_COST,
    CHAOUKI_PERSISTENCE,
    CHAOUKI_PRINTED_SHARE,
    CHAOUKI_QUADRATIC,
    CHAOUKI_RISK,
    CHAOUKI_SD,
    CHAOUKI_SEEDS,
    GP_H,
    GP_H_NOISE_SD,
    Liquidation,
    chaouki_linear_band,
    proportional_band,
    shorts_for_funding,
    switching_threshold,
)
from tapes import chaouki_signal, countdown_tape, mirrored_tape, signal_tape, stationary_signal

from perpgym.agents.oracle import NoTradeBand
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig

# an account that nothing stops and that nothing costs, but what a problem adds
FREE = EnvConfig(
    limits="off",
    rounding="off",
    rebalance_threshold=0.0,
    taker_rate=0.0,
    half_spread_bps=0.0,
    impact_coefficient=0.0,
    window_bars=1,
)
SIGNAL = replace(
    FREE,
    sizing="fixed_notional",
    reward="mean_variance",
    reward_on_conditional_mean=True,
    restart="random",
    episode_bars=500,
)
TRAINING_BARS = 200_000
# tapes to train on have these seeds plus the run's, tapes to judge on have this one
_TRAINING_SEED, _JUDGING_SEED = 1_000, 7
# on top of a tape's own: noise of the signal's seed would be the signal's
_NOISE_SEED = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem.

    Attributes:
        name: on the command line.
        tape: from a run's seed to the tape on which it trains.
        env: the account; an agent chooses its own kind of action.
        judge: on another tape, but where no chance is in a tape: then it is the same.
        value_name: what the judge's value is.
        conditions: problems that every seed must solve whole, else the fraction counts as 0.
        noisy_tape: as ``tape``, of a price that moves by more than its mean; None where no source gives the
            noise.
    """

    name: str
    tape: Callable[[int], Tape]
    env: EnvConfig
    judge: Judge
    value_name: str
    conditions: tuple[Problem, ...] = ()
    noisy_tape: Callable[[int], Tape] | None = None

    def realised(self) -> Problem:
        """The same, learnt from what a position earned instead of from what it could expect; judged as ever.

        Raises:
            ValueError: the problem has no noise.
        """
        if self.noisy_tape is None:
            raise ValueError(f"realised is for gp_h: {self.name} has no second tape to learn from")
        return replace(self, tape=self.noisy_tape, env=replace(self.env, reward_on_conditional_mean=False))


def _stationary_problem(
    name: str,
    *,
    persistence: float,
    signal_sd: float,
    env: EnvConfig,
    rule: Callable[[Floats, Floats], Floats],
    unit: float = 1.0,
    noise_sd: float = 0.0,
) -> Problem:
    """An AR(1) signal of size one as the feature; judged on 256 stretches of 240 bars after 60 to settle."""

    def tape(bars: int, seed: int, noise_sd: float = 0.0) -> Tape:
        return signal_tape(
            stationary_signal(bars, persistence, seed),
            mean_per_signal=unit * signal_sd,
            noise_sd=unit * noise_sd,
            seed=_NOISE_SEED + seed,
        )

    def noisy_tape(seed: int) -> Tape:
        return tape(TRAINING_BARS, _TRAINING_SEED + seed, noise_sd)

    pieces, bars, warmup = 256, 300, 60
    stretches = Stretches(
        tape=tape(pieces * bars + 1, _JUDGING_SEED),
        env=env,
        starts=starts_of(pieces, bars),
        bars=bars,
        warmup=warmup,
    )
    return Problem(
        name=name,
        tape=lambda seed: tape(TRAINING_BARS, _TRAINING_SEED + seed),
        env=env,
        judge=RewardShare(
            stretches=stretches,
            rule=lambda features, held: rule(signal_sd * features[:, 0], held),
            unit=1.0 / unit,
        ),
        value_name="reward of a bar",
        noisy_tape=noisy_tape if noise_sd > 0.0 else None,
    )


# all money of gp_h times this: what wild exploration costs must not use up an account within an episode
_GP_UNIT = 1e-3


def gp_h() -> Problem:
    """Gârleanu and Pedersen: quadratic costs."""
    env = replace(
        SIGNAL,
        max_exposure=6.0,
        cost="quadratic",
        quadratic_cost_rate=GP_H.cost * _GP_UNIT,
        reward_variance=GP_H.risk * _GP_UNIT,
        reward_scale=1e3 / _GP_UNIT,
    )
    return _stationary_problem(
        "gp_h",
        persistence=GP_H.persistence,
        signal_sd=GP_H.signal_sd,
        env=env,
        rule=GP_H.trade,
        unit=_GP_UNIT,
        noise_sd=GP_H_NOISE_SD,
    )


# --- Chaouki et al. ---

# one of the paper's units is this share of a notional, for the same reason
CHAOUKI_UNIT = 1e-6


def _chaouki_problem(
    name: str, *, env: EnvConfig, rule: Callable[[Floats, Floats], Floats], share: float = 1.0
) -> Problem:
    """Trained on their process; judged on their ten test episodes, decisions from the second bar on.

    Args:
        env: with costs and risk in ``CHAOUKI_UNIT``.
        rule: the best there is, from their signal and the exposures held.
        share: of an episode's reward that they print.
    """
    env = replace(env, reward_scale=0.1 / CHAOUKI_UNIT)
    signals = np.concatenate([chaouki_signal(seed) for seed in CHAOUKI_SEEDS])
    decisions = CHAOUKI_BARS - 2
    stretches = Stretches(
        tape=signal_tape(signals, mean_per_signal=CHAOUKI_UNIT),
        env=env,
        starts=starts_of(len(CHAOUKI_SEEDS), CHAOUKI_BARS, first=1),
        bars=decisions,
    )

    def tape(seed: int) -> Tape:
        signal = stationary_signal(TRAINING_BARS, CHAOUKI_PERSISTENCE, _TRAINING_SEED + seed)
        return signal_tape(CHAOUKI_SD * signal, mean_per_signal=CHAOUKI_UNIT)

    return Problem(
        name=name,
        tape=tape,
        env=env,
        judge=RewardShare(
            stretches=stretches,
            rule=lambda features, held: rule(features[:, 0], held),
            unit=share * decisions / CHAOUKI_UNIT,
        ),
        value_name="mean of the ten episodes",
    )


def chaouki_quadratic() -> Problem:
    """Quadratic costs and risk."""
    env = replace(
        SIGNAL,
        max_exposure=5.0,
        cost="quadratic",
        quadratic_cost_rate=CHAOUKI_QUADRATIC.cost * CHAOUKI_UNIT,
        reward_variance=CHAOUKI_RISK * CHAOUKI_UNIT,
    )
    return _chaouki_problem(
        "chaouki_quadratic", env=env, rule=CHAOUKI_QUADRATIC.trade, share=CHAOUKI_PRINTED_SHARE
    )


def chaouki_linear() -> Problem:
    """Linear costs and risk."""
    env = replace(
        SIGNAL,
        max_exposure=4.0,
        cost="linear",
        linear_cost_rate=CHAOUKI_LINEAR_COST * CHAOUKI_UNIT,
        reward_variance=CHAOUKI_RISK * CHAOUKI_UNIT,
    )
    return _chaouki_problem("chaouki_linear", env=env, rule=chaouki_linear_band().trade)


def chaouki_limited() -> Problem:
    """Linear costs, no price for risk, a limit."""
    threshold = switching_threshold(
        persistence=CHAOUKI_PERSISTENCE, signal_sd=CHAOUKI_SD, cost=CHAOUKI_LINEAR_COST
    )

    def rule(signal: Floats, held: Floats) -> Floats:
        return np.where(np.abs(signal) < threshold, held, CHAOUKI_LIMIT * np.sign(signal))

    env = replace(
        SIGNAL,
        max_exposure=CHAOUKI_LIMIT,
        cost="linear",
        linear_cost_rate=CHAOUKI_LINEAR_COST * CHAOUKI_UNIT,
    )
    return _chaouki_problem("chaouki_limited", env=env, rule=rule, share=CHAOUKI_PRINTED_SHARE)


# --- proportional costs as an exchange charges them ---

_TAKER_RATE, _HALF_SPREAD_BPS = 4e-4, 1.0


@cache
def exchange_band(limit: float) -> NoTradeBand:
    """The band for GP-H's signal and risk at a fee of 4 bp and a half spread of 1 bp."""
    return proportional_band(
        persistence=GP_H.persistence,
        signal_sd=GP_H.signal_sd,
        risk=GP_H.risk,
        cost=_TAKER_RATE + 1e-4 * _HALF_SPREAD_BPS,
        limit=limit,
    )


def proportional() -> Problem:
    """The signal and risk of GP-H, costs of an exchange."""
    env = replace(
        SIGNAL,
        max_exposure=4.0,
        taker_rate=_TAKER_RATE,
        half_spread_bps=_HALF_SPREAD_BPS,
        reward_variance=GP_H.risk,
        reward_scale=1e3,
    )
    return _stationary_problem(
        "proportional",
        persistence=GP_H.persistence,
        signal_sd=GP_H.signal_sd,
        env=env,
        rule=exchange_band(env.max_exposure).trade,
    )


# --- log growth ---


def _growth_problem(
    name: str, *, drift: float, funding_rate: float, limit: float, conditions: tuple[Problem, ...] = ()
) -> Problem:
    """Independent returns of 1 % around ``drift``, mirrored so that the sample's drift is exact."""
    # as many halves as paths, so that every rollout meets as much up as down
    pairs, episode_bars = 64, 64
    # so many to train on that no episode is met often: the account's columns tell which one it is
    training_bars, judging_bars = 8_192, 512
    env = replace(FREE, max_exposure=limit, reward_scale=100.0, episode_bars=episode_bars)

    def tape(half_bars: int, seed: int) -> Tape:
        return mirrored_tape(
            pairs=pairs,
            half_bars=half_bars,
            drift=drift,
            sigma_per_bar=0.01,
            funding_rate=funding_rate,
            seed=seed,
        )

    stretches = Stretches(
        tape=tape(judging_bars, _JUDGING_SEED),
        env=env,
        starts=starts_of(2 * pairs, judging_bars),
        bars=episode_bars,
    )
    return Problem(
        name=name,
        tape=lambda seed: tape(training_bars, _TRAINING_SEED + seed),
        env=env,
        judge=GrowthShare(stretches=stretches),
        value_name="mean exposure",
        conditions=conditions,
    )


def kelly() -> Problem:
    """A drift of 3 bp, of which funding takes 1."""
    return _growth_problem("kelly", drift=3e-4, funding_rate=1e-4, limit=4.0)


def carry() -> Problem:
    """A fair price and funding of 1 bp; and whether two settlements pay for two fees."""
    return _growth_problem(
        "carry",
        drift=0.0,
        funding_rate=1e-4,
        limit=4.0,
        conditions=(_switch("carry_pays", 1.25), _switch("carry_does_not_pay", 0.8)),
    )


def _switch(name: str, funding_over_fees: float) -> Problem:
    """Risk-neutral, a price that stands still, two settlements worth so many times two fees."""
    settlements, funding_rate = 2, 4e-4
    fee_rate = settlements * funding_rate / (2.0 * funding_over_fees)
    env = replace(
        FREE,
        sizing="fixed_notional",
        max_exposure=1.0,
        taker_rate=fee_rate,
        terminal="liquidate",
        reward="mean_variance",
        reward_scale=1e3,
        episode_bars=settlements,
    )
    tape = countdown_tape(settlements, funding_rate=funding_rate)
    stretches = Stretches(tape=tape, env=env, starts=starts_of(1, len(tape)), bars=settlements)
    return Problem(
        name=name,
        tape=lambda seed: tape,
        env=env,
        judge=SideOfSwitch(
            stretches=stretches, is_short_better=shorts_for_funding(funding_rate, settlements, fee_rate)
        ),
        value_name="mean exposure",
    )


# --- execution ---


def almgren_chriss() -> Problem:
    """Sell a block in five steps; what is left after four decisions is sold at the end of the last bar."""
    block = Liquidation()
    worth = block.shares * block.price
    decisions = block.steps - 1
    env = replace(
        FREE,
        sizing="fixed_notional",
        initial_wallet=worth,
        initial_exposure=1.0,
        max_exposure=1.0,
        cost="quadratic",
        # half of it per squared exposure is what the temporary impact costs
        quadratic_cost_rate=2.0 * block.impact * block.shares**2 / block.step_length / worth,
        linear_cost_rate=block.fixed_cost / block.price,
        reward="mean_variance",
        reward_variance=2.0 * block.risk_aversion * block.volatility**2 * block.step_length
        * block.shares**2 / worth,
        reward_scale=100.0,
        terminal="liquidate",
        episode_bars=decisions,
    )  # fmt: skip
    tape = countdown_tape(decisions)
    stretches = Stretches(tape=tape, env=env, starts=starts_of(1, len(tape)), bars=decisions)
    return Problem(
        name="almgren_chriss",
        tape=lambda seed: tape,
        env=env,
        judge=ScheduleShare(stretches=stretches, block=block),
        value_name="cost U",
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {
    build.__name__: build
    for build in (
        gp_h,
        chaouki_quadratic,
        chaouki_linear,
        chaouki_limited,
        kelly,
        carry,
        proportional,
        almgren_chriss,
    )
}
