"""Read, take in, judge: from raw counters to a judgement, for many rollouts at once.

The only path from a source of counters to a verdict: the tick uses it, and so does everything that looks back on the
past as if it were now. It never decides, saves or routes anything, and never asks for the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import structlog

from canaryd import counts, operations, tally, wording
from canaryd import tracer as tracing
from canaryd.errors import SourceError
from canaryd.judge import Subject, judge
from canaryd.model import (
    Arm,
    Evidence,
    Floats,
    Judgement,
    Reading,
    RolloutState,
    RouteView,
    SpanCounts,
    SpanEvidence,
    Stretch,
    WorkloadView,
)
from canaryd.policy import Canary, Destination, SpansFrom, Spec
from canaryd.ports import CountsAnswer, CountsQuery, MetricSource, SpanQuery, Template, TraceQuery
from canaryd.spans import ArmTags
from canaryd.stats import evidence as tests
from canaryd.stats import history, traces
from canaryd.stats.edges import NO_EDGES
from canaryd.stats.evidence import Item, Rules
from canaryd.tracer import Tracer

log = structlog.get_logger("canaryd.measure")

HISTORY_INTERVALS = 20  # of stable's past, read when a rollout begins
HOUR = timedelta(hours=1)
MOST_HOURS = 14 * 24  # of the past that is asked for
MOST_POINTS = 500  # instants asked for at once; a longer absence becomes one long stretch


@dataclass(slots=True, kw_only=True)
class Case:
    """One rollout at one moment: what is known of it, then what was measured."""

    canary: Canary
    state: RolloutState  # as loaded, or the initial one
    route: RouteView | None = None
    workloads: WorkloadView | None = None
    trouble: list[str] = field(default_factory=list)
    readings: tuple[Reading, ...] = ()
    unseen: str = ""
    note: str = ""
    errors_note: str = ""
    metrics_unseen: Mapping[str, str] = field(default_factory=dict)  # metric -> why it could not be read
    started: Mapping[str, datetime] = field(default_factory=dict)
    past: tuple[Stretch, ...] = ()
    arrived: tuple[SpanCounts, ...] = ()  # spans that a trace source has given since the last look
    spans_taken: tuple[SpanCounts, ...] = ()  # those of them that became evidence
    measured: bool = False
    evidence: Evidence | None = None
    scored: timedelta = timedelta(0)
    judgement: Judgement | None = None


def grid_floor(at: datetime, interval: timedelta) -> datetime:
    """The last instant of the epoch-aligned grid at or before `at`; the same for every replica and every replay."""
    whole, step = round(at.timestamp() * 1_000_000), round(interval.total_seconds() * 1_000_000)
    return datetime.fromtimestamp((whole - whole % step) / 1_000_000, tz=UTC)


class Measurer:
    """Asks one source and runs the tests; keeps nothing between two measurements."""

    def __init__(self, source: MetricSource, *, history: int = HISTORY_INTERVALS, tracer: Tracer | None = None) -> None:
        """`history`: intervals of stable's past that are read when a rollout begins; `tracer`: asks for spans."""
        self.source, self.history, self.tracer = source, history, tracer

    def measure(self, cases: Sequence[Case], now: datetime) -> None:
        """Counters of all rollouts under way in one call, then the tests of all of them together."""
        queries = [q for q in (self._query(case, now) for case in cases) if q is not None]
        answers: Mapping[str, CountsAnswer] = {}
        try:
            if queries:
                answers = self.source.read(queries)
        except SourceError as e:
            for case in cases:
                case.unseen = case.unseen or str(e)
        asked = {q.canary: q for q in queries}
        for case in cases:
            query = asked.get(case.canary.key)
            if query is not None:
                case.measured = True
                self._take(case, query, answers.get(case.canary.key))
            elif case.unseen:
                case.measured = True
        begun = [(c, asked[c.canary.key]) for c in cases if c.readings and c.state.evidence is None]
        if self.source.remembers:
            self._look_back([(c, q) for c, q in begun if c.canary.spec.history])
        if self.tracer is not None:
            for case in cases:
                if case.readings and case.canary.spec.traces():
                    case.arrived = self.tracer.arrived(case.canary.key)
        self._believe([c for c in cases if c.measured])
        if self.tracer is not None:
            self._ask_for_spans(self.tracer, cases, now)

    def _ask_for_spans(self, tracer: Tracer, cases: Sequence[Case], now: datetime) -> None:
        """Begin what the next look will need; nothing is waited for."""
        for case in cases:
            metric, held = case.canary.spec.traces(), case.evidence or case.state.evidence
            if metric is None or held is None or held.spans is None:
                tracer.ask(case.canary.key, ())
                continue
            arms = ArmTags(held.spans.tag, held.spans.stable, held.spans.canary)
            service, aliases = operations.service_of(case.canary, metric), _aliases(case.canary)
            wanted = [
                tracing.question(
                    TraceQuery(case.canary.key, service, one.start, one.end, arms, aliases=aliases), scored=one.scored
                )
                for one in operations.due(held.spans, now, tracer.lag)
            ]
            tracer.ask(case.canary.key, wanted)

    def _query(self, case: Case, now: datetime) -> CountsQuery | None:
        """The instants to be read now, or nothing when there is no new one yet."""
        source, spec, state = self.source, case.canary.spec, case.state
        held = state.evidence
        newest = (held.ahead or held.through) if held else None
        if newest is not None and now < newest:
            case.unseen = f"the clock went back: it says {now:%H:%M:%S}, but counted is up to {newest:%H:%M:%S} UTC"
            return None
        if not source.remembers:
            if now == newest:
                return None
            points: tuple[datetime, ...] = (now,)
        else:
            end = grid_floor(now - source.lag, spec.interval)
            if newest is not None and end <= newest:
                return None
            first = end - self.history * spec.interval
            if held is not None:  # with one more interval before, where an interval is judged with its neighbours
                first = held.through - (timedelta(0) if source.simultaneous else spec.interval)
            n = (end - first) // spec.interval
            steps = range(max(n - MOST_POINTS, 0) + 1, n + 1)
            points = (first, *(first + i * spec.interval for i in steps))
        services = services_of(case.canary)
        return CountsQuery(
            canary=case.canary.key,
            namespace=case.canary.metadata.namespace,
            stable=state.stable,
            canary_workload=state.canary,
            points=points,
            step=spec.interval,
            source=spec.source,
            durations=any(m.kind == "latency" for m in spec.metrics),
            templates=templates(spec),
            stable_service=services[0],
            canary_service=services[1],
            spans=_span_query(case),
            server=spec.prometheus.url if spec.prometheus else "",
        )

    def _take(self, case: Case, query: CountsQuery, answer: CountsAnswer | None) -> None:
        """Readings, from the watermark on. Nothing newer than the watermark means blind, not calm."""
        if answer is None:
            case.unseen = case.unseen or "the source gave no answer"
            return
        if answer.failed:
            case.unseen = case.unseen or answer.failed
            return
        kept, case.note = case.state.evidence, answer.note
        readings = answer.readings
        if not self.source.remembers and kept is not None:
            readings = (*kept.last, *readings)
        newest = readings[-1].at if readings else None
        before = (kept.ahead or kept.through) if kept else None
        if newest is None or (before is not None and newest <= before):
            names = f"{query.stable} or {query.canary_workload}"
            case.unseen = f"no counters of {names}" + (f" since {before:%H:%M:%S} UTC" if before else "")
            return
        case.readings, case.started, case.metrics_unseen = readings, answer.started, answer.unseen
        if query.points[-1] - newest > query.step:  # counted all the same, but it says nothing of the present
            case.unseen = f"the newest counters are of {newest:%H:%M:%S} UTC"

    def _look_back(self, begun: Sequence[tuple[Case, CountsQuery]]) -> None:
        """Stable's pods of the last days, hour by hour, in one call for all rollouts that begin.

        Without them the comparison is only more careful, so a source that cannot answer makes nobody blind.
        """
        asked = {case.canary.key: _hourly(case, query) for case, query in begun}
        try:
            answers = self.source.read(list(asked.values())) if asked else {}
        except SourceError as e:
            for case, _ in begun:
                case.note = case.note or f"the past could not be read: {e}"
            return
        for case, _ in begun:
            answer, classes = answers.get(case.canary.key), counts.Classes.of(case.canary.spec)
            if answer is not None and answer.failed:
                case.note = case.note or f"the past could not be read: {answer.failed}"
            readings = answer.readings if answer is not None else ()
            case.past = tuple(counts.stretch(a, b, classes) for a, b in pairwise(readings) if b.at - a.at == HOUR)

    # ── believe ──────────────────────────────────────────────────────────────────────────────────────────────

    def _believe(self, cases: Sequence[Case]) -> None:
        """All together; where that has a defect, one by one: it stays with its canary, which is blind then."""
        try:
            self._learn(cases)
            self.judge(cases)
        except Exception as e:  # a defect in one rollout must not stop the others
            if len(cases) > 1:
                for case in cases:
                    self._believe([case])
                return
            (case,) = cases
            log.exception("defect", canary=case.canary.key)
            case.unseen, case.evidence, case.scored = f"defect: {type(e).__name__}: {e}", None, timedelta(0)
            case.spans_taken = ()
            self.judge(cases)

    def _learn(self, cases: Sequence[Case]) -> None:
        """Bring every rollout's evidence up to its newest reading; round k takes the k-th stretch of each."""
        work = [(case, _Intake(case, self.source)) for case in cases if case.readings]
        rounds = max((len(intake.stretches) for _, intake in work), default=0)
        for k in range(rounds):
            active = [intake for _, intake in work if k < len(intake.stretches)]
            updated = tests.update([intake.item(k) for intake in active])
            for intake, arrays in zip(active, updated, strict=True):
                intake.arrays = tests.short(arrays)
        spans = _take_spans([(case, intake) for case, intake in work if case.canary.spec.traces()])
        for case, intake in work:
            case.evidence, case.scored = intake.result()
            case.evidence = replace(case.evidence, spans=spans.get(case.canary.key))
            case.metrics_unseen = {**intake.unseen(), **self._of_tracer(case), **case.metrics_unseen}
            case.errors_note = _of_the_unreached(case.canary, intake.all)

    def _of_tracer(self, case: Case) -> dict[str, str]:
        """Why a trace source has not answered, by the metric that waits for it."""
        metric = case.canary.spec.traces()
        why = self.tracer.why(case.canary.key) if metric is not None and self.tracer is not None else ""
        return {metric.name: why} if metric is not None and why else {}

    def judge(self, cases: Sequence[Case]) -> None:
        """Judge what has been taken in, or what was held before where nothing was."""
        subjects = []
        for case in cases:
            held, gates = case.evidence or case.state.evidence, len(case.canary.spec.steps)
            fits = held is not None and _fits(held, gates)
            subjects.append(
                Subject(
                    spec=case.canary.spec,
                    arrays=held.arrays if held and fits else tests.empty(NO_EDGES, gates),
                    edges=held.edges if held and fits else NO_EDGES,
                    step=min(max(case.state.step, 0), gates - 1),  # the plan may have become shorter
                    weight=case.state.weight,
                    unseen=case.unseen,
                    canary=case.state.canary,
                    stable=case.state.stable,
                    note=case.note,
                    metrics_unseen=case.metrics_unseen,
                    errors_note=case.errors_note,
                    spans=held.spans if held and fits else None,
                )
            )
        for case, judgement in zip(cases, judge(subjects), strict=True):
            case.judgement = judgement


