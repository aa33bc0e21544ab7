"""Canary resources as the API server has them: which are obeyed, which are refused, and with which words."""

from __future__ import annotations

from typing import Any

import pytest

from canaryd.config import Settings
from canaryd.config.objects import LoadedObjects, lost, read_objects
from canaryd.policy import Canary

SETTINGS = Settings.model_validate({"mode": "cluster", "metrics": {"source": "prometheus"}})


def resource(name: str, *, made: int = 0, uid: str = "", generation: int = 1, **spec: Any) -> dict[str, Any]:
    """As the API server has it; `made`: the minute of its creation."""
    kinds = {
        "workloads": {"deployment": {"name": name}},
        "route": {"istio": {"virtualServices": [{"name": name}]}},
    }
    return {
        "apiVersion": "canaryd.io/v1alpha1",
        "kind": "Canary",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "uid": uid or f"uid-{name}",
            "generation": generation,
            "creationTimestamp": f"2026-03-01T12:{made:02}:00Z",
        },
        "spec": {**kinds, **spec},
    }


def read(*found: dict[str, Any], known: LoadedObjects | None = None) -> LoadedObjects:
    return read_objects(found, SETTINGS, {c.key: c for c in known.canaries} if known else {})


def keys(loaded: LoadedObjects) -> list[str]:
    return [c.key for c in loaded.canaries]


def test_a_valid_resource_is_obeyed_under_its_namespace_and_name() -> None:
    loaded = read(resource("web"), resource("api"))
    assert (keys(loaded), loaded.refused) == (["shop/api", "shop/web"], ())


def test_a_wrong_resource_names_the_field_and_stops_no_other() -> None:
    loaded = read(resource("api", alpha="7"), resource("web"))
    assert keys(loaded) == ["shop/web"]
    (refused,) = loaded.refused
    assert refused.key == "shop/api"
    assert refused.problems[0].startswith("spec.alpha: ")


def test_a_resource_that_became_wrong_keeps_its_last_valid_form() -> None:
    before = read(resource("api", alpha="2%"))
    loaded = read(resource("api", generation=2, alpha="7"), known=before)
    assert [c.spec.alpha for c in loaded.canaries] == [0.02]
    assert [r.key for r in loaded.refused] == ["shop/api"]


def test_a_resource_that_was_made_anew_has_no_last_valid_form() -> None:
    before = read(resource("api", alpha="2%"))
    loaded = read(resource("api", uid="another", alpha="7"), known=before)
    assert keys(loaded) == []


def test_a_resource_that_is_being_deleted_is_not_looked_after() -> None:
    leaving = resource("api")
    leaving["metadata"]["deletionTimestamp"] = "2026-03-01T13:00:00Z"
    assert read(leaving) == LoadedObjects(())


def test_of_two_canaries_for_one_deployment_the_older_has_it() -> None:
    one = {"workloads": {"deployment": {"name": "shop"}}}
    loaded = read(resource("api", made=5, **one), resource("web", made=1, **one))
    assert keys(loaded) == ["shop/web"]
    (refused,) = loaded.refused
    assert refused.key == "shop/api"
    assert all("the Deployment shop" in problem and "belongs to canary web" in problem for problem in refused.problems)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param({"name": "a", "stable": "shared"}, {"name": "shared"}, id="stable-then-canary"),
        pytest.param({"name": "shared"}, {"name": "a", "stable": "shared"}, id="canary-then-stable"),
    ],
)
def test_stable_of_one_canary_is_not_the_canary_of_another(first: dict[str, str], second: dict[str, str]) -> None:
    found = [resource(name, made=i, workloads={"deployment": d}) for i, name, d in ((0, "x", first), (1, "y", second))]
    loaded = read(*found)
    assert keys(loaded) == ["shop/x"]
    assert "the Deployment shared belongs to canary x" in loaded.refused[0].problems[0]


def test_a_canary_that_has_its_deployment_keeps_it_although_an_older_one_wants_it_now() -> None:
    before = read(resource("api", made=5), resource("web", made=1))
    moved = resource("web", made=1, generation=2, workloads={"deployment": {"name": "api", "stable": "web-stable"}})
    loaded = read(resource("api", made=5), moved, known=before)
    assert [r.key for r in loaded.refused] == ["shop/web"]
    assert "belongs to canary api" in loaded.refused[0].problems[0]


def test_an_interval_that_prometheus_cannot_fill_is_refused() -> None:
    loaded = read(resource("api", interval="10s"))
    assert keys(loaded) == []
    assert "spec.interval: 10s is less than two scrape intervals" in loaded.refused[0].problems[0]


def test_what_did_not_change_is_not_read_again() -> None:
    before = read(resource("api"))
    (held,) = before.canaries
    (again,) = read(resource("api"), known=before).canaries
    assert isinstance(held, Canary)
    assert again is held


# ── fields that a server drops ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        ({"interval": "10s"}, {"interval": "10s"}, ""),
        ({"interval": "10s"}, {}, "spec.interval"),
        ({"interval": "10s"}, {"interval": "20s"}, ""),  # somebody has changed it: the generation tells
        ({"steps": [{"weight": 5, "bake": "1m"}]}, {"steps": [{"weight": 5}]}, "spec.steps[0].bake"),
        ({"budget": {"share": "1%"}, "alpha": "1%"}, {"budget": {}}, "spec.budget.share, spec.alpha"),
        ({}, {"interval": "10s"}, ""),
    ],
)
def test_fields_that_are_gone_from_an_unchanged_document_are_named(
    before: dict[str, Any], after: dict[str, Any], names: str
) -> None:
    assert lost({"spec": before}, {"spec": after}) == names


def test_labels_are_those_of_the_resource_also_when_they_alone_change_and_however_many_there_are() -> None:
    def labelled(labels: Any) -> dict[str, Any]:
        found = resource("api")
        return {**found, "metadata": {**found["metadata"], "labels": labels}}

    before = read(labelled({"team": "pay"}))
    (changed,) = read(labelled({"team": "checkout"}), known=before).canaries
    assert changed.metadata.labels == {"team": "checkout"}
    (many,) = read(labelled({f"l{n:03}": "x" for n in range(99)})).canaries
    assert len(many.metadata.labels) == 64
    assert read(labelled(None)).canaries[0].metadata.labels == {}
