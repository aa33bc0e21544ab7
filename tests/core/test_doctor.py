"""The doctor's findings about what is measured: each of them appears when it should, and only then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from math import inf
from typing import Any

import pytest
from world import START, World, canary

from canaryd.adapters.prometheus_health import Health
from canaryd.doctor import traffic
from canaryd.doctor.cluster import EVICTION, eviction
from canaryd.doctor.findings import Finding, examine
from canaryd.doctor.further import FURTHER, Site, checks
from canaryd.doctor.traffic import Subject, edge_sets, evicted
from canaryd.errors import SourceError
from canaryd.model import Arm, CounterKey, Reading
from canaryd.policy import Canary


def severities(found: Iterable[Finding]) -> list[str]:
    return [str(finding.severity) for finding in found]


def worst(found: Iterable[Finding]) -> Finding:
    return max(found, key=lambda f: ("fine", "warning", "error").index(str(f.severity)))


def subject(world: World, health: Health | SourceError | None = None, **more: Any) -> Subject:
    (one,) = world.canaries

    def ask(canary: Canary, stable: str, workload: str) -> Health:
        assert (stable, workload) == ("api-a", "api-b")
        if isinstance(health, Health):
            return health
        assert health is not None
        raise health

    return Subject(one, "api", "api-a", "api-b", world.metrics, world.now, ask if health else None, **more)


@pytest.fixture(scope="module")
def busy() -> World:
    world = World(canary(interval="10s"))
    world.turn(40)
    return world


# ── Prometheus itself ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("seconds", "severity", "words"),
    [
        pytest.param(0, "fine", "its clock agrees", id="agrees"),
        pytest.param(1.5, "fine", "its clock agrees", id="a-little"),
        pytest.param(30, "warning", "30 s ahead of", id="ahead"),
        pytest.param(-30, "warning", "30 s behind", id="behind"),
    ],
)
def test_a_clock_that_differs_is_told(busy: World, seconds: float, severity: str, words: str) -> None:
    found = worst(traffic.prometheus([subject(busy, Health(timedelta(seconds=seconds), timedelta(seconds=2)))]))
    assert (str(found.severity), words in found.what) == (severity, True)


@pytest.mark.parametrize(
    ("seconds", "severity"),
    [
        pytest.param(5, "fine", id="two-in-an-interval"),
        pytest.param(8, "warning", id="one-in-an-interval"),
        pytest.param(15, "error", id="none-in-some-intervals"),
        pytest.param(None, "warning", id="not-known"),
    ],
)
def test_a_scrape_interval_that_is_too_long_for_the_interval_is_told(
    busy: World, seconds: float | None, severity: str
) -> None:
    spacing = None if seconds is None else timedelta(seconds=seconds)
    found = worst(traffic.prometheus([subject(busy, Health(timedelta(0), spacing))]))
    assert str(found.severity) == severity
    assert severity == "fine" or found.remedy


def test_settings_that_promise_more_scrapes_than_there_are_are_told(busy: World) -> None:
    slow = Health(timedelta(0), timedelta(seconds=4))
    said = [f.what for f in traffic.prometheus([subject(busy, slow, scrape=timedelta(seconds=1))])]
    assert any("the settings say 1 s" in what for what in said)
    assert severities(traffic.prometheus([subject(busy, slow, scrape=timedelta(seconds=4))])) == ["fine"]


def test_a_prometheus_that_does_not_answer_is_told_once_for_all_its_canaries(busy: World) -> None:
    gone = SourceError("127.0.0.1:9: connection refused")
    assert severities(traffic.prometheus([subject(busy, gone), subject(busy, gone)])) == ["error"]


def test_nothing_is_said_of_a_prometheus_where_there_is_none(busy: World) -> None:
    assert list(traffic.prometheus([subject(busy)])) == []


# ── series ───────────────────────────────────────────────────────────────────────────────────────────────────


def bucket(arm: Arm, pod: str, le: float) -> CounterKey:
    return CounterKey(arm, pod, pod, "bucket", "", "", "", le)


def requests(pod: str, code: str = "200", arm: Arm = Arm.STABLE) -> CounterKey:
    return CounterKey(arm, pod, pod, "requests", code, "-", "", 0.0)


def readings(*counters: Mapping[CounterKey, float]) -> list[Reading]:
    return [Reading(START + timedelta(seconds=10 * i), held) for i, held in enumerate(counters)]


def test_pods_with_the_same_buckets_are_fine(busy: World) -> None:
    assert severities(traffic.buckets([subject(busy)])) == ["fine"]


def test_pods_with_other_buckets_are_told_with_the_edges_that_lack() -> None:
    one = {bucket(Arm.STABLE, "a", le): 1.0 for le in (1, 5, 10, 25, inf)}
    other = {bucket(Arm.CANARY, "b", le): 1.0 for le in (1, 5, 10, inf)}
    sets = edge_sets(readings({**one, **other}))
    assert sets[("stable", "a")] - sets[("canary", "b")] == {25}
    world = World(canary())
    world.turn(3)
    ill = subject(world)
    ill.past.readings[-1].counters.update({bucket(Arm.STABLE, "odd", 7.0): 1.0})  # type: ignore[attr-defined]
    found = worst(traffic.buckets([ill]))
    assert str(found.severity) == "error"
    assert "pod odd" in found.what
    assert "latency stays blind" in found.why


def test_counters_that_only_rise_are_fine(busy: World) -> None:
    assert severities(traffic.resets([subject(busy)])) == ["fine"]


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        pytest.param({"200": 10, "500": 3}, {"200": 20, "500": 3}, 0, id="rises"),
        pytest.param({"200": 10, "500": 3}, {"200": 20}, 1, id="an-idle-series-vanishes"),
        pytest.param({"200": 10, "500": 3}, {"200": 20, "500": 1}, 1, id="a-series-goes-back"),
        pytest.param({"200": 10, "500": 3}, {"200": 2, "500": 1}, 0, id="the-process-is-a-new-one"),
        pytest.param({"200": 10, "500": 3}, {}, 0, id="the-process-is-gone"),
        pytest.param({"200": 10}, {"200": 20, "500": 1}, 0, id="a-series-is-born"),
    ],
)
def test_series_that_are_lost_while_the_process_goes_on_are_found(
    before: Mapping[str, float], after: Mapping[str, float], lost: int
) -> None:
    both = ({requests("a", code): n for code, n in held.items()} for held in (before, after))
    assert len(evicted(readings(*both))) == lost


def test_an_annotation_that_evicts_counters_is_told() -> None:
    def deployment(notes: Mapping[str, str]) -> dict[str, Any]:
        return {"metadata": {"name": "api"}, "spec": {"template": {"metadata": {"annotations": notes}}}}

    (found,) = eviction(deployment({EVICTION: "5m"}), "shop/api")
    assert "statsEvictionInterval: 5m" in found.what
    assert list(eviction(deployment({}), "shop/api")) == []
    assert list(eviction({"metadata": {"name": "api"}, "spec": {"template": {}}}, "shop/api")) == []


# ── power ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_step_says_what_it_finds_and_how_long_a_good_release_stays(busy: World) -> None:
    one = canary(interval="10s", steps=[{"weight": 50, "bake": "2m", "timeout": "4m"}], maxHold="4m")
    found = list(traffic.power([Subject(one, "api", "api-a", "api-b", busy.metrics, busy.now)]))
    assert severities(found) == ["fine"]
    assert found[0].what.startswith("50 %: a good release stays ")
    assert "failures from" in found[0].what


def test_a_step_that_cannot_decide_at_this_traffic_is_told() -> None:
    strict = canary(
        interval="10s", steps=[{"weight": 1, "bake": "1m", "timeout": "2m"}], budget={"share": "0.01%", "perHour": 0}
    )
    world = World(strict, rps=5.0)
    world.turn(30)
    found = list(traffic.power([subject(world)]))
    assert severities(found) == ["warning"]
    assert "too few to decide in 2 min" in found[0].what


def test_of_several_canaries_the_power_is_not_computed(busy: World) -> None:
    (found,) = traffic.power([subject(busy), subject(busy)])
    assert "canaryd doctor NAME" in found.what


def test_without_traffic_the_power_is_not_known() -> None:
    world = World(canary(), rps=0.0)
    world.turn(3)
    world.metrics.serve("api-a", "api-a-1", code="200", ms=[1.0])
    world.turn(3)
    found = list(traffic.power([subject(world)]))
    assert severities(found) == ["warning"]
    assert "intervals with requests" in found[0].what


def test_a_source_without_a_past_is_no_fault() -> None:
    world = World(canary(), remembers=False)
    world.turn(3)
    assert severities(traffic.power([subject(world)])) == ["fine"]


def test_a_source_that_does_not_answer_is_not_told_again_and_again() -> None:
    world = World(canary())
    world.turn(3)
    world.metrics.fail("connection refused")
    ill = subject(world)
    assert [list(look([ill])) for look in (traffic.buckets, traffic.resets, traffic.power)] == [[], [], []]
    assert isinstance(ill.trouble, SourceError)


# ── what plugs in ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_module_that_is_named_has_its_checks_made(busy: World) -> None:
    site = Site(None, (subject(busy),), busy.now)
    found = list(examine(checks(["further_checks"]), site, str))
    assert [(name, f.about, f.what) for name, f in found] == [("weather", "api", "it rains")]


def test_every_module_that_is_named_has_checks() -> None:
    assert all(check.name for check in checks(FURTHER))
