"""What every trace source promises, run over the registry and over every generation of Jaeger's API."""

from __future__ import annotations

import base64
import json
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from jaeger_server import JaegerLike, otlp_span
from test_metric_source import Script, Server, http

from canaryd.adapters import TRACE_SOURCES
from canaryd.adapters.jaeger import Api, JaegerSource
from canaryd.adapters.memory import MemoryTraces
from canaryd.errors import SourceError
from canaryd.model import Arm
from canaryd.ports import TraceQuery, TraceSource
from canaryd.spans import ArmTags, Span, nanoseconds, span_of

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
END = START + timedelta(minutes=1)
ARMS = ArmTags("", ("v1",), ("v2",))
QUERY = TraceQuery("shop/api", "api", START, END, ARMS)
GENERATIONS = ("1.60", "2.13", "2.20", "2.21")
SECRET = "hunter2hunter2"


def ns(seconds: float) -> int:
    return nanoseconds(START) + round(seconds * 1e9)


def traces(count: int, *, first: int = 1, spread: float = 50.0) -> list[tuple[str, dict[str, Any]]]:
    """(service, span): a root of the gateway, the api and its database, for each trace; every tenth fails in v2."""
    out = []
    for i in range(first, first + count):
        trace, at = f"{i:x}", ns(1 + spread * (i - first) / max(count, 1))
        version = "v2" if i % 2 == 0 else "v1"
        out += [
            ("gateway", otlp_span(trace, f"{i:x}1", start=at, ms=30)),
            (
                "api",
                otlp_span(
                    trace,
                    f"{i:x}2",
                    parent=f"{i:x}1",
                    start=at + 10**6,
                    ms=20 + i % 10,
                    error=i % 10 == 0,
                    service_version=version,
                ),
            ),
            ("db", otlp_span(trace, f"{i:x}3", parent=f"{i:x}2", start=at + 2 * 10**6, ms=3, name="SELECT", kind=3)),
        ]
    return out


class Subject:
    """A source, and how spans get into it."""

    def __init__(self, source: TraceSource, put: Callable[[str, dict[str, Any]], None]) -> None:
        self.source, self._put = source, put

    def put(self, given: list[tuple[str, dict[str, Any]]]) -> None:
        for service, span in given:
            self._put(service, span)


def as_span(service: str, raw: dict[str, Any]) -> Span:
    """The same in canaryd's words, written down independently of the adapter's reading."""
    start = int(raw["startTimeUnixNano"])
    return span_of(
        trace=raw["traceId"],
        id_=raw["spanId"],
        parent=raw["parentSpanId"],
        service=service,
        name=raw["name"],
        kind=("", "internal", "server", "client")[raw["kind"]],
        start=start,
        duration=(int(raw["endTimeUnixNano"]) - start) / 1e6,
        error=raw["status"].get("code") == 2,
        tags={a["key"]: a["value"]["stringValue"] for a in raw["attributes"]},
        resource={},
        arms=ARMS,
    )


@pytest.fixture(params=["memory", *(f"jaeger {g}" for g in GENERATIONS)])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    if request.param == "memory":
        memory = MemoryTraces()
        yield Subject(memory, lambda service, raw: memory.put(as_span(service, raw)))
        return
    with JaegerLike(request.param.removeprefix("jaeger ")).serving() as server:
        yield Subject(JaegerSource(server.url), server.put)


def ids(spans: tuple[Span, ...]) -> set[int]:
    return {int(s.trace, 16) for s in spans}


def test_every_registered_source_is_tested_here() -> None:
    assert set(TRACE_SOURCES) == {"memory", "jaeger"}


def test_nothing_found_is_an_answer(subject: Subject) -> None:
    answer = subject.source.find(QUERY)
    assert (answer.spans, answer.complete, answer.note) == ((), True, "")


def test_a_trace_is_given_whole_with_the_spans_of_other_services(subject: Subject) -> None:
    subject.put(traces(1))
    given = {s.service: s for s in subject.source.find(QUERY).spans}
    assert set(given) == {"gateway", "api", "db"}
    api = given["api"]
    assert (api.parent, api.kind, api.duration, api.error, api.arm) == (
        given["gateway"].id,
        "server",
        21,
        False,
        Arm.STABLE,
    )
    assert (given["gateway"].parent, given["db"].parent, given["db"].operation) == ("", api.id, "SELECT")
    assert api.start == ns(1) + 10**6


