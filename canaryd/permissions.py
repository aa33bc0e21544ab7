"""What canaryd must be allowed to do in a cluster, verb by verb, and why: the one table of it. Pure.

The Roles that are shipped are generated from it, `canaryd doctor` compares it with what RBAC says, and the daemon names
the verb that is missing. Secrets are not in it: a Role that lets canaryd read one names that one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


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
    Need("apps", "replicasets", _READ, "pods cannot be told apart by the revision that they run"),
    Need(
        "apps",
        "controllerrevisions",
        ("get", "list", "create", "delete"),
        "the template that is analysed cannot be pinned, so that it cannot be promoted exactly",
    ),
    Need("", "pods", _READ, "readiness, start times and restarts of pods are unknown"),
    Need(
        "",
        "services",
        (*_READ, "create", "patch", "delete"),
        "the Services of stable and canary cannot be made, or their shape not be checked",
    ),
    Need(
        "autoscaling",
        "horizontalpodautoscalers",
        (*_READ, "create", "patch", "delete"),
        "the capacity of stable cannot be kept during a rollout",
    ),
    Need(
        "",
        "configmaps",
        (*_READ, "create", "patch", "delete"),
        "the history of decisions cannot be kept, or ConfigMaps not be part of a revision",
    ),
    Need("events.k8s.io", "events", ("create", "patch"), "kubectl describe does not tell the story"),
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


def each(needs: tuple[Need, ...]) -> Iterator[tuple[Need, str]]:
    """Every single verb with its need."""
    return ((need, verb) for need in needs for verb in need.verbs)
