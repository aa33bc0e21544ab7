"""The definition and the rights, on a real API server: what it refuses, what it says, what may be done by whom."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import ApiError, Bench, Client
from canary_documents import Wrong, full, right_documents, wrong_documents
from hypothesis import HealthCheck, given, settings
from pydantic import ValidationError

from canaryd import crd, yamlout
from canaryd.demo.processes import wait_until
from canaryd.manifests import Install, everything
from canaryd.permissions import DAEMON, OPERATOR, VIEWER, Need, Scope, each
from canaryd.policy import dump_canary, parse_canary

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
PATH = "/apis/canaryd.io/v1alpha1/namespaces/shop/canaries"
DAEMON_USER = "canaryd"


@pytest.fixture(scope="module")
def served(control_plane: Bench) -> Bench:
    """With the definition installed."""
    text = yamlout.documents([crd.definition()])
    control_plane.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", stdin=text)
    control_plane.plane.await_definitions({crd.NAME})
    control_plane.kubectl("wait", "--for=condition=Established", f"crd/{crd.NAME}", "--timeout=30s")
    wait_until(lambda: control_plane.client().find("canaries", "none") is None, "the resource to be served")
    return control_plane


@pytest.fixture
def canary(served: Bench) -> Iterator[dict[str, Any]]:
    """One Canary in the namespace shop, of this test alone."""
    document = full()
    document["metadata"]["namespace"] = "shop"
    served.kubectl("apply", "--validate=strict", "-f", "-", stdin=json.dumps(document))
    yield served.client().get("canaries", "api")
    served.kubectl("delete", "canary", "api", "-n", "shop", "--ignore-not-found")


def tried(client: Client, document: dict[str, Any]) -> Any:
    """What the server would store. Raises ApiError when it refuses."""
    return client.request("POST", PATH, document, fieldValidation="Strict", dryRun="All")


def as_document(stored: dict[str, Any]) -> dict[str, Any]:
    metadata = {key: stored["metadata"][key] for key in ("name", "namespace")}
    return {**{key: stored[key] for key in ("apiVersion", "kind", "spec")}, "metadata": metadata}


# ── wrong and right documents ────────────────────────────────────────────────────────────────────────────────


def test_no_wrong_document_passes_both_the_server_and_canaryd(served: Bench) -> None:
    client, count, amiss = served.client(), Counter[str](), []
    for wrong in wrong_documents():
        by, said = _refused(client, wrong)
        count[by] += 1
        if wrong.field not in said:
            amiss.append(f"{wrong.name}: {by}: {said[:300]}")
    print(dict(count))  # shown with -s
    assert amiss == []
    assert count["the server"] >= 1200
    assert count["canaryd"] == 0, "a rule of the definition is missing"


def _refused(client: Client, wrong: Wrong) -> tuple[str, str]:
    """Who refuses it, and what is said. An empty optional key is one left out: the server drops it, as everywhere."""
    try:
        stored = tried(client, wrong.document)
    except ApiError as error:
        return ("the server" if error.status in (400, 422) else f"by accident, {error.status}"), error.message
    if wrong.name.endswith(": null") and "null" not in json.dumps(stored["spec"]):
        parse_canary(as_document(stored))
        return "nobody, an empty key is left out", wrong.field
    try:
        parse_canary(as_document(stored))
    except ValidationError as error:
        return "canaryd", " ".join(str(part) for problem in error.errors() for part in problem["loc"])
    return "nobody", ""


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(document=right_documents())
def test_no_right_document_is_refused_by_the_server(served: Bench, document: dict[str, Any]) -> None:
    stored = tried(served.client(), document)
    assert stored["spec"] == document["spec"], "nothing is dropped, nothing is written in"
    written = dump_canary(parse_canary(document))
    written["metadata"] = {"name": document["metadata"]["name"]}
    assert tried(served.client(), written)["spec"] == written["spec"]


def test_kubectl_says_which_field_is_wrong_and_what_would_be_right(served: Bench) -> None:
    document = full()
    document["metadata"]["namespace"] = "shop"
    document["spec"] |= {"interval": "30", "blindDeadline": "1s", "steps": [{"weight": 25}, {"weight": 5}]}
    document["spec"]["metrics"][1]["margin"] = "1%"
    said = served.kubectl("apply", "--validate=strict", "-f", "-", stdin=json.dumps(document), check=False)
    assert said.returncode == 1
    for line in (
        'spec.interval: Invalid value: "30": use a number with a unit, such as "30s", "5m" or "1h30m", 500ms to 1h',
        "spec.steps: Invalid value: weights must rise from step to step, such as 5, 10, 25, 50, 100",
        "spec.metrics[1].margin: Invalid value: must be at least tolerance",
    ):
        assert line in said.stderr
    document = full()
    document["spec"]["wieght"] = 1
    said = served.kubectl("apply", "-f", "-", stdin=json.dumps(document), check=False)
    assert 'unknown field "spec.wieght"' in said.stderr


# ── what people see ──────────────────────────────────────────────────────────────────────────────────────────


def test_explain_tells_every_key_with_its_default(served: Bench) -> None:
    shown = served.kubectl("explain", "canary.spec", "--recursive").stdout
    for key in crd.spec_schema()["properties"]:
        assert re.search(rf"^  {key}\t<", shown, re.MULTILINE), key
    assert "Default: 30s." in served.kubectl("explain", "canary.spec.interval").stdout
    steps = served.kubectl("explain", "canary.spec.steps.bake").stdout
    assert "Least evidence time at this step" in steps


def test_the_columns_are_those_of_the_status(served: Bench, canary: dict[str, Any]) -> None:
    client = served.client()
    empty = served.kubectl("get", "cny", "-n", "shop", "--no-headers").stdout.split()
    assert empty[0] == "api"
    status = {
        "phase": "Progressing",
        "step": "2/5",
        "weight": {"desired": 10, "configured": 10, "observed": 9.7},
        "verdict": "inconclusive",
        "revision": "7f3c",
        "message": "held: not enough requests yet",
        "decisive": "errors",
    }
    client.request("PATCH", f"{PATH}/api/status", {"status": status}, "application/merge-patch+json")
    for name in ("canaries", "canary", "cny", "canaryd", "delivery"):
        header, row = served.kubectl("get", name, "-n", "shop").stdout.splitlines()
        assert header.split() == ["NAME", "PHASE", "STEP", "WEIGHT", "VERDICT", "REVISION", "AGE"]
        assert row.split()[-6:-1] == ["Progressing", "2/5", "10", "inconclusive", "7f3c"]
    header, row = served.kubectl("get", "canaries", "-n", "shop", "-o", "wide").stdout.splitlines()
    assert header.split()[-3:] == ["OBSERVED", "DECISIVE", "MESSAGE"]
    assert row.endswith("held: not enough requests yet")
    assert "9.7" in row


def test_the_status_is_apart_from_the_spec(served: Bench, canary: dict[str, Any]) -> None:
    client, generation = served.client(), canary["metadata"]["generation"]
    merge = "application/merge-patch+json"
    both = {"spec": {"interval": "1m"}, "status": {"phase": "Idle"}}
    after = client.request("PATCH", f"{PATH}/api/status", both, merge)
    assert (after["spec"]["interval"], after["status"]["phase"]) == ("30s", "Idle")
    assert after["metadata"]["generation"] == generation
    after = client.request("PATCH", f"{PATH}/api", {**both, "status": {"phase": "Paused"}}, merge)
    assert (after["spec"]["interval"], after["status"]["phase"]) == ("1m", "Idle")
    assert after["metadata"]["generation"] == generation + 1
    for wrong in ({"phase": "Dancing"}, {"weight": {"desired": 101}}, {"message": "a" * 1025}, {"state": 7}):
        with pytest.raises(ApiError, match="status"):
            client.request("PATCH", f"{PATH}/api/status", {"status": wrong}, merge)


def test_conditions_can_be_waited_for(served: Bench, canary: dict[str, Any]) -> None:
    condition = {
        "type": "Promoted",
        "status": "True",
        "reason": "Succeeded",
        "message": "promoted",
        "lastTransitionTime": "2026-11-24T12:00:00Z",
        "observedGeneration": canary["metadata"]["generation"],
    }
    merge = "application/merge-patch+json"
    served.client().request("PATCH", f"{PATH}/api/status", {"status": {"conditions": [condition]}}, merge)
    served.kubectl("wait", "canary/api", "-n", "shop", "--for=condition=Promoted", "--timeout=5s")


def test_applying_the_same_again_changes_nothing(served: Bench, canary: dict[str, Any]) -> None:
    document = full()
    document["metadata"]["namespace"] = "shop"
    again = served.kubectl("apply", "-f", "-", stdin=json.dumps(document))
    assert "unchanged" in again.stdout
    assert served.kubectl("diff", "-f", "-", stdin=json.dumps(document)).stdout == ""
    assert (
        served.client().get("canaries", "api")["metadata"]["resourceVersion"] == canary["metadata"]["resourceVersion"]
    )
    assert canary["spec"] == document["spec"], "no default is written into what a person wrote"


def test_two_writers_can_own_metrics_of_their_own(served: Bench, canary: dict[str, Any]) -> None:
    arms = {"stable": "a", "canary": "b"}
    mine = {"name": "mine", "kind": "gauge", "query": arms}
    part = {"apiVersion": "canaryd.io/v1alpha1", "kind": "Canary", "metadata": {"name": "api", "namespace": "shop"}}
    patch = {**part, "spec": {"metrics": [mine]}}
    query = {"fieldManager": "other", "fieldValidation": "Strict"}
    after = served.client().request("PATCH", f"{PATH}/api", patch, "application/apply-patch+yaml", **query)
    names = {metric["name"] for metric in after["spec"]["metrics"]}
    assert names == {metric["name"] for metric in canary["spec"]["metrics"]} | {"mine"}


def test_a_rule_that_came_later_does_not_lock_an_older_object(served: Bench, canary: dict[str, Any]) -> None:
    stricter = crd.definition()
    spec = stricter["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["alpha"]["x-kubernetes-validations"].append({"rule": "self == '2%'", "message": "be 2%"})
    merge = "application/merge-patch+json"
    try:
        served.kubectl("apply", "--server-side", "-f", "-", stdin=yamlout.documents([stricter]))
        wrong = {"spec": {"alpha": "3%"}}
        wait_until(lambda: _refuses(served.client(), wrong), "the stricter rule to be in force")
        after = served.client().request("PATCH", f"{PATH}/api", {"spec": {"beta": "6%"}}, merge)
        assert (after["spec"]["alpha"], after["spec"]["beta"]) == ("1%", "6%")
    finally:
        served.kubectl("apply", "--server-side", "-f", "-", stdin=yamlout.documents([crd.definition()]))
        wait_until(lambda: not _refuses(served.client(), wrong), "the former rules to be in force")


def _refuses(client: Client, patch: dict[str, Any]) -> bool:
    try:
        client.request("PATCH", f"{PATH}/api", patch, "application/merge-patch+json", dryRun="All")
    except ApiError as error:
        return "be 2%" in error.message
    return False


# ── the installation and who may do what ─────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def installed(served: Bench) -> Bench:
    """With the whole installation that looks after the namespace shop."""
    text = yamlout.documents(everything(Install(image="canaryd:test", watched=("shop",))))
    served.kubectl("apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", "-", stdin=text)
    daemon = served.client(DAEMON_USER)
    wait_until(lambda: daemon.can("list", "canaries"), "the new binding to be heard of")
    return served


def may(
    bench: Bench, who: str, verb: str, resource: str, place: str, name: str = "", groups: tuple[str, ...] = ()
) -> bool:
    """What the server's authorizer answers for somebody."""
    plural, _, below = resource.partition("/")
    plural, _, group = plural.partition(".")
    attributes = {
        "namespace": place,
        "verb": verb,
        "group": group,
        "resource": plural,
        "subresource": below,
        "name": name,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": who, "groups": list(groups), "resourceAttributes": attributes},
    }
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    return bool(bench.client().request("POST", path, review)["status"]["allowed"])


