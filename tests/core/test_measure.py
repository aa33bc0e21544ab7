"""From readings to judgements: what an operator's own queries and gauges change, who warms up, what changes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from math import inf
from typing import Any

import numpy as np
import pytest
from world import START, World, canary

from canaryd.adapters.memory import MemoryMetrics
from canaryd.codec import decode, encode
from canaryd.measure import Case, Measurer, services_of
from canaryd.model import (
    Action,
    Arm,
    CounterKey,
    Evidence,
    Finding,
    Judgement,
    Phase,
    Reading,
    RolloutState,
    RouteView,
    Verdict,
)
from canaryd.policy import Canary
from canaryd.ports import CountsAnswer, CountsQuery

TEN = timedelta(seconds=10)
ERRORS = {"name": "errors", "kind": "errors"}
LATENCY = {"name": "latency", "kind": "latency"}
ORDERS = {
    "name": "orders",
    "kind": "query",
    "failures": {"stable": "failed{{{workload}}}-s", "canary": "failed{{{workload}}}-c"},
    "total": {"stable": "all{{{workload}}}-s", "canary": "all{{{workload}}}-c"},
}
MEMORY = {"name": "memory", "kind": "gauge", "query": {"stable": "mem-s", "canary": "mem-c"}}


@dataclass
class Readings:
    """A source that remembers the readings it was given; `changed` may turn each into an equivalent one."""

    all: list[Reading] = field(default_factory=list)
    changed: Callable[[Reading], Reading] = lambda reading: reading
    started: Mapping[str, Any] = field(default_factory=dict)
    unseen: Mapping[str, str] = field(default_factory=dict)
    asked: CountsQuery = field(init=False)
    remembers = True
    simultaneous = True
    lag = settle = timedelta(0)

    def read(self, queries: Any) -> dict[str, CountsAnswer]:
        (query,) = queries
        self.asked = query
        found = tuple(self.changed(r) for r in self.all if r.at in query.points)
        return {query.canary: CountsAnswer(found, started=self.started, unseen=self.unseen)}


@dataclass
class Traffic:
    """Three stable and two canary pods with their own exporters; orders are a fifth of the requests."""

    seed: int = 1
    bad: float = 0.004  # of the canary's requests and orders; stable has 0.004
    bad_orders: float = 0.004
    higher: float = 1.0  # the canary's memory
    n: int = 300  # requests of a pod in an interval
    counters: dict[CounterKey, float] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def pods(self, arm: Arm) -> list[str]:
        return [f"{arm}-{i}" for i in range(3 if arm is Arm.STABLE else 2)]

    def turn(self, times: int = 1, *, canary: bool = True) -> None:
        for _ in range(times):
            for arm in Arm:
                for pod in self.pods(arm) if canary or arm is Arm.STABLE else ():
                    self._serve(arm, pod, self.bad if arm is Arm.CANARY else 0.004)
            self.readings.append(Reading(START + len(self.readings) * TEN, dict(self.counters)))

    def _serve(self, arm: Arm, pod: str, bad: float) -> None:
        failed = int(self.random.binomial(self.n, bad))
        ms = self.random.lognormal(np.log(45), 0.6, self.n)
        self._add(arm, pod, "requests", self.n - failed, code="200")
        self._add(arm, pod, "requests", failed, code="500")
        for le in (25.0, 50.0, 100.0, inf):
            self._add(arm, pod, "bucket", int((ms <= le).sum()), le=le)
        bad_orders = self.bad_orders if arm is Arm.CANARY else 0.004
        self._add(arm, pod, "query:orders:failures", int(self.random.binomial(self.n // 5, bad_orders)))
        self._add(arm, pod, "query:orders:total", self.n // 5)
        level = self.higher if arm is Arm.CANARY else 1.0
        key = CounterKey(arm, f"memory:{pod}", pod, "gauge:memory", "", "", "", 0.0)
        self.counters[key] = float(5e8 * level * self.random.lognormal(0, 0.05))

    def _add(self, arm: Arm, pod: str, name: str, n: int, *, code: str = "", le: float = 0.0) -> None:
        exporter = f"orders:{pod}" if name.startswith("query") else pod
        key = CounterKey(arm, exporter, pod, name, code, "", "", le)
        self.counters[key] = self.counters.get(key, 0.0) + n


def story(turns: int = 30, **more: Any) -> Traffic:
    """Six intervals without a canary, then as many as wanted with it."""
    traffic = Traffic(**more)
    traffic.turn(7, canary=False)
    traffic.turn(turns)
    return traffic


def document(*metrics: Any, **more: Any) -> Canary:
    return canary(metrics=list(metrics) or [ERRORS, LATENCY, ORDERS, MEMORY], history="0s", **more)


def measured(traffic: Traffic, by: Canary, source: Readings | None = None, at_once: bool = True) -> Case:
    """The case as the measurer leaves it, at the last of the readings; tick by tick, or all of it in one tick."""
    source = source or Readings()
    source.all = traffic.readings
    state = RolloutState(
        rollout="api-1",
        stable="api-a",
        canary="api-b",
        phase=Phase.PROGRESSING,
        step=2,
        weight=40,
        routed=START + 6 * TEN,
    )
    route, case = RouteView(40, 1, 40), None
    for reading in traffic.readings[-1 if at_once else 7 :]:
        case = Case(canary=by, state=state, route=route)
        Measurer(source, history=len(traffic.readings) - 1).measure([case], reading.at)
        state = replace(state, evidence=case.evidence)
    assert case is not None
    return case


def judged(
    traffic: Traffic, by: Canary, source: Readings | None = None, at_once: bool = True
) -> tuple[Judgement, Evidence]:
    """What the measurer makes of it."""
    case = measured(traffic, by, source, at_once)
    assert case.judgement is not None
    assert case.evidence is not None
    return case.judgement, case.evidence


def finding(judgement: Judgement, name: str) -> Finding:
    return next(f for f in judgement.findings if f.metric == name)


def numbers(judgement: Judgement) -> list[Any]:
    return [judgement.verdict, judgement.log_e, *sorted((f.metric, f.log_e, f.toward_step) for f in judgement.findings)]


# ── an operator's own query ──────────────────────────────────────────────────────────────────────────────────


def test_a_good_canary_is_healthy_by_errors_latency_and_orders() -> None:
    got, _ = judged(story(60), document(warmUp="0s"))
    orders = finding(got, "orders")
    assert got.verdict is Verdict.HEALTHY
    assert (orders.verdict, orders.toward_step) == (Verdict.HEALTHY, 1)
    assert (orders.canary_n, orders.stable_n) == (59 * 2 * 60, 60 * 3 * 60)  # the canary's first sample is a start
    assert "orders: failures" in got.sentence


def test_orders_that_fail_roll_back_and_are_named_though_no_request_failed_more() -> None:
    got, _ = judged(story(30, bad_orders=0.06), document(warmUp="0s"))
    assert got.verdict is Verdict.REGRESSED
    assert got.decisive == "orders"
    assert [f.metric for f in got.findings if f.verdict is Verdict.REGRESSED] == ["orders"]
    assert got.sentence.startswith("orders: failures")
    assert "Not the cause: errors, latency" in got.sentence


def test_an_orders_query_that_is_not_yet_proven_holds_the_step() -> None:
    traffic = story(60)
    for key in [k for k in traffic.counters if k.name.startswith("query")]:  # a tenth of the orders
        for reading in traffic.readings:
            if key in reading.counters:
                reading.counters[key] = float(int(reading.counters[key] / 10))  # type: ignore[index]
    got, _ = judged(traffic, document(warmUp="0s", budget={"share": "0.5%", "perHour": 0}))
    assert got.verdict is Verdict.INCONCLUSIVE
    assert (got.decisive, finding(got, "errors").toward_step) == ("orders", 1)
    assert finding(got, "orders").needed is not None


@pytest.mark.parametrize("part", ["failures", "total"])
@pytest.mark.parametrize("arm", list(Arm))
def test_a_missing_series_blinds_its_metric_and_is_never_fine(part: str, arm: Arm) -> None:
    traffic = story(60)
    for reading in traffic.readings:
        for key in [k for k in reading.counters if k.arm is arm and k.name == f"query:orders:{part}"]:
            del reading.counters[key]  # type: ignore[attr-defined]
    got, _ = judged(traffic, document(warmUp="0s"))
    orders = finding(got, "orders")
    assert (got.verdict, orders.verdict) == (Verdict.BLIND, Verdict.BLIND)
    assert orders.note == f"no series of {part} for {arm}"
    assert orders.note in got.sentence
    assert orders.toward_step < 1
    assert finding(got, "errors").verdict is Verdict.HEALTHY


def test_a_template_that_was_not_answered_blinds_its_metric_and_nothing_else() -> None:
    got, _ = judged(story(30), document(warmUp="0s"), Readings(unseen={"orders": "HTTP 400: parse error"}))
    assert (finding(got, "orders").verdict, finding(got, "orders").note) == (Verdict.BLIND, "HTTP 400: parse error")
    assert finding(got, "errors").verdict is not Verdict.BLIND


def test_a_regression_is_seen_though_an_operators_query_is_blind() -> None:
    got, _ = judged(story(30, bad=0.05), document(warmUp="0s"), Readings(unseen={"orders": "HTTP 400"}))
    assert (got.verdict, got.decisive) == (Verdict.REGRESSED, "errors")


def test_more_failures_than_in_total_are_no_share() -> None:
    traffic = story(20)
    for reading in traffic.readings:
        for key, value in list(reading.counters.items()):
            if key.name == "query:orders:failures":
                reading.counters[key] = value + 1000.0 * traffic.readings.index(reading)  # type: ignore[index]
    got, _ = judged(traffic, document(warmUp="0s"))
    assert finding(got, "orders").note.startswith("more failures than in total were counted for")
    assert finding(got, "orders").log_e == 0


def test_a_query_that_comes_or_goes_with_a_new_document_starts_the_evidence_again() -> None:
    traffic = story(20)
    _, before = judged(traffic, document(ERRORS, LATENCY))
    assert before.queries == ()
    traffic.turn()
    source = Readings(traffic.readings)
    state = RolloutState(
        rollout="api-1", stable="api-a", canary="api-b", phase=Phase.PROGRESSING, step=2, weight=40, routed=START,
        evidence=before,
    )  # fmt: skip
    case = Case(canary=document(), state=state, route=RouteView(40, 1, 40))
    Measurer(source).measure([case], traffic.readings[-1].at)
    assert case.evidence is not None
    assert case.evidence.queries == ("orders",)
    assert case.evidence.intervals <= 1
    assert case.trouble == ["the plan changed: evidence starts again"]


def test_templates_are_asked_by_arm_in_the_words_of_the_document() -> None:
    world = MemoryMetrics()
    asked: list[CountsQuery] = []

    class Listening(Readings):
        def read(self, queries: Any) -> dict[str, CountsAnswer]:
            asked.extend(queries)
            return dict(world.read(queries))

    traffic = story(2)
    judged_at = Case(canary=document(), state=RolloutState(stable="api-a", canary="api-b"), route=RouteView(0, 1, 0))
    Measurer(Listening(traffic.readings)).measure([judged_at], traffic.readings[-1].at)
    found = {(t.metric, t.name, str(t.arm)): t.text for t in asked[0].templates}
    assert found == {
        ("orders", "query:orders:failures", "stable"): "failed{{{workload}}}-s",
        ("orders", "query:orders:failures", "canary"): "failed{{{workload}}}-c",
        ("orders", "query:orders:total", "stable"): "all{{{workload}}}-s",
        ("orders", "query:orders:total", "canary"): "all{{{workload}}}-c",
        ("memory", "gauge:memory", "stable"): "mem-s",
        ("memory", "gauge:memory", "canary"): "mem-c",
    }


# ── gauges ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_much_more_memory_holds_the_rollout_and_does_not_roll_it_back() -> None:
    got, _ = judged(story(60, higher=2.0), document(warmUp="0s"))
    memory = finding(got, "memory")
    assert (got.verdict, memory.verdict) == (Verdict.INCONCLUSIVE, Verdict.REGRESSED)
    assert memory.means is not None
    assert memory.means[1] / memory.means[0] == pytest.approx(2, rel=0.05)
    assert memory.pods == (3, 2)
    assert "(2 / 3 pods)" in memory.note
    assert re.match(r"mean (1(\.\d+)? G|\d{3} M) canary vs \d{3} M stable", memory.note)
    assert got.decisive == "memory"
    assert got.sentence.startswith("memory: mean")


def test_as_much_memory_as_stable_holds_nothing_up() -> None:
    got, _ = judged(story(60), document(warmUp="0s"))
    assert got.verdict is Verdict.HEALTHY
    assert finding(got, "memory").verdict is Verdict.INCONCLUSIVE  # a gauge is never proven to be fine


def test_a_gauge_without_values_is_blind() -> None:
    traffic = story(10)
    for reading in traffic.readings:
        for key in [k for k in reading.counters if k.name == "gauge:memory" and k.arm is Arm.CANARY]:
            del reading.counters[key]  # type: ignore[attr-defined]
    got, _ = judged(traffic, document(warmUp="0s"))
    assert (got.verdict, finding(got, "memory").verdict) == (Verdict.BLIND, Verdict.BLIND)
    assert finding(got, "memory").note == "no value above 0 of any pod of canary that serves requests"


# ── warm-up ──────────────────────────────────────────────────────────────────────────────────────────────────


def counted(evidence: Evidence) -> float:
    return float(evidence.arrays["total"][0, 1])


def test_the_canarys_pods_warm_up_from_their_first_sample_or_from_their_start_where_it_is_known() -> None:
    traffic, by = story(20), document(warmUp="60s")
    first = judged(traffic, by)[1]
    assert counted(first) == 14 * 600  # 20 intervals less the first minute
    long_ago = Readings(started={pod: START - timedelta(hours=1) for pod in traffic.pods(Arm.CANARY)})
    assert counted(judged(traffic, by, long_ago)[1]) == 19 * 600
    late = Readings(started={"canary-0": START + 12 * TEN, "canary-1": START - timedelta(hours=1)})
    assert counted(judged(traffic, by, late)[1]) == 19 * 300 + (20 - 6 - 6) * 300


@pytest.mark.parametrize("at_once", [True, False], ids=["in-one-tick", "tick-by-tick"])
@pytest.mark.parametrize("known", [False, True], ids=["start-unknown", "start-known"])
def test_a_pod_that_restarts_warms_up_again(at_once: bool, known: bool) -> None:
    traffic = story(30)
    for i, reading in enumerate(traffic.readings):
        if i >= 20:
            for key, value in list(reading.counters.items()):
                if key.exporter == "canary-0":
                    reading.counters[key] = value - traffic.readings[19].counters[key] * 0.9  # type: ignore[index]
    again = dict(traffic.readings[20].counters)
    key = next(k for k in again if k.exporter == "canary-0" and k.code == "200")
    assert again[key] < traffic.readings[19].counters[key]
    started = {pod: START - timedelta(hours=1) for pod in traffic.pods(Arm.CANARY)} if known else {}
    _, evidence = judged(traffic, document(warmUp="60s"), Readings(started=started), at_once=at_once)
    from_start = 300 * (30 - (1 if known else 6))
    reset = 300 * 6  # the stretch of the restart and those that begin in the minute after it began
    assert counted(evidence) == pytest.approx(2 * from_start - reset, abs=1)


def test_a_proxy_of_many_pods_that_restarts_makes_none_of_them_young() -> None:
    traffic = story(20)
    for i, reading in enumerate(traffic.readings):
        shared = {k._replace(exporter="envoy"): v for k, v in reading.counters.items()}
        base = {k._replace(exporter="envoy"): v for k, v in traffic.readings[14].counters.items()} if i >= 15 else {}
        traffic.readings[i] = Reading(reading.at, {k: v - base.get(k, 0.0) * 0.5 for k, v in shared.items()})
    _, evidence = judged(traffic, document(ERRORS, warmUp="60s"))
    assert set(evidence.pods.values()) == {START + 6 * TEN}  # first seen then, never again


# ── what changes nothing ─────────────────────────────────────────────────────────────────────────────────────


def renamed(reading: Reading) -> Reading:
    """Other names for the pods of each arm, in another order."""
    names = {"stable-0": "stable-9", "stable-1": "stable-0", "stable-2": "stable-1", "canary-0": "z", "canary-1": "y"}
    return Reading(
        reading.at,
        {
            k._replace(pod=names[k.pod], exporter=k.exporter.replace(k.pod, names[k.pod])): v
            for k, v in reversed(reading.counters.items())
        },
    )


def split(reading: Reading) -> Reading:
    """Every counter of requests as two series, as when a label that does not matter tells requests apart."""
    out: dict[CounterKey, float] = {}
    for key, value in reading.counters.items():
        if key.name != "requests":
            out[key] = value
            continue
        out[key], out[key._replace(flags="XX")] = float(value // 3), float(value - value // 3)
    return Reading(reading.at, out)


SAME: list[Any] = [pytest.param(renamed, id="pods-permuted"), pytest.param(split, id="series-split")]


@pytest.mark.parametrize("changed", SAME)
def test_it_does_not_matter_how_pods_are_called_or_series_are_cut(changed: Callable[[Reading], Reading]) -> None:
    traffic, by = story(12, bad=0.012), document(warmUp="0s")
    plain, other = judged(traffic, by)[0], judged(traffic, by, Readings(changed=changed))[0]
    assert [v for v in numbers(other) if isinstance(v, float)] == pytest.approx(
        [v for v in numbers(plain) if isinstance(v, float)], rel=1e-9
    )
    for a, b in zip(plain.findings, other.findings, strict=True):
        assert (a.metric, a.verdict) == (b.metric, b.verdict)
        assert (a.log_e, a.toward_step) == pytest.approx((b.log_e, b.toward_step), rel=1e-9, abs=1e-9)


def test_a_counter_that_starts_again_between_two_looks_changes_nothing_when_nothing_was_lost() -> None:
    """Every pod's counters restart exactly at a reading, so that the new values are what was served since."""
    traffic, by = story(12, bad=0.012), document(warmUp="0s")
    plain = judged(traffic, by)[0]
    base = traffic.readings[12].counters
    reset = [
        Reading(
            r.at,
            {k: v if i <= 12 or k.name.startswith("gauge") else v - base.get(k, 0.0) for k, v in r.counters.items()},
        )
        for i, r in enumerate(traffic.readings)
    ]
    fell = [k for k in base if reset[13].counters[k] < base[k]]
    assert len(fell) > 0.8 * len(base)  # a fall shows a restart; a counter that has grown past its old value would not
    traffic.readings = [
        Reading(r.at, {**r.counters, **{k: o.counters[k] for k in base if k not in fell and k in o.counters}})
        for r, o in zip(reset, traffic.readings, strict=True)
    ]
    assert numbers(judged(traffic, by)[0]) == numbers(plain)


