"""A cluster in memory for the benchmarks beside it: objects, readers and a client, without a server; measures nothing.

Deployments are obeyed at once: their pods are there and ready. What canaryd writes is applied as an API server would
do it, so that a fleet of services is taken into care by canaryd's own code, and then idles as it would in a cluster.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from json_patch import TestFailedError, patched

from canaryd.errors import KubeConflictError, KubeExistsError, KubeNotFoundError
from canaryd.kube import kinds
from canaryd.kube.kinds import Kind
from canaryd.watched import outline

JSON = dict[str, Any]

NAMESPACE = "shop"
REPLICAS = 3


class Objects:
    """The objects of one kind: what a reader holds, and what the client changes."""

    synced, blind = True, ""

    def __init__(self, kind: Kind, changed: Callable[[str, JSON | None, JSON | None], None]) -> None:
        self.kind, self.generation = kind, 0
        self._changed = changed
        self._held: dict[str, dict[str, JSON]] = {}
        self._latest: deque[tuple[int, tuple[str, str]]] = deque(maxlen=1000)

    def trouble(self, namespace: str | None = None) -> str:
        return ""

    def listed(self, namespace: str | None = None) -> bool:
        return True

    def get(self, namespace: str, name: str) -> JSON | None:
        return self._held.get(namespace, {}).get(name)

    def items(self, namespace: str | None = None) -> tuple[JSON, ...]:
        if namespace is not None:
            return tuple(self._held.get(namespace, {}).values())
        return tuple(obj for held in self._held.values() for obj in held.values())

    def changed(self, since: int) -> set[tuple[str, str]] | None:
        return {key for at, key in self._latest if at > since} if since >= self.generation - 1000 else None

    def put(self, obj: JSON) -> None:
        """What was written is here already."""

    def hold(self, obj: JSON) -> None:
        namespace, name = obj["metadata"]["namespace"], obj["metadata"]["name"]
        old = self.get(namespace, name)
        self._held.setdefault(namespace, {})[name] = obj
        self._note(namespace, name)
        self._changed(self.kind.plural, old, obj)

    def drop(self, namespace: str, name: str) -> None:
        old = self._held.get(namespace, {}).pop(name, None)
        self._note(namespace, name)
        if old is not None:
            self._changed(self.kind.plural, old, None)

    def _note(self, namespace: str, name: str) -> None:
        self.generation += 1
        self._latest.append((self.generation, (namespace, name)))


class MemoryCluster:
    """Plays KubeClient for the adapters, as far as they use it; counts what it is asked."""

    server, namespace = "memory://", "canaryd"

    def __init__(self, changed: Callable[[str, JSON | None, JSON | None], None] = lambda *_: None) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self._versions = itertools.count(1)
        names = ("CANARIES", "VIRTUAL_SERVICES", "HTTP_ROUTES", "DEPLOYMENTS", "PODS", "SERVICES", "HPAS")
        more = ("CONFIG_MAPS", "CONTROLLER_REVISIONS", "EVENTS")
        self.of = {kind: Objects(kind, changed) for kind in (getattr(kinds, name) for name in (*names, *more))}

    # ── what the adapters call ───────────────────────────────────────────────────────────────────────────────

    def get(self, kind: Kind, namespace: str, name: str, **_: Any) -> JSON:
        self.requests["get", kind.plural] += 1
        return self._there(kind, namespace, name)

    def list(self, kind: Kind, namespace: str | None = None, *, labels: str = "", **_: Any) -> tuple[list[JSON], str]:
        self.requests["list", kind.plural] += 1
        if kind is kinds.ENDPOINT_SLICES:
            return [endpoints(self.of[kinds.PODS].items(namespace))], "1"
        wanted = dict(pair.split("=") for pair in labels.split(",") if pair)
        found = self.of[kind].items(namespace)
        return [o for o in found if wanted.items() <= (o["metadata"].get("labels") or {}).items()], "1"

    def create(self, kind: Kind, namespace: str, body: JSON, **_: Any) -> JSON:
        self.requests["create", kind.plural] += 1
        if self.of[kind].get(namespace, body["metadata"]["name"]):
            raise KubeExistsError("there is one already")
        return self._store(kind, body, None)

    def patch(
        self, kind: Kind, namespace: str, name: str, body: Any, *, how: str = "json", subresource: str = "", **_: Any
    ) -> JSON:
        self.requests["patch", f"{kind.plural}{'/' if subresource else ''}{subresource}"] += 1
        there = self._there(kind, namespace, name)
        if how == "merge":
            return self._store(kind, {**there, "metadata": {**there["metadata"], **body["metadata"]}}, there)
        try:
            return self._store(kind, patched(there, body), there)
        except TestFailedError as e:
            raise KubeConflictError(f"test failed: {e}") from e

    def delete(self, kind: Kind, namespace: str, name: str, **_: Any) -> None:
        self.requests["delete", kind.plural] += 1
        self._there(kind, namespace, name)
        self.of[kind].drop(namespace, name)

    # ── the server and its controllers ───────────────────────────────────────────────────────────────────────

    def bring(self, kind: Kind, body: JSON) -> JSON:
        """What people apply; not counted."""
        return self._store(kind, body, self.of[kind].get(NAMESPACE, body["metadata"]["name"]))

    def _there(self, kind: Kind, namespace: str, name: str) -> JSON:
        found = self.of[kind].get(namespace, name)
        if found is None:
            raise KubeNotFoundError(f"{kind.kind} {namespace}/{name} not found")
        return found

    def _store(self, kind: Kind, body: JSON, before: JSON | None) -> JSON:
        meta = dict(body["metadata"])
        meta["resourceVersion"] = str(next(self._versions))
        if before is None:
            meta.setdefault("uid", f"{kind.plural}-{meta['name']}-{meta['resourceVersion']}")
            meta.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
            meta.setdefault("generation", 1)
        elif before.get("spec") != body.get("spec") or (
            kind is kinds.DEPLOYMENTS and before["metadata"].get("annotations") != meta.get("annotations")
        ):
            meta["generation"] = before["metadata"]["generation"] + 1
        obj = {"apiVersion": kind.api_version, "kind": kind.kind, **body, "metadata": meta}
        if kind is kinds.DEPLOYMENTS:
            obj = self.obeyed(obj)
        self.of[kind].hold(obj)
        return obj

    def obeyed(self, deployment: JSON) -> JSON:
        """Its pods are of its template, and ready."""
        meta, spec, pods = deployment["metadata"], deployment["spec"], self.of[kinds.PODS]
        count = spec.get("replicas", 1)
        hashed = hashlib.sha256(json.dumps(spec["template"], sort_keys=True).encode()).hexdigest()[:9]
        wanted = {f"{meta['name']}-{hashed}-{i:05x}" for i in range(count)}
        mine = f"{meta['name']}-"
        there = {
            p["metadata"]["name"] for i in range(REPLICAS * 4) if (p := pods.get(NAMESPACE, f"{mine}{hashed}-{i:05x}"))
        }
        for name in there - wanted:
            pods.drop(NAMESPACE, name)
        for name in sorted(wanted - there):
            pods.hold(outline(pod(name, hashed, meta["name"], spec["template"])))
        available = {"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable"}
        counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), count)
        status = {"observedGeneration": meta["generation"], **counts, "conditions": [available]}
        return {**deployment, "status": status}


# ── objects ──────────────────────────────────────────────────────────────────────────────────────────────────


def endpoints(pods: Iterable[JSON]) -> JSON:
    """One slice with all of these pods."""
    return {"endpoints": [{"targetRef": {"kind": "Pod", "name": pod["metadata"]["name"]}} for pod in pods]}


def pod(name: str, hashed: str, deployment: str, template: JSON) -> JSON:
    """A pod as a kubelet reports it: running, ready."""
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{deployment}-{hashed}", "controller": True}
    labels = {**template["metadata"]["labels"], "pod-template-hash": hashed}
    times = "2026-01-01T00:00:00Z"
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": times, "lastProbeTime": None}
        for kind in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    ]
    container = {
        "name": "app",
        "ready": True,
        "started": True,
        "restartCount": 0,
        "image": template["spec"]["containers"][0]["image"],
        "imageID": f"sha256:{hashed}",
        "state": {"running": {"startedAt": times}},
        "lastState": {},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": f"pod-{name}",
            "resourceVersion": "1",
            "creationTimestamp": times,
            "labels": labels,
            "ownerReferences": [owner],
        },
        "spec": {},
        "status": {"phase": "Running", "startTime": times, "conditions": conditions, "containerStatuses": [container]},
    }


def service_objects(name: str, **spec: Any) -> list[tuple[Kind, JSON]]:
    """What a team brings: a Deployment of ordinary size, its Service, its VirtualService, its Canary."""
    meta = {"name": name, "namespace": NAMESPACE}
    return [
        (kinds.DEPLOYMENTS, deployment(name, meta)),
        (
            kinds.SERVICES,
            {"metadata": meta, "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80}]}},
        ),
        (kinds.VIRTUAL_SERVICES, {"metadata": meta, "spec": virtual_service(name)}),
        (kinds.CANARIES, {"metadata": meta, "spec": {**canary(name), **spec}}),
    ]


def deployment(name: str, meta: JSON) -> JSON:
    probe = {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 5}
    container = {
        "name": "app",
        "image": "demo/app:v1",
        "ports": [{"name": "http", "containerPort": 9898}],
        "env": [{"name": f"SETTING_{i}", "value": f"value of {i}"} for i in range(12)],
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
        "readinessProbe": probe,
        "livenessProbe": probe,
    }
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}
    return {
        "metadata": meta,
        "spec": {"replicas": REPLICAS, "selector": {"matchLabels": {"app": name}}, "template": template},
    }


def virtual_service(name: str) -> JSON:
    route = {"name": "primary", "route": [{"destination": {"host": name}}]}
    return {"hosts": [f"{name}.example.org"], "gateways": ["shop/gw"], "http": [route]}


def canary(name: str) -> JSON:
    return {
        "workloads": {"deployment": {"name": name}},
        "route": {"istio": {"virtualServices": [{"name": name, "routes": ["primary"]}]}},
        "steps": [{"weight": w, "bake": "2m"} for w in (5, 10, 25, 50)],
        "interval": "10s",
        "history": "0s",
    }


def fleet(cluster: MemoryCluster, names: Iterable[str], **spec: Any) -> Sequence[str]:
    """Services that nobody has taken into care yet; their names."""
    out = []
    for name in names:
        for kind, body in service_objects(name, **spec):
            cluster.bring(kind, body)
        out.append(name)
    return out
