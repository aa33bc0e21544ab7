"""Which simulated services the tests are measured on, and what is promised for each. Data; runs nothing.

The magnitudes of the noises are assumptions, not measurements of a real mesh; every one of them is written in the
description of its case, and that description is what the published tables show.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from math import log
from typing import Any

from scipy.special import ndtr

from canaryd.policy import Budget, EnvoyFile, Pool, Route, Spec, Workloads
from canaryd.simulation.traffic import Scenario
from canaryd.simulation.trial import ALIKE

WEIGHTS = (0.05, 0.10, 0.25, 0.50)  # steps of the fixed schedule
EACH = 20  # intervals at each: 80 looks
PAST_PODS = 20  # where pods of the past are known
FIXED, LOOP = "fixed schedule", "closed loop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of a table. `promise`: the largest acceptable share of what must not happen; None: nothing is promised.

    `aim`: for a regression on the fixed schedule, (share found, median intervals) that the design calls for.
    """

    name: str
    group: str
    says: str
    scenario: Scenario
    promise: float | None = None
    past_pods: int = 0
    how: str = FIXED
    per_hour: int = 0  # budget in failed requests an hour; the default policy has 100
    aim: tuple[float, float] | None = None
    guard: bool = True


def default_spec(per_hour: int | None = None) -> Spec:
    """The policy with all its defaults; of the budget, the requests per hour may be chosen."""
    pools = Workloads(pools=(Pool(name="stable"), Pool(name="canary")))
    budget = Budget() if per_hour is None else Budget(per_hour=per_hour)
    return Spec(workloads=pools, route=Route(envoy_file=EnvoyFile(path="route.yaml")), budget=budget)


ALPHA = 0.01
Noise = dict[str, Any]
OUTAGES: Noise = {"outages": 0.01, "outage_length": 6.0, "outage_failures": 0.3, "outage_slowdown": 3.0}
SHOCKS: Noise = {"shock_failures": 0.5, "shock_latency": 0.1}
PODS: Noise = {"pods_failures": 0.2, "pods_latency": 0.05}
HARSH_PODS: Noise = {"pods_failures": 0.3, "pods_latency": 0.10}
MILD_PODS: Noise = {"pods_failures": 0.1, "pods_latency": 0.03}
CLUSTERS: Noise = {"cluster": 5.0}
WANDER: Noise = {"wander_latency": 0.1}
COLD: Noise = {"cold_slowdown": 1.0, "cold_failures": 0.01}
_SAID = "sd 0.2 of the log odds of failing and 0.05 of log latency"


def _null(name: str, says: str, promise: float | None = ALPHA, past_pods: int = 0, **changes: Any) -> Case:
    group = changes.pop("group", "noise")
    return Case(
        name=name,
        group=str(group),
        says=says,
        scenario=_scenario(name, **changes),
        promise=promise,
        past_pods=past_pods,
    )


def _scenario(name: str, **changes: Any) -> Scenario:
    return replace(Scenario(name=name), **changes)


def noises() -> tuple[Case, ...]:
    """Fourteen kinds of traffic in which the canary is exactly as good as stable."""
    plain = [
        _null(f"plain-{rps}", f"independent requests, {rps} rps", rps=float(rps)) for rps in (1, 10, 100, 1000, 5000)
    ]
    return (
        *plain,
        _null("failing", "1 % of requests fail, 100 rps", failures=0.01),
        _null("shocks", "shocks to both arms: AR(1), sd 0.5 of log odds of failing, 0.1 of log latency", **SHOCKS),
        _null("outages", "shared outages: one begins in 1 % of intervals, mean 6, 30 % fail, 3 x latency", **OUTAGES),
        _null("clusters", "failures in clusters of 5 on average", **CLUSTERS),
        _null("pods", f"10 pods that differ: {_SAID}", **PODS),
        _null("pods-3", "the same with 3 stable pods", stable_pods=3, **PODS),
        _null("wander", "latency of each pod wanders: AR(1), sd 0.1 of log latency", **WANDER),
        _null("cold", "pods start cold: 2 x latency and 1 % more failures, fading with 40 s", **COLD),
        _null(
            "everything",
            "shocks, outages, clusters, pods, wandering and cold starts at once, 10 pods",
            **SHOCKS,
            **OUTAGES,
            **CLUSTERS,
            **PODS,
            **WANDER,
            **COLD,
        ),
    )


