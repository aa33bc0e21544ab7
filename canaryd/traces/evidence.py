"""The part `traces` of a decision record: read, compared, and short enough to be sent to a chat.

It is gathered after the decision was saved and routed, by whoever delivers it, and it never fails: what could not be
had is said in `note`. Two searches at most, each within the time-out of its source; when a source does not answer,
it is left alone for a while, so that a hundred rollbacks in an outage do not wait a hundred times.

    {"note": "", "requests": {"canary": 40, "stable": 800},
     "exemplars": [{"trace", "url", "at", "service", "operation", "durationMs", "error", "status", "facts"}],
     "onlyCanaryFails": [{"service", "operation", "canaryErrors", "canaryN", "stableErrors", "stableN"}],
     "newCalls": [{"service", "operation", "canaryPerRequest", "stablePerRequest", "canaryN", "stableN"}],
     "criticalPath": [{"service", "operation", "canaryMs", "stableMs", "canaryN", "stableN"}]}
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from canaryd.errors import CanarydError
from canaryd.model import Arm, DecisionKind, Record
from canaryd.policy import Canary
from canaryd.ports import TraceAnswer, TraceSource
from canaryd.spans import Span
from canaryd.traces.asking import Asking
from canaryd.traces.compare import Comparison, only_canary_fails
from canaryd.traces.exemplars import Exemplar, exemplars
from canaryd.traces.requests import Request, requests

log = structlog.get_logger("canaryd.traces")

MOST = 5  # entries of each list
LARGEST = 6 * 1024  # bytes of the whole as JSON
WINDOW = timedelta(minutes=15)  # before the decision; younger traces first
ENOUGH = 2000  # traces of both arms
ENOUGH_OF_CANARY = 300  # traces with the canary in them
LEFT_ALONE_S = 60.0  # a source that did not answer

_DECIDED_AGAINST = frozenset({DecisionKind.ROLLBACK, DecisionKind.HOLD, DecisionKind.INCONCLUSIVE})


class TraceGatherer:
    """The port `TraceEvidence` over a trace source. May be used from several threads."""

    def __init__(self, source: TraceSource, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds that only grow."""
        self._source, self._clock = source, clock
        self._trouble = ""
        self._until = float("-inf")
        self._lock = threading.Lock()

    def of(self, record: Record, canary: Canary) -> Mapping[str, Any] | None:
        """See the port: of a rollback, and of a hold because something regressed."""
        if not is_wanted(record):
            return None
        with self._lock:
            if self._clock() < self._until:
                return {"note": f"no traces: {self._trouble} (not asked again)"}
        try:
            return gather(self._source, Asking.about(canary, record.body), *window_of(record.body, record.at))
        except CanarydError as e:
            with self._lock:
                self._trouble, self._until = str(e), self._clock() + LEFT_ALONE_S
            log.warning("no traces", canary=canary.key, record=record.id, reason=str(e))
            return {"note": f"no traces: {e}"}
        except Exception as e:  # a defect here must not keep anybody from being told
            log.exception("defect", canary=canary.key)
            return {"note": f"no traces: defect: {type(e).__name__}"}


def is_wanted(record: Record) -> bool:
    """This record tells of a decision against the canary because of what was measured."""
    findings = record.body.get("findings") or ()
    regressed = any(f.get("verdict") == "regressed" for f in findings)
    return record.kind is DecisionKind.ROLLBACK or (record.kind in _DECIDED_AGAINST and regressed)


def window_of(body: Mapping[str, Any], at: datetime) -> tuple[datetime, datetime]:
    """The time in which traces are looked for: since the rollout began, at most WINDOW before `at`."""
    since = body.get("since")
    started = datetime.fromisoformat(since) if since else at - WINDOW
    return max(started, at - WINDOW), at


def gather(source: TraceSource, asking: Asking, start: datetime, end: datetime) -> dict[str, Any]:
    """What traces say of (start, end]. Raises SourceError when the source could not be asked at all."""
    both = source.find(asking.query(start, end, limit=ENOUGH, newest=True))
    spans, notes = both.spans, [both.note]
    found = requests(spans, asking.service)
    of_canary = sum(r.arm is Arm.CANARY for r in found)
    if not both.complete and of_canary < ENOUGH_OF_CANARY:
        more = _of_canary(source, asking, start, end)
        spans, notes = _joined(spans, more.spans), [both.note, more.note]
        found = requests(spans, asking.service)
    return shown(source, found, [*notes, *_explained(asking, spans, found)])


