"""Spans become requests: one for each time that the service was asked something, with all that it caused. Pure.

Definitions, with what they assume:

* A **request** of an arm is an outermost span of the service in that arm: one that no other span of the service in the
  same arm stands above. A proxy's span and its application's, one below the other, are one request. Spans of kind
  client or producer are what the service asks of others and never a request of their own, unless the trace has nothing
  above them (then they are what little is known, and still not a request).
* The **arm** of a span counts only for spans of the service itself; whatever is below a request belongs to the
  request's arm, down to another request. Another service may well have a revision of the same name.
* A **call** is a step from one service to another: the first span of another service below one of ours, named by that
  service and its operation; or a client's span below which there is nothing (the other side is not traced), named by
  the client's own service and operation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from canaryd.model import Arm
from canaryd.spans import Span, parents

Operation = tuple[str, str]  # service, operation
_ASKING = ("client", "producer")


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the service and everything below it."""

    arm: Arm
    spans: tuple[Span, ...]  # each after the one above it; the first is the request itself
    above: tuple[int, ...]  # for each the index of the one above it, -1 for the first

    @property
    def entry(self) -> Span:
        return self.spans[0]

    @property
    def failed(self) -> bool:
        """The request itself failed: what failed below it and was coped with does not count."""
        return self.spans[0].error

    def calls(self) -> Iterator[tuple[Operation, Operation]]:
        """Every call with the call that made it; ("", "") for those of the service itself."""
        callers: list[Operation] = [("", "")] * len(self.spans)
        asked = set(self.above)
        for i, (span, up) in enumerate(zip(self.spans, self.above, strict=True)):
            if up < 0:
                continue
            caller = callers[up]
            if span.service != self.spans[up].service or (span.kind in _ASKING and i not in asked):
                callers[i] = (span.service, span.operation)
                yield callers[i], caller
            else:
                callers[i] = caller


def requests(spans: Sequence[Span], service: str) -> list[Request]:
    """All requests to a service in settled spans, in their order."""
    above = parents(spans)
    below: list[list[int]] = [[] for _ in spans]
    for i, up in enumerate(above):
        if up >= 0:
            below[up].append(i)
    out = []
    entries = list(_outermost(spans, above, service))
    others = set(entries)
    for i in entries:
        arm = spans[i].arm
        assert arm is not None
        places, order, ups = {i: 0}, [i], [-1]
        for here in order:  # grows while it is walked
            for child in below[here]:
                if child in others:
                    continue
                places[child] = len(order)
                order.append(child)
                ups.append(places[here])
        out.append(Request(arm, tuple(spans[j] for j in order), tuple(ups)))
    return out


def _outermost(spans: Sequence[Span], above: Sequence[int], service: str) -> Iterator[int]:
    """Indices of spans of the service that have an arm and no span of the service in the same arm above them."""
    nearest: list[Arm | None] = [None] * len(spans)  # arm of the service's spans from here upwards
    done = [False] * len(spans)
    for first in range(len(spans)):
        path = []
        here = first
        while here >= 0 and not done[here]:
            path.append(here)
            here = above[here]
        inherited = nearest[here] if here >= 0 else None
        for i in reversed(path):
            span = spans[i]
            own = span.arm if span.service == service else None
            if own is not None and own is not inherited and span.kind not in _ASKING:
                yield i
            inherited = nearest[i] = own or inherited
            done[i] = True
