"""The world around a rollout goes wrong or changes: each time it ends in a safe state that says what it is.

All services are on one stage, and what happens to each of them happens at once, in threads: a test waits for what has
become of its own. What happens to everything at once is in files of its own: test_sight.py, test_definition.py,
test_parting.py.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from bench import Bench, BenchPrometheus
from release_scenes import NAMESPACE, Canaryd, canaryd, eventually, install, manifest, now, settings, sleep
from route_scenes import http_route
from world_scenes import (
    GOING,
    HOLDING,
    Stage,
    applied_again,
    has_weight,
    plain_route,
    set_weight,
    split_route,
    weights,
)

pytestmark = pytest.mark.slow

HOST = "web.example"
AT_ONCE = 12  # scenes
GO = ("done", "auto", "web")  # the others stay at their first step
Scene = Callable[[Stage], None]
SCENES: dict[str, Scene] = {}
ON_STAGE: dict[str, tuple[str, ...]] = {}  # test → its services


def together(*services: str) -> Callable[[Scene], Callable[[dict[str, Future[None]]], None]]:
    """A test that is played at the same time as all others of its kind, with services of its own."""

    def mark(scene: Scene) -> Callable[[dict[str, Future[None]]], None]:
        SCENES[scene.__name__], ON_STAGE[scene.__name__] = scene, services

        @functools.wraps(scene)
        def test(played: dict[str, Future[None]]) -> None:
            played[scene.__name__].result(timeout=400)

        del test.__wrapped__  # type: ignore[attr-defined]  # pytest would ask for the arguments of the scene
        return test

    return mark


@pytest.fixture(scope="module")
def looked_after(
    mesh: Bench, prometheus: BenchPrometheus, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Canaryd]:
    install(mesh)
    wanted = settings(prometheus, lease={"duration": "10s", "namespace": "canaryd"})
    with canaryd(mesh, tmp_path_factory.mktemp("world"), wanted, replicas=2) as running:
        yield running


@pytest.fixture(scope="module")
def stage(mesh: Bench, looked_after: Canaryd, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """The services of all chosen tests, in canaryd's care."""
    made = Stage(mesh)
    tests = dict.fromkeys(item.originalname for item in request.session.items if isinstance(item, pytest.Function))
    names = dict.fromkeys(name for test in tests for name in ON_STAGE.get(test, ()))
    specs: dict[str, dict[str, Any]] = {name: dict(GOING if name in GO else HOLDING) for name in names}
    made.put(*specs)
    if "web" in specs:
        specs["web"]["route"] = {"gatewayApi": {"httpRoutes": [{"name": "web"}]}}
        _route_web(mesh)
    if "auto" in specs:
        mesh.client().create(_autoscaler("auto"))
    made.care_for(specs)
    made.load(8, *specs)
    if busy := [name for name in ("done", "auto") if name in specs]:
        made.load(30, *busy)
    yield made
    for load in made.loads:
        if load.running:
            load.stop()


def _route_web(mesh: Bench) -> None:
    mesh.client().delete("virtualservices", "web", NAMESPACE)
    route = http_route("web", {"backendRefs": [{"name": "web", "port": 80}]})
    route["spec"] |= {"parentRefs": [{"name": "web"}], "hostnames": [HOST]}
    mesh.client().apply(route)


def _autoscaler(name: str) -> dict[str, Any]:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 5},
    }


@pytest.fixture(scope="module")
def played(stage: Stage, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[None]]]:
    """The scenes of all chosen tests, begun."""
    chosen = [SCENES[item.name] for item in request.session.items if item.name in SCENES]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {scene.__name__: pool.submit(scene, stage) for scene in chosen}


# ── hands on the route ───────────────────────────────────────────────────────────────────────────────────────


@together("hand")
def test_a_weight_that_somebody_sets_is_put_back_at_once_and_the_event_says_who(stage: Stage) -> None:
    stage.release("v2", "hand")
    for weight in (0, 90):
        set_weight(stage.bench, "hand", weight)
        began = now()
        has_weight(stage.bench, "hand", 20, patience=5)
        print("put back after", (now() - began).total_seconds())
    (event, *_) = stage["hand"].events("WeightDrifted", patience=10)
    assert "kubectl-patch" in event["message"]
    assert stage["hand"].phase() == "Progressing"
    assert stage.failures("hand") == []


