"""Every setting of a run as frozen dataclasses, built from the plain mapping that a config file holds."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import torch

from perpgym.agents.path_algorithm import AgentConfig
from perpgym.agents.ppo import PPOConfig
from perpgym.data.config import DataConfig
from perpgym.data.splits import Splits
from perpgym.envs.config import EnvConfig
from perpgym.envs.rewards import LogReturn, Reward
from perpgym.envs.risk.limits import RiskLimits
from perpgym.policies.config import PolicyConfig

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Columns of the tape.

    Attributes:
        market, risk: names in the feature registry; None takes its defaults.
        clip: scaled features are clipped to ± this many deviations.
    """

    market: tuple[str, ...] | None = None
    risk: tuple[str, ...] | None = None
    clip: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.clip < math.inf:
            raise ValueError(f"clip must be positive and finite (deviations), was {self.clip}")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how wide.

    Attributes:
        total_steps: account steps; a started rollout is finished.
        max_seconds: processor seconds of training a seed, validation not counted, at which it ends if its
            steps have not ended it before; None for no limit. No two such runs are equal bit for bit.
        n_paths, accounts_per_path: of the training env.
        checkpoints: how often validation looks, a checkpoint each, evenly spread.
        device: torch's name; ``auto`` takes the accelerator if there is one.
        threads: torch's; one measured best for networks of this size.
    """

    total_steps: int = 1_000_000
    max_seconds: float | None = None
    n_paths: int = 16
    accounts_per_path: int = 8
    checkpoints: int = 20
    device: str = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("total_steps", "n_paths", "accounts_per_path", "checkpoints", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, was {getattr(self, name)}")
        if self.max_seconds is not None and not 0 < self.max_seconds < math.inf:
            raise ValueError(
                f"max_seconds must be positive and finite (processor seconds a seed), was "
                f"{self.max_seconds}; null for no limit"
            )
        if self.device != "auto":
            try:
                torch.device(self.device)
            except RuntimeError:
                raise ValueError(
                    f"device must be auto or one of torch's, such as cpu or cuda:0, was {self.device!r}"
                ) from None


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How a trained policy is judged.

    Attributes:
        random_draws: accounts that trade the agent's exposures at random times.
        bootstrap_draws: of every interval.
        seed: of both.
    """

    random_draws: int = 200
    bootstrap_draws: int = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("random_draws", 0), ("bootstrap_draws", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, was {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a run depends on; the resolved config, typed.

    Attributes:
        name: of the experiment.
        seeds: one agent is trained for each.
    """

    name: str = "ppo_btc"
    seeds: tuple[int, ...] = (0,)
    data: DataConfig
    split: Splits = field(default_factory=Splits)
    features: FeatureSet = field(default_factory=FeatureSet)
    env: EnvConfig = field(default_factory=EnvConfig)
    risk: RiskLimits = field(default_factory=RiskLimits)
    reward: Reward = field(default_factory=LogReturn)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    agent: AgentConfig = field(default_factory=PPOConfig)
    training: Training = field(default_factory=Training)
    evaluation: Judging = field(default_factory=Judging)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name must not be empty: it titles the report")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(
                f"seeds must be distinct and at least one, were {self.seeds}; write seeds=[0,1,2]"
            )
        # numpy and torch take no others
        if not all(0 <= seed < 2**32 for seed in self.seeds):
            raise ValueError(f"seeds must lie between 0 and {2**32 - 1}, were {self.seeds}")

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any]) -> Settings:
        """Build from plain types, as a YAML file gives them.

        Raises:
            ValueError: a key is unknown (the nearest known one is named) or a value impossible.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        check_keys(raw, fields, "the config")
        values: dict[str, Any] = {}
        for name, value in raw.items():
            default = _SECTIONS.get(name)
            values[name] = _plain(value) if default is None else build(value, default, name)
        if "data" not in values:
            raise ValueError("the config has no data section: say where bars come from, e.g. data=simulated")
        check_types(cls, values, "the config")
        return cls(**values)


_SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "split": Splits,
    "features": FeatureSet,
    "env": EnvConfig,
    "risk": RiskLimits,
    "reward": LogReturn,
    "policy": PolicyConfig,
    "agent": PPOConfig,
    "training": Training,
    "evaluation": Judging,
}


def build(section: Mapping[str, Any] | None, default: type[T], where: str) -> T:
    """One component from its section; ``_target_`` names a class of perpgym other than the default.

    Raises:
        ValueError: an unknown key, an impossible value, or a class from elsewhere: a config is data from
            somebody, and must not choose what code runs.
    """
    values = {key: _plain(value) for key, value in (section or {}).items()}
    kind = _locate(str(values.pop("_target_")), where) if "_target_" in values else default
    # the first dataclass of its line: any reward may stand in for any other
    family = default.__mro__[-2]
    if not issubclass(kind, family):
        raise ValueError(f"{where}: _target_ {kind.__name__} is no {family.__name__}")
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    check_keys(values, known, f"{where} ({kind.__name__})")
    check_types(kind, values, where)
    try:
        return cast(T, kind(**values))
    except TypeError as error:
        raise ValueError(f"{where}: a setting is missing ({error})") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def check_keys(given: Mapping[str, Any], known: Any, where: str) -> None:
    """Refuse keys that nothing reads, and guess what was meant."""
    for key in given:
        if key not in known:
            hint = did_you_mean(key, known)
            raise ValueError(f"{where} has no setting {key!r}{hint}; known are {', '.join(sorted(known))}")


def did_you_mean(typed: str, known: Iterable[str]) -> str:
    """A hint at the nearest known names, in brackets; empty if none is near.

    Args:
        typed: what nobody knows, a name or a dotted path.
        known: names or dotted paths; one that ends in nearly the same name counts as near.
    """
    paths = list(known)
    ends = {path: path.rpartition(".")[2] for path in paths}
    near = difflib.get_close_matches(typed.rpartition(".")[2], set(ends.values()), cutoff=0.8)
    whole = difflib.get_close_matches(typed, paths, n=1, cutoff=0.75)
    found = list(dict.fromkeys((*whole, *(path for path in paths if ends[path] in near))))
    return f" (did you mean {' or '.join(found[:3])}?)" if found else ""


def check_types(kind: type, values: Mapping[str, Any], where: str) -> None:
    """Refuse a text where a number belongs, a fraction where a count does, and the like.

    Raises:
        ValueError: names the setting and what it may be.
    """
    hints = get_type_hints(kind)
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise ValueError(
                f"{where}: {name} has the wrong type: it takes {_in_words(hints[name])}, was {value!r}"
            )


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, str)  # the class itself names what is allowed
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        # a part of a component may come as plain types and checks its own settings
        return isinstance(value, (dict, hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(one, inner[0]) for one in value)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, (int, float) if hint is float else origin or hint)


def _in_words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_in_words(one) for one in inner)
    if origin is tuple:
        return f"a list, each {_in_words(inner[0])}"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return words.get(hint, "text" if origin is Literal else "names with values")


def _locate(target: str, where: str) -> type:
    module, _, name = target.rpartition(".")
    if not module.startswith("perpgym."):
        raise ValueError(f"{where}: _target_ must name a class of perpgym, was {target}")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        raise ValueError(f"{where}: _target_ {target} does not exist") from None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"{where}: {target} is not a settings class of perpgym")
    return found


def _plain(value: Any) -> Any:
    return tuple(_plain(v) for v in value) if isinstance(value, list) else value
