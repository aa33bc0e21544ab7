"""The Prometheus source against a real Prometheus: raw samples whose truth is known, and a live one that is killed."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import pytest

from canaryd.adapters.prometheus import PrometheusSource
from canaryd.counts import Classes, stretch
from canaryd.demo.lab import Lab
from canaryd.demo.processes import Nursery, fetch, wait_until
from canaryd.demo.prometheus import Prometheus
from canaryd.errors import SourceError
from canaryd.model import Arm, Reading
from canaryd.policy import ErrorSource
from canaryd.ports import CountsAnswer, CountsQuery, Template

pytestmark = pytest.mark.prometheus

STEP = timedelta(seconds=5)
SECONDS = 41  # of raw samples, one a second, 100 ms past the second
BORN, GONE = 7, 8  # first second of the newborn series, last second of the vanishing pod
REQUESTS, BUCKETS = "istio_requests_total", "istio_request_duration_milliseconds_bucket"


def start_of_samples() -> datetime:
    return datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)


class History:
    """Raw samples in the OpenMetrics format, for promtool to write into blocks."""

    def __init__(self, start: datetime) -> None:
        self.start = start
        self._families: dict[str, list[str]] = {}

    def add(self, name: str, labels: Mapping[str, str], value: Callable[[int], float | None]) -> None:
        """One series; `value` of each second, None where there is no sample."""
        inner = ",".join(f'{k}="{v}"' for k, v in {"reporter": "destination", "instance": "envoy", **labels}.items())
        lines = self._families.setdefault(name, [])
        for second in range(SECONDS):
            if (held := value(second)) is not None:
                lines.append(f"{name}{{{inner}}} {held} {self.start.timestamp() + second + 0.1:.3f}")

    def requests(self, workload: str, code: str, value: Callable[[int], float | None], **more: str) -> None:
        self.add(REQUESTS, {"destination_workload": workload, "response_code": code, **more}, value)

    def write(self, directory: Path) -> None:
        families = ["\n".join([f"# TYPE {name} unknown", *lines]) for name, lines in self._families.items()]
        file = directory / "history.om"
        file.write_text("\n".join([*families, "# EOF\n"]))
        blocks = directory / "prometheus" / "data"
        argv = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(file), str(blocks)]
        subprocess.run(argv, check=True, capture_output=True, timeout=60)


def line(height: int = 0, slope: int = 1) -> Callable[[int], float]:
    return lambda second: height + slope * second


def told(start: datetime) -> History:
    """The stories: growing, newborn, vanishing, split, doubled, foreign, broken, odd names, buckets, many canaries."""
    history = History(start)
    history.requests("api-a", "200", lambda s: 10 * s, pod="a-1")
    history.requests("api-b", "200", lambda s: 3 * s, pod="b-1")
    history.requests("api-b", "500", lambda s: 2 * (s - BORN + 1) if s >= BORN else None, pod="b-1")
    history.requests("api-b", "200", lambda s: s if s <= GONE else None, pod="b-2")
    history.requests("api-b", "200", lambda s: 1000 * s, pod="b-1", reporter="source")
    history.requests("api-b", "200", lambda s: 1000 * s, pod="b-1", destination_workload_namespace="elsewhere")
    for client in ("web", "cron"):
        history.requests("split-a", "200", lambda s: s, source_workload=client)
    for replica in ("0", "1"):
        history.requests("doubled-a", "200", lambda s: s, prometheus_replica=replica)
    history.requests("broken-a", "200", lambda s: float("nan"))
    for i, workload in enumerate(("orders-a", "orders-b")):
        pod = {"pod": f"{workload}-1", "workload": workload, "instance": f"10.0.0.{i}:9"}
        history.requests(workload, "200", lambda s: 7 * s, pod=pod["pod"], instance=pod["instance"])
        for status, slope in (("ok", 4 + i), ("failed", 1)):
            history.add("orders_total", {**pod, "status": status}, line(slope=slope))
        history.add("memory_bytes", pod, lambda s: 5e8 + s)
        history.add(
            "kube_pod_start_time",
            {"namespace": "default", "pod": pod["pod"], "instance": "ksm"},
            lambda s, i=i: history.start.timestamp() - 3600 * (i + 1),  # type: ignore[misc]
        )
    for pod in ("both-1", "both-2"):
        both = {"destination_workload": "both-a", "pod": pod}
        for client in ("web", "cron"):
            for code, slope in (("200", 9), ("429", 2), ("500", 1)):
                history.add(REQUESTS, {**both, "response_code": code, "source_workload": client}, line(slope=slope))
                for le, share in (("5", 1), ("+Inf", 2)):
                    labels = {**both, "response_code": code, "source_workload": client, "le": le}
                    history.add(BUCKETS, labels, line(slope=share * slope))
    for client in ("web-0", "web-1"):
        sent = {"reporter": "source", "instance": client, "pod": client, "namespace": "shop"}
        sent |= {"destination_service_name": "both-stable", "destination_service_namespace": "default"}
        history.requests("both-a", "200", lambda s: 40 * s, response_flags="-", **sent)
        lost = {**sent, "response_flags": "UF,URX", "destination_workload": "unknown"}
        history.requests("unknown", "503", lambda s: 3 * (s - BORN + 1) if s >= BORN else None, **lost)
    history.requests("edge-a", "200", lambda s: s if s == 5 else None)
    history.requests("odd.a", "200", lambda s: s)
    history.requests("oddxa", "200", lambda s: 1000 * s)
    for le, share in (("0.5", 0), ("5", 1), ("1000.0", 2), ("+Inf", 3)):
        history.add(BUCKETS, {"destination_workload": "api-a", "pod": "a-1", "le": le}, line(slope=share))
    history.requests("native-a", "200", lambda s: s)
    history.add(BUCKETS.replace("_bucket", "_count"), {"destination_workload": "native-a"}, lambda s: s)
    for i in range(60):
        history.requests(f"many{i}-a", "200", line(height=i))
    return history


@pytest.fixture(scope="module")
def start() -> datetime:
    return start_of_samples()


@pytest.fixture(scope="module")
def server(start: datetime, tmp_path_factory: pytest.TempPathFactory, prometheus_binary: Path) -> Iterator[Prometheus]:
    directory = tmp_path_factory.mktemp("history")
    told(start).write(directory)
    with Nursery(directory / "log") as nursery:
        nowhere = "http://127.0.0.1:9/metrics"
        prometheus = Prometheus(nursery, directory / "prometheus", nowhere, "1m", binary=prometheus_binary)
        prometheus.start()
        yield prometheus


@pytest.fixture
def source(server: Prometheus) -> PrometheusSource:
    return PrometheusSource(server.url, timeout=timedelta(seconds=10))


def query(start: datetime, name: str, stable: str = "", canary: str = "", points: int = 4) -> CountsQuery:
    """Points at 5.25 s, 10.25 s, … past the start: between the samples, and not on whole seconds."""
    first = start + STEP + timedelta(milliseconds=250)
    at = tuple(first + i * STEP for i in range(points))
    return CountsQuery(name, "default", stable or f"{name}-a", canary or f"{name}-b", at, STEP, ErrorSource())


def values(readings: tuple[Reading, ...], **wanted: object) -> list[float | None]:
    """The one counter with these fields at each instant, None where it is absent."""
    return [
        next((v for key, v in reading.counters.items() if wanted.items() <= key._asdict().items()), None)
        for reading in readings
    ]


def test_values_at_the_grid_points_are_the_last_raw_samples_before_them(
    source: PrometheusSource, start: datetime
) -> None:
    asked = query(start, "api")
    readings = source.read([asked])["api"].readings
    assert tuple(r.at for r in readings) == asked.points
    assert values(readings, arm=Arm.STABLE, name="requests") == [50, 100, 150, 200]
    assert values(readings, pod="b-1", code="200") == [15, 30, 45, 60]
    for le, share in ((0.5, 0), (5.0, 1), (1000.0, 2), (inf, 3)):
        assert values(readings, name="bucket", le=le) == [share * s for s in (5, 10, 15, 20)]


def test_the_first_errors_of_a_release_are_absent_before_and_all_there_after(
    source: PrometheusSource, start: datetime
) -> None:
    readings = source.read([query(start, "api")])["api"].readings
    assert values(readings, pod="b-1", code="500") == [None, 8, 18, 28]


def test_a_pod_that_vanished_is_still_there_at_the_end_of_its_last_interval(
    source: PrometheusSource, start: datetime
) -> None:
    readings = source.read([query(start, "api")])["api"].readings
    assert values(readings, pod="b-2") == [5, GONE, None, None]


def test_a_sample_exactly_one_step_old_belongs_to_the_instant_before(source: PrometheusSource, start: datetime) -> None:
    first = start + timedelta(seconds=5, milliseconds=100)
    asked = replace(query(start, "edge"), points=(first, first + STEP))
    readings = source.read([asked])["edge"].readings
    assert [r.at for r in readings] == [first]


def test_series_split_by_labels_nobody_needs_are_one_counter_and_replicas_are_not_added(
    source: PrometheusSource, start: datetime
) -> None:
    answers = source.read([query(start, "split"), query(start, "doubled")])
    assert values(answers["split"].readings, code="200") == [10, 20, 30, 40]
    assert values(answers["doubled"].readings, code="200") == [5, 10, 15, 20]


def test_a_counter_that_is_nan_and_an_instant_of_the_future_are_no_readings(
    source: PrometheusSource, start: datetime
) -> None:
    future = query(start + timedelta(hours=2), "api")
    assert source.read([query(start, "broken")])["broken"].readings == ()
    assert source.read([future])["api"].readings == ()


def test_a_name_is_not_a_pattern(source: PrometheusSource, start: datetime) -> None:
    readings = source.read([query(start, "odd", stable="odd.a")])["odd"].readings
    assert values(readings, code="200") == [5, 10, 15, 20]


def test_durations_without_classic_buckets_are_said(source: PrometheusSource, start: datetime) -> None:
    answers = source.read([query(start, "api"), query(start, "native"), query(start, "split")])
    assert "native" in answers["native"].note
    assert (answers["api"].note, answers["split"].note) == ("", "")


def asked_so_far(server: Prometheus) -> int:
    """Range queries that Prometheus itself has counted."""
    page = fetch(f"{server.url}/metrics")[1].decode()
    pattern = r'prometheus_http_requests_total\{code="200",handler="/api/v1/query_range"\} (\d+)'
    found = re.search(pattern, page)
    return int(found[1]) if found else 0


def test_fifty_canaries_are_answered_by_one_request(
    server: Prometheus, source: PrometheusSource, start: datetime
) -> None:
    fifty = [replace(query(start, f"many{i}"), durations=False) for i in range(50)]
    first = asked_so_far(server)
    source.read([*fifty, replace(query(start, "many50"), durations=False)])
    assert asked_so_far(server) - first <= 2 + 2 + 2  # once in five minutes: recorded metrics, starts of pods
    before = asked_so_far(server)
    answers = source.read(fifty)
    assert asked_so_far(server) - before == 1
    for i in range(50):
        assert values(answers[f"many{i}"].readings, code="200") == [i + s for s in (5, 10, 15, 20)]
    source.read([*fifty, replace(query(start, "many50"), durations=False)])
    assert asked_so_far(server) - before == 3


def test_a_long_stretch_in_several_requests_is_seamless(source: PrometheusSource, start: datetime) -> None:
    step = timedelta(milliseconds=50)
    first = start + timedelta(milliseconds=3_120)
    points = tuple(first + i * step for i in range(740))
    asked = replace(query(start, "api"), points=points, step=step, durations=False)
    at = [r.at for r in source.read([asked])["api"].readings]
    sampled = {start + timedelta(seconds=s, milliseconds=100) for s in range(SECONDS)}
    assert at == [p for p in points if any(p - step < s <= p for s in sampled)]


def test_a_query_that_the_server_refuses_is_an_error_with_its_words(source: PrometheusSource, start: datetime) -> None:
    bad = replace(query(start, "api"), step=timedelta(days=300_000), points=(start,))
    with pytest.raises(SourceError, match="HTTP 400"):
        source.read([bad])


# ── an operator's own queries ────────────────────────────────────────────────────────────────────────────────

ALL = 'sum by (pod) (orders_total{workload="{{workload}}"})'
FAILED = 'sum by (pod) (orders_total{workload="{{workload}}",status="failed"})'


def with_templates(start: datetime, *more: Template, failed: str = FAILED) -> CountsQuery:
    templates = [
        Template("orders", f"query:orders:{part}", arm, text)
        for part, text in (("failures", failed), ("total", ALL))
        for arm in Arm
    ]
    return replace(query(start, "orders"), templates=(*templates, *more))


def test_an_operators_counters_are_read_at_the_same_instants_for_each_arm(
    source: PrometheusSource, start: datetime
) -> None:
    answer = source.read([with_templates(start)])["orders"]
    assert answer.unseen == {}
    for arm, slope in ((Arm.STABLE, 5), (Arm.CANARY, 6)):
        pod = f"orders-{'a' if arm is Arm.STABLE else 'b'}-1"
        failed = {"arm": arm, "name": "query:orders:failures", "pod": pod, "exporter": f"orders:{pod}"}
        assert values(answer.readings, **failed) == [5, 10, 15, 20]
        total = values(answer.readings, arm=arm, name="query:orders:total", pod=pod)
        assert total == [slope * s for s in (5, 10, 15, 20)]
    assert values(answer.readings, arm=Arm.STABLE, name="requests") == [35, 70, 105, 140]


def test_a_gauge_is_read_at_each_instant(source: PrometheusSource, start: datetime) -> None:
    memory = Template("memory", "gauge:memory", Arm.CANARY, 'memory_bytes{workload="{{ workload }}"}')
    readings = source.read([with_templates(start, memory)])["orders"].readings
    assert values(readings, name="gauge:memory", pod="orders-b-1") == [5e8 + s for s in (5, 10, 15, 20)]


def test_a_window_and_a_namespace_are_filled_in(source: PrometheusSource, start: datetime) -> None:
    text = 'last_over_time(orders_total{workload="{{workload}}",status="failed"}[{{window}}]) * on () group(vector(1))'
    named = text.replace('status="failed"', 'status="failed",namespace!="{{namespace}}"')
    answer = source.read([with_templates(start, failed=named)])["orders"]
    assert answer.unseen == {}
    assert values(answer.readings, arm=Arm.CANARY, name="query:orders:failures") == [5, 10, 15, 20]


@pytest.mark.parametrize(
    ("failed", "words"),
    [
        ("sum by (pod (x)", "HTTP 400 bad_data: "),
        ("nowhere_total", ""),
        ("x{a='{{pod}}'}", "{{pod}} cannot be filled in"),
        ('orders_total{workload="{{workload}}"} * on () group_left () orders_total', "HTTP 422"),
    ],
    ids=["syntax", "no-series", "unknown-place", "many-to-many"],
)
def test_a_template_that_fails_takes_its_metric_and_nothing_else_with_it(
    source: PrometheusSource, start: datetime, failed: str, words: str
) -> None:
    answers = source.read([with_templates(start, failed=failed), query(start, "api")])
    assert words in answers["orders"].unseen.get("orders", "")
    assert bool(words) is ("orders" in answers["orders"].unseen)
    names = {key.name for reading in answers["orders"].readings for key in reading.counters}
    assert names == ({"requests"} if words else {"requests", "query:orders:total"})
    assert values(answers["orders"].readings, arm=Arm.STABLE, name="requests") == [35, 70, 105, 140]
    assert len(answers["api"].readings) == 4


# ── starts of pods, recorded metrics ─────────────────────────────────────────────────────────────────────────


def test_the_starts_of_pods_are_those_of_kube_state_metrics_and_asked_once(
    server: Prometheus, source: PrometheusSource, start: datetime
) -> None:
    asked = replace(query(start, "orders"), durations=False)
    answer = source.read([asked])["orders"]
    hour = timedelta(hours=1)
    assert answer.started == {"orders-a-1": start - hour, "orders-b-1": start - 2 * hour}
    before = asked_so_far(server)
    assert source.read([asked])["orders"].started == answer.started
    assert asked_so_far(server) - before == 1
    assert source.read([query(start, "api")])["api"].started == {}


RULES = Path(__file__).resolve().parents[2] / "manifests/base/20-monitoring/rules/recording.yaml"


def counted(answer: CountsAnswer) -> list[tuple[Any, ...]]:
    """What is counted between the readings, pod by pod."""
    out: list[tuple[Any, ...]] = []
    for before, after in pairwise(answer.readings):
        arm = stretch(before, after, Classes(frozenset({"5xx"}), frozenset({"DC", "RL"}), frozenset())).stable
        served, failed = arm.requests - arm.unreached, arm.failures - arm.unreached
        out.append((served, failed, arm.timed, arm.slower.tolist(), arm.pods, arm.pod_requests.tolist()))
    return out


def lost(answer: CountsAnswer) -> list[float]:
    """Requests that never reached a pod, between the readings; each is counted once, and the first are not left out."""
    found = [
        stretch(before, after, Classes(frozenset(), frozenset(), frozenset())).stable.unreached
        for before, after in pairwise(answer.readings)
    ]
    at_last = answer.readings[-1].counters.items()
    assert sum(found) == sum(value for key, value in at_last if key.name == "unreached") > 0
    return found


def test_recorded_metrics_are_preferred_and_count_the_same(
    server: Prometheus, start: datetime, tmp_path: Path, source: PrometheusSource, prometheus_binary: Path
) -> None:
    asked = replace(
        query(start, "both"),
        points=tuple(start + (i + 1) * STEP for i in range(6)),
        stable_service="both-stable",
        canary_service="both-canary",
    )
    raw = source.read([asked])["both"]
    assert {key.exporter for key in raw.readings[0].counters} == {"envoy", "web-0", "web-1"}
    assert {k.le for k in raw.readings[0].counters if k.name == "bucket"} == {5.0, inf}
    data = tmp_path / "prometheus" / "data"
    data.mkdir(parents=True)
    told(start).write(tmp_path)
    with Nursery(tmp_path / "log") as nursery:
        nowhere = "http://127.0.0.1:9/metrics"
        other = Prometheus(nursery, tmp_path / "prometheus", nowhere, "1m", binary=prometheus_binary)
        other.start()
        window = [f"--start={start.timestamp():.0f}", f"--end={start.timestamp() + SECONDS:.0f}", "--eval-interval=5s"]
        argv = ["promtool", "tsdb", "create-blocks-from", "rules", f"--url={other.url}", f"--output-dir={data}"]
        argv += [*window, str(RULES)]
        done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    with Nursery(tmp_path / "log") as nursery:
        nowhere = "http://127.0.0.1:9/metrics"
        both = Prometheus(nursery, tmp_path / "prometheus", nowhere, "1m", binary=prometheus_binary)
        both.start()
        recorded = PrometheusSource(both.url, timeout=timedelta(seconds=10)).read([asked])["both"]
    assert {key.exporter for key in recorded.readings[0].counters} == {"both-1", "both-2", "shop/web-0", "shop/web-1"}
    assert counted(recorded) == counted(raw)
    assert counted(raw)[0][:4] == (2 * 2 * 12 * 5, 2 * 2 * 5, 2 * 2 * 2 * 10 * 5, [2 * 2 * 10 * 5])
    assert lost(raw) == [2 * 3 * (10 - BORN), *[2 * 3 * 5] * 4]
    assert lost(recorded)[2:] == lost(raw)[2:]  # rules are evaluated at a moment of their own, between two scrapes


@pytest.mark.envoy
def test_a_killed_prometheus_is_blind_and_tells_the_same_past_when_it_is_back(lab_with_prometheus: Lab) -> None:
    lab = lab_with_prometheus
    lab.set_weights("checkout", {"checkout-blue": 50, "checkout-green": 50})
    source = PrometheusSource(lab.prometheus_url, timeout=timedelta(seconds=5))
    up = f"{lab.prometheus_url}/api/v1/query?query=up"
    wait_until(lambda: b'"1"' in fetch(up)[1], "the first scrape, 5 s after Prometheus started", timeout=20)
    lab.start_load(duration=10, services=["checkout"])
    time.sleep(3)
    sent = lab.stop_load().total.answered
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1, milliseconds=500)
    points = tuple(end - i * timedelta(seconds=1) for i in range(5, -1, -1))
    asked = CountsQuery(
        "checkout", "default", "checkout-blue", "checkout-green", points, timedelta(seconds=1), ErrorSource()
    )
    wait_until(lambda: datetime.now(UTC) > end + timedelta(seconds=1), "the last scrape", timeout=5)
    before = source.read([asked])
    last = before["checkout"].readings[-1]
    assert last.at == end
    assert sum(v for key, v in last.counters.items() if key.name == "requests") == sent
    assert sum(v for key, v in last.counters.items() if key.le == inf) == sent
    assert {key.pod for key in last.counters} == {
        lab.pool_url(pool).removeprefix("http://") for pool in ("checkout-blue", "checkout-green")
    }
    lab.prometheus.kill()
    with pytest.raises(SourceError, match="refused"):
        source.read([asked])
    lab.prometheus.start()
    assert source.read([asked]) == before
    lab.prometheus.freeze()
    with pytest.raises(SourceError, match=r"within 0\.3 s"):
        PrometheusSource(lab.prometheus_url, timeout=timedelta(seconds=0.3)).read([asked])
