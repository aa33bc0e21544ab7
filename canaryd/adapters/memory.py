"""Every port in memory: a world that is programmed line by line, for simulations, rehearsals and tests.

Keeps the same contracts as the adapters that touch the world (the shared suites run over both). Never reads a clock, a
file or the network: whatever happens here was called by name. State does not outlive the process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from threading import RLock
from typing import NamedTuple

import numpy as np

from canaryd.adapters.span_series import SpanClaims
from canaryd.counts import UNREACHED
from canaryd.errors import (
    CanarydError,
    ConflictError,
    FenceError,
    NotifyError,
    RouteError,
    SourceError,
    StoreError,
    WorkloadError,
)
from canaryd.model import (
    Answer,
    Arm,
    CounterKey,
    Floats,
    HookState,
    HookStatus,
    Override,
    Phase,
    Reading,
    Record,
    Release,
    RolloutState,
    RouteView,
    Stored,
    WorkloadView,
)
from canaryd.policy import Canary, Hook, Route, SpanMetrics
from canaryd.ports import CountsAnswer, CountsQuery, TraceAnswer, TraceQuery, check_note, noted
from canaryd.spans import Span, settle

# Envoy's and Istio's default histogram edges in milliseconds; a bucket counts durations <= its edge
EDGES_MS = (
    *(0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0),
    *(1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5, 6e5, 1.8e6, 3.6e6),
    float("inf"),
)


class _Breakable:
    """Can be told to fail, with the error that its port promises, until it is healed."""

    _error: type[CanarydError]

    def __init__(self) -> None:
        self._lock = RLock()
        self._trouble = ""

    def fail(self, message: str) -> None:
        """From now on every call raises the port's error with this message and changes nothing."""
        self._trouble = message or "told to fail"

    def heal(self) -> None:
        """Calls work again."""
        self._trouble = ""

    def _check(self) -> None:
        if self._trouble:
            raise self._error(self._trouble)


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────────────────


class _Series(NamedTuple):
    """One counter of requests; `workload` is known to the world, the arm only to the query."""

    workload: str
    exporter: str
    pod: str
    code: str
    flags: str
    grpc: str


class _Loss(NamedTuple):
    """One client's counter of requests to a Service that never reached a pod; without a code: the client itself."""

    service: str
    exporter: str
    code: str
    flags: str


class _Histogram(NamedTuple):
    """One histogram of durations."""

    workload: str
    exporter: str
    pod: str


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """All counters at one instant; never changed afterwards."""

    requests: Mapping[_Series, float]
    buckets: Mapping[_Histogram, Floats]  # (edges,), cumulative
    told: Mapping[tuple[str, str], float]  # (template, pod) -> value
    lost: Mapping[_Loss, float]
    spans: Mapping[tuple[tuple[str, str], ...], float]  # labels as a collector has them -> value

    def reading(self, at: datetime, query: CountsQuery, edges: tuple[float, ...]) -> Reading:
        """What the query may see of it, with workloads turned into arms."""
        arms = {query.stable: Arm.STABLE, query.canary_workload: Arm.CANARY}
        counters: dict[CounterKey, float] = {}
        for s, value in self.requests.items():
            if s.workload in arms:
                arm = arms[s.workload]
                counters[CounterKey(arm, s.exporter, s.pod, "requests", s.code, s.flags, s.grpc, 0.0)] = value
        for h, cumulative in self.buckets.items() if query.durations else ():
            if h.workload in arms:
                arm = arms[h.workload]
                for le, value in zip(edges, cumulative.tolist(), strict=True):
                    counters[CounterKey(arm, h.exporter, h.pod, "bucket", "", "", "", le)] = value
        for t in query.templates:
            for (text, pod), value in self.told.items():
                if text == t.text:
                    counters[CounterKey(t.arm, f"{t.metric}:{pod}", pod, t.name, "", "", "", 0.0)] = value
        services = {query.stable_service: Arm.STABLE, query.canary_service: Arm.CANARY}
        for loss, value in self.lost.items() if counters else ():
            if arm_lost := services.get(loss.service):
                key = CounterKey(arm_lost, loss.exporter, "", UNREACHED, loss.code, loss.flags, "", 0.0)
                counters[key] = value
        claims = SpanClaims([query])
        spans = {key: value for labels, value in self.spans.items() for _, key in claims.of(dict(labels))}
        return Reading(at, counters, spans)


