"""Rollouts in memory with a metric of kind traces: a trace source beside the tick, or a collector's counters."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import count
from typing import Any

import numpy as np
import pytest
from world import START, World, canary

from canaryd import tally
from canaryd.adapters.memory import MemoryTraces
from canaryd.codec import decode, encode
from canaryd.hindsight.replay import replay
from canaryd.model import Arm, SpanCounts, SpanEvidence, Verdict
from canaryd.ports import TraceAnswer, TraceQuery
from canaryd.reconcile import Reconciler
from canaryd.spans import Span, nanoseconds
from canaryd.stats import traces
from canaryd.stats.traces import Item

OPERATIONS = ("GET /cart", "GET /items", "POST /pay")
METRICS = [{"name": "errors", "kind": "errors"}, {"name": "latency", "kind": "latency"}]


PATIENT = [{"weight": 20, "bake": "2h"}]


def traced(steps: Any = (20, 100), **more: Any) -> Any:
    return canary(metrics=[*METRICS, {"name": "spans", "kind": "traces", **more}], steps=list(steps))


class Hanging(MemoryTraces):
    """Answers nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def find(self, query: TraceQuery) -> TraceAnswer:
        self.go_on.wait(20)
        return super().find(query)


class Traced(World):
    """Each interval 60 requests of each operation have spans, shared between the arms as the weight says.

    `failing`: share of failed spans of an operation in the canary; stable's is 1 %. `sampled`: how many times as many
    of the canary's requests have spans. `new`: an operation of the canary alone.
    """

    def __init__(self, by: Any, source: MemoryTraces | None = None, *, counted: bool = False) -> None:
        super().__init__(by, rps=100.0)
        self.source = source
        self.counted = counted
        self.failing: dict[str, float] = {}
        self.slower: dict[str, float] = {}
        self.sampled = 1.0
        self.new = ""
        self.ids = count(1)
        self.draw = np.random.default_rng(7)
        self.ports = replace(self.ports, traces=source)
        self.reconciler = Reconciler(self.ports)

    def traffic(self, seconds: float, *, freeze: bool = True) -> None:
        c = self.canaries[0]
        stable, other = c.spec.workloads.names
        weight = (self.router.view(c.key, c.spec.route, stable, other).weight or 0) / 100
        for operation in (*OPERATIONS, *([self.new] if self.new else ())):
            n = 60
            canary_n = self.draw.binomial(n, weight)
            for arm, many in ((Arm.STABLE, n - canary_n), (Arm.CANARY, round(canary_n * self.sampled))):
                if operation != self.new or arm is Arm.CANARY:
                    self._spans(operation, arm, int(many), seconds)
        super().traffic(seconds, freeze=freeze)

    def _spans(self, operation: str, arm: Arm, many: int, seconds: float) -> None:
        failing = self.failing.get(operation, 0.01) if arm is Arm.CANARY else 0.01
        slower = self.slower.get(operation, 1.0) if arm is Arm.CANARY else 1.0
        for failed, ms, at in zip(
            self.draw.random(many) < failing,
            self.draw.lognormal(np.log(40), 0.5, many) * slower,
            np.sort(self.draw.random(many)) * seconds,
            strict=True,
        ):
            pod = "api-a-1" if arm is Arm.STABLE else "api-b-1"
            if self.counted:
                self.metrics.span("api", operation, float(ms), failed=bool(failed), service_version=pod[:5])
            if self.source is not None:
                id_ = f"{next(self.ids):016x}"
                start = nanoseconds(self.now + timedelta(seconds=float(at))) + 1000
                self.source.put(
                    Span(id_, id_, "", "api", operation, "server", start, float(ms), bool(failed), arm, pod[:5], pod)
                )

    def tick(self, *, measure: bool = True) -> list[Any]:
        out = super().tick(measure=measure)
        if self.reconciler.tracer is not None and not isinstance(self.source, Hanging):
            assert self.reconciler.tracer.wait(timedelta(seconds=20))
        return out

    def roll(self, most: int = 120) -> Traced:
        for _ in range(4):
            self.traffic(10)
        self.start()
        self.turn()
        self.until("Succeeded", "RolledBack", most=most)
        return self

    def held(self) -> SpanEvidence:
        evidence = self.state().evidence
        assert evidence is not None
        assert evidence.spans is not None
        return evidence.spans

    def finding(self, name: str = "spans") -> dict[str, Any]:
        """The last one that was told while the rollout was under way."""
        bodies = (r.body for r in self.store.records("api", limit=1000))
        return next(f for body in bodies for f in body["findings"] if f["metric"] == name)


