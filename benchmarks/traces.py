"""What 1000 traces of 30 spans cost: read from a server, counted by operation, and compared for people.

    python benchmarks/traces.py [--traces 1000]

A server in a process of its own answers as Jaeger's v3 API does, from traces as a mesh makes them: of the 30 spans ten
are a proxy's with 19 attributes and twenty an application's with six, 28 MB in all. Measured is this process alone: the
search (with the halving that its limit of 500 traces brings), the tally by operation, and the evidence; CPU time, best
and median of five, and by how much its peak of memory grows. Exits with 1 above 1 s or 100 MB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import statistics
import sys
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import parse_qs, urlsplit

from canaryd import tally
from canaryd.adapters.jaeger import JaegerSource
from canaryd.ports import TraceQuery
from canaryd.spans import ArmTags, nanoseconds
from canaryd.traces.evidence import shown
from canaryd.traces.requests import requests

LIMIT_S, LIMIT_MB = 1.0, 100.0
RUNS = 5
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
ARMS = ArmTags("istio.canonical_revision", ("v1",), ("v2",))
APPLICATION = {"http.request.method": "GET", "http.response.status_code": "200", "url.path": "/items/17"}
APPLICATION |= {"server.address": "127.0.0.1", "network.protocol.version": "1.1", "thread.id": "17"}
PROXY = {
    "http.status_code": "200",
    "http.method": "GET",
    "http.url": "http://api.shop/items/17?page=2",
    "http.protocol": "HTTP/1.1",
    "response_flags": "-",
    "upstream_cluster": "inbound|8080||",
    "upstream_cluster.name": "inbound|8080||;",
    "component": "proxy",
    "guid:x-request-id": "1f9c24e8-3b12-4fef-91e0-5e2b3e5d7a01",
    "request_size": "0",
    "response_size": "1234",
    "peer.address": "10.1.2.3",
    "user_agent": "curl/8.5",
    "downstream_cluster": "-",
    "istio.canonical_service": "api",
    "istio.mesh_id": "cluster.local",
    "istio.namespace": "shop",
    "node_id": "sidecar~10.2.3.4~api-7d9f8c-abcde.shop~shop.svc.cluster.local",
}


def trace(number: int, at: int) -> str:
    """The elements of `resourceSpans` of one trace: thirty spans of six services, every third of them a proxy's."""
    out = []
    version = "v2" if number % 5 == 0 else "v1"
    for i in range(30):
        service = "api" if i < 2 else f"service-{i % 6}"
        tags = {**PROXY, "istio.canonical_revision": version} if i % 3 == 0 else APPLICATION
        span: dict[str, Any] = {
            "traceId": f"{number:032x}",
            "spanId": f"{number * 30 + i:016x}",
            "parentSpanId": f"{number * 30 + (i - 1) // 2:016x}" if i else "",
            "name": f"{service}.shop.svc.cluster.local:80/*" if i % 3 == 0 else f"GET /items/{{id}}/{i}",
            "kind": 2 if i % 2 == 0 else 3,
            "startTimeUnixNano": str(at + i * 10**5),
            "endTimeUnixNano": str(at + i * 10**5 + random.Random(number * 30 + i).randrange(10**6, 10**8)),
            "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in tags.items()],
            "status": {},
        }
        resource_ = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
        out.append({"resource": resource_, "scopeSpans": [{"scope": {}, "spans": [span]}]})
    return json.dumps(out, separators=(",", ":"))[1:-1]


def serve(count: int, told: Connection) -> None:
    """Until it is ended: traces spread over a minute, the newest first."""
    at = [nanoseconds(START) + 1000 + i * (60 * 10**9 // count) for i in range(count)]
    traces = [trace(i + 1, at[i]) for i in range(count)]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            given = {k: v[0] for k, v in parse_qs(parts.query).items()}
            body = b'{"services":["api"]}' if parts.path.endswith("services") else b"<html>"
            if parts.path == "/api/v3/traces":
                start, end = (
                    nanoseconds(datetime.fromisoformat(given[f"query.start_time_{k}"])) for k in ("min", "max")
                )
                found = [text for text, t in zip(traces, at, strict=True) if start <= t <= end]
                newest = found[::-1][: int(given["query.num_traces"])]
                body = ('{"result":{"resourceSpans":[' + ",".join(newest) + "]}}").encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        told.send((server.server_address[1], sum(map(len, traces))))
        server.serve_forever()


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def once(source: JaegerSource) -> tuple[dict[str, float], int]:
    """Seconds of CPU of each part, and how many spans there were."""
    query = TraceQuery("api", "api", START, START + MINUTE, ARMS)
    marks = [time.process_time()]
    answer = source.find(query)
    assert answer.complete, answer.note
    marks.append(time.process_time())
    counted = tally.of_spans(answer.spans, "api", query.start, query.end, complete=True)
    marks.append(time.process_time())
    evidence = shown(source, requests(answer.spans, "api"), [])
    marks.append(time.process_time())
    assert evidence["exemplars"]
    assert len(counted.operations) >= 1
    names = ("search", "tally", "evidence")
    return {name: b - a for name, a, b in zip(names, marks, marks[1:], strict=False)}, len(answer.spans)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=1000)
    count = parser.parse_args().traces
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(count, theirs), daemon=True)
    server.start()
    try:
        port, size = ours.recv()
        source = JaegerSource(f"http://127.0.0.1:{port}", timeout=timedelta(seconds=60))
        source.services()  # what is loaded at the first use is loaded
        before = peak_mb()
        runs = [once(source) for _ in range(RUNS)]
        grown = peak_mb() - before
    finally:
        server.terminate()
        server.join()
    totals = sorted(sum(parts.values()) for parts, _ in runs)
    best = min((parts for parts, _ in runs), key=lambda parts: sum(parts.values()))
    print(f"{count} traces, {runs[0][1]} spans, {size / 1e6:.0f} MB of JSON")
    print(f"CPU: best {totals[0]:.2f} s, median {statistics.median(totals):.2f} s (limit {LIMIT_S:g} s)")
    print("     " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in best.items()))
    print(f"memory: peak grew by {grown:.0f} MB (limit {LIMIT_MB:g} MB)")
    return 1 if totals[0] > LIMIT_S or grown > LIMIT_MB else 0


if __name__ == "__main__":
    sys.exit(main())
