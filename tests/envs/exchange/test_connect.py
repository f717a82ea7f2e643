"""The ways to get here: addresses, TLS, a proxy; and the program that a user starts."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ccxt
import ccxt.async_support
import ccxt.pro
import pytest
import requests

from perpgym.data.tape import Tape
from perpgym.envs.exchange.__main__ import banner, make_parser, make_venue, read_tape
from perpgym.envs.exchange.connect import point_at
from perpgym.envs.exchange.proxy import Proxy
from perpgym.envs.exchange.server import serving
from perpgym.envs.exchange.tls import make_certificate
from perpgym.envs.exchange.venue import Venue

SYMBOL = "TEST/USDT:USDT"
Make = Callable[..., Venue]
CREDENTIALS = {"apiKey": "key", "secret": "secret", "enableRateLimit": False}


def every_url(urls: Any) -> list[str]:
    return [urls] if isinstance(urls, str) else [u for part in urls.values() for u in every_url(part)]


@pytest.mark.parametrize("kind", [ccxt.binanceusdm, ccxt.pro.binanceusdm, ccxt.binance])
def test_no_address_of_the_real_exchange_is_left(kind: Any) -> None:
    exchange = point_at(kind(), "http://127.0.0.1:9/")
    assert {url.split("/")[2] for url in every_url(exchange.urls["api"])} == {"127.0.0.1:9"}
    assert {url.split(":")[0] for url in every_url(exchange.urls["api"])} <= {"http", "ws"}


def test_behind_the_proxy_nothing_is_changed_and_nothing_gets_out(make_venue: Make, tmp_path: Path) -> None:
    async def story() -> None:
        certificate = make_certificate(tmp_path)
        venue = make_venue()
        async with serving(venue, tls=certificate.server_context()) as server:
            proxy = Proxy(int(server.url.rpartition(":")[2]))
            url = await proxy.start()
            settings = {**CREDENTIALS, "httpsProxy": url, "cafile": str(certificate.certificate)}
            client = ccxt.pro.binanceusdm({**settings, "options": {"fetchCurrencies": False}})
            client.wssProxy = url
            client.milliseconds = venue.clock.now_ms
            try:
                order = await client.create_order(SYMBOL, "market", "buy", 0.05)
                assert order["status"] == "closed"
                with pytest.raises(ccxt.InsufficientFunds):
                    await client.create_order(SYMBOL, "market", "buy", 100.0)
                (bar,) = await asyncio.wait_for(client.watch_ohlcv(SYMBOL, "1h"), 5.0)
                assert bar[0] == venue.market.open_ms
                with pytest.raises(ccxt.ExchangeError):
                    await client.sapiGetCapitalConfigGetall()
                assert proxy.refused == ["api.binance.com"]
            finally:
                await client.close()
                await proxy.stop()

    asyncio.run(story())


def test_tls_alone_gives_the_futures_error_classes(make_venue: Make, tmp_path: Path) -> None:
    async def story() -> None:
        certificate = make_certificate(tmp_path)
        venue = make_venue()
        async with serving(venue, tls=certificate.server_context()) as server:
            port = server.url.rpartition(":")[2]
            client = ccxt.async_support.binanceusdm({**CREDENTIALS, "cafile": str(certificate.certificate)})
            client.options["fetchCurrencies"] = False
            client.milliseconds = venue.clock.now_ms
            for name, url in client.urls["api"].items():
                if name.startswith("fapi"):
                    path = url.partition("binance.com")[2]
                    client.urls["api"][name] = f"https://demo-fapi@127.0.0.1:{port}{path}"
            try:
                with pytest.raises(ccxt.InsufficientFunds):
                    await client.create_order(SYMBOL, "market", "buy", 100.0)
            finally:
                await client.close()

    asyncio.run(story())


def test_a_program_that_knows_no_virtual_clock_can_trade(local: Callable[..., Any]) -> None:
    here = local(strict=False)
    client = point_at(ccxt.binanceusdm(dict(CREDENTIALS)), here.url)
    assert client.create_order(SYMBOL, "market", "buy", 0.05)["filled"] == 0.05


def test_the_admin_api_steps_time_and_shows_the_truth(local: Callable[..., Any]) -> None:
    here = local()

    def ask(name: str, body: Any) -> Any:
        return requests.post(f"{here.url}/admin/{name}", json=body, timeout=5).json()

    here.client.create_order(SYMBOL, "limit", "buy", 0.05, 27_000.0)
    before = ask("state", {})
    assert [o["price"] for o in before["open_orders"]] == ["27000"]
    after = ask("advance", {"bars": 3})
    assert after["bar"] == before["bar"] + 3
    assert after["now_ms"] == before["now_ms"] + 3 * 3_600_000
    assert ask("order", {"symbol": "TESTUSDT", "side": "SELL", "type": "MARKET", "quantity": 0.05})["status"]
    assert ask("state", {})["positions"][0]["positionAmt"] == "-0.05"
    assert "nonsense" in ask("nonsense", {})["error"]
    here.venue.has_admin = False
    assert requests.post(f"{here.url}/admin/state", timeout=5).status_code == 404


def test_the_command_line_serves_a_saved_tape(make_tape: Callable[..., Tape], tmp_path: Path) -> None:
    make_tape(bars=100).save(tmp_path / "tape")
    command = [sys.executable, "-m", "perpgym.envs.exchange", "--tape", str(tmp_path / "tape")]
    command += ["--port", "0", "--speed", "0", "--admin"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[3].rstrip(":")
        try:
            client = point_at(ccxt.binanceusdm(dict(CREDENTIALS)), url)
            assert client.create_order(SYMBOL, "market", "buy", 0.05)["filled"] == 0.05
            state = requests.post(f"{url}/admin/advance", data=json.dumps({"bars": 1}), timeout=5).json()
            assert state["positions"][0]["positionAmt"] == "0.05"
            client.session.close()
        finally:
            process.send_signal(signal.SIGINT)
        assert process.stdout.read().strip().endswith("closed")
    assert process.returncode == 0


def test_the_admin_api_stays_on_this_machine() -> None:
    with pytest.raises(ValueError, match="--host must be one of"):
        make_venue(make_parser().parse_args(["--admin", "--host", "0.0.0.0"]))


def test_the_simulated_market_needs_no_file() -> None:
    parsed = make_parser().parse_args(["--timeframe", "1h", "--days", "3", "--speed", "60"])
    venue = make_venue(parsed)
    assert venue.market.fine_ms == 3_600_000
    assert "60 times real time" in banner(venue, "http://127.0.0.1:1", parsed)
    assert read_tape(parsed).source.startswith("simulated")


def test_a_program_that_polls_can_drive_the_clock(local: Callable[..., Any]) -> None:
    here = local(strict=False)
    here.venue.steps_on_poll = True
    client = point_at(ccxt.binanceusdm(dict(CREDENTIALS)), here.url)
    seen = []
    for _poll in range(5):
        newest = client.fetch_ohlcv(SYMBOL, "1h", limit=3)[-1][0]
        client.fetch_positions([SYMBOL])
        seen.append(newest)
    assert seen == here.venue.market.tape.open_time_ms[50:55].tolist()
    # another question at the same moment moves nothing
    client.fetch_ohlcv(SYMBOL, "4h", limit=3)
    assert here.venue.market.bar == 54
