"""Each verb taken from canaryd in turn: it says which it lacks, does no harm meanwhile, and goes on when it is back.

The verbs are those of the Roles as they are shipped, so that a new one is tried without a word here. In a few batches;
CANARYD_LONG=1: one by one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from bench import ApiError, Bench
from objects import document
from release_scenes import ACCOUNT, NAMESPACE, Canaryd, Replica, canaryd, eventually, install, now, sleep

from canaryd.permissions import DAEMON, each

pytestmark = pytest.mark.slow

NEIGHBOUR = "neighbour"  # looked after, too


@dataclass(frozen=True)
class Right:
    """One verb of a Role."""

    group: str
    resource: str
    verb: str

    def said(self, namespace: str = NAMESPACE) -> str:
        """As canaryd names it."""
        plural, slash, subresource = self.resource.partition("/")
        return f"{self.verb} {plural}{'.' * bool(self.group)}{self.group}{slash}{subresource} in {namespace}"


STATUS = Right("canaryd.io", "canaries/status", "patch")  # without it no condition can be set


def rights(role: dict[str, Any]) -> list[Right]:
    """All that a Role grants."""
    return [
        Right(group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


def without(role: dict[str, Any], lost: Sequence[Right]) -> list[dict[str, Any]]:
    """Its rules without these; each rule of it has one resource."""
    rules = []
    for rule in role["rules"]:
        (group,), (resource,) = rule["apiGroups"], rule["resources"]
        verbs = [verb for verb in rule["verbs"] if Right(group, resource, verb) not in lost]
        rules += [{**rule, "verbs": verbs}] if verbs else []
    return rules


def batches(all_of_them: Sequence[Right]) -> list[list[Right]]:
    """One by one where there is time for that; else the first verb of each resource, the second, and so on."""
    if os.environ.get("CANARYD_LONG") == "1":
        return [[one] for one in all_of_them]
    by_resource: dict[tuple[str, str], list[Right]] = {}
    for one in all_of_them:
        by_resource.setdefault((one.group, one.resource), []).append(one)
    most = max(map(len, by_resource.values()))
    return [[of[i] for of in by_resource.values() if i < len(of)] for i in range(most)]


@pytest.fixture(scope="module")
def alone(control_plane: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canaryd]:
    """One canaryd without services, and one Canary."""
    control_plane.namespace(NEIGHBOUR)
    install(control_plane, NAMESPACE, NEIGHBOUR)
    control_plane.client().apply(document("api"))
    prometheus = {"url": "http://127.0.0.1:9", "scrapeInterval": "2s", "lag": "3s", "allowLocal": True}
    wanted = {
        "mode": "cluster",
        "cluster": {"namespaces": [NAMESPACE, NEIGHBOUR], "lease": {"duration": "4s", "namespace": "canaryd"}},
        "metrics": {"source": "prometheus", "prometheus": prometheus},
        "log": {"format": "json"},
    }
    with canaryd(control_plane, tmp_path_factory.mktemp("rights"), wanted) as running:
        yield running


@pytest.fixture(scope="module")
def watched(control_plane: Bench, alone: Canaryd) -> dict[str, Any]:
    """The Role for a namespace that is looked after, as it is shipped."""
    return control_plane.client().get("roles", "canaryd-watched", NAMESPACE)


def grant(bench: Bench, role: dict[str, Any], lost: Sequence[Right] = ()) -> None:
    meta = role["metadata"]
    bench.client().patch("roles", meta["name"], {"rules": without(role, lost)}, meta["namespace"])


def permitted(bench: Bench) -> dict[str, Any]:
    status = bench.client().get("canaries", "api", NAMESPACE).get("status") or {}
    return next((dict(c) for c in status.get("conditions", ()) if c["type"] == "Permitted"), {})


def missing(bench: Bench) -> set[str]:
    """What the condition Permitted names."""
    condition = permitted(bench)
    return set(condition["message"].split("; ")) if condition.get("status") == "False" else set()


def diagnosed(bench: Bench) -> set[str]:
    """What `canaryd doctor` says that the daemon's ServiceAccount may not do."""
    where = ["--kubeconfig", str(bench.kubeconfig()), "--context", "bench", "-n", NAMESPACE]
    argv = [sys.executable, "-m", "canaryd", "doctor", "-o", "json", *where]
    answer = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    findings = [f for f in json.loads(answer.stdout) if f["check"] == "permissions" and f["severity"] == "error"]
    return {f["what"].rpartition(" may not ")[2] for f in findings}


def test_each_missing_verb_is_named_in_a_condition_and_by_doctor_until_it_is_granted(
    control_plane: Bench, alone: Canaryd, watched: dict[str, Any]
) -> None:
    said = [right for right in rights(watched) if right != STATUS]
    assert len(said) == len({(n.group, n.resource, v) for n, v in each(DAEMON) if "leases" not in n.resource}) - 1
    eventually(lambda: permitted(control_plane).get("status") == "True", "Permitted=True", 20)
    assert diagnosed(control_plane) == set()
    first = [right for right in said if (right.resource, right.verb) == ("canaries", "patch")]
    grant(control_plane, watched, first)
    account = control_plane.client("canaryd")
    eventually(lambda: not account.can("patch", "canaries"), "the Role to be heard of", 10)
    control_plane.client().apply(document("cart"))  # something is forbidden now: its finalizer
    names = {right.said() for right in first}
    eventually(lambda: missing(control_plane) == names, str(names), 60)
    for lost in batches(said):
        grant(control_plane, watched, lost)
        names = {right.said() for right in lost}
        eventually(lambda n=names: missing(control_plane) == n, str(names), 60)
        assert permitted(control_plane)["reason"] == "PermissionMissing"
        assert diagnosed(control_plane) == names
    print(f"{len(said)} verbs in {len(batches(said))} turns")
    grant(control_plane, watched)
    eventually(lambda: permitted(control_plane).get("status") == "True", "Permitted=True again", 60)
    counts = [_questions(alone)]
    while len(counts) < 5 and counts[-1:] != counts[-2:-1]:
        sleep(7)
        counts.append(_questions(alone))
    assert counts[-1] == counts[-2], "nobody asks while nothing lacks"


