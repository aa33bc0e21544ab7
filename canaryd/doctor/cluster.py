"""The checks of an installation in a cluster, as somebody with a kubeconfig, or the daemon itself, can make them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from pydantic import ValidationError

from canaryd import adapters, permissions
from canaryd.doctor.findings import Check, Finding, error, fine, warning
from canaryd.doctor.series import series
from canaryd.errors import KubeError, KubeForbiddenError, KubeNotFoundError, RouteError
from canaryd.kube.asking import JSON
from canaryd.kube.client import KubeClient
from canaryd.kube.informer import Direct
from canaryd.kube.kinds import CANARIES, DEPLOYMENTS, HPAS, HTTP_ROUTES, LEASES, SERVICES, VIRTUAL_SERVICES, Kind
from canaryd.policy import Canary, RouteRef, parse_canary
from canaryd.ports import MetricSource

REVIEWS = Kind("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", namespaced=False)
STALE = timedelta(seconds=30)  # a Lease that was not renewed for so long has no holder
_KEPT = ("name", "namespace", "labels", "annotations", "uid", "generation")


@dataclass
class Cluster:
    """What the checks look at."""

    client: KubeClient
    namespace: str | None  # None: all
    name: str  # of the only Canary to look at; "" for all
    at: datetime
    source: Callable[[Canary], MetricSource | None]  # where its counters are; None where that is not known
    own: str = permissions.NAMESPACE  # where the daemon runs
    account: str = permissions.SERVICE_ACCOUNT

    @cached_property
    def user(self) -> str:
        """Who we are there. Raises KubeError."""
        answer = self.client.create(REVIEWS, "", {"apiVersion": REVIEWS.api_version, "kind": REVIEWS.kind})
        return str(answer["status"]["userInfo"]["username"])

    @cached_property
    def objects(self) -> tuple[JSON, ...]:
        """The Canaries as they are. Raises KubeError."""
        if self.name:
            return (self.client.get(CANARIES, self.namespace or "", self.name),)
        return tuple(self.client.list(CANARIES, self.namespace)[0])

    @cached_property
    def canaries(self) -> tuple[tuple[Canary, JSON], ...]:
        """Those that are valid, with their status. Raises KubeError."""
        found = []
        for obj in self.objects:
            try:
                found.append((parse_canary(document_of(obj)), obj.get("status") or {}))
            except ValidationError:
                continue
        return tuple(found)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Those whose Canaries are looked at. Raises KubeError."""
        if self.namespace is not None:
            return (self.namespace,)
        return tuple(sorted({str(obj["metadata"]["namespace"]) for obj in self.objects}))

    def find(self, kind: Kind, namespace: str, name: str) -> JSON | None:
        """None when it is not there. Raises KubeError. Lists, because that is what the daemon may do."""
        return next(iter(self.client.list(kind, namespace, fields=f"metadata.name={name}")[0]), None)


def document_of(obj: JSON) -> JSON:
    """The object as a document: without what the cluster keeps beside it."""
    meta = {key: value for key, value in obj["metadata"].items() if key in _KEPT}
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": meta, "spec": obj.get("spec") or {}}


# ── canaryd itself ───────────────────────────────────────────────────────────────────────────────────────────


def _server(cluster: Cluster) -> Iterator[Finding]:
    cluster.client.ping()
    yield fine(f"{cluster.client.server} answers, to {cluster.user}")


def _definition(cluster: Cluster) -> Iterator[Finding]:
    if cluster.client.discover(CANARIES):
        yield fine(f"{CANARIES.resource} is served as {CANARIES.version}")
        return
    yield error(
        f"{CANARIES.resource}/{CANARIES.version} is not served",
        "there can be no Canaries without their definition",
        "canaryd manifests crd | kubectl apply --server-side -f -",
    )


def _permissions(cluster: Cluster) -> Iterator[Finding]:
    account = f"system:serviceaccount:{cluster.own}:{cluster.account}"
    allowed = None if cluster.user == account else permissions.allowed_to(cluster.client, cluster.own, cluster.account)
    try:
        namespaces = cluster.namespaces
    except KubeForbiddenError:  # that is among what is missing
        namespaces = ()
    who = f"the ServiceAccount {cluster.own}/{cluster.account}"
    try:
        lacking = list(permissions.missing(cluster.client, namespaces, own=cluster.own, allowed=allowed))
    except KubeForbiddenError:
        yield warning(
            f"{cluster.user} may not ask what {who} may do",
            "a verb that it lacks stops releases",
            f"kubectl -n {cluster.own} exec deploy/canaryd -- canaryd doctor, or a Role to create subjectaccessreviews",
        )
        return
    for one in lacking:
        yield error(
            f"{who} may not {one}",
            f"without it {one.need.why}",
            f"add {one.verb} on {one.need.resource} to its Role in {one.namespace or 'the cluster'}",
        )
    if not lacking:
        yield fine(f"{who} may do all that it has to in {', '.join(namespaces) or 'all namespaces'}")


