"""The page on migration tells the truth, and so do README and small pages: our blocks run from top to end."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from perpgym.envs import PerpEnv, PerpVecEnv

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "migration.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n# (.+?)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
NEIGHBOURS = ("gym-trading-env", "gym-anytrading", "torchtrade")


def write_freqtrade_folder(folder: Path) -> None:
    """Sixty days of hourly futures, mark and settlements, as freqtrade's files have them."""
    folder.mkdir(parents=True)
    close = 30_000.0 + 100.0 * np.sin(np.arange(1_440) / 24.0)
    opens = np.concatenate([close[:1], close[:-1]])
    last = pd.DataFrame(
        {
            "date": pd.date_range("2024-01-01", periods=1_440, freq="1h", tz="UTC"),
            "open": opens,
            "high": np.maximum(opens, close) + 1.0,
            "low": np.minimum(opens, close) - 1.0,
            "close": close,
            "volume": 1_000.0,
        }
    )
    rates = last.iloc[::8].assign(open=1e-4, high=0.0, low=0.0, close=0.0, volume=0.0)
    frames = {"1h-futures": last, "1h-mark": last.assign(volume=0.0), "8h-funding_rate": rates}
    for kind, frame in frames.items():
        frame.reset_index(drop=True).to_feather(folder / f"BTC_USDT_USDT-{kind}.feather")


def test_every_block_names_whose_it_is() -> None:
    owners = [owner for owner, _code in BLOCKS]
    assert len(owners) == PAGE.count("```python")
    assert set(owners) == {"perpgym", "RLlib with perpgym", *NEIGHBOURS}
    # beside each neighbour's code stands ours
    for neighbour in NEIGHBOURS:
        assert owners[owners.index(neighbour) + 1] == "perpgym"


def test_our_blocks_run_from_the_top_of_the_page_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_freqtrade_folder(tmp_path / "user_data" / "data" / "binance" / "futures")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    envs, batches = 0, 0
    for number, (owner, code) in enumerate(BLOCKS):
        if owner != "perpgym":
            continue
        names.pop("env", None)
        exec(compile(code, f"docs/migration.md, block {number}", "exec"), names)
        if "env" in names:
            env = names["env"]
            assert isinstance(env, PerpEnv)
            env.reset(seed=0)
            assert env.step(env.action_space.sample())[4]["equity"] > 0.0
            envs += 1
        batches += isinstance(names.get("batch"), PerpVecEnv)
    assert envs == 6
    assert batches == 1
    assert names["model"].num_timesteps == 256
    for vector in (names["envs"], names["batch"]):
        vector.reset(seed=0)
        vector.step(vector.action_space.sample())


# where the programs of the other pages run; a page that is not named here has none
ELSEWHERE = {
    "docs/algorithms/encoders.md": "tests/scripts/test_own_encoder.py",
    "docs/migration.md": "tests/test_migration_doc.py",
    "docs/mechanics.md": "tests/test_mechanics_doc.py",
    "docs/exchange.md": "tests/envs/exchange/test_exchange_doc.py",
    "docs/desk.md": "tests/envs/live/test_desk_doc.py",
    "docs/live_monitor.md": "tests/envs/live/test_desk_doc.py",
}
HERE = (
    "README.md",
    "docs/architecture.md",
    "docs/algorithms/ensembles.md",
    "docs/algorithms/hierarchical_ppo.md",
    "docs/algorithms/qrdqn.md",
)


def test_every_page_with_a_program_has_a_test_that_runs_it() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    found = {str(page.relative_to(ROOT)) for page in pages if "```python" in page.read_text("utf-8")}
    assert found == {*ELSEWHERE, *HERE}
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text("utf-8")


@pytest.mark.parametrize("page", HERE)
def test_the_programs_of_a_page_run_one_after_the_other(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the file that the README's reader is asked to have
    write_freqtrade_folder(tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")
    text = (ROOT / page).read_text("utf-8")
    programs = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert programs
    names: dict[str, Any] = {}
    for program in programs:
        exec(compile(program, page, "exec"), names)


def test_the_sides_of_a_table_ask_for_the_same_thing() -> None:
    codes = [code for _owner, code in BLOCKS]
    owners = [owner for owner, _code in BLOCKS]
    for neighbour, shared in (
        ("gym-trading-env", ("24", "0.0004", "1_000", "500")),
        ("gym-anytrading", ("24", "100", "1_000")),
        ("torchtrade", ("24", "0.0004", "1_000", "500", "leverage=5")),
    ):
        at = owners.index(neighbour)
        for number in shared:
            assert number in codes[at], (neighbour, number)
            assert number in codes[at + 1], (neighbour, number)


def test_rllib_trains_on_the_creator_of_the_page(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip('ray is not installed; pip install "ray[rllib]" in an environment of its own runs this')
    (code,) = (code for owner, code in BLOCKS if owner == "RLlib with perpgym")
    script = tmp_path / "train.py"
    small = "env_runners(num_env_runners=0, rollout_fragment_length=32)"
    short = "training(train_batch_size=64, minibatch_size=32, num_epochs=1)"
    script.write_text(
        f"{code}\nalgorithm = config.{small}.{short}.build_algo()\n"
        "result = algorithm.train()\nprint('steps', result['env_runners']['num_env_steps_sampled'])\n"
        "algorithm.stop()\n",
        "utf-8",
    )
    # a process of its own: ray starts servers, and its warnings are not ours
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    said = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    assert said.returncode == 0, said.stderr[-2_000:]
    assert "steps 64" in said.stdout
