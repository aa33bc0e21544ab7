"""What idle Canaries cost the daemon of a cluster: a tick, a full look, a reading of all documents, in its own process.

    python benchmarks/fleet.py [--most 10000] [--profile]

No server: objects of ordinary size in memory, taken into care by canaryd's own code (see memory_cluster.py). `full` is
a tick that looks at every Canary anew (now and then, and after every change of hands), `tick` one in which nothing has
changed, `inbox` one of the five looks a second at what has changed, when nothing has, `reload` what a change of any one
document costs. Exits with 1 when a full tick of 550 Canaries takes longer than a second, or an idle one asks anything.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import structlog
from memory_cluster import MemoryCluster, fleet

from canaryd import wiring
from canaryd.cluster import ClusterDaemon
from canaryd.config import Settings
from canaryd.kube import kinds
from canaryd.plan import SETTLE
from canaryd.process import new_scheduler, now
from canaryd.reconcile import Reconciler

LIMIT_S = 1.0
KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "memory",
    "clusters": [{"name": "memory", "cluster": {"server": "http://127.0.0.1:9"}}],
    "users": [{"name": "memory", "user": {}}],
    "contexts": [{"name": "memory", "context": {"cluster": "memory", "user": "memory"}}],
}


class Leading:
    """A Lease that nobody disputes."""

    leading = True

    def holder(self) -> str:
        return "me"


class Daemon(ClusterDaemon):
    """The daemon of a cluster over objects in memory; nothing runs by itself."""

    def __init__(self, root: Path, count: int) -> None:
        file = root / "kubeconfig"
        file.write_text(json.dumps(KUBECONFIG))
        prometheus = {"url": "http://127.0.0.1:9", "scrapeInterval": "5s", "allowLocal": True}
        document = {
            "mode": "cluster",
            "cluster": {"kubeconfig": str(file)},
            "metrics": {"source": "prometheus", "prometheus": prometheus},
        }
        settings = Settings.model_validate(document)
        super().__init__(settings, root)
        self.client = self.memory = MemoryCluster(self._touch)
        watched, of = self.watched, self.memory.of
        watched.canaries, watched.deployments = of[kinds.CANARIES], of[kinds.DEPLOYMENTS]
        watched.pods, watched.services, watched.autoscalers = of[kinds.PODS], of[kinds.SERVICES], of[kinds.HPAS]
        watched.virtual_services, watched.http_routes = of[kinds.VIRTUAL_SERVICES], of[kinds.HTTP_ROUTES]
        self.store = wiring.cluster_store(self.memory, watched)
        self.ports = wiring.cluster(settings, self.memory, watched, self.store)
        self.reconciler = Reconciler(self.ports, save_every=settings.cluster.save_every)
        self.scheduler, self.lease = new_scheduler(), Leading()
        self.leading.set()
        fleet(self.memory, [f"service-{i}" for i in range(count)])

    def adopt(self) -> None:
        """All services are in canaryd's care, and nothing is left to be done."""
        self._reload()
        at = now() - timedelta(minutes=5)
        for _ in range(6):
            self.reconciler.tick(self.canaries, at, measure=False)
            at += SETTLE + timedelta(seconds=1)
            time.sleep(1)  # the proxies are given a moment of real time
        states = [self.store.load(c.key).state for c in self.canaries]
        assert all(s is not None and s.stable_revision and s.weight == 0 for s in states), "not adopted"
        while self.store.owed():
            self.store.told([r.id for r in self.store.owed()])
        self.store.prune(at, 0)
        self.watched.trouble = lambda: ""
        self._inbox()
        self._inbox()


def timed(work: Callable[[], object], runs: int) -> float:
    """Seconds of the best run."""
    times = []
    for _ in range(runs):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def rss_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def measure(count: int, *, profile: bool) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        before = rss_mb()
        daemon = Daemon(Path(directory), count)
        began = time.process_time()
        daemon.adopt()
        took = time.process_time() - began
        before_requests = daemon.memory.requests.total()
        interval = daemon.canaries[0].spec.interval

        def full() -> None:
            daemon._tick(daemon.canaries)

        def reload() -> None:
            daemon._stale, daemon._reload_from = True, 0.0
            daemon._inbox()

        work = {
            "full": full,
            "tick": lambda: daemon._tick_interval(interval),
            "inbox": daemon._inbox,
            "tell": daemon._tell,
            "part": daemon._part,
            "reload": reload,
            "status": daemon._status,
        }
        out = {}
        for name, one in work.items():
            out[name] = timed(one, 5 if count < 5000 else 2)
            if profile:
                profiler = cProfile.Profile()
                profiler.runcall(one)
                print(f"── {name}")
                pstats.Stats(profiler).sort_stats("cumulative").print_stats(22)
        daemon.reconciler.close()
        return {
            **out,
            "adoption": took,
            "MB": rss_mb() - before,
            "requests": daemon.memory.requests.total() - before_requests,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=10_000, help="largest number of Canaries")
    parser.add_argument("--only", type=int, default=0)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    for count in (550, 2000, 10_000):
        if count > arguments.most or (arguments.only and count != arguments.only):
            continue
        found = measure(count, profile=arguments.profile)
        print(count, {k: round(v * 1e3, 1) if k not in ("MB", "requests") else v for k, v in found.items()}, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
