"""The outside, in canaryd's words: small protocols whose docstrings are the contracts that every adapter must keep.

The shared suites in tests/contract run over every registered adapter and check what is written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from canaryd.errors import StoreError
from canaryd.model import (
    Arm,
    HookState,
    Override,
    Reading,
    Record,
    Release,
    RolloutState,
    RouteView,
    Stored,
    WorkloadView,
)
from canaryd.policy import Canary, ErrorSource, Hook, Route
from canaryd.spans import ArmTags, Span, nanoseconds


@dataclass(frozen=True, slots=True)
class Template:
    """A question in the operator's own words, whose series become readings of one arm."""

    metric: str  # of the Canary
    name: str  # CounterKey.name of the answer: "query:<metric>:failures", "query:<metric>:total" or "gauge:<metric>"
    arm: Arm
    text: str  # PromQL with {{workload}}, {{namespace}} and {{window}} to be filled in


@dataclass(frozen=True, slots=True)
class SpanQuery:
    """Counters that a collector makes of a service's spans."""

    metric: str  # of the Canary
    service: str  # service.name of the spans
    arms: ArmTags
    calls: str  # names of the counters
    durations: str
    aliases: tuple[str, ...] = ()  # see canaryd.spans.normal_operation


@dataclass(frozen=True, slots=True)
class CountsQuery:
    """Which raw counters of one canary are wanted, and at which instants."""

    canary: str  # key of the answer
    namespace: str
    stable: str  # workload names, as in the label destination_workload
    canary_workload: str
    points: tuple[datetime, ...]  # ascending, on one grid of `step`; the first is the watermark
    step: timedelta
    source: ErrorSource  # names of the counters
    durations: bool = True  # buckets wanted, too
    templates: tuple[Template, ...] = ()
    stable_service: str = ""  # Services in front of the arms, as in the label destination_service_name; "" where an arm
    canary_service: str = ""  # has none of its own: then nobody can say to whom a request that got nowhere was sent
    spans: SpanQuery | None = None
    server: str = ""  # URL of the Prometheus of the canary's own; "" is that of the daemon


@dataclass(frozen=True, slots=True)
class CountsAnswer:
    """What a source could read for one canary."""

    readings: tuple[Reading, ...]  # ascending; only instants at which at least one series was there
    note: str = ""  # something a person should know: "no _bucket series but _count: native histograms"
    started: Mapping[str, datetime] = field(default_factory=dict)  # pod -> start, where the source knows
    unseen: Mapping[str, str] = field(default_factory=dict)  # metric -> why its templates could not be answered
    failed: str = ""  # why this canary's question could not be answered, though others could; no readings then


class MetricSource(Protocol):
    """Raw cumulative counters of both arms.

    `remembers`: it can read past instants, so that a later call gives the same answer for the same instant. A source
    that does not remember answers with at most one reading, taken now and stamped with the last of the points asked
    for.
    `lag`: an instant may be asked for when it is at least this long ago.
    `settle`: after a weight change, counters younger than this may still speak of the old weight.
    `simultaneous`: both arms are read at the same moment. Where they are not (each pod scraped at a phase of its own),
    an interval is judged only when stable's next one is known, too.
    """

    remembers: bool
    lag: timedelta
    settle: timedelta
    simultaneous: bool

    def read(self, queries: Sequence[CountsQuery]) -> Mapping[str, CountsAnswer]:
        """One answer for each query. Queries that can share a request do.

        A series that does not exist is left out; it never becomes a zero. Values that are NaN, infinite or negative
        are left out too. Duplicates (the same key) are given once. An instant without any series is left out.
        Templates are evaluated at the same instants, in one request for each; a series is its pod's (label `pod`, else
        `instance`, else "" for all pods in one), and all that a metric counts of a pod has one `exporter`, which no
        other metric has. A template that cannot be answered takes its whole metric out of the answer, and says why in
        `unseen`, and nothing else: the mistake of one operator blinds nobody else.
        Counters of spans (`CountsQuery.spans`) are put beside those of requests, in `Reading.spans`, as far as a tag
        tells their arm; what is wrong with them is said in `unseen` of their metric, and blinds nothing else.
        Where the arms have Services, what clients report of requests that never reached a pod is read, too: counters
        called "unreached" of no pod. They come only beside counters of pods, and a client that has lost nothing yet has
        one of 0 without a code, so that its first loss is seen to be new.
        Each reading comes from one server in one answer; all instants of one answer come from the same server.
        Raises SourceError when no question could be answered (no connection, time-out, HTTP error, an answer that is
        not understood, an answer that the server itself calls partial), never an empty answer instead. Where only some
        could, the answers of the others say why in `failed`.
        Returns within the configured time-out plus a second, whatever the server does.
        """
        ...


