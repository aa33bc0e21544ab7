"""The router of a cluster: VirtualServices or HTTPRoutes, by what the Canary names. Writes nothing itself."""

from __future__ import annotations

from canaryd.errors import RouteError
from canaryd.model import RouteView
from canaryd.policy import Route
from canaryd.ports import TrafficRouter


class ClusterRouter:
    """ports.TrafficRouter over one router for each kind of route."""

    def __init__(self, *, istio: TrafficRouter, gateway_api: TrafficRouter) -> None:
        self._istio, self._gateway_api = istio, gateway_api

    def view(self, canary: str, route: Route, stable: str, canary_workload: str) -> RouteView:
        return self._of(route).view(canary, route, stable, canary_workload)

    def set_weight(
        self, canary: str, route: Route, stable: str, canary_workload: str, weight: int, *, version: int
    ) -> None:
        self._of(route).set_weight(canary, route, stable, canary_workload, weight, version=version)

    def adopt(self, canary: str, route: Route, stable: str, canary_workload: str, *, version: int) -> None:
        self._of(route).adopt(canary, route, stable, canary_workload, version=version)

    def restore(self, canary: str, route: Route, stable: str, canary_workload: str, *, version: int) -> bool:
        return self._of(route).restore(canary, route, stable, canary_workload, version=version)

    def _of(self, route: Route) -> TrafficRouter:
        if route.istio is not None:
            return self._istio
        if route.gateway_api is not None:
            return self._gateway_api
        raise RouteError("in a cluster a route is one of istio and gatewayApi")
