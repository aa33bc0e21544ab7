"""A real Jaeger, fed through OTLP by a real Envoy and by services in two versions: what canaryd finds in it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from jaeger_server import otlp_span

from canaryd.adapters.jaeger import Api, JaegerSource
from canaryd.demo.lab import Lab, PoolSpec, ServiceSpec
from canaryd.demo.processes import fetch, wait_until
from canaryd.errors import SourceError
from canaryd.model import Arm
from canaryd.ports import TraceQuery
from canaryd.spans import ArmTags, Span, nanoseconds
from canaryd.traces.asking import Asking
from canaryd.traces.evidence import gather
from canaryd.traces.requests import requests

pytestmark = pytest.mark.envoy

ARMS = ArmTags("", ("v1",), ("v2",))
ASKING = Asking("api", "api", ARMS, ("api", "api-blue", "api-green"))
SPECS = tuple(
    ServiceSpec(
        name,
        tuple(
            PoolSpec(f"{name}-{colour}", version, errors=0.0, latency_ms=2, latency_sigma=0.1)
            for colour, version in (("blue", "v1"), ("green", "v2"))
        ),
    )
    for name in ("api", "ledger")
)
OPERATIONS = tuple(f"/op-{i}" for i in range(30))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, jaeger_binary: Path) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab"), SPECS, jaeger=jaeger_binary) as lab:
        lab.set_weights("api", {"api-blue": 50, "api-green": 50})
        yield lab


@pytest.fixture
def source(lab: Lab) -> JaegerSource:
    return JaegerSource(lab.jaeger.url, external_url="https://jaeger.example.com")


def now() -> datetime:
    return datetime.now(UTC)


def ask(lab: Lab, n: int, paths: Sequence[str] = OPERATIONS, workers: int = 8) -> None:
    """n requests to the api, through Envoy, whatever is answered."""

    def some(worker: int) -> None:
        connection = http.client.HTTPConnection(lab.front_url("api").removeprefix("http://"), timeout=5)
        for i in range(worker, n, workers):
            connection.request("GET", paths[i % len(paths)])
            connection.getresponse().read()
        connection.close()

    threads = [threading.Thread(target=some, args=(i,)) for i in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def asked_and_found(lab: Lab, source: JaegerSource, n: int, **about: Any) -> dict[str, Any]:
    """The evidence of n requests, once the spans of all have arrived."""
    began, before = now(), [0]
    ask(lab, n, **about)

    def evidence() -> dict[str, Any] | None:
        """Other services' spans come in batches of their own: nothing more has come since the look before."""
        there = len(source.find(ASKING.query(began, now() + timedelta(seconds=1))).spans)
        before[:], last = [there], before[0]
        found = gather(source, ASKING, began, now() + timedelta(seconds=1))
        return found if there == last and sum(found["requests"].values()) >= n and all(settled(source, began)) else None

    found = wait_until(evidence, f"{n} requests in Jaeger", timeout=15, every=1.0)
    assert found is not None
    return found


def settled(source: JaegerSource, began: datetime) -> Iterator[bool]:
    """Every request has its service's own span below Envoy's, too."""
    spans = source.find(ASKING.query(began, now() + timedelta(seconds=1))).spans
    return (len([s for s in r.spans if s.service == "api" and s.kind == "server"]) == 2 for r in requests(spans, "api"))


@pytest.fixture
def behaving(lab: Lab) -> Iterator[Lab]:
    """The same, and whatever a test makes of the services is undone."""
    yield lab
    for pool in ("api-blue", "api-green", "ledger-blue"):
        lab.behave(pool, errors=0.0, only="", calls="", latency_ms=2, latency_sigma=0.1)


def test_this_jaeger_is_of_the_generation_before_filters(source: JaegerSource) -> None:
    assert source.api() is Api.V3


def test_envoys_span_and_the_services_own_are_one_request_of_the_right_arm(behaving: Lab, source: JaegerSource) -> None:
    began = now()
    found = asked_and_found(behaving, source, 40, paths=["/one"])
    assert found["requests"]["stable"] + found["requests"]["canary"] == 40
    assert min(found["requests"].values()) >= 8  # of 40 at 50 %
    spans = source.find(ASKING.query(began, now())).spans
    assert {(r.entry.facts["http.status_code"], len(r.spans)) for r in requests(spans, "api")} == {("200", 2)}
    assert all(r.entry.duration >= r.spans[1].duration for r in requests(spans, "api"))


