"""How many questions Prometheus is asked for how many canaries, and whom a refused one blinds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from math import ceil
from typing import Any

import pytest
from test_metric_source import STEP, T1, T2, Server, asked, http, query, success

from canaryd.adapters.prometheus import PrometheusSource
from canaryd.errors import SourceError
from canaryd.model import Arm, CounterKey, Reading
from canaryd.policy import ErrorSource
from canaryd.ports import CountsQuery

NAMES = ErrorSource()
SECOND = timedelta(seconds=1)
Series = dict[str, Any]


class Fleet:
    """A Prometheus that knows every workload it is asked for, with recorded metrics or without.

    `refuses`: words of a refusal for a request, by the workloads in it.
    """

    def __init__(
        self, *, recorded: Sequence[str] = (), refuses: Callable[[list[str]], str] = lambda _: "", buckets: bool = True
    ) -> None:
        self.recorded, self.refuses, self.buckets = recorded, refuses, buckets
        self.questions: list[str] = []
        self.instants = ("0", "0")

    def __call__(self, request: bytes) -> Iterator[bytes | float]:
        form = asked(request)
        question = form["query"]
        self.instants = form["start"], form["end"]
        self.questions.append(question)
        found = re.search(r'destination_workload=~"([^"]*)"', question)
        workloads = found[1].split("|") if found else []
        if why := self.refuses(workloads):
            yield http(json.dumps({"status": "error", "errorType": "execution", "error": why}), "422 Unprocessable")
        else:
            yield http(json.dumps(success(list(self._series(question, workloads)))))

    def _series(self, question: str, workloads: Sequence[str]) -> Iterator[Series]:
        names = re.search(r'__name__=~"([^"]*)"', question)
        if question.startswith("count by (__name__"):
            for workload in workloads:
                for name in self.recorded:
                    side = {"destination_workload": workload}
                    if name == NAMES.recorded_unreached:
                        side = {"destination_service_name": f"{workload}-svc"}
                    yield self._one({"__name__": name, **side})
        elif names is not None:
            for workload in workloads:
                for name in names[1].split("|"):
                    if "bucket" not in name or self.buckets:
                        labels = {"__name__": name, "destination_workload": workload, "pod": f"{workload}-0"}
                        yield self._one(labels | ({"le": "+Inf"} if "bucket" in name else {"response_code": "200"}))

    def _one(self, labels: Mapping[str, str]) -> Series:
        return {"metric": dict(labels), "values": [[float(at), "5"] for at in dict.fromkeys(self.instants)]}

    def counted(self) -> list[str]:
        return [q for q in self.questions if q.startswith("last_over_time(")]


ALL = (NAMES.recorded_requests, NAMES.recorded_durations, NAMES.recorded_unreached)


def of(name: str, *, points: Any = (T1, T2), step: timedelta = STEP) -> CountsQuery:
    asked_for = replace(query(name, points=points, durations=True), step=step)
    return replace(asked_for, stable_service=f"{name}-a-svc", canary_service=f"{name}-b-svc")


def source(server: Server, **more: Any) -> PrometheusSource:
    return PrometheusSource(f"http://127.0.0.1:{server.port}", timeout=10 * SECOND, **more)


@pytest.mark.parametrize("canaries", [1, 50, 51, 200, 400])
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "raw"])
def test_the_questions_of_a_look_are_few(canaries: int, recorded: bool) -> None:
    fleet = Fleet(recorded=ALL if recorded else ())
    with Server(fleet) as server:
        prometheus, queries = source(server, starts=False), [of(f"c{i}") for i in range(canaries)]
        prometheus.read(queries)
        first = len(fleet.questions)
        for _ in range(2):
            fleet.questions.clear()
            answers = prometheus.read(queries)
            assert all(len(answer.readings) == 2 for answer in answers.values())
            allowed = ceil(canaries / 200) if recorded else ceil(canaries / 50)
            assert len(fleet.questions) == allowed
            assert allowed <= 2 * ceil(canaries / 200) or not recorded
    assert first == allowed + ceil(canaries / 200), "once in five minutes: which metrics are recorded"


def test_what_is_recorded_is_asked_again_after_five_minutes() -> None:
    fleet = Fleet(recorded=ALL)
    with Server(fleet) as server:
        prometheus = source(server, starts=False)
        for minutes in (0, 4, 6):
            points = tuple(t + timedelta(minutes=minutes) for t in (T1, T2))
            assert len(prometheus.read([of("api", points=points)])["api"].readings) == 2
    assert sum(q.startswith("count by") for q in fleet.questions) == 2


@pytest.mark.parametrize("missing", ALL)
def test_a_metric_that_is_not_recorded_is_read_raw_in_small_requests(missing: str) -> None:
    fleet = Fleet(recorded=[name for name in ALL if name != missing])
    with Server(fleet) as server:
        source(server, starts=False).read([of(f"c{i}") for i in range(120)])
    assert len(fleet.counted()) == 3
    raw = {ALL[0]: NAMES.requests, ALL[1]: NAMES.durations, ALL[2]: f'{NAMES.requests}{{reporter="source"'}
    assert all(raw[missing] in question for question in fleet.counted())


def test_canaries_with_other_instants_or_intervals_are_asked_for_apart() -> None:
    fleet = Fleet(recorded=ALL)
    with Server(fleet) as server:
        prometheus = source(server, starts=False)
        prometheus.read([of("a"), of("b"), of("c", points=(T2,)), of("d", step=STEP / 2), of("e", points=())])
    assert len(fleet.counted()) == 3


def test_where_the_cluster_knows_the_starts_of_pods_prometheus_is_not_asked() -> None:
    for starts, questions in ((True, 1), (False, 0)):
        fleet = Fleet()
        with Server(fleet) as server:
            source(server, starts=starts).read([of("api")])
        assert sum("kube_pod_start_time" in q for q in fleet.questions) == questions


def test_missing_buckets_are_looked_for_once_in_five_minutes() -> None:
    fleet = Fleet(buckets=False)
    with Server(fleet) as server:
        prometheus = source(server, starts=False)
        for _ in range(3):
            prometheus.read([of("api")])
    assert len(fleet.questions) == 1 + 3 + 1


# ── a request that is refused ────────────────────────────────────────────────────────────────────────────────


def test_a_request_that_is_refused_blinds_only_its_own_canaries() -> None:
    fleet = Fleet(refuses=lambda workloads: "too many samples" if "c7-a" in workloads and len(workloads) < 120 else "")
    with Server(fleet) as server:
        answers = source(server).read([of(f"c{i}") for i in range(120)])
    failed = {name for name, answer in answers.items() if answer.failed}
    assert failed == {f"c{i}" for i in range(50)}
    assert "HTTP 422 execution: too many samples" in answers["c7"].failed
    assert answers["c7"].readings == ()
    assert all(len(answers[f"c{i}"].readings) == 2 for i in range(50, 120))


def test_a_large_request_that_is_refused_is_asked_again_in_small_ones_and_stays_small_for_a_while() -> None:
    fleet = Fleet(recorded=ALL, refuses=lambda workloads: "too large" if len(workloads) > 100 else "")
    with Server(fleet) as server:
        prometheus, queries = source(server, starts=False), [of(f"c{i}") for i in range(100)]
        fleet.refuses, refuses = lambda _: "", fleet.refuses
        prometheus.read(queries)
        fleet.refuses = refuses
        fleet.questions.clear()
        assert not any(answer.failed for answer in prometheus.read(queries).values())
        assert len(fleet.questions) == 1 + 2
        fleet.questions.clear()
        prometheus.read(queries)
        assert len(fleet.questions) == 2


def test_a_look_for_recorded_metrics_that_is_refused_blinds_only_those_it_was_for() -> None:
    fleet = Fleet(refuses=lambda workloads: "no" if "new-a" in workloads else "")
    with Server(fleet) as server:
        prometheus = source(server)
        prometheus.read([of("api")])
        answers = prometheus.read([of("api"), of("new", points=(T2,))])
    assert answers["new"].failed
    assert (answers["api"].failed, len(answers["api"].readings)) == ("", 2)


def test_when_every_request_is_refused_it_is_an_error() -> None:
    with Server(Fleet(refuses=lambda _: "too many samples")) as server, pytest.raises(SourceError, match="too many"):
        source(server).read([of("api"), of("web", points=(T2,))])


def test_a_slow_request_is_given_half_of_the_time_when_others_wait() -> None:
    limits: list[float] = []

    def answer(request: bytes) -> Iterator[bytes | float]:
        if asked(request)["query"].startswith("last_over_time("):
            limits.append(float(asked(request)["timeout"]))
        yield http(json.dumps(success([])))

    with Server(answer) as server:
        source(server, starts=False).read([of("a"), of("b", points=(T2,))])
    assert limits[0] == pytest.approx(5, rel=0.1)
    assert limits[1] == pytest.approx(10, rel=0.1)


# ── requests that never reached a pod ────────────────────────────────────────────────────────────────────────


def client(service: str, flags: str, value: str, **more: str) -> Series:
    labels = {
        "__name__": NAMES.requests, "reporter": "source", "destination_service_name": service,
        "destination_service_namespace": "default", "destination_workload": "unknown", "response_code": "503",
        "response_flags": flags, "instance": "gateway:15020", "pod": "gateway-1",
    }  # fmt: skip
    return {"metric": labels | more, "values": [[T2.timestamp(), value]]}


def zero(service: str, **more: str) -> Series:
    labels = {"destination_service_name": service, "destination_service_namespace": "default"}
    return {
        "metric": labels | {"instance": "gateway:15020", "pod": "gateway-1"} | more,
        "values": [[T2.timestamp(), "0"]],
    }


def served(workload: str) -> Series:
    labels = {"__name__": NAMES.requests, "reporter": "destination", "destination_workload": workload}
    return {"metric": {**labels, "response_code": "200", "pod": "p"}, "values": [[T2.timestamp(), "9"]]}


def read(*series: Series, asked_for: CountsQuery | None = None) -> Sequence[Reading]:
    with Server(lambda _: iter([http(json.dumps(success(list(series))))])) as server:
        return source(server, starts=False).read([asked_for or of("api")])["api"].readings


def lost_in(readings: Sequence[Reading]) -> dict[tuple[Arm, str, str], float]:
    found = readings[-1].counters.items()
    return {(k.arm, k.exporter, k.flags): v for k, v in found if k.name == "unreached"}


@pytest.mark.parametrize("flags", ["UH", "UF", "UO", "NR", "UT", "URX", "UC", "UF,URX", "DC,UC"])
def test_a_clients_report_of_a_lost_request_belongs_to_the_arm_behind_the_service(flags: str) -> None:
    readings = read(served("api-a"), client("api-b-svc", flags, "4"), client("api-a-svc", flags, "1"))
    assert lost_in(readings) == {
        (Arm.CANARY, "gateway:15020", flags): 4.0,
        (Arm.STABLE, "gateway:15020", flags): 1.0,
    }
    assert {key.pod for key in readings[-1].counters if key.name == "unreached"} == {""}


def test_a_client_that_has_lost_nothing_yet_is_there_with_a_zero() -> None:
    readings = read(served("api-a"), zero("api-b-svc"))
    assert readings[-1].counters[CounterKey(Arm.CANARY, "gateway:15020", "", "unreached", "", "", "", 0.0)] == 0.0


@pytest.mark.parametrize(
    "series",
    [
        pytest.param(client("api-b-svc", "-", "4"), id="answered"),
        pytest.param(client("api-b-svc", "DC", "4"), id="the-client-left"),
        pytest.param(client("api-b-svc", "UHX", "4"), id="another-flag"),
        pytest.param(client("elsewhere", "UH", "4"), id="another-service"),
        pytest.param(client("api-b-svc", "UH", "4", destination_service_namespace="staging"), id="another-namespace"),
        pytest.param(client("api-b-svc", "UH", "4", destination_workload="api-b"), id="by-service-only"),
    ],
)
def test_other_reports_of_clients_are_not_counted(series: Series) -> None:
    by_service = series["metric"]["destination_workload"] == "api-b"
    assert bool(lost_in(read(served("api-a"), series))) is by_service
    assert lost_in(read(served("api-a"), series, asked_for=query("api"))) == {}


def test_recorded_losses_are_of_the_clients_pod_in_its_namespace() -> None:
    name = NAMES.recorded_unreached
    both = [
        client("api-b-svc", "UH", value, __name__=name, instance="", reporter="", namespace=space, pod="web-0")
        for space, value in (("shop", "4"), ("blog", "2"))
    ]
    exists = {"metric": {"__name__": name, "destination_service_name": "api-b-svc"}, "values": [[T2.timestamp(), "1"]]}

    def answer(request: bytes) -> Iterator[bytes | float]:
        looking = asked(request)["query"].startswith("count by (__name__")
        yield http(json.dumps(success([exists] if looking else [served("api-a"), *both])))

    with Server(answer) as server:
        readings = source(server, starts=False).read([of("api")])["api"].readings
    assert lost_in(readings) == {(Arm.CANARY, "shop/web-0", "UH"): 4.0, (Arm.CANARY, "blog/web-0", "UH"): 2.0}


def test_an_instant_of_which_only_clients_tell_is_no_reading() -> None:
    assert read(client("api-b-svc", "UH", "4"), zero("api-b-svc")) == ()


def test_copies_of_a_loss_from_two_replicas_are_taken_once() -> None:
    copies = [client("api-b-svc", "UH", value, prometheus_replica=r) for r, value in (("a", "4"), ("b", "5"))]
    assert lost_in(read(served("api-a"), *copies)) == {(Arm.CANARY, "gateway:15020", "UH"): 5.0}
