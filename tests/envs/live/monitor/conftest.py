"""A journal as a run writes it, its page, a headless browser that looks at it, and a service for alerts."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perpgym.envs.live.broker import AccountTruth, Fill, Income, Order, OrderState, Position
from perpgym.envs.live.journal import Journal
from perpgym.envs.live.monitor.facts import RunFacts, note_bar
from perpgym.envs.live.monitor.follow import Follower
from perpgym.envs.live.monitor.guard import Guard
from perpgym.envs.live.monitor.page import Page
from perpgym.envs.live.monitor.reader import JournalReader
from perpgym.envs.live.monitor.serve import PageConfig, PageServer
from perpgym.envs.live.monitor.view import LiveView
from perpgym.envs.live.wishes import Decision, Wish

HOUR_MS = 3_600_000
# 2024-01-01 00:00 UTC
START_MS = 1_704_067_200_000
BTC = "BTC/USDT:USDT"
TOKEN = "a-token-of-more-than-twenty-characters"


class Run:
    """Writes what an agent's hours leave in a journal: a seeded walk, a trade every few hours, taker fees."""

    def __init__(self, path: Path, *, seed: int = 7) -> None:
        self.journal = Journal.open(path)
        self.path = path
        self.rng = np.random.default_rng(seed)
        self.hour, self.price, self.wallet, self.held, self.entry = 0, 42_000.0, 10_000.0, 0.0, 0.0
        self.epoch = self.journal.begin_epoch()
        self.journal.set_meta("began_ms", str(START_MS))
        self.journal.set_meta("began_wallet", repr(self.wallet))
        self.number = 0
        self.journal.event(START_MS, "info", "hold", name="start", why="not started yet", state="starting")
        self.journal.event(START_MS, "info", "lift", name="start")
        RunFacts(
            name="ppo_btc, seed 3", exchange="binance USD-M, demo", contracts=(BTC,), bar_ms=HOUR_MS,
            limits={"max_leverage": 3.0, "max_notional": 20_000.0, "max_daily_loss": 0.1, "max_drawdown": 0.3,
                    "max_orders_per_minute": 60},
        ).write(self.journal)  # fmt: skip

    @property
    def now_ms(self) -> int:
        """The close of the last bar."""
        return START_MS + self.hour * HOUR_MS

    def next_id(self) -> str:
        """A client id."""
        self.number += 1
        return f"pg{self.journal.tag}{self.epoch}-{self.number}"

    def order(self, quantity: float, decision_id: int | None, **settings: Any) -> Order:
        """Prepare an order and send it."""
        order = Order(client_id=self.next_id(), contract=BTC, quantity=quantity, **settings)
        self.journal.intent(order, decision_id, self.now_ms + 1_500)
        return self.become(order, OrderState.SENT, "sender")

    def become(self, order: Order, state: OrderState, source: str = "stream", **changes: Any) -> Order:
        """An order's next state."""
        order = replace(order, state=state, **changes)
        self.journal.order_state(order, source, self.now_ms + 1_700)
        return order

    def fill(self, order: Order) -> None:
        """All of an order, at the price, as a taker."""
        fee = abs(order.quantity) * self.price * 0.0005
        time_ms, trade = self.now_ms + 1_600, f"{1000 + self.number}"
        self.journal.fill(
            Fill(trade_id=trade, contract=BTC, quantity=order.quantity, price=self.price, fee=fee,
                 time_ms=time_ms, client_id=order.client_id)
        )  # fmt: skip
        self.income("fee", -fee, f"fee{trade}")
        closes = -order.quantity if order.quantity * self.held < 0 else 0.0
        self.income("pnl", closes * (self.price - self.entry), f"pnl{trade}")
        if not closes:
            self.entry = (self.held * self.entry + order.quantity * self.price) / (self.held + order.quantity)
        self.held = round(self.held + order.quantity, 9)
        self.become(order, OrderState.FILLED, filled=order.quantity, average=self.price, exchange_id=trade)

    def income(self, kind: Any, amount: float, name: str) -> None:
        """A change of the wallet."""
        if amount:
            self.wallet += amount
            self.journal.income(
                Income(income_id=name, kind=kind, amount=amount, time_ms=self.now_ms, contract=BTC)
            )

    def decide(self, quantity: float = 0.0, note: str = "", limits_hit: int = 0) -> int:
        """A decision at the close of the last bar, and what it wishes for."""
        decision = Decision(
            id=self.journal.last_decision_id() + 1, bar_close_ms=self.now_ms,
            observation_hash=f"{self.rng.integers(2**60):015x}" * 4, action=[round(self.held * 4, 3), -0.4],
            limits_hit=limits_hit, note=note,
        )  # fmt: skip
        wishes = [Wish(contract=BTC, quantity=quantity)] if quantity else []
        self.journal.decision(decision, wishes, self.now_ms + 1_000 + int(self.rng.integers(900)))
        return decision.id

    def settle(self) -> AccountTruth:
        """The account as it is, into the journal."""
        equity = self.wallet + self.held * (self.price - self.entry)
        held = {} if not self.held else {
            BTC: Position(contract=BTC, quantity=self.held, entry_price=self.entry, mark_price=self.price,
                          liquidation_price=self.price * 0.6)
        }  # fmt: skip
        truth = AccountTruth(time_ms=self.now_ms, wallet=self.wallet, equity=equity, positions=held)
        self.journal.snapshot(truth, self.now_ms, {"position": np.array([self.held])})
        note_bar(self.journal, self.now_ms, {BTC: self.price}, held)
        return truth

    def play(self, hours: int) -> None:
        """So many hours; every fourth one trades. One flush for all of them: a disk is slow."""
        with self.journal.together():
            for _hour in range(hours):
                self._play_hour()

    def _play_hour(self) -> None:
        self.hour += 1
        self.price *= float(np.exp(0.006 * self.rng.standard_normal()))
        if self.hour % 8 == 0 and self.held:
            self.income("funding", -1e-4 * self.held * self.price, f"funding{self.hour}")
        self.settle()
        trade = (0.1 if self.held <= 0 else -self.held) if self.hour % 4 == 0 else 0.0
        decision = self.decide(trade)
        if trade:
            self.fill(self.order(trade, decision))


