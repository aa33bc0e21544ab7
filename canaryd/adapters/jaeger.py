"""Traces from Jaeger's query service: its v3 API (OTLP), or `/api/traces` where there is no other.

What each generation wants was read in its sources and tried: up to 2.18 v3's parameters are in snake_case, from 2.19
on in camelCase and with a filter by attributes, and from 2.21 on the old search is gone. Which one answers is asked
once for each server, and told by the type of the content: a path that Jaeger does not know answers 200 with the page of
its user interface. In v3 "404 No traces found" is an answer; any other 404 means that the server has changed.

A search gives the newest traces, at most as many as were asked for, and says nothing about the rest. So an answer that
is full is asked for again in halves of its time, newest first, until none is full. The conditions are tested here
once more, because the storages behind Jaeger do not agree about what several of them together mean.

It never waits longer than its time-out for all requests of one search together, never reads more than `max_bytes` of
one answer, and never puts a credential or a query into a message.
"""

from __future__ import annotations

import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from urllib.parse import urlencode

from canaryd.adapters.exchange import (
    Answer,
    Connection,
    Deadline,
    TooLargeError,
    basic_authorization,
    basic_file_authorization,
    bearer_authorization,
    checked_url,
)
from canaryd.adapters.span_json import Harvest, Reader
from canaryd.errors import SourceError
from canaryd.ports import TraceAnswer, TraceQuery
from canaryd.spans import Span, discreet, settle

MAX_BYTES = 24 * 1024 * 1024  # of one answer; a span takes about 800
MAX_SPANS = 100_000  # of one search; each takes about 900 bytes here
MAX_REQUESTS = 100  # of one search
SHORTEST = timedelta(milliseconds=10)  # a stretch of time that is not halved any more
LEAST_DEPTH = 20  # traces in one answer; a storage that cannot give so many is not usable
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Api(Enum):
    """How a server wants to be asked."""

    LEGACY = "/api/traces (before v3)"
    V3 = "v3, snake_case (up to 2.18)"
    V3_ATTRIBUTES = "v3 with a filter by attributes (2.19 and later)"