@together("flux")
def test_a_tool_that_keeps_lowering_the_weight_is_left_alone_and_told_what_to_change(stage: Stage) -> None:
    stage.release("v2", "flux")
    with applied_again(stage.bench, split_route("flux", 0), "flux"):
        (event, *_) = stage["flux"].events("WeightContested", patience=60)
        assert "ignoreDifferences" in event["message"]
        assert "kustomize.toolkit.fluxcd.io" in event["message"]
        sleep(4)
        assert weights(stage.bench, "flux")["flux-canary"] == 0
    set_weight(stage.bench, "flux", 80)
    has_weight(stage.bench, "flux", 20)  # more than the plan allows is put right during the truce, too
    assert stage["flux"].phase() == "Progressing"
    assert stage.failures("flux") == []


@together("argo")
def test_a_tool_that_keeps_applying_the_plain_route_is_told_what_to_change(stage: Stage) -> None:
    stage.release("v2", "argo")
    with applied_again(stage.bench, plain_route("argo"), "argocd-controller"):
        (event, *_) = stage["argo"].events("WeightContested", patience=90)
        assert "ignoreDifferences" in event["message"]
    has_weight(stage.bench, "argo", 20, patience=10)
    assert stage.failures("argo") == []


@together("lost")
def test_a_deleted_route_holds_the_rollout_and_is_taken_over_again_when_it_is_back(stage: Stage) -> None:
    stage.release("v2", "lost")
    stage.bench.client().delete("virtualservices", "lost", NAMESPACE)
    eventually(lambda: stage["lost"].condition("Ready").get("status") == "False", "Ready=False", 30)
    assert "VirtualService shop/lost does not exist" in stage["lost"].condition("Ready")["message"]
    (event, *_) = stage["lost"].events("Held")
    assert "VirtualService shop/lost does not exist" in event["message"]
    assert stage["lost"].phase() == "Progressing"
    stage.bench.client().apply(plain_route("lost"))
    has_weight(stage.bench, "lost", 20)
    eventually(lambda: stage["lost"].condition("Ready").get("status") == "True", "Ready=True", 30)


# ── hands on the workloads ───────────────────────────────────────────────────────────────────────────────────


@together("stop")
def test_a_canary_that_is_deleted_under_way_is_rolled_back(stage: Stage) -> None:
    stage.release("v2", "stop")
    stage.bench.client().delete("deployments", "stop", NAMESPACE)
    status = stage["stop"].until("RolledBack", patience=20)
    assert "does not exist" in status["message"] or "is being deleted" in status["message"]
    has_weight(stage.bench, "stop", 0)
    stage["stop"].events("RollbackStarted")
    eventually(lambda: "does not exist" in stage["stop"].condition("Ready").get("message", ""), "what is missing", 20)


@together("base", "calm")
def test_a_stable_that_is_deleted_is_made_again_from_what_was_proven(stage: Stage) -> None:
    stage.release("v2", "base")
    for name in ("base", "calm"):  # one of them has a rollout under way
        stage.bench.client().delete("deployments", f"{name}-stable", NAMESPACE)
    for name in ("base", "calm"):
        stable = f"{name}-stable"
        eventually(lambda s=stable: bool(stage.bench.client().find("deployments", s, NAMESPACE)), f"a new {stable}", 10)
        stage.bench.existing_app(stable).await_available()
        assert stage[name].images(stable) == {"demo/app:v1"}
        print(name, stage[name].phase(), "lost", len(stage.failures(name)))
    assert stage["base"].phase() == "Progressing"


