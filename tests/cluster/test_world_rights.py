"""Each verb taken from canaryd in turn: it says which it lacks, does no harm meanwhile, and goes on when it is back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from bench import ApiError, Bench
from objects import document
from release_scenes import NAMESPACE, Canaryd, Replica, canaryd, eventually, install, sleep

from canaryd.permissions import DAEMON, Need, Scope, each

pytestmark = pytest.mark.slow

WATCHED = [need for need in DAEMON if need.scope is Scope.WATCHED]
OWN = [need for need in DAEMON if need.scope is Scope.OWN]
SAID = [need for need in WATCHED if need.resource != "canaries/status"]  # without that one no condition can be set
STATUS = next(need for need in WATCHED if need.resource == "canaries/status")
Verb = tuple[Need, str]


def batches() -> list[list[Verb]]:
    """All verbs in a few batches, or one by one where there is time for that."""
    if os.environ.get("CANARYD_LONG") == "1":
        return [[one] for one in each(SAID)]
    most = max(len(need.verbs) for need in SAID)
    return [[(need, need.verbs[i]) for need in SAID if i < len(need.verbs)] for i in range(most)]


@pytest.fixture(scope="module")
def alone(control_plane: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canaryd]:
    """One canaryd without services, and one Canary."""
    install(control_plane)
    control_plane.client().delete("clusterrolebindings", "canaryd-parting", None)  # it would grant some of them, too
    control_plane.client().apply(document("api"))
    prometheus = {"url": "http://127.0.0.1:9", "scrapeInterval": "2s", "lag": "3s", "allowLocal": True}
    wanted = {
        "mode": "cluster",
        "cluster": {"namespaces": [NAMESPACE], "lease": {"duration": "4s", "namespace": "canaryd"}},
        "metrics": {"source": "prometheus", "prometheus": prometheus},
        "log": {"format": "json"},
    }
    with canaryd(control_plane, tmp_path_factory.mktemp("rights"), wanted) as running:
        yield running


def grant(bench: Bench, needs: Sequence[Need], without: Sequence[Verb] = ()) -> None:
    """canaryd's Role in the namespace that it looks after, but for some verbs."""
    rules = []
    for need in needs:
        verbs = [verb for verb in need.verbs if (need, verb) not in without]
        if verbs:
            rules.append({"apiGroups": [need.group], "resources": [need.resource], "verbs": verbs})
    bench.client().patch("roles", "canaryd-watched", {"rules": rules}, NAMESPACE)


def permitted(bench: Bench) -> dict[str, Any]:
    status = bench.client().get("canaries", "api", NAMESPACE).get("status") or {}
    return next((dict(c) for c in status.get("conditions", ()) if c["type"] == "Permitted"), {})


def names(without: Sequence[Verb]) -> str:
    return "; ".join(f"{verb} {need.qualified} in {NAMESPACE}" for need, verb in without)


def test_each_missing_verb_is_named_in_a_condition_until_it_is_granted(control_plane: Bench, alone: Canaryd) -> None:
    eventually(lambda: permitted(control_plane).get("status") == "True", "Permitted=True", 20)
    first = [(need, verb) for need, verb in each(SAID) if (need.resource, verb) == ("canaries", "patch")]
    grant(control_plane, WATCHED, first)
    account = control_plane.client("canaryd")
    eventually(lambda: not account.can("patch", "canaries"), "the Role to be heard of", 10)
    control_plane.client().apply(document("cart"))  # something is forbidden now: its finalizer
    eventually(lambda: permitted(control_plane).get("message") == names(first), names(first), 60)
    for without in batches():
        grant(control_plane, WATCHED, without)
        eventually(lambda w=without: permitted(control_plane).get("message") == names(w), names(without), 60)
        assert permitted(control_plane)["status"] == "False"
        assert permitted(control_plane)["reason"] == "PermissionMissing"
    grant(control_plane, WATCHED)
    eventually(lambda: permitted(control_plane).get("status") == "True", "Permitted=True again", 60)
    counts = [_questions(alone)]
    while len(counts) < 5 and counts[-1:] != counts[-2:-1]:
        sleep(7)
        counts.append(_questions(alone))
    assert counts[-1] == counts[-2], "nobody asks while nothing lacks"


def _questions(alone: Canaryd) -> int:
    asked = alone.leader().page()["requests"]
    return sum(n for what, n in asked.items() if "review" in what)


def test_without_the_right_to_write_a_status_it_is_told_in_an_event_and_on_the_page(
    control_plane: Bench, alone: Canaryd
) -> None:
    lost = [(STATUS, "patch")]
    grant(control_plane, WATCHED, lost)
    wrong = document("api")
    wrong["spec"]["interval"] = "1s"
    control_plane.client().apply(wrong)  # it would be refused in the status
    leader = alone.leader()
    eventually(lambda: leader.page()["missing"] == [names(lost)], names(lost), 60)
    grant(control_plane, WATCHED)
    eventually(lambda: leader.page()["missing"] == [], "nothing is missing", 60)
    control_plane.client().apply(document("api"))


@pytest.mark.parametrize("verb", ["get", "update"])
def test_without_the_lease_nobody_leads_and_the_log_says_which_verb_is_missing(
    control_plane: Bench, alone: Canaryd, verb: str
) -> None:
    role = control_plane.client().get("roles", "canaryd", "canaryd")
    rules = [{**rule, "verbs": [v for v in rule["verbs"] if v != verb]} for rule in role["rules"]]
    leader = alone.leader()
    control_plane.client().patch("roles", "canaryd", {"rules": [r for r in rules if r["verbs"]]}, "canaryd")
    said = f"forbidden: {verb} leases.coordination.k8s.io"
    asking = leader if verb == "update" else alone.start("canaryd-2")  # who leads already does not ask who does
    eventually(lambda: said in asking.child.log.read_text(), said, 30)
    if asking is not leader:
        asking.child.kill()
    if verb == "update":
        eventually(lambda: not leader.leads(), "the lead is given up", 20)
    control_plane.client().patch("roles", "canaryd", {"rules": role["rules"]}, "canaryd")
    eventually(leader.leads, "it leads again", 30)


def test_the_token_of_another_namespace_sees_nothing_and_says_whose_it_is(control_plane: Bench, alone: Canaryd) -> None:
    stranger: Replica = alone.start("tenant")
    said = "forbidden: list canaries.canaryd.io in shop, as system:serviceaccount:shop:tenant"
    eventually(lambda: said in stranger.child.log.read_text(), said, 30)
    assert not stranger.leads()
    stranger.child.kill()
    tenant = control_plane.client("tenant")
    with pytest.raises(ApiError):
        tenant.patch("canaries", "api", {"status": {"version": 99}}, NAMESPACE, part="status")


def test_the_table_of_permissions_is_what_the_roles_grant(control_plane: Bench, alone: Canaryd) -> None:
    assert alone.leader().page()["missing"] == []
    assert {replace(need, verbs=()).resource for need in OWN} == {"leases"}
