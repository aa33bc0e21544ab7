"""Which of the canary's traces a person should look at first. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from canaryd.model import Arm
from canaryd.spans import Span
from canaryd.traces.requests import Operation, Request

OF_ONE_OPERATION = 2  # exemplars before those of other operations have had their turn


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A request to the canary, and the deepest failure that explains its own."""

    span: Span
    cause: Span | None  # None: it did not fail, or nothing below it did


def exemplars(requests: Iterable[Request], most: int, only: Collection[Operation] = ()) -> list[Exemplar]:
    """At most so many, one for each trace: failed requests first, then the slowest.

    Among the failed, those with a failure that only the canary has (`only`) come first, then the latest; operations
    take turns, so that one that fails often does not hide one that fails seldom.
    """
    of_canary = [r for r in requests if r.arm is Arm.CANARY]
    failed = sorted((r for r in of_canary if r.failed), key=lambda r: (not _has(r, only), -r.entry.start))
    slow = sorted((r for r in of_canary if not r.failed), key=lambda r: -r.entry.duration)
    chosen = _turns(failed, most, set())
    chosen += _turns(slow, most - len(chosen), {r.entry.trace for r in chosen})
    return [Exemplar(r.entry, _cause(r)) for r in chosen]


def _has(request: Request, only: Collection[Operation]) -> bool:
    return any(s.error and (s.service, s.operation) in only for s in request.spans)


def _turns(requests: Sequence[Request], most: int, taken: set[str]) -> list[Request]:
    """The first ones, at most OF_ONE_OPERATION of each operation as long as there are others; one of each trace."""
    had: Counter[str] = Counter()
    first: list[Request] = []
    later: list[Request] = []
    for request in requests:
        if request.entry.trace not in taken:
            taken.add(request.entry.trace)
            (first if had[request.entry.operation] < OF_ONE_OPERATION else later).append(request)
            had[request.entry.operation] += 1
    return [*first, *later][:most]


def _cause(request: Request) -> Span | None:
    """The failed span that is furthest below a failed request along failures; the last to end where there are more."""
    if not request.failed:
        return None
    deepest, depths = 0, {0: 0}
    for i, up in enumerate(request.above):
        if up in depths and request.spans[i].error:
            depths[i] = depths[up] + 1
            if (depths[i], request.spans[i].end) > (depths[deepest], request.spans[deepest].end):
                deepest = i
    return request.spans[deepest] if deepest else None
