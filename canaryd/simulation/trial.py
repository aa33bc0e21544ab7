"""Many simulated rollouts judged by the product's own tests, interval by interval, guard and warm-up included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from canaryd.model import Floats
from canaryd.policy import Spec
from canaryd.simulation.traffic import EDGES_MS, Interval, Scenario, Service
from canaryd.stats import evidence, history
from canaryd.stats.assess import Assessment, assess
from canaryd.stats.evidence import Batch, Counts, Rules, advance

HISTORY = 20  # intervals of stable alone before the canary
ALIKE = -1  # to show what differences between pods would do if nothing were done about them
_TOLD_APART = slice(2, 13)  # 5 ms to 10 s: no other edge is ever informative here, and rows cost time
JUDGED_MS = EDGES_MS[_TOLD_APART]


@dataclass(frozen=True, slots=True)
class Result:
    """One row per simulated rollout."""

    rolled_back: Floats  # (R,) canary interval of the rollback, nan for none
    promoted: Floats  # (R,) the same for the promotion
    failed: Floats  # (R,) failed canary requests until the end
    furthest: Floats  # (R,) last step reached


class Panel:
    """R rollouts of one scenario with their evidence; counts come in, the assessment comes out."""

    def __init__(
        self, spec: Spec, scenario: Scenario, copies: int, seed: int, *, guard: bool = True, past_pods: int = 0
    ) -> None:
        """`past_pods`: how many earlier pods are known; ALIKE: the past is made to say that no pod ever differed."""
        self.spec, self.scenario, self.r, self.guard = spec, scenario, copies, guard
        self.service = Service(scenario, copies, seed)
        rules = Rules.of(spec)
        fresh = evidence.empty(JUDGED_MS, len(spec.steps), scenario.stable_pods, scenario.canary_pods)
        self.batch = Batch([fresh] * copies, [JUDGED_MS] * copies, [rules] * copies)
        if past_pods == ALIKE:
            self.batch.a["past"][:, 1] = 1e9
        elif past_pods:
            self.batch.a["past"][:] = np.moveaxis(past(scenario, copies, past_pods, seed + 1), 0, 1)
        self.before: Interval | None = None
        self.pending: Interval | None = None

    def learn(self, interval: Interval) -> None:
        """An interval without a canary."""
        advance(self.batch, self._counts(interval, np.zeros(self.r), scored=False))

    def look(self, interval: Interval, weight: Floats) -> bool:
        """An interval with a canary. With the guard it is scored one interval later; false until then."""
        if not self.guard:
            advance(self.batch, self._counts(interval, weight, scored=True))
            return True
        scored, after = self.pending, interval
        self.pending, self.weight_pending, weight_now = interval, weight, getattr(self, "weight_pending", weight)
        if scored is None:
            return False
        counts = self._counts(scored, weight_now, scored=True)
        for side, near in enumerate((self.before, after)):
            if near is not None:
                counts.x_near[side], counts.n_near[side] = _rows(near.n_s, near.x_s, near.h_s)
                counts.near[side] = True
        advance(self.batch, counts)
        self.before = scored
        return True

    def assess(self, gates: Floats, weight: Floats) -> Assessment:
        return assess(self.batch, gates.astype(int).tolist(), weight.tolist())

    def _counts(self, o: Interval, weight: Floats, *, scored: bool) -> Counts:
        old = (o.age >= self.spec.warm_up.total_seconds())[..., None]
        counts = Counts.nothing(self.batch)
        counts.scored, counts.stable_present = np.full(self.r, scored), np.ones(self.r, dtype=bool)
        counts.weight, counts.seconds = weight, np.full(self.r, self.scenario.interval)
        counts.x_s, counts.n_s = _rows(o.n_s, o.x_s, o.h_s)
        counts.x_c, counts.n_c = _rows(o.n_c * old[..., 0], o.x_c * old[..., 0], o.h_c * old)
        counts.all_x_c, counts.all_n_c, counts.all_n_s = o.x_c.sum(1), o.n_c.sum(1), o.n_s.sum(1)
        counts.x_pods, counts.n_pods = _pods(o.n_s, o.x_s, o.h_s)
        counts.pods_c = o.n_c * old[..., 0]
        return counts


def _pods(n: Floats, x: Floats, h: Floats) -> tuple[Floats, Floats]:
    """(bad events, requests) of each pod over the rows, (R, pods, M)."""
    slower = h.sum(-1, keepdims=True) - np.cumsum(h, -1)[..., _TOLD_APART]
    rows = np.concatenate([x[..., None], slower], axis=-1)
    return rows, np.repeat(n[..., None], rows.shape[-1], axis=-1)


def _rows(n: Floats, x: Floats, h: Floats) -> tuple[Floats, Floats]:
    rows, requests = _pods(n, x, h)
    return rows.sum(1), requests.sum(1)


def past(scenario: Scenario, copies: int, pods: int, seed: int, hours: int = 6) -> Floats:
    """What canaryd.stats.history learns from so many earlier pods, as many at a time as now, each some hours old."""
    hourly = replace(scenario, interval=3600.0, cold_slowdown=0.0, cold_failures=0.0, skew=0.0)
    m, eras = scenario.stable_pods, -(-pods // scenario.stable_pods)
    rows = 1 + len(JUDGED_MS)
    x, n = np.zeros((2, copies, eras * hours, eras * m, rows))
    for era in range(eras):
        service = Service(hourly, copies, seed * 1000 + era)
        for hour in range(hours):
            o = service.step(0.0)
            at = era * hours + hour
            x[:, at, era * m : (era + 1) * m], n[:, at, era * m : (era + 1) * m] = _pods(o.n_s, o.x_s, o.h_s)
    return history.learn(x, n)


def schedule(
    spec: Spec,
    scenario: Scenario,
    copies: int,
    seed: int,
    weights: Sequence[float],
    each: int = 20,
    *,
    guard: bool = True,
    past_pods: int = 0,
) -> Result:
    """Fixed steps whatever is decided: is a rollback ever called for, and when?"""
    panel = Panel(spec, scenario, copies, seed, guard=guard, past_pods=past_pods)
    for _ in range(HISTORY):
        panel.learn(panel.service.step(0.0))
    ended, failed = np.full(copies, np.nan), np.zeros(copies)
    alarm = -np.log(spec.alpha)
    plan = [(g, w) for g, w in enumerate(weights) for _ in range(each)]
    for t, (gate, w) in enumerate(plan, start=1):
        interval = panel.service.step(w)
        failed += np.where(np.isnan(ended), interval.x_c.sum(1), 0.0)
        if panel.look(interval, np.full(copies, w)):
            log_e = panel.assess(np.full(copies, gate), np.full(copies, w)).log_e
            ended = np.where(np.isnan(ended) & (log_e >= alarm), t, ended)
    return Result(ended, np.full(copies, np.nan), failed, np.full(copies, float(len(weights) - 1)))


def closed_loop(
    spec: Spec,
    scenario: Scenario,
    copies: int,
    seed: int,
    most: int = 480,
    dwell: int = 4,
    *,
    guard: bool = True,
    past_pods: int = 0,
) -> Result:
    """The rollout as the product runs it: steps on proof, rolls back on evidence, holds otherwise; 100 % promotes."""
    panel = Panel(spec, scenario, copies, seed, guard=guard, past_pods=past_pods)
    for _ in range(HISTORY):
        panel.learn(panel.service.step(0.0))
    weights = np.array([s.weight / 100 for s in spec.steps if s.weight < 100])
    step, at_step, failed = np.zeros(copies), np.zeros(copies), np.zeros(copies)
    back, promoted = np.full(copies, np.nan), np.full(copies, np.nan)
    for t in range(1, most + 1):
        going = np.isnan(back) & np.isnan(promoted)
        if not going.any():
            break
        w = weights[step.astype(int)]
        interval = panel.service.step(w)
        failed += going * interval.x_c.sum(1)
        at_step += 1
        if not panel.look(interval, w):
            continue
        numbers = panel.assess(step, w)
        bad = numbers.log_e >= -np.log(spec.alpha)
        back = np.where(going & bad, t, back)
        passed = going & ~bad & (at_step >= dwell) & proven(panel.batch, numbers, spec)
        promoted = np.where(passed & (step == len(weights) - 1), t, promoted)
        moved = passed & (step < len(weights) - 1)
        step, at_step = step + moved, np.where(moved, 0.0, at_step)
    return Result(back, promoted, failed, step)


def proven(batch: Batch, numbers: Assessment, spec: Spec) -> NDArray[np.bool_]:
    """Every critical row is proven acceptable, nothing hints at a regression, and stable is not in an outage."""
    need = -np.log(spec.beta)
    fine = np.array([all(numbers.fine[i, row] >= need for row in rows) for i, rows in enumerate(numbers.critical)])
    calm = batch.clock("outage") < evidence.OUTAGE_Z
    return np.asarray(fine & calm & (numbers.log_e < -np.log(spec.alpha) / 2))


def variant(scenario: Scenario, **changes: object) -> Scenario:
    return replace(scenario, **changes)  # type: ignore[arg-type]
