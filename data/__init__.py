"""The past: contracts, bars, sources, quality, features, tape. Knows no money."""

from perpgym.data.bars import Bars
from perpgym.data.contract import Bracket, Contract, load_contract, shipped_contracts
from perpgym.data.errors import DataError
from perpgym.data.tape import Tape

__all__ = ["Bars", "Bracket", "Contract", "DataError", "Tape", "load_contract", "shipped_contracts"]
