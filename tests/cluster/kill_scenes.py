"""Quick rollouts, one after the other under load, and hands that kill, freeze and restart what they depend on."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from bench import ApiError, Bench, BenchPrometheus
from bench.load import Totals
from history_checker import Report, check
from release_scenes import REPLICAS, SETTLED, Canaryd, Replica, Service, install, service, settings

from canaryd.demo.processes import LabError, wait_until

NAME = "victim"
STEPS = (20, 50)
RPS = 50.0
PODS = 2
PATIENCE = 240.0  # seconds for one rollout, however often it is disturbed

QUICK: Mapping[str, Any] = {
    "steps": [{"weight": w, "bake": "2s"} for w in STEPS],
    "interval": "2s",
    "warmUp": "1s",
    "budget": {"share": "50%"},
    "metrics": [{"name": "errors", "kind": "errors", "tolerance": "10pp", "margin": "40pp"}],
}


@contextmanager
def quick(
    bench: Bench,
    prometheus: BenchPrometheus,
    directory: Path,
    *,
    replicas: int = 2,
    kubeconfig: Path | None = None,
    **cluster: Any,
) -> Iterator[Canaryd]:
    """canaryd on counters that are read every second, with quick leases."""
    install(bench)
    prometheus.configure(scrape="1s")
    wanted = settings(prometheus, scrape="1s", **cluster)
    wanted["metrics"]["prometheus"]["lag"] = "2s"
    wanted["cluster"]["lease"] = {"duration": "3s", "namespace": "canaryd", **cluster.get("lease", {})}
    whole = Canaryd(bench, directory, wanted, kubeconfig)
    try:
        for identity in REPLICAS[:replicas]:
            whole.start(identity)
        whole.leader()
        yield whole
    finally:
        whole.stop()
        prometheus.configure()


@pytest.fixture(scope="session")
def victim(mesh: Bench, prometheus: BenchPrometheus, tmp_path_factory: pytest.TempPathFactory) -> Service:
    """A service in canaryd's care that every test here may disturb; the session's only one, for adoption takes long."""
    with quick(mesh, prometheus, tmp_path_factory.mktemp("victim"), replicas=1):
        one = service(mesh, NAME, rps=0, replicas=PODS, **QUICK)
        one.adopted()
        return one


_outages: list[datetime] = []


@contextmanager
def outage() -> Iterator[None]:
    """The API server is killed inside this block, and what was in its hands then may be missing in its log."""
    _outages.append(datetime.now(UTC))
    yield


def history(one: Service) -> Report:
    """All that canaryd wrote for it, replayed. Raises AssertionError with each step that should not be there."""
    names = (one.name, f"{one.name}-stable")
    report = check((r for r in one.bench.audit.requests() if r.name in names), outages=_outages)
    print(report)
    assert report.violations == []
    return report


_tags = itertools.count(2)


@dataclass
class Release:
    """One release, under load; what became of it."""

    status: Mapping[str, Any] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    seconds: float = 0.0


@contextmanager
def release(one: Service, moves: Moves, words: str = "", *, ends: str = "Succeeded") -> Iterator[Release]:
    """A release to be disturbed inside: it must end like this, with no request lost, and by legal steps alone."""
    load = one.bench.load(RPS, f"{one.name}.shop.svc.cluster.local")
    load.await_requests(int(RPS))
    made, began, before = Release(), time.monotonic(), one.status().get("rollout", "")
    one.app.set_image(f"demo/app:v{next(_tags)}{words}")
    moves.wait_for("Waiting")
    yield made
    patiently(lambda: wait_until(lambda: one.status().get("rollout") != before, "a rollout", PATIENCE, 0.2))
    made.status = one.until(*SETTLED, patience=PATIENCE)
    made.seconds = time.monotonic() - began
    made.totals = load.stop()
    print(f"{made.status['phase']} after {made.seconds:.0f} s; {dict(made.totals.by_status)}")
    assert made.status["phase"] == ends, made.status["message"]
    assert made.totals.lost == []
    if not words:
        assert made.totals.failures == []
    history(one)


@dataclass
class Rollouts:
    """Releases of one service, one after the other, in a thread of its own; now and then a bad one."""

    service: Service
    bad_every: int = 0
    done: list[tuple[str, str, float]] = field(default_factory=list)  # tag, phase, seconds
    failed: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> Rollouts:
        self._thread = threading.Thread(target=self._run, name=f"rollouts-{self.service.name}", daemon=True)
        self._thread.start()
        return self

    def finish(self) -> None:
        """Wait for the one under way."""
        self._stop.set()
        assert self._thread is not None
        self._thread.join(2 * PATIENCE)
        assert not self.failed, self.failed
        assert not self._thread.is_alive()

    def count(self, phase: str) -> int:
        return sum(1 for _, ended, _ in self.done if ended == phase)

    def _run(self) -> None:
        number = 0
        try:
            while not self._stop.is_set():
                number += 1
                bad = self.bad_every and number % self.bad_every == 0
                words, end = ("-err60", "RolledBack") if bad else ("", "Succeeded")
                self._one(f"v{next(_tags)}{words}", end)
        except (AssertionError, LabError, OSError, ApiError) as e:  # told by finish()
            self.failed = f"{type(e).__name__}: {e}"

    def _one(self, tag: str, wanted: str) -> None:
        one, began = self.service, time.monotonic()
        before = one.status().get("rollout", "")
        patiently(lambda: one.app.set_image(f"demo/app:{tag}"))
        patiently(lambda: wait_until(lambda: one.status().get("rollout") != before, f"rollout of {tag}", PATIENCE, 0.2))
        status = one.until(*SETTLED, patience=PATIENCE)
        self.done.append((tag, str(status["phase"]), time.monotonic() - began))
        if status["phase"] != wanted:
            raise AssertionError(f"{tag} is {status['phase']}: {status['message']}")


def patiently(do: Any, patience: float = 60.0) -> Any:
    """Again while the API server does not answer."""
    end = time.monotonic() + patience
    while True:
        try:
            return do()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


class Moves:
    """Told by a watch, at once: the phase, step or weight of a Canary has been saved anew."""

    def __init__(self, bench: Bench, name: str) -> None:
        self._bench, self._name = bench, name
        self._moved = threading.Condition()
        self._place: tuple[str, str, int] = "", "", 0
        threading.Thread(target=self._run, name=f"moves-{name}", daemon=True).start()

    def wait(self, patience: float) -> bool:
        """True as soon as there is a move; False when there is none in time."""
        with self._moved:
            return self._moved.wait(patience)

    def wait_for(self, phase: str, step: str = "", patience: float = PATIENCE) -> None:
        """Until it is in this phase (and at this step: "2/2"). Raises AssertionError when it is not in time."""
        with self._moved:
            there = self._moved.wait_for(lambda: self._is(phase, step), patience)
            assert there, f"{self._name} is {self._place}, not {phase} {step}"

    def _is(self, phase: str, step: str) -> bool:
        return self._place[0] == phase and step in ("", self._place[1])

    def _run(self) -> None:
        client = self._bench.plane.new_client()
        while True:
            try:
                for event in client.watch("canaries", "shop", seconds=600):
                    self._see(event["object"])
            except (OSError, KeyError):  # the server is gone, or says that it has forgotten
                time.sleep(0.1)

    def _see(self, found: dict[str, Any]) -> None:
        status = found.get("status") or {}
        if found["metadata"].get("name") != self._name:
            return
        place = status.get("phase", ""), status.get("step", ""), (status.get("weight") or {}).get("desired", 0)
        if place != self._place:
            with self._moved:
                self._place = place
                self._moved.notify_all()


@dataclass
class Killer:
    """Kills one replica after the other, at random moments or right after a save, and starts each again."""

    running: Canaryd
    moves: Moves
    seed: int
    kills: int = 0
    terms: int = 0
    aimed: int = 0
    leaders: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def strike(self, *, longest: float = 4.0) -> None:
        """One kill -9, mostly of the leader and mostly in the moment of a move; now and then a SIGTERM."""
        how = self.random.random()
        leader = self._await_leader() if how < 0.85 else None
        if leader is not None and how < 0.65 and self.moves.wait(3 * longest):
            self.aimed += 1
            time.sleep(self.random.uniform(0.0, 0.01))
        else:
            time.sleep(self.random.uniform(0.1, longest))
        alive = [r for r in self.running.replicas if r.child.running]
        victim = leader or self.random.choice(alive)
        self.leaders += victim is leader
        if 0.65 <= how < 0.75:
            self.terms += 1
            victim.child.ask_to_stop()
        else:
            self.kills += 1
            victim.child.kill()
        self.running.start(victim.identity)

    def _await_leader(self) -> Replica | None:
        """Whoever leads; None when nobody does for a while. To ask at the last moment takes longer than what is hit."""
        end = time.monotonic() + 10
        while time.monotonic() < end:
            for one in self.running.replicas:
                if one.child.running and one.leads():
                    return one
            time.sleep(0.1)
        return None


def await_other(running: Canaryd, one: Replica, patience: float = 30.0) -> tuple[Replica, float]:
    """Another replica than this one leads: it, and after how many seconds."""
    began = time.monotonic()
    found: list[Replica] = []

    def look() -> bool:
        found[:] = [r for r in running.replicas if r is not one and r.child.running and r.leads()]
        return bool(found)

    wait_until(look, "another replica leads", patience)
    return found[0], time.monotonic() - began
