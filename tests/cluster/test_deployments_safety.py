"""Deployments as workloads where something goes wrong or ends: kills, stale writers, autoscalers, removal, config."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bench import Bench
from bench.apps import deployment
from deployments_rig import NAMESPACE, Eyes, Made, Rig, with_deployment

from canaryd.adapters.contents import WatchedContents
from canaryd.demo.processes import wait_until
from canaryd.deployments import objects
from canaryd.errors import FenceError, KubeUnreachableError, WorkloadError
from canaryd.model import HookState, HookStatus, Phase
from canaryd.policy import ConfigReference

WRITES = ("create", "patch", "delete", "replace")


class Cut:
    """A client whose process dies: after so many writes nothing more is sent. `done`: the last one still arrives."""

    def __init__(self, client: Any, writes: int, *, done: bool = False) -> None:
        self._client, self._left, self._done = client, writes, done

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return self._cut(method) if name in WRITES else method

    def _cut(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                if self._left == -1 and self._done:
                    method(*args, **more)
                raise KubeUnreachableError("killed here")
            return method(*args, **more)

        return call


# ── kills ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("done", [False, True], ids=["before-the-write", "after-the-write"])
def test_killed_between_any_two_writes_of_a_life_the_next_daemon_goes_on_to_the_same_end(
    rig: Made, eyes: Eyes, done: bool
) -> None:
    one = rig("killed-after" if done else "killed-before")
    kills = 0

    def die_often() -> None:
        """Every shape is tried by daemons that die after 0, 1, 2, … writes, until one lives."""
        nonlocal kills
        for writes in range(20):
            one.workloads = eyes.workloads(Cut(eyes.client, writes, done=done))
            try:
                Rig.shape(one, ahead)
            except WorkloadError as e:
                if "meanwhile" in str(e):  # the controller's own writes
                    time.sleep(0.1)
                elif "killed here" not in str(e):
                    raise
                kills += 1
                continue
            return
        raise AssertionError("twenty daemons could not finish")

    ahead = 0.0
    one.shape = lambda ahead=0.0: die_often() or ()  # type: ignore[method-assign]
    view = one.settle(lambda: (v := one.view()).ready and v, "stable to be ready")
    one.become(stable_revision=view.stable_revision, phase=Phase.IDLE, routed=datetime.now(UTC))
    ahead = 11
    one.settle(lambda: one.wanted(one.app.name) == 0, "the canary to be scaled down")
    ahead = 0
    one.app.set_image("demo/app:v2")
    revision = one.begin()
    one.settle(lambda: one.view().ready, "the canary to be ready")
    assert one.images(one.app.name) == {"demo/app:v2"}
    one.become(phase=Phase.PROMOTING, weight=100, routed=datetime.now(UTC))
    hook = HookState(f"{one.state.rollout}-1")
    found = hook
    for writes in range(200):
        one.workloads = eyes.workloads(Cut(eyes.client, writes % 3, done=done))
        try:
            found = one.workloads.upgrade(one.canary, one.state, hook, version=one.version)
        except WorkloadError:
            kills += 1
        if found.status is HookStatus.DONE:
            break
        time.sleep(0.2)
    assert found.status is HookStatus.DONE
    ahead = 11
    one.become(phase=Phase.SUCCEEDED, stable_revision=revision, weight=0, routed=datetime.now(UTC))
    one.settle(lambda: one.wanted(one.app.name) == 0, "the canary to be scaled down")
    assert kills >= 8
    assert one.images(one.stable) == {"demo/app:v2"}
    assert one.wanted(one.stable) == 2
    assert "paused" not in one.deployment()["spec"]
    for step in (False, True):
        left = "more"
        for writes in range(200):
            one.workloads = eyes.workloads(Cut(eyes.client, writes % 5, done=done))
            try:
                left = one.workloads.restore(
                    one.canary, one.state, version=one.version, now=datetime.now(UTC), rerouted=step
                )
            except WorkloadError:
                kills += 1
                left = "more"
            if not left:
                break
            time.sleep(0.1)
        assert left == ""
    _is_plain(one, "demo/app:v2", 2)


# ── two writers ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_daemon_that_stalled_cannot_undo_what_its_successor_did(rig: Made, eyes: Eyes) -> None:
    one = rig("fenced")
    one.adopt()
    one.app.set_image("demo/app:v2")
    stalled, at = replace(one.state, phase=Phase.ROLLED_BACK, routed=datetime.now(UTC)), one.version
    one.roll_out()
    one.caught_up()
    before = _written(one)
    later = datetime.now(UTC) + timedelta(minutes=5)
    with pytest.raises(FenceError, match=f"newer than {at}"):
        eyes.workloads().shape(one.canary, stalled, version=at, now=later)
    assert _written(one) == before
    with pytest.raises(FenceError):
        eyes.workloads().restore(one.canary, stalled, version=at, now=later)
    one.promote()
    with pytest.raises(FenceError):
        eyes.workloads().upgrade(one.canary, stalled, HookState("fenced-0-1"), version=at)
    assert one.image(one.stable) == "demo/app:v2"


def test_traffic_waits_for_endpoints_that_lag_behind_the_pods(rig: Made, eyes: Eyes, cluster: Bench) -> None:
    one = rig("lagging")
    one.adopt()
    one.app.set_image("demo/app:v2")
    one.begin()
    one.bring_up()
    admin = cluster.client()
    cluster.cluster.controllers.freeze()
    try:
        for found in admin.list("endpointslices", NAMESPACE, "kubernetes.io/service-name=lagging-canary"):
            admin.delete("endpointslices", found["metadata"]["name"])
        one.workloads = eyes.workloads()
        assert "Service lagging-canary does not send to 2 of the pods of lagging yet" in one.view().detail
        assert not one.view().ready
    finally:
        cluster.cluster.controllers.thaw()
    wait_until(lambda: one.view().ready, "the endpoints to be seen", 60)


def test_a_rollback_in_the_middle_of_the_upgrade_gives_stable_back_what_it_ran(rig: Made, eyes: Eyes) -> None:
    one = rig("astray")
    one.adopt()
    proven = one.state.stable_revision
    one.app.set_image("demo/app:v2")
    one.roll_out()
    one.become(phase=Phase.PROMOTING, weight=100)
    hook = HookState(f"{one.state.rollout}-1")
    one.workloads.upgrade(one.canary, one.state, hook, version=one.version)
    assert one.image(one.stable) == "demo/app:v2"
    promoting, late = one.state, one.version
    one.become(phase=Phase.ROLLING_BACK, weight=0, routed=datetime.now(UTC))
    one.settle(lambda: one.image(one.stable) == "demo/app:v1", "stable to get its template back")
    with pytest.raises(FenceError):
        eyes.workloads().upgrade(one.canary, promoting, hook, version=late)
    one.become(phase=Phase.ROLLED_BACK)
    one.settle(lambda: one.wanted(one.app.name) == 0, "the canary to be scaled down", ahead=11)
    wait_until(lambda: one.images(one.stable) == {"demo/app:v1"}, "stable to run it", 60)
    assert one.deployment(one.stable)["metadata"]["annotations"]["canaryd.io/revision"] == proven


def test_the_fence_holds_for_a_daemon_whose_cache_is_of_before_and_not_for_another_canarys_stamp(
    rig: Made, cluster: Bench
) -> None:
    one = rig("blindfold")
    one.adopt()
    old = Eyes(cluster)
    for informer in old.informers:
        informer.stop()  # what it holds stays as it is
    one.app.set_image("demo/app:v2")
    at = one.version
    one.roll_out()
    one.caught_up()
    before = _written(one)
    stale = _Frozen(old)
    with pytest.raises((FenceError, WorkloadError)) as refused:
        stale.workloads(one).shape(
            one.canary,
            replace(
                one.state, phase=Phase.WAITING, weight=0, rollout="blindfold-0", revision=one.state.stable_revision
            ),
            version=at,
            now=datetime.now(UTC) + timedelta(minutes=5),
        )
    assert isinstance(refused.value, FenceError), refused.value
    assert _written(one) == before
    again = one.canary.model_copy(update={"metadata": one.canary.metadata.model_copy(update={"uid": "anew"})})
    one.workloads.shape(again, replace(one.state, phase=Phase.PROGRESSING), version=1, now=datetime.now(UTC))


def _written(one: Rig) -> tuple[Any, ...]:
    """What people and daemons write, of both Deployments."""
    both = (one.deployment(), one.deployment(one.stable))
    return tuple((d["spec"], d["metadata"]["annotations"], d["metadata"]["generation"]) for d in both)


class _Frozen:
    """Eyes that are closed and do not know it: every reader says that all is well."""

    def __init__(self, eyes: Eyes) -> None:
        self._eyes = eyes

    def workloads(self, one: Rig) -> Any:
        for informer in self._eyes.informers:
            informer.trouble = lambda namespace=None: ""  # type: ignore[method-assign]
        return self._eyes.workloads(one.eyes.client)


# ── autoscalers ──────────────────────────────────────────────────────────────────────────────────────────────


def autoscaler(name: str, least: int, most: int) -> dict[str, Any]:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": least,
            "maxReplicas": most,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
                }
            ],
        },
    }


def test_the_services_autoscaler_follows_the_pods_that_serve_and_goes_back_at_the_end(rig: Made) -> None:
    one = rig("scaled", replicas=3)
    one.admin.create(autoscaler("scaled", least=2, most=6))
    wait_until(lambda: one.eyes.autoscalers.get(NAMESPACE, "scaled"), "the cache")
    one.adopt()

    def scaler() -> dict[str, Any]:
        return one.admin.get("horizontalpodautoscalers", "scaled")

    assert scaler()["spec"]["scaleTargetRef"]["name"] == "scaled-stable"
    assert one.wanted(one.stable) == 3
    one.app.set_image("demo/app:v2")
    one.roll_out()
    assert one.wanted("scaled") == 3
    assert scaler()["spec"]["minReplicas"] == 3  # while it lasts stable loses nothing

    def reasons() -> set[str]:
        return {c.get("reason", "") for c in scaler().get("status", {}).get("conditions") or ()}

    wait_until(lambda: "FailedGetResourceMetric" in reasons(), "the autoscaler to have looked", 30)
    assert "AmbiguousSelector" not in reasons()  # no second autoscaler selects these pods
    one.admin.patch("deployments", one.stable, {"spec": {"replicas": 5}})
    one.caught_up()
    one.shape()
    assert one.wanted("scaled") == 5  # the canary must be able to take what stable takes
    one.settle(lambda: (v := one.view()).canary and v.canary.ready == 5, "five pods")
    one.promote()
    one.succeed()
    one.shape(ahead=11)
    assert scaler()["spec"]["minReplicas"] == 2
    assert objects.HELD not in scaler()["metadata"]["annotations"]
    _restore(one)
    assert scaler()["spec"] == autoscaler("scaled", 2, 6)["spec"] | {
        "scaleTargetRef": scaler()["spec"]["scaleTargetRef"]
    }
    assert scaler()["spec"]["scaleTargetRef"]["name"] == "scaled"
    _is_plain(one, "demo/app:v2", 5)


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────


def _restore(one: Rig) -> None:
    one.settle = None  # type: ignore[assignment]  # no more ticks
    for rerouted in (False, True):
        wait_until(lambda r=rerouted: one.restore(rerouted=r) == "", "the plain Deployment", 60, every=0.2)


def _is_plain(one: Rig, image: str, count: int) -> None:
    """Nothing of canaryd's is left, and the Deployment is as if it had never been there."""
    name = one.app.name
    made = one.deployment()
    assert (one.image(name), one.wanted(name)) == (image, count)
    assert made["status"]["availableReplicas"] == count
    assert "paused" not in made["spec"]
    assert not [key for key in made["metadata"]["annotations"] if key.startswith("canaryd.io/")]
    assert "canaryd.io" not in json.dumps(made["spec"])
    assert one.admin.find("deployments", one.stable) is None
    assert one.admin.find("services", f"{name}-stable") is None
    assert one.admin.find("services", f"{name}-canary") is None
    pins = one.admin.request("GET", f"/apis/apps/v1/namespaces/{NAMESPACE}/controllerrevisions")["items"]
    assert [p["metadata"]["name"] for p in pins if p["metadata"]["name"].startswith(f"{name}-")] == []


