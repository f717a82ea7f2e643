"""The past: contracts, bars, sources, quality, features, tape. Knows no money."""

from typing import TYPE_CHECKING, Any

from perpgym.data.bars import Bars
from perpgym.data.contract import Bracket, Contract, load_contract, shipped_contracts
from perpgym.data.errors import DataError
from perpgym.data.tape import Tape

if TYPE_CHECKING:
    from perpgym.data.prepared import tape_from_frame

__all__ = [
    "Bars",
    "Bracket",
    "Contract",
    "DataError",
    "Tape",
    "load_contract",
    "shipped_contracts",
    "tape_from_frame",
]


def __getattr__(name: str) -> Any:
    # pandas and the features take a second to import, and most of what imports this package needs neither
    if name == "tape_from_frame":
        from perpgym.data.prepared import tape_from_frame

        return tape_from_frame
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
