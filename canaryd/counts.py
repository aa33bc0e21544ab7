"""Two readings of raw counters in, the requests between them out. Pure.

The rules, per raw series (never `increase()`, which extrapolates and loses the first errors of a new series):

* it rose: the difference; it fell: the process restarted, and what it counted since is the new value; the buckets of
  one histogram fall together, or those that have already grown past their old values would seem to miss requests;
* new in the second reading: its whole value, when its exporter was already reporting in the first (the series was
  born in between, as the first 500 of a release is); otherwise nothing, it is only a new starting point;
* gone in the second reading: nothing is known of its last moments and nothing is made up;
* a sum over processes that fell (an operator's own query without pods, or what clients report where their pods are not
  told): one restarted or left, nobody knows which, and the sum is only a new starting point;
* a request that never reached a pod, as its client reports it, is a request and a failure of the arm that it was sent
  to, and of no pod. Where a pod's counters have no usable start it is left out: nobody knows how many were served.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from math import inf

import numpy as np

from canaryd.model import Arm, ArmCounts, CounterKey, Floats, Reading, Stretch
from canaryd.policy import ErrorsMetric, Spec

UNREACHED = "unreached"  # CounterKey.name of what clients report of requests that never reached a pod
_NOT_GRPC = ("", "-", "unknown")


@dataclass(frozen=True, slots=True)
class Classes:
    """What counts as a failure, and what is not counted at all."""

    failures: frozenset[str]  # "5xx" or "429"
    ignored_flags: frozenset[str]
    grpc_failures: frozenset[str]
    queries: tuple[str, ...] = ()  # metrics of kind query, by name
    gauges: tuple[str, ...] = ()  # likewise

    @classmethod
    def of(cls, spec: Spec) -> Classes:
        metric = next((m for m in spec.metrics if m.kind == "errors"), ErrorsMetric(name="errors", kind="errors"))
        assert isinstance(metric, ErrorsMetric)
        return cls(
            frozenset(metric.failures),
            frozenset(metric.ignore_flags),
            frozenset(metric.grpc_failures),
            tuple(q.name for q in spec.queries()),
            tuple(g.name for g in spec.gauges()),
        )

    def ignores(self, key: CounterKey) -> bool:
        """A client that left (code 0 with DC) or was rate limited says nothing about the version."""
        return any(flag in self.ignored_flags for flag in key.flags.split(","))

    def fails(self, key: CounterKey) -> bool:
        if key.grpc not in _NOT_GRPC:
            return key.grpc in self.grpc_failures or self._fails_by_code(key)
        return self._fails_by_code(key)

    def _fails_by_code(self, key: CounterKey) -> bool:
        # code 0: no answer at all (unless the client left, which `ignores` has already taken out)
        return key.code in self.failures or f"{key.code[:1]}xx" in self.failures or key.code == "0"


def increments(before: Reading, after: Reading, fresh: Collection[str] = ()) -> dict[CounterKey, float]:
    """Requests per series over (before.at, after.at]; series without a usable start are left out.

    `fresh`: pods known to have started after `before`, whose counters therefore started from zero.
    """
    reporting = {key.exporter for key in before.counters}
    restarted = {
        (key.arm, key.exporter, key.pod)
        for key, value in after.counters.items()
        if key.name == "bucket" and value < before.counters.get(key, 0.0)
    }
    out: dict[CounterKey, float] = {}
    for key, value in after.counters.items():
        old = before.counters.get(key)
        if key.name.startswith("gauge:") or (old is not None and value < old and _is_sum(key)):
            continue
        if old is not None:
            again = key.name == "bucket" and (key.arm, key.exporter, key.pod) in restarted
            out[key] = value if again or value < old else value - old
        elif key.exporter in reporting or key.pod in fresh:
            out[key] = value
    return out


def restarted(before: Reading, after: Reading) -> set[str]:
    """Pods whose counters fell: they started again. A process that counts for several pods or both arms is none."""
    counts_for: defaultdict[str, set[tuple[Arm, str]]] = defaultdict(set)
    fell: dict[str, str] = {}
    for key, value in after.counters.items():
        if key.name == "requests" and key.pod:
            counts_for[key.exporter].add((key.arm, key.pod))
            if value < before.counters.get(key, 0.0):
                fell[key.exporter] = key.pod
    return {pod for exporter, pod in fell.items() if len(counts_for[exporter]) == 1}


def _is_sum(key: CounterKey) -> bool:
    """A sum over processes: an operator's own query without a pod, or clients that are not told apart."""
    return (key.name.startswith("query:") and not key.pod) or (key.name == UNREACHED and not key.exporter)


