"""Promises of canaryd.traces: what is shown of traces is what the canary does and stable does not."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from world import START, canary

from canaryd.adapters.memory import MemoryTraces
from canaryd.model import Arm, DecisionKind, Record
from canaryd.ports import TraceAnswer, TraceQuery
from canaryd.spans import ArmTags, Span, nanoseconds, settle
from canaryd.traces.asking import Asking, aliases_of, service_of
from canaryd.traces.chance import Moments, all_in_canary
from canaryd.traces.compare import Comparison, only_canary_fails
from canaryd.traces.critical_path import self_times
from canaryd.traces.evidence import LARGEST, LEFT_ALONE_S, WINDOW, TraceGatherer, gather, is_wanted
from canaryd.traces.exemplars import exemplars
from canaryd.traces.requests import Request, requests

MS = 1_000_000
AT = START + timedelta(minutes=10)
T0 = nanoseconds(AT) - 60 * 10**9


class Trace:
    """Spans of one trace, written down as a tree."""

    def __init__(self, number: int, arm: Arm | None, at: int = T0) -> None:
        self.number, self.arm, self.at = number, arm, at + number * MS
        self.spans: list[Span] = []

    def span(
        self,
        service: str,
        operation: str,
        start: float = 0.0,
        ms: float = 10.0,
        *,
        under: Span | None = None,
        kind: str = "server",
        error: bool = False,
        **more: Any,
    ) -> Span:
        arm = self.arm if service == "api" else None
        span = Span(
            trace=f"{self.number:x}",
            id=f"{len(self.spans) + 1:x}",
            parent=under.id if under else "",
            service=service,
            operation=operation,
            kind=kind,
            start=self.at + round(start * MS),
            duration=ms,
            error=error,
            arm=more.pop("arm", arm),
            revision="",
            pod="",
            **more,
        )
        self.spans.append(span)
        return span


def plain(number: int, arm: Arm, *, failing: bool = False, ms: float = 20.0, operation: str = "GET /") -> Trace:
    """Gateway, api, its database: as every request of these tests is, unless it says otherwise."""
    trace = Trace(number, arm)
    gateway = trace.span("gateway", operation, 0, ms + 10)
    api = trace.span("api", operation, 5, ms, under=gateway, error=failing)
    trace.span("db", "SELECT", 7, 4, under=api, kind="client")
    return trace


def all_spans(traces: Iterable[Trace]) -> list[Span]:
    return [s for t in traces for s in t.spans]


def of(traces: Iterable[Trace]) -> list[Request]:
    return requests(settle(all_spans(traces)).spans, "api")


def both(canary_: Callable[[int], Trace], stable: Callable[[int], Trace], n: int = 40, m: int = 400) -> list[Trace]:
    return [*(canary_(i) for i in range(1, n + 1)), *(stable(i) for i in range(n + 1, n + m + 1))]


def healthy(i: int) -> Trace:
    return plain(i, Arm.STABLE, ms=20 + i % 7)


def as_healthy(i: int) -> Trace:
    return plain(i, Arm.CANARY, ms=20 + i % 7)


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_is_the_outermost_span_of_the_service_with_all_that_is_below() -> None:
    (request,) = of([plain(1, Arm.CANARY)])
    assert (request.arm, request.entry.service, [s.service for s in request.spans]) == (
        Arm.CANARY,
        "api",
        ["api", "db"],
    )


def test_a_proxy_and_its_application_are_one_request() -> None:
    trace = Trace(1, Arm.CANARY)
    proxy = trace.span("api", "api/*")
    trace.span("api", "GET /", under=proxy)
    assert [len(r.spans) for r in of([trace])] == [2]


def test_what_a_service_asks_of_others_is_no_request_of_its_own() -> None:
    trace = Trace(1, Arm.CANARY)
    trace.span("api", "GET ledger", kind="client")
    assert of([trace]) == []


def test_a_revision_of_another_service_does_not_change_the_arm() -> None:
    trace = Trace(1, Arm.CANARY)
    api = trace.span("api", "GET /")
    trace.span("ledger", "POST /", under=api, arm=Arm.STABLE)
    assert [(r.arm, len(r.spans)) for r in of([trace])] == [(Arm.CANARY, 2)]


def test_a_canary_that_asks_stable_makes_two_requests_each_with_its_own_spans() -> None:
    trace = Trace(1, None)
    outer = trace.span("api", "GET /", arm=Arm.CANARY)
    inner = trace.span("api", "GET /old", under=outer, arm=Arm.STABLE)
    trace.span("db", "SELECT", under=inner)
    assert [(r.arm, len(r.spans)) for r in of([trace])] == [(Arm.CANARY, 1), (Arm.STABLE, 2)]


def test_a_call_is_named_by_who_is_called_or_by_the_client_where_nobody_answers() -> None:
    trace = Trace(1, Arm.CANARY)
    api = trace.span("api", "GET /")
    client = trace.span("api", "call ledger", under=api, kind="client")
    ledger = trace.span("ledger", "POST /book", under=client)
    trace.span("ledger", "INSERT", under=ledger, kind="client")
    trace.span("api", "redis GET", under=api, kind="client")
    (request,) = of([trace])
    assert sorted(request.calls()) == [
        (("api", "redis GET"), ("", "")),
        (("ledger", "INSERT"), ("ledger", "POST /book")),
        (("ledger", "POST /book"), ("", "")),
    ]


# ── only the canary ──────────────────────────────────────────────────────────────────────────────────────────


def test_an_operation_that_fails_in_both_arms_is_not_the_canarys_own() -> None:
    traces = both(
        lambda i: plain(i, Arm.CANARY, failing=i % 2 == 0), lambda i: plain(i, Arm.STABLE, failing=i % 100 == 0)
    )
    assert only_canary_fails(of(traces)) == []


def test_one_failing_operation_of_thirty_is_found() -> None:
    def one(i: int, arm: Arm) -> Trace:
        operation = f"GET /{i % 30}"
        return plain(i, arm, operation=operation, failing=arm is Arm.CANARY and operation == "GET /7")

    traces = both(lambda i: one(i, Arm.CANARY), lambda i: one(i, Arm.STABLE), n=300, m=3000)
    (only,) = only_canary_fails(of(traces))
    assert (only.operation, only.canary_errors, only.canary_n, only.stable_n) == (("api", "GET /7"), 10, 10, 100)


def test_a_failure_below_the_canary_counts_where_it_happened() -> None:
    def broken(i: int) -> Trace:
        trace = plain(i, Arm.CANARY)
        trace.span("ledger", "POST /", under=trace.spans[1], error=True)
        return trace

    def fine(i: int) -> Trace:
        trace = healthy(i)
        trace.span("ledger", "POST /", under=trace.spans[1])
        return trace

    assert [o.operation for o in only_canary_fails(of(both(broken, fine)))] == [("ledger", "POST /")]


def test_a_single_failure_that_chance_explains_is_not_shown() -> None:
    assert only_canary_fails(of(both(lambda i: plain(i, Arm.CANARY, failing=i == 1), healthy, n=40, m=40))) == []


def test_without_any_request_to_stable_nothing_is_the_canarys_own() -> None:
    assert only_canary_fails(of([plain(i, Arm.CANARY, failing=True) for i in range(1, 9)])) == []


def test_chance_is_exact_where_it_can_be_counted_by_hand() -> None:
    assert all_in_canary(1, 1, 3) == pytest.approx(1 / 4)
    assert all_in_canary(2, 2, 2) == pytest.approx(1 / 6)
    assert all_in_canary(0, 5, 5) == 1
    assert all_in_canary(6, 5, 5) == 1


def test_a_new_call_is_found_and_what_it_calls_is_left_to_it() -> None:
    def calling(i: int) -> Trace:
        trace = as_healthy(i)
        ledger = trace.span("ledger", "POST /book", 11, 8, under=trace.spans[1])
        trace.span("ledger-db", "INSERT", 12, 2, under=ledger)
        return trace

    (call,) = Comparison(of(both(calling, healthy))).new_calls()
    assert (call.operation, call.canary, call.stable, call.canary_n, call.stable_n) == (
        *(("ledger", "POST /book"), 1.0, 0.0),
        *(40, 400),
    )


def test_a_call_that_is_made_more_often_is_found_with_both_numbers() -> None:
    def calling(i: int, times: int, arm: Arm) -> Trace:
        trace = plain(i, arm)
        for _ in range(times):
            trace.span("cache", "GET", under=trace.spans[1])
        return trace

    traces = both(lambda i: calling(i, 3 + i % 2, Arm.CANARY), lambda i: calling(i, 1 + i % 2, Arm.STABLE))
    (call,) = Comparison(of(traces)).new_calls()
    assert (call.operation, call.canary, call.stable) == (("cache", "GET"), 3.5, 1.5)


def test_calls_that_both_make_alike_or_only_stable_makes_are_no_news() -> None:
    def calling(i: int) -> Trace:
        trace = healthy(i)
        trace.span("legacy", "GET", under=trace.spans[1])
        return trace

    assert Comparison(of(both(as_healthy, calling))).new_calls() == []


def test_a_rare_call_that_the_canary_happened_to_make_once_is_no_news() -> None:
    def calling(i: int) -> Trace:
        trace = as_healthy(i)
        if i == 1:
            trace.span("mail", "SEND", under=trace.spans[1])
        return trace

    assert Comparison(of(both(calling, healthy))).new_calls() == []


def test_more_of_the_heavy_requests_does_not_make_a_canary_look_slow() -> None:
    def one(i: int, arm: Arm, heavy: bool) -> Trace:
        trace = plain(i, arm, operation="GET /heavy" if heavy else "GET /light", ms=(500 if heavy else 10) + i % 7)
        if heavy:
            trace.span("report", "POST", under=trace.spans[1])
        return trace

    traces = both(lambda i: one(i, Arm.CANARY, i % 2 == 0), lambda i: one(i, Arm.STABLE, i % 20 == 0))
    compared = Comparison(of(traces))
    assert compared.extra_time() == []
    assert compared.new_calls() == []


def test_requests_that_stable_was_never_asked_for_are_not_compared() -> None:
    traces = both(lambda i: plain(i, Arm.CANARY, operation="GET /new", ms=900), healthy)
    compared = Comparison(of(traces))
    assert (compared.left_out, compared.extra_time(), compared.new_calls()) == (40, [], [])


def test_arms_that_do_the_same_show_no_difference() -> None:
    randomly = random.Random(7)

    def one(i: int, arm: Arm) -> Trace:
        trace = plain(i, arm, ms=randomly.lognormvariate(3, 0.8), failing=randomly.random() < 0.02)
        for _ in range(randomly.randrange(3)):
            trace.span(randomly.choice(["a", "b", "c"]), "GET", 6, 2, under=trace.spans[1])
        return trace

    shown = 0
    for _ in range(20):
        compared = Comparison(of(both(lambda i: one(i, Arm.CANARY), lambda i: one(i, Arm.STABLE))))
        shown += len(compared.new_calls()) + len(compared.extra_time())
    assert shown <= 2


# ── the critical path ────────────────────────────────────────────────────────────────────────────────────────


def path(trace: Trace) -> dict[str, float]:
    (request,) = of([trace])
    return {operation: ms for (_, operation), ms in self_times(request).items()}


def test_children_one_after_the_other_are_all_on_the_path() -> None:
    trace = Trace(1, Arm.CANARY)
    api = trace.span("api", "api", 0, 100)
    trace.span("a", "a", 10, 20, under=api)
    trace.span("b", "b", 50, 30, under=api)
    assert path(trace) == {"api": 50, "a": 20, "b": 30}


def test_of_parallel_children_only_the_last_to_end_is_waited_for() -> None:
    trace = Trace(1, Arm.CANARY)
    api = trace.span("api", "api", 0, 100)
    trace.span("short", "short", 10, 40, under=api)
    trace.span("long", "long", 10, 80, under=api)
    assert path(trace) == {"api": 20, "long": 80}


def test_what_is_not_waited_for_costs_nothing() -> None:
    trace = Trace(1, Arm.CANARY)
    api = trace.span("api", "api", 0, 100)
    later = trace.span("api", "later", 50, 500, under=api, kind="internal")
    trace.span("mail", "mail", 60, 400, under=later)
    trace.span("queue", "consume", 10, 20, under=api, kind="consumer")
    assert path(trace) == {"api": 100}


def test_a_clock_that_is_wrong_does_not_hide_the_other_services_time() -> None:
    for skew in (-10_000.0, -30.0, 0.0, 45.0, 10_000.0):
        trace = Trace(1, Arm.CANARY)
        api = trace.span("api", "api", 0, 100)
        ledger = trace.span("ledger", "ledger", 20 + skew, 60, under=api)
        trace.span("db", "db", 30 + skew, 25, under=ledger)
        assert path(trace) == {"api": 40, "ledger": 35, "db": 25}


def test_work_that_began_before_its_parent_is_cut_to_it() -> None:
    trace = Trace(1, Arm.CANARY)
    api = trace.span("api", "api", 0, 100)
    trace.span("api", "early", -20, 50, under=api, kind="internal")
    assert path(trace) == {"api": 70, "early": 30}


@given(
    st.lists(
        st.tuples(
            st.integers(0, 30),
            st.integers(-2000, 2000),
            st.integers(0, 3000),
            st.sampled_from("abc"),
            st.sampled_from(["server", "client", "internal", "consumer"]),
        ),
        max_size=30,
    )
)
def test_whatever_the_spans_say_the_parts_make_the_whole_and_none_is_negative(
    given_: list[tuple[int, int, int, str, str]],
) -> None:
    trace = Trace(1, Arm.CANARY)
    trace.span("api", "request", 0, 1000)
    for up, start, ms, service, kind in given_:
        trace.span(service, kind, start, ms, under=trace.spans[up % len(trace.spans)], kind=kind)
    (request,) = of([trace])
    times = self_times(request)
    assert sum(times.values()) == pytest.approx(1000)
    assert min(times.values()) >= 0


def test_a_trace_as_deep_as_it_is_long_is_walked() -> None:
    trace = Trace(1, Arm.CANARY)
    span = trace.span("api", "api", 0, 100)
    for _ in range(5000):
        span = trace.span("api", "api", 0, 100, under=span, kind="internal")
    assert path(trace) == {"api": 100}


def test_the_extra_time_is_found_where_it_is_spent() -> None:
    def slow(i: int) -> Trace:
        trace = plain(i, Arm.CANARY, ms=320 + i % 7)
        trace.span("ledger", "POST /book", 12, 300, under=trace.spans[1])
        return trace

    (extra,) = Comparison(of(both(slow, healthy))).extra_time()
    assert (extra.operation, extra.canary_ms, extra.stable_ms) == (("ledger", "POST /book"), 300, 0)


def test_the_error_of_a_mean_is_that_of_the_sample() -> None:
    moments = Moments()
    for value in (1.0, 2.0, 3.0, 6.0):
        moments = moments.plus(value)
    assert (moments.mean, moments.error) == (3.0, pytest.approx(14 / 3 / 4))


# ── exemplars ────────────────────────────────────────────────────────────────────────────────────────────────


def test_failed_requests_come_before_slow_ones_and_operations_take_turns() -> None:
    traces = [
        *(plain(i, Arm.CANARY, failing=True, operation="GET /often") for i in range(1, 20)),
        plain(20, Arm.CANARY, failing=True, operation="GET /seldom"),
        *(plain(i, Arm.CANARY, ms=float(i)) for i in range(21, 30)),
    ]
    chosen = exemplars(of(traces), 5)
    assert [c.span.operation for c in chosen] == ["GET /seldom", "GET /often", "GET /often", "GET /often", "GET /often"]
    few = exemplars(of([traces[0], *traces[20:]]), 3)
    assert [(c.span.error, c.span.duration) for c in few] == [(True, 20.0), (False, 29.0), (False, 28.0)]


def test_only_traces_of_the_canary_are_exemplars() -> None:
    assert exemplars(of([plain(1, Arm.STABLE, failing=True)]), 5) == []


def test_the_cause_is_the_deepest_failure_and_a_failure_that_was_coped_with_is_none() -> None:
    trace = plain(1, Arm.CANARY, failing=True)
    ledger = trace.span("ledger", "POST /", under=trace.spans[1], error=True)
    trace.span("ledger-db", "INSERT", under=ledger, error=True)
    coped = plain(2, Arm.CANARY)
    coped.span("cache", "GET", under=coped.spans[1], error=True)
    by_trace = {c.span.trace: c.cause for c in exemplars(of([trace, coped]), 5)}
    cause = by_trace["1"]
    assert cause is not None
    assert cause.service == "ledger-db"
    assert by_trace["2"] is None


# ── evidence ─────────────────────────────────────────────────────────────────────────────────────────────────

BODY = {
    "since": (AT - timedelta(minutes=5)).isoformat(),
    "revision": "v2",
    "stableRevision": "v1",
    "workloads": {"stable": "api-a", "canary": "api-b"},
    "findings": [{"metric": "errors", "verdict": "regressed"}],
}


def record(kind: DecisionKind = DecisionKind.ROLLBACK, **body: Any) -> Record:
    return Record("api/9", "api", AT, kind, "rolled back", {**BODY, **body}, tell=True)


def source_with(traces: Iterable[Trace]) -> MemoryTraces:
    source = MemoryTraces(base="https://jaeger.example.com")
    source.put(*all_spans(traces))
    return source


def test_a_rollback_shows_everything_and_links_to_it() -> None:
    def bad(i: int) -> Trace:
        trace = plain(i, Arm.CANARY, failing=i % 2 == 0, ms=320 + i % 7)
        trace.span("ledger", "POST /book", 12, 300, under=trace.spans[1], error=i % 2 == 0)
        return trace

    found = TraceGatherer(source_with(both(bad, healthy))).of(record(), canary())
    assert found is not None
    assert (found["note"], found["requests"]) == ("", {"stable": 400, "canary": 40})
    assert [e["error"] for e in found["exemplars"]] == [True] * 5
    assert found["exemplars"][0]["url"] == f"https://jaeger.example.com/trace/{found['exemplars'][0]['trace']}"
    assert found["exemplars"][0]["facts"] == {"cause": "ledger POST /book"}
    assert {o["operation"]: (o["canaryErrors"], o["stableErrors"]) for o in found["onlyCanaryFails"]} == {
        "GET /": (20, 0)
    } | {"POST /book": (20, 0)}
    assert [(c["service"], c["canaryPerRequest"]) for c in found["newCalls"]] == [("ledger", 1.0)]
    assert [(c["operation"], c["canaryMs"], c["stableMs"]) for c in found["criticalPath"]] == [("POST /book", 300, 0)]
    json.dumps(found)


@pytest.mark.parametrize(
    ("kind", "verdict", "wanted"),
    [
        (DecisionKind.ROLLBACK, "inconclusive", True),
        (DecisionKind.HOLD, "regressed", True),
        (DecisionKind.INCONCLUSIVE, "regressed", True),
        (DecisionKind.HOLD, "inconclusive", False),
        (DecisionKind.ADVANCE, "regressed", False),
        (DecisionKind.SUCCEED, "healthy", False),
    ],
)
def test_only_a_decision_against_the_canary_has_traces(kind: DecisionKind, verdict: str, wanted: bool) -> None:
    one = record(kind, findings=[{"metric": "errors", "verdict": verdict}])
    assert is_wanted(one) is wanted
    source = source_with([])
    assert (TraceGatherer(source).of(one, canary()) is not None) is wanted
    assert bool(source.asked) is wanted


def test_a_source_that_fails_is_said_and_left_alone_for_a_while() -> None:
    now = 0.0
    source = source_with([])
    source.fail("http://jaeger: no complete answer within 5 s")
    gatherer = TraceGatherer(source, clock=lambda: now)
    with capture_logs():
        assert gatherer.of(record(), canary()) == {"note": "no traces: http://jaeger: no complete answer within 5 s"}
    source.heal()
    told = gatherer.of(record(), canary())
    assert told is not None
    assert told["note"].endswith("(not asked again)")
    now = LEFT_ALONE_S + 1
    assert gatherer.of(record(), canary()) != told


def test_a_defect_of_a_source_is_a_note() -> None:
    class Defective(MemoryTraces):
        def find(self, query: TraceQuery) -> TraceAnswer:
            raise ZeroDivisionError

    with capture_logs():
        assert TraceGatherer(Defective()).of(record(), canary()) == {"note": "no traces: defect: ZeroDivisionError"}


def test_at_a_small_weight_the_canarys_traces_are_looked_for_apart() -> None:
    traces = both(as_healthy, healthy, n=30, m=3000)
    source = MemoryTraces()
    source.put(*all_spans(traces))
    found = gather(source, Asking.about(canary(), BODY), AT - WINDOW, AT)
    assert [q.arm for q in source.asked] == [None, Arm.CANARY]
    assert found["requests"] == {"canary": 30, "stable": 2000}
    assert "truncated" in found["note"]


def test_what_is_asked_for_is_the_rollout_and_not_longer_ago_than_the_window() -> None:
    source = source_with([])
    TraceGatherer(source).of(record(), canary())
    TraceGatherer(source).of(record(since=(AT - timedelta(hours=5)).isoformat()), canary())
    assert [(q.start, q.end) for q in source.asked] == [(AT - timedelta(minutes=5), AT), (AT - WINDOW, AT)]


def test_no_spans_and_spans_that_nobody_can_tell_apart_are_explained() -> None:
    asking = Asking.about(canary(), BODY)
    assert gather(source_with([]), asking, AT - WINDOW, AT)["note"] == "no traces of the service api"
    nobody = [replace(s, arm=None, revision="latest") for s in all_spans([healthy(1)])]
    source = MemoryTraces()
    source.put(*nobody)
    note = gather(source, asking, AT - WINDOW, AT)["note"]
    assert "no spans of stable and canary" in note
    assert "say latest" in note


def test_the_whole_is_never_larger_than_a_chat_can_take() -> None:
    def endless(i: int) -> Trace:
        trace = Trace(i, Arm.CANARY)
        facts = {f"fact{j}": "ü" * 200 for j in range(8)}
        trace.span("api", f"GET /{i}" + "y" * 180, error=True, facts=facts)
        for j in range(8):
            trace.span(f"new{j}" + "z" * 180, "ß" * 200, under=trace.spans[0], error=True)
        return trace

    def stable(i: int) -> Trace:
        trace = Trace(i, Arm.STABLE)
        trace.span("api", f"GET /{i % 40 + 1}" + "y" * 180)
        return trace

    found = gather(source_with(both(endless, stable)), Asking.about(canary(), BODY), AT - WINDOW, AT)
    assert 1000 < len(json.dumps(found).encode()) <= LARGEST


def test_a_service_of_pools_has_the_name_of_its_canary_and_of_a_deployment_its_namespace() -> None:
    assert service_of(canary()) == "api"
    in_cluster = canary(
        workloads={"deployment": {"name": "shop"}},
        route={"istio": {"virtualServices": ["shop-routes"], "canary": {"host": "next.prod.svc.cluster.local"}}},
    )
    assert service_of(in_cluster) == "shop.default"
    assert aliases_of(in_cluster) == ("shop", "shop-stable", "next", "shop-routes")


def test_where_a_metric_says_what_spans_are_called_and_told_by_evidence_asks_the_same() -> None:
    metric = {"name": "spans", "kind": "traces", "service": "api.prod", "tag": "track"}
    errors = {"name": "errors", "kind": "errors"}
    arms = {"arms": {"stable": ["main"], "canary": ["next"]}}
    asking = Asking.about(canary(metrics=[{**metric, **arms}, errors]), BODY)
    assert (asking.service, asking.arms) == ("api.prod", ArmTags("track", ("main",), ("next",)))
    told = Asking.about(canary(metrics=[metric, errors]), {**BODY, "look": {"versions": ["1.4", "1.5"]}}).arms
    assert told == ArmTags("track", ("api-a", "v1", "1.4"), ("api-b", "v2", "1.5"))
