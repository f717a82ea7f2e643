"""Requests to Bybit v5 through ccxt: what a failure means and how much may be asked.

Bybit answers HTTP 200 with a ``retCode`` other than 0 when it refuses. A failure is judged by HTTP status and
that number, never by ccxt's classes. Sources: Bybit API v5, "Error Codes" and "Rate Limit Rules".
"""

from __future__ import annotations

import time
from collections import deque
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
from perpgym.envs.live.wire import HttpFailure, RestWire, rows_of

# requests of one address in five seconds that the exchange admits, and the share of them that reads may use
_WINDOW_MS, _PER_WINDOW, _SHARE_OF_READS = 5_000, 600, 0.8
# "terminate all HTTP sessions and wait for at least 10 minutes"
_BAN_MS = 600_000
# limits count by the second; without a reset time this is long enough
_PAUSE_MS = 5_000
_WEEK_MS = 7 * 86_400_000
# time outside the window, wrong key, signature, permission, user, address, region, account mode
_CLOCK_CODES = frozenset({10002})
_ACCESS_CODES = frozenset({10003, 10004, 10005, 10007, 10008, 10010, 10024, 10027, 10028, 100028, 33004})
_THROTTLE_CODES = frozenset({429, 10006, 10018, 10429})
_PER_ENDPOINT = 10006
_BANNED_CODE = 10009
# server timeout, the same request once more, server error, service restarting, server error
_OUTCOME_UNKNOWN_CODES = frozenset({10000, 10014, 10016, 10019, 3400214})
_REASONS: dict[int, RefusalReason] = {
    110092: "would_trigger", 110093: "would_trigger", 110017: "nothing_to_reduce",
    110023: "only_exits", 110042: "only_exits", 110094: "filter", 10001: "filter", 110003: "filter",
    110013: "bracket", 110016: "bracket", 110085: "bracket", 110086: "bracket",
}  # fmt: skip
# HTTP statuses of a request that was understood and not carried out
_REFUSED_STATUSES = frozenset({400, 404, 405})


class Exchange(ccxt.pro.bybit):
    """ccxt's, with every failure handed over as it came and the private stream unread by its caches.

    Attributes:
        hear: called with every message of the private stream that is no answer to a login or a ping.
    """

    hear: Callable[[Any], None] = staticmethod(lambda message: None)

    def handle_errors(
        self, code: int, reason: str, url: str, method: str, headers: Any, body: Any, response: Any, *_: Any
    ) -> None:
        """Raises HttpFailure for whatever is no success."""
        has_number = isinstance(response, dict) and str(response.get("retCode", "")).lstrip("-").isdigit()
        number = int(response["retCode"]) if has_number else 0
        if code < 400 and number == 0:
            return
        text = str(response.get("retMsg", "")) if has_number else str(body)[:200]
        resets = [value for name, value in headers.items() if name.lower() == "x-bapi-limit-reset-timestamp"]
        at_ms = int(resets[0]) if resets and str(resets[0]).isdigit() else None
        raise HttpFailure(code, number, text, None, at_ms)

    def handle_message(self, client: Any, message: Any) -> None:
        """Events and answers to subscriptions go to ``hear``; ccxt keeps what it needs to hold the line."""
        if not isinstance(message, dict):
            return
        is_event = "topic" in message or message.get("op") in ("subscribe", "unsubscribe")
        if "/private" in client.url and is_event:
            self.hear(message)
        else:
            super().handle_message(client, message)

    def handle_pong(self, client: Any, message: Any) -> Any:
        """ccxt would note the pong by the exchange's clock and judge it by the machine's."""
        client.lastPong = int(1000 * time.time())
        return message


