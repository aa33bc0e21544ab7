"""Pods as facts: whose they are, whether they serve, when they started, what is wrong with them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from canaryd.model import Pods

JSON = dict[str, Any]

HASH = "pod-template-hash"  # the label by which a Deployment tells its templates apart
_SAID = 300  # characters of a reason


def of(deployment: str, pods: Iterable[JSON], template: str = "") -> list[JSON]:
    """The pods of a Deployment that are not being deleted; with `template`, only those of that pod-template-hash.

    A pod is told by its owner, never by labels alone: the pods of two Deployments may have the same ones.
    """
    return [
        pod
        for pod in pods
        if deployment_of(pod) == deployment and template in ("", template_hash(pod)) and not leaving(pod)
    ]


def owner(pod: JSON) -> str:
    """The ReplicaSet that made it; "" when none did."""
    for reference in pod["metadata"].get("ownerReferences") or ():
        if reference.get("controller") and reference.get("kind") == "ReplicaSet":
            return str(reference.get("name", ""))
    return ""


def deployment_of(pod: JSON) -> str:
    """The Deployment that a pod belongs to; "" when it is none's."""
    hashed, made_by = template_hash(pod), owner(pod)
    return made_by.removesuffix(f"-{hashed}") if hashed and made_by.endswith(f"-{hashed}") else ""


def template_hash(pod: JSON) -> str:
    return str((pod["metadata"].get("labels") or {}).get(HASH, ""))


def leaving(pod: JSON) -> bool:
    """It is being deleted, or has ended for good."""
    phase = (pod.get("status") or {}).get("phase")
    return "deletionTimestamp" in pod["metadata"] or phase in ("Succeeded", "Failed")


def is_ready(pod: JSON) -> bool:
    return _condition(pod, "Ready").get("status") == "True"


def unreached(pods: Iterable[JSON], slices: Iterable[JSON]) -> list[str]:
    """Names of the ready pods that are no ready endpoint in any of these EndpointSlices."""
    reached = {
        str((endpoint.get("targetRef") or {}).get("name", ""))
        for one in slices
        for endpoint in one.get("endpoints") or ()
        if (endpoint.get("conditions") or {}).get("ready") is not False
    }
    return [pod["metadata"]["name"] for pod in pods if is_ready(pod) and pod["metadata"]["name"] not in reached]


def started(pod: JSON) -> datetime | None:
    """When the youngest of its containers was started: one that was restarted has everything still before it."""
    times = [_time((c.get("state") or {}).get("running", {}).get("startedAt")) for c in _containers(pod)]
    known = [t for t in times if t is not None]
    return max(known) if known else _time((pod.get("status") or {}).get("startTime"))


def trouble(pods: Sequence[JSON]) -> str:
    """Why some are not ready, for people; "" when all are."""
    waiting = [pod for pod in pods if not is_ready(pod)]
    if not waiting:
        return ""
    reasons = [reason for pod in waiting if (reason := _trouble(pod))]
    if reasons:
        return min(reasons)[1][:_SAID]
    return f"{len(waiting)} of {len(pods)} pods are not ready yet"


def hopeless(pods: Sequence[JSON], restarts: int = 5) -> str:
    """Why these will not become ready, when a container has ended so often that waiting is no use; else ""."""
    for pod in pods:
        for container in _containers(pod):
            if int(container.get("restartCount") or 0) >= restarts and not container.get("ready"):
                return trouble([pod]) or f"{container.get('name')} ended {container.get('restartCount')} times"
    return ""


def _trouble(pod: JSON) -> tuple[int, str] | None:
    """The worst reason of one pod, the smaller the number the worse."""
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return 3, _with(str(scheduled.get("reason") or "Unschedulable"), scheduled.get("message"))
    found: list[tuple[int, str]] = []
    for container in _containers(pod):
        state = container.get("state") or {}
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        reason = str(waiting.get("reason") or "")
        if reason == "CrashLoopBackOff":
            last = (container.get("lastState") or {}).get("terminated") or {}
            found.append((1, f"CrashLoopBackOff: {_ended(container, last)}"))
        elif reason and reason not in ("ContainerCreating", "PodInitializing"):
            found.append((2, _with(reason, waiting.get("message"))))
        elif ended and int(ended.get("exitCode") or 0) and container in _main(pod):
            found.append((1, _ended(container, ended)))
    if not found and any((c.get("state") or {}).get("running") and not c.get("ready") for c in _main(pod)):
        name = next(str(c.get("name")) for c in _main(pod) if not c.get("ready"))
        return 5, f"container {name} runs, but is not ready: its readiness probe has not passed"
    return min(found, default=None)


