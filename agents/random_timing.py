"""The null that timing is judged against: the agent's own trades, at times that chance has chosen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perpgym.agents.asking import Asking
from perpgym.data.tape import Tape
from perpgym.envs.config import EnvConfig

Floats = NDArray[np.float64]


class RandomTiming:
    """Accounts that make the agent's own trades at other times.

    Of one contract, the agent's path is cut where its position leaves zero, turns or returns to zero. A draw
    shuffles the long pieces among the long places, the short among the short, the flat among the flat, and
    turns the whole path by a random number of bars on the circle of the period. But for the one piece that
    the period's ends cut, exposures and holding times are then exactly the agent's, the sum of the trades'
    sizes is too, and only the connection with the market is lost. An agent that holds one position
    throughout has no timing, and every draw equals it.

    Of several contracts the book is turned as one: what was held together stays together, for an agent that
    hedges takes less risk than one that holds the same positions at different times. What is asked of a
    contract before it is valid is refused there.

    Args:
        config: the env's config.
        exposure: (n, A) exposure asked for at each decision; ``nan`` where the quantity was held.
        side: (n, A) sign of the position that followed each decision.
        first_bar: tape index of the close at which the first decision was taken.
        draws: number of accounts.
        seed: of the shuffling.

    Attributes:
        rows: (n, draws) int64, by place and draw the agent's decision that is made there.
    """

    def __init__(
        self,
        config: EnvConfig,
        *,
        exposure: Floats,
        side: NDArray[np.int64],
        first_bar: int,
        draws: int = 200,
        seed: int = 0,
    ) -> None:
        self.name = "Random timing"
        self.n_accounts = draws
        self.first_bar = first_bar
        self.asking = Asking(config)
        rng = np.random.default_rng(seed)
        # where nothing is held, that is asked for: what came before in a draw must not stay
        asked = np.where(side == 0, 0.0, exposure)  # n A
        self._asked = np.where(np.isnan(asked), np.nan, self.asking.nearest(np.nan_to_num(asked)))
        pieces = _pieces(side[:, 0]) if side.shape[1] == 1 else None
        orders = [_order(len(side), pieces, rng) for _ in range(draws)]
        self.rows = np.stack([rows for rows, _ in orders], axis=1)  # n draws
        # a draw starts flat and must ask anew for what its first row held
        before = _last_asked(self._asked)
        self._start = np.stack([before[row] for _, row in orders])  # draws A

    def wanted(self, step: int) -> Floats:
        """(draws, A) exposure that each account asks for at its decision ``step``; ``nan`` holds."""
        asked = self._asked[self.rows[step]]
        return np.where(np.isnan(asked), self._start, asked) if step == 0 else asked

    def act(
        self, tape: Tape, bar: int, account: NDArray[np.float32], portfolio: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """The draws' actions; see ``agents.protocol.Agent``."""
        wanted = self.wanted(bar - self.first_bar)
        is_held = np.isnan(wanted)
        return self.asking.where(is_held, account, np.where(is_held, 0.0, wanted))


def _pieces(side: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    """(sign, rows) of the stretches with one sign."""
    cuts = np.flatnonzero(np.diff(side)) + 1
    rows = np.split(np.arange(side.size), cuts)
    return [(int(side[piece[0]]), piece) for piece in rows]


def _order(
    bars: int, pieces: list[tuple[int, NDArray[np.int64]]] | None, rng: np.random.Generator
) -> tuple[NDArray[np.int64], int]:
    """The rows of a draw, and the row whose last wish is in force at its start."""
    rows = np.arange(bars)
    if pieces is not None:
        order = np.arange(len(pieces))
        signs = np.array([sign for sign, _ in pieces])
        for sign in (-1, 0, 1):
            places = np.flatnonzero(signs == sign)
            order[places] = rng.permutation(places)
        rows = np.concatenate([pieces[i][1] for i in order])
    turned = np.roll(rows, -int(rng.integers(bars)))
    return turned, int(turned[0])


def _last_asked(asked: Floats) -> Floats:
    """(n, A) what was asked for last at each row; 0 before the first wish."""
    at = np.where(np.isnan(asked), -1, np.arange(len(asked))[:, None])
    at = np.maximum.accumulate(at, axis=0)
    values = np.take_along_axis(asked, np.maximum(at, 0), axis=0)
    return np.asarray(np.where(at < 0, 0.0, values))
