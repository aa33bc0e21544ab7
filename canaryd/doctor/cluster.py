"""The checks of an installation in a cluster, as somebody with a kubeconfig, or the daemon itself, can make them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from canaryd import permissions
from canaryd.adapters.route_claims import conflicts
from canaryd.config.objects import canary_of, key_of
from canaryd.doctor import traffic
from canaryd.doctor.findings import Check, Finding, error, fine, warning
from canaryd.doctor.objects import REVIEWS, ago, leaderless
from canaryd.doctor.series import series
from canaryd.doctor.traffic import Subject
from canaryd.errors import KubeForbiddenError, KubeNotFoundError, RouteError
from canaryd.kube.asking import JSON
from canaryd.kube.client import KubeClient
from canaryd.kube.kinds import CANARIES, DEPLOYMENTS, HPAS, HTTP_ROUTES, LEASES, SERVICES, VIRTUAL_SERVICES, Kind
from canaryd.policy import Canary
from canaryd.ports import MetricSource
from canaryd.wiring import direct_router

if TYPE_CHECKING:
    from canaryd.adapters.prometheus_health import Health

EVICTION = "sidecar.istio.io/statsEvictionInterval"


@dataclass
class Cluster:
    """What the checks look at."""

    client: KubeClient
    scope: tuple[str, ...]  # namespaces; none: all
    name: str  # of the only Canary to look at, in the only namespace; "" for all
    at: datetime
    source: Callable[[Canary], MetricSource | None]  # where its counters are; None where that is not known
    own: str = permissions.NAMESPACE  # where the daemon runs
    account: str = permissions.SERVICE_ACCOUNT
    lease: str = permissions.LEASE
    domain: str = "cluster.local"
    health: Callable[[Canary, str, str], Health] | None = None  # asks a canary's Prometheus about itself
    scrape: timedelta | None = None  # how often the settings say that Prometheus scrapes; None: not known here

    @cached_property
    def subjects(self) -> tuple[Subject, ...]:
        """The valid Canaries with their counters. Raises KubeError."""
        return tuple(
            Subject(
                canary,
                canary.key,
                *canary.spec.workloads.names,
                source,
                self.at,
                self.health if source is not None else None,
                self.scrape,
            )
            for canary, _ in self.canaries
            for source in (self.source(canary),)
        )

    @cached_property
    def user(self) -> str:
        """Who we are there. Raises KubeError."""
        answer = self.client.create(REVIEWS, "", {"apiVersion": REVIEWS.api_version, "kind": REVIEWS.kind})
        return str(answer["status"]["userInfo"]["username"])

    @cached_property
    def objects(self) -> tuple[JSON, ...]:
        """The Canaries as they are. Raises KubeError."""
        if self.name:
            return (self.client.get(CANARIES, self.scope[0], self.name),)
        return tuple(obj for where in self.scope or (None,) for obj in self.client.list(CANARIES, where)[0])

    @cached_property
    def canaries(self) -> tuple[tuple[Canary, JSON], ...]:
        """Those that are valid, with their status. Raises KubeError."""
        read = ((canary_of(obj), obj.get("status") or {}) for obj in self.objects)
        return tuple((canary, status) for canary, status in read if isinstance(canary, Canary))

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Those whose Canaries are looked at. Raises KubeError."""
        if self.scope:
            return self.scope
        return tuple(sorted({str(obj["metadata"]["namespace"]) for obj in self.objects}))

    def find(self, kind: Kind, namespace: str, name: str) -> JSON | None:
        """None when it is not there. Raises KubeError. Lists, because that is what the daemon may do."""
        return next(iter(self.client.list(kind, namespace, fields=f"metadata.name={name}")[0]), None)


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
        lacking = list(
            permissions.missing(cluster.client, namespaces, own=cluster.own, lease=cluster.lease, allowed=allowed)
        )
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
        lease = cluster.client.get(LEASES, cluster.own, cluster.lease)
    except KubeNotFoundError:
        lease = None
    why, remedy = "nobody looks after the Canaries", f"kubectl -n {cluster.own} get pods; kubectl -n {cluster.own} logs"
    if lease is None:
        yield error(f"there is no Lease {cluster.lease} in {cluster.own}: canaryd never ran", why, remedy)
        return
    if told := leaderless(lease, cluster.at):
        yield error(told, why, remedy)
        return
    spec = lease["spec"]
    yield fine(f"{spec['holderIdentity']} leads, last heard of {ago(spec['renewTime'], cluster.at):.0f} s ago")


