"""The scripts do what the README says: train, resume, evaluate."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from calling import ROOT, SMALL, UNTRACED, call


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


def test_validation_judged_again_gives_the_figures_of_its_trial_and_no_verdict(run: Path) -> None:
    few = ("evaluation.random_draws=0", "evaluation.bootstrap_draws=10")
    done = call("evaluate.py", f"run={run}", "period=valid", *few)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not held out" in done.stdout
    report = json.loads((run / "report_valid" / "report.json").read_text())
    assert report["verdict"]["kind"] == "seen"
    accounts = report["accounts"]
    trials = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    for trial in (t for t in trials if t["step"] == 4096):
        card = accounts[f"seed {trial['seed']}, last checkpoint"]
        assert card["log_growth"] == pytest.approx(trial["validation_log_growth"], abs=1e-12)
        assert card["turnover_per_day"] == pytest.approx(trial["validation_turnover"], abs=1e-12)


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


def test_qr_dqn_of_two_levels_is_trained_and_judged_by_the_same_scripts(tmp_path: Path) -> None:
    folder = tmp_path / "qrdqn"
    small = [word for word in SMALL if word not in ("+experiment=ppo_btc", "agent.n_steps=64")]
    own = ("agent.learning_starts=512", "agent.alpha=0.25", "agent.n_quantiles=8")
    done = call("train.py", "+experiment=hqrdqn_btc", *small, *own, f"run_dir={folder}")
    assert done.returncode == 0, done.stdout + done.stderr
    done = call("evaluate.py", f"run={folder}", "evaluation.random_draws=5", "evaluation.bootstrap_draws=50")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "report" / "report.json").read_text())
    assert "oracle" in report["accounts"]
