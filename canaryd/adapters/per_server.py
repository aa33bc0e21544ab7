"""One metric source for several servers: that of the daemon, and those that canaries have of their own.

Every server is asked in a thread of its own, so that a slow or dead one delays and blinds only its own canaries. What
it answers too late is not lost: it is the answer at the next look, one interval behind. It never asks one server twice
at the same time, and never tells a server anything that belongs to another.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import timedelta

from canaryd.errors import SourceError
from canaryd.ports import CountsAnswer, CountsQuery, MetricSource

MOST_SERVERS = 100

Answers = Mapping[str, CountsAnswer]


class PerServerSource:
    """The port `MetricSource` over one source for each `CountsQuery.server`; "" is the daemon's own.

    `lag`, `settle` and the rest are those of the daemon's own: the others must be read as often as it is.
    """

    def __init__(
        self,
        own: MetricSource,
        make: Callable[[str], MetricSource],
        *,
        patience: timedelta = timedelta(seconds=1),
        most: int = MOST_SERVERS,
    ) -> None:
        """`make`: URL → source, made when it is first asked, dropped when it no longer is; may raise ValueError.

        `patience`: how long the other servers are waited for. One that was slower the last time is not waited for.
        """
        self.remembers, self.simultaneous = own.remembers, own.simultaneous
        self.lag, self.settle = own.lag, own.settle
        self._own, self._make = own, make
        self._patience, self._most = patience, most
        self._desks: dict[str, _Desk] = {}

    def read(self, queries: Sequence[CountsQuery]) -> Answers:
        """See the port."""
        asked: dict[str, list[CountsQuery]] = defaultdict(list)
        for query in queries:
            asked[query.server].append(query)
        mine = asked.pop("", [])
        self._drop({server for server, desk in self._desks.items() if server not in asked and not desk.is_busy()})
        if not asked:
            return self._own.read(mine)
        until = time.monotonic() + self._patience.total_seconds()
        answers = {q.canary: CountsAnswer((), failed=why) for q, why in self._begin(asked)}
        errors: list[SourceError] = []
        try:
            answers |= self._own.read(mine)
        except SourceError as e:
            errors.append(e)
            answers |= _failed(mine, e)
        for server, theirs in asked.items():
            if server in self._desks:
                answers |= self._desks[server].answers(theirs, until)
        whys = {answer.failed for answer in answers.values()}
        if len(whys) == 1 and (why := next(iter(whys))):  # else each has its own, which is nobody else's business
            raise SourceError(why) from next(iter(errors), None)
        return answers

    def _begin(self, asked: Mapping[str, Sequence[CountsQuery]]) -> list[tuple[CountsQuery, str]]:
        """Ask every server; queries that cannot even be asked, and why."""
        refused = []
        for server, queries in asked.items():
            try:
                self._desk(server).ask(queries)
            except (SourceError, ValueError) as e:
                refused += [(query, str(e)) for query in queries]
        return refused

    def _desk(self, server: str) -> _Desk:
        desk = self._desks.get(server)
        if desk is None:
            if len(self._desks) >= self._most:
                raise SourceError(f"more than {self._most} servers are named by canaries; this one is not asked")
            desk = self._desks[server] = _Desk(self._make(server), self._patience)
        return desk

    def _drop(self, servers: set[str]) -> None:
        for server in servers:
            del self._desks[server]


@dataclass(slots=True)
class _Errand:
    """One `read` under way in a thread of its own."""

    source: MetricSource
    queries: Sequence[CountsQuery]
    outcome: Future[Answers] = field(default_factory=Future)
    began: float = field(default_factory=time.monotonic)
    took: float = 0.0  # seconds, once it is over

    def run(self) -> None:
        answers = _failed(self.queries, SourceError("a defect, see the log"))
        try:
            answers = dict(self.source.read(self.queries))
        except SourceError as e:
            answers = _failed(self.queries, e)
        finally:  # after a defect, too; its traceback is the thread's last word
            self.took = time.monotonic() - self.began
            self.outcome.set_result(answers)


class _Desk:
    """One server, and what it is being asked."""

    def __init__(self, source: MetricSource, patience: timedelta) -> None:
        self._source, self._patience = source, patience.total_seconds()
        self._is_slow = False
        self._errand: _Errand | None = None
        self._late: _Errand | None = None  # over since the last look, and nobody has had its answer

    def is_busy(self) -> bool:
        return self._errand is not None and not self._errand.outcome.done()

    def ask(self, queries: Sequence[CountsQuery]) -> None:
        """Begins at once, unless the server is still busy with the question before."""
        if self.is_busy():
            return
        self._late, self._errand = self._errand, _Errand(self._source, queries)
        self._is_slow = self._late is not None and self._late.took > self._patience
        threading.Thread(target=self._errand.run, name="own-server", daemon=True).start()

    def answers(self, queries: Sequence[CountsQuery], until: float) -> Answers:
        """For each query what has come by then, now or to the question before."""
        errand = self._errand
        assert errand is not None
        ready = [self._late] if self._late else []
        try:
            errand.outcome.result(0.0 if self._is_slow else max(0.0, until - time.monotonic()))
            ready.insert(0, errand)
            self._errand = self._late = None
        except TimeoutError:
            self._is_slow = True
        waited = time.monotonic() - errand.began
        waiting = CountsAnswer((), failed=f"its own Prometheus has not answered for {waited:.1f} s")
        return {
            query.canary: next((a for e in ready if (a := _answer(e, query)) is not None), waiting) for query in queries
        }


def _answer(errand: _Errand, query: CountsQuery) -> CountsAnswer | None:
    """What was answered then, if it answers this query, too: the same question that begins at the same instant."""
    for asked in errand.queries:
        if replace(asked, points=query.points) == query and (not query.points or query.points[0] in asked.points):
            answer = errand.outcome.result()[query.canary]
            return replace(answer, readings=tuple(r for r in answer.readings if r.at in query.points))
    return None


def _failed(queries: Sequence[CountsQuery], error: SourceError) -> dict[str, CountsAnswer]:
    return {query.canary: CountsAnswer((), failed=str(error)) for query in queries}