def services_of(canary: Canary) -> tuple[str, str]:
    """The Services in front of stable and of the canary; "" twice where the arms do not have one each."""
    route, (stable, other) = canary.spec.route, canary.spec.workloads.names
    if route.istio is not None:
        found = (_host(route.istio.stable, stable, other), _host(route.istio.canary, f"{other}-canary", other))
    elif route.gateway_api is not None:
        found = (route.gateway_api.stable or stable, route.gateway_api.canary or f"{other}-canary")
    else:
        return "", ""
    return ("", "") if found[0] == found[1] else found


def _host(given: Destination, default: str, service: str) -> str:
    """The Service that a destination names; a subset without a host is one of the service itself."""
    return given.host.partition(".")[0] or (service if given.subset else default)


def _aliases(canary: Canary) -> tuple[str, ...]:
    return operations.aliases_of(canary, services_of(canary))


def _span_query(case: Case) -> SpanQuery | None:
    """The counters of spans, where they are or may be the source of spans."""
    metric, held = case.canary.spec.traces(), case.state.evidence.spans if case.state.evidence else None
    if metric is None or metric.source is SpansFrom.TRACES or (held is not None and held.source == operations.TRACES):
        return None
    names = metric.spanmetrics
    service = operations.service_of(case.canary, metric)
    return SpanQuery(metric.name, service, _arms(case), names.calls, names.durations, _aliases(case.canary))


