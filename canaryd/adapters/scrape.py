"""Raw counters read straight from the text pages of exporters, such as Envoy's /stats/prometheus.

For places without Prometheus. It cannot read the past: each `read` takes one look, stamped with the last point asked
for. It never keeps anything between two looks, and never takes part of the exporters for all of them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import SplitResult

from canaryd.adapters.exchange import (
    MAX_BYTES,
    Connection,
    Deadline,
    basic_authorization,
    checked_url,
    host_and_port,
)
from canaryd.adapters.series import Claims, Tally, counter_key, is_counted
from canaryd.errors import SourceError
from canaryd.policy import ErrorSource
from canaryd.ports import CountsAnswer, CountsQuery

AT_ONCE = 16  # pages fetched in parallel
FLUSH_PAUSE = 0.01  # seconds; Envoy merges the histograms of its threads after its answer, mostly within 1 ms
ACCEPT = {"Accept": "text/plain;version=0.0.4"}

# One sample of the text format 0.0.4. A brace inside a quoted value does not end the labels.
_SAMPLE = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*)"
    r'(?:[ \t]*\{((?:[^"}]*"[^"\\]*(?:\\.[^"\\]*)*")*[^"}]*)\}[ \t]*|[ \t]+)'
    r"([-+0-9.eEinfINFaA]+)(?:[ \t]+-?[0-9]+)?[ \t\r]*"
)
_LABEL = re.compile(r'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"([^"\\]*(?:\\.[^"\\]*)*)"[ \t]*(?:,|$)')
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of a page: the name without its prefix, the labels as they are written, the value (may be NaN)."""

    name: str
    labels: str
    value: float


@dataclass(frozen=True, slots=True)
class _Page:
    """What one exporter said."""

    exporter: str
    samples: Sequence[Sample]


class ScrapeSource:
    """The port `MetricSource` over text pages; each URL is one exporter, all of them or none.

    `exporter` is host:port of the URL (with the path where two URLs share it); `pod` is the label `pod`, else the
    exporter. Envoy's prefix `envoy_` is taken off the names.

    Envoy with `stats_flush_on_admin: true` shows counters of now and durations as of the request before; with
    `flush_first` each page is therefore fetched twice on one connection, and the first answer is thrown away. Should
    Envoy's threads need longer than the pause in between, durations come a reading late, never twice or not at all.
    With `stats_flush_interval` (Envoy's default, 5 s) they are as old as that, whatever is done here.
    """

    remembers = False

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout: timedelta = timedelta(seconds=2),
        prefix: str = "envoy_",
        max_bytes: int = MAX_BYTES,
        flush_first: bool = True,
        ca_file: str | None = None,
    ) -> None:
        """`timeout` covers one whole `read` of all URLs. `max_bytes` is for each page.

        The query of a URL is kept. A user and password in it are sent as basic authentication. Raises ValueError for
        no URL, an unusable one, or the same one twice.
        """
        parts = [checked_url(url) for url in urls]
        if not parts or len(set(parts)) < len(parts):
            raise ValueError("scraping needs at least one URL, and each only once")
        self._targets = dict(zip(_exporters(parts), parts, strict=True))
        self._timeout = timeout
        self._prefix = prefix
        self._max_bytes = max_bytes
        self._flush_first = flush_first
        self._ca_file = ca_file
        self.lag = timedelta(0)
        self.settle = timedelta(0)
        self.simultaneous = len(self._targets) == 1

    def read(self, queries: Sequence[CountsQuery]) -> Mapping[str, CountsAnswer]:
        """See the port. One look serves all queries."""
        answers = {query.canary: CountsAnswer(()) for query in queries}
        asked = [query for query in queries if query.points]
        if not asked:
            return answers
        wanted = frozenset(name for query in asked for name in _names(query.source))
        deadline = Deadline.after(self._timeout)
        pages = self._pages(wanted, deadline)
        claims = Claims(asked)
        for source in {query.source for query in asked}:
            look = _Look([query for query in asked if query.source == source], source, claims)
            for page in pages:
                look.take(page, deadline)
            answers |= look.answers()
        return answers

    def _pages(self, wanted: frozenset[str], deadline: Deadline) -> list[_Page]:
        """All pages, in the order of the URLs. Raises SourceError naming the first that failed."""
        if len(self._targets) == 1:
            return [self._page(exporter, wanted, deadline) for exporter in self._targets]
        with ThreadPoolExecutor(min(AT_ONCE, len(self._targets)), thread_name_prefix="scrape") as pool:
            return list(pool.map(lambda exporter: self._page(exporter, wanted, deadline), self._targets))

    def _page(self, exporter: str, wanted: frozenset[str], deadline: Deadline) -> _Page:
        parts = self._targets[exporter]
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = ACCEPT | basic_authorization(parts)
        with Connection(parts, deadline, self._max_bytes, self._ca_file) as connection:
            if self._flush_first:
                connection.ask("GET", target, headers)
                time.sleep(FLUSH_PAUSE)
            answer = connection.ask("GET", target, headers)
            if answer.status != 200:
                raise SourceError(f"{connection.name}: HTTP {answer.status} {answer.reason[:100]}".rstrip())
            try:
                return _Page(exporter, samples(answer.body, wanted, self._prefix))
            except ValueError as e:
                raise SourceError(f"{connection.name}: a page that is not understood: {e}") from e


