"""A real `canaryd run` with canaries that nobody has started, for the benchmarks beside it; measures nothing itself.

It is what canaryd does most of its life: documents read, routes looked at, no rollout under way.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from canaryd.demo import envoy
from canaryd.demo.processes import Child, Nursery
from canaryd.demo.site import Site, from_page

DOCUMENT = """\
apiVersion: canaryd.io/v1alpha1
kind: Canary
metadata: {{name: {name}}}
spec:
  workloads: {{pools: [{name}-blue, {name}-green]}}
  route: {{envoyFile: {{path: "{path}"}}}}
  interval: {interval}
"""
TICKS = os.sysconf("SC_CLK_TCK")  # of CPU time per second


@contextmanager
def idle(canaries: int, *, interval: str = "30s", settle: float = 3.0) -> Iterator[Child]:
    """The daemon, `settle` seconds after it began its work; stopped at the end."""
    with tempfile.TemporaryDirectory() as directory, Nursery(Path(directory) / "log") as nursery:
        root = Path(directory)
        site = Site(root, nursery, from_page("http://127.0.0.1:9/stats/prometheus"))
        for i in range(canaries):
            name = f"service-{i}"
            route = root / "rds" / f"{name}.yaml"
            route.parent.mkdir(exist_ok=True)
            route.write_text(envoy.routes(name, {f"{name}-blue": 100, f"{name}-green": 0}, "1"))
            site.write(name, DOCUMENT.format(name=name, path=route, interval=interval))
        daemon = site.run()
        site.open_store(daemon).close()
        time.sleep(settle)
        yield daemon


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident set of a process: (now, most so far), in MB of 2^20 bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    now, most = (int(status[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    return now, most


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
