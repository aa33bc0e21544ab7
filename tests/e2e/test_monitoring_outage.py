"""Prometheus dies, hangs or lies in the middle of a rollout: nothing moves, it is said once, nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Stage
from faulty import FAULTS, Faulty
from scene import RPS, WEIGHTS, Scene, service, under_load

from canaryd.demo.lab import Lab
from canaryd.demo.processes import free_port
from canaryd.demo.site import from_page, from_prometheus
from canaryd.model import DecisionKind, Phase, Verdict

pytestmark = [pytest.mark.envoy, pytest.mark.prometheus, pytest.mark.slow]
NAMES = ("killed", "frozen", "lies", "deadline", "page", "late", "swapped")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One service for each story, all under load all the time: Prometheus remembers every one of their seconds."""
    services = [service(name) for name in NAMES]
    with Lab(tmp_path_factory.mktemp("lab"), services, prometheus=True, scrape="200ms") as lab:
        yield lab


def section(url: str) -> str:
    return from_prometheus(url, scrape="200ms", lag="600ms", timeout="800ms")


def go_blind_and_recover(scene: Scene, name: str, break_it: Callable[[], object], heal: Callable[[], object]) -> None:
    """A rollout that loses sight at its second step, for at least three looks."""
    with under_load(scene.lab, name):
        scene.release(name, "r1")
        scene.until_weight(name, WEIGHTS[1])
        known = len(scene.told(name))  # Prometheus' first scrape may come late: then there was a spell before, too
        break_it()
        scene.until(lambda: scene.state(name).verdict is Verdict.BLIND, "blindness")
        before = scene.state(name)
        scene.ticks(name, 4)
        blind = scene.state(name)
        assert blind.verdict is Verdict.BLIND
        assert scene.weight(name) == WEIGHTS[1]
        assert (blind.step, blind.baked, blind.history) == (1, before.baked, before.history)
        assert scene.told(name)[known:].count(DecisionKind.BLIND) == 1
        heal()
        scene.until_phase(name, Phase.SUCCEEDED, timeout=60)
    told = scene.told(name)[known:]
    assert (told.count(DecisionKind.BLIND), told.count(DecisionKind.RESUMED)) == (1, 1)
    assert told.index(DecisionKind.BLIND) < told.index(DecisionKind.RESUMED)
    progress = [(Phase.PROGRESSING.value, w) for w in WEIGHTS]
    assert scene.steps(name) == [("Waiting", 0), *progress, ("Promoting", 100), ("Succeeded", 0)]
    served = scene.lab.stop_load().services[name].versions["v2"].requests
    seen, failed = scene.harmed(name)
    assert failed == 0
    assert served - 3 * RPS <= seen <= served, "nothing is counted twice, and nothing but the last moments is missing"


def test_prometheus_is_killed_and_comes_back(lab: Lab, stage: Stage) -> None:
    scene = stage(lab, section(lab.prometheus_url))
    scene.canary("killed")
    scene.run()
    try:
        go_blind_and_recover(scene, "killed", lab.prometheus.kill, lab.prometheus.start)
    finally:
        lab.prometheus.start()


def test_prometheus_hangs_and_comes_back(lab: Lab, stage: Stage) -> None:
    scene = stage(lab, section(lab.prometheus_url))
    scene.canary("frozen")
    scene.run()
    try:
        go_blind_and_recover(scene, "frozen", lab.prometheus.freeze, lab.prometheus.thaw)
    finally:
        lab.prometheus.thaw()


