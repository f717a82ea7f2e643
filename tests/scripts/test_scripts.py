"""The scripts do what the README says: train, resume, evaluate, and say in words what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
# two years to train on, three months each to choose and to judge
SMALL = (
    "+experiment=ppo_btc",
    "data=simulated",
    "data.start=2022-01-01",
    "data.end=2024-09-30",
    "split.train_end=2023-12-31",
    "split.valid_end=2024-03-31",
    "split.test_end=2024-06-30",
    "training.n_paths=4",
    "training.accounts_per_path=2",
    "training.total_steps=4096",
    "training.checkpoints=4",
    "agent.n_steps=64",
    "agent.batch_size=256",
    "policy.d_model=16",
    "policy.band=8",
    "policy.risk_hidden=8",
    "policy.risk_chunk=8",
    "policy.risk_warmup=7",
)


# a tracer slows a training threefold, and Hydra shows a traceback to anything that looks like a debugger
UNTRACED = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}


def call(
    script: str, *arguments: str, timeout: int = 240, is_traced: bool = False
) -> subprocess.CompletedProcess[str]:
    environment = {**(os.environ if is_traced else UNTRACED), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        capture_output=True, text=True, timeout=timeout, env=environment, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run with two seeds."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    done = call("train.py", *SMALL, "seeds=[0,1]", f"run_dir={folder}", is_traced=True)
    assert done.returncode == 0, done.stdout + done.stderr
    # what is printed can be pasted, wherever the environment lies
    assert f"python -m tensorboard.main --logdir {folder}/tensorboard" in done.stdout
    return folder


def test_a_run_folder_holds_config_provenance_trials_policies_and_curves(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["agent"]["n_steps"] == 64
    facts = json.loads((run / "run.json").read_text())
    assert len(facts["data_hash"]) == 64
    assert facts["seeds"] == [0, 1]
    trials = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    assert {t["seed"] for t in trials} == {0, 1}
    assert len(trials) == 8
    for seed in (0, 1):
        selection = json.loads((run / f"seed_{seed}" / "selection.json").read_text())
        assert (run / f"seed_{seed}" / "policies" / f"step_{selection['best']:010d}").is_dir()
        assert selection["last"] == 4096
    assert list((run / "tensorboard").rglob("events.*"))


def test_evaluation_writes_a_report_whose_first_line_is_a_verdict(run: Path) -> None:
    few = ("evaluation.random_draws=20", "evaluation.bootstrap_draws=100")
    done = call("evaluate.py", f"run={run}", *few, is_traced=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["verdict"]["sentence"].split()[0] in done.stdout
    assert report["verdict"]["sentence"][:40] in (run / "report" / "report.html").read_text()
    names = set(report["accounts"])
    assert {"Flat", "Buy and hold", "oracle", "seed 0, best checkpoint", "seed 1, last checkpoint"} <= names


def test_a_run_with_the_edge_switched_off_is_told_that_there_is_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "edgeless"
    done = call("train.py", *SMALL, "data.simulated.edge=0", f"run_dir={folder}")
    assert done.returncode == 0, done.stdout + done.stderr
    done = call("evaluate.py", f"run={folder}", "evaluation.random_draws=5", "evaluation.bootstrap_draws=100")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["verdict"]["kind"] == "nothing"
    assert "nothing" in report["verdict"]["sentence"].lower()


def interrupt(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start training and press Ctrl-C once the first checkpoint is there."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *SMALL, f"run_dir={folder}", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**UNTRACED, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    for _ in range(1_200):
        if (folder / "trials.jsonl").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    return subprocess.CompletedProcess([], process.returncode, output, "")


def test_ctrl_c_saves_and_resuming_gives_the_result_of_an_uninterrupted_run(tmp_path: Path) -> None:
    long = ("training.total_steps=16384", "training.checkpoints=8")
    stopped = interrupt(tmp_path / "stopped", *long)
    assert stopped.returncode == 130, stopped.stdout
    assert "resume=" in stopped.stdout
    assert not (tmp_path / "stopped" / "seed_0" / "selection.json").exists()
    resumed = call("train.py", f"resume={tmp_path / 'stopped'}")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    whole = call("train.py", *SMALL, *long, f"run_dir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    last = "seed_0/policies/step_0000016384/weights.safetensors"
    assert (tmp_path / "stopped" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()
    selections = [(tmp_path / n / "seed_0" / "selection.json").read_text() for n in ("stopped", "whole")]
    assert selections[0] == selections[1]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("agent.learning_rat=1e-3", "did you mean agent.learning_rate?"),
        ("env.taker_rate=4", "taker_rate must lie between"),
        ("agent.gamma=1.5", "gamma must lie between"),
        ("seeds=[0,0]", "seeds must be distinct"),
        ("split.valid_end=2023-06-30", "valid_end must come after"),
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


def test_validation_judged_again_gives_the_figures_of_its_trial_and_no_verdict(run: Path) -> None:
    few = ("evaluation.random_draws=0", "evaluation.bootstrap_draws=10")
    for period in ("valid", "train"):
        done = call("evaluate.py", f"run={run}", f"period={period}", *few)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "not held out" in done.stdout
        report = json.loads((run / f"report_{period}" / "report.json").read_text())
        assert report["verdict"]["kind"] == "seen"
    accounts = json.loads((run / "report_valid" / "report.json").read_text())["accounts"]
    trials = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    for trial in (t for t in trials if t["step"] == 4096):
        card = accounts[f"seed {trial['seed']}, last checkpoint"]
        assert card["log_growth"] == pytest.approx(trial["validation_log_growth"], abs=1e-12)
        assert card["turnover_per_day"] == pytest.approx(trial["validation_turnover"], abs=1e-12)


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


def test_a_portfolio_is_trained_and_judged_from_one_end_to_the_other(tmp_path: Path) -> None:
    folder = tmp_path / "portfolio"
    small = [word for word in SMALL if word not in ("+experiment=ppo_btc", "data=simulated")]
    late = "data.simulated.listed=[null,null,2022-06-01]"
    few = ("training.total_steps=1024", "training.checkpoints=2")
    done = call("train.py", "+experiment=ppo_portfolio", *small, *few, late, f"run_dir={folder}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AVAX" not in done.stdout
    done = call("evaluate.py", f"run={folder}", "evaluation.random_draws=5", "evaluation.bootstrap_draws=50")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "report" / "report.json").read_text())
    assert [card["symbol"][:3] for card in report["contracts"]] == ["BTC", "ETH", "XRP"]
    assert {"Funding harvest", "Buy and hold"} <= set(report["accounts"])
    assert "oracle" not in report["accounts"]
    assert "No oracle stands beside the agent" in (folder / "report" / "report.html").read_text()


@pytest.mark.parametrize("experiment", ["qrdqn_btc", "hqrdqn_btc"])
def test_qr_dqn_of_one_or_two_levels_is_trained_and_judged_by_the_same_scripts(
    tmp_path: Path, experiment: str
) -> None:
    folder = tmp_path / "qrdqn"
    small = [word for word in SMALL if word not in ("+experiment=ppo_btc", "agent.n_steps=64")]
    own = ("agent.learning_starts=512", "agent.alpha=0.25", "agent.n_quantiles=8")
    done = call("train.py", f"+experiment={experiment}", *small, *own, f"run_dir={folder}")
    assert done.returncode == 0, done.stdout + done.stderr
    done = call("evaluate.py", f"run={folder}", "evaluation.random_draws=5", "evaluation.bootstrap_draws=50")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "report" / "report.json").read_text())
    assert "oracle" in report["accounts"]


def test_qr_dqn_without_a_ladder_is_refused_in_words(tmp_path: Path) -> None:
    words = [word for word in SMALL if word not in ("+experiment=ppo_btc", "agent.n_steps=64")]
    done = call("train.py", "agent=qrdqn", *words, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert "action=ladder" in done.stdout
