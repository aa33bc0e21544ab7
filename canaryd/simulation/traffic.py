"""A synthetic service: stable and canary pods, their requests, failures and latency histograms, with any noise.

R independent rollouts run in lock-step; each `step` gives the counts of one interval. The noises: traffic volume with a
daily wave and an autoregressive part; shocks and outages that hit both arms alike, or the canary's counters a fraction
of an interval earlier; pods that differ for as long as they live; failures in clusters; latency that wanders per pod;
cold starts. The regressions: failures, slowness, a heavier tail, a crash, from any interval on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from canaryd.model import Floats

EDGES_MS = np.array(
    [0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000]
)
_LOG_EDGES = np.log(EDGES_MS)
BUCKETS = len(EDGES_MS) + 1
_TAIL_MS = 2000.0  # where an added tail lies


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What the service and its noise are like. Shares are 0..1, standard deviations are on the log scale."""

    name: str = "plain"
    rps: float = 100.0
    interval: float = 30.0  # seconds
    stable_pods: int = 10
    canary_pods: int = 10  # at 100 %; at weight w there are ceil(w times this), at least one
    failures: float = 0.001
    mixture: tuple[tuple[float, float, float], ...] = ((0.86, 40.0, 0.45), (0.125, 110.0, 0.50), (0.015, 330.0, 0.35))
    daily: float = 0.3
    volume_sd: float = 0.10
    volume_memory: float = 0.8
    shock_failures: float = 0.0
    shock_latency: float = 0.0
    shock_memory: float = 0.8
    outages: float = 0.0  # chance per interval that one begins
    outage_length: float = 6.0  # mean, in intervals
    outage_failures: float = 0.3
    outage_slowdown: float = 3.0
    skew: float = 0.0  # the canary's counters are read this fraction of an interval later
    pods_failures: float = 0.0  # sd between pods
    pods_latency: float = 0.0
    wander_latency: float = 0.0  # sd of a pod's own autoregressive latency
    wander_memory: float = 0.9
    cluster: float = 1.0  # mean failures per cluster
    cold_slowdown: float = 0.0  # at a pod's start, fading
    cold_failures: float = 0.0
    cold_fade: float = 40.0  # seconds
    canary_failures: float | None = None
    canary_slowdown: float = 1.0
    canary_tail_slowdown: float = 1.0  # of the slower components only
    canary_tail: float = 0.0  # share of requests moved to 2 s
    crash: bool = False
    onset: int = 0  # canary interval at which the regression begins


@dataclass(frozen=True, slots=True)
class Interval:
    """Counts of one interval: n requests, x failures (R, pods), h durations per bucket (R, pods, buckets)."""

    n_s: Floats
    x_s: Floats
    h_s: Floats
    n_c: Floats
    x_c: Floats
    h_c: Floats
    age: Floats  # (R, canary pods) seconds at the start of the interval, negative before the pod exists


def _autoregressive(draw: np.random.Generator, x: Floats, memory: float) -> Floats:
    return np.asarray(memory * x + np.sqrt(1 - memory**2) * draw.normal(size=x.shape))


def _odds(p: float) -> float:
    return float(np.log(p / (1 - p)))


