"""Every control is trained, stopped, resumed and judged by the code that does so for our own algorithms."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from perpgym.experiments.judging import judge_run
from perpgym.experiments.market import Market, open_market
from perpgym.experiments.run_folder import RunFolder, config_hash
from perpgym.experiments.settings import Judging, Settings
from perpgym.experiments.training import Progress, StopRequestedError, train_seed

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = (
    "data=simulated", "data.start=2022-01-01", "data.end=2022-12-31", "split.train_end=2022-10-31",
    "split.valid_end=2022-11-30", "split.test_end=2022-12-31", "training.n_paths=4",
    "training.accounts_per_path=2", "training.total_steps=512", "training.checkpoints=2",
    "env.episode_bars=48", "policy.d_model=8", "policy.band=8", "policy.n_layers=1", "policy.risk_hidden=0",
)  # fmt: skip
CLIPPED = ("agent.n_steps=16", "agent.batch_size=64")
REPLAYING = ("agent.learning_starts=64", "agent.batch_size=32", "agent.buffer_size=1000")
CONTROLS = {
    "a2c_btc": ("agent.n_steps=8",),
    "maskable_ppo_btc": CLIPPED,
    "recurrent_ppo_btc": (*CLIPPED, "agent.lstm_hidden_size=8"),
    "sac_btc": REPLAYING,
    "tqc_btc": REPLAYING,
}


def settings_of(name: str) -> tuple[Settings, dict[str, object]]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        words = [f"+experiment={name}", *SMALL, *CONTROLS[name]]
        config = OmegaConf.to_container(compose("config", overrides=words), resolve=True)
    assert isinstance(config, dict)
    plain = {str(k): v for k, v in config.items() if k not in ("run_dir", "overwrite", "resume")}
    return Settings.from_mapping(plain), plain


@pytest.fixture(scope="module")
def opened() -> Market:
    return open_market(settings_of("a2c_btc")[0])


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_that_was_stopped_ends_where_one_that_was_not_does(
    opened: Market, name: str, tmp_path: Path
) -> None:
    settings, _ = settings_of(name)
    # all that the five markets differ in
    market = replace(opened, env_config=replace(opened.env_config, action=settings.env.action))
    folder, whole = RunFolder(tmp_path / "stopped"), RunFolder(tmp_path / "whole")
    with pytest.raises(StopRequestedError):
        train_seed(market, settings, 0, folder, "hash", progress=Progress(on_step=press_at(256)))
    assert not folder.selection(0).exists()
    train_seed(market, settings, 0, folder, "hash")
    train_seed(market, settings, 0, whole, "hash")
    assert folder.read_selection(0)["last"] == 512
    weights = [run.policy(0, 512) / "weights.safetensors" for run in (folder, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert folder.trials.read_text() == whole.trials.read_text()
    tags = EventAccumulator(str(whole.tensorboard / "seed_0")).Reload().Tags()["scalars"]
    assert "validation/return" in tags
    assert any(tag.startswith("train/") for tag in tags)


def test_a_control_with_a_memory_is_judged_beside_baselines_and_oracle(
    opened: Market, tmp_path: Path
) -> None:
    settings, plain = settings_of("recurrent_ppo_btc")
    folder = RunFolder(tmp_path)
    folder.create(plain, {"data_hash": opened.tape.data_hash, "notes": []}, overwrite=False)
    train_seed(opened, settings, 0, folder, config_hash(plain))
    judging = Judging(random_draws=3, bootstrap_draws=20)
    report, page = judge_run(folder, settings, opened, judging=judging, config=plain)
    assert page.exists()
    assert {"seed 0, best checkpoint", "Buy and hold", "oracle"} <= set(report.scorecards)


def press_at(steps: int) -> Callable[[int, float | None], None]:
    """Ctrl-C when so many steps are done."""

    def press(done: int, validation_return: float | None) -> None:
        if done == steps:
            os.kill(os.getpid(), signal.SIGINT)

    return press
