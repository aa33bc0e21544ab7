"""Weights in the VirtualServices of a Canary's own namespace.

Changes weights and, where it adopts or restores, the destinations of the meant routes; nothing else. It never creates
or deletes a VirtualService, and never asks the mesh whether it took the weights: traffic tells. What it makes of one is
in `virtual_service` and `route_splits`, how it reads and writes in `cluster_routes`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from canaryd.adapters.cluster_routes import ClusterRoutes, Meant, merged, namespace_of
from canaryd.adapters.virtual_service import VirtualServiceForm, istio_arms
from canaryd.errors import RouteError
from canaryd.kube.client import KubeClient
from canaryd.kube.informer import Reader
from canaryd.kube.kinds import VIRTUAL_SERVICES
from canaryd.model import RouteView
from canaryd.policy import Route


class IstioRouter:
    """ports.TrafficRouter for `route.istio`. Several VirtualServices are written one after the other."""

    def __init__(
        self,
        client: KubeClient,
        virtual_services: Reader,
        uid_of: Callable[[str], str],
        *,
        domain: str = "cluster.local",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`virtual_services` keeps what `route_stamps.without_details` leaves; `domain` is that of the cluster."""
        self._domain = domain
        form = VirtualServiceForm(domain)
        self._routes = ClusterRoutes(client, virtual_services, VIRTUAL_SERVICES, form, uid_of, monotonic)

    def view(self, canary: str, route: Route, stable: str, canary_workload: str) -> RouteView:
        """See ports.TrafficRouter; where routes disagree: the largest weight that is not the stamped one."""
        return self._routes.view(self._meant(canary, route, stable, canary_workload))

    def set_weight(
        self, canary: str, route: Route, stable: str, canary_workload: str, weight: int, *, version: int
    ) -> None:
        """See ports.TrafficRouter."""
        self._routes.set_weight(self._meant(canary, route, stable, canary_workload), weight, version)

    def adopt(self, canary: str, route: Route, stable: str, canary_workload: str, *, version: int) -> None:
        """See ports.TrafficRouter."""
        self._routes.adopt(self._meant(canary, route, stable, canary_workload), version)

    def restore(self, canary: str, route: Route, stable: str, canary_workload: str, *, version: int) -> bool:
        """See ports.TrafficRouter."""
        return self._routes.restore(self._meant(canary, route, stable, canary_workload), version)

    def _meant(self, canary: str, route: Route, stable: str, canary_workload: str) -> Meant:
        if route.istio is None:
            raise RouteError("the route is no VirtualService")
        namespace = namespace_of(canary)
        arms = istio_arms(route.istio, namespace, stable, canary_workload, self._domain)
        return Meant(canary, merged(route.istio.virtual_services), arms, canary_workload)
