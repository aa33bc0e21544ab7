"""The four releases that Flagger and Argo Rollouts were measured with, on such a bench: what canaryd makes of them.

    .venv/bin/python benchmarks/cluster_peers.py [good] [errors] [slow] [outage]      about 20 minutes for all four

300 requests/s on one service, an interval of 10 s, a scrape every 5 s, steps 5-10-25-50; a real control plane, mesh and
Prometheus (tests/cluster/README.md; scripts/cluster-tools builds them), two replicas of canaryd as their ServiceAccount
with the rights that `canaryd manifests canaryd` prints. The figures of the other two stand here as they were measured,
unmodified, on a bench of the same parts with the same load and steps, thresholds of 99 % and 500 ms.

Limits: nothing lost and nothing failed by a good release, ever; the three others end as they should.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "cluster"), str(ROOT)]

from bench import Bench, BenchPrometheus, netns
from bench.bench import obstacle
from release_scenes import ACCOUNT, NAMESPACE, STEPS, Service, canaryd, install, now, service, settings

RPS = 300
OUTAGE_S = 60.0
PATIENCE = 900.0
PEERS = """\
                    Flagger 1.36.1               Argo Rollouts 1.10.0
  good              promoted, 75 s, ~150 calls   promoted, 80 s, 74 calls
  5 % errors        rolled back, 89 s, 81 failed aborted, 50 s, 114 failed
  median 8 → 38 ms  promoted                     promoted
  Prometheus dies   rolled back after 57 s       aborted after 46 s
