"""The world around a rollout goes wrong or changes: each time it ends in a safe state that says what it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bench import Bench, BenchPrometheus
from release_scenes import NAMESPACE, Canaryd, canaryd, eventually, install, now, settings, sleep
from world_scenes import GOING, HOLDING, Stage, applied_again, has_weight, plain_route, set_weight, split_route, weights

pytestmark = pytest.mark.slow

MESSED = ("hand", "argo", "flux", "lost", "stop", "base", "zero", "undo")


@pytest.fixture(scope="module")
def looked_after(
    mesh: Bench, prometheus: BenchPrometheus, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Canaryd]:
    install(mesh)
    with canaryd(mesh, tmp_path_factory.mktemp("world"), settings(prometheus), replicas=2) as running:
        yield running


@pytest.fixture(scope="module")
def stage(mesh: Bench, looked_after: Canaryd) -> Iterator[Stage]:
    """Services in canaryd's care, each with a release under way that stays at its first step."""
    made = Stage(mesh)
    made.put(12, {name: HOLDING for name in MESSED})
    made.release("v2", *MESSED)
    yield made
    for load in made.loads:
        load.stop()


def test_a_weight_that_somebody_sets_is_put_back_at_once_and_the_event_says_who(mesh: Bench, stage: Stage) -> None:
    for weight in (0, 90):
        began = now()
        set_weight(mesh, "hand", weight)
        has_weight(mesh, "hand", 20, patience=5)
        print("put back after", (now() - began).total_seconds())
    (event, *_) = stage["hand"].events("WeightDrifted", patience=10)
    assert "kubectl-patch" in event["message"]
    assert stage["hand"].phase() == "Progressing"
    assert stage.failures("hand") == []


def test_a_tool_that_keeps_lowering_the_weight_is_left_alone_and_told_what_to_change(mesh: Bench, stage: Stage) -> None:
    with applied_again(mesh, split_route("flux", 0), "flux"):
        (event, *_) = stage["flux"].events("WeightContested", patience=40)
        assert "ignoreDifferences" in event["message"] and "kustomize.toolkit.fluxcd.io" in event["message"]
        sleep(4)
        assert weights(mesh, "flux")["flux-canary"] == 0
    set_weight(mesh, "flux", 80)  # during the truce, too, more than the plan allows is put right
    has_weight(mesh, "flux", 20)
    assert stage["flux"].phase() == "Progressing"
    assert stage.failures("flux") == []


def test_a_tool_that_keeps_applying_the_plain_route_is_told_what_to_change(mesh: Bench, stage: Stage) -> None:
    with applied_again(mesh, plain_route("argo"), "argocd-controller"):
        (event, *_) = stage["argo"].events("WeightContested", patience=60)
        assert "ignoreDifferences" in event["message"]
    has_weight(mesh, "argo", 20, patience=10)
    assert stage.failures("argo") == []


def test_a_deleted_route_holds_the_rollout_and_is_taken_over_again_when_it_is_back(mesh: Bench, stage: Stage) -> None:
    mesh.client().delete("virtualservices", "lost", NAMESPACE)
    eventually(lambda: stage["lost"].condition("Ready").get("status") == "False", "Ready=False", 20)
    assert "VirtualService shop/lost does not exist" in stage["lost"].condition("Ready")["message"]
    assert stage["lost"].phase() == "Progressing"
    mesh.client().apply(plain_route("lost"))
    has_weight(mesh, "lost", 20)
    eventually(lambda: stage["lost"].condition("Ready").get("status") == "True", "Ready=True", 20)


def test_a_canary_that_is_deleted_under_way_is_rolled_back(mesh: Bench, stage: Stage) -> None:
    mesh.client().delete("deployments", "stop", NAMESPACE)
    status = stage["stop"].until("RolledBack", patience=20)
    print(status["message"], stage.failures("stop"))
    has_weight(mesh, "stop", 0)
    (event, *_) = stage["stop"].events("RollbackStarted")
    assert "Deployment shop/stop does not exist" in event["message"] or "is being deleted" in event["message"]


def test_a_stable_that_is_deleted_under_way_is_made_again_from_what_was_proven(mesh: Bench, stage: Stage) -> None:
    mesh.client().delete("deployments", "base-stable", NAMESPACE)
    eventually(lambda: mesh.client().find("deployments", "base-stable", NAMESPACE) is not None, "a new stable", 10)
    mesh.existing_app("base-stable").await_available()
    assert stage["base"].images("base-stable") == {"demo/app:v1"}
    print(stage["base"].status()["message"], len(stage.failures("base")))


def test_a_canary_scaled_to_nothing_by_a_person_is_rolled_back(mesh: Bench, stage: Stage) -> None:
    stage["zero"].app.scale(0)
    status = stage["zero"].until("RolledBack", patience=20)
    print(status["message"], stage.failures("zero"))
    has_weight(mesh, "zero", 0)


def test_the_stable_image_wanted_back_ends_the_rollout(mesh: Bench, stage: Stage) -> None:
    stage["undo"].app.set_image("demo/app:v1")
    status = stage["undo"].until("Idle", patience=20)
    assert "is wanted again" in status["message"]
    has_weight(mesh, "undo", 0)
    eventually(lambda: stage["undo"].app.deployment()["spec"]["replicas"] == 0, "undo at 0", 30)
    assert stage.failures("undo") == []
