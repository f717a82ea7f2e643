"""What the accounts of ``bench_env.py`` do, bar after bar."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Actions = NDArray[np.float32]
STEPS_PER_TAPE = 240


def action_tapes(accounts: int) -> dict[str, Actions]:
    """By name, (STEPS_PER_TAPE, accounts, 2) float32; ``bench_env.py`` says what each is."""
    rng = np.random.default_rng(0)
    band = rng.uniform(-1, 1, (STEPS_PER_TAPE, accounts, 2)).astype(np.float32)
    trading, holding = band.copy(), np.ones_like(band)
    trading[..., 1] = -1.0
    holding[...] = (0.25, -0.9)
    day = (np.arange(STEPS_PER_TAPE)[:, None] + rng.integers(0, 24, accounts)) // 24
    daily: Actions = np.ascontiguousarray(band[day, np.arange(accounts)])
    return {"trading": trading, "random band": band, "daily": daily, "holding": holding}
