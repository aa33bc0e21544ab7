"""How often a canary that cannot be worse would have been rolled back: stable pods in the canary's place.

Random pods of the stable workload are called the canary over a random stretch of the past and judged by the code that
judges real ones. Every rollback is a false alarm. Only errors and latency are judged: the operator's own queries name
workloads and know nothing of single pods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import combinations, islice
from math import comb

import numpy as np
from scipy.special import betaincinv

from canaryd import counts, wording
from canaryd.errors import CanarydError
from canaryd.hindsight.analysis import step_of
from canaryd.measure import HISTORY_INTERVALS, Case, Measurer, grid_floor
from canaryd.model import Arm, Evidence, Phase, Reading, RolloutState, RouteView, Verdict
from canaryd.policy import Canary, parse_canary
from canaryd.ports import CountsAnswer, CountsQuery, MetricSource

LOOKS = 80  # of one draw, as a usual rollout has
LEAST_LOOKS = 5
PER_WINDOW = 10  # draws that share what was read of one stretch
PRESENT = 0.9  # of a stretch in which a pod must have been there to be drawn
POOR = 10  # stretches with too few pods that are forgiven, and one more for each draw
NOBODY = "canaryd-placebo"  # a workload that does not exist
CONFIDENCE = 0.95


class PlaceboError(CanarydError):
    """There is nothing to draw from; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One pretended canary."""

    begin: datetime  # of the first scored interval
    pods: tuple[str, ...]
    looks: int
    rolled_back: bool
    sentence: str  # of the last look


@dataclass(frozen=True, slots=True)
class Rate:
    """What came of all draws. The limits would be exact for draws that do not share requests; these do."""

    draws: int
    rollbacks: int
    low: float  # 95 % limits of the chance of a false rollback
    high: float

    @classmethod
    def of(cls, drawn: Sequence[Draw]) -> Rate:
        rollbacks = sum(d.rolled_back for d in drawn)
        return cls(len(drawn), rollbacks, *exact_interval(rollbacks, len(drawn)))


def exact_interval(x: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Limits of the chance behind `x` of `n`. Clopper and Pearson (1934), Biometrika 26(4). Assumes independence."""
    tail = (1 - confidence) / 2
    low = float(betaincinv(x, n - x + 1, tail)) if x else 0.0
    high = float(betaincinv(x + 1, n - x, 1 - tail)) if x < n else 1.0
    return low, high


def usual(workload: str, namespace: str = "default") -> Canary:
    """A Canary with every default for a workload that has no document."""
    return parse_canary(
        {
            "apiVersion": "canaryd.io/v1alpha1",
            "kind": "Canary",
            "metadata": {"name": "placebo", "namespace": namespace},
            "spec": {"workloads": {"pools": [workload, NOBODY]}, "route": {"envoyFile": {"path": "none"}}},
        }
    )


def draw(
    canary: Canary,
    workload: str,
    source: MetricSource,
    start: datetime,
    end: datetime,
    *,
    draws: int,
    pods: int = 1,
    least_pods: int = 2,
    seed: int = 1,
) -> Iterator[Draw]:
    """Up to `draws` pretended canaries of `pods` pods each, out of at least `least_pods`; the same seed, the same ones.

    Raises PlaceboError when no stretch has enough pods, SourceError when the source does not answer. The source must
    remember. What is read of one stretch is read once and forgotten after it.
    """
    interval, random = canary.spec.interval, np.random.default_rng(seed)
    first, last = grid_floor(start, interval) + interval, grid_floor(end, interval)
    room = (last - first) // interval
    looks = min(LOOKS, room - HISTORY_INTERVALS)
    if looks < LEAST_LOOKS:
        least = (HISTORY_INTERVALS + LEAST_LOOKS + 2) * interval
        raise PlaceboError(f"the window is too short; it must be at least {least} long")
    done, poor, found = 0, 0, ""
    while done < draws and poor < POOR + done:
        begin = first + int(random.integers(0, room - HISTORY_INTERVALS - looks + 1)) * interval
        stretch = _Stretch(canary, workload, source, begin, looks)
        names = stretch.pods()
        if len(names) < max(least_pods, pods + 1):
            found = found or f"{wording.plural(len(names), 'pod')} of {workload} at {begin.isoformat()}"
            poor += 1
            continue
        chosen = _choices(names, pods, min(PER_WINDOW, draws - done), random)
        yield from stretch.judged(chosen)
        done += len(chosen)
    if not done:
        raise PlaceboError(f"{found}; at least {max(least_pods, pods + 1)} are needed, one of them as the canary")


def _choices(names: Sequence[str], pods: int, most: int, random: np.random.Generator) -> list[tuple[str, ...]]:
    """Different sets of pods, at most `most`."""
    if comb(len(names), pods) <= 4 * most:
        every = list(combinations(names, pods))
        return [every[i] for i in random.permutation(len(every))[:most]]
    sets: dict[tuple[str, ...], None] = {}
    for _ in range(20 * most):
        sets[tuple(sorted(random.choice(np.array(names), pods, replace=False).tolist()))] = None
    return list(islice(sets, most))