class MemoryMetrics(_Breakable):
    """A world of cumulative counters that grow by `serve` and become readable by `tick`.

        world = MemoryMetrics()
        world.serve("api-a", "a-1", n=90); world.serve("api-b", "b-1", code="503", n=10, ms=3.0)
        world.tick(t1)                     # both are in the reading of t1 and of every later instant

    Workload names are unique here, whatever the namespace. `remembers` chooses which kind of source this is: True
    answers every frozen instant that is asked for, False only the latest one, stamped with the last point asked for.
    """

    _error = SourceError

    def __init__(
        self,
        *,
        remembers: bool = True,
        edges: Sequence[float] = EDGES_MS,
        retention: int = 10_000,
        note: str = "",
        simultaneous: bool = True,
    ) -> None:
        """`edges` are ascending milliseconds and end with inf; `retention` is the number of instants kept."""
        super().__init__()
        self.remembers = remembers
        self.lag = timedelta(0)
        self.settle = timedelta(0)
        self.simultaneous = simultaneous
        self.note = note  # given with every answer
        self.reads = 0  # calls of `read` that were answered
        self.now: datetime | None = None  # the instant of the latest tick
        self._edges = tuple(float(e) for e in edges)
        self._requests: dict[_Series, float] = {}
        self._buckets: dict[_Histogram, Floats] = {}
        self._told: dict[tuple[str, str], float] = {}
        self._lost: dict[_Loss, float] = {}
        self._spans: dict[tuple[tuple[str, str], ...], float] = {}
        self.refused: dict[str, str] = {}  # template -> why it is not answered
        self.failed: dict[str, str] = {}  # canary -> why nothing is answered for it, though for others
        self._mute: frozenset[str] | None = frozenset()  # workloads without series; None: all of them
        self._frozen: dict[datetime, _Snapshot] = {}
        self._order: deque[datetime] = deque()
        self._retention = retention

    def serve(
        self,
        workload: str,
        pod: str,
        code: str = "200",
        n: int = 1,
        ms: float | Sequence[float] | Floats | None = 12.0,
        *,
        flags: str = "-",
        grpc: str = "",
        exporter: str = "envoy",
    ) -> None:
        """Count `n` requests (>= 0; 0 gives birth to the series) that took `ms` milliseconds each.

        A sequence of durations stands for one request each and `n` is its length; None records no duration.
        """
        if ms is not None and not isinstance(ms, int | float):
            durations = np.asarray(ms, dtype=np.float64)
            n = len(durations)
        else:
            durations = np.full(n, np.nan if ms is None else float(ms))
        series, histogram = _Series(workload, exporter, pod, code, flags, grpc), _Histogram(workload, exporter, pod)
        with self._lock:
            self._requests[series] = self._requests.get(series, 0.0) + n
            if ms is not None:
                first = np.searchsorted(self._edges, durations, side="left")  # the least edge >= the duration
                growth = np.cumsum(np.bincount(first, minlength=len(self._edges))).astype(np.float64)
                self._buckets[histogram] = self._buckets.get(histogram, np.zeros(len(self._edges))) + growth

    def lose(
        self, service: str, n: int = 1, code: str = "503", *, flags: str = "UH", exporter: str = "gateway"
    ) -> None:
        """A client's `n` requests to a Service that never reached a pod; 0 makes the client known, and no more."""
        with self._lock:
            self._lost.setdefault(_Loss(service, exporter, "", ""), 0.0)
            if n:
                loss = _Loss(service, exporter, code, flags)
                self._lost[loss] = self._lost.get(loss, 0.0) + n

    def span(
        self,
        service: str,
        name: str,
        ms: float = 12.0,
        *,
        failed: bool = False,
        collector: str = "collector",
        **tags: str,
    ) -> None:
        """A collector counts a span that the service served; `tags` are labels such as istio_canonical_revision."""
        labels = {"service_name": service, "span_name": name, "span_kind": "SPAN_KIND_SERVER", "instance": collector}
        labels |= {"status_code": "STATUS_CODE_ERROR" if failed else "STATUS_CODE_UNSET", **tags}
        names = SpanMetrics()
        with self._lock:
            self._count_span({**labels, "__name__": names.calls}, 1.0)
            for edge in self._edges:
                self._count_span({**labels, "__name__": names.durations, "le": f"{edge}"}, float(ms <= edge))

    def _count_span(self, labels: Mapping[str, str], n: float) -> None:
        key = tuple(sorted(labels.items()))
        self._spans[key] = self._spans.get(key, 0.0) + n

    def tell(self, template: str, pod: str, value: float | None) -> None:
        """What a template, as it is written in the document, is worth for a pod from now on; None: no series."""
        with self._lock:
            self._told.pop((template, pod), None)
            if value is not None:
                self._told[template, pod] = value

    def tick(self, to: datetime) -> None:
        """Freeze all counters as what anybody reads at the instant `to`, which is later than the last one."""
        with self._lock:
            if self.now is not None and to <= self.now:
                raise ValueError(f"tick to {to.isoformat()}, which is not after {self.now.isoformat()}")
            self.now = to
            self._frozen[to] = _Snapshot(
                {s: v for s, v in self._requests.items() if not self._is_mute(s.workload)},
                {h: v for h, v in self._buckets.items() if not self._is_mute(h.workload)},
                dict(self._told),
                dict(self._lost),
                dict(self._spans),
            )
            self._order.append(to)
            while len(self._order) > self._retention:
                del self._frozen[self._order.popleft()]

    def restart(self, exporter: str = "envoy") -> None:
        """The process that keeps the counters starts again: all its counters are zero."""
        with self._lock:
            self._requests.update({s: 0.0 for s in self._requests if s.exporter == exporter})
            self._buckets.update({h: np.zeros(len(self._edges)) for h in self._buckets if h.exporter == exporter})
            self._lost.update({x: 0.0 for x in self._lost if x.exporter == exporter})
            self._spans.update({x: 0.0 for x in self._spans if ("instance", exporter) in x})

    def vanish(self, pod: str) -> None:
        """All series of a pod are gone from the next tick on; when it serves again, it starts at zero."""
        with self._lock:
            self._requests = {s: v for s, v in self._requests.items() if s.pod != pod}
            self._buckets = {h: v for h, v in self._buckets.items() if h.pod != pod}

    def silent(self, *workloads: str) -> None:
        """From the next tick on there are no series of these workloads (of any, when none is named) until `heal`.

        The counters go on underneath. An instant frozen in silence stays without series for ever.
        """
        with self._lock:
            self._mute = frozenset(workloads) if workloads else None

    def heal(self) -> None:
        """The source answers, and from the next tick on every series is there."""
        super().heal()
        with self._lock:
            self._mute = frozenset()

    def read(self, queries: Sequence[CountsQuery]) -> Mapping[str, CountsAnswer]:
        with self._lock:
            self._check()
            self.reads += 1
            return {q.canary: self._answer(q) for q in queries}

    def _answer(self, query: CountsQuery) -> CountsAnswer:
        if query.canary in self.failed:
            return CountsAnswer((), failed=self.failed[query.canary])
        unseen = {t.metric: self.refused[t.text] for t in query.templates if t.text in self.refused}
        asked = replace(query, templates=tuple(t for t in query.templates if t.metric not in unseen))
        return CountsAnswer(tuple(self._readings(asked)), self.note, unseen=unseen)

    def _readings(self, query: CountsQuery) -> Iterator[Reading]:
        if self.remembers:
            wanted = [(point, self._frozen[point]) for point in query.points if point in self._frozen]
        elif self.now is not None and query.points:
            wanted = [(query.points[-1], self._frozen[self.now])]
        else:
            wanted = []
        for at, snapshot in wanted:
            reading = snapshot.reading(at, query, self._edges)
            if reading.counters:
                yield reading

    def _is_mute(self, workload: str) -> bool:
        return self._mute is None or workload in self._mute


