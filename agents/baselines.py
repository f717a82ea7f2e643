"""What an agent must be compared with: simple rules that see no more than the agent does.

Every baseline is an :class:`~perpgym.agents.protocol.Agent` of a tape with one contract; it reads the tape up
to ``bar`` and nothing later. Between its trades it *holds a quantity*: an exposure that merely drifted is not
traded back, which would cost fees that the rule did not ask for.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from perpgym.agents.protocol import Agent
from perpgym.data.bars import CLOSE
from perpgym.data.tape import Tape
from perpgym.envs.actions import ActionKind, exposure_to_action
from perpgym.envs.config import EnvConfig
from perpgym.envs.spaces import ACCOUNT_NAMES

Floats = NDArray[np.float64]

_EXPOSURE = ACCOUNT_NAMES.index("exposure")
_DAY_MS = 86_400_000


def hold_action(exposure: Floats, *, action: ActionKind, max_exposure: float) -> NDArray[np.float32]:
    """The action that trades nothing, whatever the exposure has drifted to.

    Args:
        exposure: (n,) the accounts' present exposure.
        action: the env's action kind.
        max_exposure: the env's range.

    Returns:
        (n, action_dim) float32: the present exposure as a target, or as the centre of the widest band.
    """
    out = exposure_to_action(exposure, action=action, max_exposure=max_exposure)
    if action == "band":
        out[..., 1] = 1.0
    return out


class Rule:
    """A baseline that wants an exposure at each close and trades when the present one is far from it.

    Attributes:
        name: shown in tables.
        tolerance: equity; a wish closer than this to the present exposure, and on its side, is not traded.
    """

    tolerance: float = 0.10

    def __init__(self, config: EnvConfig, name: str) -> None:
        self.name = name
        self.action = config.action
        self.max_exposure = config.max_exposure

    def wish(self, tape: Tape, bar: int) -> float:
        """The exposure wanted at the close of ``bar``, signed notional over equity."""
        raise NotImplementedError

    def act(
        self, tape: Tape, bar: int, account: NDArray[np.float32], portfolio: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        present = account[:, 0, _EXPOSURE].astype(np.float64)
        wanted = np.full_like(present, np.clip(self.wish(tape, bar), -self.max_exposure, self.max_exposure))
        is_near = (np.sign(present) == np.sign(wanted)) & (np.abs(wanted - present) <= self.tolerance)
        return self._choose(is_near, present, wanted)

    def _choose(self, is_held: NDArray[np.bool_], present: Floats, wanted: Floats) -> NDArray[np.float32]:
        hold = hold_action(present, action=self.action, max_exposure=self.max_exposure)
        trade = exposure_to_action(wanted, action=self.action, max_exposure=self.max_exposure)
        return np.where(is_held[:, None], hold, trade)


class Flat(Rule):
    """Never trades."""

    def __init__(self, config: EnvConfig, *, name: str = "Flat") -> None:
        super().__init__(config, name)

    def wish(self, tape: Tape, bar: int) -> float:
        return 0.0


class Hold(Rule):
    """Asks once for an exposure and keeps the quantity.

    A first order that the bar's volume could not take whole is asked for again until nine tenths are there.
    A position that something else closed (a stop, a limit of the risk overlay) is asked for again as well.

    Args:
        exposure: signed notional over equity.
        name: shown in tables; None for the usual one.
    """

    def __init__(self, config: EnvConfig, *, exposure: float, name: str | None = None) -> None:
        super().__init__(config, name or ("Buy and hold" if exposure > 0 else "Short and hold"))
        self.exposure = exposure
        self._bar = -1
        self._is_filled = np.zeros(0, dtype=np.bool_)

    def act(
        self, tape: Tape, bar: int, account: NDArray[np.float32], portfolio: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        present = account[:, 0, _EXPOSURE].astype(np.float64)
        if bar != self._bar + 1 or self._is_filled.shape != present.shape:
            self._is_filled = np.zeros(present.shape, dtype=np.bool_)
        self._bar = bar
        self._is_filled &= present != 0
        self._is_filled |= present * np.sign(self.exposure) >= 0.9 * abs(self.exposure)
        return self._choose(self._is_filled, present, np.full_like(present, self.exposure))


class VolatilityTarget(Rule):
    """Long, sized so that the forecast volatility of equity is constant (Moreira and Muir 2017).

    Args:
        target_volatility: fraction per square root of a year.
    """

    def __init__(self, config: EnvConfig, *, target_volatility: float = 0.40) -> None:
        super().__init__(config, "Volatility-targeted long")
        self.target_volatility = target_volatility

    def wish(self, tape: Tape, bar: int) -> float:
        return _scale(tape, bar, self.target_volatility, self.max_exposure)


class Momentum(Rule):
    """Long after a rise, short after a fall, at constant volatility (Moskowitz, Ooi and Pedersen 2012).

    Args:
        lookback_days: the return that decides.
        target_volatility: fraction per square root of a year.
    """

    def __init__(
        self, config: EnvConfig, *, lookback_days: float = 28.0, target_volatility: float = 0.40
    ) -> None:
        super().__init__(config, "Time-series momentum")
        self.lookback_days = lookback_days
        self.target_volatility = target_volatility

    def wish(self, tape: Tape, bar: int) -> float:
        lookback = _bars(tape, self.lookback_days)
        if bar < lookback:
            return 0.0
        side = np.sign(tape.last[bar, 0, CLOSE] - tape.last[bar - lookback, 0, CLOSE])
        return float(side) * _scale(tape, bar, self.target_volatility, self.max_exposure)


class MovingAverageCross(Rule):
    """Long while the fast mean of closes is above the slow one, else short (Brock, Lakonishok, LeBaron 1992).

    Args:
        fast_days, slow_days: lengths of the two means.
    """

    tolerance = math.inf  # trades at crossings only

    def __init__(self, config: EnvConfig, *, fast_days: float = 5.0, slow_days: float = 20.0) -> None:
        if not 0 < fast_days < slow_days:
            raise ValueError(f"fast_days must lie between 0 and slow_days ({slow_days}), was {fast_days}")
        super().__init__(config, "Moving-average cross")
        self.fast_days, self.slow_days = fast_days, slow_days

    def wish(self, tape: Tape, bar: int) -> float:
        fast, slow = _bars(tape, self.fast_days), _bars(tape, self.slow_days)
        if bar + 1 < slow:
            return 0.0
        closes = tape.last[bar + 1 - slow : bar + 1, 0, CLOSE]
        return float(np.sign(closes[-fast:].mean() - closes.mean()))


class FundingCarry(Rule):
    """On the side that is paid: short while funding is positive, long while negative (Koijen et al. 2018).

    Args:
        stamps: the mean of so many settlements, all past, decides; the rate is known from its stamp on.
    """

    tolerance = math.inf  # trades when the sign turns

    def __init__(self, config: EnvConfig, *, stamps: int = 9) -> None:
        if stamps < 1:
            raise ValueError(f"stamps must be at least 1, was {stamps}")
        super().__init__(config, "Funding carry")
        self.stamps = stamps

    def wish(self, tape: Tape, bar: int) -> float:
        # a bar owns the stamps up to and with its close, so these are exactly the ones already settled
        known = int(tape.stamp_start[0, bar + 1])
        first = max(int(tape.stamp_start[0, 0]), known - self.stamps)
        return -float(np.sign(tape.stamp_rate[first:known].mean())) if known > first else 0.0


class RandomTiming:
    """Accounts that make the agent's own trades at other times.

    The agent's path is cut where its position leaves zero, turns or returns to zero. A draw shuffles the long
    pieces among the long places, the short among the short, the flat among the flat, and turns the whole path
    by a random number of bars on the circle of the period. But for the one piece that the period's ends cut,
    exposures and holding times are then exactly the agent's, the sum of the trades' sizes is too, and only
    the connection with the market is lost. An agent that holds one position throughout has no timing, and
    every draw equals it.

    Args:
        config: the env's config.
        exposure: (n,) exposure asked for at each decision; ``nan`` where the quantity was held.
        side: (n,) sign of the position that followed each decision.
        first_bar: tape index of the close at which the first decision was taken.
        draws: number of accounts.
        seed: of the shuffling.
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
        self.action = config.action
        self.max_exposure = config.max_exposure
        rng = np.random.default_rng(seed)
        pieces = _pieces(exposure, side)
        self.paths = np.stack([_shuffled(pieces, rng) for _ in range(draws)], axis=1)  # n draws

    def act(
        self, tape: Tape, bar: int, account: NDArray[np.float32], portfolio: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        present = account[:, 0, _EXPOSURE].astype(np.float64)
        wanted = self.paths[bar - self.first_bar]
        is_held = np.isnan(wanted)
        hold = hold_action(present, action=self.action, max_exposure=self.max_exposure)
        target = np.where(is_held, 0.0, wanted)
        trade = exposure_to_action(target, action=self.action, max_exposure=self.max_exposure)
        return np.where(is_held[:, None], hold, trade)


def standard_baselines(config: EnvConfig) -> tuple[Agent, ...]:
    """One of each rule that an agent is judged beside, with its usual parameters."""
    return (
        Flat(config),
        Hold(config, exposure=1.0),
        Hold(config, exposure=-1.0),
        VolatilityTarget(config),
        Momentum(config),
        MovingAverageCross(config),
        FundingCarry(config),
    )


def _pieces(exposure: Floats, side: NDArray[np.int64]) -> list[tuple[int, Floats]]:
    """(sign, exposures) of the stretches with one sign; each begins with what it asks for."""
    cuts = np.flatnonzero(np.diff(side)) + 1
    out = []
    for start, stop in zip([0, *cuts], [*cuts, side.shape[0]], strict=True):
        piece = exposure[start:stop].copy()
        if side[start] == 0:
            piece[:] = 0.0
        out.append((int(side[start]), piece))
    return out


def _shuffled(pieces: list[tuple[int, Floats]], rng: np.random.Generator) -> Floats:
    order = np.arange(len(pieces))
    signs = np.array([sign for sign, _ in pieces])
    for sign in (-1, 0, 1):
        places = np.flatnonzero(signs == sign)
        order[places] = rng.permutation(places)
    path = np.concatenate([pieces[i][1] for i in order])
    shift = int(rng.integers(path.shape[0]))
    # the piece that the circle cuts must ask again, at the new start, for what it last asked for
    asked = path[:shift][~np.isnan(path[:shift])] if shift else path[:1]
    path = np.roll(path, -shift)
    if np.isnan(path[0]):
        path[0] = asked[-1]
    return path


def _scale(tape: Tape, bar: int, target_volatility: float, max_exposure: float) -> float:
    # the tape's forecast is quick; a week of it keeps the size from chasing every hour
    recent = tape.sigma_per_bar[max(0, bar + 1 - _bars(tape, 7.0)) : bar + 1, 0]
    sigma = math.sqrt(float(np.mean(recent**2)) * tape.bars_per_year)
    return min(target_volatility / sigma, max_exposure) if sigma > 0 else 0.0


def _bars(tape: Tape, days: float) -> int:
    return max(1, round(days * _DAY_MS / tape.bar_ms))