def test_only_spans_of_the_service_decide_about_the_time(subject: Subject) -> None:
    subject.put(traces(2, spread=20))
    only = TraceQuery("shop/api", "api", START + timedelta(seconds=5), END, ARMS)
    assert ids(subject.source.find(only).spans) == {2}
    at = START + timedelta(seconds=1, milliseconds=1)
    assert ids(subject.source.find(replace(QUERY, start=at)).spans) == {2}  # (start, end]
    assert ids(subject.source.find(replace(QUERY, end=at)).spans) == {1}


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ({"arm": Arm.CANARY}, {2, 4, 6, 8, 10, 12, 14, 16, 18, 20}),
        ({"errors": True}, {10, 20}),
        ({"slower_ms": 28.5}, {9, 19}),
        ({"operation": "SELECT"}, set()),
        ({"arm": Arm.STABLE, "slower_ms": 28.0}, {9, 19}),
        ({"service": "nobody"}, set()),
    ],
)
def test_each_condition_is_kept(subject: Subject, condition: dict[str, Any], wanted: set[int]) -> None:
    subject.put(traces(20))
    answer = subject.source.find(replace(QUERY, **condition))
    assert ids(answer.spans) == wanted
    assert answer.complete


def test_more_traces_than_one_answer_holds_are_all_found(subject: Subject) -> None:
    subject.put(traces(100))
    answer = subject.source.find(replace(QUERY, limit=7))
    assert ids(answer.spans) == set(range(1, 101))
    assert len(answer.spans) == 300
    assert (answer.complete, answer.note) == (True, "")


def test_the_newest_that_match_are_enough_when_that_is_said(subject: Subject) -> None:
    subject.put(traces(100))
    answer = subject.source.find(replace(QUERY, errors=True, limit=2, newest=True))
    assert {90, 100} <= ids(answer.spans) <= set(range(10, 101, 10))


def test_an_answer_may_be_asked_for_again(subject: Subject) -> None:
    subject.put(traces(10))
    assert subject.source.find(QUERY) == subject.source.find(QUERY)


# ── Jaeger: what it is asked ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("generation", "api", "path"),
    [
        ("1.60", Api.LEGACY, "/api/traces"),
        ("2.13", Api.V3, "/api/v3/traces"),
        ("2.20", Api.V3_ATTRIBUTES, "/api/v3/traces"),
        ("2.21", Api.V3_ATTRIBUTES, "/api/v3/traces"),
    ],
)
def test_a_server_is_asked_once_what_it_is(generation: str, api: Api, path: str) -> None:
    with JaegerLike(generation).serving() as server:
        source = JaegerSource(server.url)
        assert source.api() is api
        server.asked.clear()
        source.find(QUERY)
        source.find(QUERY)
        assert [asked for asked, _ in server.asked] == [path, path]


def test_a_server_that_was_replaced_by_a_newer_one_is_recognised_at_the_second_search() -> None:
    with JaegerLike("1.60").serving() as server:
        source = JaegerSource(server.url)
        server.put("api", otlp_span("1", "1", start=ns(5)))
        assert len(source.find(QUERY).spans) == 1
        server.generation = "2.21"
        with pytest.raises(SourceError, match="200"):
            source.find(QUERY)
        assert len(source.find(QUERY).spans) == 1


def test_where_the_server_can_it_filters_by_the_tag_of_the_arm() -> None:
    with JaegerLike("2.21").serving() as server:
        source = JaegerSource(server.url)
        source.find(replace(QUERY, arm=Arm.CANARY, arms=ArmTags("service.version", ("v1",), ("v2",))))
        assert json.loads(server.asked[-1][1]["query.attributes"]) == {"service.version": "v2"}


def test_a_storage_that_holds_less_than_was_asked_for_is_asked_for_less() -> None:
    with JaegerLike("2.13", most=100).serving() as server:
        source = JaegerSource(server.url)
        for service, span in traces(90):
            server.put(service, span)
        assert len(ids(source.find(QUERY).spans)) == 90
        server.asked.clear()
        source.find(QUERY)
        assert int(server.asked[0][1]["query.num_traces"]) <= 100  # and remembers it


