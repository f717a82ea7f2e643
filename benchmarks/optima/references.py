"""The best that can be done; formulas and sources are in ``docs/algorithms/known_optima.md``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perpgym.agents.oracle import NoTradeBand, ProportionalCostProblem, solve_proportional_cost

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class QuadraticCosts:
    """One asset, an AR(1) signal, quadratic costs: Gârleanu and Pedersen 2013, section II, in one dimension.

    The reward of holding x over a bar, having held x0, is s x - risk / 2 x^2 - cost / 2 (x - x0)^2.

    Attributes:
        persistence: rho, correlation of the signal with its value a bar earlier.
        signal_sd: stationary deviation of the signal, the expected return of a bar.
        risk: kappa, per squared position and bar.
        cost: c, per squared trade.
    """

    persistence: float
    signal_sd: float
    risk: float
    cost: float

    def value_curvature(self, discount: float = 1.0) -> float:
        """A of the value -A x^2 / 2 + B x s + ... of holding x."""
        b = self.risk + (1.0 - discount) * self.cost
        return (math.sqrt(b * b + 4.0 * discount * self.cost * self.risk) - b) / (2.0 * discount)

    def trading_rate(self, discount: float = 1.0) -> float:
        """Share of the way to the aim that is traded in a bar."""
        return self.value_curvature(discount) / self.cost

    def aim_per_signal(self, discount: float = 1.0) -> float:
        """Position traded towards, over the signal."""
        decay = 1.0 - self.persistence
        return 1.0 / (self.risk + discount * self.value_curvature(discount) * decay)

    def trade(self, signal: Floats, position: Floats, discount: float = 1.0) -> Floats:
        """The position to hold next."""
        rate = self.trading_rate(discount)
        return np.asarray((1.0 - rate) * position + rate * self.aim_per_signal(discount) * signal)

    def average_reward(self) -> float:
        """g*, the most that can be earned per bar in the long run."""
        joint = self.risk + self.cost + self.value_curvature()
        variance = self.signal_sd**2
        return 0.5 * variance * joint / (joint - self.cost * self.persistence) ** 2

    def average_reward_of(self, rate: float, aim: float) -> float:
        """What ``x = (1 - rate) x0 + rate * aim * s`` earns per bar in the long run.

        From the stationary moments of x: with k = 1 - rate, E x^2 and E x x0 solve two linear equations.
        """
        keep, rho, variance = 1.0 - rate, self.persistence, self.signal_sd**2
        pull = rate * aim
        with_signal = pull * variance / (1.0 - keep * rho)  # E x s
        lagged_signal = rho * with_signal  # E x0 s
        square = (pull * pull * variance + 2.0 * keep * pull * lagged_signal) / (1.0 - keep * keep)
        neighbours = keep * square + pull * lagged_signal  # E x x0
        return with_signal - 0.5 * self.risk * square - self.cost * (square - neighbours)


# the set of the project's brief: deviation of a bar 50 bp and risk aversion 5, a signal of 2.5 bp that halves
# in 12 bars
GP_H = QuadraticCosts(persistence=2.0 ** (-1.0 / 12.0), signal_sd=2.5e-4, risk=1.25e-4, cost=1e-3)
GP_H_NOISE_SD = 5e-3


# --- Chaouki et al. 2020, "Deep deterministic portfolio optimization", arXiv 2003.06497 ---

CHAOUKI_SEEDS = (989115, 730001, 375393, 887276, 19045, 918105, 660321, 973008, 801101, 928288)
CHAOUKI_BARS = 5_000
# theta = 0.1 and the scaling of their process, whose innovations have variance 2 theta
CHAOUKI_PERSISTENCE = 0.9
CHAOUKI_SD = math.sqrt(0.2 / (1.0 - CHAOUKI_PERSISTENCE**2))
CHAOUKI_RISK = 0.6  # twice their lambda
CHAOUKI_LINEAR_COST = 4.0  # their psi
CHAOUKI_LIMIT = 2.0
# what they print of two problems is a tenth of the reward
CHAOUKI_PRINTED_SHARE = 0.1

CHAOUKI_QUADRATIC = QuadraticCosts(
    persistence=CHAOUKI_PERSISTENCE, signal_sd=CHAOUKI_SD, risk=CHAOUKI_RISK, cost=2.0
)


def chaouki_linear_band() -> NoTradeBand:
    """The band of the problem with linear costs, by value iteration."""
    return proportional_band(
        persistence=CHAOUKI_PERSISTENCE,
        signal_sd=CHAOUKI_SD,
        risk=CHAOUKI_RISK,
        cost=CHAOUKI_LINEAR_COST,
        limit=8.0,
    )


def switching_threshold(*, persistence: float, signal_sd: float, cost: float, points: int = 1_001) -> float:
    """The signal beyond which to hold the largest position, where nothing but the limit holds it back.

    The reward p x - cost |dx| is linear in x, so all that matters is d, what one more unit held is worth:
    d(p) = p + E clip(d(p'), -cost, cost), since who holds it may sell it and who does not may buy it. At
    d = cost it is bought. The limit itself plays no part.

    Args:
        persistence, signal_sd: of the Gaussian AR(1) p.
        cost: per unit traded.
        points: of the grid on which d is solved for.

    Raises:
        RuntimeError: no convergence.
    """
    signal = signal_sd * np.linspace(-6.0, 6.0, points)
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    innovation = signal_sd * math.sqrt(1.0 - persistence**2)
    following = persistence * signal[:, None] + innovation * nodes  # S Q
    weights = weights / weights.sum()
    worth = np.zeros(points)
    for _ in range(10_000):
        updated = signal + np.clip(np.interp(following, signal, worth), -cost, cost) @ weights
        if np.abs(updated - worth).max() < 1e-9 * cost:
            # d rises with the signal
            return float(np.interp(cost, updated, signal))
        worth = updated
    raise RuntimeError("what a unit is worth did not converge: the persistence is too close to 1")


def proportional_band(
    *, persistence: float, signal_sd: float, risk: float, cost: float, limit: float
) -> NoTradeBand:
    """The no-trade band for s x - risk / 2 x^2 - cost |x - x0| with |x| <= limit, by value iteration.

    Args:
        persistence, signal_sd: of the AR(1) signal.
        risk: per squared position and bar.
        cost: per unit traded.
        limit: largest position.
    """
    return solve_proportional_cost(
        ProportionalCostProblem(
            persistence=persistence,
            signal_sd=signal_sd,
            # the solver takes risk as aversion times a variance
            sigma_per_bar=1.0,
            risk_aversion=risk,
            cost_rate=cost,
            max_exposure=limit,
            exposure_points=321,
        )
    )


# --- log growth ---


def growth(exposure: float, net_returns: Floats) -> float:
    """Mean log growth per bar of a constant exposure.

    Args:
        exposure: notional over equity, the same at the start of every bar.
        net_returns: (T,) simple return of a long over a bar, less what it paid in funding.

    Returns:
        -inf where a bar would have taken everything.
    """
    wealth = 1.0 + exposure * net_returns
    return float(np.log(wealth).mean()) if wealth.min() > 0.0 else -math.inf


def best_constant_exposure(net_returns: Floats) -> float:
    """The exposure that grows fastest on these very bars: Kelly's, by Newton's method.

    Growth is concave, and the second-order answer mean / mean square is where the search starts.

    Raises:
        RuntimeError: no convergence: returns of one sign have no best exposure.
    """
    exposure = float(net_returns.mean() / np.square(net_returns).mean())
    for _ in range(50):
        gain = net_returns / (1.0 + exposure * net_returns)
        step = float(gain.mean() / np.square(gain).mean())
        exposure += step
        if abs(step) < 1e-12 * max(1.0, abs(exposure)):
            return exposure
    raise RuntimeError("no constant exposure grows fastest: give returns of both signs")


def shorts_for_funding(funding_rate: float, settlements: int, fee_rate: float) -> bool:
    """Whether shorting, collecting and closing again beats doing nothing, at a price that stands still."""
    return funding_rate * settlements > 2.0 * fee_rate


# --- execution ---


@dataclass(frozen=True, kw_only=True)
class Liquidation:
    """Selling a block in N equal steps: Almgren and Chriss 2000, section 3.4 and table 1.

    Attributes:
        shares: X, to be sold.
        price: at the start, per share.
        steps: N.
        step_length: tau, days.
        volatility: sigma, price per share and square root of a day.
        fixed_cost: epsilon, per share: half the spread and the fee.
        permanent_impact: gamma, price per share, for each share sold.
        temporary_impact: eta, price per share, for each share a day.
        risk_aversion: lambda, per unit of money.
    """

    shares: float = 1e6
    price: float = 50.0
    steps: int = 5
    step_length: float = 1.0
    volatility: float = 0.95
    fixed_cost: float = 0.0625
    permanent_impact: float = 2.5e-7
    temporary_impact: float = 2.5e-6
    risk_aversion: float = 1e-6

    @property
    def impact(self) -> float:
        """eta~ = eta - gamma tau / 2: what remains of temporary impact with the permanent one set apart."""
        return self.temporary_impact - 0.5 * self.permanent_impact * self.step_length

    @property
    def urgency(self) -> float:
        """kappa of equation 21: 2 (cosh(kappa tau) - 1) / tau^2 = lambda sigma^2 / eta~."""
        ratio = self.risk_aversion * self.volatility**2 / self.impact
        return math.acosh(0.5 * ratio * self.step_length**2 + 1.0) / self.step_length

    def schedule(self) -> Floats:
        """(N + 1,) shares held, from X to 0: equation 18."""
        left = self.urgency * self.step_length * np.arange(self.steps, -1, -1)
        return np.asarray(self.shares * np.sinh(left) / np.sinh(left[0]))

    def equal_slices(self) -> Floats:
        """(N + 1,) shares held when as much is sold in every step."""
        return np.linspace(self.shares, 0.0, self.steps + 1)

    def unavoidable_cost(self) -> float:
        """What every schedule that only sells pays alike: gamma X^2 / 2 + epsilon X."""
        return 0.5 * self.permanent_impact * self.shares**2 + self.fixed_cost * self.shares

    def utility_cost(self, held: Floats) -> float:
        """U = expected cost + lambda * variance of a schedule that only sells: equations 4, 5 and 7.

        Args:
            held: (N + 1,) shares, the last 0.
        """
        impact = self.impact * float(np.square(np.diff(held)).sum()) / self.step_length
        variance = self.volatility**2 * self.step_length * float(np.square(held[1:]).sum())
        return self.unavoidable_cost() + impact + self.risk_aversion * variance
