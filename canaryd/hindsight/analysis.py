"""A past window judged as if live: at every interval only what was readable then, by the code of the tick.

The weights are what they were; what canaryd would have decided is said beside them and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from canaryd import plan
from canaryd.hindsight.past import Past, Weights
from canaryd.measure import MOST_POINTS, Case, Measurer, grid_floor
from canaryd.model import (
    DecisionKind,
    Judgement,
    Observation,
    Phase,
    Release,
    RolloutState,
    RouteView,
    Verdict,
    WorkloadView,
)
from canaryd.policy import Canary
from canaryd.ports import MetricSource

REVISION = "analysed"
MOST_INTERVALS = 20_000
HOLD, ADVANCE, PROMOTE, ROLLBACK = "hold", "advance", "promote", "rollback"
_WORDS = {DecisionKind.ADVANCE: ADVANCE, DecisionKind.PROMOTE: PROMOTE, DecisionKind.ROLLBACK: ROLLBACK}


@dataclass(frozen=True, slots=True)
class Interval:
    """One look. `time` is the end of the interval, `weight` percent during it."""

    index: int  # 0: the first with a weight above 0
    time: datetime
    weight: int
    judgement: Judgement
    decision: str  # hold, advance, promote, rollback
    reason: str  # regressed, blind, healthy, evidence, bake, split, weight
    sentence: str


@dataclass(slots=True)
class Summary:
    """What came of all looks so far: regressed when it ever was, else as at the last one."""

    intervals: int = 0
    verdict: Verdict = Verdict.BLIND
    decision: str = HOLD
    first_rollback: int | None = None
    sentence: str = "nothing was looked at"
    decisions: list[str] = field(default_factory=list)

    def add(self, one: Interval) -> None:
        self.intervals += 1
        settled = self.verdict is Verdict.REGRESSED or self.first_rollback is not None
        if one.decision == ROLLBACK and self.first_rollback is None:
            self.first_rollback = one.index
        if not settled:
            self.verdict, self.sentence = one.judgement.verdict, one.sentence
            self.decision = one.decision


def first_interval(weights: Weights, start: datetime, end: datetime, interval: timedelta) -> datetime | None:
    """The end of interval 0, the first on the grid that ends with a weight above 0; None: there is none."""
    at = _ceil(start, interval) + interval
    while at <= end:
        if weights.before(at)[0] > 0:
            return at
        at += interval
    return None


def analyze(
    canary: Canary, source: MetricSource, weights: Weights, start: datetime, end: datetime
) -> Iterator[Interval]:
    """One Interval after the other. Raises SourceError when the source does not answer; needs one that remembers."""
    interval = canary.spec.interval
    at = first_interval(weights, start, end, interval)
    if at is None:
        return
    begin = _ceil(start, interval)
    before = (at - begin) // interval - 1  # intervals of stable alone
    window = _Window(canary, Past(source, begin, end, interval), weights, min(before + 1, MOST_POINTS - 2))
    if before > 0:
        window.look(at - interval)
    index = 0
    while at <= end:
        yield window.interval(index, at)
        at, index = at + interval, index + 1


def _ceil(at: datetime, interval: timedelta) -> datetime:
    floor = grid_floor(at, interval)
    return floor if floor == at else floor + interval


class _Window:
    """The rollout that the weights tell of, from look to look."""

    def __init__(self, canary: Canary, past: Past, weights: Weights, history: int) -> None:
        self.canary, self.past, self.weights = canary, past, weights
        self.measurer = Measurer(past, history=history)
        start = plan.initial(canary)
        self.state = replace(
            start,
            rollout=f"{canary.name}-1",
            number=1,
            revision=REVISION,
            phase=Phase.WAITING,
            stable_revision="stable",
        )

    def interval(self, index: int, at: datetime) -> Interval:
        """Look at `at`, the end of an interval, and say what would have been decided."""
        state, seen = self.look(at)
        judged = seen.judgement
        assert judged is not None
        if state.weight == 0:
            said = f"{self.canary.name} has no traffic: {judged.sentence}"
            return Interval(index, at, 0, judged, HOLD, "weight", said)
        decision = plan.decide(self.canary, state, seen)
        word = _WORDS.get(decision.kind, HOLD)
        reason = _reason(self.canary, self.state, judged, word)
        return Interval(index, at, state.weight, judged, word, reason, decision.sentence)

    def look(self, at: datetime) -> tuple[RolloutState, Observation]:
        """Measure as a tick would when `at` has become readable; returns the state before it and what it saw."""
        now = at + self.past.lag
        state = self._weighed(at)
        route = RouteView(state.weight, version=1, stamped_weight=state.weight)
        case = Case(canary=self.canary, state=state, route=route)
        self.measurer.measure([case], now)
        if self.past.failed is not None:
            raise self.past.failed
        seen = Observation(
            at=now,
            release=Release(REVISION),
            route=route,
            workloads=WorkloadView(ready=True),
            judgement=case.judgement,
            evidence=case.evidence,
            scored=case.scored,
        )
        self.state = plan.clocked(self.canary, state, seen)
        return state, seen

    def _weighed(self, at: datetime) -> RolloutState:
        """The state with the weight of the interval that ends at `at`; a change starts the clocks as a step does."""
        weight, since = self.weights.before(at)
        state = self.state
        if weight == state.weight and (state.routed == since or weight == 0):
            return state
        return replace(
            state,
            phase=Phase.PROGRESSING if weight else Phase.WAITING,
            step=step_of(self.canary, weight),
            weight=weight,
            routed=since,
            step_started=since,
            baked=timedelta(0),
            held=timedelta(0),
            deadline_told=timedelta(0),
        )


def step_of(canary: Canary, weight: int) -> int:
    """The last step whose weight is not above `weight`; the first where there is none."""
    return max((i for i, s in enumerate(canary.spec.steps) if s.weight <= weight), default=0)


def _reason(canary: Canary, state: RolloutState, judged: Judgement, word: str) -> str:
    """Why, in one word for machines; the sentence says it to people."""
    if judged.verdict is Verdict.INCONCLUSIVE:
        return "evidence"
    if judged.verdict is not Verdict.HEALTHY or word != HOLD:
        return str(judged.verdict)
    return "bake" if state.baked < canary.spec.bake(state.step) else "split"


def summary(intervals: Sequence[Interval]) -> Summary:
    """Of a whole window."""
    out = Summary()
    for one in intervals:
        out.add(one)
    return out
