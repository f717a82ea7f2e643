"""The page in a real browser: what a person reads, what appears by itself, what a button does.

Skipped where no Chromium is installed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perpgym.envs.live.broker import OrderState
from perpgym.envs.live.monitor.facts import Health
from perpgym.envs.live.wishes import DeskStatus
from perpgym.experiments.live_lines import money, multiple, signed

TOKEN = "a-token-of-more-than-twenty-characters"
HEARD = "document.body.dataset.heard"


def rows(browser: Any, table: str) -> int:
    """Lines of a table, without its head."""
    found: int = browser.run(f"document.querySelectorAll('#{table} tbody tr').length")
    return found


def test_the_page_shows_equity_position_orders_decisions_and_health(
    browser: Any, serve: Callable[..., Any], run: Any
) -> None:
    run.play(2)
    run.fill(run.order(0.25, None))
    run.settle()
    status = DeskStatus(state="ready", reserved=10_000.0, counts={"fills": 12})
    browser.open(serve(health=lambda: Health(status=status, stream_ages_s={"user": 3.0})).url)
    browser.wait(HEARD)
    text = browser.text()
    equity = run.wallet + run.held * (run.price - run.entry)
    assert f"{equity:,.2f}" in text
    assert f"{run.wallet:,.2f}" in text
    positions = browser.run("document.querySelector('#positions').innerText")
    assert f"{run.held:g}" in positions
    assert "BTC/USDT" in positions
    assert "after the bar that closed at 2024-01-03 02:00 UTC" in text
    assert rows(browser, "decisions") == 50
    assert rows(browser, "orders") == 13
    assert "Heard user" in text
    assert browser.run("document.querySelector('#state').textContent") == "ready"
    for chart in ("equity-chart", "market-chart"):
        drawn = browser.run(f"document.querySelector('#{chart} .line').getAttribute('d')")
        assert drawn.count("L") >= 50
    assert browser.complaints() == []


@pytest.mark.parametrize("amount", [0.0, -1234.567, 1e6, 0.005, float("nan")])
def test_page_and_console_write_the_same_money(
    amount: float, browser: Any, serve: Callable[..., Any]
) -> None:
    browser.open(serve().url)
    browser.wait(HEARD)
    # the page is sent null for what is no number
    there = "null" if amount != amount else repr(amount)
    for name, here in (("money", money), ("signed", signed), ("multiple", multiple)):
        assert browser.run(f"{name}({there})") == here(amount), name


@pytest.mark.parametrize(("level", "css"), [("info", "neutral"), ("alarm", "bad")])
def test_a_run_that_has_ended_says_why_and_is_an_alarm_only_where_its_end_was_one(
    level: str, css: str, browser: Any, serve: Callable[..., Any], run: Any
) -> None:
    run.journal.event(run.now_ms, level, "hold", name="operator", why="because of it", state="halted")
    run.journal.event(run.now_ms, "info", "hold", name="stop", why="stopped", state="halted")
    browser.open(serve().url)
    browser.wait(HEARD)
    assert browser.run("document.querySelector('#alarms').innerText") == "Stopped: because of it."
    assert browser.run("document.querySelector('#alarms p').className") == f"loud {css}"
    assert browser.run("document.querySelector('#state').textContent") == "stopped"


def test_an_order_appears_by_itself_once_the_journal_has_it(
    browser: Any, serve: Callable[..., Any], run: Any
) -> None:
    browser.open(serve().url)
    browser.wait(HEARD)
    order = run.order(0.123, None, style="limit", price=40_000.0)
    browser.wait(f"document.querySelector('#orders').innerText.includes('{order.client_id}')")
    assert "0.123" in browser.text()
    run.become(order, OrderState.UNKNOWN)
    browser.wait(f"document.querySelector('#alarms').innerText.includes('{order.client_id}')")
    run.become(order, OrderState.FILLED, filled=0.123, average=40_000.0)
    browser.wait("!document.querySelector('#alarms').innerText")
    assert browser.complaints() == []


def test_what_comes_from_outside_is_text_and_never_runs(
    browser: Any, serve: Callable[..., Any], run: Any
) -> None:
    attack = "<img src=x onerror='window.owned = 1'><script>window.owned = 1</script>"
    run.decide(note=attack)
    run.journal.event(run.now_ms, "alarm", "hold", name="drift", why=attack)
    browser.open(serve().url)
    browser.wait(HEARD)
    assert attack in browser.text()
    assert browser.run("window.owned === undefined")
    # and where markup did get in, the policy would keep it from running
    browser.run("document.querySelector('#name').innerHTML = `<img src=x onerror='window.owned = 1'>`")
    browser.wait("document.querySelector('#name img').complete")
    assert browser.run("window.owned === undefined")


def test_a_person_logs_in_with_the_token_once_and_out_again(browser: Any, serve: Callable[..., Any]) -> None:
    url = serve(token=TOKEN).url
    browser.open(url)
    browser.wait("document.querySelector('input[name=token]')")

    def show(token: str) -> None:
        browser.run(
            f"document.querySelector('input').value = {token!r}; document.querySelector('form').submit()"
        )

    show("not the token")
    browser.wait("document.body.innerText.includes('That is not the token.')")
    show(TOKEN)
    browser.wait(HEARD)
    assert browser.run("document.cookie") == ""
    assert TOKEN not in browser.run("location.href")
    browser.run("document.querySelector('#logout button').click()")
    browser.wait("document.querySelector('input[name=token]')")


@pytest.mark.parametrize("is_sure", [True, False])
def test_a_button_asks_before_it_acts(browser: Any, serve: Callable[..., Any], is_sure: bool) -> None:
    asked: list[str] = []

    class Buttons:
        def freeze(self, reason: str) -> None:
            asked.append("freeze")

        def flatten(self, reason: str) -> None:
            asked.append("flatten")
            raise RuntimeError("positions are still open")

    url = serve(token=TOKEN, controls=Buttons()).url
    browser.open(url)
    browser.wait("document.querySelector('form')")
    browser.run(f"document.querySelector('input').value = '{TOKEN}'; document.querySelector('form').submit()")
    browser.wait(HEARD)
    browser.run("document.querySelector('#flatten').click()")
    browser.wait("document.querySelector('#ask').open")
    assert asked == []
    answer = "yes" if is_sure else "no"
    browser.run(f"document.querySelector('#ask button[value={answer}]').click()")
    browser.wait("!document.querySelector('#ask').open")
    if is_sure:
        says = "flatten failed: RuntimeError: positions are still open"
        browser.wait(f"document.querySelector('#alarms').innerText === '{says}'")
    assert asked == (["flatten"] if is_sure else [])


def test_a_page_that_only_shows_has_no_buttons(browser: Any, serve: Callable[..., Any]) -> None:
    browser.open(serve().url)
    browser.wait(HEARD)
    for name in ("controls", "logout"):
        assert browser.run(f"getComputedStyle(document.querySelector('#{name}')).display") == "none"


def test_a_page_whose_server_is_gone_says_so(browser: Any, serve: Callable[..., Any]) -> None:
    served = serve()
    browser.open(served.url)
    browser.wait(HEARD)
    served.close()
    browser.wait("document.querySelector('#alarms').innerText.includes('Connection lost')")


def test_an_empty_journal_is_a_page_without_numbers(
    browser: Any, serve: Callable[..., Any], empty: Any
) -> None:
    browser.open(serve(path=empty).url)
    browser.wait(HEARD)
    assert "No decisions yet." in browser.text()
    assert "NaN" not in browser.text()
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_its_window_and_is_light_or_dark_as_asked(
    browser: Any, serve: Callable[..., Any], tmp_path: Path, width: int, dark: bool
) -> None:
    browser.look(width=width, height=800, dark=dark)
    browser.open(serve().url)
    browser.wait(HEARD)
    assert browser.run("document.documentElement.scrollWidth") == width
    ground = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(ground) < 3 * 128) is dark
    browser.photograph(tmp_path / "page.png")
    png = (tmp_path / "page.png").read_bytes()
    assert struct.unpack(">I", png[16:20])[0] == width
