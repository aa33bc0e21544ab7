"""Routes that change under live load: adopted, weighted and restored in a real mesh, without one lost request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median

import pytest
from bench import Bench
from bench.apps import App
from bench.mesh import GATEWAY_API_PORT, GATEWAY_PORT
from route_scenes import Cluster, Object, http_route, uid_of
from test_mesh import ask

from canaryd.adapters.gateway_api import PATIENCE_S, GatewayApiRouter
from canaryd.adapters.route_stamps import ADOPTED, STAMP
from canaryd.demo.processes import wait_until
from canaryd.errors import RouteError
from canaryd.kube.kinds import HTTP_ROUTES, VIRTUAL_SERVICES, Kind
from canaryd.policy import GatewayApi, Istio, Route
from canaryd.ports import TrafficRouter

PLAIN, STABLE, CANARY = "routed", "routed-stable", "routed-canary"
KEY = "shop/routed"


@pytest.fixture(scope="module")
def apps(mesh: Bench) -> Iterator[tuple[App, ...]]:
    """The service itself, and one workload and Service for each arm."""
    made = tuple(mesh.app(name, replicas=2) for name in (PLAIN, STABLE, CANARY))
    for name in (PLAIN, STABLE, CANARY):
        host = f"{name}.shop.svc.cluster.local"
        wait_until(lambda h=host, n=name: ask(h) == (200, n), f"an answer of {name}", timeout=60)
    yield made
    for app in made:
        app.delete()


class Live:
    """A route under load."""

    def __init__(self, mesh: Bench, kind: Kind, route: Route, host: str, port: int) -> None:
        self.cluster = Cluster(mesh, kind)
        client = self.cluster.client()
        self.informer = self.cluster.informer(client)
        self.router: TrafficRouter = self.cluster.router(client, self.informer)
        self.route = route
        self._host, self._port = host, port
        self.load = mesh.load(200, host, gateway_api=port == GATEWAY_API_PORT)
        self.waits: list[float] = []
        self.writes: list[float] = []

    def weight(self, weight: int, version: int) -> None:
        self.router.set_weight(KEY, self.route, STABLE, PLAIN, weight, version=version)

    def change(self, what: Callable[[], object], to: set[str]) -> None:
        """Do it, and wait until only these workloads answer, each of them."""
        began = time.monotonic()
        what()
        self.writes.append(time.monotonic() - began)
        wait_until(lambda: self._answered(2) <= to, f"requests at {to} alone", timeout=30, every=0.001)
        if len(to) == 1:
            self.waits.append(time.monotonic() - began)
        wait_until(lambda: self._answered(20) == to, f"requests at {to}", timeout=30, every=0.05)
        since = time.time() + 1  # what was under way has been answered
        wait_until(lambda: self.load.between(since + 1).requests > 150, "more requests", timeout=30, every=0.1)
        assert set(self.load.between(since + 1).by_workload) == to

    def _answered(self, requests: int) -> set[str]:
        return {ask(self._host, self._port)[1] for _ in range(requests)}

    def story(self) -> None:
        """From the service itself over every kind of split and back."""
        assert self.router.view(KEY, self.route, STABLE, PLAIN).adoptable
        self.change(lambda: self.router.adopt(KEY, self.route, STABLE, PLAIN, version=1), {STABLE})
        self.change(lambda: self.weight(30, 2), {STABLE, CANARY})
        for i in range(3):
            self.change(lambda i=i: self.weight(100, 3 + 2 * i), {CANARY})
            self.change(lambda i=i: self.weight(0, 4 + 2 * i), {STABLE})
        self.change(lambda: self.weight(50, 20), {STABLE, CANARY})
        self.change(lambda: self.router.restore(KEY, self.route, STABLE, PLAIN, version=21), {PLAIN})
        totals = self.load.stop()
        print(
            f"\nwrite: median {median(self.writes) * 1000:.0f} ms; write to all requests on the new side: median "
            f"{median(self.waits) * 1000:.0f} ms, worst {max(self.waits) * 1000:.0f} ms; {totals.requests} requests, "
            f"{len(totals.failures)} failed"
        )
        assert totals.requests > 1000
        assert not totals.failures

    def close(self) -> None:
        self.cluster.close()


def without_managers(obj: Object) -> Object:
    metadata = {k: v for k, v in obj["metadata"].items() if k not in ("managedFields", "resourceVersion", "generation")}
    return {**metadata, "spec": obj["spec"]}


def test_a_virtual_service_is_adopted_weighted_and_restored_without_one_lost_request(
    mesh: Bench, apps: tuple[App, ...]
) -> None:
    before = mesh.client().get("virtualservices", PLAIN)
    route = Route(istio=Istio(virtual_services=[PLAIN]))
    live = Live(mesh, VIRTUAL_SERVICES, route, f"{PLAIN}.shop.svc.cluster.local", GATEWAY_PORT)
    try:
        live.story()
    finally:
        live.close()
    after = mesh.client().get("virtualservices", PLAIN)
    assert without_managers(after) == without_managers(before)


def test_an_http_route_is_adopted_weighted_and_restored_without_one_lost_request(
    mesh: Bench, apps: tuple[App, ...]
) -> None:
    admin = mesh.client()
    made = http_route(PLAIN, {"backendRefs": [{"name": PLAIN, "port": 80}]})
    made["spec"] |= {"parentRefs": [{"name": "web"}], "hostnames": ["routed.example"]}
    before = admin.apply(made)
    wait_until(lambda: answers("routed.example"), "the first answer", timeout=60, every=0.2)
    route = Route(gateway_api=GatewayApi(http_routes=[PLAIN]))
    live = Live(mesh, HTTP_ROUTES, route, "routed.example", GATEWAY_API_PORT)
    try:
        live.story()
    finally:
        live.close()
    after = admin.get("httproutes", PLAIN)
    assert after["spec"] == before["spec"]
    assert not {STAMP, ADOPTED} & set(after["metadata"].get("annotations", {}))
    admin.delete("httproutes", PLAIN)


def answers(host: str) -> bool:
    try:
        return ask(host, GATEWAY_API_PORT)[0] == 200
    except OSError:
        return False  # the listener comes with the first route


def test_a_backend_that_does_not_exist_is_told_in_the_words_of_istiod(mesh: Bench, apps: tuple[App, ...]) -> None:
    admin, now = mesh.client(), 0.0
    pair = [{"name": STABLE, "port": 80, "weight": 90}, {"name": "nowhere", "port": 80, "weight": 10}]
    made = http_route("unresolved", {"backendRefs": pair})
    made["spec"] |= {"parentRefs": [{"name": "web"}], "hostnames": ["unresolved.example"]}
    cluster = Cluster(mesh, HTTP_ROUTES)
    admin.apply(made)
    client = cluster.client()
    router = GatewayApiRouter(client, cluster.informer(client), uid_of, monotonic=lambda: now)
    route = Route(gateway_api=GatewayApi(http_routes=["unresolved"], canary="nowhere"))
    told = ""
    try:
        deadline = time.monotonic() + 30
        while not told and time.monotonic() < deadline:
            now += PATIENCE_S
            try:
                assert router.view("shop/unresolved", route, STABLE, PLAIN).weight == 10
            except RouteError as e:
                told = str(e)
            time.sleep(0.1)
    finally:
        cluster.close()
        admin.delete("httproutes", "unresolved")
    assert told.startswith(
        "HTTPRoute shop/unresolved: has references that are not resolved by Gateway web: BackendNotFound"
    )
    assert "nowhere" in told