class Service:
    """R copies of one scenario."""

    def __init__(self, scenario: Scenario, copies: int, seed: int) -> None:
        s, self.r = scenario, copies
        self.s, self.draw = s, np.random.default_rng(seed)
        normal = self.draw.normal
        self.volume, self.shock, self.shock_slow = normal(size=(3, copies))
        self.phase = self.draw.uniform(0, 2 * np.pi, copies)
        self.outage, self.soon = np.zeros(copies), np.zeros(copies, dtype=bool)
        self.pod_x_s, self.pod_x_c = (normal(size=(copies, k)) for k in (s.stable_pods, s.canary_pods))
        self.pod_t_s, self.pod_t_c = (normal(size=(copies, k)) for k in (s.stable_pods, s.canary_pods))
        self.wander_s, self.wander_c = (normal(size=(copies, k)) for k in (s.stable_pods, s.canary_pods))
        self.age = np.full((copies, s.canary_pods), -1.0)
        self.time, self.canary_time = 0, -1

    def step(self, weight: Floats | float) -> Interval:
        """One interval at a weight (share 0..1), the same for all copies or one for each."""
        s, w = self.s, np.broadcast_to(np.asarray(weight, dtype=float), (self.r,))
        self.time += 1
        self.canary_time += bool(np.any(w > 0))
        now, before = self._outages()
        total = self._volume()
        running = np.where(w > 0, np.maximum(1, np.ceil(s.canary_pods * w - 1e-9)), 0)
        alive = np.arange(s.canary_pods)[None] < running[:, None]
        self.age = np.where(alive, np.where(self.age < 0, 0.0, self.age + s.interval), -1.0)
        n_s = self.draw.poisson((total * (1 - w))[:, None] / s.stable_pods * np.ones(s.stable_pods)).astype(float)
        n_c = self.draw.poisson(np.where(alive, (total * w / np.maximum(running, 1))[:, None], 0.0)).astype(float)
        x_s, x_c = self._failures(n_s, n_c, now, before)
        h_s, h_c = self._durations(n_s, n_c, now)
        return Interval(n_s, x_s, h_s, n_c, x_c, h_c, self.age)

    def _volume(self) -> Floats:
        s = self.s
        self.volume = _autoregressive(self.draw, self.volume, s.volume_memory)
        wave = 1 + s.daily * np.sin(2 * np.pi * self.time * s.interval / 86400 + self.phase)
        return np.asarray(s.rps * s.interval * wave * np.exp(s.volume_sd * self.volume))

    def _outages(self) -> tuple[Floats, Floats]:
        """(share of the interval in outage for stable, the same for the canary's counters)."""
        s = self.s
        begins = self.draw.uniform(size=self.r) < s.outages
        self.outage = np.maximum(self.outage - 1, 0)
        length = self.draw.geometric(1 / s.outage_length, self.r)
        self.outage = np.where(begins & (self.outage == 0), length, self.outage)
        next_on = self.outage > 0
        on = self.soon if s.skew else next_on
        self.soon = next_on
        stable = on.astype(float)
        return stable, (1 - s.skew) * stable + s.skew * next_on if s.skew else stable

    def _failures(self, n_s: Floats, n_c: Floats, now: Floats, before: Floats) -> tuple[Floats, Floats]:
        s = self.s
        bad = self.canary_time >= s.onset
        self.shock = _autoregressive(self.draw, self.shock, s.shock_memory)
        shock = (s.shock_failures * self.shock - 0.5 * s.shock_failures**2)[:, None]
        base = s.canary_failures if s.canary_failures is not None and bad else s.failures
        p_s = 1 / (1 + np.exp(-(_odds(s.failures) + shock + s.pods_failures * self.pod_x_s)))
        p_c = 1 / (1 + np.exp(-(_odds(base) + shock + s.pods_failures * self.pod_x_c)))
        p_s = p_s + s.outage_failures * now[:, None] * (1 - p_s)
        p_c = p_c + s.outage_failures * before[:, None] * (1 - p_c)
        p_c = p_c + s.cold_failures * self._cold() * (1 - p_c)
        if s.crash and bad:
            p_c = np.full_like(p_c, 0.98)
        return self._clustered(n_s, p_s), self._clustered(n_c, p_c)

    def _cold(self) -> Floats:
        return np.asarray(np.exp(-np.maximum(self.age, 0) / self.s.cold_fade))

    def _clustered(self, n: Floats, p: Floats) -> Floats:
        if self.s.cluster <= 1:
            return np.asarray(self.draw.binomial(n.astype(int), p), dtype=float)
        clusters = self.draw.poisson(n * p / self.s.cluster)
        more = self.draw.negative_binomial(np.maximum(clusters, 1), 1 / self.s.cluster)
        return np.asarray(np.minimum(n, clusters + np.where(clusters > 0, more, 0)))

    def _durations(self, n_s: Floats, n_c: Floats, now: Floats) -> tuple[Floats, Floats]:
        s = self.s
        bad = self.canary_time >= s.onset
        self.shock_slow = _autoregressive(self.draw, self.shock_slow, s.shock_memory)
        if s.wander_latency:
            self.wander_s, self.wander_c = (
                _autoregressive(self.draw, w, s.wander_memory) for w in (self.wander_s, self.wander_c)
            )
        both = (s.shock_latency * self.shock_slow + now * np.log(s.outage_slowdown))[:, None]
        slow_s = both + s.pods_latency * self.pod_t_s + s.wander_latency * self.wander_s
        slow_c = both + s.pods_latency * self.pod_t_c + s.wander_latency * self.wander_c
        slow_c = slow_c + np.log1p(s.cold_slowdown * self._cold()) + (np.log(s.canary_slowdown) if bad else 0.0)
        below_s = self._below(slow_s, 0.0)
        below_c = self._below(slow_c, np.log(s.canary_tail_slowdown) if bad else 0.0)
        if bad and s.canary_tail:
            below_c = (1 - s.canary_tail) * below_c + s.canary_tail * (EDGES_MS >= _TAIL_MS)
        return self._histogram(n_s, below_s), self._histogram(n_c, below_c)

    def _below(self, slowdown: Floats, tail: float) -> Floats:
        """Share of durations below each edge, (..., edges)."""
        parts = []
        for i, (share, median, sd) in enumerate(self.s.mixture):
            centre = np.log(median) + slowdown + (tail if i else 0.0)
            parts.append(share * ndtr((_LOG_EDGES - centre[..., None]) / sd))
        return np.asarray(sum(parts))

    def _histogram(self, n: Floats, below: Floats) -> Floats:
        flat = np.zeros((*below.shape[:-1], 1))
        p = np.clip(np.diff(np.concatenate([flat, below, flat + 1], axis=-1), axis=-1), 0, None)
        return np.asarray(self.draw.multinomial(n.astype(int), p / p.sum(-1, keepdims=True)), dtype=float)
