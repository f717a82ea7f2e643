"""``python -m perpgym.envs.live.monitor JOURNAL``: the page of a live run, from its journal alone.

The run may go on in another program or have ended; this one only reads. PERPGYM_PAGE_TOKEN sets a token,
PERPGYM_ALERTS addresses of alerts.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from perpgym.envs.live.journal import JournalBroken
from perpgym.envs.live.monitor.monitor import Monitor, MonitorConfig
from perpgym.envs.live.monitor.serve import PageConfig


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m perpgym.envs.live.monitor", description=__doc__)
    parser.add_argument("journal", type=Path, help="the .sqlite file that live.py writes")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on; others than this machine: a token")
    parser.add_argument("--port", type=int, default=8788, help="0 takes a free one")
    parser.add_argument(
        "--allowed-host", action="append", default=[], help="a name under which it is reached"
    )
    parser.add_argument("--certificate", type=Path, help="PEM file, for https")
    parser.add_argument("--private-key", type=Path, help="PEM file, for https")
    parser.add_argument("--log", type=Path, help="write what is new to this file, a JSON object a line")
    return parser


def serve(parsed: argparse.Namespace, environment: Mapping[str, str], stop: threading.Event) -> None:
    """Serve until ``stop``."""
    page = PageConfig(
        host=parsed.host, port=parsed.port, allowed_hosts=tuple(parsed.allowed_host),
        certificate=parsed.certificate, private_key=parsed.private_key,
    )  # fmt: skip
    with Monitor(parsed.journal, MonitorConfig(page=page, log=parsed.log), environment=environment) as found:
        print(f"{parsed.journal} at {found.url}", flush=True)
        stop.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve; 1 if the journal or a setting is not usable, or the port taken."""
    parsed, stop = make_parser().parse_args(arguments), threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    try:
        serve(parsed, os.environ, stop)
    except (OSError, ValueError, JournalBroken) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
