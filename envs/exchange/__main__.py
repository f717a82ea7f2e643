"""``python -m perpgym.envs.exchange``: a local exchange that any ccxt program can trade on.

python -m perpgym.envs.exchange --tape simulated --speed 60
python -m perpgym.envs.exchange --tape runs/tape --speed 0 --admin
python -m perpgym.envs.exchange --l2 btcusdt_20240718.gz btcusdt_20240719.gz --speed 1
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from perpgym.data.clock import DAY_MS, iso, parse_start_ms, timeframe_ms
from perpgym.data.contract import load_contract
from perpgym.data.sources.l2 import read_l2
from perpgym.data.tape import Tape
from perpgym.envs.config import EnvConfig
from perpgym.envs.exchange.clock import Clock
from perpgym.envs.exchange.engine import Engine
from perpgym.envs.exchange.gate import Keys, Limits
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.proxy import Proxy
from perpgym.envs.exchange.server import Server
from perpgym.envs.exchange.tls import make_certificate
from perpgym.envs.exchange.venue import Venue
from perpgym.envs.exchange.warm import warm_up
from perpgym.envs.exchange.wire import decimal_of

_SIMULATED_FROM = "2024-01-01"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# where live.py reads the same
_VARIABLES = {"key": "PERPGYM_SIMULATED_KEY", "secret": "PERPGYM_SIMULATED_SECRET"}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m perpgym.envs.exchange", description=__doc__)
    market = parser.add_argument_group("market")
    source = market.add_mutually_exclusive_group()
    source.add_argument("--tape", default="simulated", help="a folder that Tape.save wrote, or: simulated")
    source.add_argument(
        "--l2",
        nargs="+",
        metavar="FILE",
        help="captures of one contract's depth, trade and book ticker streams",
    )
    market.add_argument(
        "--symbol", default="BTC/USDT:USDT", help="of the simulated market, or of the captures"
    )
    market.add_argument("--bar-ms", type=int, default=1_000, help="milliseconds between two books of --l2")
    market.add_argument("--timeframe", default="1m", help="length of the simulated market's bars")
    market.add_argument("--days", type=int, default=30, help="length of the simulated market")
    market.add_argument("--history", type=int, default=60, help="days of it that lie in the past at first")
    market.add_argument("--seed", type=int, default=6, help="of the simulated market")
    market.add_argument("--start", help="the first moment (UTC, ISO 8601); default: as early as possible")
    market.add_argument(
        "--speed", type=float, default=1.0, help="0 stepped, 1 real time, 60 an hour a minute"
    )
    account = parser.add_argument_group("account")
    account.add_argument("--wallet", type=float, default=10_000.0, help="in the settle currency")
    account.add_argument("--leverage", type=float, default=20.0)
    account.add_argument("--margin-mode", choices=("cross", "isolated"), default="cross")
    account.add_argument("--half-spread-bps", type=float, default=1.0)
    for name, variable in _VARIABLES.items():
        account.add_argument(
            f"--{name}", default=os.environ.get(variable) or name,
            help=f"API {name}; default: ${variable}, else the word {name}, which guards nothing",
        )  # fmt: skip
    wire = parser.add_argument_group("wire")
    wire.add_argument("--host", default="127.0.0.1")
    wire.add_argument("--port", type=int, default=8787)
    wire.add_argument("--proxy-port", type=int, help="TLS behind a CONNECT proxy on this port, too")
    wire.add_argument("--strict", action="store_true", help="take no timestamps but the exchange's own")
    wire.add_argument("--limits", action="store_true", help="refuse and ban who asks too much")
    wire.add_argument("--step-on-poll", action="store_true", help="asking for the same bars again moves time")
    wire.add_argument("--admin", action="store_true", help="answer on /admin: step time, read the true state")
    return parser


def read_tape(arguments: argparse.Namespace) -> Tape:
    """The tape that is asked for.

    Raises:
        OSError, ValueError: there is none.
    """
    if arguments.tape != "simulated":
        return Tape.load(Path(arguments.tape))
    from perpgym.data.features.build import build_tape
    from perpgym.data.synthetic import SimulatedMarketConfig, simulate_market

    begin_ms = parse_start_ms(_SIMULATED_FROM) - arguments.history * DAY_MS
    end_ms = parse_start_ms(_SIMULATED_FROM) + arguments.days * DAY_MS
    config = SimulatedMarketConfig(
        symbol=arguments.symbol, bar_ms=timeframe_ms(arguments.timeframe), start=iso(begin_ms),
        end=iso(end_ms), seed=arguments.seed,
    )  # fmt: skip
    # an exchange shows prices; features are its clients' business
    bars = simulate_market(config).bars
    return build_tape(bars, features=(), risk=(), source=f"simulated (seed {arguments.seed})")


def make_venue(arguments: argparse.Namespace) -> Venue:
    """The exchange that the command line describes.

    Raises:
        OSError, ValueError: the tape or a setting is not usable.
    """
    if arguments.admin and arguments.host not in _LOOPBACK:
        raise ValueError(
            f"--admin answers anyone who asks: --host must be one of {', '.join(_LOOPBACK)} with it, was "
            f"{arguments.host}"
        )
    recording = None
    if arguments.l2:
        recording = read_l2(arguments.l2, load_contract(arguments.symbol), bar_ms=arguments.bar_ms)
    tape = read_tape(arguments) if recording is None else recording.tape()
    is_simulated = recording is None and arguments.tape == "simulated"
    start = arguments.start or (_SIMULATED_FROM if is_simulated else None)
    start_bar = None if start is None else tape.bar_at(start)
    config = EnvConfig(
        initial_wallet=arguments.wallet, leverage=arguments.leverage, margin_mode=arguments.margin_mode,
        half_spread_bps=arguments.half_spread_bps, max_exposure=1.0,
    )  # fmt: skip
    engine = Engine(Replay(tape, start_bar=start_bar, recording=recording), config)
    return Venue(
        engine=engine,
        clock=Clock(engine.now_ms, arguments.speed),
        keys=Keys(secrets={arguments.key: arguments.secret}, is_strict=arguments.strict),
        limits=Limits(is_enforced=arguments.limits),
        has_admin=arguments.admin,
        steps_on_poll=arguments.step_on_poll,
    )


def banner(venue: Venue, url: str, arguments: argparse.Namespace) -> str:
    """What a user needs to know to trade here, and a program to paste."""
    market = venue.market
    stepped = "stepped by whoever polls" if venue.steps_on_poll else "stepped: POST /admin/advance"
    pace = f"{venue.clock.speed:g} times real time" if venue.clock.speed else stepped
    return "\n".join(
        (
            f"perpgym exchange at {url}: {market.tape.source}",
            f"{', '.join(c.symbol for c in venue.books.contracts)} from {iso(venue.now_ms)} to "
            f"{iso(market.end_ms)} UTC, {pace}; wallet {venue.books.wallet:,.2f} {venue.names.currency}",
            f"bars of {', '.join(market.intervals)}; finer ones are refused",
            "",
            "to trade here, paste:",
            "",
            *pasted(venue, url, arguments),
            "",
        )
    )


def pasted(venue: Venue, url: str, arguments: argparse.Namespace) -> list[str]:
    """Lines of a program that trades here as it is; keys of the user's own are read, never shown."""
    own = [name for name in _VARIABLES if getattr(arguments, name) != name]
    login = {name: f"os.environ[{_VARIABLES[name]!r}]" if name in own else repr(name) for name in _VARIABLES}
    return [
        *(["import os", ""] if own else []),
        "import ccxt",
        "from perpgym.envs.exchange.connect import point_at",
        "",
        *(f"# {_VARIABLES[name]} must be what this exchange was given as its {name}" for name in own),
        f"exchange = point_at(ccxt.binanceusdm({{'apiKey': {login['key']}, 'secret': {login['secret']}}}), "
        f"{url!r})",
        f"order = exchange.create_order({venue.books.contracts[0].symbol!r}, 'market', 'buy', "
        f"{_small_quantity(venue)})",
        "print(order['id'], order['average'])",
    ]


