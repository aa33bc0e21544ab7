"""What canaryd must be allowed to do in a cluster, verb by verb, and why: the one table of it.

The Roles that are shipped are generated from it, `canaryd doctor` compares it with what RBAC says, and the daemon names
the verb that is missing. Secrets are not in it: a Role that lets canaryd read one names that one.
Nothing is ever granted here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from canaryd.kube import kinds
from canaryd.kube.client import KubeClient
from canaryd.kube.kinds import Kind

# Where the daemon runs, and as whom, unless it was installed in another way.
NAMESPACE = "canaryd"
SERVICE_ACCOUNT = "canaryd"
LEASE = "canaryd"


_KINDS = {(kind.group, kind.plural): kind for kind in vars(kinds).values() if isinstance(kind, Kind)}


class Scope(StrEnum):
    """Which namespace a permission is for."""

    WATCHED = "watched"  # each namespace whose Canaries are looked after
    OWN = "own"  # the namespace in which the daemon itself runs


@dataclass(frozen=True, slots=True)
class Need:
    """Verbs on one resource."""

    group: str  # "" is the core group
    resource: str  # as in RBAC rules: "deployments", "canaries/status"
    verbs: tuple[str, ...]
    why: str  # "without it …" completed: what does not work
    scope: Scope = Scope.WATCHED
    optional: bool = False  # only where the cluster serves this resource at all

    @property
    def qualified(self) -> str:
        """As messages name it: "deployments.apps", "canaries.canaryd.io/status", "pods"."""
        plural, slash, subresource = self.resource.partition("/")
        return (f"{plural}.{self.group}" if self.group else plural) + slash + subresource

    @property
    def kind(self) -> Kind:
        return _KINDS[self.group, self.resource.partition("/")[0]]

    @property
    def subresource(self) -> str:
        return self.resource.partition("/")[2]


_READ = ("get", "list", "watch")

# What the daemon's ServiceAccount needs.
DAEMON: tuple[Need, ...] = (
    Need("canaryd.io", "canaries", (*_READ, "patch"), "Canaries cannot be seen, or their finalizer not be set"),
    Need("canaryd.io", "canaries/status", ("patch",), "no decision can be saved, so that nothing ever moves"),
    Need(
        "networking.istio.io",
        "virtualservices",
        (*_READ, "patch"),
        "weights in VirtualServices cannot be seen or set",
        optional=True,
    ),
    Need(
        "gateway.networking.k8s.io",
        "httproutes",
        (*_READ, "patch"),
        "weights in HTTPRoutes cannot be seen or set",
        optional=True,
    ),
    Need(
        "apps",
        "deployments",
        (*_READ, "create", "patch", "delete"),
        "the stable Deployment cannot be made, scaled, upgraded or removed",
    ),
    Need(
        "apps",
        "controllerrevisions",
        ("list", "create", "delete"),
        "the template that is analysed cannot be pinned, so that it cannot be promoted exactly",
    ),
    Need("", "pods", ("list", "watch"), "readiness, start times and restarts of pods are unknown"),
    Need(
        "",
        "services",
        ("list", "watch", "create", "patch", "delete"),
        "the Services of stable and canary cannot be made, or their shape not be checked",
    ),
    Need(
        "discovery.k8s.io",
        "endpointslices",
        ("list",),
        "traffic may be sent to pods of which the proxies have not been told yet",
    ),
    Need(
        "autoscaling",
        "horizontalpodautoscalers",
        ("list", "watch", "patch"),
        "an autoscaler cannot be pointed at stable, or the capacity of stable not be kept during a rollout",
    ),
    Need(
        "",
        "configmaps",
        (*_READ, "create", "patch"),
        "the history of decisions cannot be kept, or ConfigMaps not be part of a revision",
    ),
    Need("events.k8s.io", "events", ("create",), "kubectl describe does not tell the story"),
    Need(
        "",
        "namespaces",
        ("get",),
        "a namespace that is deleted is not told from a Canary that is, and may have to wait",
    ),
    Need(
        "coordination.k8s.io",
        "leases",
        ("get", "create", "update"),
        "no leader can be elected, so that nobody looks after the Canaries",
        scope=Scope.OWN,
    ),
)

# What people need: those who look, and those who also say what should happen.
VIEWER: tuple[Need, ...] = (
    Need("canaryd.io", "canaries", _READ, "canaryd status and kubectl get canaries show nothing"),
    Need("", "configmaps", ("get",), "canaryd explain shows only the latest decisions"),
    Need("coordination.k8s.io", "leases", ("get",), "whether a daemon runs is unknown", scope=Scope.OWN),
)
OPERATOR: tuple[Need, ...] = (
    *VIEWER,
    Need("canaryd.io", "canaries", ("patch",), "promote, abort, pause, resume, retry and skip are refused"),
)


def each(needs: Iterable[Need]) -> Iterator[tuple[Need, str]]:
    """Every single verb with its need."""
    return ((need, verb) for need in needs for verb in need.verbs)


@dataclass(frozen=True, slots=True)
class Missing:
    """One verb that RBAC does not grant."""

    need: Need
    verb: str
    namespace: str

    def __str__(self) -> str:
        return f"{self.verb} {self.need.qualified} in {self.namespace or 'all namespaces'}"


# Whether somebody may do this: (verb, kind, namespace or "" for all, subresource, name or "" for any one). Raises
# KubeError.
Allowed = Callable[[str, Kind, str, str, str], bool]


def missing(
    client: KubeClient,
    namespaces: Iterable[str],
    *,
    own: str = NAMESPACE,
    lease: str = LEASE,
    needs: Iterable[Need] = DAEMON,
    allowed: Allowed | None = None,
) -> Iterator[Missing]:
    """The verbs that are not granted, in the order of the table.

    `namespaces`: those looked after; none: all of them at once. `own`: the daemon's, where its Lease is called `lease`.
    `allowed`: who is asked about; default whoever the client is. Costs one request for each verb and namespace. Raises
    KubeError.
    """
    may = allowed or _oneself(client)
    watched = tuple(namespaces) or ("",)
    for need in needs:
        kind, subresource = need.kind, need.subresource
        if need.optional and not client.discover(kind):
            continue
        for verb in need.verbs:
            # a Role that lets it at one Lease alone names that one, which cannot be done for what is to be made
            name = lease if kind is kinds.LEASES and verb != "create" else ""
            for where in (own,) if need.scope is Scope.OWN else watched:
                if not may(verb, kind, where, subresource, name):
                    yield Missing(need, verb, where)


def _oneself(client: KubeClient) -> Allowed:
    return lambda verb, kind, where, sub, name: client.allowed(verb, kind, where, subresource=sub, name=name)


def missing_permissions(
    client: KubeClient, namespaces: Iterable[str], *, own: str = NAMESPACE, lease: str = LEASE
) -> list[str]:
    """What the client's user may not do although the daemon has to: "patch canaries.canaryd.io/status in shop".

    Arguments and errors as of `missing`.
    """
    return [str(one) for one in missing(client, namespaces, own=own, lease=lease)]


def allowed_to(client: KubeClient, namespace: str, account: str) -> Allowed:
    """Asks about a ServiceAccount instead of oneself. Whoever asks must be let create subjectaccessreviews."""
    review = Kind("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False)
    who = {
        "user": f"system:serviceaccount:{namespace}:{account}",
        "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"],
    }

    def may(verb: str, kind: Kind, where: str, subresource: str, name: str = "") -> bool:
        attributes = {"verb": verb, "group": kind.group, "version": kind.version, "resource": kind.plural}
        narrower = (("namespace", where), ("subresource", subresource), ("name", name))
        attributes |= {key: text for key, text in narrower if text}
        spec = {**who, "resourceAttributes": attributes}
        answer = client.create(review, "", {"apiVersion": review.api_version, "kind": review.kind, "spec": spec})
        return bool((answer.get("status") or {}).get("allowed"))

    return may