class JaegerSource:
    """The port `TraceSource`. May be used from several threads; each search has a connection of its own."""

    def __init__(
        self,
        url: str,
        *,
        external_url: str = "",
        timeout: timedelta = timedelta(seconds=5),
        lag: timedelta = timedelta(seconds=15),
        ca_file: str | None = None,
        bearer_file: str | None = None,
        basic_file: str | None = None,
        limit: int = 500,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """`timeout` covers one whole `find`; `limit` is the most traces that one request may ask for.

        The files of the token, or of "user:password", are read for each search, so that what they hold may change. A
        user and password in the URL are sent as basic authentication. Raises ValueError for an unusable URL.
        """
        self._parts = checked_url(url.rstrip("/"))
        self._external = external_url.rstrip("/")
        self._timeout = timeout
        self.lag = lag
        self._ca_file = ca_file
        self._bearer_file = bearer_file
        self._basic_file = basic_file
        self._limit = limit
        self._max_bytes = max_bytes
        self._api: Api | None = None
        self._depth = limit  # what the storage has been seen to accept
        self._lock = threading.Lock()

    def find(self, query: TraceQuery) -> TraceAnswer:
        """See the port."""
        with self._server() as server:
            return _Search(server, self._known(server), query, self._page(query)).run()

    def _page(self, query: TraceQuery) -> int:
        """How many traces one request asks for; where the newest are enough, most of a page may not match."""
        return self._depth if query.newest else min(query.limit, self._depth)

    def url(self, trace: str) -> str:
        """See the port; the trace's page in Jaeger's user interface."""
        return f"{self._external}/trace/{trace}" if self._external else ""

    def api(self) -> Api:
        """How the server wants to be asked, by asking it now. Raises SourceError."""
        with self._server() as server:
            self._learnt(None)
            return self._known(server)

    def services(self) -> tuple[str, ...]:
        """Every service that has spans, sorted. Raises SourceError."""
        with self._server() as server:
            path = "/api/services" if self._known(server) is Api.LEGACY else "/api/v3/services"
            found = json.loads(server.get(path).body)
            names = found.get("services", found.get("data")) if isinstance(found, dict) else None
            return tuple(sorted(str(name) for name in names or ()))

    def _server(self) -> _Server:
        deadline = Deadline.after(self._timeout)
        headers = basic_authorization(self._parts)
        headers |= basic_file_authorization(self._basic_file) | bearer_authorization(self._bearer_file)
        connection = Connection(self._parts, deadline, self._max_bytes, self._ca_file)
        return _Server(connection, deadline, self._parts.path, {"Accept": "application/json", **headers}, self)

    def _known(self, server: _Server) -> Api:
        if self._api is None:
            self._learnt(server.probe())
        assert self._api is not None
        return self._api

    def _learnt(self, api: Api | None) -> None:
        with self._lock:
            self._api = api

    def forget(self) -> None:
        """The server has changed: it is asked again what it is."""
        self._learnt(None)

    def accepts(self, depth: int) -> None:
        """The storage refuses more traces than this in one answer."""
        with self._lock:
            self._depth = min(self._depth, depth)


@dataclass(slots=True)
class _Server:
    """One server during one search."""

    connection: Connection
    deadline: Deadline
    prefix: str  # of the paths, where Jaeger is served below one
    headers: Mapping[str, str]
    source: JaegerSource
    requests: int = 0

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ask(self, path: str, parameters: Mapping[str, str] | None = None) -> Answer:
        """Whatever is answered, errors included. Raises SourceError when nothing is."""
        self.requests += 1
        target = f"{self.prefix}{path}" + (f"?{urlencode(parameters)}" if parameters else "")
        answer = self.connection.ask("GET", target, self.headers)
        if answer.status in (401, 403):
            raise SourceError(
                f"{self.connection.name}: {answer.status} {discreet(answer.reason)}: the credentials are refused"
            )
        return answer

    def get(self, path: str) -> Answer:
        """A JSON answer. Raises SourceError."""
        answer = self.ask(path)
        if answer.status != 200 or not _is_json(answer):
            raise self.trouble(answer)
        return answer

    def probe(self) -> Api:
        """Which API there is: only what answers JSON is one."""
        answer = self.ask("/api/v3/services")
        if answer.status >= 500:
            raise self.trouble(answer)
        if not _is_json(answer):
            old = self.ask("/api/services")
            if old.status == 200 and _is_json(old):
                return Api.LEGACY
            raise SourceError(
                f"{self.connection.name}: neither /api/v3 nor /api/traces is there; is this Jaeger's query service "
                f"(port 16686), and its base path in the URL?"
            )
        # without a time an API that is there complains in JSON, and one that is not shows a page
        summaries = self.ask("/api/v3/trace-summaries")
        return Api.V3_ATTRIBUTES if _is_json(summaries) and summaries.status != 404 else Api.V3

    def trouble(self, answer: Answer) -> SourceError:
        said = _said(answer)
        return SourceError(
            f"{self.connection.name}: {answer.status} {discreet(answer.reason)}" + (f": {said}" if said else "")
        )


def _is_json(answer: Answer) -> bool:
    """By what it looks like: Jaeger sends its errors as text/plain, and its page as text/html."""
    return answer.body[:200].lstrip()[:1] in (b"{", b"[")


def _said(answer: Answer) -> str:
    """The server's own message, without what looks like a secret; "" when it has none."""
    try:
        found = json.loads(answer.body[:20_000]) if _is_json(answer) else None
        error = found.get("error") or (found.get("errors") or [None])[0] if isinstance(found, dict) else None
        said = (error.get("message") or error.get("msg")) if isinstance(error, dict) else error
    except (ValueError, AttributeError, TypeError, KeyError, IndexError, RecursionError):
        return ""
    return discreet(said) if isinstance(said, str) else ""


@dataclass(frozen=True, slots=True)
class _Window:
    """A stretch of time, both ends included."""

    start: datetime
    end: datetime

    def halves(self) -> tuple[_Window, _Window]:
        """The newer one first."""
        middle = self.start + (self.end - self.start) / 2
        return _Window(middle, self.end), _Window(self.start, middle)


class _FullError(Exception):
    """There is more in this stretch of time than one answer holds."""


@dataclass(slots=True)
class _Search:
    """One search in as many requests as it takes."""

    server: _Server
    api: Api
    query: TraceQuery
    depth: int
    harvest: Harvest = field(default_factory=Harvest)
    found: list[Span] = field(default_factory=list)
    traces: set[str] = field(default_factory=set)  # of what was found
    through: datetime | None = None  # everything younger than this was read
    why: str = ""  # why not everything was read

    def run(self) -> TraceAnswer:
        windows = [_Window(self.query.start, self.query.end)]
        while windows and not self.why:
            window = windows.pop()
            try:
                self._read(window)
            except _FullError:
                if window.end - window.start <= SHORTEST:
                    self.why = f"too many traces within {SHORTEST // timedelta(milliseconds=1)} ms"
                else:
                    newer, older = window.halves()
                    windows += [older, newer]
                continue
            except SourceError as e:
                if self.through is None:  # nothing is known
                    raise
                self.why = str(e)
                continue
            self.through = window.start
            self.why = self._spent() if windows else ""
        return self._answer()

    def _spent(self) -> str:
        if self.query.newest and len(self.traces) >= self.query.limit:
            return f"{len(self.traces)} traces are enough"
        if len(self.found) > MAX_SPANS:
            return f"more than {MAX_SPANS} spans"
        if self.server.requests >= MAX_REQUESTS:
            return f"{MAX_REQUESTS} requests were not enough"
        return ""

    def _answer(self) -> TraceAnswer:
        settled = settle(self.found)
        notes = [self.harvest.note()]
        if settled.looped:
            several = settled.looped > 1
            which = (
                "spans left out that are their own ancestors" if several else "span left out that is its own ancestor"
            )
            notes.append(f"{settled.looped} {which}")
        if self.harvest.said:
            notes.append(f"the server says: {discreet(self.harvest.said)}")
        whole = not any(notes)
        if self.why:
            since = f"only traces since {self.through:%H:%M:%S} UTC were read" if self.through else "none was read"
            notes.insert(0, f"truncated: {self.why}; {since}")
        return TraceAnswer(settled.spans, whole and not self.why, "; ".join(filter(None, notes)))

    def _read(self, window: _Window) -> None:
        """Raises _FullError, having kept nothing, when there may be more."""
        harvest = Harvest()
        try:
            self._ask(window, harvest)
        except TooLargeError:
            raise _FullError from None
        self.server.deadline.check(self.server.connection.name)
        if len(harvest.traces) >= self.depth:
            raise _FullError
        self.harvest.refused += harvest.refused
        self.harvest.said = self.harvest.said or harvest.said
        for trace in self._wanted(harvest.spans):
            self.found += trace
            self.traces.add(trace[0].trace)

    def _wanted(self, spans: list[Span]) -> Iterator[list[Span]]:
        """Those of traces that match; storages are not trusted with the conditions."""
        traces: dict[str, list[Span]] = defaultdict(list)
        for span in spans:
            traces[span.trace].append(span)
        for trace in traces.values():
            if self.query.wants(trace):
                yield trace

    def _ask(self, window: _Window, harvest: Harvest) -> None:
        path, parameters = self._question(window)
        answer = self.server.ask(path, parameters)
        if self.api is not Api.LEGACY and answer.status == 404 and _is_json(answer):
            return None  # no traces found
        if answer.status >= 400 and "search depth" in _said(answer) and self.depth > LEAST_DEPTH:
            self.depth //= 2  # a small storage refuses to be asked for more than it holds
            self.server.source.accepts(self.depth)
            return self._ask(window, harvest)
        if answer.status != 200 or not _is_json(answer):
            if answer.status < 500:
                self.server.source.forget()  # another version may be here the next time
            raise self.server.trouble(answer)
        reader = Reader(self.query.arms, self.query.aliases)
        text = str(answer.body, "utf-8", "replace")
        if self.api is not Api.LEGACY and _has_at_least(self.depth, text):
            raise _FullError  # not worth reading
        del answer  # it may be large, and the text is another one
        try:
            (reader.legacy if self.api is Api.LEGACY else reader.otlp)(text, harvest)
        except ValueError as e:
            raise SourceError(f"{self.server.connection.name}: an answer that is not understood: {e}") from None
        return None

    def _question(self, window: _Window) -> tuple[str, dict[str, str]]:
        slower = f"{self.query.slower_ms * 1000:.0f}us" if self.query.slower_ms else ""
        if self.api is Api.LEGACY:
            given = {
                "service": self.query.service,
                "start": str((window.start - EPOCH) // timedelta(microseconds=1)),
                "end": str((window.end - EPOCH) // timedelta(microseconds=1)),
                "limit": str(self.depth),
                "minDuration": slower,
            }
            return "/api/traces", {k: v for k, v in given.items() if v}
        names = _SNAKE if self.api is Api.V3 else _CAMEL
        given = {
            "service": self.query.service,
            "from": _rfc3339(window.start),
            "to": _rfc3339(window.end),
            "depth": str(self.depth),
            "depth_too": str(self.depth),
            "slower": slower,
        }
        if self.api is Api.V3_ATTRIBUTES and (attributes := self._attributes()):
            given["attributes"] = json.dumps(attributes)
        return "/api/v3/traces", {names[k]: v for k, v in given.items() if v}

    def _attributes(self) -> dict[str, str]:
        """One condition that the server may test: those of several are not for the same span on every storage."""
        query, arms = self.query, self.query.arms
        values = arms.canary if query.arm == "canary" else arms.stable if query.arm == "stable" else ()
        return {arms.tag: values[0]} if arms.tag and len(values) == 1 else {}


_CAMEL = {
    "service": "query.serviceName",
    "from": "query.startTimeMin",
    "to": "query.startTimeMax",
    "depth": "query.searchDepth",
    "depth_too": "query.numTraces",
    "slower": "query.durationMin",
    "attributes": "query.attributes",
}
_SNAKE = {
    "service": "query.service_name",
    "from": "query.start_time_min",
    "to": "query.start_time_max",
    "depth": "query.search_depth",
    "depth_too": "query.num_traces",
    "slower": "query.duration_min",
}


_TRACE_ID = re.compile(r'"traceId":\s*"([0-9A-Fa-f]{1,32})"')  # inside of a value its quotes would be escaped


def _has_at_least(traces: int, text: str) -> bool:
    """Surely so many; spans that link to others are not told apart here, and are read."""
    return '"links"' not in text and len(set(_TRACE_ID.findall(text))) >= traces


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
