"""Where bars come from and what may be assumed about them: the settings of the data side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from perpgym.data.align import MARK_POLICIES, MarkPolicy
from perpgym.data.clock import parse_end_ms, parse_start_ms, timeframe_ms
from perpgym.data.quality import check_repairs

Source = Literal["auto", "freqtrade", "binance_vision", "table", "store", "download", "simulated"]
SOURCES: tuple[Source, ...] = (
    "auto",
    "freqtrade",
    "binance_vision",
    "table",
    "store",
    "download",
    "simulated",
)
_NEED_PATH = ("freqtrade", "binance_vision", "table")
# of ``simulated``, what concerns several contracts and not each of them
COMPANY_SETTINGS = ("correlation", "contracts", "listed")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the bars of one or several contracts come from and what may be assumed about them.

    Attributes:
        source: ``freqtrade``, ``binance_vision`` or ``table`` read ``path`` (hyphens count as underscores);
            ``store`` reads what was imported or downloaded; ``download`` fills the store first;
            ``simulated`` needs nothing; ``auto`` takes the store if it has the dates, else downloads exactly
            them, else, loudly, the simulated market.
        path: of the folder, archive or table; with several contracts, of each one's table: ``{base}`` stands
            for its base currency, here and in ``funding_path`` and ``mark_path``.
        symbol: ccxt's unified symbol.
        contracts: symbols of several contracts on one tape, in its order; empty for ``symbol`` alone.
        timeframe: of the bars.
        exchange: ccxt's exchange id.
        start, end: UTC, ISO 8601; a bare ``end`` date includes its day; None means all there is (``auto`` and
            ``download`` need both).
        repair: named rules of ``quality.REPAIRS`` by which faults may be repaired.
        mark: ``require`` the exchange's mark series, ``last`` to copy traded prices, ``auto`` for the mark
            if there is one and else ``last``.
        store: the store's root; None for ``$PERPGYM_DATA`` or the user's cache.
        funding_path, mark_path: further tables of ``source=table``.
        columns: of ``source=table``: by our name, the table's.
        simulated: settings of the simulated market (``SimulatedMarketConfig``) beside symbol and bar; of
            several, also those of ``portfolio.simulate_contracts``.
        download_timeout_s: how long to wait for an exchange's first answer.
    """

    source: Source = "auto"
    path: str | None = None
    symbol: str = "BTC/USDT:USDT"
    contracts: tuple[str, ...] = ()
    timeframe: str = "1h"
    exchange: str = "binance"
    start: str | None = None
    end: str | None = None
    repair: tuple[str, ...] = ()
    mark: MarkPolicy = "auto"
    store: str | None = None
    funding_path: str | None = None
    mark_path: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    simulated: Mapping[str, Any] = field(default_factory=dict)
    download_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", self.source.replace("-", "_"))
        # a config file gives lists, and None for an empty section
        object.__setattr__(self, "contracts", tuple(self.contracts or ()))
        object.__setattr__(self, "repair", check_repairs(self.repair or ()))
        object.__setattr__(self, "columns", dict(self.columns or {}))
        object.__setattr__(self, "simulated", dict(self.simulated or {}))
        timeframe_ms(self.timeframe)
        for name, allowed in (("source", SOURCES), ("mark", MARK_POLICIES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, was {getattr(self, name)!r}")
        if self.source in _NEED_PATH and not self.path:
            raise ValueError(f"source={self.source} needs a path")
        if self.source in ("auto", "download") and (self.start is None or self.end is None):
            raise ValueError(f"source={self.source} needs start and end: it downloads exactly those dates")
        if len(set(self.contracts)) < len(self.contracts):
            raise ValueError(f"contracts must be distinct, were {', '.join(self.contracts)}")
        if self.source == "table" and len(self.contracts) > 1 and "{base}" not in str(self.path):
            raise ValueError(
                f"source=table needs a table for each of {len(self.contracts)} contracts: write {{base}} in "
                f"path, as in bars/{{base}}.csv, was {self.path}"
            )
        start, end = self.span_ms
        if start is not None and end is not None and start >= end:
            raise ValueError(f"start must lie before end, was {self.start} to {self.end}")
        if not self.download_timeout_s > 0:
            raise ValueError(f"download_timeout_s must be positive (seconds), was {self.download_timeout_s}")

    @property
    def symbols(self) -> tuple[str, ...]:
        """Every contract that is asked for; of a simulated company, those that are simulated."""
        if self.source == "simulated":
            return self.contracts[: self.simulated.get("contracts")] or (self.symbol,)
        return self.contracts or (self.symbol,)

    def of(self, symbol: str) -> DataConfig:
        """The same for one of several contracts."""
        base = symbol.partition("/")[0]

        def of_base(path: str | None) -> str | None:
            return None if path is None else path.replace("{base}", base)

        return replace(
            self,
            symbol=symbol,
            contracts=(),
            path=of_base(self.path),
            funding_path=of_base(self.funding_path),
            mark_path=of_base(self.mark_path),
            simulated={k: v for k, v in self.simulated.items() if k not in COMPANY_SETTINGS},
        )

    @property
    def span_ms(self) -> tuple[int | None, int | None]:
        """UTC milliseconds [start, end); None where open."""
        return (
            None if self.start is None else parse_start_ms(self.start),
            None if self.end is None else parse_end_ms(self.end),
        )
