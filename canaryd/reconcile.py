"""One tick for many canaries at once: observe, judge, decide, then save, route and tell, in that order.

Killed at any line, the next tick heals: what was saved is routed, what was routed is recognised by its stamp, what is
owed is told. A save that loses its compare-and-swap moves nothing. Time is passed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import structlog

from canaryd import counts, plan, records
from canaryd.errors import CanarydError, ConflictError, FenceError, NotifyError, RouteError, SourceError, WorkloadError
from canaryd.judge import Subject, judge
from canaryd.model import (
    Arm,
    Decision,
    DecisionKind,
    Evidence,
    Floats,
    HookState,
    HookStatus,
    Judgement,
    Observation,
    Phase,
    Reading,
    RolloutState,
    RouteView,
    Stored,
    Stretch,
    WorkloadView,
)
from canaryd.policy import Canary
from canaryd.ports import CountsAnswer, CountsQuery, Ports
from canaryd.stats import evidence as tests
from canaryd.stats.edges import NO_EDGES
from canaryd.stats.evidence import Item, Rules

log = structlog.get_logger("canaryd.reconcile")

HISTORY_INTERVALS = 20  # of stable's past, read when a rollout begins
MOST_POINTS = 500  # instants asked for at once; a longer absence becomes one long stretch
PASSES = 5  # decisions in one tick, for phases that follow each other at once
SCORED_PHASES = (Phase.PROGRESSING, Phase.PAUSED, Phase.PROMOTING)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one tick did for one canary."""

    canary: str
    state: RolloutState | None
    kinds: tuple[DecisionKind, ...] = ()
    sentence: str = ""
    seen: Observation | None = None
    failed: str = ""  # why nothing could be saved or routed


@dataclass(slots=True)
class _Case:
    """One canary during one tick."""

    canary: Canary
    stored: Stored
    state: RolloutState  # as loaded, or the initial one
    route: RouteView | None = None
    workloads: WorkloadView | None = None
    hook: HookState | None = None
    trouble: list[str] = field(default_factory=list)
    readings: tuple[Reading, ...] = ()
    unseen: str = ""
    note: str = ""
    measured: bool = False
    evidence: Evidence | None = None
    scored: timedelta = timedelta(0)
    judgement: Judgement | None = None


def grid_floor(at: datetime, interval: timedelta) -> datetime:
    """The last instant of the epoch-aligned grid at or before `at`; the same for every replica and every replay."""
    whole, step = round(at.timestamp() * 1_000_000), round(interval.total_seconds() * 1_000_000)
    return datetime.fromtimestamp((whole - whole % step) / 1_000_000, tz=UTC)


