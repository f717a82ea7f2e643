"""The best that could have been done on a simulated market: a no-trade band by value iteration.

The problem: one asset whose expected return s per bar is a Gaussian AR(1), an exposure x in
[-max, max], a reward per bar of s x - (gamma / 2) sigma^2 x^2 - c |dx|. With gamma = 1 that is log
growth to second order. The reward is concave in x and the exposure does not move the signal, so the
optimum is a band [lower(s), upper(s)]: outside it trade to the nearer edge, inside do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import ndtr

from perpgym.data.bars import CLOSE, OPEN
from perpgym.data.tape import Tape
from perpgym.envs.actions import ActionKind, exposure_to_action
from perpgym.envs.spaces import ACCOUNT_NAMES

_EXPOSURE = ACCOUNT_NAMES.index("exposure")
# the signal's grid ends at this many stationary deviations and resolves its innovations by this step
_GRID_REACH = 4.5
_STEP_PER_INNOVATION = 0.5
_MAX_PERSISTENCE = 0.9995
# levels of volatility lie between these quantiles of its forecast
_LEVEL_QUANTILES = (0.02, 0.98)
_SIGMA_HALF_LIFE_BARS = 48.0
_SMALLEST_SIGMA = 1e-9

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ProportionalCostProblem:
    """One asset, one Markov signal, proportional costs.

    Attributes:
        persistence: rho, correlation of the expected return with its value one bar earlier, [0, 1).
        signal_sd: stationary deviation of the expected return, fraction per bar.
        sigma_per_bar: deviation of the asset's return per bar, fraction.
        cost_rate: one way, fraction of traded notional: taker fee + half spread + impact.
        risk_aversion: gamma; 1 is log growth.
        max_exposure: signed notional over equity lies in [-max, max].
        exposure_points: size of the exposure grid, odd so that zero is on it.
    """

    persistence: float
    signal_sd: float
    sigma_per_bar: float
    cost_rate: float
    risk_aversion: float = 1.0
    max_exposure: float = 2.0
    exposure_points: int = 201

    def __post_init__(self) -> None:
        if not 0.0 <= self.persistence <= _MAX_PERSISTENCE:
            raise ValueError(
                f"persistence must lie between 0 and {_MAX_PERSISTENCE} (per bar; beyond, the signal's grid "
                f"outgrows memory: use longer bars), was {self.persistence}"
            )
        for name in ("signal_sd", "sigma_per_bar", "risk_aversion", "max_exposure"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, was {getattr(self, name)}")
        if not self.cost_rate >= 0:
            raise ValueError(f"cost_rate must not be negative (a fraction of notional), was {self.cost_rate}")
        if self.exposure_points < 3 or self.exposure_points % 2 == 0:
            raise ValueError(f"exposure_points must be odd and at least 3, was {self.exposure_points}")


@dataclass(frozen=True, kw_only=True)
class NoTradeBand:
    """The optimal policy: exposures between the edges are left alone.

    Attributes:
        signal: (S,) float64 ascending, expected return per bar.
        lower, upper: (S,) float64, exposure to which a smaller one is bought up, a larger one sold down.
        average_reward: reward per bar in the long run.
    """

    signal: Floats
    lower: Floats
    upper: Floats
    average_reward: float

    def trade(self, expected_return: Floats | float, exposure: Floats | float) -> Floats:
        """The exposure to hold next.

        Args:
            expected_return: (...,) fraction per bar; beyond the grid its last band applies.
            exposure: (...,) signed notional over equity now.

        Returns:
            (...,) float64, signed notional over equity.
        """
        lower = np.interp(expected_return, self.signal, self.lower)
        upper = np.interp(expected_return, self.signal, self.upper)
        return np.asarray(np.clip(exposure, lower, upper), dtype=np.float64)


def solve_proportional_cost(
    problem: ProportionalCostProblem, *, tolerance: float = 1e-6, max_sweeps: int = 50_000
) -> NoTradeBand:
    """Relative value iteration for the average reward.

    The maximum over trades is two running maxima over the exposure grid (buy to any higher point, sell
    to any lower one), so that a sweep costs one matrix product.

    Args:
        problem: what to solve.
        tolerance: of the average reward, as a share of one Markowitz reward (s^2 / (2 gamma sigma^2)
            at one deviation of the signal, or its like at the exposure limit).
        max_sweeps: give up after so many.

    Raises:
        RuntimeError: not converged.
    """
    signal, transition = _signal_chain(problem.persistence, problem.signal_sd)
    exposure = np.linspace(-problem.max_exposure, problem.max_exposure, problem.exposure_points)
    risk = 0.5 * problem.risk_aversion * problem.sigma_per_bar**2
    reward = signal[:, None] * exposure - risk * exposure**2  # S X
    toll = problem.cost_rate * exposure
    markowitz = min(problem.signal_sd / (2 * risk), problem.max_exposure)
    allowed_span = tolerance * 0.5 * problem.signal_sd * markowitz

    value = np.zeros_like(reward)
    for _ in range(max_sweeps):
        held = reward + transition @ value
        sold = np.maximum.accumulate(held + toll, axis=1) - toll
        bought = np.maximum.accumulate((held - toll)[:, ::-1], axis=1)[:, ::-1] + toll
        updated = np.maximum(sold, bought)
        step = updated - value
        value = updated - updated[0, 0]
        low, high = float(step.min()), float(step.max())
        if high - low < allowed_span:
            # buying costs + toll and selling - toll: each stops where its own net value peaks
            return NoTradeBand(
                signal=signal,
                lower=_peak(held - toll, exposure),
                upper=_peak(held + toll, exposure),
                average_reward=0.5 * (low + high),
            )
    raise RuntimeError(
        f"value iteration did not converge in {max_sweeps} sweeps (span {high - low:g}, allowed "
        f"{allowed_span:g}); raise max_sweeps or tolerance"
    )


def _signal_chain(persistence: float, sd: float) -> tuple[Floats, Floats]:
    """Grid (S,) and transition matrix (S, S) of an AR(1) by cell probabilities (Tauchen 1986)."""
    innovation = float(np.sqrt(1.0 - persistence**2))
    points = 2 * int(np.ceil(_GRID_REACH / (_STEP_PER_INNOVATION * innovation))) + 1
    points = max(points, 41)
    grid = np.linspace(-_GRID_REACH, _GRID_REACH, points)
    edges = np.concatenate([[-np.inf], 0.5 * (grid[1:] + grid[:-1]), [np.inf]])
    # rounding to cells adds step^2 / 12 to the innovation's variance: take it off beforehand
    narrowed = np.sqrt(innovation**2 - (grid[1] - grid[0]) ** 2 / 12)
    below = ndtr((edges - persistence * grid[:, None]) / narrowed)  # S S+1
    return sd * grid, np.diff(below, axis=1)


def _peak(values: Floats, exposure: Floats) -> Floats:
    """(S,) exposure of each row's maximum, between grid points by a parabola through its neighbours."""
    best = values.argmax(axis=1)
    rows = np.arange(values.shape[0])
    inner = np.clip(best, 1, exposure.shape[0] - 2)
    left, centre, right = (values[rows, inner + k] for k in (-1, 0, 1))
    curvature = left - 2 * centre + right
    offset = np.divide(0.5 * (left - right), curvature, out=np.zeros_like(centre), where=curvature < 0)
    peak = exposure[inner] + np.clip(offset, -1.0, 1.0) * (exposure[1] - exposure[0])
    return np.asarray(np.clip(peak, exposure[0], exposure[-1]), dtype=np.float64)