def test_more_traces_in_an_instant_than_an_answer_holds_are_said_to_be_missing() -> None:
    with JaegerLike("2.13").serving() as server:
        for service, span in traces(50, spread=0):
            server.put(service, span)
        answer = JaegerSource(server.url).find(replace(QUERY, limit=20))
        assert not answer.complete
        assert answer.note.startswith("truncated: too many traces within 10 ms")


def test_a_base_path_is_kept() -> None:
    with JaegerLike("2.13").serving() as server:
        with pytest.raises(SourceError, match="neither /api/v3 nor /api/traces"):
            JaegerSource(server.url + "/jaeger/").find(QUERY)
        assert server.asked[0][0] == "/jaeger/api/v3/services"


def test_the_services_are_known_by_name() -> None:
    for generation in GENERATIONS:
        with JaegerLike(generation).serving() as server:
            server.put("b", otlp_span("1", "1", start=ns(1)))
            server.put("a", otlp_span("1", "2", start=ns(1)))
            assert JaegerSource(server.url).services() == ("a", "b")


def test_a_link_is_for_people() -> None:
    assert JaegerSource("http://q", external_url="https://jaeger.example.com/").url("ab") == (
        "https://jaeger.example.com/trace/ab"
    )
    assert JaegerSource("http://q").url("ab") == ""


# ── Jaeger: servers that misbehave ───────────────────────────────────────────────────────────────────────────


def v3(script: Script) -> Script:
    """A server of 2.13 that answers a search as the script says."""

    def answer(request: bytes) -> Iterator[bytes | float]:
        if b" /api/v3/services" in request:
            yield http('{"services":[]}')
        elif b" /api/v3/traces" in request:
            yield from script(request)
        else:
            yield http("<html>")

    return answer


def source_of(server: Server, seconds: float = 20.0, **more: Any) -> JaegerSource:
    return JaegerSource(f"http://127.0.0.1:{server.port}", timeout=timedelta(seconds=seconds), **more)


def hangs(_: bytes) -> Iterator[bytes | float]:
    yield 30.0


def drips(_: bytes) -> Iterator[bytes | float]:
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{"
    while True:
        yield 0.05
        yield b" "


def huge(_: bytes) -> Iterator[bytes | float]:
    yield b"HTTP/1.1 200 OK\r\n\r\n" + b'{"result":{"resourceSpans":['
    while True:
        yield b"{}," * 100_000


def says(status: str, body: str) -> Script:
    return lambda _: iter([http(body, status)])


@pytest.mark.parametrize("bad", [hangs, drips], ids=["hangs", "drips"])
def test_a_server_without_an_end_is_left_in_time(bad: Script) -> None:
    with Server(v3(bad)) as server:
        began = time.monotonic()
        with pytest.raises(SourceError, match=r"within 0\.6 s"):
            source_of(server, 0.6).find(QUERY)
        assert time.monotonic() - began < 1.6


def test_an_answer_without_an_end_is_no_complete_one() -> None:
    """Whether time or size ends it first is a matter of the machine."""
    with Server(v3(huge)) as server:
        began = time.monotonic()
        try:
            answer = source_of(server, 0.6, max_bytes=20_000_000).find(QUERY)
        except SourceError as e:
            said, complete = str(e), False
        else:
            said, complete = answer.note, answer.complete
        assert time.monotonic() - began < 1.6
        assert not complete
        assert re.search(r"within 0\.6 s|truncated|too large", said), said


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (says("500 Internal Server Error", '{"error":{"message":"storage is gone"}}'), "500 .*storage is gone"),
        (says("502 Bad Gateway", "<html>"), "502 Bad Gateway"),
        (says("401 Unauthorized", ""), "401 .*credentials are refused"),
        (says("403 Forbidden", ""), "403 .*credentials are refused"),
        (says("302 Found", ""), "302 Found"),
        (says("200 OK", "<html>"), "200 OK"),
        (says("200 OK", '{"result":{"resourceSpans":[{'), "not understood: no JSON at character"),
        (says("200 OK", "[" * 100_000), "not understood: unreasonable JSON"),
        (says("200 OK", '{"x":' + "9" * 6000 + "}"), "not understood: unreasonable JSON"),
        (says("404 Not Found", "no such page"), "404 Not Found"),
    ],
)
def test_what_is_no_answer_is_said_in_one_line(script: Script, why: str) -> None:
    with Server(v3(script)) as server, pytest.raises(SourceError, match=why) as raised:
        source_of(server).find(QUERY)
    assert "\n" not in str(raised.value)


