"""The bench's own promises about traffic: weights reach the gateway, nothing is lost, and every request is counted."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from statistics import median

import pytest
from bench import Bench, BenchPrometheus
from bench.apps import App
from bench.mesh import GATEWAY_API_PORT, GATEWAY_PORT
from bench.prometheus import RULES

from canaryd.demo.processes import wait_until


def ask(host: str, port: int = GATEWAY_PORT) -> tuple[int, str]:
    """(status, workload that answered or "") of one request through the gateway."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/", headers={"Host": host})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("x-answered-by", "").partition(" ")[0]
    finally:
        connection.close()


@pytest.fixture(scope="module")
def pair(mesh: Bench) -> Iterator[tuple[App, App]]:
    """Two workloads, and a VirtualService "split" that sends all to the first."""
    old, new = mesh.app("split", replicas=2), mesh.app("split-b", "demo/app:v2", replicas=2)
    wait_until(lambda: ask("split.shop.svc.cluster.local") == (200, "split"), "the first answer", timeout=60)
    yield old, new
    old.delete()
    new.delete()


def test_new_weights_reach_every_request_at_once_and_none_is_lost(mesh: Bench, pair: tuple[App, App]) -> None:
    waits: list[float] = []
    host, path = "split.shop.svc.cluster.local", "/spec/http/0/route/0/destination/host"
    load = mesh.load(100, host)
    for target, other in (("split-b", "split"), ("split", "split-b")) * 5:
        body = [{"op": "test", "path": path, "value": other}, {"op": "replace", "path": path, "value": target}]
        patched = time.monotonic()
        mesh.client().patch("virtualservices", "split", body, kind="json")
        wait_until(lambda wanted=target: ask(host) == (200, wanted), f"a request on {target}", timeout=60, every=0.01)
        waits.append(time.monotonic() - patched)
        after = time.time() + 1  # what was under way has been answered
        wait_until(lambda since=after: load.between(since + 1).requests > 50, "more requests", timeout=60, every=0.2)
        assert load.between(after + 1).share(workload=target) == 1.0
    totals = load.stop()
    print(f"patch to first request on the new side: median {median(waits) * 1000:.0f} ms, worst {max(waits):.2f} s")
    assert totals.requests > 500
    assert not totals.failures


def test_no_request_is_lost_over_a_rolling_update(mesh: Bench) -> None:
    app = mesh.app("rolling", "demo/app:v1", replicas=3)
    wait_until(lambda: ask("rolling.shop.svc.cluster.local")[0] == 200, "the first answer", timeout=60)
    load = mesh.load(100, "rolling.shop.svc.cluster.local")
    load.await_requests(100)
    app.set_image("demo/app:v2")
    app.await_available()
    load.await_requests(300)  # the old pods leave meanwhile
    wait_until(lambda: len(mesh.client().list("pods", "shop", "app=rolling")) == 3, "the old pods to be gone", 60)
    totals = load.stop()
    assert not totals.failures
    assert totals.by_tag["v1"]
    assert totals.by_tag["v2"]
    app.delete()


def test_a_request_that_finds_no_pod_is_lost_and_listed_with_its_time(mesh: Bench) -> None:
    app = mesh.app("nobody", "demo/app:v1", replicas=1)
    host = "nobody.shop.svc.cluster.local"
    wait_until(lambda: ask(host)[0] == 200, "the first answer", timeout=60)
    app.scale(0)
    wait_until(lambda: ask(host)[0] == 503, "no healthy upstream", timeout=60, every=0.1)
    started = time.time()
    load = mesh.load(50, host)
    wait_until(lambda: load.between().requests, "failing requests", timeout=60, every=0.2)
    totals = load.stop()
    assert totals.requests == len(totals.lost) == totals.by_status[503]
    assert all(failure.at >= started and not failure.workload for failure in totals.lost)
    app.delete()