def _arms(case: Case) -> ArmTags:
    versions = case.workloads.versions if case.workloads is not None else ("", "")
    return operations.arms_of(case.canary, case.state, versions)


def _take_spans(work: Sequence[tuple[Case, _Intake]]) -> dict[str, SpanEvidence]:
    """Bring every rollout's evidence of spans up to what has come; round k takes the k-th interval of each."""
    taking = []
    for case, intake in work:
        metric = case.canary.spec.traces()
        unseen = case.metrics_unseen.get(metric.name, "") if metric is not None else ""
        taking.append(
            operations.Intake(case.canary, case.state, _arms(case), intake.looks(), case.arrived, unseen=unseen)
        )
    for k in range(max((len(one) for one in taking), default=0)):
        active = [one for one in taking if k < len(one)]
        updated = traces.update([one.item(k) for one in active])
        for one, arrays in zip(active, updated, strict=True):
            one.arrays = arrays
    for (case, _), one in zip(work, taking, strict=True):
        case.spans_taken = one.taken
    return {case.canary.key: one.result() for (case, _), one in zip(work, taking, strict=True)}


def _of_the_unreached(canary: Canary, found: Sequence[Stretch]) -> str:
    """What a person should know of requests that never reached a pod; "" where the newest stretch has none."""
    if canary.spec.route.envoy_file is None and not any(services_of(canary)):
        return "both arms are behind one Service: requests that never reach a pod are not counted"
    if not found or not found[-1].canary.unreached:
        return ""
    newest = found[-1].canary
    lost, of = wording.count(newest.unreached), wording.plural(newest.requests, "request")
    return f"{lost} of the canary's last {of} never reached a pod"