ACCOUNT = "system:serviceaccount:canaryd:canaryd"


def _of(need: Need) -> str:
    plural, slash, below = need.resource.partition("/")
    return (f"{plural}.{need.group}" if need.group else plural) + slash + below


@pytest.mark.parametrize(("need", "verb"), [pytest.param(n, v, id=f"{v} {n.qualified}") for n, v in each(DAEMON)])
def test_the_daemon_may_do_what_it_needs_where_it_is_needed_and_nowhere_else(
    installed: Bench, need: Need, verb: str
) -> None:
    place, elsewhere = ("shop", "monitoring") if need.scope is Scope.WATCHED else ("canaryd", "shop")
    name = "canaryd" if need.scope is Scope.OWN else ""
    assert may(installed, ACCOUNT, verb, _of(need), place, name)
    assert not may(installed, ACCOUNT, verb, _of(need), elsewhere, name)
    assert not may(installed, ACCOUNT, verb, _of(need), "")


@pytest.mark.parametrize(
    ("verb", "resource", "place"),
    [
        ("get", "secrets", "shop"),
        ("list", "secrets", "shop"),
        ("get", "secrets", "canaryd"),
        ("create", "pods", "shop"),
        ("delete", "pods", "shop"),
        ("create", "pods/exec", "shop"),
        ("get", "pods/log", "shop"),
        ("create", "pods/eviction", "shop"),
        ("create", "serviceaccounts/token", "shop"),
        ("impersonate", "users", ""),
        ("create", "roles.rbac.authorization.k8s.io", "shop"),
        ("bind", "clusterroles.rbac.authorization.k8s.io", ""),
        ("escalate", "roles.rbac.authorization.k8s.io", "shop"),
        ("create", "canaries.canaryd.io", "shop"),
        ("delete", "canaries.canaryd.io", "shop"),
        ("create", "virtualservices.networking.istio.io", "shop"),
        ("delete", "virtualservices.networking.istio.io", "shop"),
        ("delete", "httproutes.gateway.networking.k8s.io", "shop"),
        ("patch", "destinationrules.networking.istio.io", "shop"),
        ("patch", "customresourcedefinitions.apiextensions.k8s.io", ""),
        ("list", "namespaces", ""),
        ("get", "nodes", ""),
        ("patch", "leases.coordination.k8s.io", "kube-system"),
        ("get", "leases.coordination.k8s.io", "shop"),
        ("update", "leases.coordination.k8s.io", "canaryd"),  # another one than its own
    ],
)
def test_the_daemon_may_not(installed: Bench, verb: str, resource: str, place: str) -> None:
    assert not may(installed, ACCOUNT, verb, resource, place, "another")


