"""Before a release: what would be found at each step, in how long, and how long a good release takes.

No random numbers: the product's own tests are fed with the counts that are to be expected, shifted to where two of ten
rollouts are less lucky. A test compares the times with simulated rollouts; they agree to a quarter, or three intervals.
With one to four stable pods they are too long by up to a half: what few pods teach by luck is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from canaryd.model import Floats
from canaryd.policy import Spec
from canaryd.simulation.traffic import Scenario
from canaryd.simulation.trial import HISTORY, proven
from canaryd.stats import evidence
from canaryd.stats.assess import Assessment, assess
from canaryd.stats.evidence import Batch, Counts, Rules, advance

POWER = 0.8
UNLUCKY = float(ndtri(POWER))  # so many standard deviations on the wrong side
# For a good release: the median one is a little unlucky, because the slowest of several rows counts; the slow one a
# little less than one step alone would have it, because luck changes from step to step.
GOOD_LUCK = (0.2, 0.7)
FINE = 40  # intervals one by one; later ones in blocks of a twentieth of the time so far
EDGES_MS = np.array([5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000], dtype=np.float64)
TIMES_ERRORS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 500.0)
TIMES_LATENCY = (1.06, 1.1, 1.15, 1.2, 1.3, 1.5, 2.0, 4.0)
LEAST = 1e-9  # a share that is as good as none
WORST = 0.98  # share of failures beyond which nothing gets worse


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What is known of the service before the release. Rows: failures, then "slower than" each edge."""

    rps: float
    stable_pods: int
    canary_pods: int  # at 100 %
    edges: Floats  # (E,) ms ascending; empty without a histogram
    rates: Floats  # (1 + E,) stable's shares of bad events
    clustering: Floats  # (1 + E,) phi0
    between_pods: Floats  # (1 + E,) tau^2
    source: str  # where this comes from, for people

    def slower(self, factor: float) -> Floats:
        """The rows when every request takes `factor` >= 1 times as long: the share above edge / factor.

        Between edges, and below the first, on a straight line of the share's normal score over log duration: what
        a log-normal distribution has.
        """
        if len(self.edges) < 2:
            return self.rates
        logs, scores = np.log(self.edges), ndtri(np.clip(self.rates[1:], LEAST, 1 - LEAST))
        at = np.log(self.edges / factor)
        first = scores[0] + (at - logs[0]) * (scores[1] - scores[0]) / (logs[1] - logs[0])
        moved = np.where(at < logs[0], first, np.interp(at, logs, scores))
        return np.concatenate([self.rates[:1], np.clip(ndtr(moved), LEAST, 1 - LEAST)])


def assumed(rps: float, stable_pods: int, failures: float, canary_pods: int | None = None) -> Traffic:
    """Traffic that nobody has measured: the simulated service with its p50 of 44, p90 of 103 and p99 of 321 ms."""
    below = sum(share * ndtr((np.log(EDGES_MS) - np.log(median)) / sd) for share, median, sd in Scenario().mixture)
    rows = 1 + len(EDGES_MS)
    return Traffic(
        rps=rps,
        stable_pods=stable_pods,
        canary_pods=canary_pods or stable_pods,
        edges=EDGES_MS,
        rates=np.clip(np.concatenate([[failures], 1 - np.asarray(below)]), LEAST, 1 - LEAST),
        clustering=np.ones(rows),
        between_pods=np.zeros(rows),
        source="assumed; latency p50 44 ms, p90 103 ms, p99 321 ms; pods alike",
    )


@dataclass(frozen=True, slots=True)
class Effect:
    """A regression: failures or durations times `times`."""

    kind: str  # "errors" or "latency"
    times: float

    def rates(self, traffic: Traffic) -> Floats:
        if self.kind == "latency":
            return traffic.slower(self.times)
        return np.concatenate([[min(traffic.rates[0] * self.times, WORST)], traffic.rates[1:]])


@dataclass(frozen=True, slots=True)
class StepPower:
    """One step of the plan. Times in intervals, inf for never within the horizon."""

    weight: int  # percent
    requests: float  # canary requests per interval
    good: float  # stay of a good release, median
    good_slow: float  # eight of ten good releases have gone on by then
    limit: float  # the step's time-out
    found: dict[Effect, float]  # eight of ten such regressions are found by then, if they begin with this step

    @property
    def decides(self) -> bool:
        return self.good_slow <= self.limit

    def smallest(self, kind: str, within: float) -> float | None:
        """Factor of the smallest regression found within so many intervals; between two of those tried, on a
        straight line of log factor over log time. None when none of those tried is."""
        tried = sorted((e.times, t) for e, t in self.found.items() if e.kind == kind)
        late = None
        for times, t in tried:
            if t <= within:
                if late is None or not np.isfinite(late[1]):
                    return float(times)
                way = np.log(late[1] / within) / np.log(late[1] / t)
                return float(np.exp(np.log(late[0]) + way * np.log(times / late[0])))
            late = (times, t)
        return None