class OracleAgent:
    """Sees the planted expected return and trades the optimal band: the most that was there to earn.

    The signal's persistence and deviation are measured over the whole tape: an oracle may. The problem is
    solved at a few levels of volatility, each as if it lasted, and the bands are interpolated between, since
    regimes of volatility outlast positions. The forecast of volatility is a smooth one: a band that shakes
    trades for nothing (with ``Tape.sigma_per_bar``, a window of a day, turnover is half as much again).
    Funding needs no term: planted returns are net of it (``data.synthetic``).
    """

    name = "oracle"

    def __init__(
        self,
        tape: Tape,
        *,
        cost_rate: float = 0.0006,
        action: ActionKind = "band",
        max_exposure: float = 2.0,
        levels: Sequence[float] = (),
        risk_aversion: float = 8.0,
        volatility_levels: int = 5,
    ) -> None:
        """Solve for the bands.

        Args:
            tape: a simulated market of one contract.
            cost_rate: one way, fraction of traded notional; 6 bp is the taker fee of 4, a half spread of 1
                and an impact of 1.
            action: the env's action kind.
            max_exposure: the env's range; also the limit of the problem.
            levels: of ``ladder`` or ``heads``, see ``exposure_to_action``: the nearest one to the band's
                exposure is asked for.
            risk_aversion: gamma. 1 maximises log growth and draws down by half; at 8 nineteen years in twenty
                stay within the env's drawdown stop of 30 %.
            volatility_levels: number of levels; 1 takes volatility as constant.

        Raises:
            ValueError: the tape has nothing planted, or more than one contract.
        """
        if tape.planted is None:
            raise ValueError(
                "the oracle needs tape.planted, which only simulated markets have; "
                f"this tape comes from {tape.source!r}"
            )
        if len(tape.contracts) != 1:
            raise ValueError(f"the oracle solves one contract at a time, the tape has {len(tape.contracts)}")
        if volatility_levels < 1:
            raise ValueError(f"volatility_levels must be at least 1, was {volatility_levels}")
        self._action = action
        self._max_exposure = max_exposure
        self._levels = levels
        self._open_time_ms = tape.open_time_ms
        self._planted = planted = np.asarray(tape.planted[:, 0], dtype=np.float64)
        self._sigma = _volatility_forecast(tape)
        self._log_sigma = np.log(_volatility_levels(self._sigma, volatility_levels))
        self.bands: tuple[NoTradeBand, ...] = ()
        # without an edge there is nothing to trade for, and no problem to solve
        if planted.any():
            self.bands = tuple(
                solve_proportional_cost(
                    ProportionalCostProblem(
                        persistence=_persistence(planted),
                        signal_sd=float(np.sqrt(np.mean(planted**2))),
                        sigma_per_bar=float(np.exp(log_sigma)),
                        cost_rate=cost_rate,
                        risk_aversion=risk_aversion,
                        max_exposure=max_exposure,
                    )
                )
                for log_sigma in self._log_sigma
            )

    def edges(self, expected_return: Floats, sigma_per_bar: Floats | None = None) -> tuple[Floats, Floats]:
        """The no-trade band in force.

        Args:
            expected_return: (n,) expected return of the next bar.
            sigma_per_bar: (n,) volatility as known now, outside the levels the nearest applies; None takes
                the oracle's own forecast by bar, for n = T.

        Returns:
            (n,) lower and (n,) upper edge, signed notional over equity; both zero without an edge.
        """
        if not self.bands:
            return np.zeros_like(expected_return), np.zeros_like(expected_return)
        sigma_per_bar = self._sigma if sigma_per_bar is None else sigma_per_bar
        levels = np.arange(len(self.bands))
        place = np.interp(np.log(sigma_per_bar), self._log_sigma, levels)
        # hat functions: linear interpolation between neighbouring levels
        weight = np.maximum(1.0 - np.abs(place - levels[:, None]), 0.0)  # V n
        lower = np.stack([np.interp(expected_return, b.signal, b.lower) for b in self.bands])  # V n
        upper = np.stack([np.interp(expected_return, b.signal, b.upper) for b in self.bands])  # V n
        return (weight * lower).sum(axis=0), (weight * upper).sum(axis=0)

    def act(
        self, tape: Tape, bar: int, account: NDArray[np.float32], portfolio: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """The band's exposure for the planted return of the next bar; see ``agents.protocol.Agent``.

        Raises:
            ValueError: the tape is not the one that the bands were solved for.
        """
        if bar >= self._open_time_ms.shape[0] or tape.open_time_ms[bar] != self._open_time_ms[bar]:
            raise ValueError(
                f"the oracle knows one tape only, and bar {bar} is of another; build it for this tape"
            )
        here = slice(bar, bar + 1)
        lower, upper = self.edges(self._planted[here], self._sigma[here])
        target = np.clip(account[:, 0, _EXPOSURE].astype(np.float64), lower[0], upper[0])
        return exposure_to_action(
            target, action=self._action, max_exposure=self._max_exposure, levels=self._levels
        )


def _volatility_forecast(tape: Tape) -> Floats:
    """(T,) deviation of the next bar's log return: root of an exponential mean of squares."""
    squares = np.diff(np.log(tape.last[:, 0, CLOSE]), prepend=np.log(tape.last[0, 0, OPEN])) ** 2
    decay = 0.5 ** (1.0 / _SIGMA_HALF_LIFE_BARS)
    # starts from the mean of the whole, which is as good as known after some half-lives
    mean, _ = lfilter([1.0 - decay], [1.0, -decay], squares, zi=[decay * squares.mean()])
    return np.asarray(np.sqrt(np.maximum(mean, _SMALLEST_SIGMA**2)), dtype=np.float64)


def _volatility_levels(forecast: Floats, count: int) -> Floats:
    """(V,) ascending levels that cover the forecasts; one level is their root mean square."""
    if count == 1:
        return np.array([np.sqrt(np.mean(forecast**2))])
    return np.asarray(np.quantile(forecast, np.linspace(*_LEVEL_QUANTILES, count)), dtype=np.float64)


def _persistence(planted: Floats) -> float:
    """Lag-one autocorrelation of a zero-mean series."""
    return float(np.clip((planted[1:] @ planted[:-1]) / (planted @ planted), 0.0, _MAX_PERSISTENCE))
