"""The table of contenders runs, goes on where it stopped, and hides nothing that failed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from real_table import run_all
from table_plan import Plan
from table_summary import write_table
from table_units import CONTENDERS, Unit, count_updates, list_units, run_unit, words

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
    titles = next(line for line in lines.values() if line.startswith("| account")).split(" | ")
    took = dict(zip(titles, lines["a2c"].split(" | "), strict=True))
    # an update of A2C is of one rollout of 16 bars of 2 x 2 accounts
    assert int(took["updates"]) * 16 * 4 == int(took["steps"].replace(",", "")) > 0
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


def test_units_that_were_copied_from_elsewhere_are_left_out_and_named(
    out: Path, failed: dict[Unit, str], tmp_path: Path
) -> None:
    shutil.copytree(out, tmp_path / "table")
    path = Unit("simulated", "a2c", 0).result(tmp_path / "table")
    record = json.loads(path.read_text())
    for name in ("code", "data_hash", "periods"):
        path.write_text(json.dumps({**record, name: "another"}))
        table = write_table(tmp_path / "table", PLAN, UNITS, failed)
        assert "| a2c |" not in table
        assert "### 1 left out" in table
        assert "- simulated a2c seed 0" in table
    path.write_text(json.dumps(record))
    assert "left out" not in write_table(tmp_path / "table", PLAN, UNITS, failed)


def test_a_unit_of_code_that_has_changed_since_is_not_run(tmp_path: Path) -> None:
    replace(PLAN, code="000000000000").claim(tmp_path)
    unit = Unit("simulated", "a2c", 0)
    with pytest.raises(ValueError, match="code was 000000000000, now is"):
        run_unit(unit, PLAN, tmp_path)
    assert not unit.result(tmp_path).exists()


def test_an_unfinished_table_has_as_many_seeds_of_each() -> None:
    units = list_units(["btc", "seven"], ["hppo", "ppo"], 2)
    assert [unit.seed for unit in units[2:]] == [0] * 4 + [1] * 4


def test_flat_ppo_has_the_actions_of_the_hierarchy_once_and_no_more_than_the_libraries_once() -> None:
    with initialize_config_module("perpgym.configs", version_base="1.3"):
        configs = {
            name: OmegaConf.to_container(
                compose("config", overrides=words(Unit("seven", name, 0), Plan(data="d", seconds=1.0)))
            )
            for name in ("hppo", "ppo_heads", "ppo", "ppo_bare", "sac")
        }
    assert set(configs) < set(CONTENDERS)
    hppo, heads, ppo, bare, sac = configs.values()
    assert hppo["env"] == heads["env"] != ppo["env"] == bare["env"]
    assert hppo["policy"] == heads["policy"] == ppo["policy"]
    assert bare["policy"] == sac["policy"] == {**ppo["policy"], "forecast_bars": []}
    # what the two share of PPO's settings is the same
    assert {name: hppo["agent"][name] for name in heads["agent"]} | {"_target_": ""} == {
        **heads["agent"], "_target_": "",
    }  # fmt: skip


def test_updates_are_steps_of_the_busiest_optimiser_wherever_it_lies() -> None:
    few = {"state": {0: {"step": 3}, 1: {"step": 3}}, "param_groups": []}
    many = {"state": {0: {"step": 9}}, "param_groups": []}
    assert count_updates({"parameters": {"actor.optimizer": few, "critic.optimizer": many}}) == 9
    assert count_updates({"optimizer": few, "own": {"noise": [1, 2]}}) == 3
    assert count_updates({"optimizer": {"state": {}, "param_groups": []}}) == 0
