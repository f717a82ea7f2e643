"""The page: one HTML file, a JSON picture of the account, and a stream that sends it anew when it changes.

Reads only, unless it is given controls and a token; then it can freeze and flatten, after a confirmation.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import cache
from importlib import resources
from typing import Any, Protocol
from urllib.parse import parse_qs

from fastapi import FastAPI, Request, Response
from fastapi.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    StreamingResponse,
)
from starlette.concurrency import run_in_threadpool

from perpgym.envs.live.monitor.facts import Health, ask
from perpgym.envs.live.monitor.follow import Follower
from perpgym.envs.live.monitor.gate import Gate
from perpgym.envs.live.monitor.guard import Answer, Guard, content_policy, cookie_header
from perpgym.envs.live.monitor.picture import Json, health_json, picture
from perpgym.envs.live.monitor.view import LiveView

CONTROLS_HEADER = "x-perpgym"
_MAX_BODY, _MAX_STREAMS = 4_096, 32
_QUIET_S = 15.0
_LOG = logging.getLogger(__name__)


class Controls(Protocol):
    """What the page may do, if it may; called in a thread of the page, returns when it is done."""

    def freeze(self, reason: str) -> None:
        """Open nothing new."""

    def flatten(self, reason: str) -> None:
        """Close everything and open nothing new."""


class Page:
    """Everything that the routes need.

    Args:
        view: kept up to date by ``follower``.
        follower: of the journal.
        guard: decides who sees it.
        health: of the running program; None where it runs elsewhere.
        controls: None for a page that only shows.
        metrics: text for Prometheus.
        every_s: how often the streams look for something new.

    Raises:
        ValueError: controls without a token.
    """

    def __init__(
        self,
        view: LiveView,
        follower: Follower,
        guard: Guard,
        *,
        health: Callable[[], Health] | None = None,
        controls: Controls | None = None,
        metrics: Callable[[], bytes] | None = None,
        every_s: float = 0.5,
    ) -> None:
        if controls is not None and not guard.needs_token:
            raise ValueError("controls need a token: set PERPGYM_PAGE_TOKEN, or leave controls off")
        self.view, self.guard, self.controls, self.metrics = view, guard, controls, metrics
        self.every_s = every_s
        self.closing = threading.Event()
        self.streams = 0
        self._follower, self._health = follower, health

    def read(self, days: float | None) -> str:
        """The picture, as JSON text."""
        health, about_page = self._now()
        found = picture(self.view, health, days=days)
        found["health"] |= about_page
        found |= {"can_control": self.controls is not None, "can_log_out": self.guard.needs_token}
        return json.dumps(found, allow_nan=False)

    def read_health(self) -> str:
        """State and ages, as JSON text."""
        health, about_page = self._now()
        with self.view.lock:
            found = health_json(self.view, health)
        return json.dumps(found | about_page, allow_nan=False)

    def _now(self) -> tuple[Health | None, Json]:
        """(how the program is, how the page itself is)."""
        ago_s = self._follower.reader.written_ago_s()
        health, why = ask(self._health)
        trouble = [text for text in (self._follower.trouble, why) if text]
        return health, {"trouble": trouble, "written_s": None if ago_s is None else round(ago_s)}

    async def stream(self, days: float | None, is_welcome: Callable[[], bool]) -> AsyncIterator[str]:
        """Server-sent events: ``picture`` when a row was written, ``health`` when it changed."""
        self.streams += 1
        try:
            version, told, told_s = -1, "", time.monotonic()
            while not self.closing.is_set() and is_welcome():
                if self.view.version != version:
                    version = self.view.version
                    yield f"event: picture\ndata: {await run_in_threadpool(self.read, days)}\n\n"
                health = await run_in_threadpool(self.read_health)
                if health != told:
                    told, told_s = health, time.monotonic()
                    yield f"event: health\ndata: {health}\n\n"
                elif time.monotonic() - told_s > _QUIET_S:
                    told_s = time.monotonic()
                    yield ": still here\n\n"
                await asyncio.sleep(self.every_s)
        finally:
            self.streams -= 1


def make_app(page: Page) -> FastAPI:
    """The application; serve it with :class:`~perpgym.envs.live.monitor.serve.PageServer`."""
    # the generated documentation would load scripts from elsewhere
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_login(app, page)
    _add_reading(app, page)
    if page.controls is not None:
        _add_controls(app, page, page.controls)
    app.add_middleware(Gate, guard=page.guard)
    return app


def _add_login(app: FastAPI, page: Page) -> None:
    @app.get("/")
    async def index(request: Request) -> Response:
        if page.guard.lets_in(request.headers):
            return _html("page.html")
        return _html("login.html", status=401)

    @app.post("/login")
    async def log_in(request: Request) -> Response:
        fields = parse_qs((await _body(request)).decode("utf-8", "replace"))
        address = request.client.host if request.client else ""
        session = page.guard.log_in(fields.get("token", [""])[0], address)
        if isinstance(session, Answer):
            return _html("login.html", status=session.status, says=session.text)
        answer = RedirectResponse("./", 303)
        answer.headers["set-cookie"] = cookie_header(session, is_secure=request.url.scheme == "https")
        return answer

    @app.post("/logout")
    async def log_out(request: Request) -> Response:
        page.guard.log_out(request.headers)
        answer = RedirectResponse("./", 303)
        answer.headers["set-cookie"] = cookie_header("", is_secure=request.url.scheme == "https")
        return answer


def _add_reading(app: FastAPI, page: Page) -> None:
    @app.get("/view")
    async def view(days: float | None = None) -> Response:
        return Response(await run_in_threadpool(page.read, days), media_type="application/json")

    @app.get("/stream")
    async def stream(request: Request, days: float | None = None) -> Response:
        if page.streams >= _MAX_STREAMS:
            return PlainTextResponse("Too many pages are open; close one.", 503)
        events = page.stream(days, lambda: page.guard.lets_in(request.headers))
        return StreamingResponse(events, media_type="text/event-stream")

    @app.get("/metrics")
    async def metrics() -> Response:
        if page.metrics is None:
            return PlainTextResponse("No metrics are kept here.", 404)
        return Response(await run_in_threadpool(page.metrics), media_type="text/plain; version=0.0.4")


def _add_controls(app: FastAPI, page: Page, controls: Controls) -> None:
    actions = {"freeze": controls.freeze, "flatten": controls.flatten}

    @app.post("/controls/{action}")
    async def control(request: Request, action: str) -> Response:
        if action not in actions:
            return PlainTextResponse(f"There are {', '.join(actions)}.", 404)
        # a form of another page cannot set a header; a script of it would have to ask first, and is refused
        by_hand = request.headers.get(CONTROLS_HEADER) == "controls" and "origin" in request.headers
        if not (by_hand or page.guard.is_by_token(request.headers)):
            return PlainTextResponse("Controls are heard from this page, or with the bearer token.", 403)
        asked = _json(await _body(request))
        if asked.get("confirm") != action:
            return PlainTextResponse(f'Confirm with {{"confirm": "{action}"}}.', 400)
        _LOG.warning("page: %s", action)
        try:
            await run_in_threadpool(actions[action], "asked for on the page")
        # whatever went wrong, the one who pressed the button must see it
        except Exception as error:
            _LOG.exception("page: %s failed", action)
            return JSONResponse({"done": False, "why": f"{type(error).__name__}: {error}"}, 502)
        return JSONResponse({"done": True})


async def _body(request: Request) -> bytes:
    """At most ``_MAX_BODY`` bytes; what is longer is cut, and then means nothing."""
    found = b""
    async for piece in request.stream():
        found += piece
        if len(found) > _MAX_BODY:
            return b""
    return found


def _json(body: bytes) -> Json:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _html(name: str, *, status: int = 200, says: str = "") -> Response:
    text, policy = _file(name)
    return HTMLResponse(text.replace("$says", says), status, {"content-security-policy": policy})


@cache
def _file(name: str) -> tuple[str, str]:
    """(HTML, the policy that admits its scripts and styles and no others)."""
    text = (resources.files("perpgym.envs.live.monitor") / name).read_text("utf-8")
    policy = content_policy(_inside("script", text), _inside("style", text))
    return text, policy


def _inside(tag: str, html: str) -> list[Any]:
    return re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
