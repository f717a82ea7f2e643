"""Downloads bars, mark bars and funding of the requested dates into the store, page by page."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from perpgym.data.clock import DAY_MS, parse_end_ms, parse_start_ms, timeframe_ms
from perpgym.data.contract import shipped_contracts
from perpgym.data.errors import DataError
from perpgym.data.sources.ccxt_exchange import (
    DownloadError,
    contract_from_ccxt,
    failure_reason,
    make_exchange,
)
from perpgym.data.store import KINDS, Kind, SeriesKey, Span, Store, missing_spans

_LOG = logging.getLogger(__name__)

ExchangeFactory = Callable[[], Any]
Sleep = Callable[[float], None]

_PAGE_ROWS = 1000
# longest spacing of settlements: what a page of them can span at most
_FUNDING_STEP_MS = 8 * 3_600_000
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
# an exchange that names a longer wait has banned the address
_LONGEST_TOLD_WAIT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class DownloadRequest:
    """What to download.

    Attributes:
        symbol: ccxt's unified symbol.
        timeframe: of the bars, e.g. ``1h``.
        start, end: UTC, ISO 8601; a bare ``end`` date includes its day.
        exchange: ccxt's exchange id.
        kinds: of ``last``, ``mark``, ``funding`` and ``premium``.
        timeout_s: how long one request may take, and how long a first answer may.
        max_attempts: of one page, once the exchange has answered.
    """

    symbol: str
    start: str
    end: str
    timeframe: str = "1h"
    exchange: str = "binance"
    kinds: tuple[Kind, ...] = ("last", "mark", "funding")
    timeout_s: float = 10.0
    max_attempts: int = 6

    def __post_init__(self) -> None:
        timeframe_ms(self.timeframe)
        unknown = sorted(set(self.kinds) - set(KINDS))
        if unknown:
            raise ValueError(f"kinds must be among {', '.join(KINDS)}, was {unknown}")
        if not self.span[0] < self.span[1]:
            raise ValueError(f"start must lie before end, was {self.start} to {self.end}")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s must be positive (seconds), was {self.timeout_s}")
        if not self.max_attempts >= 1:
            raise ValueError(f"max_attempts must be at least 1, was {self.max_attempts}")

    @property
    def span(self) -> Span:
        """UTC milliseconds [start, end), on whole bars."""
        bar_ms = timeframe_ms(self.timeframe)
        start, end = parse_start_ms(self.start), parse_end_ms(self.end)
        return -(-start // bar_ms) * bar_ms, end // bar_ms * bar_ms

    def key(self, kind: Kind) -> SeriesKey:
        """Where the store keeps a series of this request."""
        timeframe = "" if kind == "funding" else self.timeframe
        return SeriesKey(exchange=self.exchange, symbol=self.symbol, kind=kind, timeframe=timeframe)

    def wanted(self, kind: Kind, now_ms: int | None = None) -> Span:
        """The span of a series that is asked for: closed bars only, and the stamp at the end instant."""
        start, end = self.span
        if now_ms is not None:
            bar_ms = timeframe_ms(self.timeframe)
            end = min(end, now_ms // bar_ms * bar_ms)
        return (start, end) if kind != "funding" else (start, end + 60_000)


def missing(request: DownloadRequest, store: Store, now_ms: int | None = None) -> dict[Kind, list[Span]]:
    """By series, the spans that the store has not been filled with yet."""
    return {
        kind: missing_spans(request.wanted(kind, now_ms), store.covered(request.key(kind)))
        for kind in request.kinds
    }


def download(
    request: DownloadRequest,
    store: Store,
    *,
    exchange_factory: ExchangeFactory | None = None,
    sleep: Sleep = time.sleep,
    show_progress: bool = True,
) -> dict[Kind, int]:
    """Fetch what the store lacks of a request; every page is kept before the next is asked for.

    Args:
        request: what to download.
        store: takes the pages, and says what is there already: a download that was cut off goes on
            where it stopped.
        exchange_factory: makes the ccxt exchange; None opens the request's.
        sleep: waits between attempts, seconds.
        show_progress: draw a bar on standard error.

    Returns:
        By series, how many rows are new.

    Raises:
        DownloadError: the exchange refuses or cannot be reached; ``reason`` names why.
        DataError: the exchange has no such contract.
    """
    if not any(missing(request, store).values()):
        return dict.fromkeys(request.kinds, 0)
    exchange = (
        exchange_factory()
        if exchange_factory
        else make_exchange(request.exchange, timeout_s=request.timeout_s)
    )
    try:
        pager = _Pager(exchange, request, sleep)
        pager.open()
        _keep_contract(exchange, request, store)
        spans = missing(request, store, exchange.milliseconds())
        with _progress(show_progress) as progress:
            return {
                kind: _download_series(pager, store, kind, spans[kind], progress) for kind in request.kinds
            }
    finally:
        # ccxt leaves its connections open otherwise
        if getattr(exchange, "session", None) is not None:
            exchange.session.close()


def _download_series(pager: _Pager, store: Store, kind: Kind, spans: list[Span], progress: Progress) -> int:
    total = sum(end - start for start, end in spans)
    task = progress.add_task(f"{pager.request.symbol} {kind}", total=total)
    rows = 0
    for span in spans:
        for frame, covered in pager.pages(kind, span):
            rows += store.append(pager.request.key(kind), frame, covered=covered)
            progress.advance(task, covered[1] - covered[0])
    return rows


def _progress(show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not show,
    )


def _keep_contract(exchange: Any, request: DownloadRequest, store: Store) -> None:
    """Keep the rules of a contract that does not ship, less its brackets, which need a signed request."""
    shipped = request.exchange == "binance" and request.symbol in shipped_contracts()
    if not shipped and store.contract(request.exchange, request.symbol) is None:
        store.save_contract(request.exchange, contract_from_ccxt(exchange.market(request.symbol)))


class _Pager:
    """Asks one exchange for pages, with patience where it helps and none where it does not."""

    def __init__(self, exchange: Any, request: DownloadRequest, sleep: Sleep) -> None:
        self.exchange = exchange
        self.request = request
        self.sleep = sleep
        self.has_answered = False

    def open(self) -> None:
        """Load the exchange's markets and find the contract among them.

        Raises:
            DownloadError: the exchange cannot be reached.
            DataError: it has no such contract.
        """
        markets = self._ask(self.exchange.load_markets)
        if self.request.symbol not in markets:
            raise DataError(
                f"{self.request.exchange} has no market {self.request.symbol!r}; perpetuals are named like "
                "BTC/USDT:USDT"
            )

    def pages(self, kind: Kind, span: Span) -> Iterator[tuple[pd.DataFrame, Span]]:
        """Frames with the part of ``span`` that each of them settles, in order, without a hole."""
        start, end = span
        step = _FUNDING_STEP_MS if kind == "funding" else timeframe_ms(self.request.timeframe)
        while start < end:
            window_end = min(start + _PAGE_ROWS * step, end)
            rows = self._ask(partial(self._fetch, kind, start, window_end - 1))
            rows = [row for row in rows if start <= row[0] < window_end]
            # an exchange may cut a page short: only what the last row reaches is known, and all of it if none
            reached = rows[-1][0] + (1 if kind == "funding" else step) if rows else window_end
            reached = min(reached, window_end)
            # the newest bars may still be on their way: silence about them settles nothing
            told = reached if rows else min(reached, max(start, self.exchange.milliseconds() - DAY_MS))
            yield _frame(self.request.key(kind), rows), (start, told)
            start = reached

    def _fetch(self, kind: Kind, since: int, until: int) -> list[list[float]]:
        symbol, params = self.request.symbol, {"until": until}
        if kind == "funding":
            found = self.exchange.fetch_funding_rate_history(symbol, since, _PAGE_ROWS, params)
            return sorted([row["timestamp"], row["fundingRate"]] for row in found)
        # ccxt's names of the klines that are not of trades
        price = {"mark": {"price": "mark"}, "premium": {"price": "premiumIndex"}}.get(kind, {})
        rows = self.exchange.fetch_ohlcv(
            symbol, self.request.timeframe, since, _PAGE_ROWS, {**params, **price}
        )
        if kind == "premium":
            return sorted([row[0], row[4]] for row in rows)
        # a mark series has no volume
        return sorted([*row[:5], (row[5] or 0.0) if kind == "last" else 0.0] for row in rows)

    def _ask(self, call: Callable[[], Any]) -> Any:
        """The answer of a request, repeated with growing waits while that may help.

        Before the first answer, waiting ends after ``timeout_s`` in all: without a network a caller wants to
        know soon.
        """
        import ccxt

        waited_s = 0.0
        for attempt in count(1):
            try:
                answer = call()
            except ccxt.NetworkError as error:
                wait_s = self._wait_s(error, attempt)
                self.has_answered |= _is_rate_limit(error)
                waited_s += wait_s
                waited_s += self.request.timeout_s if isinstance(error, ccxt.RequestTimeout) else 0.0
                is_unreachable = not self.has_answered and waited_s > self.request.timeout_s
                is_last = attempt == self.request.max_attempts or wait_s > _LONGEST_TOLD_WAIT_S
                if is_unreachable or is_last or _is_final(error, self.has_answered):
                    raise self._failure(error) from error
                _LOG.info("%s; waiting %.0f s", failure_reason(error, self.request.exchange), wait_s)
                self.sleep(wait_s)
            except (ccxt.BaseError, OSError) as error:
                raise self._failure(error) from error
            else:
                self.has_answered = True
                return answer
        raise AssertionError("count() has no end")

    def _wait_s(self, error: Exception, attempt: int) -> float:
        headers = getattr(self.exchange, "last_response_headers", None) or {}
        told = {str(name).lower(): value for name, value in headers.items()}.get("retry-after", "")
        if _is_rate_limit(error) and str(told).isdigit():
            return float(told)
        return min(_FIRST_WAIT_S * 2.0 ** (attempt - 1), _LONGEST_WAIT_S)

    def _failure(self, error: Exception) -> DownloadError:
        reason = failure_reason(error, self.request.exchange)
        request = self.request
        return DownloadError(
            f"cannot download {request.symbol} {request.timeframe}, {request.start} to {request.end}: "
            f"{reason}. What was downloaded is kept and the next try goes on from there; or import a "
            "freqtrade folder or Binance Vision archives with: python -m perpgym.data import",
            reason,
        )


def _is_final(error: Exception, has_answered: bool) -> bool:
    """Whether waiting is of no use: the region is refused, or there is no network to begin with."""
    reason = failure_reason(error, "")
    unreachable = "cannot be resolved" in reason or "proxy" in reason
    return "HTTP 451" in reason or (unreachable and not has_answered)


def _is_rate_limit(error: Exception) -> bool:
    import ccxt

    return isinstance(error, ccxt.DDoSProtection | ccxt.RateLimitExceeded)


def _frame(key: SeriesKey, rows: list[list[float]]) -> pd.DataFrame:
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(key.columns))
    frame = pd.DataFrame(table, columns=list(key.columns))
    # milliseconds since 1970 are exact in float64
    return frame.assign(time_ms=table[:, 0].astype(np.int64))
