"""A run that was interrupted and resumed is the run that was not, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from perpgym.agents.checkpoint import DamagedFileError, read_checkpoint, write_checkpoint
from perpgym.agents.ppo import PerpPPO, PPOConfig
from perpgym.agents.training_state import training_state
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv
from perpgym.policies import PerpActorCriticPolicy, PolicyConfig

SMALL = PolicyConfig(d_model=8, n_layers=1, n_heads=2, band=6, risk_hidden=4, risk_chunk=4, risk_warmup=2)
ROLLOUT = 6 * 16


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=400)


def make_model(tape: Tape, n_paths: int = 3, **config: Any) -> PerpPPO:
    env_config = EnvConfig(
        episode_bars=25, window_bars=SMALL.receptive_field, restart="random", max_drawdown=0.02
    )
    return PerpPPO(
        PerpActorCriticPolicy,
        PerpVecEnv(tape, n_paths=n_paths, accounts_per_path=2, config=env_config),
        config=PPOConfig(**{"n_steps": 16, "batch_size": 32, "learning_rate_schedule": "linear", **config}),
        policy_kwargs={
            "config": SMALL,
            "market_scaler": fit_scaler(tape.features, 0, 400),
            "risk_scaler": fit_scaler(tape.risk, 0, 400),
        },
        seed=11,
        device="cpu",
    )


def assert_same(mine: Any, theirs: Any, where: str = "state") -> None:
    """Equal to the last bit, whatever the nesting."""
    if isinstance(mine, dict):
        assert mine.keys() == theirs.keys(), where
        for key in mine:
            assert_same(mine[key], theirs[key], f"{where}.{key}")
    elif isinstance(mine, list | tuple):
        assert len(mine) == len(theirs), where
        for index, pair in enumerate(zip(mine, theirs, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(mine, torch.Tensor):
        assert torch.equal(mine, theirs), where
    elif isinstance(mine, np.ndarray):
        np.testing.assert_array_equal(mine, theirs, err_msg=where)
    else:
        assert mine == theirs, where


def test_two_rollouts_and_two_more_after_a_restart_are_four_rollouts(tape: Tape, tmp_path: Path) -> None:
    whole = make_model(tape)
    whole.learn(4 * ROLLOUT)

    class StopAfterTwo(BaseCallback):
        def _on_rollout_start(self) -> None:
            if self.num_timesteps == 2 * ROLLOUT:
                self.model.save_checkpoint(tmp_path / "last.pt")  # type: ignore[attr-defined]

        def _on_step(self) -> bool:
            return self.num_timesteps <= 2 * ROLLOUT

    make_model(tape).learn(4 * ROLLOUT, callback=StopAfterTwo())
    torch.manual_seed(999)
    resumed = make_model(tape)
    resumed.load_checkpoint(tmp_path / "last.pt")
    assert resumed.num_timesteps == 2 * ROLLOUT
    resumed.learn(4 * ROLLOUT - resumed.num_timesteps, reset_num_timesteps=False)
    assert_same(training_state(resumed), training_state(whole))


def test_checkpoint_within_a_rollout_is_refused(tape: Tape, tmp_path: Path) -> None:
    model = make_model(tape)

    class SaveWithin(BaseCallback):
        def _on_step(self) -> bool:
            model.save_checkpoint(tmp_path / "within.pt")
            return True

    with pytest.raises(RuntimeError, match="_on_rollout_start"):
        model.learn(ROLLOUT, callback=SaveWithin())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"gamma": 0.5}, "config"), ({"n_paths": 5}, "paths")],
)
def test_checkpoint_of_another_configuration_is_refused_by_name(
    tape: Tape, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    model = make_model(tape)
    model.learn(ROLLOUT)
    model.save_checkpoint(tmp_path / "last.pt")
    with pytest.raises(ValueError, match=f"the checkpoint's {named} is"):
        make_model(tape, **changes).load_checkpoint(tmp_path / "last.pt")


def test_checkpoint_of_other_data_is_refused(
    tape: Tape, make_tape: Callable[..., Tape], tmp_path: Path
) -> None:
    model = make_model(tape)
    model.learn(ROLLOUT)
    model.save_checkpoint(tmp_path / "last.pt")
    with pytest.raises(ValueError, match="the checkpoint's data_hash is"):
        make_model(make_tape(bars=400, seed=1)).load_checkpoint(tmp_path / "last.pt")


def test_plain_data_survives_the_file(tmp_path: Path) -> None:
    state = {
        "array": np.arange(6, dtype=np.int64).reshape(2, 3),
        "nested": [{"big": 2**100, "pair": (1.5, None), "empty": np.zeros(0, bool)}, "text", True],
        "tensor": torch.tensor([1.0, float("nan")]),
        "scalar": np.float64(0.1),
    }
    write_checkpoint(tmp_path / "state.pt", state)
    back = read_checkpoint(tmp_path / "state.pt")
    assert torch.equal(back.pop("tensor").isnan(), state.pop("tensor").isnan())  # type: ignore[attr-defined]
    assert_same(back, state)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other"])
def test_damaged_checkpoint_says_what_to_do(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state.pt"
    write_checkpoint(path, {"weights": torch.arange(1_000.0)})
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[-500] ^= 1
    else:
        content = bytearray(b"something else entirely")
    path.write_bytes(bytes(content))
    with pytest.raises(DamagedFileError, match="resume"):
        read_checkpoint(path)


def test_checkpoint_that_carries_code_is_not_run(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "state.pt", {"path": tmp_path})
    with pytest.raises(DamagedFileError, match="more than plain data"):
        read_checkpoint(tmp_path / "state.pt")


FILL_THE_DISK = """
import resource, sys
from pathlib import Path
import torch
from perpgym.agents.checkpoint import write_checkpoint
path = Path(sys.argv[1])
write_checkpoint(path, {"weights": torch.ones(10)})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_checkpoint(path, {"weights": torch.ones(1_000_000)})
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_full_disk_leaves_the_previous_checkpoint_intact(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    done = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, str(path)], capture_output=True, text=True, check=True
    )
    assert "cannot write 4.0 MB" in done.stdout
    assert "what was there before is intact" in done.stdout
    assert torch.equal(read_checkpoint(path)["weights"], torch.ones(10))
    assert list(tmp_path.iterdir()) == [path]
