"""How a setting moves over a run: constant, or down to zero in a line or half a cosine."""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["constant", "linear", "cosine"]


class Schedule:
    """A function of SB3's ``progress_remaining``, 1 at the beginning and 0 at the end of a run.

    A class and not a closure, because SB3 pickles schedules.

    Args:
        initial: the value at the beginning.
        shape: ``constant``; ``linear``, initial * p; ``cosine``, initial * (1 - cos(pi p)) / 2 (Loshchilov
            and Hutter 2017, eq. 5, without restarts).
    """

    def __init__(self, initial: float, shape: Shape = "constant") -> None:
        self.initial = initial
        self.shape = shape

    def __call__(self, progress_remaining: float) -> float:
        """The value; where the last rollout runs past the total, that at the end."""
        left = max(progress_remaining, 0.0)
        match self.shape:
            case "constant":
                return self.initial
            case "linear":
                return self.initial * left
            case "cosine":
                return self.initial * 0.5 * (1.0 - math.cos(math.pi * left))
