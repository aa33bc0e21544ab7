"""Whole rollouts with a real Envoy and a real `canaryd run`: what users get from good and bad releases."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Stage
from scene import RPS, WEIGHTS, service, under_load

from canaryd.demo.lab import Lab
from canaryd.model import DecisionKind, Phase, Verdict

pytestmark = [pytest.mark.envoy, pytest.mark.slow]
NAMES = ("good", "failing", "dead", "lonely", "deaf", "upgraded", "again")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One service for each story, all quiet."""
    services = [service(name, errors=1.0 if name == "failing" else 0.0) for name in NAMES]
    with Lab(tmp_path_factory.mktemp("lab"), services) as lab:
        yield lab


def test_a_good_release_reaches_all_users_step_by_step_and_the_next_one_goes_to_the_other_pool(
    lab: Lab, stage: Stage
) -> None:
    scene = stage(lab)
    scene.canary("good")
    scene.run()
    with under_load(lab, "good"):
        scene.release("good", "r1")
        done = scene.until_phase("good", Phase.SUCCEEDED)
        progress = [(Phase.PROGRESSING.value, w) for w in WEIGHTS]
        assert scene.steps("good") == [("Waiting", 0), *progress, ("Promoting", 100), ("Succeeded", 0)]
        assert (done.stable, done.canary, done.stable_revision) == ("good-green", "good-blue", "r1")
        scene.until_split("good", 0, 100)
        scene.release("good", "r2")
        scene.until_weight("good", WEIGHTS[0])
        scene.until_split("good", WEIGHTS[0], 100 - WEIGHTS[0])
        scene.ticks("good", 2)
        harmed, _ = scene.harmed("good")
        # what the old stable served before this rollout is no canary's request
        assert harmed <= RPS * 0.2 * 20
        scene.until_phase("good", Phase.SUCCEEDED)
    stats = lab.stop_load().services["good"]
    assert (stats.lost, stats.versions.keys() - {"v1", "v2"}) == (0, set())


def test_a_canary_that_only_fails_is_rolled_back_at_the_first_or_second_look(lab: Lab, stage: Stage) -> None:
    scene = stage(lab)
    scene.canary("failing", steps=[5, 25, 100])
    scene.run()
    with under_load(lab, "failing"):
        scene.release("failing", "r1")
        ended = scene.until_phase("failing", Phase.ROLLED_BACK)
        assert ended.evidence is not None
        assert ended.evidence.intervals <= 2
        scene.until_split("failing", 100, 0)
        (rollback,) = scene.records("failing", DecisionKind.ROLLBACK)
    stats = lab.stop_load().services["failing"].versions["v2"]
    assert stats.failed == stats.requests > 0
    # five percent of 200/s over at most two looks, the interval before them and the way to Envoy, with room for chance
    assert stats.failed <= 60
    said = re.search(r"(\d+) canary requests? failed", rollback.sentence)
    assert said is not None, rollback.sentence
    assert int(said[1]) <= stats.failed


def test_a_canary_that_dies_is_rolled_back_though_no_answer_of_its_own_is_seen(lab: Lab, stage: Stage) -> None:
    scene = stage(lab)
    scene.canary("dead", steps=[{"weight": 20, "bake": "60s"}, 100])
    scene.run()
    with under_load(lab, "dead"):
        scene.release("dead", "r1")
        scene.until_weight("dead", 20)
        scene.ticks("dead", 3)
        before = scene.state("dead").evidence
        lab.kill("dead-green")
        ended = scene.until_phase("dead", Phase.ROLLED_BACK)
        assert before is not None
        assert ended.evidence is not None
        assert ended.evidence.intervals - before.intervals <= 4  # two looks at it, and those while it was killed
    refused = lab.stop_load().services["dead"].versions["-"]
    assert 0 < scene.harmed("dead")[1] <= refused.failed


