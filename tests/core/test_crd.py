"""The definition of the resource says what the types say: structure, words, defaults, and documents both ways."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from canary_documents import full, right_documents, wrong_documents
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from canaryd import crd, yamlout
from canaryd.config import check
from canaryd.policy import Canary, dump_canary, parse_canary

SCHEMA: dict[str, Any] = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # of YAML 1.1, as that of kubectl
CARRIED = {
    *("type", "description", "properties", "items", "required", "enum", "pattern", "format", "nullable"),
    *("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"),
    *("x-kubernetes-validations", "x-kubernetes-list-type", "x-kubernetes-list-map-keys"),
}


def places(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every place of a schema with its path, such as `.spec.steps[].weight`."""
    yield path, schema
    for key, below in schema.get("properties", {}).items():
        yield from places(below, f"{path}.{key}")
    if "items" in schema:
        yield from places(schema["items"], f"{path}[]")


everywhere = pytest.mark.parametrize(("path", "schema"), [pytest.param(*p, id=p[0] or "root") for p in places(SCHEMA)])


@everywhere
def test_the_schema_is_structural_and_bounded(path: str, schema: dict[str, Any]) -> None:
    assert set(schema) <= CARRIED, "no references, no unions, no defaults, nothing that is kept unknown"
    assert schema["type"] in ("object", "array", "string", "integer", "number", "boolean")
    if schema["type"] == "string":  # rules cost what the longest text costs
        assert "maxLength" in schema or "enum" in schema or schema.get("format") == "date-time" or path in NOT_OURS
    if schema["type"] == "array":
        assert schema["maxItems"] <= 128
        assert schema["x-kubernetes-list-type"] in ("atomic", "map")
    if schema["type"] == "integer":
        assert "minimum" in schema
    for key in schema.get("x-kubernetes-list-map-keys", []):
        assert key in schema["items"]["required"]


NOT_OURS = (".apiVersion", ".kind")


@everywhere
def test_every_key_has_words_that_read_as_a_sentence(path: str, schema: dict[str, Any]) -> None:
    if path.startswith(".metadata") or path.endswith("[]"):
        return
    words = schema["description"]
    assert words.endswith(".")
    assert not words.endswith("..")
    assert "\n" not in words
    assert "``" not in words


@everywhere
def test_every_rule_says_what_would_be_right(path: str, schema: dict[str, Any]) -> None:
    for rule in schema.get("x-kubernetes-validations", []):
        assert set(rule) <= {"rule", "message", "fieldPath"}
        assert 10 < len(rule["message"]) < 200
        if at := rule.get("fieldPath"):
            assert at.removeprefix(".") in schema["properties"]


def test_the_resource_has_every_key_of_the_document_but_those_left_out() -> None:
    keys = {path for path, _ in places(SCHEMA["properties"]["spec"], "Spec")}
    for gone in ("Spec.workloads.pools", "Spec.route.envoyFile", "Spec.afterPromotion"):
        assert gone not in keys
    assert set(crd.LEFT_OUT) == {"Workloads.pools", "Route.envoyFile", "Spec.afterPromotion"}
    for document in (full(), full("gateway")):
        for path in _paths(dump_canary(parse_canary(document))["spec"], "Spec"):
            assert path in keys


def _paths(value: Any, path: str) -> Iterator[str]:
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _paths(item, f"{path}.{key}")
    if isinstance(value, list):
        for item in value:
            yield from _paths(item, f"{path}[]")


def smallest(**spec: Any) -> dict[str, Any]:
    document = full()
    document["spec"] = {key: document["spec"][key] for key in ("workloads", "route")} | spec
    document["spec"]["workloads"] = {"deployment": {"name": "api"}}
    return document


def test_each_default_that_is_described_is_the_daemons() -> None:
    document, found = smallest(), 0
    for path, schema in places(SCHEMA["properties"]["spec"]):
        said = re.search(r"Default: (.*)\.$", schema.get("description", ""))
        if said is None or "[]" in path or schema["type"] == "array":
            continue
        at: Any = document["spec"]
        *parents, key = path.lstrip(".").split(".")
        for parent in parents:
            at = at.setdefault(parent, {})
        at[key] = said[1] if schema["type"] == "string" else json.loads(said[1])
        found += 1
    assert found >= 15
    assert parse_canary(document) == parse_canary(smallest())


def test_the_default_steps_and_metrics_that_are_described_are_the_daemons() -> None:
    properties = SCHEMA["properties"]["spec"]["properties"]
    canary = parse_canary(smallest())
    weights = ", ".join(str(step.weight) for step in canary.spec.steps)
    assert properties["steps"]["description"].endswith(f"Default: {weights}.")
    assert properties["metrics"]["description"].endswith("Default: errors, latency.")
    errors, latency = canary.spec.metrics
    tolerance = properties["metrics"]["items"]["properties"]["tolerance"]["description"]
    assert f"default {errors.tolerance}" in tolerance  # type: ignore[union-attr]
    assert f"default {latency.tolerance:.0%}" in tolerance  # type: ignore[union-attr]


# ── documents, both ways ─────────────────────────────────────────────────────────────────────────────────────