class TrafficRouter(Protocol):
    """Sets the split and tells what it is. Owns nothing but the weights of the two workloads."""

    def view(self, canary: str, route: Route, stable: str, canary_workload: str) -> RouteView:
        """The split as it is written in the route, in percent for `canary_workload`, with the stamp of the last write.

        Raises RouteError when the route does not exist, cannot be read, or does not name both workloads.
        """
        ...

    def set_weight(
        self, canary: str, route: Route, stable: str, canary_workload: str, weight: int, *, version: int
    ) -> None:
        """Make the split `weight` percent for `canary_workload` and the rest for `stable`; stamp it with `version`.

        Atomic: a reader sees the old route or the new one. Setting the same weight again is harmless. Everything else
        in the route keeps its meaning. Raises FenceError, having changed nothing, when the route already carries a
        higher version; RouteError when it cannot be written.
        """
        ...

    def adopt(self, canary: str, route: Route, stable: str, canary_workload: str, *, version: int) -> None:
        """Turn a route that sends everything to the service itself into a split with everything for `stable`.

        Only for a route whose view is `adoptable`; remembers in the route what was there. Raises as `set_weight` does.
        """
        ...

    def restore(self, canary: str, route: Route, stable: str, canary_workload: str, *, version: int) -> bool:
        """Undo `adopt`: the service itself gets everything again, and no stamp is left.

        False, having removed at most the stamp, when the route was not adopted or is gone. Raises as `set_weight` does.
        """
        ...


class Workloads(Protocol):
    """The two workloads."""

    def release(self, canary: Canary) -> Release | None:
        """The revision that the canary's own workload asks for; None where people say it to the store.

        Raises WorkloadError when it cannot be seen now.
        """
        ...

    def view(self, canary: Canary, state: RolloutState) -> WorkloadView:
        """Readiness of both, their pods, and the start times of pods where they are known. Raises WorkloadError."""
        ...

    def shape(self, canary: Canary, state: RolloutState, *, version: int, now: datetime) -> tuple[str, ...]:
        """Make the workloads match a saved state, as far as that is possible now, and say what was changed.

        Level-triggered and idempotent: called after every save and route, does nothing where nothing is to be done,
        waits for nothing. Never moves traffic. `version` is that of the saved state: a writer that finds a higher one
        on a workload raises FenceError having changed nothing. Raises WorkloadError when something could not be
        changed; the next call tries again.
        """
        ...

    def upgrade(self, canary: Canary, state: RolloutState, hook: HookState, *, version: int) -> HookState:
        """Bring the promoted revision to stable, exactly as it was analysed: OWED while under way, then DONE or FAILED.

        For Canaries that upgrade stable themselves (`workloads.deployment`). Returns at once; idempotent.
        """
        ...

    def restore(
        self, canary: Canary, state: RolloutState, *, version: int, now: datetime, rerouted: bool = False
    ) -> str:
        """Bring back the plain workload when a Canary is deleted, step by step: what is waited for, "" when done.

        Called again and again, first until the plain workload could take all traffic, and with `rerouted`, when the
        route sends everything to it and has settled, until nothing of canaryd's is left. Without `rerouted` nothing
        that may have traffic is ever taken away. Raises WorkloadError.
        """
        ...


MOST_NOTES = 32  # of one canary
NOTE = 500  # characters of one, and of its key


def check_note(key: str, value: str) -> None:
    """Raises StoreError for a note that no store keeps."""
    if not 1 <= len(key) <= NOTE or len(value) > NOTE:
        raise StoreError(
            f"a note of {len(key)} and {len(value)} characters; a key of 1 to {NOTE}, and {NOTE}, are right"
        )


