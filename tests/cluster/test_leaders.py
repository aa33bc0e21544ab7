"""Two leaders at once, by every trick: what one of them does too late must change nothing.

CANARYD_LONG=1 freezes for a minute instead of a quarter of it, and adds a bad release with two leaders.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from bench import Bench, BenchPrometheus
from history_checker import ACCOUNT
from kill_scenes import NAME, Moves, await_other, quick, release
from release_scenes import Canaryd, Replica, Service

from canaryd.demo.processes import wait_until

pytestmark = pytest.mark.slow

LONG = os.environ.get("CANARYD_LONG") == "1"
WRITTEN = ("canaries", "virtualservices", "deployments")


@pytest.fixture(scope="module")
def moves(mesh: Bench, victim: Service) -> Moves:
    return Moves(mesh, NAME)


@pytest.fixture
def running(mesh: Bench, prometheus: BenchPrometheus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canaryd]:
    with quick(mesh, prometheus, tmp_path_factory.mktemp("leaders")) as both:
        yield both


def test_a_leader_that_was_frozen_while_another_moved_on_moves_nothing(
    mesh: Bench, running: Canaryd, victim: Service, moves: Moves
) -> None:
    with release(victim, moves):
        leader = running.leader()
        before, since = _sent(leader), datetime.now(UTC)
        moves.wait_for("Progressing", "1/2")  # saved this instant, and perhaps not routed yet
        leader.child.freeze()
        frozen, stopped = time.monotonic(), datetime.now(UTC)
        other, took = await_other(running, leader)
        moves.wait_for("Progressing", "2/2")
        time.sleep(max(0.0, (60 if LONG else 15) - (time.monotonic() - frozen)))
        thawed = datetime.now(UTC)
        leader.child.thaw()
        time.sleep(3)
        assert leader.page()["leading"] is False
        assert other.leads()
        sent = _sent(leader) - before
        first, refused = _written(mesh, since, stopped), _written(mesh, thawed, datetime.now(UTC), accepted=False)
    print(f"taken over after {took:.1f} s; it sent {dict(sent)}: {dict(first)} before, {dict(refused)} refused then")
    assert sent <= first + refused


def test_a_lease_that_is_deleted_or_that_clocks_disagree_about_undoes_nothing(
    mesh: Bench, running: Canaryd, victim: Service, moves: Moves
) -> None:
    admin = mesh.client()
    with release(victim, moves):
        moves.wait_for("Progressing")
        admin.delete("leases", "canaryd", "canaryd")
        wait_until(lambda: admin.find("leases", "canaryd", "canaryd"), "the Lease is made again", 15)
        for skew in (timedelta(hours=1), timedelta(hours=-1)):
            renewed = (datetime.now(UTC) + skew).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            other = {"holderIdentity": "somebody", "renewTime": renewed, "acquireTime": renewed}
            began = time.monotonic()
            admin.patch("leases", "canaryd", {"spec": other}, "canaryd")
            wait_until(lambda: not any(r.leads() for r in running.replicas), "nobody leads", 10)
            running.leader()
            print(f"skewed by {skew}: led again after {time.monotonic() - began:.1f} s")


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        pytest.param("", "Succeeded", id="good"),
        pytest.param("-err60", "RolledBack", id="bad", marks=pytest.mark.skipif(not LONG, reason="CANARYD_LONG=1")),
    ],
)
def test_two_that_lead_for_good_end_a_rollout_right_and_do_no_step_twice(
    mesh: Bench, running: Canaryd, victim: Service, moves: Moves, words: str, ends: str
) -> None:
    leader = running.leader()
    for one in running.replicas:
        if one is not leader:
            one.child.kill()
    lease = {**running.settings["cluster"]["lease"], "name": "canaryd-other"}
    _may_hold(mesh, lease["name"])
    second = running.start("canaryd-2", cluster={**running.settings["cluster"], "lease": lease})
    wait_until(second.leads, "the second leads, too", 30)
    since = datetime.now(UTC)
    with release(victim, moves, words, ends=ends):
        pass
    assert leader.leads()
    assert second.leads()
    admin = mesh.client()
    for kind in ("rolebindings", "roles"):
        admin.delete(kind, f"holds-{lease['name']}", "canaryd")
    print("refused:", dict(_written(mesh, since, datetime.now(UTC), accepted=False)))


def test_another_leads_within_15_seconds_of_a_kill_and_3_of_a_release(
    mesh: Bench, prometheus: BenchPrometheus, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lease = {"duration": "10s"}
    with quick(mesh, prometheus, tmp_path_factory.mktemp("failover"), lease=lease) as running:
        leader = running.leader()
        (standby,) = (r for r in running.replicas if r is not leader)
        name = leader.page()["me"]
        wait_until(lambda: f"standby: {name} leads" in standby.page("/readyz"), "the standby knows the leader", 20)
        assert standby.page()["holder"] == name
        leader.child.kill()
        _, killed = await_other(running, leader)
        again = running.start(leader.identity)
        wait_until(lambda: _is_standby(again), "the other is back", 30)
        standby.child.ask_to_stop()
        _, released = await_other(running, standby)
        print(f"led again {killed:.1f} s after a kill, {released:.1f} s after a release")
        assert killed <= 15
        assert released <= 3


def _may_hold(mesh: Bench, lease: str) -> None:
    """A right that canaryd has for its own Lease only."""
    group, place = "rbac.authorization.k8s.io", {"name": f"holds-{lease}", "namespace": "canaryd"}
    rules = [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}]
    role = {"apiGroup": group, "kind": "Role", "name": place["name"]}
    who = [{"kind": "ServiceAccount", "name": "canaryd", "namespace": "canaryd"}]
    mesh.client().apply({"apiVersion": f"{group}/v1", "kind": "Role", "metadata": place, "rules": rules})
    binding = {"apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": place}
    mesh.client().apply({**binding, "roleRef": role, "subjects": who})


def _is_standby(one: Replica) -> bool:
    try:
        return "standby" in str(one.page("/readyz"))
    except OSError:
        return False


def _sent(one: Replica) -> Counter[str]:
    """Changes that this process has asked for, by resource."""
    asked = one.page()["requests"]
    return Counter({what: asked.get(f"patch {what}", 0) for what in WRITTEN})


def _written(mesh: Bench, since: datetime, until: datetime, *, accepted: bool = True) -> Counter[str]:
    """Changes by canaryd that the server accepted, or refused, by resource."""
    found: Counter[str] = Counter()
    for request in mesh.audit.requests(ACCOUNT, since, until):
        resource = request.resource.partition("/")[0]
        if request.verb == "patch" and resource in WRITTEN and (request.status < 300) is accepted:
            found[resource] += 1
    return found
