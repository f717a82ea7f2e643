"""A trained policy on disk: the weights, and all that ``evaluate.py`` and ``live.py`` need to use them."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import safetensors.torch
import torch
from gymnasium import spaces
from safetensors import SafetensorError

import perpgym
from perpgym.agents.checkpoint import DamagedFileError, write_atomically
from perpgym.data.contract import Contract
from perpgym.data.features.scaler import Scaler
from perpgym.data.tape import CLOCK_PERIOD, Tape
from perpgym.envs.actions import action_space
from perpgym.envs.config import EnvConfig
from perpgym.envs.risk.limits import RiskLimits
from perpgym.envs.spaces import (
    ACCOUNT_COLUMNS,
    ACCOUNT_NAMES,
    PORTFOLIO_COLUMNS,
    PORTFOLIO_NAMES,
)
from perpgym.policies.actor_critic import PerpActorCriticPolicy
from perpgym.policies.bound_tape import BoundTape
from perpgym.policies.config import PolicyConfig
from perpgym.policies.deciding import Policy
from perpgym.policies.hierarchical_quantile import HierarchicalQuantilePolicy
from perpgym.policies.hierarchy import PerpHierarchicalPolicy
from perpgym.policies.quantile import PerpQuantilePolicy
from perpgym.policies.stock import (
    StockA2CPolicy,
    StockMaskablePolicy,
    StockPolicy,
    StockRecurrentPolicy,
    StockSACPolicy,
    StockTQCPolicy,
)

FORMAT = 1
WEIGHTS_FILE, META_FILE = "weights.safetensors", "artifact.json"
_LIBRARIES = ("torch", "numpy", "stable-baselines3", "gymnasium", "numba")
TrainedPolicy = PerpActorCriticPolicy | PerpQuantilePolicy | StockPolicy
# how they are named on disk; an artifact without a name is of the first
_KINDS: dict[str, type[TrainedPolicy]] = {
    "actor_critic": PerpActorCriticPolicy,
    "hierarchical": PerpHierarchicalPolicy,
    "quantile": PerpQuantilePolicy,
    "hierarchical_quantile": HierarchicalQuantilePolicy,
    "a2c": StockA2CPolicy,
    "maskable_ppo": StockMaskablePolicy,
    "recurrent_ppo": StockRecurrentPolicy,
    "sac": StockSACPolicy,
    "tqc": StockTQCPolicy,
}
# what every artifact holds: its type in JSON, and how an error names that
_MAPPING, _LIST, _TEXT = (dict, "a mapping"), (list, "a list of one or more"), (str, "a text")
_FIELDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "versions": _MAPPING,
    "weights_sha256": _TEXT,
    "feature_names": _LIST,
    "risk_names": (list, "a list"),
    "market_scaler": _MAPPING,
    "risk_scaler": _MAPPING,
    "account_columns": _LIST,
    "portfolio_columns": _LIST,
    "policy_config": _MAPPING,
    "env_config": _MAPPING,
    "limits": _MAPPING,
    "contracts": _LIST,
    "bar_ms": (int, "a whole number"),
    "data_hash": _TEXT,
    "seed": ((int, type(None)), "a whole number or null"),
    "commit": _TEXT,
    "parity_error": ((int, float), "a number"),
    "extra": _MAPPING,
}
# a policy that answers stretch and window differently would not do live what it did in training
MAX_PARITY_ERROR = 1e-3
_PARITY_PLACES, _PARITY_BARS = 3, 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Artifact:
    """A policy that was trained, and the world that it was trained for.

    Attributes:
        policy: with its weights and frozen scalers, in evaluation mode.
        feature_names, risk_names: columns of the tape that it reads, in order.
        contracts: their rules.
        bar_ms: length of a bar.
        env_config, limits: of the env that it was trained in.
        data_hash: of the training tape; provenance, not a condition.
        seed, commit: of the run.
        versions: of perpgym, Python and the libraries that trained it.
        parity_error: largest difference between what it computes from a stretch and from each bar's window,
            when it was saved; see :func:`parity_error`.
        extra: what the caller wished to keep.
    """

    policy: TrainedPolicy
    feature_names: tuple[str, ...]
    risk_names: tuple[str, ...]
    contracts: tuple[Contract, ...]
    bar_ms: int
    env_config: EnvConfig
    limits: RiskLimits
    data_hash: str
    seed: int | None
    commit: str
    versions: dict[str, str]
    parity_error: float
    extra: dict[str, Any]

    def check_tape(self, tape: Tape) -> None:
        """Refuse a tape that shows the policy another world than it was trained in.

        Raises:
            ValueError: columns, bar length or contract rules differ; the message names them.
        """
        problems = [
            *_names_differ("features", self.feature_names, tape.feature_names),
            *_names_differ("risk columns", self.risk_names, tape.risk_names),
        ]
        if tape.bar_ms != self.bar_ms:
            problems.append(f"bar_ms: trained on {self.bar_ms}, the tape has {tape.bar_ms}")
        if len(tape.contracts) != len(self.contracts):
            problems.append(
                f"contracts: trained on {len(self.contracts)}, the tape has {len(tape.contracts)}"
            )
        for mine, theirs in zip(self.contracts, tape.contracts, strict=False):
            rules, other = mine.to_json(), theirs.to_json()
            differing = [name for name in rules if rules[name] != other[name]]
            problems += [
                f"contract {name}: trained on {rules[name]}, was {other[name]}" for name in differing
            ]
        if problems:
            raise ValueError(
                "the policy does not fit this tape: "
                + "; ".join(problems)
                + ". Build the tape with the run's feature config and contract, or train a new policy"
            )

    def check_parity(self, tape: Tape | None = None, limit: float = MAX_PARITY_ERROR) -> float:
        """Refuse a policy that a live bar would show other numbers than its training did; for live use.

        Args:
            tape: measured on it again, on this machine, beside the error that was stored; None for the latter
                alone.
            limit: of contexts and actions alike.

        Returns:
            The larger of the two errors.

        Raises:
            ValueError: it exceeds ``limit``, or is no number.
        """
        measured = {"when it was saved": self.parity_error}
        if tape is not None:
            self.check_tape(tape)
            measured["on this machine"] = parity_error(self.policy, tape)
        for when, error in measured.items():
            # written so that nan is refused
            if not 0.0 <= error <= limit:
                raise ValueError(
                    f"a window and a stretch of the same bars give the policy numbers {error:.1e} apart "
                    f"({when}), at most {limit:g} is allowed for live use: its weights have outgrown float32 "
                    "or its encoder is not causal; use an earlier checkpoint, or train with a lower "
                    "learning rate"
                )
        return max(measured.values())


def save_artifact(
    folder: Path,
    policy: TrainedPolicy,
    *,
    tape: Tape,
    env_config: EnvConfig,
    limits: RiskLimits,
    seed: int | None,
    commit: str,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write ``weights.safetensors`` and ``artifact.json``; measures parity first.

    Args:
        folder: created if missing; an artifact that is there is replaced.
        policy: the policy.
        tape: the training tape.
        env_config, limits: of the training env.
        seed, commit: of the run.
        extra: plain JSON, kept as it is.

    Raises:
        OSError: the disk is full; a previous artifact is intact.
    """
    weights = safetensors.torch.save({k: v.cpu().contiguous() for k, v in policy.state_dict().items()})
    body = {
        "format": FORMAT,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "feature_names": list(tape.feature_names),
        "risk_names": list(tape.risk_names),
        "market_scaler": policy.scalers["market_scaler"].to_json(),
        "risk_scaler": policy.scalers["risk_scaler"].to_json(),
        "account_columns": list(ACCOUNT_NAMES),
        "portfolio_columns": list(PORTFOLIO_NAMES),
        "policy_kind": next(name for name, kind in _KINDS.items() if type(policy) is kind),
        "policy_settings": policy.own_settings(),
        "policy_config": policy.config.to_json(),
        "env_config": asdict(env_config),
        "limits": asdict(limits),
        "contracts": [contract.to_json() for contract in tape.contracts],
        "bar_ms": tape.bar_ms,
        "data_hash": tape.data_hash,
        "seed": seed,
        "commit": commit,
        "versions": _versions(),
        "parity_error": parity_error(policy, tape),
        "extra": extra or {},
    }
    document = json.dumps({"sha256": _digest(body), **body}, indent=1)
    # a crash between the two moves is caught by the hash of the weights
    write_atomically({folder / WEIGHTS_FILE: weights, folder / META_FILE: document.encode()})