class Reconciler:
    """Keeps nothing that matters between ticks."""

    def __init__(self, ports: Ports, *, workers: int = 8) -> None:
        self.ports = ports
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="observe")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def tick(self, canaries: Sequence[Canary], now: datetime, *, measure: bool = True) -> list[Outcome]:
        """One tick. Without `measure` no counters are read: somebody said something and wants an answer at once."""
        cases, outcomes = [], []
        for canary in canaries:
            try:
                stored = self.ports.store.load(canary.name)
                cases.append(_Case(canary, stored, stored.state or plan.initial(canary)))
            except CanarydError as e:
                outcomes.append(self._failed(canary, str(e)))
        list(self._pool.map(self._look_guarded, cases))
        if measure:
            self._measure([c for c in cases if c.state.phase.is_active], now)
        return [*outcomes, *(self._guarded(case, now) for case in cases)]

    def tell(self) -> int:
        """Deliver what is owed; returns how many records were delivered. What fails stays owed, in order per canary."""
        told, stuck = 0, set()
        for record in self.ports.store.owed():
            if record.canary in stuck:
                continue
            try:
                for notifier in self.ports.notifiers:
                    notifier.notify(record)
            except NotifyError as e:
                stuck.add(record.canary)
                log.warning("not told", record=record.id, error=str(e))
                continue
            self.ports.store.told([record.id])  # one by one: a kill then repeats one of them at most
            told += 1
        return told

    # ── observe ──────────────────────────────────────────────────────────────────────────────────────────────

    def _look_guarded(self, case: _Case) -> None:
        """A defect while looking at one canary is that canary's trouble; what was not seen by then stays unseen."""
        try:
            self._look(case)
        except Exception as e:  # like the one in _guarded: the others must not be stopped
            log.exception("defect", canary=case.canary.name)
            case.trouble.append(f"defect: {type(e).__name__}: {e}")

    def _look(self, case: _Case) -> None:
        """Everything but the counters; what cannot be seen becomes trouble, never an exception."""
        state, ports = case.state, self.ports
        case.route = self._view_route(case, state)
        if state.phase is Phase.WAITING:
            try:
                case.workloads = ports.workloads.view(case.canary, state.stable, state.canary)
            except WorkloadError as e:
                case.trouble.append(str(e))
        hook = case.canary.spec.after_promotion
        wanted = state.phase is Phase.PROMOTING and not case.stored.overrides  # an abort must not find it started
        if wanted and hook is not None and state.hook is not None and state.hook.status is HookStatus.OWED:
            facts = {
                "ROLLOUT": state.rollout,
                "REVISION": state.revision,
                "STABLE": state.stable,
                "CANARY": state.canary,
            }
            case.hook = ports.hooks.advance(case.canary, hook, state.hook, facts)

    def _view_route(self, case: _Case, state: RolloutState) -> RouteView | None:
        try:
            return self.ports.router.view(case.canary.name, case.canary.spec.route, state.stable, state.canary)
        except RouteError as e:
            case.trouble.append(str(e))
            return None

    def _measure(self, cases: list[_Case], now: datetime) -> None:
        """Counters of all rollouts under way in one call, then the tests of all of them together."""
        queries = [q for q in (self._query(case, now) for case in cases) if q is not None]
        answers: Mapping[str, CountsAnswer] = {}
        try:
            if queries:
                answers = self.ports.metrics.read(queries)
        except SourceError as e:
            for case in cases:
                case.unseen = case.unseen or str(e)
        asked = {q.canary: q for q in queries}
        for case in cases:
            query = asked.get(case.canary.name)
            if query is not None:
                case.measured = True
                self._take(case, query, answers.get(case.canary.name))
            elif case.unseen:
                case.measured = True
        self._believe([c for c in cases if c.measured])

    def _query(self, case: _Case, now: datetime) -> CountsQuery | None:
        """The instants to be read now, or nothing when there is no new one yet."""
        source, spec, state = self.ports.metrics, case.canary.spec, case.state
        through = state.evidence.through if state.evidence else None
        if through is not None and now < through:
            case.unseen = f"the clock went back: it says {now:%H:%M:%S}, but counted is up to {through:%H:%M:%S} UTC"
            return None
        if not source.remembers:
            if now == through:
                return None
            points: tuple[datetime, ...] = (now,)
        else:
            end = grid_floor(now - source.lag, spec.interval)
            first = through or end - HISTORY_INTERVALS * spec.interval
            if end <= first:
                return None
            n = (end - first) // spec.interval
            steps = range(max(n - MOST_POINTS, 0) + 1, n + 1)
            points = (first, *(first + i * spec.interval for i in steps))
        return CountsQuery(
            canary=case.canary.name,
            namespace=case.canary.metadata.namespace,
            stable=state.stable,
            canary_workload=state.canary,
            points=points,
            step=spec.interval,
            source=spec.source,
            durations=any(m.kind == "latency" for m in spec.metrics),
        )

    def _take(self, case: _Case, query: CountsQuery, answer: CountsAnswer | None) -> None:
        """Readings, from the watermark on. Nothing newer than the watermark means blind, not calm."""
        if answer is None:
            case.unseen = case.unseen or "the source gave no answer"
            return
        kept, case.note = case.state.evidence, answer.note
        readings = answer.readings
        if not self.ports.metrics.remembers and kept is not None and kept.last is not None:
            readings = (kept.last, *readings)
        newest = readings[-1].at if readings else None
        through = kept.through if kept else None
        if newest is None or (through is not None and newest <= through):
            names = f"{query.stable} or {query.canary_workload}"
            case.unseen = f"no counters of {names}" + (f" since {through:%H:%M:%S} UTC" if through else "")
            return
        case.readings = readings
        if query.points[-1] - newest > query.step:  # counted all the same, but it says nothing of the present
            case.unseen = f"the newest counters are of {newest:%H:%M:%S} UTC"

    # ── believe ──────────────────────────────────────────────────────────────────────────────────────────────

    def _believe(self, cases: list[_Case]) -> None:
        """All together; where that has a defect, one by one: it stays with its canary, which is blind then."""
        try:
            self._learn(cases)
            self._judge(cases)
        except Exception as e:  # like the one in _guarded: the others must not be stopped
            if len(cases) > 1:
                for case in cases:
                    self._believe([case])
                return
            (case,) = cases
            log.exception("defect", canary=case.canary.name)
            case.unseen, case.evidence, case.scored = f"defect: {type(e).__name__}: {e}", None, timedelta(0)
            self._judge(cases)

    def _learn(self, cases: list[_Case]) -> None:
        """Bring every rollout's evidence up to its newest reading; round k takes the k-th stretch of each."""
        work = [(case, _Intake(case, self.ports)) for case in cases if case.readings]
        rounds = max((len(intake.stretches) for _, intake in work), default=0)
        for k in range(rounds):
            active = [intake for _, intake in work if k < len(intake.stretches)]
            updated = tests.update([intake.item(k) for intake in active])
            for intake, arrays in zip(active, updated, strict=True):
                intake.arrays = arrays
        for case, intake in work:
            case.evidence, case.scored = intake.result(keep_last=not self.ports.metrics.remembers)

    def _judge(self, cases: list[_Case]) -> None:
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
                )
            )
        for case, judgement in zip(cases, judge(subjects), strict=True):
            case.judgement = judgement

    # ── decide, save, route ──────────────────────────────────────────────────────────────────────────────────

    def _guarded(self, case: _Case, now: datetime) -> Outcome:
        """One canary's trouble is its own: neither a refused save nor a defect stops the others."""
        try:
            return self._settle(case, now)
        except ConflictError as e:
            log.info("somebody saved first", canary=case.canary.name, error=str(e))
            return Outcome(case.canary.name, case.state, failed=str(e))
        except CanarydError as e:
            return self._failed(case.canary, str(e), case.state)
        except Exception as e:  # a defect in one rollout must not stop the others
            log.exception("defect", canary=case.canary.name)
            return self._failed(case.canary, f"defect: {type(e).__name__}: {e}", case.state)

    def _failed(self, canary: Canary, why: str, state: RolloutState | None = None) -> Outcome:
        log.error("held", canary=canary.name, reason=why)
        return Outcome(canary.name, state, failed=why)

    def _settle(self, case: _Case, now: datetime) -> Outcome:
        """Decide until nothing follows at once; each decision is saved before it is routed."""
        stored, kinds = case.stored, []
        seen = _observation(case, stored, now)
        for _ in range(PASSES):
            before = stored.state
            decision = plan.decide(case.canary, before, seen)
            stored = self._save(case, stored, decision, seen)
            kinds += [decision.kind, *(kind for kind, _ in decision.extra)]
            wrote = self._route(case, stored, decision, before, seen)
            assert stored.state is not None
            pending = len(seen.overrides) > len({o.id for o in seen.overrides} & {a.id for a in stored.state.answered})
            moved = before is None or before.phase is not stored.state.phase
            if not (wrote or pending or moved):
                break
            if moved:
                self._look(_again(case, stored))
            case.route = self._view_route(case, stored.state)
            seen = _observation(case, stored, now, again=True)
        assert stored.state is not None
        return Outcome(case.canary.name, stored.state, tuple(kinds), stored.state.sentence, seen)

    def _save(self, case: _Case, stored: Stored, decision: Decision, seen: Observation) -> Stored:
        new = records.records(case.canary, stored.state, decision, seen)
        before = stored.state
        if not new and before is not None and not before.phase.is_active and _same(before, decision.state):
            return stored
        state = replace(
            decision.state,
            decisions=decision.state.decisions + len(new),
            latest=records.body(case.canary, before, decision, seen),
        )
        version = self.ports.store.save(case.canary.name, state, stored.version, new)
        for record in new:
            if record.tell:
                continue  # the notifiers say these, the log among them
            log.info(
                "look",
                canary=record.canary,
                id=record.id,
                kind=str(record.kind),
                phase=str(state.phase),
                weight=state.weight,
                reason=record.sentence,
            )
        return replace(stored, state=state, version=version)

    def _route(
        self, case: _Case, stored: Stored, decision: Decision, before: RolloutState | None, seen: Observation
    ) -> bool:
        """Make the split match the saved state. A transition is always written: its stamp shuts out the stale."""
        state = stored.state
        assert state is not None
        if state.number == 0:
            return False  # never rolled out: the route is not canaryd's yet
        moved = before is None or (before.weight, before.step, before.phase, before.stable) != (
            state.weight,
            state.step,
            state.phase,
            state.stable,
        )
        there = seen.route is not None and seen.route.weight == state.weight
        if there and not moved:
            return False
        try:
            self.ports.router.set_weight(
                case.canary.name,
                case.canary.spec.route,
                state.stable,
                state.canary,
                state.weight,
                version=stored.version,
            )
        except FenceError as e:
            log.warning("stale", canary=case.canary.name, error=str(e))
            raise
        except RouteError as e:
            log.warning("not routed", canary=case.canary.name, weight=state.weight, error=str(e))
            return False
        return True


