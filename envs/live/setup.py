"""Reads back whether the account is still set up as it must be: somebody else may have changed it."""

from __future__ import annotations

import asyncio

from perpgym.envs.live.broker import BrokerError, Settings
from perpgym.envs.live.context import Context


class Setup:
    """Leverage and modes of one desk's account.

    Args:
        context: of the desk.
        settings: what must be.
    """

    def __init__(self, context: Context, settings: Settings) -> None:
        self._x, self._settings = context, settings
        self._read_at = -float("inf")

    async def check(self) -> None:
        """Leverage and modes must read back as they were set, or nothing is opened."""
        x = self._x
        try:
            found = await x.broker.settings()
        except BrokerError as error:
            x.blame(error)
            return
        self._read_at = asyncio.get_running_loop().time()
        if found != self._settings:
            x.hold("settings", "halted", f"must be {self._settings}, reads {found}: set it back and resume")

    async def check_if_due(self) -> None:
        """Once every ``settings_s``."""
        if asyncio.get_running_loop().time() - self._read_at >= self._x.timings.settings_s:
            await self.check()
