"""Hundreds of Canaries on a real API server: 500 idle ones and 50 under way, one daemon, two minutes (or --minutes 10).

    python benchmarks/cluster_scale.py [--idle 500] [--progressing 50] [--minutes 2]

Needs the programs of tests/cluster (its README says how they are built) and a network namespace; not part of `make
bench`. etcd, kube-apiserver and Prometheus are real; Deployments are obeyed by this process, counters come from a page
that it serves, so that no pod has to run. The services are taken into care by canaryd's own code in memory (see
fleet.py) and then put on the server as they are. Exits with 1 when a tick takes longer than a second, the daemon needs
more than 250 MB, an idle Canary costs a request, one under way more than one write of its status in an interval, or
Prometheus is asked more than twice for each 50 Canaries in a tick.
"""

from __future__ import annotations

import argparse
import http.server
import json
import math
import os
import re
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests" / "cluster")]

import structlog
from bench import Bench, netns
from fleet import Daemon
from idle_daemon import cpu_seconds, memory_mb
from memory_cluster import NAMESPACE, REPLICAS, MemoryCluster, service_objects
from release_scenes import ACCOUNT, Canaryd, install

from canaryd.adapters.memory import EDGES_MS
from canaryd.demo import prometheus
from canaryd.demo.processes import wait_until
from canaryd.deployments.objects import SEEN
from canaryd.kube import kinds

TICK_S, RSS_MB = 1.0, 250.0
INTERVAL_S, SCRAPE_S = 10, 5
RATE = 100  # requests/s of each service under way
WEIGHT = 10
PLAN = {
    "interval": f"{INTERVAL_S}s",
    "warmUp": "0s",
    "history": "0s",
    "steps": [{"weight": WEIGHT, "bake": "2h"}],
}
JSON = dict[str, Any]


# ── the world around canaryd ─────────────────────────────────────────────────────────────────────────────────