def test_a_healthy_canary_shows_nothing_but_its_slowest_traces(behaving: Lab, source: JaegerSource) -> None:
    found = asked_and_found(behaving, source, 600)
    assert [e["error"] for e in found["exemplars"]] == [False] * 5
    assert (found["onlyCanaryFails"], found["newCalls"]) == ([], [])
    # a busy machine may hold one of the processes up for a while, which is a difference; but not what a slow call is
    assert all(extra["canaryMs"] - extra["stableMs"] < 20 for extra in found["criticalPath"])
    assert found["exemplars"][0]["url"].startswith("https://jaeger.example.com/trace/")


def test_a_canary_that_calls_a_new_slow_service_is_explained(behaving: Lab, source: JaegerSource) -> None:
    behaving.behave("ledger-blue", latency_ms=60, latency_sigma=0.1)
    behaving.behave("api-green", calls=behaving.front_url("ledger") + "/book")
    found = asked_and_found(behaving, source, 240, paths=["/pay"])
    (call,) = found["newCalls"]
    assert (call["service"], call["canaryPerRequest"], call["stablePerRequest"]) == ("ledger", 1.0, 0.0)
    extra = found["criticalPath"][0]
    assert (extra["service"], extra["operation"]) == ("ledger", "GET /book")
    assert 50 <= extra["canaryMs"] - extra["stableMs"] <= 100
    assert extra["canaryN"] == found["requests"]["canary"]


def test_a_canary_that_fails_one_operation_of_thirty_is_found_with_traces_to_look_at(
    behaving: Lab, source: JaegerSource
) -> None:
    behaving.behave("api-green", errors=1.0, only="/op-7")
    found = asked_and_found(behaving, source, 900)
    failing = {(o["service"], o["operation"]): o for o in found["onlyCanaryFails"]}
    assert ("api", "GET /op-7") in failing
    assert {operation for _, operation in failing if operation.startswith("GET")} == {"GET /op-7"}
    one = failing["api", "GET /op-7"]
    assert one["canaryErrors"] == one["canaryN"] >= 5
    assert one["stableErrors"] == 0
    assert [e["error"] for e in found["exemplars"]] == [True] * 5
    assert {e["status"] for e in found["exemplars"]} == {"500"}
    assert all("GET /op-7" in e["facts"]["cause"] for e in found["exemplars"])


# ── what was put in beforehand, so that every number is known ────────────────────────────────────────────────