@dataclass(frozen=True, slots=True)
class Power:
    """All steps below 100 %, and the whole way."""

    steps: tuple[StepPower, ...]
    good: float  # intervals to 100 %, median; inf when a step never passes
    good_slow: float


class Fluid:
    """C imagined rollouts side by side, each with its own canary rates (C, M) and luck z (C,).

    The canary's bad events run at the z-quantile of what chance and pods make of them: after an expectation of L with a
    variance of v the count is (sqrt(L + 1/4) + z/2 sqrt(v / L))^2 - 3/8. Stable's run at their expectation; its pods
    differ just so much that the tests learn the dispersion that the traffic has.
    """

    def __init__(self, spec: Spec, traffic: Traffic, rates: Floats, luck: Floats) -> None:
        self.spec, self.traffic, self.rates, self.luck = spec, traffic, rates, luck[:, None]
        self.c, self.seconds = len(rates), spec.interval.total_seconds()
        m, k = traffic.stable_pods, traffic.canary_pods
        fresh = evidence.empty(traffic.edges, len(spec.steps), m, k)
        self.batch = Batch([fresh] * self.c, [traffic.edges] * self.c, [Rules.of(spec)] * self.c)
        self.age = np.full((self.c, k), -1.0)
        self.expected, self.squared, self.both, self.given = np.zeros((4, *rates.shape))
        self.turn, self.learnt = 0, 0.0
        for _ in range(HISTORY):
            self.step(np.zeros(self.c), 1, scored=False)

    def step(self, weight: Floats, intervals: int, *, scored: bool = True) -> None:
        """So many intervals at once, at the weights (C,)."""
        t, seconds = self.traffic, self.seconds * intervals
        requests = t.rps * seconds
        running = np.where(weight > 0, np.maximum(1, np.ceil(t.canary_pods * weight - 1e-9)), 0)
        alive = np.arange(t.canary_pods)[None] < running[:, None]
        self.age = np.where(alive, np.where(self.age < 0, 0.0, self.age + seconds), -1.0)
        per_pod = np.where(alive, (requests * weight / np.maximum(running, 1))[:, None], 0.0)
        old = per_pod * (self.age >= self.spec.warm_up.total_seconds())
        counts = Counts.nothing(self.batch)
        counts.scored, counts.stable_present = np.full(self.c, scored), np.ones(self.c, dtype=bool)
        counts.weight, counts.seconds = weight, np.full(self.c, seconds)
        counts.n_s = np.repeat((requests * (1 - weight))[:, None], self.batch.m, axis=1)
        counts.x_s = counts.n_s * t.rates
        counts.n_c, counts.pods_c = np.repeat(old.sum(1)[:, None], self.batch.m, axis=1), old
        counts.x_c = self._unlucky(old, counts.n_s)
        counts.all_n_c, counts.all_n_s = requests * weight, counts.n_s[:, 0]
        counts.all_x_c = counts.all_n_c * self.rates[:, 0]
        counts.n_pods = np.repeat(counts.n_s[:, None] / t.stable_pods, t.stable_pods, axis=1)
        counts.x_pods = np.maximum(counts.n_pods * t.rates + self._pods(counts.n_pods[:, 0]), 0.0)
        advance(self.batch, counts)

    def _unlucky(self, pods: Floats, n_s: Floats) -> Floats:
        """Bad events (C, M) of these intervals, so that their sum so far is at its quantile."""
        t, n = self.traffic, pods.sum(1)[:, None]
        events = n * self.rates
        self.expected += events
        self.both += np.where(n_s > 0, n / np.maximum(n_s, 1e-9), 0.0) * n * t.rates
        self.squared += ((pods / np.maximum(n, 1e-9)) ** 2).sum(1)[:, None] * events
        share = self.squared / np.maximum(self.expected, 1e-9) + 1 / t.stable_pods
        spread = t.clustering * (1 - t.rates) * (1 + self.both / np.maximum(self.expected, 1e-9))
        spread = spread + t.between_pods * self.expected * share
        root = np.sqrt(self.expected + 0.25) + self.luck / 2 * np.sqrt(np.maximum(spread, 0.0))
        usual = np.where(self.luck == 0, self.expected, np.maximum(root, 0.0) ** 2 - 0.375)
        total = np.maximum(np.clip(usual, 0.0, None), self.given)
        gained = np.minimum(total - self.given, n)
        self.given = self.given + gained
        return np.asarray(gained)

    def _pods(self, n: Floats) -> Floats:
        """How far each stable pod's bad events are off, (C, P, M): for good, and to and fro by chance."""
        t, m = self.traffic, self.traffic.stable_pods
        if m == 1:
            return np.zeros((self.c, 1, len(t.rates)))
        signs = np.where(np.arange(m) % 2 == 0, 1.0, -1.0)
        signs = signs - signs.mean()
        signs = (signs / np.sqrt((signs**2).mean()))[None, :, None]
        self.turn += 1
        expected = n * t.rates
        chance = np.sqrt(t.clustering * expected * (1 - t.rates) * (1 - 1 / m)) * (-1) ** self.turn
        lasting = np.sqrt(t.between_pods * (1 - 1 / m)) * expected
        return np.asarray(signs * (chance + lasting)[:, None])

    def assess(self, gates: NDArray[np.intp], weight: Floats) -> Assessment:
        return assess(self.batch, gates.tolist(), weight.tolist())


