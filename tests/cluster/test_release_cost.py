"""What a whole release asks of the API server: every request between the new image and the end, counted there."""

from __future__ import annotations

from collections import Counter

import pytest
from bench import Bench, BenchPrometheus, Request
from release_scenes import ACCOUNT, STEPS, canaryd, eventually, install, now, service, settings, sleep

pytestmark = pytest.mark.slow

MOST = 50


def asked(request: Request) -> bool:
    """Everything but the Lease and streams: a watch is one request for minutes of news."""
    return request.resource != "leases" and request.verb != "watch" and request.resource != ""


def test_a_whole_good_release_costs_at_most_fifty_requests(
    mesh: Bench, prometheus: BenchPrometheus, tmp_path_factory: pytest.TempPathFactory
) -> None:
    install(mesh)
    prometheus.configure(scrape="5s")
    wanted = settings(prometheus, scrape="5s")
    plan = {"steps": [{"weight": w, "bake": "10s"} for w in STEPS], "interval": "10s", "warmUp": "5s"}
    with canaryd(mesh, tmp_path_factory.mktemp("cost"), wanted) as running:
        api = service(mesh, "api", rps=150, **plan)
        api.adopted()
        sleep(15)  # what adoption still has to write
        began = now()
        api.app.set_image("demo/app:v2")
        api.until("Succeeded", patience=300)
        took = (now() - began).total_seconds()
        eventually(lambda: api.app.deployment()["spec"]["replicas"] == 0, "the canary to be at 0", 60)
        sleep(2)
        running.stop()
        requests = [r for r in mesh.audit.requests(ACCOUNT, began) if asked(r)]
    assert api.load is not None
    assert api.load.stop().failures == []
    told = Counter(f"{r.verb} {r.resource}" + ("" if r.status < 300 else f" {r.status}") for r in requests)
    print(f"{len(requests)} requests in {took:.0f} s: {dict(told)}")
    assert len(requests) <= MOST