def _leader(cluster: Cluster) -> Iterator[Finding]:
    try:
        lease = cluster.client.get(LEASES, cluster.own, permissions.LEASE)
    except KubeNotFoundError:
        lease = None
    why, remedy = "nobody looks after the Canaries", f"kubectl -n {cluster.own} get pods; kubectl -n {cluster.own} logs"
    if lease is None:
        yield error(f"there is no Lease {permissions.LEASE} in {cluster.own}: canaryd never ran", why, remedy)
        return
    if told := leaderless(lease, cluster.at):
        yield error(told, why, remedy)
        return
    spec = lease["spec"]
    yield fine(f"{spec['holderIdentity']} leads, last heard of {_ago(spec['renewTime'], cluster.at):.0f} s ago")


def leaderless(lease: JSON, at: datetime) -> str:
    """Why nobody leads by this Lease; "" while somebody does. Another machine's clock may differ by some seconds."""
    spec = lease.get("spec") or {}
    holder, renewed = str(spec.get("holderIdentity") or ""), spec.get("renewTime")
    if not renewed:
        return "canaryd is not running (nobody ever led)"
    ago = _ago(renewed, at)
    if not holder:
        return f"canaryd is not running (the last leader stopped {ago:.0f} s ago)"
    patience = max(STALE.total_seconds(), 3 * int(spec.get("leaseDurationSeconds") or 0))
    return f"canaryd is not running ({holder} led, and was last heard of {ago:.0f} s ago)" if ago > patience else ""


def _ago(then: str, at: datetime) -> float:
    return max(0.0, (at - datetime.fromisoformat(then)).total_seconds())


# ── the Canaries ─────────────────────────────────────────────────────────────────────────────────────────────


def _documents(cluster: Cluster) -> Iterator[Finding]:
    for obj in cluster.objects:
        meta, conditions = obj["metadata"], (obj.get("status") or {}).get("conditions") or ()
        about = f"{meta['namespace']}/{meta['name']}"
        ready = next((c for c in conditions if c.get("type") == "Ready"), None)
        if ready is not None and ready.get("status") == "False":
            yield error(str(ready.get("message") or "it is not ready"), "it is not looked after", "correct it", about)
            continue
        try:
            parse_canary(document_of(obj))
        except ValidationError as wrong:
            first = wrong.errors()[0]
            where = ".".join(map(str, first["loc"]))
            yield error(f"{where}: {first['msg']}", "it is not looked after", "correct it", about)
    yield fine(f"{len(cluster.canaries)} of {len(cluster.objects)} can be used")
    yield from _shared(cluster.canaries)


def _shared(canaries: Sequence[tuple[Canary, JSON]]) -> Iterator[Finding]:
    """Two Canaries that fight over one thing."""
    claims: dict[tuple[str, str, str], list[str]] = {}
    for canary, _ in canaries:
        for kind, name in sorted(set(_claims(canary))):
            claims.setdefault((canary.metadata.namespace, kind, name), []).append(canary.name)
    for (namespace, kind, name), names in claims.items():
        if len(names) > 1:
            yield error(
                f"{' and '.join(names)} all use {kind} {name}",
                "two cannot set one thing",
                "let one Canary have it, or name different routes in it",
                f"{namespace}/{names[0]}",
            )


def _claims(canary: Canary) -> Iterator[tuple[str, str]]:
    if canary.spec.workloads.deployment is not None:
        yield from (("Deployment", name) for name in canary.spec.workloads.names)
    for kind, refs in _routes(canary):
        for ref in refs:
            for route in ref.routes or ("",):
                yield kind.kind, f"{ref.name}, route {route}" if route else ref.name


def _deployments(cluster: Cluster) -> Iterator[Finding]:
    for canary, status in cluster.canaries:
        if canary.spec.workloads.deployment is None:
            continue
        stable, name = canary.spec.workloads.names
        namespace = canary.metadata.namespace
        found = cluster.find(DEPLOYMENTS, namespace, name)
        if found is None:
            yield error(
                f"Deployment {name} does not exist",
                "there is nothing to release",
                "create it, or correct spec.workloads.deployment.name",
                canary.key,
            )
            continue
        yield from _probes(found, canary.key)
        yield from _stable(cluster.find(DEPLOYMENTS, namespace, stable), stable, status, canary.key)


