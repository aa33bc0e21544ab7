"""Runs the tests of tests/cluster, each file in a pytest process and on a bench of its own, and adds up the reports.

A file that kills its API server, leaves a daemon's objects behind or removes a right thereby disturbs no other.
Files and pytest's options may be given. Without files it takes those that are quick for what they show; with --all also
LONG: outages, wars over weights, leases that run out, which are mostly waiting. Exit status 1 when any file failed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / ".cache" / "reports"
LONG = {
    "test_api_trouble.py",
    "test_cluster_routes.py",
    "test_demo.py",
    "test_deployments_safety.py",
    "test_informer.py",
    "test_kube_client.py",
    "test_leaders.py",
    "test_lease.py",
    "test_release_cost.py",
    "test_workload_promises.py",
    "test_routes_under_load.py",
    "test_shipped_mesh.py",
    "test_world.py",
    "test_world_rights.py",
}
NO_TESTS = 5  # pytest's exit status when nothing was selected


def run(file: Path, options: list[str], report: Path) -> int:
    """pytest's exit status."""
    argv = [sys.executable, "-m", "pytest", "-q", str(file), f"--junit-xml={report}", *options]
    return subprocess.run(argv, cwd=ROOT, check=False).returncode


def main(arguments: list[str]) -> int:
    files = [Path(a).resolve() for a in arguments if a.endswith(".py")]
    options = [a for a in arguments if not a.endswith(".py") and a != "--all"]
    every = sorted((ROOT / "tests" / "cluster").glob("test_*.py"))
    files = files or [file for file in every if "--all" in arguments or file.name not in LONG]
    REPORTS.mkdir(parents=True, exist_ok=True)
    whole, failed = ElementTree.Element("testsuites"), []
    for file in files:
        began, report = time.monotonic(), REPORTS / f"cluster-{file.stem}.xml"
        report.unlink(missing_ok=True)
        status = run(file, options, report)
        if report.exists():
            whole.extend(ElementTree.parse(report).getroot().iter("testsuite"))
        if status not in (0, NO_TESTS):
            failed.append(file.name)
        print(f"{file.name}: {time.monotonic() - began:.0f} s, exit status {status}", flush=True)
    ElementTree.ElementTree(whole).write(REPORTS / "cluster.xml")
    if failed:
        print(f"tests/cluster: failed in {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
