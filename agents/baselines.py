"""What an agent must be compared with: simple rules that see no more than the agent does.

Every baseline is an :class:`~perpgym.agents.protocol.Agent`, and by :mod:`perpgym.agents.predictor` whatever
takes a model of Stable-Baselines3 takes it; it reads the tape up to ``bar`` and nothing
later. Between its trades it *holds a quantity*: an exposure that merely drifted is not traded back, which
would cost fees that the rule did not ask for.

On several contracts a rule is applied to each, and the results share one account. A contract takes part once
it is valid (``Tape.is_valid``), in equal parts of the risk or, where a rule says so, of the money. With one
contract its part is the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from perpgym.agents.asking import Asking
from perpgym.agents.protocol import Agent
from perpgym.data.bars import CLOSE
from perpgym.data.contract import Contract
from perpgym.data.tape import Tape
from perpgym.envs.config import EnvConfig

Floats = NDArray[np.float64]

_DAY_MS = 86_400_000
# of the volatility by which rules size
_SIGMA_DAYS = 7.0


class Rule:
    """A baseline that wants exposures at each close and trades where the present one is far from its wish.

    Attributes:
        name: shown in tables.
        tolerance: equity, of a rule on one contract; of several, each has its equal part of it. A wish closer
            than this to the present exposure, and on its side, is not traded.
    """

    tolerance: float = 0.10
    # of closes or volatilities that a wish reads
    _reach_days: float = _SIGMA_DAYS

    def __init__(self, config: EnvConfig, name: str) -> None:
        self.name = name
        self.asking = Asking(config)
        self.max_exposure = config.max_exposure

    def wish(self, tape: Tape, bar: int) -> Floats:
        """The exposures wanted at the close of ``bar``: (A,) signed notional over equity."""
        raise NotImplementedError

    def lookback_bars(self, contracts: Sequence[Contract], bar_ms: int) -> int:
        """Of its usual windows; see :class:`perpgym.agents.protocol.LiveAgent`."""
        return _bars(bar_ms, self._reach_days) + 1

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """Most rules remember nothing; see :class:`perpgym.agents.protocol.LiveAgent`."""
        return {}

    def load_state(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Continue where :meth:`state_dict` was taken."""

    def act(
        self, tape: Tape, bar: int, account: NDArray[np.float32], portfolio: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        present = self.asking.present(account)  # n A
        wanted = np.broadcast_to(self.asking.nearest(self.wish(tape, bar)), present.shape)
        tolerance = self.tolerance / max(int(tape.is_valid[bar].sum()), 1)
        is_near = (np.sign(present) == np.sign(wanted)) & (np.abs(wanted - present) <= tolerance)
        return self.asking.where(is_near, account, wanted)


class Flat(Rule):
    """Never trades."""

    _reach_days = 0.0

    def __init__(self, config: EnvConfig, *, name: str = "Flat") -> None:
        super().__init__(config, name)

    def wish(self, tape: Tape, bar: int) -> Floats:
        return np.zeros(len(tape.contracts))


class Hold(Rule):
    """Asks once for an exposure and keeps the quantities; of several contracts, equal notionals at the start.

    A first order that the bar's volume could not take whole is asked for again until nine tenths are there.
    A position that something else closed (a stop, a limit of the risk overlay) is asked for again as well.
    Where a contract becomes valid, all are brought back to equal notionals, once.

    Args:
        exposure: signed notional over equity, of all contracts together.
        name: shown in tables; None for the usual one.
    """

    _reach_days = 0.0

    def __init__(self, config: EnvConfig, *, exposure: float, name: str | None = None) -> None:
        super().__init__(config, name or ("Buy and hold" if exposure > 0 else "Short and hold"))
        self.exposure = exposure
        self._bar = -1
        self._is_restored = False
        self._is_listed = np.zeros(0, dtype=np.bool_)
        self._is_filled = np.zeros((0, 0), dtype=np.bool_)

    def wish(self, tape: Tape, bar: int) -> Floats:
        return self.exposure * _equal_parts(tape, bar)

    def act(
        self, tape: Tape, bar: int, account: NDArray[np.float32], portfolio: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        present = self.asking.present(account)  # n A
        wanted = np.broadcast_to(self.asking.nearest(self.wish(tape, bar)), present.shape)
        is_listed = tape.is_valid[bar]
        # by time: the newest bar of a tape of the newest bars has the same index each time
        now = int(tape.epoch_bar(np.array(bar)))
        passed = now - self._bar
        is_next = passed == 1 or (passed >= 0 and self._is_restored)
        is_another_period = not is_next or self._is_filled.shape != present.shape
        if is_another_period:
            self._is_filled = np.zeros(present.shape, dtype=np.bool_)
        self._is_filled &= present != 0
        self._is_filled |= present * np.sign(self.exposure) >= 0.9 * np.abs(wanted)
        if not is_another_period and (is_listed != self._is_listed).any():
            # what there is of the others is too much now, which looks filled
            self._is_filled[:] = False
        self._bar, self._is_listed, self._is_restored = now, is_listed, False
        return self.asking.where(self._is_filled, account, wanted)

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """What it has, and when it last looked."""
        return {
            "bar": np.array(self._bar, np.int64),
            "is_listed": self._is_listed.copy(),
            "is_filled": self._is_filled.copy(),
        }

    def load_state(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Continue where :meth:`state_dict` was taken, at the same bar or as many later as have passed."""
        self._bar, self._is_restored = int(state["bar"]), True
        self._is_listed, self._is_filled = (
            np.array(state[name], np.bool_) for name in ("is_listed", "is_filled")
        )


class VolatilityTarget(Rule):
    """Long, sized so that the forecast volatility of equity is constant (Moreira and Muir 2017).

    Args:
        target_volatility: fraction per square root of a year; of k contracts each position has one k-th of
            it, so that together they reach it only if they move as one.
    """

    def __init__(self, config: EnvConfig, *, target_volatility: float = 0.40) -> None:
        super().__init__(config, "Volatility-targeted long")
        self.target_volatility = target_volatility

    def wish(self, tape: Tape, bar: int) -> Floats:
        return _scale(tape, bar, self.target_volatility, self.max_exposure)


class Momentum(Rule):
    """Long after a rise, short after a fall, at constant volatility (Moskowitz, Ooi and Pedersen 2012).

    Several contracts are averaged, each at the target's volatility, as theirs are.

    Args:
        lookback_days: the return that decides.
        target_volatility: fraction per square root of a year.
    """

    def __init__(
        self, config: EnvConfig, *, lookback_days: float = 28.0, target_volatility: float = 0.40
    ) -> None:
        super().__init__(config, "Time-series momentum")
        self.lookback_days = lookback_days
        self._reach_days = max(lookback_days, _SIGMA_DAYS)
        self.target_volatility = target_volatility

    def wish(self, tape: Tape, bar: int) -> Floats:
        lookback = _bars(tape.bar_ms, self.lookback_days)
        if bar < lookback:
            return np.zeros(len(tape.contracts))
        # a contract that was not there yet stood at its first open: what it has done since counts
        side = np.sign(tape.last[bar, :, CLOSE] - tape.last[bar - lookback, :, CLOSE])
        return np.asarray(side * _scale(tape, bar, self.target_volatility, self.max_exposure))


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
        self._reach_days = max(slow_days, _SIGMA_DAYS)

    def wish(self, tape: Tape, bar: int) -> Floats:
        fast, slow = _bars(tape.bar_ms, self.fast_days), _bars(tape.bar_ms, self.slow_days)
        if bar + 1 < slow:
            return np.zeros(len(tape.contracts))
        closes = tape.last[bar + 1 - slow : bar + 1, :, CLOSE]  # slow A
        side = np.sign(closes[-fast:].mean(axis=0) - closes.mean(axis=0))
        return np.asarray(side * _equal_risk(tape, bar))


class _OfFunding(Rule):
    """A rule that reads the newest settlements.

    Args:
        stamps: how many of each contract.
    """

    # trades when a sign turns or a contract changes sides
    tolerance = math.inf

    def __init__(self, config: EnvConfig, name: str, stamps: int) -> None:
        super().__init__(config, name)
        self.stamps = _at_least_one(stamps)

    def lookback_bars(self, contracts: Sequence[Contract], bar_ms: int) -> int:
        """As many as hold the settlements at their usual times."""
        longest_ms = self.stamps * max(contract.funding_interval_ms for contract in contracts)
        return max(super().lookback_bars(contracts, bar_ms), math.ceil(longest_ms / bar_ms) + 1)


class FundingCarry(_OfFunding):
    """On the side that is paid: short while funding is positive, long while negative (Koijen et al. 2018).

    Args:
        stamps: the mean of so many settlements, all past, decides; the rate is known from its stamp on.
    """

    def __init__(self, config: EnvConfig, *, stamps: int = 9) -> None:
        super().__init__(config, "Funding carry", stamps)

    def wish(self, tape: Tape, bar: int) -> Floats:
        return np.asarray(-np.sign(_mean_funding(tape, bar, self.stamps)) * _equal_risk(tape, bar))


class FundingHarvest(_OfFunding):
    """Long where funding is low and short where it is high, as much of the one as of the other.

    Cross-sectional carry (Koijen et al. 2018): the half of the contracts with the higher funding is sold, the
    other half bought, in equal parts of the risk of each half, so that a common move of the market cancels.
    For at least two contracts.

    Args:
        stamps: the mean of so many settlements, all past, decides; a week of them, for each turn costs fees.
    """

    def __init__(self, config: EnvConfig, *, stamps: int = 21) -> None:
        super().__init__(config, "Funding harvest", stamps)

    def wish(self, tape: Tape, bar: int) -> Floats:
        risk = _equal_risk(tape, bar)
        taking_part = np.flatnonzero(risk)
        wanted = np.zeros(risk.size)
        half = taking_part.size // 2
        if half:
            funding = _mean_funding(tape, bar, self.stamps)[taking_part]
            order = taking_part[np.argsort(funding, kind="stable")]
            for side, places in ((0.5, order[:half]), (-0.5, order[-half:])):
                wanted[places] = side * risk[places] / risk[places].sum()
        return wanted


# by the name that a command line gives; each with its usual parameters
BASELINES: dict[str, Callable[[EnvConfig], Rule]] = {
    "flat": Flat,
    "buy_and_hold": lambda config: Hold(config, exposure=1.0),
    "short_and_hold": lambda config: Hold(config, exposure=-1.0),
    "volatility_target": VolatilityTarget,
    "momentum": Momentum,
    "moving_average_cross": MovingAverageCross,
    "funding_carry": FundingCarry,
    "funding_harvest": FundingHarvest,
}
_OF_SEVERAL = ("funding_harvest",)


def make_baseline(name: str, config: EnvConfig, *, n_contracts: int = 1) -> Rule:
    """A rule by its name.

    Args:
        name: one of ``BASELINES``.
        config: of the env that it will act in.
        n_contracts: A.

    Raises:
        ValueError: nobody has that name, or the rule needs several contracts.
    """
    if name not in BASELINES:
        raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, was {name!r}")
    if name in _OF_SEVERAL and n_contracts < 2:
        raise ValueError(f"baseline={name} trades contracts against each other and needs at least two, was 1")
    return BASELINES[name](config)


def standard_baselines(config: EnvConfig, *, n_contracts: int = 1) -> tuple[Agent, ...]:
    """One of each rule that an agent is judged beside, with its usual parameters."""
    names = [name for name in BASELINES if n_contracts > 1 or name not in _OF_SEVERAL]
    return tuple(make_baseline(name, config, n_contracts=n_contracts) for name in names)


def _equal_parts(tape: Tape, bar: int) -> Floats:
    """(A,) parts of 1: the same for every contract that is valid. A missing bar changes no part."""
    is_listed = tape.is_valid[bar]
    return np.asarray(is_listed / max(int(is_listed.sum()), 1), dtype=np.float64)


def _equal_risk(tape: Tape, bar: int) -> Floats:
    """(A,) parts of 1, inverse to volatility, of the contracts that are valid."""
    sigma = _sigma(tape, bar)
    weight = np.divide(tape.is_valid[bar], sigma, out=np.zeros(sigma.size), where=sigma > 0)
    return np.asarray(weight / weight.sum() if weight.any() else weight, dtype=np.float64)


def _scale(tape: Tape, bar: int, target_volatility: float, max_exposure: float) -> Floats:
    """(A,) exposures of the target's volatility, each an equal part of it."""
    sigma = _sigma(tape, bar) * math.sqrt(tape.bars_per_year)
    exposure = np.divide(target_volatility, sigma, out=np.zeros(sigma.size), where=sigma > 0)
    return np.asarray(np.minimum(exposure, max_exposure) * _equal_parts(tape, bar))


def _sigma(tape: Tape, bar: int) -> Floats:
    """(A,) volatility per bar."""
    # the tape's forecast is quick; a week of it keeps the size from chasing every hour
    week = slice(max(0, bar + 1 - _bars(tape.bar_ms, _SIGMA_DAYS)), bar + 1)
    recent, is_known = tape.sigma_per_bar[week], tape.is_valid[week]
    count = np.maximum(is_known.sum(axis=0), 1)
    return np.asarray(np.sqrt((recent**2 * is_known).sum(axis=0) / count))


def _mean_funding(tape: Tape, bar: int, stamps: int) -> Floats:
    """(A,) mean of the last settlements; 0 without any."""
    # a bar owns the stamps up to and with its close, so these are exactly the ones already settled
    known = tape.stamp_start[:, bar + 1]
    first = np.maximum(tape.stamp_start[:, 0], known - stamps)
    return np.array(
        [tape.stamp_rate[i:j].mean() if j > i else 0.0 for i, j in zip(first, known, strict=True)]
    )


def _bars(bar_ms: int, days: float) -> int:
    return max(1, round(days * _DAY_MS / bar_ms))


def _at_least_one(stamps: int) -> int:
    if stamps < 1:
        raise ValueError(f"stamps must be at least 1, was {stamps}")
    return stamps
