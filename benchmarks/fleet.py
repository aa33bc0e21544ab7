"""What idle Canaries cost the daemon of a cluster: a tick, a full look, a reading of all documents, in its own process.

    python benchmarks/fleet.py [--most 10000]

No server: objects of ordinary size in memory, taken into care by canaryd's own code (see memory_cluster.py). `full` is
a tick that looks at every Canary anew (now and then, and after every change of hands), `tick` one in which nothing has
changed, `inbox` one of the five looks a second at what has changed, when nothing has, `reload` what a change of any one
document costs, `tell` one of the two looks a second at what is owed to people. CPU time, best of five; `objects` is the
whole fleet in memory, objects and states. Exits with 1 when a full tick of 550 Canaries takes longer than a second, or
an idle one asks anything.
"""

from __future__ import annotations

import argparse
import json
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
        self.delivery = self._new_delivery()
        self.reconciler = Reconciler(self.ports, save_every=settings.cluster.save_every, delivery=self.delivery)
        self._parting = self._new_parting()
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
    """CPU seconds of the best run, all threads."""
    times = []
    for _ in range(runs):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def rss_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def measure(count: int) -> dict[str, float]:
    """CPU seconds of each piece of work, MB of the whole fleet, and the requests that the work caused."""
    with tempfile.TemporaryDirectory() as directory:
        before = rss_mb()
        daemon = Daemon(Path(directory), count)
        daemon.adopt()
        asked, interval = daemon.memory.requests.total(), daemon.canaries[0].spec.interval

        def reload() -> None:
            daemon._stale, daemon._reload_from = True, 0.0
            daemon._inbox()

        work: dict[str, Callable[[], object]] = {
            "full": lambda: daemon._tick(daemon.canaries),
            "tick": lambda: daemon._tick_interval(interval),
            "inbox": daemon._inbox,
            "tell": daemon._tell,
            "reload": reload,
        }
        out = {name: timed(one, 5 if count < 5000 else 2) for name, one in work.items()}
        daemon.reconciler.close()
        return {**out, "MB": rss_mb() - before, "requests": daemon.memory.requests.total() - asked}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=2000, help="largest number of Canaries, of 550, 2000 and 10000")
    most = parser.parse_args().most
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    names = ("full", "tick", "inbox", "tell", "reload")
    print(f"{'canaries':>8} {' '.join(f'{name:>10}' for name in names)} {'objects':>8} requests")
    good = True
    for count in (550, 2000, 10_000):
        if count > most:
            continue
        found = measure(count)
        times = " ".join(f"{found[name] * 1e3:>7.1f} ms" for name in ("full", "tick", "inbox", "tell", "reload"))
        print(f"{count:>8} {times} {found['MB']:>5.0f} MB {found['requests']:>8.0f}", flush=True)
        good = good and not found["requests"] and (count != 550 or found["full"] <= LIMIT_S)
    print(f"limit {LIMIT_S:g} s for a full tick of 550, and no request")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
