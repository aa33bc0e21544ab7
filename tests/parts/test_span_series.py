"""Counters of spans in a real Prometheus, as the spanmetrics connector makes them: whose they are, what they count."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from math import inf
from pathlib import Path

import pytest
from test_prometheus_source import STEP, History, line, query, start_of_samples

from canaryd.adapters.prometheus import SPANS_PER_REQUEST, PrometheusSource
from canaryd.demo.processes import Nursery, fetch
from canaryd.demo.prometheus import Prometheus
from canaryd.measure import Case, Measurer
from canaryd.model import Arm, Phase, RolloutState, RouteView
from canaryd.policy import SpanMetrics, parse_canary
from canaryd.ports import CountsQuery, SpanQuery
from canaryd.spans import ArmTags
from canaryd.tally import of_counters

pytestmark = pytest.mark.prometheus

NAMES = SpanMetrics()
ARMS = ArmTags("", ("api-a", "v1"), ("api-b", "v2"))


def spans(history: History, service: str, name: str, per_second: int, failed: int = 0, **labels: str) -> None:
    """So many spans a second, a third of them slower than 50 ms."""
    common = {"service_name": service, "span_name": name, "span_kind": "SPAN_KIND_SERVER", "instance": "otel:8889"}
    common |= labels
    for status, slope in (("STATUS_CODE_UNSET", per_second - failed), ("STATUS_CODE_ERROR", failed)):
        if slope:
            history.add(NAMES.calls, {**common, "status_code": status}, line(slope=slope))
            for le, share in (("10", 0), ("50", 2), ("+Inf", 3)):
                bucket = {**common, "status_code": status, "le": le}
                history.add(NAMES.durations, bucket, line(slope=slope * share))


def told(start: datetime) -> History:
    """Two arms by their version, further dimensions, an arm by its pod, a foreign service, clients, replicas."""
    history = History(start)
    for arm, version in (("api-a", "v1"), ("api-b", "v2")):
        history.requests(arm, "200", lambda s: 30 * s, pod=f"{arm}-1")
        for code in ("200", "204"):
            spans(history, "api.shop", "api:80/pay*", 6, 1, istio_canonical_revision=version, http_status_code=code)
    spans(history, "api.shop", "api-stable.shop.svc.cluster.local:8080/pay*", 3, istio_canonical_revision="v1")
    spans(history, "api.shop", "GET /only-client", 9, istio_canonical_revision="v1", span_kind="SPAN_KIND_CLIENT")
    spans(history, "api.shop", "GET /nobody", 9, istio_canonical_revision="v3")
    spans(history, "other.shop", "GET /", 9, istio_canonical_revision="v1")
    for replica in ("0", "1"):
        spans(history, "api.shop", "GET /twice", 6, istio_canonical_revision="v1", prometheus_replica=replica)
    spans(history, "pods.shop", "GET /", 3, istio_canonical_revision="latest", k8s_pod_name="api-a-7d9f-x2x")
    spans(history, "pods.shop", "GET /", 6, istio_canonical_revision="latest", k8s_pod_name="api-b-7d9f-x2x")
    for le, share in (("0.05", 2), ("+Inf", 3)):
        labels = {"service_name": "api.shop", "span_name": "GET /s", "span_kind": "SPAN_KIND_SERVER", "le": le}
        history.add("in_seconds_bucket", {**labels, "service_version": "v2"}, line(slope=share))
    return history


@pytest.fixture(scope="module")
def start() -> datetime:
    return start_of_samples()


@pytest.fixture(scope="module")
def server(start: datetime, tmp_path_factory: pytest.TempPathFactory, prometheus_binary: Path) -> Iterator[Prometheus]:
    directory = tmp_path_factory.mktemp("spans")
    told(start).write(directory)
    with Nursery(directory / "log") as nursery:
        nowhere = "http://127.0.0.1:9/metrics"
        prometheus = Prometheus(nursery, directory / "prometheus", nowhere, "1m", binary=prometheus_binary)
        prometheus.start()
        yield prometheus


@pytest.fixture
def source(server: Prometheus) -> PrometheusSource:
    return PrometheusSource(server.url, timeout=timedelta(seconds=10))


def asked(start: datetime, name: str = "api", **more: object) -> CountsQuery:
    wanted = SpanQuery("spans", "api.shop", ARMS, NAMES.calls, NAMES.durations, ("api", "api-stable", "api-canary"))
    return replace(query(start, name, "api-a", "api-b"), spans=replace(wanted, **more))  # type: ignore[arg-type]


def counted(source: PrometheusSource, by: CountsQuery) -> Mapping[str, list[list[float]]]:
    """Of the last interval, by operation: all and failed ones of stable and of the canary."""
    before, after = source.read([by])[by.canary].readings[-2:]
    found = of_counters(before, after)
    assert found is not None
    return {name: found.spans[i].tolist() for i, name in enumerate(found.operations)}


def test_spans_are_counted_exactly_by_operation_and_arm(source: PrometheusSource, start: datetime) -> None:
    """5 s of 12 and 3 spans a second; the two names of one route are one operation, replicas are no second span."""
    assert counted(source, asked(start)) == {
        "api/pay*": [[75, 10], [60, 10]],
        "GET /twice": [[30, 0], [0, 0]],
    }


def test_durations_come_in_milliseconds_with_their_buckets(source: PrometheusSource, start: datetime) -> None:
    before, after = source.read([asked(start)])["api"].readings[-2:]
    found = of_counters(before, after)
    assert found is not None
    assert found.edges.tolist() == [10, 50]
    at = found.operations.index("api/pay*")
    assert found.durations[at, 1].tolist() == [0, 120, 60]
    seconds = source.read([asked(start, durations="in_seconds_bucket")])["api"].readings[-1].spans
    assert {key.le for key in seconds if key.name == "took"} == {50.0, inf}


def test_where_versions_are_alike_the_pod_tells_the_arm(source: PrometheusSource, start: datetime) -> None:
    assert counted(source, asked(start, service="pods.shop")) == {"GET /": [[15, 0], [30, 0]]}


def test_a_service_without_spans_has_requests_all_the_same(source: PrometheusSource, start: datetime) -> None:
    answer = source.read([asked(start, service="nobody")])["api"]
    assert len(answer.readings) == 4
    assert all(not reading.spans for reading in answer.readings)
    assert answer.unseen == {}


def test_counters_that_cannot_be_read_blind_their_metric_alone(server: Prometheus, start: datetime) -> None:
    """The answer with all spans is too large; the one without is not."""
    small = PrometheusSource(server.url, timeout=timedelta(seconds=10), max_bytes=6_000)
    found = small.read([replace(asked(start), durations=False)])["api"]
    assert len(found.readings) == 4
    assert "spans" in found.unseen


def asked_so_far(server: Prometheus) -> int:
    page = fetch(f"{server.url}/metrics")[1].decode()
    found = re.search(r'prometheus_http_requests_total\{code="200",handler="/api/v1/query_range"\} (\d+)', page)
    return int(found[1]) if found else 0


def test_twenty_canaries_are_answered_by_one_request_more(
    server: Prometheus, source: PrometheusSource, start: datetime
) -> None:
    many = [replace(asked(start, f"many{i}"), durations=False) for i in range(SPANS_PER_REQUEST)]
    source.read(many)  # which recorded metrics there are, and the starts of pods, are remembered
    first = asked_so_far(server)
    answers = source.read(many)
    assert asked_so_far(server) - first == 2
    assert all(answer.readings[-1].spans for answer in answers.values())


def test_from_the_counters_of_a_real_prometheus_to_a_verdict(source: PrometheusSource, start: datetime) -> None:
    """The canary is as good as stable; its spans are seen, alike, and hold nothing up."""
    document = {
        "apiVersion": "canaryd.io/v1alpha1",
        "kind": "Canary",
        "metadata": {"name": "api"},
        "spec": {
            "workloads": {"pools": ["api-a", "api-b"]},
            "route": {"envoyFile": {"path": "x"}},
            "interval": "5s",
            "warmUp": "0s",
            "metrics": [
                {"name": "errors", "kind": "errors"},
                {
                    "name": "spans",
                    "kind": "traces",
                    "service": "api.shop",
                    "arms": {"stable": ["v1"], "canary": ["v2"]},
                },
            ],
        },
    }
    canary = parse_canary(document)
    state = RolloutState(
        stable="api-a", canary="api-b", phase=Phase.PROGRESSING, step=3, weight=50, routed=start, started=start
    )
    source.lag = timedelta(0)
    measurer = Measurer(source, history=3)
    for seconds in (18, 34, 40):
        case = Case(canary=canary, state=state, route=RouteView(50, version=1, stamped_weight=50))
        measurer.measure([case], start + timedelta(seconds=seconds))
        state = replace(state, evidence=case.evidence or state.evidence)
    assert state.evidence is not None
    held = state.evidence.spans
    assert held is not None
    assert held.source == "spanmetrics"
    assert "api/pay*" in held.operations
    assert case.judgement is not None
    finding = next(f for f in case.judgement.findings if f.metric == "spans")
    assert finding.canary_n > 0
    assert finding.toward_rollback < 1


def test_arms_are_the_same_whoever_asks() -> None:
    assert ARMS.arm({"istio.canonical_revision": "v1"})[0] is Arm.STABLE
    assert timedelta(seconds=5) == STEP