def test_one_secret_can_be_granted_by_its_name(installed: Bench) -> None:
    docs = (MANIFESTS.parent / "docs" / "kubernetes.md").read_text()
    commands = re.findall(r"^    kubectl (-n shop create role.*)$", docs, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        installed.kubectl(*command.split())
    wait_until(lambda: may(installed, ACCOUNT, "list", "secrets", "shop", "api-config"), "the binding")
    assert not may(installed, ACCOUNT, "list", "secrets", "shop", "another")
    assert not may(installed, ACCOUNT, "list", "secrets", "shop")


def test_kubectl_gives_the_same_answer(installed: Bench) -> None:
    for verb, resource, answer in (("patch", "virtualservices", "yes"), ("get", "secrets", "no")):
        asked = installed.kubectl("auth", "can-i", verb, resource, "-n", "shop", "--as", ACCOUNT, check=False)
        assert asked.stdout.strip() == answer


def test_people_gain_the_rights_of_their_role_and_not_more(installed: Bench) -> None:
    roles = ("canaryd-viewer", "canaryd-operator", "canaryd-editor")
    client = installed.client()
    for role in roles:
        client.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": f"{role}-test", "namespace": "shop"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": f"a-{role}"}],
            }
        )
    wait_until(lambda: may(installed, "a-canaryd-editor", "create", "canaries.canaryd.io", "shop"), "the bindings")
    for needs, role in ((VIEWER, "canaryd-viewer"), (OPERATOR, "canaryd-operator")):
        for need, verb in each(needs):
            if need.scope is Scope.WATCHED:
                assert may(installed, f"a-{role}", verb, _of(need), "shop"), (role, verb, need.resource)
    assert not may(installed, "a-canaryd-viewer", "patch", "canaries.canaryd.io", "shop")
    assert not may(installed, "a-canaryd-operator", "create", "canaries.canaryd.io", "shop")
    for role in roles:
        assert not may(installed, f"a-{role}", "patch", "canaries.canaryd.io/status", "shop")
        assert not may(installed, f"a-{role}", "get", "canaries.canaryd.io", "monitoring")


