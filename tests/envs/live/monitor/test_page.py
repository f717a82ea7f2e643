"""Who sees the page, what a stranger is told, and what its buttons may do: over real HTTP."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from perpgym.envs.live.monitor.facts import Health
from perpgym.envs.live.monitor.guard import COOKIE, Guard
from perpgym.envs.live.monitor.serve import PageConfig

TOKEN = "a-token-of-more-than-twenty-characters"
BEARER = {"authorization": f"Bearer {TOKEN}"}
READING = ("/", "/view", "/stream", "/metrics")


class Buttons:
    """What the page's buttons reach; notes what was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def freeze(self, reason: str) -> None:
        """Noted."""
        self.asked.append("freeze")

    def flatten(self, reason: str) -> None:
        """Fails, as an exchange may."""
        self.asked.append("flatten")
        raise TimeoutError("the exchange does not answer")


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    """Asks without proxies and follows nothing."""
    with httpx.Client(trust_env=False, timeout=10.0) as client:
        yield client


def test_the_page_on_this_machine_needs_no_token(client: httpx.Client, serve: Callable[..., Any]) -> None:
    url = serve().url
    assert client.get(url).status_code == 200
    shown = client.get(f"{url}/view").json()
    assert shown["name"] == "ppo_btc, seed 3"
    assert len(shown["decisions"]) == 48
    assert not shown["can_control"]


def test_fewer_days_show_a_shorter_curve(client: httpx.Client, serve: Callable[..., Any]) -> None:
    url = serve().url
    every = client.get(f"{url}/view").json()["curves"]["equity"]
    day = client.get(f"{url}/view", params={"days": 1}).json()["curves"]["equity"]
    assert day == every[-len(day) :]
    assert 24 <= len(day) <= 25


def test_the_stream_tells_a_row_that_is_written_later(
    client: httpx.Client, serve: Callable[..., Any], run: Any
) -> None:
    url = serve().url
    before = client.get(f"{url}/view").json()["version"]
    threading.Timer(0.3, run.play, (1,)).start()
    with client.stream("GET", f"{url}/stream") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        seen = []
        for line in answer.iter_lines():
            if line.startswith("data: ") and "decisions" in line:
                shown = json.loads(line.removeprefix("data: "))
                seen.append((shown["version"], shown["decisions"][0]["id"]))
            if seen and seen[-1][1] == 49:
                break
    assert seen[0] == (before, 48)
    assert seen[-1][0] > before


@pytest.mark.parametrize("path", READING[1:])
def test_with_a_token_a_stranger_sees_nothing(
    client: httpx.Client, serve: Callable[..., Any], path: str
) -> None:
    url = serve(token=TOKEN, metrics=lambda: b"x 1\n").url
    refused = client.get(url + path)
    assert refused.status_code == 401
    assert "decision" not in refused.text
    wrong = client.get(url + path, headers={"authorization": f"Bearer {TOKEN}x"})
    assert wrong.status_code == 401
    with client.stream("GET", url + path, headers=BEARER) as answer:
        assert answer.status_code == 200


def test_a_stranger_who_opens_the_page_is_asked_for_the_token(
    client: httpx.Client, serve: Callable[..., Any]
) -> None:
    answer = client.get(serve(token=TOKEN).url)
    assert answer.status_code == 401
    assert 'type="password"' in answer.text
    assert "EventSource" not in answer.text


def test_logging_in_gives_a_session_that_is_not_the_token(
    client: httpx.Client, serve: Callable[..., Any]
) -> None:
    url = serve(token=TOKEN).url
    assert client.post(f"{url}/login", data={"token": "wrong"}).status_code == 401
    assert not client.cookies
    answer = client.post(f"{url}/login", data={"token": TOKEN})
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    assert client.get(f"{url}/view").status_code == 200
    # out again: the server has forgotten it, whatever the browser keeps
    kept = client.cookies[COOKIE]
    client.post(f"{url}/logout")
    client.cookies.set(COOKIE, kept, domain="127.0.0.1")
    assert client.get(f"{url}/view").status_code == 401


def test_a_stream_ends_when_its_session_does(client: httpx.Client, serve: Callable[..., Any]) -> None:
    url = serve(token=TOKEN).url
    client.post(f"{url}/login", data={"token": TOKEN})
    kept = client.cookies[COOKIE]
    with client.stream("GET", f"{url}/stream") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: picture"
        with httpx.Client(trust_env=False, cookies={COOKIE: kept}) as other:
            other.post(f"{url}/logout")
        # it comes to an end by itself
        assert any(line.startswith("data: ") for line in lines)


