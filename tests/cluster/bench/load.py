"""Live load on the gateway from a process of its own, and what became of every request.

The process (programs/load_generator.py) writes lines; this module starts it and adds the lines up.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.cluster import PROGRAMS
from canaryd.demo.processes import Child, LabError, Nursery, wait_until


@dataclass(frozen=True)
class Failure:
    """One request that was not answered with 200."""

    at: float  # Unix time at which it was sent
    ms: float  # until it failed
    authority: str
    workload: str  # "" when no pod answered
    tag: str
    status: int  # HTTP, 0 when nothing came back: a lost request
    error: str


@dataclass
class Totals:
    """Requests that ended in a span of time, and all that failed among those sent in it."""

    requests: int = 0
    by_status: Counter[int] = field(default_factory=Counter)
    by_workload: Counter[str] = field(default_factory=Counter)  # as the answering pod named itself
    by_tag: Counter[str] = field(default_factory=Counter)
    by_second: dict[int, Counter[tuple[str, str, int]]] = field(default_factory=dict)  # (workload, tag, status)
    failures: list[Failure] = field(default_factory=list)
    total_ms: float = 0.0
    slowest_ms: float = 0.0

    @property
    def lost(self) -> list[Failure]:
        """Those that no pod answered: nothing came back, or the proxy itself said 503 or 404."""
        return [failure for failure in self.failures if not failure.workload]

    def share(self, *, workload: str = "", tag: str = "") -> float:
        """The part of all requests that this workload or tag answered, 0..1."""
        part = self.by_workload[workload] if workload else self.by_tag[tag]
        return part / self.requests if self.requests else 0.0


class Load:
    """One generator; made running. `stop` it, or the bench does."""

    def __init__(
        self, nursery: Nursery, name: str, rps: float, authorities: Iterable[str], host: str, port: int
    ) -> None:
        argv = [sys.executable, str(PROGRAMS / "load_generator.py"), host, str(port), str(rps), ",".join(authorities)]
        self._child: Child = nursery.start(name, argv)

    @property
    def log(self) -> Path:
        """Its lines, for a closer look."""
        return self._child.log

    @property
    def running(self) -> bool:
        return self._child.running

    def stop(self) -> Totals:
        """End it when its last requests are answered, and add everything up."""
        code = self._child.stop(grace=15.0)
        if code != 0:
            raise LabError(f"the load generator ended with {code}:\n{self._child.last_words()}")
        return self.between()

    def between(self, start: float = 0.0, end: float = float("inf")) -> Totals:
        """What ended from `start` to `end` (Unix time; whole seconds count), as far as it is written."""
        totals = Totals()
        for line in self._lines():
            if "failure" in line:
                failure = Failure(**line["failure"])
                if start <= failure.at < end:
                    totals.failures.append(failure)
            elif start <= line["t"] + 1 and line["t"] < end:
                _add(totals, line["t"], line["counts"])
        return totals

    def await_requests(self, count: int, timeout: float = 60.0) -> Totals:
        """Wait until so many requests from now on have been counted; returns the totals of these seconds."""
        start = max([line["t"] for line in self._lines() if "t" in line], default=0) + 1

        def counted() -> Totals | None:
            if not self.running:
                raise LabError(f"the load generator ended:\n{self._child.last_words()}")
            totals = self.between(start + 1)
            return totals if totals.requests >= count else None

        found = wait_until(counted, f"{count} requests", timeout, every=0.3)
        assert found is not None
        return found

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self.log.exists():
            return
        for line in self.log.read_text().splitlines(keepends=True):
            if line.startswith("{") and line.endswith("\n"):
                yield json.loads(line)


def _add(totals: Totals, second: int, counts: dict[str, list[float]]) -> None:
    for key, (number, total_ms, slowest_ms) in counts.items():
        workload, tag, status = key.split("|")
        requests = int(number)
        totals.requests += requests
        totals.by_status[int(status)] += requests
        totals.by_workload[workload] += requests
        totals.by_tag[tag] += requests
        totals.by_second.setdefault(second, Counter())[workload, tag, int(status)] += requests
        totals.total_ms += total_ms
        totals.slowest_ms = max(totals.slowest_ms, slowest_ms)