@pytest.fixture(params=["a-trace-source", "spanmetrics"])
def world(request: pytest.FixtureRequest) -> Traced:
    counted = request.param == "spanmetrics"
    return Traced(traced(), None if counted else MemoryTraces(), counted=counted)


def differences(world: Traced) -> list[Sequence[str]]:
    """Of every look, decided once more without any trace source."""
    found = list(replay(world.canaries[0], world.metrics, world.store.records("api", limit=10_000), "api-1"))
    assert len(found) >= 3
    return [one.differences for one in found if one.differences]


# ── what it decides ──────────────────────────────────────────────────────────────────────────────────────────


def test_one_operation_that_fails_rolls_back_though_no_other_metric_shows_it(world: Traced) -> None:
    world.failing["POST /pay"] = 0.35
    world.roll()
    assert world.state().phase == "RolledBack"
    record = next(r for r in world.store.records("api", limit=1000) if r.kind == "rollback")
    assert record.body["decisive"] == "spans"
    assert "spans: POST /pay failed" in record.sentence
    assert "Not the cause: errors, latency" in record.sentence
    finding = next(f for f in record.body["findings"] if f["metric"] == "spans")
    assert finding["verdict"] == "regressed"
    assert finding["canary"] > 0.2
    assert finding["stable"] < 0.03
    assert finding["canaryN"] > 10
    assert 0 < finding["low"] < finding["difference"] < finding["high"]
    assert differences(world) == []


def test_one_operation_that_is_slow_rolls_back(world: Traced) -> None:
    world.slower["GET /items"] = 4.0
    world.roll()
    assert world.state().phase == "RolledBack"
    assert "GET /items slower than" in world.finding()["event"]


def test_a_good_canary_is_promoted_and_its_spans_hold_nothing_up(world: Traced) -> None:
    world.roll()
    assert world.state().phase == "Succeeded"
    assert world.finding()["verdict"] == "inconclusive"
    assert world.finding()["towardStep"] == 1
    assert differences(world) == []


def test_arms_that_are_sampled_differently_are_refused_and_it_is_said(world: Traced) -> None:
    world.failing["POST /pay"] = 0.35
    world.sampled = 6.0
    world.roll()
    assert world.state().phase == "Succeeded"
    finding = world.finding()
    assert finding["verdict"] == "blind"
    assert "refused:" in finding["note"]
    assert "of stable's requests have spans" in finding["note"]


def test_an_operation_that_only_the_canary_has_is_told(world: Traced) -> None:
    world.new = "POST /v2/pay"
    world.roll()
    assert world.state().phase == "Succeeded"
    assert "only the canary has POST /v2/pay" in world.finding()["note"]


def test_an_operation_that_the_canary_no_longer_has_is_told(world: Traced) -> None:
    original = world._spans

    def without(operation: str, arm: Arm, many: int, seconds: float) -> None:
        if not (operation == "GET /cart" and arm is Arm.CANARY):
            original(operation, arm, many, seconds)

    world._spans = without  # type: ignore[method-assign]
    world.roll()
    assert "the canary has no span of GET /cart" in world.finding()["note"]


def test_the_counters_of_a_collector_are_preferred_and_kept_to() -> None:
    world = Traced(traced(PATIENT), MemoryTraces(), counted=True)
    world.traffic(40)
    world.start()
    world.turn(6)
    assert world.held().source == "spanmetrics"
    assert world.source is not None
    assert not world.source.asked


def test_a_collector_that_starts_again_loses_and_invents_nothing() -> None:
    world = Traced(traced(PATIENT), counted=True)
    world.traffic(40)
    world.start()
    world.turn(6)
    world.metrics.restart("collector")
    world.turn(4)
    held = world.held()
    assert traces.clock(held.arrays, "spans_s") <= 3 * 60 * 10
    assert world.state().phase == "Progressing"


# ── slow, wrong, dead ────────────────────────────────────────────────────────────────────────────────────────