def load_artifact(folder: Path, device: torch.device | str = "cpu") -> Artifact:
    """Read what :func:`save_artifact` wrote; runs no code from the files.

    Raises:
        FileNotFoundError: a file is missing.
        DamagedFileError: a file was altered or truncated.
        ValueError: it has another format, other account columns, or a kind of policy, a field or a setting
            that this perpgym does not know.
    """
    for name in (META_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}: pass the folder of a run that was trained")
    body = _read_meta(folder / META_FILE)
    weights = (folder / WEIGHTS_FILE).read_bytes()
    if hashlib.sha256(weights).hexdigest() != body["weights_sha256"]:
        raise DamagedFileError(
            f"{folder / WEIGHTS_FILE} does not match its artifact.json (sha256 differs): "
            "copy the folder again or use another checkpoint of the run"
        )
    for name, now in (("account_columns", ACCOUNT_NAMES), ("portfolio_columns", PORTFOLIO_NAMES)):
        if problems := _names_differ(name, tuple(body[name]), now):
            raise ValueError(f"{folder}: {problems[0]}; evaluate with {_writer(body)}")
    try:
        policy = _build_policy(body)
        env_config, limits = EnvConfig(**body["env_config"]), RiskLimits(**body["limits"])
        contracts = tuple(Contract.from_json(raw) for raw in body["contracts"])
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{folder} was written by {_writer(body)}, whose settings this one does not know ({error}): "
            "evaluate with that version, or train again"
        ) from error
    except RuntimeError as error:
        raise _misfit(folder, error) from error
    try:
        policy.load_state_dict(safetensors.torch.load(weights))
    except (SafetensorError, RuntimeError) as error:
        raise _misfit(folder, error) from error
    policy.set_training_mode(False)
    return Artifact(
        policy=policy.to(device),
        feature_names=tuple(body["feature_names"]),
        risk_names=tuple(body["risk_names"]),
        contracts=contracts,
        bar_ms=body["bar_ms"],
        env_config=env_config,
        limits=limits,
        data_hash=body["data_hash"],
        seed=body["seed"],
        commit=body["commit"],
        versions=body["versions"],
        parity_error=body["parity_error"],
        extra=body["extra"],
    )


