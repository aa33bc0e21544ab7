"""Tells people through Events on the Canary: what `kubectl describe canary` and `kubectl get events` show.

One Event for each record, under a name that follows from the record, so that telling it again changes nothing. A Canary
whose decisions come thick and fast gets its first ones and then few, but what began, ended or undid a promotion is
always told. It reads nothing but whether the Canary is still there.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from hashlib import sha256
from threading import Lock
from typing import Any

import structlog

from canaryd.errors import (
    KubeError,
    KubeExistsError,
    KubeForbiddenError,
    KubeInvalidError,
    KubeNotFoundError,
    NotifyError,
)
from canaryd.kube.client import KubeClient
from canaryd.kube.informer import Reader
from canaryd.kube.kinds import CANARIES, EVENTS
from canaryd.model import DecisionKind, Record

JSON = dict[str, Any]

CONTROLLER = "canaryd.io/canaryd"
AT_ONCE = 25  # Events of one Canary
REFILL_S = 300.0  # for each further one
NOTE_BYTES = 1024  # the API server refuses longer ones
COMPLAINT_S = 600.0  # between two complaints that Events are forbidden

NORMAL, WARNING = "Normal", "Warning"

# Decision → reason and action of its Event.
REASONS: Mapping[DecisionKind, tuple[str, str]] = {
    DecisionKind.IDLE: ("NothingToRollOut", "Watch"),
    DecisionKind.ADOPT: ("Adopted", "Adopt"),
    DecisionKind.START: ("RolloutStarted", "RollOut"),
    DecisionKind.RESTART: ("RolloutRestarted", "RollOut"),
    DecisionKind.REVERT: ("RolloutReverted", "Revert"),
    DecisionKind.WAIT: ("WaitingForWorkloads", "Wait"),
    DecisionKind.HOLD: ("Held", "Hold"),
    DecisionKind.ADVANCE: ("StepAdvanced", "ShiftTraffic"),
    DecisionKind.PROMOTE: ("PromotionStarted", "Promote"),
    DecisionKind.SUCCEED: ("Promoted", "Promote"),
    DecisionKind.ROLLBACK: ("RollbackStarted", "RollBack"),
    DecisionKind.ROLLED_BACK: ("RolledBack", "RollBack"),
    DecisionKind.BLIND: ("SightLost", "Hold"),
    DecisionKind.BLIND_DEADLINE: ("BlindTooLong", "Hold"),
    DecisionKind.RESUMED: ("SightRegained", "Analyse"),
    DecisionKind.INCONCLUSIVE: ("Inconclusive", "Hold"),
    DecisionKind.DRIFT: ("WeightDrifted", "RestoreWeight"),
    DecisionKind.CONTESTED: ("WeightContested", "LeaveWeight"),
    DecisionKind.OVERRIDE: ("OverrideAccepted", "Override"),
    DecisionKind.REFUSED: ("OverrideRefused", "Override"),
    DecisionKind.HOOK: ("HookReported", "RunHook"),
}
_ALWAYS = frozenset({DecisionKind.ROLLBACK, DecisionKind.ROLLED_BACK, DecisionKind.PROMOTE, DecisionKind.SUCCEED})
_BUCKETS = 4096  # Canaries whose pace is kept in mind


@dataclass(slots=True)
class _Bucket:
    """Events that one Canary may have now."""

    tokens: float
    at: float  # on the clock

    def fill(self, now: float) -> None:
        self.tokens = min(float(AT_ONCE), self.tokens + (now - self.at) / REFILL_S)
        self.at = now


class KubernetesEvents:
    """ports.Notifier. `canaries` are the Canary objects; `instance` tells this daemon from others; `clock` in seconds.

    `dropped` counts the records that were not told because their Canary had too many, or because Events are forbidden:
    that is complained about once, and then again after ten minutes; the records count as told, so that what other
    notifiers have to say is not held up for ever.
    """

    name = "events"

    def __init__(
        self,
        client: KubeClient,
        canaries: Reader,
        *,
        instance: str = "canaryd",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dropped = 0
        self._client = client
        self._canaries = canaries
        self._instance = instance[:128]
        self._clock = clock
        self._lock = Lock()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._complained: float | None = None
        self._log = structlog.get_logger("canaryd.events")

    def probe(self) -> str:
        return "Events are written by the right that canaryd doctor asks for elsewhere"

    def notify(self, record: Record) -> None:
        """Raises NotifyError when the API server could not be asked; a Canary that is gone needs to be told nothing."""
        namespace, _, name = record.canary.rpartition("/")
        try:
            canary = self._canaries.get(namespace, name)
        except KubeError as e:
            raise NotifyError(f"the Event of {record.id}: {e}") from e
        if canary is None:
            return
        uid = str(canary["metadata"]["uid"])
        if not self._may(record, uid):
            return
        try:
            self._client.create(EVENTS, namespace, event(record, canary, self._instance))
        except (KubeExistsError, KubeNotFoundError):  # told before; or the namespace is gone
            return
        except KubeForbiddenError as e:
            self._forbidden(record, e)
            return
        except KubeInvalidError as e:  # repeating it would help nobody
            self._log.error("an Event is refused", record=record.id, error=str(e))
            return
        except KubeError as e:
            raise NotifyError(f"the Event of {record.id}: {e}") from e
        self._spend(record, uid)

    def _may(self, record: Record, uid: str) -> bool:
        if record.kind in _ALWAYS:
            return True
        with self._lock:
            now = self._clock()
            bucket = self._buckets.setdefault(uid, _Bucket(AT_ONCE, now))
            self._buckets.move_to_end(uid)
            if len(self._buckets) > _BUCKETS:
                self._buckets.popitem(last=False)
            bucket.fill(now)
            if bucket.tokens >= 1:
                return True
            self.dropped += 1
        self._log.info("no Event, there were too many", record=record.id, canary=record.canary)
        return False

    def _spend(self, record: Record, uid: str) -> None:
        with self._lock:
            bucket = self._buckets.get(uid)
            if bucket is not None and record.kind not in _ALWAYS:
                bucket.tokens -= 1

    def _forbidden(self, record: Record, refused: KubeError) -> None:
        """Complains at first; afterwards the record counts as told."""
        with self._lock:
            now = self._clock()
            if self._complained is None or now - self._complained >= COMPLAINT_S:
                self._complained = now
                raise NotifyError(f"the Event of {record.id}: {refused}") from refused
            self.dropped += 1


def event(record: Record, canary: JSON, instance: str) -> JSON:
    """The Event of a record about a Canary object. Pure."""
    meta = canary["metadata"]
    reason, action = REASONS[record.kind]
    severity = record.body.get("severity")
    told = f"{meta['uid']} {record.id} {record.at.isoformat()}"
    return {
        "apiVersion": EVENTS.api_version,
        "kind": EVENTS.kind,
        "metadata": {
            "name": f"{meta['name']}.{sha256(told.encode()).hexdigest()[:16]}",
            "namespace": meta["namespace"],
            "labels": {"canaryd.io/managed-by": "canaryd", "canaryd.io/canary": meta["name"]},
        },
        "eventTime": record.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": CONTROLLER,
        "reportingInstance": instance,
        "type": WARNING if severity in ("warning", "critical") else NORMAL,
        "reason": reason,
        "action": action,
        "note": _note(record.sentence),
        "regarding": {
            "apiVersion": CANARIES.api_version,
            "kind": CANARIES.kind,
            "namespace": meta["namespace"],
            "name": meta["name"],
            "uid": meta["uid"],
            "resourceVersion": meta["resourceVersion"],
        },
    }


def _note(sentence: str) -> str:
    data = sentence.encode(errors="replace")
    if len(data) <= NOTE_BYTES:
        return data.decode()
    return data[: NOTE_BYTES - 3].decode(errors="ignore") + "…"