@together("edit")
def test_a_template_of_stable_that_somebody_changes_is_told_and_left_and_can_be_released(stage: Stage) -> None:
    edit, bench = stage["edit"], stage.bench
    edit.until("Idle", patience=30)
    bench.kubectl("set", "image", "deployment/edit-stable", "app=demo/app:v1-hot", "-n", NAMESPACE)
    eventually(lambda: edit.condition("Ready").get("status") == "False", "Ready=False", 30)
    assert "the image of app is demo/app:v1-hot, demo/app:v1 was proven" in edit.condition("Ready")["message"]
    assert len(edit.events("Held")) == 1
    sleep(10)
    assert edit.images("edit-stable") == {"demo/app:v1-hot"}, "a person's word"
    assert edit.phase() == "Idle"
    bench.kubectl("rollout", "undo", "deployment/edit-stable", "-n", NAMESPACE)
    eventually(lambda: edit.condition("Ready").get("status") == "True", "Ready=True", 30)
    bench.kubectl("set", "image", "deployment/edit-stable", "app=demo/app:v1-hot", "-n", NAMESPACE)
    eventually(lambda: edit.condition("Ready").get("status") == "False", "Ready=False again", 90)
    stage.release("v1-hot", "edit")  # what stable runs already, with a name from now on
    stage.override("edit", action="promote", full=True, by="anna", revision=edit.status()["revision"])
    edit.until("Succeeded", patience=90)
    eventually(lambda: edit.condition("Ready").get("status") == "True", "Ready=True in the end", 30)
    assert edit.images("edit-stable") == {"demo/app:v1-hot"}
    assert stage.failures("edit") == []


@together("zero")
def test_a_canary_scaled_to_nothing_by_a_person_is_rolled_back_and_a_stable_so_scaled_is_told(stage: Stage) -> None:
    stage.release("v2", "zero")
    stage["zero"].app.scale(0)
    status = stage["zero"].until("RolledBack", patience=20)
    assert "no pod of zero is ready" in status["message"]
    has_weight(stage.bench, "zero", 0)
    stable = stage.bench.existing_app("zero-stable")
    stable.scale(0)
    eventually(lambda: "to 0" in stage["zero"].condition("Ready").get("message", ""), "that it is at 0", 30)
    assert stable.deployment()["spec"]["replicas"] == 0, "a person's word"
    stable.scale(2)
    eventually(lambda: stage["zero"].condition("Ready").get("status") == "True", "Ready=True", 30)


@together("auto")
def test_a_service_with_an_autoscaler_is_adopted_and_released(stage: Stage) -> None:
    def scaler() -> dict[str, Any]:
        return dict(stage.bench.client().get("horizontalpodautoscalers", "auto", NAMESPACE)["spec"])

    assert scaler()["scaleTargetRef"]["name"] == "auto-stable"
    stage.release("v2", "auto", phase="Succeeded")
    eventually(lambda: scaler()["minReplicas"] == 2, "its minimum again", 30)
    assert stage["auto"].images("auto-stable") == {"demo/app:v2"}
    assert stage.failures("auto") == []


@together("web")
def test_a_release_by_an_http_route_loses_no_request(stage: Stage) -> None:
    load = stage.bench.load(30, HOST, gateway_api=True)
    load.await_requests(30)
    stage["web"].app.set_image("demo/app:v2")
    stage["web"].until("Succeeded", patience=180)
    totals = load.stop()
    assert totals.failures == []
    assert totals.requests > 300
    assert {tag for second in totals.by_second.values() for _, tag, _ in second} == {"v1", "v2"}


# ── other images ─────────────────────────────────────────────────────────────────────────────────────────────


@together("undo")
def test_the_stable_image_wanted_back_ends_the_rollout_and_the_same_image_again_is_no_release(stage: Stage) -> None:
    stage.release("v2", "undo")
    rollout = stage["undo"].status()["rollout"]
    stage["undo"].app.set_image("demo/app:v2")
    sleep(5)
    assert (stage["undo"].phase(), stage["undo"].status()["rollout"]) == ("Progressing", rollout)
    stage["undo"].app.set_image("demo/app:v1")
    status = stage["undo"].until("Idle", patience=20)
    assert "is wanted again" in status["message"]
    has_weight(stage.bench, "undo", 0)
    eventually(lambda: stage["undo"].app.deployment()["spec"]["replicas"] == 0, "undo at 0", 30)
    assert stage.failures("undo") == []


@together("fresh")
def test_a_new_image_before_and_under_way_starts_again_and_the_unseen_one_gets_no_request(stage: Stage) -> None:
    fresh = stage["fresh"]
    fresh.app.set_image("demo/app:v2-start8")
    fresh.until("Waiting", patience=15)
    fresh.app.set_image("demo/app:v3")  # while it waits
    fresh.until("Progressing", patience=90)
    assert "v2-start8" not in stage.tags("fresh")
    fresh.app.set_image("demo/app:v4-neverready")  # while the other has traffic
    fresh.until("Waiting", patience=15)
    has_weight(stage.bench, "fresh", 0)
    sleep(8)
    fresh.app.set_image("demo/app:v5")
    fresh.until("Progressing", patience=90)
    assert "v4-neverready" not in stage.tags("fresh")
    assert len(fresh.events("RolloutRestarted")) == 3
    assert stage.failures("fresh") == []


