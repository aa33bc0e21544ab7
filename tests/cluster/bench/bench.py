"""The whole bench in one object, brought up layer by layer: control plane, cluster, mesh, Prometheus, load.

One `Bench` for each process, inside its network namespace; leaving it ends every process it has started.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Self

from bench import apps, netns, tools
from bench.apps import App
from bench.audit import Audit
from bench.client import Client
from bench.cluster import Cluster
from bench.control_plane import PATIENCE, ControlPlane
from bench.load import Load
from bench.mesh import GATEWAY_API_PORT, GATEWAY_PORT, Mesh
from bench.prometheus import BUILT, BenchPrometheus
from canaryd.demo import envoy
from canaryd.demo.processes import LabError, Nursery, wait_until


def obstacle() -> str | None:
    """Why there can be no bench on this machine, or None."""
    try:
        tools.find()
    except tools.ToolsError as e:
        return str(e)
    if shutil.which("openssl") is None:
        return "openssl not found: apt-get install openssl"
    if envoy.find() is None:
        return envoy.HOW_TO_GET_IT
    return netns.obstacle()


class Bench:
    """Use as a context manager. Layers are started once; asking for one starts those below it."""

    def __init__(self, directory: Path) -> None:
        if not netns.is_private():
            raise LabError("the bench runs in a network namespace of its own: call bench.netns.enter() first")
        self.directory = directory.resolve()
        self.tools = tools.find()
        self.nursery = Nursery(self.directory / "logs")
        self.plane = ControlPlane(self.nursery, self.tools, self.directory)
        self.cluster = Cluster(self.nursery, self.tools, self.plane)
        self.mesh = Mesh(self.nursery, self.tools, self.plane)
        self._prometheus: dict[str, BenchPrometheus] = {}
        self._loads = itertools.count(1)
        self._up: set[str] = set()

    def __enter__(self) -> Self:
        self.nursery.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.plane.close()
        for child in self.nursery.running():  # nothing here is worth an orderly end
            with suppress(LabError):
                child.kill()
        self.nursery.close()

    # ── layers ───────────────────────────────────────────────────────────────────────────────────

    def start_control_plane(self) -> None:
        """etcd, kube-apiserver, resource definitions of Istio and the Gateway API, namespaces, ServiceAccounts."""
        if self._first("control plane"):
            self.plane.start()

    def start_cluster(self) -> None:
        """Controllers, scheduler, a node, and the pod server."""
        self.start_control_plane()
        if self._first("cluster"):
            self.cluster.start()

    def start_mesh(self) -> None:
        """istiod, and Envoy as its gateway."""
        self.start_cluster()
        if self._first("mesh"):
            self.mesh.start()

    def start_prometheus(self, version: str = BUILT) -> BenchPrometheus:
        """A server of this version ("3.16", "2.42"), started once; `configure` changes how it scrapes."""
        self.start_mesh()
        if version not in self._prometheus:
            server = BenchPrometheus(self.nursery, self.tools, self.plane, version)
            server.start()
            self._prometheus[version] = server
        return self._prometheus[version]

    def _first(self, layer: str) -> bool:
        if layer in self._up:
            return False
        self._up.add(layer)
        return True

    # ── what most tests want, in short ───────────────────────────────────────────────────────────

    @property
    def audit(self) -> Audit:
        return self.plane.audit

    def client(self, identity: str = "admin") -> Client:
        return self.plane.client(identity)

    def kubeconfig(self, identity: str = "admin") -> Path:
        return self.plane.kubeconfig(identity)

    def kubectl(
        self, *arguments: str, identity: str = "admin", stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return self.plane.kubectl(*arguments, identity=identity, stdin=stdin, check=check)

    def namespace(self, name: str) -> str:
        """Make a namespace (its ServiceAccount too, without which it takes no pods) and return its name."""
        admin = self.client()
        admin.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        if "cluster" in self._up:
            what = f"the ServiceAccount of {name}"
            wait_until(lambda: admin.find("serviceaccounts", "default", name), what, PATIENCE, every=0.1)
        return name

    def app(
        self, name: str, image: str = "demo/app:v1", replicas: int = 3, namespace: str = "shop", **labels: str
    ) -> App:
        """An app that is rolled out: Deployment, Service and (with the mesh up) VirtualService, all called `name`."""
        made = self.start_app(name, image, replicas, namespace, **labels)
        made.await_available()
        return made

    def start_app(
        self, name: str, image: str = "demo/app:v1", replicas: int = 3, namespace: str = "shop", **labels: str
    ) -> App:
        """`app` without waiting: for images that never get available."""
        manifests = [apps.deployment(name, image, replicas, namespace, **labels), apps.service(name, namespace)]
        if "mesh" in self._up:
            manifests.append(apps.virtual_service(name, namespace))
        for manifest in manifests:
            apps.create_or_apply(self.client(), manifest)
        return self.existing_app(name, namespace)

    def existing_app(self, name: str, namespace: str = "shop") -> App:
        """A handle for a Deployment that is there."""
        return App(self.client(), name, namespace)

    def load(self, rps: float, *hosts: str, gateway_api: bool = False) -> Load:
        """Live load on the gateway, in turns on `hosts` ("api.shop.svc.cluster.local"); it runs when this returns."""
        port = GATEWAY_API_PORT if gateway_api else GATEWAY_PORT
        return Load(self.nursery, f"load-{next(self._loads)}", rps, hosts, "127.0.0.1", port)
