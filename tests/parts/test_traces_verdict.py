"""From a real Jaeger, fed by a real Envoy and two versions of a service, to evidence about each operation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from test_jaeger import OPERATIONS, SPECS, ask, now

from canaryd.adapters.jaeger import JaegerSource
from canaryd.demo.lab import Lab
from canaryd.demo.processes import wait_until
from canaryd.model import ArmCounts, Evidence, Finding, Phase, RolloutState, SpanEvidence, Stretch, Verdict
from canaryd.operations import Intake, Look, arms_of
from canaryd.policy import Canary, parse_canary
from canaryd.ports import TraceQuery
from canaryd.spanned import Spanned
from canaryd.stats import traces
from canaryd.stats.traces import Noise
from canaryd.tracer import Tracer

pytestmark = pytest.mark.envoy

ALIASES = ("api", "api-blue", "api-green")
STATE = RolloutState(stable="api-blue", canary="api-green", phase=Phase.PROGRESSING, step=0, weight=50)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, jaeger_binary: Path) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab"), SPECS, jaeger=jaeger_binary) as lab:
        lab.set_weights("api", {"api-blue": 50, "api-green": 50})
        yield lab


@pytest.fixture
def canary() -> Canary:
    return parse_canary(
        {
            "apiVersion": "canaryd.io/v1alpha1",
            "kind": "Canary",
            "metadata": {"name": "api"},
            "spec": {
                "workloads": {"pools": ["api-blue", "api-green"]},
                "route": {"envoyFile": {"path": "x"}},
                "metrics": [
                    {"name": "errors", "kind": "errors"},
                    {"name": "spans", "kind": "traces", "arms": {"stable": ["v1"], "canary": ["v2"]}},
                ],
            },
        }
    )


class Rollout:
    """Intervals of requests, each asked for beside the loop and taken in when it has come."""

    def __init__(self, lab: Lab, canary: Canary) -> None:
        self.lab, self.canary = lab, canary
        self.source = JaegerSource(lab.jaeger.url)
        self.tracer = Tracer(self.source)
        self.arms = arms_of(canary, STATE)
        self.held: SpanEvidence | None = None

    def interval(self, n: int, *, scored: bool = True) -> None:
        start = now()
        ask(self.lab, n)
        end = now()
        query = TraceQuery("api", "api", start, end, self.arms, aliases=ALIASES)
        wait_until(lambda: self._served(query) >= 2 * n, f"{n} requests in Jaeger", timeout=30, every=0.3)
        half = ArmCounts(present=True, requests=n / 2)
        look = Look(Stretch(start, end, half, half), scored)
        self._take([look])
        self.tracer.ask("api", [query])
        assert self.tracer.wait(timedelta(seconds=30))
        self._take([])

    def _served(self, query: TraceQuery) -> int:
        return len([s for s in self.source.find(query).spans if s.kind == "server" and s.service == "api"])

    def _take(self, looks: list[Look]) -> None:
        state = STATE if self.held is None else replace(STATE, evidence=Evidence(now(), spans=self.held))
        intake = Intake(self.canary, state, self.arms, looks, self.tracer.arrived("api"))
        for k in range(len(intake)):
            (intake.arrays,) = traces.update([intake.item(k)])
        self.held = intake.result()

    def finding(self) -> Finding:
        noise = Noise(np.ones((1, 2)), np.zeros((1, 2)), np.full((1, 2), 1e9), np.ones((1, 2)))
        found = Spanned.of([(self.held, self.canary.spec)], lambda _: noise)
        alarm = -np.log(self.canary.spec.alpha)
        assert found.each[0].alike
        return found.each[0].finding(Finding("spans", Verdict.INCONCLUSIVE, "spans"), alarm)


def test_one_operation_of_thirty_is_found_by_its_spans_and_a_healthy_canary_is_not(lab: Lab, canary: Canary) -> None:
    rollout = Rollout(lab, canary)
    try:
        for _ in range(2):
            rollout.interval(600, scored=False)
        rollout.interval(600)
        healthy = rollout.finding()
        assert healthy.toward_rollback < 1
        lab.behave("api-green", errors=0.95, only="/op-7")
        for _ in range(3):
            rollout.interval(600)
        found = rollout.finding()
        assert found.event == "GET /op-7 failed"
        assert found.toward_rollback == 1
        assert found.canary is not None
        assert found.canary > 0.2
        assert found.stable == 0
        assert rollout.held is not None
        followed = {f"GET {path}" for path in OPERATIONS} & set(rollout.held.operations)
        assert "GET /op-7" in followed
        assert len(followed) >= 25, "the rarest may find no place"
        assert rollout.held.waiting == ()
    finally:
        lab.behave("api-green", errors=0.0, only="")
        rollout.tracer.close()