def test_a_session_ends_by_itself() -> None:
    now = [0.0]
    guard = Guard(TOKEN, clock=lambda: now[0])
    headers = {"cookie": f"{COOKIE}={guard.log_in(TOKEN, '')}"}
    assert guard.lets_in(headers)
    now[0] = 12 * 3600.0
    assert not guard.lets_in(headers)


def test_guessing_is_slowed_down_for_the_guesser_only() -> None:
    now = [0.0]
    guard = Guard(TOKEN, clock=lambda: now[0])
    for _try in range(10):
        assert guard.log_in("wrong", "10.0.0.1").status == 401
    assert guard.log_in(TOKEN, "10.0.0.1").status == 429
    assert guard.refuses_bearer(BEARER, "10.0.0.1").status == 429
    assert isinstance(guard.log_in(TOKEN, "10.0.0.2"), str)
    now[0] = 61.0
    assert isinstance(guard.log_in(TOKEN, "10.0.0.1"), str)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::"])
def test_a_name_that_somebody_points_here_is_not_answered(
    client: httpx.Client, serve: Callable[..., Any], host: str
) -> None:
    url = serve().url
    answer = client.get(f"{url}/view", headers={"host": host})
    assert answer.status_code in (400, 421)
    assert "decision" not in answer.text


def test_names_of_this_machine_and_allowed_ones_are_answered(
    client: httpx.Client, serve: Callable[..., Any]
) -> None:
    url = serve(config=PageConfig(port=0, allowed_hosts=("desk.example",))).url
    for host in ("localhost", "localhost:9999", "[::1]:80", "desk.example", "DESK.example:443"):
        assert client.get(f"{url}/view", headers={"host": host}).status_code == 200, host
    # a local page has no business with another address
    assert client.get(f"{url}/view", headers={"host": "192.168.1.5"}).status_code == 421


def test_a_page_for_others_is_reached_by_address_but_not_by_any_name(
    client: httpx.Client, serve: Callable[..., Any]
) -> None:
    url = serve(token=TOKEN, config=PageConfig(port=0, host="0.0.0.0")).url.replace("0.0.0.0", "127.0.0.1")
    for host, status in (("192.168.1.5:8788", 200), ("evil.example", 421)):
        assert client.get(f"{url}/view", headers={**BEARER, "host": host}).status_code == status


def test_every_answer_forbids_keeping_framing_and_foreign_scripts(
    client: httpx.Client, serve: Callable[..., Any]
) -> None:
    url = serve(token=TOKEN).url
    answers = [client.get(url), client.get(url, headers=BEARER), client.get(f"{url}/view"),
               client.get(f"{url}/view", headers=BEARER), client.get(url, headers={"host": "evil.example"}),
               client.put(url), client.get(f"{url}/nothing", headers=BEARER)]  # fmt: skip
    for answer in answers:
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers


def test_the_page_loads_nothing_from_anywhere(client: httpx.Client, serve: Callable[..., Any]) -> None:
    html = client.get(serve().url).text
    addresses = set(re.findall(r"""(?:https?:)?//[\w.]+""", re.sub(r"(?m)^\s*//.*$", "", html)))
    assert addresses == {"http://www.w3.org"}  # the name of SVG, which nobody asks for
    assert not re.search(r"""<(?:script|img|link)[^>]+(?:src|href)="(?!data:)""", html)
    # nothing that comes from outside is read as HTML
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", html)


def test_there_are_no_pages_but_ours(client: httpx.Client, serve: Callable[..., Any]) -> None:
    url = serve().url
    for path in ("/docs", "/redoc", "/openapi.json", "/controls/freeze", "/../journal.sqlite"):
        assert client.get(url + path).status_code in (404, 405), path
    assert client.request("DELETE", f"{url}/view").status_code == 405


def test_a_page_without_controls_has_none(client: httpx.Client, serve: Callable[..., Any]) -> None:
    url = serve(token=TOKEN).url
    assert (
        client.post(f"{url}/controls/freeze", headers=BEARER, json={"confirm": "freeze"}).status_code == 404
    )


def test_controls_without_a_token_are_refused(serve: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="PERPGYM_PAGE_TOKEN"):
        serve(controls=Buttons())