def skews() -> tuple[Case, ...]:
    """The canary's counters are read later than stable's, while outages hit both."""
    return tuple(
        _null(
            f"skew-{share}",
            f"shared outages, the canary's counters read {share} of an interval later",
            group="scrapes out of phase",
            skew=share,
            **OUTAGES,
        )
        for share in (0.1, 0.3, 0.5)
    )


def boundaries() -> tuple[Case, ...]:
    """The canary is exactly as much worse than stable as is tolerated. With pods that differ nothing is promised."""
    plain = [
        _edge(
            f"edge-{rps}-{failures:g}",
            f"stable fails {failures:.1%}, the canary 1.05 times that and 0.02 points more, {rps} rps",
            rps,
            ALPHA,
            failures=failures,
            canary_failures=1.05 * failures + 0.0002,
        )
        for rps, failures in ((10, 0.001), (100, 0.001), (1000, 0.001), (1000, 0.05))
    ]
    pods = [
        _edge(
            f"edge-pods-{rps}",
            f"the same at 0.1 %, and 10 pods that differ, {rps} rps",
            rps,
            canary_failures=0.00125,
            **PODS,
        )
        for rps in (100, 1000)
    ]
    slow = [
        _edge(
            f"edge-slow-{rps}", f"everything exactly 5 % slower, {rps} rps (nearly the edge)", rps, canary_slowdown=1.05
        )
        for rps in (1000, 5000)
    ]
    return (*plain, *pods, *slow)


def _edge(name: str, says: str, rps: int, promise: float | None = None, **changes: Any) -> Case:
    return _null(name, says, promise, group="at the edge of the tolerance", rps=float(rps), **changes)


def few_pods() -> tuple[Case, ...]:
    """One, two and three pods, canary pods as many, at three strengths of pod effects, 300 rps; past known or not."""
    rows = []
    for name, effects, known in (("mild", MILD_PODS, ALPHA), ("usual", PODS, ALPHA), ("harsh", HARSH_PODS, 0.02)):
        for pods in (1, 2, 3):
            for past in (0, PAST_PODS):
                size = f"{effects['pods_failures']:g} / {effects['pods_latency']:g}"
                rows.append(
                    _null(
                        f"few-{name}-{pods}-{'past' if past else 'new'}",
                        f"{pods} stable pod{'s' * (pods > 1)}, pods differ by {size}, "
                        + (f"{past} pods of the past known" if past else "no pods of the past"),
                        promise=known if past else None,
                        past_pods=past,
                        group="few stable pods",
                        rps=300.0,
                        stable_pods=pods,
                        canary_pods=pods,
                        **effects,
                    )
                )
    return tuple(rows)


def null_cases() -> tuple[Case, ...]:
    """Every case in which the canary is no worse than tolerated."""
    return (*noises(), *skews(), *boundaries(), *few_pods())


def unprotected() -> tuple[Case, ...]:
    """What would happen without a protection: these break the promise, or the simulation shows nothing."""
    skewed = {case.name: case for case in skews()}["skew-0.5"]
    pods = {case.name: case for case in noises()}["pods"]
    return (
        replace(skewed, name="unguarded", says=f"{skewed.says}, no guard", guard=False),
        replace(pods, name="blind-to-pods", says=f"{pods.says}, taken to be alike", past_pods=ALIKE),
    )


SMALLER = ("plain-10", "skew-0.5", "pods", "clusters")  # what a pull request is checked with


# ── regressions ──────────────────────────────────────────────────────────────────────────────────────────────


