"""The page on mechanics tells the truth: its examples run, its tables are the code's, its defaults hold."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from perpgym.envs.spaces import CONTRACT_LEDGER_COLUMNS, LEDGER_COLUMNS, observation_table

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "mechanics.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
EXAMPLES = [text for kind, text in BLOCKS if kind == "pycon"]


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


def test_there_is_an_example_in_every_chapter_that_moves_money() -> None:
    chapters = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    without = {
        chapter.splitlines()[0]
        for chapter in chapters[1:]
        if "```pycon" not in chapter and "[6]" not in chapter
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
