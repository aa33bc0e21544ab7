"""The process itself: stopping, leading, reading documents that change, a disk that is full, what it says of itself."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Iterator

import pytest
from conftest import Stage
from prometheus_client.parser import text_string_to_metric_families
from scene import RPS, WEIGHTS, Scene, cpu_seconds, memory_mb, pause, service, under_load

from canaryd.demo.lab import Lab
from canaryd.demo.processes import Child
from canaryd.demo.site import Site, from_page
from canaryd.model import DecisionKind, Phase, Release

pytestmark = [pytest.mark.envoy, pytest.mark.slow]
NAMES = ("stopped", "led", "documents", "full", "seen")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab"), [service(name) for name in NAMES]) as lab:
        yield lab


def path_of(scene: Scene, name: str) -> list[int]:
    return [w for _, w in scene.steps(name)]


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_sigterm_leaves_the_weights_as_they_are_and_the_next_process_goes_on(lab: Lab, stage: Stage) -> None:
    scene = stage(lab)
    scene.canary("stopped")
    daemon = scene.run()
    with under_load(lab, "stopped"):
        scene.release("stopped", "r1")
        scene.until_weight("stopped", WEIGHTS[1])
        scene.until_split("stopped", 50, 50)
        assert daemon.stop() == 0
        assert scene.log()[-1]["event"] == "stopped"
        left = scene.saved("stopped")
        route = lab.rds_path("stopped").read_bytes()
        pause(1.5)
        assert lab.rds_path("stopped").read_bytes() == route
        assert scene.saved("stopped") == left
        scene.run()
        scene.until_phase("stopped", Phase.SUCCEEDED)
    assert path_of(scene, "stopped") == [0, *WEIGHTS, 100, 0]
    assert scene.told("stopped") == ["start", "advance", "advance", "advance", "promote", "succeed"]


# ── leading ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_daemon_says_who_leads_moves_nothing_and_takes_over_when_the_first_dies(
    lab: Lab, stage: Stage
) -> None:
    scene = stage(lab)
    scene.canary("led", steps=[{"weight": 20, "bake": "4s"}, {"weight": 50, "bake": "4s"}, 100])
    first = scene.run()
    second = Site(scene.site.directory, scene.nursery, from_page(lab.metrics_url), config="second.yaml")
    with under_load(lab, "led"):
        other = second.run("second")
        scene.release("led", "r1")
        scene.until_weight("led", 20)
        scene.until(lambda: "standby" in other.log.read_text(), "the second to say that it waits")
        status, said = second.page("/readyz")
        assert (status, f"pid {first.pid} on" in said, said.startswith("standby")) == (200, True, True)
        assert second.page("/healthz")[0] == 200
        assert second.page("/metrics")[1].count("canaryd_leader 0.0") == 1
        assert json.loads(second.page("/status")[1])["leading"] is False
        stopped_at = scene.state("led")
        first.freeze()
        pause(2)
        assert second.page("/readyz")[1].startswith("standby"), "a leader that hangs still holds the state"
        assert scene.state("led").decisions - stopped_at.decisions <= 1
        first.thaw()
        scene.until_weight("led", 50)
        first.kill()
        scene.until(lambda: second.page("/readyz")[1] == "leading\n", "the second to take over", timeout=10)
        scene.until_phase("led", Phase.SUCCEEDED)
    assert path_of(scene, "led") == [0, 20, 50, 100, 100, 0]
    scene.until(lambda: not scene.store.owed(), "everything to be told")
    looks = [line for line in events(other) if line.get("event") in ("look", "decision")]
    kinds = [line["kind"] for line in looks]
    assert kinds.count("start") == 0
    assert kinds.count("succeed") == 1
    numbers = [int(r.id.rpartition("/")[2]) for r in scene.records("led")]
    assert numbers == list(range(1, len(numbers) + 1))


def events(child: Child) -> list[dict[str, object]]:
    return [json.loads(line) for line in child.log.read_text().splitlines()]


# ── documents ────────────────────────────────────────────────────────────────────────────────────────────────


def test_documents_that_change_while_it_runs_are_taken_and_a_broken_one_stops_nobody(lab: Lab, stage: Stage) -> None:
    scene = stage(lab)
    scene.canary("documents", steps=[{"weight": 20, "bake": "10m"}, 100])
    scene.run()
    with under_load(lab, "documents"):
        scene.release("documents", "r1")
        scene.until_weight("documents", 20)
        broken = scene.site.write("broken", "apiVersion: canaryd.io/v1alpha1\nkind: Canary\nmetadata: {name: broken}\n")
        scene.until(lambda: said(scene, "document refused", "broken.yaml"), "the broken document to be said")
        scene.ticks("documents", 2)
        scene.site.write("documents", "this: is no Canary\n")
        scene.until(lambda: said(scene, "document refused", "documents.yaml"), "the second broken document")
        scene.ticks("documents", 2)
        scene.canary("documents", steps=[{"weight": 20, "bake": "1s"}, 100])
        scene.until_phase("documents", Phase.SUCCEEDED)
        broken.unlink()
        scene.canary("seen")
        scene.until(lambda: '"seen"' in json.dumps(scene.log()[-1]), "the new document to be taken", timeout=10)
        scene.release("seen", "r1")
        scene.until(lambda: scene.state("seen").phase is Phase.WAITING, "the new canary to be looked at")
    assert path_of(scene, "documents") == [0, 20, 100, 100, 0]


def said(scene: Scene, event: str, about: str) -> bool:
    return any(line["event"] == event and about in line.get("problem", "") for line in scene.log())


# ── the disk ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_full_disk_holds_the_rollout_is_said_and_heals(lab: Lab, stage: Stage) -> None:
    """No file of the daemon may grow beyond what its state file has now, until there is room again."""
    scene = stage(lab)
    scene.canary("full", steps=[{"weight": 20, "bake": "3s"}, {"weight": 50, "bake": "1s"}, 100])
    daemon = scene.run()
    wal = scene.site.state.with_name("state.db-wal")
    with under_load(lab, "full"):
        scene.release("full", "r1")
        scene.until_weight("full", 20)
        scene.until(lambda: wal.stat().st_size > daemon.log.stat().st_size + 60_000, "the state to be the larger file")
        room = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (wal.stat().st_size, resource.RLIM_INFINITY))
        scene.until(lambda: any(line["event"] == "held" for line in scene.log()), "the trouble to be said")
        held = scene.saved("full")
        pause(3)
        assert scene.saved("full") == held
        assert (scene.state("full").weight, scene.weight("full")) == (20, 20)
        status, pages = scene.page("/metrics")
        assert (status, metric(pages, "canaryd_failures_total", canary="full") >= 1) == (200, True)
        assert scene.page("/healthz")[0] == 200
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, room)
        scene.until_phase("full", Phase.SUCCEEDED)
    scene.store.verify()
    assert path_of(scene, "full") == [0, 20, 50, 100, 100, 0]
    reason = next(line["reason"] for line in scene.log() if line["event"] == "held")
    assert "state.db" in reason
    served = lab.stop_load().services["full"].versions["v2"].requests
    assert served - 3 * RPS <= scene.harmed("full")[0] <= served


# ── what it says of itself ───────────────────────────────────────────────────────────────────────────────────


def metric(text: str, name: str, **labels: str) -> float:
    """The value of one series; fails when there is none or more than one."""
    found = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) == 1, f"{name} {labels}: {found}"
    return found[0]


def test_its_metrics_are_those_of_the_rollout(lab: Lab, stage: Stage) -> None:
    scene = stage(lab)
    scene.canary("seen", steps=[{"weight": 20, "bake": "10m"}, 100])
    scene.run()
    assert scene.page("/healthz") == (200, "ok\n")
    assert scene.page("/nothing")[0] == 404
    with under_load(lab, "seen"):
        scene.release("seen", "r1")
        scene.until_weight("seen", 20)
        scene.until(lambda: scene.state("seen").latest["weight"]["confirmed"], "the split to be confirmed")
        scene.ticks("seen", 1)
        text = scene.page("/metrics")[1]
        assert {phase.value: metric(text, "canaryd_phase", canary="seen", phase=phase.value) for phase in Phase} == {
            phase.value: float(phase is Phase.PROGRESSING) for phase in Phase
        }
        for kind in ("desired", "configured"):
            assert metric(text, "canaryd_weight", canary="seen", kind=kind) == 20
        assert 10 <= metric(text, "canaryd_weight", canary="seen", kind="observed") <= 30
        verdicts = [metric(text, "canaryd_verdict", canary="seen", verdict=v) for v in ("healthy", "inconclusive")]
        assert sum(verdicts) == 1
        assert 0 < metric(text, "canaryd_evidence_ratio", canary="seen", toward="step") <= 1
        assert metric(text, "canaryd_evidence_ratio", canary="seen", toward="rollback") < 1
        assert metric(text, "canaryd_decisions_total", canary="seen", kind="start") == 1
        assert metric(text, "canaryd_decisions_total", canary="seen", kind="advance") == 1
        assert metric(text, "canaryd_tick_seconds_count") >= 3
        assert math.isfinite(metric(text, "canaryd_last_tick_timestamp_seconds"))
        assert metric(text, "canaryd_leader") == 1
        (body,) = json.loads(scene.page("/status")[1])["canaries"]
        assert (body["canary"], body["phase"], body["weight"]["desired"]) == ("seen", "Progressing", 20)
        lab.behave("seen-green", errors=1.0)
        scene.until_phase("seen", Phase.ROLLED_BACK)
        scene.until(lambda: metric(scene.page("/metrics")[1], "canaryd_phase", phase="RolledBack") == 1, "the metric")
        assert metric(scene.page("/metrics")[1], "canaryd_weight", canary="seen", kind="desired") == 0
        scene.site.documents.joinpath("seen.yaml").unlink()
        scene.until(lambda: 'canary="seen",phase' not in scene.page("/metrics")[1], "the series to go", timeout=10)
    lab.behave("seen-green", errors=0.0)


def test_idle_it_is_small_and_quiet(lab: Lab, stage: Stage) -> None:
    """The limits here are for a busy machine; the numbers printed are the measurement."""
    scene = stage(lab)
    for name in NAMES[:3]:
        scene.canary(name, interval="30s")
    daemon = scene.run()
    pause(2)
    began = cpu_seconds(daemon.pid)
    pause(10)
    share, idle = (cpu_seconds(daemon.pid) - began) / 10, memory_mb(daemon.pid)
    assert daemon.stop() == 0
    scene.canary(NAMES[0])
    daemon = scene.run()
    with under_load(lab, NAMES[0]):
        scene.store.release(NAMES[0], Release(revision="r1"))
        scene.until_phase(NAMES[0], Phase.SUCCEEDED)
    after = memory_mb(daemon.pid)
    print(f"idle {share:.2%} of a processor and {idle:.0f} MB; after a rollout {after:.0f} MB")
    assert share < 0.04
    assert max(idle, after) < 120


def test_its_exit_is_quick_while_it_waits_for_the_lock(lab: Lab, stage: Stage) -> None:
    scene = stage(lab)
    scene.canary("stopped")
    scene.run()
    second = Site(scene.site.directory, scene.nursery, from_page(lab.metrics_url), config="second.yaml").run("second")
    scene.until(lambda: "standby" in second.log.read_text(), "the second to wait")
    second.ask_to_stop()
    assert second.await_end(5.0) == 0
    assert scene.daemon.running
    assert scene.daemon.stop() == 0
    assert DecisionKind.START not in scene.told("stopped")
