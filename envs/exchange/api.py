"""What a request is: its parameters, and the table of endpoints with their weight and who may call them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.wire import parse_bool, parse_decimal, parse_int

if TYPE_CHECKING:
    from perpgym.envs.exchange.venue import Venue

Security = Literal["none", "key", "signed"]


class Params:
    """A request's parameters, read with the exchange's own complaints (-1102, -1130)."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values

    def __contains__(self, name: str) -> bool:
        return bool(self.values.get(name))

    def need(self, name: str) -> str:
        """A text that must be there."""
        value = self.values.get(name, "")
        if not value:
            raise Rejected(-1102, name)
        return value

    def get(self, name: str, default: str = "") -> str:
        """A text, or the default."""
        return self.values.get(name) or default

    def whole(self, name: str, default: int | None = None) -> int | None:
        """A whole number, or the default."""
        return parse_int(name, self.values[name]) if name in self else default

    def number(self, name: str) -> Decimal:
        """A decimal that must be there."""
        return parse_decimal(name, self.need(name))

    def flag(self, name: str, default: bool = False) -> bool:
        """``true`` or ``false``, or the default."""
        return parse_bool(name, self.values[name]) if name in self else default

    def choice(self, name: str, allowed: tuple[str, ...], code: int, default: str = "") -> str:
        """One of a few words; ``code`` is what another one gets."""
        value = self.get(name, default) if default else self.need(name)
        if value not in allowed:
            raise Rejected(code, name)
        return value

    def limit(self, default: int, most: int) -> int:
        """``limit``, at most ``most``: the exchange cuts it silently."""
        limit = self.whole("limit", default)
        assert limit is not None
        if limit < 1:
            raise Rejected(-1130, "limit")
        return min(limit, most)

    def span(self) -> tuple[int | None, int | None]:
        """``startTime`` and ``endTime``, both inclusive, where given."""
        return self.whole("startTime"), self.whole("endTime")


Handler = Callable[["Venue", Params], Any]
Weight = int | Callable[[Params], int]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One line of the exchange's API.

    Attributes:
        security: ``signed`` needs key and signature, ``key`` the key only.
        weight: what a call counts against the limit of a minute.
        is_order: whether it counts as a new order too.
    """

    method: str
    path: str
    handle: Handler
    security: Security
    weight: Weight
    is_order: bool = False

    def weigh(self, params: Params) -> int:
        """The weight of one call."""
        return self.weight(params) if callable(self.weight) else self.weight


ENDPOINTS: dict[tuple[str, str], Endpoint] = {}


def endpoint(
    method: str, *paths: str, security: Security = "signed", weight: Weight = 1, is_order: bool = False
) -> Callable[[Handler], Handler]:
    """Enter a handler into the table."""

    def enter(handle: Handler) -> Handler:
        for path in paths:
            ENDPOINTS[method, path] = Endpoint(
                method=method, path=path, handle=handle, security=security, weight=weight, is_order=is_order
            )
        return handle

    return enter


def by_symbol(one: int, all_of_them: int) -> Weight:
    """A call without symbol asks for everything."""
    return lambda params: one if "symbol" in params else all_of_them
