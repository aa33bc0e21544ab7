"""Raw counters from Prometheus, or anything that speaks its query API; remembers, so the past can be read again.

It never lets the server calculate: no increase, no rate, no sum, only the last raw value before each instant. (What an
operator's own template lets it calculate is the operator's affair.)

prometheus-api-client builds the calls (paths, headers, credentials); what it does not do is done in `_Transport`,
the place that requests offers for it: the library waits for ever by default, and bounds no answer; retries three
times inside, longer than the time-out; puts the parameters of a POST into the URL, which proxies cut at 8 KB; drops
the server's warnings, and with them the word that an answer is partial. It also rounds start and end to whole
seconds, so they are handed over once more as parameters, which win.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from itertools import pairwise
from typing import Any, Generic, TypeVar

import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from requests.adapters import BaseAdapter

from canaryd.adapters.exchange import MAX_BYTES, Answer, Connection, Deadline, bearer_authorization, checked_url
from canaryd.adapters.series import (
    CLIENT,
    REPLICA_LABELS,
    REPORTERS,
    UNREACHED_FLAGS,
    Claims,
    Labels,
    Tally,
    counter_key,
    is_counted,
    unreached_key,
)
from canaryd.adapters.span_series import KINDS, SpanClaims
from canaryd.errors import SourceError
from canaryd.model import Arm, CounterKey, Reading
from canaryd.policy import ErrorSource
from canaryd.ports import CountsAnswer, CountsQuery, Template

K = TypeVar("K")
V = TypeVar("V")

CANARIES_PER_REQUEST = 50  # of raw series
SPANS_PER_REQUEST = 20  # canaries whose counters of spans are asked for at once
RECORDED_PER_REQUEST = 200  # of recorded ones, of which there are few for each pod
POINTS_PER_REQUEST = 500
MAX_SERIES = 2000  # of one template
MAX_STARTS = 500  # pods whose start is asked for at once
MAX_REMEMBERED = 20_000
REMEMBERED = timedelta(minutes=5)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
FOREVER = datetime.max.replace(tzinfo=UTC)
FORM = "application/x-www-form-urlencoded"


class PrometheusSource:
    """The port `MetricSource` over `query_range`: one POST for up to 50 canaries with the same points, 200 if recorded.

    A counter has a value at an instant t when a sample lies inside (t - step, t]: so the last value of a pod that
    vanished is still there at the end of its last interval, and a series born inside an interval is absent at its
    beginning. `exporter` is the label `instance`, else `pod`; `pod` is the label `pod`, else `instance`.

    A request that the server refuses takes its own canaries out of the answer, and nobody else.
    """

    remembers = True
    simultaneous = False  # every target is scraped at a phase of its own

    def __init__(
        self,
        url: str,
        *,
        timeout: timedelta = timedelta(seconds=5),
        lag: timedelta = timedelta(seconds=20),
        settle: timedelta = timedelta(0),
        headers: Mapping[str, str] | None = None,
        ca_file: str | None = None,
        bearer_file: str | None = None,
        max_bytes: int = MAX_BYTES,
        starts: bool = True,
        public_only: bool = False,
    ) -> None:
        """`timeout` covers one whole `read`. The bearer file is read for every `read`, so that a token may change.

        `starts`: kube-state-metrics is asked when pods started; not needed where the cluster itself says so.
        `public_only`: see `exchange.Connection`.
        A user and password in the URL are sent as basic authentication. Raises ValueError for an unusable URL or
        header.
        """
        self._parts = checked_url(url.rstrip("/"))
        if public_only and (bearer_file or headers):
            raise ValueError("a server that somebody else has named is not told a secret")
        self._url = url.rstrip("/")
        self._timeout = timeout
        self.lag = lag
        self.settle = settle
        self._headers = {name: _header(name, value) for name, value in (headers or {}).items()}
        self._ca_file = ca_file
        self._bearer_file = bearer_file
        self._max_bytes = max_bytes
        self._public_only = public_only
        self._asks_for_starts = starts
        self._recorded = _Memory[frozenset[str]]()  # query's workloads -> the recorded names that have series for them
        self._notes = _Memory[str]()  # query's workloads -> what is to be said of durations without buckets
        self._few_until: datetime | None = None  # so long recorded metrics, too, are asked for in small requests
        self._starts = _Memory[datetime | None]()  # (namespace, pod, exporter) -> start; None: nobody knows

    def read(self, queries: Sequence[CountsQuery]) -> Mapping[str, CountsAnswer]:
        """See the port."""
        deadline = Deadline.after(self._timeout)
        answers = {query.canary: CountsAnswer(()) for query in queries}
        asked = [query for query in queries if query.points]
        if not asked:
            return answers
        failed: dict[str, SourceError] = {}
        with Connection(
            self._parts, deadline, self._max_bytes, self._ca_file, public_only=self._public_only
        ) as connection:
            server = _Server(self._client(connection), connection.name, deadline)
            asking = self._counted(server, self._known(server, asked, failed), failed)
            for ask in asking:  # after all counts: a slow template delays nobody's errors
                ask.fill_in_templates()
            for ask in asking:  # last, because they decide least
                ask.count_spans()
            for ask in asking:
                answers |= self._with_starts(server, ask)
        if len(failed) == len({query.canary for query in asked}):
            raise next(iter(failed.values()))
        return answers | {canary: CountsAnswer((), failed=str(e)) for canary, e in failed.items()}

    def _known(
        self, server: _Server, queries: Sequence[CountsQuery], failed: dict[str, SourceError]
    ) -> list[tuple[CountsQuery, _Names]]:
        """The queries, each with the names that answer it; those of which that could not be learnt have failed."""
        known = []
        for group in _groups([(query, query.source) for query in queries], lambda _: RECORDED_PER_REQUEST):
            members = [query for query, _ in group]
            try:
                _Grid.over(members[0].points, members[0].step)  # nothing is asked when the instants are wrong
                self._look_for_recorded(server, members)
            except SourceError as e:
                failed |= dict.fromkeys((query.canary for query in members), e)
                continue
            there = [self._recorded.get(_identity(query)) or frozenset() for query in members]
            known += [(q, _Names.preferring(t, q)) for q, t in zip(members, there, strict=True)]
        return known

    def _counted(
        self, server: _Server, known: Sequence[tuple[CountsQuery, _Names]], failed: dict[str, SourceError]
    ) -> list[_Asking]:
        """What could be counted. A large request that fails is asked once more in small ones: it may be too large."""
        waiting, done = list(_groups(known, self._size)), []
        while waiting:
            group = waiting.pop(0)
            ask = _Asking(server, group, self._notes)
            try:
                ask.count(in_haste=bool(waiting))
            except SourceError as e:
                if len(group) <= CANARIES_PER_REQUEST or not server.deadline.left():
                    failed |= dict.fromkeys((query.canary for query, _ in group), e)
                    continue
                self._few_until = group[0][0].points[-1] + REMEMBERED
                waiting += _groups(group, lambda _: CANARIES_PER_REQUEST)
                continue
            done.append(ask)
        return done

    def _size(self, group: Sequence[tuple[CountsQuery, _Names]]) -> int:
        """How many canaries one request is for."""
        query, names = group[0]
        few = self._few_until is not None and query.points[-1] < self._few_until
        return RECORDED_PER_REQUEST if names.recorded and not few else CANARIES_PER_REQUEST

    def _look_for_recorded(self, server: _Server, group: Sequence[CountsQuery]) -> None:
        """Which recorded metrics have series for these workloads; asked again after five minutes."""
        source, now = group[0].source, group[0].points[-1]
        due = [query for query in group if not self._recorded.knows(_identity(query), now)]
        if not due:
            return
        names, claims = (source.recorded_requests, source.recorded_durations), Claims(due)
        by = "__name__,destination_workload,destination_workload_namespace"
        expression = f"count by ({by}) (last_over_time({_selector(due, names)}))"
        if sent_to := _sent_to(due):
            by = "__name__,destination_service_name,destination_service_namespace"
            clients = f"{source.recorded_unreached}{{{sent_to}}}[{_reach(due)}]"
            expression += f" or count by ({by}) (last_over_time({clients}))"
        found: dict[str, set[str]] = defaultdict(set)
        for labels in server.labels(expression, (now - EPOCH) // MILLISECOND):
            name = labels.get("__name__", "")
            for canary, _ in claims.sent_to(labels) if name == source.recorded_unreached else claims.of(labels):
                found[canary].add(name)
        for query in due:
            self._recorded.keep(_identity(query), frozenset(found[query.canary]), now)

    def _with_starts(self, server: _Server, ask: _Asking) -> dict[str, CountsAnswer]:
        """The answers with what kube-state-metrics knows of the pods' starts, asked once for each pod."""
        answers, now = ask.answers(), ask.queries[0].points[-1]
        if not self._asks_for_starts:
            return answers
        pods = {
            (query.namespace, key.pod, key.exporter)  # a pod that comes again under its name has another exporter
            for query in ask.queries
            for reading in answers[query.canary].readings[-1:]
            for key in reading.counters
            if key.name == "requests" and key.pod
        }
        unknown = sorted(pod for pod in pods if not self._starts.knows(pod, now))[:MAX_STARTS]
        if unknown:
            namespaces, names = ([pod[i] for pod in unknown] for i in (0, 1))
            selector = f"kube_pod_start_time{{namespace=~{_one_of(namespaces)},pod=~{_one_of(names)}}}"
            with suppress(SourceError):  # the counts are there; without it the first sample of a pod is its start
                found = server.starts(selector, (now - EPOCH) // MILLISECOND)
                for pod in unknown:
                    self._starts.keep(pod, found.get(pod[:2]), now, lasting=pod[:2] in found)
        started = {pod[:2]: at for pod in sorted(pods) if (at := self._starts.get(pod)) is not None}
        return {
            query.canary: replace(
                answers[query.canary], started={n: at for (space, n), at in started.items() if space == query.namespace}
            )
            for query in ask.queries
        }

    def _client(self, connection: Connection) -> PrometheusConnect:
        session = requests.Session()
        session.trust_env = False  # a .netrc would replace our credentials, a proxy variable our route
        client = PrometheusConnect(
            self._url, headers=self._headers | self.authorization(), session=session, method="POST"
        )
        session.mount(self._url, _Transport(connection))  # takes the place of the adapter that the library mounted
        return client

    def authorization(self) -> dict[str, str]:
        """The header of the bearer token as its file has it now; empty without one. Raises SourceError."""
        return bearer_authorization(self._bearer_file)


def _header(name: str, value: str) -> str:
    """The value; an unusable one is refused here, because the libraries below would repeat it in their message."""
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) or not re.fullmatch(r"[!-~]([ -~]*[!-~])?", value):
        raise ValueError(f"the header {name!r} or its value is not usable; use printable ASCII")
    return value


