"""Serves the dashboard from a thread of the daemon, on a port of its own, and ends with it."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from asyncio import Transport
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, cast

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from canaryd.config.dashboard import Dashboard, Tls
from canaryd.dashboard.auth import Doorkeeper
from canaryd.dashboard.feed import Feed
from canaryd.dashboard.pages import Pages
from canaryd.dashboard.stream import Hub
from canaryd.errors import DashboardError

log = structlog.get_logger("canaryd.dashboard")

MOST_CONNECTIONS = 256
FIRST_WORDS = 10.0  # seconds in which a client must have sent the head of its request
GRACE = 2  # seconds for what is under way when it ends
RENEWED = 30.0  # seconds between two looks at the certificate


def utc() -> datetime:
    """The time."""
    return datetime.now(UTC)


class Server:
    """Listens at once; `address` says where."""

    def __init__(self, settings: Dashboard, feed: Feed, *, now: Callable[[], datetime] = utc) -> None:
        """Raises DashboardError for files and addresses that cannot be used."""
        there = settings.address
        assert there is not None
        self._settings, self._feed, self._now = settings, feed, now
        self._door = Doorkeeper(settings.auth)
        self._tls = _context(settings.tls)
        self._socket = _listen(there)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._begun = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._hub: Hub | None = None
        self._thread = threading.Thread(target=self._run, name="dashboard", daemon=True)
        self._thread.start()
        self._begun.wait(30)
        if self._server is None:
            self._socket.close()
            raise DashboardError("the dashboard did not start; the log says why")

    def close(self) -> None:
        """What is under way is finished, streams end."""
        if self._loop is not None and self._server is not None and self._hub is not None:
            self._server.should_exit = True
            with suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._hub.close)
        self._thread.join(GRACE + 3)
        self._socket.close()
        self._feed.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:
            log.exception("dashboard ended")
        finally:
            self._begun.set()

    async def _serve(self) -> None:
        self._loop, self._hub = asyncio.get_running_loop(), Hub()
        pages = Pages(self._settings, self._feed, self._door, self._hub, now=self._now)
        config = uvicorn.Config(
            cast(Any, pages.app),
            http=_Protocol,
            ws="none",
            loop="asyncio",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=GRACE,
            h11_max_incomplete_event_size=16 * 1024,
        )
        config.load()
        config.ssl = self._tls
        self._server = uvicorn.Server(config)
        tasks = [asyncio.create_task(self._hub.run()), asyncio.create_task(self._renew())]
        self._begun.set()
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            self._hub.close()
            for task in tasks:
                task.cancel()

    async def _renew(self) -> None:
        """New connections get a renewed certificate."""
        files, seen = self._settings.tls, _stamps(self._settings.tls)
        while self._tls is not None:
            await asyncio.sleep(RENEWED)
            if (now := _stamps(files)) != seen:
                seen = now
                try:
                    self._tls.load_cert_chain(str(files.cert_file), files.key_file)
                    log.info("certificate renewed")
                except (OSError, ssl.SSLError) as e:
                    log.warning("certificate not renewed", reason=str(e))


class _Protocol(H11Protocol):
    """Hangs up on who connects and says nothing."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        asyncio.get_running_loop().call_later(FIRST_WORDS, self._expect)

    def _expect(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def _listen(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except OSError as e:
        made.close()
        raise DashboardError(
            f"dashboard.listen: {address[0]}:{address[1]} cannot be listened on: {e.strerror or e}"
        ) from e
    return made


def _context(tls: Tls) -> ssl.SSLContext | None:
    """None without a certificate. Raises DashboardError."""
    if tls.cert_file is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(tls.cert_file, tls.key_file)
    except (OSError, ssl.SSLError) as e:
        raise DashboardError(
            f"dashboard.tls: {tls.cert_file}, {tls.key_file}: {getattr(e, 'strerror', None) or e}"
        ) from e
    return context


def _stamps(tls: Tls) -> object:
    out: list[object] = []
    for file in (tls.cert_file, tls.key_file):
        try:
            found = os.stat(str(file))
            out.append((found.st_mtime_ns, found.st_size, found.st_ino))
        except OSError as e:
            out.append(e.errno)
    return out