def _of_canary(source: TraceSource, asking: Asking, start: datetime, end: datetime) -> TraceAnswer:
    """At a small weight the newest traces of both hold few of the canary's. Without them there is still something."""
    try:
        return source.find(asking.query(start, end, arm=Arm.CANARY, limit=ENOUGH_OF_CANARY, newest=True))
    except CanarydError as e:
        return TraceAnswer((), complete=False, note=str(e))


def _joined(first: Sequence[Span], second: Sequence[Span]) -> tuple[Span, ...]:
    """Whole traces, each once."""
    there = {span.trace for span in first}
    return (*first, *(span for span in second if span.trace not in there))


def _explained(asking: Asking, spans: Sequence[Span], found: Sequence[Request]) -> list[str]:
    """Why there is less to see than one would expect."""
    if not spans:
        return [f"no traces of the service {asking.service}"]
    own = [s for s in spans if s.service == asking.service]
    missing = [arm for arm in Arm if not any(r.arm is arm for r in found)]
    if not missing:
        left_out = Comparison(found).left_out
        return [f"{left_out} canary requests of operations that stable was not asked for are not compared"] * (
            left_out > 0
        )
    seen = sorted({s.revision for s in own if s.arm is None and s.revision})[:5]
    said = f"; spans of neither arm say {', '.join(seen)}" if seen else ""
    wanted = asking.arms.tag or "istio.canonical_revision, service.version or the pod"
    return [f"no spans of {' and '.join(missing)} (told by {wanted}){said}"]


def shown(source: TraceSource, found: Sequence[Request], notes: Sequence[str]) -> dict[str, Any]:
    """Requests of both arms as plain JSON values, not larger than LARGEST."""
    only = only_canary_fails(found)
    compared = Comparison(found)
    picked = exemplars(found, MOST, {o.operation for o in only})
    out: dict[str, Any] = {
        "note": "; ".join(dict.fromkeys(filter(None, notes)))[:600],
        "requests": {str(arm): sum(r.arm is arm for r in found) for arm in Arm},
        "exemplars": [_exemplar(source, one) for one in picked],
        "onlyCanaryFails": [
            {
                **_named(o.operation),
                "canaryErrors": o.canary_errors,
                "canaryN": o.canary_n,
                "stableErrors": 0,
                "stableN": o.stable_n,
            }
            for o in only[:MOST]
        ],
        "newCalls": [
            {
                **_named(c.operation),
                "canaryPerRequest": round(c.canary, 3),
                "stablePerRequest": round(c.stable, 3),
                "canaryN": c.canary_n,
                "stableN": c.stable_n,
            }
            for c in compared.new_calls()[:MOST]
        ],
        "criticalPath": [
            {
                **_named(t.operation),
                "canaryMs": round(t.canary_ms, 3),
                "stableMs": round(t.stable_ms, 3),
                "canaryN": t.canary_n,
                "stableN": t.stable_n,
            }
            for t in compared.extra_time()[:MOST]
        ],
    }
    return _fitted(out)


def _named(operation: tuple[str, str]) -> dict[str, str]:
    return {"service": operation[0], "operation": operation[1]}


def _exemplar(source: TraceSource, one: Exemplar) -> dict[str, Any]:
    span, cause = one.span, one.cause
    facts = {k: v for k, v in span.facts.items() if k not in ("http.status_code", "http.method")}
    if cause is not None:
        status = cause.facts.get("http.status_code", "")
        facts["cause"] = " ".join(filter(None, (cause.service, cause.operation, status, cause.facts.get("message"))))[
            :200
        ]
    if span.pod:
        facts["pod"] = span.pod
    return {
        "trace": span.trace,
        "url": source.url(span.trace),
        "at": datetime.fromtimestamp(span.start / 1e9, UTC).isoformat(timespec="milliseconds"),
        **_named((span.service, span.operation)),
        "durationMs": round(span.duration, 3),
        "error": span.error,
        "status": span.facts.get("http.status_code", ""),
        "facts": facts,
    }


def _fitted(out: dict[str, Any]) -> dict[str, Any]:
    """Cut until it is small enough: facts first, then the last entries of the longest list."""
    lists = ("exemplars", "newCalls", "criticalPath", "onlyCanaryFails")
    while len(json.dumps(out).encode()) > LARGEST:
        with_facts = [e for e in out["exemplars"] if e["facts"]]
        if with_facts:
            with_facts[-1]["facts"] = {}
        else:
            max((out[name] for name in lists), key=len).pop()
    return out
