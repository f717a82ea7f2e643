"""The pages on the desk and on watching tell the truth: programs run, tests exist, rooms are the folder's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perpgym.envs.exchange.__main__ import make_parser, make_venue
from perpgym.envs.exchange.server import ServerThread
from perpgym.envs.exchange.warm import warm_up

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[2] / "docs"
PAGE = (DOCS / "desk.md").read_text("utf-8")
PROGRAM = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_test_on_the_page_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    written = {
        name for path in HERE.glob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 40
    assert named <= written


def test_every_room_on_the_page_exists() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE.partition("## Rooms")[2]))
    files = {path.stem for path in (HERE.parents[2] / "envs" / "live").glob("*.py")}
    assert named <= files


@pytest.mark.parametrize(
    ("page", "arguments", "says"),
    [
        ("desk.md", [], ["['filled'] 0.01", "True ready ['stop']", "0.0"]),
        ("live_monitor.md", ["--speed", "60"], [r"page http://127\.0\.0\.1:\d+", *[r"equity [\d,.]+"] * 5]),
    ],
)
def test_the_programs_of_the_pages_run_as_they_are_on_the_local_exchange(
    page: str,
    arguments: list[str],
    says: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (program,) = PROGRAM.findall((DOCS / page).read_text("utf-8"))
    monkeypatch.chdir(tmp_path)
    # where the accounts' locks lie
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    parsed = make_parser().parse_args(["--history", "2", "--days", "1", *arguments])
    venue = make_venue(parsed)
    # a server that compiles does not answer
    warm_up(venue.market, venue.books.config)
    with ServerThread(venue) as server:
        # ports of a machine that may have other work
        free = program.replace("http://127.0.0.1:8787", server.url).replace("port=8799", "port=0")
        exec(compile(free, page, "exec"), {"__name__": "a program"})
        assert (venue.books.position(0) > 0.0) == (page != "desk.md")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(says)
    for line, expected in zip(said, says, strict=True):
        assert line == expected or re.fullmatch(expected, line)
