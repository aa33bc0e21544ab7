"""What makes the control plane a cluster: controllers, a scheduler, one roomy node, and pods that really answer.

Pods with an image `demo/app:TAG` are run by programs/pod_server.py (what the tag's words mean: programs/behaviour.py);
all others are only said to be running, by kwok.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from bench import netns
from bench.control_plane import PATIENCE, ControlPlane
from canaryd.demo.processes import Child, Nursery, await_ready, wait_until

PROGRAMS = Path(__file__).resolve().parent.parent / "programs"
NODE = "bench-0"
TARGETS = "targets.json"  # the pods, for file discovery
# Without node-lifecycle: on a busy machine a late heartbeat must not evict every pod.
CONTROLLERS = (
    "cronjob-controller",
    "daemonset-controller",
    "deployment-controller",
    "disruption-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "horizontal-pod-autoscaler-controller",
    "job-controller",
    "namespace-controller",
    "pod-garbage-collector-controller",
    "replicaset-controller",
    "serviceaccount-controller",
    "statefulset-controller",
)
KWOK_PODS = "10.244.128.0/17"  # the lower half is the pod server's
OURS = '.spec.containers.[] | select( .image | startswith("demo/app:") ) | .name'


class Cluster:
    """kube-controller-manager, kube-scheduler, kwok and the pod server."""

    def __init__(self, nursery: Nursery, tools: dict[str, Path], plane: ControlPlane) -> None:
        self._nursery = nursery
        self._tools = tools
        self._plane = plane
        self.pods: Child | None = None
        self._controllers: Child | None = None

    @property
    def controllers(self) -> Child:
        """kube-controller-manager: to be frozen, so that what follows from a change comes late."""
        assert self._controllers is not None, "the cluster was not started"
        return self._controllers

    def start(self) -> None:
        """Returns when a pod would be placed."""
        kubernetes = self._tools["kubernetes"]
        client = ["--leader-elect=false", "--kube-api-qps=200", "--kube-api-burst=400", "--bind-address=127.0.0.1"]
        self._controllers = self._start(
            "controllers",
            [
                str(kubernetes / "kube-controller-manager"),
                *client,
                f"--controllers={','.join(CONTROLLERS)}",
                f"--service-account-private-key-file={self._plane.directory / 'service-accounts.key'}",
                "--horizontal-pod-autoscaler-sync-period=2s",
            ],
        )
        self._start("scheduler", [str(kubernetes / "kube-scheduler"), *client])
        kwok = self._start(
            "kwok",
            [
                str(self._tools["kwok"] / "kwok"),
                "--manage-all-nodes=true",
                "--server-address=127.0.0.1:10247",
                f"--config={self._stages()}",
                f"--cidr={KWOK_PODS}",
                "--node-lease-duration-seconds=200",
            ],
        )
        self.start_pods()
        self._add_node()
        await_ready(kwok, "http://127.0.0.1:10247/healthz", PATIENCE)
        wait_until(self._accounts_are_made, "every namespace to have its ServiceAccount", PATIENCE, every=0.1)

    def start_pods(self) -> None:
        """Start the pod server, or start it again: then it has forgotten its pods, which no test should want."""
        program, targets = PROGRAMS / "pod_server.py", self._plane.directory / TARGETS
        argv = [sys.executable, "-u", str(program), str(self._plane.kubeconfig("pods")), str(targets)]
        self.pods = self._nursery.start("pods", argv)

    def _start(self, name: str, argv: list[str]) -> Child:
        return self._nursery.start(name, [*argv, f"--kubeconfig={self._plane.kubeconfig(name)}"])

    def _stages(self) -> Path:
        """kwok's own stages, for nodes as they are, for pods only where the pod server does nothing."""
        stages: list[dict[str, Any]] = []
        for folder in ("node-fast", "node-heartbeat", "pod-fast"):
            for file in sorted((self._tools["kwok"] / "stages" / folder).glob("*.yaml")):
                stages += [d for d in yaml.safe_load_all(file.read_text()) if d and d["kind"] == "Stage"]
        for stage in stages:
            if stage["spec"]["resourceRef"]["kind"] == "Pod":
                stage["spec"]["selector"]["matchExpressions"].append({"key": OURS, "operator": "DoesNotExist"})
        path = self._plane.directory / "stages.yaml"
        path.write_text(yaml.safe_dump_all(stages))
        return path

    def _add_node(self) -> None:
        room = {"cpu": "1000", "memory": "4000Gi", "pods": "5000"}
        labels = {"kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux"}
        admin = self._plane.client()
        admin.create(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": NODE, "labels": labels},
                "spec": {"podCIDR": netns.PODS},
                "status": {"allocatable": room, "capacity": room},
            }
        )
        admin.patch(
            "nodes", NODE, {"spec": {"taints": None}}, None
        )  # "not ready", which only its controller would take

    def _accounts_are_made(self) -> bool:
        """Pods are refused before their namespace has one."""
        admin = self._plane.client()
        namespaces = {namespace["metadata"]["name"] for namespace in admin.list("namespaces", None)}
        accounts = admin.list("serviceaccounts", None)
        return namespaces <= {a["metadata"]["namespace"] for a in accounts if a["metadata"]["name"] == "default"}
