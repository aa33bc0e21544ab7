"""A service whose stretches are random but the same every time, and the evidence gathered from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import log
from typing import Any

import numpy as np

from canaryd.model import ArmCounts, Floats, Stretch
from canaryd.policy import Spec, parse_canary
from canaryd.simulation import traffic
from canaryd.stats.evidence import Arrays, Item, Rules, empty, update

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TEN = timedelta(seconds=10)


def spec(**given: Any) -> Spec:
    """A Canary's spec with steps of 5, 25 and 100 % and an interval of 10 s; any key can be given."""
    base = {
        "workloads": {"pools": ["a", "b"]},
        "route": {"envoyFile": {"path": "/etc/envoy/routes.yaml"}},
        "interval": "10s",
        "steps": [5, 25, 100],
    }
    return parse_canary(
        {
            "apiVersion": "canaryd.io/v1alpha1",
            "kind": "Canary",
            "metadata": {"name": "api"},
            "spec": {**base, **given},
        }
    ).spec


def rules(**given: Any) -> Rules:
    return Rules.of(spec(**given))


RULES = rules()
FOUR_EDGES = np.array([25.0, 50.0, 100.0, 250.0])


@dataclass
class Service:
    """Draws stretches of 0.4 % failures and lognormal durations around 45 ms; `young`: share of warming canary pods."""

    edges: Floats
    seed: int = 1
    rps: float = 120.0
    at: datetime = START
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def arm(self, n: int, p: float, slower: float, young: float) -> ArmCounts:
        young_n = int(self.random.binomial(n, young))
        bad, young_bad = int(self.random.binomial(n - young_n, p)), int(self.random.binomial(young_n, p))
        ms = self.random.lognormal(log(45 * slower), 0.6, n - young_n)
        return ArmCounts(
            present=True,
            requests=float(n),
            failures=float(bad + young_bad),
            young_requests=float(young_n),
            young_failures=float(young_bad),
            timed=float(n - young_n) if len(self.edges) else 0.0,
            slower=np.array([(ms > e).sum() for e in self.edges], dtype=np.float64),
        )

    def stretch(
        self, weight: float, p_c: float = 0.004, slower: float = 1.0, young: float = 0.0, seconds: float = 10.0
    ) -> Stretch:
        n = int(self.random.poisson(self.rps * seconds))
        n_c = int(self.random.binomial(n, weight))
        start, self.at = self.at, self.at + timedelta(seconds=seconds)
        stable, canary = self.arm(n - n_c, 0.004, 1.0, 0.0), self.arm(n_c, p_c, slower, young)
        return Stretch(start=start, end=self.at, stable=stable, canary=canary, edges=self.edges)


Plan = Sequence[tuple[Stretch, float, bool]]  # stretch, weight, scored


def history(service: Service, intervals: int = 6) -> list[tuple[Stretch, float, bool]]:
    return [(service.stretch(0.0), 0.0, False) for _ in range(intervals)]


def run(plan: Plan, edges: Floats = FOUR_EDGES, by: Rules = RULES, arrays: Arrays | None = None) -> Arrays:
    pods = [tuple(sorted({p for s, *_ in plan for p in getattr(s, arm).pods})) for arm in ("stable", "canary")]
    now = arrays or empty(edges, len(by.gates), *map(len, pods))
    for stretch, weight, scored in plan:
        (now,) = update([Item(now, edges, by, stretch, weight, scored, (None, None), *pods)])
    return now


def simulated(seed: int = 1, intervals: int = 100, past: int = 20, weight: float = 0.25) -> Plan:
    """Realistic traffic of 10 stable and 10 canary pods with all of Istio's edges; the canary is as good as stable."""
    pods = {"stable_pods": 10, "canary_pods": round(10 / weight)}  # 10 run at the weight
    noise = {"pods_failures": 0.05, "pods_latency": 0.03, "shock_failures": 0.3, "shock_latency": 0.1}
    scenario = traffic.Scenario(**pods, **noise)
    service = traffic.Service(scenario, 1, seed)
    plan = []
    for i in range(past + intervals):
        share = weight if i >= past else 0.0
        o = service.step(share)
        start = START + i * timedelta(seconds=scenario.interval)
        arms = (arm_of("s", o.n_s[0], o.x_s[0], o.h_s[0]), arm_of("c", o.n_c[0], o.x_c[0], o.h_c[0]))
        end = start + timedelta(seconds=scenario.interval)
        plan.append((Stretch(start, end, *arms, edges=traffic.EDGES_MS), share, share > 0))
    return plan


def arm_of(name: str, n: Floats, x: Floats, h: Floats) -> ArmCounts:
    """One arm of simulated pods: n requests, x failures (pods,), h durations per bucket (pods, edges + 1)."""
    ran = n > 0
    n, x, h = n[ran], x[ran], h[ran]
    slower = h.sum(-1, keepdims=True) - np.cumsum(h, -1)[:, :-1]
    return ArmCounts(
        present=True,
        requests=float(n.sum()),
        failures=float(x.sum()),
        timed=float(h.sum()),
        slower=slower.sum(0),
        pods=tuple(f"{name}-{i}" for i in range(len(n))),
        pod_requests=n,
        pod_failures=x,
        pod_timed=h.sum(-1),
        pod_slower=slower,
    )