def block(since: int) -> int:
    """Intervals to take at once after so many."""
    return 1 if since < FINE else ceil(since / 20)


def power(spec: Spec, traffic: Traffic) -> Power:
    """The whole answer. Takes seconds. Shapes and units as in `Power`."""
    weights = [step.weight / 100 for step in spec.steps if step.weight < 100]
    kinds = {metric.kind for metric in spec.metrics}
    effects = [Effect("errors", x) for x in TIMES_ERRORS if "errors" in kinds and x * traffic.rates[0] <= WORST]
    effects += [Effect("latency", x) for x in TIMES_LATENCY if "latency" in kinds and len(traffic.edges)]
    limits = [spec.timeout(i) / spec.interval for i in range(len(weights))]
    stays = _good(spec, traffic, weights, limits)
    found = _found(spec, traffic, weights, limits, effects)
    steps = tuple(
        StepPower(
            weight=round(100 * w),
            requests=traffic.rps * w * spec.interval.total_seconds(),
            good=float(stays[0, i]),
            good_slow=float(stays[1, i]),
            limit=limits[i],
            found=found[i],
        )
        for i, w in enumerate(weights)
    )
    return Power(steps, float(stays[0].sum()), float(stays[1].sum()))


def _found(
    spec: Spec, traffic: Traffic, weights: Sequence[float], limits: Sequence[float], effects: Sequence[Effect]
) -> list[dict[Effect, float]]:
    """For each step, in how many intervals each effect is found by eight of ten."""
    if not effects or not weights:
        return [{} for _ in weights]
    cells = [(i, effect) for i in range(len(weights)) for effect in effects]
    rates = np.array([effect.rates(traffic) for _, effect in cells])
    fluid = Fluid(spec, traffic, rates, np.full(len(cells), -UNLUCKY))
    gates, w = np.array([i for i, _ in cells]), np.array([weights[i] for i, _ in cells])
    back, t = np.full(len(cells), np.inf), 0
    while t < max(limits) and not np.isfinite(back).all():
        step = block(t)
        fluid.step(w, step)
        t += step
        bad = fluid.assess(gates, w).log_e >= -np.log(spec.alpha)
        back = np.where(bad & ~np.isfinite(back), t + 1, back)  # an interval is judged when the next one is known
    out: list[dict[Effect, float]] = [{} for _ in weights]
    for (i, effect), when in zip(cells, back, strict=True):
        out[i][effect] = float(when) if when <= limits[i] else float("inf")
    return out


def _good(spec: Spec, traffic: Traffic, weights: Sequence[float], limits: Sequence[float]) -> Floats:
    """Intervals that a good release stays at each step, (2, steps): the median and the slow one."""
    stays = np.full((2, len(weights)), np.inf)
    rates, share = np.repeat(traffic.rates[None], 2, axis=0), np.array(weights)
    fluid = Fluid(spec, traffic, rates, np.array(GOOD_LUCK))
    step, at, ended = np.zeros(2, dtype=np.intp), np.zeros(2), np.zeros(2, dtype=bool)
    bakes = np.array([ceil(spec.bake(i) / spec.interval) for i in range(len(weights))])
    late = 1.0  # an interval is judged when the next one is known
    while weights and not ended.all():
        width = block(int(at[~ended].min()))
        fluid.step(share[step], width)
        at += width
        numbers = fluid.assess(step, share[step])
        passed = ~ended & (at >= bakes[step]) & proven(fluid.batch, numbers, spec)
        for i in np.flatnonzero(passed):
            stays[i, step[i]] = at[i] + late * (step[i] == 0)
        ended |= (passed & (step == len(weights) - 1)) | (~passed & (at > np.array(limits)[step]))
        at = np.where(passed, 0.0, at)
        step = np.where(passed, np.minimum(step + 1, len(weights) - 1), step)
    return stays