def test_nobody_there_is_said_with_the_address() -> None:
    with pytest.raises(SourceError, match=r"http://127\.0\.0\.1:1: connection refused"):
        JaegerSource("http://127.0.0.1:1").find(QUERY)


def test_an_answer_that_is_too_large_is_asked_for_in_parts() -> None:
    with JaegerLike("2.13").serving() as server:
        for service, span in traces(60):
            server.put(service, span)
        answer = JaegerSource(server.url, max_bytes=20_000).find(QUERY)
        assert ids(answer.spans) == set(range(1, 61))
        assert answer.complete


def test_when_the_time_is_over_the_newest_traces_are_given_and_the_rest_is_said_to_be_missing() -> None:
    calls = 0

    def slow(request: bytes) -> Iterator[bytes | float]:
        nonlocal calls
        calls += 1
        if calls > 2:
            yield 30.0
        spans = [otlp_span(f"{i:x}", f"{i:x}", start=ns(45 + i)) for i in range(1, 21 if calls == 1 else 11)]
        resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "api"}}]}
        yield http(
            json.dumps({"result": {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}]}]}})
        )

    with Server(v3(slow)) as server:
        answer = source_of(server, 1.5).find(replace(QUERY, limit=20))
    assert ids(answer.spans) == set(range(1, 11))
    assert not answer.complete
    assert "truncated: " in answer.note
    assert "only traces since 12:00:30 UTC" in answer.note


MALFORMED: list[Any] = [
    None,
    7,
    [],
    {},
    {"traceId": "1"},
    {"traceId": 5, "spanId": "1", "startTimeUnixNano": "1", "endTimeUnixNano": "2"},
    {**otlp_span("a", "1", start=ns(5)), "endTimeUnixNano": "1"},
    {**otlp_span("a", "2", start=ns(5)), "startTimeUnixNano": "soon"},
    {**otlp_span("a", "3", start=ns(5)), "startTimeUnixNano": "9" * 5000},
    {**otlp_span("a", "4", start=ns(5)), "attributes": "none"},
    {**otlp_span("a", "5", start=ns(5)), "attributes": [None]},
    {**otlp_span("a", "6", start=ns(5)), "spanId": "not hex"},
    {**otlp_span("a", "7", start=ns(5)), "status": 3},
]


def test_malformed_spans_are_left_out_and_counted() -> None:
    good = otlp_span("b", "1", start=ns(5), http_url="x" * 10_000_000, service_version="v2")
    looped = [otlp_span("c", "1", parent="2", start=ns(5)), otlp_span("c", "2", parent="1", start=ns(5))]
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "api"}}]}
    listed = [*MALFORMED, good, *looped]
    body = {"result": {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": listed}]}, 5, None, {}]}}
    with Server(v3(says("200 OK", json.dumps(body)))) as server:
        answer = JaegerSource(f"http://127.0.0.1:{server.port}").find(QUERY)
    assert ids(answer.spans) == {0xB}
    assert max(map(len, answer.spans[0].facts.values())) <= 200
    assert not answer.complete
    assert answer.note.startswith(f"{len(MALFORMED)} malformed spans left out: ")
    assert "2 spans left out that are their own ancestors" in answer.note
    assert "not hex" not in answer.note


def test_malformed_spans_of_the_older_api_are_left_out_too() -> None:
    process = {"p1": {"serviceName": "api", "tags": None}}
    good = {
        "traceID": "b",
        "spanID": "1",
        "operationName": "x",
        "startTime": ns(5) // 1000,
        "duration": 5,
        "processID": "p1",
    }
    bad: list[Any] = [None, {}, {**good, "duration": -1}, {**good, "processID": "p9"}, {**good, "references": 3}]
    body = {
        "data": [{"spans": [*bad, good], "processes": process}, None, {"spans": 3, "processes": {}}],
        "errors": None,
    }

    def legacy(request: bytes) -> Iterator[bytes | float]:
        is_there = b" /api/traces" in request or b" /api/services" in request
        yield http(json.dumps(body) if is_there else "<html>")

    with Server(legacy) as server:
        answer = JaegerSource(f"http://127.0.0.1:{server.port}").find(QUERY)
    assert [(s.trace, s.operation, s.duration) for s in answer.spans] == [("b", "x", 0.005)]
    assert answer.note.startswith("7 malformed spans left out")


@pytest.mark.parametrize("padding", [10, 300_000], ids=["decoded at once", "span by span"])
def test_a_resource_that_comes_after_its_spans_is_theirs_all_the_same(padding: int) -> None:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "api"}}]}
    spans = [otlp_span("1", f"{i}", start=ns(5), padding="x" * padding) for i in (1, 2)]
    body = {"result": {"resourceSpans": [{"scopeSpans": [{"spans": spans}], "resource": resource}]}}
    with Server(v3(says("200 OK", json.dumps(body)))) as server:
        assert [s.service for s in source_of(server).find(QUERY).spans] == ["api", "api"]


