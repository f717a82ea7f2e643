"""The command line for market data: ``python -m perpgym.data import|download|check|list``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perpgym.data.align import MARK_POLICIES, Aligned, inspect
from perpgym.data.clock import iso, timeframe_name
from perpgym.data.config import DataConfig
from perpgym.data.contract import Contract
from perpgym.data.errors import DataError
from perpgym.data.frames import RawFrames, times
from perpgym.data.importing import import_frames
from perpgym.data.load import contract_of, read_frames
from perpgym.data.quality import check_repairs, describe_repairs
from perpgym.data.sources import binance_vision, freqtrade
from perpgym.data.store import KINDS, Store

if TYPE_CHECKING:
    from perpgym.data.sources.ccxt_download import ExchangeFactory

_FORMATS = ("freqtrade", "binance_vision", "table")


def main(arguments: Sequence[str] | None = None, *, exchange_factory: ExchangeFactory | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None takes the process's.
        exchange_factory: opens the exchange of ``download``; None opens the named one through ccxt.

    Returns:
        0, or 1 if the command failed or ``check`` found data that training would refuse.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if options.command == "import":
            return _import(options)
        if options.command == "download":
            return _download(options, exchange_factory)
        return _check(options) if options.command == "check" else _list(options)
    except (DataError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what was stored is kept, and the same command goes on from there", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m perpgym.data", description="Market data of perpetual contracts."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--store", help="root of the store; default $PERPGYM_DATA or the user's cache folder")
    series = argparse.ArgumentParser(add_help=False, parents=[common])
    series.add_argument(
        "--symbol", nargs="+", default=[], help="such as BTC/USDT:USDT; default all there are"
    )
    series.add_argument("--timeframe", default="1h", help="of the bars (default 1h)")
    series.add_argument("--exchange", default="binance", help="ccxt's exchange id (default binance)")
    checks = argparse.ArgumentParser(add_help=False)
    checks.add_argument(
        "--repair", nargs="+", default=[], type=_repair_rule, metavar="RULE",
        help="faults that may be repaired, by the rules below; without its rule a fault is refused",
    )  # fmt: skip
    checks.add_argument("--funding", help="table of settlements, for a table of bars")
    checks.add_argument("--mark-table", help="table of mark-price bars, for a table of bars")
    checks.add_argument(
        "--columns", nargs="+", default=[], metavar="OURS=THEIRS", help="names of a table's columns"
    )

    explained: Any = {
        "parents": [series, checks],
        "epilog": f"rules of --repair:\n{describe_repairs()}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }
    importing = commands.add_parser("import", **explained, help="take files into the store")
    importing.add_argument("format", type=_underscored, choices=_FORMATS)
    importing.add_argument("path", help="folder, archive or table")

    downloading = commands.add_parser(
        "download", parents=[series], help="fetch dates from an exchange into the store"
    )
    downloading.add_argument("--start", required=True, help="UTC, ISO 8601")
    downloading.add_argument("--end", required=True, help="UTC, ISO 8601; a bare date includes its day")
    downloading.add_argument("--kinds", nargs="+", default=["last", "mark", "funding"], choices=list(KINDS))
    downloading.add_argument(
        "--timeout", type=float, default=10.0, help="seconds to wait for an answer (default 10)"
    )

    checking = commands.add_parser("check", **explained, help="report faults and the mark rule")
    checking.add_argument(
        "format", nargs="?", type=_underscored, choices=(*_FORMATS, "store"), default="store"
    )
    checking.add_argument("path", nargs="?", help="folder, archive or table")
    checking.add_argument("--start", help="UTC, ISO 8601")
    checking.add_argument("--end", help="UTC, ISO 8601; a bare date includes its day")
    checking.add_argument(
        "--mark", choices=MARK_POLICIES, default="auto", help="policy for a missing mark series"
    )

    commands.add_parser("list", parents=[common], help="say what the store holds")
    return parser


def _underscored(name: str) -> str:
    """``binance-vision`` is ``binance_vision``, as it is in a config."""
    return name.replace("-", "_")


def _repair_rule(name: str) -> str:
    try:
        return check_repairs([name])[0]
    except ValueError as error:
        # argparse shows the message of its own error only
        raise argparse.ArgumentTypeError(str(error)) from None


def _configs(options: argparse.Namespace) -> list[DataConfig]:
    """One config for each contract that a command is about."""
    config = DataConfig(
        source=options.format,
        path=options.path,
        timeframe=options.timeframe,
        exchange=options.exchange,
        start=getattr(options, "start", None),
        end=getattr(options, "end", None),
        repair=tuple(options.repair),
        mark=getattr(options, "mark", "auto"),
        store=options.store,
        funding_path=options.funding,
        mark_path=options.mark_table,
        columns=dict(_pair(text) for text in options.columns),
    )
    symbols = options.symbol or _symbols(config)
    if not symbols:
        raise DataError(
            f"nothing to do: no contract found in {options.path or 'the store'}; name one with --symbol"
        )
    return [_of_symbol(config, symbol) for symbol in symbols]


def _of_symbol(config: DataConfig, symbol: str) -> DataConfig:
    from dataclasses import replace

    return replace(config, symbol=symbol)


def _pair(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not equals:
        raise ValueError(f"--columns takes ours=theirs, such as time=Date, was {text!r}")
    return ours, theirs


def _symbols(config: DataConfig) -> Sequence[str]:
    if config.source == "freqtrade":
        return freqtrade.symbols(config.path or "", config.exchange)
    if config.source == "binance_vision":
        return binance_vision.symbols(config.path or "")
    if config.source == "store":
        held = Store(config.store).series()
        return [
            k.symbol
            for k in held
            if (k.kind, k.exchange, k.timeframe) == ("last", config.exchange, config.timeframe)
        ]
    raise ValueError("a table does not say its contract; name it with --symbol")


def _rules(config: DataConfig) -> Contract:
    """The contract's rules; checks of one without known rules use the defaults."""
    try:
        return contract_of(config)
    except DataError:
        return Contract(symbol=config.symbol)


