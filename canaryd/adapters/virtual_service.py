"""How a VirtualService writes splits down. Pure: looks at `spec.http`, and at `tcp` and `tls` only to say why not.

Weights as Istio takes them: among several destinations one without a weight has 0, a lone one has everything, whatever
its weight; they are relative to their sum.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from canaryd.adapters.route_splits import Arms, Place, Role, Target
from canaryd.adapters.route_stamps import JSON, dicts
from canaryd.errors import RouteError, RouteRefusedError
from canaryd.policy import Destination, Istio

SECTION, FIELD = "http", "route"


def full_host(host: str, namespace: str, domain: str = "cluster.local") -> str:
    """The one spelling of a host as seen from a namespace: "api", "api.shop", "api.shop.svc" are one Service of shop.

    Hosts that are no Service of the namespace or written out in full stay as they are.
    """
    host = host.lower().rstrip(".")
    name, *rest = host.split(".")
    if rest in ([], [namespace]) and name and name != "*":
        return f"{name}.{namespace}.svc.{domain}"
    return f"{host}.{domain}" if rest[1:] == ["svc"] else host


def foreign_namespace(host: str, namespace: str) -> str:
    """The other namespace that a host is in; "" for a Service of this one, and for hosts that are no Service."""
    labels = host.lower().rstrip(".").split(".")
    if len(labels) == 2 or labels[2:3] == ["svc"]:
        return labels[1] if labels[1] != namespace else ""
    return ""


def istio_arms(istio: Istio, namespace: str, stable: str, canary: str, domain: str = "cluster.local") -> Arms:
    """What routes of the namespace name the two workloads and the service itself by.

    Without a host: the Services `stable` and `canary`-canary; with a subset alone: that subset of the service itself.
    Raises RouteError for a host in another namespace.
    """

    def target(given: Destination, default: str, key: str) -> Target:
        host = given.host or (canary if given.subset else default)
        if other := foreign_namespace(host, namespace):
            raise RouteRefusedError(
                f'spec.route.istio.{key}.host: "{host}" is in namespace {other}; '
                f"a Canary routes only in its own, {namespace}"
            )
        return Target(full_host(host, namespace, domain), given.subset)

    two = (target(istio.stable, stable, "stable"), target(istio.canary, f"{canary}-canary", "canary"))
    if two[0] == two[1]:
        raise RouteError(f"stable and canary are both {two[0]}; nothing can be split")
    both = two[0].host if two[0].host == two[1].host else full_host(canary, namespace, domain)
    return Arms(namespace, *two, service=Target(both))


@dataclass(frozen=True, slots=True)
class VirtualServiceForm:
    """route_splits.Form."""

    domain: str = "cluster.local"  # of the cluster

    @property
    def section(self) -> str:
        return SECTION

    def places(self, obj: JSON) -> tuple[Place, ...]:
        routes = dicts((obj.get("spec") or {}).get(SECTION))
        return tuple(
            Place(i, str(route.get("name") or ""), f"/spec/{SECTION}/{i}", FIELD, tuple(dicts(route.get(FIELD))))
            for i, route in enumerate(routes)
        )

    def target(self, entry: JSON, namespace: str) -> Target | None:
        destination = entry.get("destination") or {}
        host = str(destination.get("host") or "")
        return Target(full_host(host, namespace, self.domain), str(destination.get("subset") or "")) if host else None

    def called(self, entry: JSON) -> str:
        destination = entry.get("destination") or {}
        subset = f", subset {destination['subset']}" if destination.get("subset") else ""
        return f"{destination.get('host', 'nothing')}{subset}"

    def weight(self, entry: JSON) -> int:
        weight = entry.get("weight") or 0
        if type(weight) is not int or weight < 0:
            raise RouteError(f"the weight {weight!r} of {self.called(entry)} is no whole number of 0 or more")
        return weight

    def pointing(self, entry: JSON, target: Target, like: JSON | None = None) -> JSON:
        """Hosts of our own are written as the entry's own host is: a short name stays short."""
        given = (like or entry).get("destination") or {}
        destination = {key: value for key, value in (entry.get("destination") or {}).items() if key != "subset"}
        destination["host"] = given["host"] if like else _as_long_as(str(given.get("host")), target.host)
        if target.subset:
            destination["subset"] = target.subset
        return {**entry, "destination": destination}

    def objection(self, obj: JSON, arms: Arms) -> str:
        """Connections that name one of the two would not follow the split."""
        return self._connections(obj, arms, (Role.STABLE, Role.CANARY))

    def hint(self, obj: JSON, arms: Arms) -> str:
        if connections := self._connections(obj, arms, (Role.SERVICE,)):
            return connections
        for i, route in enumerate(dicts((obj.get("spec") or {}).get(SECTION))):
            if delegate := route.get("delegate"):
                return _delegated(i, route, delegate, arms.namespace)
        return ""

    def _connections(self, obj: JSON, arms: Arms, roles: tuple[Role, ...]) -> str:
        for section in ("tcp", "tls"):
            routes = dicts((obj.get("spec") or {}).get(section))
            for entry in (entry for route in routes for entry in dicts(route.get(FIELD))):
                if arms.role(self.target(entry, arms.namespace)) in roles:
                    return (
                        f"sends connections to {self.called(entry)} in spec.{section}; canaryd counts requests and "
                        "splits only HTTP, so that the route must be one of spec.http"
                    )
        return ""


def _delegated(index: int, route: JSON, delegate: JSON, namespace: str) -> str:
    name = route.get("name")
    route_called = f"route {json.dumps(name, ensure_ascii=False)}" if name else f"http[{index}]"
    at = str(delegate.get("namespace") or namespace)
    whose = f"VirtualService {at}/{delegate.get('name')}"
    if at != namespace:
        return f"{route_called} delegates to {whose}; a Canary routes only in its own namespace, {namespace}"
    return f"{route_called} delegates to {whose}; name that one in spec.route.istio.virtualServices"


def _as_long_as(host: str, full: str) -> str:
    """`full` with as many of its labels as `host` has, where that is a spelling of the same Service."""
    labels = full.split(".")
    count = len(host.rstrip(".").split("."))
    return ".".join(labels[:count]) if labels[2:3] == ["svc"] and count in (1, 2, 3) else full
