"""An HTTP server on loopback that answers as a test says: for faults that a healthy API server does not show."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from canaryd.kube.client import KubeClient

TOKEN = "token-that-nobody-may-see"


@dataclass(frozen=True)
class Said:
    """One answer."""

    body: Any = field(default_factory=dict)  # bytes as they are, anything else as JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False  # close the connection instead of answering
    pause: float = 0.0  # seconds before the body
    drip: float = 0.0  # seconds after each byte of the body
    lasts: float | None = None  # seconds until the end of a body whose length is not told, as a watch's


def refused(status: int, reason: str, message: str = "", **headers: str) -> Said:
    body = {"kind": "Status", "apiVersion": "v1", "reason": reason, "message": message, "code": status, "details": {}}
    return Said(body, status, {key.replace("_", "-"): value for key, value in headers.items()})


def events(*of: tuple[str, Any], lasts: float = 0.0) -> Said:
    """A watch with these events at once, that ends after so many seconds."""
    lines = [json.dumps({"type": what, "object": obj}).encode() + b"\n" for what, obj in of]
    return Said(b"".join(lines), lasts=lasts)


@dataclass
class Heard:
    """One request that came."""

    at: float  # on time.monotonic()
    method: str
    path: str
    token: str
    body: bytes


class Script:
    """The server: `answer` is called for each request."""

    def __init__(self, answer: Callable[[Heard], Said]) -> None:
        self.answer = answer
        self.heard: list[Heard] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                token = self.headers.get("Authorization", "").partition(" ")[2]
                heard = Heard(time.monotonic(), self.command, self.path, token, body)
                script.heard.append(heard)
                said = script.answer(heard)
                if said.cut:
                    self.close_connection = True
                    return
                data = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
                self.send_response(said.status)
                for name, value in said.headers.items():
                    self.send_header(name, value)
                length = ("Content-Length", str(len(data))) if said.lasts is None else ("Transfer-Encoding", "chunked")
                self.send_header(*length)
                self.end_headers()
                time.sleep(said.pause)
                with suppress(OSError):  # the client has had enough
                    if said.lasts is not None:
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if data else b"")
                        time.sleep(said.lasts)
                        self.wfile.write(b"0\r\n\r\n")
                        return
                    for part in [bytes([byte]) for byte in data] if said.drip else [data]:
                        self.wfile.write(part)
                        time.sleep(said.drip)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def kubeconfig(self, directory: Path, token: str = TOKEN) -> Path:
        """A kubeconfig for it."""
        file = directory / "kubeconfig"
        (directory / "token").write_text(token + "\n")
        user = {"name": "u", "user": {"tokenFile": str(directory / "token")}}
        context = {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}
        whole = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [user],
            "contexts": [context],
            "current-context": "here",
        }
        file.write_text(json.dumps(whole))
        return file


@contextmanager
def scripted(directory: Path, answer: Callable[[Heard], Said], **options: Any) -> Iterator[tuple[Script, KubeClient]]:
    """The server and a client of it."""
    script = Script(answer)
    client = KubeClient.connect(kubeconfig=str(script.kubeconfig(directory)), **options)
    try:
        yield script, client
    finally:
        client.close()
        script.close()


def in_turn(*answers: Said) -> Callable[[Heard], Said]:
    """These answers one after the other; the last one for ever."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]
