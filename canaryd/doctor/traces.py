"""Whether traces would say anything about a release: Jaeger, its API, spans of both arms, sampled alike, its clock.

`CHECKS` plugs into the doctor's further checks. Nothing is said where no trace source is set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from math import sqrt
from typing import TYPE_CHECKING, Any, Protocol

from canaryd import wording
from canaryd.counts import increments
from canaryd.doctor.findings import Check, Finding, error, fine, warning
from canaryd.errors import SourceError
from canaryd.model import Arm
from canaryd.policy import Canary
from canaryd.ports import TraceAnswer, TraceSource
from canaryd.spans import nanoseconds
from canaryd.traces.asking import Asking
from canaryd.traces.requests import Request, requests

if TYPE_CHECKING:
    from canaryd.config import Settings

PAST = timedelta(minutes=10)
SAMPLE = 500  # traces that are looked at
CLOCK_SLACK = timedelta(seconds=5)
SIGMAS = 4.0  # a share of the arms' spans that is so far from that of their requests is no chance
FEW = 30  # requests with spans, fewer than which say nothing of a share


class Subject(Protocol):
    """One Canary, and the workloads in their present roles."""

    canary: Canary
    about: str  # how it is called in findings
    stable: str
    workload: str


class Site(Protocol):
    """What is looked at."""

    @property
    def settings(self) -> Settings | None: ...
    @property
    def subjects(self) -> Sequence[Any]: ...
    @property
    def at(self) -> datetime: ...


def reachable(source: TraceSource) -> Iterator[Finding]:
    """It answers, and how it wants to be asked."""
    api: Callable[[], Any] | None = getattr(source, "api", None)
    if api is None:
        return
    try:
        yield fine(f"Jaeger answers: {api().value}")
    except SourceError as reason:
        why = "decisions are made all the same, but nobody is shown the traces, and metrics of kind traces are blind"
        yield error(str(reason), why, "see to traces.jaeger in canaryd.yaml, and to the query service")


def spans(subject: Subject, source: TraceSource, at: datetime, weight: float | None = None) -> Iterator[Finding]:
    """What the last minutes hold of one Canary. `weight`: percent of requests that the canary gets; None: not known."""
    body = {"workloads": {"stable": subject.stable, "canary": subject.workload}}
    asking = Asking.about(subject.canary, body)
    end = at - source.lag
    try:
        answer = source.find(asking.query(end - PAST, end, limit=SAMPLE, newest=True))
        young = source.find(asking.query(end, at + timedelta(minutes=1), limit=20, newest=True))
    except SourceError as reason:
        yield warning(str(reason), "what traces say of a release cannot be shown", "see to Jaeger", subject.about)
        return
    found = requests(answer.spans, asking.service)
    yield from _there(subject, source, asking, answer, found, expected=bool(weight))
    yield from _alike(subject, found, weight)
    yield from _clock(subject, young, at, asking.service)


def _there(
    subject: Subject,
    source: TraceSource,
    asking: Asking,
    answer: TraceAnswer,
    found: Sequence[Request],
    *,
    expected: bool,
) -> Iterator[Finding]:
    if not answer.spans:
        services: Callable[[], Sequence[str]] = getattr(source, "services", tuple)
        known = ", ".join(list(services())[:10])
        remedy = f"is it called otherwise? There are: {known}" if known else "does anything send spans there?"
        yield warning(
            f"no spans of the service {asking.service} in the last ten minutes",
            "its releases have no traces to look at",
            f"{remedy}. A metric of kind traces says what it is called (service)",
            subject.about,
        )
        return
    for arm, needed in ((Arm.STABLE, True), (Arm.CANARY, expected)):
        n = sum(r.arm is arm for r in found)
        if n:
            yield fine(f"{wording.plural(n, f'request of {arm}', f'requests of {arm}')} with spans", subject.about)
        elif needed:
            told = asking.arms.tag or "istio.canonical_revision, service.version or the pod's name"
            seen = sorted({s.revision for s in answer.spans if s.service == asking.service and s.revision})[:5]
            said = f"spans say {', '.join(seen)}" if seen else "spans say nothing there"
            yield warning(
                f"no spans of {arm}, told by {told}: {said}",
                "the arms cannot be compared",
                "label the pods with a version, or give the tag and its values in a metric of kind traces",
                subject.about,
            )
    if answer.note and "traces are enough" not in answer.note:
        yield warning(answer.note, "what traces say may be incomplete", "see to what sends the spans", subject.about)


def _alike(subject: Subject, found: Sequence[Request], weight: float | None) -> Iterator[Finding]:
    """With the same sampling, the canary's share of requests with spans is its share of requests."""
    if not weight or len(found) < FEW:
        return
    share, expected = sum(r.arm is Arm.CANARY for r in found) / len(found), weight / 100
    error_ = sqrt(expected * (1 - expected) / len(found))
    told = f"{share:.1%} of the requests with spans are the canary's, {weight:g} % of all requests are"
    if abs(share - expected) > SIGMAS * error_ + 0.01:
        yield warning(
            told,
            "the arms are not sampled alike, so counts of spans cannot be compared",
            "sample where a trace begins, the same for both versions: a workload's own sampler counts only there",
            subject.about,
        )
    else:
        yield fine(f"sampled alike: {told}", subject.about)


def _clock(subject: Subject, young: TraceAnswer, at: datetime, service: str) -> Iterator[Finding]:
    own = [s.start for s in young.spans if s.service == service]
    if own and max(own) > nanoseconds(at + CLOCK_SLACK):
        ahead = (max(own) - nanoseconds(at)) / 1e9
        yield warning(
            f"spans begin {ahead:.0f} s in the future",
            "the clock of whoever makes them, or of this machine, is wrong; spans fall into the wrong interval",
            "synchronise the clocks",
            subject.about,
        )


def share_of(subject: Any, end: datetime) -> float | None:
    """Percent of the requests of the last minutes that went to the canary, by its counters; None where nobody knows."""
    try:
        readings = [r for r in subject.past.readings if end - PAST <= r.at <= end]
    except (SourceError, AttributeError):
        return None
    if len(readings) < 2:
        return None
    counted = dict.fromkeys(Arm, 0.0)
    for key, value in increments(readings[0], readings[-1]).items():
        if key.name == "requests":
            counted[key.arm] += value
    total = sum(counted.values())
    return 100 * counted[Arm.CANARY] / total if total else None


def _source(site: Site) -> TraceSource | None:
    from canaryd.wiring import trace_source

    return trace_source(site.settings) if site.settings is not None else None


def _jaeger(site: Site) -> Iterator[Finding]:
    if (source := _source(site)) is not None:
        yield from reachable(source)


def _spans(site: Site) -> Iterator[Finding]:
    if (source := _source(site)) is not None:
        for subject in site.subjects:
            yield from spans(subject, source, site.at, share_of(subject, site.at - source.lag))


CHECKS: tuple[Check[Any], ...] = (Check("Jaeger", _jaeger), Check("traces", _spans))
