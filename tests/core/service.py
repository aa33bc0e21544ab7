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
    now = arrays or empty(edges, len(by.gates))
    for stretch, weight, scored in plan:
        (now,) = update([Item(now, edges, by, stretch, weight, scored)])
    return now
