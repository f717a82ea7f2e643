"""The folder of one run: what it holds, where, and whether this version can read it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import perpgym
from perpgym.agents.checkpoint import write_atomically

FORMAT = 1
_LIBRARIES = ("torch", "numpy", "numba", "gymnasium", "stable_baselines3")
# all that a run may write into its folder
_OWN = re.compile(r"config\.yaml|run\.json|trials\.jsonl|tensorboard|report(_\w+)?|seed_\d+")


class RunError(ValueError):
    """A run folder cannot be used as asked; the message says what to do."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run.

    ``config.yaml`` is the resolved config, ``run.json`` its provenance, ``trials.jsonl`` every evaluated
    checkpoint. Each seed has ``seed_N/resume.ckpt`` (all that training needs to go on), ``seed_N/policies``
    (one artifact for each checkpoint that validation looked at) and ``seed_N/selection.json`` (the chosen
    and the last one, once the seed is done).
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def provenance(self) -> Path:
        """Format, versions, commit, data hash, notes."""
        return self.path / "run.json"

    @property
    def trials(self) -> Path:
        """The trial log."""
        return self.path / "trials.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's folder."""
        return self.path / "tensorboard"

    @property
    def report(self) -> Path:
        """The report's folder."""
        return self.path / "report"

    def seed(self, seed: int) -> Path:
        """The folder of one seed."""
        return self.path / f"seed_{seed}"

    def resume(self, seed: int) -> Path:
        """The checkpoint from which training goes on."""
        return self.seed(seed) / "resume.ckpt"

    def policy(self, seed: int, step: int) -> Path:
        """The artifact of one checkpoint."""
        return self.seed(seed) / "policies" / f"step_{step:010d}"

    def policy_steps(self, seed: int) -> set[int]:
        """Steps of the checkpoints that have an artifact."""
        return {int(path.name.removeprefix("step_")) for path in self.seed(seed).glob("policies/step_*")}

    def selection(self, seed: int) -> Path:
        """Which checkpoint was chosen; there once the seed is done."""
        return self.seed(seed) / "selection.json"

    def create(self, config: Mapping[str, Any], facts: Mapping[str, Any], *, overwrite: bool) -> None:
        """Start a run here: keep its config and where it comes from.

        Args:
            config: resolved, plain types.
            facts: joins the provenance.
            overwrite: whether a run that is here may be replaced; files that are not a run's stay.

        Raises:
            RunError: there is a run already, or somebody else's files.
        """
        self.check_room(overwrite=overwrite)
        self._remove_run()
        record = {
            "format": FORMAT,
            "perpgym": perpgym.__version__,
            "commit": commit(),
            "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
            "config_hash": config_hash(config),
            **facts,
        }
        write_atomically(
            {
                self.config: yaml.safe_dump(dict(config), sort_keys=False).encode(),
                self.provenance: (json.dumps(record, indent=1) + "\n").encode(),
            }
        )

    def check_room(self, *, overwrite: bool) -> None:
        """Whether a run may start here; asked before anything is loaded.

        Raises:
            RunError: as in :meth:`create`.
        """
        if not (self.path.exists() and any(self.path.iterdir())):
            return
        if not self._is_run():
            raise RunError(
                f"{self.path} holds files that are no run of perpgym, and they are left alone: give run_dir "
                "a new or an empty folder"
            )
        if not overwrite:
            raise RunError(
                f"{self.path} already holds a run: resume={self.path} goes on with it, overwrite=true "
                "replaces it, run_dir=ANOTHER keeps both"
            )

    def _remove_run(self) -> None:
        """Delete what is a run's, and nothing else."""
        if not self.path.exists():
            return
        # the record goes last: a folder that was half emptied is still known for a run
        for path in sorted(self.path.iterdir(), key=lambda path: path == self.provenance):
            if _OWN.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _is_run(self) -> bool:
        try:
            record = json.loads(self.provenance.read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(record, dict) and {"format", "perpgym"} <= set(record)

    def read_config(self) -> dict[str, Any]:
        """The resolved config.

        Raises:
            RunError: there is none, or it cannot be read.
        """
        if not self.config.exists():
            raise RunError(
                f"{self.path} is no run folder: it has no config.yaml; give the folder that train.py printed"
            )
        try:
            config = yaml.safe_load(self.config.read_text("utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RunError(f"{self.config} is damaged ({error}); restore it or train anew") from error
        if not isinstance(config, dict):
            raise RunError(f"{self.config} is damaged: it holds no settings; restore it or train anew")
        return config

    def read_provenance(self) -> dict[str, Any]:
        """The provenance.

        Raises:
            RunError: it is missing, damaged or of another version.
        """
        return self._read_json(self.provenance, versioned=True)

    def is_config_altered(self) -> bool:
        """Whether ``config.yaml`` is no longer the one that the run was started with."""
        return self.read_provenance().get("config_hash") not in (None, config_hash(self.read_config()))

    def read_selection(self, seed: int) -> dict[str, Any]:
        """Steps of the chosen and the last checkpoint of a seed.

        Raises:
            RunError: the seed is not done, or the file is damaged.
        """
        if not self.selection(seed).exists():
            raise RunError(f"seed {seed} of {self.path} is not finished: python train.py resume={self.path}")
        record = self._read_json(self.selection(seed), versioned=False)
        if not all(isinstance(record.get(name), int) for name in ("best", "last")):
            raise RunError(
                f"{self.selection(seed)} is damaged: it names no checkpoints; delete it, and "
                f"resume={self.path} chooses again"
            )
        return record

    def _read_json(self, path: Path, *, versioned: bool) -> dict[str, Any]:
        try:
            record = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise RunError(
                f"{self.path} has no {path.name}: it is no run folder of perpgym, or was cut short"
            ) from None
        except ValueError as error:
            raise RunError(f"{path} is damaged ({error}); restore it or train anew") from error
        if not isinstance(record, dict):
            raise RunError(f"{path} is damaged: it holds no record; restore it or train anew")
        if versioned and record.get("format") != FORMAT:
            raise RunError(
                f"{path} has format {record.get('format')}, this perpgym reads format {FORMAT}: use the "
                f"version that wrote it (perpgym {record.get('perpgym', 'unknown')}) or train anew"
            )
        return record


def config_hash(config: Mapping[str, Any]) -> str:
    """Identifies a config among the trials: 12 hex digits of its sha256, seeds left out."""
    kept = {key: value for key, value in config.items() if key != "seeds"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def commit() -> str | None:
    """The checkout's commit, with ``+`` if files differ from it; None outside a git checkout."""
    root = Path(perpgym.__file__).parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()
