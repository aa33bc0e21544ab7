"""/metrics, /healthz, /readyz and /status over HTTP: read-only, small answers, nothing to change."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from canaryd.errors import CanarydError

Page = tuple[int, str, bytes]  # status, content type, body
REQUEST_TIMEOUT = 5.0  # seconds that a client may take over its request
MOST_CLIENTS = 64  # at the same time; more are closed at once


class WebError(CanarydError):
    """The address cannot be listened on."""


def text(status: int, words: str) -> Page:
    return status, "text/plain; charset=utf-8", words.encode() + b"\n"


def as_json(status: int, value: Any) -> Page:
    return status, "application/json", json.dumps(value).encode() + b"\n"


class Server:
    """Serves a fixed set of pages from a background thread."""

    def __init__(self, address: tuple[str, int], pages: Mapping[str, Callable[[], Page]]) -> None:
        """Listens at once; port 0 takes any free one. Raises WebError."""
        try:
            self._server = _server(address, pages)
        except OSError as e:
            raise WebError(f"web.listen: {address[0]}:{address[1]} cannot be listened on: {e.strerror}") from e
        self.address: tuple[str, int] = self._server.server_address[:2]  # type: ignore[assignment]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.5,), name="web", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _server(address: tuple[str, int], pages: Mapping[str, Callable[[], Page]]) -> ThreadingHTTPServer:
    slots = threading.BoundedSemaphore(MOST_CLIENTS)

    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT
        server_version, sys_version = "canaryd", ""
        wbufsize = -1  # header and body leave in one packet

        def do_GET(self) -> None:
            make = pages.get(self.path.partition("?")[0])
            status, kind, body = make() if make else text(404, f"there is {', '.join(pages)}")
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - as above

        def log_message(self, format: str, *args: Any) -> None:
            """Probes every few seconds are not worth a line."""

    class Bounded(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True
        address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET

        def process_request(self, request: Any, client_address: Any) -> None:
            if not slots.acquire(blocking=False):
                self.shutdown_request(request)
                return
            super().process_request(request, client_address)

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            try:
                super().process_request_thread(request, client_address)
            finally:
                slots.release()

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that hangs up is not an error of ours."""

    return Bounded(address, Handler)
