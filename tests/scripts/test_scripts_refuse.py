"""The scripts say in words what is wrong, and lose nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from calling import SMALL, call


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("agent.learning_rat=1e-3", "did you mean agent.learning_rate?"),
        ("policy=nonsense", "nonsense"),
        ("training.total_steps=lots", "wrong type"),
    ],
)
def test_a_bad_setting_is_one_message_and_no_run(tmp_path: Path, override: str, words: str) -> None:
    done = call("train.py", *SMALL, f"run_dir={tmp_path / 'run'}", override)
    assert done.returncode == 1
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "use +" not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_that_nobody_named_says_what_it_trains(tmp_path: Path) -> None:
    # an empty store ends it before anything is trained
    empty = ("data=store", f"data.store={tmp_path / 'store'}", f"run_dir={tmp_path / 'run'}", "seeds=[1,2]")
    done = call("train.py", *empty)
    assert (
        "unnamed: PPO on BTC/USDT:USDT 1h (data=store), 4,000,000 steps for each of seeds 1, 2" in done.stdout
    )
    assert "no experiment was named" in done.stdout
    done = call("train.py", *empty, "+experiment=ppo_btc")
    assert "ppo_btc: PPO on" in done.stdout
    assert "no experiment was named" not in done.stdout


def test_a_finished_run_is_not_overwritten_unless_asked(run: Path) -> None:
    done = call("train.py", *SMALL, f"run_dir={run}")
    assert done.returncode == 1
    assert "overwrite=true" in done.stdout


def test_a_bad_setting_is_told_before_a_folder_that_is_taken(run: Path) -> None:
    done = call("train.py", *SMALL, f"run_dir={run}", "agent.gamma=1.5")
    assert "gamma must lie between" in done.stdout
    assert "overwrite=true" not in done.stdout


def copy_of(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_run_of_another_version_is_refused(run: Path, tmp_path: Path) -> None:
    folder = copy_of(run, tmp_path)
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "format": 99, "perpgym": "9.9"}))
    done = call("evaluate.py", f"run={folder}")
    assert done.returncode == 1
    assert "perpgym 9.9" in done.stdout


def test_an_unknown_period_is_one_message(run: Path) -> None:
    done = call("evaluate.py", f"run={run}", "period=tomorrow")
    assert done.returncode == 1
    assert "period must be one of" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("other", ["ensemble=mean", "baseline=oracle"])
def test_an_explanation_of_what_is_no_single_policy_is_refused(run: Path, other: str) -> None:
    done = call("evaluate.py", f"run={run}", "explain=true", other)
    assert done.returncode != 0
    assert "explain=true explains one trained policy" in done.stdout + done.stderr


def test_what_cannot_be_explained_is_told_before_anything_is_judged(run: Path, tmp_path: Path) -> None:
    folder = copy_of(run, tmp_path)
    shutil.rmtree(folder / "report", ignore_errors=True)
    done = call("evaluate.py", f"run={folder}", "explain=true", "explain_time=1999-01-01")
    assert done.returncode == 1
    assert "explain_time must lie from" in done.stdout
    assert not (folder / "report").exists()
    assert not (folder / "explanation").exists()


def test_somebody_else_s_folder_is_never_emptied(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("site: mine\n")
    (tmp_path / "thesis.tex").write_text("all of it\n")
    done = call("train.py", *SMALL, f"run_dir={tmp_path}", "overwrite=true")
    assert done.returncode == 1
    assert "left alone" in done.stdout
    assert (tmp_path / "thesis.tex").read_text() == "all of it\n"


def test_a_config_that_was_altered_after_training_is_loud_and_not_resumed(run: Path, tmp_path: Path) -> None:
    folder = copy_of(run, tmp_path)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("taker_rate: 0.0004", "taker_rate: 0.0"))
    few = ("evaluation.random_draws=0", "evaluation.bootstrap_draws=10")
    done = call("evaluate.py", f"run={folder}", *few)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was changed after training" in done.stdout
    page = (folder / "report" / "report.html").read_text()
    assert page.index("was changed after training") < page.index("Beside what it must beat")
    done = call("train.py", f"resume={folder}")
    assert done.returncode == 1
    assert "started with" in done.stdout


def test_a_run_without_its_trial_log_is_not_judged(run: Path, tmp_path: Path) -> None:
    folder = copy_of(run, tmp_path)
    (folder / "trials.jsonl").unlink()
    done = call("evaluate.py", f"run={folder}")
    assert done.returncode == 1
    assert "how many attempts" in done.stdout
    (folder / "seed_0" / "selection.json").unlink()
    done = call("train.py", f"resume={folder}")
    assert done.returncode == 1
    assert "trials.jsonl" in done.stdout


def test_a_damaged_policy_is_refused(run: Path, tmp_path: Path) -> None:
    folder = copy_of(run, tmp_path)
    for weights in folder.rglob("weights.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-8])
    done = call("evaluate.py", f"run={folder}")
    assert done.returncode == 1
    assert "weights.safetensors" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_run_on_other_features_is_refused(run: Path, tmp_path: Path) -> None:
    folder = copy_of(run, tmp_path)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["features"]["market"] = ["log_return_1", "basis"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    done = call("evaluate.py", f"run={folder}")
    assert done.returncode == 1
    assert "features" in done.stdout


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for script, name in (("evaluate.py", "run"), ("train.py", "resume")):
        done = call(script, f"{name}={tmp_path}")
        assert done.returncode == 1
        assert "no run folder" in done.stdout


def test_qr_dqn_without_a_ladder_is_refused_in_words(tmp_path: Path) -> None:
    words = [word for word in SMALL if word not in ("+experiment=ppo_btc", "agent.n_steps=64")]
    done = call("train.py", "agent=qrdqn", *words, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert "action=ladder" in done.stdout