def share_below(scenario: Scenario, ms: float, tail: float = 1.0) -> float:
    """Share of requests faster than `ms` when the slower components of the mixture are `tail` times as slow."""
    return float(
        sum(
            share * ndtr((log(ms) - log(median) - (log(tail) if i else 0.0)) / sd)
            for i, (share, median, sd) in enumerate(scenario.mixture)
        )
    )


def _bisect(low: float, high: float, target: float, of: object) -> float:
    assert callable(of)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if of(middle) < target else (low, middle)
    return (low + high) / 2


@cache
def slower_tail(share: float = 0.99, slower: float = 1.2) -> float:
    """Factor on the slower components that makes this quantile of the plain scenario so much slower."""
    plain = Scenario()
    quantile = _bisect(1.0, 1e5, share, lambda ms: share_below(plain, ms))
    return _bisect(1.0, 5.0, -share, lambda tail: -share_below(plain, quantile * slower, tail))


# kind of regression -> words, changes of the scenario, {rps: (share found, median intervals) of the design}
_REGRESSIONS: dict[str, tuple[str, Noise, dict[int, tuple[float, float]]]] = {
    "errors-0.5": (
        "failures 0.1 % to 0.5 %",
        {"canary_failures": 0.005},
        {10: (0.58, 74), 100: (1.0, 23), 1000: (1.0, 6.5), 5000: (1.0, 5)},
    ),
    "errors-5": (
        "failures 0.1 % to 5 %",
        {"canary_failures": 0.05},
        {1: (0.98, 41), 10: (1.0, 9.5), 100: (1.0, 5), 1000: (1.0, 1), 5000: (1.0, 1)},
    ),
    "errors-1.2": (
        "failures 1 % to 1.2 %",
        {"failures": 0.01, "canary_failures": 0.012},
        {100: (0.04, 81), 1000: (0.96, 50), 5000: (1.0, 22)},
    ),
    "p99": ("p99 20 % slower", {}, {10: (0.03, 81), 100: (0.98, 49), 1000: (1.0, 13), 5000: (1.0, 6)}),
    "p50": ("everything 10 % slower", {"canary_slowdown": 1.1}, {10: (0.51, 80), 100: (1.0, 27), 1000: (1.0, 7)}),
    "tail": ("1 % of requests take 2 s", {"canary_tail": 0.01}, {10: (1.0, 26), 100: (1.0, 7), 1000: (1.0, 5)}),
    "crash": (
        "98 % fail",
        {"crash": True},
        {1: (1.0, 2), 10: (1.0, 1), 100: (1.0, 1), 1000: (1.0, 1)},
    ),
}


def regressions() -> tuple[Case, ...]:
    """What must be found. The aims are those of the design plus the one interval that the scrape-phase guard costs."""
    rows = []
    for kind, (says, changes, aims) in _REGRESSIONS.items():
        own = {"canary_tail_slowdown": slower_tail()} if kind == "p99" else changes
        for rps, (found, median) in aims.items():
            name = f"{kind}-{rps}"
            rows.append(
                Case(
                    name=name,
                    group=says,
                    says=f"{says}, {rps} rps",
                    scenario=_scenario(name, rps=float(rps), **own),
                    aim=(found, min(median + 1, 81.0)),
                )
            )
    return tuple(rows)


def few_pods_regressions() -> tuple[Case, ...]:
    """What must still be found with one, two and three stable pods when pods of the past are known, 300 rps."""
    rows = []
    for says, changes, aim in (
        ("failures 0.1 % to 1 %", {"canary_failures": 0.01}, (1.0, 8.0)),
        ("everything 30 % slower", {"canary_slowdown": 1.3}, (0.8, 25.0)),
    ):
        for pods in (1, 2, 3):
            for past in (0, PAST_PODS):
                name = f"few-{'slow' if 'slower' in says else 'errors'}-{pods}-{'past' if past else 'new'}"
                words = f"{past} pods of the past known" if past else "no pods of the past"
                rows.append(
                    Case(
                        name=name,
                        group="few stable pods",
                        says=f"{says}, {pods} stable, {words}",
                        scenario=_scenario(name, rps=300.0, stable_pods=pods, canary_pods=pods, **MILD_PODS, **changes),
                        past_pods=past,
                        aim=aim if past else None,
                    )
                )
    return tuple(rows)


