"""What all units of a table have in common, so that nothing else is ever compared: settings, code, data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import perpgym
from perpgym.agents.checkpoint import write_atomically
from perpgym.evaluation.trials import plain

_ROOT = Path(perpgym.__file__).parent
# what a unit's numbers are made by; documents, tests and the table's own words are not among it
_ROOMS = ("agents", "configs", "data", "envs", "evaluation", "experiments", "policies")
# nor is what trades for real
_LIVE = ("exchange", "live")
# of a market: which bars, and what they are used for
_MARKET = ("data_hash", "periods")


def code_version(root: Path = _ROOT) -> str:
    """12 hex digits of the sha256 over the Python and YAML files that train and judge, as on disk."""
    digest = hashlib.sha256()
    for name, path in sorted(_sources(root).items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _sources(root: Path) -> dict[str, Path]:
    files = {"table_units.py": Path(__file__).with_name("table_units.py")}
    for path in (path for room in _ROOMS for path in (root / room).rglob("*")):
        name = path.relative_to(root)
        is_live = any(part.startswith(_LIVE) for part in name.parts)
        if path.suffix in (".py", ".yaml") and not is_live:
            files[name.as_posix()] = path
    return files


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of all units, and the code that they are trained and judged by.

    Attributes:
        data: freqtrade data folder; not read by ``simulated``.
        seconds: processor time of training, for each seed.
        checkpoints: how often validation looks.
        overrides: of the config, for all.
        code: see :func:`code_version`.
    """

    data: str
    seconds: float
    checkpoints: int = 6
    overrides: tuple[str, ...] = ()
    code: str = field(default_factory=code_version)

    @classmethod
    def read(cls, out: Path) -> Plan:
        """That of an output folder.

        Raises:
            ValueError: there is none.
        """
        path = out / "plan.json"
        if not path.exists():
            raise ValueError(f"{out} holds no table: leave out --show to begin one there")
        held = json.loads(path.read_text("utf-8"))
        return cls(**{**held, "overrides": tuple(held["overrides"]), "code": held.get("code", "unknown")})

    def claim(self, out: Path) -> None:
        """Put the plan into the output folder.

        Raises:
            ValueError: units of another plan lie there, or of other code.
        """
        path, mine = out / "plan.json", plain(asdict(self))
        if path.exists():
            _refuse(f"{out} holds units of another plan", json.loads(path.read_text("utf-8")), mine)
            return
        out.mkdir(parents=True, exist_ok=True)
        write_atomically({path: json.dumps(mine, indent=1).encode()})


def pin_market(out: Path, name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Keep which bars and periods a market has for the first of its units; all others must have the same.

    Args:
        out: of the table.
        name: of the market.
        facts: of :meth:`perpgym.experiments.market.Market.facts`.

    Returns:
        What must be the same.

    Raises:
        ValueError: it was another market for the units before.
    """
    path, mine = out / name / "market.json", {key: facts[key] for key in _MARKET}
    if path.exists():
        _refuse(f"the units of {name} in {out} saw other data", json.loads(path.read_text("utf-8")), mine)
    else:
        write_atomically({path: json.dumps(mine, indent=1).encode()})
    return mine


def is_of(result: Mapping[str, Any], out: Path, plan: Plan) -> bool:
    """Whether a unit's result was made by the plan's code on the bars that its market is pinned to."""
    path = out / str(result["market"]) / "market.json"
    pinned = json.loads(path.read_text("utf-8")) if path.exists() else {}
    same = all(key in pinned and result.get(key) == pinned[key] for key in _MARKET)
    return same and result.get("code") == plan.code


def _refuse(what: str, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    differing = [
        f"{name} was {theirs.get(name)}, now is {mine.get(name)}"
        for name in dict.fromkeys((*theirs, *mine))
        if theirs.get(name) != mine.get(name)
    ]
    if differing:
        raise ValueError(
            f"{what}, which cannot be compared with these: {'; '.join(differing)}; give --out another "
            "folder, or put back what has changed"
        )
