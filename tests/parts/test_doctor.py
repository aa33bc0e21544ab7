"""The doctor's findings about a Prometheus, on a real one that scrapes an exporter which tells what it is told to."""

from __future__ import annotations

import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from canaryd.adapters.prometheus import PrometheusSource
from canaryd.adapters.prometheus_health import health
from canaryd.demo import prometheus
from canaryd.demo.processes import Nursery, fetch, free_port, wait_until
from canaryd.doctor import traffic
from canaryd.doctor.findings import Finding
from canaryd.doctor.series import series
from canaryd.doctor.traffic import Subject
from canaryd.errors import SourceError
from canaryd.policy import Canary, parse_canary

pytestmark = pytest.mark.prometheus

SCRAPE = 0.4  # seconds
REQUESTS, BUCKETS = "istio_requests_total", "istio_request_duration_milliseconds_bucket"
QUERY = {"stable": "ours{workload='{{workload}}'}", "canary": "ours{workload='{{workload}}'}"}
LOST = {"stable": "nobodys{workload='{{workload}}'}", "canary": "nobodys{workload='{{workload}}'}"}


class Exporter:
    """Counters of api-a (stable) and api-b that rise with the time; `lost` are left out."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.lost: set[str] = set()
        exporter = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(exporter.text().encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def text(self) -> str:
        n = 1000 + int(400 * (time.monotonic() - self.began))
        lines = []
        for workload, edges in (("api-a", ("5", "25", "100", "+Inf")), ("api-b", ("5", "100", "+Inf"))):
            labels = f'reporter="destination",destination_workload="{workload}",pod="{workload}-1"'
            for code, count in (("200", n), ("503", n // 100)):
                if f"{workload}/{code}" not in self.lost:
                    lines.append(f'{REQUESTS}{{{labels},response_code="{code}"}} {count}')
            lines += [f'{BUCKETS}{{{labels},le="{le}"}} {n if le == "+Inf" else n // 2}' for le in edges]
            lines.append(f'ours{{workload="{workload}",pod="{workload}-1"}} {n}')
        return "\n".join(lines) + "\n"


def document(**spec: Any) -> Canary:
    return parse_canary(
        {
            "apiVersion": "canaryd.io/v1alpha1",
            "kind": "Canary",
            "metadata": {"name": "api"},
            "spec": {
                "workloads": {"pools": ["api-a", "api-b"]},
                "route": {"envoyFile": {"path": "/tmp/api.yaml"}},
                "interval": "1s",
                "warmUp": "0s",
                **spec,
            },
        }
    )


class Scene:
    """A Prometheus that has scraped for some seconds."""

    def __init__(self, url: str, exporter: Exporter) -> None:
        self.url, self.exporter = url, exporter

    def subject(self, canary: Canary, **more: Any) -> Subject:
        source = PrometheusSource(self.url, lag=timedelta(seconds=1))

        def ask(canary: Canary, stable: str, workload: str) -> Any:
            return health(self.url, REQUESTS, (stable, workload), "default", over=timedelta(seconds=20), **more)

        return Subject(canary, "api", "api-a", "api-b", source, datetime.now(UTC), ask)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    if prometheus.find() is None:
        pytest.skip(prometheus.HOW_TO_GET_IT)
    directory: Path = tmp_path_factory.mktemp("doctor")
    exporter = Exporter()
    url = f"http://127.0.0.1:{exporter.server.server_port}/metrics"
    with Nursery(directory / "log") as nursery:
        server = prometheus.Prometheus(nursery, directory, url, "400ms")
        server.start()

        def scraped() -> bool:
            _, body = fetch(f"{server.url}/api/v1/query?query=min(count_over_time({REQUESTS}[1m]))")
            return any(float(one["value"][1]) >= 12 for one in json.loads(body)["data"]["result"])

        wait_until(scraped, "a dozen scrapes", 20)
        yield Scene(server.url, exporter)
    exporter.server.shutdown()
    exporter.server.server_close()


def worst(found: list[Finding]) -> Finding:
    return max(found, key=lambda f: ("fine", "warning", "error").index(str(f.severity)))


def test_the_clock_and_the_time_between_scrapes_are_those_of_the_server(scene: Scene) -> None:
    subject = scene.subject(document())
    seen = health(scene.url, REQUESTS, ("api-a", "api-b"), "default", over=timedelta(seconds=20))
    assert seen.spacing is not None
    assert seen.spacing.total_seconds() == pytest.approx(SCRAPE, abs=0.1)
    assert abs(seen.ahead) < timedelta(seconds=0.1)
    assert str(worst(list(traffic.prometheus([subject]))).severity) == "fine"


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_machine_whose_clock_is_wrong_is_told_so(scene: Scene, hours: int) -> None:
    subject = scene.subject(document(), clock=lambda: datetime.now(UTC) + timedelta(hours=hours))
    found = worst(list(traffic.prometheus([subject])))
    assert "1 h " in found.what
    assert ("behind" if hours > 0 else "ahead of") in found.what
    assert str(found.severity) == ("error" if hours > 0 else "warning")


def test_an_interval_shorter_than_the_scrapes_is_told(scene: Scene) -> None:
    found = worst(list(traffic.prometheus([scene.subject(document(interval="500ms"))])))
    assert str(found.severity) == "warning"
    assert "set spec.interval to at least" in found.remedy


def test_an_unknown_workload_has_no_samples(scene: Scene) -> None:
    seen = health(scene.url, REQUESTS, ("nobody",), "default", over=timedelta(seconds=20))
    assert seen.spacing is None


def test_a_server_that_is_not_there_is_one_error() -> None:
    with pytest.raises(SourceError, match="refused"):
        health(f"http://127.0.0.1:{free_port()}", REQUESTS, ("a",), "default", over=timedelta(seconds=20))


def test_both_versions_have_series_now(scene: Scene) -> None:
    subject = scene.subject(document())
    assert subject.source is not None
    found = list(series(subject.canary, subject.source, "api-a", "api-b", subject.at, canary_expected=True))
    assert [str(f.severity) for f in found] == ["fine", "fine"]
    absent = list(series(subject.canary, subject.source, "api-a", "api-c", subject.at, canary_expected=True))
    assert [str(f.severity) for f in absent] == ["fine", "error"]


def test_bucket_edges_that_one_version_lacks_are_named(scene: Scene) -> None:
    found = worst(list(traffic.buckets([scene.subject(document())])))
    assert str(found.severity) == "error"
    assert "25 ms are not everywhere" in found.what
    assert "pod api-b-1" in found.what
    only_errors = document(metrics=[{"name": "errors", "kind": "errors"}])
    assert list(traffic.buckets([scene.subject(only_errors)])) == []


def test_metrics_of_ones_own_have_series_or_are_told(scene: Scene) -> None:
    own = [{"name": "errors", "kind": "errors"}]
    good = document(metrics=[*own, {"name": "mine", "kind": "gauge", "query": QUERY}])
    assert [str(f.severity) for f in traffic.own_metrics([scene.subject(good)])] == ["fine"]
    bad = document(metrics=[*own, {"name": "theirs", "kind": "gauge", "query": LOST}])
    (found,) = traffic.own_metrics([scene.subject(bad)])
    assert (str(found.severity), "theirs" in found.what) == ("error", True)


@pytest.mark.skipif(not os.environ.get("CANARYD_LONG"), reason="ten seconds of arithmetic; CANARYD_LONG=1")
def test_the_power_is_that_of_the_traffic_there_was(scene: Scene) -> None:
    def enough() -> bool:
        return len(scene.subject(document()).past.readings) > 12

    wait_until(enough, "a dozen intervals", 20)
    found = list(
        traffic.power([scene.subject(document(steps=[{"weight": 50, "bake": "10s"}], budget={"share": "5%"}))])
    )
    assert found
    assert all("requests/s" in f.what for f in found)


def test_a_series_that_vanishes_while_its_process_goes_on_is_found(scene: Scene) -> None:
    before = list(traffic.resets([scene.subject(document())]))
    assert [str(f.severity) for f in before] == ["fine"]
    scene.exporter.lost.add("api-a/503")

    def seen() -> bool:
        return any(str(f.severity) == "warning" for f in traffic.resets([scene.subject(document())]))

    wait_until(seen, "the doctor to see that a series is gone", 20)
    (found,) = traffic.resets([scene.subject(document())])
    assert "1 series of api-a-1 vanished" in found.what
    assert "statsEvictionInterval" in found.remedy
