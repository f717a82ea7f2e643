"""An egress guard: a CONNECT proxy that takes the real exchange's futures hosts here, and refuses all others.

A client behind it needs no changed address: only the proxy and the certificate. What it sends cannot leave
the machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from perpgym.envs.exchange.tls import FUTURES_HOSTS

_CHUNK = 65_536
_LONGEST_HEAD = 16_384


class Proxy:
    """Tunnels ``hosts`` to a local TLS port.

    Args:
        tls_port: where the exchange listens.
        hosts: that are tunnelled.

    Attributes:
        refused: hosts that were asked for and refused.
    """

    def __init__(self, tls_port: int, hosts: Iterable[str] = FUTURES_HOSTS) -> None:
        self.tls_port, self.hosts = tls_port, frozenset(hosts)
        self.refused: list[str] = []
        self.url = ""
        self._server: asyncio.Server | None = None
        self._tunnels: set[asyncio.Task[None]] = set()

    async def start(self, *, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen; returns the proxy's URL."""
        self._server = await asyncio.start_server(self._meet, host, port, limit=_LONGEST_HEAD)
        self.url = f"http://{host}:{self._server.sockets[0].getsockname()[1]}"
        return self.url

    async def stop(self) -> None:
        """Close the port and every tunnel."""
        if self._server is not None:
            self._server.close()
        for tunnel in list(self._tunnels):
            tunnel.cancel()
        await asyncio.gather(*self._tunnels, return_exceptions=True)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tunnels.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()
            self._tunnels.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, _, rest = head.partition(" ")
        host = rest.partition(" ")[0].rpartition(":")[0]
        if method != "CONNECT" or host not in self.hosts:
            self.refused.append(host or rest.partition(" ")[0])
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.tls_port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        finally:
            there_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end, and pass the end on."""
    while chunk := await reader.read(_CHUNK):
        writer.write(chunk)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