def test_removal_in_the_middle_of_a_rollout_brings_back_what_was_proven_and_never_leaves_a_service_empty(
    rig: Made,
) -> None:
    one = rig("removed", replicas=3)
    one.adopt()
    one.app.set_image("demo/app:v2-err50")
    one.roll_out()
    lows: dict[str, int] = {}
    over = threading.Event()
    client = one.bench.plane.new_client("admin")

    def watch() -> None:
        while not over.is_set():
            for service in ("removed", "removed-stable"):
                slices = client.list("endpointslices", NAMESPACE, f"kubernetes.io/service-name={service}")
                ready = [e for s in slices for e in s["endpoints"] or () if e["conditions"]["ready"]]
                if slices:
                    lows[service] = min(lows.get(service, 99), len(ready))
            time.sleep(0.1)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        wait_until(lambda: one.restore(rerouted=False) == "", "the plain Deployment", 60, every=0.2)
        assert one.image("removed") == "demo/app:v1"
        assert one.restore(rerouted=False) == ""  # as often as it takes the route to follow
        assert one.admin.find("deployments", one.stable) is not None
    finally:
        over.set()
        thread.join()
        client.close()
    assert lows["removed-stable"] == 3
    wait_until(lambda: one.restore(rerouted=True) == "", "the rest to go", 60, every=0.2)
    _is_plain(one, "demo/app:v1", 3)


