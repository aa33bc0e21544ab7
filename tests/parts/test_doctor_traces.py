"""What the doctor says of traces, on a server that answers as Jaeger does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from jaeger_server import JaegerLike, otlp_span

from canaryd.adapters.jaeger import JaegerSource
from canaryd.config import Settings
from canaryd.doctor.findings import Finding, Severity, examine
from canaryd.doctor.traces import CHECKS, reachable, share_of, spans
from canaryd.model import Arm, CounterKey, Reading
from canaryd.policy import Canary, parse_canary
from canaryd.ports import CountsAnswer
from canaryd.spans import nanoseconds

AT = datetime.now(UTC)


def document() -> Canary:
    return parse_canary(
        {
            "apiVersion": "canaryd.io/v1alpha1",
            "kind": "Canary",
            "metadata": {"name": "api"},
            "spec": {"workloads": {"pools": ["blue", "green"]}, "route": {"envoyFile": {"path": "/none.yaml"}}},
        }
    )


@dataclass
class Subject:
    canary: Canary = field(default_factory=document)
    about: str = "api"
    stable: str = "blue"
    workload: str = "green"
    past: CountsAnswer = field(default_factory=lambda: CountsAnswer(()))


@dataclass
class Site:
    settings: Settings | None
    subjects: tuple[Any, ...]
    at: datetime = AT


@pytest.fixture
def server() -> Iterator[JaegerLike]:
    with JaegerLike("2.20").serving() as server:
        yield server


def put(server: JaegerLike, version: str, n: int, *, ago: float = 60.0, service: str = "api") -> None:
    for i in range(n):
        at = nanoseconds(AT) - round(ago * 1e9) + i * 1_000_000
        trace = f"{abs(hash((version, i, ago, service))):x}"
        server.put(service, otlp_span(trace, "1", start=at, service_version=version))


def said(found: Iterator[Finding], severity: Severity) -> str:
    return "; ".join(f"{f.what} {f.why} {f.remedy}" for f in found if f.severity is severity)


def test_both_arms_sampled_alike_are_fine(server: JaegerLike) -> None:
    put(server, "blue", 180)
    put(server, "green", 20)
    found = list(spans(Subject(), JaegerSource(server.url), AT, 10.0))
    assert [f.severity for f in found] == [Severity.FINE] * 3
    assert "180 requests of stable with spans" in said(iter(found), Severity.FINE)
    assert "sampled alike: 10.0%" in said(iter(found), Severity.FINE)


def test_a_canary_that_is_sampled_otherwise_is_found(server: JaegerLike) -> None:
    put(server, "blue", 100)
    put(server, "green", 100)
    assert "not sampled alike" in said(spans(Subject(), JaegerSource(server.url), AT, 10.0), Severity.WARNING)


def test_a_canary_without_spans_is_missed_only_when_it_has_requests(server: JaegerLike) -> None:
    put(server, "blue", 100)
    put(server, "other", 5)
    source = JaegerSource(server.url)
    assert said(spans(Subject(), source, AT, None), Severity.WARNING) == ""
    told = said(spans(Subject(), source, AT, 10.0), Severity.WARNING)
    assert "no spans of canary" in told
    assert "spans say blue, other" in told


def test_a_service_that_is_called_otherwise_is_told_with_what_there_is(server: JaegerLike) -> None:
    put(server, "blue", 3, service="api.shop")
    told = said(spans(Subject(), JaegerSource(server.url), AT), Severity.WARNING)
    assert "no spans of the service api" in told
    assert "There are: api.shop" in told


def test_a_clock_that_is_ahead_is_found(server: JaegerLike) -> None:
    put(server, "blue", 3)
    put(server, "blue", 3, ago=-40)
    assert "spans begin 40 s in the future" in said(spans(Subject(), JaegerSource(server.url), AT), Severity.WARNING)


def test_a_jaeger_that_is_not_there_is_an_error_and_one_that_is_says_how_it_is_asked(server: JaegerLike) -> None:
    assert "2.19 and later" in said(reachable(JaegerSource(server.url)), Severity.FINE)
    assert "connection refused" in said(reachable(JaegerSource("http://127.0.0.1:1")), Severity.ERROR)
    assert "connection refused" in said(spans(Subject(), JaegerSource("http://127.0.0.1:1"), AT), Severity.WARNING)


def test_the_share_of_requests_comes_from_counters() -> None:
    def reading(ago: float, stable: float, canary: float) -> Reading:
        keys = {arm: CounterKey(arm, str(arm), str(arm), "requests", "200", "-", "", 0.0) for arm in Arm}
        counters = {keys[Arm.STABLE]: stable, keys[Arm.CANARY]: canary}
        return Reading(AT - timedelta(seconds=ago), counters)

    known = Subject(past=CountsAnswer((reading(300, 100, 0), reading(60, 190, 10))))
    assert share_of(known, AT) == 10.0
    assert share_of(Subject(), AT) is None
    assert share_of(object(), AT) is None


def test_the_checks_say_nothing_where_no_source_is_set_and_all_of_it_where_one_is(server: JaegerLike) -> None:
    put(server, "blue", 30)
    without = Settings.model_validate({})
    assert list(examine(CHECKS, Site(without, (Subject(),)), str)) == []
    assert list(examine(CHECKS, Site(None, (Subject(),)), str)) == []
    settings = Settings.model_validate({"traces": {"jaeger": {"url": server.url}}})
    found = list(examine(CHECKS, Site(settings, (Subject(),)), str))
    assert [name for name, _ in found] == ["Jaeger", "traces"]
