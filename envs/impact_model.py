"""How strong an account's transient and permanent impact is, how it decays, and the market that scales it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perpgym.data.bars import CLOSE
from perpgym.data.checks import check_within
from perpgym.data.clock import DAY_MS, MINUTE_MS
from perpgym.data.tape import Tape

ImpactKind = Literal["none", "exponential", "power_law", "permanent"]
IMPACT_KINDS: tuple[ImpactKind, ...] = ("none", "exponential", "power_law", "permanent")

# the power law is fitted from a minute to ten days
_FIT_MINUTES = np.geomspace(1.0, 14_400.0, 200)
_FIRST_HALF_LIVES_MINUTES = (2.0, 98.0, 4_800.0)
# weight of the condition that the kernel starts at 1, against a relative error of 1 at one time
_START_WEIGHT = 1e4


@dataclass(frozen=True, kw_only=True)
class ImpactModel:
    """The trace of an account's own fills, beside the square-root law of each order.

    Right after a fill of notional n the quote stands off by c * sigma_day * n / V_day: with c = 1, a
    hundredth of a day's turnover moves it by a hundredth of a day's volatility.

    Attributes:
        kind: how the transient part decays: ``exponential``, ``power_law``, or no transient part with
            ``permanent``; ``none`` is exactly no impact.
        transient_coefficient: c of the part that decays, dimensionless.
        permanent_coefficient: c of the part that stays, dimensionless; of every kind but ``none``. About 1
            for large stocks (Almgren, Thum, Hauptmann, Li 2005: 0.314 times the fourth root of shares
            outstanding over daily volume); nothing is known of perpetuals.
        half_life_minutes: of ``exponential``.
        turnover_days: the usual turnover is the mean of this many days, so that no single bar moves it.
        power: beta of ``power_law``, (1 + t / 1 hour)**-beta. Propagators of single trades have 0.2 to 0.6
            (Bouchaud, Gefen, Potters, Wyart 2004, "Fluctuations and response in financial markets").
    """

    kind: ImpactKind = "none"
    transient_coefficient: float = 1.0
    permanent_coefficient: float = 0.0
    half_life_minutes: float = 60.0
    power: float = 0.5
    turnover_days: float = 7.0

    def __post_init__(self) -> None:
        if self.kind not in IMPACT_KINDS:
            raise ValueError(f"impact kind must be one of {', '.join(IMPACT_KINDS)}, was {self.kind!r}")
        for name, low, high, unit in (
            ("transient_coefficient", 0.0, 1_000.0, "dimensionless; a negative push would pay for trading"),
            ("permanent_coefficient", 0.0, 1_000.0, "dimensionless; a negative push would pay for trading"),
            ("half_life_minutes", 1e-3, 1e7, "minutes"),
            ("turnover_days", 1e-3, 1e4, "days"),
            ("power", 0.1, 0.7, "dimensionless; three exponentials follow no steeper law"),
        ):
            check_within(name, getattr(self, name), low, high, unit)

    def kernel_numbers(self, bar_ms: int, fine_ms: int) -> tuple[list[float], list[float]]:
        """What the kernels take, for volatilities and turnovers of bars of ``bar_ms``.

        Returns:
            (pushes, keeps): how much of a fill each of three transient components and the permanent one
            takes, per root illiquidity; what ``fine_ms`` leaves of the transient ones.
        """
        if self.kind == "none":
            return [0.0] * 4, [1.0] * 3
        # sigma_day / V_day = sigma_bar * sqrt(m) / (V_bar * m), m bars a day
        scale = math.sqrt(bar_ms / DAY_MS)
        decay = self.decay()
        transient = 0.0 if self.kind == "permanent" else self.transient_coefficient * scale
        pushes = [transient * weight for weight in decay.weights]
        halvings = [fine_ms / (half_life * MINUTE_MS) for half_life in decay.half_lives_minutes]
        return [*pushes, self.permanent_coefficient * scale], [0.5**halving for halving in halvings]

    def decay(self) -> DecayKernel:
        """G of the transient part, as three exponentials."""
        if self.kind == "power_law":
            return power_law_kernel(self.power)
        return DecayKernel(weights=(1.0, 0.0, 0.0), half_lives_minutes=(self.half_life_minutes,) * 3)

    def usual_bars(self, bar_ms: int) -> int:
        """How many bars the usual turnover looks back, this one included; 0 where nothing needs it."""
        return 0 if self.kind == "none" else max(1, round(self.turnover_days * DAY_MS / bar_ms))

    def root_illiquidity(self, tape: Tape) -> NDArray[np.float64]:
        """(T, A) float64, sqrt(volatility / usual turnover) of a bar as known at its close.

        0 of kind ``none`` and where nothing is known of the turnover: fills push and pay nothing there.
        """
        if self.kind == "none":
            return np.zeros(tape.volume.shape)
        is_inverse = np.array([c.kind == "inverse" for c in tape.contracts])
        # an inverse contract's settle currency is its base
        turnover = np.where(is_inverse, tape.volume, tape.volume * tape.last[:, :, CLOSE])
        usual = trailing_turnover(turnover, self.usual_bars(tape.bar_ms))
        ratio = np.divide(tape.sigma_per_bar, usual, out=np.zeros_like(usual), where=usual > 0.0)
        return np.ascontiguousarray(np.sqrt(ratio))


@dataclass(frozen=True, kw_only=True)
class DecayKernel:
    """G(t) = sum_k weight_k * 2**(-t / half_life_k), G(0) = 1: positive weights, so convex and decreasing.

    Attributes:
        weights: sum to 1.
        half_lives_minutes: ascending.
    """

    weights: tuple[float, ...]
    half_lives_minutes: tuple[float, ...]

    def __call__(self, minutes: NDArray[np.float64]) -> NDArray[np.float64]:
        """What is left of a push after ``minutes`` (T,), a fraction (T,)."""
        halvings = minutes[:, None] / np.array(self.half_lives_minutes)  # T K
        return np.asarray(np.exp2(-halvings) @ np.array(self.weights))


@cache
def power_law_kernel(power: float) -> DecayKernel:
    """Three exponentials for (1 + t / 1 hour)**-power.

    Least squares of the relative error at 200 times spaced evenly in log t between a minute and ten days,
    over the three half-lives; for given half-lives the weights are non-negative least squares (Lawson,
    Hanson 1974) that start at 1. A plain t**-power has no start. The bare power law would need infinitely
    many exponentials: ``tests/envs/test_impact.py`` states how far off three are.
    """
    # slow to import, needed by few, and it changes the process's warning filters
    from scipy.optimize import least_squares, nnls

    target = (1.0 + _FIT_MINUTES / 60.0) ** -power

    def fitted(log_half_lives: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        decays = np.exp2(-_FIT_MINUTES[:, None] / np.exp(log_half_lives)) / target[:, None]  # T 3
        system = np.vstack([decays, np.full((1, 3), _START_WEIGHT)])
        weights, _ = nnls(system, np.append(np.ones(_FIT_MINUTES.size), _START_WEIGHT))
        return weights, decays @ weights - 1.0

    found = least_squares(lambda at: fitted(at)[1], np.log(_FIRST_HALF_LIVES_MINUTES))
    order = np.argsort(found.x)
    weights = fitted(found.x)[0][order]
    return DecayKernel(
        weights=tuple((weights / weights.sum()).tolist()),
        half_lives_minutes=tuple(np.exp(found.x[order]).tolist()),
    )


def trailing_turnover(turnover: NDArray[np.float64], bars: int) -> NDArray[np.float64]:
    """The market's usual turnover in a bar, known at each bar's close: the reference of the impact.

    Args:
        turnover: (T, A) float64, settle currency, of each bar; 0 or nan where nothing traded.
        bars: how many bars back, this one included; a week or more, so that no single bar moves it.

    Returns:
        (T, A) float64, mean over those of the last ``bars`` bars that traded; 0 where none did.

    Raises:
        ValueError: ``bars`` is not positive, or a turnover is negative or infinite.
    """
    if bars < 1:
        raise ValueError(f"bars must be at least 1, was {bars}")
    turnover = np.nan_to_num(np.asarray(turnover, np.float64), nan=0.0, posinf=np.inf)
    if not (np.isfinite(turnover) & (turnover >= 0.0)).all():
        bar, asset = np.argwhere(~(np.isfinite(turnover) & (turnover >= 0.0)))[0]
        raise ValueError(f"bar {bar} of contract {asset}: turnover was {turnover[bar, asset]}, must be >= 0")
    total = np.cumsum(turnover, axis=0)
    traded = np.cumsum((turnover > 0.0).astype(np.int64), axis=0)
    total[bars:] -= total[:-bars].copy()
    traded[bars:] -= traded[:-bars].copy()
    return np.where(traded > 0, np.maximum(total, 0.0) / np.maximum(traded, 1), 0.0)
