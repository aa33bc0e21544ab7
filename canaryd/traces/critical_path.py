"""Where the time of a request goes: self time on the critical path, by service and operation. Pure.

The **critical path** of a request is found from its end backwards: of everything that a span waited for, the child that
ended last held it up until that child ended; before that child began, the child that ended last before it; and so on,
each child likewise. The **self time** of a span is the part of the path that none of its children covers. The self
times of all spans on the path sum to the duration of the request.

Assumptions, where traces say less than one would like:

* *Overlapping children* (parallel calls): only the one that ends last is waited for, and what runs beside it costs
  nothing. Of two that overlap, the earlier one counts only when it ended before the later one began.
* *Asynchronous work*: a child that ends after its parent was not waited for and is left out, with all below it; so is a
  consumer of a message. A child that begins before its parent is cut to it.
* *Clocks of different machines* are not the same. A span of another service that is no longer than its parent but
  sticks out of it has been moved by its clock: it is put into the middle of its parent, with all below it, as if the
  request and the answer took equally long on the wire. Within one service clocks are believed.
* What no span covers is the self time of the span above it: a service that is not traced is charged to its caller.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from canaryd.traces.requests import Operation, Request


def self_times(request: Request) -> Mapping[Operation, float]:
    """Milliseconds on the critical path by (service, operation); together the duration of the request."""
    spans = request.spans
    starts, ends = _on_one_clock(request)
    children: list[list[int]] = [[] for _ in spans]
    for i, up in enumerate(request.above):
        if up >= 0 and ends[i] <= ends[up] and ends[i] > starts[up] and spans[i].kind != "consumer":
            children[up].append(i)
    out: dict[Operation, float] = defaultdict(float)
    waiting = [(0, starts[0], ends[0])]  # what to walk, and the part of it that is on the path
    while waiting:
        here, low, until = waiting.pop()
        own = 0
        for child in sorted(children[here], key=lambda i: ends[i], reverse=True):
            start, end = max(starts[child], low), ends[child]
            if end <= until and end > start:
                own += until - end
                waiting.append((child, start, end))
                until = start
        out[spans[here].service, spans[here].operation] += (own + max(0, until - low)) / 1e6
    return out


def _on_one_clock(request: Request) -> tuple[list[int], list[int]]:
    """Starts and ends in nanoseconds, spans of other services moved into what they were called by."""
    starts: list[int] = []
    ends: list[int] = []
    moved: list[int] = []  # by how much, what is below included
    for span, up in zip(request.spans, request.above, strict=True):
        shift = moved[up] if up >= 0 else 0
        start, end = span.start + shift, span.end + shift
        if up >= 0 and span.service != request.spans[up].service:
            outer = ends[up] - starts[up]
            if end - start <= outer and (start < starts[up] or end > ends[up]):
                place = starts[up] + (outer - (end - start)) // 2
                start, end, shift = place, place + end - start, shift + place - start
        starts.append(start)
        ends.append(end)
        moved.append(shift)
    return starts, ends
