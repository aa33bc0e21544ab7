"""The bench's own promises about pods: real addresses, real readiness, and the behaviour that a tag asks for."""

from __future__ import annotations

import time
from typing import Any

import requests
from bench import Bench
from bench.apps import is_ready

from canaryd.demo.processes import fetch, wait_until


def endpoints(bench: Bench, service: str) -> set[str]:
    """The addresses a Service would send to."""
    slices = bench.client().list("endpointslices", "shop", f"kubernetes.io/service-name={service}")
    found = (endpoint for s in slices for endpoint in s["endpoints"] or [])
    return {endpoint["addresses"][0] for endpoint in found if endpoint["conditions"]["ready"]}


def container(pod: dict[str, Any]) -> dict[str, Any]:
    status: dict[str, Any] = pod.get("status", {}).get("containerStatuses", [{}])[0]
    return status


def test_every_ready_pod_answers_on_its_own_address_and_is_an_endpoint(cluster: Bench) -> None:
    app = cluster.app("plain", "demo/app:v1-err50", replicas=2)
    addresses = {pod["status"]["podIP"] for pod in app.pods()}
    assert len(addresses) == 2
    wait_until(lambda: endpoints(cluster, "plain") == addresses, "both to be endpoints")
    for address in addresses:
        statuses = [fetch(f"http://{address}:9898/")[0] for _ in range(40)]
        assert set(statuses) == {200, 500}
        page = fetch(f"http://{address}:15020/stats/prometheus")[1].decode()
        assert 'destination_workload="plain",destination_workload_namespace="shop"' in page
        counted = [line for line in page.splitlines() if line.startswith("istio_requests_total")]
        assert sum(float(line.rsplit(" ", 1)[1]) for line in counted) == 40
    app.delete()


def test_a_slow_starter_is_no_endpoint_before_its_time(cluster: Bench) -> None:
    started = time.monotonic()
    app = cluster.app("starter", "demo/app:v1-start4", replicas=1)
    assert time.monotonic() - started >= 4
    assert is_ready(app.pods()[0])
    app.delete()


def test_pods_that_crash_are_killed_for_memory_or_never_get_ready_say_so(cluster: Bench) -> None:
    admin = cluster.client()
    good = cluster.app("tags", "demo/app:v1", replicas=1)
    for tag in ("crash", "neverready", "oom1"):
        cluster.start_app(f"tags-{tag}", f"demo/app:v2-{tag}", replicas=1)

    def status(tag: str) -> dict[str, Any]:
        pods = admin.list("pods", "shop", f"app=tags-{tag}")
        return container(pods[0]) if pods else {}

    def crashes() -> bool:
        found = status("crash")
        waiting = found.get("state", {}).get("waiting", {})
        return waiting.get("reason") == "CrashLoopBackOff" and found["restartCount"] >= 1 and not found["ready"]

    def killed() -> bool:
        found = status("oom1")
        return (
            found.get("lastState", {}).get("terminated", {}).get("reason") == "OOMKilled" and found["restartCount"] >= 1
        )

    wait_until(crashes, "a crash loop with a restart", timeout=60, every=0.2)
    wait_until(killed, "a container killed for memory", timeout=60, every=0.2)
    assert "running" in status("neverready")["state"]
    assert endpoints(cluster, "tags-crash") == endpoints(cluster, "tags-neverready") == set()
    good.delete()
    for tag in ("crash", "neverready", "oom1"):
        cluster.existing_app(f"tags-{tag}").delete()


def test_a_pod_that_ignores_its_end_stays_and_another_leaves_soon(cluster: Bench) -> None:
    stubborn = cluster.app("stubborn", "demo/app:v1-hang", replicas=1)
    polite = cluster.app("polite", "demo/app:v1", replicas=1)
    (first,), (second,) = stubborn.pods(), polite.pods()
    names = {"stubborn": first["metadata"]["name"], "polite": second["metadata"]["name"]}
    cluster.kubectl("delete", "pod", *names.values(), "-n", "shop", "--grace-period=12", "--wait=false")

    def gone(app: str) -> bool:
        return cluster.client().find("pods", names[app]) is None

    wait_until(lambda: gone("polite"), "the polite one to leave", timeout=60, every=0.2)
    assert not gone("stubborn")
    assert fetch(f"http://{first['status']['podIP']}:9898/")[0] == 200
    wait_until(lambda: gone("stubborn"), "the kill", timeout=60, every=0.2)
    stubborn.delete()
    polite.delete()


def test_no_request_is_lost_when_a_pod_leaves(cluster: Bench) -> None:
    app = cluster.app("leaver", "demo/app:v1", replicas=1)
    url = f"http://{app.pods()[0]['status']['podIP']}:9898/"
    app.scale(0)
    answers = 0
    with requests.Session() as client:  # a client that learns of the end late
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            assert client.get(url, timeout=5).status_code == 200
            answers += 1
    assert answers > 10
    app.delete()


def test_pods_outlive_a_restart_of_the_api_server(cluster: Bench) -> None:
    app = cluster.app("survivor", "demo/app:v1", replicas=2)
    before = {pod["metadata"]["uid"] for pod in app.pods()}
    cluster.plane.kill_apiserver()
    cluster.plane.start_apiserver()
    app.scale(3)
    app.await_available()
    after = {pod["metadata"]["uid"] for pod in app.pods()}
    assert before < after
    app.delete()


def test_an_autoscaler_raises_a_deployment_to_its_minimum(cluster: Bench) -> None:
    app = cluster.app("scaled", "demo/app:v1", replicas=1)
    cluster.kubectl("autoscale", "deployment", "scaled", "--min=3", "--max=5", "-n", "shop")
    wait_until(lambda: app.deployment()["spec"]["replicas"] == 3, "the autoscaler", timeout=60, every=0.2)
    cluster.client().delete("horizontalpodautoscalers", "scaled")
    app.delete()
