"""Which Canaries must not run because of what else is routed: two for one route, or two kinds of route for one host.

Pure: Canaries and objects in, sentences out. What it cannot see, such as routes of another namespace, it says nothing
about. Each namespace is looked at on its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from canaryd.adapters.http_route import gateway_api_arms
from canaryd.adapters.route_splits import Arms
from canaryd.adapters.route_stamps import JSON, STAMP, Stamp, annotations_of, dicts
from canaryd.adapters.virtual_service import full_host, istio_arms
from canaryd.errors import RouteError
from canaryd.policy import Canary

MESH, GATEWAY = "in the mesh", "at gateways"

Name = tuple[str, str, str]  # kind, namespace, name


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """An object says where requests for a host go."""

    where: str  # MESH or GATEWAY
    namespace: str  # of the object
    host: str  # in full; may begin with "*."

    def overlapping(self) -> Iterator[Claim]:
        """This claim, and the wildcards that contain its host."""
        yield self
        labels = self.host.split(".")
        for i in range(1, len(labels)):
            yield Claim(self.where, self.namespace, ".".join(["*", *labels[i:]]))


def claims(obj: JSON, domain: str = "cluster.local") -> frozenset[Claim]:
    """Of a VirtualService or an HTTPRoute. A claim of every host ("*") is none: it yields to any other."""
    metadata, spec = obj.get("metadata") or {}, obj.get("spec") or {}
    namespace = str(metadata.get("namespace"))
    if obj.get("kind") == "VirtualService":
        gateways = spec.get("gateways") or ["mesh"]
        wheres = {MESH if gateway == "mesh" else GATEWAY for gateway in gateways}
        hosts = {full_host(str(host), namespace, domain) for host in spec.get("hosts") or ()}
        found = {(where, host) for where in wheres for host in hosts}
    else:
        parents = dicts(spec.get("parentRefs"))
        services = [p for p in parents if (p.get("kind"), p.get("group")) == ("Service", "")]
        found = {(MESH, full_host(str(p.get("name")), str(p.get("namespace") or namespace), domain)) for p in services}
        if any((p.get("kind") or "Gateway") == "Gateway" for p in parents):
            found |= {(GATEWAY, str(host).lower()) for host in spec.get("hostnames") or ()}
    return frozenset(Claim(where, namespace, host) for where, host in found if host != "*")


@dataclass(slots=True)
class _Case:
    """One Canary and what it routes."""

    canary: Canary
    names: list[Name]
    arms: Arms | None  # None where its hosts are refused anyway
    holds: bool = False  # it has stamped one of its objects
    wrong: list[str] = field(default_factory=list)


def conflicts(
    canaries: Iterable[Canary],
    virtual_services: Iterable[JSON],
    http_routes: Iterable[JSON],
    domain: str = "cluster.local",
) -> Mapping[str, tuple[str, ...]]:
    """Key of a Canary → why it must not run; without those that may.

    Of two Canaries for the same thing the one goes on that has already written its stamp there, so that a second one
    cannot stop it; where none has, neither may begin.
    """
    objects = {_name(obj): obj for obj in (*virtual_services, *http_routes)}
    cases = {canary.key: _case(canary, objects, domain) for canary in canaries}
    claimed: dict[Claim, list[Name]] = defaultdict(list)
    for name, obj in objects.items():
        for claim in claims(obj, domain):
            claimed[claim].append(name)
    for case in cases.values():
        _two_kinds(case, objects, claimed, domain)
    _two_canaries(list(cases.values()), objects, domain)
    return {key: tuple(dict.fromkeys(case.wrong)) for key, case in cases.items() if case.wrong}


def _name(obj: JSON) -> Name:
    metadata = obj.get("metadata") or {}
    return str(obj.get("kind")), str(metadata.get("namespace")), str(metadata.get("name"))


def _case(canary: Canary, objects: Mapping[Name, JSON], domain: str) -> _Case:
    names, arms = [], None
    namespace, route = canary.metadata.namespace, canary.spec.route
    deployment = canary.spec.workloads.deployment
    if route.istio is not None:
        names = [("VirtualService", namespace, ref.name) for ref in route.istio.virtual_services]
    elif route.gateway_api is not None:
        names = [("HTTPRoute", namespace, ref.name) for ref in route.gateway_api.http_routes]
    if deployment is not None:
        stable = deployment.stable or f"{deployment.name}-stable"
        try:
            if route.istio is not None:
                arms = istio_arms(route.istio, namespace, stable, deployment.name, domain)
            elif route.gateway_api is not None:
                arms = gateway_api_arms(route.gateway_api, namespace, stable, deployment.name)
        except RouteError:
            pass  # the router says it
    stamps = (Stamp.parse(annotations_of(objects[name]).get(STAMP)) for name in names if name in objects)
    holds = any(s is not None and (s.canary, s.uid) == (canary.key, canary.metadata.uid) for s in stamps)
    return _Case(canary, list(dict.fromkeys(names)), arms, holds)


def _two_kinds(case: _Case, objects: Mapping[Name, JSON], claimed: Mapping[Claim, list[Name]], domain: str) -> None:
    """A VirtualService and an HTTPRoute for one host: which of them routes is not defined."""
    for name in case.names:
        for claim in sorted(claims(objects[name], domain)) if name in objects else ():
            for kind, namespace, other in _overlapping(claim, claimed):
                if kind != name[0]:
                    case.wrong.append(
                        f"{name[0]} {namespace}/{name[2]} and {kind} {namespace}/{other} both route "
                        f"{claim.host} {claim.where}; which of them does is not defined, so that one must go"
                    )


def _overlapping(claim: Claim, claimed: Mapping[Claim, list[Name]]) -> list[Name]:
    found = [name for wider in claim.overlapping() for name in claimed.get(wider, ())]
    if claim.host.startswith("*."):
        suffix = claim.host[1:]
        found += [
            name
            for other, names in claimed.items()
            if (other.where, other.namespace) == (claim.where, claim.namespace) and other.host.endswith(suffix)
            for name in names
        ]
    return list(dict.fromkeys(found))


def _two_canaries(cases: list[_Case], objects: Mapping[Name, JSON], domain: str) -> None:
    """Two Canaries that would write the same route, or the routes of the same host or Services."""
    shared: dict[tuple[str, ...], list[_Case]] = defaultdict(list)
    for case in cases:
        for kind, namespace, name in case.names:
            shared["", namespace, f"{kind} {namespace}/{name}"].append(case)
        for claim in sorted({c for name in case.names if name in objects for c in claims(objects[name], domain)}):
            if claim.where == MESH and case.canary.spec.route.istio is not None:
                shared["the host ", claim.namespace, claim.host].append(case)
        for target in (case.arms.stable, case.arms.canary) if case.arms else ():
            host = full_host(target.host, case.canary.metadata.namespace, domain)
            shared["the destination ", case.canary.metadata.namespace, host, target.subset].append(case)
    for (what, _, *called), rivals in shared.items():
        thing = what + ", subset ".join(part for part in called if part)
        for case in rivals:
            others = [rival for rival in rivals if rival is not case]
            if others and not (case.holds and not any(other.holds for other in others)):
                names = " and ".join(other.canary.name for other in others)
                case.wrong.append(f"{thing} is routed by canary {names}, too; one Canary must have it alone")
