"""What somebody has changed by hand in stable's template is seen and told, and its secrets are not."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from canaryd.deployments import edits, objects
from canaryd.deployments.look import look
from canaryd.deployments.pods import Tally
from canaryd.deployments.world import World, asked
from canaryd.model import Phase, RolloutState
from canaryd.policy import parse_canary

DOC = parse_canary(
    {
        "apiVersion": "canaryd.io/v1alpha1",
        "kind": "Canary",
        "metadata": {"name": "api", "namespace": "shop", "uid": "u"},
        "spec": {
            "workloads": {"deployment": {"name": "api"}},
            "route": {"istio": {"virtualServices": [{"name": "api"}]}},
        },
    }
)
STATE = RolloutState(number=1, phase=Phase.SUCCEEDED, stable_revision="x", revision="x", stable="api-stable")


def canary(image: str = "app:v1", **container: Any) -> dict[str, Any]:
    app = {"name": "app", "image": image, "env": [{"name": "KEY", "value": "secret-1"}], **container}
    return {
        "metadata": {"name": "api", "namespace": "shop", "uid": "c", "generation": 1, "annotations": {}},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "api"}},
            "template": {"metadata": {"labels": {"app": "api"}}, "spec": {"containers": [app]}},
        },
    }


def stable() -> dict[str, Any]:
    """As canaryd makes it."""
    marks = {objects.REVISION: objects.revision_of(canary(), {})}
    made = objects.stable_deployment(canary(), "api-stable", "api", objects.template(canary()), {}, 2, marks)
    made["metadata"]["uid"] = "s"
    return made


def world(now: dict[str, Any], wanted: dict[str, Any] | None = None) -> World:
    one = World(doc=DOC, state=STATE, canary=wanted or canary(), stable=now, config={})
    name = edits.named(one)
    pin = objects.pin("api", "shop", "u", name, canary(), {}) if name else None
    return World(doc=DOC, state=STATE, canary=one.canary, stable=now, config={}, edited=edits.edited(one, pin))


def app(of: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = of["spec"]["template"]["spec"]["containers"][0]
    return found


def test_stable_as_canaryd_made_it_is_not_edited_and_needs_no_pin() -> None:
    assert edits.named(world(stable())) == ""


@pytest.mark.parametrize("restart", [{"kubectl.kubernetes.io/restartedAt": "2026"}, {"canaryd.io/config": "abc"}])
def test_a_restart_and_our_own_marks_are_no_edit(restart: dict[str, str]) -> None:
    now = stable()
    now["spec"]["template"]["metadata"]["annotations"] = restart
    assert world(now).edited == ""


def test_more_pods_are_no_edit() -> None:
    now = stable()
    now["spec"]["replicas"] = 9
    assert world(now).edited == ""


def test_another_hash_of_the_same_template_is_no_edit() -> None:
    now = stable()
    now["metadata"]["annotations"][objects.REVISION] = "0123456789"  # as an older canaryd hashed it
    assert edits.named(world(now)) == "0123456789"
    assert world(now).edited == ""


def test_another_image_is_named_with_the_one_that_was_proven() -> None:
    now = stable()
    app(now)["image"] = "app:hot"
    assert world(now).edited == "the image of app is app:hot, app:v1 was proven"


def test_another_environment_is_told_without_its_values() -> None:
    now = stable()
    app(now)["env"][0]["value"] = "secret-2"
    assert world(now).edited == "containers of its pods"


def test_it_is_told_between_rollouts_and_nothing_of_stable_is_put_back() -> None:
    now = stable()
    app(now)["image"] = "app:hot"
    (note,) = look(world(now), (Tally(None), Tally(None))).notes
    assert "by hand: the image of app is app:hot, app:v1 was proven; it is left as it is" in note
    assert "deployment/api-stable takes it back" in note


def test_the_same_edit_in_the_canary_is_a_release_and_without_it_none() -> None:
    hot = stable()
    app(hot)["image"] = "app:hot"
    assert asked(world(hot)) == objects.revision_of(canary(), {}), "the canary asks for what was proven"
    assert asked(world(hot, canary("app:hot"))) == objects.revision_of(canary("app:hot"), {})
    proven = stable()
    assert asked(world(proven)) == proven["metadata"]["annotations"][objects.REVISION]


def test_looking_changes_no_object() -> None:
    now = stable()
    app(now)["image"] = "app:hot"
    before = copy.deepcopy(now)
    look(world(now), (Tally(None), Tally(None)))
    assert now == before