def test_a_canary_without_traffic_is_never_promoted(lab: Lab, stage: Stage) -> None:
    scene = stage(lab)
    scene.canary("lonely", maxHold="2s")
    scene.run()
    with under_load(lab, "lonely"):
        scene.release("lonely", "r1")
        scene.until_weight("lonely", WEIGHTS[0])
    seen = scene.harmed("lonely")
    scene.ticks("lonely", 6)
    state = scene.state("lonely")
    assert state.weight == WEIGHTS[0]
    assert state.verdict is not Verdict.HEALTHY
    assert scene.harmed("lonely")[0] - seen[0] <= RPS  # those that were under way
    assert scene.told("lonely")[-1] == DecisionKind.INCONCLUSIVE


def test_a_route_that_envoy_does_not_take_is_blind_and_never_promoted(lab: Lab, stage: Stage, tmp_path: Path) -> None:
    """All requests stay with stable although the file says otherwise."""
    unwatched = Path(shutil.copy(lab.rds_path("deaf"), tmp_path / "rds.yaml"))
    scene = stage(lab)
    scene.canary("deaf", route={"envoyFile": {"path": str(unwatched)}})
    scene.run()
    with under_load(lab, "deaf"):
        scene.release("deaf", "r1")
        scene.until(lambda: DecisionKind.BLIND in scene.told("deaf"), "the silence to be told")
        state = scene.state("deaf")
    assert (state.verdict, state.weight) == (Verdict.BLIND, WEIGHTS[0])
    assert "no request reached deaf-green" in state.sentence


def test_a_new_revision_restarts_and_the_stable_one_ends_the_rollout_without_an_alarm(lab: Lab, stage: Stage) -> None:
    scene = stage(lab)
    scene.canary("again")
    scene.run()
    with under_load(lab, "again"):
        scene.release("again", "r1")
        scene.until_phase("again", Phase.SUCCEEDED)
        scene.release("again", "r2")
        scene.until_weight("again", WEIGHTS[1])
        scene.release("again", "r3")
        scene.until(lambda: scene.state("again").revision == "r3", "the newer revision to be heard")
        assert scene.steps("again")[0] == ("Waiting", 0)
        scene.until_split("again", 0, 100)
        fresh = scene.until_weight("again", WEIGHTS[0])
        assert fresh.evidence is not None
        assert fresh.evidence.intervals == 0
        scene.release("again", "r1")
        ended = scene.until_phase("again", Phase.IDLE)
        scene.ticks("again", 0)
        assert ended.weight == 0
        scene.until_split("again", 0, 100)
    reverted = scene.records("again")
    assert [r.body["severity"] for r in reverted if r.body["severity"] != "info"] == []


HOOK = """
import os, pathlib, sys, time
here = pathlib.Path(sys.argv[1])
with open(here / "runs", "a") as runs:
    told = ("CANARYD_REVISION", "CANARYD_STABLE_POOL", "CANARYD_CANARY_POOL")
    runs.write(" ".join(os.environ[k] for k in told) + "\\n")
while not (here / "upgraded").exists():
    time.sleep(0.05)
"""


def test_a_hook_upgrades_the_stable_pool_and_traffic_goes_back_to_it_without_a_lost_request(
    lab: Lab, stage: Stage, tmp_path: Path
) -> None:
    (tmp_path / "hook.py").write_text(HOOK)
    scene = stage(lab)
    scene.canary(
        "upgraded", afterPromotion={"command": [sys.executable, str(tmp_path / "hook.py"), str(tmp_path)], "retries": 0}
    )
    scene.run()
    with under_load(lab, "upgraded"):
        scene.release("upgraded", "r1")
        scene.until((tmp_path / "runs").exists, "the hook to run")
        assert scene.weight("upgraded") == 100
        lab.restart("upgraded-blue", version="v2")
        (tmp_path / "upgraded").touch()
        done = scene.until_phase("upgraded", Phase.SUCCEEDED)
    stats = lab.stop_load().services["upgraded"]
    assert (tmp_path / "runs").read_text() == "r1 upgraded-blue upgraded-green\n"
    assert [w for _, w in scene.steps("upgraded")] == [0, *WEIGHTS, 100, 50, 20, 0, 0]
    assert (done.stable, done.stable_revision) == ("upgraded-blue", "r1")
    scene.until_split("upgraded", 100, 0)
    assert (stats.lost, stats.skipped, sum(v.failed for v in stats.versions.values())) == (0, 0, 0)
    assert stats.versions.keys() == {"v1", "v2"}