def test_a_canary_made_anew_over_what_an_orphaned_one_left_goes_on_with_it(rig: Made) -> None:
    one = rig("orphan")
    one.adopt()
    one.app.set_image("demo/app:v2")
    one.roll_out()
    one.promote()
    one.succeed()
    anew = one.canary.metadata.model_copy(
        update={"uid": one.bench.client().get("configmaps", "orphan")["metadata"]["uid"][::-1]}
    )
    one.canary = one.canary.model_copy(update={"metadata": anew})
    one.workloads = one.eyes.workloads()
    revision = one.state.revision
    one.state, one.version = type(one.state)(stable=one.state.stable, canary=one.state.canary), 1
    one.settle(lambda: one.view().ready, "stable to be ready")
    assert one.view().stable_revision == revision == one.revision()
    assert one.wanted("orphan") == 0
    one.become(stable_revision=revision, phase=Phase.IDLE, routed=datetime.now(UTC))
    one.app.set_image("demo/app:v3")
    one.roll_out()
    assert one.images("orphan") == {"demo/app:v3"}


def test_a_stable_deployment_brought_by_the_user_keeps_its_labels_and_outlives_the_canary(rig: Made) -> None:
    one = rig("brought")
    own = deployment("brought-stable", "demo/app:v1", 2)
    own["metadata"]["labels"] = {"team": "shop"}
    one.admin.create(own)
    one.eyes.deployments.wait_synced(timedelta(seconds=5))
    wait_until(lambda: one.eyes.deployments.get(NAMESPACE, one.stable), "the cache")
    one.settle(lambda: one.view().ready, "both")
    view = one.view()
    one.become(stable_revision=view.stable_revision, phase=Phase.IDLE, routed=datetime.now(UTC))
    one.settle(lambda: one.wanted("brought") == 0, "the canary to be scaled down", ahead=11)
    one.app.set_image("demo/app:v2")
    one.roll_out()
    assert one.promote().status is HookStatus.DONE
    one.succeed()
    made = one.deployment(one.stable)
    assert made["metadata"]["labels"] == {"team": "shop"}
    assert made["spec"]["selector"]["matchLabels"] == {"app": "brought-stable"}
    assert made["spec"]["template"]["metadata"]["labels"]["app"] == "brought-stable"
    assert one.image(one.stable) == "demo/app:v2"
    assert one.revision() == one.view().stable_revision == one.state.revision
    _restore(one)
    made = one.deployment(one.stable)
    assert made["status"]["availableReplicas"] == 2
    assert not [key for key in made["metadata"]["annotations"] if key.startswith("canaryd.io/")]


