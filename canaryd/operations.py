"""From spans to evidence by operation, for one rollout and one tick. Pure: it is told what has arrived.

Spans come from one of two places, and a rollout keeps to the one it began with. A collector's counters (spanmetrics)
come with the counters of requests and are judged with them. A trace source answers later: an interval waits until its
spans are there, and leaves when they are counted; so it is counted once, whenever they come. What of it does not come
in time is given up, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np

from canaryd import tally
from canaryd.model import Floats, Phase, RolloutState, SpanCounts, SpanEvidence, Stretch, Waiting
from canaryd.policy import Canary, SpansFrom, TracesMetric
from canaryd.spans import ArmTags, arm_tags
from canaryd.stats import traces

MOST_WAITING = 8  # intervals
JUDGED = (Phase.PROGRESSING, Phase.PAUSED)  # later stable may run the canary's revision, and tags tell nothing
SPANMETRICS, TRACES = "spanmetrics", "traces"


def service_of(canary: Canary, metric: TracesMetric) -> str:
    """What the spans call the service: as Istio does, for a Deployment."""
    deployment = canary.spec.workloads.deployment
    own = f"{deployment.name}.{canary.metadata.namespace}" if deployment is not None else canary.name
    return metric.service or own


def aliases_of(canary: Canary, services: Sequence[str] = ()) -> tuple[str, ...]:
    """Names that routes call the service by; the first is kept (see canaryd.spans.normal_operation)."""
    deployment, route = canary.spec.workloads.deployment, canary.spec.route
    refs = route.istio.virtual_services if route.istio else route.gateway_api.http_routes if route.gateway_api else ()
    own = (deployment.name if deployment is not None else canary.name, *canary.spec.workloads.names)
    return tuple(dict.fromkeys(filter(None, (*own, *services, *(ref.name for ref in refs)))))


def arms_of(canary: Canary, state: RolloutState, versions: tuple[str, str] = ("", "")) -> ArmTags:
    """What tells the arms apart; fixed when a rollout begins, so that a replay and a later tick tell the same."""
    metric, held = canary.spec.traces(), state.evidence.spans if state.evidence else None
    if held is not None:
        return ArmTags(held.tag, held.stable, held.canary)
    arms, tag = (metric.arms, metric.tag) if metric is not None else (None, "")
    if arms is not None:
        return ArmTags(tag, arms.stable, arms.canary)
    found = arm_tags((state.stable, state.canary), (state.stable_revision, state.revision), tag=tag)
    stable, other = ((v,) if v else () for v in versions)
    return replace(found, stable=(*found.stable, *stable), canary=(*found.canary, *other))


@dataclass(frozen=True, slots=True)
class Look:
    """One stretch of this tick: whether it is evidence, and its neighbours in time where they matter."""

    stretch: Stretch
    scored: bool
    around: tuple[Stretch | None, Stretch | None] = (None, None)


@dataclass(frozen=True, slots=True)
class _Work:
    """Spans to be taken in."""

    counts: SpanCounts
    scored: bool
    requests: tuple[float, float]
    around: tuple[SpanCounts | None, SpanCounts | None] = (None, None)


class Intake:
    """Carries the evidence of one rollout's spans through what has arrived."""

    def __init__(
        self,
        canary: Canary,
        state: RolloutState,
        arms: ArmTags,
        looks: Sequence[Look],
        arrived: Sequence[SpanCounts] = (),
        *,
        unseen: str = "",
    ) -> None:
        """`arrived`: of a trace source, each for one interval; `unseen`: why a collector's counters were not read."""
        metric = canary.spec.traces()
        assert metric is not None
        self._metric, self._slots = metric, metric.operations + 1
        held = state.evidence.spans if state.evidence else None
        self._held = held or SpanEvidence(tag=arms.tag, stable=arms.stable, canary=arms.canary)
        self._first = held is None
        self._lost, self._note = self._held.lost, self._held.note
        self._source = self._held.source or self._choose(looks, unseen)
        self._waiting: tuple[Waiting, ...] = self._held.waiting
        self.taken: tuple[SpanCounts, ...] = ()
        if state.phase not in (*JUDGED, Phase.WAITING):
            self._work: list[_Work] = []
        elif self._source == TRACES:
            self._work = self._of_a_trace_source(looks, arrived)
        else:
            self._work = self._of_a_collector(looks, unseen)
        self._operations, self._strangers = self._held.operations, self._held.strangers
        self._edges, self.arrays = self._room()  # those of a trace source are always the same, and not kept

    def _choose(self, looks: Sequence[Look], unseen: str) -> str:
        if self._metric.source is not SpansFrom.AUTO:
            return str(self._metric.source)
        if any(look.stretch.spans is not None for look in looks):
            return SPANMETRICS
        return TRACES if looks and not unseen else ""

    def _of_a_collector(self, looks: Sequence[Look], unseen: str) -> list[_Work]:
        out = []
        for look in looks:
            stretch = look.stretch
            if stretch.spans is None:
                self._miss(unseen or "no counters of spans")
                continue
            around = tuple(near.spans if near is not None else None for near in look.around)
            out.append(_Work(stretch.spans, _is_evidence(look), _requests(stretch), (around[0], around[1])))
        return out

    def _of_a_trace_source(self, looks: Sequence[Look], arrived: Sequence[SpanCounts]) -> list[_Work]:
        new = [Waiting(s.start, s.end, _is_evidence(look), _requests(s)) for look in looks for s in (look.stretch,)]
        if self._first and new:  # stable's past is asked for at once
            past = [one for one in new if not one.scored]
            new = [*([Waiting(past[0].start, past[-1].end, scored=False)] if past else ()), *new[len(past) :]]
        waiting = [*self._held.waiting, *new]
        answers = {(counts.start, counts.end): counts for counts in arrived}
        ready = [one for one in waiting if (one.start, one.end) in answers]
        waiting = [one for one in waiting if (one.start, one.end) not in answers]
        for _ in waiting[:-MOST_WAITING]:
            self._miss("spans have not come in time")
        self._waiting = tuple(waiting[-MOST_WAITING:])
        self.taken = tuple(answers[one.start, one.end] for one in ready)
        return [_Work(counts, one.scored, one.requests) for counts, one in zip(self.taken, ready, strict=True)]

    def _miss(self, why: str) -> None:
        self._lost, self._note = self._lost + 1, why

    def _room(self) -> tuple[Floats, traces.Arrays]:
        """The edges and arrays so far, or fresh ones; another number of operations begins again."""
        held = self._held
        if held.arrays and traces.fits(held.arrays, self._slots, edges_of(held)):
            return edges_of(held), dict(held.arrays)
        self._operations, self._strangers = (), ()
        edges = next((w.counts.edges for w in self._work), np.zeros(0))
        return edges, traces.empty(self._slots, edges) if self._work else {}

    def __len__(self) -> int:
        return len(self._work)

    def item(self, k: int) -> traces.Item:
        """The k-th interval. Truncated spans teach what stable is like, and are no evidence."""
        work = self._work[k]
        counts = work.counts
        same = np.array_equal(counts.edges, self._edges)
        if not same:
            counts = replace(counts, durations=np.zeros((len(counts.operations), 2, len(self._edges) + 1)))
        self._operations = tally.told_apart(self._operations, counts, self._metric.operations)
        self._strangers = tally.strangers(self._strangers, counts, self._operations)
        self._learn_of(counts)
        spans, durations = traces.slotted(replace(counts, edges=self._edges), self._operations, self._slots)
        tolerance = self._metric.tolerance
        return traces.Item(
            self.arrays,
            self._edges,
            tolerance.relative,
            tolerance.absolute,
            spans,
            durations,
            work.scored and counts.complete,
            counts.sampled,
            work.requests,
            (self._beside(work.around[0]), self._beside(work.around[1])),
        )

    def _learn_of(self, counts: SpanCounts) -> None:
        if counts.complete:
            self._lost, self._note = 0, counts.note
        else:
            self._miss(counts.note or "truncated")

    def _beside(self, near: SpanCounts | None) -> tuple[Floats, Floats] | None:
        """Stable's spans and durations in a neighbouring interval."""
        if near is None or not np.array_equal(near.edges, self._edges):
            return None
        spans, durations = traces.slotted(near, self._operations, self._slots)
        return spans[:, 0], durations[:, 0]

    def result(self) -> SpanEvidence:
        """To be saved."""
        return replace(
            self._held,
            source=self._source,
            operations=self._operations,
            edges=np.zeros(0) if self._source == TRACES else self._edges,
            arrays=self.arrays,
            strangers=self._strangers,
            waiting=self._waiting,
            lost=self._lost,
            note=self._note,
        )


def edges_of(held: SpanEvidence) -> Floats:
    """The edges that the arrays stand for."""
    return tally.EDGES if held.source == TRACES else held.edges


def due(held: SpanEvidence, now: datetime, lag: timedelta) -> tuple[Waiting, ...]:
    """The intervals whose spans may be asked for, oldest first."""
    return tuple(one for one in held.waiting if one.end <= now - lag)


def _is_evidence(look: Look) -> bool:
    """Not while pods of the canary warm up: a collector cannot tell their spans from the others'."""
    canary = look.stretch.canary
    return look.scored and canary.present and canary.young_requests <= 0


def _requests(stretch: Stretch) -> tuple[float, float]:
    return stretch.stable.requests, stretch.canary.requests