def _exporters(urls: Sequence[SplitResult]) -> list[str]:
    """host:port of each, with more of the URL where that is not unique."""
    hosts = [host_and_port(parts) for parts in urls]
    if len(set(hosts)) == len(hosts):
        return hosts
    return [f"{host}{parts.path}?{parts.query}".rstrip("?") for host, parts in zip(hosts, urls, strict=True)]


def _names(source: ErrorSource) -> tuple[str, str, str]:
    """The series that matter: requests, buckets, and the count that tells of durations without buckets."""
    return source.requests, source.durations, source.durations.removesuffix("_bucket") + "_count"


class _Look:
    """What one look at all pages says to queries that use the same names."""

    def __init__(self, queries: Sequence[CountsQuery], source: ErrorSource, claims: Claims) -> None:
        self._queries = {query.canary: query for query in queries}
        self._source = source
        self._names = _names(source)
        self._claims = claims
        self._tally = Tally()
        self._counted: set[str] = set()  # canaries that have a count of durations

    def take(self, page: _Page, deadline: Deadline) -> None:
        """Raises SourceError when a sample that matters is not understood."""
        try:
            for sample in page.samples:
                deadline.check(page.exporter)
                if sample.name in self._names:
                    self._take(page.exporter, sample)
        except ValueError as e:
            raise SourceError(f"{page.exporter}: a page that is not understood: {e}") from e

    def _take(self, exporter: str, sample: Sample) -> None:
        labels = parsed_labels(sample.labels)
        pod = labels.get("pod") or exporter
        for canary, arm in self._claims.of(labels):
            query = self._queries.get(canary)
            if query is None or (sample.name == self._source.durations and not query.durations):
                continue
            if sample.name == self._names[2]:
                self._counted.add(canary)
                continue
            if not is_counted(labels, sample.name, self._source):
                continue
            key = counter_key(labels, sample.name, self._source, arm, exporter, pod)
            part = (exporter, sample.labels)  # the same line again is a copy, with the prefix or without
            self._tally.add(canary, key, part, [(query.points[-1], sample.value)])

    def answers(self) -> dict[str, CountsAnswer]:
        return {
            canary: CountsAnswer(
                self._tally.readings(canary),
                self._note(query),
                unseen={t.metric: "queries need a Prometheus; a scrape cannot answer them" for t in query.templates},
            )
            for canary, query in self._queries.items()
        }

    def _note(self, query: CountsQuery) -> str:
        unclear = self._claims.note(query)
        bare = query.durations and query.canary in self._counted and "bucket" not in self._tally.names[query.canary]
        missing = f"durations have a count but no {query.source.durations}; ask for classic buckets" if bare else ""
        return "; ".join(filter(None, (unclear, missing)))


# ── the text format ──────────────────────────────────────────────────────────────────────────────────────────


def samples(page: bytes, wanted: frozenset[str], prefix: str = "") -> list[Sample]:
    """The samples of the wanted names (given without prefix) on a page in the text format 0.0.4.

    Every line is checked, wanted or not, and the last one must be complete: part of a page, or a page of another
    kind, is no page. Raises ValueError naming the line.
    """
    if page and not page.endswith(b"\n"):
        raise ValueError("its last line is cut off")
    found: list[Sample] = []
    for number, line in enumerate(page.decode("utf-8").split("\n"), 1):
        if not line or line.startswith("#"):
            continue
        match = _SAMPLE.fullmatch(line)
        if match is None:
            if line.isspace():
                continue
            raise ValueError(f"line {number} is no sample: {line[:60]!r}")
        name, labels, value = match.groups()
        name = name.removeprefix(prefix)
        if name in wanted:
            found.append(Sample(name, labels or "", float(value)))
    return found


def parsed_labels(text: str) -> dict[str, str]:
    """What stands between the braces. Raises ValueError when that is no list of labels."""
    labels: dict[str, str] = {}
    at = 0
    while at < len(text):
        match = _LABEL.match(text, at)
        if match is None:
            if not text[at:].strip():
                break
            raise ValueError(f"labels that are none: {text[:100]!r}")
        name, value = match.groups()
        labels[name] = _ESCAPE.sub(_meant, value) if "\\" in value else value
        at = match.end()
    return labels


def _meant(match: re.Match[str]) -> str:
    """The text format knows three escapes; anything else stands for itself."""
    return {"n": "\n", '"': '"', "\\": "\\"}.get(match[1], match[0])