# ── routes and workloads ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Split:
    """One route: percent for each workload, and the stamp of the last write through the port."""

    weights: Mapping[str, int]
    version: int = 0
    stamped_weight: int | None = None
    stamped_canary: str = ""
    editor: str = ""
    plain: str = ""  # the service that had everything before it was adopted


class MemoryRouter(_Breakable):
    """Routes kept by the name of their canary; the route named in the document is not looked at."""

    _error = RouteError

    def __init__(self, routes: Mapping[str, Mapping[str, int]] | None = None) -> None:
        """`routes`: canary -> {workload: percent}, such as {"api": {"api-a": 100, "api-b": 0}}."""
        super().__init__()
        self.writes: list[tuple[str, int, int]] = []  # (canary, weight, version) of every write that was accepted
        self._routes = {name: _Split(dict(weights)) for name, weights in (routes or {}).items()}

    def add(self, canary: str, stable: str, canary_workload: str, weight: int = 0) -> None:
        """A route exists now, written by somebody else."""
        with self._lock:
            self._routes[canary] = _Split({stable: 100 - weight, canary_workload: weight})

    def remove(self, canary: str) -> None:
        """The route is gone."""
        with self._lock:
            self._routes.pop(canary, None)

    def edit(self, canary: str, weight: int, *, workload: str = "", editor: str = "somebody") -> None:
        """A hand edit: `weight` percent for `workload`; without a name, for the one that was last the canary."""
        with self._lock:
            split = self._routes[canary]
            edited = workload or split.stamped_canary or list(split.weights)[-1]
            weights = {name: weight if name == edited else 100 - weight for name in split.weights}
            self._routes[canary] = replace(split, weights=weights, editor=editor)

    def view(self, canary: str, route: Route, stable: str, canary_workload: str) -> RouteView:
        with self._lock:
            self._check()
            plain = self._routes.get(canary)
            if plain is not None and plain.plain == canary_workload and len(plain.weights) == 1:
                return RouteView(None, plain.version, None, adoptable=True)
            split = self._split(canary, stable, canary_workload)
            weight = split.weights[canary_workload]
            return RouteView(weight, split.version, split.stamped_weight, split.stamped_canary, split.editor)

    def set_weight(
        self, canary: str, route: Route, stable: str, canary_workload: str, weight: int, *, version: int
    ) -> None:
        with self._lock:
            self._check()
            split = self._split(canary, stable, canary_workload)
            if not 0 <= weight <= 100:
                raise RouteError(f"{canary}: {weight} is no percentage; use 0 to 100")
            if split.version > version:
                raise FenceError(f"{canary}: the route carries state version {split.version}, newer than {version}")
            weights = {stable: 100 - weight, canary_workload: weight}
            self._routes[canary] = _Split(weights, version, weight, canary_workload, plain=split.plain)
            self.writes.append((canary, weight, version))

    def plain(self, canary: str, service: str) -> None:
        """A route that sends everything to the service itself exists now."""
        with self._lock:
            self._routes[canary] = _Split({service: 100}, plain=service)

    def adopt(self, canary: str, route: Route, stable: str, canary_workload: str, *, version: int) -> None:
        with self._lock:
            self._check()
            split = self._routes.get(canary)
            if split is None or split.plain != canary_workload or len(split.weights) > 1:
                raise RouteError(f"{canary}: there is nothing to adopt")
            if split.version > version:
                raise FenceError(f"{canary}: the route carries state version {split.version}, newer than {version}")
            weights = {stable: 100, canary_workload: 0}
            self._routes[canary] = _Split(weights, version, 0, canary_workload, plain=split.plain)

    def restore(self, canary: str, route: Route, stable: str, canary_workload: str, *, version: int) -> bool:
        with self._lock:
            self._check()
            split = self._routes.get(canary)
            if split is None or not split.plain or len(split.weights) == 1:
                return False
            if split.version > version:
                raise FenceError(f"{canary}: the route carries state version {split.version}, newer than {version}")
            self._routes[canary] = _Split({split.plain: 100}, plain=split.plain)
            return True

    def _split(self, canary: str, stable: str, canary_workload: str) -> _Split:
        split = self._routes.get(canary)
        if split is None:
            raise RouteError(f"{canary}: there is no route; known: {', '.join(sorted(self._routes)) or 'none'}")
        for workload in (stable, canary_workload):
            if workload not in split.weights:
                raise RouteError(f"{canary}: the route splits between {', '.join(split.weights)}, not {workload}")
        return split


