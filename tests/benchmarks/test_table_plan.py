"""Units of a table are of one plan, one code and one data version, or they are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from table_plan import Plan, code_version, pin_market

PLAN = Plan(data="", seconds=0.2, overrides=("training.n_paths=2",))
FACTS = {"data_hash": "a" * 64, "periods": "train 2020 to 2023", "data": "where it lay"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seconds": 1.0}, "seconds was 0.2, now is 1.0"),
        ({"overrides": ()}, "overrides was"),
        ({"code": "000000000000"}, "code was"),
    ],
)
def test_units_of_another_plan_are_refused(tmp_path: Path, change: dict[str, object], says: str) -> None:
    PLAN.claim(tmp_path)
    PLAN.claim(tmp_path)
    with pytest.raises(ValueError, match=says):
        replace(PLAN, **change).claim(tmp_path)
    assert Plan.read(tmp_path) == PLAN


def test_a_table_that_was_never_begun_cannot_be_shown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no table"):
        Plan.read(tmp_path)


def test_a_market_whose_bars_or_periods_have_changed_is_refused(tmp_path: Path) -> None:
    assert pin_market(tmp_path, "btc", FACTS) == pin_market(tmp_path, "btc", {**FACTS, "data": "moved"})
    # another market is another matter
    pin_market(tmp_path, "seven", {**FACTS, "data_hash": "b" * 64})
    for change in ({"data_hash": "b" * 64}, {"periods": "train 2020 to 2022"}):
        with pytest.raises(ValueError, match=r"the units of btc .* saw other data"):
            pin_market(tmp_path, "btc", FACTS | change)


def _files(root: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_code_is_another_if_what_trains_or_judges_is_and_not_if_a_document_or_a_test_is(
    tmp_path: Path,
) -> None:
    root = _files(tmp_path, {"agents/ppo.py": "1", "configs/agent/ppo.yaml": "1", "envs/live/env.py": "1"})
    before = code_version(root)
    elsewhere = (
        "docs/results.md",
        "agents/notes.md",
        "tests/agents/test_ppo.py",
        "envs/live/env.py",
        "live.py",
    )
    assert code_version(_files(root, dict.fromkeys(elsewhere, "2"))) == before
    versions = {before}
    for name in ("agents/ppo.py", "configs/agent/ppo.yaml", "envs/kernel.py"):
        versions.add(code_version(_files(root, {name: "2"})))
    assert len(versions) == 4
