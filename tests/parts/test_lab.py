"""The laboratory keeps its promises, so that a test that stands on it means something."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from canaryd.demo.lab import Lab, PoolSpec, ServiceSpec
from canaryd.demo.processes import LabError, fetch, wait_until

pytestmark = pytest.mark.envoy

Labels = frozenset[tuple[str, str]]


def ask(lab: Lab, service: str, n: int) -> Counter[tuple[int, str | None]]:
    """n requests through Envoy on one connection, counted by (status, x-version)."""
    connection = http.client.HTTPConnection(lab.front_url(service).removeprefix("http://"), timeout=5)
    seen: Counter[tuple[int, str | None]] = Counter()
    try:
        for _ in range(n):
            connection.request("GET", "/")
            answer = connection.getresponse()
            answer.read()
            seen[answer.status, answer.headers.get("x-version")] += 1
    finally:
        connection.close()
    return seen


def series(lab: Lab, name: str) -> dict[Labels, float]:
    """One of Envoy's metrics, by its labels."""
    fetch(lab.flush_url)
    return parse(fetch(lab.metrics_url)[1].decode(), name)


def parse(page: str, name: str) -> dict[Labels, float]:
    found = {}
    for line in page.splitlines():
        if line.startswith(f"{name}{{"):
            labels, value = line[len(name) :].rsplit(" ", 1)
            found[frozenset(re.findall(r'(\w+)="([^"]*)"', labels))] = float(value)
    return found


def requests_of(lab: Lab, **wanted: str) -> float:
    counted = series(lab, "envoy_istio_requests_total")
    return sum(value for labels, value in counted.items() if labels >= frozenset(wanted.items()))


