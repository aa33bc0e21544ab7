"""Runs test files side by side, each in a pytest process of its own, and adds up their reports.

    python scripts/run_tests.py [core | parts | cluster | FILE.py] ... [--all] [--at-once N] [pytest's options]

`core` is tests/core as one run, which writes .coverage and gives way to the others; `parts` are all files outside of
tests/core and tests/cluster, `cluster` those of tests/cluster, without LONG unless --all is given; a new file is found
by itself. Most of what they do is waiting, so a few at once share the machine; ALONE has it for itself. None
disturbs another: each has its own ports, directory for what it writes, and, in tests/cluster, bench. What a file says
is printed whole when it has ended; nothing is tried twice. Files that failed are named once more at the end, their
directories are kept. Exit status 1 when any failed. The reports of a group are added up in .cache/reports.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / ".cache" / "reports"
GROUPS = ("core", "parts", "cluster")
COVERAGE = ("-ppytest_cov", "--cov=canaryd", "--cov-branch", "--cov-report=")

# Outages, wars over weights, leases that run out: half an hour that is mostly waiting.
LONG = {
    "test_api_trouble.py",
    "test_cluster_routes.py",
    "test_dashboard_cluster.py",
    "test_definition.py",
    "test_demo.py",
    "test_deployments_safety.py",
    "test_informer.py",
    "test_kube_client.py",
    "test_leaders.py",
    "test_lease.py",
    "test_parting.py",
    "test_release_cost.py",
    "test_workload_promises.py",
    "test_routes_under_load.py",
    "test_shipped_mesh.py",
    "test_sight.py",
    "test_world.py",
    "test_world_rights.py",
}
# Those that take longest begin first, so that nobody waits for them alone at the end. Others need not be named.
FIRST = (
    "e2e/test_demo.py",
    "cluster/test_releases.py",
    "cluster/test_kills.py",
    "cluster/test_cli_cluster.py",
    "cluster/test_kubernetes_store.py",
    "cluster/test_idle_cost.py",
    "cluster/test_deployments.py",
    "e2e/test_kills.py",
    "e2e/test_rollouts.py",
    "packaging/test_image_steps.py",
    "stats_slow/test_claims.py",
)
# Three releases on 900 requests a second, with a deadline: nothing runs beside them but what gives way.
ALONE = {"e2e/test_demo.py"}
AT_ONCE = (os.cpu_count() or 1) + 1
# Plugins that happen to be installed would take a second and a half of each process; no test needs one.
ENVIRONMENT = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
NO_TESTS = 5  # pytest's exit status when nothing was selected
PATIENCE_S = 30.0  # for a run that was asked to stop


@dataclass(frozen=True)
class Job:
    """One test file, or tests/core."""

    file: Path
    group: str
    options: tuple[str, ...] = ()
    nice: int = 0

    @property
    def name(self) -> str:
        return f"{self.file.parent.name}-{self.file.stem}"

    @property
    def is_alone(self) -> bool:
        return f"{self.file.parent.name}/{self.file.name}" in ALONE


@dataclass
class Running:
    job: Job
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    began: float


class Runner:
    """A few pytest processes at a time. To be used as a context manager: leaving it ends those that still run."""

    def __init__(
        self,
        at_once: int,
        options: Sequence[str] = (),
        *,
        reports: Path = REPORTS,
        cwd: Path = ROOT,
        temporary: Path | None = None,
    ) -> None:
        """`temporary`: where the directory for all that they write is made."""
        self.at_once, self.options, self.reports, self.cwd = at_once, list(options), reports, cwd
        self.scratch = Path(tempfile.mkdtemp(prefix="canaryd-tests-", dir=temporary))
        self.running: list[Running] = []
        self.failed: list[Job] = []
        self.seconds: dict[str, float] = {}  # by the name of the job
        self.cpu = 0.0  # seconds of all that have ended, with everything that they had started

    def __enter__(self) -> Runner:
        self.reports.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.running:
            with suppress(ProcessLookupError):
                one.process.send_signal(signal.SIGINT)
        for one in self.running:
            try:
                one.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
            one.said.close()
        if not self.failed:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def run(self, jobs: Iterable[Job]) -> list[Job]:
        """Those that failed, in the order in which they ended. Raises ValueError when none may run."""
        if self.at_once < 1:
            raise ValueError("nothing ever runs with less than 1 at once")
        waiting = list(jobs)
        while waiting or self.running:
            while waiting and self.may_begin(waiting[0]):
                self.start(waiting.pop(0))
            ended = next((one for one in self.running if one.process.poll() is not None), None)
            if ended is None:
                time.sleep(0.1)
                continue
            self.running.remove(ended)
            self.end(ended)
        return self.failed

    def may_begin(self, job: Job) -> bool:
        """There is room, and who must be alone is: beside it runs only what gives way."""
        if len(self.running) >= self.at_once:
            return False
        beside = [one.job for one in self.running if not one.job.nice]
        return bool(job.nice) or not beside or not (job.is_alone or any(other.is_alone for other in beside))

    def report(self, job: Job) -> Path:
        return self.reports / f"{job.group}-{job.name}.xml"

    def start(self, job: Job) -> None:
        self.report(job).unlink(missing_ok=True)
        said = (self.scratch / f"{job.name}.log").open("w+b")
        own = [f"--junit-xml={self.report(job)}", f"--basetemp={self.scratch / job.name}", "-pno:cacheprovider"]
        argv = [sys.executable, "-m", "pytest", "-q", str(job.file), *own, *job.options, *self.options]
        process = subprocess.Popen(
            argv, cwd=self.cwd, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )
        if job.nice:
            os.setpriority(os.PRIO_PROCESS, process.pid, job.nice)
        self.running.append(Running(job, process, said, time.monotonic()))

    def end(self, one: Running) -> None:
        """Say everything that it said, at once."""
        status, seconds = one.process.returncode, time.monotonic() - one.began
        good = status in (0, NO_TESTS)
        self.seconds[one.job.name] = seconds
        before, self.cpu = self.cpu, sum(os.times()[2:4])
        one.said.seek(0)
        with one.said as said:
            text = said.read().decode(errors="replace").rstrip()
        verdict = "passed" if good else f"FAILED (exit status {status}; {self.scratch / one.job.name})"
        print(
            f"{text}\n── {shown(one.job.file)}: {verdict}, {seconds:.0f} s, {self.cpu - before:.0f} of CPU", flush=True
        )
        if good:
            shutil.rmtree(self.scratch / one.job.name, ignore_errors=True)
        else:
            self.failed.append(one.job)


def shown(file: Path) -> str:
    return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else str(file)


# ── which files ──────────────────────────────────────────────────────────────────────────────────────────────


def found(group: str, *, everything: bool, tests: Path = ROOT / "tests") -> list[Job]:
    """All runs of a group."""
    if group == "core":  # never waits for anything, and would otherwise disturb those that measure time
        return [Job(tests / "core", group, COVERAGE, nice=10)]
    if group == "cluster":
        files = [f for f in (tests / "cluster").glob("test_*.py") if everything or f.name not in LONG]
    else:
        others = (tests / "core", tests / "cluster")
        files = [f for f in tests.rglob("test_*.py") if not any(other in f.parents for other in others)]
    return [Job(file, group) for file in files]


def ordered(jobs: Iterable[Job]) -> list[Job]:
    """The core, those of FIRST in its order, then the others by name."""
    place = {name: i for i, name in enumerate(FIRST)}

    def key(job: Job) -> tuple[bool, int, str]:
        name = f"{job.file.parent.name}/{job.file.name}"
        return job.group != "core", place.get(name, len(place)), str(job.file)

    return sorted(jobs, key=key)


def group_of(file: Path) -> str:
    return "cluster" if ROOT / "tests" / "cluster" in file.parents else "parts"


def add_up(jobs: Iterable[Job], runner: Runner) -> None:
    """One report for each group."""
    whole: dict[str, ElementTree.Element] = {}
    for job in jobs:
        suites = whole.setdefault(job.group, ElementTree.Element("testsuites"))
        if runner.report(job).exists():
            suites.extend(ElementTree.parse(runner.report(job)).getroot().iter("testsuite"))
    for group, suites in whole.items():
        ElementTree.ElementTree(suites).write(runner.reports / f"{group}.xml")


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────


def main(arguments: list[str]) -> int:
    everything, at_once, what, options = False, AT_ONCE, [], []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--all":
            everything = True
        elif argument == "--at-once":
            at_once = int(next(rest))
        elif argument in GROUPS or argument.endswith(".py"):
            what.append(argument)
        else:
            options.append(argument)
    jobs: list[Job] = []
    for name in what or GROUPS:
        file = Path(name).resolve()
        jobs += found(name, everything=everything) if name in GROUPS else [Job(file, group_of(file))]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs is ended on the way out
    began = time.monotonic()
    with Runner(at_once, options) as runner:
        failed = runner.run(ordered(jobs))
        add_up(jobs, runner)
    slowest = sorted(runner.seconds.items(), key=lambda item: -item[1])[:5]
    took, cpu = time.monotonic() - began, runner.cpu
    longest = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in slowest)
    print(f"{len(jobs)} files, {at_once} at once: {took:.0f} s ({cpu:.0f} s of CPU); the longest: {longest}")
    if failed:
        print(f"FAILED: {', '.join(shown(job.file) for job in failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
