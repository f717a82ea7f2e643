"""From wished exposures to an env's actions, of whatever kind; and the action that trades nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perpgym.envs.actions import ACTION_DIM, DECISIONS, exposure_to_action
from perpgym.envs.config import EnvConfig
from perpgym.envs.spaces import ACCOUNT_NAMES

Floats = NDArray[np.float64]

_EXPOSURE, _ASKED = ACCOUNT_NAMES.index("exposure"), ACCOUNT_NAMES.index("asked")


class Asking:
    """What can be asked for in one env.

    Args:
        config: gives the kind of action, its range, and the levels or sizes to choose from.
    """

    def __init__(self, config: EnvConfig) -> None:
        self.action = config.action
        self.max_exposure = config.max_exposure
        self.levels = config.ladder if config.action == "ladder" else config.head_sizes
        grid = np.array(self.levels, np.float64)
        if config.action == "heads":
            grid = np.concatenate([-grid[::-1], [0.0], grid])
        self._grid = None if config.action in ("target", "band") else grid * config.max_exposure

    def present(self, account: NDArray[np.float32]) -> Floats:
        """(n, A) the accounts' present exposure, from their observation (n, A, Ca)."""
        return account[:, :, _EXPOSURE].astype(np.float64)

    def asked(self, account: NDArray[np.float32]) -> Floats:
        """(n, A) the exposure that stands where nothing new is asked for, from (n, A, Ca)."""
        return account[:, :, _ASKED].astype(np.float64)

    def by_contract(self, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, A * action_dim) actions as (n, A, action_dim)."""
        return actions.reshape(len(actions), -1, ACTION_DIM[self.action])

    def exposures(self, actions: NDArray[np.float32], account: NDArray[np.float32]) -> Floats:
        """What actions ask for: the inverse of :meth:`where`.

        Args:
            actions: (n, A * action_dim).
            account: (n, A, Ca), the observation.

        Returns:
            (n, A) signed notional over equity; what stands, where the action is to hold.
        """
        by_contract = self.by_contract(actions).astype(np.float64)
        first = by_contract[..., 0]
        if self.action == "ladder":
            return np.asarray(self._grid_of_choices()[first.astype(int)])
        if self.action == "heads":
            size = np.asarray(self.levels, np.float64)[by_contract[..., 1].astype(int)] * self.max_exposure
            wanted = np.array([0.0, 1.0, -1.0, 0.0])[first.astype(int)] * size
            return np.where(first == DECISIONS.index("hold"), self.asked(account), wanted)
        centre = np.clip(first, -1.0, 1.0) * self.max_exposure
        if self.action == "target":
            return np.asarray(centre)
        width = 0.5 * (np.clip(by_contract[..., 1], -1.0, 1.0) + 1.0) * self.max_exposure
        return np.minimum(centre + width, np.maximum(centre - width, self.present(account)))

    def choices(self, asked: float) -> tuple[Floats, NDArray[np.float32]]:
        """Every exposure that one contract's discrete action can ask for, and the action.

        Args:
            asked: the exposure that stands, which is what holding asks for.

        Returns:
            (K,) exposures and (K, action_dim) actions: levels of a ladder; of heads, to hold, to be flat,
            long and short of each size, with the first stop and style.
        """
        if self.action == "ladder":
            levels = self._grid_of_choices()
            return levels, np.arange(levels.size, dtype=np.float32)[:, None]
        sizes = np.asarray(self.levels, np.float64) * self.max_exposure
        words = ("hold", "flat", *("long" for _ in sizes), *("short" for _ in sizes))
        actions = np.zeros((len(words), 4), np.float32)
        actions[:, 0] = [DECISIONS.index(word) for word in words]
        actions[2:, 1] = np.tile(np.arange(sizes.size), 2)
        return np.concatenate([[asked, 0.0], sizes, -sizes]), actions

    def _grid_of_choices(self) -> Floats:
        return np.asarray(self.levels, np.float64) * self.max_exposure

    def hold_where(
        self, is_held: NDArray[np.bool_], account: NDArray[np.float32], actions: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Actions (n, A * action_dim) that trade nothing in contracts of (n, A) ``is_held``."""
        if not is_held.any():
            return actions
        held = np.where(is_held[..., None], self.hold(account), self.by_contract(actions))
        return held.reshape(len(actions), -1)

    def nearest(self, exposure: Floats) -> Floats:
        """(...,) the nearest exposure that can be asked for: within the range, on the ladder, of a size."""
        clipped = np.clip(exposure, -self.max_exposure, self.max_exposure)
        if self._grid is None:
            return np.asarray(clipped, dtype=np.float64)
        return np.asarray(self._grid[np.abs(clipped[..., None] - self._grid).argmin(axis=-1)])

    def where(
        self, is_held: NDArray[np.bool_], account: NDArray[np.float32], wanted: Floats
    ) -> NDArray[np.float32]:
        """The action that holds some contracts and moves the others.

        Args:
            is_held: (n, A) whether the contract is left alone.
            account: (n, A, Ca), the observation.
            wanted: (n, A) exposures of the others, from :meth:`nearest`.

        Returns:
            (n, A * action_dim) float32.
        """
        trade = exposure_to_action(
            wanted, action=self.action, max_exposure=self.max_exposure, levels=self.levels
        )  # n A d
        return self.hold_where(is_held, account, trade.reshape(len(account), -1))

    def hold(self, account: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, A, action_dim) float32: nothing is traded, whatever the exposure has drifted to.

        For ``target`` what there is with what is being worked, as far as the range reaches; for ``band`` the
        widest band; for ``heads`` the decision to hold; for ``ladder`` the level that stands. Where none
        stands, because a limit cut it, a ladder cannot hold, and the nearest level is asked for.
        """
        asked = self.asked(account)
        if self.action == "heads":
            return np.zeros((*asked.shape, 4), np.float32)
        out = exposure_to_action(
            asked, action=self.action, max_exposure=self.max_exposure, levels=self.levels
        )
        if self.action == "band":
            out[..., 1] = 1.0
        return out
