"""A Prometheus API that lies on demand: it stands before a real one and changes what comes back."""

from __future__ import annotations

import http.client
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

FAULTS = ("http-500", "nan", "empty", "partial", "hangs", "nonsense")


class Faulty:
    """`fault` is one of FAULTS, or "" for the truth; it may be changed at any time."""

    def __init__(self, upstream: str) -> None:
        self.fault = ""
        self.asked = 0  # requests answered with a fault
        self._upstream = urlsplit(upstream).netloc
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, answer = owner.answer(self.path, body)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that has waited long enough hangs up."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body for one question."""
        fault = self.fault
        self.asked += bool(fault)
        if fault == "http-500":
            return 500, b'{"status":"error","errorType":"internal","error":"out of order"}'
        if fault == "nonsense":
            return 200, b"<html>please log in</html>"
        if fault == "hangs":
            time.sleep(5.0)
        status, answer = self._ask(path, body)
        return status, _changed(answer, fault) if status == 200 and fault else answer

    def _ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._upstream, timeout=5.0)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/x-www-form-urlencoded"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def _changed(answer: bytes, fault: str) -> bytes:
    told = json.loads(answer)
    if fault == "empty":
        told["data"]["result"] = []
    elif fault == "nan":
        for series in told["data"]["result"]:
            series["values"] = [[at, "NaN"] for at, _ in series["values"]]
    elif fault == "partial":
        told["warnings"] = ["a store did not answer"]
    return json.dumps(told).encode()