def _import(options: argparse.Namespace) -> int:
    store = Store(options.store)
    failed = 0
    for config in _configs(options):
        try:
            done = import_frames(
                read_frames(config), store, config.exchange, _rules(config), repair=config.repair
            )
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        told = ", ".join(f"{rows} new {kind} rows" for kind, rows in done.rows.items())
        print(
            f"{config.symbol} {config.timeframe}: {told}"
            + ("" if "mark" in done.rows else "; no mark series")
        )
        for finding in done.findings:
            if finding.severity != "info":
                print(f"  {finding.severity}: {finding.message}")
        if rules := ",".join(done.repairs_at_loading):
            print(f"  note: the store keeps what is missing as missing; train with data.repair=[{rules}]")
    print(f"store: {store.root}")
    return 1 if failed else 0


def _download(options: argparse.Namespace, exchange_factory: ExchangeFactory | None) -> int:
    from perpgym.data.sources.ccxt_download import DownloadRequest, download

    if not options.symbol:
        raise ValueError("name what to download with --symbol, such as --symbol BTC/USDT:USDT")
    store = Store(options.store)
    for symbol in options.symbol:
        request = DownloadRequest(
            symbol=symbol,
            timeframe=options.timeframe,
            start=options.start,
            end=options.end,
            exchange=options.exchange,
            kinds=tuple(options.kinds),
            timeout_s=options.timeout,
        )
        rows = download(request, store, exchange_factory=exchange_factory, show_progress=sys.stderr.isatty())
        print(
            f"{symbol} {options.timeframe}: " + ", ".join(f"{n} new {kind} rows" for kind, n in rows.items())
        )
    print(f"store: {store.root}")
    return 0


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One line of the check's table."""

    cells: tuple[str, ...]
    lines: tuple[str, ...]
    is_refused: bool


_HEADER = ("contract", "bars", "from", "to", "mark", "funding", "verdict")


def _check(options: argparse.Namespace) -> int:
    rows = [_check_one(config) for config in _configs(options)]
    _print_table([_HEADER, *(row.cells for row in rows)])
    for row in rows:
        if row.lines:
            print(f"\n{row.cells[0]}")
        for line in row.lines:
            print(f"  {line}")
    return 1 if any(row.is_refused for row in rows) else 0


def _check_one(config: DataConfig) -> _Row:
    try:
        raw = read_frames(config).between(*config.span_ms)
        aligned = inspect(raw, _rules(config), repair=config.repair, mark=config.mark)
    except DataError as error:
        cells = (config.symbol, "", "", "", "", "", "refused")
        return _Row(cells=cells, lines=(f"error: {error}",), is_refused=True)
    refused = any(f.severity == "error" for f in aligned.findings)
    return _Row(cells=_cells(raw, aligned, refused), lines=_lines(aligned), is_refused=refused)


def _cells(raw: RawFrames, aligned: Aligned, refused: bool) -> tuple[str, ...]:
    bars = aligned.bars
    return (
        raw.symbol,
        f"{len(bars)} x {timeframe_name(bars.bar_ms)}",
        iso(int(bars.open_time_ms[0])),
        iso(int(bars.close_time_ms[-1])),
        f"mark={bars.mark_rule}",
        f"{bars.stamp_time_ms.size} stamps",
        "refused" if refused else "usable",
    )


def _lines(aligned: Aligned) -> tuple[str, ...]:
    findings = [f"{f.severity}: {f.message}" for f in aligned.findings]
    found = {f.message for f in aligned.findings}
    return (*findings, *(f"note: {note}" for note in aligned.notes if note not in found))


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _list(options: argparse.Namespace) -> int:
    store = Store(options.store)
    keys = store.series()
    print(f"store: {store.root}")
    if not keys:
        print("empty; fill it with: python -m perpgym.data import, or download")
        return 0
    rows = [("exchange", "contract", "series", "rows", "from", "to", "sha256")]
    for key in keys:
        time = times(store.read(key))
        span = (iso(int(time[0])), iso(int(time[-1]))) if time.size else ("", "")
        series = f"{key.kind} {key.timeframe}".strip()
        rows.append((key.exchange, key.symbol, series, str(time.size), *span, store.content_hash(key)[:12]))
    _print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
