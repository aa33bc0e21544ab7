"""Asks a trace source beside the tick: what has arrived by the next one is used then, and nothing waits for it.

A slow or dead trace source so makes nobody late, and blinds nothing but traces. Every question is about one interval of
one canary and is asked until it is answered or no longer wanted; who wants it is remembered in the state of the
rollout, not here, so that nothing is lost or counted twice when the process dies.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import timedelta

import structlog

from canaryd import tally
from canaryd.errors import SourceError
from canaryd.model import SpanCounts
from canaryd.ports import TraceQuery, TraceSource

log = structlog.get_logger("canaryd.tracer")

WORKERS = 4
AT_ONCE = 4  # questions about one canary
PAST = 500  # traces of stable's past, to learn from; need not be all


class Tracer:
    """Questions under way and answers not yet taken; keeps nothing that matters."""

    def __init__(self, source: TraceSource, *, workers: int = WORKERS) -> None:
        self._source = source
        self.lag: timedelta = source.lag
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="traces")
        self._asked: dict[str, dict[TraceQuery, Future[SpanCounts]]] = {}
        self._why: dict[str, str] = {}  # key -> why the last answer did not come

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def arrived(self, canary: str) -> tuple[SpanCounts, ...]:
        """Answers that have come since the last time, in the order of their intervals; each is given once."""
        asked, out = self._asked.get(canary, {}), []
        for query, future in list(asked.items()):
            if not future.done():
                continue
            del asked[query]
            if future.cancelled():
                continue
            try:
                out.append(future.result())
                self._why.pop(canary, None)
            except SourceError as e:
                self._why[canary] = str(e)
            except Exception as e:  # a defect is this canary's, and of its traces alone
                log.exception("defect", canary=canary)
                self._why[canary] = f"defect: {type(e).__name__}: {e}"
        return tuple(sorted(out, key=lambda counts: counts.start))

    def ask(self, canary: str, queries: Sequence[TraceQuery]) -> None:
        """What is wanted now, oldest first; what is no longer wanted is forgotten. Returns at once."""
        asked = self._asked.setdefault(canary, {})
        for query in [q for q in asked if q not in queries]:
            asked.pop(query).cancel()
        for query in queries:
            if query not in asked and len(asked) < AT_ONCE:
                asked[query] = self._pool.submit(self._find, query)
        if not queries:
            self._asked.pop(canary, None)
            self._why.pop(canary, None)

    def wait(self, longest: timedelta) -> bool:
        """Until nothing is under way, for those who have the time; whether that is so."""
        under_way = [future for asked in list(self._asked.values()) for future in list(asked.values())]
        return not wait(under_way, timeout=longest.total_seconds()).not_done

    def why(self, canary: str) -> str:
        """Why nothing has come the last time it was tried; "" when it has."""
        return self._why.get(canary, "")

    def _find(self, query: TraceQuery) -> SpanCounts:
        answer = self._source.find(query)
        return tally.of_spans(
            answer.spans, query.service, query.start, query.end, complete=answer.complete, note=answer.note
        )


def question(query: TraceQuery, *, scored: bool) -> TraceQuery:
    """Of an interval that is only learnt from, the newest traces are enough."""
    return query if scored else replace(query, limit=PAST, newest=True)