def noted(notes: Mapping[str, str], key: str, value: str) -> dict[str, str]:
    """The notes, oldest first, with one written, or removed by "", and no more than are kept. Pure."""
    rest = {k: v for k, v in notes.items() if k != key}
    return dict([*rest.items(), *([(key, value)] if value else [])][-MOST_NOTES:])


class StateStore(Protocol):
    """State, the words of people, and the records, with compare-and-swap on one version per canary.

    The version rises with every save and with every word of a person (release or override), so that a decision made
    without having heard that word is refused.
    """

    def load(self, canary: str) -> Stored:
        """What is held; version 0 and no state before anything. Raises StoreError."""
        ...

    def save(self, canary: str, state: RolloutState, version: int, records: Sequence[Record]) -> int:
        """Replace state that was loaded at `version`, add the records, in one transaction; returns the new version.

        Durable when it returns. Raises ConflictError when the version is not the current one, StoreError when it
        cannot be written; nothing has changed then. Overrides answered in the state are no longer loaded.
        Records with `tell` are owed to the notifiers until `told`.
        """
        ...

    def release(self, canary: str, release: Release) -> int:
        """The revision that should run from now on. Returns the new version."""
        ...

    def override(self, canary: str, override: Override) -> int:
        """Put a person's word into the inbox; the same id twice is once. Returns the new version."""
        ...

    def mark(self) -> int:
        """A number that changes whenever anybody wrote anything; cheap, for polling."""
        ...

    def records(
        self, canary: str, *, limit: int = 50, before: datetime | None = None, kinds: Sequence[str] = ()
    ) -> tuple[Record, ...]:
        """The latest records, newest first, at or before `before` when given, of the given kinds when given."""
        ...

    def owed(self, limit: int = 100, by: str = "") -> tuple[Record, ...]:
        """Records not yet told, oldest first, as they were last amended.

        With `by`, the name of a notifier, only those that it has not told yet: what one of them cannot deliver hides
        nothing from the others.
        """
        ...

    def told(self, ids: Sequence[str], by: str = "", expected: Sequence[str] = ()) -> None:
        """The notifier `by` need not tell these again; when all `expected` ones have told a record, it is not owed.

        Without `by` nobody need tell them any more. Unknown ids are ignored. May be durable only with the next save:
        after a kill some may be owed again, never fewer. No decision becomes stale by it.
        """
        ...

    def amend(self, record: Record) -> None:
        """Replace the body of the kept record of this id, and nothing else of it; an unknown id is ignored.

        Durable no later than that it was told. No decision becomes stale by it. Raises StoreError.
        """
        ...

    def memo(self, canary: str) -> Mapping[str, str]:
        """Small notes of the notifiers about a canary, such as which thread speaks of its rollout."""
        ...

    def remember(self, canary: str, key: str, value: str) -> None:
        """Write a note, "" removes it; the MOST_NOTES latest of a canary are kept. Durable as `told` is.

        No decision becomes stale by it. Raises StoreError, also for a note that is longer than NOTE characters.
        """
        ...

    def prune(self, keep_after: datetime, keep_at_least: int) -> int:
        """Forget records older than `keep_after` beyond the latest `keep_at_least` of each canary, told ones only.

        Returns how many were forgotten.
        """
        ...


class Hooks(Protocol):
    """Runs afterPromotion hooks, at least once each, without holding up anybody."""

    def advance(self, canary: Canary, hook: Hook, state: HookState, facts: Mapping[str, str]) -> HookState:
        """Start the hook if it is not running, and say what is known: OWED while it runs, then DONE or FAILED.

        Returns at once. `facts` go to the hook: as environment variables CANARYD_<KEY> to a command, as JSON to a
        webhook. A hook that was running when the daemon died is started again with the same id.
        """
        ...


