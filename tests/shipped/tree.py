"""Finds its way among rendered objects: pods of workloads, what selects them, ports by name. Reads, judges nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shipped.render import Object

WORKLOADS = ("Deployment", "StatefulSet", "CronJob")
CLUSTER_KINDS = (
    "Namespace",
    "ClusterRole",
    "ClusterRoleBinding",
    "ClusterIssuer",
    "CustomResourceDefinition",
    "IngressClass",
)


@dataclass(frozen=True)
class Workload:
    """A Deployment, StatefulSet or CronJob."""

    whole: Object

    @property
    def kind(self) -> str:
        return str(self.whole["kind"])

    @property
    def name(self) -> str:
        return str(self.whole["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.whole["metadata"]["namespace"])

    @property
    def template(self) -> Object:
        spec = self.whole["spec"]
        found: Object = (spec["jobTemplate"]["spec"] if self.kind == "CronJob" else spec)["template"]
        return found

    @property
    def labels(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.template["metadata"]["labels"]
        return found

    @property
    def annotations(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.template["metadata"].get("annotations") or {}
        return found

    @property
    def pod(self) -> Object:
        found: Object = self.template["spec"]
        return found

    @property
    def containers(self) -> list[Object]:
        found: list[Object] = self.pod["containers"]
        return found

    @property
    def ports(self) -> dict[str, int]:
        """Name → number."""
        return {p["name"]: p["containerPort"] for c in self.containers for p in c.get("ports") or []}

    @property
    def injected(self) -> bool:
        """True when Istio gives its pods a sidecar (in a namespace that asks for it, or by its own label)."""
        return self.labels.get("sidecar.istio.io/inject") == "true"

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class Tree:
    """All objects of one rendering."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects
        self.workloads = [Workload(each) for each in self.of(*WORKLOADS)]

    def of(self, *kinds: str, group: str | None = None) -> list[Object]:
        """Objects of these kinds; `group` of the API, where a kind has several."""
        return [
            each
            for each in self.objects
            if each["kind"] in kinds and (group is None or each["apiVersion"].startswith(f"{group}/"))
        ]

    def find(self, kind: str, namespace: str | None, name: str) -> Object | None:
        for each in self.of(kind):
            meta = each["metadata"]
            if meta["name"] == name and meta.get("namespace") == namespace:
                return each
        return None

    def pods(self, namespace: str, labels: Mapping[str, str]) -> list[Workload]:
        """Workloads whose pods have all these labels."""
        return [w for w in self.workloads if w.namespace == namespace and labels.items() <= w.labels.items()]

    def selected(self, namespace: str, selector: Mapping[str, Any]) -> list[Workload]:
        """Workloads whose pods a label selector takes."""
        return [w for w in self.workloads if w.namespace == namespace and matches(selector, w.labels)]

    def service(self, host: str, namespace: str) -> Object | None:
        """By a short name, `name.namespace`, or the whole one."""
        name, _, rest = host.removesuffix(".svc.cluster.local").partition(".")
        return self.find("Service", rest or namespace, name)

    def served(self, service: Object) -> list[Workload]:
        """Workloads behind a Service."""
        return self.pods(service["metadata"]["namespace"], service["spec"].get("selector") or {})

    def replicas(self, workload: Workload) -> tuple[int, int]:
        """Fewest and most pods: of its autoscaler, else of itself."""
        for hpa in self.of("HorizontalPodAutoscaler"):
            target = hpa["spec"]["scaleTargetRef"]
            if (hpa["metadata"]["namespace"], target["kind"], target["name"]) == (
                workload.namespace,
                workload.kind,
                workload.name,
            ):
                return hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"]
        count = 1 if workload.kind == "CronJob" else workload.whole["spec"].get("replicas", 1)
        return count, count


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """A Kubernetes label selector."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for rule in selector.get("matchExpressions") or []:
        key, operator = rule["key"], rule["operator"]
        if operator == "In" and labels.get(key) not in rule["values"]:
            return False
        if operator == "NotIn" and labels.get(key) in rule["values"]:
            return False
        if operator == "Exists" and key not in labels:
            return False
        if operator == "DoesNotExist" and key in labels:
            return False
    return True


def named(each: Object) -> str:
    """Kind namespace/name, for messages."""
    meta = each["metadata"]
    return (
        f"{each['kind']} {meta['namespace']}/{meta['name']}"
        if "namespace" in meta
        else f"{each['kind']} {meta['name']}"
    )


def texts(value: Any) -> Iterator[str]:
    """Every text inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
