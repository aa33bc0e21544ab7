"""From a decision to the first request on the new split, through a real Envoy on loopback.

    python benchmarks/decision_to_traffic.py [--flips 30] [--hosts 1]

One clock starts when the router is asked to flip the route between 0 % and 100 %, and stops when the first answer of
the other version is back at a client that asks without pause; so one request's latency is part of every number.
`--hosts` puts that many virtual hosts into the route file. Exits with 1 when the median is above 50 ms.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from canaryd.adapters.envoy_file import EnvoyFileRouter
from canaryd.demo.lab import Lab, PoolSpec, ServiceSpec, replace_file
from canaryd.policy import EnvoyFile, Route

TARGET_MS = 50.0
PAUSE = 0.1  # seconds between flips
SERVICE = ServiceSpec(
    "shop", tuple(PoolSpec(f"shop-{name}", name, errors=0, latency_ms=0.5) for name in ("blue", "green"))
)


class Client(threading.Thread):
    """Asks without pause; remembers when each version was first seen since `forget`."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
        self._over = threading.Event()
        self.seen: dict[str, float] = {}
        self.arrived = threading.Condition()
        self.latencies: list[float] = []

    def run(self) -> None:
        while not self._over.is_set():
            began = time.perf_counter()
            self._connection.request("GET", "/")
            answer = self._connection.getresponse()
            answer.read()
            now = time.perf_counter()
            self.latencies.append((now - began) * 1000)
            with self.arrived:
                self.seen.setdefault(answer.headers.get("x-version") or str(answer.status), now)
                self.arrived.notify_all()

    def stop(self) -> None:
        self._over.set()
        self.join()
        self._connection.close()


def flips(lab: Lab, client: Client, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds from decision to traffic, and of the writes alone."""
    router, route = EnvoyFileRouter(), Route(envoy_file=EnvoyFile(path=str(lab.rds_path("shop"))))
    total: list[float] = []
    write: list[float] = []
    for version in range(1, count + 1):
        weight, expected = (100, "green") if version % 2 else (0, "blue")
        router.view("shop", route, "shop-blue", "shop-green")  # as every tick does before it decides
        time.sleep(PAUSE)
        with client.arrived:
            client.seen.clear()
        began = time.perf_counter()
        router.set_weight("shop", route, "shop-blue", "shop-green", weight, version=version)
        write.append((time.perf_counter() - began) * 1000)
        with client.arrived:
            deadline = time.perf_counter() + 5
            while expected not in client.seen:
                if not client.arrived.wait(timeout=deadline - time.perf_counter()):
                    raise SystemExit(f"flip {version}: no request reached {expected} within 5 s")
            total.append((client.seen[expected] - began) * 1000)
    return total, write


def with_hosts(text: str, count: int) -> str:
    """The same routes with more virtual hosts in front."""
    more = "".join(
        f'  - name: more-{i}\n    domains: ["{i}.example"]\n    routes:\n'
        f"    - match: {{prefix: /}}\n      route: {{cluster: shop-blue}}\n"
        for i in range(count - 1)
    )
    return text.replace("  virtual_hosts:\n", "  virtual_hosts:\n" + more)


def line(name: str, values: list[float]) -> str:
    p95 = statistics.quantiles(values, n=20)[-1]
    return f"{name:<34} p50 {statistics.median(values):6.1f} ms   p95 {p95:6.1f} ms   max {max(values):6.1f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=30)
    parser.add_argument("--hosts", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Lab(Path(directory), [SERVICE]) as lab:
        path = lab.rds_path("shop")
        replace_file(path, with_hosts(path.read_text(), given.hosts))
        client = Client(lab.front_url("shop"))
        client.start()
        total, write = flips(lab, client, max(2, given.flips))
        client.stop()
    print(line("decision to first request", total))
    print(line("  of it: read, check, write, rename", write))
    print(line("  of it: one request", client.latencies))
    good = statistics.median(total) <= TARGET_MS
    verdict = "met" if good else "MISSED"
    print(f"{len(total)} flips, {given.hosts} virtual hosts; target p50 <= {TARGET_MS:g} ms: {verdict}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
