"""How a deleted Canary is let go: its plain service is brought back first, for as long as there is hope of that.

A namespace that is deleted takes canaryd's Role along. Its Canaries are let go as soon as that is seen, while it is
still permitted: nothing can be brought back where everything goes. Decides nothing about rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock

import structlog

from canaryd.config.objects import canary_of, key_of
from canaryd.errors import CanarydError, KubeError, KubeNotFoundError
from canaryd.kube.asking import JSON
from canaryd.kube.client import KubeClient
from canaryd.kube.informer import Reader
from canaryd.kube.kinds import CANARIES, NAMESPACES
from canaryd.model import DecisionKind, Record
from canaryd.policy import Canary, OnDelete
from canaryd.reconcile import Outcome
from canaryd.troubles import Troubles

log = structlog.get_logger("canaryd.daemon")

FINALIZER = "canaryd.io/restore"
ON_DELETE = "canaryd.io/on-delete"  # annotation: orphan
PATIENCE = timedelta(seconds=20)  # with what is only slow, before it is called a trouble


@dataclass(frozen=True, slots=True)
class Shell:
    """What parting needs of the daemon."""

    remove: Callable[[Canary, datetime], str]  # Reconciler.remove
    hold: Callable[[str, str], None]  # key and why: in the condition Ready
    tell: Callable[[Record], None]  # people


class Parting:
    """Made anew by each leader: the deadline is for one that is there and tries, not for an outage."""

    def __init__(self, client: KubeClient, canaries: Reader, shell: Shell, deadline: timedelta) -> None:
        self._client, self._canaries, self._shell, self._deadline = client, canaries, shell, deadline
        self._since: dict[str, datetime] = {}  # uid -> when it was first tried
        self._said: dict[str, str] = {}  # uid -> what was waited for when that was logged
        self._troubles = Troubles()
        self._suspect: frozenset[str] = frozenset()  # Canaries whose stable pods are all gone, or whose rights
        self._going: set[str] = set()  # namespaces that are being deleted
        self._lock = Lock()  # of `_suspect`

    def look(self, at: datetime) -> None:
        """One look at every deleted Canary, to be repeated every second."""
        for found in self._canaries.items():
            metadata = found["metadata"]
            if FINALIZER not in (metadata.get("finalizers") or ()):
                continue
            if "deletionTimestamp" not in metadata and metadata["namespace"] not in self._going:
                continue
            try:
                self._part_from(found, at)
            except CanarydError as e:
                self._wait(found, str(e), at, trouble=True)

    def may_guard(self, namespace: str) -> bool:
        """Whether a finalizer makes sense there; a namespace may have been made anew meanwhile."""
        if namespace in self._going and not self._is_going(namespace):
            self._going.discard(namespace)
        return namespace not in self._going

    def looked(self, outcomes: Iterable[Outcome]) -> None:
        """After a look at Canaries: where stable has lost all its pods, or canaryd a right, the namespace may be going.

        Its pods go first and are waited for (Kubernetes 1.33 and later); only then everything else, in no order.
        """
        outcomes = tuple(outcomes)
        suspect = {outcome.canary for outcome in outcomes if _is_suspect(outcome)}
        with self._lock:
            fresh = {key.partition("/")[0] for key in suspect - self._suspect}
            self._suspect = (self._suspect - {outcome.canary for outcome in outcomes}) | suspect
        self._going |= {namespace for namespace in fresh - self._going if self._is_going(namespace)}

    def _part_from(self, found: JSON, at: datetime) -> None:
        metadata = found["metadata"]
        key, uid = key_of(found), str(metadata["uid"])
        since = self._since.setdefault(uid, at)
        if since == at:
            change = self._going.add if self._is_going(metadata["namespace"]) else self._going.discard
            change(metadata["namespace"])
            if "deletionTimestamp" not in metadata and metadata["namespace"] not in self._going:
                return
        waits, trouble = "", False
        canary = canary_of(found)
        if metadata["namespace"] in self._going:
            log.warning("let go as it is", canary=key, reason="its namespace is being deleted")
        elif isinstance(canary, Canary) and not _is_orphan(found, canary):
            try:
                waits = self._shell.remove(canary, at)
            except CanarydError as e:
                waits, trouble = str(e), True
        if waits and at - since <= self._deadline:
            self._wait(found, waits, at, trouble=trouble)
            return
        if waits:
            self._give_up(key, waits, at)
        self._let_go(found, at)

    def _let_go(self, found: JSON, at: datetime) -> None:
        metadata = found["metadata"]
        namespace, name, uid = metadata["namespace"], metadata["name"], str(metadata["uid"])
        rest = [f for f in metadata["finalizers"] if f != FINALIZER]
        change = {"finalizers": rest or None, "resourceVersion": metadata["resourceVersion"]}
        answer = self._client.patch(CANARIES, namespace, name, {"metadata": change}, how="merge")
        if "deletionTimestamp" not in metadata:
            self._canaries.put(answer)
        for kept in (self._since, self._said):
            kept.pop(uid, None)
        self._troubles.told(key_of(found), "", at)
        log.info("let go", canary=key_of(found))

    def _give_up(self, key: str, waits: str, at: datetime) -> None:
        text = f"{key} is let go as it is, for its plain service could not be brought back in time: {waits}"
        log.error("left as it is", canary=key, reason=waits, after=str(self._deadline))
        body = {"severity": "warning"}
        self._shell.tell(Record(f"{key}/left/{at.isoformat()}", key, at, DecisionKind.HOLD, text, body))

    def _wait(self, found: JSON, waits: str, at: datetime, *, trouble: bool) -> None:
        """Log each new reason; one that lasts is told where people look: `kubectl describe`."""
        key, uid = key_of(found), str(found["metadata"]["uid"])
        if self._said.get(uid) != waits:
            self._said[uid] = waits
            log.info("being deleted", canary=key, waits=waits)
        lasts = trouble or at - self._since.get(uid, at) > PATIENCE
        text = self._troubles.due(Outcome(key, None, failed=f"being deleted: {waits}" if lasts else ""), at)
        if text is None:
            return
        self._troubles.told(key, text, at)
        if text:
            body = {"severity": "warning"}
            self._shell.tell(Record(f"{key}/parting/{at.isoformat()}", key, at, DecisionKind.HOLD, text, body))
        self._shell.hold(key, text)

    def _is_going(self, namespace: str) -> bool:
        """It is being deleted, or gone; its Roles go with it, so that nothing can be brought back in it."""
        try:
            return "deletionTimestamp" in self._client.get(NAMESPACES, "", namespace)["metadata"]
        except KubeNotFoundError:
            return True
        except KubeError:
            return False


def _is_suspect(outcome: Outcome) -> bool:
    """What serves has no pod left, or something is forbidden."""
    seen = outcome.seen
    if seen is None:
        return "forbidden" in outcome.failed
    pods = seen.workloads.stable if seen.workloads is not None else None
    emptied = pods is not None and pods.wanted > 0 and not pods.ready
    return emptied or any("forbidden" in text for text in seen.trouble)


def _is_orphan(found: JSON, canary: Canary) -> bool:
    said = (found["metadata"].get("annotations") or {}).get(ON_DELETE)
    deployment = canary.spec.workloads.deployment
    return said == OnDelete.ORPHAN or (
        said is None and deployment is not None and deployment.on_delete is OnDelete.ORPHAN
    )