def _hourly(case: Case, query: CountsQuery) -> CountsQuery:
    """The same counters of pods over the days of `history`."""
    end = grid_floor(query.points[-1], HOUR)
    hours = min(int(case.canary.spec.history / HOUR), MOST_HOURS)
    points = tuple(end - (hours - i) * HOUR for i in range(hours + 1))
    return replace(query, points=points, step=HOUR, templates=(), stable_service="", canary_service="", spans=None)


def _fits(held: Evidence, gates: int) -> bool:
    """The arrays are those of a plan with so many steps and of what stands beside them."""
    room = (len(held.stable_pods), len(held.canary_pods), len(held.queries), len(held.gauges))
    return tests.fits(held.arrays, held.edges, gates, *room)


def templates(spec: Spec) -> tuple[Template, ...]:
    """The operator's own questions, both arms of each."""
    asked = []
    for q in spec.queries():
        asked += [(q.name, f"query:{q.name}:failures", q.failures), (q.name, f"query:{q.name}:total", q.total)]
    asked += [(g.name, f"gauge:{g.name}", g.query) for g in spec.gauges()]
    return tuple(
        Template(metric, name, arm, arms.stable if arm is Arm.STABLE else arms.canary)
        for metric, name, arms in asked
        for arm in Arm
    )


