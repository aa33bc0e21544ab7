"""One pod's container: an HTTP server on its address, and the page of metrics that Istio's proxy beside it would show.

A bare HTTP/1.1 server (no pipelining, no TLS), because several dozen of these share one process and one core with the
whole control plane. It never closes a connection that is being answered.
"""

from __future__ import annotations

import asyncio
import math
import random
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from behaviour import Behaviour

PORT = 9898
METRICS_PORT = 15020
EDGES_MS = (
    0.5,
    1,
    5,
    10,
    25,
    50,
    100,
    250,
    500,
    1000,
    2500,
    5000,
    10000,
    30000,
    60000,
    300000,
    600000,
    1800000,
    3600000,
)
MEDIAN_MS, SPREAD = 8.0, 0.5  # the latency of an undisturbed answer is log-normal
TAIL_MS = 2000.0
REASONS = {200: b"OK", 500: b"Internal Server Error"}


@dataclass(frozen=True)
class Label:
    """Who a pod is, as Istio's metrics say it."""

    namespace: str
    pod: str
    workload: str
    app: str
    revision: str  # canonical revision
    tag: str

    def text(self) -> str:
        service = f"{self.app}.{self.namespace}.svc.cluster.local"
        pairs = {
            "reporter": "destination",
            "source_workload": "gw",
            "source_workload_namespace": "shop",
            "destination_workload": self.workload,
            "destination_workload_namespace": self.namespace,
            "destination_app": self.app,
            "destination_version": self.revision,
            "destination_service": service,
            "destination_service_name": self.app,
            "destination_service_namespace": self.namespace,
            "destination_canonical_service": self.app,
            "destination_canonical_revision": self.revision,
            "request_protocol": "http",
            "response_flags": "-",
            "grpc_response_status": "",
            "connection_security_policy": "none",
        }
        return ",".join(f'{name}="{value}"' for name, value in pairs.items())


class Counts:
    """Answers by status, with a histogram of their durations. Lives as long as the proxy: over container restarts."""

    def __init__(self) -> None:
        self.by_code: dict[int, tuple[list[int], list[float]]] = {}  # status → (bucket counts, [sum of ms])

    def add(self, code: int, milliseconds: float) -> None:
        entry = self.by_code.get(code)
        if entry is None:
            entry = self.by_code[code] = ([0] * (len(EDGES_MS) + 1), [0.0])
        entry[0][bisect_left(EDGES_MS, milliseconds)] += 1
        entry[1][0] += milliseconds

    def page(self, label: Label, memory_mib: float) -> str:
        """In Prometheus' text format."""
        shared = label.text()
        requests = ["# TYPE istio_requests_total counter"]
        durations = ["# TYPE istio_request_duration_milliseconds histogram"]
        for code, (buckets, (total,)) in self.by_code.items():
            labels = f'{shared},response_code="{code}"'
            requests.append(f"istio_requests_total{{{labels}}} {sum(buckets)}")
            name, seen = "istio_request_duration_milliseconds", 0
            for edge, count in zip((*EDGES_MS, "+Inf"), buckets, strict=True):
                seen += count
                durations.append(f'{name}_bucket{{{labels},le="{edge}"}} {seen}')
            durations += [f"{name}_sum{{{labels}}} {total:.3f}", f"{name}_count{{{labels}}} {seen}"]
        memory = [
            "# TYPE container_memory_working_set_bytes gauge",
            f'container_memory_working_set_bytes{{container="app"}} {memory_mib * 1024 * 1024:.0f}',
        ]
        return "\n".join([*requests, *durations, *memory, ""])


class Container:
    """Listens once `listen` was called; `drain`, `close` and `die` end it."""

    def __init__(self, address: str, label: Label, behaviour: Behaviour, counts: Counts) -> None:
        self.address = address
        self.label = label
        self.behaviour = behaviour
        self.counts = counts
        self.draining = False
        self.last_request = -math.inf  # of the event loop's clock
        self.connections: set[_Connection] = set()
        body = f"{label.workload} {label.tag} {label.pod}\n"
        by = f"X-Answered-By: {label.workload} {label.tag}"
        self.rest = f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n{by}\r\n\r\n{body}".encode()
        self._random = random.Random(label.pod)
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), self.address, PORT, backlog=1024, reuse_address=True
        )

    def answer(self) -> tuple[int, float]:
        """(status, milliseconds to wait before it is sent) of the next answer."""
        behaviour, draw = self.behaviour, self._random.random
        milliseconds = MEDIAN_MS * math.exp(SPREAD * self._random.gauss(0.0, 1.0)) + behaviour.slower_ms
        if behaviour.tail and draw() < behaviour.tail:
            milliseconds += TAIL_MS
        return (500 if behaviour.errors and draw() < behaviour.errors else 200), milliseconds

    def drain(self) -> None:
        """Go on answering, and say on each answer that the connection is to be closed."""
        self.draining = True

    def close(self) -> None:
        """Listen no more; connections end when what is being answered has been sent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.draining = True
        for connection in list(self.connections):
            connection.close_if_idle()

    def die(self) -> None:
        """Close everything at once, as a killed process does."""
        self.close()
        for connection in list(self.connections):
            connection.abort()


class _Connection(asyncio.Protocol):
    """One client's connection: one request at a time."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._buffer = b""
        self._pending: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._container.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._container.connections.discard(self)
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None

    def close_if_idle(self) -> None:
        if self._transport is not None and self._pending is None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._pending is None:
            self._next()

    def _next(self) -> None:
        length = request_length(self._buffer)
        if length is None:
            return
        self._buffer = self._buffer[length:]
        self._container.last_request = self._loop.time()
        code, milliseconds = self._container.answer()
        self._pending = self._loop.call_later(milliseconds / 1000, self._reply, code, milliseconds)

    def _reply(self, code: int, milliseconds: float) -> None:
        self._pending = None
        container, transport = self._container, self._transport
        assert transport is not None
        container.counts.add(code, milliseconds)
        closing = b"Connection: close\r\n" if container.draining else b""
        transport.write(b"HTTP/1.1 %d %s\r\n%s%s" % (code, REASONS[code], closing, container.rest))
        if container.draining:
            transport.close()
        elif self._buffer:
            self._next()


def request_length(data: bytes) -> int | None:
    """Bytes of the first whole request in `data`, body included; None while some are missing."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    end += 4
    head = data[:end].lower()
    if b"\r\ntransfer-encoding: chunked" in head:
        last = data.find(b"\r\n0\r\n\r\n", end - 2)
        return None if last < 0 else last + 7
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        end += int(head[at + 17 : head.index(b"\r\n", at + 17)])
    return end if len(data) >= end else None


async def serve_page(address: str, page: Callable[[], str]) -> asyncio.Server:
    """A server of one page, whatever is asked, on the metrics port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                body = page().encode()
                head = (
                    f"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {len(body)}\r\n\r\n"
                )
                writer.write(head.encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(answer, address, METRICS_PORT, reuse_address=True)