class _Raced:
    """A client before whose first new Deployment somebody else makes one of that name."""

    def __init__(self, client: Any, first: Callable[[], object]) -> None:
        self._client, self._first = client, first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def create(self, kind: Any, namespace: str, body: Any) -> Any:
        if kind.plural == "deployments":
            self._first()
        return self._client.create(kind, namespace, body)


def test_a_stable_that_is_brought_in_the_moment_in_which_one_is_made_gets_the_service_that_selects_its_pods(
    rig: Made, eyes: Eyes
) -> None:
    one = rig("raced")
    own = deployment("raced-stable", "demo/app:v1", 2)
    one.workloads = eyes.workloads(_Raced(eyes.client, lambda: one.admin.apply(own)))
    with pytest.raises(WorkloadError, match="raced-stable was made by somebody meanwhile"):
        one.shape()
    one.workloads = eyes.workloads()
    one.settle(lambda: one.view().ready, "both")
    assert one.admin.get("services", "raced-stable")["spec"]["selector"] == {"app": "raced-stable"}
    assert "canaryd.io/managed-by" not in (one.deployment(one.stable)["metadata"].get("labels") or {})


def test_another_canarys_stable_deployment_is_refused_by_name(rig: Made) -> None:
    one, two = rig("mine"), rig("yours")
    one.adopt()
    two.canary = with_deployment(two, stable="mine-stable")
    with pytest.raises(WorkloadError, match="belongs to the Canary mine"):
        two.view()
    with pytest.raises(WorkloadError, match="belongs to the Canary mine"):
        two.shape()
    assert one.wanted("mine-stable") == 2


