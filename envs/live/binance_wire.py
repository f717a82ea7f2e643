"""Requests to Binance USD-M through ccxt: what a failure means, how much may be asked, and the clock.

A failure is judged by HTTP status and numeric code, never by ccxt's classes: there unknown outcomes and
definite refusals share families. Sources: Binance USD-M futures API, "General Info" (HTTP return codes,
limits) and "Error Code".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ccxt.pro

from perpgym.envs.live.broker import (
    AccessDenied,
    Banned,
    BrokerError,
    RefusalReason,
    Rejected,
    Throttled,
    Unknown,
    Unreachable,
)
from perpgym.envs.live.wire import HttpFailure, RestWire

__all__ = ["WEIGHT_PER_MINUTE", "Exchange", "HttpFailure", "Wire", "judge"]

MINUTE_MS = 60_000
# weight of a minute that the exchange admits, and the share of it that reads may use: exits get the rest
WEIGHT_PER_MINUTE, _SHARE_OF_READS = 2_400, 0.8
# without a Retry-After: of a 429, of a 418, and of a firewall
_PAUSE_MS, _BAN_MS, _FIREWALL_MS = 60_000, 600_000, 120_000
_ACCESS_CODES = frozenset({-1002, -1022, -2014, -2015})
_OUTCOME_UNKNOWN_CODES = frozenset({-1000, -1001, -1006, -1007})
_CLOCK_CODES = frozenset({-1021, -5028})
_OVERLOADED = -1008
_REASONS: dict[int, RefusalReason] = {
    -2021: "would_trigger", -4130: "stop_exists", -2022: "nothing_to_reduce", -4118: "nothing_to_reduce",
    -2027: "bracket", -2028: "bracket", -5022: "would_take",
    **dict.fromkeys((-4140, -4141, -4192, -4400), "only_exits"),
    **dict.fromkeys((-1111, -1013, -4003, -4004, -4005, -4014, -4023, -4164), "filter"),
}  # fmt: skip
# texts of a 503 that say that nothing was done
_NOT_DONE = ("Service Unavailable", "Internal error; unable to process")


class Exchange(ccxt.pro.binanceusdm):
    """ccxt's, with every failure handed over as it came and the user stream unread by its caches.

    Attributes:
        hear: called with every message of the user stream.
        used_weight: of the running minute, as the exchange counts it.
    """

    hear: Callable[[Any], None] = staticmethod(lambda message: None)
    used_weight = 0

    def on_rest_response(
        self, code: int, reason: str, url: str, method: str, headers: Any, body: Any, *request: Any
    ) -> Any:
        """Every answer passes here."""
        weights = [value for name, value in headers.items() if name.lower() == "x-mbx-used-weight-1m"]
        if weights:
            self.used_weight = int(weights[0])
        return super().on_rest_response(code, reason, url, method, headers, body, *request)

    def handle_errors(
        self, code: int, reason: str, url: str, method: str, headers: Any, body: Any, response: Any, *_: Any
    ) -> None:
        """Raises HttpFailure for whatever is no success."""
        number = response.get("code") if isinstance(response, dict) else None
        is_refusal = isinstance(number, int) and number < 0
        if code < 400 and not is_refusal:
            return
        text = str(response.get("msg", "")) if is_refusal else str(body)[:200]
        after = [value for name, value in headers.items() if name.lower() == "retry-after"]
        raise HttpFailure(
            code, int(number or 0) if is_refusal else 0, text, float(after[0]) if after else None
        )

    def handle_message(self, client: Any, message: Any) -> None:
        """The user stream goes to ``hear``; ccxt's caches count a repeated event twice."""
        if "listenKey=" in client.url:
            self.hear(message)
        else:
            super().handle_message(client, message)


def judge(failure: HttpFailure, now_ms: int, *, is_write: bool) -> BrokerError:
    """What an answer says of the request: done, not done, or nobody knows."""
    status, code, text = failure.status, failure.code, failure.text
    wait_ms = None if failure.retry_after_s is None else int(1000 * failure.retry_after_s)
    if status == 418:
        return Banned(now_ms + (wait_ms or _BAN_MS), text)
    if status == 429 or code in (-1003, -1015):
        return Throttled(now_ms + (wait_ms or _PAUSE_MS), text)
    if code in _ACCESS_CODES or status == 451:
        return AccessDenied(f"{code or status}: {text}")
    if code == _OVERLOADED:
        return Rejected(code, text, "busy")
    unsure: BrokerError = (
        Unknown(f"{status} {code}: {text}") if is_write else Unreachable(f"{status}: {text}")
    )
    if code in _OUTCOME_UNKNOWN_CODES and "Internal error; unable" not in text:
        return unsure
    if code:
        return Rejected(code, text, _REASONS.get(code, "other"))
    if status == 503 and any(text.startswith(start) for start in _NOT_DONE) and is_write:
        return Rejected(-status, text, "busy")
    return unsure


class Wire(RestWire):
    """Requests to Binance: its clock, its verdicts, its weights and bans.

    Args:
        exchange: ours; its clock is replaced.
        local_ms: a clock that never jumps.
        weight_per_minute: what the exchange admits.
        stamp_ms: the clock that signed requests carry; None for the exchange's as kept here.
    """

    clock_codes = _CLOCK_CODES

    def __init__(
        self,
        exchange: Exchange,
        local_ms: Callable[[], int] | None = None,
        weight_per_minute: int = WEIGHT_PER_MINUTE,
        stamp_ms: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(exchange, local_ms)
        self._weight_per_minute = weight_per_minute
        self._is_banned = False
        self._weight_minute = 0
        if stamp_ms is not None:
            exchange.milliseconds = stamp_ms

    async def _server_ms(self) -> int:
        return int((await self.call("fapiPublicGetTime", {}))["serverTime"])

    def _judge(self, failure: HttpFailure, is_write: bool) -> BrokerError:
        return judge(failure, self.now_ms(), is_write=is_write)

    def _unwrap(self, answer: Any) -> Any:
        self._weight_minute = self.now_ms() // MINUTE_MS
        if not isinstance(answer, dict | list):
            raise TypeError("an answer that is no JSON")
        return answer

    def _note(self, error: BrokerError, failure: HttpFailure, name: str) -> BrokerError:
        if isinstance(error, Throttled):
            self._is_banned = isinstance(error, Banned)
            self.quiet_until_ms = max(self.quiet_until_ms, error.until_ms)
        elif failure.status == 403:
            self._is_banned = False
            self.quiet_until_ms = max(self.quiet_until_ms, self.now_ms() + _FIREWALL_MS)
        return error

    def _check_budget(self, name: str, is_urgent: bool) -> None:
        now = self.now_ms()
        if now < self.quiet_until_ms:
            kind = Banned if self._is_banned else Throttled
            raise kind(self.quiet_until_ms)
        is_same_minute = now // MINUTE_MS == self._weight_minute
        limit = self._weight_per_minute * (1.0 if is_urgent else _SHARE_OF_READS)
        if is_same_minute and self.exchange.used_weight >= limit:
            raise Throttled((now // MINUTE_MS + 1) * MINUTE_MS)
