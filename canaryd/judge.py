"""Evidence in, verdict out, with the sentence that explains it. Pure.

Unknown is never good news: what cannot be seen is `blind`, what is not yet proven is `inconclusive`, and only a proof
that every critical row is acceptable is `healthy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, log

import numpy as np

from canaryd import wording
from canaryd.model import Finding, Floats, Judgement, Share, SpanEvidence, Verdict
from canaryd.policy import GaugeMetric, Spec, TracesMetric
from canaryd.spanned import Operations, Spanned, not_seen
from canaryd.stats import evidence, share
from canaryd.stats.assess import Assessment, assess, span_noise
from canaryd.stats.evidence import Batch, Rules

_LIMITS = {
    "pods": "; limited by pod-to-pod variation, {}",
    "clustering": "; limited by failures that come in clusters",
    "warm-up": "; the canary's pods are still warming up",
}
EXPECTED_BEFORE_SILENCE_COUNTS = 7.0  # requests; a Poisson mean that stays silent with probability below 0.1 %


@dataclass(frozen=True, slots=True)
class Subject:
    """One rollout to be judged. `unseen`: why nothing could be read at this tick, for people; empty when it could."""

    spec: Spec
    arrays: Mapping[str, Floats]
    edges: Floats
    step: int
    weight: int  # percent that the route has
    unseen: str = ""
    canary: str = "the canary"  # workload names for the sentences
    stable: str = "stable"
    note: str = ""  # what the source wants to say
    metrics_unseen: Mapping[str, str] = field(default_factory=dict)  # metric -> why it alone could not be read
    errors_note: str = ""  # what should be known of the failures that were counted
    spans: SpanEvidence | None = None


def judge(subjects: Sequence[Subject]) -> list[Judgement]:
    """One judgement for each subject; the numbers of all of them are computed together."""
    if not subjects:
        return []
    batch = Batch([s.arrays for s in subjects], [s.edges for s in subjects], [Rules.of(s.spec) for s in subjects])
    spanned = Spanned.of([(s.spans, s.spec) for s in subjects], lambda of: span_noise(batch, of))
    weights = [s.weight / 100 for s in subjects]
    numbers = assess(batch, [s.step for s in subjects], weights, spanned.log_e)
    return [_Bench(s, numbers, i, spanned.each.get(i)).judgement() for i, s in enumerate(subjects)]


class _Bench:
    """One canary's numbers, cut out of the assessment of all."""

    def __init__(self, subject: Subject, numbers: Assessment, i: int, spans: Operations | None) -> None:
        self.s, self.a, self.i, self.spans = subject, numbers, i, spans
        self.alarm = -log(subject.spec.alpha)
        self.proof = -log(subject.spec.beta)
        self.log_e = float(numbers.log_e[i])
        self.critical = numbers.critical[i]
        names = [q.name for q in subject.spec.queries()][: evidence.queries_in(subject.arrays)]
        self.query_rows = {name: 1 + len(subject.edges) + k for k, name in enumerate(names)}
        self.share = self._share()
        self.regressed = self.log_e >= self.alarm

    def judgement(self) -> Judgement:
        blind = self._blindness()
        findings = self._findings(blind)
        toward = min((self._fine(row) for row in self.critical), default=0.0)
        if self.regressed:
            verdict = Verdict.REGRESSED
        elif blind or self._blinding(findings):
            verdict = Verdict.BLIND
        elif self._is_healthy() and not any(f.verdict is Verdict.REGRESSED or self._is_owed(f) for f in findings):
            verdict = Verdict.HEALTHY
        else:
            verdict = Verdict.INCONCLUSIVE
        decisive = self._decisive(findings, verdict)
        return Judgement(
            verdict=verdict,
            findings=tuple(findings),
            sentence=self._sentence(findings, verdict, decisive, blind),
            decisive=decisive.metric if decisive else "",
            log_e=self.log_e,
            toward_rollback=_towards(self.log_e, self.alarm),
            toward_step=toward,
            share=self.share,
            stable_worse=bool(self.a.stable_worse[self.i] > 4),
        )

    def _blinding(self, findings: list[Finding]) -> list[Finding]:
        """Findings without which nothing can be decided; spans are such only where that was asked for."""
        optional = {m.name for m in self.s.spec.metrics if isinstance(m, TracesMetric) and not m.required}
        return [f for f in findings if f.verdict is Verdict.BLIND and f.metric not in optional]

    def _is_owed(self, finding: Finding) -> bool:
        """A step waits for spans of both arms, sampled alike, where that was asked for."""
        metric = self.s.spec.traces()
        return metric is not None and metric.required and finding.metric == metric.name and finding.toward_step < 1

    # ── what can be seen ─────────────────────────────────────────────────────────────────────────────────────

    def _share(self) -> Share:
        n_c, n = (evidence.clock(self.s.arrays, k) for k in ("share_c", "share_n"))
        if evidence.clock(self.s.arrays, "weight") != self.s.weight / 100 or n == 0:
            return Share(observed=None, requests=0.0, confirmed=False, mismatch=False)
        spec = self.s.spec
        confirmed, mismatch = share.decide(self.a.split[self.i], self.s.weight / 100, spec.alpha, spec.beta)
        return Share(observed=n_c / n, requests=n, confirmed=confirmed, mismatch=mismatch)

    def _blindness(self) -> str:
        """Why the comparison cannot be made, or nothing."""
        if self.s.unseen:
            return self.s.unseen
        if self.share.observed is None or self.s.weight == 0:
            return ""
        w, n = self.s.weight / 100, self.share.requests
        n_c = self.share.observed * n
        missing_c = w * n / max(1 - w, 0.01) if n_c == 0 else 0.0
        missing_s = (1 - w) * n / w if n_c == n and w < 1 else 0.0
        if missing_c >= EXPECTED_BEFORE_SILENCE_COUNTS:
            return f"no request reached {self.s.canary}, though about {wording.count(missing_c)} should have"
        if missing_s >= EXPECTED_BEFORE_SILENCE_COUNTS:
            return f"no request reached {self.s.stable}, though about {wording.count(missing_s)} should have"
        return ""

    # ── findings ─────────────────────────────────────────────────────────────────────────────────────────────

    def _findings(self, blind: str) -> list[Finding]:
        out = []
        for metric in self.s.spec.metrics:
            if metric.kind == "errors":
                found = self._finding(metric.name, "errors", 0, [r for r in self.critical if r == 0], blind)
                out.append(replace(found, note="; ".join(filter(None, (found.note, self.s.errors_note)))))
            elif metric.kind == "latency":
                out.append(self._latency(metric.name, blind))
            elif metric.kind == "query":
                out.append(self._query(metric.name, blind))
            elif isinstance(metric, TracesMetric):
                out.append(self._traces(metric, blind))
            else:
                out.append(self._gauge(metric, blind))
        return out

    def _gauge(self, metric: GaugeMetric, blind: str) -> Finding:
        """Worse or not known to be: a gauge is never proven to be fine, and never rolls back by itself."""
        names = [g.name for g in self.s.spec.gauges()][: evidence.gauges_in(self.s.arrays)]
        numbers = self.a.gauges[self.i, names.index(metric.name)] if metric.name in names else np.zeros(6)
        stable, canary, pods_s, pods_c, intervals, shown = (float(v) for v in numbers)
        unseen = self.s.metrics_unseen.get(metric.name, "") if self._has_begun() else ""
        out = Finding(metric.name, Verdict.INCONCLUSIVE, "level", pods=(int(pods_s), int(pods_c)))
        if not intervals:
            note = blind or unseen or "no value of both arms yet"
            return replace(out, verdict=Verdict.BLIND if blind or unseen else out.verdict, note=note)
        tolerated = wording.percent(metric.tolerance)
        note = (
            f"mean {wording.amount(canary)} canary vs {wording.amount(stable)} stable "
            f"({int(pods_c)} / {int(pods_s)} pods), {wording.relative(canary / stable - 1)}, {tolerated} more tolerated"
        )
        out = replace(out, means=(stable, canary), tolerated=metric.tolerance, note=note)
        if shown >= 1:
            return replace(out, verdict=Verdict.REGRESSED)
        if blind or unseen:
            return replace(out, verdict=Verdict.BLIND, note=blind or unseen)
        if pods_s + pods_c <= 2:
            return replace(out, note=f"{note}; with one pod each, pod and version cannot be told apart")
        return replace(out, toward_step=1.0)

    def _traces(self, metric: TracesMetric, blind: str) -> Finding:
        """The operation that looks worst. Spans can show a regression; that they show none holds nothing up."""
        unseen = self.s.metrics_unseen.get(metric.name, "")
        pods = int(self.a.pods[self.i, 0]), int(self.a.pods[self.i, 1])
        waits = 0.0 if metric.required else 1.0
        out = Finding(metric.name, Verdict.INCONCLUSIVE, "spans", toward_step=waits, pods=pods)
        if self.spans is None:
            why = not_seen(self.s.spans, unseen) or unseen
            lacking = Verdict.BLIND if blind or (why and self._has_begun()) else out.verdict
            return replace(out, verdict=lacking, note=blind or why or "no span has been counted yet")
        out = self.spans.finding(out, self.alarm)
        worst = self.regressed and self.spans.is_culprit(float(self.a.row_log_e[self.i].max()))
        if worst:
            return replace(out, verdict=Verdict.REGRESSED, note=self.spans.said())
        why = blind or (self.spans.unseen(unseen) if self._has_begun() else "")
        if why:
            return replace(out, verdict=Verdict.BLIND, note="; ".join(filter(None, (why, self.spans.said()))))
        return replace(out, toward_step=1.0 if self.spans.alike else out.toward_step, note=self.spans.said())

    def _has_begun(self) -> bool:
        return evidence.clock(self.s.arrays, "intervals") > 0 and self.s.weight > 0

    def _query(self, name: str, blind: str) -> Finding:
        """An operator's own query; what of it cannot be read blinds the metric once there is something to compare."""
        row = self.query_rows.get(name)
        if row is None:
            return Finding(name, Verdict.INCONCLUSIVE, "failures", note=blind or "no interval has been counted yet")
        unseen = self.s.metrics_unseen.get(name, "")
        critical = [r for r in self.critical if r == row]
        return self._finding(name, "failures", row, critical, blind or (unseen if self._has_begun() else ""))

    def _latency(self, name: str, blind: str) -> Finding:
        usable = np.flatnonzero(self.a.usable[self.i][1 : 1 + len(self.s.edges)]) + 1
        if len(usable) == 0:
            scored = evidence.clock(self.s.arrays, "intervals") > 0
            note = self.s.note or "no latency histogram with edges that both arms share"
            return Finding(
                name,
                Verdict.BLIND if scored or blind else Verdict.INCONCLUSIVE,
                "latency",
                note=blind or (note if scored else "no interval has been counted yet"),
            )
        critical = [r for r in self.critical if 0 < r <= len(self.s.edges)]
        worst = int(usable[np.argmax(self.a.row_log_e[self.i][usable])])
        least_sure = min(critical, key=self._fine, default=worst)
        row = worst if self.a.named[self.i][worst] or self.regressed else least_sure
        edge = wording.milliseconds(float(self.s.edges[row - 1]))
        return self._finding(name, f"slower than {edge}", row, critical, blind)

    def _finding(self, name: str, event: str, row: int, critical: list[int], blind: str) -> Finding:
        a, i = self.a, self.i
        least_sure = min(critical, key=self._fine, default=row)
        towards = self._fine(least_sure) if critical else 0.0
        if self.regressed and self._is_culprit(row):
            verdict = Verdict.REGRESSED
        elif blind:
            verdict = Verdict.BLIND
        else:
            verdict = Verdict.HEALTHY if towards >= 1 else Verdict.INCONCLUSIVE
        counted = a.n_c[i, row] > 0 and a.n_s[i, row] > 0
        return Finding(
            metric=name,
            verdict=verdict,
            event=event,
            canary=_number(a.rate_c[i, row]),
            stable=_number(a.rate_s[i, row]) if counted else None,
            canary_n=float(a.n_c[i, row]),
            stable_n=float(a.n_s[i, row]),
            difference=_number(a.difference[i, row]),
            low=_number(a.low[i, row]),
            high=_number(a.high[i, row]),
            tolerated=_number(a.tolerated[i, row]),
            log_e=float(a.row_log_e[i, row]),
            toward_rollback=_towards(float(a.row_log_e[i, row]), self.alarm),
            toward_step=towards,
            needed=self._needed(critical),
            ruled_out=_number(a.margin[i, least_sure]),
            inflation=float(a.phi[i, least_sure]),
            pods=(int(a.pods[i, 0]), int(a.pods[i, 1])),
            limit=self._limit(least_sure),
            seconds_to_step=self._seconds(self._needed(critical)),
            seconds_to_rollback=self._seconds_to_rollback(row),
            note=blind or self._confounded(least_sure),
            row=row,
        )

    def _seconds(self, requests: float | None) -> float | None:
        return None if requests is None or self._pace() <= 0 else requests / self._pace()

    def _confounded(self, row: int) -> str:
        """Said of every finding that rests on a single stable pod and no past ones."""
        alone = self.a.pods[self.i, 0] == 1 and self.a.past_freedom[self.i, row] < 1
        return "with one stable pod and no history, pod and version cannot be told apart" if alone else ""

    def _is_culprit(self, row: int) -> bool:
        rows = self.a.row_log_e[self.i]
        largest = int(np.argmax(rows))
        by_spans = self.spans is not None and self.spans.log_e > rows[largest]
        return bool(self.a.named[self.i, row]) or (row == largest and not by_spans)

    def _fine(self, row: int) -> float:
        return _towards(float(self.a.fine[self.i, row]), self.proof)

    def _needed(self, rows: list[int]) -> float | None:
        """Canary requests until every row is proven acceptable, if the canary is as good as stable; None: never so."""
        need = max((float(self.a.missing[self.i, row]) for row in rows), default=0.0)
        return need if isfinite(need) else None

    def _limit(self, row: int) -> str:
        """What keeps the decision waiting."""
        phi, phi0 = float(self.a.phi[self.i, row]), float(self.a.phi0[self.i, row])
        if self.a.n_c[self.i, 0] == 0 and evidence.clock(self.s.arrays, "harmed") > 0:
            return "warm-up"
        if phi > 2 * phi0:
            return "pods"
        return "clustering" if phi0 > 2 else "traffic"

    def _pace(self) -> float:
        """Canary requests per second at the present weight."""
        seconds, requests = (evidence.clock(self.s.arrays, k) for k in ("seconds", "requests"))
        return requests / seconds * self.s.weight / 100 if seconds > 0 else 0.0

    def _seconds_to_rollback(self, row: int) -> float | None:
        """At the pace of the evidence so far; None where it does not point that way."""
        requests = 0 if row in self.query_rows.values() else row  # the pace is one of requests
        log_e, n = float(self.a.row_log_e[self.i, row]), float(self.a.n_c[self.i, requests])
        if log_e <= 1 or n <= 0 or self._pace() <= 0:
            return None
        return max(self.alarm - self.log_e, 0.0) / (log_e / n) / self._pace()

    # ── verdict ──────────────────────────────────────────────────────────────────────────────────────────────

    def _is_healthy(self) -> bool:
        proof = ("errors", "latency", "query")  # of the others nothing is ever proven
        wanted = {(m.kind, m.name if m.kind == "query" else "") for m in self.s.spec.metrics if m.kind in proof}
        queries = {row: ("query", name) for name, row in self.query_rows.items()}
        proven = {queries.get(row, ("latency" if row else "errors", "")) for row in self.critical}
        return (
            proven >= wanted
            and all(self._fine(row) >= 1 for row in self.critical)
            and self.log_e < self.alarm / 2
            and not self.share.mismatch
            and not self._is_outage()
        )

    def _is_outage(self) -> bool:
        """Stable itself fails far more than its own past: nothing is promoted into that."""
        return bool(self.a.outage[self.i] >= evidence.OUTAGE_Z)

    def _decisive(self, findings: list[Finding], verdict: Verdict) -> Finding | None:
        if verdict is Verdict.REGRESSED:
            culprits = (f for f in findings if f.verdict is verdict and f.means is None)
            return max(culprits, key=lambda f: f.log_e, default=None)
        judged = [f for f in findings if f.canary_n > 0]
        if worse := [f for f in findings if f.verdict is Verdict.REGRESSED]:  # a gauge
            return worse[0]
        if verdict is Verdict.INCONCLUSIVE:
            return min(judged, key=lambda f: f.toward_step, default=None)
        return judged[0] if judged else None

    def _sentence(self, findings: list[Finding], verdict: Verdict, decisive: Finding | None, blind: str) -> str:
        if verdict is Verdict.REGRESSED:
            others = [f.metric for f in findings if f.verdict is not verdict and f.canary_n > 0]
            cause = compared(decisive) if decisive else "the canary is worse than tolerated"
            return cause + (f". Not the cause: {', '.join(others)}" if others else "")
        if verdict is Verdict.BLIND:
            return blind or next(f"{f.metric}: {f.note}" for f in self._blinding(findings))
        if verdict is Verdict.HEALTHY:
            return ", ".join(_healthy(f) for f in findings if f.verdict is verdict and f.canary_n > 0)
        return self._missing(findings, decisive)

    def _missing(self, findings: list[Finding], decisive: Finding | None) -> str:
        if self.share.mismatch:
            return (
                f"the route says {self.s.weight} % but {wording.percent(self.share.observed)} of "
                f"{wording.plural(self.share.requests, 'request')} reached the canary"
            )
        if decisive is None:
            return "no request has been counted yet"
        if decisive.verdict is Verdict.REGRESSED:
            return f"{decisive.metric}: {decisive.note}; no step on that"
        if waits := next((f for f in findings if self._is_owed(f) and decisive.toward_step >= f.toward_step), None):
            return f"{waits.metric}: {waits.note}; no step without spans of both arms"
        if self._is_outage():
            return "stable itself fails far more than before, an outage of both; no step until that is over"
        if all(f.toward_step >= 1 for f in findings if f.canary_n > 0) and self.log_e >= self.alarm / 2:
            return f"{wording.percent(_towards(self.log_e, self.alarm))} of the evidence to roll back; no step on that"
        uncounted = [f.metric for f in findings if f.event == "failures" and f.canary_n == 0]
        if decisive.toward_step >= 1 and uncounted:
            return f"{' and '.join(uncounted)}: nothing has been counted yet"
        rule_out = f"to rule out {wording.points(decisive.ruled_out)} {_more(decisive)}"
        limit = _LIMITS.get(decisive.limit, "").format(wording.plural(decisive.pods[0], "stable pod"))
        if decisive.needed is None:
            return f"more stable requests needed {rule_out}{limit}"
        n = wording.plural(np.ceil(decisive.needed), "canary request")
        return f"{n} more needed{self._eta(decisive)} {rule_out}{limit}"

    def _eta(self, finding: Finding) -> str:
        seconds, requests = (evidence.clock(self.s.arrays, k) for k in ("seconds", "requests"))
        rate = requests / seconds * self.s.weight / 100 if seconds > 0 else 0.0
        if rate <= 0 or finding.needed is None:
            return ""
        return f" (about {wording.span(max(finding.needed / rate, 1.0))})"


