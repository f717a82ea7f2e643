"""The modules of ``benchmarks`` import each other by bare name, as its scripts do."""

from __future__ import annotations

import sys
from pathlib import Path

_BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
for _folder in (_BENCHMARKS, _BENCHMARKS / "optima"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))
