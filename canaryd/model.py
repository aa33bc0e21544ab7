"""The nouns: what was read, what is believed, what is wanted, what was decided.

Plain frozen data, no behaviour beyond reading itself. Times are timezone-aware UTC; a weight is percent of requests
for the canary, 0 to 100; a rate or share is 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Arm(StrEnum):
    """Which side of the comparison."""

    STABLE = "stable"
    CANARY = "canary"


class Verdict(StrEnum):
    """Four outcomes, never two."""

    HEALTHY = "healthy"  # enough evidence that the canary is acceptable for the next step
    REGRESSED = "regressed"  # enough evidence that it is worse than tolerated
    INCONCLUSIVE = "inconclusive"  # not enough evidence yet, either way
    BLIND = "blind"  # cannot see: no answer, or an answer without data


class Phase(StrEnum):
    """Where a rollout is."""

    IDLE = "Idle"
    WAITING = "Waiting"  # canary pods are not ready
    PROGRESSING = "Progressing"
    PAUSED = "Paused"
    PROMOTING = "Promoting"
    SUCCEEDED = "Succeeded"
    ROLLING_BACK = "RollingBack"
    ROLLED_BACK = "RolledBack"

    @property
    def is_active(self) -> bool:
        """A rollout is under way: the metrics are read and the weight is kept."""
        return self in _ACTIVE

    @property
    def is_scored(self) -> bool:
        """The canary has traffic: what is counted is evidence."""
        return self in (Phase.PROGRESSING, Phase.PAUSED, Phase.PROMOTING)

    @property
    def is_settled(self) -> bool:
        """Nothing more happens until a person or a new revision comes."""
        return self in (Phase.IDLE, Phase.SUCCEEDED, Phase.ROLLED_BACK)


_ACTIVE = frozenset({Phase.WAITING, Phase.PROGRESSING, Phase.PAUSED, Phase.PROMOTING, Phase.ROLLING_BACK})


# ── what was read ────────────────────────────────────────────────────────────────────────────────────────────


class CounterKey(NamedTuple):
    """Identity of one raw counter series. Two series with the same key are duplicates of each other."""

    arm: Arm
    exporter: str  # the process that keeps the counter; all its counters are reset together
    pod: str  # the unit that served the requests; "" for "unreached": no pod did
    name: str  # "requests", "unreached", "bucket", "query:<metric>:failures", "query:<metric>:total", "gauge:<metric>"
    code: str  # HTTP response code, "" for buckets
    flags: str  # Envoy response flags such as "UF" or "DC", "-" or "" when there are none; "" for buckets
    grpc: str  # gRPC status, "" when the request was not gRPC; "" for buckets
    le: float  # upper bound of a cumulative bucket in milliseconds, inf for the whole; nan never; 0.0 for requests


@dataclass(frozen=True, slots=True)
class Reading:
    """All raw cumulative counters of one canary (both arms) at one instant, from one server in one answer."""

    at: datetime
    counters: Mapping[CounterKey, float]  # finite, >= 0
    # Spans that a collector counted, finite, >= 0. `name`: "calls" or "took"; `pod`: the operation; `code`: "error" or
    # ""; `flags`: what else tells the series from the others of its exporter; `le`: of "took", in milliseconds.
    spans: Mapping[CounterKey, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ArmCounts:
    """What one arm served during one stretch. All arrays are float64 with whole values >= 0."""

    present: bool  # False: the arm had no series, so nothing is known; zeros then mean nothing
    requests: float = 0.0
    failures: float = 0.0  # of those requests
    young_requests: float = 0.0  # served by pods still warming up; included in `requests` and `failures` above
    young_failures: float = 0.0
    unreached: float = 0.0  # never reached a pod: included in the numbers above, and in nothing that is by pod
    timed: float = 0.0  # requests with a recorded duration, warming pods excluded
    slower: Floats = field(default_factory=lambda: np.zeros(0))  # (edges,), timed requests above each edge
    pods: tuple[str, ...] = ()  # those that are not warming up, sorted; rows of the arrays below
    pod_requests: Floats = field(default_factory=lambda: np.zeros(0))  # (pods,)
    pod_failures: Floats = field(default_factory=lambda: np.zeros(0))  # (pods,)
    pod_timed: Floats = field(default_factory=lambda: np.zeros(0))  # (pods,)
    pod_slower: Floats = field(default_factory=lambda: np.zeros((0, 0)))  # (pods, edges)
    queries: Floats = field(default_factory=lambda: np.zeros((0, 2)))  # (query metrics by name, failures and total)
    pod_queries: Floats = field(default_factory=lambda: np.zeros((0, 0, 2)))  # (pods, query metrics, 2)
    gauges: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # gauge -> pod -> value at the end, > 0
    unseen: Mapping[str, str] = field(default_factory=dict)  # query or gauge metric -> why it was not counted here


@dataclass(frozen=True, slots=True)
class SpanCounts:
    """Spans of a service over (start, end] by operation, each counted once. Arms in the order of `Arm`."""

    start: datetime
    end: datetime
    operations: tuple[str, ...] = ()
    spans: Floats = field(default_factory=lambda: np.zeros((0, 2, 2)))  # (operations, arms, 2): all, failed ones
    durations: Floats = field(default_factory=lambda: np.zeros((0, 2, 1)))  # (operations, arms, edges + 1) per bucket
    edges: Floats = field(default_factory=lambda: np.zeros(0))  # (edges,), ms ascending; the last bucket is above all
    sampled: tuple[float, float] = (0.0, 0.0)  # served spans of each arm, repeated ones within a trace included
    complete: bool = True  # False: some are missing, nobody knows which
    note: str = ""  # for people


@dataclass(frozen=True, slots=True)
class Stretch:
    """Requests of both arms over (start, end], counted exactly once. The weight was constant over it."""

    start: datetime
    end: datetime
    stable: ArmCounts
    canary: ArmCounts
    edges: Floats = field(default_factory=lambda: np.zeros(0))  # (edges,), ms ascending, common to both arms
    spans: SpanCounts | None = None  # None: no collector counts spans of this service
    whole: bool = True  # False: some pod's counters have no usable start in it, so that requests are missing

    @property
    def seconds(self) -> float:
        return (self.end - self.start).total_seconds()


# ── what is believed ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Finding:
    """What the evidence says about one metric. Rates are shares 0..1; `limit` and the interval are in share units.

    `toward_rollback` and `toward_step` are the share of the respective threshold reached, 0..1 and 1 = reached.
    """

    metric: str
    verdict: Verdict
    event: str  # what is counted, for people: "errors", "slower than 250 ms"
    canary: float | None = None
    stable: float | None = None
    canary_n: float = 0.0
    stable_n: float = 0.0
    difference: float | None = None  # canary minus stable, stratified by interval
    low: float | None = None  # anytime-valid interval of the difference
    high: float | None = None
    tolerated: float | None = None  # largest tolerated difference at the current stable rate
    log_e: float = 0.0  # natural log of the e-value against "not worse than tolerated"
    toward_rollback: float = 0.0
    toward_step: float = 0.0
    needed: float | None = None  # canary requests still needed for the step at the present rates
    ruled_out: float | None = None  # the difference that must be ruled out before the step
    inflation: float = 1.0  # variance compared with independent requests
    pods: tuple[int, int] = (0, 0)  # stable and canary pods that were told apart
    means: tuple[float, float] | None = None  # stable and canary, of a gauge, in its own unit
    limit: str = ""  # what keeps the decision waiting: traffic, pods, clustering, warm-up
    seconds_to_step: float | None = None  # at the present traffic, if the canary is as good as stable
    seconds_to_rollback: float | None = None  # at the present pace of the evidence, if it goes that way
    note: str = ""  # what limits it, why it is blind, ...
    row: int = -1  # of the tests' rows, see canaryd.stats.evidence; -1: none


@dataclass(frozen=True, slots=True)
class Share:
    """Is the configured weight what users get? From request counts at the current weight."""

    observed: float | None  # share 0..1 of requests that reached the canary; None before any request
    requests: float
    confirmed: bool  # the split is proven to be within a factor of two of the weight
    mismatch: bool  # the split is proven to be further away than that


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on a canary at one tick, with a finding for each metric."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    sentence: str  # the decisive finding with its numbers, no trailing full stop
    decisive: str = ""  # metric of the decisive finding
    log_e: float = 0.0  # natural log of the combined e-value
    toward_rollback: float = 0.0
    toward_step: float = 0.0
    share: Share | None = None
    stable_worse: bool = False  # stable fails clearly more; watched while traffic goes back to it after a promotion


@dataclass(frozen=True, slots=True)
class Waiting:
    """An interval whose spans have not come yet, and what is known of it."""

    start: datetime
    end: datetime
    scored: bool  # the spans will be evidence; else only stable's rates are learnt from them
    requests: tuple[float, float] = (0.0, 0.0)  # of stable and of the canary


@dataclass(frozen=True, slots=True)
class SpanEvidence:
    """What the spans of one rollout say, for a metric of kind traces; see canaryd.stats.traces for the arrays.

    An interval leaves `waiting` when its spans are counted or given up: so each is counted at most once.
    """

    source: str = ""  # "spanmetrics", "traces"; "" before the first spans
    tag: str = ""  # what tells the arms apart, and its values for each; fixed when the rollout begins
    stable: tuple[str, ...] = ()
    canary: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()  # behind the slots of the arrays; the last slot is that of all others
    edges: Floats = field(default_factory=lambda: np.zeros(0))  # of a collector; see canaryd.operations.edges_of
    arrays: Mapping[str, Floats] = field(default_factory=dict)
    strangers: tuple[tuple[str, float, float], ...] = ()  # operations that only the canary has: spans, failed ones
    waiting: tuple[Waiting, ...] = ()  # oldest first, bounded
    lost: int = 0  # intervals in a row, the newest included, of which the spans could not be counted
    note: str = ""  # why they could not, or what else a person should know


@dataclass(frozen=True, slots=True)
class Evidence:
    """Sufficient statistics of one rollout. Everything up to `through` is counted exactly once.

    `arrays` holds the state of the tests (see canaryd.stats.evidence), `edges` the latency edges they stand for.
    """

    through: datetime  # watermark: the end of the last stretch that was looked at
    edges: Floats = field(default_factory=lambda: np.zeros(0))
    arrays: Mapping[str, Floats] = field(default_factory=dict)
    intervals: int = 0  # stretches scored
    queries: tuple[str, ...] = ()  # metrics of kind query that the arrays' last rows stand for, by name
    gauges: tuple[str, ...] = ()  # metrics of kind gauge that the arrays have room for, by name
    pods: Mapping[str, datetime] = field(default_factory=dict)  # pods that came later: first seen, for the warm-up
    stable_pods: tuple[str, ...] = ()  # pods that the arrays' pod axes stand for, in their order
    canary_pods: tuple[str, ...] = ()
    ahead: datetime | None = None  # the newest instant seen; later than `through` while a stretch waits to be judged
    spans: SpanEvidence | None = None
    last: tuple[Reading, ...] = ()  # readings from before `through` on, kept only for sources that cannot read the past


# ── what is wanted ───────────────────────────────────────────────────────────────────────────────────────────


class Action(StrEnum):
    """What a person can say."""

    PROMOTE = "promote"  # next step now; with full: straight to promotion
    ABORT = "abort"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    SKIP = "skip"  # skip the remaining analysis of this rollout: promote without further judging


@dataclass(frozen=True, slots=True)
class Override:
    """What a person said, for which revision, and why."""

    id: str  # unique; an answered id is never carried out again
    action: Action
    revision: str  # the revision it was said for; another one makes it stale
    by: str
    reason: str
    at: datetime
    full: bool = False  # with promote: all the way


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of an override."""

    id: str
    action: Action
    accepted: bool
    sentence: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Release:
    """The revision that should be running, said by a person (embedded) or by the pod template (cluster)."""

    revision: str
    by: str = ""
    at: datetime | None = None