# ── one canary's intake of readings ──────────────────────────────────────────────────────────────────────────


class _Intake:
    """Turns the readings of one tick into stretches and carries the evidence through them."""

    def __init__(self, case: _Case, ports: Ports) -> None:
        self.case, spec = case, case.canary.spec
        held = case.state.evidence
        self.rules = Rules.of(spec)
        self.pods: dict[str, datetime] = dict(held.pods) if held else {}
        self.intervals = held.intervals if held else 0
        self.gained = timedelta(0)
        self.first_edges = False
        self.stretches = list(self._stretches(counts.Classes.of(spec)))
        self.arrays, self.edges = self._arrays(held)
        self.scored = [self._counts(s, ports.metrics.settle) for s in self.stretches]

    def _stretches(self, classes: counts.Classes) -> Iterable[Stretch]:
        readings, warm_up = self.case.readings, self.case.canary.spec.warm_up
        started = self.case.workloads.started if self.case.workloads else {}
        for before, after in pairwise(readings):
            if after.at <= before.at:
                continue
            for arm in Arm:
                fresh = counts.pods(after, arm) - self.pods.keys()
                if arm is Arm.STABLE:  # those that were there already are not warming up
                    fresh -= counts.pods(before, arm) or fresh
                self.pods.update(dict.fromkeys(fresh, before.at))
            yield counts.stretch(before, after, classes, first_seen=self.pods, warm_up=warm_up, started=started)

    def _arrays(self, held: Evidence | None) -> tuple[tests.Arrays, Floats]:
        """The arrays so far; fresh ones when there are none, or when latency or the plan changed under them."""
        gates = len(self.case.canary.spec.steps)
        found = next((s.edges for s in self.stretches if len(s.edges)), NO_EDGES)
        if held is None or not held.arrays:
            return tests.empty(found, gates), found
        replan = held.arrays["fine"].shape[1] != gates
        self.first_edges = len(held.edges) == 0 and len(found) > 0
        if not replan and not self.first_edges:
            return dict(held.arrays), held.edges
        if replan:
            self.case.trouble.append("the plan changed: evidence starts again")
        edges = found if self.first_edges else held.edges
        fresh = tests.empty(edges, gates)
        fresh["clock"][:] = held.arrays["clock"]
        fresh["clock"][:2] = 0.0  # intervals and epochs
        for name in ("quick", "long", "mass"):  # what is known of stable: without it no row could be judged
            known = held.arrays[name]
            fresh[name][..., : known.shape[-1]] = known
        self.intervals = 0
        return fresh, edges

    def _counts(self, stretch: Stretch, settle: timedelta) -> bool:
        """Whether a stretch is evidence: the desired weight was in the route, unchanged, for all of it."""
        state, route = self.case.state, self.case.route
        if self.first_edges:  # stable's durations must be known before the canary's are compared with them
            return False
        if state.phase not in SCORED_PHASES or state.routed is None or route is None or route.weight != state.weight:
            return False
        return stretch.start >= state.routed + settle

    def item(self, k: int) -> Item:
        stretch, state = self.stretches[k], self.case.state
        if self.scored[k]:
            self.intervals += 1
            self.gained += min(stretch.end - stretch.start, self.case.canary.spec.interval)
        past = state.started is not None and stretch.start < state.started
        return Item(self.arrays, self.edges, self.rules, stretch, state.weight / 100, self.scored[k], past)

    def result(self, *, keep_last: bool) -> tuple[Evidence, timedelta]:
        last = self.case.readings[-1]
        present = {key.pod for key in last.counters}
        return (
            Evidence(
                through=last.at,
                edges=self.edges,
                arrays=self.arrays,
                intervals=self.intervals,
                pods={pod: at for pod, at in self.pods.items() if pod in present},
                last=last if keep_last else None,
            ),
            self.gained,
        )


