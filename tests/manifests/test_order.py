"""order.txt: every object has a stage, and nothing is applied before what it needs."""

from __future__ import annotations

import pytest
from shipped.order import STAGES, stage_of
from shipped.render import Combination, Object, combinations, render
from shipped.tree import Tree, named

US = "overlays/us-east-1"


@pytest.mark.parametrize("combination", combinations(), ids=str)
def test_every_object_has_a_stage(combination: Combination) -> None:
    objects = render(combination.root, *combination.components)
    assert [named(each) for each in objects if stage_of(each) is None] == []


def test_every_stage_is_used() -> None:
    found = {stage_of(each) for c in combinations() for each in render(c.root, *c.components)}
    assert found == {stage.name for stage in STAGES}


BEFORE = [
    # (kind, name) comes before (kind, name); None: any
    (("CustomResourceDefinition", None), ("Canary", None)),
    (("Namespace", None), ("ServiceAccount", None)),
    (("ConfigMap", None), ("Deployment", None)),
    (("ServiceAccount", None), ("Deployment", None)),
    (("Service", "api-canary"), ("VirtualService", "api")),
    (("DestinationRule", None), ("VirtualService", None)),
    (("AuthorizationPolicy", "api"), ("AuthorizationPolicy", "deny-all")),
    (("AuthorizationPolicy", "opensearch"), ("AuthorizationPolicy", "deny-all")),
    (("RequestAuthentication", "jwt"), ("AuthorizationPolicy", "token-from-outside")),
    (("Deployment", "api-stable"), ("EnvoyFilter", None)),
    (("VirtualService", None), ("Deployment", "canaryd")),
    (("Deployment", "canaryd"), ("Canary", None)),
]


def places(key: tuple[str, str | None]) -> list[int]:
    names = [stage.name for stage in STAGES]
    kind, name = key
    found: list[Object] = [e for e in Tree(render(US)).of(kind) if name in (None, e["metadata"]["name"])]
    assert found
    stages = [stage_of(each) for each in found]
    return [names.index(stage) for stage in stages if stage]


@pytest.mark.parametrize(("first", "then"), BEFORE, ids=str)
def test_what_is_needed_comes_first(first: tuple[str, str | None], then: tuple[str, str | None]) -> None:
    assert max(places(first)) < min(places(then))
