"""An app as its users bring it: a Deployment, a Service, and a VirtualService on the gateway. Manifests and waiting."""

from __future__ import annotations

from typing import Any

from bench.client import ApiError, Client
from bench.control_plane import PATIENCE
from canaryd.demo.processes import wait_until

Manifest = dict[str, Any]


def deployment(name: str, image: str, replicas: int = 3, namespace: str = "shop", **labels: str) -> Manifest:
    """Selector app=NAME; one container "app" with port "http" 9898. `labels` are added to its pods."""
    selector = {"app": name}
    container = {"name": "app", "image": image, "ports": [{"name": "http", "containerPort": 9898}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": selector},
            "template": {"metadata": {"labels": selector | labels}, "spec": {"containers": [container]}},
        },
    }


def service(name: str, namespace: str = "shop", selector: dict[str, str] | None = None) -> Manifest:
    """Port 80, named http, to the container port of that name."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": selector or {"app": name},
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def virtual_service(name: str, namespace: str = "shop", weights: dict[str, int] | None = None) -> Manifest:
    """Host NAME on gateway shop/gw and in the mesh, one HTTP route "primary" to Service NAME, or split by `weights`."""
    split = weights or {name: 100}
    routes = [{"destination": {"host": host}, "weight": weight} for host, weight in split.items()]
    if weights is None:
        del routes[0]["weight"]
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"hosts": [name], "gateways": ["shop/gw", "mesh"], "http": [{"name": "primary", "route": routes}]},
    }


class App:
    """A Deployment with its Service (and, in a mesh, its VirtualService), made by `Bench.app`."""

    def __init__(self, admin: Client, name: str, namespace: str) -> None:
        self._admin = admin
        self.name = name
        self.namespace = namespace

    def set_image(self, image: str) -> None:
        """What `kubectl set image` does."""
        self._update({"spec": {"template": {"spec": {"containers": [{"name": "app", "image": image}]}}}})

    def scale(self, replicas: int) -> None:
        self._update({"spec": {"replicas": replicas}})

    def deployment(self) -> Manifest:
        return self._admin.get("deployments", self.name, self.namespace)

    def pods(self, selector: str | None = None) -> list[Manifest]:
        """Its pods that are not being deleted; all of the label app=NAME unless a selector is given."""
        found = self._admin.list("pods", self.namespace, selector or f"app={self.name}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def await_available(self, timeout: float = PATIENCE) -> None:
        """Wait as `kubectl rollout status` does: all replicas are of the present template and available."""
        wait_until(lambda: is_rolled_out(self.deployment()), f"{self.name} to be rolled out", timeout, every=0.2)

    def delete(self, *, wait: bool = False) -> None:
        """Delete its objects; with `wait`, return when its pods are gone, some seconds later."""
        for resource in ("virtualservices", "services", "deployments"):
            self._admin.delete(resource, self.name, self.namespace)
        if not wait:
            return

        def gone() -> bool:
            return not self._admin.list("pods", self.namespace, f"app={self.name}")

        wait_until(gone, f"the pods of {self.name} to be gone", PATIENCE, every=0.2)

    def _update(self, change: Manifest) -> None:
        self._admin.patch("deployments", self.name, change, self.namespace, kind="strategic")


def is_rolled_out(manifest: Manifest) -> bool:
    """Whether a Deployment's controller has seen its spec and all its replicas are new and available."""
    wanted, status = manifest["spec"]["replicas"], manifest.get("status", {})
    seen = bool(status.get("observedGeneration", 0) >= manifest["metadata"]["generation"])
    return seen and all(status.get(key, 0) == wanted for key in ("updatedReplicas", "replicas", "availableReplicas"))


def is_ready(pod: Manifest) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def create_or_apply(admin: Client, manifest: Manifest) -> None:
    """Made, or brought to this state."""
    try:
        admin.create(manifest)
    except ApiError as e:
        if e.reason != "AlreadyExists":
            raise
        admin.apply(manifest)