def test_what_the_server_itself_calls_an_error_makes_the_answer_incomplete() -> None:
    body = {"result": {"resourceSpans": []}, "error": {"message": f"half of it; token={SECRET}"}}
    with Server(v3(says("200 OK", json.dumps(body)))) as server:
        answer = source_of(server).find(QUERY)
    assert not answer.complete
    assert "the server says: half of it" in answer.note
    assert SECRET not in answer.note


# ── Jaeger: credentials and certificates ─────────────────────────────────────────────────────────────────────


def test_a_token_is_read_for_each_search_and_never_shown(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{SECRET}\n")
    with JaegerLike("2.13").serving() as server:
        source = JaegerSource(server.url, bearer_file=str(token))
        source.find(QUERY)
        assert server.headers[-1]["Authorization"] == f"Bearer {SECRET}"
        token.write_text("second")
        source.find(QUERY)
        assert server.headers[-1]["Authorization"] == "Bearer second"
    for wrong in ("", "two words", "ümlaut"):
        token.write_text(wrong)
        with pytest.raises(SourceError, match="holds no bearer token"):
            source.find(QUERY)
    token.unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        source.find(QUERY)


def test_user_and_password_come_from_a_file_or_from_the_url(tmp_path: Path) -> None:
    pair = tmp_path / "basic"
    pair.write_text(f"bob:{SECRET}")
    wanted = "Basic " + base64.b64encode(f"bob:{SECRET}".encode()).decode()
    with JaegerLike("2.13").serving() as server:
        JaegerSource(server.url, basic_file=str(pair)).find(QUERY)
        assert server.headers[-1]["Authorization"] == wanted
        JaegerSource(server.url.replace("//", f"//bob:{SECRET}@")).find(QUERY)
        assert server.headers[-1]["Authorization"] == wanted
    pair.write_text(SECRET)
    with pytest.raises(SourceError, match="colon") as raised:
        JaegerSource("http://127.0.0.1:1", basic_file=str(pair)).find(QUERY)
    assert SECRET not in str(raised.value)


def test_no_message_repeats_a_credential(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(SECRET)
    echo = says("500 Oh", json.dumps({"error": {"message": f"Authorization: Bearer {SECRET} and password={SECRET}"}}))
    with Server(v3(echo)) as server:
        url = f"http://bob:{SECRET}@127.0.0.1:{server.port}"
        with pytest.raises(SourceError) as raised:
            JaegerSource(url, bearer_file=str(token)).find(QUERY)
    assert SECRET not in str(raised.value)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_certificate_that_is_not_trusted_is_refused(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 "
        f"-keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    body = '{"result":{"resourceSpans":[]}}'
    with Server(v3(says("200 OK", body)), tls) as server:
        url = f"https://127.0.0.1:{server.port}"
        with pytest.raises(SourceError, match="the certificate is not trusted"):
            JaegerSource(url).find(QUERY)
        assert JaegerSource(url, ca_file=str(certificate)).find(QUERY).complete
    with pytest.raises(SourceError, match=r"CA file .* cannot be used"):
        JaegerSource("https://127.0.0.1:1", ca_file=str(tmp_path / "none.pem")).find(QUERY)