def _probes(deployment: JSON, about: str) -> Iterator[Finding]:
    containers = deployment["spec"]["template"]["spec"]["containers"]
    without = [str(c["name"]) for c in containers if "readinessProbe" not in c]
    if len(without) == len(containers):
        yield warning(
            f"no container of {deployment['metadata']['name']} has a readinessProbe",
            "new pods get requests before they can serve them, and that counts against the release",
            "add a readinessProbe to its pod template",
            about,
        )


def _stable(found: JSON | None, name: str, status: JSON, about: str) -> Iterator[Finding]:
    if not status.get("stableRevision"):  # not taken into care yet
        yield fine("waits to be adopted", about)
        return
    if found is None:
        yield error(f"Deployment {name} does not exist", "all requests go to it", f"canaryd status {about}", about)
        return
    wanted, there = found["spec"].get("replicas", 1), (found.get("status") or {}).get("availableReplicas") or 0
    if not wanted or there < wanted:
        yield error(
            f"Deployment {name} has {there} of {wanted} pods available",
            "users are served by it",
            f"kubectl -n {found['metadata']['namespace']} describe deployment {name}",
            about,
        )
        return
    yield fine(f"{name} has {there} of {wanted} pods available", about)


def _services(cluster: Cluster) -> Iterator[Finding]:
    for canary, status in cluster.canaries:
        if canary.spec.workloads.deployment is None or not status.get("stableRevision"):
            continue
        namespace = canary.metadata.namespace
        for service, workload in _hosts(canary):
            found = cluster.find(SERVICES, namespace, service)
            if found is None:
                why = f"requests for {workload} have nowhere to go"
                yield error(f"Service {service} does not exist", why, f"canaryd status {canary.key}", canary.key)
                continue
            deployment = cluster.find(DEPLOYMENTS, namespace, workload)
            labels = deployment["spec"]["template"]["metadata"].get("labels") or {} if deployment else {}
            selector = {k: v for k, v in (found["spec"].get("selector") or {}).items() if k != "pod-template-hash"}
            if deployment and any(labels.get(k) != v for k, v in selector.items()):
                yield error(
                    f"Service {service} does not select the pods of {workload}",
                    "its requests go elsewhere, so that the two versions are not told apart",
                    f"let its selector fit the labels in the pod template of {workload}",
                    canary.key,
                )
                continue
            yield fine(f"{service} selects {workload}", canary.key)


def _hosts(canary: Canary) -> Iterator[tuple[str, str]]:
    """(Service, Deployment) of each arm; nothing where subsets of one Service are used."""
    stable, name = canary.spec.workloads.names
    route = canary.spec.route
    if route.istio is not None:
        arms = ((route.istio.stable, f"{name}-stable", stable), (route.istio.canary, f"{name}-canary", name))
        yield from ((d.host.split(".")[0] or default, work) for d, default, work in arms if not d.subset)
    elif route.gateway_api is not None:
        yield route.gateway_api.stable or f"{name}-stable", stable
        yield route.gateway_api.canary or f"{name}-canary", name


def _autoscalers(cluster: Cluster) -> Iterator[Finding]:
    for namespace in sorted({canary.metadata.namespace for canary, _ in cluster.canaries}):
        scalers = cluster.client.list(HPAS, namespace)[0]
        targets = Counter(_target(scaler) for scaler in scalers)
        ours = [c for c, _ in cluster.canaries if c.metadata.namespace == namespace]
        for canary in ours:
            for workload in canary.spec.workloads.names if canary.spec.workloads.deployment else ():
                if targets[workload] > 1:
                    yield error(
                        f"{targets[workload]} HorizontalPodAutoscalers scale Deployment {workload}",
                        "they undo each other",
                        "keep one",
                        canary.key,
                    )
                yield from _scaling([s for s in scalers if _target(s) == workload], workload, canary.key)


def _target(scaler: JSON) -> str:
    ref = scaler["spec"]["scaleTargetRef"]
    return str(ref["name"]) if ref["kind"] == "Deployment" else ""


def _scaling(scalers: Sequence[JSON], workload: str, about: str) -> Iterator[Finding]:
    for scaler in scalers:
        name = scaler["metadata"]["name"]
        for condition in (scaler.get("status") or {}).get("conditions") or ():
            off = condition.get("reason") == "ScalingDisabled"  # scaled to 0 on purpose
            if (
                condition.get("type") in ("AbleToScale", "ScalingActive")
                and condition.get("status") == "False"
                and not off
            ):
                yield warning(
                    f"HorizontalPodAutoscaler {name} does not work: {condition.get('message')}",
                    f"{workload} does not grow with its load, so that a shift of traffic can overload it",
                    f"kubectl -n {scaler['metadata']['namespace']} describe hpa {name}",
                    about,
                )


