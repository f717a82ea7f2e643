"""Several agents as one: what they ask for together, and how far apart they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from perpgym.agents.asking import Asking
from perpgym.agents.protocol import Agent, LiveAgent, MaskedAgent
from perpgym.data.contract import Contract
from perpgym.data.tape import Tape
from perpgym.envs.config import EnvConfig

Rule = Literal["mean", "vote", "disagreement"]
Floats = NDArray[np.float64]
Actions = NDArray[np.float32]


class Ensemble:
    """Agents that share one account.

    - ``mean``: the mean of the exposures that they ask for; of no-trade bands, the mean of both edges; of
      discrete actions, the allowed one nearest to it, with the stop and style of the members that ask for it.
    - ``vote``, of discrete actions: number by number the choice of most members, those that lost having no
      say in the next number. Between equally many, of levels the one nearest to what stands wins, of
      decisions to hold, and else the first.
    - ``disagreement``: the mean, scaled by m^2 / (m^2 + s^2) with the mean m and the standard deviation s of
      the exposures: all of it where members agree, nothing where they cancel.

    Args:
        members: one of them alone is itself.
        config: what actions mean.
        rule: see above.
        name: for tables and figures; None says rule and number.
        abstain_above: a contract whose uncertainty is larger is not traded; None for no limit.

    Attributes:
        uncertainty: (n, A) of the newest decision, signed notional over equity: the standard deviation of the
            members' exposures.

    Raises:
        ValueError: there are no members, the rule is unknown, or a vote is asked for on continuous actions.
    """

    reads_masks = True

    def __init__(
        self,
        members: Sequence[Agent],
        config: EnvConfig,
        *,
        rule: Rule = "mean",
        name: str | None = None,
        abstain_above: float | None = None,
    ) -> None:
        if not members:
            raise ValueError("an ensemble needs at least one member")
        if rule not in get_args(Rule):
            raise ValueError(f"ensemble must be one of {', '.join(get_args(Rule))}, was {rule!r}")
        if rule == "vote" and not config.choices:
            raise ValueError(
                f"ensemble=vote counts choices, and action={config.action} is continuous: use mean or "
                "disagreement"
            )
        self.members, self.rule, self.abstain_above = tuple(members), rule, abstain_above
        self.name = name or f"{rule} of {len(members)} seeds"
        self._choices = config.choices
        self._asking = Asking(config)
        self.uncertainty = np.zeros((0, 0))

    def act(
        self,
        tape: Tape,
        bar: int,
        account: NDArray[np.float32],
        portfolio: NDArray[np.float32],
        masks: NDArray[np.bool_] | None = None,
    ) -> Actions:
        """Decide at the close of ``bar``; see :class:`perpgym.agents.protocol.MaskedAgent`."""
        seen = tape, bar, account, portfolio
        actions = np.stack(
            [
                member.act(*seen, masks) if isinstance(member, MaskedAgent) else member.act(*seen)
                for member in self.members
            ]
        )  # m n A*d
        exposures = np.stack([self._asking.exposures(one, account) for one in actions])  # m n A
        self.uncertainty = exposures.std(axis=0)
        combined = self._combine(actions, exposures, account, masks)
        if self.abstain_above is None:
            return combined
        return self._asking.hold_where(self.uncertainty > self.abstain_above, account, combined)

    def lookback_bars(self, contracts: Sequence[Contract], bar_ms: int) -> int:
        """Of the member that reads most; see :class:`perpgym.agents.protocol.LiveAgent`."""
        return max(member.lookback_bars(contracts, bar_ms) for member in self._lasting())

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """What its members remember, each behind its number."""
        return {
            f"{number}.{name}": array
            for number, member in enumerate(self._lasting())
            for name, array in member.state_dict().items()
        }

    def load_state(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Continue where :meth:`state_dict` was taken, of as many members."""
        for number, member in enumerate(self._lasting()):
            own = {name.partition(".")[2]: x for name, x in state.items() if name.startswith(f"{number}.")}
            member.load_state(own)

    def _lasting(self) -> tuple[LiveAgent, ...]:
        return cast(tuple[LiveAgent, ...], self.members)

    def _combine(
        self,
        actions: Actions,
        exposures: Floats,
        account: NDArray[np.float32],
        masks: NDArray[np.bool_] | None,
    ) -> Actions:
        scale = agreement(exposures) if self.rule == "disagreement" else np.ones(exposures.shape[1:])
        by_contract = np.stack([self._asking.by_contract(one) for one in actions])  # m n A d
        if not self._choices:
            return _shrunk_mean(by_contract, scale).reshape(len(account), -1)
        n_accounts, n_contracts = exposures.shape[1:]
        asked, wanted = self._asking.asked(account), exposures.mean(axis=0) * scale  # n A
        allowed = self._by_contract(masks, n_accounts, n_contracts)
        combined = np.empty(by_contract.shape[1:], np.float32)
        for i, j in np.ndindex(n_accounts, n_contracts):
            if self.rule == "vote":
                combined[i, j] = self._vote(by_contract[:, i, j], float(asked[i, j]))
            else:
                combined[i, j] = self._nearest(
                    wanted[i, j], by_contract[:, i, j], exposures[:, i, j], float(asked[i, j]), allowed[i, j]
                )
        return combined.reshape(n_accounts, -1)

    def _by_contract(
        self, masks: NDArray[np.bool_] | None, n_accounts: int, n_contracts: int
    ) -> NDArray[np.bool_]:
        shape = (n_accounts, n_contracts, sum(self._choices))
        return np.ones(shape, np.bool_) if masks is None else masks.reshape(shape)

    def _nearest(
        self, wanted: float, actions: Actions, exposures: Floats, asked: float, allowed: NDArray[np.bool_]
    ) -> Actions:
        """Of one contract, (d,): the allowed action nearest to what is wanted, as members put it.

        Args:
            wanted: exposure.
            actions, exposures: (m, d) and (m,), of the members, which chose within what is allowed.
            asked: the exposure that stands.
            allowed: (choices,), number by number.
        """
        there, how = self._asking.choices(asked)
        by_number = np.split(allowed, np.cumsum(self._choices)[:-1])
        is_allowed = by_number[0][how[:, 0].astype(int)].copy()
        if len(by_number) > 1:
            # a size counts where something is opened
            is_sized = np.arange(len(how)) >= 2
            is_allowed &= ~is_sized | by_number[1][how[:, 1].astype(int)]
            how[is_sized, 2:] = [np.argmax(number) for number in by_number[2:]]
        distance = np.where(is_allowed, np.abs(there - wanted), np.inf)
        nearest = there[np.argmin(distance)]
        asking_for_it = [tuple(action) for action, x in zip(actions, exposures, strict=True) if x == nearest]
        if asking_for_it:
            return np.array(Counter(asking_for_it).most_common(1)[0][0], np.float32)
        return np.asarray(how[np.argmin(distance)], np.float32)

    def _vote(self, actions: Actions, asked: float) -> Actions:
        """Of one contract, (m, d) -> (d,)."""
        chosen: list[float] = []
        for number in range(actions.shape[1]):
            votes = Counter(float(choice) for choice in actions[:, number])
            most = max(votes.values())
            tied = sorted(choice for choice, count in votes.items() if count == most)
            chosen.append(self._break_tie(tied, number, asked))
            actions = actions[actions[:, number] == chosen[-1]]
            if not len(actions):
                # a tie that holds, and nobody asked for that
                return np.zeros(len(self._choices), np.float32)
        return np.array(chosen, np.float32)

    def _break_tie(self, tied: list[float], number: int, asked: float) -> float:
        if len(tied) == 1:
            return tied[0]
        if self._asking.action == "heads":
            return 0.0 if number == 0 else tied[0]
        there, _ = self._asking.choices(asked)
        return min(tied, key=lambda level: (abs(there[int(level)] - asked), abs(there[int(level)])))


def _shrunk_mean(actions: Actions, scale: Floats) -> Actions:
    """(n, A, d) the mean of continuous actions (m, n, A, d), as much of it as ``scale`` (n, A) says."""
    mean: Floats = actions.mean(axis=0, dtype=np.float64)
    lost = 1.0 - scale
    mean[..., 0] -= lost * mean[..., 0]
    # both edges of a band move; a width of -1 is none
    mean[..., 1:] -= lost[..., None] * (mean[..., 1:] + 1.0)
    return mean.astype(np.float32)


def agreement(exposures: Floats) -> Floats:
    """m^2 / (m^2 + s^2) of exposures (m, ...) over the first axis, in [0, 1]; 1 where all are zero."""
    mean: Floats = exposures.mean(axis=0) ** 2
    total = mean + exposures.var(axis=0)
    share: Floats = np.divide(mean, total, out=np.ones_like(mean), where=total > 0.0)
    return share
