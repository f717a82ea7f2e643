"""Who may pass: keys, signatures, the time window, weights, order counts and bans.

Sources: Binance USD-M futures API, "General Info": SIGNED endpoint security, timing security, limits.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from perpgym.envs.exchange.api import Endpoint, Params
from perpgym.envs.exchange.errors import Rejected
from perpgym.envs.exchange.symbols import ORDERS_PER_10_S, ORDERS_PER_MINUTE, WEIGHT_PER_MINUTE

MINUTE_MS = 60_000
_MOST_AHEAD_MS, _DEFAULT_WINDOW_MS, _LONGEST_WINDOW_MS = 1_000, 5_000, 60_000
# calls after a 429 before the address is banned; how long the first ban lasts, and the longest
_PATIENCE, _FIRST_BAN_MS, _LONGEST_BAN_MS = 10, 2 * MINUTE_MS, 3 * 24 * 60 * MINUTE_MS


@dataclass(kw_only=True)
class Keys:
    """The API keys that the exchange knows, and whether they may trade.

    Attributes:
        secrets: secret by key.
        is_revoked: every signed call gets -2015.
        is_strict: signed requests carry the exchange's own time; otherwise the wall's is accepted too, so
            that a program that knows of no virtual clock can trade on one.
    """

    secrets: dict[str, str] = field(default_factory=lambda: {"key": "secret"})
    is_revoked: bool = False
    is_strict: bool = False

    def check_key(self, key: str | None) -> str:
        """The secret of a key.

        Raises:
            Rejected: -2014, -2015.
        """
        if not key:
            raise Rejected(-2014)
        if self.is_revoked or key not in self.secrets:
            raise Rejected(-2015)
        return self.secrets[key]

    def check_signature(self, key: str | None, query: str, body: str, now_ms: int, wall_ms: int) -> None:
        """A signed request: the signature covers query and body exactly as they were sent.

        Args:
            query, body: as sent, signature included in one of them.
            now_ms: the exchange's clock.
            wall_ms: the world's.

        Raises:
            Rejected: -2014, -2015, -1102, -1022, -1021.
        """
        secret = self.check_key(key)
        parts = [part for text in (query, body) for part in text.split("&") if part]
        signatures = [part.partition("=")[2] for part in parts if part.startswith("signature=")]
        if len(signatures) != 1:
            raise Rejected(-1102, "signature")
        payload = _unsigned(query) + _unsigned(body)
        expected = hmac.new(secret.encode(), payload.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, signatures[0]):
            raise Rejected(-1022)
        self._check_time(Params(dict(parse_qsl(payload, keep_blank_values=True))), now_ms, wall_ms)

    def _check_time(self, params: Params, now_ms: int, wall_ms: int) -> None:
        params.need("timestamp")
        stamp, window = params.whole("timestamp"), params.whole("recvWindow", _DEFAULT_WINDOW_MS)
        assert stamp is not None
        assert window is not None
        if not 0 < window <= _LONGEST_WINDOW_MS:
            raise Rejected(-1130, "recvWindow")
        clocks = (now_ms,) if self.is_strict else (now_ms, wall_ms)
        if any(-_MOST_AHEAD_MS <= clock - stamp <= window for clock in clocks):
            return
        if stamp > now_ms + _MOST_AHEAD_MS:
            text = "Timestamp for this request was 1000ms ahead of the server's time."
            raise Rejected(-1021, text=text)
        raise Rejected(-1021)


def _unsigned(text: str) -> str:
    return "&".join(part for part in text.split("&") if part and not part.startswith("signature="))


@dataclass(kw_only=True)
class Limits:
    """Weights and order counts of the running minute, and bans of those who do not stop.

    Attributes:
        is_enforced: otherwise calls are counted and never refused.
        weight, orders, orders_10s: used in the running minute, or 10 s.
        banned_until_ms: 0 for no ban.
        calls_while_banned: of all bans.
    """

    is_enforced: bool = True
    weight: int = 0
    orders: int = 0
    orders_10s: int = 0
    banned_until_ms: int = 0
    calls_while_banned: int = 0
    _minute: int = -1
    _ten_seconds: int = -1
    _refused: int = 0
    _bans: int = 0

    def count(self, endpoint: Endpoint, params: Params, now_ms: int) -> None:
        """Count one call.

        Raises:
            Rejected: -1003 or -1015 with HTTP 429 and ``Retry-After``; -1003 with 418 while banned.
        """
        if now_ms < self.banned_until_ms:
            self.calls_while_banned += 1
            raise self._ban(now_ms)
        self._turn(now_ms)
        self.weight += endpoint.weigh(params)
        if endpoint.is_order:
            self.orders += 1
            self.orders_10s += 1
        if not self.is_enforced:
            return
        if self.weight > WEIGHT_PER_MINUTE:
            self._refused += 1
            if self._refused > _PATIENCE:
                self._bans += 1
                length = min(_FIRST_BAN_MS * 2 ** (self._bans - 1), _LONGEST_BAN_MS)
                self.banned_until_ms = now_ms + length
                raise self._ban(now_ms)
            raise self._refuse(Rejected(-1003, WEIGHT_PER_MINUTE), (self._minute + 1) * MINUTE_MS - now_ms)
        if endpoint.is_order and self.orders > ORDERS_PER_MINUTE:
            raise self._refuse(Rejected(-1015, ORDERS_PER_MINUTE), (self._minute + 1) * MINUTE_MS - now_ms)
        if endpoint.is_order and self.orders_10s > ORDERS_PER_10_S:
            text = f"Too many new orders; current limit is {ORDERS_PER_10_S} orders per TEN_SECONDS."
            wait_ms = (self._ten_seconds + 1) * 10_000 - now_ms
            raise self._refuse(Rejected(-1015, text=text), wait_ms)

    def _turn(self, now_ms: int) -> None:
        """A new minute, or 10 s, begins at 0."""
        if now_ms // MINUTE_MS != self._minute:
            self._minute, self.weight, self.orders, self._refused = now_ms // MINUTE_MS, 0, 0, 0
        if now_ms // 10_000 != self._ten_seconds:
            self._ten_seconds, self.orders_10s = now_ms // 10_000, 0

    def _ban(self, now_ms: int) -> Rejected:
        text = f"Way too many requests; IP banned until {self.banned_until_ms}. Please use the websocket for "
        refusal = Rejected(-1003, text=text + "live updates to avoid bans.")
        refusal.status = 418
        return self._refuse(refusal, self.banned_until_ms - now_ms)

    @staticmethod
    def _refuse(refusal: Rejected, wait_ms: int) -> Rejected:
        refusal.headers["Retry-After"] = str(max(-(-wait_ms // 1000), 1))
        return refusal

    def headers(self) -> dict[str, str]:
        """What every answer carries."""
        return {
            "X-MBX-USED-WEIGHT-1M": str(self.weight),
            "X-MBX-ORDER-COUNT-1M": str(self.orders),
            "X-MBX-ORDER-COUNT-10S": str(self.orders_10s),
        }
