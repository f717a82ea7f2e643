"""Why the desk does not trade freely: each reason by name, with what it still allows."""

from __future__ import annotations

from typing import Literal

from perpgym.envs.live.wishes import DeskState

Level = Literal["starting", "recovering", "reduce_only", "halted"]
_SEVERITY: tuple[DeskState, ...] = ("ready", "starting", "recovering", "reduce_only", "halted")


class Holds:
    """The reasons in force. None: everything is allowed. Any: only what makes positions smaller.

    A hold of level ``halted`` stays until somebody resumes; the others go when their cause has gone.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[Level, str]] = {}

    def add(self, name: str, level: Level, reason: str) -> bool:
        """Put a hold in force; whether it is new."""
        is_new = name not in self._held
        # a new dict each time: another thread may be reading the old one
        self._held = {**self._held, name: (level, reason)}
        return is_new

    def clear(self, name: str) -> bool:
        """Lift a hold; whether it was in force."""
        is_held = name in self._held
        self._held = {other: held for other, held in self._held.items() if other != name}
        return is_held

    def clear_halts(self) -> None:
        """Lift what only somebody can lift."""
        self._held = {n: h for n, h in self._held.items() if h[0] not in ("halted", "reduce_only")}

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def __bool__(self) -> bool:
        return bool(self._held)

    @property
    def state(self) -> DeskState:
        """The strictest level in force."""
        levels = [level for level, _reason in self._held.values()]
        return max(levels, key=_SEVERITY.index, default="ready")

    @property
    def reasons(self) -> tuple[str, ...]:
        """In words."""
        return tuple(f"{name}: {reason}" for name, (_level, reason) in self._held.items())