@together("pause")
def test_a_new_image_after_a_pause_and_after_a_rollback_is_a_new_rollout(stage: Stage) -> None:
    pause = stage["pause"]
    stage.release("v2", "pause")
    stage.override("pause", action="pause", by="anna")
    pause.until("Paused", patience=10)
    pause.app.set_image("demo/app:v3")
    pause.until("Progressing", patience=60)
    stage.override("pause", action="abort", by="anna")
    pause.until("RollingBack", "RolledBack", patience=15)
    pause.app.set_image("demo/app:v4")  # while it rolls back, or a moment later
    pause.until("Progressing", patience=90)
    stage.override("pause", action="abort", by="bert")
    pause.until("RolledBack", patience=15)
    rollout = pause.status()["rollout"]
    sleep(5)
    pause.app.set_image("demo/app:v4")
    sleep(5)
    assert (pause.phase(), pause.status()["rollout"]) == ("RolledBack", rollout), "what failed is not tried again"
    pause.app.set_image("demo/app:v5")
    pause.until("Progressing", patience=90)
    assert stage.failures("pause") == []


@together("done")
def test_a_new_image_during_a_promotion_waits_until_that_has_ended_and_is_not_promoted_unseen(stage: Stage) -> None:
    done = stage["done"]
    stage.release("v2", "done", phase="Promoting")
    done.app.set_image("demo/app:v3-err60")
    promoted = done.events("Promoted", patience=90)
    assert done.images("done-stable") == {"demo/app:v2"}
    status = done.until("RolledBack", patience=120)
    assert len(promoted) == 1
    assert "errors" in status["message"]
    assert done.images("done-stable") == {"demo/app:v2"}
    done.app.set_image("demo/app:v2")  # what stable runs
    sleep(6)
    assert len(done.events("RolloutStarted")) == 2
    assert {f.tag for f in stage.failures("done")} <= {"v3-err60"}


# ── what people say ──────────────────────────────────────────────────────────────────────────────────────────


@together("words")
def test_people_are_obeyed_once_and_answered_whichever_way_they_say_it(stage: Stage) -> None:
    words, bench = stage["words"], stage.bench
    stage.release("v2", "words")
    stage.override("words", action="pause", by="anna", reason="lunch")
    words.until("Paused", patience=10)
    assert stage.answered("words", "pause")["accepted"] is True
    _says(bench, "resume", "words")
    words.until("Progressing", patience=10)
    document = manifest("words", **HOLDING)  # a GitOps tool brings the word of this morning again and again
    word = {"action": "pause", "by": "anna", "reason": "lunch"}
    document["metadata"]["annotations"] = {"canaryd.io/override": json.dumps(word)}
    for _ in range(3):
        bench.client().apply(document, manager="argocd-controller")
        sleep(1.5)
    assert words.phase() == "Progressing"
    stage.override("words", action="promote", by="bert", revision="0123456789")
    answer = stage.answered("words", "promote")
    assert answer["accepted"] is False
    assert "0123456789" in answer["message"]
    _says(bench, "promote", "words", "--yes")
    assert stage.answered("words", "promote")["accepted"] is True
    has_weight(bench, "words", 50)
    _says(bench, "abort", "words", "--yes")
    words.until("RolledBack", patience=15)
    _says(bench, "retry", "words")
    words.until("Progressing", patience=60)
    assert stage.failures("words") == []


