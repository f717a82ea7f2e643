"""Stands before every route of the page: asks the guard, and gives every answer its headers."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perpgym.envs.live.monitor.guard import HEADERS, Answer, Guard, content_policy

# these two answer strangers too: with the form that asks for the token
_OPEN = frozenset({"/", "/login"})


class Gate:
    """ASGI middleware; what it does not let through never reaches a route."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self.app, self._guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in {**HEADERS, "content-security-policy": content_policy()}.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope)
        app = self.app if refusal is None else PlainTextResponse(refusal.text, refusal.status)
        await app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Answer | None:
        headers, guard = Headers(scope=scope), self._guard
        address = (scope.get("client") or ("",))[0]
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return Answer(405, "The page is read with GET.")
        refusal = guard.refuses_host(headers)
        if refusal is None and scope["method"] == "POST":
            refusal = guard.refuses_origin(headers)
        refusal = refusal or guard.refuses_bearer(headers, address)
        if refusal is None and scope["path"] not in _OPEN and not guard.lets_in(headers):
            refusal = Answer(401, "Show the token: Authorization: Bearer TOKEN, or log in on the page.")
        return refusal