class MemoryWorkloads(_Breakable):
    """Workloads that are ready until somebody says otherwise."""

    _error = WorkloadError

    def __init__(self) -> None:
        super().__init__()
        self.shaped: list[tuple[str, Phase, int]] = []  # (canary, phase, version) of every call of `shape`
        self._views: dict[str, WorkloadView] = {}
        self._releases: dict[str, Release] = {}
        self._upgrades: dict[str, deque[HookState]] = {}

    def set_ready(self, canary: str, ready: bool, detail: str = "") -> None:
        """Both workloads of this canary are ready, or not, and why not."""
        with self._lock:
            self._views[canary] = replace(self._view(canary), ready=ready, detail="" if ready else detail)

    def set_started(self, canary: str, started: Mapping[str, datetime]) -> None:
        """Start times of pods."""
        with self._lock:
            self._views[canary] = replace(self._view(canary), started=dict(started))

    def put(self, canary: str, view: WorkloadView) -> None:
        """What is seen of both workloads from now on."""
        with self._lock:
            self._views[canary] = view

    def asks_for(self, canary: str, revision: str) -> None:
        """The canary's own workload asks for this revision from now on."""
        with self._lock:
            self._releases[canary] = Release(revision)

    def upgrades(self, canary: str, *results: HookStatus, detail: str = "") -> None:
        """What the next calls of `upgrade` will find; the last result stays. Without a script it is done at once."""
        with self._lock:
            self._upgrades[canary] = deque(HookState("", status, detail) for status in results)

    def release(self, canary: Canary) -> Release | None:
        with self._lock:
            self._check()
            return self._releases.get(canary.key)

    def view(self, canary: Canary, state: RolloutState) -> WorkloadView:
        with self._lock:
            self._check()
            return self._view(canary.key)

    def shape(self, canary: Canary, state: RolloutState, *, version: int, now: datetime) -> tuple[str, ...]:
        with self._lock:
            self._check()
            self.shaped.append((canary.key, state.phase, version))
            return ()

    def upgrade(self, canary: Canary, state: RolloutState, hook: HookState, *, version: int) -> HookState:
        with self._lock:
            script = self._upgrades.get(canary.key)
            found = (script.popleft() if len(script) > 1 else script[0]) if script else HookState("", HookStatus.DONE)
            if found.status is HookStatus.DONE:
                self._views[canary.key] = replace(self._view(canary.key), stable_revision=state.revision)
            return replace(found, id=hook.id)

    def restore(
        self, canary: Canary, state: RolloutState, *, version: int, now: datetime, rerouted: bool = False
    ) -> str:
        with self._lock:
            self._check()
            return ""

    def _view(self, canary: str) -> WorkloadView:
        return self._views.get(canary, WorkloadView(ready=True))


