"""The page on the desk tells the truth: its program runs, its tests exist, its rooms are the folder's."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from perpgym.envs.exchange.connect import point_at

Open = Callable[..., Any]
HERE = Path(__file__).resolve().parent
PAGE = (HERE.parents[2] / "docs" / "desk.md").read_text("utf-8")


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


def test_the_program_on_the_page_runs(
    open_desk: Open, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(program.replace("BTC/USDT", "TEST/USDT"), "desk.md", "exec"), names)

    async def story() -> None:
        async with open_desk(start=False) as here:
            # a program whose clock is the machine's
            here.venue.keys.is_strict = False
            point = partial(point_at, url=here.server.url)
            await names["trade"](here.books, "key", "secret", tmp_path / "program", point)
            assert here.position == 0.0
            assert len(here.orders()) == 2

    asyncio.run(story())
    assert capsys.readouterr().out.splitlines() == ["['filled']", "True ready"]
