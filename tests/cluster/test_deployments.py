"""Deployments as workloads, on the real controllers: adoption, rollouts, promotion, autoscalers, people, deletion."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bench.apps import is_ready
from deployments_rig import NAMESPACE, Made, Rig, with_deployment

from canaryd.demo.processes import wait_until
from canaryd.deployments import objects
from canaryd.errors import WorkloadError
from canaryd.model import HookStatus, Phase

# ── adoption ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_running_app_is_adopted_beside_itself_and_its_own_pods_stay_until_the_route_has_moved(rig: Made) -> None:
    one = rig("adopted", replicas=3)
    before = {pod["metadata"]["uid"] for pod in one.app.pods()}
    one.settle(lambda: one.view().ready, "stable to be ready")
    assert one.view().stable_revision == one.revision()
    stable = one.deployment(one.stable)
    assert stable["spec"]["selector"]["matchLabels"] == {"app": "adopted", "canaryd.io/role": "stable"}
    assert stable["spec"]["replicas"] == 3
    assert "ownerReferences" not in stable["metadata"]
    assert one.admin.get("services", "adopted-stable")["spec"]["selector"] == {
        "app": "adopted",
        "canaryd.io/role": "stable",
    }
    assert one.admin.get("services", "adopted-canary")["spec"]["selector"]["app"] == "adopted"
    canary = one.deployment()
    assert (canary["status"]["replicas"], canary["status"]["availableReplicas"]) == (3, 3)
    one.bench.kubectl("rollout", "status", "deployment/adopted", "-n", NAMESPACE, "--timeout=10s")
    assert {pod["metadata"]["uid"] for pod in one.app.pods()} > before  # nobody's pods were replaced
    one.become(stable_revision=one.view().stable_revision, routed=datetime.now(UTC))
    assert one.shape(ahead=5) == ()
    assert one.wanted("adopted") == 3
    one.shape(ahead=11)
    assert one.wanted("adopted") == 0
    one.caught_up()
    assert one.deployment(one.stable)["status"]["availableReplicas"] == 3
    began = datetime.now(UTC)
    for _ in range(5):
        assert one.shape(ahead=20) == ()
        assert one.revision() == one.state.stable_revision
        one.view()
    assert one.writes(began) == []
    assert [
        r for r in one.bench.audit.requests("system:serviceaccount:canaryd:canaryd", began) if r.verb != "watch"
    ] == []


# ── rollouts ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_whole_rollout_needs_six_writes_and_one_more_to_drop_the_template_of_the_one_before_the_last(
    rig: Made,
) -> None:
    one = rig("whole")
    one.adopt()
    began = datetime.now(UTC)
    one.app.set_image("demo/app:v2")
    revision = one.roll_out()
    view = one.view()
    assert (view.canary and view.canary.ready, view.stable and view.stable.ready) == (2, 2)
    hashed = one.admin.get("services", "whole-canary")["spec"]["selector"]["pod-template-hash"]
    assert hashed in {pod["metadata"]["labels"]["pod-template-hash"] for pod in one.app.pods()}
    assert one.deployment()["spec"]["paused"]
    assert one.image(one.stable) == "demo/app:v1"
    assert one.promote().status is HookStatus.DONE
    assert one.images(one.stable) == {"demo/app:v2"}
    one.succeed()
    assert "paused" not in one.deployment()["spec"]
    assert one.view().stable_revision == revision == one.revision()
    assert sorted(one.writes(began)) == [
        "create controllerrevisions/whole-" + revision,
        "patch deployments/whole",  # up
        "patch deployments/whole",  # paused
        "patch deployments/whole",  # down
        "patch deployments/whole-stable",
        "patch services/whole-canary",
    ]
    one.app.set_image("demo/app:v3")
    one.roll_out()
    pins = one.admin.request("GET", f"/apis/apps/v1/namespaces/{NAMESPACE}/controllerrevisions")["items"]
    kept = {p["metadata"]["name"] for p in pins if p["metadata"]["name"].startswith("whole-")}
    assert kept == {f"whole-{revision}", f"whole-{one.state.revision}"}


def test_a_template_that_lands_during_a_rollout_never_runs_and_is_not_what_is_promoted(rig: Made) -> None:
    one = rig("unseen")
    one.adopt()
    one.app.set_image("demo/app:v2")
    revision = one.roll_out()
    one.app.set_image("demo/app:v3-err50")
    newer = one.wait_for_release()
    assert newer != revision
    for _ in range(10):
        one.shape()
        time.sleep(0.2)
    assert one.images("unseen") == {"demo/app:v2"}
    assert one.promote().status is HookStatus.DONE
    assert one.images(one.stable) == {"demo/app:v2"}
    assert one.view().stable_revision == revision
    one.succeed()
    wait_until(lambda: one.images("unseen") == set(), "its pods to leave", 20)
    assert one.revision() == newer  # which is for the next rollout to judge
    assert one.begin() == newer
    one.bring_up()
    assert one.images("unseen") == {"demo/app:v3-err50"}


def test_one_that_lands_while_pods_come_up_starts_again_and_the_first_is_never_called_ready(rig: Made) -> None:
    one = rig("waiting")
    one.adopt()
    one.app.set_image("demo/app:v2-start3")
    first = one.begin()
    one.settle(lambda: one.images("waiting") == {"demo/app:v2-start3"}, "pods")
    one.app.set_image("demo/app:v3")
    second = one.wait_for_release()
    one.shape()
    view = one.view()
    assert not view.ready
    assert first in view.detail
    assert second in view.detail
    one.begin()
    one.become(routed=datetime.now(UTC) - timedelta(seconds=20))
    one.bring_up()
    assert one.images("waiting") == {"demo/app:v3"}


def test_a_canary_with_traffic_is_not_replaced_before_the_traffic_has_gone(rig: Made) -> None:
    one = rig("replaced")
    one.adopt()
    one.app.set_image("demo/app:v2")
    one.roll_out()
    one.app.set_image("demo/app:v3")
    one.begin()
    for ahead in (0, 5, 9):
        one.shape(ahead)
        assert one.deployment()["spec"]["paused"]
    one.settle(lambda: one.view().ready, "the newer one", ahead=11)
    assert one.images("replaced") == {"demo/app:v3"}


def test_a_canary_of_few_pods_grows_before_the_step_that_needs_them(rig: Made) -> None:
    one = rig("ramp", replicas=4)
    one.canary = with_deployment(one, replicas=1)
    one.adopt()
    one.app.set_image("demo/app:v2")
    one.roll_out()
    assert one.wanted("ramp") == 1
    sizes = []
    for step in range(len(one.canary.spec.steps)):
        one.become(step=step, weight=one.canary.spec.steps[step].weight)
        one.shape()
        sizes.append(one.wanted("ramp"))
    assert sizes == [1, 1, 2, 4, 4]  # for 10, 25, 50, 100 and 100 percent of what four stable pods carry
    wait = lambda: (v := one.view()).canary and v.canary.ready == 4  # noqa: E731
    one.settle(wait, "four pods")
    assert one.images("ramp") == {"demo/app:v2"}


def test_stable_meets_the_traffic_that_comes_back_with_as_many_pods_as_carried_it_and_has_its_own_number_again(
    rig: Made,
) -> None:
    one = rig("herd")
    one.canary = with_deployment(one, replicas=4)
    one.adopt()
    one.app.set_image("demo/app:v2")
    one.roll_out()
    assert one.promote().status is HookStatus.DONE
    assert one.deployment(one.stable)["status"]["availableReplicas"] == 4
    one.become(weight=50, routed=None)
    one.shape(ahead=60)
    assert (one.wanted("herd"), one.wanted(one.stable)) == (4, 4)
    one.succeed()
    one.caught_up()
    one.shape(ahead=11)
    assert (one.wanted("herd"), one.wanted(one.stable)) == (0, 2)


# ── releases that cannot work ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        pytest.param("crash", "CrashLoopBackOff", id="crash-loop"),
        pytest.param("neverready", "readiness probe has not passed", id="never-ready"),
        pytest.param("oom1", "OOMKilled", id="killed-for-memory"),
    ],
)
def test_a_canary_that_cannot_become_ready_is_overdue_with_the_reason(rig: Made, tag: str, reason: str) -> None:
    one = rig(f"bad-{tag}")
    one.adopt()
    one.app.set_image(f"demo/app:v2-{tag}")
    one.begin()
    one.settle(lambda: reason in one.view().detail, f"the reason {reason}")
    assert one.view().overdue == ""
    one.become(held=timedelta(minutes=6), blind=timedelta(minutes=4))

    def told() -> bool:
        view = one.view()
        return not view.ready and reason in view.overdue and "10 min" in view.overdue

    one.settle(told, "the reason in what is overdue")
    one.become(phase=Phase.ROLLED_BACK)
    one.settle(lambda: one.wanted(one.app.name) == 0, "the canary to be scaled down", ahead=11)
    assert "paused" not in one.deployment()["spec"]
    assert one.images(one.stable) == {"demo/app:v1"}


def test_pods_that_fit_nowhere_are_named_as_such(rig: Made) -> None:
    one = rig("nowhere")
    one.adopt()
    change = {"spec": {"template": {"spec": {"nodeSelector": {"disk": "gold"}}}}}
    one.admin.patch("deployments", "nowhere", change, kind="strategic")
    one.begin()
    one.settle(lambda: "Unschedulable" in one.view().detail, "the reason")


def test_restarts_and_kills_during_a_rollout_are_counted_and_a_restarted_pod_started_anew(rig: Made) -> None:
    one = rig("restless")
    one.adopt()
    one.app.set_image("demo/app:v2-oom5")
    one.begin()
    one.settle(lambda: one.view().canary and one.view().started, "pods")

    def counted() -> bool:
        pods = one.view().canary
        return pods is not None and pods.restarts >= 1 and pods.killed_for_memory >= 1

    one.settle(counted, "a restart and a kill")
    created = {p["metadata"]["name"]: p["metadata"]["creationTimestamp"] for p in one.app.pods()}
    started = one.view().started
    later = [n for n, at in started.items() if n in created and at > datetime.fromisoformat(created[n])]
    assert later


def test_a_failed_canary_is_kept_when_wanted_and_still_makes_way_for_the_next_release(rig: Made) -> None:
    one = rig("kept")
    one.canary = with_deployment(one, keep_failed=True)
    one.adopt()
    one.app.set_image("demo/app:v2-err50")
    one.roll_out()
    one.become(phase=Phase.ROLLED_BACK, weight=0, routed=datetime.now(UTC))
    assert one.shape(ahead=60) == ()
    assert one.wanted("kept") == 2
    one.app.set_image("demo/app:v3")
    one.begin()
    one.settle(lambda: one.view().ready, "the next one", ahead=11)
    assert one.images("kept") == {"demo/app:v3"}


def test_stable_that_cannot_run_the_new_template_fails_with_the_reason_and_a_retry_makes_new_pods(rig: Made) -> None:
    one = rig("failing")
    one.adopt()
    slow = {"spec": {"progressDeadlineSeconds": 4, "template": {"spec": {"nodeSelector": {"disk": "gold"}}}}}
    one.admin.patch("deployments", "failing", slow, kind="strategic")
    one.begin()
    one.shape()
    failed = one.promote()  # as a person may, against everything that is known
    assert failed.status is HookStatus.FAILED
    assert "Unschedulable" in failed.detail
    assert "demo/app:v1" in {c["image"] for p in one.app.pods() for c in p["spec"]["containers"]}
    stuck = {p["metadata"]["uid"] for p in _pods_of_stable(one) if not is_ready(p)}
    one.admin.patch("nodes", "bench-0", {"metadata": {"labels": {"disk": "gold"}}}, None)
    try:
        assert one.promote(number=2).status is HookStatus.DONE
    finally:
        one.admin.patch("nodes", "bench-0", {"metadata": {"labels": {"disk": None}}}, None)
    assert not stuck & {p["metadata"]["uid"] for p in _pods_of_stable(one)}


def _pods_of_stable(one: Rig) -> list[dict[str, Any]]:
    return one.app.pods(f"app={one.app.name},canaryd.io/role=stable")


# ── people and tools ─────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_released_by_applying_again_scaling_pausing_restarting_or_going_back(rig: Made) -> None:
    one = rig("again", replicas=2)
    one.adopt()
    revision = one.revision()
    kubectl = one.bench.kubectl
    sparse = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "again", "namespace": NAMESPACE},
        "spec": {
            "selector": {"matchLabels": {"app": "again"}},
            "template": {
                "metadata": {"labels": {"app": "again"}, "creationTimestamp": None},
                "spec": {
                    "containers": [
                        {
                            "name": "app",
                            "image": "demo/app:v1",
                            "ports": [{"name": "http", "containerPort": 9898, "protocol": "TCP"}],
                            "resources": {},
                            "imagePullPolicy": "IfNotPresent",
                        }
                    ],
                    "serviceAccount": "",
                    "securityContext": {},
                    "terminationGracePeriodSeconds": 30,
                },
            },
        },
    }
    deeds: dict[str, Callable[[], Any]] = {
        "apply": lambda: kubectl("apply", "-f", "-", "-n", NAMESPACE, stdin=json.dumps(sparse)),
        "apply again": lambda: kubectl("apply", "-f", "-", "-n", NAMESPACE, stdin=json.dumps(sparse)),
        "server-side apply": lambda: kubectl(
            "apply", "--server-side", "--force-conflicts", "-f", "-", "-n", NAMESPACE, stdin=json.dumps(sparse)
        ),
        "scale": lambda: kubectl("scale", "deployment/again", "--replicas=1", "-n", NAMESPACE),
        "pause": lambda: kubectl("rollout", "pause", "deployment/again", "-n", NAMESPACE),
        "resume": lambda: kubectl("rollout", "resume", "deployment/again", "-n", NAMESPACE),
        "restart": lambda: kubectl("rollout", "restart", "deployment/again", "-n", NAMESPACE),
        "annotate": lambda: kubectl("annotate", "deployment/again", "note=x", "-n", NAMESPACE),
    }
    for what, deed in deeds.items():
        deed()
        one.caught_up()
        assert one.revision() == revision, what
    kubectl("set", "image", "deployment/again", "app=demo/app:v2", "-n", NAMESPACE)
    assert one.wait_for_release() != revision
    kubectl("set", "image", "deployment/again", "app=demo/app:v1", "-n", NAMESPACE)
    one.caught_up()
    assert one.revision() == revision
    other = Rig(one.bench, one.eyes, one.app)  # a daemon that remembers nothing
    assert other.revision() == revision


def test_a_release_keeps_its_name_when_the_server_or_canaryd_would_spell_its_template_in_another_way(rig: Made) -> None:
    """What the annotation calls this generation counts, as after an upgrade of either."""
    one = rig("renamed")
    one.adopt()
    one.app.set_image("demo/app:v2")
    one.roll_out()
    one.become(phase=Phase.ROLLED_BACK, weight=0, routed=datetime.now(UTC))
    one.settle(lambda: one.wanted("renamed") == 0, "the canary to be scaled down", ahead=11)
    had = json.loads(objects.annotation(one.deployment(), objects.SEEN))
    assert had["generation"] == one.deployment()["metadata"]["generation"]
    had |= {"revision": "0123456789", "generation": had["generation"] + 1}  # as an older canaryd would have hashed it
    annotations = {"metadata": {"annotations": {objects.SEEN: json.dumps(had)}}}
    one.admin.patch("deployments", "renamed", annotations)
    one.caught_up()
    one.workloads = one.eyes.workloads()
    assert one.revision() == "0123456789"
    one.app.scale(1)  # a new generation of the same template, under our eyes
    one.caught_up()
    assert one.revision() == "0123456789"
    one.shape(ahead=11)
    one.bench.kubectl("annotate", "deployment/renamed", "note=x", "-n", NAMESPACE)
    one.caught_up()
    one.shape(ahead=11)
    one.caught_up()
    one.workloads = one.eyes.workloads()  # and over a restart
    assert one.revision() == "0123456789"
    stable = {"metadata": {"annotations": {objects.REVISION: "9876543210"}}}
    one.admin.patch("deployments", one.stable, stable)
    one.app.set_image("demo/app:v1")
    one.caught_up()
    assert one.revision() == "9876543210"  # what stable runs is never a release


def test_a_tool_that_scales_the_idle_canary_up_is_undone_five_times_an_hour_and_then_left_with_a_word(
    rig: Made,
) -> None:
    one = rig("fought")
    one.adopt()
    downs = 0
    for _ in range(9):
        one.app.scale(1)
        one.caught_up()
        one.shape(ahead=11)
        one.caught_up()
        if one.wanted("fought") == 1:
            break
        downs += 1
    assert downs == 5
    assert "left for a while" in one.view().detail
    assert one.shape(ahead=60) == ()
    one.shape(ahead=2 * 3600)
    assert one.wanted("fought") == 0


def test_a_person_who_scales_stable_to_zero_between_rollouts_is_obeyed_and_told(rig: Made) -> None:
    one = rig("off")
    one.adopt()
    one.bench.kubectl("scale", "deployment/off-stable", "--replicas=0", "-n", NAMESPACE)
    one.caught_up()
    assert one.shape(ahead=60) == ()
    assert "scaled off-stable, which serves, to 0" in one.view().detail


def test_a_canary_scaled_to_zero_comes_back_while_it_waits_and_is_seen_empty_when_it_has_traffic(rig: Made) -> None:
    one = rig("zero")
    one.adopt()
    one.app.set_image("demo/app:v2")
    one.begin()
    one.bring_up()
    one.app.scale(0)
    one.caught_up()
    one.settle(lambda: one.wanted("zero") == 2, "the canary back")
    one.bring_up()
    one.become(phase=Phase.PROGRESSING, step=0, weight=5)
    one.app.scale(0)
    one.caught_up()
    for _ in range(3):
        one.shape(ahead=60)
    assert one.wanted("zero") == 0
    one.settle(lambda: (v := one.view()).canary and v.canary.ready == 0, "no pods")
    assert not one.view().ready


def test_a_canary_that_somebody_resumes_is_paused_again_before_a_later_template_gets_far(rig: Made) -> None:
    one = rig("resumed")
    one.adopt()
    one.app.set_image("demo/app:v2")
    one.roll_out()
    one.bench.kubectl("rollout", "resume", "deployment/resumed", "-n", NAMESPACE)
    one.caught_up()
    one.shape()
    assert one.deployment()["spec"]["paused"]
    one.caught_up()
    assert one.view().ready


def test_a_deployment_that_is_gone_is_named(rig: Made) -> None:
    one = rig("gone")
    one.adopt()
    one.app.set_image("demo/app:v2")
    one.roll_out()
    one.admin.delete("deployments", "gone")
    one.caught_up()
    assert one.view().gone == "Deployment shop/gone does not exist"
    with pytest.raises(WorkloadError, match="shop/gone does not exist"):
        one.revision()
    one.shape()


def test_stable_that_somebody_deletes_is_made_again_with_what_was_proven(rig: Made) -> None:
    one = rig("deleted")
    one.adopt()
    one.app.set_image("demo/app:v2-err50")
    one.roll_out()
    one.admin.delete("deployments", one.stable)
    one.caught_up()
    one.shape()
    assert (one.image(one.stable), one.wanted(one.stable)) == ("demo/app:v1", 2)
    one.settle(lambda: one.view().ready, "stable to be back")
    assert one.view().stable_revision == one.state.stable_revision