@torch.no_grad()
def parity_error(policy: Policy, tape: Tape) -> float:
    """Largest difference between what a policy computes from a stretch and from each of its bars' windows.

    Contexts and what a flat account is answered are compared at the beginning, the middle and the end of the
    tape.
    """
    bound = BoundTape.of(tape, policy.device)
    first, last = tape.first_valid_bar + policy.receptive_field - 1, len(tape)
    count = min(_PARITY_BARS, last - first)
    return max(
        _parity_error_from(int(start), count, policy, bound)
        for start in np.linspace(first, last - count, _PARITY_PLACES)
    )


def _parity_error_from(start: int, count: int, policy: Policy, bound: BoundTape) -> float:
    features = policy.features_extractor
    bars = start + torch.arange(count, device=policy.device)
    stretch = features.stretch_context(bars[:1], count, bound)[0]  # n C
    windows = features.stretch_context(bars, 1, bound)[:, 0]  # n C
    flat = torch.zeros(count, len(features.inverse_divisors), device=policy.device)  # n S
    answers = [policy.answers(context, flat) for context in (stretch, windows)]  # n a
    # torch's max keeps nan, Python's may lose it
    return float(torch.cat(((stretch - windows).flatten(), (answers[0] - answers[1]).flatten())).abs().max())


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text("utf-8"))
        digest = document.pop("sha256")
    # of a list, of a number, of brackets without end
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFileError(f"{path} is truncated or no artifact: copy the folder again") from error
    if document.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {document.get('format')}, this perpgym reads {FORMAT}: evaluate with "
            f"{_writer(document)}, or train again"
        )
    if _digest(document) != digest:
        raise DamagedFileError(f"{path} was altered (its sha256 differs): copy the folder again")
    if problem := _problem(document):
        raise ValueError(f"{path}: {problem}; evaluate with {_writer(document)}, or train again")
    return document


