"""Weights in the HTTPRoutes of a Canary's own namespace.

Changes weights and, where it adopts or restores, the backendRefs of the meant rules; nothing else of an HTTPRoute. It
never creates or deletes one. A route that its controllers refuse as it stands is told: its weights are not served. What
it makes of an HTTPRoute is in `http_route` and `route_splits`, how it reads and writes in `cluster_routes`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from canaryd.adapters.cluster_routes import ClusterRoutes, Meant, merged, namespace_of
from canaryd.adapters.http_route import HttpRouteForm, Refusal, gateway_api_arms, refusal
from canaryd.errors import RouteError
from canaryd.kube.client import KubeClient
from canaryd.kube.informer import Reader
from canaryd.kube.kinds import HTTP_ROUTES
from canaryd.model import RouteView
from canaryd.policy import Route

PATIENCE_S = 30.0  # controllers need a moment for a new generation, and for Services that have just been made


class GatewayApiRouter:
    """ports.TrafficRouter for `route.gatewayApi`. Several HTTPRoutes are written one after the other."""

    def __init__(
        self,
        client: KubeClient,
        http_routes: Reader,
        uid_of: Callable[[str], str],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`http_routes` keeps what `route_stamps.without_details` leaves."""
        self._monotonic = monotonic
        self._routes = ClusterRoutes(client, http_routes, HTTP_ROUTES, HttpRouteForm(), uid_of, monotonic)
        self._refused: dict[tuple[str, str], tuple[Refusal, float]] = {}  # (namespace, name) → since when

    def view(self, canary: str, route: Route, stable: str, canary_workload: str) -> RouteView:
        """See ports.TrafficRouter. Raises RouteError too when controllers refuse the route for longer than PATIENCE_S.

        Where routes disagree: the largest weight that is not the stamped one.
        """
        meant = _meant(canary, route, stable, canary_workload)
        view = self._routes.view(meant)
        for (name, _), obj in zip(meant.objects, self._routes.objects(meant), strict=True):
            self._check_accepted((meant.namespace, name), refusal(obj))
        return view

    def set_weight(
        self, canary: str, route: Route, stable: str, canary_workload: str, weight: int, *, version: int
    ) -> None:
        """See ports.TrafficRouter."""
        self._routes.set_weight(_meant(canary, route, stable, canary_workload), weight, version)

    def adopt(self, canary: str, route: Route, stable: str, canary_workload: str, *, version: int) -> None:
        """See ports.TrafficRouter."""
        self._routes.adopt(_meant(canary, route, stable, canary_workload), version)

    def restore(self, canary: str, route: Route, stable: str, canary_workload: str, *, version: int) -> bool:
        """See ports.TrafficRouter."""
        return self._routes.restore(_meant(canary, route, stable, canary_workload), version)

    def _check_accepted(self, place: tuple[str, str], refused: Refusal | None) -> None:
        if refused is None:
            self._refused.pop(place, None)
            return
        known, since = self._refused.get(place, (None, 0.0))
        if known != refused:
            since = self._monotonic()
            self._refused[place] = (refused, since)
        if self._monotonic() - since >= PATIENCE_S:
            raise RouteError(f"HTTPRoute {'/'.join(place)}: {refused.text}")


def _meant(canary: str, route: Route, stable: str, canary_workload: str) -> Meant:
    if route.gateway_api is None:
        raise RouteError("the route is no HTTPRoute")
    arms = gateway_api_arms(route.gateway_api, namespace_of(canary), stable, canary_workload)
    return Meant(canary, merged(route.gateway_api.http_routes), arms, canary_workload)
