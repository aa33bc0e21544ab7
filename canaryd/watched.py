"""What the daemon watches in a cluster: one informer for each kind of object, and which Canaries an object matters to.

Reads only. A kind that the cluster does not serve (Istio, or the Gateway API) is not watched and counts as empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta

from canaryd.adapters.contents import WatchedContents
from canaryd.adapters.route_claims import conflicts
from canaryd.adapters.route_stamps import without_details
from canaryd.config.settings import Cluster
from canaryd.deployments.world import services, target
from canaryd.errors import KubeError
from canaryd.kube.asking import JSON
from canaryd.kube.client import KubeClient
from canaryd.kube.informer import Informer, without_managed_fields
from canaryd.kube.kinds import (
    CANARIES,
    CONFIG_MAPS,
    DEPLOYMENTS,
    HPAS,
    HTTP_ROUTES,
    PODS,
    SECRETS,
    SERVICES,
    VIRTUAL_SERVICES,
    Kind,
)
from canaryd.permissions import missing_permissions
from canaryd.policy import Canary

Touch = Callable[[str, JSON | None, JSON | None], None]  # plural, old, new
Place = tuple[str, str, str]  # plural, namespace, name

_POD = re.compile(r"(.+)-[a-z0-9]+-[a-z0-9]{5}")  # of a Deployment: its name, the ReplicaSet's hash, the pod's own


class Watched:
    """Informers with the reading interface that the adapters take."""

    def __init__(self, client: KubeClient, settings: Cluster, touch: Touch) -> None:
        """`touch` is called in the threads of the watches, after what they hold has changed."""
        self._client, self._settings, self._touch = client, settings, touch
        self.canaries = self._informer(CANARIES, without_managed_fields, labels=settings.selector)
        self.virtual_services = self._informer(VIRTUAL_SERVICES, without_details)
        self.http_routes = self._informer(HTTP_ROUTES, without_details)
        self.deployments = self._informer(DEPLOYMENTS, without_managed_fields)
        self.pods = self._informer(PODS, outline)
        self.services = self._informer(SERVICES, without_managed_fields)
        self.autoscalers = self._informer(HPAS, without_managed_fields)
        self.contents = WatchedContents(client, on_change=touch)
        self._optional: tuple[tuple[Kind, Informer], ...] = (
            (VIRTUAL_SERVICES, self.virtual_services),
            (HTTP_ROUTES, self.http_routes),
        )
        self._started: list[Informer] = []

    def _informer(self, kind: Kind, keep: Callable[[JSON], JSON], *, labels: str = "") -> Informer:
        return Informer(
            self._client,
            kind,
            namespaces=self._settings.namespaces,
            labels=labels,
            keep=keep,
            on_change=lambda old, new: self._touch(kind.plural, old, new),
        )

    def start(self) -> None:
        for informer in (self.canaries, self.deployments, self.pods, self.services, self.autoscalers):
            self._begin(informer)

    def _begin(self, informer: Informer) -> None:
        informer.start()
        self._started.append(informer)

    def stop(self) -> None:
        for informer in self._started:
            informer.stop()
        self.contents.close()

    def wait_synced(self, timeout: timedelta) -> bool:
        """True when everything that the cluster serves has been listed once."""
        for kind, informer in self._optional:
            if informer not in self._started and self._serves(kind):
                self._begin(informer)
        return all(informer.wait_synced(timeout) for informer in self._started)

    def sees_some(self) -> bool:
        """Everything can be seen of one namespace at least; others may be forbidden, or gone."""
        return any(
            all(informer.listed(namespace) and not informer.trouble(namespace) for informer in self._started)
            for namespace in self._settings.namespaces
        )

    def _serves(self, kind: Kind) -> bool:
        try:
            return self._client.discover(kind)
        except KubeError:
            return False

    def trouble(self) -> str:
        """Why something cannot be seen now; "" when everything can."""
        return "; ".join(dict.fromkeys(t for informer in self._started if (t := informer.trouble())))

    def uid_of(self, canary: str) -> str:
        """Of the Canary as it is now; "" when there is none."""
        namespace, _, name = canary.partition("/")
        found = self.canaries.get(namespace, name)
        return str(found["metadata"]["uid"]) if found is not None else ""

    def conflicts(self, canaries: Iterable[Canary]) -> Mapping[str, tuple[str, ...]]:
        """Canaries that must not run because of what else is routed, with the reasons."""
        routes = (self.virtual_services.items(), self.http_routes.items())
        return conflicts(canaries, *routes, domain=self._settings.domain)

    def name_contents(self, canaries: Iterable[Canary]) -> None:
        """Only what these name is watched of ConfigMaps and Secrets."""
        self.contents.only([(kind, c.metadata.namespace, name) for c in canaries for kind, name in contents(c)])

    def missing_permissions(self) -> Sequence[str] | None:
        """Each verb that canaryd needs and may not use; None when the API server does not answer."""
        namespaces = self._settings.namespaces or sorted({c["metadata"]["namespace"] for c in self.canaries.items()})
        try:
            lease = self._settings.lease
            own = lease.namespace or self._client.namespace
            return missing_permissions(self._client, namespaces, own=own, lease=lease.name)
        except KubeError:
            return None


_POD_METADATA = (
    *("name", "namespace", "uid", "resourceVersion", "labels", "ownerReferences"),
    *("creationTimestamp", "deletionTimestamp"),
)
_POD_STATUS = ("phase", "startTime", "conditions", "containerStatuses", "initContainerStatuses")


def outline(pod: JSON) -> JSON:
    """What is looked at of a pod: about a tenth of it."""
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    inits = [{k: c[k] for k in ("name", "restartPolicy") if k in c} for c in spec.get("initContainers") or ()]
    return {
        "metadata": {key: metadata[key] for key in _POD_METADATA if key in metadata},
        "spec": {"initContainers": inits} if inits else {},
        "status": {key: status[key] for key in _POD_STATUS if key in status},
    }


def contents(canary: Canary) -> Iterator[tuple[Kind, str]]:
    """The ConfigMaps and Secrets that a Canary names."""
    deployment = canary.spec.workloads.deployment
    for ref in deployment.config if deployment is not None else ():
        yield CONFIG_MAPS if ref.config_map else SECRETS, ref.config_map or ref.secret or ""


def places(canary: Canary) -> Iterator[Place]:
    """The watched objects that matter to a Canary. Pods stand for the Deployment that made them, and autoscalers for
    the one that they scale.
    """
    namespace, spec = canary.metadata.namespace, canary.spec
    for name in spec.workloads.names:
        for kind in (DEPLOYMENTS, PODS, HPAS):
            yield kind.plural, namespace, name
    deployment = spec.workloads.deployment
    if deployment is not None:
        for service in filter(None, (deployment.name, *services(canary))):
            yield SERVICES.plural, namespace, service
    for kind, name in contents(canary):
        yield kind.plural, namespace, name
    for route in spec.route.istio.virtual_services if spec.route.istio else ():
        yield VIRTUAL_SERVICES.plural, namespace, route.name
    for route in spec.route.gateway_api.http_routes if spec.route.gateway_api else ():
        yield HTTP_ROUTES.plural, namespace, route.name


def place(plural: str, obj: JSON) -> Place:
    """Where a changed object belongs, in the terms of `places`."""
    metadata = obj["metadata"]
    name = metadata["name"]
    if plural == PODS.plural and (match := _POD.fullmatch(name)):
        name = match[1]
    if plural == HPAS.plural:
        name = target(obj)
    return plural, metadata.get("namespace", ""), name