def test_the_order_of_the_metrics_in_the_document_changes_nothing() -> None:
    other = {**ORDERS, "name": "checkouts"}
    traffic = story(12, bad=0.012)
    for reading in traffic.readings:
        for key, value in list(reading.counters.items()):
            if key.name.startswith("query:orders"):
                name = key.name.replace("orders", "checkouts")
                half = key._replace(name=name, exporter=key.exporter.replace("orders", "checkouts"))
                reading.counters[half] = float(value // 2)  # type: ignore[index]
    metrics = [ERRORS, LATENCY, ORDERS, other, MEMORY]
    seen = [judged(traffic, document(*order, warmUp="0s")) for order in (metrics, metrics[::-1])]
    assert numbers(seen[0][0]) == numbers(seen[1][0])
    assert finding(seen[0][0], "checkouts").canary_n == finding(seen[0][0], "orders").canary_n / 2
    for name, values in seen[0][1].arrays.items():
        assert values.tobytes() == seen[1][1].arrays[name].tobytes(), name


def test_all_in_one_tick_is_what_it_is_tick_by_tick_and_survives_being_kept() -> None:
    traffic, by = story(15, bad=0.01, higher=1.4), document(warmUp="20s")
    _, once = judged(traffic, by)
    _, slowly = judged(traffic, by, at_once=False)
    assert once.intervals == slowly.intervals
    kept = decode(Evidence, json.loads(json.dumps(encode(slowly))))
    for name, values in once.arrays.items():
        if name not in ("residual", "served", "gauge_s", "gauge_c", "pods_s", "pods_c"):
            assert values == pytest.approx(slowly.arrays[name], rel=1e-9), name
        assert np.asarray(kept.arrays[name]).tobytes() == slowly.arrays[name].tobytes()
    assert (kept.queries, kept.gauges) == (("orders",), ("memory",))


# ── what people hear ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_person_hears_once_that_a_gauge_holds_the_rollout_and_can_still_promote() -> None:
    world = World(canary(metrics=[ERRORS, MEMORY], history="0s"), rps=600)
    random = np.random.default_rng(1)

    def turn() -> None:
        for arm, level in (("s", 1.0), ("c", 2.5)):
            for i in (1, 2, 3):
                pod = f"api-{'a' if arm == 's' else 'b'}-{i}"
                world.metrics.tell(f"mem-{arm}", pod, 5e8 * level * float(random.lognormal(0, 0.03)))
        world.turn()

    for _ in range(3):
        turn()
    world.start()
    for _ in range(40):
        turn()
    state = world.state()
    assert state.phase is Phase.PROGRESSING
    assert state.weight < 100
    told = [r for r in world.notifier.told if "memory" in r.sentence]
    assert [str(r.kind) for r in told] == ["hold"]
    assert told[0].body["severity"] == "warning"
    assert "memory" in state.sentence
    assert state.latest["next"] == "a person, because of memory"
    assert "promot" in world.say(Action.PROMOTE, full=True) or world.state().phase is Phase.PROMOTING


def test_a_template_that_is_refused_in_memory_blinds_one_metric() -> None:
    world = World(canary(metrics=[ERRORS, ORDERS], history="0s"), rps=600)
    for template in (ORDERS["failures"]["stable"], ORDERS["total"]["stable"]):
        world.metrics.tell(template, "api-a-1", 1.0)
    world.metrics.refused[ORDERS["total"]["canary"]] = "HTTP 400: parse error"
    world.turn(3)
    world.start()
    world.turn(12)
    assert world.state().verdict is Verdict.BLIND
    assert "orders: HTTP 400: parse error" in world.state().sentence


# ── requests that never reached a pod ────────────────────────────────────────────────────────────────────────

IN_MESH: dict[str, Any] = {
    "workloads": {"deployment": {"name": "api"}},
    "route": {"istio": {"virtualServices": ["api"]}},
}


def lose(traffic: Traffic, n: int, *arms: Arm) -> None:
    """So many requests to each of these arms never reached a pod; a gateway says so in the next reading."""
    for arm in Arm:
        key = CounterKey(arm, "gateway", "", "unreached", "", "", "", 0.0)
        traffic.counters[key] = 0.0
        if arm in arms:
            known = traffic.counters.get(key._replace(code="503", flags="UH"), 0.0)
            traffic.counters[key._replace(code="503", flags="UH")] = known + n


def test_a_canary_that_answers_nothing_at_all_is_regressed_at_the_first_scored_interval() -> None:
    traffic = Traffic()
    lose(traffic, 0)
    traffic.turn(7, canary=False)
    verdicts = []
    for _ in range(2):
        lose(traffic, 600, Arm.CANARY)  # 40 %
        traffic.turn(1, canary=False)
        verdicts.append(judged(traffic, document(ERRORS, LATENCY, **IN_MESH))[0])
    assert verdicts[0].verdict is Verdict.REGRESSED
    assert verdicts[0].decisive == "errors"
    assert "errors 100 % canary vs 0." in verdicts[0].sentence
    assert "600 of the canary's last 600 requests never reached a pod" in verdicts[0].findings[0].note


def test_what_both_arms_lose_alike_is_held_against_nobody() -> None:
    traffic = Traffic()
    lose(traffic, 0)
    traffic.turn(7)
    for _ in range(30):
        lose(traffic, 9, Arm.STABLE)
        lose(traffic, 6, Arm.CANARY)
        traffic.turn()
    judgement, _ = judged(traffic, document(ERRORS, **IN_MESH))
    assert judgement.verdict is not Verdict.REGRESSED
    assert judgement.findings[0].canary_n == pytest.approx(30 * (2 * 300 + 6), rel=0.1)


@pytest.mark.parametrize(
    ("spec", "services"),
    [
        pytest.param({}, ("", ""), id="pools"),
        pytest.param(IN_MESH, ("api-stable", "api-canary"), id="defaults"),
        pytest.param(
            {**IN_MESH, "workloads": {"deployment": {"name": "api", "stable": "api-main"}}},
            ("api-main", "api-canary"),
            id="stable-has-another-name",
        ),
        pytest.param(
            {
                **IN_MESH,
                "route": {
                    "istio": {
                        "virtualServices": ["api"],
                        "stable": {"host": "old.shop.svc.cluster.local"},
                        "canary": {"host": "new"},
                    }
                },
            },
            ("old", "new"),
            id="hosts",
        ),
        pytest.param(
            {
                **IN_MESH,
                "route": {
                    "istio": {"virtualServices": ["api"], "stable": {"subset": "v1"}, "canary": {"subset": "v2"}}
                },
            },
            ("", ""),
            id="subsets",
        ),
        pytest.param(
            {**IN_MESH, "route": {"gatewayApi": {"httpRoutes": ["api"], "stable": "blue"}}},
            ("blue", "api-canary"),
            id="gateway-api",
        ),
    ],
)
def test_the_services_in_front_of_the_arms_are_those_of_the_route(
    spec: dict[str, Any], services: tuple[str, str]
) -> None:
    assert services_of(canary(**spec)) == services
    source, traffic = Readings(), story(2)
    judged(traffic, canary(history="0s", **spec), source)
    assert (source.asked.stable_service, source.asked.canary_service) == services


def test_behind_one_service_it_is_said_that_lost_requests_are_not_counted() -> None:
    subsets = {"virtualServices": ["api"], "stable": {"subset": "v1"}, "canary": {"subset": "v2"}}
    by = document(ERRORS, **{**IN_MESH, "route": {"istio": subsets}})
    assert "behind one Service" in judged(story(2), by)[0].findings[0].note
    assert judged(story(2), document(ERRORS, **IN_MESH))[0].findings[0].note == ""
    assert judged(story(2), document(ERRORS))[0].findings[0].note == ""


def test_a_question_that_could_not_be_answered_blinds_its_own_canary_only() -> None:
    first, second = World(canary("api"), canary("web")), World(canary("api"), canary("web"))
    for world in (first, second):
        world.start()
        world.turn(4)
    first.metrics.failed["api"] = "the answer is larger than 64 MB"
    first.turn(4)
    second.turn(4)
    assert first.state("api").verdict is Verdict.BLIND
    assert "64 MB" in first.state("api").sentence
    assert first.state("web").verdict is not Verdict.BLIND
    assert first.state("web").verdict == second.state("web").verdict
    first.metrics.failed.clear()
    first.turn(2)
    assert first.state("api").verdict is not Verdict.BLIND


def test_a_prometheus_of_the_canarys_own_is_named_in_the_question() -> None:
    source = Readings()
    judged(story(2), document(ERRORS, prometheus={"url": "http://prometheus.shop:9090"}), source)
    assert source.asked.server == "http://prometheus.shop:9090"


# ── outages ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_outage_over_which_the_canary_was_first_seen_says_nothing_of_its_share() -> None:
    """Stable's counters span it, the canary's begin after it: together they look like a canary without traffic."""
    traffic, source, by = Traffic(), Readings(), document(ERRORS)
    traffic.turn(7, canary=False)
    traffic.turn(42)
    source.all = [*traffic.readings[:7], *traffic.readings[36:]]
    state = RolloutState(rollout="api-1", stable="api-a", canary="api-b", phase=Phase.PROGRESSING, weight=40)
    state = replace(state, routed=START + 6 * TEN)
    for reading in source.all[5:]:
        case = Case(canary=by, state=state, route=RouteView(40, 1, 40))
        Measurer(source, history=5).measure([case], reading.at)
        state = replace(state, evidence=case.evidence)
        assert case.judgement is not None
        assert "reached" not in case.judgement.sentence
    (errors,) = case.judgement.findings
    assert errors.canary_n == 12 * 600, "what came after it counts"