def test_a_trace_source_that_hangs_makes_traces_blind_and_nothing_late() -> None:
    source = Hanging()
    try:
        world = Traced(traced(), source)
        began = time.monotonic()
        world.roll()
        assert time.monotonic() - began < 15
        assert world.state().phase == "Succeeded"
        finding = world.finding()
        assert finding["verdict"] == "blind"
        assert "spans have not come in time" in finding["note"]
        verdicts = {r.body["verdict"] for r in world.store.records("api", limit=1000)}
        assert "blind" not in verdicts
        assert differences(world) == []
    finally:
        source.go_on.set()
        world.reconciler.close()


def test_a_trace_source_that_fails_is_named_and_asked_again_when_it_answers() -> None:
    source = MemoryTraces()
    world = Traced(traced(PATIENT), source)
    world.traffic(40)
    world.start()
    source.fail("jaeger: connection refused")
    world.turn(12)
    assert "connection refused" in world.finding()["note"]
    assert world.finding()["verdict"] == "blind"
    source.heal()
    world.turn(8)
    assert world.finding()["verdict"] == "inconclusive"
    assert traces.clock(world.held().arrays, "intervals") > 0


def test_truncated_spans_are_no_evidence() -> None:
    world = Traced(traced(), MemoryTraces(most=20))
    world.failing["POST /pay"] = 0.5
    world.roll()
    assert world.state().phase == "Succeeded"
    assert "truncated" in world.finding()["note"]
    assert world.finding()["verdict"] == "blind"


def test_without_any_spans_the_rollout_goes_on_and_says_so() -> None:
    world = Traced(traced())
    world.roll()
    assert world.state().phase == "Succeeded"
    assert world.finding()["verdict"] == "blind"


def test_required_spans_that_cannot_be_seen_hold_the_rollout_blind() -> None:
    world = Traced(traced(required=True))
    world.traffic(40)
    world.start()
    world.turn(30)
    assert world.state().phase == "Progressing"
    assert world.state().verdict is Verdict.BLIND
    assert world.weight() == 20
    assert "spans" in world.state().sentence


def test_required_spans_that_are_seen_let_it_pass() -> None:
    world = Traced(traced(required=True), MemoryTraces())
    world.roll()
    assert world.state().phase == "Succeeded"
    assert world.finding()["towardStep"] == 1


def test_a_daemon_that_is_killed_counts_every_interval_of_spans_once() -> None:
    world = Traced(traced(PATIENT), MemoryTraces())
    world.traffic(40)
    world.start()
    for _ in range(8):
        world.turn()
        world.reconciler.close()
        world.reconciler = Reconciler(world.ports)  # whatever was under way is lost with the process
        world.turn()
    arrays = world.held().arrays
    scored = traces.clock(arrays, "intervals")
    assert scored >= 9
    assert traces.clock(arrays, "spans_s") + traces.clock(arrays, "spans_c") == 3 * 60 * scored
    assert world.state().evidence.intervals - scored <= 3  # type: ignore[union-attr]


def test_fifty_busy_operations_fit_beside_the_rest_of_the_state() -> None:
    """All that is kept of a Canary stays below 16 KB: 12 are for what else there is (see test_evidence.py)."""
    random = np.random.default_rng(1)
    names = tuple(f"/api/v1/resource-{i}/{{id}}/items" for i in range(30))
    arrays = traces.empty(31, tally.EDGES)
    for k in range(60):
        n = random.poisson([[80, 20]] * 30)
        spans = np.stack([n, random.binomial(n, 0.01)], axis=-1).astype(float)
        buckets = np.zeros((30, 2, len(tally.EDGES) + 1))
        for i, arm in np.ndindex(30, 2):
            took = random.lognormal(np.log(20 + 5 * i), 0.6, n[i, arm])
            buckets[i, arm] = np.bincount(np.searchsorted(tally.EDGES, took), minlength=len(tally.EDGES) + 1)
        counts = SpanCounts(START, START, names, spans, buckets, tally.EDGES)
        slots = traces.slotted(counts, names, 31)
        seen = tuple(spans[..., 0].sum(0))
        (arrays,) = traces.update([Item(arrays, tally.EDGES, 0.05, 0.001, *slots, k > 10, seen, seen)])
    held = SpanEvidence("traces", "", ("a",), ("b",), names, arrays=arrays)
    text = json.dumps(encode(held))
    assert len(text) < 4 * 1024
    back = decode(SpanEvidence, json.loads(text))
    assert all(np.array_equal(back.arrays[name], value) for name, value in arrays.items())