# ── small pieces ─────────────────────────────────────────────────────────────────────────────────────────────


def _observation(case: _Case, stored: Stored, now: datetime, *, again: bool = False) -> Observation:
    """Everything seen, for `decide`; in a further pass of the same tick nothing new has been counted."""
    return Observation(
        at=now,
        release=stored.release,
        route=case.route,
        workloads=case.workloads,
        judgement=None if again else case.judgement,
        evidence=None if again else case.evidence,
        scored=timedelta(0) if again else case.scored,
        overrides=stored.overrides,
        hook=case.hook,
        trouble=tuple(case.trouble),
    )


def _fits(held: Evidence, gates: int) -> bool:
    """The arrays are those of a plan with so many steps and of the edges beside them."""
    wanted = tests.empty(held.edges, gates)
    return {k: v.shape for k, v in held.arrays.items()} == {k: v.shape for k, v in wanted.items()}


def _again(case: _Case, stored: Stored) -> _Case:
    """The same case as it stands after a save."""
    assert stored.state is not None
    case.stored, case.state, case.trouble, case.hook = stored, stored.state, [], None
    return case


def _same(before: RolloutState, after: RolloutState) -> bool:
    """Nothing changed but the time of the tick."""
    return replace(before, ticked=None) == replace(after, ticked=None)
