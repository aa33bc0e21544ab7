"""How long one look at the counters of 50 canaries takes: from a real Prometheus, and from a text page directly.

    python benchmarks/sources.py [--canaries 50]

A page with growing counters is served on loopback: each canary has two workloads with three pods, two response codes
and 20 buckets each (6600 series for 50 canaries). Prometheus scrapes it every second and is asked for one new
interval of 4 s, as every tick does for all canaries at once. Best and median of ten. Exits with 1 when a look takes
longer than 2 s; without Prometheus only the page is measured, and it says so.
"""

from __future__ import annotations

import argparse
import http.server
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from canaryd.adapters.memory import EDGES_MS
from canaryd.adapters.prometheus import PrometheusSource
from canaryd.adapters.scrape import ScrapeSource
from canaryd.demo import prometheus
from canaryd.demo.processes import Nursery
from canaryd.measure import grid_floor
from canaryd.policy import ErrorSource
from canaryd.ports import CountsQuery, MetricSource

LIMIT_S = 2.0
RUNS = 10
STEP = timedelta(seconds=4)


def page(canaries: int, seconds: float) -> bytes:
    """Istio's counters of all canaries after so many seconds, with Envoy's prefix."""
    out = []
    for i in range(canaries):
        for pool in (f"s{i}-blue", f"s{i}-green"):
            for pod in range(3):
                labels = f'destination_workload="{pool}",pod="{pool}-{pod}",reporter="destination"'
                n = int(seconds * 10)
                for code, count in (("200", n), ("500", n // 500)):
                    name = "envoy_istio_requests_total"
                    out.append(f'{name}{{{labels},response_code="{code}",response_flags="-"}} {count}')
                for k, edge in enumerate(EDGES_MS):
                    le = "+Inf" if edge == float("inf") else f"{edge:g}"
                    name = "envoy_istio_request_duration_milliseconds_bucket"
                    out.append(f'{name}{{{labels},le="{le}"}} {n * (k + 1) // len(EDGES_MS)}')
    return ("\n".join(out) + "\n").encode()


class Exporter:
    """Serves the page from a thread of its own; the page is made once per second, not per request."""

    def __init__(self, canaries: int) -> None:
        began = time.monotonic()
        made: dict[int, bytes] = {}

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                second = int(time.monotonic() - began)
                if second not in made:
                    made.clear()
                    made[second] = page(canaries, second)
                body = made[second]
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/stats/prometheus"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def queries(canaries: int, end: datetime, intervals: int) -> list[CountsQuery]:
    points = tuple(end - STEP * (intervals - i) for i in range(intervals + 1))
    return [
        CountsQuery(f"s{i}", "default", f"s{i}-blue", f"s{i}-green", points, STEP, ErrorSource())
        for i in range(canaries)
    ]


def timed(work: Callable[[], int]) -> tuple[list[float], int]:
    """Seconds of each run, and how many series the last one brought."""
    times, series = [], 0
    for _ in range(RUNS):
        began = time.perf_counter()
        series = work()
        times.append(time.perf_counter() - began)
    return times, series


def look(source: MetricSource, asked: list[CountsQuery]) -> int:
    answers = source.read(asked)
    return sum(len(a.readings[-1].counters) for a in answers.values() if a.readings)


def line(name: str, times: list[float], series: int) -> None:
    best, middle = min(times) * 1e3, statistics.median(times) * 1e3
    print(f"{name:<34} {series:>7} {best:>8.0f} ms {middle:>8.0f} ms")


def await_samples(source: MetricSource, canaries: int) -> list[CountsQuery]:
    """Queries for an interval both of whose ends Prometheus has seen; its first scrape takes a while to come."""
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        time.sleep(1)
        asked = queries(canaries, grid_floor(datetime.now(UTC) - timedelta(seconds=1), STEP), 1)
        if all(len(answer.readings) == 2 for answer in source.read(asked).values()):
            return asked
    raise SystemExit("sources: Prometheus has no samples of all canaries after 40 s")


def from_prometheus(url: str, canaries: int) -> float:
    """Measures through a Prometheus that scrapes `url`; returns the best time for one interval."""
    with tempfile.TemporaryDirectory() as directory, Nursery(Path(directory) / "log") as nursery:
        server = prometheus.Prometheus(nursery, Path(directory) / "prometheus", url, "1s")
        server.start()
        source = PrometheusSource(server.url, timeout=timedelta(seconds=20))
        asked = await_samples(source, canaries)
        one, series = timed(lambda: look(source, asked))
        line("prometheus, one interval", one, series)
    return min(one)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--canaries", type=int, default=50)
    canaries = parser.parse_args().canaries
    exporter = Exporter(canaries)
    print(f"{f'{canaries} canaries':<34} {'series':>7} {'best':>11} {'median':>11}")
    scrape = ScrapeSource([exporter.url], timeout=timedelta(seconds=10))
    times, series = timed(lambda: look(scrape, queries(canaries, datetime.now(UTC), 0)))
    line("scrape, one page", times, series)
    worst = min(times)
    if prometheus.find() is None:
        print(f"NOT MEASURED: {prometheus.HOW_TO_GET_IT}")
    else:
        worst = max(worst, from_prometheus(exporter.url, canaries))
    print(f"limit {LIMIT_S:g} s for one look")
    return 0 if worst <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