def judge(failure: HttpFailure, now_ms: int, *, is_write: bool) -> BrokerError:
    """What an answer says of the request: done, not done, or nobody knows."""
    status, code, text = failure.status, failure.code, failure.text
    if code in _ACCESS_CODES or status in (401, 451):
        # the text of a wrong signature repeats the key
        return AccessDenied(f"{code or status}: the key, its rights, its address or the account's mode")
    if code == _BANNED_CODE or status == 403:
        return Banned(now_ms + _BAN_MS, text)
    if code in _THROTTLE_CODES or status == 429:
        reset_ms = failure.retry_at_ms or 0
        return Throttled(reset_ms if reset_ms > now_ms else now_ms + _PAUSE_MS, text)
    if code and code not in _OUTCOME_UNKNOWN_CODES:
        return Rejected(code, text, _REASONS.get(code, "other"))
    if not code and status in _REFUSED_STATUSES:
        return Rejected(-status, text)
    return Unknown(f"{status} {code}: {text}") if is_write else Unreachable(f"{status} {code}: {text}")


class Wire(RestWire):
    """Requests to Bybit: its clock, its verdicts, its limits by address and by endpoint."""

    clock_codes = _CLOCK_CODES

    def __init__(self, exchange: Exchange, local_ms: Callable[[], int] | None = None) -> None:
        super().__init__(exchange, local_ms)
        self._is_banned = False
        self._quiet_endpoints: dict[str, int] = {}
        self._sent_ms: deque[int] = deque()

    async def _server_ms(self) -> int:
        return int((await self.call("publicGetV5MarketTime", {}))["timeNano"]) // 1_000_000

    def _judge(self, failure: HttpFailure, is_write: bool) -> BrokerError:
        return judge(failure, self.now_ms(), is_write=is_write)

    def _unwrap(self, answer: Any) -> Any:
        if int(answer["retCode"]) != 0:
            raise ValueError("a refusal that was not noticed")
        result = answer.get("result") or {}
        if not isinstance(result, dict):
            raise TypeError("a result that is no object")
        return result

    def _note(self, error: BrokerError, failure: HttpFailure, name: str) -> BrokerError:
        if isinstance(error, Throttled):
            if failure.code == _PER_ENDPOINT:
                # one endpoint's limit must not hold up an exit through another
                self._quiet_endpoints[name] = error.until_ms
            else:
                self._is_banned = isinstance(error, Banned)
                self.quiet_until_ms = max(self.quiet_until_ms, error.until_ms)
        return error

    def _check_budget(self, name: str, is_urgent: bool) -> None:
        now = self.now_ms()
        if now < self.quiet_until_ms:
            kind = Banned if self._is_banned else Throttled
            raise kind(self.quiet_until_ms)
        if now < self._quiet_endpoints.get(name, 0):
            raise Throttled(self._quiet_endpoints[name])
        local = self._local_ms()
        while self._sent_ms and self._sent_ms[0] <= local - _WINDOW_MS:
            self._sent_ms.popleft()
        if len(self._sent_ms) >= _PER_WINDOW * (1.0 if is_urgent else _SHARE_OF_READS):
            raise Throttled(now + self._sent_ms[0] + _WINDOW_MS - local)
        self._sent_ms.append(local)

    async def pages(self, name: str, params: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of every page of a list, in the exchange's order."""
        rows: list[dict[str, Any]] = []
        cursor = ""
        while True:
            more = {"cursor": cursor} if cursor else {}
            page = await self.call(name, {**params, **more})
            rows += rows_of(page["list"])
            # the last page may name a cursor too
            if not page["list"] or page.get("nextPageCursor", "") in ("", cursor):
                return rows
            cursor = page["nextPageCursor"]

    async def weeks(self, name: str, params: dict[str, Any], since_ms: int) -> list[dict[str, Any]]:
        """The rows of every page from then until now; the exchange admits a week a request."""
        rows: list[dict[str, Any]] = []
        start = since_ms
        while start <= self.now_ms():
            span = {"startTime": start, "endTime": start + _WEEK_MS - 1}
            rows += await self.pages(name, {**params, **span})
            start += _WEEK_MS
        return rows