def gone(pid: int) -> bool:
    """No such process, or one that only waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def everyone_is_gone(pids: dict[str, int]) -> bool:
    return all(gone(pid) for pid in pids.values())


# Traffic


def test_a_new_lab_sends_everything_to_the_first_pool(lab: Lab) -> None:
    assert wait_until(lambda: ask(lab, "checkout", 30) == {(200, "v1"): 30}, "all on v1")


def test_the_split_follows_a_route_file_that_is_renamed_into_place(lab: Lab) -> None:
    lab.set_weights("checkout", {"checkout-blue": 0, "checkout-green": 100}, "1")
    wait_until(lambda: ask(lab, "checkout", 30) == {(200, "v2"): 30}, "all on v2")
    assert ask(lab, "search", 30) == {(200, "v1"): 30}  # the other service has its own file

    lab.set_weights("checkout", {"checkout-blue": 50, "checkout-green": 50}, "2")
    wait_until(lambda: len(ask(lab, "checkout", 30)) == 2, "both versions")
    seen = ask(lab, "checkout", 400)
    assert 130 < seen[200, "v2"] < 270  # seven standard deviations each way


def test_a_route_file_with_an_unknown_pool_is_refused_and_the_old_split_stays(lab: Lab) -> None:
    lab.set_weights("checkout", {"checkout-blue": 1, "checkout-mauve": 99}, "3")

    def refused() -> bool:
        _, page = fetch(f"{lab.admin_url}/stats?filter=checkout.update_rejected")
        return int(page.split()[-1]) > 0

    wait_until(refused, "Envoy to refuse the file")
    assert ask(lab, "checkout", 30) == {(200, "v1"): 30}


# Counters


def test_metrics_carry_the_labels_of_the_mesh_and_the_pod(lab: Lab) -> None:
    lab.set_weights("search", {"search-blue": 0, "search-green": 100}, "1")
    wait_until(lambda: ask(lab, "search", 5) == {(200, "v2"): 5}, "all on v2")
    lab.behave("search-green", errors=1.0)
    assert ask(lab, "search", 7) == {(500, "v2"): 7}

    labels = {
        "reporter": "destination",
        "destination_workload": "search-green",
        "destination_version": "v2",
        "destination_service": "search",
        "response_flags": "-",
        "pod": lab.pool_url("search-green").removeprefix("http://"),
        "response_code": "500",
    }
    key = frozenset(labels.items())
    wait_until(lambda: series(lab, "envoy_istio_requests_total").get(key) == 7, "7 errors counted")
    buckets = series(lab, "envoy_istio_request_duration_milliseconds_bucket")
    assert buckets[key | {("le", "5000")}] == 7
    edges = {float(dict(labels)["le"]) for labels in buckets}
    assert {1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 75, 100, 150, 250, 500, 1000, 2500, 5000} < edges


def test_reading_the_empty_page_first_makes_histograms_as_new_as_counters(lab: Lab) -> None:
    def as_new() -> bool:
        ask(lab, "checkout", 20)
        fetch(lab.flush_url)  # the merge it begins takes a moment more on a busy machine: then ask again
        page = fetch(lab.metrics_url)[1].decode()
        requests = sum(parse(page, "envoy_istio_requests_total").values())
        durations = sum(parse(page, "envoy_istio_request_duration_milliseconds_count").values())
        return requests >= 20 and abs(requests - durations) <= 1  # without it, always 20 behind

    wait_until(as_new, "histograms as new as the counters")


def test_a_killed_pool_shows_as_503_uf_under_its_own_name_until_it_is_back(lab: Lab) -> None:
    lab.set_weights("checkout", {"checkout-blue": 0, "checkout-green": 100}, "1")
    wait_until(lambda: ask(lab, "checkout", 5) == {(200, "v2"): 5}, "all on v2")
    lab.kill("checkout-green")

    assert ask(lab, "checkout", 20)[503, None] >= 19
    dead = {
        "destination_workload": "checkout-green",
        "destination_version": "v2",
        "pod": lab.pool_url("checkout-green").removeprefix("http://"),
        "response_code": "503",
        "response_flags": "UF",
    }
    wait_until(lambda: requests_of(lab, **dead) >= 19, "UF counted")
    lab.restart("checkout-green")
    assert ask(lab, "checkout", 20) == {(200, "v2"): 20}


# Load


def test_load_totals_equal_the_counters_of_envoy(lab: Lab) -> None:
    def by_version() -> dict[tuple[str, str], float]:
        return {
            (service, version): requests_of(lab, destination_service=service, destination_version=version)
            for service in ("checkout", "search")
            for version in ("v1", "v2")
        }

    lab.set_weights("checkout", {"checkout-blue": 70, "checkout-green": 30}, "1")
    lab.behave("checkout-green", errors=0.5)
    before = by_version()
    failed_before = requests_of(lab, response_code="500")
    lab.start_load(duration=20)
    wait_until(lambda: (stats := lab.load_stats()) and stats.total.answered > 500, "500 answers")
    stats = lab.stop_load()

    seen = {
        (service, version): stats.services[service].versions[version].requests
        if version in stats.services[service].versions
        else 0
        for service, version in before
    }
    wait_until(lambda: {k: n - before[k] for k, n in by_version().items()} == seen, f"Envoy to have counted {seen}")
    assert requests_of(lab, response_code="500") - failed_before == stats.total.versions["v2"].failed > 10
    assert stats.total.sent == stats.total.answered == sum(seen.values())
    assert (stats.total.lost, stats.total.in_flight, stats.running) == (0, 0, False)
    assert 1 < (stats.total.p50_ms or 0) < 1000


def test_load_ends_by_itself(lab: Lab) -> None:
    lab.start_load(duration=0.5)
    wait_until(lambda: (stats := lab.load_stats()) and not stats.running, "the generator to end")
    assert lab.stop_load().total.sent > 0


def test_load_stopped_at_once_still_tells_its_totals(lab: Lab) -> None:
    lab.start_load()
    assert not lab.stop_load().running
    lab.start_load(rps=1e9)
    with pytest.raises(LabError, match=r"--rps is 1000000000\.0; use 0\.1 to 5000"):
        lab.stop_load()


def test_a_slow_answer_is_counted_as_slow_for_the_version_that_gave_it(tmp_path: Path) -> None:
    pools = (PoolSpec("a-blue", "v1", 0.0, 60, 0.0), PoolSpec("a-green", "v2", 0.0, 1, 0.0))
    with Lab(tmp_path, [ServiceSpec("a", pools)], rps=50, slow_ms=50) as lab:
        lab.start_load(duration=1)
        wait_until(lambda: (stats := lab.load_stats()) and not stats.running, "the generator to end")
        stats = lab.stop_load()
    version = stats.total.versions["v1"]
    assert version.slow == version.requests == stats.total.sent > 10


# Names and limits


@pytest.mark.parametrize(
    ("name", "version"), [("Blue", "v1"), ("a/b", "v1"), ("", "v1"), ("envoy", "v1"), ("a", "v 1"), ("a", 'v"')]
)
def test_a_name_that_would_not_survive_a_file_or_a_label_is_refused(name: str, version: str) -> None:
    with pytest.raises(ValueError, match="use"):
        PoolSpec(name, version)


def test_two_pools_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must differ: a-blue, a-green"):
        Lab(tmp_path, [SPEC, ServiceSpec("b", SPEC.pools)])


def test_a_behaviour_out_of_range_is_refused_and_changes_nothing(lab: Lab) -> None:
    with pytest.raises(ValueError, match=r"errors is 7; it must be a number from 0 to 1"):
        lab.behave("checkout-blue", errors=7)
    with pytest.raises(KeyError):
        lab.behave("checkout-mauve", errors=0.5)
    with pytest.raises(KeyError):
        lab.rds_path("basket")


def test_health_is_what_the_pool_was_told_also_after_a_restart(lab: Lab) -> None:
    lab.behave("checkout-green", healthy=False)
    url = lab.health_urls()["checkout-green"]
    assert fetch(url)[0] == 503
    lab.restart("checkout-green")
    wait_until(lambda: port_open(url), "the pool to listen")
    assert fetch(url)[0] == 503


def port_open(url: str) -> bool:
    try:
        return bool(fetch(url)[0])
    except ConnectionError:
        return False


# Leaving


def test_leaving_leaves_no_process(tmp_path: Path) -> None:
    with Lab(tmp_path, [SPEC]) as lab:
        lab.start_load()
        pids = lab.pids()
    assert set(pids) == {"a-blue", "a-green", "envoy", "load"}
    assert everyone_is_gone(pids)


def test_leaving_by_an_exception_leaves_no_process(tmp_path: Path) -> None:
    pids: dict[str, int] = {}

    def fail_inside() -> None:
        with Lab(tmp_path, [SPEC]) as lab:
            lab.start_load()
            pids.update(lab.pids())
            raise RuntimeError("a test failed")

    with pytest.raises(RuntimeError, match="a test failed"):
        fail_inside()
    assert len(pids) == 4
    assert everyone_is_gone(pids)


def test_a_lab_that_cannot_start_stops_what_it_had_started(tmp_path: Path) -> None:
    (tmp_path / "rds").write_text("a file where a directory must be")
    lab = Lab(tmp_path, [SPEC])
    with pytest.raises(NotADirectoryError):
        lab.__enter__()
    assert lab.pids() == {}
    with pytest.raises(LabError, match="closed"):
        lab.restart("a-blue")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_a_program_ended_by_a_signal_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    script = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with script:
        assert script.stdout is not None
        pids = json.loads(script.stdout.readline())
        assert len(pids) == 4
        script.send_signal(number)
        script.wait(20)
    try:
        wait_until(lambda: everyone_is_gone(pids), "every child to be gone")
    finally:
        for pid in pids.values():  # a broken leash must not leave anybody on the tester's machine
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


def test_children_outlive_the_thread_that_asked_for_them(tmp_path: Path) -> None:
    lab = Lab(tmp_path, [SPEC])
    asking = threading.Thread(target=lab.__enter__)
    asking.start()
    asking.join()
    try:
        asking = threading.Thread(target=lab.restart, args=("a-green",))
        asking.start()
        asking.join()
        assert set(lab.pids()) == {"a-blue", "a-green", "envoy"}
        assert ask(lab, "a", 20).total() == 20  # and still there some hundred milliseconds later
        assert set(lab.pids()) == {"a-blue", "a-green", "envoy"}
    finally:
        lab.__exit__(None, None, None)


SPEC = ServiceSpec("a", (PoolSpec("a-blue", "v1"), PoolSpec("a-green", "v2")))
PROGRAM = """
import json, sys, time
from pathlib import Path
from canaryd.demo.lab import Lab, PoolSpec, ServiceSpec
with Lab(Path(sys.argv[1]), [ServiceSpec("a", (PoolSpec("a-blue", "v1"), PoolSpec("a-green", "v2")))]) as lab:
    lab.start_load()
    print(json.dumps(lab.pids()), flush=True)
    time.sleep(30)
