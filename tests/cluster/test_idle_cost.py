"""What looking after a service costs when nothing happens, and when something does: counted where it is asked."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

import pytest
from bench import Bench, BenchPrometheus
from release_scenes import ACCOUNT, Service, canaryd, eventually, install, now, service, settings, sleep

INTERVAL_S = 2
INTERVALS = 15
PLAN = {"interval": f"{INTERVAL_S}s", "warmUp": "0s", "steps": [{"weight": 50, "bake": "5m"}]}


def asked(bench: Bench, since: datetime, until: datetime) -> Counter[tuple[str, str]]:
    """Requests of canaryd but for its Lease, and for the question whether the server is there when all is quiet."""
    counts = bench.audit.counts(ACCOUNT, since, until)
    return Counter({key: n for key, n in counts.items() if key[1] not in ("leases", "") and key[0] != "watch"})


def queries(prometheus: BenchPrometheus) -> int:
    """Questions that Prometheus has answered, by its own count."""
    with urllib.request.urlopen(f"{prometheus.url}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    found = re.findall(r'^prometheus_http_requests_total\{[^}]*handler="/api/v1/query[^}]*\} (\S+)$', page, re.M)
    return int(sum(map(float, found)))


@pytest.fixture(scope="module")
def adopted(mesh: Bench, prometheus: BenchPrometheus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    install(mesh)
    prometheus.configure(scrape="1s")
    with canaryd(mesh, tmp_path_factory.mktemp("idle"), settings(prometheus, scrape="1s")):
        api = service(mesh, "api", rps=50, **PLAN)
        api.adopted()
        yield api


def test_an_idle_canary_asks_neither_the_api_server_nor_prometheus(
    mesh: Bench, prometheus: BenchPrometheus, adopted: Service
) -> None:
    eventually(lambda: bool(adopted.events("Adopted")), "the adoption to be told")
    sleep(2)  # what follows from that
    began, before = now(), queries(prometheus)
    sleep(INTERVALS * INTERVAL_S)
    assert asked(mesh, began, now()) == {}
    assert queries(prometheus) == before


def test_a_canary_under_way_is_saved_at_most_once_in_an_interval(
    mesh: Bench, prometheus: BenchPrometheus, adopted: Service
) -> None:
    adopted.app.set_image("demo/app:v2")
    adopted.until("Progressing")
    sleep(INTERVAL_S)
    began, before = now(), queries(prometheus)
    sleep(5 * INTERVAL_S)
    counts = asked(mesh, began, now())
    assert queries(prometheus) > before
    assert adopted.phase() == "Progressing"
    assert 1 <= counts["patch", "canaries/status"] <= 6
    assert set(counts) <= {("patch", "canaries/status"), ("get", "configmaps"), ("create", "configmaps")}