def test_a_button_works_after_a_confirmation_and_says_what_failed(
    client: httpx.Client, serve: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    buttons = Buttons()
    url = serve(token=TOKEN, controls=buttons).url
    client.post(f"{url}/login", data={"token": TOKEN})
    own = {"origin": url, "x-perpgym": "controls"}
    assert client.post(f"{url}/controls/freeze", headers=own, json={}).status_code == 400
    assert client.post(f"{url}/controls/freeze", headers=own, json={"confirm": "flatten"}).status_code == 400
    assert client.post(f"{url}/controls/sell", headers=own, json={"confirm": "sell"}).status_code == 404
    assert buttons.asked == []
    assert client.post(f"{url}/controls/freeze", headers=own, json={"confirm": "freeze"}).json()["done"]
    failed = client.post(f"{url}/controls/flatten", headers=own, json={"confirm": "flatten"})
    assert (failed.status_code, failed.json()["done"]) == (502, False)
    assert "the exchange does not answer" in failed.json()["why"]
    assert buttons.asked == ["freeze", "flatten"]
    assert "page: freeze" in caplog.text


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example", "x-perpgym": "controls"},
        {"origin": "null", "x-perpgym": "controls"},
        {"x-perpgym": "controls"},
        {"origin": "own"},
        {"origin": "own", "x-perpgym": "controls", "sec-fetch-site": "cross-site"},
    ],
)
def test_another_page_cannot_press_a_button(
    client: httpx.Client, serve: Callable[..., Any], headers: dict[str, str]
) -> None:
    buttons = Buttons()
    url = serve(token=TOKEN, controls=buttons).url
    client.post(f"{url}/login", data={"token": TOKEN})
    sent = {k: url if v == "own" else v for k, v in headers.items()}
    answer = client.post(f"{url}/controls/freeze", headers=sent, json={"confirm": "freeze"})
    assert answer.status_code == 403
    assert buttons.asked == []


def test_a_program_presses_a_button_with_the_token_itself(
    client: httpx.Client, serve: Callable[..., Any]
) -> None:
    buttons = Buttons()
    url = serve(token=TOKEN, controls=buttons).url
    answer = client.post(f"{url}/controls/freeze", headers=BEARER, json={"confirm": "freeze"})
    assert answer.json() == {"done": True}
    assert client.post(f"{url}/controls/freeze", json={"confirm": "freeze"}).status_code == 401
    assert buttons.asked == ["freeze"]


def test_a_body_without_end_is_not_read(client: httpx.Client, serve: Callable[..., Any]) -> None:
    url = serve(token=TOKEN).url
    answer = client.post(f"{url}/login", content=f"x={'x' * 10_000}&token={TOKEN}")
    assert answer.status_code == 401


def test_the_token_is_in_no_log(
    client: httpx.Client, serve: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = serve(token=TOKEN, controls=Buttons()).url
    client.post(f"{url}/login", data={"token": TOKEN})
    client.get(f"{url}/view", headers=BEARER)
    client.get(f"{url}/view", headers={"authorization": f"Bearer wrong-{TOKEN}"})
    client.post(f"{url}/controls/freeze", headers=BEARER, json={"confirm": "freeze"})
    assert "freeze" in caplog.text
    assert TOKEN not in caplog.text


def test_a_short_token_and_an_open_page_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="at least 20 characters, had 5"):
        Guard("short")
    with pytest.raises(ValueError, match="let it listen on"):
        Guard(None, is_local=False)
    with pytest.raises(ValueError, match="port must lie between"):
        PageConfig(port=70_000)
    with pytest.raises(ValueError, match="belong together"):
        PageConfig(certificate=Path("here.pem"))


def test_a_page_tells_when_the_program_does_not_say_how_it_is(
    client: httpx.Client, serve: Callable[..., Any]
) -> None:
    def fails() -> Health:
        raise RuntimeError("gone")

    shown = client.get(f"{serve(health=fails).url}/view").json()
    assert shown["health"]["trouble"] == ["the program does not say how it is: RuntimeError"]
    assert shown["account"]["equity"] > 0.0


def test_a_server_that_stops_ends_its_streams_and_frees_its_port(
    serve: Callable[..., Any], client: httpx.Client
) -> None:
    served = serve()
    with client.stream("GET", f"{served.url}/stream") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: picture"
        threading.Timer(0.2, served.close).start()
        assert any(line.startswith("data: ") for line in lines)
    served.close()
    with socket.create_server(("127.0.0.1", urlsplit(served.url).port)):
        pass
