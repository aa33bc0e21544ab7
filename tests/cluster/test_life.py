"""The bench's own promises about its life: two at once, and nothing left behind by one that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from bench import Bench

from canaryd.demo.processes import wait_until

ROOT = Path(__file__).resolve().parents[2]


def processes_of(directory: Path) -> dict[int, str]:
    """Process id → command line of everything that was given a path in this directory."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended meanwhile
        if str(directory) in line:
            found[int(entry.parent.name)] = line
    return found


def test_a_second_bench_runs_beside_ours_and_a_killed_one_leaves_no_process_behind(
    control_plane: Bench, tmp_path: Path
) -> None:
    path = os.pathsep.join([str(ROOT / "tests" / "cluster"), str(ROOT)])
    argv = [sys.executable, "-m", "bench", "mesh", "--directory", str(tmp_path)]
    with subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True) as second:
        assert second.stdout is not None
        assert "mesh is up" in second.stdout.readline()
        names = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok", "pilot-discovery")
        running = " ".join(processes_of(tmp_path).values())
        assert all(name in running for name in (*names, "envoy", "pod_server.py"))
        control_plane.client().list("namespaces", None)  # ours is another one, on the same ports
        second.send_signal(signal.SIGKILL)
    wait_until(lambda: not processes_of(tmp_path), "the killed bench's processes to be gone", timeout=30, every=0.1)
    control_plane.client().list("namespaces", None)
