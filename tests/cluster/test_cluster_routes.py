"""Routes on a real API server: what survives a write, who is shut out, what is told when it cannot be done."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bench import ApiError, Bench
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_routes import plain_routes, split_routes, virtual_services
from route_scenes import (
    SCENES,
    Cluster,
    InCluster,
    destinations,
    in_http_route,
    in_virtual_service,
    uid_of,
    virtual_service,
)
from router_promises import BLUE, GREEN

from canaryd.adapters.cluster_routes import GRACE_S
from canaryd.adapters.gateway_api import PATIENCE_S, GatewayApiRouter
from canaryd.adapters.istio import IstioRouter
from canaryd.adapters.route_stamps import ADOPTED, STAMP
from canaryd.demo.processes import wait_until
from canaryd.errors import FenceError, RouteError
from canaryd.kube.informer import Direct
from canaryd.kube.kinds import VIRTUAL_SERVICES
from canaryd.policy import Istio, Route

Object = dict[str, Any]
ON_THE_SERVER = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
OURS = {"api-stable", "api-canary"}


@pytest.fixture
def istio(control_plane: Bench) -> Iterator[InCluster]:
    with in_virtual_service(control_plane) as made:
        yield made


@pytest.fixture
def gateway_api(control_plane: Bench) -> Iterator[InCluster]:
    with in_http_route(control_plane) as made:
        yield made


@pytest.fixture
def cluster(control_plane: Bench) -> Iterator[Cluster]:
    made = Cluster(control_plane, VIRTUAL_SERVICES)
    yield made
    made.close()


def set_weight(scene: InCluster, weight: int, version: int) -> None:
    scene.router.set_weight(scene.canary, scene.route, BLUE, GREEN, weight, version=version)


# ── what survives ────────────────────────────────────────────────────────────────────────────────────────────


@ON_THE_SERVER
@given(obj=virtual_services(split_routes()), weight=st.integers(0, 100))
def test_everything_but_weights_and_stamp_survives_a_write(cluster: Cluster, obj: Object, weight: int) -> None:
    before = made_anew(cluster, obj)
    router = direct(cluster)
    route = Route(istio=Istio(virtual_services=["api"]))
    router.set_weight("shop/api", route, "api-stable", "api", weight, version=1)
    after = cluster.there("api")
    assert unchanged(after) == unchanged(before)
    view = router.view("shop/api", route, "api-stable", "api")
    assert (view.weight, view.stamped_weight, view.version) == (weight, weight, 1)


@ON_THE_SERVER
@given(obj=virtual_services(plain_routes))
def test_a_restored_virtual_service_is_the_one_that_was_adopted(cluster: Cluster, obj: Object) -> None:
    before = made_anew(cluster, obj)
    router = direct(cluster)
    route = Route(istio=Istio(virtual_services=["api"]))
    router.adopt("shop/api", route, "api-stable", "api", version=1)
    router.set_weight("shop/api", route, "api-stable", "api", 40, version=2)
    assert router.restore("shop/api", route, "api-stable", "api", version=3)
    after = cluster.there("api")
    assert after["spec"] == before["spec"]
    assert unchanged(after) == unchanged(before)


def made_anew(cluster: Cluster, obj: Object) -> Object:
    cluster.admin.delete("virtualservices", "api")
    return cluster.admin.create(copy.deepcopy(obj))


def direct(cluster: Cluster) -> IstioRouter:
    """It asks the server each time, so that no example waits for a watch."""
    client = cluster.client()
    return IstioRouter(client, Direct(client, VIRTUAL_SERVICES), uid_of)


def unchanged(obj: Object) -> Object:
    """What a write must leave as it was."""
    obj = copy.deepcopy(obj)
    metadata = obj["metadata"]
    for field in ("managedFields", "resourceVersion", "generation"):
        metadata.pop(field, None)
    notes = {k: v for k, v in metadata.pop("annotations", {}).items() if k not in (STAMP, ADOPTED)}
    for route in obj["spec"]["http"]:
        entries = route.get("route", [])
        if {e["destination"]["host"].split(".")[0] for e in entries} == OURS:
            for entry in entries:
                entry.pop("weight", None)
    return {**obj, "annotations": notes}


# ── who is shut out, and who is not ──────────────────────────────────────────────────────────────────────────


class Frozen:
    """What a stalled process remembers of the cluster."""

    synced, generation, blind = True, 1, ""

    def __init__(self, obj: Object) -> None:
        self._obj = obj

    def listed(self, namespace: str) -> bool:
        return True

    def trouble(self, namespace: str | None = None) -> str:
        return ""

    def get(self, namespace: str, name: str) -> Object | None:
        return self._obj

    def items(self, namespace: str | None = None) -> tuple[Object, ...]:
        return (self._obj,)

    def put(self, obj: Object) -> None:
        """It goes on to see the past."""


@pytest.mark.parametrize("kind", SCENES)
def test_a_leader_that_stalled_before_its_write_cannot_undo_its_successors(control_plane: Bench, kind: str) -> None:
    with SCENES[kind](control_plane) as scene:
        set_weight(scene, 50, 4)
        memory = Frozen(scene.cluster.there(scene.name))
        stalled = type(scene.router)(scene.client, memory, uid_of)
        set_weight(scene, 0, 5)
        with pytest.raises(FenceError, match="state version 5 has already routed"):
            stalled.set_weight(scene.canary, scene.route, BLUE, GREEN, 60, version=4)
        view = scene.view()
        assert (view.weight, view.version) == (0, 5)


def test_labels_that_change_fifty_times_a_second_are_no_conflict(istio: InCluster, control_plane: Bench) -> None:
    admin, over, changes = control_plane.plane.new_client("admin"), threading.Event(), 0

    def label() -> None:
        nonlocal changes
        while not over.wait(0.02):
            admin.patch("virtualservices", istio.name, {"metadata": {"labels": {"n": str(changes)}}})
            changes += 1

    istio.view()
    before = istio.client.requests.copy()
    thread = threading.Thread(target=label)
    thread.start()
    try:
        for i in range(60):
            set_weight(istio, i, i)
            time.sleep(0.02)
    finally:
        over.set()
        thread.join()
        admin.close()
    sent = istio.client.requests - before
    assert changes > 40
    assert sent["patch", "virtualservices"] == 60  # not one was built anew
    assert sent["get", "virtualservices"] == 0
    assert istio.view().weight == 59


def test_a_person_who_edits_the_route_in_the_same_moment_is_not_overwritten_unseen(istio: InCluster) -> None:
    memory = Frozen(istio.cluster.there(istio.name))
    late = IstioRouter(istio.client, memory, uid_of)
    foreign = {"destination": {"host": "x"}, "weight": 10}
    istio.write("/spec/http/1/route", [*destinations(80, 10), foreign])
    with pytest.raises(RouteError, match='route "primary" also sends 10 % to x'):
        late.set_weight(istio.canary, istio.route, BLUE, GREEN, 50, version=1)
    assert istio.cluster.there(istio.name)["spec"]["http"][1]["route"][2] == foreign


def test_a_route_that_moved_in_the_same_moment_is_found_again(istio: InCluster) -> None:
    late = IstioRouter(istio.client, Frozen(istio.cluster.there(istio.name)), uid_of)
    first = {"name": "new", "route": [{"destination": {"host": "x"}}]}
    istio.write("/spec/http", [first, *istio.cluster.there(istio.name)["spec"]["http"]])
    late.set_weight(istio.canary, istio.route, BLUE, GREEN, 50, version=1)
    routes = istio.cluster.there(istio.name)["spec"]["http"]
    assert routes[0] == first
    assert [entry["weight"] for entry in routes[2]["route"]] == [50, 50]


def test_a_virtual_service_of_another_canary_is_left_alone(istio: InCluster) -> None:
    set_weight(istio, 30, 1)
    before = istio.cluster.there(istio.name)
    for call in (
        lambda: istio.router.view("shop/other", istio.route, BLUE, GREEN),
        lambda: istio.router.set_weight("shop/other", istio.route, BLUE, GREEN, 5, version=9),
    ):
        with pytest.raises(RouteError, match=f"VirtualService shop/{istio.name}: belongs to canary {istio.canary}"):
            call()
    assert not istio.router.restore("shop/other", istio.route, BLUE, GREEN, version=9)
    assert istio.cluster.there(istio.name) == before


def test_a_canary_of_another_namespace_reaches_nothing_of_this_one(istio: InCluster) -> None:
    with pytest.raises(RouteError, match=f"VirtualService web/{istio.name} does not exist"):
        istio.router.view(f"web/{istio.name}", istio.route, BLUE, GREEN)
    with pytest.raises(RouteError, match=f"VirtualService web/{istio.name} does not exist"):
        istio.router.set_weight(f"web/{istio.name}", istio.route, BLUE, GREEN, 5, version=1)


# ── what is seen ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", SCENES)
def test_a_hand_edit_is_seen_within_a_second_with_its_editor(control_plane: Bench, kind: str) -> None:
    with SCENES[kind](control_plane) as scene:
        set_weight(scene, 10, 2)
        scene.view()
        began = time.monotonic()
        scene.edit(60)
        wait_until(
            lambda: scene.router.view(scene.canary, scene.route, BLUE, GREEN).weight == 60, "the edit", every=0.01
        )
        assert time.monotonic() - began < 1
        view = scene.view()
        now = datetime.now(UTC)
        assert view.editor in {f"kubectl-edit, {now - timedelta(seconds=s):%H:%M:%S} UTC" for s in range(10)}
        assert f"name: {scene.name}, jqPathExpressions: [" in view.remedy
        set_weight(scene, 10, 2)
        assert scene.view().editor == ""


@pytest.mark.parametrize("kind", SCENES)
def test_a_route_that_is_deleted_is_an_error_and_works_again_when_it_is_made_anew(
    control_plane: Bench, kind: str
) -> None:
    with SCENES[kind](control_plane) as scene:
        set_weight(scene, 10, 2)
        there = scene.cluster.there(scene.name)
        scene.cluster.admin.delete(scene.cluster.kind.plural, scene.name)
        missing = f"{scene.cluster.kind.kind} shop/{scene.name} does not exist"
        with pytest.raises(RouteError, match=missing):
            set_weight(scene, 20, 3)  # the watch may not have told yet
        with pytest.raises(RouteError, match=missing):
            scene.view()
        assert not scene.router.restore(scene.canary, scene.route, BLUE, GREEN, version=3)
        metadata = {"name": scene.name, "namespace": "shop"}
        scene.cluster.admin.create({**there, "metadata": metadata})
        view = scene.view()
        assert (view.weight, view.version) == (10, 0)
        set_weight(scene, 20, 3)
        assert scene.view().weight == 20


def test_watching_and_writing_what_is_there_already_costs_no_request(istio: InCluster) -> None:
    set_weight(istio, 10, 2)
    istio.view()
    before = istio.client.requests.copy()
    for _ in range(200):
        istio.router.view(istio.canary, istio.route, BLUE, GREEN)
        set_weight(istio, 10, 2)
    assert istio.client.requests == before


def test_an_old_cache_is_told_after_a_grace_and_does_not_hinder_a_rollback(istio: InCluster) -> None:
    now = 0.0
    router = IstioRouter(istio.client, istio.informer, uid_of, monotonic=lambda: now)
    router.set_weight(istio.canary, istio.route, BLUE, GREEN, 50, version=2)
    istio.informer.stop()
    assert router.view(istio.canary, istio.route, BLUE, GREEN).weight == 50
    now = GRACE_S
    with pytest.raises(RouteError, match=r"virtualservices.* cannot be seen now: .* no longer watched"):
        router.view(istio.canary, istio.route, BLUE, GREEN)
    router.set_weight(istio.canary, istio.route, BLUE, GREEN, 0, version=3)
    weights = [entry["weight"] for entry in istio.cluster.there(istio.name)["spec"]["http"][1]["route"]]
    assert weights == [100, 0]


def test_several_virtual_services_move_together_and_a_half_written_split_is_seen_and_healed(istio: InCluster) -> None:
    second = f"{istio.name}-2"
    route = Route(istio=Istio(virtual_services=[istio.name, {"name": second, "routes": ("main",)}]))
    with pytest.raises(RouteError, match=f"VirtualService shop/{second} does not exist"):
        istio.router.set_weight(istio.canary, route, BLUE, GREEN, 30, version=1)
    istio.cluster.admin.apply(virtual_service(second, {"name": "main", "route": destinations(90, 10)}))
    istio.cluster.caught_up(istio.informer, istio.name)
    istio.cluster.caught_up(istio.informer, second)
    view = istio.router.view(istio.canary, route, BLUE, GREEN)
    assert (view.weight, view.stamped_weight, view.version) == (10, 30, 1)
    istio.router.set_weight(istio.canary, route, BLUE, GREEN, 30, version=1)
    view = istio.router.view(istio.canary, route, BLUE, GREEN)
    assert (view.weight, view.stamped_weight) == (30, 30)


# ── what is told when it cannot be done ──────────────────────────────────────────────────────────────────────


def test_a_missing_right_to_patch_is_told_with_its_verb(control_plane: Bench, istio: InCluster) -> None:
    control_plane.kubectl(
        *("create", "role", "see-routes", "--verb=get,list,watch"),
        *("--resource=virtualservices.networking.istio.io", "-n", "shop"),
    )
    control_plane.kubectl(
        *("create", "rolebinding", "see-routes", "--role=see-routes", "--serviceaccount=canaryd:canaryd", "-n", "shop")
    )
    own = Cluster(control_plane, VIRTUAL_SERVICES, identity="canaryd")
    try:
        client = own.client()
        wait_until(lambda: client.allowed("watch", VIRTUAL_SERVICES, "shop"), "the new binding to be heard of")
        router = own.router(client, own.informer(client))
        assert router.view(istio.canary, istio.route, BLUE, GREEN).weight == 0
        told = f"VirtualService shop/{istio.name}: cannot be written: forbidden: patch virtualservices"
        with pytest.raises(RouteError, match=told):
            router.set_weight(istio.canary, istio.route, BLUE, GREEN, 5, version=1)
    finally:
        own.close()
        control_plane.kubectl("delete", "rolebinding,role", "see-routes", "-n", "shop")
    assert istio.view().version == 0


def test_a_policy_that_refuses_the_write_is_told_in_its_own_words(control_plane: Bench, istio: InCluster) -> None:
    name = "small-canaries"
    rules = [
        {
            "apiGroups": ["networking.istio.io"],
            "apiVersions": ["*"],
            "operations": ["UPDATE"],
            "resources": ["virtualservices"],
        }
    ]
    kind = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name}}
    weights = "!has(h.route) || h.route.all(r, !has(r.weight) || r.weight != 77)"
    few = f"!has(object.spec.http) || object.spec.http.all(h, {weights})"
    checks = [{"expression": few, "message": "77 is not our number"}]
    policy = {"matchConstraints": {"resourceRules": rules}, "validations": checks}
    binding = {"policyName": name, "validationActions": ["Deny"]}
    path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"
    admin = control_plane.client()
    admin.request("POST", f"{path}ies", {**kind, "kind": "ValidatingAdmissionPolicy", "spec": policy})
    admin.request("POST", f"{path}ybindings", {**kind, "kind": "ValidatingAdmissionPolicyBinding", "spec": binding})
    try:
        wait_until(lambda: refused(istio, 77), "the policy to hold", timeout=20, every=0.2)
        with pytest.raises(RouteError, match=f"VirtualService shop/{istio.name}: cannot be written: .*not our number"):
            set_weight(istio, 77, 3)
    finally:
        admin.request("DELETE", f"{path}ybindings/{name}")
        admin.request("DELETE", f"{path}ies/{name}")


def refused(scene: InCluster, weight: int) -> bool:
    """Whether a person may not set this weight now."""
    try:
        scene.edit(weight)
    except ApiError:
        return True
    return False


def test_a_server_that_is_away_is_told_and_nothing_is_lost(control_plane: Bench, istio: InCluster) -> None:
    set_weight(istio, 10, 2)
    control_plane.plane.kill_apiserver()
    try:
        with pytest.raises(RouteError, match=f"VirtualService shop/{istio.name}: cannot be (read|written)"):
            set_weight(istio, 20, 3)
    finally:
        control_plane.plane.start_apiserver()
    wait_until(lambda: not istio.informer.trouble(), "the watch to come back", timeout=40, every=0.1)
    assert istio.view().weight == 10
    set_weight(istio, 20, 3)
    assert istio.view().weight == 20


def test_a_route_that_its_controllers_refuse_is_told_after_a_while(gateway_api: InCluster) -> None:
    now = 0.0
    router = GatewayApiRouter(gateway_api.client, gateway_api.informer, uid_of, monotonic=lambda: now)

    def view() -> int | None:
        gateway_api.cluster.caught_up(gateway_api.informer, gateway_api.name)
        return router.view(gateway_api.canary, gateway_api.route, BLUE, GREEN).weight

    judge(gateway_api, "False")
    assert view() == 0
    now = PATIENCE_S
    with pytest.raises(RouteError, match=f"HTTPRoute shop/{gateway_api.name}: is not accepted by Service {GREEN}: No"):
        view()
    router.set_weight(gateway_api.canary, gateway_api.route, BLUE, GREEN, 10, version=1)  # a way back stays open
    assert view() == 10  # a new generation, of which nobody has said anything yet
    judge(gateway_api, "True")
    now += 10 * PATIENCE_S
    assert view() == 10


def judge(scene: InCluster, accepted: str) -> None:
    """What a controller says of the route as it stands now."""
    there = scene.cluster.there(scene.name)
    condition = {
        "type": "Accepted",
        "status": accepted,
        "observedGeneration": there["metadata"]["generation"],
        "lastTransitionTime": "2026-11-24T14:00:00Z",
        "reason": "No" if accepted == "False" else "Accepted",
        "message": "not today",
    }
    parent = {
        "parentRef": there["spec"]["parentRefs"][0],
        "controllerName": "istio.io/gateway-controller",
        "conditions": [condition],
    }
    scene.cluster.admin.patch("httproutes", scene.name, {"status": {"parents": [parent]}}, part="status")