# ── hooks and people ─────────────────────────────────────────────────────────────────────────────────────────


class MemoryHooks:
    """Hooks whose results are written beforehand; without a script a hook is done at the first look."""

    def __init__(self) -> None:
        self.started: list[tuple[str, Mapping[str, str]]] = []  # (hook id, facts), once for each id
        self._scripts: dict[str, deque[HookState]] = {}
        self._lock = RLock()

    def script(self, canary: str, *results: HookStatus, detail: str = "") -> None:
        """What the next looks at this canary's hook will find; the last result stays."""
        with self._lock:
            self._scripts[canary] = deque(HookState("", status, detail) for status in results)

    def advance(self, canary: Canary, hook: Hook, state: HookState, facts: Mapping[str, str]) -> HookState:
        if state.status is not HookStatus.OWED:
            return state
        with self._lock:
            if state.id not in {started for started, _ in self.started}:
                self.started.append((state.id, dict(facts)))
            script = self._scripts.get(canary.name)
            if not script:
                return replace(state, status=HookStatus.DONE)
            found = script.popleft() if len(script) > 1 else script[0]
            return replace(found, id=state.id)


class MemoryNotifier(_Breakable):
    """Keeps what it was told to tell, in order, repetitions included."""

    _error = NotifyError

    def __init__(self, name: str = "memory") -> None:
        super().__init__()
        self.name = name
        self.told: list[Record] = []

    def probe(self) -> str:
        self._check()
        return "keeps what it is told"

    def notify(self, record: Record) -> None:
        with self._lock:
            self._check()
            self.told.append(record)