def _ended(container: JSON, last: JSON) -> str:
    reason = str(last.get("reason") or "ended")
    code = f" with exit code {last['exitCode']}" if "exitCode" in last else ""
    return f"container {container.get('name')} {reason}{code}, {int(container.get('restartCount') or 0)} restarts"


def _with(reason: str, message: object) -> str:
    return f"{reason}: {message}" if message else reason


def _main(pod: JSON) -> list[JSON]:
    return list((pod.get("status") or {}).get("containerStatuses") or ())


def _containers(pod: JSON) -> list[JSON]:
    """Of those that run all the time; init containers that stay are among them."""
    status = pod.get("status") or {}
    stay = {c["name"] for c in pod.get("spec", {}).get("initContainers") or () if c.get("restartPolicy") == "Always"}
    return [c for c in status.get("initContainerStatuses") or () if c.get("name") in stay] + _main(pod)


def _condition(pod: JSON, kind: str) -> JSON:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if c.get("type") == kind), {})


def _time(text: object) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) and text else None


# ── what happened since a rollout began ──────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Tally:
    """Restarts and kills of one Deployment's pods since an instant, over looks that see only the latest of each.

    Pods that were there before count from what they had when first looked at, less one when the latest end is of
    after that instant. What happened to a pod between two looks and to its disappearance is not known.
    """

    since: datetime | None
    _base: dict[tuple[str, str], int] = field(default_factory=dict)  # (pod uid, container) → restarts before
    _kills: dict[tuple[str, str], set[str]] = field(default_factory=dict)  # → ends by the kernel

    def count(self, pods: Sequence[JSON]) -> tuple[int, int]:
        """Restarts, and containers that the kernel ended for memory."""
        restarts = 0
        for pod in pods:
            uid = str(pod["metadata"].get("uid", ""))
            for container in _containers(pod):
                key = (uid, str(container.get("name")))
                count = int(container.get("restartCount") or 0)
                restarts += max(0, count - self._base.setdefault(key, self._before(pod, container, count)))
                for end in self._ends(container):
                    if end.get("reason") == "OOMKilled":
                        self._kills.setdefault(key, set()).add(str(end.get("finishedAt")))
        return restarts, sum(len(ends) for ends in self._kills.values())

    def _before(self, pod: JSON, container: JSON, count: int) -> int:
        made = _time(pod["metadata"].get("creationTimestamp"))
        if self.since is None or (made is not None and made >= self.since):
            return 0
        return max(0, count - bool(self._ends(container)))

    def _ends(self, container: JSON) -> list[JSON]:
        states = ((container.get(key) or {}).get("terminated") for key in ("state", "lastState"))
        ends = [end for end in states if end]
        if self.since is None:
            return ends
        return [end for end in ends if (at := _time(end.get("finishedAt"))) is not None and at >= self.since]


def summary(wanted: int, pods: Sequence[JSON], tally: Tally, deployment: JSON | None = None) -> Pods:
    """One workload's pods as the model has them."""
    restarts, killed = tally.count(pods)
    why = trouble(pods)
    if not why and deployment is not None and len(pods) < wanted:
        why = refused(deployment)
    return Pods(wanted, sum(map(is_ready, pods)), restarts, killed, why)


def refused(deployment: JSON) -> str:
    """Why its pods cannot even be made (a quota, an admission rule); "" when they can."""
    found = _condition(deployment, "ReplicaFailure")
    return _with(str(found.get("reason")), found.get("message"))[:_SAID] if found.get("status") == "True" else ""