def test_a_secret_that_it_may_not_read_holds_the_release_and_names_the_verb_and_no_look_waits_for_it(
    rig: Made,
) -> None:
    one = rig("secretive")
    contents = WatchedContents(one.eyes.client)
    one.workloads = one.eyes.workloads(contents=contents)
    one.canary = with_deployment(one, config=(ConfigReference(secret="secretive-key"),))
    with pytest.raises(WorkloadError, match=r"Secret shop/secretive-key cannot be read: .*forbidden: list secrets"):
        one.revision()
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(WorkloadError):
            one.revision()
        assert "forbidden: list secrets" in one.view().detail
    assert time.monotonic() - began < 2
    assert one.shape() == ()
    contents.close()


# ── config ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_change_of_a_named_config_is_a_release_whose_promotion_restarts_stable(rig: Made, cluster: Bench) -> None:
    one = rig("config")
    _config(one, "bright")
    _may_read(cluster, "configmaps", "config-env")
    contents = WatchedContents(one.eyes.client)
    one.workloads = one.eyes.workloads(contents=contents)
    one.canary = with_deployment(one, config=(ConfigReference(config_map="config-env"),))
    one.adopt()
    first, running = one.revision(), {p["metadata"]["uid"] for p in one.app.pods()}
    assert first == one.state.stable_revision
    _config(one, "dark")
    second = one.roll_out()
    _config(one, "bright")
    assert wait_until(lambda: one.revision() == first, "the first one again")
    _config(one, "dark")
    assert wait_until(lambda: one.revision() == second, "the second one again")
    one.promote()
    one.succeed()
    assert one.view().stable_revision == second == one.revision()
    assert not running & {p["metadata"]["uid"] for p in one.app.pods()}  # they had read what was there before
    one.admin.delete("configmaps", "config-env")

    def missing() -> bool:
        try:
            return not one.revision()
        except WorkloadError as e:
            return "ConfigMap shop/config-env does not exist" in str(e)

    wait_until(missing, "it to be missed")
    held = one.workloads.__dict__["_contents"].__dict__["_watched"]
    assert "dark" not in str([informer.items() for informer in held.values()])
    contents.close()


def _config(one: Rig, value: str) -> None:
    meta = {"name": "config-env", "namespace": NAMESPACE}
    one.admin.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"THEME": value}})


def _may_read(bench: Bench, resource: str, name: str) -> None:
    """One object by its name, as a cautious administrator would."""
    admin, canaryd = bench.client(), bench.client("canaryd")
    meta = {"name": f"read-{name}", "namespace": NAMESPACE}
    rule = {"apiGroups": [""], "resources": [resource], "resourceNames": [name], "verbs": ["list", "watch"]}
    rbac = "rbac.authorization.k8s.io"
    admin.apply({"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": meta, "rules": [rule]})
    admin.apply(
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": meta["name"]},
            "subjects": [{"kind": "ServiceAccount", "name": "canaryd", "namespace": "canaryd"}],
        }
    )
    path = f"/api/v1/namespaces/{NAMESPACE}/{resource}"

    def allowed() -> bool:
        try:
            canaryd.request("GET", path, fieldSelector=f"metadata.name={name}")
        except OSError:
            raise
        except Exception:  # noqa: BLE001  # refused until the binding is heard of
            return False
        return True

    wait_until(allowed, "the role to be bound", 20)
