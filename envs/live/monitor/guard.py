"""Who may see the page: host names, token, sessions, and what every answer says to the browser.

Without a token the page answers this machine only. With one, a program sends ``Authorization: Bearer TOKEN``
and a person logs in once; the cookie holds a random session, never the token.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

COOKIE = "perpgym_session"
SESSION_S = 12 * 3600.0
MIN_TOKEN = 20
# wrong tokens from one address within a minute before it must wait
_TRIES, _TRIES_S = 10, 60.0
_MOST_SESSIONS, _MOST_ADDRESSES = 64, 1024
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

HEADERS: Mapping[str, str] = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # not no-referrer: browsers would then send our own forms with "Origin: null"
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    return host in _LOOPBACK


@dataclass(frozen=True, slots=True)
class Answer:
    """Why a request is refused."""

    status: int
    text: str


class Guard:
    """Decides about each request by its headers alone.

    Args:
        token: at least ``MIN_TOKEN`` characters; None lets in whoever reaches the page.
        is_local: the page listens on this machine only.
        allowed_hosts: further names under which it is reached, e.g. of a reverse proxy, without port.
        clock: seconds, monotonic.

    Raises:
        ValueError: the token is too short, or there is none and the page is not local.
    """

    def __init__(
        self,
        token: str | None,
        *,
        is_local: bool = True,
        allowed_hosts: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if token is not None and len(token) < MIN_TOKEN:
            raise ValueError(
                f"the page's token must have at least {MIN_TOKEN} characters, had {len(token)}; make one "
                "with python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        if token is None and not is_local:
            raise ValueError(
                "the page may be seen from other machines with a token only: set PERPGYM_PAGE_TOKEN, or let "
                "it listen on 127.0.0.1"
            )
        self._token = None if token is None else _digest(token)
        self._is_local, self._clock = is_local, clock
        self._hosts = _LOOPBACK | {host.lower() for host in allowed_hosts}
        self._sessions: dict[bytes, float] = {}
        self._wrong: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    @property
    def needs_token(self) -> bool:
        """Whether anybody must show one."""
        return self._token is not None

    def refuses_host(self, headers: Mapping[str, str]) -> Answer | None:
        """A page elsewhere may let its own name point here; a number cannot be pointed anywhere."""
        name = _host_name(headers.get("host", ""))
        if name in self._hosts or (not self._is_local and _is_number(name)):
            return None
        return Answer(
            421,
            "This page is not reached by that name. Use its address, or name the host in allowed_hosts.",
        )

    def refuses_origin(self, headers: Mapping[str, str]) -> Answer | None:
        """What another page sends is not heard; every browser names the origin of what changes something."""
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            return Answer(403, "This came from another page.")
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return Answer(403, "This came from another page.")
        return None

    def lets_in(self, headers: Mapping[str, str]) -> bool:
        """Whether the request shows the token or a session of it."""
        return self._token is None or self._shows_token(headers) or self._shows_session(headers)

    def is_by_token(self, headers: Mapping[str, str]) -> bool:
        """Whether the request itself carries the token, which no other page can make a browser do."""
        return self._token is not None and self._shows_token(headers)

    def log_in(self, token: str, address: str) -> str | Answer:
        """A new session for the right token."""
        if self._must_wait(address):
            return Answer(429, "Too many wrong tokens. Wait a minute.")
        if self._token is None or not hmac.compare_digest(_digest(token), self._token):
            self._note_wrong(address)
            return Answer(401, "That is not the token.")
        session = secrets.token_urlsafe(32)
        with self._lock:
            while len(self._sessions) >= _MOST_SESSIONS:
                self._sessions.pop(next(iter(self._sessions)))
            self._sessions[_digest(session)] = self._clock() + SESSION_S
        return session

    def log_out(self, headers: Mapping[str, str]) -> None:
        """Forget the request's session."""
        with self._lock:
            self._sessions.pop(_digest(_session(headers)), None)

    def refuses_bearer(self, headers: Mapping[str, str], address: str) -> Answer | None:
        """A wrong bearer token counts as a wrong login."""
        if self._token is None or "authorization" not in headers:
            return None
        if self._must_wait(address):
            return Answer(429, "Too many wrong tokens. Wait a minute.")
        if not self._shows_token(headers):
            self._note_wrong(address)
            return Answer(401, "That is not the token.")
        return None

    def _shows_token(self, headers: Mapping[str, str]) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        right = self._token
        # equal lengths and equal time, whatever was sent
        return right is not None and kind.lower() == "bearer" and hmac.compare_digest(_digest(token), right)

    def _shows_session(self, headers: Mapping[str, str]) -> bool:
        session = _session(headers)
        with self._lock:
            ends = self._sessions.get(_digest(session))
        return bool(session) and ends is not None and self._clock() < ends

    def _must_wait(self, address: str) -> bool:
        with self._lock:
            tries = self._wrong.get(address, ())
            return sum(self._clock() - at < _TRIES_S for at in tries) >= _TRIES

    def _note_wrong(self, address: str) -> None:
        with self._lock:
            if len(self._wrong) >= _MOST_ADDRESSES:
                self._wrong.clear()
            self._wrong.setdefault(address, deque(maxlen=_TRIES)).append(self._clock())


def cookie_header(session: str, *, is_secure: bool) -> str:
    """What sets the session; an empty one forgets it."""
    age = int(SESSION_S) if session else 0
    secure = "; Secure" if is_secure else ""
    return f"{COOKIE}={session}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}"


def content_policy(scripts: Iterable[str] = (), styles: Iterable[str] = ()) -> str:
    """Only these inline scripts and styles, only requests to this page."""
    script = " ".join(map(_hash_source, scripts)) or "'none'"
    style = " ".join(map(_hash_source, styles)) or "'none'"
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


def _hash_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _session(headers: Mapping[str, str]) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if morsel is None else morsel.value


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
