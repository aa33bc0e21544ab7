"""Raw counters become requests: the first errors of a release are seen, a restart invents nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canaryd.counts import Classes, common_edges, increments, pods, slower, stretch
from canaryd.model import Arm, ArmCounts, CounterKey, Reading, Stretch
from canaryd.policy import parse_canary

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
C, S = Arm.CANARY, Arm.STABLE


def classes(**errors: Any) -> Classes:
    metric = {"name": "errors", "kind": "errors", **errors}
    document = {
        "apiVersion": "canaryd.io/v1alpha1",
        "kind": "Canary",
        "metadata": {"name": "api"},
        "spec": {
            "workloads": {"pools": ["a", "b"]},
            "route": {"envoyFile": {"path": "/etc/envoy/routes.yaml"}},
            "metrics": [metric],
        },
    }
    return Classes.of(parse_canary(document).spec)


USUAL = classes()


def requests(
    arm: Arm = C, pod: str = "c1", code: str = "200", flags: str = "-", grpc: str = "", exporter: str = "e"
) -> CounterKey:
    return CounterKey(arm, exporter, pod, "requests", code, flags, grpc, 0.0)


def bucket(le: float, arm: Arm = C, pod: str = "c1", exporter: str = "e") -> CounterKey:
    return CounterKey(arm, exporter, pod, "bucket", "", "", "", le)


Counters = Mapping[CounterKey, float]


def between(before: Counters, after: Counters, by: Classes = USUAL, **more: Any) -> Stretch:
    return stretch(Reading(T0, before), Reading(T0 + MINUTE, after), by, **more)


# ── what has grown ───────────────────────────────────────────────────────────────────────────────────────────

OK, BAD = requests(), requests(code="500")


@pytest.mark.parametrize(
    ("before", "after", "served", "failed"),
    [
        pytest.param({OK: 100, BAD: 2}, {OK: 140, BAD: 2}, 40, 0, id="steady"),
        pytest.param({OK: 100}, {OK: 140, BAD: 3}, 43, 3, id="the-first-errors-are-a-newborn-series"),
        pytest.param({OK: 100}, {}, 0, 0, id="a-vanished-pod-invents-nothing"),
        pytest.param({OK: 100, BAD: 5}, {OK: 150}, 50, 0, id="a-vanished-series-invents-nothing"),
        pytest.param({OK: 100}, {OK: 25}, 25, 0, id="a-restart-counts-what-came-after-it"),
        pytest.param({OK: 100}, {OK: 0}, 0, 0, id="a-restart-with-nothing-after-it"),
        pytest.param({OK: 100, BAD: 9}, {OK: 25, BAD: 1}, 26, 1, id="a-restart-with-an-error-after-it"),
        pytest.param({}, {OK: 100, BAD: 50}, 0, 0, id="an-unknown-exporter-is-only-a-starting-point"),
        pytest.param({requests(exporter="other"): 5}, {OK: 99}, 0, 0, id="so-is-a-second-exporter"),
        pytest.param(
            {requests(pod="c2"): 10}, {requests(pod="c2"): 10, BAD: 3}, 3, 3, id="a-new-pod-behind-a-known-exporter"
        ),
        pytest.param({requests(S, "s1"): 10}, {requests(S, "s1"): 10, BAD: 3}, 3, 3, id="even-of-the-other-arm"),
        pytest.param({OK: 7}, {OK: 7}, 0, 0, id="no-requests"),
    ],
)
def test_what_a_canary_served(before: Counters, after: Counters, served: float, failed: float) -> None:
    canary = between(before, after).canary
    assert (canary.requests, canary.failures) == (served, failed)


def test_a_pod_known_to_have_started_in_between_counts_from_zero() -> None:
    after = {requests(exporter="c1"): 30.0, requests(code="503", exporter="c1"): 2.0}
    assert between({}, after).canary.requests == 0
    for started, served in ((T0 + MINUTE / 2, 32), (T0 + MINUTE, 32), (T0, 0), (T0 - MINUTE, 0), (T0 + 2 * MINUTE, 0)):
        assert between({}, after, started={"c1": started}).canary.requests == served


def test_the_buckets_of_a_restarted_process_fall_together() -> None:
    """55 requests within 10 ms after a restart are 55, not the five by which they exceed those before it."""
    before = {bucket(10): 50.0, bucket(100): 80.0, bucket(inf): 100.0}
    after = {bucket(10): 55.0, bucket(100): 85.0, bucket(inf): 90.0}
    canary = between(before, after).canary
    assert (canary.timed, canary.slower.tolist()) == (90, [35, 5])


def test_the_restart_of_one_process_is_not_that_of_another() -> None:
    before = {bucket(le, pod=pod, exporter=pod): 100.0 for le in (10, inf) for pod in ("c1", "c2")}
    after = {key: 130.0 if key.pod == "c1" else 20.0 for key in before}
    assert between(before, after).canary.timed == 30 + 20


# ── what is a failure ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "by", "counted", "failed"),
    [
        pytest.param(requests(code="200"), USUAL, 1, 0, id="200"),
        pytest.param(requests(code="500"), USUAL, 1, 1, id="500"),
        pytest.param(requests(code="599"), USUAL, 1, 1, id="599"),
        pytest.param(requests(code="404"), USUAL, 1, 0, id="404-is-an-answer"),
        pytest.param(requests(code="429"), USUAL, 1, 0, id="429-is-an-answer"),
        pytest.param(requests(code="404"), classes(failures=["404", "5xx"]), 1, 1, id="404-when-asked-for"),
        pytest.param(requests(code="403"), classes(failures=["404", "5xx"]), 1, 0, id="but-not-its-neighbours"),
        pytest.param(requests(code="403"), classes(failures=["4xx"]), 1, 1, id="a-whole-class-when-asked-for"),
        pytest.param(requests(code="500"), classes(failures=["4xx"]), 1, 0, id="then-not-the-usual-one"),
        pytest.param(requests(code="0", flags="UF"), USUAL, 1, 1, id="no-answer-at-all"),
        pytest.param(requests(code="503", flags="UF,URX"), USUAL, 1, 1, id="upstream-failure"),
        pytest.param(requests(code="0", flags="DC"), USUAL, 0, 0, id="the-client-left"),
        pytest.param(requests(code="503", flags="URX,DC"), USUAL, 0, 0, id="the-client-left-among-others"),
        pytest.param(requests(code="429", flags="RL"), USUAL, 0, 0, id="rate-limited"),
        pytest.param(requests(code="0", flags="DC"), classes(ignoreFlags=[]), 1, 1, id="nothing-is-ignored-when-asked"),
        pytest.param(requests(code="500", flags=""), USUAL, 1, 1, id="no-flags-at-all"),
        pytest.param(requests(code="200", grpc="0"), USUAL, 1, 0, id="grpc-ok"),
        pytest.param(requests(code="200", grpc="14"), USUAL, 1, 1, id="grpc-unavailable-is-http-200"),
        pytest.param(requests(code="200", grpc="5"), USUAL, 1, 0, id="grpc-not-found-is-an-answer"),
        pytest.param(requests(code="200", grpc="5"), classes(grpcFailures=["5"]), 1, 1, id="unless-asked-for"),
        pytest.param(requests(code="503", grpc="0"), USUAL, 1, 1, id="grpc-cut-off-by-a-proxy"),
        pytest.param(requests(code="200", grpc="-"), USUAL, 1, 0, id="no-grpc"),
        pytest.param(requests(code="200", grpc="unknown"), USUAL, 1, 0, id="unknown-grpc-is-no-grpc"),
        pytest.param(requests(code=""), USUAL, 1, 0, id="no-code"),
    ],
)
def test_what_counts_and_what_counts_as_a_failure(key: CounterKey, by: Classes, counted: float, failed: float) -> None:
    canary = between({key: 4.0}, {key: 5.0}, by).canary
    assert (canary.requests, canary.failures) == (counted, failed)


def test_without_a_metric_for_errors_the_usual_classes_hold() -> None:
    latency = {"name": "latency", "kind": "latency"}
    document = {
        "apiVersion": "canaryd.io/v1alpha1",
        "kind": "Canary",
        "metadata": {"name": "api"},
        "spec": {
            "workloads": {"pools": ["a", "b"]},
            "route": {"envoyFile": {"path": "/etc/envoy/routes.yaml"}},
            "metrics": [latency],
        },
    }
    assert Classes.of(parse_canary(document).spec) == USUAL


# ── durations ────────────────────────────────────────────────────────────────────────────────────────────────


def histogram(values: Mapping[float, float], arm: Arm = C, pod: str = "c1", exporter: str = "e") -> Counters:
    return {bucket(le, arm, pod, exporter): v for le, v in values.items()}


def test_slower_than_an_edge_is_what_the_cumulative_buckets_leave() -> None:
    after = histogram({10: 40, 100: 70, inf: 100})
    got = between({**dict.fromkeys(after, 0.0), OK: 0}, {**after, OK: 100})
    assert got.edges.tolist() == [10, 100]
    assert got.canary.slower.tolist() == [60, 30]
    assert got.canary.timed == 100


def test_500_and_500_point_0_are_the_same_edge() -> None:
    old, new = (histogram({float(le): 5.0, inf: 5.0}) for le in ("500", "500.0"))
    got = between(dict.fromkeys(old, 2.0), new)
    assert got.edges.tolist() == [500]
    assert got.canary.timed == 3


def test_only_edges_that_every_histogram_has_are_compared() -> None:
    after = {
        **histogram({5: 1, 10: 1, 100: 1, inf: 2}, C, "c1"),
        **histogram({10: 1, 50: 1, 100: 1, inf: 2}, C, "c2"),
        **histogram({10: 1, 100: 1, 250: 1, inf: 2}, S, "s1"),
    }
    got = between(dict.fromkeys(after, 0.0), after)
    assert got.edges.tolist() == [10, 100]
    assert got.canary.slower.tolist() == [2, 2]


def test_two_exporters_of_one_pod_with_other_edges_do_not_make_it_look_slow() -> None:
    after = {
        **histogram({10: 30, 100: 50, inf: 50}, exporter="e1"),
        **histogram({100: 50, inf: 50}, exporter="e2"),
    }
    got = between(dict.fromkeys(after, 0.0), after)
    assert (got.edges.tolist(), got.canary.slower.tolist(), got.canary.timed) == ([100], [0], 100)


def test_arms_without_a_common_edge_have_no_latency() -> None:
    after = {**histogram({5: 1, inf: 2}, C, "c1"), **histogram({10: 1, inf: 2}, S, "s1")}
    got = between(dict.fromkeys(after, 0.0), after)
    assert got.edges.tolist() == []
    assert got.canary.timed == got.stable.timed == 0
    assert got.canary.slower.shape == (0,)


def test_a_pod_without_durations_does_not_hide_those_of_others() -> None:
    after = {**histogram({10: 1, inf: 2}, C, "c1"), requests(pod="c2"): 9.0}
    assert common_edges(after) == [10]
    assert common_edges({}) == []
    assert common_edges({bucket(10): 1.0}) == []  # no +Inf: nobody knows how many there were


def test_buckets_read_a_moment_apart_never_make_a_negative_number() -> None:
    assert slower(10.0, [4.0, 3.0, 12.0]).tolist() == [6, 6, 0]
    assert slower(0.0, []).shape == (0,)


# ── who is there ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_arm_is_present_when_it_has_a_counter_of_requests_now() -> None:
    got = between({OK: 1.0, requests(S, "s1"): 5.0}, {requests(S, "s1"): 5.0, bucket(inf): 3.0})
    assert (got.stable.present, got.canary.present) == (True, False)
    assert got.stable.pods == ("s1",)
    assert (got.canary.pods, got.canary.pod_requests.tolist()) == (("c1",), [0])  # its durations alone are known


def test_the_pods_of_an_arm_are_those_with_any_series() -> None:
    reading = Reading(T0, {OK: 1.0, bucket(10, pod="c2"): 1.0, requests(S, "s1"): 1.0})
    assert pods(reading, C) == {"c1", "c2"}
    assert pods(reading, S) == {"s1"}


def test_a_stretch_has_the_times_of_its_readings() -> None:
    got = between({}, {})
    assert (got.start, got.end, got.seconds) == (T0, T0 + MINUTE, 60)


# ── warming up ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["first_seen", "started"])
@pytest.mark.parametrize(
    ("age", "young"), [(0.0, True), (119.0, True), (120.0, False), (500.0, False)], ids=lambda v: str(v)
)
def test_a_pod_is_young_until_its_warm_up_is_over_when_the_stretch_begins(how: str, age: float, young: bool) -> None:
    grown = {OK: 30.0, BAD: 3.0, requests(pod="c2"): 50.0, **histogram({10: 20, inf: 30}), bucket(inf, pod="c2"): 50.0}
    born = {"c1": T0 - timedelta(seconds=age)}
    got = between(dict.fromkeys(grown, 0.0), grown, warm_up=timedelta(seconds=120), **{how: born})
    canary = got.canary
    assert (canary.requests, canary.failures) == (83, 3)  # all of them, for the hard channel
    assert (canary.young_requests, canary.young_failures) == ((33, 3) if young else (0, 0))
    assert canary.pods == (("c2",) if young else ("c1", "c2"))
    assert canary.pod_requests.tolist() == ([50] if young else [33, 50])
    assert canary.pod_failures.tolist() == ([0] if young else [3, 0])
    assert got.edges.tolist() == []  # c2 has no finite edge
    alone = between(dict.fromkeys(grown, 0.0), {k: v for k, v in grown.items() if k.pod == "c1"})
    assert alone.edges.tolist() == [10]


def test_the_durations_of_young_pods_are_left_out() -> None:
    grown = {**histogram({10: 20, inf: 30}), **histogram({10: 1, inf: 9}, pod="c2")}
    got = between(dict.fromkeys(grown, 0.0), grown, first_seen={"c1": T0}, warm_up=MINUTE)
    assert (got.canary.timed, got.canary.slower.tolist()) == (9, [8])


def test_without_a_warm_up_nobody_is_young() -> None:
    got = between({OK: 0.0}, {OK: 30.0}, first_seen={"c1": T0})
    assert got.canary.young_requests == 0


def test_a_known_start_is_believed_before_the_first_sight() -> None:
    got = between({OK: 0.0}, {OK: 30.0}, first_seen={"c1": T0}, started={"c1": T0 - 9 * MINUTE}, warm_up=MINUTE)
    assert got.canary.young_requests == 0


# ── whatever the counters ────────────────────────────────────────────────────────────────────────────────────

EDGES = (10.0, 100.0, inf)
request_keys = st.builds(
    requests,
    st.sampled_from(Arm),
    st.sampled_from(["1", "2"]),
    st.sampled_from(["200", "404", "500", "503", "0", ""]),
    st.sampled_from(["-", "", "DC", "UF,URX", "RL"]),
    st.sampled_from(["", "-", "0", "14"]),
    st.sampled_from(["e1", "e2"]),
)
bucket_keys = st.builds(bucket, st.sampled_from(EDGES), st.sampled_from(Arm), st.sampled_from(["1", "2"]))
values = st.integers(0, 10**9).map(float)
counters = st.dictionaries(request_keys | bucket_keys, values, max_size=25)


def plain(arm: ArmCounts) -> tuple[Any, ...]:
    return tuple(v.tolist() if isinstance(v, np.ndarray) else v for v in (getattr(arm, f) for f in arm.__slots__))


def both(s: Stretch) -> tuple[Any, ...]:
    return plain(s.stable), plain(s.canary), s.edges.tolist()


@given(counters, counters)
def test_nothing_is_ever_negative_and_a_part_never_exceeds_its_whole(before: Counters, after: Counters) -> None:
    got = between(before, after, first_seen={"1": T0}, warm_up=MINUTE)
    for arm in (got.stable, got.canary):
        assert 0 <= arm.failures <= arm.requests
        assert 0 <= arm.young_failures <= arm.young_requests <= arm.requests
        assert arm.young_failures <= arm.failures
        assert arm.young_requests - arm.young_failures <= arm.requests - arm.failures
        assert arm.slower.shape == got.edges.shape
        assert all(0 <= x <= arm.timed for x in arm.slower)
        assert (np.diff(arm.slower) <= 0).all()
    assert (np.diff(got.edges) > 0).all()
    assert np.isfinite(got.edges).all()


@settings(max_examples=40)
@given(counters, counters, st.randoms())
def test_the_order_in_which_series_arrive_and_copies_of_them_change_nothing(
    before: Counters, after: Counters, random: Any
) -> None:
    shuffled = []
    for reading in (before, after):
        pairs = [*reading.items(), *reading.items()]  # the same key twice is the same series
        random.shuffle(pairs)
        shuffled.append(dict(pairs))
    assert both(between(*shuffled)) == both(between(before, after))


@settings(max_examples=50)
@given(counters, st.lists(values, min_size=25, max_size=25), st.floats(0, 1))
def test_a_series_split_in_two_counts_the_same(before: Counters, grown: list[float], part: float) -> None:
    """As when a label that does not matter tells requests apart: here, by a flag that nobody ignores."""
    before = {k: v for k, v in before.items() if k.name == "requests" and k.flags == "-"}
    after = {k: v + g for (k, v), g in zip(before.items(), grown, strict=False)}
    halves = []
    for reading in (before, after):
        pairs = [(k, float(int(v * part))) for k, v in reading.items()]
        halves.append({**dict(pairs), **{k._replace(flags="XX"): reading[k] - v for k, v in pairs}})
    if all(halves[1][k] >= v for k, v in halves[0].items()):
        assert both(between(*halves)) == both(between(before, after))


@settings(max_examples=50)
@given(st.dictionaries(request_keys, st.tuples(values, values, values), max_size=12))
def test_two_adjacent_stretches_add_up_to_the_whole(series: Mapping[CounterKey, tuple[float, float, float]]) -> None:
    at = [{k: sum(v[: i + 1]) for k, v in series.items()} for i in range(3)]  # nothing is reset
    first, second, whole = between(at[0], at[1]), between(at[1], at[2]), between(at[0], at[2])
    for arm in ("stable", "canary"):
        a, b, c = (getattr(s, arm) for s in (first, second, whole))
        for name in ("requests", "failures", "young_requests", "timed"):
            assert getattr(a, name) + getattr(b, name) == getattr(c, name)
        assert (a.slower + b.slower).tolist() == c.slower.tolist()


@settings(max_examples=30)
@given(counters)
def test_the_same_reading_twice_is_no_request(reading: Counters) -> None:
    assert not any(increments(Reading(T0, reading), Reading(T0 + MINUTE, reading)).values())


@settings(max_examples=40)
@given(counters, counters)
def test_the_arms_are_counted_apart(before: Counters, after: Counters) -> None:
    mirror = {C: S, S: C}
    swapped = [{k._replace(arm=mirror[k.arm]): v for k, v in reading.items()} for reading in (before, after)]
    straight, crossed = between(before, after), between(*swapped)
    assert plain(straight.canary) == plain(crossed.stable)
    assert plain(straight.stable) == plain(crossed.canary)


# ── an operator's own queries ────────────────────────────────────────────────────────────────────────────────

ORDERS = replace(USUAL, queries=("orders",), gauges=("memory",))


def order(part: str, pod: str = "c1", arm: Arm = C) -> CounterKey:
    return CounterKey(arm, f"orders:{pod}", pod, f"query:orders:{part}", "", "", "", 0.0)


def test_a_query_is_counted_for_each_arm_and_pod_and_without_its_warming_pods() -> None:
    after = {OK: 9.0, requests(pod="c2"): 9.0, order("failures"): 2.0, order("total"): 8.0}
    after |= {order("failures", "c2"): 1.0, order("total", "c2"): 5.0}
    before = dict.fromkeys(after, 0.0)
    got = between(before, after, ORDERS).canary
    assert (got.queries.tolist(), got.unseen) == (
        [[3, 13]],
        {"memory": "no value above 0 of any pod of canary that serves requests"},
    )
    assert (got.pods, got.pod_queries.tolist()) == (("c1", "c2"), [[[2, 8]], [[1, 5]]])
    young = between(before, after, ORDERS, first_seen={"c2": T0}, warm_up=MINUTE).canary
    assert (young.queries.tolist(), young.pod_queries.tolist()) == ([[2, 8]], [[[2, 8]]])


def test_a_query_that_sums_all_pods_is_no_pod() -> None:
    after = {OK: 9.0, order("failures", ""): 2.0, order("total", ""): 8.0}
    got = between(dict.fromkeys(after, 0.0), after, ORDERS).canary
    assert (got.queries.tolist(), got.pods, got.pod_queries.tolist()) == ([[2, 8]], ("c1",), [[[0, 0]]])


def test_a_sum_over_pods_that_fell_counts_nothing_but_a_pod_that_restarted_does() -> None:
    before = {OK: 0.0, order("failures", ""): 50.0, order("total", ""): 900.0}
    after = {OK: 9.0, order("failures", ""): 40.0, order("total", ""): 700.0}
    assert between(before, after, ORDERS).canary.queries.tolist() == [[0, 0]]
    named = [{k._replace(pod="c1") if not k.pod else k: v for k, v in r.items()} for r in (before, after)]
    assert between(*named, ORDERS).canary.queries.tolist() == [[40, 700]]


@pytest.mark.parametrize("part", ["failures", "total"])
def test_a_query_of_which_a_series_is_missing_counts_nothing_once_there_are_requests(part: str) -> None:
    after = {OK: 9.0, order("failures"): 2.0, order("total"): 8.0}
    del after[order(part)]
    got = between(dict.fromkeys(after, 0.0), after, ORDERS).canary
    assert (got.queries.tolist(), got.unseen["orders"]) == ([[0, 0]], f"no series of {part} for canary")
    idle = between(after, after, ORDERS).canary
    assert "orders" not in idle.unseen


def test_the_first_failure_of_a_query_counts_when_its_total_was_there_before() -> None:
    before = {OK: 0.0, order("total"): 5.0, order("failures", "c2"): 0.0, order("total", "c2"): 0.0}
    after = {**before, OK: 9.0, order("total"): 9.0, order("failures"): 3.0}
    assert between(before, after, ORDERS).canary.queries.tolist() == [[3, 4]]


def test_a_gauge_is_a_value_of_now_and_no_count() -> None:
    key = CounterKey(C, "memory:c1", "c1", "gauge:memory", "", "", "", 0.0)
    stranger = key._replace(pod="x", exporter="memory:x")
    before, after = {OK: 0.0, key: 900.0}, {OK: 9.0, key: 300.0, stranger: 5.0}
    assert increments(Reading(T0, before), Reading(T0 + MINUTE, after)) == {OK: 9.0}
    assert between(before, after, ORDERS).canary.gauges == {"memory": {"c1": 300.0}}
    assert between(before, {**after, key: 0.0}, ORDERS).canary.gauges == {"memory": {}}


# ── requests that never reached a pod ────────────────────────────────────────────────────────────────────────


def lost(arm: Arm = C, flags: str = "UH", code: str = "503", exporter: str = "gateway") -> CounterKey:
    return CounterKey(arm, exporter, "", "unreached", code, flags, "", 0.0)


def client(arm: Arm = C, exporter: str = "gateway") -> CounterKey:
    """What says that a client is there, though it has lost nothing."""
    return lost(arm, "", "", exporter)


STABLE_OK = requests(S, "s1")


@pytest.mark.parametrize("code", ["503", "200", "0"])
def test_a_request_that_never_reached_a_pod_is_a_failure_of_its_arm_and_of_no_pod(code: str) -> None:
    before = {OK: 100, STABLE_OK: 900, client(): 0, client(S): 0}
    found = between(before, {**before, OK: 140, STABLE_OK: 1000, lost(code=code): 7})
    assert (found.canary.requests, found.canary.failures, found.canary.unreached) == (47, 7, 7)
    assert (found.canary.young_requests, found.canary.pods, found.canary.pod_requests.tolist()) == (0, ("c1",), [40])
    assert found.canary.pod_failures.tolist() == [0]
    assert (found.stable.requests, found.stable.failures) == (100, 0)


def test_a_canary_that_no_request_ever_reached_has_requests_all_the_same() -> None:
    before = {STABLE_OK: 900, client(): 0}
    found = between(before, {**before, lost(): 20, lost(flags="UF,URX"): 3}).canary
    assert (found.present, found.requests, found.failures, found.pods) == (True, 23, 23, ())
    nothing = between(before, before).canary
    assert (nothing.present, nothing.requests) == (False, 0)


def test_a_client_that_was_not_seen_before_is_only_a_starting_point() -> None:
    before = {OK: 100, client(): 0}
    after = {OK: 140, client(): 0, lost(exporter="cron"): 5000, client(exporter="cron"): 0}
    assert between(before, after).canary.failures == 0
    assert between(after, {**after, lost(exporter="cron"): 5004}).canary.failures == 4


def test_a_client_that_restarts_begins_at_zero_and_a_sum_of_clients_that_falls_says_nothing() -> None:
    for exporter, failed in (("gateway", 3), ("", 0)):
        key = lost(exporter=exporter)
        assert between({OK: 100, key: 50}, {OK: 140, key: 3}).canary.failures == failed


@pytest.mark.parametrize(("flags", "counted"), [("UF,DC", 0), ("RL,UH", 0), ("UH", 7)])
def test_lost_requests_with_an_ignored_flag_are_not_counted(flags: str, counted: int) -> None:
    before = {OK: 100, client(): 0}
    assert between(before, {**before, OK: 140, lost(flags=flags): 7}).canary.requests == 40 + counted


def test_lost_requests_are_shared_between_warm_and_warming_pods_as_those_that_were_served() -> None:
    warm, young = requests(pod="c1", exporter="c1"), requests(pod="c2", exporter="c2")
    before = {warm: 0, young: 0, client(): 0}
    births = {"c2": T0}
    found = between(before, {warm: 60, young: 20, client(): 0, lost(): 8}, first_seen=births, warm_up=2 * MINUTE).canary
    assert (found.requests, found.failures) == (88, 8)
    assert (found.young_requests, found.young_failures) == (22, 2)
    found = between(before, {**before, lost(): 8}, first_seen={**births, "c1": T0}, warm_up=2 * MINUTE).canary
    assert (found.young_requests, found.young_failures) == (8, 8)


def test_lost_requests_count_for_neither_arm_where_served_ones_are_not_known() -> None:
    """A pod's counters without a usable start: what it served is left out, so what was lost would be all there is."""
    before = {STABLE_OK: 900, client(): 0, client(S): 0}
    late = requests(pod="c9", exporter="c9")
    found = between(before, {**before, STABLE_OK: 1000, late: 500, lost(): 2, lost(S): 2})
    assert (found.canary.requests, found.stable.requests, found.stable.failures) == (0, 100, 0)
    started = {"c9": T0 + MINUTE / 2}
    found = between(before, {**before, STABLE_OK: 1000, late: 500, lost(): 2, lost(S): 2}, started=started)
    assert (found.canary.requests, found.canary.failures, found.stable.failures) == (502, 2, 2)


def test_clients_are_no_pods() -> None:
    assert pods(Reading(T0, {OK: 1, lost(): 3}), C) == {"c1"}
