"""The world around a rollout goes wrong or changes: each time it ends in a safe state that says what it is.

All services are on one stage, and what happens to each of them happens at once, in threads: a test waits for what has
become of its own. What happens to everything there is (no counters, an older definition) comes at the end.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from bench import ApiError, Bench, BenchPrometheus
from release_scenes import NAMESPACE, Canaryd, canaryd, eventually, install, manifest, now, settings, sleep
from route_scenes import http_route
from world_scenes import (
    GOING,
    HOLDING,
    LONG,
    Stage,
    applied_again,
    has_weight,
    plain_route,
    set_weight,
    split_route,
    weights,
)

from canaryd import crd

pytestmark = pytest.mark.slow

DOOMED = "doomed"  # a namespace of its own
HOST = "web.example"
AT_ONCE = 10  # scenes
GO = ("done", "auto", "web", "sight")  # the others stay at their first step
Scene = Callable[[Stage], None]
SCENES: dict[str, Scene] = {}
ON_STAGE: dict[str, tuple[str, ...]] = {}  # test → its services


def on_stage(*services: str) -> Callable[[Scene], Scene]:
    """These services are there for this test."""

    def mark(test: Scene) -> Scene:
        ON_STAGE[test.__name__] = services
        return test

    return mark


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
    mesh.namespace(DOOMED)
    install(mesh, NAMESPACE, DOOMED)
    lease = {"duration": "10s", "namespace": "canaryd"}
    wanted = settings(prometheus, namespaces=[NAMESPACE, DOOMED], lease=lease)
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
    done.app.set_image("demo/app:v3-err50")
    promoted = done.events("Promoted", patience=90)
    assert done.images("done-stable") == {"demo/app:v2"}
    status = done.until("RolledBack", patience=120)
    assert len(promoted) == 1
    assert "errors" in status["message"]
    assert done.images("done-stable") == {"demo/app:v2"}
    done.app.set_image("demo/app:v2")  # what stable runs
    sleep(6)
    assert len(done.events("RolloutStarted")) == 2
    assert {f.tag for f in stage.failures("done")} <= {"v3-err50"}


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
def test_names_that_reach_into_another_namespace_are_refused(stage: Stage) -> None:
    admin = stage.bench.client()
    refused = [
        {"workloads": {"deployment": {"name": "other/api"}}},
        {"route": {"istio": {"virtualServices": [{"name": "other/api"}]}}},
        {"route": {"istio": {"virtualServices": [{"name": "x"}], "stable": {"host": "api.other.svc.cluster.local"}}}},
    ]
    for number, spec in enumerate(refused):
        body = manifest(f"reach-{number}", **{**HOLDING, **spec})
        with contextlib.suppress(ApiError):  # by the schema, or else by canaryd
            admin.create(body)
        if admin.find("canaries", body["metadata"]["name"], NAMESPACE) is None:
            continue
        name = body["metadata"]["name"]
        eventually(lambda n=name: _ready(stage, n).get("status") == "False", f"{name} is refused", 20)
        print(_ready(stage, name)["message"])
        assert "namespace" in _ready(stage, name)["message"] or "host" in _ready(stage, name)["message"]
        admin.delete("canaries", name, NAMESPACE)


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


# ── parting ──────────────────────────────────────────────────────────────────────────────────────────────────


@together("leave")
def test_a_canary_deleted_under_way_leaves_the_plain_service_without_a_lost_request(stage: Stage) -> None:
    stage.release("v2", "leave")
    stage.bench.kubectl("delete", "canary", "leave", "-n", NAMESPACE, "--wait=false")
    _gone(stage, "leave")
    assert weights(stage.bench, "leave") == {"leave": 100}
    assert stage["leave"].images("leave") == {"demo/app:v1"}
    admin = stage.bench.client()
    eventually(lambda: not admin.find("deployments", "leave-stable", NAMESPACE), "no stable", 20)
    assert not admin.find("services", "leave-canary", NAMESPACE)
    sleep(3)
    assert stage.failures("leave") == []


@together("left")
def test_an_orphaned_canary_leaves_everything_as_it_is(stage: Stage) -> None:
    stage.release("v2", "left")
    stage.bench.kubectl("annotate", "canary", "left", "-n", NAMESPACE, "canaryd.io/on-delete=orphan")
    stage.bench.kubectl("delete", "canary", "left", "-n", NAMESPACE, "--wait=false")
    _gone(stage, "left", patience=15)
    assert weights(stage.bench, "left") == {"left-stable": 80, "left-canary": 20}
    assert stage["left"].images("left-stable") == {"demo/app:v1"}
    assert stage.failures("left") == []


@together()
def test_a_namespace_can_be_deleted_with_the_canaries_in_it(stage: Stage) -> None:
    bench = stage.bench
    bench.app("gone", replicas=1, namespace=DOOMED)
    body = manifest("gone", **HOLDING)
    body["metadata"]["namespace"] = DOOMED
    bench.client().apply(body)

    def adopted() -> bool:
        found = bench.client().get("canaries", "gone", DOOMED)
        return bool((found.get("status") or {}).get("stableRevision")) and bool(found["metadata"].get("finalizers"))

    eventually(adopted, "gone is adopted", 60)
    bench.client().delete("namespaces", DOOMED, None)
    eventually(lambda: bench.client().find("namespaces", DOOMED, None) is None, "the namespace is gone", 90)


def _gone(stage: Stage, name: str, patience: float = 60) -> None:
    eventually(
        lambda: stage.bench.client().find("canaries", name, NAMESPACE) is None, f"canary {name} is gone", patience
    )


# ── what happens to all of them ──────────────────────────────────────────────────────────────────────────────


@on_stage("parted")
def test_a_canary_deleted_while_no_canaryd_runs_waits_for_one(stage: Stage, looked_after: Canaryd) -> None:
    for replica in looked_after.replicas:
        replica.child.kill()
    stage.bench.kubectl("delete", "canary", "parted", "-n", NAMESPACE, "--wait=false")
    sleep(2)
    assert stage["parted"].status()
    for identity in ("canaryd", "canaryd-2"):
        looked_after.start(identity)
    looked_after.leader()
    _gone(stage, "parted")
    assert weights(stage.bench, "parted") == {"parted": 100}


@on_stage("sight")
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_without_prometheus_a_rollout_is_held_and_goes_on_afterwards(
    stage: Stage, prometheus: BenchPrometheus, how: str
) -> None:
    sight, tag = stage["sight"], f"v2-{how}"
    stage.load(30, "sight")
    before = {reason: _told(stage, reason) for reason in ("SightLost", "SightRegained")}
    stage.release(tag, "sight")
    if how == "killed":
        prometheus.child.kill()
    else:
        prometheus.child.freeze()
    sleep(300 if LONG else 25)
    status = sight.status()
    assert (status["phase"], status["verdict"]) == ("Progressing", "blind"), status
    print(status["message"])
    assert sight.condition("Ready")["status"] == "True"
    if how == "killed":
        prometheus.start()
    else:
        prometheus.child.thaw()
    sight.until("Succeeded", patience=120)
    assert {reason: _told(stage, reason) - before[reason] for reason in before} == dict.fromkeys(before, 1)
    assert stage.failures("sight") == []


def _told(stage: Stage, reason: str) -> int:
    events = stage.bench.client().list("events", NAMESPACE)
    return sum(e["reason"] == reason and e["involvedObject"]["name"] == "sight" for e in events)


@on_stage("older")
def test_an_older_definition_that_drops_the_state_holds_everything_until_it_is_put_right(stage: Stage) -> None:
    admin, older = stage.bench.client(), stage["older"]
    held = older.status()
    old = crd.definition()
    properties = old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    for lost in ("state", "version", "records"):
        properties.pop(lost)
    admin.apply(old)
    eventually(lambda: "state" not in older.status(), "the state is dropped", 30)
    (event, *_) = [e for e in older.events("Held", patience=40) if "CRD" in e["message"]] or [None]
    assert event is not None
    assert "status.version" in event["message"]
    began = now()
    sleep(10)
    writes = [r for r in stage.bench.audit.requests(since=began) if r.is_write and r.resource.startswith("canaries")]
    assert writes == [], "nothing is written over what is still there"
    admin.apply(crd.definition())
    eventually(lambda: older.status().get("state") == held["state"], "the state is back", 30)
    older.app.set_image("demo/app:v7")
    older.until("Progressing", patience=90)