def misfits(value: Any, schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Where plain data is not what a structural schema wants; rules in CEL are left to the API server."""
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    wanted = kinds[schema["type"]]
    if not isinstance(value, wanted) or (isinstance(value, bool) and schema["type"] != "boolean"):
        yield f"{path} is no {schema['type']}"
        return
    size = len(value) if isinstance(value, (list, str)) else 0
    if schema["type"] in ("integer", "number"):
        size = value
    for low, high in (("minItems", "maxItems"), ("minLength", "maxLength"), ("minimum", "maximum")):
        if not schema.get(low, size) <= size <= schema.get(high, size):
            yield f"{path} is out of range"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path} is not one of {schema['enum']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path} has another form"
    if isinstance(value, dict):
        yield from (f"{path} lacks {key}" for key in schema.get("required", []) if key not in value)
        for key, item in value.items():
            if key in schema["properties"]:
                yield from misfits(item, schema["properties"][key], f"{path}.{key}")
            else:
                yield f"{path}.{key} is unknown"
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from misfits(item, schema["items"], f"{path}[{i}]")


@settings(max_examples=100, deadline=None)
@given(right_documents())
def test_what_the_resource_can_hold_is_a_canary_and_comes_back_in_the_same_form(document: dict[str, Any]) -> None:
    spec = SCHEMA["properties"]["spec"]
    assert list(misfits(document["spec"], spec)) == []
    canary = parse_canary(document)
    written = dump_canary(canary)
    assert list(misfits(written["spec"], spec)) == []
    assert parse_canary(written) == canary


@pytest.mark.parametrize("route", ["istio", "gateway"])
def test_the_document_that_is_broken_in_these_tests_is_right(route: str) -> None:
    document = full(route)
    assert list(misfits(document["spec"], SCHEMA["properties"]["spec"])) == []
    parse_canary(document)


WRONG = list(wrong_documents())
# the short forms, which only files have
SHORT = re.compile(
    r"plain name|plain weights|a linear plan|.*(virtualServices|httpRoutes)\.\d: a text|.*steps\.[01]: a number"
)


def test_there_are_hundreds_of_wrong_documents_and_none_twice() -> None:
    assert len(WRONG) >= 400
    assert len({wrong.name for wrong in WRONG}) == len(WRONG)
    assert len({json.dumps(wrong.document) for wrong in WRONG}) == len(WRONG)


def test_a_wrong_document_is_refused_in_a_file_too_unless_it_is_short() -> None:
    for wrong in WRONG:
        refused = False
        try:
            parse_canary(wrong.document)
        except ValidationError:
            refused = True
        if not wrong.name.endswith(": null"):  # in a file an optional key may be empty
            assert refused != bool(SHORT.fullmatch(wrong.name)), wrong.name


def test_the_document_in_the_docs_fits_the_resource() -> None:
    import pathlib

    text = (pathlib.Path(__file__).parents[2] / "docs" / "kubernetes.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        assert list(misfits(yaml.safe_load(block)["spec"], SCHEMA["properties"]["spec"])) == []


def test_the_former_name_of_the_codes_is_read_and_the_new_one_written(tmp_path: Any) -> None:
    former = smallest(metrics=[{"name": "errors", "kind": "errors", "failures": ["404"]}])
    present = copy.deepcopy(former)
    present["spec"]["metrics"][0] = {"name": "errors", "kind": "errors", "httpFailures": ["404"]}
    assert parse_canary(former) == parse_canary(present)
    assert dump_canary(parse_canary(former))["spec"]["metrics"][0]["httpFailures"] == ["404"]
    file = tmp_path / "both.yaml"
    former["spec"]["metrics"][0]["httpFailure"] = ["x"]
    file.write_text(json.dumps(former))
    (problem,) = check([str(file)]).problems
    assert 'did you mean "httpFailures"?' in str(problem)


def test_the_name_in_a_message_is_the_one_that_was_written(tmp_path: Any) -> None:
    for key in ("failures", "httpFailures"):
        file = tmp_path / f"{key}.yaml"
        file.write_text(json.dumps(smallest(metrics=[{"name": "e", "kind": "errors", key: ["oops"]}])))
        (problem,) = check([str(file)]).problems
        assert f"spec.metrics[0].{key}[0]" in str(problem)


def test_a_route_that_is_named_twice_is_refused() -> None:
    document = full()
    document["spec"]["route"]["istio"]["virtualServices"] = ["api", {"name": "api", "routes": ["b"]}]
    with pytest.raises(ValidationError, match="is named before"):
        parse_canary(document)


# ── as text ──────────────────────────────────────────────────────────────────────────────────────────────────

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(), below, max_size=4),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(st.text(), plain, min_size=1, max_size=4), min_size=1, max_size=3))
def test_what_is_written_as_yaml_is_read_back_as_the_same(objects: list[dict[str, Any]]) -> None:
    assert list(yaml.load_all(yamlout.documents(objects), LOADER)) == objects


def test_the_definition_is_read_back_and_is_the_same_each_time() -> None:
    text = yamlout.documents([crd.definition()])
    assert yaml.load(text, LOADER) == crd.definition()
    assert text == yamlout.documents([crd.definition()])
    assert text.splitlines()[:2] == ["apiVersion: apiextensions.k8s.io/v1", "kind: CustomResourceDefinition"]
    assert Canary.model_fields["api_version"].annotation.__args__ == (f"{crd.GROUP}/{crd.VERSION}",)  # type: ignore[union-attr]