class Notifier(Protocol):
    """Tells people.

    `name` tells it from the others and stays the same over restarts: by it the store knows who has told what.
    """

    name: str

    def notify(self, record: Record) -> bool | None:
        """Deliver one record; False, having sent nothing, when it is not for this notifier's people. The same record
        may come again.

        Raises NotifyError when it was not delivered; it will come again, unless the error says that it is `final`.
        """
        ...

    def probe(self) -> str:
        """What can be seen of the other side without telling anybody anything, for `canaryd doctor`.

        Raises NotifyError that says what would keep a record from being delivered.
        """
        ...


class Listener(Protocol):
    """Hears people where they read, and puts what they say into the store's inbox. Runs where canaryd leads."""

    name: str
    trouble: str  # why nobody can be heard now; "" when all is well

    def start(self) -> None:
        """Begin, in threads of its own. Raises nothing."""
        ...

    def close(self) -> None:
        """End within a few seconds; may be started again."""
        ...

    def probe(self) -> str:
        """As a Notifier's."""
        ...


@dataclass(frozen=True, slots=True)
class TraceQuery:
    """Which traces of one service are wanted. What is not asked for is not filtered."""

    canary: str  # key, for messages
    service: str  # as the tracer calls it (service.name), such as "api.shop"
    start: datetime  # spans that began in (start, end]
    end: datetime
    arms: ArmTags
    arm: Arm | None = None  # only traces with a span of that arm, of this service
    errors: bool = False  # only traces with a failed span of this service
    slower_ms: float | None = None  # only traces with a span of this service at least so long
    operation: str = ""  # only traces with a span of this service and this (normal) operation
    limit: int = 500  # traces of one request; a source asks as often as it takes
    aliases: tuple[str, ...] = ()  # names that routes call the service by; see canaryd.spans.normal_operation
    newest: bool = False  # the newest `limit` traces that match are enough, or a few more

    def wants(self, spans: Sequence[Span]) -> bool:
        """A trace with these spans matches: each condition is met by any span of the service."""
        start, end = nanoseconds(self.start), nanoseconds(self.end)
        own = [s for s in spans if s.service == self.service]
        return (
            any(start < s.start <= end for s in own)
            and (self.arm is None or any(s.arm is self.arm for s in own))
            and (not self.errors or any(s.error for s in own))
            and (self.slower_ms is None or any(s.duration >= self.slower_ms for s in own))
            and (not self.operation or any(s.operation == self.operation for s in own))
        )


@dataclass(frozen=True, slots=True)
class TraceAnswer:
    """All spans of the traces that were found, those of other services included."""

    spans: tuple[Span, ...]  # settled (canaryd.spans.settle), each once
    complete: bool  # False: there were more traces than could be had, or spans were refused
    note: str = ""  # for people: "truncated: ...", "7 malformed spans left out"


class TraceSource(Protocol):
    """Traces, as far as they were sampled.

    `lag`: how long ago an instant must be so that its spans have arrived.
    """

    lag: timedelta

    def find(self, query: TraceQuery) -> TraceAnswer:
        """The traces that match (`TraceQuery.wants`), whole.

        No trace is an answer, not an error. Spans that make no sense are left out and counted in the note. An answer
        that reaches `limit` is asked for again in shorter stretches of time, unless the newest are enough; where some
        traces could not be had all the same, the newest are given, `complete` is False and the note says "truncated".
        Raises SourceError when nobody can say (no connection, time-out, HTTP error, an answer that is not understood,
        one that is too large). Returns within the configured time-out plus a second, whatever the server does. May be
        called from several threads.
        """
        ...

    def url(self, trace: str) -> str:
        """Where a person can look at this trace; "" when unknown."""
        ...


class TraceEvidence(Protocol):
    """Finds what traces say about a decision, after it was made."""

    def of(self, record: Record, canary: Canary) -> Mapping[str, Any] | None:
        """`traces` of the record's body (see canaryd.traces.evidence); None when this record is to have none.

        Never raises: what could not be had is said in `note`. Returns within a few seconds.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Everything outside, as one bundle."""

    metrics: MetricSource
    router: TrafficRouter
    workloads: Workloads
    store: StateStore
    hooks: Hooks
    notifiers: tuple[Notifier, ...] = ()
    listeners: tuple[Listener, ...] = ()
    traces: TraceSource | None = None
    evidence: TraceEvidence | None = None
