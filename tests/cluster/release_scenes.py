"""A service under live load with canaryd looking after it: what the tests of whole rollouts are made of.

canaryd runs as it is installed: as its own ServiceAccount with the Roles that `canaryd manifests` prints, in processes
of its own, with the real Prometheus, API server and mesh.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from bench import Bench, BenchPrometheus
from bench.apps import App
from bench.load import Load

from canaryd.demo.processes import Child, wait_until

NAMESPACE = "shop"
ACCOUNT = "system:serviceaccount:canaryd:canaryd"
REPLICAS = ("canaryd", "canaryd-2")  # identities of the two replicas
STEPS = [5, 10, 25, 50]
SETTLED = ("Succeeded", "RolledBack")


def install(bench: Bench, *namespaces: str) -> None:
    """The definition of the Canary resource, and canaryd's rights; its Deployment is played by processes."""
    watched = [arg for name in namespaces or (NAMESPACE,) for arg in ("--watch-namespace", name)]
    argv = [sys.executable, "-m", "canaryd", "manifests", "canaryd", *watched]
    printed = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    for manifest in yaml.safe_load_all(printed):
        if manifest["kind"] not in ("Deployment", "PodDisruptionBudget", "Service", "NetworkPolicy", "ConfigMap"):
            bench.client().apply(manifest)
    bench.plane.await_definitions({"canaries.canaryd.io"})
    tenant = bench.client("canaryd")
    wait_until(lambda: tenant.can("list", "deployments", NAMESPACE), "rights of canaryd")


@dataclass
class Replica:
    """One canaryd process."""

    child: Child
    port: int
    identity: str = "canaryd"

    def page(self, path: str = "/status") -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            body = answer.read()
        return json.loads(body) if path == "/status" else body.decode()

    def leads(self) -> bool:
        try:
            return bool(self.page()["leading"])
        except OSError:
            return False


@dataclass
class Canaryd:
    """Replicas of canaryd that share a configuration."""

    bench: Bench
    directory: Path
    settings: Mapping[str, Any]
    kubeconfig: Path | None = None  # instead of those of the identities
    replicas: list[Replica] = field(default_factory=list)
    started: int = 0

    def start(self, identity: str = "canaryd", **settings: Any) -> Replica:
        self.started += 1
        port = 9100 + self.started
        whole = {**self.settings, **settings, "web": {"listen": f"127.0.0.1:{port}"}}
        whole["cluster"] = {**whole["cluster"], "kubeconfig": str(self.kubeconfig or self.bench.kubeconfig(identity))}
        file = self.directory / f"canaryd-{self.started}.yaml"
        file.write_text(json.dumps(whole))
        argv = [sys.executable, "-m", "canaryd", "run", "--config", str(file)]
        child = self.bench.nursery.start(f"canaryd-{self.directory.name}-{self.started}", argv)
        replica = Replica(child, port, identity)
        self.replicas.append(replica)
        return replica

    def leader(self, patience: float = 30.0) -> Replica:
        found: list[Replica] = []

        def look() -> bool:
            found[:] = [r for r in self.replicas if r.child.running and r.leads()]
            return len(found) == 1

        wait_until(look, "one replica leads", timeout=patience)
        return found[0]

    def stop(self) -> None:
        for replica in self.replicas:
            if replica.child.running:
                replica.child.kill()


def settings(prometheus: BenchPrometheus, *, scrape: str = "2s", **cluster: Any) -> dict[str, Any]:
    """canaryd.yaml for the bench."""
    return {
        "mode": "cluster",
        "cluster": {"namespaces": [NAMESPACE], "lease": {"duration": "4s", "namespace": "canaryd"}, **cluster},
        "metrics": {
            "source": "prometheus",
            "prometheus": {"url": prometheus.url, "scrapeInterval": scrape, "lag": "3s", "allowLocal": True},
        },
        "log": {"format": "json"},
    }


