"""Scenes of `router_promises` in a real cluster: VirtualServices and HTTPRoutes on the bench's API server."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

from bench import Bench
from router_promises import BLUE, GREEN

from canaryd.adapters.gateway_api import GatewayApiRouter
from canaryd.adapters.istio import IstioRouter
from canaryd.adapters.route_stamps import without_details
from canaryd.demo.processes import wait_until
from canaryd.kube.client import KubeClient
from canaryd.kube.informer import Informer
from canaryd.kube.kinds import HTTP_ROUTES, VIRTUAL_SERVICES, Kind
from canaryd.model import RouteView
from canaryd.policy import GatewayApi, Istio, Route
from canaryd.ports import TrafficRouter

Object = dict[str, Any]
NAMES = itertools.count(1)
UID = "0c6f4f0e-0000-4000-8000-000000000001"


def uid_of(_: str) -> str:
    """Every Canary of these tests exists."""
    return UID


def destinations(stable: int, canary: int) -> list[Object]:
    hosts = ((BLUE, stable), (f"{GREEN}-canary", canary))
    return [{"destination": {"host": host, "port": {"number": 80}}, "weight": weight} for host, weight in hosts]


def virtual_service(name: str, *routes: Object, **spec: Any) -> Object:
    return {
        "apiVersion": VIRTUAL_SERVICES.api_version,
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"hosts": [f"{name}.example.com"], "http": list(routes), **spec},
    }


def references(stable: int, canary: int) -> list[Object]:
    names = ((BLUE, stable), (f"{GREEN}-canary", canary))
    return [{"name": name, "port": 80, "weight": weight} for name, weight in names]


def http_route(name: str, *rules: Object, **spec: Any) -> Object:
    parent = {"group": "", "kind": "Service", "name": GREEN, "port": 80}
    return {
        "apiVersion": HTTP_ROUTES.api_version,
        "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"parentRefs": [parent], "rules": list(rules), **spec},
    }


class Cluster:
    """Watches and routers as two or more daemons would have them; everything ends with `close`."""

    def __init__(self, bench: Bench, kind: Kind, identity: str = "admin") -> None:
        self.admin = bench.client()
        self.kind = kind
        self._file = bench.kubeconfig(identity)
        self._stack = ExitStack()

    def close(self) -> None:
        self._stack.close()

    def client(self) -> KubeClient:
        client = KubeClient.connect(kubeconfig=str(self._file))
        self._stack.callback(client.close)
        return client

    def informer(self, client: KubeClient) -> Informer:
        informer = Informer(client, self.kind, namespaces=("shop",), keep=without_details)
        informer.start()
        self._stack.callback(informer.stop)
        assert informer.wait_synced(timedelta(seconds=10)), informer.trouble()
        return informer

    def router(self, client: KubeClient, informer: Informer) -> IstioRouter | GatewayApiRouter:
        made = IstioRouter if self.kind is VIRTUAL_SERVICES else GatewayApiRouter
        return made(client, informer, uid_of)

    def there(self, name: str) -> Object:
        return self.admin.get(self.kind.plural, name)

    def caught_up(self, informer: Informer, name: str) -> None:
        """Waits until the cache is as the server is."""

        def same() -> bool:
            held, now = informer.get("shop", name), self.admin.find(self.kind.plural, name)
            versions = {obj["metadata"]["resourceVersion"] if obj else "" for obj in (held, now)}
            return len(versions) == 1

        wait_until(same, f"the watch to bring {name}", timeout=10, every=0.005)


class InCluster:
    """router_promises.PlainScene."""

    swaps = False

    def __init__(self, bench: Bench, kind: Kind, make: Callable[[str], Object], route: Callable[[str], Route]) -> None:
        self.cluster = Cluster(bench, kind)
        self.name = f"route-{next(NAMES)}"
        self.canary = f"shop/{self.name}"
        self.cluster.admin.apply(make(self.name), manager="kubectl-edit")
        self.client = self.cluster.client()
        self.informer = self.cluster.informer(self.client)
        self.router = self.cluster.router(self.client, self.informer)
        self.route = route(self.name)

    def view(self, stable: str = BLUE, canary_workload: str = GREEN) -> RouteView:
        self.cluster.caught_up(self.informer, self.name)
        return self.router.view(self.canary, self.route, stable, canary_workload)

    def edit(self, weight: int) -> None:
        self.write("/spec/http/1/route" if self._is_istio else "/spec/rules/1/backendRefs", self._pair(weight))

    def plain(self) -> None:
        if self._is_istio:
            self.write("/spec/http/1/route", [{"destination": {"host": GREEN, "port": {"number": 80}}}])
        else:
            self.write("/spec/rules/1/backendRefs", [{"name": GREEN, "port": 80}])

    def another(self) -> TrafficRouter:
        client = self.cluster.client()
        return self.cluster.router(client, self.cluster.informer(client))

    def write(self, path: str, value: Any) -> None:
        """By a person's hand."""
        operations = [{"op": "replace", "path": path, "value": value}]
        where = f"/apis/{self.cluster.kind.api_version}/namespaces/shop/{self.cluster.kind.plural}/{self.name}"
        kind = "application/json-patch+json"
        self.cluster.admin.request("PATCH", where, operations, kind, fieldManager="kubectl-edit")
        self.cluster.caught_up(self.informer, self.name)

    @property
    def _is_istio(self) -> bool:
        return self.cluster.kind is VIRTUAL_SERVICES

    def _pair(self, weight: int) -> list[Object]:
        return (destinations if self._is_istio else references)(100 - weight, weight)


def _virtual_service(name: str) -> Object:
    foreign = {"match": [{"uri": {"prefix": "/admin"}}], "route": [{"destination": {"host": "admin"}}]}
    return virtual_service(name, foreign, {"name": "primary", "route": destinations(100, 0)})


def _http_route(name: str) -> Object:
    path = {"path": {"type": "PathPrefix", "value": "/admin"}}
    foreign = {"matches": [path], "backendRefs": [{"name": "admin", "port": 80}]}
    return http_route(name, foreign, {"name": "primary", "backendRefs": references(100, 0)})


@contextmanager
def in_virtual_service(bench: Bench) -> Iterator[InCluster]:
    made = InCluster(bench, VIRTUAL_SERVICES, _virtual_service, lambda n: Route(istio=Istio(virtual_services=[n])))
    try:
        yield made
    finally:
        made.cluster.close()


@contextmanager
def in_http_route(bench: Bench) -> Iterator[InCluster]:
    made = InCluster(bench, HTTP_ROUTES, _http_route, lambda n: Route(gateway_api=GatewayApi(http_routes=[n])))
    try:
        yield made
    finally:
        made.cluster.close()


SCENES = {"istio": in_virtual_service, "gateway_api": in_http_route}