# ── one canary's intake of readings ──────────────────────────────────────────────────────────────────────────


class _Intake:
    """Turns the readings of one tick into stretches and carries the evidence through them.

    Where the arms are not read at the same moment, a stretch is judged with its neighbours (the scrape-phase guard):
    the newest one waits until the next is known. It is bake time all the same.
    """

    def __init__(self, case: Case, source: MetricSource) -> None:
        self.case, spec = case, case.canary.spec
        held = case.state.evidence
        self.rules, self.source = Rules.of(spec), source
        self.queries = tuple(q.name for q in spec.queries())
        self.gauges = tuple(g.name for g in spec.gauges())
        self.pods: dict[str, datetime] = dict(held.pods) if held else {}
        self.intervals = held.intervals if held else 0
        self.scored: list[bool] = []  # of the stretches so far
        self.first_edges = False
        found = list(self._stretches(counts.Classes.of(spec)))
        self.first = sum(held is not None and s.end <= held.through for s in found)  # those before are context
        self.all = found
        self.stretches = found[self.first : None if self.source.simultaneous else -1]
        self.arrays, self.edges = self._arrays(held)
        known = held.ahead if held else None
        fresh = [s for s in found[self.first :] if (known is None or s.end > known) and self._counts(s)]
        self.gained = sum((min(s.end - s.start, spec.interval) for s in fresh), timedelta(0))
        self.stable_pods, self.canary_pods = self._told_apart(held)
        self.arrays = tests.with_pods(self.arrays, len(self.stable_pods), len(self.canary_pods))
        self._remember()

    def _stretches(self, classes: counts.Classes) -> Iterable[Stretch]:
        readings, warm_up = self.case.readings, self.case.canary.spec.warm_up
        started = {**self.case.started, **(self.case.workloads.started if self.case.workloads else {})}
        for before, after in pairwise(readings):
            if after.at <= before.at:
                continue
            for arm in Arm:
                fresh = counts.pods(after, arm) - self.pods.keys()
                if arm is Arm.STABLE:  # those that were there already are not warming up, unless they say so
                    there = counts.pods(before, arm) or fresh
                    fresh -= {pod for pod in there if started.get(pod, before.at - warm_up) <= before.at - warm_up}
                self.pods.update({pod: started.get(pod, before.at) for pod in fresh})
            self.pods.update(dict.fromkeys(counts.restarted(before, after), before.at))
            # A start that was learnt later than the first sight, or that a restart has made old, is not believed again.
            starts = {pod: at for pod, at in started.items() if self.pods.get(pod, at) <= at}
            found = counts.stretch(before, after, classes, first_seen=self.pods, warm_up=warm_up, started=starts)
            yield replace(found, spans=tally.of_counters(before, after))

    def _arrays(self, held: Evidence | None) -> tuple[tests.Arrays, Floats]:
        """The arrays so far; fresh ones when there are none, or when latency or the plan changed under them."""
        gates, queries, gauges = len(self.case.canary.spec.steps), len(self.queries), len(self.gauges)
        found = next((s.edges for s in self.all if len(s.edges)), NO_EDGES)
        if held is None or not held.arrays:
            return tests.empty(found, gates, queries=queries, gauges=gauges), found
        asked = (held.queries, held.gauges) != (self.queries, self.gauges)
        replan = held.arrays["fine"].shape[1] != gates or asked
        self.first_edges = len(held.edges) == 0 and len(found) > 0
        if not replan and not self.first_edges:
            return dict(held.arrays), held.edges
        if replan:
            self.case.trouble.append("the plan changed: evidence starts again")
        edges = found if self.first_edges else held.edges
        self.intervals = 0
        return tests.renewed(held.arrays, edges, gates, queries, gauges), edges

    def _told_apart(self, held: Evidence | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The pods behind the arrays' pod axes: those known, then new ones while there is room."""
        out = []
        for arm, names in (("stable", held.stable_pods if held else ()), ("canary", held.canary_pods if held else ())):
            seen = {pod for s in self.stretches for pod in getattr(s, arm).pods} - set(names)
            out.append((*names, *sorted(seen))[: max(tests.MOST_PODS, len(names))])
        return out[0], out[1]

    def _remember(self) -> None:
        """What the past says of differences between pods goes into the arrays, once."""
        past = [s for s in self.case.past if s.stable.present]
        pods = sorted({pod for s in past for pod in s.stable.pods})[: history.MOST_PODS]
        if past and pods:
            rows = [tests.pods_of(s, self.edges, tuple(pods), len(self.queries)) for s in past]
            self.arrays["past"][...] = history.learn(np.stack([x for x, _ in rows]), np.stack([n for _, n in rows]))

    def _counts(self, stretch: Stretch) -> bool:
        """Whether a stretch is evidence: the desired weight was in the route, unchanged, for all of it."""
        state, route = self.case.state, self.case.route
        if self.first_edges:  # stable's durations must be known before the canary's are compared with them
            return False
        if not state.phase.is_scored or state.routed is None or route is None or route.weight != state.weight:
            return False
        if not stretch.whole and stretch.end - stretch.start > 2 * self.case.canary.spec.interval:
            return False  # an outage over which a new pod was first seen: what it served meanwhile is not known
        return stretch.start >= state.routed + self.source.settle

    def item(self, k: int) -> Item:
        stretch, at = self.stretches[k], self.first + k
        scored = bool(self._counts(stretch) and self.arrays["long"][1, 0] > 0)  # nobody bets without a past
        self.intervals += int(scored)
        around = self._around(at)
        self.scored.append(scored)
        began = self.case.state.started
        return Item(
            self.arrays,
            self.edges,
            self.rules,
            stretch,
            self.case.state.weight / 100,
            scored,
            around,
            self.stable_pods,
            self.canary_pods,
            past=began is not None and stretch.start < began,
        )

    def _around(self, at: int) -> tuple[Stretch | None, Stretch | None]:
        """The neighbours of a stretch, where the arms are not read at the same moment."""
        return (None, None) if self.source.simultaneous else (self.all[at - 1] if at else None, self.all[at + 1])

    def looks(self) -> list[operations.Look]:
        """The stretches that were taken in, for the spans."""
        return [
            operations.Look(stretch, self.scored[k], self._around(self.first + k))
            for k, stretch in enumerate(self.stretches)
        ]

    def unseen(self) -> dict[str, str]:
        """Query and gauge metrics that were not counted in the newest stretch, and why."""
        return {**self.all[-1].stable.unseen, **self.all[-1].canary.unseen} if self.all else {}

    def result(self) -> tuple[Evidence, timedelta]:
        readings, held = self.case.readings, self.case.state.evidence
        through = self.stretches[-1].end if self.stretches else held.through if held else readings[0].at
        present = {key.pod for key in readings[-1].counters}
        past = [r for r in readings if r.at <= through][-1 if self.source.simultaneous else -2 :]
        kept = (*past, *(r for r in readings if r.at > through))
        return (
            Evidence(
                through=through,
                ahead=readings[-1].at,
                edges=self.edges,
                arrays=self.arrays,
                intervals=self.intervals,
                queries=self.queries,
                gauges=self.gauges,
                pods={pod: at for pod, at in self.pods.items() if pod in present},
                stable_pods=self.stable_pods,
                canary_pods=self.canary_pods,
                last=() if self.source.remembers else kept,
            ),
            self.gained,
        )
