"""A laboratory with a real `canaryd run` in it, documents quick enough for tests, and ways to look at what happened."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from canaryd.adapters.sqlite_store import SqliteStore
from canaryd.demo.lab import Lab, PoolSpec, ServiceSpec
from canaryd.demo.processes import Child, LabError, Nursery, wait_until
from canaryd.demo.site import Site
from canaryd.model import DecisionKind, Phase, Record, Release, RolloutState
from canaryd.stats.evidence import clock

WEIGHTS = (20, 50, 100)
RPS = 200.0
PATIENCE = 45.0  # seconds; only a broken rollout takes that long


def service(name: str, **canary: Any) -> ServiceSpec:
    """Two pools, blue (v1) and green (v2), quick and without errors unless told otherwise."""
    quick = {"errors": 0.0, "latency_ms": 3.0, "latency_sigma": 0.2}
    return ServiceSpec(
        name, (PoolSpec(f"{name}-blue", "v1", **quick), PoolSpec(f"{name}-green", "v2", **{**quick, **canary}))
    )


def spec(lab: Lab, name: str, **changes: Any) -> dict[str, Any]:
    """A plan of three steps that passes in some six seconds; `changes` are keys of the spec."""
    return {
        "workloads": {"pools": [{"name": p, "health": lab.health_url(p)} for p in (f"{name}-blue", f"{name}-green")]},
        "route": {"envoyFile": {"path": str(lab.rds_path(name))}},
        "steps": [{"weight": w, "bake": "1s"} for w in WEIGHTS],
        "metrics": [{"name": "errors", "kind": "errors"}],
        "budget": {"share": "5%"},
        "interval": "500ms",
        "warmUp": "0s",
        **changes,
    }


def document(name: str, body: dict[str, Any]) -> str:
    """The text of a Canary document; JSON is YAML."""
    head = {"apiVersion": "canaryd.io/v1alpha1", "kind": "Canary", "metadata": {"name": name}}
    return json.dumps({**head, "spec": body}, indent=1)


class Scene:
    """One canaryd on the services of a laboratory."""

    def __init__(self, lab: Lab, directory: Path, nursery: Nursery, section: str) -> None:
        self.lab, self.nursery = lab, nursery
        self.site = Site(directory, nursery, section)
        self._store: SqliteStore | None = None
        self._daemon: Child | None = None

    # ── canaryd ──────────────────────────────────────────────────────────────────────────────────────────────

    def canary(self, name: str, **changes: Any) -> None:
        """Put a document into place."""
        self.site.write(name, document(name, spec(self.lab, name, **changes)))

    def run(self) -> Child:
        """Start canaryd (again) and wait until it is at work."""
        self._daemon = self.site.run()
        if self._store is None:
            self._store = self.site.open_store(self._daemon)
        self.until(lambda: self.page("/readyz") == (200, "leading\n"), "canaryd to lead")
        return self._daemon

    @property
    def daemon(self) -> Child:
        assert self._daemon is not None
        return self._daemon

    @property
    def store(self) -> SqliteStore:
        assert self._store is not None
        return self._store

    def close(self) -> None:
        if self._daemon is not None and self._daemon.running:
            self._daemon.stop()
        if self._store is not None:
            self._store.close()

    def page(self, path: str) -> tuple[int, str]:
        """Status 0 when nobody answers."""
        try:
            return self.site.page(path)
        except OSError as e:
            return 0, str(e)

    def log(self) -> list[dict[str, Any]]:
        """What canaryd wrote, oldest first; every line is JSON."""
        return [json.loads(line) for line in self.daemon.log.read_text().splitlines()]

    # ── what people do ───────────────────────────────────────────────────────────────────────────────────────

    def release(self, name: str, revision: str) -> None:
        """As `canaryd start` does, without a process."""
        self.store.release(name, Release(revision=revision, by="anna"))

    def say(self, *words: str) -> tuple[int, str]:
        """Exit code and what the command printed on either stream."""
        done = self.site.command(*words)
        return done.returncode, done.stdout + done.stderr

    # ── what happened ────────────────────────────────────────────────────────────────────────────────────────

    def state(self, name: str) -> RolloutState:
        state = self.store.load(name).state
        return state if state is not None else RolloutState()

    def saved(self, name: str) -> int:
        """A number that rises with every save."""
        return self.store.load(name).version

    def weight(self, name: str) -> int:
        """Percent for green, as the route file says."""
        return weights(self.lab.rds_path(name))[f"{name}-green"]

    def until_split(self, name: str, blue: int, green: int) -> None:
        """The decision is saved first and then routed."""
        wanted = {f"{name}-blue": blue, f"{name}-green": green}
        self.until(lambda: weights(self.lab.rds_path(name)) == wanted, f"the split {blue}/{green}", timeout=5)

    def records(self, name: str, *kinds: DecisionKind) -> list[Record]:
        """Oldest first."""
        return list(reversed(self.store.records(name, limit=100_000, kinds=kinds)))

    def told(self, name: str) -> list[str]:
        """Kinds of what people were told, in order, after everything owed was delivered."""
        self.until(lambda: not self.store.owed(), "everything to be told")
        return [line["kind"] for line in self.log() if line.get("event") == "decision" and line["canary"] == name]

    def steps(self, name: str) -> list[tuple[str, int]]:
        """Phase and weight of each transition of the present rollout."""
        return [(t.phase.value, t.weight) for t in self.state(name).history]

    def until(self, probe: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
        """Raises LabError with the end of canaryd's log."""
        try:
            return wait_until(probe, what, timeout=timeout, every=0.05)
        except LabError as e:
            raise AssertionError(f"{e}\n{self.daemon.last_words(30) if self._daemon else ''}") from e

    def until_phase(self, name: str, *phases: Phase, timeout: float = PATIENCE) -> RolloutState:
        def reached() -> bool:
            return self.state(name).phase in phases

        self.until(reached, f"{name} to be {' or '.join(phases)} ({self.state(name).sentence})", timeout)
        return self.state(name)

    def until_weight(self, name: str, weight: int, timeout: float = PATIENCE) -> RolloutState:
        self.until(lambda: self.state(name).weight == weight, f"{name} to be at {weight} %", timeout)
        return self.state(name)

    def ticks(self, name: str, n: int) -> None:
        """Wait for n more saved looks."""
        seen = [self.state(name).ticked]

        def passed() -> bool:
            now = self.state(name).ticked
            if now != seen[-1]:
                seen.append(now)
            return len(seen) > n

        self.until(passed, f"{n} ticks")

    def until_load_ran(self, seconds: float) -> None:
        """Since it was started."""

        def ran() -> bool:
            stats = self.lab.load_stats()
            return stats is not None and stats.elapsed_s > seconds

        self.until(ran, f"{seconds:g} s of load")

    def harmed(self, name: str) -> tuple[float, float]:
        """Canary requests and failures in the evidence."""
        state = self.state(name)
        if state.evidence is not None and state.evidence.arrays:
            return clock(state.evidence.arrays, "harmed"), clock(state.evidence.arrays, "failures")
        body = state.latest["harmed"]
        return body["requests"], body["failures"]


def weights(route: Path) -> dict[str, int]:
    """Cluster → percent in a route file; fails when the file is no valid YAML or has no split."""
    found: dict[str, int] = {}

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            for cluster in (node.get("weighted_clusters") or {}).get("clusters", []):
                found[cluster["name"]] = int(cluster["weight"])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(YAML(typ="safe").load(route.read_text()))
    assert sum(found.values()) == 100, found
    return found


@contextmanager
def under_load(lab: Lab, *services: str, rps: float = RPS) -> Iterator[None]:
    """Requests to these services as long as the block runs."""
    lab.start_load(duration=240, services=services, rps=rps)
    try:
        yield
    finally:
        if lab.pids().get("load"):
            lab.stop_load()


def memory_mb(pid: int) -> float:
    """Resident memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_seconds(pid: int) -> float:
    """Processor time used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pause(seconds: float) -> None:
    """Only where the story itself is about time passing."""
    time.sleep(seconds)