class _Stretch:
    """One stretch of the past, read once, and the pretended canaries in it, judged side by side."""

    def __init__(self, canary: Canary, workload: str, source: MetricSource, begin: datetime, looks: int) -> None:
        self.canary, self.workload, self.source, self.begin, self.looks = canary, workload, source, begin, looks
        self.interval = canary.spec.interval
        metrics = tuple(m for m in canary.spec.metrics if m.kind in ("errors", "latency"))
        self.spec = canary.spec.model_copy(update={"metrics": metrics})
        points = tuple(begin + i * self.interval for i in range(HISTORY_INTERVALS + looks + 1))
        durations = any(m.kind == "latency" for m in metrics)
        query = CountsQuery(
            "stable", canary.metadata.namespace, workload, NOBODY, points, self.interval, canary.spec.source, durations
        )
        self.readings = source.read([query])["stable"].readings

    def pods(self) -> list[str]:
        """Those that were there for nearly all of it."""
        there: dict[str, int] = {}
        for reading in self.readings:
            for pod in counts.pods(reading, Arm.STABLE):
                there[pod] = there.get(pod, 0) + 1
        least = PRESENT * (HISTORY_INTERVALS + self.looks + 1)
        return sorted(pod for pod, n in there.items() if n >= least)

    def judged(self, chosen: Sequence[tuple[str, ...]]) -> list[Draw]:
        names = [f"placebo-{i}" for i in range(len(chosen))]
        measurer = Measurer(
            Relabelled(self.source, self.readings, dict(zip(names, chosen, strict=True)), self.interval)
        )
        share = len(chosen[0]) / len(self.pods())
        weight = min(max(round(100 * share), 1), 99)
        document = {name: self._document(name) for name in names}
        evidence: dict[str, Evidence | None] = dict.fromkeys(names)
        ended: dict[str, Draw] = {}
        for look in range(self.looks + 1):
            at = self.begin + (HISTORY_INTERVALS + look) * self.interval
            active = [name for name in names if name not in ended]
            cases = [self._case(document[name], evidence[name], weight if look else 0) for name in active]
            measurer.measure(cases, at + self.source.lag)
            for name, case in zip(active, cases, strict=True):
                evidence[name] = case.evidence or evidence[name]
                bad = case.judgement is not None and case.judgement.verdict is Verdict.REGRESSED
                if bad or look == self.looks:
                    said = case.judgement.sentence if case.judgement else ""
                    ended[name] = Draw(self._scored(), chosen[names.index(name)], look, bad, said)
        return [ended[name] for name in names]

    def _scored(self) -> datetime:
        return self.begin + HISTORY_INTERVALS * self.interval

    def _document(self, name: str) -> Canary:
        metadata = self.canary.metadata.model_copy(update={"name": name})
        return self.canary.model_copy(update={"metadata": metadata, "spec": self.spec})

    def _case(self, canary: Canary, evidence: Evidence | None, weight: int) -> Case:
        state = RolloutState(
            stable=self.workload,
            canary=NOBODY,
            phase=Phase.PROGRESSING if weight else Phase.WAITING,
            step=step_of(canary, weight),
            weight=weight,
            routed=self._scored() - self.source.settle,
            evidence=evidence,
        )
        return Case(canary=canary, state=state, route=RouteView(weight, version=1, stamped_weight=weight))


class Relabelled:
    """The port MetricSource over readings at hand, in which some pods have become the canary; each name has its own."""

    remembers = True

    def __init__(
        self,
        source: MetricSource,
        readings: Sequence[Reading],
        pods: Mapping[str, tuple[str, ...]],
        step: timedelta,
    ) -> None:
        self.lag, self.settle, self.simultaneous = source.lag, source.settle, source.simultaneous
        self._source, self._step = source, step
        self._readings = {name: {r.at: _swapped(r, set(chosen)) for r in readings} for name, chosen in pods.items()}
        self._before: CountsAnswer | None = None  # the days before, the same for all

    def read(self, queries: Sequence[CountsQuery]) -> Mapping[str, CountsAnswer]:
        """See the port."""
        return {query.canary: self._answer(query) for query in queries}

    def _answer(self, query: CountsQuery) -> CountsAnswer:
        if query.step != self._step:
            if self._before is None:
                self._before = self._source.read([query])[query.canary]
            return self._before
        known = self._readings[query.canary]
        return CountsAnswer(tuple(known[t] for t in query.points if t in known))


def _swapped(reading: Reading, pods: set[str]) -> Reading:
    counters = {k._replace(arm=Arm.CANARY) if k.pod in pods else k: v for k, v in reading.counters.items()}
    return Reading(reading.at, counters)