# ── the Canaries ─────────────────────────────────────────────────────────────────────────────────────────────


def _documents(cluster: Cluster) -> Iterator[Finding]:
    for obj in cluster.objects:
        about, conditions = key_of(obj), (obj.get("status") or {}).get("conditions") or ()
        canary = canary_of(obj)
        ready = next((c for c in conditions if c.get("type") == "Ready" and c.get("status") == "False"), None)
        if not isinstance(canary, Canary):
            for problem in canary:
                yield error(problem, "it is not looked after", "correct it", about)
        elif ready is not None:
            yield error(str(ready.get("message") or ready.get("reason")), "it is not looked after", "correct it", about)
    yield fine(f"{len(cluster.canaries)} of {len(cluster.objects)} can be used")


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
        yield from eviction(found, canary.key)
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


def eviction(deployment: JSON, about: str) -> Iterator[Finding]:
    """Whether its Envoys forget counters."""
    notes = (deployment["spec"]["template"].get("metadata") or {}).get("annotations") or {}
    if notes.get(EVICTION):
        yield warning(
            f"{deployment['metadata']['name']} has {EVICTION}: {notes[EVICTION]}",
            "Envoy then forgets counters that were idle for a while, and what they counted is lost",
            "take the annotation from its pod template; that is a release of its own",
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


def _splits(cluster: Cluster) -> Iterator[Finding]:
    uids = {canary.key: canary.metadata.uid for canary, _ in cluster.canaries}
    router = direct_router(cluster.client, lambda key: uids.get(key) or "", cluster.domain)
    for canary, _ in cluster.canaries:
        if canary.spec.workloads.deployment is None:
            continue
        stable, name = canary.spec.workloads.names
        try:
            view = router.view(canary.key, canary.spec.route, stable, name)
        except (RouteError, KubeNotFoundError) as reason:
            why = "the weight can neither be seen nor set"
            yield error(str(reason), why, "correct the route or spec.route", canary.key)
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


def _conflicts(cluster: Cluster) -> Iterator[Finding]:
    """Things that two of them claim: a host, a route, a Deployment."""
    by_namespace: dict[str, list[Canary]] = {}
    for canary, _ in cluster.canaries:
        by_namespace.setdefault(canary.metadata.namespace, []).append(canary)
    for namespace, canaries in by_namespace.items():
        served = [kind for kind in (VIRTUAL_SERVICES, HTTP_ROUTES) if cluster.client.discover(kind)]
        objects = {kind: cluster.client.list(kind, namespace)[0] for kind in served}
        found = conflicts(canaries, objects.get(VIRTUAL_SERVICES, ()), objects.get(HTTP_ROUTES, ()), cluster.domain)
        for key, reasons in found.items():
            for reason in reasons:
                yield error(reason, "two cannot set one thing, so the Canary does not run", "let one have it", key)


def _series(cluster: Cluster) -> Iterator[Finding]:
    for canary, status in cluster.canaries:
        source = cluster.source(canary)
        if source is None:
            yield warning(
                "where its counters are is not known here",
                "whether they are there could not be looked at",
                "canaryd doctor --prometheus URL",
                canary.key,
            )
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
    Check("conflicts", _conflicts),
    Check("autoscalers", _autoscalers),
    Check("metrics", _series),
    Check("Prometheus", lambda cluster: traffic.prometheus(cluster.subjects)),
    Check("own metrics", lambda cluster: traffic.own_metrics(cluster.subjects)),
    Check("buckets", lambda cluster: traffic.buckets(cluster.subjects)),
    Check("counters", lambda cluster: traffic.resets(cluster.subjects)),
    Check("power", lambda cluster: traffic.power(cluster.subjects)),
)