def _problem(body: dict[str, Any]) -> str | None:
    """The first field that is not what :func:`save_artifact` writes."""
    for name, (kind, words) in _FIELDS.items():
        if name not in body:
            return f"{name} must be {words}, was missing"
        value = body[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"{name} must be {words}, was {value!r}"
        if words == _LIST[1] and not value:
            return f"{name} must be {words}, was empty"
    if body["parity_error"] < 0.0:
        return f"parity_error must not be negative, was {body['parity_error']}"
    if _kind(body) not in _KINDS:
        return f"this perpgym does not know the policy_kind {_kind(body)}, only {', '.join(_KINDS)}"
    return None


def _kind(body: dict[str, Any]) -> str:
    return str(body.get("policy_kind", "actor_critic"))


def _writer(body: dict[str, Any]) -> str:
    """The version of perpgym that wrote an artifact, as far as that can be read."""
    versions = body.get("versions")
    known = versions.get("perpgym") if isinstance(versions, dict) else None
    return f"perpgym {known or 'of that time'}"


def _misfit(folder: Path, error: Exception) -> DamagedFileError:
    return DamagedFileError(f"{folder / WEIGHTS_FILE} does not fit its policy_config: {error}")


def _build_policy(body: dict[str, Any]) -> TrainedPolicy:
    config, env_config = PolicyConfig(**body["policy_config"]), EnvConfig(**body["env_config"])
    return _KINDS[_kind(body)](
        _both_faces(body, config.receptive_field),
        action_space(env_config.action, len(body["contracts"]), env_config.choices),
        lambda _: 0.0,
        config=config,
        market_scaler=Scaler.from_json(body["market_scaler"]),
        risk_scaler=Scaler.from_json(body["risk_scaler"]),
        **body.get("policy_settings", {}),
    )


def _both_faces(body: dict[str, Any], window: int) -> spaces.Dict:
    """The observation space of a policy that is asked for indices or for windows."""
    assets = len(body["contracts"])

    def unbounded(*shape: int) -> gym.Space[Any]:
        return spaces.Box(-np.inf, np.inf, shape, np.float32)

    several: dict[str, gym.Space[Any]] = {"valid": unbounded(window, assets)} if assets > 1 else {}
    return spaces.Dict(
        {
            **several,
            "account": unbounded(assets, len(ACCOUNT_COLUMNS)),
            "portfolio": unbounded(len(PORTFOLIO_COLUMNS)),
            "market": unbounded(window, assets, len(body["feature_names"])),
            "risk": unbounded(window, assets, len(body["risk_names"])),
            "clock": spaces.Box(0, CLOCK_PERIOD - 1, (1,), np.int64),
            "bar": spaces.Box(0, np.iinfo(np.int64).max, (1,), np.int64),
        }
    )


def _names_differ(what: str, trained: tuple[str, ...], now: tuple[str, ...]) -> list[str]:
    if trained == now:
        return []
    missing, new = sorted(set(trained) - set(now)), sorted(set(now) - set(trained))
    detail = f"missing {missing}, unknown {new}" if missing or new else f"order: trained on {list(trained)}"
    return [f"{what} differ: {detail}"]


def _versions() -> dict[str, str]:
    own = {"perpgym": perpgym.__version__, "python": platform.python_version()}
    return own | {name: version(name) for name in _LIBRARIES}


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