def test_an_answer_that_is_none_is_blind_not_empty(lab: Lab, stage: Stage) -> None:
    """One rollout through every kind of lie, one after the other."""
    with Faulty(lab.prometheus_url) as faulty:
        scene = stage(lab, section(faulty.url))
        scene.canary("lies", steps=[{"weight": 20, "bake": "10m"}, {"weight": 50, "bake": "500ms"}])
        scene.run()
        with under_load(lab, "lies"):
            scene.release("lies", "r1")
            scene.until(lambda: scene.state("lies").verdict is Verdict.HEALTHY, "a first step that goes well")
            for fault in FAULTS:
                told, before = len(scene.told("lies")), scene.harmed("lies")
                faulty.fault = fault
                scene.until(lambda: scene.state("lies").verdict is Verdict.BLIND, f"blindness: {fault}")
                began = scene.state("lies")
                scene.ticks("lies", 4)
                blind = scene.state("lies")
                assert (blind.verdict, blind.weight, blind.baked) == (Verdict.BLIND, 20, began.baked), fault
                faulty.fault = ""
                scene.until(lambda: scene.state("lies").verdict is Verdict.HEALTHY, f"sight after: {fault}")
                assert scene.told("lies")[told:] == [DecisionKind.BLIND, DecisionKind.RESUMED], fault
                assert scene.harmed("lies")[0] > before[0], fault
            scene.say("promote", "lies", "--reason", "seen enough")
            scene.until_phase("lies", Phase.SUCCEEDED)
    served = scene.lab.stop_load().services["lies"].versions["v2"].requests
    assert served - 3 * RPS <= scene.harmed("lies")[0] <= served


def test_after_the_deadline_without_sight_a_rollout_goes_back_where_that_is_asked_for(lab: Lab, stage: Stage) -> None:
    with Faulty(lab.prometheus_url) as faulty:
        scene = stage(lab, section(faulty.url))
        scene.canary("deadline", onBlind="rollback", blindDeadline="3s")
        scene.run()
        with under_load(lab, "deadline"):
            scene.release("deadline", "r1")
            scene.until_weight("deadline", WEIGHTS[0])
            faulty.fault = "http-500"
            ended = scene.until_phase("deadline", Phase.ROLLED_BACK)
    assert scene.weight("deadline") == 0
    (rollback,) = scene.records("deadline", DecisionKind.ROLLBACK)
    blind = max(scene.records("deadline", DecisionKind.BLIND), key=lambda record: record.at)  # the spell that lasted
    assert "onBlind: rollback after 3 s" in rollback.sentence
    assert ended.blind.total_seconds() >= 3
    assert (rollback.at - blind.at).total_seconds() >= 1.5


def test_a_daemon_that_was_away_reads_what_it_missed_once(lab: Lab, stage: Stage) -> None:
    scene = stage(lab, section(lab.prometheus_url))
    scene.canary("late", steps=[{"weight": 20, "bake": "8s"}, 100])
    daemon = scene.run()
    with under_load(lab, "late"):
        scene.release("late", "r1")
        scene.until_weight("late", 20)
        scene.ticks("late", 2)
        before = scene.state("late").evidence
        daemon.kill()
        scene.until_load_ran(7)
        scene.run()
        scene.until(lambda: scene.state("late").evidence.intervals > before.intervals + 4, "the gap to be read")  # type: ignore[union-attr]
        scene.until_phase("late", Phase.SUCCEEDED)
    served = lab.stop_load().services["late"].versions["v2"].requests
    seen, _ = scene.harmed("late")
    assert served - 3 * RPS <= seen <= served


def test_what_the_old_stable_served_before_a_rollout_is_no_harm_done_by_it(lab: Lab, stage: Stage) -> None:
    """After a promotion the roles are swapped, and Prometheus remembers what the new canary did as stable."""
    scene = stage(lab, section(lab.prometheus_url))
    scene.canary("swapped", steps=[{"weight": 5, "bake": "500ms"}, {"weight": 10, "bake": "3s"}])
    scene.run()
    with under_load(lab, "swapped"):
        scene.until_load_ran(4)
        scene.release("swapped", "r1")
        scene.until_phase("swapped", Phase.SUCCEEDED)
        scene.release("swapped", "r2")
        state = scene.until_weight("swapped", 10)
        began = state.started
        seen, _ = scene.harmed("swapped")
        assert began is not None
        assert state.step_started is not None
        assert 0 < seen <= RPS * (state.step_started - began).total_seconds() * 0.10


def test_a_page_of_counters_that_is_away_is_blind_and_comes_back(lab: Lab, stage: Stage, tmp_path: Path) -> None:
    """The other source: Envoy's own page, through an address that refuses, then answers."""
    port = free_port()
    scene = stage(lab, from_page(f"http://127.0.0.1:{port}/stats/prometheus"))
    scene.canary("page")
    scene.run()
    with under_load(lab, "page"):
        scene.release("page", "r1")
        scene.until(lambda: DecisionKind.BLIND in scene.told("page"), "blindness before the first step")
    assert scene.state("page").weight == 0
    assert scene.weight("page") == 0