def compared(f: Finding) -> str:
    """`errors 1.9 % canary vs 0.1 % stable (n 1 630 / 31 020); difference +1.8 pt (+1.1..+2.6), tolerated +0.03 pt`."""
    head = f"{_named(f)} {wording.percent(f.canary)} canary"
    if f.stable is None:
        return f"{head} (n {wording.count(f.canary_n)})"
    return (
        f"{head} vs {wording.percent(f.stable)} stable "
        f"(n {wording.count(f.canary_n)} / {wording.count(f.stable_n)}); difference "
        f"{wording.interval(f.difference, f.low, f.high)}, tolerated {wording.points(f.tolerated)}"
    )


def _healthy(f: Finding) -> str:
    return (
        f"{_named(f)} {wording.percent(f.canary)} canary vs {wording.percent(f.stable)} stable "
        f"(n {wording.count(f.canary_n)} / {wording.count(f.stable_n)})"
    )


def _named(f: Finding) -> str:
    return f.metric if f.event == "errors" else f"{f.metric}: {f.event}"


def _more(f: Finding) -> str:
    return "more errors" if f.event == "errors" else f"more {f.event}"


def _towards(value: float, threshold: float) -> float:
    """Share of a threshold that has been reached, 0..1, and exactly 1 only when it has."""
    return 1.0 if value >= threshold else max(0.0, min(value / threshold, 0.999))


def _number(value: np.float64) -> float | None:
    return float(value) if isfinite(value) else None