def stretch(
    before: Reading,
    after: Reading,
    classes: Classes,
    *,
    first_seen: Mapping[str, datetime] | None = None,
    warm_up: timedelta = timedelta(0),
    started: Mapping[str, datetime] | None = None,
) -> Stretch:
    """Both arms between two readings. `first_seen`: pods that have not always been there, for the warm-up."""
    births = {**(first_seen or {}), **(started or {})}
    fresh = {pod for pod, at in (started or {}).items() if before.at < at <= after.at}
    young = {pod for pod, at in births.items() if warm_up and before.at < at + warm_up}
    grown = increments(before, after, fresh)
    edges = common_edges(grown, young)
    present = {key.arm for key in after.counters if key.name == "requests"}
    lost = _unreached(grown, after, classes)
    arms = {
        arm: _arm(grown, arm, classes, young, edges, present=arm in present or lost[arm] > 0, lost=lost[arm])
        for arm in Arm
    }
    if classes.queries:
        names = {(key.arm, key.name) for key in after.counters}
        arms = {arm: _queried(counts, grown, arm, names, classes.queries, young) for arm, counts in arms.items()}
    if classes.gauges:
        arms = {arm: _gauged(counts, after, arm, classes.gauges) for arm, counts in arms.items()}
    return Stretch(
        start=before.at,
        end=after.at,
        stable=arms[Arm.STABLE],
        canary=arms[Arm.CANARY],
        edges=np.array(edges),
        whole=_is_whole(grown, after),
    )


def common_edges(grown: Mapping[CounterKey, float], young: Collection[str] = ()) -> list[float]:
    """Finite bucket edges (ms, ascending) that every histogram of both arms has; empty when there are none."""
    histograms: defaultdict[tuple[Arm, str, str], set[float]] = defaultdict(set)
    for key in grown:
        if key.name == "bucket" and key.pod not in young:
            histograms[key.arm, key.exporter, key.pod].add(key.le)
    sets = [les for les in histograms.values() if inf in les]
    common = set.intersection(*sets) - {inf} if sets else set()
    return sorted(common)


def _is_whole(grown: Mapping[CounterKey, float], after: Reading) -> bool:
    """Every pod's requests were counted; none has begun to report at a moment nobody knows."""
    return all(key in grown for key in after.counters if key.name == "requests")


def _unreached(grown: Mapping[CounterKey, float], after: Reading, classes: Classes) -> dict[Arm, float]:
    """Requests of each arm that never reached a pod.

    None of either arm where a pod has begun to report at a moment nobody knows: what it served is not counted, so the
    lost ones would look like all there were.
    """
    lost = dict.fromkeys(Arm, 0.0)
    if _is_whole(grown, after):
        for key, n in grown.items():
            if key.name == UNREACHED and not classes.ignores(key):
                lost[key.arm] += n
    return lost


def _of_the_warm(lost: float, warm: float, young: float, *, warming: bool) -> float:
    """How many of the lost requests are put beside the pods that are warm: as many as of those that were served."""
    if warm + young > 0:
        return float(round(lost * warm / (warm + young)))
    return 0.0 if warming else lost


@dataclass(slots=True)
class _Pod:
    """What one pod served."""

    requests: float = 0.0
    failures: float = 0.0
    within: defaultdict[float, float] = field(default_factory=lambda: defaultdict(float))


