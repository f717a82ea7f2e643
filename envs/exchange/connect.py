"""Points a ccxt exchange at this one instead of the real one."""

from __future__ import annotations

import re
from typing import Any


def point_at(exchange: Any, url: str) -> Any:
    """Send every request and stream of a ccxt Binance exchange to a local server.

    No address of the real exchange is left in it. ccxt takes the futures' error classes from the URL, so they
    are merged into the general ones: -2019 is ``InsufficientFunds`` here too.

    Args:
        exchange: a ``ccxt.binanceusdm`` or ``ccxt.binance`` of any kind (sync, async, pro).
        url: of the server, ``http://127.0.0.1:PORT``.

    Returns:
        The same exchange.
    """
    base = url.rstrip("/")
    exchange.urls["api"] = _rebase(exchange.urls["api"], base)
    exact = exchange.exceptions["exact"]
    exchange.exceptions["exact"] = exchange.deep_extend(exact, exchange.exceptions["linear"]["exact"])
    exchange.enableRateLimit = False
    return exchange


def _rebase(urls: Any, base: str) -> Any:
    if isinstance(urls, dict):
        return {name: _rebase(url, base) for name, url in urls.items()}
    scheme, _, rest = base.partition("://")
    if re.match(r"wss?://", urls):
        scheme = "wss" if scheme == "https" else "ws"
    return re.sub(r"^\w+://[^/]+", f"{scheme}://{rest}", urls)