# ── closed loop ──────────────────────────────────────────────────────────────────────────────────────────────


def _loop(name: str, says: str, rps: float, per_hour: int = 0, promise: float | None = None, **changes: Any) -> Case:
    return Case(
        name=name,
        group=LOOP,
        says=f"{says}, {rps:g} rps",
        scenario=_scenario(name, rps=rps, **changes),
        how=LOOP,
        per_hour=per_hour,
        promise=promise,
    )


def loops() -> tuple[Case, ...]:
    """Whole rollouts; `promise` is the share that may be promoted. The budget is 0.1 % of the requests alone."""
    tail = slower_tail()
    rows = [_loop(f"good-{rps}", "as good as stable", float(rps)) for rps in (1, 10, 100, 1000)]
    rows += [
        _loop("good-pods", "as good, pods differ by 0.1 / 0.03", 1000.0, **MILD_PODS),
        _loop("good-outages", "as good, shocks and shared outages", 1000.0, **SHOCKS, **OUTAGES),
    ]
    worse: tuple[tuple[str, str, Noise, tuple[int, ...]], ...] = (
        ("bad", "failures 0.1 % to 0.5 %", {"canary_failures": 0.005}, (10, 100, 1000)),
        ("edge", "failures at the edge of unacceptable, 0.225 %", {"canary_failures": 0.00225}, (10, 100, 1000)),
        ("bad-p99", "p99 20 % slower, between tolerance and margin", {"canary_tail_slowdown": tail}, (10, 100, 1000)),
        ("slow", "everything 30 % slower", {"canary_slowdown": 1.3}, (100, 1000)),
    )
    for name, says, changes, rates in worse:
        promise = None if name == "bad-p99" else 0.05
        rows += [_loop(f"{name}-{rps}", says, float(rps), promise=promise, **changes) for rps in rates]
    return tuple(rows)


def few_pods_loops() -> tuple[Case, ...]:
    """Whole rollouts with one, two and three stable pods, 300 rps: without a past of pods, little is ever proven."""
    rows = []
    whats: tuple[tuple[str, str, Noise], ...] = (
        ("good", "as good as stable", {}),
        ("slow", "everything 30 % slower", {"canary_slowdown": 1.3}),
        ("edge", "failures 0.225 %", {"canary_failures": 0.00225}),
    )
    for what, says, changes in whats:
        for pods in (1, 2, 3):
            for past in (0, PAST_PODS):
                name = f"few-{what}-{pods}-{'past' if past else 'new'}"
                words = f"{past} pods of the past known" if past else "no pods of the past"
                effects: Noise = {**MILD_PODS, **changes}
                row = _loop(name, f"{says}, {pods} stable, {words}", 300.0, promise=0.05, **effects)
                row = replace(row, promise=None if what == "good" else 0.05, past_pods=past)
                rows.append(replace(row, scenario=replace(row.scenario, stable_pods=pods, canary_pods=pods)))
    return tuple(rows)


def low_traffic() -> tuple[Case, ...]:
    """Whole rollouts with the default budget: the larger of 0.1 % of the requests and 100 failed requests an hour."""
    rows = [_loop(f"low-good-{rps:g}", "as good as stable", rps, 100) for rps in (10.0, 3.0, 1.0)]
    for rps in (10.0, 3.0, 1.0):
        edge = 1.25 * 0.001 + max(0.001, 100 / 3600 / rps)
        says = f"failures at the edge of unacceptable, {edge:.2%}"
        rows.append(_loop(f"low-edge-{rps:g}", says, rps, 100, 0.05, canary_failures=edge))
    return tuple(rows)