"""


@dataclass
class Measured:
    """One release."""

    scene: str
    ended: str = ""
    ok: bool = False
    seconds: float = 0.0  # from the change of the image to the end that is told
    until: float = 0.0  # to the write that gave the last request to stable (rollback) or began the promotion
    requests: int = 0  # of the service, from before its adoption on
    failed: int = 0  # of the canary's own answers
    lost: int = 0  # answered by nobody
    stalled: int = 0  # seconds in which nobody answered anything: the machine was too busy to carry the load
    slowest_ms: float = 0.0
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)  # from the change of the image to the end
    loads: tuple[float, float] = (0.0, 0.0)  # load average when it began and ended
    story: list[str] = field(default_factory=list)

    @property
    def lease_calls(self) -> int:
        return sum(n for (_, resource), n in self.calls.items() if resource == "leases")

    @property
    def own_calls(self) -> int:
        return sum(self.calls.values()) - self.lease_calls


class Scenes:
    """The four releases on one bench."""

    def __init__(self, bench: Bench, prometheus: BenchPrometheus, spec: dict[str, Any]) -> None:
        self.bench, self.prometheus, self.spec = bench, prometheus, spec

    def good(self) -> Measured:
        return self._release("good", "api", "v2", "Succeeded")

    def errors(self) -> Measured:
        return self._release("errors", "pay", "v2-err5", "RolledBack")

    def slow(self) -> Measured:
        return self._release("slow", "search", "v2-slow30", "RolledBack")

    def outage(self) -> Measured:
        return self._release("outage", "cart", "v2", "Succeeded", meanwhile=self._outage)

    def _outage(self, one: Service, told: list[str], began: float) -> None:
        """Prometheus dies at the second step and comes back a minute later."""
        while one.status().get("weight", {}).get("desired") != STEPS[1]:
            if one.phase() in ("Succeeded", "RolledBack") or time.time() - began > PATIENCE:
                raise SystemExit(f"outage: the second step was never reached: {one.status()}")
            time.sleep(0.2)
        self.prometheus.child.kill()
        told.append(f"{time.time() - began:5.0f} s  Prometheus is killed")
        killed = time.time()
        held = set()
        while time.time() - killed < OUTAGE_S:
            status = one.status()
            held.add((status["phase"], status["weight"]["desired"]))
            time.sleep(1.0)
        self.prometheus.start()
        told.append(f"{time.time() - began:5.0f} s  Prometheus is back; meanwhile: {sorted(held)}")

    def _release(
        self, scene: str, name: str, tag: str, wanted: str, meanwhile: Callable[..., None] | None = None
    ) -> Measured:
        out = Measured(scene)
        one = service(self.bench, name, rps=RPS, **self.spec)
        one.adopted()
        loads, began, since = os.getloadavg()[0], time.time(), now()
        say(f"{scene}: {name} gets demo/app:{tag}")
        one.app.set_image(f"demo/app:{tag}")
        if meanwhile is not None:
            meanwhile(one, out.story, began)
        status = one.until("Succeeded", "RolledBack", patience=PATIENCE)
        ended = now()
        out.ended, out.ok = status["phase"], status["phase"] == wanted
        out.seconds, out.loads = (ended - since).total_seconds(), (loads, os.getloadavg()[0])
        out.calls = self.bench.audit.counts(ACCOUNT, since=since, until=ended)
        time.sleep(12.0)  # the canary is scaled down under the same load
        assert one.load is not None
        totals = one.load.stop()
        out.requests, out.lost = totals.requests, len(totals.lost)
        out.failed = sum(1 for f in totals.failures if f.workload and f.tag == tag)
        out.ok &= out.lost == 0 and len(totals.failures) == out.lost + out.failed
        if wanted == "Succeeded":
            out.ok &= out.failed == 0
        seconds = totals.by_second.keys()
        out.stalled, out.slowest_ms = max(seconds) - min(seconds) + 1 - len(seconds), totals.slowest_ms
        moves = list(self._moves(one, since))
        out.until = next((s for w, s in reversed(moves) if w == (100 if wanted == "Succeeded" else 0)), out.seconds)
        out.story += [f"{s:5.0f} s  canary gets {w} %" for w, s in moves] + [status["message"]]
        one.app.delete()
        return out

    def _moves(self, one: Service, since: datetime) -> Iterator[tuple[int, float]]:
        """(weight, seconds since the image) of each change of the route."""
        last = None
        for request in self.bench.audit.requests(ACCOUNT, since):
            if (request.resource, request.name, request.verb) == ("virtualservices", one.name, "patch"):
                routes = (request.answer or {}).get("spec", {}).get("http", [{}])[0].get("route", ())
                weights = {to["destination"]["host"].split(".")[0]: int(to.get("weight", 100)) for to in routes}
                weight = weights.get(f"{one.name}-canary", 0)
                if weight != last:
                    yield weight, (request.at - since).total_seconds()
                last = weight


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def table(found: Sequence[Measured]) -> str:
    lines = [
        f"  {'canaryd':<9} {'ended':<11} {'after':>6} {'decided':>8} {'failed':>6} {'lost':>4} {'of':>7} calls  load"
    ]
    for m in found:
        lines.append(
            f"  {m.scene:<9} {m.ended:<11} {m.seconds:>4.0f} s {m.until:>6.0f} s {m.failed:>6} {m.lost:>4} "
            f"{m.requests:>7} {m.own_calls:>3} + {m.lease_calls} of the Lease  {m.loads[0]:.1f} to {m.loads[1]:.1f}"
            + (f"; stalled for {m.stalled} s" if m.stalled else "")
        )
    return "\n".join(lines)


@contextmanager
def bench_in(directory: Path) -> Iterator[tuple[Bench, BenchPrometheus]]:
    with Bench(directory) as bench:
        prometheus = bench.start_prometheus()
        prometheus.configure(scrape="5s")
        install(bench)
        yield bench, prometheus


def main(arguments: Sequence[str]) -> int:
    """Exit status: 1 when a limit was missed, 2 when there can be no bench here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", metavar="SCENE", help="good, errors, slow, outage; all when none is named")
    parser.add_argument("--bake", default="10s", help="of each step (default: 10s, one interval, as the others' plans)")
    parser.add_argument(
        "--share", default="1%", help="the harm budget (default: 1%%, what a threshold of 99 %% lets by)"
    )
    parser.add_argument("--lag", help="settings' metrics.prometheus.lag (default: canaryd's own)")
    parser.add_argument("--directory", type=Path, help="for logs (default: a temporary one)")
    options = parser.parse_args(arguments)
    if reason := obstacle():
        print(f"cluster_peers did not run: {reason}", file=sys.stderr)
        return 2
    if netns.needs_new_process():
        argv = netns.command([sys.executable, __file__, *arguments])
        os.execvp(argv[0], argv)
    netns.enter()
    directory = options.directory or Path(tempfile.mkdtemp(prefix="canaryd-peers-"))
    spec = {
        "steps": [{"weight": w, "bake": options.bake} for w in STEPS],
        "interval": "10s",
        "warmUp": "0s",
        "budget": {"share": options.share},
    }
    found = []
    with bench_in(directory) as (bench, prometheus):
        wanted = settings(prometheus, scrape="5s")
        wanted["cluster"] = {"namespaces": [NAMESPACE], "lease": {"namespace": "canaryd"}}
        del wanted["metrics"]["prometheus"]["lag"]
        if options.lag:
            wanted["metrics"]["prometheus"]["lag"] = options.lag
        (directory / "canaryd").mkdir(exist_ok=True)
        with canaryd(bench, directory / "canaryd", wanted, replicas=2):
            scenes = Scenes(bench, prometheus, spec)
            for scene in options.scenes or ("good", "errors", "slow", "outage"):
                found.append(getattr(scenes, scene)())
                one = found[-1]
                print("\n".join(f"    {line}" for line in one.story))
                print("    " + ", ".join(f"{v} {r} {n}" for (v, r), n in sorted(one.calls.items())))
                print(table([one]), flush=True)
    print(f"\n{RPS} requests/s, interval 10 s, scrape 5 s, steps {STEPS}, bake {options.bake}, budget {options.share}")
    print(table(found))
    print(PEERS)
    return 0 if all(m.ok for m in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