class _Memory(Generic[V]):
    """What the server once said of something; the oldest is forgotten first. Time is that of the points asked for."""

    def __init__(self) -> None:
        self._held: dict[Hashable, tuple[V, datetime]] = {}

    def get(self, key: Hashable) -> V | None:
        held = self._held.get(key)
        return held[0] if held else None

    def knows(self, key: Hashable, now: datetime) -> bool:
        return (key in self._held and abs(now - self._held[key][1]) < REMEMBERED) or self._lasts(key)

    def keep(self, key: Hashable, value: V, now: datetime, *, lasting: bool = False) -> None:
        self._held.pop(key, None)
        self._held[key] = value, FOREVER if lasting else now
        while len(self._held) > MAX_REMEMBERED:
            del self._held[next(iter(self._held))]

    def _lasts(self, key: Hashable) -> bool:
        return key in self._held and self._held[key][1] is FOREVER


def _identity(query: CountsQuery) -> Hashable:
    services = query.stable_service, query.canary_service
    return query.canary, query.namespace, query.stable, query.canary_workload, services, query.source


# ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Grid:
    """The instants to evaluate at: all points asked for, at the widest step that meets them all."""

    points: Mapping[int, datetime]  # milliseconds since 1970, ascending → the point as it was asked for
    step: int  # milliseconds

    @classmethod
    def over(cls, points: Sequence[datetime], step: timedelta) -> _Grid:
        """Raises SourceError when a point is no whole millisecond: the server would answer for another instant."""
        exact = {(at - EPOCH) // MILLISECOND: at for at in points}
        if any((at - EPOCH) % MILLISECOND for at in points) or step % MILLISECOND or step < MILLISECOND:
            raise SourceError("the instants asked for do not lie on a grid of whole milliseconds")
        gaps = (b - a for a, b in pairwise(exact))
        return cls(exact, math.gcd(*gaps) or step // MILLISECOND)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """First and last instant of each request."""
        first, last = min(self.points), max(self.points)
        width = self.step * (POINTS_PER_REQUEST - 1)
        while first <= last:
            yield first, min(first + width, last)
            first += width + self.step


@dataclass(frozen=True, slots=True)
class _Names:
    """The metrics from which a query is answered."""

    source: ErrorSource  # its `requests` and `durations` are those that are read
    lost: str  # requests that never reached a pod, as their clients report them
    recorded: bool  # all that is asked for

    @classmethod
    def preferring(cls, there: frozenset[str], query: CountsQuery) -> _Names:
        """Recorded metrics where they are `there`."""
        raw = query.source
        requests = raw.recorded_requests if raw.recorded_requests in there else raw.requests
        durations = raw.recorded_durations if raw.recorded_durations in there else raw.durations
        lost = raw.recorded_unreached if raw.recorded_unreached in there else raw.requests
        wanted = [raw.recorded_requests]
        wanted += [raw.recorded_durations] if query.durations else []
        wanted += [raw.recorded_unreached] if query.stable_service or query.canary_service else []
        source = raw.model_copy(update={"requests": requests, "durations": durations})
        return cls(source, lost, there >= set(wanted))


def _groups(known: Sequence[tuple[CountsQuery, K]], size: Callable[[list[Any]], int]) -> list[list[Any]]:
    """Queries that one request can answer, each with what is known of it, at most `size` of them in each group."""
    alike: dict[object, list[tuple[CountsQuery, K]]] = defaultdict(list)
    for query, what in known:
        alike[query.points, query.step, query.durations, what].append((query, what))
    return [group[i : i + n] for group in alike.values() for n in [size(group)] for i in range(0, len(group), n)]


def _one_of(names: Sequence[str]) -> str:
    """A PromQL string with a pattern that matches exactly these names."""
    escaped = (re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", name) for name in sorted(set(names)))
    return json.dumps("|".join(escaped), ensure_ascii=False)  # Go reads the escapes of JSON


def _selector(group: Sequence[CountsQuery], names: Sequence[str]) -> str:
    """Raw series of all the group's workloads in the time since the instant before, as one range."""
    workloads = [name for query in group for name in (query.stable, query.canary_workload)]
    namespaces = ["", *(query.namespace for query in group)]  # "" also stands for the label's absence
    return (
        f"{{__name__=~{_one_of(names)},reporter=~{_one_of(REPORTERS)},destination_workload=~{_one_of(workloads)},"
        f"destination_workload_namespace=~{_one_of(namespaces)}}}[{_reach(group)}]"
    )


def _reach(group: Sequence[CountsQuery]) -> str:
    """How far back the last sample may lie."""
    # One millisecond less than the step: Prometheus 2 counts the left end of a range in, Prometheus 3 does not.
    return f"{max(1, group[0].step // MILLISECOND - 1)}ms"


def _spans_of(group: Sequence[CountsQuery]) -> str:
    """Raw counters of the spans that the group's services served."""
    asked = [query.spans for query in group if query.spans is not None]
    names = [name for spans in asked for name in (spans.calls, spans.durations)]
    services = [spans.service for spans in asked]
    return (
        f"last_over_time({{__name__=~{_one_of(names)},service_name=~{_one_of(services)},"
        f"span_kind=~{_one_of(KINDS)}}}[{_reach(group)}])"
    )


def _sent_to(group: Sequence[CountsQuery]) -> str:
    """Matchers of what clients report of requests to all the group's Services; "" when it has none."""
    services = [name for query in group for name in (query.stable_service, query.canary_service) if name]
    if not services:
        return ""
    namespaces = ["", *(query.namespace for query in group)]
    return f"destination_service_name=~{_one_of(services)},destination_service_namespace=~{_one_of(namespaces)}"


def _unreached(group: Sequence[CountsQuery], names: _Names) -> str:
    """Requests that never reached a pod, and a 0 for every client, so that its first loss is seen to be new."""
    sent_to, reach = _sent_to(group), _reach(group)
    if names.lost == names.source.recorded_unreached:  # its rule has the zeros
        return f"last_over_time({names.lost}{{{sent_to}}}[{reach}])"
    clients = f"{names.lost}{{reporter={json.dumps(CLIENT)},{sent_to}"
    lost = f"last_over_time({clients},response_flags=~{json.dumps(_LOST)}}}[{reach}])"
    by = "instance,pod,namespace,destination_service_name,destination_service_namespace"
    return f"{lost} or 0 * count by ({by}) (last_over_time({clients}}}[{reach}]))"


_LOST = f"(.*,)?({'|'.join(UNREACHED_FLAGS)})(,.*)?"


def filled_in(template: Template, query: CountsQuery) -> str:
    """The PromQL of a template. Raises SourceError for a name that no PromQL string can hold."""
    workload = query.stable if template.arm is Arm.STABLE else query.canary_workload
    values = {"workload": workload, "namespace": query.namespace, "window": f"{query.step // MILLISECOND}ms"}

    def value(match: re.Match[str]) -> str:
        text = values.get(match[1].strip())
        if text is None or any(c in "'`" or not c.isprintable() for c in text):
            raise SourceError(f"{match[0]} cannot be filled in")
        return text.replace("\\", "\\\\").replace('"', '\\"')

    return re.sub(r"\{\{([^{}]*)\}\}", value, template.text)


@dataclass(frozen=True, slots=True)
class _Server:
    """Asks for one matrix after the other."""

    client: PrometheusConnect
    name: str  # of the server, for messages
    deadline: Deadline

    def range(self, expression: str, first: int, last: int, step: int, *, share: float = 1.0) -> list[Any]:
        """Series with the values at each step; times in milliseconds since 1970. Raises SourceError, TypeError.

        The server is told to give up after `share` of the time that is left.
        """
        self.deadline.check(self.name)
        left = max(share * self.deadline.left(), 0.001)
        exact = {"start": _seconds(first), "end": _seconds(last), "timeout": f"{left:.3f}"}
        start, end = EPOCH + first * MILLISECOND, EPOCH + last * MILLISECOND
        try:
            result = self.client.custom_query_range(expression, start, end, _seconds(step), params=exact)
        except (requests.RequestException, PrometheusApiClientException) as e:
            raise SourceError(f"{self.name}: {type(e).__name__}") from e  # their texts repeat whole answers
        if not isinstance(result, list):
            raise TypeError("no list of series")
        return result

    def labels(self, expression: str, at: int) -> list[Labels]:
        """The labels of the series there are at one instant. Raises SourceError."""
        with self.understood():
            return [dict(series["metric"].items()) for series in self.range(expression, at, at, 1000)]

    def starts(self, selector: str, at: int) -> dict[tuple[str, str], datetime]:
        """(namespace, pod) -> the start that kube-state-metrics reports. Raises SourceError."""
        found = {}
        with self.understood():
            for series in self.range(selector, at, at, 1000):
                labels, (_, value) = series["metric"], series["values"][-1]
                if labels.get("__name__") == "kube_pod_start_time":
                    start = datetime.fromtimestamp(float(value), UTC)
                    found[str(labels.get("namespace", "")), str(labels.get("pod", ""))] = start
        return found

    @contextmanager
    def understood(self) -> Iterator[None]:
        """Whatever is odd about an answer becomes a SourceError."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError, OSError) as e:
            raise SourceError(f"{self.name}: an answer that is not understood ({type(e).__name__}: {e})") from e


class _Asking:
    """One group's questions, and what came of them."""

    def __init__(self, server: _Server, group: Sequence[tuple[CountsQuery, _Names]], notes: _Memory[str]) -> None:
        self._server = server
        self.queries = self._group = [query for query, _ in group]
        self._names = group[0][1]
        self._unseen: dict[str, dict[str, str]] = defaultdict(dict)
        self._notes = notes
        self._source = self._names.source
        self._grid = _Grid.over(self._group[0].points, self._group[0].step)
        self._claims = Claims(self._group)
        self._tally = Tally()
        self._spans = Tally()

    def count(self, *, in_haste: bool = False) -> None:
        """Reads requests and durations; `in_haste`: others wait, so half of the time must do. Raises SourceError."""
        wanted = [self._source.requests]
        if self._group[0].durations:
            wanted.append(self._source.durations)
        expression = f"last_over_time({_selector(self._group, wanted)})"
        if _sent_to(self._group):
            expression += f" or {_unreached(self._group, self._names)}"
        with self._server.understood():
            for series in self._series(expression, share=0.5 if in_haste else 1.0):
                self._take(series)
            self._look_for_buckets()

    def fill_in_templates(self) -> None:
        """Reads the operators' own queries; one that fails takes its metric out of the answer, and nothing else."""
        for query in self._group:
            for metric in dict.fromkeys(t.metric for t in query.templates):
                try:
                    found = [
                        (t, list(self._series(filled_in(t, query), MAX_SERIES)))
                        for t in query.templates
                        if t.metric == metric
                    ]
                    with self._server.understood():
                        samples = [self._sampled(t, series) for t, all_series in found for series in all_series]
                except SourceError as e:
                    self._unseen[query.canary][metric] = str(e)
                    continue
                for key, part, kept in samples:
                    self._tally.add(query.canary, key, part, kept)

    def count_spans(self) -> None:
        """Reads what a collector counted of spans; what fails takes the metrics that need it out, and nothing else."""
        asking = [query for query in self._group if query.spans is not None]
        for i in range(0, len(asking), SPANS_PER_REQUEST):
            chunk = asking[i : i + SPANS_PER_REQUEST]
            claims = SpanClaims(chunk)
            try:
                with self._server.understood():
                    found = [
                        (canary, key, series["metric"], self._samples(series))
                        for series in self._series(_spans_of(chunk), share=0.5)
                        for canary, key in claims.of(series["metric"])
                    ]
            except SourceError as e:
                for query in chunk:
                    if query.spans is not None:
                        self._unseen[query.canary][query.spans.metric] = str(e)
                continue
            for canary, key, labels, samples in found:
                self._spans.add(canary, key, _without_replica(labels), samples)

    def _readings(self, canary: str) -> tuple[Reading, ...]:
        """Of the counters of requests, with those of spans beside them."""
        spans = {reading.at: reading.counters for reading in self._spans.readings(canary)}
        return tuple(replace(r, spans=spans.get(r.at, {})) for r in self._tally.readings(canary))

    def answers(self) -> dict[str, CountsAnswer]:
        """One for each query of the group."""
        return {
            query.canary: CountsAnswer(
                self._readings(query.canary),
                "; ".join(filter(None, (self._claims.note(query), self._bucket_note(query)))),
                unseen=self._unseen[query.canary],
            )
            for query in self._group
        }

    def _series(self, expression: str, most: float = math.inf, share: float = 1.0) -> Iterator[Mapping[str, Any]]:
        """All series over the whole grid. Raises SourceError."""
        for first, last in self._grid.pieces():
            with self._server.understood():
                found = self._server.range(expression, first, last, self._grid.step, share=share)
            if len(found) > most:
                raise SourceError(f"{len(found)} series are too many; sum them by pod")
            for series in found:
                self._server.deadline.check(self._server.name)
                yield series

    def _sampled(
        self, template: Template, series: Mapping[str, Any]
    ) -> tuple[CounterKey, object, list[tuple[datetime, float]]]:
        """One series of a template as samples of a counter."""
        labels: Labels = series["metric"]
        pod = str(labels.get("pod") or labels.get("instance") or "")
        key = CounterKey(template.arm, f"{template.metric}:{pod}", pod, template.name, "", "", "", 0.0)
        return key, _without_replica(labels), self._samples(series)

    def _samples(self, series: Mapping[str, Any]) -> list[tuple[datetime, float]]:
        samples = [(self._instant(at), float(value)) for at, value in series.get("values", ())]
        return [(at, value) for at, value in samples if at is not None]

    def _take(self, series: Mapping[str, Any]) -> None:
        labels: Labels = series["metric"]
        if self._is_of_a_client(labels):
            self._take_lost(series)
            return
        name = labels["__name__"]
        kept = self._samples(series)
        if not is_counted(labels, name, self._source):
            return
        exporter = labels.get("instance") or labels.get("pod", "")
        pod = labels.get("pod") or exporter
        part = _without_replica(labels)
        for canary, arm in self._claims.of(labels):
            self._tally.add(canary, counter_key(labels, name, self._source, arm, exporter, pod), part, kept)

    def _is_of_a_client(self, labels: Labels) -> bool:
        if "__name__" not in labels:  # a zero
            return "destination_service_name" in labels
        return labels["__name__"] == self._names.lost and (
            labels.get("reporter") == CLIENT or self._names.lost == self._source.recorded_unreached
        )

    def _take_lost(self, series: Mapping[str, Any]) -> None:
        labels: Labels = series["metric"]
        for canary, arm in self._claims.sent_to(labels):
            if (key := unreached_key(labels, arm)) is not None:
                self._tally.add(canary, key, _without_replica(labels), self._samples(series))

    def _instant(self, seconds: float) -> datetime | None:
        """The point asked for; None for an instant between two of them. A foreign grid is an error, not no data."""
        at = round(seconds * 1000)
        if (at - min(self._grid.points)) % self._grid.step:
            raise ValueError(f"a value for {seconds}, an instant that was not asked for")
        return self._grid.points.get(at)

    def _is_without_buckets(self, query: CountsQuery) -> bool:
        names = self._tally.names.get(query.canary, set())
        return query.durations and "requests" in names and "bucket" not in names

    def _bucket_note(self, query: CountsQuery) -> str:
        return (self._notes.get(_identity(query)) or "") if self._is_without_buckets(query) else ""

    def _look_for_buckets(self) -> None:
        """What to say of canaries that have no classic buckets: have they any durations? Once in five minutes."""
        source, now = self._source, max(self._grid.points.values())
        blind = [q for q in self._group if self._is_without_buckets(q) and not self._notes.knows(_identity(q), now)]
        if not blind:
            return
        base = source.durations.removesuffix("_bucket")
        by = "destination_workload,destination_workload_namespace,reporter"
        expression = f"count by ({by}) (last_over_time({_selector(blind, [base, f'{base}_count'])}))"
        last = max(self._grid.points)
        found = {canary for labels in self._server.labels(expression, last) for canary, _ in self._claims.of(labels)}
        note = f"{base} has a count but no {source.durations}: native histograms cannot be compared yet"
        for query in blind:
            self._notes.keep(_identity(query), note if query.canary in found else "", now)


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds // 1000}.{milliseconds % 1000:03d}"


def _without_replica(labels: Labels) -> object:
    """What tells a series from the others of its counter; the same for copies from two replicas."""
    return tuple(sorted((k, v) for k, v in labels.items() if k not in REPLICA_LABELS))


# ── the transport ────────────────────────────────────────────────────────────────────────────────────────────


class _Transport(BaseAdapter):
    """Carries the library's calls over a bounded connection and lets through only complete, successful answers."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def send(self, request: requests.PreparedRequest, *_: object, **__: object) -> requests.Response:
        """Certificates are always checked, time is always bounded: the caller's wishes about both are not heard."""
        target, parameters = request.path_url.split("?", 1)
        dropped = ("connection", "content-length", "accept-encoding")
        headers = {str(k): str(v) for k, v in request.headers.items() if k.lower() not in dropped}
        body = parameters.encode()
        answer = self._connection.ask("POST", target, headers | {"Content-Type": FORM}, body)
        if answer.status != 200:
            raise SourceError(f"{self._connection.name}: HTTP {answer.status} {_said(answer)}".rstrip())
        return _Response(self._connection.name, answer)

    def close(self) -> None:
        self._connection.close()


class _Response(requests.Response):
    """An answer whose JSON is there only when the server vouches for all of it."""

    def __init__(self, name: str, answer: Answer) -> None:
        super().__init__()
        self.status_code = answer.status
        self.raw = BytesIO(answer.body)
        self._name = name
        self._answer = answer

    def json(self, **_: object) -> Any:
        document = _parsed(self._answer.body)
        if not isinstance(document, dict) or "status" not in document:
            raise SourceError(f"{self._name}: the answer is not that of a Prometheus API")
        if document["status"] != "success":
            raise SourceError(f"{self._name}: {_said(self._answer)}")
        if warnings := document.get("warnings"):
            raise SourceError(f"{self._name}: the answer is partial: {str(warnings)[:200]}")
        if not isinstance(document.get("data"), dict) or document["data"].get("resultType") != "matrix":
            raise SourceError(f"{self._name}: the answer holds no matrix of series")
        return document


def _parsed(body: bytes) -> Any:
    """None when it is no JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _said(answer: Answer) -> str:
    """The server's own words about an error, shortened."""
    document = _parsed(answer.body[:100_000])
    # Whoever names a server must not learn from its errors what else it could say.
    if isinstance(document, dict) and document.get("status") == "error" and "error" in document:
        return f"{document.get('errorType', 'error')!s:.40}: {document['error']!s:.200}"
    return answer.reason[:100]
