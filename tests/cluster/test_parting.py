"""Canaries are deleted: the plain service comes back without a lost request, or what was left undone is said.

canaryd has no right outside of the two namespaces that it looks after.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from bench import Bench, BenchPrometheus
from release_scenes import ACCOUNT, NAMESPACE, Canaryd, canaryd, eventually, install, manifest, now, settings, sleep
from world_scenes import HOLDING, Stage, weights

pytestmark = pytest.mark.slow

DOOMED = "doomed"  # a namespace of its own
DEADLINE = 75  # seconds; controllers may need half a minute of them to find a server again that was away
SERVICES = ("leave", "left", "parted", "away", "late", "never")


@pytest.fixture(scope="module")
def looked_after(
    mesh: Bench, prometheus: BenchPrometheus, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Canaryd]:
    mesh.namespace(DOOMED)
    install(mesh, NAMESPACE, DOOMED)
    places = {"namespaces": [NAMESPACE, DOOMED], "restoreDeadline": f"{DEADLINE}s"}
    wanted = settings(prometheus, lease={"duration": "10s", "namespace": "canaryd"}, **places)
    with canaryd(mesh, tmp_path_factory.mktemp("parting"), wanted, replicas=2) as running:
        yield running


@pytest.fixture(scope="module")
def stage(mesh: Bench, looked_after: Canaryd) -> Iterator[Stage]:
    """Six services, all but `parted` at 20 %."""
    made = Stage(mesh)
    made.put(*SERVICES)
    made.care_for(dict.fromkeys(SERVICES, HOLDING))
    made.load(10, *SERVICES)
    made.release("v2", *(name for name in SERVICES if name != "parted"))
    yield made
    for load in made.loads:
        load.stop()


def _delete(stage: Stage, name: str) -> None:
    stage.bench.kubectl("delete", "canary", name, "-n", NAMESPACE, "--wait=false")


def _is_plain(stage: Stage, name: str) -> None:
    admin = stage.bench.client()
    assert weights(stage.bench, name) == {name: 100}
    assert stage[name].images(name) == {"demo/app:v1"}
    eventually(lambda: not admin.find("deployments", f"{name}-stable", NAMESPACE), f"no {name}-stable", 20)
    assert not admin.find("services", f"{name}-canary", NAMESPACE)
    sleep(3)
    assert stage.failures(name) == []


def test_a_canary_deleted_under_way_leaves_the_plain_service_without_a_lost_request(stage: Stage) -> None:
    _delete(stage, "leave")
    stage.gone("leave")
    _is_plain(stage, "leave")


def test_an_orphaned_canary_leaves_everything_as_it_is(stage: Stage) -> None:
    stage.bench.kubectl("annotate", "canary", "left", "-n", NAMESPACE, "canaryd.io/on-delete=orphan")
    _delete(stage, "left")
    stage.gone("left", patience=15)
    assert weights(stage.bench, "left") == {"left-stable": 80, "left-canary": 20}
    assert stage["left"].images("left-stable") == {"demo/app:v1"}
    assert stage.failures("left") == []


def test_while_the_server_refuses_it_is_said_why_and_either_right_or_deadline_ends_it(stage: Stage) -> None:
    """The right to patch Deployments is taken away; one Canary gets it back in time, and one does not."""
    never, late, admin = stage["never"], stage["late"], stage.bench.client()
    rules = admin.get("roles", "canaryd-watched", NAMESPACE)["rules"]
    without = [
        {**rule, "verbs": [v for v in rule["verbs"] if not (rule["resources"] == ["deployments"] and v == "patch")]}
        for rule in rules
    ]
    admin.patch("roles", "canaryd-watched", {"rules": without}, NAMESPACE)
    _delete(stage, "never")
    began = time.monotonic()
    eventually(lambda: never.condition("Ready").get("status") == "False", "Ready=False", 20)
    assert "being deleted: " in never.condition("Ready")["message"]
    assert "forbidden: patch deployments" in never.condition("Ready")["message"]
    (event,) = never.events("Held")
    assert "forbidden: patch deployments" in event["message"]
    stage.gone("never", patience=DEADLINE + 20)
    took = time.monotonic() - began
    print(f"let go after {took:.0f} s")
    assert took > DEADLINE - 5
    (last,) = [e for e in never.events("Held") if "let go as it is" in e["message"]]
    assert "forbidden: patch deployments" in last["message"]
    has_split = weights(stage.bench, "never")
    assert has_split == {"never-stable": 100, "never-canary": 0}, "what serves goes on serving"
    assert stage["never"].images("never-stable") == {"demo/app:v1"}
    _delete(stage, "late")
    eventually(lambda: "forbidden" in late.condition("Ready").get("message", ""), "that is said", 20)
    admin.patch("roles", "canaryd-watched", {"rules": rules}, NAMESPACE)
    stage.gone("late")
    _is_plain(stage, "late")
    assert stage.failures("never") == []


def test_a_server_that_is_away_for_longer_than_the_deadline_costs_the_plain_service_nothing(stage: Stage) -> None:
    """The deadline is for a canaryd that tries, not for an outage."""
    _delete(stage, "away")
    stage.bench.plane.kill_apiserver()
    sleep(DEADLINE + 10)
    stage.bench.plane.start_apiserver()
    stage.gone("away", patience=120)
    _is_plain(stage, "away")


def test_a_canary_deleted_while_no_canaryd_runs_waits_for_one(stage: Stage, looked_after: Canaryd) -> None:
    for replica in looked_after.replicas:
        replica.child.kill()
    _delete(stage, "parted")
    sleep(2)
    assert stage["parted"].status()
    for identity in ("canaryd", "canaryd-2"):
        looked_after.start(identity)
    looked_after.leader()
    stage.gone("parted")
    _is_plain(stage, "parted")


def test_a_namespace_can_be_deleted_with_the_canaries_in_it(stage: Stage) -> None:
    """One idle, one that waits for its pods; canaryd's Role goes with the namespace, and it has no other."""
    bench, names = stage.bench, ("idle", "busy")
    assert bench.client().find("clusterrolebindings", "canaryd-parting", None) is None
    assert not bench.client("canaryd").can("patch", "canaries", "default")
    for name in names:
        bench.app(name, replicas=2, namespace=DOOMED)
        body = manifest(name, **HOLDING)
        body["metadata"]["namespace"] = DOOMED
        bench.client().apply(body)

    def adopted(name: str) -> bool:
        found = bench.client().get("canaries", name, DOOMED)
        return bool((found.get("status") or {}).get("stableRevision")) and bool(found["metadata"].get("finalizers"))

    for name in names:
        eventually(lambda n=name: adopted(n), f"{name} is adopted", 90)
    bench.existing_app("busy", DOOMED).set_image("demo/app:v2-neverready")

    def waits() -> bool:
        return bench.client().get("canaries", "busy", DOOMED)["status"].get("phase") == "Waiting"

    eventually(waits, "busy waits", 30)
    began = now()
    bench.client().delete("namespaces", DOOMED, None)
    eventually(lambda: bench.client().find("namespaces", DOOMED, None) is None, "the namespace is gone", 120)
    print(f"gone after {(now() - began).total_seconds():.0f} s")
    let_go = [
        r.name
        for r in bench.audit.requests(ACCOUNT, began)
        if (r.resource, r.verb) == ("canaries", "patch") and r.status < 300
    ]
    assert sorted(set(let_go)) == sorted(names)
    bench.namespace(DOOMED)  # another one of that name
    install(bench, NAMESPACE, DOOMED)
    bench.app("idle", replicas=1, namespace=DOOMED)
    body = manifest("idle", **HOLDING)
    body["metadata"]["namespace"] = DOOMED
    bench.client().apply(body)
    eventually(lambda: adopted("idle"), "a Canary in it is looked after", 120)