class Served:
    """A journal's page, kept up to date."""

    def __init__(self, path: Path, *, token: str | None = None, **settings: Any) -> None:
        config = settings.pop("config", PageConfig(port=0))
        self.view = LiveView()
        self.follower = Follower(JournalReader(path), [self.view.absorb], every_s=0.05)
        guard = Guard(token, is_local=config.is_local, allowed_hosts=config.allowed_hosts)
        self.page = Page(self.view, self.follower, guard, every_s=0.05, **settings)
        self.follower.start()
        self.server = PageServer(self.page, config)
        self.url = self.server.start()

    def close(self) -> None:
        """Serve no more."""
        self.server.stop()
        self.follower.stop()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run of two days that goes on."""
    run = Run(tmp_path / "journal.sqlite")
    run.play(48)
    yield run
    run.journal.close()


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A journal in which nothing is written yet."""
    path = tmp_path / "empty.sqlite"
    Journal.open(path).close()
    return path


@pytest.fixture
def serve(run: Run) -> Iterator[Callable[..., Served]]:
    """Serve the run's page, or that of another ``path``; settings as of ``Page``."""
    with ExitStack() as stack:

        def start(**settings: Any) -> Served:
            served = Served(settings.pop("path", run.path), **settings)
            stack.callback(served.close)
            return served

        yield start


class PageLeftError(Exception):
    """The page that was asked gave way to another before it answered."""


# in the words of the protocol
_LEFT = ("Inspected target navigated or closed", "Cannot find context", "Execution context was destroyed")


class Browser:
    """Headless Chromium, driven through the DevTools protocol over two pipes."""

    def __init__(self, program: str, folder: str) -> None:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--hide-scrollbars", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--remote-debugging-pipe", f"--user-data-dir={folder}",
                 "about:blank"]  # fmt: skip
        # the protocol is spoken on descriptors 3 and 4
        shell = 'exec "$@" 3<&0 4>&1 0</dev/null 1>/dev/null'
        self.process = subprocess.Popen(
            ["sh", "-c", shell, "sh", program, *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._out, self._in = self.process.stdin, self.process.stdout
        self._count, self._rest, self.messages = 0, b"", list[dict[str, Any]]()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session: str | None = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session = None

    def call(self, method: str, **params: Any) -> Any:
        """One command and its result; what arrives meanwhile is kept in ``messages``."""
        self._count += 1
        asked: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            asked["sessionId"] = self._session
        self._out.write(json.dumps(asked).encode() + b"\0")
        self._out.flush()
        while True:
            message = self._next()
            if message.get("id") == self._count:
                error = message.get("error", {}).get("message", "")
                if any(words in error for words in _LEFT):
                    raise PageLeftError(error)
                assert "error" not in message, message
                return message["result"]
            self.messages.append(message)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._in.fileno(), 1 << 16)
            assert piece, "the browser ended"
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        return found

    def look(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Size of the window and what the person prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Go there."""
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression; a promise is waited for. None where the page was left meanwhile."""
        try:
            done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        except PageLeftError:
            return None
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, condition: str, tries: int = 400) -> None:
        """Until an expression is true in the page."""
        for _try in range(tries):
            # a page that is being left or built has nothing to ask yet
            asked = f"(() => {{ try {{ return Boolean({condition}) }} catch {{ return false }} }})()"
            if self.run(asked):
                return
            time.sleep(0.025)
        raise AssertionError(f"never true: {condition}; the page says: {self.text()[:800]}")

    def text(self) -> str:
        """What a reader reads."""
        found: str = self.run("document.body.innerText")
        return found

    def photograph(self, path: Path) -> None:
        """The whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """Exceptions, refused resources and other errors that the browser logged."""
        return [
            json.dumps(message["params"])
            for message in self.messages
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")
        ]

    def close(self) -> None:
        """End it."""
        self._session = None
        self.call("Browser.close")
        self.process.wait(20)
        self._out.close()
        self._in.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser for all tests; skipped where none is installed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="perpgym-browser-", ignore_cleanup_errors=True) as folder:
        browser = Browser(program, folder)
        yield browser
        browser.close()


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    """The browser, with nothing open, no cookies and no messages."""
    chromium.open("about:blank")
    chromium.call("Network.clearBrowserCookies")
    chromium.messages.clear()
    chromium.look()
    return chromium


class Inbox:
    """A local service that takes alerts, or refuses them."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.status = 200
        self.arrived = threading.Condition()
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                with inbox.arrived:
                    inbox.received.append(json.loads(body))
                    inbox.arrived.notify_all()
                self.send_response(inbox.status)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                """Silent."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self.server.server_port}/hook-with-a-key"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def wait(self, count: int) -> list[dict[str, Any]]:
        """Until so many have come."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.received) >= count, 10.0), self.received
        return self.received


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    """Open for the test."""
    inbox = Inbox()
    yield inbox
    inbox.server.shutdown()
    inbox.server.server_close()