"""


# Prometheus


def ask_prometheus(lab: Lab, query: str) -> float:
    """The value of a query that gives one number; 0 when it gives none."""
    _, page = fetch(f"{lab.prometheus_url}/api/v1/query?query={query}")
    result = json.loads(page)["data"]["result"]
    return float(result[0]["value"][1]) if result else 0.0


@pytest.mark.prometheus
def test_prometheus_has_the_counters_under_the_names_of_the_mesh(lab_with_prometheus: Lab) -> None:
    lab = lab_with_prometheus
    ask(lab, "checkout", 25)
    pod = lab.pool_url("checkout-blue").removeprefix("http://")
    for name in ("istio_requests_total", "istio_request_duration_milliseconds_count"):
        query = f'sum({name}{{destination_workload="checkout-blue",pod="{pod}",response_code="200"}})'
        wait_until(lambda query=query: ask_prometheus(lab, query) == 25, f"{name} to be 25")
    assert ask_prometheus(lab, 'count({__name__=~"envoy_.*"})') == 0


@pytest.mark.prometheus
def test_prometheus_killed_comes_back_on_the_same_address_with_its_data(lab_with_prometheus: Lab) -> None:
    lab = lab_with_prometheus
    ask(lab, "checkout", 25)
    wait_until(lambda: ask_prometheus(lab, "sum(istio_requests_total)") == 25, "25 requests")
    url = lab.prometheus_url
    wait_until(lambda: ask_prometheus(lab, "sum(count_over_time(up[5m]))") >= 3, "three scrapes")
    lab.prometheus.kill()
    assert not lab.prometheus.running
    with pytest.raises(ConnectionError):
        ask_prometheus(lab, "up")
    lab.prometheus.start()
    assert lab.prometheus_url == url
    assert ask_prometheus(lab, "sum(count_over_time(up[5m]))") >= 3  # its first new scrape comes 5 s later


@pytest.mark.prometheus
def test_prometheus_frozen_hangs_and_thaws(lab_with_prometheus: Lab) -> None:
    lab = lab_with_prometheus
    lab.prometheus.freeze()
    with pytest.raises(TimeoutError):
        fetch(f"{lab.prometheus_url}/-/ready", timeout=0.3)
    lab.prometheus.thaw()
    assert fetch(f"{lab.prometheus_url}/-/ready")[0] == 200
    lab.prometheus.freeze()
    assert lab.prometheus.child.stop() == 0  # a frozen one still ends in order, without SIGKILL
