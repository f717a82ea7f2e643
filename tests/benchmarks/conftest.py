"""The modules of ``benchmarks/optima`` import each other by bare name, as its script does."""

from __future__ import annotations

import sys
from pathlib import Path

_FOLDER = str(Path(__file__).resolve().parents[2] / "benchmarks" / "optima")
if _FOLDER not in sys.path:
    sys.path.insert(0, _FOLDER)
