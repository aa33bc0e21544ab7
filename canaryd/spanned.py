"""What the spans of many rollouts say, in numbers for the judge and in words for people. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np

from canaryd import wording
from canaryd.model import Finding, Floats, SpanEvidence
from canaryd.operations import TRACES, edges_of
from canaryd.policy import Spec
from canaryd.stats import difference, traces
from canaryd.stats.traces import FAILED, Assessment, Noise

LATE = 4  # intervals that wait for spans, from which on the spans are not seen
LOST = 2  # intervals in a row that could not be counted, likewise
EXPECTED = 7.0  # spans; a Poisson mean that stays silent with probability below 0.1 %
MOST_NAMED = 3  # operations in a note


@dataclass(frozen=True, slots=True)
class Spanned:
    """The rollouts that have spans, by their index, and ln of the e-value of every rollout, 0 without any."""

    log_e: Floats  # (C,)
    each: Mapping[int, Operations]

    @classmethod
    def of(cls, subjects: Sequence[tuple[SpanEvidence | None, Spec]], noise: Callable[[list[int]], Noise]) -> Spanned:
        """`noise`: of the rollouts with these indices. The numbers of all rollouts are computed together."""
        having = [
            (i, held, spec) for i, (held, spec) in enumerate(subjects) if _counts(held, spec) and held is not None
        ]
        log_e = np.zeros(len(subjects))
        if not having:
            return cls(log_e, {})
        batch = traces.Batch([(held.arrays, edges_of(held)) for _, held, _ in having])
        at = [i for i, _, _ in having]
        alpha, beta = (np.array([getattr(spec, name) for _, _, spec in having]) for name in ("alpha", "beta"))
        numbers = traces.assess(batch, noise(at), alpha, beta)
        log_e[at] = numbers.log_e
        each = {i: Operations(held, spec, numbers, j) for j, (i, held, spec) in enumerate(having)}
        return cls(log_e, each)


def _counts(held: SpanEvidence | None, spec: Spec) -> bool:
    metric = spec.traces()
    if held is None or metric is None or not held.arrays:
        return False
    return traces.fits(held.arrays, metric.operations + 1, edges_of(held))


@dataclass(frozen=True, slots=True)
class Operations:
    """One rollout's operations, cut out of the assessment of all."""

    held: SpanEvidence
    spec: Spec
    numbers: Assessment
    j: int

    @property
    def log_e(self) -> float:
        """Of all operations together."""
        return float(self.numbers.log_e[self.j])

    @property
    def alike(self) -> bool:
        """Both arms are known to be sampled alike."""
        return bool(self.numbers.alike[self.j])

    def finding(self, out: Finding, alarm: float) -> Finding:
        """With the numbers of the operation that looks worst."""
        total = self.held.arrays["total"]
        counted = (total[..., 1] > 0) & (total[..., 3] > 0)  # (K, 2)
        if not counted.any():
            return out
        each = np.where(counted, self.numbers.each[self.j][: len(counted)], -np.inf)
        slot, kind = np.unravel_index(int(np.argmax(each)), each.shape)
        x_c, n_c, x_s, n_s = (float(v) for v in total[slot, kind])
        metric = self.spec.traces()
        assert metric is not None
        rate = float(self.numbers.rates[self.j, slot, kind])
        low, high = _interval(x_c, n_c, x_s, n_s)
        return replace(
            out,
            event=self._event(int(slot), int(kind)),
            canary=x_c / n_c,
            stable=x_s / n_s,
            canary_n=n_c,
            stable_n=n_s,
            difference=x_c / n_c - x_s / n_s,
            low=low,
            high=high,
            tolerated=metric.tolerance.relative * rate + metric.tolerance.absolute,
            log_e=self.log_e,
            toward_rollback=1.0 if self.log_e >= alarm else max(0.0, min(self.log_e / alarm, 0.999)),
        )

    def is_culprit(self, rows: float) -> bool:
        """Some operation is named, or all together weigh more than any row of requests. `rows`: ln of the largest."""
        return self.alike and (bool(self.numbers.named[self.j].any()) or self.log_e > max(rows, 0.0))

    def unseen(self, why: str) -> str:
        """Why the spans cannot be seen now, "" when they can. `why`: what is known of that from elsewhere."""
        return self._refused() if self.numbers.unlike[self.j] else not_seen(self.held, why)

    def said(self) -> str:
        """What else a person should know."""
        parts = [self.held.note, self._sampling(), self._also(), self._strangers(), self._missing()]
        return "; ".join(dict.fromkeys(part for part in parts if part))

    def _event(self, slot: int, kind: int) -> str:
        names = self.held.operations
        name = names[slot] if slot < len(names) else "all other operations"
        if kind == FAILED:
            return f"{name} failed"
        return f"{name} slower than {wording.milliseconds(float(self.numbers.edge[self.j, slot]))}"

    def _shares(self) -> tuple[float, float]:
        """Of stable's and the canary's requests, those that have spans."""
        spans, requests = self.held.arrays["clock"][2:4], self.held.arrays["clock"][4:6]
        stable, canary = spans / np.maximum(requests, 1.0)
        return float(stable), float(canary)

    def _refused(self) -> str:
        stable, canary = (wording.percent(share) for share in self._shares())
        return f"refused: {stable} of stable's requests have spans, {canary} of the canary's"

    def _sampling(self) -> str:
        if self.numbers.unlike[self.j]:
            return self._refused()
        if self.alike:
            return ""
        if traces.clock(self.held.arrays, "intervals") and not self.held.arrays["clock"][2:4].any():
            return "no span of either arm has been counted"
        return "not yet known whether both arms are sampled alike"

    def _also(self) -> str:
        """Further operations that are worse."""
        each = self.numbers.each[self.j]
        named = sorted((-float(each[at]), at) for at in map(tuple, np.argwhere(self.numbers.named[self.j])))
        rest = [self._event(slot, kind) for _, (slot, kind) in named[1:]]
        return f"also worse: {_listed(rest)}" if rest else ""

    def _strangers(self) -> str:
        ratio = self._stable_per_canary()
        found = [
            f"{name} ({wording.plural(n, 'span')}{f', {wording.count(failed)} failed' if failed else ''})"
            for name, n, failed in self.held.strangers
            if n * ratio >= EXPECTED
        ]
        return f"only the canary has {_listed(found)}" if found else ""

    def _missing(self) -> str:
        """Operations of stable that the canary should have had by now."""
        total, ratio = self.held.arrays["total"][:, FAILED], self._stable_per_canary()
        if not isfinite(ratio) or ratio <= 0:
            return ""
        names = [
            name for i, name in enumerate(self.held.operations) if total[i, 1] == 0 and total[i, 3] / ratio >= EXPECTED
        ]
        return f"the canary has no span of {_listed(names)}" if names else ""

    def _stable_per_canary(self) -> float:
        """Spans of stable for each of the canary; 0 before there are any."""
        stable, canary = (traces.clock(self.held.arrays, name) for name in ("spans_s", "spans_c"))
        return stable / canary if canary > 0 else 0.0


def _interval(x_c: float, n_c: float, x_s: float, n_s: float) -> tuple[float, float]:
    """Of the difference, for showing, over all intervals at once (see canaryd.stats.difference)."""
    total, requests, bad = np.array([x_c - n_c * x_s / n_s]), np.array([n_c]), np.array([x_c])
    share = difference.stable_share(total, requests, bad, np.array([x_s]), np.array([n_s]))
    _, low, high = difference.interval(total, requests, np.array([n_c**2 / n_s]), share)
    return float(low[0]), float(high[0])


def not_seen(held: SpanEvidence | None, why: str) -> str:
    """Why there have been no spans of late, "" when there have."""
    if held is None:
        return why or "no span has been counted yet"
    if held.lost >= LOST:
        return "; ".join(dict.fromkeys(filter(None, (held.note, why)))) or "the spans could not be counted"
    if held.source == TRACES and len(held.waiting) > LATE:
        newest = wording.plural(len(held.waiting), "interval")
        return "; ".join(filter(None, (f"the spans of the last {newest} have not come", why)))
    return ""


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_NAMED])
    return f"{shown} and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else shown
