"""Serves the page from a thread of its own, on this machine only unless told otherwise."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from perpgym.envs.live.monitor.guard import is_loopback
from perpgym.envs.live.monitor.page import Page, make_app


@dataclass(frozen=True, kw_only=True)
class PageConfig:
    """Where the page is served, and to whom.

    Attributes:
        host: to listen on; anything but this machine's own needs a token.
        port: 0 takes a free one.
        allowed_hosts: names, without port, under which a browser reaches it; addresses need not be named.
        controls: it may freeze and flatten; needs a token.
        certificate, private_key: PEM files; both for https, none for http.

    Raises:
        ValueError: the port is none, or only one of the two files is given.
    """

    host: str = "127.0.0.1"
    port: int = 8788
    allowed_hosts: tuple[str, ...] = ()
    controls: bool = False
    certificate: Path | None = None
    private_key: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port must lie between 0 and 65535 (0: any free one), was {self.port}")
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key belong together: give both for https, or none")

    @property
    def is_local(self) -> bool:
        """It listens on this machine only."""
        return is_loopback(self.host)


class PageServer:
    """A page that is served until it is stopped.

    Raises:
        OSError: from ``start``, the port is taken.
    """

    def __init__(self, page: Page, config: PageConfig) -> None:
        self._page, self._config = page, config
        settings = uvicorn.Config(
            make_app(page), log_config=None, access_log=False, server_header=False, proxy_headers=False,
            lifespan="off", timeout_graceful_shutdown=2, ssl_certfile=config.certificate,
            ssl_keyfile=config.private_key,
        )  # fmt: skip
        self._server = uvicorn.Server(settings)
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None

    def start(self) -> str:
        """Listen; the address to open."""
        family = socket.AF_INET6 if ":" in self._config.host else socket.AF_INET
        self._socket = socket.create_server((self._config.host, self._config.port), family=family)
        port = self._socket.getsockname()[1]
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="perpgym-page", daemon=True
        )
        self._thread.start()
        scheme = "http" if self._config.certificate is None else "https"
        host = f"[{self._config.host}]" if family is socket.AF_INET6 else self._config.host
        return f"{scheme}://{host}:{port}"

    def stop(self) -> None:
        """End the streams and let go of the port."""
        self._page.closing.set()
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()
        if self._socket is not None:
            self._socket.close()