def _routes(canary: Canary) -> Iterator[tuple[Kind, tuple[RouteRef, ...]]]:
    if canary.spec.route.istio is not None:
        yield VIRTUAL_SERVICES, canary.spec.route.istio.virtual_services
    if canary.spec.route.gateway_api is not None:
        yield HTTP_ROUTES, canary.spec.route.gateway_api.http_routes


def _splits(cluster: Cluster) -> Iterator[Finding]:
    uids = {canary.key: canary.metadata.uid for canary, _ in cluster.canaries}
    for canary, _ in cluster.canaries:
        which, kind = ("istio", VIRTUAL_SERVICES) if canary.spec.route.istio else ("gatewayApi", HTTP_ROUTES)
        if not (canary.spec.route.istio or canary.spec.route.gateway_api) or which not in adapters.TRAFFIC_ROUTERS:
            continue
        router = adapters.load(adapters.TRAFFIC_ROUTERS, which)(
            cluster.client, Direct(cluster.client, kind), lambda key: uids.get(key, "")
        )
        stable, name = canary.spec.workloads.names
        try:
            view = router.view(canary.key, canary.spec.route, stable, name)
        except (RouteError, KubeError) as reason:
            yield error(
                str(reason), "the weight can neither be seen nor set", "correct the route or spec.route", canary.key
            )
            continue
        if view.weight is None and not view.adoptable:
            yield error(
                "no route has both versions, or sends everything to the service itself",
                "there is no weight to set",
                f"name {name}-stable and {name}-canary as the two destinations of one route",
                canary.key,
            )
        elif view.weight is None:
            yield fine("the route can be adopted", canary.key)
        else:
            yield fine(f"the route sends {view.weight} % to {name}", canary.key)


def _claimed_hosts(cluster: Cluster) -> Iterator[Finding]:
    """A host that a VirtualService and an HTTPRoute both claim: which of them counts, depends."""
    if not (cluster.client.discover(VIRTUAL_SERVICES) and cluster.client.discover(HTTP_ROUTES)):
        return
    for namespace in sorted({canary.metadata.namespace for canary, _ in cluster.canaries}):
        by_istio = _by_host(cluster.client.list(VIRTUAL_SERVICES, namespace)[0], lambda o: o["spec"].get("hosts") or ())
        by_gateway = _by_host(cluster.client.list(HTTP_ROUTES, namespace)[0], _http_hosts)
        for host in sorted(by_istio.keys() & by_gateway.keys()):
            about = next(
                (c.key for c, _ in cluster.canaries if by_istio[host] & _named(c) or by_gateway[host] & _named(c)), ""
            )
            if about:
                first, second = (", ".join(sorted(named[host])) for named in (by_istio, by_gateway))
                yield error(
                    f"VirtualService {first} and HTTPRoute {second} both claim {host}",
                    "a weight that is set in one of them may count for nothing",
                    "delete one of the two",
                    about,
                )


def _by_host(objects: Iterable[JSON], hosts: Callable[[JSON], Iterable[str]]) -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = {}
    for obj in objects:
        for host in hosts(obj):
            found.setdefault(_full(host, obj["metadata"]["namespace"]), set()).add(str(obj["metadata"]["name"]))
    return found


def _full(host: str, namespace: str) -> str:
    """A short name means the Service of the object's own namespace."""
    parts = host.removesuffix(".svc.cluster.local").removesuffix(".svc").split(".")
    if host == "*" or (len(parts) > 2 or (len(parts) == 2 and ".svc" not in host)):
        return host
    return f"{parts[0]}.{parts[1] if len(parts) > 1 else namespace}.svc.cluster.local"


def _http_hosts(route: JSON) -> Iterator[str]:
    yield from route["spec"].get("hostnames") or ()
    for parent in route["spec"].get("parentRefs") or ():
        if parent.get("kind") == "Service":
            yield str(parent["name"])


def _named(canary: Canary) -> set[str]:
    return {ref.name for _, refs in _routes(canary) for ref in refs}


def _series(cluster: Cluster) -> Iterator[Finding]:
    for canary, status in cluster.canaries:
        source = cluster.source(canary)
        if source is None:
            continue
        stable, name = canary.spec.workloads.names
        active = status.get("phase") in ("Progressing", "Promoting")
        yield from series(canary, source, stable, name, cluster.at, canary_expected=active)


CHECKS: tuple[Check[Cluster], ...] = (
    Check("API server", _server, vital=True),
    Check("definition", _definition),
    Check("permissions", _permissions),
    Check("leader", _leader),
    Check("Canaries", _documents),
    Check("Deployments", _deployments),
    Check("Services", _services),
    Check("routes", _splits),
    Check("hosts", _claimed_hosts),
    Check("autoscalers", _autoscalers),
    Check("metrics", _series),
)
