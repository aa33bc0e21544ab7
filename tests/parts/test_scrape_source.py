"""The scrape source: the text format, several exporters at once, and a real Envoy whose requests are known."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from canaryd.adapters.scrape import Sample, ScrapeSource, parsed_labels, samples
from canaryd.demo.lab import Lab
from canaryd.demo.processes import fetch
from canaryd.errors import SourceError
from canaryd.model import Arm, Reading
from canaryd.policy import ErrorSource
from canaryd.ports import CountsQuery

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
REQUESTS, BUCKETS = "istio_requests_total", "istio_request_duration_milliseconds_bucket"


def query(name: str = "api", *, durations: bool = True) -> CountsQuery:
    points = (NOW, NOW + timedelta(seconds=2))
    return CountsQuery(
        name, "default", f"{name}-blue", f"{name}-green", points, timedelta(seconds=2), ErrorSource(), durations
    )


# ── the text format ──────────────────────────────────────────────────────────────────────────────────────────


def read(text: str, *wanted: str, prefix: str = "") -> list[Sample]:
    return samples(text.encode(), frozenset(wanted), prefix)


@pytest.mark.parametrize(
    ("line", "labels", "value"),
    [
        pytest.param("x 1", {}, 1.0, id="no labels"),
        pytest.param("x{} 1", {}, 1.0, id="empty labels"),
        pytest.param('x{a="b"} 12', {"a": "b"}, 12.0, id="one label"),
        pytest.param('x{a="b",c="d",} 12', {"a": "b", "c": "d"}, 12.0, id="comma at the end"),
        pytest.param('x { a = "b" , c = "d" } 12', {"a": "b", "c": "d"}, 12.0, id="blanks everywhere"),
        pytest.param('x{a="b"}\t12\t1700000000123', {"a": "b"}, 12.0, id="timestamp"),
        pytest.param('x{a="b"} 1.5e+06', {"a": "b"}, 1.5e6, id="exponent"),
        pytest.param('x{a="b"} +Inf', {"a": "b"}, math.inf, id="infinite"),
        pytest.param('x{le="+Inf"} 3', {"le": "+Inf"}, 3.0, id="infinite bound"),
        pytest.param(r'x{a="q\"u\\o\nte"} 1', {"a": 'q"u\\o\nte'}, 1.0, id="escapes"),
        pytest.param(r'x{a="C:\\new"} 1', {"a": r"C:\new"}, 1.0, id="backslash before an n"),
        pytest.param('x{a="} 7",b="{,=#"} 1', {"a": "} 7", "b": "{,=#"}, 1.0, id="braces inside"),
        pytest.param('x{a="ü→"} 1', {"a": "ü→"}, 1.0, id="UTF-8"),
        pytest.param('x{a=""} 1\r', {"a": ""}, 1.0, id="carriage return"),
    ],
)
def test_a_line_means_what_the_format_says(line: str, labels: Mapping[str, str], value: float) -> None:
    (sample,) = read(f"# HELP x y\n# TYPE x counter\n\n{line}\n", "x")
    assert (parsed_labels(sample.labels), sample.value) == (labels, value)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param('x{a="b"} 1', id="cut off at the end"),
        pytest.param("x{a=\n", id="cut off in a label"),
        pytest.param("x\n", id="no value"),
        pytest.param("x one\n", id="a word for a value"),
        pytest.param("x 1 2 3\n", id="too many numbers"),
        pytest.param("1x 1\n", id="a name that is none"),
        pytest.param("<html>\n", id="HTML"),
        pytest.param('{"a": 1}\n', id="JSON"),
        pytest.param("no healthy upstream\n", id="a sentence"),
        pytest.param('x{a="b"} 1 # {trace_id="1"} 0.5\n', id="exemplar of another format"),
    ],
)
def test_what_is_no_page_is_an_error_even_where_nothing_was_wanted(page: str) -> None:
    with pytest.raises(ValueError, match=r"line|number"):
        read(page, "wanted")


def test_labels_that_are_none_are_an_error() -> None:
    for text in ("a", 'a="b', 'a="b" c="d"', "a=b", 'a="b",,', '="b"'):
        with pytest.raises(ValueError, match="labels"):
            parsed_labels(text)


def test_a_wanted_line_with_broken_labels_is_an_error_that_names_the_exporter() -> None:
    page = f"{REQUESTS}{{destination_workload=api-blue}} 5\n"
    with exporter(page) as (url, _), pytest.raises(SourceError, match=r"127\.0\.0\.1"):
        ScrapeSource([url]).read([query()])


def test_the_prefix_is_taken_off_once_and_only_in_front() -> None:
    page = "envoy_x 1\nx 2\nenvoy_envoy_x 3\nx_envoy_ 4\n"
    assert [s.value for s in read(page, "x", prefix="envoy_")] == [1.0, 2.0]


def test_a_page_without_a_line_has_no_samples() -> None:
    assert read("", "x") == []
    assert read("# EOF\n", "x") == []


names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=12)
numbers = st.floats(allow_nan=False) | st.integers(0, 10**15).map(float)


@given(st.lists(st.tuples(st.dictionaries(names, texts, max_size=4), numbers), max_size=6))
def test_the_parser_agrees_with_the_official_one(rows: list[tuple[dict[str, str], float]]) -> None:
    def quoted(value: str) -> str:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

    def shown(labels: Mapping[str, str]) -> str:
        return ",".join(f'{name}="{quoted(value)}"' for name, value in labels.items())

    lines = [f"x{{{shown(labels)}}} {value!r}" for labels, value in rows]
    page = "\n".join(["# TYPE x gauge", *lines]) + "\n"
    ours = [(parsed_labels(s.labels), s.value) for s in read(page, "x")]
    assert ours == rows
    if all(c.isprintable() for labels, _ in rows for value in labels.values() for c in value):
        theirs = [s for family in text_string_to_metric_families(page) for s in family.samples]
        assert ours == [(dict(s.labels), s.value) for s in theirs]


def test_a_hostile_line_does_not_take_for_ever() -> None:
    began = time.monotonic()
    for line in ("x" + " " * 200_000 + "y", "x{" + "} 1 " * 50_000, "x{" + 'a="' * 70_000, "x " + "1" * 200_000 + "y"):
        with pytest.raises(ValueError, match="line"):
            read(f"{line}\n", "x")
    assert time.monotonic() - began < 5


# ── exporters ────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def exporter(page: str, status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """(URL of a page, what it was asked)."""
    asked: list[str] = []

    class Page(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # the standard library's name
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(page.encode())))
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def line(value: float, workload: str = "api-blue", name: str = REQUESTS, **more: str) -> str:
    labels = {"destination_workload": workload, "response_code": "200", **more}
    inner = ",".join(f'{k}="{v}"' for k, v in labels.items())
    return f"{name}{{{inner}}} {value}\n"


def total(reading: Reading, **wanted: object) -> float:
    return sum(v for key, v in reading.counters.items() if wanted.items() <= key._asdict().items())


def test_each_url_is_an_exporter_of_its_own() -> None:
    with exporter(line(5)) as (one, _), exporter(line(6, pod="p-2")) as (two, _):
        (reading,) = ScrapeSource([one, two]).read([query()])["api"].readings
    hosts = [url.removeprefix("http://").removesuffix("/metrics") for url in (one, two)]
    assert {(key.exporter, key.pod, value) for key, value in reading.counters.items()} == {
        (hosts[0], hosts[0], 5.0),
        (hosts[1], "p-2", 6.0),
    }


def test_one_exporter_that_fails_makes_the_whole_look_fail() -> None:
    with exporter(line(5)) as (one, _), exporter("sorry\n", 503) as (two, _):
        with pytest.raises(SourceError) as caught:
            ScrapeSource([one, two]).read([query()])
        assert two in str(caught.value)


def test_the_query_of_the_url_is_kept_and_one_look_serves_all_canaries() -> None:
    with exporter(line(5) + line(6, "web-blue")) as (url, asked):
        source = ScrapeSource([f"{url}?usedonly&filter=^istio"], flush_first=False)
        answers = source.read([query("api"), query("web", durations=False)])
    assert asked == ["/metrics?usedonly&filter=^istio"]
    assert total(answers["api"].readings[0]) == 5.0
    assert total(answers["web"].readings[0]) == 6.0


def test_two_pages_of_one_host_are_two_exporters() -> None:
    with exporter(line(5)) as (url, _):
        (reading,) = ScrapeSource([url, f"{url}/more"]).read([query()])["api"].readings
    assert len({key.exporter for key in reading.counters}) == 2


def test_the_same_line_twice_is_taken_once() -> None:
    page = line(5) + line(5) + line(4, name=f"envoy_{REQUESTS}")
    with exporter(page) as (url, _):
        (reading,) = ScrapeSource([url]).read([query()])["api"].readings
    assert total(reading) == 5.0


def test_buckets_are_read_only_where_they_are_wanted_and_their_absence_is_said() -> None:
    buckets = "".join(line(n, name=BUCKETS, le=le) for le, n in (("0.5", 1), ("1e3", 4), ("+Inf", 5)))
    count = line(5, name=BUCKETS.replace("_bucket", "_count"))
    with exporter(line(5) + buckets + count) as (url, _):
        source = ScrapeSource([url])
        answer = source.read([query()])["api"]
        assert {key.le: v for key, v in answer.readings[0].counters.items() if key.name == "bucket"} == {
            0.5: 1.0,
            1000.0: 4.0,
            math.inf: 5.0,
        }
        assert answer.note == ""
        (bare,) = source.read([query(durations=False)])["api"].readings
        assert total(bare) == 5.0
    with exporter(line(5) + count) as (url, _):
        answer = ScrapeSource([url]).read([query()])["api"]
    assert "classic buckets" in answer.note
    assert len(answer.readings) == 1


def test_canaries_may_use_different_names() -> None:
    renamed = ErrorSource(requests="my_requests_total", durations="my_durations_bucket")
    other = replace(query("web"), source=renamed)
    with exporter(line(5) + line(6, "web-blue", "my_requests_total") + line(7, "web-blue")) as (url, _):
        answers = ScrapeSource([url]).read([query("api"), other])
    assert total(answers["api"].readings[0]) == 5.0
    assert total(answers["web"].readings[0]) == 6.0


def test_a_bucket_without_a_bound_is_an_error() -> None:
    with exporter(line(5, name=BUCKETS)) as (url, _), pytest.raises(SourceError, match="bound"):
        ScrapeSource([url]).read([query()])


def test_urls_must_be_there_and_differ() -> None:
    for urls in ([], ["http://127.0.0.1:1/a", "http://127.0.0.1:1/a"]):
        with pytest.raises(ValueError, match="URL"):
            ScrapeSource(urls)


# ── a real Envoy ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.envoy
def test_envoys_counters_and_durations_are_the_requests_that_were_sent(lab: Lab) -> None:
    source = ScrapeSource([lab.metrics_url])
    lab.set_weights("checkout", {"checkout-blue": 70, "checkout-green": 30})
    lab.behave("checkout-green", errors=0.3)
    before = source.read([query("checkout")])["checkout"].readings
    lab.start_load(duration=8, services=["checkout"])
    time.sleep(2.5)
    seen = lab.stop_load().services["checkout"]
    (after,) = source.read([query("checkout")])["checkout"].readings

    def grown(**wanted: object) -> float:
        return total(after, **wanted) - sum(total(r, **wanted) for r in before)

    assert seen.answered == seen.sent > 100
    for arm, version in ((Arm.STABLE, "v1"), (Arm.CANARY, "v2")):
        assert grown(arm=arm, name="requests") == seen.versions[version].requests > 0
        assert grown(arm=arm, name="requests", code="500") == seen.versions[version].failed
        assert grown(arm=arm, name="bucket", le=math.inf) == seen.versions[version].requests
    assert seen.versions["v2"].failed > 0
    pods = {key.pod for key in after.counters}
    assert pods == {lab.pool_url(p).removeprefix("http://") for p in ("checkout-blue", "checkout-green")}
    assert {key.exporter for key in after.counters} == {lab.admin_url.removeprefix("http://")}


@pytest.mark.envoy
def test_without_the_first_look_durations_are_those_of_the_look_before(lab: Lab) -> None:
    fresh, late = ScrapeSource([lab.metrics_url]), ScrapeSource([lab.metrics_url], flush_first=False)

    def durations(source: ScrapeSource) -> float:
        readings = source.read([query("search")])["search"].readings
        return sum(total(r, name="bucket", le=math.inf) for r in readings)

    start = durations(fresh)
    for _ in range(5):
        assert fetch(lab.front_url("search"))[0] == 200
    time.sleep(0.05)  # the access log is written after the answer
    assert durations(late) == start
    for _ in range(5):
        assert fetch(lab.front_url("search"))[0] == 200
    time.sleep(0.05)
    assert durations(fresh) == start + 10


@pytest.mark.envoy
def test_an_envoy_that_hangs_is_blind_and_is_seen_again_when_it_is_back(lab: Lab) -> None:
    source = ScrapeSource([lab.metrics_url], timeout=timedelta(seconds=0.5))
    fetch(lab.front_url("checkout"))
    assert source.read([query("checkout")])["checkout"].readings
    lab.envoy.freeze()
    try:
        with pytest.raises(SourceError, match=r"within 0\.5 s"):
            source.read([query("checkout")])
    finally:
        lab.envoy.thaw()
    assert source.read([query("checkout")])["checkout"].readings