# ── traces ───────────────────────────────────────────────────────────────────────────────────────────────────


class MemoryTraces(_Breakable):
    """Spans that were put in, found again. `most` is how many traces it can give in one answer."""

    _error = SourceError

    def __init__(self, lag: timedelta = timedelta(seconds=5), base: str = "", most: int = 10_000) -> None:
        super().__init__()
        self.lag = lag
        self.asked: list[TraceQuery] = []
        self._base, self._most = base.rstrip("/"), most
        self._spans: dict[str, list[Span]] = {}  # trace -> spans

    def put(self, *spans: Span) -> None:
        """These have arrived."""
        with self._lock:
            for span in spans:
                self._spans.setdefault(span.trace, []).append(span)

    def find(self, query: TraceQuery) -> TraceAnswer:
        with self._lock:
            self._check()
            self.asked.append(query)
            found = [spans for spans in self._spans.values() if query.wants(spans)]
        found.sort(key=lambda spans: max(s.start for s in spans), reverse=True)
        most = min(query.limit, self._most) if query.newest else self._most
        settled = settle(s for spans in found[:most] for s in spans)
        note = f"truncated: the newest {most} of {len(found)} traces" if len(found) > most else ""
        return TraceAnswer(settled.spans, not note, note)

    def url(self, trace: str) -> str:
        return f"{self._base}/trace/{trace}" if self._base else ""


# ── state ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Kept:
    """A record, whether it is still owed to the notifiers, and which of them have told it."""

    record: Record
    owed: bool
    heard: set[str] = field(default_factory=set)


