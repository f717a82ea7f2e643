"""From wished exposures to an env's actions, of whatever kind; and the action that trades nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perpgym.envs.actions import exposure_to_action
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
        hold = self.hold(account)  # n A d
        trade = exposure_to_action(
            wanted, action=self.action, max_exposure=self.max_exposure, levels=self.levels
        )  # n A d
        return np.where(is_held[:, :, None], hold, trade).reshape(len(account), -1)

    def hold(self, account: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, A, action_dim) float32: nothing is traded, whatever the exposure has drifted to.

        For ``target`` what there is with what is being worked, as far as the range reaches; for ``band`` the
        widest band; for ``heads`` the decision to hold; for ``ladder`` the level that stands. Where none
        stands, because a limit cut it, a ladder cannot hold, and the nearest level is asked for.
        """
        asked = account[:, :, _ASKED].astype(np.float64)
        if self.action == "heads":
            return np.zeros((*asked.shape, 4), np.float32)
        out = exposure_to_action(
            asked, action=self.action, max_exposure=self.max_exposure, levels=self.levels
        )
        if self.action == "band":
            out[..., 1] = 1.0
        return out