def _arm(
    grown: Mapping[CounterKey, float],
    arm: Arm,
    classes: Classes,
    young: Collection[str],
    edges: list[float],
    *,
    present: bool,
    lost: float,
) -> ArmCounts:
    by_pod: defaultdict[str, _Pod] = defaultdict(_Pod)
    for key, n in grown.items():
        if key.arm is not arm or key.name not in ("requests", "bucket"):
            continue
        pod = by_pod[key.pod]
        if key.name == "bucket":
            pod.within[key.le] += n
        elif not classes.ignores(key):
            pod.requests += n
            pod.failures += n if classes.fails(key) else 0.0
    old = sorted(name for name in by_pod if name not in young)
    new = [pod for name, pod in by_pod.items() if name in young]
    requests, failures = (np.array([getattr(by_pod[p], k) for p in old]) for k in ("requests", "failures"))
    young_requests, young_failures = sum(p.requests for p in new), sum(p.failures for p in new)
    pod_timed = np.array([by_pod[p].within[inf] if edges else 0.0 for p in old])
    pod_slower = np.array(
        [slower(t, [by_pod[p].within[e] for e in edges]) for p, t in zip(old, pod_timed, strict=True)]
    ).reshape(len(old), len(edges))
    warm_lost = _of_the_warm(lost, float(requests.sum()), young_requests, warming=bool(new))
    return ArmCounts(
        present=present,
        requests=float(requests.sum()) + young_requests + lost,
        failures=float(failures.sum()) + young_failures + lost,
        young_requests=young_requests + lost - warm_lost,
        young_failures=young_failures + lost - warm_lost,
        unreached=lost,
        timed=float(pod_timed.sum()),
        slower=pod_slower.sum(0),
        pods=tuple(old),
        pod_requests=requests,
        pod_failures=failures,
        pod_timed=pod_timed,
        pod_slower=pod_slower,
    )


PARTS = ("failures", "total")  # of a query metric


def _queried(
    counts: ArmCounts,
    grown: Mapping[CounterKey, float],
    arm: Arm,
    names: Collection[tuple[Arm, str]],
    metrics: tuple[str, ...],
    young: Collection[str],
) -> ArmCounts:
    """With what the operator's own queries counted. A metric of which a series is missing counts nothing at all."""
    columns = {f"query:{metric}:{part}": (k, i) for k, metric in enumerate(metrics) for i, part in enumerate(PARTS)}
    rows = {pod: i for i, pod in enumerate(counts.pods)}
    total, by_pod = np.zeros((len(metrics), 2)), np.zeros((len(counts.pods), len(metrics), 2))
    for key, n in grown.items():
        if key.arm is arm and key.name in columns and key.pod not in young:
            total[columns[key.name]] += n
            if key.pod in rows:
                by_pod[(rows[key.pod], *columns[key.name])] += n
    unseen = {}
    for k, metric in enumerate(metrics):
        missing = [part for part in PARTS if (arm, f"query:{metric}:{part}") not in names]
        if missing and counts.requests > 0:
            unseen[metric] = f"no series of {' and '.join(missing)} for {arm}"
        elif total[k, 0] > total[k, 1]:
            unseen[metric] = f"more failures than in total were counted for {arm}"
        if missing or metric in unseen:
            total[k], by_pod[:, k] = 0.0, 0.0
    by_pod[..., 0] = np.minimum(by_pod[..., 0], by_pod[..., 1])
    return replace(counts, queries=total, pod_queries=by_pod, unseen=unseen)


def _gauged(counts: ArmCounts, after: Reading, arm: Arm, metrics: tuple[str, ...]) -> ArmCounts:
    """With the gauges' values at the end of the stretch. Only what a pod has of its own can be compared."""
    found: dict[str, dict[str, float]] = {metric: {} for metric in metrics}
    for key, value in after.counters.items():
        metric = key.name.removeprefix("gauge:")
        if key.arm is arm and metric in found and key.name != metric and key.pod in counts.pods and value > 0:
            found[metric][key.pod] = value
    unseen = dict(counts.unseen)
    for metric, values in found.items():
        if not values and counts.pods and counts.requests > counts.young_requests:
            unseen[metric] = f"no value above 0 of any pod of {arm} that serves requests"
    return replace(counts, gauges=found, unseen=unseen)


def slower(timed: float, within: list[float]) -> Floats:
    """Requests above each edge; cumulative buckets read a moment apart are made monotone, never negative."""
    if not within:
        return np.zeros(0)
    cumulative = np.minimum(np.maximum.accumulate(np.array(within, dtype=np.float64)), timed)
    return np.asarray(timed - cumulative, dtype=np.float64)


def pods(reading: Reading, arm: Arm) -> set[str]:
    """Pods of one arm that have any series."""
    return {key.pod for key in reading.counters if key.arm is arm and key.name != UNREACHED}
