"""Another definition of the resource is applied over a rollout under way: what happens then is safe, and it is said."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bench import Bench, BenchPrometheus
from release_scenes import NAMESPACE, Canaryd, canaryd, eventually, install, manifest, now, settings, sleep
from world_scenes import HOLDING, Stage, has_weight

from canaryd import crd

pytestmark = pytest.mark.slow

JSON = dict[str, Any]


@pytest.fixture(scope="module")
def looked_after(
    mesh: Bench, prometheus: BenchPrometheus, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Canaryd]:
    install(mesh)
    with canaryd(mesh, tmp_path_factory.mktemp("definition"), settings(prometheus), replicas=2) as running:
        yield running


@pytest.fixture(scope="module")
def stage(mesh: Bench, looked_after: Canaryd) -> Iterator[Stage]:
    """`older` is settled; the others are at 20 %."""
    made = Stage(mesh)
    made.put("older", "going", "spec")
    made.care_for(dict.fromkeys(made.services, HOLDING))
    made.load(15, "older", "going", "spec")
    made.release("v2", "going", "spec")
    yield made
    for load in made.loads:
        load.stop()


def _changed(change: Callable[[JSON], None]) -> JSON:
    """The definition with its schema changed."""
    definition = crd.definition()
    change(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"])
    return definition


def _without_rules(schema: Any) -> None:
    """Rules speak of fields that an older definition does not have."""
    if isinstance(schema, dict):
        schema.pop("x-kubernetes-validations", None)
        for below in schema.values():
            _without_rules(below)
    elif isinstance(schema, list):
        for below in schema:
            _without_rules(below)


def _writes(stage: Stage, name: str, since: Any) -> list[str]:
    return [
        f"{r.verb} {r.resource}/{r.name}"
        for r in stage.bench.audit.requests(since=since)
        if r.is_write and r.name == name and r.status < 300
    ]


def test_a_stricter_one_that_refuses_the_state_holds_the_rollout_where_it_is_and_names_the_field(stage: Stage) -> None:
    going, admin = stage["going"], stage.bench.client()

    def stricter(schema: JSON) -> None:
        schema["status"]["properties"]["state"]["maxLength"] = 10

    before = going.status()
    admin.apply(_changed(stricter))
    eventually(lambda: going.condition("Ready").get("status") == "False", "Ready=False", 60)
    message = going.condition("Ready")["message"]
    print(message)
    assert "status.state" in message
    (event, *_) = [e for e in going.events("Held", patience=30) if "status.state" in e["message"]] or [None]
    assert event is not None
    sleep(5)
    has_weight(stage.bench, "going", 20)
    assert going.status()["state"] == before["state"], "what was saved last is still there"
    stage.override("going", action="abort", by="anna")
    sleep(3)
    has_weight(stage.bench, "going", 20)  # what cannot be saved is not done, whoever says it
    admin.apply(crd.definition())
    going.until("RolledBack", patience=60)
    has_weight(stage.bench, "going", 0)
    eventually(lambda: going.condition("Ready").get("status") == "True", "Ready=True", 60)
    assert stage.failures("going") == []


def test_one_that_drops_a_field_of_the_spec_changes_no_rollout_and_the_field_is_named(stage: Stage) -> None:
    spec, admin = stage["spec"], stage.bench.client()

    def older(schema: JSON) -> None:
        _without_rules(schema)
        del schema["spec"]["properties"]["steps"]["items"]["properties"]["bake"]

    admin.apply(_changed(older))
    eventually(lambda: spec.condition("Ready").get("status") == "False", "Ready=False", 60)
    message = spec.condition("Ready")["message"]
    print(message)
    assert "spec.steps[0].bake" in message
    assert "CRD" in message
    assert "bake" not in str(admin.get("canaries", "spec", NAMESPACE)["spec"])
    sleep(15)
    assert spec.phase() == "Progressing", "it bakes for 30 minutes, as it was written"
    has_weight(stage.bench, "spec", 20)
    admin.apply(crd.definition())
    sleep(2)
    for name in stage.services:
        admin.apply(manifest(name, **HOLDING))
    eventually(lambda: spec.condition("Ready").get("status") == "True", "Ready=True", 60)
    assert spec.phase() == "Progressing"
    has_weight(stage.bench, "spec", 20)
    assert stage.failures("spec") == []


def test_an_older_one_that_drops_the_state_holds_everything_until_it_is_put_right(stage: Stage) -> None:
    admin, older = stage.bench.client(), stage["older"]
    held = copy.deepcopy(older.status())

    def oldest(schema: JSON) -> None:
        for lost in ("state", "version", "records"):
            schema["status"]["properties"].pop(lost)

    admin.apply(_changed(oldest))
    eventually(lambda: "state" not in older.status(), "the state is dropped", 30)
    (event, *_) = [e for e in older.events("Held", patience=40) if "CRD" in e["message"]] or [None]
    assert event is not None
    assert "status.version" in event["message"]
    began = now()
    sleep(10)
    assert _writes(stage, "older", began) == [], "nothing is written over what is still there"
    admin.apply(crd.definition())
    eventually(lambda: older.status().get("state") == held["state"], "the state is back", 30)
    older.app.set_image("demo/app:v7")
    older.until("Progressing", patience=90)