def test_an_http_route_of_the_gateway_api_is_accepted_and_splits_traffic(mesh: Bench, pair: tuple[App, App]) -> None:
    backends = [{"name": "split", "port": 80, "weight": 50}, {"name": "split-b", "port": 80, "weight": 50}]
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "web-split", "namespace": "shop"},
        "spec": {"parentRefs": [{"name": "web"}], "hostnames": ["web.example"], "rules": [{"backendRefs": backends}]},
    }
    mesh.client().apply(route)

    def accepted() -> bool:
        parents = mesh.client().get("httproutes", "web-split").get("status", {}).get("parents", [])
        conditions = [c for parent in parents for c in parent["conditions"]]
        return any(c["type"] == "Accepted" and c["status"] == "True" for c in conditions)

    wait_until(accepted, "the route to be accepted", timeout=60, every=0.1)

    def both_answer() -> bool:
        try:
            return {ask("web.example", GATEWAY_API_PORT) for _ in range(20)} == {(200, "split"), (200, "split-b")}
        except OSError:
            return False  # the listener comes with the first route

    wait_until(both_answer, "both sides to answer", timeout=60, every=0.2)
    mesh.client().delete("httproutes", "web-split")


@pytest.mark.parametrize(
    ("version", "prefix"),
    [pytest.param("prometheus", "3.16"), pytest.param("old_prometheus", "2.", marks=pytest.mark.prometheus)],
)
def test_each_prometheus_counts_every_request_at_both_ends(
    version: str, prefix: str, mesh: Bench, request: pytest.FixtureRequest
) -> None:
    server: BenchPrometheus = request.getfixturevalue(version)
    assert server.build().startswith(prefix)
    name = version.replace("_", "-")
    app = mesh.app(name, replicas=2)
    host = f"{name}.shop.svc.cluster.local"
    wait_until(lambda: ask(host) == (200, name), "the first answer", timeout=60)
    load = mesh.load(50, host)
    load.await_requests(200)
    sent = 1 + load.stop().requests
    labels = f'destination_workload="{name}",destination_workload_namespace="shop"'
    counters = {end: f'sum(istio_requests_total{{reporter="{end}",{labels}}})' for end in ("source", "destination")}
    for end, counter in counters.items():
        wait_until(lambda c=counter: server.total(c) == sent, f"{sent} requests counted at the {end}", 60, every=0.3)
    by = "destination_service_name, response_code, response_flags"
    (row,) = server.query(f"sum by ({by}) (istio_requests_total{{reporter='source',{labels}}})")
    assert row["metric"] == {"destination_service_name": name, "response_code": "200", "response_flags": "-"}
    pods = server.query(f"sum by (pod) (istio_requests_total{{reporter='destination',{labels}}})")
    assert {row["metric"]["pod"] for row in pods} == {pod["metadata"]["name"] for pod in app.pods()}
    for end in counters:
        every = f"istio_request_duration_milliseconds_bucket{{reporter='{end}',{labels},le='+Inf'}}"
        wait_until(lambda e=every: server.total(e) == sent, f"{sent} durations at the {end}", timeout=60, every=0.3)
    app.delete()


def test_the_recording_rules_give_the_same_counts(prometheus: BenchPrometheus, mesh: Bench) -> None:
    app = mesh.app("recorded", replicas=1)
    host = "recorded.shop.svc.cluster.local"
    prometheus.configure(scrape="1s", rules=RULES)
    wait_until(lambda: ask(host) == (200, "recorded"), "the first answer", timeout=60)
    load = mesh.load(30, host)
    load.await_requests(60)
    sent = 1 + load.stop().requests
    (pod,) = app.pods()
    labels = f"namespace='shop',pod='{pod['metadata']['name']}'"
    recorded = {
        "requests": f"canaryd:requests_total:pod{{{labels},destination_workload='recorded',response_code='200'}}",
        "durations": f"canaryd:request_duration_ms_bucket:pod{{{labels},le='+Inf'}}",
    }
    for what, series in recorded.items():
        wait_until(lambda s=series: prometheus.total(s) == sent, f"{sent} recorded {what}", timeout=60, every=0.3)
    prometheus.configure()
    app.delete()