class DecisionKind(StrEnum):
    """What a decision did. The value is the word used in logs, metrics and records."""

    IDLE = "idle"
    ADOPT = "adopt"  # canaryd has taken a running service into its care
    START = "start"
    RESTART = "restart"  # a newer revision replaced the one under way
    REVERT = "revert"  # the wanted revision is the stable one again
    WAIT = "wait"
    HOLD = "hold"
    ADVANCE = "advance"
    PROMOTE = "promote"  # the last step passed: promotion begins
    SUCCEED = "succeed"
    ROLLBACK = "rollback"
    ROLLED_BACK = "rolled-back"
    BLIND = "blind"  # sight was lost
    BLIND_DEADLINE = "blind-deadline"
    RESUMED = "resumed"  # sight came back
    INCONCLUSIVE = "inconclusive"  # the deadline passed without enough evidence
    DRIFT = "drift"
    CONTESTED = "contested"  # somebody sets the weight again and again: canaryd leaves it for a while
    OVERRIDE = "override"
    REFUSED = "refused"
    HOOK = "hook"  # something to tell about the afterPromotion hook


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of phase, step or weight."""

    at: datetime
    phase: Phase
    step: int
    weight: int
    sentence: str


class HookStatus(StrEnum):
    OWED = "owed"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class HookState:
    """The afterPromotion hook of this rollout. `id` lets the hook recognise a repetition."""

    id: str
    status: HookStatus = HookStatus.OWED
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutState:
    """Where one rollout should be; every tick makes the world match it. Saved with compare-and-swap.

    Durations are sums over ticks, each tick counting at most two intervals, so that a jumping clock cannot reach a
    deadline by itself and time without sight is not bake time.
    """

    rollout: str = ""  # identity of this run, e.g. "api-3"; "" before the first
    number: int = 0  # runs so far
    revision: str = ""  # the canary revision of this run
    stable_revision: str = ""
    stable: str = ""  # workload that holds the stable role
    canary: str = ""  # workload that holds the canary role
    phase: Phase = Phase.IDLE
    resume_to: Phase | None = None  # while paused: the phase to come back to
    step: int = -1  # index into the steps; -1 before the first
    weight: int = 0  # desired percent for the canary
    skip_analysis: bool = False  # a person took the responsibility for the rest of this run
    started: datetime | None = None
    step_started: datetime | None = None
    routed: datetime | None = None  # when the current weight was first seen in the route; evidence starts after it
    baked: timedelta = timedelta(0)  # evidence time at this step
    held: timedelta = timedelta(0)  # time at this step in which sight was good
    blind: timedelta = timedelta(0)  # time without sight, reset when sight returns
    blind_told: bool = False  # this spell of blindness has been told
    deadline_told: timedelta = timedelta(0)  # blind or held time at which a deadline was last told; 0: not told
    evidence: Evidence | None = None
    hook: HookState | None = None
    drifts: tuple[datetime, ...] = ()  # when somebody else's weight was found in the route, newest last, bounded
    contested: datetime | None = None  # until then the weight is left to whoever keeps setting it
    ticked: datetime | None = None  # the last tick
    decisions: int = 0  # decisions recorded over all runs; numbers the records
    answered: tuple[Answer, ...] = ()  # the latest overrides, newest last, bounded
    history: tuple[Transition, ...] = ()  # of this run, newest last, bounded
    sentence: str = ""  # the latest decision
    verdict: Verdict | None = None
    latest: Mapping[str, Any] = field(default_factory=dict)  # body of the latest record, what `status` shows


# ── what one tick sees and decides ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class RouteView:
    """The route as it stands. `weight` is percent for `canary`; None where the route does not name the workloads."""

    weight: int | None
    version: int  # state version stamped by the last canaryd write; 0 when none
    stamped_weight: int | None  # weight stamped by that write; differs from `weight` after a hand edit
    stamped_canary: str = ""  # workload that held the canary role in that write
    editor: str = ""  # who changed it last, as far as the route knows ("anna, 14:02:11")
    adoptable: bool = False  # it sends everything to the service itself; `adopt` can make it a split (weight is None)
    remedy: str = ""  # what whoever keeps changing it should be told, such as what a GitOps tool must ignore


@dataclass(frozen=True, slots=True)
class Pods:
    """The pods of one workload, as the cluster counts them."""

    wanted: int = 0
    ready: int = 0
    restarts: int = 0  # of their containers, since the rollout began
    killed_for_memory: int = 0  # containers ended by the kernel for memory, since the rollout began
    trouble: str = ""  # why some are not ready: "CrashLoopBackOff", "ImagePullBackOff: …", "Unschedulable: …"


@dataclass(frozen=True, slots=True)
class WorkloadView:
    """Both workloads as they stand."""

    ready: bool  # both serve what the state says, and can take the traffic that the next step gives them
    detail: str = ""  # what is not ready
    started: Mapping[str, datetime] = field(default_factory=dict)  # pod -> start time, where known
    stable_revision: str = ""  # what stable runs, where the workload itself says so; "" where people say it
    versions: tuple[str, str] = ("", "")  # of stable and canary as a mesh calls them in spans, where pods say so
    stable: Pods | None = None  # None where pods are not known
    canary: Pods | None = None
    gone: str = ""  # why there is nothing to release or to serve: "Deployment shop/api does not exist"
    overdue: str = ""  # why the canary will not become ready any more: its deadline has passed


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything one tick read from the world, so that deciding needs nothing else."""

    at: datetime
    release: Release | None  # the revision that should run; None when nobody ever said
    route: RouteView | None  # None when it could not be read (see `trouble`)
    workloads: WorkloadView | None
    judgement: Judgement | None = None  # None when no rollout was under way
    evidence: Evidence | None = None  # the evidence behind it, to be saved
    scored: timedelta = timedelta(0)  # evidence time gained by this tick, at most one interval per stretch
    spans: tuple[SpanCounts, ...] = ()  # of a trace source, that became part of the evidence in this tick
    overrides: tuple[Override, ...] = ()  # in the order said; answered ones may still be among them
    hook: HookState | None = None  # news from the afterPromotion hook
    trouble: tuple[str, ...] = ()  # what could not be read, for people
    tell_again: timedelta = timedelta(minutes=30)  # how often people want to hear of a lasting hold


@dataclass(frozen=True, slots=True)
class Decision:
    """The desired state after a tick, and why."""

    state: RolloutState
    kind: DecisionKind
    sentence: str
    tell: bool = False  # worth a notification
    severity: str = "info"  # info, warning, critical
    extra: tuple[tuple[DecisionKind, str], ...] = ()  # further things worth telling that happened in the same tick


@dataclass(frozen=True, slots=True)
class Record:
    """One decision as it is kept and shown everywhere: plain JSON values in `body` (see canaryd.wording.record)."""

    id: str  # "<canary>/<number of the decision>"
    canary: str
    at: datetime
    kind: DecisionKind
    sentence: str
    body: Mapping[str, Any]
    tell: bool = False


@dataclass(frozen=True, slots=True)
class Stored:
    """What the store holds for one canary."""

    state: RolloutState | None  # None before the first save
    version: int  # rises with every save and every word of a person; 0 before anything
    release: Release | None = None
    overrides: tuple[Override, ...] = ()  # not yet answered, oldest first
