"""The table of contenders runs, goes on where it stopped, and hides nothing that failed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from real_table import run_all
from table_summary import verdict, write_table
from table_units import Plan, Unit, list_units

from perpgym.evaluation.bootstrap import Interval
from perpgym.evaluation.seeds import Spread

PLAN = Plan(
    data="",
    seconds=0.2,
    checkpoints=2,
    overrides=(
        "data.start=2022-01-01", "data.end=2022-12-31", "split.train_end=2022-10-31",
        "split.valid_end=2022-11-30", "split.test_end=2022-12-31", "training.n_paths=2",
        "training.accounts_per_path=2", "agent.n_steps=16", "policy.d_model=8", "policy.band=8",
        "policy.n_layers=1", "policy.risk_hidden=0",
    ),
)  # fmt: skip
UNITS = list_units(["simulated"], ["a2c", "nobody"], 1)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("table")


@pytest.fixture(scope="module")
def failed(out: Path) -> dict[Unit, str]:
    PLAN.claim(out)
    return run_all(UNITS, PLAN, out)


def test_every_rule_and_every_contender_has_a_line_with_what_it_took(
    out: Path, failed: dict[Unit, str]
) -> None:
    table = write_table(out, PLAN, UNITS, failed)
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines() if "|" in line}
    assert {"a2c", "Flat", "Buy and hold", "Time-series momentum"} <= set(lines)
    assert len({line.count("|") for line in lines.values()}) == 1
    # neither of the two levels was asked for
    assert "pairs of seeds" not in table


def test_a_unit_that_fails_is_in_the_table_with_its_reason(out: Path, failed: dict[Unit, str]) -> None:
    nobody = Unit("simulated", "nobody", 0)
    assert set(failed) == {nobody}
    assert "nobody_btc" in (nobody.folder(out) / "log.txt").read_text()
    assert "### 1 failed" in write_table(out, PLAN, UNITS, failed)
    # nor is it hidden by whoever looks again without running
    assert "1 of 3 units are not done: simulated nobody seed 0" in write_table(out, PLAN, UNITS, {})


def test_what_is_done_is_not_done_again_and_what_is_not_goes_on(out: Path, failed: dict[Unit, str]) -> None:
    trained = Unit("simulated", "a2c", 0)
    log, result = trained.folder(out) / "log.txt", trained.result(out)
    before, kept = log.read_text(), result.read_text()
    assert run_all([trained], PLAN, out) == {}
    assert log.read_text() == before
    # stopped between training and judging
    result.unlink()
    assert run_all([trained], PLAN, out) == {}
    assert result.read_text() == kept
    assert log.read_text().count("took") == before.count("took") == 1


def test_units_of_another_plan_are_refused(tmp_path: Path) -> None:
    PLAN.claim(tmp_path)
    PLAN.claim(tmp_path)
    with pytest.raises(ValueError, match="another plan"):
        Plan(data="", seconds=1.0).claim(tmp_path)


def test_an_unfinished_table_has_as_many_seeds_of_each() -> None:
    units = list_units(["btc", "seven"], ["hppo", "ppo"], 2)
    assert [unit.seed for unit in units[2:]] == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("by_seed", "by_bar", "pairs", "says"),
    [
        ((0.1, 0.9), (0.1, 0.9), 5, "earns its keep here"),
        ((0.1, 0.9), (-0.1, 0.9), 5, "does not earn its keep"),
        ((-0.1, 0.9), (0.1, 0.9), 5, "does not earn its keep"),
        ((-0.9, -0.1), (-0.9, -0.1), 5, "costs more than it brings"),
        # an account that never moved has no interval
        ((-0.9, -0.1), (math.nan, math.nan), 5, "does not earn its keep"),
        ((0.1, 0.9), (0.1, 0.9), 2, "too few seeds"),
    ],
)
def test_the_hierarchy_earns_its_keep_only_if_seeds_and_bars_both_say_so(
    by_seed: tuple[float, float], by_bar: tuple[float, float], pairs: int, says: str
) -> None:
    bars = Interval(low=by_bar[0], high=by_bar[1], level=0.95, draws=1, block_bars=1)
    assert says in verdict(Spread(0.5, *by_seed), bars, pairs, "hppo", "ppo")
