"""Advantages of decisions that last several steps: generalised advantage estimation for options."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bool = NDArray[np.bool_]


class OptionReturns(NamedTuple):
    """What an SMDP's decisions were worth.

    Attributes:
        advantages: (T, N), of the decisions; 0 where none was taken.
        targets: (T, N), the lambda-return from every step on: what V of a decision's state and the value
            within an option shall become.
    """

    advantages: Floats
    targets: Floats


def smdp_gae(
    reward: NDArray[np.floating],
    decides: Bool,
    value: Floats,
    last_value: Floats,
    ends: Bool,
    end_value: Floats,
    *,
    gamma: float,
    gae_lambda: float,
) -> OptionReturns:
    """Generalised advantage estimation (Schulman et al. 2016) over options (Sutton, Precup and Singh 1999).

    A decision at step t_i holds for k_i steps, until the next one or the end of the episode, and earns
    R_i = sum over j < k_i of gamma**j r_(t_i + j). With V of the states in which decisions are taken::

        delta_i = R_i + gamma**k_i V(next) - V(s_i)
        A_i = delta_i + gamma**k_i lambda A_(i+1)

    gamma**k_i and not gamma: an option that lasts longer discounts more. k_i is the realised duration. After
    the end of an episode come V = ``end_value`` and A = 0; after the last step, ``last_value`` and 0.

    Args:
        reward: (T, N), the raw reward of each step.
        decides: (T + 1, N), whether a decision was taken before each step, and whether one is due at the end.
        value: (T, N), V before each step; read where a decision was taken.
        last_value: (N,), after the last step: V where a decision is due, else the value within the option
            that goes on.
        ends: (T, N), where an episode ended with the step.
        end_value: (T, N), where it was cut off, as ``last_value``; 0 where it terminated.
        gamma, gae_lambda: discount a step, decay of the trace a decision.

    Returns:
        Advantages and targets. With a decision at every step they are those of GAE.
    """
    steps, n = reward.shape
    advantages, targets = np.zeros((steps, n)), np.zeros((steps, n))
    # of what follows the step at hand, seen from its end: V or the rest of the option's return, and the trace
    ahead, trace = last_value.astype(np.float64), np.zeros(n)
    for step in range(steps - 1, -1, -1):
        ahead = np.where(ends[step], end_value[step], ahead)
        trace = np.where(ends[step], 0.0, trace)
        ahead = reward[step] + gamma * ahead
        trace = gamma * trace
        targets[step] = ahead + trace
        decided = decides[step]
        advantages[step] = np.where(decided, targets[step] - value[step], 0.0)
        ahead = np.where(decided, value[step], ahead)
        trace = np.where(decided, gae_lambda * advantages[step], trace)
    return OptionReturns(advantages, targets)