def manifest(name: str = "api", **spec: Any) -> dict[str, Any]:
    """A Canary with quick steps."""
    base: dict[str, Any] = {
        "workloads": {"deployment": {"name": name}},
        "route": {"istio": {"virtualServices": [{"name": name, "routes": ["primary"]}]}},
        "steps": [{"weight": w, "bake": "8s"} for w in STEPS],
        "interval": "4s",
        "warmUp": "4s",
        "history": "0s",
        "blindDeadline": "1m",
        "budget": {"share": "0.5%"},
    }
    return {
        "apiVersion": "canaryd.io/v1alpha1",
        "kind": "Canary",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {**base, **spec},
    }


@dataclass
class Service:
    """One service: its Deployment, its Canary, its load."""

    bench: Bench
    name: str
    app: App
    load: Load | None = None

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.bench.client().get("canaries", self.name, NAMESPACE)
        return dict(found.get("status") or {})

    def phase(self) -> str:
        return str(self.status().get("phase", ""))

    def condition(self, kind: str) -> dict[str, Any]:
        return next((dict(c) for c in self.status().get("conditions", ()) if c["type"] == kind), {})

    def until(self, *phases: str, patience: float = 120.0, says: str = "") -> dict[str, Any]:
        def there() -> bool:
            status = self.status()
            return status.get("phase") in phases and says in status.get("message", "")

        try:
            wait_until(there, f"{self.name} is {' or '.join(phases)}", patience, every=0.2)
        except Exception as e:
            raise AssertionError(f"{e}: {self.status()}") from e
        return self.status()

    def adopted(self, patience: float = 90.0) -> None:
        wait_until(lambda: bool(self.status().get("stableRevision")), f"{self.name} is adopted", patience, every=0.2)
        wait_until(lambda: self.app.deployment()["spec"]["replicas"] == 0, f"{self.name} is at 0", patience, every=0.2)

    def events(self, reason: str, patience: float = 5.0) -> list[dict[str, Any]]:
        """Events about the Canary with this reason, at least one."""

        def found() -> list[dict[str, Any]]:
            told = self.bench.client().list("events", NAMESPACE)
            about = (e for e in told if e["involvedObject"]["kind"] == "Canary" and e["reason"] == reason)
            return [dict(e) for e in about if e["involvedObject"]["name"] == self.name]

        return wait_until(found, f"{reason} of {self.name} is told", patience, every=0.2)

    def weights(self, since: datetime) -> list[int]:
        """Weights that were written for the canary since then, without repetitions, from the audit log."""
        out: list[int] = []
        for request in self.bench.audit.requests(ACCOUNT, since):
            if (request.resource, request.name) == ("virtualservices", self.name) and request.verb == "patch":
                weight = _canary_weight(request.answer, self.name)
                if weight is not None and (not out or out[-1] != weight):
                    out.append(weight)
        return out

    def images(self, workload: str) -> set[str]:
        """Images of the Deployment's pod template."""
        found = self.bench.client().get("deployments", workload, NAMESPACE)
        return {c["image"] for c in found["spec"]["template"]["spec"]["containers"]}


def _canary_weight(virtual_service: Any, name: str) -> int | None:
    for route in (virtual_service or {}).get("spec", {}).get("http", ()):
        for to in route.get("route", ()):
            if to["destination"]["host"].split(".")[0] == f"{name}-canary":
                return int(to.get("weight", 100))
    return None


@contextmanager
def canaryd(bench: Bench, directory: Path, wanted: Mapping[str, Any], replicas: int = 1) -> Iterator[Canaryd]:
    whole = Canaryd(bench, directory, wanted)
    try:
        for identity in REPLICAS[:replicas]:
            whole.start(identity)
        whole.leader()
        yield whole
    finally:
        whole.stop()


def service(
    bench: Bench, name: str, *, rps: float = 0, image: str = "demo/app:v1", replicas: int = 3, **spec: Any
) -> Service:
    """A running service under load, with its Canary."""
    app = bench.app(name, image, replicas)
    one = Service(bench, name, app)
    if rps:
        one.load = bench.load(rps, f"{name}.{NAMESPACE}.svc.cluster.local")
        one.load.await_requests(int(rps))
    bench.client().apply(manifest(name, **spec))
    return one


def now() -> datetime:
    return datetime.now(UTC)


def eventually(look: Callable[[], bool], what: str, patience: float = 30.0) -> None:
    wait_until(look, what, patience, every=0.1)


def sleep(seconds: float) -> None:
    time.sleep(seconds)
