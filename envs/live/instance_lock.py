"""One program to an account on this machine."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout


class AccountTaken(Exception):  # noqa: N818 - what is wrong with the account
    """Another program trades on the account."""


class InstanceLock:
    """A locked file named after the account; the system lets go of it when the program dies.

    Args:
        folder: where the files lie, the same for every program of this machine.
        account_id: see ``Broker``.
    """

    def __init__(self, folder: Path, account_id: str) -> None:
        self.path = folder / f"{account_id}.lock"
        self._lock: FileLock | None = None

    def acquire(self) -> None:
        """Take it.

        Raises:
            AccountTaken: somebody has it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # held by a program, not by one of its threads: the desk's may start and stop
        lock = FileLock(self.path, thread_local=False, is_singleton=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise AccountTaken(
                f"another program of this machine trades on this account: stop it first ({self.path} is held)"
            ) from None
        self._lock = lock

    def release(self) -> None:
        """Let go of it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
