"""A source of counters as it was at an earlier moment, read in few questions; and the weight over time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from canaryd.errors import SourceError
from canaryd.model import Reading
from canaryd.ports import CountsAnswer, CountsQuery, MetricSource

BLOCK = 60  # instants asked for at once


@dataclass(frozen=True, slots=True)
class Weights:
    """The canary's weight over time: (from when on, percent), strictly ascending; 0 before the first."""

    changes: tuple[tuple[datetime, int], ...]

    @classmethod
    def of(cls, rows: Iterable[tuple[datetime, int]]) -> Weights:
        """Rows in ascending order, percent from 0 to 100; those that repeat the weight are left out."""
        changes: list[tuple[datetime, int]] = []
        for at, weight in rows:
            if weight != (changes[-1][1] if changes else 0):
                changes.append((at, weight))
        return cls(tuple(changes))

    def before(self, at: datetime) -> tuple[int, datetime | None]:
        """The weight just before `at`, and since when; a change at the end of an interval belongs to the next one."""
        i = bisect_left(self.changes, at, key=lambda change: change[0]) - 1
        return (self.changes[i][1], self.changes[i][0]) if i >= 0 else (0, None)


@dataclass(slots=True)
class _Known:
    """What has been read for one question."""

    readings: dict[datetime, Reading] = field(default_factory=dict)
    asked: set[datetime] = field(default_factory=set)
    note: str = ""
    started: dict[str, datetime] = field(default_factory=dict)
    unseen: Mapping[str, str] = field(default_factory=dict)

    def forget_before(self, at: datetime) -> None:
        self.asked = {t for t in self.asked if t >= at}
        self.readings = {t: r for t, r in self.readings.items() if t >= at}


class Past:
    """The port MetricSource over another one that remembers: nothing before `start` or after `end` is shown.

    Reads `BLOCK` instants at a time and forgets what lies before the last question, so that a long window costs few
    requests and little memory. Questions with another step (the days before) go through as they are. The first error
    is kept in `failed`, since whoever measures takes an error for blindness.
    """

    remembers = True

    def __init__(self, source: MetricSource, start: datetime, end: datetime, step: timedelta) -> None:
        self.lag, self.settle, self.simultaneous = source.lag, source.settle, source.simultaneous
        self.failed: SourceError | None = None
        self._source, self._start, self._end, self._step = source, start, end, step
        self._known: dict[CountsQuery, _Known] = {}

    def read(self, queries: Sequence[CountsQuery]) -> Mapping[str, CountsAnswer]:
        """See the port."""
        try:
            return {query.canary: self._answer(query) for query in queries}
        except SourceError as e:
            if any(query.step == self._step for query in queries):  # the days before may be missing, as for a tick
                self.failed = self.failed or e
            raise

    def _answer(self, query: CountsQuery) -> CountsAnswer:
        if query.step != self._step:
            return self._source.read([query])[query.canary]
        known = self._known.setdefault(replace(query, points=()), _Known())
        points = [t for t in query.points if self._start <= t <= self._end]
        known.forget_before(query.points[0])
        for at in points:
            if at not in known.asked:
                self._fetch(known, query, at)
        readings = tuple(known.readings[t] for t in points if t in known.readings)
        return CountsAnswer(readings, known.note, dict(known.started), known.unseen)

    def _fetch(self, known: _Known, query: CountsQuery, first: datetime) -> None:
        """The block of instants that begins at `first`."""
        ahead = (first + i * self._step for i in range(BLOCK))
        points = tuple(t for t in ahead if t <= self._end and t not in known.asked)
        answer = self._source.read([replace(query, points=points)])[query.canary]
        if answer.failed:
            raise SourceError(answer.failed)
        known.asked.update(points)
        known.readings.update((r.at, r) for r in answer.readings)
        known.started.update(answer.started)
        known.note, known.unseen = answer.note, answer.unseen
