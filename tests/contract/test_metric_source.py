"""What every metric source promises, run over the registry; and what those over HTTP make of a server that fails."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import pytest

from canaryd.adapters import METRIC_SOURCES
from canaryd.adapters.memory import MemoryMetrics
from canaryd.adapters.per_server import PerServerSource
from canaryd.adapters.prometheus import PrometheusSource, filled_in
from canaryd.adapters.scrape import ScrapeSource
from canaryd.errors import SourceError
from canaryd.model import Arm, CounterKey, Reading
from canaryd.policy import ErrorSource
from canaryd.ports import CountsAnswer, CountsQuery, MetricSource, Template

STEP = timedelta(seconds=2)
T1 = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
T2 = T1 + STEP
SECOND = timedelta(seconds=1)


class Row(NamedTuple):
    """A counter as a server shows it."""

    workload: str
    code: str
    value: float | str
    pod: str = "pod-1"
    more: tuple[tuple[str, str], ...] = ()


Frames = Mapping[datetime, Sequence[Row]]


def query(name: str = "api", *, points: tuple[datetime, ...] = (T1, T2), durations: bool = False) -> CountsQuery:
    return CountsQuery(name, "default", f"{name}-a", f"{name}-b", points, STEP, ErrorSource(), durations)


# ── a server that sends what it is told, byte by byte ────────────────────────────────────────────────────────

Script = Callable[[bytes], Iterator[bytes | float]]  # request → bytes to send, or seconds to wait


class Server:
    """Answers on a loopback port as its script says; a script that ends without a length closes the connection."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.requests: list[bytes] = []
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def _start(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(0.2 if self._tls is None else 5)
        if self._tls is not None:
            try:
                connection = self._tls.wrap_socket(connection, server_side=True)
            except OSError:
                connection.close()
                return
            connection.settimeout(0.2)
        with connection, suppress(OSError):
            while request := self._request(connection):
                self.requests.append(request)
                sent = b""
                for part in self._script(request):
                    if isinstance(part, float):
                        if self._over.wait(part):
                            return
                    else:
                        connection.settimeout(5)
                        connection.sendall(part)
                        connection.settimeout(0.2)
                        sent = (sent + part)[:4000]
                if b"content-length" not in sent.lower() or b"connection: close" in sent.lower():
                    return

    def _request(self, connection: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < _length(data):
            try:
                more = connection.recv(65536)
            except TimeoutError:
                if self._over.is_set():
                    return b""
                continue
            if not more:
                return b""
            data += more
        return data


def _length(request: bytes) -> int:
    for line in request.partition(b"\r\n\r\n")[0].lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def http(body: bytes | str, status: str = "200 OK", *headers: str) -> bytes:
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(data)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


# ── one world, shown by each kind of source ──────────────────────────────────────────────────────────────────


def labels(row: Row) -> dict[str, str]:
    return {
        "reporter": "destination",
        "destination_workload": row.workload,
        "response_code": row.code,
        "response_flags": "-",
        "pod": row.pod,
        **dict(row.more),
    }


def matrix(frames: Frames) -> Script:
    """Prometheus: each series with its values at the instants asked for."""

    def answer(request: bytes) -> Iterator[bytes | float]:
        form = {k: v[0] for k, v in parse_qs(request.partition(b"\r\n\r\n")[2].decode()).items()}
        series: dict[str, dict[str, Any]] = {}
        for at, rows in frames.items():
            if not float(form["start"]) <= at.timestamp() <= float(form["end"]):
                continue
            for row in rows:
                metric = {"__name__": "istio_requests_total", "instance": "envoy", **labels(row)}
                entry = series.setdefault(json.dumps(metric), {"metric": metric, "values": []})
                entry["values"].append([at.timestamp(), str(row.value)])
        yield http(json.dumps(success(list(series.values()))))

    return answer


def success(result: object, **more: object) -> dict[str, object]:
    return {"status": "success", "data": {"resultType": "matrix", "result": result}, **more}


def page(frames: Frames) -> Script:
    """An exporter: the latest frame as text."""

    def answer(_: bytes) -> Iterator[bytes | float]:
        lines = ["# TYPE envoy_istio_requests_total counter"]
        for row in frames[max(frames)] if frames else ():
            inner = ",".join(f'{k}="{v}"' for k, v in labels(row).items())
            lines.append(f"envoy_istio_requests_total{{{inner}}} {row.value}")
        yield http("\n".join(lines) + "\n")

    return answer


@contextmanager
def prometheus_rig(frames: Frames) -> Iterator[MetricSource]:
    with Server(matrix(frames)) as server:
        yield PrometheusSource(f"http://127.0.0.1:{server.port}", timeout=5 * SECOND)


@contextmanager
def scrape_rig(frames: Frames) -> Iterator[MetricSource]:
    with Server(page(frames)) as server:
        yield ScrapeSource([f"http://127.0.0.1:{server.port}/metrics"], timeout=5 * SECOND)


@contextmanager
def memory_rig(frames: Frames) -> Iterator[MetricSource]:
    world = MemoryMetrics()
    before: dict[tuple[str, str, str], float] = {}
    for at, rows in sorted(frames.items()):
        now = {(row.workload, row.pod, row.code): float(row.value) for row in rows}
        for pod in {pod for _, pod, _ in before} - {pod for _, pod, _ in now}:
            world.vanish(pod)
        for (workload, pod, code), value in now.items():
            world.serve(workload, pod, code, n=int(value - before.get((workload, pod, code), 0.0)), ms=None)
        world.tick(at)
        before = now
    yield world


class OfItsOwn:
    """Asks a server of the canary's own whatever it is asked."""

    def __init__(self, source: MetricSource, url: str) -> None:
        self._source, self._url = source, url
        self.remembers, self.simultaneous = source.remembers, source.simultaneous
        self.lag, self.settle = source.lag, source.settle

    def read(self, queries: Sequence[CountsQuery]) -> Mapping[str, CountsAnswer]:
        return self._source.read([replace(query, server=self._url) for query in queries])


@contextmanager
def per_server_rig(frames: Frames) -> Iterator[MetricSource]:
    def made(url: str) -> MetricSource:
        return PrometheusSource(url, timeout=5 * SECOND)

    with Server(matrix(frames)) as server:
        own = made("http://127.0.0.1:1")  # nobody is there
        yield OfItsOwn(PerServerSource(own, made, patience=5 * SECOND), f"http://127.0.0.1:{server.port}")


RIGS = {"memory": memory_rig, "perServer": per_server_rig, "prometheus": prometheus_rig, "scrape": scrape_rig}


@pytest.fixture(params=sorted(METRIC_SOURCES))
def rig(request: pytest.FixtureRequest) -> Callable[[Frames], Any]:
    """A KeyError here: a source was registered without a world to show it in."""
    return RIGS[request.param]


def counts(reading: Reading) -> dict[tuple[Arm, str, str], float]:
    return {(key.arm, key.pod, key.code): value for key, value in reading.counters.items() if key.name == "requests"}


# ── the contract ─────────────────────────────────────────────────────────────────────────────────────────────


def test_each_arm_gets_its_own_counters_as_they_are(rig: Callable[[Frames], Any]) -> None:
    world = {
        T1: [Row("api-a", "200", 90), Row("api-b", "200", 10)],
        T2: [Row("api-a", "200", 95), Row("api-b", "200", 11)],
    }
    with rig(world) as source:
        readings = source.read([query()])["api"].readings
    assert readings[-1].at == T2
    assert counts(readings[-1]) == {(Arm.STABLE, "pod-1", "200"): 95.0, (Arm.CANARY, "pod-1", "200"): 11.0}
    if source.remembers:
        assert [r.at for r in readings] == [T1, T2]
        assert counts(readings[0]) == {(Arm.STABLE, "pod-1", "200"): 90.0, (Arm.CANARY, "pod-1", "200"): 10.0}
    else:
        assert len(readings) == 1


def test_a_series_that_does_not_exist_is_left_out_and_never_zero(rig: Callable[[Frames], Any]) -> None:
    with rig({T1: [Row("api-a", "200", 5)], T2: [Row("api-a", "200", 7)]}) as source:
        last = source.read([query()])["api"].readings[-1]
    assert counts(last) == {(Arm.STABLE, "pod-1", "200"): 7.0}


def test_a_zero_that_is_there_is_told(rig: Callable[[Frames], Any]) -> None:
    with rig({T1: [Row("api-a", "200", 0)], T2: [Row("api-a", "200", 0)]}) as source:
        last = source.read([query()])["api"].readings[-1]
    assert counts(last) == {(Arm.STABLE, "pod-1", "200"): 0.0}


def test_a_series_born_between_two_instants_is_absent_before_and_present_after(rig: Callable[[Frames], Any]) -> None:
    world = {T1: [Row("api-b", "200", 5)], T2: [Row("api-b", "200", 6), Row("api-b", "500", 3)]}
    with rig(world) as source:
        readings = source.read([query()])["api"].readings
    assert counts(readings[-1])[Arm.CANARY, "pod-1", "500"] == 3.0
    if source.remembers:
        assert counts(readings[0]) == {(Arm.CANARY, "pod-1", "200"): 5.0}


def test_an_instant_without_any_series_has_no_reading(rig: Callable[[Frames], Any]) -> None:
    with rig({T1: [], T2: []}) as source:
        answer = source.read([query()])["api"]
    assert answer.readings == ()


def test_every_query_has_an_answer_and_only_its_own_series(rig: Callable[[Frames], Any]) -> None:
    rows = [Row("api-a", "200", 5), Row("web-b", "200", 6, pod="pod-2"), Row("stranger", "200", 7, pod="pod-3")]
    with rig({T1: rows, T2: rows}) as source:
        answers = source.read([query("api"), query("web"), query("idle")])
    assert set(answers) == {"api", "web", "idle"}
    assert counts(answers["api"].readings[-1]) == {(Arm.STABLE, "pod-1", "200"): 5.0}
    assert counts(answers["web"].readings[-1]) == {(Arm.CANARY, "pod-2", "200"): 6.0}
    assert answers["idle"].readings == ()


def test_nothing_asked_is_nothing_answered(rig: Callable[[Frames], Any]) -> None:
    with rig({T1: [Row("api-a", "200", 5)]}) as source:
        assert source.read([]) == {}
        assert source.read([query(points=())])["api"].readings == ()


def test_pods_are_told_apart(rig: Callable[[Frames], Any]) -> None:
    rows = [Row("api-a", "200", 5), Row("api-a", "200", 6, pod="pod-2")]
    with rig({T1: rows, T2: rows}) as source:
        last = source.read([query()])["api"].readings[-1]
    assert counts(last) == {(Arm.STABLE, "pod-1", "200"): 5.0, (Arm.STABLE, "pod-2", "200"): 6.0}


def test_a_source_that_does_not_remember_tells_one_reading_of_now(rig: Callable[[Frames], Any]) -> None:
    rows = [Row("api-a", "200", 5)]
    points = tuple(T1 + i * STEP for i in range(5))
    with rig(dict.fromkeys(points, rows)) as source:
        readings = source.read([query(points=points)])["api"].readings
    assert [r.at for r in readings] == (list(points) if source.remembers else [points[-1]])


def test_readings_ascend_whatever_came_first(rig: Callable[[Frames], Any]) -> None:
    with rig({T2: [Row("api-b", "200", 1)], T1: [Row("api-a", "200", 5)]}) as source:
        at = [r.at for r in source.read([query()])["api"].readings]
    assert at == ([T1, T2] if source.remembers else [T2])


def test_the_past_does_not_change(rig: Callable[[Frames], Any]) -> None:
    with rig({T1: [Row("api-a", "200", 5)], T2: [Row("api-a", "200", 9)]}) as source:
        early = source.read([query(points=(T1,))])["api"].readings
        late = source.read([query(points=(T1, T2))])["api"].readings
    assert early[0] == late[0] or not source.remembers


# ── values that are no counts (a world in memory cannot even hold them) ──────────────────────────────────────

over_http = pytest.mark.parametrize("shown", [prometheus_rig, scrape_rig], ids=["prometheus", "scrape"])


@over_http
@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-1"])
def test_a_value_that_is_no_count_is_left_out(shown: Callable[[Frames], Any], value: str) -> None:
    rows = [Row("api-a", "200", 5), Row("api-a", "500", value), Row("api-b", "200", value)]
    with shown({T1: rows, T2: rows}) as source:
        last = source.read([query()])["api"].readings[-1]
    assert counts(last) == {(Arm.STABLE, "pod-1", "200"): 5.0}


@over_http
def test_only_such_values_are_no_reading(shown: Callable[[Frames], Any]) -> None:
    rows = [Row("api-a", "200", "NaN")]
    with shown({T1: rows, T2: rows}) as source:
        assert source.read([query()])["api"].readings == ()


@over_http
def test_parts_of_one_counter_are_added_up_and_an_unknown_part_makes_it_unknown(shown: Callable[[Frames], Any]) -> None:
    def rows(other: str) -> list[Row]:
        return [
            Row("api-a", "200", "4", more=(("source_workload", "web"),)),
            Row("api-a", "200", other, more=(("source_workload", "cron"),)),
            Row("api-a", "500", "1"),
        ]

    with shown({T1: rows("3"), T2: rows("3")}) as source:
        last = source.read([query()])["api"].readings[-1]
    assert counts(last) == {(Arm.STABLE, "pod-1", "200"): 7.0, (Arm.STABLE, "pod-1", "500"): 1.0}
    with shown({T1: rows("NaN"), T2: rows("NaN")}) as source:
        last = source.read([query()])["api"].readings[-1]
    assert counts(last) == {(Arm.STABLE, "pod-1", "500"): 1.0}


@over_http
def test_what_the_client_reported_is_not_counted_again(shown: Callable[[Frames], Any]) -> None:
    rows = [
        Row("api-a", "200", 5),
        Row("api-a", "200", 5, more=(("reporter", "source"),)),
        Row("api-b", "200", 6, more=(("reporter", "waypoint"),)),
    ]
    with shown({T1: rows, T2: rows}) as source:
        last = source.read([query()])["api"].readings[-1]
    assert counts(last) == {(Arm.STABLE, "pod-1", "200"): 5.0, (Arm.CANARY, "pod-1", "200"): 6.0}


@over_http
def test_a_workload_of_the_same_name_in_another_namespace_is_a_stranger(shown: Callable[[Frames], Any]) -> None:
    rows = [
        Row("api-a", "200", 5, more=(("destination_workload_namespace", "default"),)),
        Row("api-a", "200", 70, more=(("destination_workload_namespace", "staging"),)),
    ]
    with shown({T1: rows, T2: rows}) as source:
        last = source.read([query()])["api"].readings[-1]
    assert counts(last) == {(Arm.STABLE, "pod-1", "200"): 5.0}


@over_http
def test_series_that_two_canaries_could_claim_are_nobodys_and_it_is_said(shown: Callable[[Frames], Any]) -> None:
    mine = query()
    theirs = CountsQuery("api-too", "staging", "api-a", "other-b", mine.points, STEP, ErrorSource(), durations=False)
    with shown({T1: [Row("api-a", "200", 5)], T2: [Row("api-a", "200", 5)]}) as source:
        answers = source.read([mine, theirs])
    for answer in answers.values():
        assert answer.readings == ()
        assert "namespace" in answer.note


# ── servers that fail ────────────────────────────────────────────────────────────────────────────────────────

ENDLESS = 30.0  # seconds, cut short when the server is closed


def hang(_: bytes) -> Iterator[bytes | float]:
    yield ENDLESS


def trickling_head(_: bytes) -> Iterator[bytes | float]:
    yield b"HTTP/1.1 200 OK\r\nX-Filler: "
    while True:
        yield 0.05
        yield b"x"


def trickling_body(_: bytes) -> Iterator[bytes | float]:
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    while True:
        yield 0.05
        yield b"#"


def endless_body(_: bytes) -> Iterator[bytes | float]:
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    while True:
        yield b"#" * 100_000


def endless_chunks(_: bytes) -> Iterator[bytes | float]:
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"10000\r\n" + b"#" * 65536 + b"\r\n"


def says(*parts: bytes) -> Script:
    return lambda _: iter(parts)


WHOLE_PAGE = b'istio_requests_total{destination_workload="api-a",response_code="200"} 5\n'
SERVER_FAILURES: dict[str, Script] = {
    "hangs": hang,
    "sends its headers too slowly": trickling_head,
    "sends its body too slowly": trickling_body,
    "never ends": endless_body,
    "never ends its chunks": endless_chunks,
    "announces too much": says(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"),
    "HTTP 500": says(http(WHOLE_PAGE, "500 Internal Server Error")),
    "HTTP 503 in HTML": says(http("<html><body>upstream connect error</body></html>", "503 Service Unavailable")),
    "HTTP 204": says(http(b"", "204 No Content")),
    "redirects": says(http(WHOLE_PAGE, "302 Found", "Location: http://127.0.0.1:1/")),
    "hangs up": says(b""),
    "speaks another protocol": says(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "HTML": says(http("<html><body>Welcome</body></html>\n")),
    "no text": says(http(bytes(range(256)) * 4)),
    "cut off before its length": says(
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\nConnection: close\r\n\r\n", WHOLE_PAGE
    ),
    "cut off between chunks": says(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(WHOLE_PAGE), WHOLE_PAGE)
    ),
    "compressed": says(http(b"\x1f\x8b\x08\x00", "200 OK", "Content-Encoding: gzip")),
}


REASONS = {
    "hangs": "within 0.6 s",
    "sends its body too slowly": "within 0.6 s",
    "sends its headers too slowly": "within 0.6 s",
    "never ends": "larger than",
    "never ends its chunks": "larger than",
    "announces too much": "larger than",
    "HTTP 500": "HTTP 500",
    "redirects": "HTTP 302",
    "cut off before its length": "too early",
    "cut off between chunks": "too early",
    "compressed": "encoded",
}


SHORT = 0.6  # seconds that are waited for an answer that never comes


def over(name: str, url: str, seconds: float = 5.0) -> MetricSource:
    timeout = timedelta(seconds=seconds)
    if name == "prometheus":
        return PrometheusSource(url, timeout=timeout, max_bytes=1_000_000)
    return ScrapeSource([f"{url}/metrics"], timeout=timeout, max_bytes=1_000_000)


def refused(source: MetricSource, seconds: float = 5.0) -> str:
    """The message of the SourceError that `source` raises within its time-out, or a little later on a busy machine."""
    began = time.monotonic()
    with pytest.raises(SourceError) as caught:
        source.read([query(durations=True)])
    assert time.monotonic() - began < seconds + 2.0
    return str(caught.value)


def nobody_is_left_waiting() -> bool:
    """While the server is still there: a source that gave up has also let go."""
    deadline = time.monotonic() + 5
    while any(thread.name == "exchange" for thread in threading.enumerate()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("failure", SERVER_FAILURES)
@pytest.mark.parametrize("name", ["prometheus", "scrape"])
def test_a_server_that_fails_is_an_error_in_time_and_never_an_empty_answer(name: str, failure: str) -> None:
    seconds = SHORT if "within" in REASONS.get(failure, "") else 5.0
    with Server(SERVER_FAILURES[failure]) as server:
        message = refused(over(name, f"http://127.0.0.1:{server.port}", seconds), seconds)
        assert nobody_is_left_waiting()
    assert f"127.0.0.1:{server.port}" in message
    assert REASONS.get(failure, "") in message
    assert len(message) < 400


@pytest.mark.parametrize("name", ["prometheus", "scrape"])
def test_nobody_there_is_an_error_that_names_the_server_without_its_password(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    message = refused(over(name, f"http://reader:hunter2@127.0.0.1:{port}"))
    assert f"http://127.0.0.1:{port}" in message
    assert "hunter2" not in message
    assert "refused" in message


@pytest.mark.parametrize("name", ["prometheus", "scrape"])
def test_a_url_that_is_none_is_refused_without_repeating_a_password(name: str) -> None:
    for url in ("prometheus:9090", "ftp://u:hunter2@host/", "http://u:hunter2@/x", "http://u:hunter2@host:port/", ""):
        with pytest.raises(ValueError, match="not usable") as caught:
            over(name, url)
        assert "hunter2" not in str(caught.value)


def test_a_source_in_memory_that_is_told_to_fail_is_blind_not_empty() -> None:
    world = MemoryMetrics()
    world.serve("api-a", "pod-1")
    world.tick(T1)
    world.fail("connection refused")
    with pytest.raises(SourceError, match="connection refused"):
        world.read([query()])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed, with its key, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl not found: apt-get install openssl")
    directory = tmp_path_factory.mktemp("tls")
    key, cert = directory / "key.pem", directory / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    cert.write_text(cert.read_text() + key.read_text())
    return cert


def test_a_certificate_is_believed_only_when_its_authority_is_named(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    sources: list[Callable[..., MetricSource]] = [PrometheusSource, lambda url, **kw: ScrapeSource([url], **kw)]
    for make, script in zip(sources, (matrix({}), page({})), strict=True):
        with Server(script, context) as server:
            url = f"https://127.0.0.1:{server.port}"
            assert "certificate is not trusted" in refused(make(url, timeout=5 * SECOND))
            assert make(url, timeout=5 * SECOND, ca_file=str(certificate)).read([query()])["api"].readings == ()
            assert "CA file" in refused(make(url, timeout=5 * SECOND, ca_file="/nowhere/ca.pem"))
            wrong_name = make(f"https://localhost:{server.port}", timeout=5 * SECOND, ca_file=str(certificate))
            assert "certificate is not trusted" in refused(wrong_name)


# ── what only Prometheus can say ─────────────────────────────────────────────────────────────────────────────

SERIES = {
    "metric": {"__name__": "istio_requests_total", "reporter": "destination", "destination_workload": "api-a",
               "response_code": "200", "instance": "envoy"},
    "values": [[T2.timestamp(), "5"]],
}  # fmt: skip
PROMETHEUS_FAILURES: dict[str, object] = {
    "partial": success([SERIES], warnings=["store gateway 3 did not answer"]),
    "status error": {"status": "error", "errorType": "timeout", "error": "query timed out"},
    "no status": {"data": {"resultType": "matrix", "result": []}},
    "a list": [],
    "null": None,
    "a vector": {"status": "success", "data": {"resultType": "vector", "result": []}},
    "no data": {"status": "success"},
    "no result": {"status": "success", "data": {"resultType": "matrix"}},
    "a result that is no list": success({"a": 1}),
    "series without labels": success([{"values": []}]),
    "series without a name": success([{"metric": {"reporter": "destination"}, "values": []}]),
    "series that are strings": success(["x"]),
    "a value that is no number": success([SERIES | {"values": [[T2.timestamp(), "many"]]}]),
    "an instant that is no number": success([SERIES | {"values": [["now", "5"]]}]),
    "an instant nobody asked for": success([SERIES | {"values": [[T2.timestamp() - 0.5, "5"]]}]),
    "an endless instant": success([SERIES | {"values": [[1e400, "5"]]}]),
}


@pytest.mark.parametrize("failure", PROMETHEUS_FAILURES)
def test_an_answer_that_prometheus_does_not_vouch_for_is_an_error(failure: str) -> None:
    with Server(says(http(json.dumps(PROMETHEUS_FAILURES[failure])))) as server:
        message = refused(over("prometheus", f"http://127.0.0.1:{server.port}"))
    assert f"127.0.0.1:{server.port}" in message
    if failure == "partial":
        assert "partial: ['store gateway 3" in message
    if failure == "status error":
        assert "query timed out" in message


def test_json_without_a_bottom_is_an_error() -> None:
    with Server(says(http("[" * 200_000))) as server:
        refused(over("prometheus", f"http://127.0.0.1:{server.port}"))


def test_prometheus_own_words_about_a_refused_query_are_told() -> None:
    said = json.dumps({"status": "error", "errorType": "execution", "error": "too many samples"})
    with Server(says(http(said, "422 Unprocessable Entity"))) as server:
        message = refused(over("prometheus", f"http://127.0.0.1:{server.port}"))
    assert "HTTP 422 execution: too many samples" in message


def test_the_same_series_from_two_replicas_is_taken_once_the_larger_value() -> None:
    rows = [
        Row("api-a", "200", value, more=((label, replica),))
        for label in ("prometheus_replica", "replica", "__replica__")
        for replica, value in (("a", "7"), ("b", "6"))
    ]
    rows += [Row("api-a", "500", "NaN", more=(("replica", "a"),)), Row("api-a", "500", "2", more=(("replica", "b"),))]
    with prometheus_rig({T1: rows, T2: rows}) as source:
        last = source.read([query()])["api"].readings[-1]
    assert counts(last) == {(Arm.STABLE, "pod-1", "200"): 7.0, (Arm.STABLE, "pod-1", "500"): 2.0}


def asked(request: bytes) -> dict[str, str]:
    return {k: v[0] for k, v in parse_qs(request.partition(b"\r\n\r\n")[2].decode(), strict_parsing=True).items()}


def counting(server: Server) -> list[bytes]:
    """Requests for counters; not the ones, once in five minutes, for recorded metrics and for starts of pods."""
    return [request for request in server.requests if asked(request)["query"].startswith("last_over_time(")]


def test_the_question_is_in_the_body_exact_to_the_millisecond_and_limited_in_time() -> None:
    with Server(matrix({})) as server:
        over("prometheus", f"http://127.0.0.1:{server.port}").read([query()])
    (request,) = counting(server)
    assert request.startswith(b"POST /api/v1/query_range HTTP/1.1\r\n")
    form = asked(request)
    assert (form["start"], form["end"], form["step"]) == (f"{T1.timestamp():.3f}", f"{T2.timestamp():.3f}", "2.000")
    assert 0 < float(form["timeout"]) <= 5.0
    assert "[1999ms]" in form["query"]


def test_points_far_apart_are_not_filled_in() -> None:
    with Server(matrix({})) as server:
        points = (T1, T1 + 1000 * STEP, T1 + 3000 * STEP)
        over("prometheus", f"http://127.0.0.1:{server.port}").read([query(points=points)])
    (request,) = counting(server)
    assert asked(request)["step"] == "2000.000"
    assert "[1999ms]" in asked(request)["query"]


def test_a_long_stretch_is_asked_in_pieces_that_leave_no_instant_out_and_none_in_twice() -> None:
    points = tuple(T1 + i * STEP for i in range(1201))
    with Server(matrix({p: [Row("api-a", "200", i)] for i, p in enumerate(points)})) as server:
        source = PrometheusSource(f"http://127.0.0.1:{server.port}", timeout=10 * SECOND)
        readings = source.read([query(points=points)])["api"].readings
    forms = [asked(request) for request in counting(server)]
    pieces = [(points[0], points[499]), (points[500], points[999]), (points[1000], points[1200])]
    assert [(f["start"], f["end"]) for f in forms] == [tuple(f"{p.timestamp():.3f}" for p in piece) for piece in pieces]
    assert [r.at for r in readings] == list(points)
    assert [counts(r)[Arm.STABLE, "pod-1", "200"] for r in readings] == [float(i) for i in range(1201)]


def test_fifty_canaries_share_a_request_and_different_instants_do_not() -> None:
    with Server(matrix({})) as server:
        source = PrometheusSource(f"http://127.0.0.1:{server.port}", timeout=10 * SECOND)
        answers = source.read([query(f"c{i}") for i in range(101)] + [query("late", points=(T2,))])
    assert len(answers) == 102
    assert len(counting(server)) == 4


def test_an_instant_between_milliseconds_is_refused_and_not_moved() -> None:
    with Server(matrix({})) as server:
        source = over("prometheus", f"http://127.0.0.1:{server.port}")
        with pytest.raises(SourceError, match="millisecond"):
            source.read([query(points=(T1 + timedelta(microseconds=1),))])
        assert server.requests == []


def test_the_bearer_token_is_read_again_for_every_question_and_never_told(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with Server(matrix({})) as server:
        url = f"http://127.0.0.1:{server.port}"
        source = PrometheusSource(url, bearer_file=str(file), headers={"X-Scope-OrgID": "team-a"})
        for token in ("first", "second"):
            file.write_text(f"{token}\n")
            source.read([query()])
        heads = [request.partition(b"\r\n\r\n")[0].decode() for request in counting(server)]
        assert "Authorization: Bearer first" in heads[0]
        assert "Authorization: Bearer second" in heads[1]
        assert all("X-Scope-OrgID: team-a" in head for head in heads)
        for wrong in ("", "hunter2\r\nX-Evil: 1", "hunter2" * 10_000, "hünter2"):
            file.write_text(wrong)
            assert "nter2" not in refused(source)
        file.unlink()
        assert "token" in refused(source)


def test_credentials_and_proxies_of_the_environment_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    for name, script in (("prometheus", matrix({})), ("scrape", page({}))):
        with Server(script) as server:
            over(name, f"http://127.0.0.1:{server.port}").read([query()])
            assert server.requests
            assert not any(b"authorization" in request.lower() for request in server.requests)


def test_a_user_and_password_in_the_url_are_basic_authentication() -> None:
    for name, script in (("prometheus", matrix({})), ("scrape", page({}))):
        with Server(script) as server:
            over(name, f"http://reader:hunter2@127.0.0.1:{server.port}").read([query()])
            assert all(b"Authorization: Basic cmVhZGVyOmh1bnRlcjI=" in request for request in server.requests)


def test_a_header_that_is_none_is_refused_without_repeating_it() -> None:
    for headers in ({"X-Token": "hunter2\r\nX-Evil: 1"}, {"X Token": "hunter2"}, {"X-Token": "hünter2"}):
        with pytest.raises(ValueError, match="not usable") as caught:
            PrometheusSource("http://127.0.0.1:1", headers=headers)
        assert "nter2" not in str(caught.value)


def test_names_with_a_meaning_in_patterns_are_taken_literally() -> None:
    with Server(matrix({})) as server:
        odd = CountsQuery("api", "default", 'a.b|c"', "x\\y*(z)", (T1,), STEP, ErrorSource(), durations=False)
        over("prometheus", f"http://127.0.0.1:{server.port}").read([odd])
    expression = asked(server.requests[0])["query"]
    assert r'destination_workload=~"a\\.b\\|c\"|x\\\\y\\*\\(z\\)"' in expression


def test_durations_without_buckets_are_noticed() -> None:
    def answer(request: bytes) -> Iterator[bytes | float]:
        counted = {k: v for k, v in SERIES["metric"].items() if k != "__name__"}  # type: ignore[attr-defined]
        buckets_sought = "_count" in asked(request)["query"]
        yield http(json.dumps(success([{"metric": counted, "values": []} if buckets_sought else SERIES])))

    with Server(answer) as server:
        source = over("prometheus", f"http://127.0.0.1:{server.port}")
        assert "native histogram" in source.read([query(durations=True)])["api"].note
        before = len(server.requests)
        assert source.read([query(durations=False)])["api"].note == ""
    assert len(server.requests) - before == 1
    assert len(counting(server)) == 2


def test_bounds_are_numbers_whoever_wrote_them() -> None:
    series = [
        {"metric": SERIES["metric"] | {"__name__": "istio_request_duration_milliseconds_bucket", "le": le},  # type: ignore[operator]
         "values": [[T2.timestamp(), "1"]]}
        for le in ("500", "1000.0", "1e+04", "+Inf")
    ]  # fmt: skip
    with Server(says(http(json.dumps(success(series))))) as server:
        last = over("prometheus", f"http://127.0.0.1:{server.port}").read([query(durations=True)])["api"].readings[-1]
    assert {key.le for key in last.counters} == {500.0, 1000.0, 10_000.0, float("inf")}
    assert CounterKey(Arm.STABLE, "envoy", "envoy", "bucket", "", "", "", 500.0) in last.counters


@pytest.mark.parametrize("bound", [None, "NaN", "wide"])
def test_a_bucket_without_a_bound_is_an_error(bound: str | None) -> None:
    metric = SERIES["metric"] | {"__name__": "istio_request_duration_milliseconds_bucket"}  # type: ignore[operator]
    metric |= {} if bound is None else {"le": bound}
    with Server(says(http(json.dumps(success([{"metric": metric, "values": []}]))))) as server:
        refused(over("prometheus", f"http://127.0.0.1:{server.port}"))


# ── an operator's own queries ────────────────────────────────────────────────────────────────────────────────

ORDERS = (
    Template("orders", "query:orders:failures", Arm.STABLE, "failed"),
    Template("orders", "query:orders:total", Arm.STABLE, "all"),
)


def test_a_scrape_says_that_it_cannot_answer_a_template_and_answers_the_rest() -> None:
    with Server(page({T2: [Row("api-a", "200", 7)]})) as server:
        source = over("scrape", f"http://127.0.0.1:{server.port}", 5)
        answer = source.read([replace(query(), templates=ORDERS)])["api"]
    assert "Prometheus" in answer.unseen["orders"]
    assert len(answer.readings) == 1


def test_the_world_in_memory_answers_templates_as_they_are_written() -> None:
    world = MemoryMetrics()
    world.tell("failed", "pod-1", 3.0)
    world.tell("all", "pod-1", 9.0)
    world.tick(T1)
    world.tell("failed", "pod-1", None)
    world.tick(T2)
    asked_for = replace(query(), templates=ORDERS)
    first, second = world.read([asked_for])["api"].readings
    failed = CounterKey(Arm.STABLE, "orders:pod-1", "pod-1", "query:orders:failures", "", "", "", 0.0)
    assert first.counters == {failed: 3.0, failed._replace(name="query:orders:total"): 9.0}
    assert second.counters == {failed._replace(name="query:orders:total"): 9.0}
    world.refused["all"] = "HTTP 400"
    answer = world.read([asked_for])["api"]
    assert (answer.unseen, answer.readings) == ({"orders": "HTTP 400"}, ())


@pytest.mark.parametrize("code", ["0", "429"])
def test_durations_of_requests_that_were_not_served_are_left_out(code: str) -> None:
    bucket = "istio_request_duration_milliseconds_bucket"
    labels = SERIES["metric"] | {"__name__": bucket, "le": "5"}  # type: ignore[operator]
    series = [
        {"metric": labels | {"response_code": c}, "values": [[T2.timestamp(), v]]}
        for c, v in (("200", "4"), (code, "100"))
    ]
    with Server(lambda _: iter([http(json.dumps(success(series)))])) as server:
        readings = (
            over("prometheus", f"http://127.0.0.1:{server.port}", 5).read([query(durations=True)])["api"].readings
        )
    assert list(readings[-1].counters.values()) == [4.0]
    page_text = "\n".join(
        f'{bucket}{{reporter="destination",destination_workload="api-a",response_code="{c}",le="5"}} {v}'
        for c, v in (("200", "4"), (code, "100"))
    )
    with Server(lambda _: iter([http(page_text + "\n")])) as server:
        readings = over("scrape", f"http://127.0.0.1:{server.port}", 5).read([query(durations=True)])["api"].readings
    assert list(readings[-1].counters.values()) == [4.0]


def test_copies_of_a_templates_series_from_two_replicas_are_taken_once() -> None:
    def answer(request: bytes) -> Iterator[bytes | float]:
        found = asked(request)["query"]
        series = [
            {"metric": {"pod": "p", "replica": r}, "values": [[T2.timestamp(), v]]} for r, v in (("0", "7"), ("1", "8"))
        ]
        yield http(json.dumps(success(series if found in ("failed", "all") else [])))

    with Server(answer) as server:
        source = over("prometheus", f"http://127.0.0.1:{server.port}", 5)
        (reading,) = source.read([replace(query(), templates=ORDERS)])["api"].readings
    assert sorted(reading.counters.values()) == [8.0, 8.0]


def test_a_template_with_too_many_series_is_refused() -> None:
    def answer(request: bytes) -> Iterator[bytes | float]:
        own = asked(request)["query"] in ("failed", "all")
        many = [{"metric": {"pod": f"p{i}"}, "values": [[T2.timestamp(), "1"]]} for i in range(2001)]
        yield http(json.dumps(success(many if own else [])))

    with Server(answer) as server:
        source = over("prometheus", f"http://127.0.0.1:{server.port}", 5)
        found = source.read([replace(query(), templates=ORDERS)])["api"]
    assert found.unseen == {"orders": "2001 series are too many; sum them by pod"}


def test_a_workload_that_no_promql_string_can_hold_is_not_filled_in() -> None:
    template = Template("orders", "query:orders:total", Arm.STABLE, 'x{w="{{workload}}"}[{{ window }}]')
    assert filled_in(template, replace(query(), stable='a"b\\c')) == 'x{w="a\\"b\\\\c"}[2000ms]'
    for name in ("a'b", "a`b", "a\nb"):
        with pytest.raises(SourceError, match="cannot be filled in"):
            filled_in(template, replace(query(), stable=name))


def test_a_pod_that_comes_again_under_its_name_is_asked_for_again() -> None:
    born, exporters = {"one": 1000, "two": 2000}, ["one", "one", "two"]

    def answer(request: bytes) -> Iterator[bytes | float]:
        found, series = asked(request)["query"], []
        if found.startswith("kube_pod_start_time"):
            labels = {"__name__": "kube_pod_start_time", "namespace": "default", "pod": "pod-1"}
            series = [{"metric": labels, "values": [[T2.timestamp(), str(born[exporters[0]])]]}]
        elif found.startswith("last_over_time"):
            labels = SERIES["metric"] | {"pod": "pod-1", "instance": exporters[0]}  # type: ignore[operator]
            series = [{"metric": labels, "values": [[T2.timestamp(), "7"]]}]
        yield http(json.dumps(success(series)))

    with Server(answer) as server:
        source = over("prometheus", f"http://127.0.0.1:{server.port}", 5)
        seen = []
        while exporters:
            seen.append(source.read([query()])["api"].started["pod-1"].timestamp())
            exporters.pop(0)
        starts = [r for r in server.requests if asked(r)["query"].startswith("kube_pod_start_time")]
    assert seen == [1000, 1000, 2000]
    assert len(starts) == 2