def put(lab: Lab, service: str, spans: Sequence[dict[str, Any]], version: str = "v1") -> int:
    about = {"service.name": service, "service.version": version}
    resource = {"attributes": [{"key": k, "value": {"stringValue": v}} for k, v in about.items()]}
    body = json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]})
    connection = http.client.HTTPConnection("127.0.0.1", lab.jaeger.otlp_http, timeout=10)
    connection.request("POST", "/v1/traces", body, {"content-type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status


def found_at_last(source: JaegerSource, query: TraceQuery, n: int) -> tuple[Span, ...]:
    def enough() -> tuple[Span, ...]:
        spans = source.find(query).spans
        return spans if len(spans) >= n else ()

    return wait_until(enough, f"{n} spans in Jaeger", timeout=15, every=0.2)


def test_twenty_thousand_spans_of_one_minute_are_all_found_in_time(lab: Lab) -> None:
    end = now()
    start = end - timedelta(minutes=1)
    for part in range(10):
        spans = []
        for i in range(part * 500, part * 500 + 500):
            trace, at = f"b{i:05x}", nanoseconds(start) + i * 12_000_000 + 1_000
            spans += [otlp_span(trace, f"{j:x}", start=at, parent="1" if j > 1 else "", ms=3.0) for j in range(1, 5)]
        assert put(lab, "busy", spans, version=f"v{part % 2 + 1}") == 200
    source = JaegerSource(lab.jaeger.url, timeout=timedelta(seconds=20))
    query = TraceQuery("busy", "busy", start, end, ARMS)
    found_at_last(source, replace(query, start=end - timedelta(seconds=1)), 332)  # the last of them are there
    began = time.monotonic()
    answer = source.find(query)
    took = time.monotonic() - began
    print(f"\n20 000 spans of 5000 traces: {took:.2f} s")
    assert (len(answer.spans), answer.complete, answer.note) == (20_000, True, "")
    assert len({(s.trace, s.id) for s in answer.spans}) == 20_000
    assert sum(s.arm is Arm.CANARY for s in answer.spans) == 10_000
    assert took < 20


def test_every_condition_is_kept_by_the_real_one(lab: Lab, source: JaegerSource) -> None:
    end = now()
    start = end - timedelta(seconds=30)
    for version, first in (("v1", 1), ("v2", 101)):
        spans = [
            otlp_span(
                f"c{i:x}", "1", start=nanoseconds(start) + i * 10**7, ms=float(i), error=i % 10 == 0, name=f"op{i % 2}"
            )
            for i in range(first, first + 100)
        ]
        assert put(lab, "known", spans, version) == 200
    query = TraceQuery("known", "known", start, end, ARMS, limit=30)
    found_at_last(source, query, 200)

    everything = source.find(query)
    assert everything.complete
    assert len(everything.spans) == 200
    assert len(source.find(replace(query, errors=True)).spans) == 20
    assert len(source.find(replace(query, arm=Arm.CANARY)).spans) == 100
    assert len(source.find(replace(query, slower_ms=150.0)).spans) == 51
    assert len(source.find(replace(query, operation="op1")).spans) == 100
    small = JaegerSource(lab.jaeger.url, limit=20)
    few = small.find(replace(query, errors=True, limit=3, newest=True))
    assert (few.complete, max(s.duration for s in few.spans)) == (False, 200)
    assert 3 <= len(few.spans) < 20


def test_what_its_receiver_refuses_changes_nothing(lab: Lab, source: JaegerSource) -> None:
    bad = [{"traceId": "not hex", "spanId": "1", "name": "x", "startTimeUnixNano": "1", "endTimeUnixNano": "2"}]
    assert put(lab, "refused", bad) == 400
    odd = otlp_span("d1", "1", start=nanoseconds(now()), ms=-50.0, parent="1")  # taken, and its duration corrected
    assert put(lab, "odd", [odd]) == 200
    query = TraceQuery("odd", "odd", now() - timedelta(minutes=1), now() + timedelta(minutes=1), ARMS)
    note = wait_until(lambda: source.find(query).note, "the span that is its own parent", timeout=10)
    assert note == "1 span left out that is its own ancestor"
    assert "refused" not in source.services()


def test_a_small_storage_is_asked_for_what_it_holds(tmp_path: Path, jaeger_binary: Path) -> None:
    from canaryd.demo.jaeger import Jaeger
    from canaryd.demo.processes import Nursery

    with Nursery(tmp_path / "log") as nursery:
        jaeger = Jaeger(nursery, tmp_path / "jaeger", binary=jaeger_binary, max_traces=100)
        jaeger.start()
        source = JaegerSource(jaeger.url)
        query = TraceQuery("x", "x", now() - timedelta(minutes=1), now(), ARMS)
        assert source.find(query).complete
        jaeger.child.kill()
        with pytest.raises(SourceError, match="connection refused"):
            source.find(query)
        jaeger.start()
        assert source.find(query).spans == ()


def test_a_jaeger_that_hangs_is_left_in_time(lab: Lab) -> None:
    source = JaegerSource(lab.jaeger.url, timeout=timedelta(seconds=0.5))
    source.api()
    lab.jaeger.child.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(SourceError, match=r"no complete answer within 0\.5 s"):
            source.find(ASKING.query(now() - timedelta(minutes=1), now()))
        assert time.monotonic() - began < 1.5
    finally:
        lab.jaeger.child.thaw()
    assert fetch(f"{lab.jaeger.url}/api/v3/services")[0] == 200
