"""A real Prometheus that scrapes the pods and the gateway: 3.16 built from Go, or the one on PATH.

Versions run side by side on ports of their own. Port and data stay over restarts, so to its clients a restart is an
outage.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import requests

from bench.cluster import TARGETS
from bench.control_plane import PATIENCE, ControlPlane
from bench.mesh import ADMIN_PORT
from canaryd.demo.processes import Child, LabError, Nursery, await_ready, fetch

BUILT, DEBIAN = "3.16", "2.42"
PORTS = {BUILT: 9090, DEBIAN: 9091}
RULES = """\
groups:
- name: canaryd
  rules:
  - record: canaryd:requests_total:pod
    expr: >-
      sum by (destination_workload_namespace, destination_workload, destination_canonical_revision, namespace, pod,
      response_code, grpc_response_status, response_flags)
      (istio_requests_total{reporter=~"destination|waypoint"})
  - record: canaryd:request_duration_ms_bucket:pod
    expr: >-
      sum by (destination_workload_namespace, destination_workload, destination_canonical_revision, namespace, pod, le)
      (istio_request_duration_milliseconds_bucket{reporter=~"destination|waypoint", response_code!~"0|429"})
"""


class BenchPrometheus:
    """One server; made stopped."""

    def __init__(self, nursery: Nursery, tools: dict[str, Path], plane: ControlPlane, version: str) -> None:
        self.version = version
        self._nursery = nursery
        self._binary = tools["prometheus"] / "prometheus" if version == BUILT else debian()
        self._directory = plane.directory / f"prometheus-{version}"
        self._kubeconfig = plane.kubeconfig("prometheus")
        self._scrape = "2s"
        self._rules: str | None = None
        self._child: Child | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{PORTS[self.version]}"

    @property
    def child(self) -> Child:
        """The process: kill, freeze, thaw. `start` brings it back with its data."""
        assert self._child is not None, "Prometheus was never started"
        return self._child

    def start(self) -> None:
        """Returns when it answers queries."""
        config = self._write_configuration()
        options = {
            "config.file": config,
            "storage.tsdb.path": self._directory / "data",
            "web.listen-address": self.url.removeprefix("http://"),
            "log.level": "warn",
        }
        argv = [str(self._binary), "--web.enable-lifecycle", *(f"--{name}={value}" for name, value in options.items())]
        self._child = self._nursery.start(f"prometheus-{self.version}", argv)
        await_ready(self._child, f"{self.url}/-/ready", PATIENCE)

    def configure(self, *, scrape: str = "2s", rules: str | None = None) -> None:
        """Scrape this often, and evaluate these rules (RULES are canaryd's) as often; takes effect at once.

        `scrape` is a duration such as "2s" or "500ms". Raises LabError when Prometheus refuses.
        """
        if not re.fullmatch(r"\d+(ms|s)", scrape):
            raise ValueError(f"scrape is {scrape!r}; it must be a duration such as '2s'")
        self._scrape, self._rules = scrape, rules
        self._write_configuration()
        status, answer = fetch(f"{self.url}/-/reload", b"", timeout=30)
        if status != 200:
            raise LabError(f"Prometheus refused its configuration: {answer.decode()}")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The vector that an instant query gives now: [{"metric": {…}, "value": [time, "text"]}, …]."""
        with requests.Session() as session:
            session.trust_env = False
            answer = session.post(f"{self.url}/api/v1/query", data={"query": expression}, timeout=30)
        decoded = answer.json()
        if decoded["status"] != "success":
            raise LabError(f"{expression}: {decoded['error']}")
        rows: list[dict[str, Any]] = decoded["data"]["result"]
        return rows

    def build(self) -> str:
        """Its own version, such as "3.16.0"."""
        with requests.Session() as session:
            session.trust_env = False
            answer = session.get(f"{self.url}/api/v1/status/buildinfo", timeout=30)
        return str(answer.json()["data"]["version"])

    def total(self, expression: str) -> float:
        """The sum over the vector; 0 when it is empty."""
        return sum(float(row["value"][1]) for row in self.query(expression))

    def _write_configuration(self) -> Path:
        self._directory.mkdir(exist_ok=True)
        if self._rules is not None:
            (self._directory / "rules.yaml").write_text(self._rules)
        config = self._directory / "prometheus.json"
        config.write_text(json.dumps(self._configuration()))
        return config

    def _configuration(self) -> dict[str, Any]:
        files = {} if self._rules is None else {"rule_files": [str(self._directory / "rules.yaml")]}
        interval = {
            "scrape_interval": self._scrape,
            "scrape_timeout": self._scrape,
            "evaluation_interval": self._scrape,
        }
        if self.version == BUILT:
            pods = _discovered_pods(self._kubeconfig)
        else:
            pods = _listed_pods(self._directory.parent / TARGETS)
        return {"global": interval, "scrape_configs": [pods, _gateway()], **files}


def debian() -> Path:
    """The Prometheus on PATH (Debian's is 2.42)."""
    found = shutil.which("prometheus")
    if found is None:
        raise LabError("Prometheus not found: apt-get install prometheus")
    return Path(found)


def _discovered_pods(kubeconfig: Path) -> dict[str, Any]:
    pod = "__meta_kubernetes_pod_"
    return {
        "job_name": "pods",
        "metrics_path": "/stats/prometheus",
        "kubernetes_sd_configs": [{"role": "pod", "kubeconfig_file": str(kubeconfig)}],
        "relabel_configs": [
            {"source_labels": [f"{pod}container_image"], "regex": "demo/app:.*", "action": "keep"},
            {"source_labels": [f"{pod}phase"], "regex": "Running", "action": "keep"},
            {"source_labels": [f"{pod}ip"], "target_label": "__address__", "replacement": "$1:15020"},
            {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
            {"source_labels": [f"{pod}name"], "target_label": "pod"},
        ],
    }


def _listed_pods(targets: Path) -> dict[str, Any]:
    """The same pods from a file: Debian's Prometheus is built without the discovery of Kubernetes."""
    return {
        "job_name": "pods",
        "metrics_path": "/stats/prometheus",
        "file_sd_configs": [{"files": [str(targets)]}],
    }


def _gateway() -> dict[str, Any]:
    """What Envoy counted, under Istio's names and labels; "unknown" where no upstream was picked."""

    def take(source: str, expression: str, label: str, group: str) -> dict[str, Any]:
        return {"source_labels": [source], "regex": expression, "target_label": label, "replacement": group}

    cluster, workload = r"outbound\|\d+\|[^|]*\|(([^.|]+)\.([^.|]+)\.[^;]*);?", "([^;]+);([^;]+);([^;]*);([^;]*);.*"
    taken = [
        take("upstream_cluster", cluster, "destination_service", "$1"),
        take("upstream_cluster", cluster, "destination_service_name", "$2"),
        take("upstream_cluster", cluster, "destination_service_namespace", "$3"),
        take("upstream_workload", workload, "destination_workload", "$1"),
        take("upstream_workload", workload, "destination_workload_namespace", "$2"),
        take("upstream_workload", workload, "destination_canonical_service", "$3"),
        take("upstream_workload", workload, "destination_canonical_revision", "$4"),
        take("upstream_workload", "[^;]+;[^;]+;[^;]*;;.*", "destination_canonical_revision", "latest"),
    ]
    unknown = [{"target_label": rule["target_label"], "replacement": "unknown"} for rule in taken]
    return {
        "job_name": "gateway",
        "metrics_path": "/stats/prometheus",
        "params": {"usedonly": [""], "filter": ["^istio"]},
        "static_configs": [{"targets": [f"127.0.0.1:{ADMIN_PORT}"], "labels": {"namespace": "shop", "pod": "gw-0"}}],
        "metric_relabel_configs": [
            {
                "source_labels": ["__name__"],
                "regex": "envoy_(istio_.*)",
                "target_label": "__name__",
                "replacement": "$1",
            },
            *unknown,
            *taken,
            {"regex": "upstream_cluster|upstream_workload", "action": "labeldrop"},
        ],
    }
