"""Made-up services as raw per-pod counters of the past: OpenMetrics text that promtool writes into blocks.

Traffic comes from canaryd.simulation.traffic in steps of 5 s; every pod is scraped each 15 s at a phase of its arm, so
that a sample shows what had been counted at that very moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np

from canaryd.simulation.traffic import EDGES_MS, Interval, Scenario, Service

STEP = 5  # seconds of one step of traffic
SCRAPE = 3  # steps between two scrapes of one pod
HISTORY = 600  # seconds of stable alone
STEPS = ((600, 5), (900, 10), (1200, 25), (1500, 50))
REQUESTS, BUCKETS = "istio_requests_total", "istio_request_duration_milliseconds_bucket"
WEIGHT = "canaryd_weight"
USUAL_EDGES = tuple(range(2, 13))  # 5 ms to 10 s

Tweak = Callable[[int, Interval], Interval]
Sampled = Callable[[str, int, int], bool]  # arm, pod, second: is there a sample?


@dataclass(frozen=True, kw_only=True)
class Story:
    """One service in one window. `seconds` count from the start of its history."""

    name: str
    scenario: Scenario
    seed: int = 1
    weights: Sequence[tuple[int, int]] = STEPS  # the schedule: from second, percent
    served: Sequence[tuple[int, int]] | None = None  # what the split really was, where it was not the schedule
    seconds: int = 1800
    phase: Mapping[str, int] = field(default_factory=lambda: {"stable": 0, "canary": 0})  # steps
    outages: Sequence[tuple[int, int]] = ()  # of both arms: from second, to second
    resets: Mapping[tuple[str, int], int] = field(default_factory=dict)
    changes: Mapping[int, Mapping[str, float]] = field(default_factory=dict)  # of the scenario, from a second on
    tweak: Tweak = lambda second, counts: counts
    sampled: Sampled = lambda arm, pod, second: True
    replicas: Sequence[Mapping[str, str]] = ({},)
    edges: Mapping[str, Sequence[int]] = field(default_factory=dict)  # arm -> which of EDGES_MS
    falling: Sequence[int] = ()  # seconds at which the canary's buckets lose a fifth of their counts
    tells_weight: bool = False  # as canaryd_weight{kind="configured"}, each 15 s

    def weight(self, second: int) -> int:
        rows = self.weights if self.served is None else self.served
        return next((w for at, w in reversed(rows) if at <= second), 0)


def scenario(**changes: object) -> Scenario:
    """Five stable pods, up to four of the canary, 500 requests a second, 0.1 % of them failing."""
    base = Scenario(rps=500.0, stable_pods=5, canary_pods=4, interval=float(STEP), daily=0.0)
    return replace(base, **changes)  # type: ignore[arg-type]


class _Pod:
    """One pod's counters."""

    def __init__(self, story: Story, arm: str, number: int) -> None:
        self.ok, self.failed, self.durations = 0.0, 0.0, np.zeros(len(EDGES_MS) + 1)
        workload = f"{story.name}-{'a' if arm == 'stable' else 'b'}"
        name = f"{workload}-{number}"
        shared = {
            "reporter": "destination",
            "destination_workload": workload,
            "destination_workload_namespace": "default",
            "pod": name,
            "instance": f"{name}:15020",
        }
        edges = [*story.edges.get(arm, USUAL_EDGES), len(EDGES_MS)]
        bounds = [*(repr(float(e)) for e in EDGES_MS), "+Inf"]
        self.heads: list[tuple[list[str], list[tuple[int, str]]]] = []
        for replica in story.replicas:
            inner = ",".join(f'{k}="{v}"' for k, v in {**shared, **replica}.items())
            codes = [f'{REQUESTS}{{{inner},response_code="{c}",response_flags="-"}}' for c in ("200", "503")]
            self.heads.append((codes, [(i, f'{BUCKETS}{{{inner},le="{bounds[i]}"}}') for i in edges]))
        if not story.edges.get(arm, USUAL_EDGES):  # no histogram at all
            self.heads = [(codes, []) for codes, _ in self.heads]

    def reset(self) -> None:
        self.ok, self.failed, self.durations = 0.0, 0.0, np.zeros(len(EDGES_MS) + 1)

    def count(self, n: float, x: float, h: np.ndarray) -> None:
        self.ok, self.failed, self.durations = self.ok + n - x, self.failed + x, self.durations + h

    def lines(self, at: float, requests: list[str], buckets: list[str]) -> None:
        within = np.cumsum(self.durations)
        for (ok, failed), edges in self.heads:
            requests.append(f"{ok} {self.ok:.0f} {at:.3f}")
            if self.failed:  # born with the first failure
                requests.append(f"{failed} {self.failed:.0f} {at:.3f}")
            buckets.extend(f"{head} {within[i]:.0f} {at:.3f}" for i, head in edges)


def _moments(story: Story) -> Iterator[tuple[int, Interval]]:
    """(second at the end of a step, counts of the step)."""
    service = Service(story.scenario, 1, story.seed)
    for second in range(STEP, story.seconds + STEP, STEP):
        for at, changes in story.changes.items():
            if second - STEP == at:
                service.s = replace(service.s, **changes)  # type: ignore[arg-type]
        if any(a < second <= b for a, b in story.outages):
            service.outage[:] = 2.0  # one is left when the step begins
        counts = service.step(story.weight(second - STEP) / 100)
        yield second, story.tweak(second, counts)


def write(story: Story, start: datetime, requests: list[str], buckets: list[str], weights: list[str]) -> None:
    """Append the samples of a story that begins at `start`."""
    began = start.timestamp()
    if story.tells_weight:
        head = f'{WEIGHT}{{canary="{story.name}",kind="configured"}}'
        weights.extend(f"{head} {story.weight(s)} {began + s:.3f}" for s in range(0, story.seconds, 15))
    pods = {
        "stable": [_Pod(story, "stable", i) for i in range(story.scenario.stable_pods)],
        "canary": [_Pod(story, "canary", i) for i in range(story.scenario.canary_pods)],
    }
    for second, counts in _moments(story):
        rows = {"stable": (counts.n_s, counts.x_s, counts.h_s), "canary": (counts.n_c, counts.x_c, counts.h_c)}
        alive = {"stable": np.ones(len(pods["stable"])), "canary": counts.age[0] >= 0}
        for arm, (n, x, h) in rows.items():
            for i, pod in enumerate(pods[arm]):
                if story.resets.get((arm, i)) == second:
                    pod.reset()
                if arm == "canary" and second in story.falling:
                    pod.durations = np.floor(0.8 * pod.durations)
                pod.count(n[0, i], x[0, i], h[0, i])
                due = (second // STEP) % SCRAPE == story.phase.get(arm, 0)
                if due and alive[arm][i] and story.sampled(arm, i, second):
                    pod.lines(began + second, requests, buckets)


def document(stories: Sequence[Story], start: datetime) -> Iterator[str]:
    """All stories as one OpenMetrics text, each in the same window."""
    requests: list[str] = []
    buckets: list[str] = []
    weights: list[str] = []
    for story in stories:
        write(story, start, requests, buckets, weights)
    for name, lines in ((REQUESTS, requests), (BUCKETS, buckets), (WEIGHT, weights)):
        yield f"# TYPE {name} unknown\n"
        yield "\n".join(lines) + "\n"
    yield "# EOF\n"
