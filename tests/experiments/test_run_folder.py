"""A run folder holds one run and nothing else, and is never emptied of what is not its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perpgym.experiments.run_folder import RunError, RunFolder

CONFIG = {"name": "a"}
FACTS = {"name": "a", "seeds": [0]}


def started(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.create(CONFIG, FACTS, overwrite=False)
    return folder


def test_a_new_run_holds_its_config_and_where_it_comes_from(tmp_path: Path) -> None:
    folder = started(tmp_path / "run")
    assert folder.read_config() == CONFIG
    assert folder.read_provenance()["seeds"] == [0]


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    started(tmp_path)
    assert (tmp_path / "run.json").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["config.yaml", "run.json", "thesis.tex"])
def test_a_folder_of_somebody_else_s_files_is_never_taken(tmp_path: Path, name: str, overwrite: bool) -> None:
    (tmp_path / name).write_text('{"site": "mine"}\n')
    with pytest.raises(RunError, match="run_dir"):
        RunFolder(tmp_path).create(CONFIG, FACTS, overwrite=overwrite)
    assert (tmp_path / name).read_text() == '{"site": "mine"}\n'
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_run_is_replaced_only_when_asked(tmp_path: Path) -> None:
    started(tmp_path)
    with pytest.raises(RunError, match="overwrite=true"):
        RunFolder(tmp_path).create(CONFIG, FACTS, overwrite=False)


def test_replacing_a_run_leaves_what_a_person_put_beside_it(tmp_path: Path) -> None:
    folder = started(tmp_path)
    (tmp_path / "notes.md").write_text("mine\n")
    (tmp_path / "seed_of_doubt").mkdir()
    folder.resume(0).parent.mkdir()
    folder.resume(0).write_bytes(b"old")
    folder.trials.write_text("{}\n")
    (tmp_path / "report_valid").mkdir()
    folder.create({"name": "b"}, FACTS, overwrite=True)
    assert folder.read_config() == {"name": "b"}
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"config.yaml", "run.json", "notes.md", "seed_of_doubt"}


@pytest.mark.parametrize("content", ["[]", "{}", "{", "3"])
def test_a_damaged_record_is_refused_in_words(tmp_path: Path, content: str) -> None:
    folder = started(tmp_path)
    folder.provenance.write_text(content)
    with pytest.raises(RunError, match=r"run\.json"):
        folder.read_provenance()
    folder.selection(0).parent.mkdir()
    folder.selection(0).write_text(content)
    with pytest.raises(RunError, match=r"selection\.json"):
        folder.read_selection(0)


def test_a_config_that_was_altered_after_training_is_noticed(tmp_path: Path) -> None:
    folder = started(tmp_path)
    assert not folder.is_config_altered()
    folder.config.write_text("name: cheaper\n")
    assert folder.is_config_altered()
    # runs from before the hash was kept
    facts = json.loads(folder.provenance.read_text())
    del facts["config_hash"]
    folder.provenance.write_text(json.dumps(facts))
    assert not folder.is_config_altered()
