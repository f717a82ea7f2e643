"""Training one seed ends in a choice, and a wish to stop is never lost."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from perpgym.agents.budget import Budget
from perpgym.agents.checkpoint import read_checkpoint
from perpgym.agents.ppo import PPOConfig
from perpgym.agents.qrdqn_config import QRDQNConfig
from perpgym.data.load import DataConfig
from perpgym.data.splits import Splits
from perpgym.experiments import training
from perpgym.experiments.market import Market, open_market
from perpgym.experiments.run_folder import RunFolder
from perpgym.experiments.settings import Settings, Training
from perpgym.experiments.training import Progress, StopRequestedError, choose_step, train_seed
from perpgym.policies.config import PolicyConfig

SETTINGS = Settings(
    data=DataConfig(source="simulated", start="2022-01-01", end="2022-12-31"),
    split=Splits(train_end="2022-08-31", valid_end="2022-10-31", test_end="2022-12-31"),
    policy=PolicyConfig(d_model=16, band=8, risk_hidden=0, policy_hidden=(16,), value_hidden=(16,)),
    agent=PPOConfig(n_steps=32, batch_size=64, n_epochs=1),
    training=Training(total_steps=256, n_paths=2, accounts_per_path=2, checkpoints=2),
)


@pytest.fixture(scope="module")
def market() -> Market:
    return open_market(SETTINGS)


def test_a_stop_asked_for_at_the_very_end_keeps_the_seed_and_starts_no_other(
    market: Market, tmp_path: Path
) -> None:
    def press(steps: int, validation_return: float | None) -> None:
        if steps == SETTINGS.training.total_steps:
            os.kill(os.getpid(), signal.SIGINT)

    folder = RunFolder(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StopRequestedError):
        train_seed(market, SETTINGS, 0, folder, "hash", progress=Progress(on_step=press))
    assert folder.read_selection(0)["last"] == SETTINGS.training.total_steps
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("asked", "trained"), [(128, 128), (129, 256)])
def test_steps_that_are_no_whole_rollouts_are_rounded_up_and_it_is_said(
    asked: int, trained: int, market: Market, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "perpgym")
    settings = replace(SETTINGS, training=replace(SETTINGS.training, total_steps=asked))
    train_seed(market, settings, 0, RunFolder(tmp_path), "hash")
    assert RunFolder(tmp_path).read_selection(0)["last"] == trained
    said = f"training.total_steps={asked} becomes {trained}: whole rollouts of 128 account steps"
    assert (said in caplog.text) == (asked != trained)


def test_going_on_from_a_checkpoint_does_not_look_at_it_again(
    market: Market, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "perpgym")
    half = SETTINGS.training.total_steps // 2
    seen: list[float] = []

    def press_at_half(steps: int, validation_return: float | None) -> None:
        if steps == half:
            os.kill(os.getpid(), signal.SIGINT)

    def watch(steps: int, validation_return: float | None) -> None:
        if validation_return is not None:
            seen.append(validation_return)

    folder = RunFolder(tmp_path / "stopped")
    with pytest.raises(StopRequestedError):
        train_seed(market, SETTINGS, 0, folder, "hash", progress=Progress(on_step=press_at_half))
    train_seed(market, SETTINGS, 0, folder, "hash", progress=Progress(on_step=watch))
    looked = [record.getMessage() for record in caplog.records if "validation: return" in record.getMessage()]
    assert len(looked) == SETTINGS.training.checkpoints
    # the bar shows what the log says, from the first step on
    assert f"return {100 * seen[0]:+.1f} %" in looked[0]
    whole = RunFolder(tmp_path / "whole")
    train_seed(market, SETTINGS, 0, whole, "hash")
    assert folder.trials.read_text() == whole.trials.read_text()
    assert folder.selection(0).read_text() == whole.selection(0).read_text()


def test_an_artifact_without_its_trial_is_looked_at_again(market: Market, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    train_seed(market, SETTINGS, 0, folder, "hash")
    selection = folder.selection(0).read_text()
    folder.selection(0).unlink()
    # as a crash between the artifact and the log leaves it
    lines = folder.trials.read_text().splitlines(keepends=True)
    folder.trials.write_text("".join(lines[:-1]))
    train_seed(market, SETTINGS, 0, folder, "hash")
    assert folder.selection(0).read_text() == selection
    assert folder.trials.read_text() == "".join(lines)


def test_the_choice_is_the_last_of_the_best_three_neighbours() -> None:
    growth = [0.0, 0.9, -0.9, 0.2, 0.3, 0.2, -0.5]
    trials = [{"step": 10 * i, "validation_log_growth": g} for i, g in enumerate(growth)]
    assert choose_step(trials) == 50


class Time:
    """Processor time that passes as a test wants: at every rollout, and much more while validation looks."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, looked = 0.0, training.validate

        def slow(*asked: Any) -> Any:
            self.now += 100.0
            return looked(*asked)

        patch.setattr(training, "Budget", partial(Budget, clock=lambda: self.now))
        patch.setattr(training, "validate", slow)


def test_training_ends_when_its_processor_time_is_spent_and_a_resumed_one_has_no_more_of_it(
    market: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, rollout_s = 3.0, 0.4
    endless = replace(SETTINGS.training, total_steps=10**9, max_seconds=limit, checkpoints=4)
    settings, folder = replace(SETTINGS, training=endless), RunFolder(tmp_path)
    time = Time(monkeypatch)

    def wait(steps: int, validation_return: float | None) -> None:
        time.now += rollout_s

    def press(steps: int, validation_return: float | None) -> None:
        wait(steps, validation_return)
        # seen once validation has looked, in the middle of the time
        if validation_return is not None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(StopRequestedError):
        train_seed(market, settings, 0, folder, "hash", progress=Progress(on_step=press))
    spent = read_checkpoint(folder.resume(0))["seconds"]
    assert 0.0 < spent < limit
    # as a crash between the artifact and the log leaves it
    step = max(folder.policy_steps(0))
    shutil.copytree(folder.policy(0, step), folder.policy(0, step + 1))
    train_seed(market, settings, 0, folder, "hash", progress=Progress(on_step=wait))
    selection = folder.read_selection(0)
    # what validation took is not counted, and what was begun is finished
    assert limit <= selection["seconds"] < limit + 2.0 * rollout_s
    assert 2 <= len(folder.policy_steps(0)) <= endless.checkpoints
    assert max(folder.policy_steps(0)) == selection["last"] < endless.total_steps


@pytest.mark.parametrize(("starts", "is_said"), [(255, False), (256, True)])
def test_a_training_that_ends_before_it_learns_says_so(
    starts: int, is_said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent = QRDQNConfig(learning_starts=starts, train_freq=32, batch_size=64)
    settings = replace(SETTINGS, agent=agent, env=replace(SETTINGS.env, action="ladder"))
    train_seed(open_market(settings), settings, 0, RunFolder(tmp_path), "hash")
    said = f"nothing will be learnt: agent.learning_starts={starts} steps come before the first update"
    assert (said in caplog.text) == is_said