def test_the_kustomization_is_accepted_and_equals_what_the_program_prints(installed: Bench) -> None:
    built = installed.kubectl("kustomize", str(MANIFESTS / "base" / "50-canaryd")).stdout
    said = installed.kubectl(
        "apply", "--server-side", "--force-conflicts", "--validate=strict", "--dry-run=server", "-f", "-", stdin=built
    ).stdout
    assert said.count("serverside-applied") == built.count("\nkind: ")


def test_the_cluster_wide_variant_has_a_cluster_role_and_no_role_in_shop(installed: Bench, tmp_path: Path) -> None:
    overlay = MANIFESTS.parent / f".overlay-{tmp_path.name}"
    overlay.mkdir()
    try:
        (overlay / "kustomization.yaml").write_text(
            "resources: [../manifests/base/50-canaryd]\ncomponents: [../manifests/components/canaryd-cluster-wide]\n"
        )
        built = installed.kubectl("kustomize", str(overlay)).stdout
    finally:
        (overlay / "kustomization.yaml").unlink()
        overlay.rmdir()
    assert "namespace: shop" not in built
    assert "namespaces: []" in built
    assert built.count("kind: ClusterRoleBinding") == 1
    installed.kubectl(
        "apply", "--server-side", "--force-conflicts", "--validate=strict", "--dry-run=server", "-f", "-", stdin=built
    )
    client = installed.client()
    wide = [
        o for o in everything(Install(image="canaryd:test")) if o["kind"].startswith("Cluster") and "watched" in str(o)
    ]
    try:
        for manifest in wide:
            client.apply(manifest)
        wait_until(lambda: may(installed, ACCOUNT, "patch", "canaries.canaryd.io/status", "monitoring"), "the binding")
        assert not may(installed, ACCOUNT, "get", "secrets", "monitoring")
    finally:
        for manifest in wide:
            installed.kubectl("delete", manifest["kind"], manifest["metadata"]["name"])