def page(names: Sequence[str], seconds: float) -> bytes:
    """Istio's counters of all services after so many seconds: two workloads of three pods, two codes, 20 buckets."""
    out = []
    for name in names:
        for workload, percent in ((f"{name}-stable", 100 - WEIGHT), (name, WEIGHT)):
            for pod in range(REPLICAS):
                labels = (
                    f'destination_workload="{workload}",destination_workload_namespace="{NAMESPACE}",'
                    f'pod="{workload}-x-{pod}",reporter="destination"'
                )
                n = int(seconds * RATE * percent / 100 / REPLICAS)
                for code, count in (("200", n - n // 1000), ("500", n // 1000)):
                    out.append(
                        f'envoy_istio_requests_total{{{labels},response_code="{code}",response_flags="-"}} {count}'
                    )
                for edge in EDGES_MS:
                    le = "+Inf" if edge == float("inf") else f"{edge:g}"
                    below = 1 / (1 + (40 / edge) ** 3)
                    metric = "envoy_istio_request_duration_milliseconds_bucket"
                    out.append(f'{metric}{{{labels},le="{le}"}} {int(n * below)}')
    return ("\n".join(out) + "\n").encode()


class Exporter:
    """Serves the page."""

    def __init__(self, names: Sequence[str]) -> None:
        began = time.monotonic()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = page(names, 1000 + time.monotonic() - began)
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}/stats/prometheus"
        threading.Thread(target=server.serve_forever, daemon=True).start()


class Obedience:
    """The controller of these few Deployments: what their spec asks for is so, two seconds later at most."""

    def __init__(self, bench: Bench, names: Sequence[str]) -> None:
        self._bench, self._names = bench, names
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        admin = self._bench.client()
        wanted = set(self._names)
        while not self._over.wait(2.0):
            for found in admin.list("deployments", NAMESPACE):
                name, seen = found["metadata"]["name"], found.get("status", {}).get("observedGeneration", 0)
                if name in wanted and seen < found["metadata"]["generation"]:
                    obey(self._bench, found)


def obey(bench: Bench, deployment: JSON) -> None:
    """The status, and the pods, as a controller and a kubelet would report them."""
    admin, imagined = bench.client(), MemoryCluster()
    name = deployment["metadata"]["name"]
    obeyed = imagined.obeyed(deployment)
    there = {p["metadata"]["name"] for p in admin.list("pods", NAMESPACE, f"bench={name}")}
    for made in imagined.of[kinds.PODS].items():
        if made["metadata"]["name"] not in there:
            put_pod(bench, made, name)
    put_endpoints(bench, f"{name}-canary", [p["metadata"]["name"] for p in imagined.of[kinds.PODS].items()])
    admin.patch("deployments", name, {"status": obeyed["status"]}, NAMESPACE, part="status")


def put_endpoints(bench: Bench, service: str, pods: Sequence[str]) -> None:
    """What the controller of EndpointSlices would say."""
    ends = [{"addresses": ["10.244.0.9"], "targetRef": {"kind": "Pod", "name": pod}} for pod in pods]
    labels = {"kubernetes.io/service-name": service}
    meta = {"name": service, "namespace": NAMESPACE, "labels": labels}
    kind = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice"}
    bench.client().apply({**kind, "metadata": meta, "addressType": "IPv4", "endpoints": ends, "ports": []})


def put_pod(bench: Bench, pod: JSON, deployment: str) -> None:
    admin = bench.client()
    owners = [{**owner, "uid": "none"} for owner in pod["metadata"]["ownerReferences"]]
    labels = {**pod["metadata"]["labels"], "bench": deployment}
    meta = {k: pod["metadata"][k] for k in ("name", "namespace")} | {"ownerReferences": owners, "labels": labels}
    spec = {"containers": [{"name": "app", "image": "demo/app:v1"}], "automountServiceAccountToken": False}
    admin.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    admin.patch("pods", pod["metadata"]["name"], {"status": pod["status"]}, NAMESPACE, part="status")


# ── services that are in canaryd's care already ──────────────────────────────────────────────────────────────


def adopted(bench: Bench, names: Sequence[str]) -> None:
    """On the server as canaryd would have left them."""
    admin = bench.client()
    admin.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": NAMESPACE}})
    with ThreadPoolExecutor(6) as pool, tempfile.TemporaryDirectory() as directory:
        made = dict(zip(names, pool.map(lambda n: create(bench, canary_document(n)), names), strict=True))
        imagined = Daemon(Path(directory), 0)
        for name in names:
            for kind, body in service_objects(name, **PLAN):
                uid = {"uid": made[name]["metadata"]["uid"]} if kind is kinds.CANARIES else {}
                imagined.memory.bring(kind, {**body, "metadata": {**body["metadata"], **uid}})
        imagined.adopt()
        imagined.reconciler.close()
        of = imagined.memory.of
        for kind in (kinds.DEPLOYMENTS, kinds.SERVICES, kinds.VIRTUAL_SERVICES, kinds.CONTROLLER_REVISIONS):
            list(pool.map(lambda body: create(bench, body), of[kind].items()))
        list(pool.map(lambda d: with_status(bench, "deployments", d), of[kinds.DEPLOYMENTS].items()))
        list(pool.map(lambda c: with_status(bench, "canaries", c), of[kinds.CANARIES].items()))
        list(pool.map(lambda p: put_pod(bench, p, "idle"), of[kinds.PODS].items()))


def canary_document(name: str) -> JSON:
    (body,) = (body for kind, body in service_objects(name, **PLAN) if kind is kinds.CANARIES)
    meta = {**body["metadata"], "finalizers": ["canaryd.io/restore"]}
    return {"apiVersion": kinds.CANARIES.api_version, "kind": "Canary", **body, "metadata": meta}


def create(bench: Bench, body: JSON) -> JSON:
    own = ("uid", "resourceVersion", "creationTimestamp", "generation")
    meta = {key: value for key, value in body["metadata"].items() if key not in own}
    if SEEN in (meta.get("annotations") or {}):  # it speaks of a generation that this new object has not
        meta["annotations"] = {key: value for key, value in meta["annotations"].items() if key != SEEN}
    if body["kind"] == "Service":
        body = {**body, "spec": {**body["spec"], "clusterIP": "None"}}  # the range has fewer addresses than needed
    return bench.client().create({**{k: v for k, v in body.items() if k != "status"}, "metadata": meta})


def with_status(bench: Bench, resource: str, body: JSON) -> None:
    status = body["status"]
    if resource == "deployments":
        status = {**status, "observedGeneration": 1}
    bench.client().patch(resource, body["metadata"]["name"], {"status": status}, NAMESPACE, part="status")


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────


def numbers(url: str, pattern: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {key: float(value) for key, value in re.findall(rf"^({pattern}) (\S+)$", text, re.M)}


class Snapshot:
    """Everything that is counted, at one moment."""

    def __init__(self, log: Path, pid: int, prometheus_url: str) -> None:
        self.at, self.cpu, self.memory = datetime.now(UTC), cpu_seconds(pid), memory_mb(pid)[0]
        self.ticks = ticks(log)
        handled = numbers(f"{prometheus_url}/metrics", r'prometheus_http_requests_total\{[^}]*"/api/v1/query[^}]*\}')
        self.queries = sum(handled.values())


def ticks(log: Path) -> list[JSON]:
    """All looks at the counters so far, by the daemon's own log."""
    lines = (json.loads(line) for line in log.read_text().splitlines() if '"tick"' in line)
    return [line for line in lines if line.get("event") == "tick" and line["counted"]]


def spread(values: Sequence[float]) -> str:
    return f"p50 {percentile(values, 50):.2f} s, p95 {percentile(values, 95):.2f} s, max {max(values):.2f} s"


def percentile(values: Sequence[float], percent: float) -> float:
    return sorted(values)[min(int(len(values) * percent / 100), len(values) - 1)]


def report(bench: Bench, daemon: Any, before: Snapshot, after: Snapshot, idle: int, under_way: Sequence[str]) -> bool:
    seconds = (after.at - before.at).total_seconds()
    intervals = seconds / INTERVAL_S
    now, most = memory_mb(daemon.pid)
    took = after.ticks[len(before.ticks) :]
    slow = max(tick["seconds"] for tick in took)
    requests = [r for r in bench.audit.requests(ACCOUNT, before.at, after.at) if r.resource != "leases"]
    asked = Counter(f"{r.verb} {r.resource or r.uri}" for r in requests)
    moving = set(under_way)
    of_idle = [r for r in requests if r.resource.startswith("canaries") and r.name and r.name not in moving]
    saves = Counter(r.name for r in requests if r.resource == "canaries/status" and r.verb == "patch")
    most_saves = max(saves.values(), default=0) / intervals
    queries = (after.queries - before.queries) / intervals
    allowed = 2 * math.ceil(len(under_way) / 50)
    print(f"{idle} idle, {len(under_way)} under way, {seconds:.0f} s, interval {INTERVAL_S} s")
    print(f"  ticks            {len(took)}, {spread([tick['seconds'] for tick in took])} ({TICK_S:g})")
    print(f"  CPU meanwhile    {spread([tick['cpu'] for tick in took])}, of all threads")
    print(f"  load average     {os.getloadavg()[0]:.1f}, {os.getloadavg()[2]:.1f} over 15 minutes")
    print(f"  memory           {before.memory:.0f} MB, {now:.0f} MB in the end, {most:.0f} MB at most ({RSS_MB:g})")
    print(f"  CPU              {100 * (after.cpu - before.cpu) / seconds:.1f} % of a core")
    print(f"  API requests     {dict(asked)}")
    print(f"  of idle ones     {len(of_idle)} (0)")
    print(f"  status writes    {sum(saves.values()) / intervals:.1f} an interval, at most {most_saves:.2f} of one (1)")
    print(f"  PromQL           {queries:.1f} requests an interval ({allowed})")
    good = (slow <= TICK_S, most <= RSS_MB, not of_idle, most_saves <= 1.0, queries <= allowed + 0.5)
    return all(good)


def configuration(url: str) -> JSON:
    return {
        "mode": "cluster",
        "cluster": {"namespaces": [NAMESPACE], "lease": {"duration": "15s", "namespace": "canaryd"}},
        "metrics": {
            "source": "prometheus",
            "prometheus": {"url": url, "scrapeInterval": f"{SCRAPE_S}s", "allowLocal": True},
        },
        "log": {"format": "json", "level": "debug"},
    }


def run(bench: Bench, directory: Path, arguments: argparse.Namespace) -> bool:
    bench.start_control_plane()
    install(bench)
    under_way = [f"moving-{i}" for i in range(arguments.progressing)]
    names = [*(f"idle-{i}" for i in range(arguments.idle)), *under_way]
    began = time.monotonic()
    adopted(bench, names)
    print(f"{len(names)} services are on the server after {time.monotonic() - began:.0f} s", flush=True)
    server = prometheus.Prometheus(bench.nursery, directory / "prometheus", Exporter(under_way).url, f"{SCRAPE_S}s")
    server.start()
    everything = Canaryd(bench, directory, configuration(server.url))
    replica = everything.start()
    everything.leader(120)
    with Obedience(bench, under_way):
        admin = bench.client()
        change = {"spec": {"template": {"spec": {"containers": [{"name": "app", "image": "demo/app:v2"}]}}}}
        for name in under_way:
            admin.patch("deployments", name, change, NAMESPACE, kind="strategic")
        phases: Counter[str] = Counter()

        def moving() -> bool:
            found = [c for c in admin.list("canaries", NAMESPACE) if c["metadata"]["name"].startswith("moving-")]
            phases.clear()
            phases.update(c.get("status", {}).get("phase", "") for c in found)
            return phases["Progressing"] == len(under_way)

        wait_until(moving, "all are under way", 240, every=3.0)
        print(f"all are under way after {time.monotonic() - began:.0f} s", flush=True)
        time.sleep(90 if arguments.settle is None else arguments.settle)
        before = Snapshot(replica.child.log, replica.child.pid, server.url)
        time.sleep(60 * arguments.minutes)
        after = Snapshot(replica.child.log, replica.child.pid, server.url)
        moving()
        print(f"  phases           {dict(phases)}")
        return report(bench, replica.child, before, after, arguments.idle, under_way)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", type=int, default=500)
    parser.add_argument("--progressing", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--settle", type=float, default=None, help="seconds before the window, 90 unless told")
    arguments = parser.parse_args()
    if netns.needs_new_process():
        argv = netns.command([sys.executable, *sys.argv])
        os.execvp(argv[0], argv)
    netns.enter()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory() as directory, Bench(Path(directory)) as bench:
        return 0 if run(bench, Path(directory), arguments) else 1


if __name__ == "__main__":
    sys.exit(main())