@together("ops")
def test_what_is_said_with_kubectl_annotate_is_neither_repeated_nor_undone_by_a_tool_that_applies(stage: Stage) -> None:
    ops, bench = stage["ops"], stage.bench
    plain = manifest("ops", **HOLDING)

    def applied(word: dict[str, str]) -> dict[str, Any]:
        annotations = {"canaryd.io/override": json.dumps(word)}
        return {**plain, "metadata": {**plain["metadata"], "annotations": annotations}}

    stage.release("v2", "ops")
    promote = {"action": "promote", "by": "bert", "revision": ops.status()["revision"]}
    stage.override("ops", **promote)
    assert stage.answered("ops", "promote")["accepted"] is True
    has_weight(bench, "ops", 50, patience=10)
    bench.kubectl("replace", "-f", "-", stdin=json.dumps(plain))  # without the annotation, and without the finalizer
    for _ in range(3):
        bench.client().apply(applied(promote), manager="argocd-controller")
        sleep(1.5)
    assert (ops.phase(), weights(bench, "ops")["ops-canary"]) == ("Progressing", 50), "a second one would promote it"
    abort = {"action": "abort", "by": "anna", "reason": "customers complain"}
    stage.override("ops", **abort)
    ops.until("RolledBack", patience=15)
    bench.kubectl("replace", "-f", "-", stdin=json.dumps(plain))
    sleep(2)
    assert ops.phase() == "RolledBack", "the word that is gone stays carried out"
    _says(bench, "retry", "ops")
    ops.until("Progressing", patience=60)
    for _ in range(3):
        bench.client().apply(applied(abort), manager="argocd-controller")
        sleep(1.5)
    assert ops.phase() == "Progressing"
    assert bench.client().get("canaries", "ops", NAMESPACE)["metadata"]["finalizers"], "it is put back"
    assert stage.failures("ops") == []


def _says(bench: Bench, action: str, name: str, *options: str) -> None:
    argv = [sys.executable, "-m", "canaryd", action, name, "--reason", "a test", *options]
    where = ["--kubeconfig", str(bench.kubeconfig()), "--context", "bench", "-n", NAMESPACE]
    done = subprocess.run([*argv, *where], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


# ── documents ────────────────────────────────────────────────────────────────────────────────────────────────


@together("held", "rest")
def test_a_second_canary_for_the_same_things_is_refused_and_the_first_goes_on(stage: Stage) -> None:
    admin = stage.bench.client()
    route = {"istio": {"virtualServices": [{"name": "held", "routes": ["primary"]}]}}
    wrong = {
        "rival": ({"deployment": {"name": "held"}}, route, "held"),
        "thief": ({"deployment": {"name": "rest", "stable": "held-stable"}}, route, "held"),
    }
    for name, (workloads, routed, _) in wrong.items():
        admin.apply(manifest(name, **{**HOLDING, "workloads": workloads, "route": routed}))
    for name, (_, _, owner) in wrong.items():
        eventually(lambda n=name: _ready(stage, n).get("status") == "False", f"{name} is refused", 15)
        assert owner in _ready(stage, name)["message"]
        admin.delete("canaries", name, NAMESPACE)
    assert stage["held"].condition("Ready")["status"] == "True"


@together()
def test_a_document_that_only_canaryd_can_tell_is_wrong_says_so_in_ready(stage: Stage) -> None:
    body = manifest("hasty", **{**HOLDING, "interval": "1s"})
    stage.bench.client().apply(body)
    eventually(lambda: _ready(stage, "hasty").get("status") == "False", "hasty is refused", 15)
    assert "spec.interval" in _ready(stage, "hasty")["message"]
    assert "scrape" in _ready(stage, "hasty")["message"]
    stage.bench.client().delete("canaries", "hasty", NAMESPACE)


@together("junk")
def test_a_state_that_cannot_be_read_is_said_and_never_overwritten(stage: Stage) -> None:
    junk, admin = stage["junk"], stage.bench.client()
    good = junk.status()["state"]
    admin.patch("canaries", "junk", {"status": {"state": "garbage"}}, NAMESPACE, part="status")
    eventually(lambda: junk.condition("Ready").get("status") == "False", "Ready=False", 30)
    assert "status.state" in junk.condition("Ready")["message"]
    sleep(5)
    assert junk.status()["state"] == "garbage"
    admin.patch("canaries", "junk", {"status": {"state": good}}, NAMESPACE, part="status")
    eventually(lambda: junk.condition("Ready").get("status") == "True", "Ready=True", 30)


def _ready(stage: Stage, name: str) -> dict[str, Any]:
    found = stage.bench.client().find("canaries", name, NAMESPACE) or {}
    conditions = (found.get("status") or {}).get("conditions") or ()
    return next((dict(c) for c in conditions if c["type"] == "Ready"), {})
