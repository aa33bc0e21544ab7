"""A tracer of a few lines for the demo's services: spans as OTLP JSON to a collector on 127.0.0.1.

It follows the decision of whoever called (W3C `traceparent`): a request that was not sampled leaves no span. What the
collector does not take is dropped; a service never waits for its tracer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

FLUSH_S = 0.5
MAX_WAITING = 5000  # spans
SERVER, CLIENT = 2, 3  # kinds in OTLP

_TRACEPARENT = re.compile(rb"\r\ntraceparent:[ \t]*00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", re.IGNORECASE)


@dataclass(frozen=True)
class Context:
    """Whose request it is: a trace and the span above."""

    trace: str
    span: str

    @classmethod
    def of(cls, head: bytes) -> Context | None:
        """From the head of a request; None where nothing is to be traced."""
        found = _TRACEPARENT.search(head)
        if found is None or not int(found[3], 16) & 1:
            return None
        return cls(found[1].decode(), found[2].decode())

    def below(self) -> Context:
        """A new span of the same trace."""
        return Context(self.trace, secrets.token_hex(8))

    @property
    def header(self) -> str:
        return f"traceparent: 00-{self.trace}-{self.span}-01\r\n"


class Tracer:
    """The spans of one process."""

    def __init__(self, service: str, version: str, port: int) -> None:
        """`port` of the collector's OTLP over HTTP."""
        self._port = port
        self._resource = {"attributes": _attributes({"service.name": service, "service.version": version})}
        self._waiting: list[dict[str, Any]] = []

    def record(
        self, here: Context, above: Context, name: str, kind: int, began: int, *, failed: bool, **tags: str
    ) -> None:
        """A span that began at `began` (ns since the epoch) and ends now; `__` in names of tags stands for a dot."""
        if len(self._waiting) >= MAX_WAITING:
            return
        span = {
            "traceId": here.trace,
            "spanId": here.span,
            "parentSpanId": above.span,
            "name": name,
            "kind": kind,
            "startTimeUnixNano": str(began),
            "endTimeUnixNano": str(time.time_ns()),
            "attributes": _attributes({key.replace("__", "."): value for key, value in tags.items()}),
            "status": {"code": 2} if failed else {},
        }
        self._waiting.append(span)

    async def run(self) -> None:
        """Send what there is, again and again, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()

    async def flush(self) -> None:
        """Send what there is; what nobody takes is lost."""
        spans, self._waiting = self._waiting, []
        if not spans:
            return
        body = json.dumps({"resourceSpans": [{"resource": self._resource, "scopeSpans": [{"spans": spans}]}]}).encode()
        head = "POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
        with contextlib.suppress(OSError, TimeoutError):
            await exchange(self._port, f"{head}content-length: {len(body)}\r\n\r\n".encode() + body, timeout=2.0)


async def exchange(port: int, request: bytes, timeout: float) -> bytes:
    """Everything that 127.0.0.1:`port` answers to one request. Raises OSError or TimeoutError."""
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            return await reader.read()
        finally:
            writer.close()


def _attributes(tags: dict[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": value}} for key, value in tags.items()]
