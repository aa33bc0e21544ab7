"""How long ago an instant must be so that Prometheus says the same of it for ever: as long as a scrape may take."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from canaryd.adapters.prometheus import PrometheusSource
from canaryd.demo.processes import Nursery, fetch, wait_until
from canaryd.demo.prometheus import Prometheus
from canaryd.model import Reading
from canaryd.policy import ErrorSource
from canaryd.ports import CountsQuery

pytestmark = pytest.mark.prometheus

SCRAPE, SLOW = 1.0, 0.7  # seconds: from one scrape to the next, and until the page is there
STEP = timedelta(seconds=2)


class _Page(http.server.BaseHTTPRequestHandler):
    """A counter that grows by 100 a second; whoever asks waits nearly as long as a scrape may take."""

    def do_GET(self) -> None:
        value = int(time.time() * 100) % 10**9
        labels = 'reporter="destination",destination_workload="api-a",response_code="200",pod="p"'
        body = f"istio_requests_total{{{labels}}} {value}\n".encode()
        time.sleep(SLOW)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@contextmanager
def slow_page() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def read(source: PrometheusSource, at: datetime) -> Reading | None:
    asked = CountsQuery("api", "default", "api-a", "api-b", (at,), STEP, ErrorSource(), durations=False)
    readings = source.read([asked])["api"].readings
    return readings[-1] if readings else None


def test_an_instant_says_the_same_for_ever_once_a_scrape_interval_has_passed(
    tmp_path: Path, prometheus_binary: Path
) -> None:
    """A sample is dated when its scrape begins and is there when it ends, at the latest a scrape interval later."""
    lags = {lag: timedelta(seconds=lag) for lag in (0.2, SCRAPE + 0.2)}
    early: dict[float, dict[datetime, Reading | None]] = {lag: {} for lag in lags}
    with slow_page() as page, Nursery(tmp_path / "log") as nursery:
        server = Prometheus(nursery, tmp_path / "prometheus", page, f"{SCRAPE:g}s", binary=prometheus_binary)
        server.start()
        up = f"{server.url}/api/v1/query?query=up"
        wait_until(lambda: b'"1"' in fetch(up)[1], "the first scrape", timeout=20)
        source = PrometheusSource(server.url, timeout=timedelta(seconds=10), starts=False)
        time.sleep(2 * SCRAPE)
        for _ in range(30):  # over three scrapes, at every phase of them
            now = datetime.now(UTC)
            now = now.replace(microsecond=now.microsecond // 1000 * 1000)
            for lag, span in lags.items():
                early[lag][now - span] = read(source, now - span)
            time.sleep(0.1)
        time.sleep(2 * SCRAPE)
        changed = {lag: sum(read(source, at) != said for at, said in looks.items()) for lag, looks in early.items()}
    assert changed[SCRAPE + 0.2] == 0
    assert changed[0.2] > 0, "or this test could not see a sample that comes late"
