"""Spans counted by operation and arm: each request once, nothing made up, nothing dropped without a word."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryd.model import Arm, CounterKey, Reading, SpanCounts
from canaryd.spans import Span, nanoseconds
from canaryd.tally import EDGES, OTHERS, bounded, of_counters, of_spans, strangers, told_apart

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
END = START + timedelta(seconds=10)
IDS = iter(range(1, 10**9))


def span(
    operation: str = "GET /",
    arm: Arm | None = Arm.STABLE,
    *,
    trace: str = "",
    at: float = 1.0,
    ms: float = 10.0,
    error: bool = False,
    kind: str = "server",
    service: str = "api",
) -> Span:
    id_ = f"{next(IDS):x}"
    return Span(
        trace or id_,
        id_,
        "",
        service,
        operation,
        kind,
        nanoseconds(START + timedelta(seconds=at)),
        ms,
        error,
        arm,
        "",
        "",
    )


def counted(*spans: Span) -> SpanCounts:
    return of_spans(spans, "api", START, END)


# ── from traces ──────────────────────────────────────────────────────────────────────────────────────────────


def test_spans_are_counted_by_operation_arm_and_outcome() -> None:
    found = counted(
        span("GET /a"), span("GET /a", error=True), span("GET /a", Arm.CANARY, ms=5000.0), span("GET /b", Arm.CANARY)
    )
    assert found.operations == ("GET /a", "GET /b")
    assert found.spans.tolist() == [[[2, 1], [1, 0]], [[0, 0], [1, 0]]]
    assert found.durations.sum(-1).tolist() == [[2, 1], [0, 1]]
    slow = int(np.argmax(found.durations[0, 1]))
    assert EDGES[slow - 1] < 5000 <= EDGES[slow]
    assert found.sampled == (2, 2)


def test_what_the_service_did_not_serve_is_not_counted() -> None:
    found = counted(
        span(kind="client"), span(kind="internal"), span(service="db"), span(kind="consumer"), span(kind="")
    )
    assert found.spans[0, 0, 0] == 2


@pytest.mark.parametrize(("at", "counts"), [(0.0, 0), (0.001, 1), (10.0, 1), (10.001, 0)])
def test_a_span_belongs_to_the_interval_in_which_it_began(at: float, counts: int) -> None:
    assert counted(span(at=at)).spans.sum() == counts


def test_of_repeated_calls_within_one_trace_the_worst_counts_once() -> None:
    found = counted(span(trace="aa"), span(trace="aa", error=True, ms=3.0), span(trace="aa", ms=900.0))
    assert found.spans.tolist() == [[[1, 1], [0, 0]]]
    assert EDGES[int(np.argmax(found.durations[0, 0])) - 1] < 900
    assert found.sampled == (3, 0)


def test_spans_of_neither_arm_are_left_out_and_it_is_said_when_there_are_no_others() -> None:
    assert "no tag" in counted(span(arm=None)).note
    mixed = counted(span(arm=None), span())
    assert mixed.spans.sum() == 1
    assert mixed.note == ""


def test_nothing_is_an_answer_too() -> None:
    found = counted()
    assert found.operations == ()
    assert found.complete
    assert found.spans.shape == (0, 2, 2)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([*Arm, None]), st.floats(-5, 15), st.floats(0, 1e6))))
def test_adjoining_intervals_count_what_the_whole_does(drawn: list[tuple[int, Arm | None, float, float]]) -> None:
    spans = [span(f"GET /{i}", arm, at=at, ms=ms) for i, arm, at, ms in drawn]
    middle = START + timedelta(seconds=4)
    parts = [of_spans(spans, "api", START, middle), of_spans(spans, "api", middle, END)]
    assert sum(p.spans.sum() for p in parts) == of_spans(spans, "api", START, END).spans.sum()


def test_of_thousands_of_operations_the_busiest_are_told_apart_and_stables_others_are_one() -> None:
    found = counted(
        *(span(f"GET /{i:04}", trace=f"{i}{k}") for i in range(300) for k in range(2 if i < 200 else 1)),
        *(span(f"GET /only-canary-{i}", Arm.CANARY) for i in range(5)),
    )
    assert len(found.operations) == 201
    assert found.operations[-1] == OTHERS
    assert found.spans[:-1].sum() == 400
    assert found.spans[-1].tolist() == [[100, 0], [0, 0]]


# ── from counters ────────────────────────────────────────────────────────────────────────────────────────────


def key(arm: Arm = Arm.STABLE, operation: str = "GET /", code: str = "", le: float = 0.0, by: str = "c1") -> CounterKey:
    return CounterKey(arm, by, operation, "took" if le else "calls", code, "x", "", le)


def between(before: dict[CounterKey, float], after: dict[CounterKey, float]) -> SpanCounts | None:
    return of_counters(Reading(START, {}, before), Reading(END, {}, after))


def test_counters_count_their_difference_and_a_new_series_counts_whole() -> None:
    before = {key(): 100.0, key(le=5.0): 60.0, key(le=50.0): 90.0, key(le=inf): 100.0}
    after = {key(): 130.0, key(le=5.0): 80.0, key(le=50.0): 118.0, key(le=inf): 130.0, key(code="error"): 4.0}
    found = between(before, after)
    assert found is not None
    assert found.spans[0, 0].tolist() == [34, 4]
    assert found.edges.tolist() == [5, 50]
    assert found.durations[0, 0].tolist() == [20, 8, 2]


def test_a_collector_that_started_again_counts_what_it_counts_now_in_every_series() -> None:
    before = {key(): 100.0, key(Arm.CANARY): 10.0}
    after = {key(): 30.0, key(Arm.CANARY): 12.0}
    found = between(before, after)
    assert found is not None
    assert found.spans[0, :, 0].tolist() == [30, 12]


def test_a_collector_nobody_knew_is_a_starting_point() -> None:
    found = between({key(): 100.0}, {key(): 110.0, key(by="c2"): 5000.0})
    assert found is not None
    assert found.spans[0, 0, 0] == 10


def test_without_counters_at_both_ends_nothing_is_known() -> None:
    assert between({}, {key(): 1.0}) is None
    assert between({key(): 1.0}, {}) is None


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4), st.lists(st.integers(0, 50), min_size=4, max_size=4))
def test_durations_are_never_negative_whatever_the_buckets_say(first: list[int], more: list[int]) -> None:
    edges = (5.0, 50.0, 500.0, inf)
    before = {key(le=le): float(n) for le, n in zip(edges, first, strict=True)}
    after = {key(le=le): float(n) for le, n in zip(edges, more, strict=True)}
    found = between(before, after)
    assert found is not None
    assert (found.durations >= 0).all()
    assert (found.spans[..., 1] <= found.spans[..., 0]).all()


# ── which are told apart ─────────────────────────────────────────────────────────────────────────────────────


def table(**spans: tuple[int, int]) -> SpanCounts:
    """operation: spans of stable, of the canary."""
    counts = np.array([[[s, 0], [c, min(c, 1)]] for s, c in spans.values()], dtype=float).reshape(-1, 2, 2)
    return SpanCounts(START, END, tuple(spans), counts, np.zeros((len(spans), 2, 1)))


def test_operations_keep_their_slot_and_new_ones_follow_the_busiest_first() -> None:
    assert told_apart(("b",), table(a=(5, 0), b=(9, 0), c=(7, 0), d=(0, 9)), 3) == ("b", "c", "a")
    assert told_apart(("b", "c", "a"), table(z=(99, 0)), 3) == ("b", "c", "a")


def test_an_operation_of_the_canary_alone_is_a_stranger_until_stable_has_it() -> None:
    found = strangers((), table(a=(5, 5), new=(0, 4)), ("a",))
    assert found == (("new", 4, 1),)
    assert strangers(found, table(new=(0, 3)), ("a",)) == (("new", 7, 2),)
    assert strangers(found, table(new=(1, 3)), ("a", "new")) == ()


def test_strangers_are_few_and_the_busiest() -> None:
    found = strangers((), table(**{f"n{i:02}": (0, i + 1) for i in range(30)}), ())
    assert len(found) == 8
    assert found[0] == ("n29", 30, 1)


def test_bounding_few_operations_changes_nothing() -> None:
    counts = table(a=(1, 1))
    assert bounded(counts) is counts
