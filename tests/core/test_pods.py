"""What is read from pods: whose they are, why they are not ready, what happened to them since a rollout began."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from canaryd.deployments import pods
from canaryd.deployments.pods import Tally

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def at(seconds: float) -> str:
    return (T0 + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def container(name: str = "app", *, ready: bool = True, restarts: int = 0, **states: Any) -> dict[str, Any]:
    state = states.pop("state", {"running": {"startedAt": at(0)}})
    return {"name": name, "ready": ready, "restartCount": restarts, "state": state, **states}


def pod(
    name: str = "api-abc12-x",
    owner: str = "api-abc12",
    hashed: str = "abc12",
    *containers: dict[str, Any],
    ready: bool = True,
    **status: Any,
) -> dict[str, Any]:
    conditions = status.pop("conditions", [{"type": "Ready", "status": "True" if ready else "False"}])
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": at(-60),
            "labels": {"app": "api", "pod-template-hash": hashed},
            "ownerReferences": [{"kind": "ReplicaSet", "name": owner, "controller": True}],
        },
        "spec": {"containers": []},
        "status": {
            "phase": "Running",
            "startTime": at(-50),
            "conditions": conditions,
            "containerStatuses": list(containers) or [container()],
            **status,
        },
    }


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return container(ready=False, state={"waiting": {"reason": reason, "message": message}}, **more)


# ── whose ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pods_go_by_their_owner_even_where_names_and_labels_overlap() -> None:
    mine, stables = pod(), pod("api-stable-abc12-y", "api-stable-abc12")
    foreign, bare = pod("api-abc12-z", "api-other"), pod()
    del bare["metadata"]["ownerReferences"]
    everything = [mine, stables, foreign, bare]
    assert pods.of("api", everything) == [mine]
    assert pods.of("api-stable", everything) == [stables]
    assert pods.of("api", everything, "zzz") == []


@pytest.mark.parametrize("end", [{"phase": "Failed"}, {"phase": "Succeeded"}, {"deleted": True}])
def test_pods_that_leave_or_have_ended_do_not_count(end: dict[str, Any]) -> None:
    leaving = pod(**{k: v for k, v in end.items() if k == "phase"})
    if end.get("deleted"):
        leaving["metadata"]["deletionTimestamp"] = at(1)
    assert pods.of("api", [leaving]) == []


# ── why not ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("unready", "said"),
    [
        pytest.param(
            pod("a", "o", "h", waiting("ImagePullBackOff", 'Back-off pulling image "shop/api:2"'), ready=False),
            'ImagePullBackOff: Back-off pulling image "shop/api:2"',
            id="image",
        ),
        pytest.param(
            pod("a", "o", "h", waiting("CreateContainerConfigError", 'secret "x" not found'), ready=False),
            'CreateContainerConfigError: secret "x" not found',
            id="config",
        ),
        pytest.param(
            pod(
                "a",
                "o",
                "h",
                waiting(
                    "CrashLoopBackOff", restarts=3, lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
                ),
                ready=False,
            ),
            "CrashLoopBackOff: container app OOMKilled with exit code 137, 3 restarts",
            id="crash",
        ),
        pytest.param(
            pod(
                "a",
                "o",
                "h",
                ready=False,
                phase="Pending",
                conditions=[
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes fit"}
                ],
                containerStatuses=[],
            ),
            "Unschedulable: 0/3 nodes fit",
            id="nowhere",
        ),
        pytest.param(
            pod("a", "o", "h", container(ready=False), ready=False),
            "container app runs, but is not ready: its readiness probe has not passed",
            id="probe",
        ),
        pytest.param(
            pod("a", "o", "h", waiting("ContainerCreating"), ready=False), "1 of 2 pods are not ready yet", id="young"
        ),
    ],
)
def test_the_reason_why_a_pod_is_not_ready_is_said_in_the_clusters_words(unready: dict[str, Any], said: str) -> None:
    assert pods.trouble([pod(), unready]) == said
    assert pods.trouble([pod()]) == ""


def test_of_several_reasons_the_worst_is_said_and_a_long_one_is_cut() -> None:
    slow = pod("a", "o", "h", container(ready=False), ready=False)
    crash = pod("b", "o", "h", waiting("CrashLoopBackOff"), ready=False)
    assert pods.trouble([slow, crash]).startswith("CrashLoopBackOff")
    assert len(pods.trouble([pod("c", "o", "h", waiting("ErrImagePull", "x" * 5000), ready=False)])) <= 300


def test_a_container_that_ends_again_and_again_is_hopeless_and_one_that_starts_slowly_is_not() -> None:
    slow = pod("a", "o", "h", container(ready=False), ready=False)
    lost = pod("b", "o", "h", waiting("CrashLoopBackOff", restarts=5), ready=False)
    assert pods.hopeless([slow]) == ""
    assert "CrashLoopBackOff" in pods.hopeless([slow, lost])


def test_pods_that_cannot_even_be_made_are_explained_by_their_deployment() -> None:
    refused = {
        "status": {
            "conditions": [
                {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota: cpu"}
            ]
        }
    }
    seen = pods.summary(3, [pod()], Tally(None), refused)
    assert (seen.wanted, seen.ready, seen.trouble) == (3, 1, "FailedCreate: exceeded quota: cpu")


# ── when ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pod_starts_when_its_youngest_container_started() -> None:
    both = pod("a", "o", "h", container(), container("proxy", state={"running": {"startedAt": at(90)}}))
    assert pods.started(both) == T0 + timedelta(seconds=90)
    assert pods.started(pod("b", "o", "h", waiting("ContainerCreating"))) == T0 - timedelta(seconds=50)


def test_a_proxy_that_is_an_init_container_and_stays_counts_like_any_other() -> None:
    made = pod("a", "o", "h", container())
    made["spec"]["initContainers"] = [{"name": "proxy", "restartPolicy": "Always"}, {"name": "migrate"}]
    made["status"]["initContainerStatuses"] = [
        container("proxy", state={"running": {"startedAt": at(30)}}),
        container("migrate", state={"terminated": {"exitCode": 0}}, restarts=9),
    ]
    assert pods.started(made) == T0 + timedelta(seconds=30)
    assert Tally(None).count([made]) == (0, 0)


# ── what happened ────────────────────────────────────────────────────────────────────────────────────────────


def ended(seconds: float, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": 1, "reason": reason, "finishedAt": at(seconds)}}


def test_restarts_of_before_the_rollout_do_not_count_and_those_since_do() -> None:
    tally = Tally(T0)
    assert tally.count([pod("a", "o", "h", container(restarts=7, lastState=ended(-10)))]) == (0, 0)
    assert tally.count([pod("a", "o", "h", container(restarts=9, lastState=ended(20)))]) == (2, 0)


def test_a_daemon_that_starts_later_counts_the_one_restart_that_it_can_still_see() -> None:
    assert Tally(T0).count([pod("a", "o", "h", container(restarts=7, lastState=ended(20)))]) == (1, 0)


def test_all_restarts_of_a_pod_of_the_rollout_count_at_the_first_look() -> None:
    young = pod("a", "o", "h", container(restarts=4, lastState=ended(20)))
    young["metadata"]["creationTimestamp"] = at(5)
    assert Tally(T0).count([young]) == (4, 0)


def test_each_kill_for_memory_counts_once_and_is_not_forgotten_when_another_end_follows() -> None:
    tally = Tally(T0)
    first = pod("a", "o", "h", container(restarts=1, lastState=ended(10, "OOMKilled")))
    assert [tally.count([first])[1] for _ in range(3)] == [1, 1, 1]
    assert tally.count([pod("a", "o", "h", container(restarts=2, lastState=ended(30, "OOMKilled")))])[1] == 2
    assert tally.count([pod("a", "o", "h", container(restarts=3, lastState=ended(40)))])[1] == 2
    assert tally.count([pod("b", "o", "h", container(restarts=3, lastState=ended(-40, "OOMKilled")))])[1] == 2


def test_a_ready_pod_is_reached_only_when_it_is_a_ready_endpoint() -> None:
    found = [pod("api-abc12-a"), pod("api-abc12-b"), pod("api-abc12-c"), pod("api-abc12-d", ready=False)]
    slices: list[dict[str, Any]] = [
        {"endpoints": [{"targetRef": {"name": "api-abc12-a"}, "conditions": {"ready": True}}]},
        {"endpoints": [{"targetRef": {"name": "api-abc12-b"}, "conditions": {"ready": False}}, {"addresses": ["::1"]}]},
        {"endpoints": None},
    ]
    assert pods.unreached(found, slices) == ["api-abc12-b", "api-abc12-c"]
    assert pods.unreached(found, []) == ["api-abc12-a", "api-abc12-b", "api-abc12-c"]