def _questions(alone: Canaryd) -> int:
    asked = alone.leader().page()["requests"]
    return sum(n for what, n in asked.items() if "review" in what)


def test_without_the_right_to_write_a_status_it_is_told_in_an_event_and_on_the_page_and_by_doctor(
    control_plane: Bench, alone: Canaryd, watched: dict[str, Any]
) -> None:
    grant(control_plane, watched, [STATUS])
    wrong = document("api")
    wrong["spec"]["interval"] = "1s"
    control_plane.client().apply(wrong)  # it would be refused in the status
    leader = alone.leader()
    eventually(lambda: leader.page()["missing"] == [STATUS.said()], STATUS.said(), 60)
    assert diagnosed(control_plane) == {STATUS.said()}
    grant(control_plane, watched)
    eventually(lambda: leader.page()["missing"] == [], "nothing is missing", 60)
    control_plane.client().apply(document("api"))


def test_without_a_verb_on_the_lease_nobody_leads_and_log_and_doctor_say_which_is_missing(
    control_plane: Bench, alone: Canaryd
) -> None:
    admin = control_plane.client()
    role = admin.get("roles", "canaryd", "canaryd")
    tried = rights(role)
    assert {right.resource for right in tried} == {"leases"}
    for right in tried:
        leader = alone.leader()
        grant(control_plane, role, [right])
        account = control_plane.client("canaryd")
        eventually(lambda a=account, r=right: not a.can(r.verb, "leases", "canaryd"), "the Role to be heard of", 10)
        asking = leader
        if right.verb == "create":
            admin.delete("leases", "canaryd", "canaryd")
        elif right.verb != "update":
            asking = alone.start("canaryd-2")  # who leads already does not ask who does
        said = f"forbidden: {right.verb} leases.coordination.k8s.io"
        eventually(lambda a=asking, s=said: s in a.child.log.read_text(), said, 30)
        assert diagnosed(control_plane) == {right.said("canaryd")}
        if asking is leader:
            eventually(lambda one=leader: not one.leads(), f"the lead is given up without {right.verb}", 20)
        else:
            asking.child.kill()
        admin.patch("roles", "canaryd", {"rules": role["rules"]}, "canaryd")
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


def test_a_canary_that_points_into_another_namespace_is_refused_though_canaryd_may_write_there(
    control_plane: Bench, alone: Canaryd
) -> None:
    """No confused deputy: who may write in shop gets nothing done in the neighbour's namespace."""
    admin, began = control_plane.client(), now()
    body = {"hosts": ["api"], "http": [{"name": "primary", "route": [{"destination": {"host": "api"}}]}]}
    route = {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService"}
    admin.apply({**route, "metadata": {"name": "api", "namespace": NEIGHBOUR}, "spec": body})
    assert control_plane.client("canaryd").can("patch", "virtualservices", NEIGHBOUR)
    there = f"api.{NEIGHBOUR}.svc.cluster.local"
    reaching = [
        {"workloads": {"deployment": {"name": f"{NEIGHBOUR}/api"}}},
        {"workloads": {"deployment": {"name": "api", "stable": f"{NEIGHBOUR}/api"}}},
        {"route": {"istio": {"virtualServices": [{"name": f"{NEIGHBOUR}/api"}]}}},
        {"route": {"istio": {"virtualServices": [{"name": "api", "namespace": NEIGHBOUR}]}}},
        {"route": {"istio": {"virtualServices": [{"name": "x"}], "stable": {"host": there}}}},
        {"route": {"istio": {"virtualServices": [{"name": "x"}], "canary": {"host": f"api.{NEIGHBOUR}"}}}},
        {"route": {"gatewayApi": {"httpRoutes": [{"name": f"{NEIGHBOUR}/api"}]}}},
    ]
    by_server = 0
    for number, spec in enumerate(reaching):
        name = f"reach-{number}"
        body = document(name)
        body["spec"] |= {"interval": "4s", **spec}
        try:
            admin.request(
                "POST", f"/apis/canaryd.io/v1alpha1/namespaces/{NAMESPACE}/canaries", body, fieldValidation="Strict"
            )
        except ApiError as e:
            by_server += 1
            print(e)
            continue
        eventually(lambda n=name: _ready(control_plane, n).get("status") == "False", f"{name} is refused", 45)
        message = _ready(control_plane, name)["message"]
        print(message)
        assert "namespace" in message or "host" in message
        admin.delete("canaries", name, NAMESPACE)
    print(f"{by_server} of {len(reaching)} by the server")
    sleep(3)
    written = [r for r in control_plane.audit.requests(ACCOUNT, began) if r.is_write and r.namespace == NEIGHBOUR]
    assert written == []


def _ready(bench: Bench, name: str) -> dict[str, Any]:
    found = bench.client().find("canaries", name, NAMESPACE) or {}
    conditions = (found.get("status") or {}).get("conditions") or ()
    return next((dict(c) for c in conditions if c["type"] == "Ready"), {})
