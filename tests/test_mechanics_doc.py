"""The page on mechanics tells the truth: its examples run, its tables are the code's, its defaults hold."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from perpgym.envs.ledger import main
from perpgym.envs.spaces import CONTRACT_LEDGER_COLUMNS, LEDGER_COLUMNS, observation_table

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "mechanics.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
EXAMPLES = [text for kind, text in BLOCKS if kind == "pycon"]
# a scenario of the ledger command, and parts of the last line that it prints
SCENARIOS = re.findall(
    r"^\*\*([^*]+)\*\*.*?^```json\n(.*?)^```\n```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
)


@pytest.fixture(scope="module")
def names() -> dict[str, object]:
    """What the page's first block defines."""
    (setup,) = (text for kind, text in BLOCKS if kind == "python")
    defined: dict[str, object] = {}
    exec(compile(setup, "docs/mechanics.md", "exec"), defined)
    return defined


@pytest.mark.parametrize("example", range(len(EXAMPLES)))
def test_the_worked_numbers_are_the_kernels(example: int, names: dict[str, object]) -> None:
    test = doctest.DocTestParser().get_doctest(
        EXAMPLES[example], dict(names), f"example {example}", "mechanics.md", 0
    )
    report: list[str] = []
    results = doctest.DocTestRunner().run(test, out=report.append)
    assert results.attempted > 0
    assert results.failed == 0, "".join(report)


def agrees(shown: Any, expected: Any) -> bool:
    """Whether what is expected, to the digits that it has at most four of, is a part of what is shown."""
    if isinstance(expected, dict):
        return all(key in shown and agrees(shown[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        return len(shown) == len(expected) and all(map(agrees, shown, expected))
    if isinstance(expected, float | int):
        return bool(shown == pytest.approx(expected, abs=5e-5, rel=1e-9))
    return bool(shown == expected)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[title for title, _text, _parts in SCENARIOS])
def test_the_ledger_command_prints_what_the_page_says(
    scenario: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _title, text, parts = scenario
    path = tmp_path / "example.json"
    path.write_text(text, "utf-8")
    assert main([str(path)]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = json.loads(f"{{{parts}}}")
    assert agrees(shown, expected), shown
    first = next(key for key, value in expected.items() if isinstance(value, float | int))
    assert not agrees(shown, {**expected, first: expected[first] + 1e-3})


def test_every_event_of_the_ledger_command_has_an_example() -> None:
    text = "".join(scenario for _title, scenario, _parts in SCENARIOS)
    assert PAGE.count("```json") == len(SCENARIOS)
    words = (
        "inverse isolated half_spread stop_trigger bankruptcy liquidation funding set_leverage target delta "
        "stop_loss take_profit price maker clearance_fee contract_size mark"
    )
    for word in words.split():
        assert f'"{word}"' in text, word
    events = "".join(parts for _title, _scenario, parts in SCENARIOS)
    for word in (
        "insurance",
        "liquidation_loss",
        "stop_loss",
        "take_profit",
        "liquidated",
        "isolated_wallet",
    ):
        assert f'"{word}"' in events, word


def test_there_is_an_example_in_every_chapter_that_moves_money() -> None:
    chapters = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    without = {
        chapter.splitlines()[0]
        for chapter in chapters[1:]
        if "```pycon" not in chapter and "```json" not in chapter and "[6]" not in chapter
    }
    assert without <= {
        "The account of the examples",
        "Several contracts on one wallet",
        "How an order reaches the book",
        "One step, in order",
        "What the agent sees, and the ledger's columns",
        "`mark=last`",
        "Not modelled",
    }


def test_a_wrong_number_would_be_noticed(names: dict[str, object]) -> None:
    wrong = EXAMPLES[0].replace("(0.003,", "(0.004,")
    test = doctest.DocTestParser().get_doctest(wrong, dict(names), "wrong", "mechanics.md", 0)
    assert doctest.DocTestRunner().run(test, out=lambda _text: None).failed > 0


def test_the_page_lists_the_columns_of_the_spaces() -> None:
    assert observation_table() in PAGE, "paste envs.spaces.observation_table() into docs/mechanics.md"
    listed = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert tuple(listed) == LEDGER_COLUMNS + CONTRACT_LEDGER_COLUMNS


def test_the_institutional_account_is_what_the_page_says() -> None:
    account = OmegaConf.load(ROOT / "configs" / "env" / "institutional.yaml")
    assert (account["funding_multiplier"], account["risk_free_rate"]) == (0.8, 0.03)
