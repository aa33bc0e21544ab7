"""A small server that answers as one generation of Jaeger does, from spans that were put into it.

For what a real one cannot show: generations that cannot be built, and spans that its receiver would refuse. The real
one is asked the same questions in tests/parts/test_jaeger.py.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from canaryd.spans import nanoseconds

PAGE = b"<!doctype html><title>Jaeger UI</title>"
SNAKE = {"service": "query.service_name", "from": "query.start_time_min", "to": "query.start_time_max"}
CAMEL = {"service": "query.serviceName", "from": "query.startTimeMin", "to": "query.startTimeMax"}


def otlp_span(
    trace: str,
    id_: str,
    *,
    start: int,
    ms: float = 5.0,
    parent: str = "",
    name: str = "GET /",
    kind: int = 2,
    error: bool = False,
    **tags: str,
) -> dict[str, Any]:
    """One span as OTLP writes it; underscores in the names of tags stand for dots."""
    return {
        "traceId": trace.rjust(32, "0"),
        "spanId": id_.rjust(16, "0"),
        "parentSpanId": parent.rjust(16, "0") if parent else "",
        "name": name,
        "kind": kind,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(start + round(ms * 1e6)),
        "attributes": [{"key": k.replace("_", "."), "value": {"stringValue": v}} for k, v in tags.items()],
        "status": {"code": 2} if error else {},
    }


class JaegerLike:
    """`generation`: "1.60", "2.13", "2.20" or "2.21". `most`: the largest search depth that its storage allows."""

    def __init__(self, generation: str, *, most: int = 10_000) -> None:
        self.generation, self.most = generation, most
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.headers: list[Mapping[str, str]] = []
        self._traces: dict[str, list[tuple[dict[str, str], Any]]] = defaultdict(list)
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def put(self, service: str, *spans: Any, **resource: str) -> None:
        """These have arrived, from a process of this service."""
        for span in spans:
            about = {"service.name": service, **{k.replace("_", "."): v for k, v in resource.items()}}
            trace = span.get("traceId", "") if isinstance(span, dict) else ""
            self._traces[str(trace)].append((about, span))

    @contextmanager
    def serving(self) -> Iterator[JaegerLike]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                given = {k: v[0] for k, v in parse_qs(parts.query).items()}
                outer.asked.append((parts.path, given))
                outer.headers.append(dict(self.headers))
                status, body = outer.answer(parts.path, given)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.port = server.server_address[1]
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()

    def answer(self, path: str, given: Mapping[str, str]) -> tuple[int, bytes]:
        """Status and body; a path that this generation does not know shows the page of the user interface."""
        v3, legacy = self.generation != "1.60", self.generation != "2.21"
        if path == "/api/v3/services" and v3:
            return _json({"services": self._services()})
        if path == "/api/services" and legacy:
            return _json({"data": self._services(), "total": 0, "errors": None})
        if path == "/api/v3/trace-summaries" and self.generation >= "2.20":
            return _error(400, "query.startTimeMin and query.startTimeMax are required")
        if path == "/api/v3/traces" and v3:
            return self._v3(given)
        if path == "/api/traces" and legacy:
            return self._legacy(given)
        return 200, PAGE

    def _services(self) -> list[str]:
        return sorted({about["service.name"] for spans in self._traces.values() for about, _ in spans})

    def _v3(self, given: Mapping[str, str]) -> tuple[int, bytes]:
        names = SNAKE if self.generation == "2.13" or "query.service_name" in given else CAMEL
        if names["from"] not in given or names["to"] not in given:
            return _error(400, f"{names['from']} and {names['to']} are required")
        depth = int(given.get("query.searchDepth" if names is CAMEL else "query.num_traces", 0))
        if not 0 < depth <= self.most:
            return _error(500, "search depth must be greater than 0 and less than max traces")
        start, end = (nanoseconds(datetime.fromisoformat(given[names[k]])) for k in ("from", "to"))
        found = self._search(given[names["service"]], start, end, depth)
        if not found:
            return _error(404, "No traces found")
        processes = [
            {
                "resource": {
                    "attributes": [{"key": k, "value": {"stringValue": v}} for k, v in about.items()],
                },
                "scopeSpans": [{"scope": {}, "spans": [span]}],
            }
            for spans in found
            for about, span in spans
        ]
        return _json({"result": {"resourceSpans": processes}})

    def _legacy(self, given: Mapping[str, str]) -> tuple[int, bytes]:
        start, end = int(given["start"]) * 1000, int(given["end"]) * 1000
        found = self._search(given["service"], start, end, int(given.get("limit", 20)))
        data = []
        for spans in found:
            processes = {
                f"p{i}": {
                    "serviceName": about["service.name"],
                    "tags": [{"key": k, "type": "string", "value": v} for k, v in about.items() if k != "service.name"],
                }
                for i, (about, _) in enumerate(spans)
            }
            listed = [_legacy_span(span, f"p{i}") for i, (_, span) in enumerate(spans)]
            data.append({"traceID": listed[0]["traceID"], "spans": listed, "processes": processes, "warnings": None})
        return _json({"data": data, "total": 0, "limit": 0, "offset": 0, "errors": None})

    def _search(self, service: str, start: int, end: int, depth: int) -> list[list[tuple[dict[str, str], Any]]]:
        """The latest to arrive, as the memory storage does."""
        found = []
        for spans in reversed(self._traces.values()):
            own = [span for about, span in spans if about["service.name"] == service]
            if any(start <= int(span["startTimeUnixNano"]) <= end for span in own if isinstance(span, dict)):
                found.append(spans)
        return found[:depth]


def _legacy_span(span: Any, process: str) -> dict[str, Any]:
    start, end = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
    kinds = ("", "internal", "server", "client")
    tags = [{"key": a["key"], "type": "string", "value": a["value"]["stringValue"]} for a in span["attributes"]]
    tags.append({"key": "span.kind", "type": "string", "value": kinds[span["kind"]]})
    if span["status"].get("code") == 2:
        tags.append({"key": "error", "type": "bool", "value": True})
    parent = {"refType": "CHILD_OF", "traceID": span["traceId"], "spanID": span["parentSpanId"]}
    return {
        "traceID": span["traceId"],
        "spanID": span["spanId"],
        "operationName": span["name"],
        "references": [parent] if span["parentSpanId"] else [],
        "startTime": start // 1000,
        "duration": (end - start) // 1000,
        "tags": tags,
        "processID": process,
    }


def _json(value: Any) -> tuple[int, bytes]:
    return 200, json.dumps(value).encode()


def _error(status: int, message: str) -> tuple[int, bytes]:
    return status, json.dumps({"error": {"httpCode": status, "message": message}}).encode()