class MemoryStore(_Breakable):
    """State that is gone with the process. Safe to use from several threads; saved states must not be changed."""

    _error = StoreError

    def __init__(self) -> None:
        super().__init__()
        self._mark = 0
        self._stored: dict[str, Stored] = {}
        self._said: dict[str, tuple[str, Override, Answer | None]] = {}  # override id -> canary, word, answer
        self._records: dict[str, _Kept] = {}  # record id -> record, in the order of saving
        self._notes: dict[str, dict[str, str]] = {}  # canary -> notes, the oldest first
        self._beat: tuple[str, datetime] | None = None

    def load(self, canary: str) -> Stored:
        with self._lock:
            self._check()
            pending = tuple(o for name, o, answer in self._said.values() if name == canary and answer is None)
            return replace(self._current(canary), overrides=pending)

    def save(self, canary: str, state: RolloutState, version: int, records: Sequence[Record]) -> int:
        with self._lock:
            self._check()
            current = self._current(canary)
            if current.version != version:
                raise ConflictError(f"{canary}: saved at version {version}, but it is at {current.version} now")
            ids = [r.id for r in records]
            for id_ in ids:
                if id_ in self._records or ids.count(id_) > 1:
                    raise ConflictError(f"{canary}: there is a record {id_} already")
            for answer in state.answered:
                name, word, earlier = self._said.get(answer.id, ("", None, None))
                if word is not None and name == canary and earlier is None:
                    self._said[answer.id] = (name, word, answer)
            self._records.update((r.id, _Kept(r, r.tell)) for r in records)
            return self._put(canary, replace(current, state=state))

    def release(self, canary: str, release: Release) -> int:
        with self._lock:
            self._check()
            return self._put(canary, replace(self._current(canary), release=release))

    def override(self, canary: str, override: Override) -> int:
        with self._lock:
            self._check()
            if override.id in self._said:
                return self._current(canary).version
            self._said[override.id] = (canary, override, None)
            return self._put(canary, self._current(canary))

    def mark(self) -> int:
        self._check()
        return self._mark

    def records(
        self, canary: str, *, limit: int = 50, before: datetime | None = None, kinds: Sequence[str] = ()
    ) -> tuple[Record, ...]:
        with self._lock:
            self._check()
            found = [
                k.record
                for k in reversed(self._records.values())
                if k.record.canary == canary
                and (before is None or k.record.at <= before)
                and (not kinds or k.record.kind in kinds)
            ]
            return tuple(found[: max(limit, 0)])

    def owed(self, limit: int = 100, by: str = "") -> tuple[Record, ...]:
        with self._lock:
            self._check()
            found = [k.record for k in self._records.values() if k.owed and (not by or by not in k.heard)]
            return tuple(found[: max(limit, 0)])

    def told(self, ids: Sequence[str], by: str = "", expected: Sequence[str] = ()) -> None:
        with self._lock:
            self._check()
            for kept in (self._records[id_] for id_ in ids if id_ in self._records):
                if kept.owed and (not by or by not in kept.heard or kept.heard.issuperset(expected)):
                    kept.heard |= {by} if by else set()
                    kept.owed = bool(by) and not kept.heard.issuperset(expected)
                    self._mark += 1

    def amend(self, record: Record) -> None:
        with self._lock:
            self._check()
            kept = self._records.get(record.id)
            if kept is not None and kept.record.body != record.body:
                kept.record = replace(kept.record, body=record.body)
                self._mark += 1

    def memo(self, canary: str) -> Mapping[str, str]:
        with self._lock:
            self._check()
            return dict(self._notes.get(canary, {}))

    def remember(self, canary: str, key: str, value: str) -> None:
        check_note(key, value)
        with self._lock:
            self._check()
            notes = self._notes.setdefault(canary, {})
            if notes.get(key, "") != value:
                self._notes[canary] = noted(notes, key, value)
                self._mark += 1

    def prune(self, keep_after: datetime, keep_at_least: int) -> int:
        with self._lock:
            self._check()
            newer: dict[str, int] = {}  # records of each canary that are newer than the one looked at
            gone = []
            for id_, kept in reversed(self._records.items()):
                canary = kept.record.canary
                if newer.get(canary, 0) >= keep_at_least and kept.record.at < keep_after and not kept.owed:
                    gone.append(id_)
                newer[canary] = newer.get(canary, 0) + 1
            for id_ in gone:
                del self._records[id_]
            self._mark += bool(gone)
            return len(gone)

    def audit(self, canary: str, limit: int = 50) -> tuple[tuple[Override, Answer | None], ...]:
        """What people said, newest first, each with its answer; None while it waits for one."""
        with self._lock:
            self._check()
            said = [(word, answer) for name, word, answer in reversed(self._said.values()) if name == canary]
            return tuple(said[: max(limit, 0)])

    def canaries(self) -> tuple[str, ...]:
        """Names about which anything is held, sorted."""
        with self._lock:
            self._check()
            return tuple(sorted(self._stored))

    def beat(self, holder: str, at: datetime) -> None:
        """Somebody runs the daemon and has just ticked."""
        with self._lock:
            self._check()
            self._beat = (holder, at)
            self._mark += 1

    def heartbeat(self) -> tuple[str, datetime] | None:
        """Who ran the daemon and when it last ticked; None when nobody ever did."""
        self._check()
        return self._beat

    def close(self) -> None:
        """Nothing to close; here so that stores can be handled alike."""

    def _current(self, canary: str) -> Stored:
        return self._stored.get(canary, Stored(None, 0))

    def _put(self, canary: str, stored: Stored) -> int:
        self._stored[canary] = replace(stored, version=stored.version + 1)
        self._mark += 1
        return stored.version + 1
