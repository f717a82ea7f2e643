"""The page on the exchange tells the truth: its programs run, its lists are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perpgym.envs.exchange import admin, incidents
from perpgym.envs.exchange.__main__ import banner, make_parser, make_venue
from perpgym.envs.exchange.api import ENDPOINTS
from perpgym.envs.exchange.faults import PRESETS
from perpgym.envs.exchange.server import ServerThread

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "exchange.md").read_text("utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_programs_run_against_the_simulated_market(capsys: pytest.CaptureFixture[str]) -> None:
    parsed = make_parser().parse_args(
        ["--tape", "simulated", "--speed", "60", "--days", "1", "--history", "2"]
    )
    with ServerThread(make_venue(parsed)) as server:
        names: dict[str, object] = {}
        for program in PROGRAMS:
            exec(compile(program.replace("http://127.0.0.1:8787", server.url), "exchange.md", "exec"), names)
        names["exchange"].session.close()  # type: ignore[attr-defined]
    assert len(PROGRAMS) == 3
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize("secret", ["secret", "a-secret-of-ones-own"])
def test_what_the_exchange_prints_to_be_pasted_trades(
    secret: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERPGYM_SIMULATED_SECRET", secret)
    monkeypatch.delenv("PERPGYM_SIMULATED_KEY", raising=False)
    parsed = make_parser().parse_args(["--timeframe", "1h", "--history", "2", "--days", "1", "--speed", "60"])
    with ServerThread(make_venue(parsed)) as server:
        said = banner(server.venue, server.url, parsed)
        names: dict[str, object] = {}
        exec(compile(said.partition("paste:\n")[2], "banner", "exec"), names)
        names["exchange"].session.close()  # type: ignore[attr-defined]
        (trade,) = server.venue.books.registry.trades
    # a hundredth of the wallet, or what the contract's smallest notional of 100 leaves no doubt about
    assert 100.0 <= trade.quantity * trade.price < 115.0
    assert capsys.readouterr().out.split()[0] == names["order"]["id"]  # type: ignore[index]
    assert "a-secret-of-ones-own" not in said
    assert "bars of 1h, 2h," in said


def test_every_endpoint_is_on_the_page_and_no_other() -> None:
    section = PAGE.partition("## Endpoints")[2].partition("\n## ")[0]
    named = set(re.findall(r"/fapi/v1/[\w/]+", section))
    served = {path for _method, path in ENDPOINTS if path.startswith("/fapi/v1/")}
    versions = {"/fapi/v1/account", "/fapi/v1/balance", "/fapi/v1/positionRisk"}
    assert named == served - versions


def test_every_admin_call_and_fault_is_on_the_page() -> None:
    section = PAGE.partition("## The admin API")[2].partition("\n## ")[0]
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {
        *admin.HANDLERS, *incidents.HANDLERS
    }  # fmt: skip
    rows = [row.split("|")[1] for row in PAGE.partition("## Faults")[2].splitlines() if row.startswith("| F")]
    assert {name for row in rows for name in re.findall(r"F\d\d\w?", row)} == set(PRESETS)


def test_every_room_is_on_the_page() -> None:
    section = PAGE.partition("## Rooms")[2]
    rooms = {path.stem for path in (ROOT / "envs" / "exchange").glob("*.py")}
    small = {"__init__", "__main__", "api", "clock", "orders", "symbols", "warm", "wire"}
    assert set(re.findall(r"`(\w+)`", section)) == rooms - small
