"""Presses a server on loopback as hard as this machine can, to see where it says no."""

from __future__ import annotations

import selectors
import socket
import time
from collections import Counter
from contextlib import ExitStack

CONNECTIONS = 32


def request(path: str, host: str = "api", *, close: bool = False) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: {host}\r\n{'connection: close' if close else 'x-a: b'}\r\n\r\n".encode()


def pressed(port: int, path: str, seconds: float, host: str = "api") -> tuple[Counter[int], float]:
    """As many requests as this machine gives, one at a time on each connection (Envoy hangs up on pipelines).

    Answers by status, and how long it really took.
    """
    counts: Counter[int] = Counter()
    asked = request(path, host)
    with selectors.DefaultSelector() as ready, ExitStack() as open_ones:
        for _ in range(CONNECTIONS):
            connection = open_ones.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            ready.register(connection, selectors.EVENT_READ)
        began = time.monotonic()
        for key in list(ready.get_map().values()):
            key.fileobj.sendall(asked)  # type: ignore[union-attr]
        while (took := time.monotonic() - began) < seconds:
            for key, _ in ready.select(0.1):
                answer = key.fileobj.recv(65536)  # type: ignore[union-attr]
                counts[int(answer[9:12])] += 1
                key.fileobj.sendall(asked)  # type: ignore[union-attr]
    return counts, took