def _small_quantity(venue: Venue) -> str:
    """base: a hundredth of the wallet in the first contract, or its smallest order."""
    contract, price = venue.books.contracts[0], venue.market.last_price(0)
    least = max(contract.min_quantity, 1.1 * contract.min_notional / price, contract.lot_size)
    lots = math.ceil(max(0.01 * venue.books.wallet / price, least) / contract.lot_size)
    # in decimals: 3 * 0.1 is 0.3
    return format((lots * decimal_of(contract.lot_size)).normalize(), "f")


async def serve(venue: Venue, arguments: argparse.Namespace) -> None:
    """Serve until interrupted."""
    print("compiling, a minute the first time …", file=sys.stderr, flush=True)
    warm_up(venue.market, venue.books.config)
    server = Server(venue)
    url = await server.start(host=arguments.host, port=arguments.port)
    print(banner(venue, url, arguments), flush=True)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.stop)
        if arguments.proxy_port is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perpgym-exchange-")))
            certificate = make_certificate(folder)
            port = await server.listen(host="127.0.0.1", port=0, tls=certificate.server_context())
            proxy = Proxy(port)
            stack.push_async_callback(proxy.stop)
            url = await proxy.start(port=arguments.proxy_port)
            print(f"or behind {url} (httpsProxy, wssProxy) with the certificate {certificate.certificate}")
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, stop.set)
        await stop.wait()
    print("closed", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve; 1 if the tape or a setting is not usable, or the port taken."""
    parsed = make_parser().parse_args(arguments)
    try:
        asyncio.run(serve(make_venue(parsed), parsed))
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
