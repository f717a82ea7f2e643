"""Downloads through unmodified ccxt from a local server that answers in the exchange's shapes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from perpgym.data.__main__ import main
from perpgym.data.clock import parse_start_ms
from perpgym.data.contract import load_contract
from perpgym.data.errors import DataError
from perpgym.data.frames import times
from perpgym.data.load import DataConfig, load_bars
from perpgym.data.sources.ccxt_download import DownloadRequest, download
from perpgym.data.sources.ccxt_exchange import (
    DownloadError,
    contract_from_ccxt,
    failure_reason,
    make_exchange,
)
from perpgym.data.store import Store

HOUR_MS = 3_600_000
BTC = "BTC/USDT:USDT"
LISTED_MS = parse_start_ms("2024-01-02")
REQUEST = DownloadRequest(symbol=BTC, start="2024-01-01", end="2024-03-31")


def exchange_info() -> dict[str, Any]:
    """The shape of GET /fapi/v1/exchangeInfo, one symbol."""
    return {
        "timezone": "UTC",
        "symbols": [
            {
                "symbol": "BTCUSDT",
                "pair": "BTCUSDT",
                "contractType": "PERPETUAL",
                "deliveryDate": 4133404800000,
                "onboardDate": LISTED_MS,
                "status": "TRADING",
                "baseAsset": "BTC",
                "quoteAsset": "USDT",
                "marginAsset": "USDT",
                "pricePrecision": 2,
                "quantityPrecision": 3,
                "liquidationFee": "0.012500",
                "orderTypes": ["LIMIT", "MARKET"],
                "timeInForce": ["GTC"],
                "filters": [
                    {
                        "filterType": "PRICE_FILTER",
                        "minPrice": "556.80",
                        "maxPrice": "4529764",
                        "tickSize": "0.10",
                    },
                    {"filterType": "LOT_SIZE", "minQty": "0.001", "maxQty": "1000", "stepSize": "0.001"},
                    {
                        "filterType": "MARKET_LOT_SIZE",
                        "minQty": "0.001",
                        "maxQty": "120",
                        "stepSize": "0.001",
                    },
                    {"filterType": "MIN_NOTIONAL", "notional": "100"},
                ],
            }
        ],
    }


def kline(open_ms: int, *, is_mark: bool) -> list[Any]:
    """One row of GET /fapi/v1/klines; a mark row has no volume."""
    price = 40_000 + open_ms // HOUR_MS % 100 + (5 if is_mark else 0)
    prices = [f"{price}.0", f"{price + 20}.0", f"{price - 20}.0", f"{price + 1}.0"]
    return [open_ms, *prices, "0" if is_mark else "12.5", open_ms + HOUR_MS - 1, "0", 7, "0", "0", "0"]


@dataclass
class FakeBinance:
    """The server's state: what it was asked, and what it answers instead of data next."""

    url: str = ""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    # (status, headers, body), given in turn before any data
    failures: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    always: tuple[int, dict[str, str], str] | None = None
    fail_after_pages: int | None = None
    page_rows: int = 1000
    missing: tuple[int, int] = (0, 0)
    info: dict[str, Any] = field(default_factory=exchange_info)

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, dict[str, str], str]:
        self.asked.append((path, query))
        pages = sum(1 for p, _ in self.asked if p.endswith(("lines", "fundingRate")))
        if self.always is not None:
            return self.always
        if self.fail_after_pages is not None and pages > self.fail_after_pages:
            return 503, {}, "Service Unavailable"
        if self.failures:
            return self.failures.pop(0)
        return 200, {}, json.dumps(self._data(path, query))

    def _data(self, path: str, query: dict[str, str]) -> Any:
        if path.endswith("/exchangeInfo"):
            return self.info
        start, end = int(query["startTime"]), int(query["endTime"])
        limit = min(int(query["limit"]), self.page_rows)
        step = 8 * HOUR_MS if path.endswith("/fundingRate") else HOUR_MS
        first = max(-(-start // step) * step, LISTED_MS)
        stamps = [t for t in range(first, end + 1, step) if not self.missing[0] <= t < self.missing[1]][
            :limit
        ]
        if path.endswith("/fundingRate"):
            # the exchange's own stamps are off by milliseconds
            return [
                {
                    "symbol": query["symbol"],
                    "fundingTime": t + 3,
                    "fundingRate": "0.00010000",
                    "markPrice": "40000.0",
                }
                for t in stamps
            ]
        return [kline(t, is_mark=path.endswith("/markPriceKlines")) for t in stamps]

    def paths(self) -> list[str]:
        return [path.rsplit("/", 1)[-1] for path, _ in self.asked]


@pytest.fixture
def binance() -> Iterator[FakeBinance]:
    state = FakeBinance()

    class Handler(BaseHTTPRequestHandler):
        protocol_version: ClassVar[str] = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            status, headers, body = state.answer(parts.path, query)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            content = body.encode()
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def waits() -> list[float]:
    return []


Fetch = Callable[..., dict[str, int]]


@pytest.fixture
def fetch(binance: FakeBinance, store: Store, waits: list[float]) -> Fetch:
    def run(request: DownloadRequest = REQUEST) -> dict[str, int]:
        return dict(
            download(
                request,
                store,
                exchange_factory=lambda: make_exchange("binance", base_url=binance.url),
                sleep=waits.append,
                show_progress=False,
            )
        )

    return run


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def test_exactly_the_requested_dates_are_downloaded(fetch: Fetch, store: Store) -> None:
    # 90 days of hours and their settlements; the end date includes its day and its closing stamp
    assert fetch() == {"last": 90 * 24, "mark": 90 * 24, "funding": 90 * 3 + 1}
    time = times(store.read(REQUEST.key("last")))
    assert time[0] == LISTED_MS
    assert time[-1] == parse_start_ms("2024-03-31T23:00")
    np.testing.assert_array_equal(np.diff(time), HOUR_MS)
    mark = store.read(REQUEST.key("mark"))
    assert (mark["open"] - store.read(REQUEST.key("last"))["open"] == 5).all()
    assert (mark["volume"] == 0).all()


def test_pages_do_not_overlap_and_leave_no_hole(fetch: Fetch, binance: FakeBinance) -> None:
    fetch()
    pages = [q for p, q in binance.asked if p.endswith("/klines")]
    assert [int(q["endTime"]) + 1 for q in pages][:-1] == [int(q["startTime"]) for q in pages][1:]
    assert all(int(q["limit"]) == 1000 for q in pages)


def test_pages_that_the_exchange_cuts_short_are_asked_for_again(
    fetch: Fetch, binance: FakeBinance, store: Store
) -> None:
    binance.page_rows = 333
    assert fetch()["last"] == 90 * 24


def test_what_is_in_the_store_is_not_asked_for_again(fetch: Fetch, binance: FakeBinance) -> None:
    fetch()
    asked = len(binance.asked)
    assert fetch() == {"last": 0, "mark": 0, "funding": 0}
    assert len(binance.asked) == asked


def test_a_real_gap_of_the_exchange_is_not_asked_for_for_ever(
    fetch: Fetch, binance: FakeBinance, store: Store
) -> None:
    binance.missing = (LISTED_MS + 30 * HOUR_MS, LISTED_MS + 50 * HOUR_MS)
    assert fetch()["last"] == 90 * 24 - 20
    asked = len(binance.asked)
    fetch()
    assert len(binance.asked) == asked


def test_a_longer_request_fetches_only_what_is_new(fetch: Fetch, binance: FakeBinance) -> None:
    fetch()
    binance.asked.clear()
    longer = DownloadRequest(symbol=BTC, start="2024-01-01", end="2024-04-01", kinds=("last",))
    assert fetch(longer) == {"last": 24}
    assert binance.paths() == ["exchangeInfo", "klines"]


def test_a_download_that_was_cut_off_goes_on_where_it_stopped(
    fetch: Fetch, binance: FakeBinance, store: Store
) -> None:
    binance.fail_after_pages = 2
    with pytest.raises(DownloadError, match="goes on from there"):
        fetch()
    kept = store.rows(REQUEST.key("last"))
    assert kept == 2000 - 24
    binance.fail_after_pages = None
    binance.asked.clear()
    assert fetch()["last"] == 90 * 24 - kept
    first = next(q for p, q in binance.asked if p.endswith("/klines"))
    assert int(first["startTime"]) == int(times(store.read(REQUEST.key("last")))[kept - 1]) + HOUR_MS


def test_a_rate_limit_is_waited_for_as_long_as_the_exchange_says(
    fetch: Fetch, binance: FakeBinance, waits: list[float]
) -> None:
    limited = (429, {"Retry-After": "17"}, '{"code":-1003,"msg":"Too many requests"}')
    binance.failures = [limited, limited]
    assert fetch()["last"] == 90 * 24
    assert waits[0] == 17.0


def test_a_ban_of_hours_is_not_waited_for(fetch: Fetch, binance: FakeBinance, waits: list[float]) -> None:
    binance.always = (418, {"Retry-After": "7200"}, '{"code":-1003,"msg":"Way too many requests; IP banned"}')
    with pytest.raises(DownloadError, match="418"):
        fetch()
    assert waits == []


def test_passing_trouble_is_waited_out_with_growing_patience(
    fetch: Fetch, binance: FakeBinance, waits: list[float]
) -> None:
    binance.failures = [(503, {}, "Service Unavailable")] * 3
    assert fetch()["last"] == 90 * 24
    assert waits == [1.0, 2.0, 4.0]


def test_a_refused_region_is_named_and_not_waited_for(
    fetch: Fetch, binance: FakeBinance, waits: list[float]
) -> None:
    text = '{"code":0,"msg":"Service unavailable from a restricted location according to \'b. Eligibility\'"}'
    binance.always = (451, {}, text)
    with pytest.raises(DownloadError) as error:
        fetch()
    assert error.value.reason == "binance does not serve this region (HTTP 451)"
    assert waits == []


def test_without_a_connection_the_first_answer_is_not_waited_for_long(
    store: Store, waits: list[float]
) -> None:
    with pytest.raises(DownloadError) as error:
        download(
            REQUEST,
            store,
            # nothing listens on the discard port
            exchange_factory=lambda: make_exchange("binance", base_url="http://127.0.0.1:9", timeout_s=1.0),
            sleep=waits.append,
            show_progress=False,
        )
    assert error.value.reason == "no network: no connection to binance"
    assert sum(waits) <= REQUEST.timeout_s


def test_a_contract_that_the_exchange_lacks_is_named(fetch: Fetch) -> None:
    with pytest.raises(DataError, match="binance has no market 'PEPE/USDT:USDT'"):
        fetch(DownloadRequest(symbol="PEPE/USDT:USDT", start="2024-01-01", end="2024-01-02"))


def test_an_unknown_exchange_is_named() -> None:
    with pytest.raises(DataError, match="ccxt knows no exchange 'binence'"):
        make_exchange("binence")


def test_reasons_are_told_in_words() -> None:
    unresolved = OSError("Failed to resolve 'fapi.binance.com' ([Errno -2] Name or service not known)")
    assert failure_reason(unresolved, "binance") == "no network: the address of binance cannot be resolved"
    assert "did not answer in time" in failure_reason(TimeoutError("read timed out"), "binance")
    assert "proxy" in failure_reason(OSError("ProxyError('Cannot connect to proxy.')"), "binance")
    assert failure_reason(OSError("something\nelse"), "binance") == "something"


def test_a_request_must_be_possible() -> None:
    with pytest.raises(ValueError, match="start must lie before end"):
        DownloadRequest(symbol=BTC, start="2024-02-01", end="2024-01-01")
    with pytest.raises(ValueError, match="kinds must be among"):
        DownloadRequest(symbol=BTC, start="2024-01-01", end="2024-02-01", kinds=("trades",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeframe must look like"):
        DownloadRequest(symbol=BTC, start="2024-01-01", end="2024-02-01", timeframe="hourly")
    with pytest.raises(ValueError, match="timeout_s must be positive"):
        DownloadRequest(symbol=BTC, start="2024-01-01", end="2024-02-01", timeout_s=0.0)
    with pytest.raises(ValueError, match="max_attempts"):
        DownloadRequest(symbol=BTC, start="2024-01-01", end="2024-02-01", max_attempts=0)


# the contract from ccxt's structures


@pytest.fixture
def market(binance: FakeBinance) -> dict[str, Any]:
    exchange = make_exchange("binance", base_url=binance.url)
    markets: dict[str, dict[str, Any]] = exchange.load_markets()
    exchange.session.close()
    return markets[BTC]


def tiers(symbol: str, *, with_cum: bool) -> list[dict[str, Any]]:
    return [
        {
            "minNotional": b.floor,
            "maxNotional": min(b.cap, 1.8e9),
            "maintenanceMarginRate": b.maintenance_margin_rate,
            "maxLeverage": b.max_leverage,
            "info": {"cum": b.cum} if with_cum else {},
        }
        for b in load_contract(symbol).brackets
    ]


@pytest.mark.parametrize("with_cum", [True, False])
def test_a_contract_is_built_from_ccxts_market_and_tiers(market: dict[str, Any], with_cum: bool) -> None:
    built = contract_from_ccxt(market, tiers(BTC, with_cum=with_cum))
    shipped = load_contract(BTC)
    for name in ("symbol", "kind", "contract_size", "tick_size", "lot_size", "min_quantity", "max_quantity"):
        assert getattr(built, name) == getattr(shipped, name), name
    assert (built.min_notional, built.clearance_rate) == (100.0, 0.0125)
    np.testing.assert_allclose(built.bracket_table(), shipped.bracket_table(), rtol=1e-12, atol=1e-6)


def test_a_market_that_is_no_perpetual_is_refused(market: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="perpgym trades perpetuals"):
        contract_from_ccxt({**market, "swap": False, "type": "spot"})
    with pytest.raises(DataError, match=r"names no precision\.price"):
        contract_from_ccxt({**market, "precision": {"price": None, "amount": 0.001}})


# data=auto and data=download


def config(store: Store, **changes: Any) -> DataConfig:
    settings: dict[str, Any] = {"start": "2024-01-02", "end": "2024-02-29", "store": store.root}
    return DataConfig(**{**settings, **changes})


def test_auto_downloads_the_dates_once_and_then_asks_nobody(
    binance: FakeBinance, store: Store, waits: list[float]
) -> None:
    def load(source: str) -> Any:
        return load_bars(
            config(store, source=source),
            exchange_factory=lambda: make_exchange("binance", base_url=binance.url),
            sleep=waits.append,
        )

    data = load("auto")
    assert len(data.bars) == 59 * 24
    assert data.bars.mark_rule == "mark"
    assert data.fallback_reason is None
    assert (data.bars.stamp_time_ms % (8 * HOUR_MS) == 0).all()
    asked = len(binance.asked)
    for source in ("auto", "download"):
        np.testing.assert_array_equal(load(source).bars.last, data.bars.last)
    assert len(binance.asked) == asked


def test_auto_falls_back_to_the_simulated_market_loudly_and_names_the_reason(
    binance: FakeBinance, store: Store, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    binance.always = (451, {}, "restricted location")
    data = load_bars(
        config(store, source="auto"),
        exchange_factory=lambda: make_exchange("binance", base_url=binance.url),
        sleep=waits.append,
    )
    assert data.fallback_reason == "binance does not serve this region (HTTP 451)"
    assert data.source == "simulated (fallback: binance does not serve this region (HTTP 451))"
    assert "NOT REAL DATA" in caplog.text
    assert "NOT REAL DATA" in data.notes[0]
    assert data.planted is not None
    # the dates are those that were asked for
    assert data.bars.open_time_ms[0] == parse_start_ms("2024-01-02")
    assert int(data.bars.close_time_ms[-1]) == parse_start_ms("2024-03-01")


def test_the_command_line_downloads_into_the_store(
    binance: FakeBinance, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "download",
        "--symbol",
        BTC,
        "--start",
        "2024-01-02",
        "--end",
        "2024-01-31",
        "--store",
        store.root,
    ]

    def factory() -> Any:
        return make_exchange("binance", base_url=binance.url)

    assert main(arguments, exchange_factory=factory) == 0
    assert "720 new last rows, 720 new mark rows, 91 new funding rows" in capsys.readouterr().out
    binance.always = (451, {}, "restricted location")
    assert main([*arguments, "--timeframe", "1m"], exchange_factory=factory) == 1
    assert "does not serve this region (HTTP 451)" in capsys.readouterr().err


def test_download_does_not_fall_back(binance: FakeBinance, store: Store, waits: list[float]) -> None:
    binance.always = (451, {}, "restricted location")
    with pytest.raises(DownloadError, match="HTTP 451"):
        load_bars(
            config(store, source="download"),
            exchange_factory=lambda: make_exchange("binance", base_url=binance.url),
            sleep=waits.append,
        )


def test_auto_prefers_stored_bars_without_a_mark_to_a_simulated_market(
    binance: FakeBinance, fetch: Fetch, store: Store, waits: list[float]
) -> None:
    fetch(DownloadRequest(symbol=BTC, start="2024-01-02", end="2024-02-29", kinds=("last", "funding")))
    binance.always = (451, {}, "restricted location")
    data = load_bars(
        config(store, source="auto"),
        exchange_factory=lambda: make_exchange("binance", base_url=binance.url),
        sleep=waits.append,
    )
    assert data.fallback_reason is None
    assert data.bars.mark_rule == "last"
    assert any("mark=last" in note for note in data.notes)


def test_the_rules_of_a_contract_that_does_not_ship_are_kept_at_the_download(
    binance: FakeBinance, store: Store, fetch: Fetch
) -> None:
    info = json.dumps(exchange_info()).replace("BTC", "LINK")
    binance.info = json.loads(info)
    fetch(DownloadRequest(symbol="LINK/USDT:USDT", start="2024-01-02", end="2024-01-05"))
    kept = store.contract("binance", "LINK/USDT:USDT")
    assert kept is not None
    assert kept.tick_size == 0.1
    loaded = load_bars(config(store, source="store", symbol="LINK/USDT:USDT", end="2024-01-05"))
    assert loaded.bars.contract == kept


def test_a_largest_order_between_two_lots_is_the_lower_one(market: dict[str, Any]) -> None:
    limits = {**market["limits"], "amount": {"min": 0.001, "max": 1_000.0005}}
    assert contract_from_ccxt({**market, "limits": limits}).max_quantity == 1_000.0
