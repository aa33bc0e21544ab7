"""What the canary does and stable does not, from requests of both. Pure.

Both arms are compared over the same mixture of requests: per operation of the request, weighted by how often the canary
was asked for each. Requests of operations that only one arm was asked for tell nothing about a difference and are left
out here (they may still be exemplars). That keeps a canary that happened to get more of the heavy requests from looking
slow.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from canaryd.model import Arm
from canaryd.traces.chance import RARE, Moments, all_in_canary, beyond_noise
from canaryd.traces.critical_path import self_times
from canaryd.traces.requests import Operation, Request

LEAST_MS = 1.0  # of extra time that is worth a line
LEAST_SHARE = 0.02  # likewise, of a request's time in stable
LEAST_EXTRA = 0.1  # calls per request more than stable's

_Measure = Callable[[Request], Mapping[Operation, float]]
_NONE = Moments()


@dataclass(frozen=True, slots=True)
class OnlyFails:
    """An operation that fails in requests to the canary and never in those to stable."""

    operation: Operation
    canary_errors: int
    canary_n: int  # spans of the operation
    stable_n: int
    chance: float  # that all failures fell on the canary without any difference


@dataclass(frozen=True, slots=True)
class NewCall:
    """A call that only the canary makes, or makes more often."""

    operation: Operation
    canary: float  # per request
    stable: float
    canary_n: int  # requests
    stable_n: int
    caller: Operation  # ("", "") the service itself


@dataclass(frozen=True, slots=True)
class ExtraTime:
    """Time on the critical path that the canary spends more than stable."""

    operation: Operation
    canary_ms: float  # per request, self time
    stable_ms: float
    canary_n: int  # requests
    stable_n: int


def only_canary_fails(requests: Iterable[Request]) -> list[OnlyFails]:
    """The least explicable first. A failure counts for its own operation, wherever below the request it happened.

    Nothing where stable has no requests at all: there is no other arm then.
    """
    seen: dict[Arm, Counter[Operation]] = {arm: Counter() for arm in Arm}
    failed: dict[Arm, Counter[Operation]] = {arm: Counter() for arm in Arm}
    for request in requests:
        for span in request.spans:
            seen[request.arm][span.service, span.operation] += 1
            if span.error:
                failed[request.arm][span.service, span.operation] += 1
    out = []
    for operation, errors in failed[Arm.CANARY].items() if seen[Arm.STABLE] else ():
        if not failed[Arm.STABLE][operation]:
            canary, stable = seen[Arm.CANARY][operation], seen[Arm.STABLE][operation]
            chance = all_in_canary(errors, canary, stable) if stable else RARE
            if chance <= RARE:
                out.append(OnlyFails(operation, errors, canary, stable, chance))
    return sorted(out, key=lambda o: (o.chance, -o.canary_errors, o.operation))


@dataclass(slots=True)
class _Weighted:
    """A quantity of both arms over the canary's mixture of requests."""

    canary: float = 0.0
    stable: float = 0.0
    variance: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """Requests of both arms, by the operation of the request."""

    requests: Sequence[Request]
    groups: Mapping[str, Mapping[Arm, list[Request]]] = field(init=False)

    def __post_init__(self) -> None:
        groups: dict[str, dict[Arm, list[Request]]] = defaultdict(lambda: {arm: [] for arm in Arm})
        for request in self.requests:
            groups[request.entry.operation][request.arm].append(request)
        both = {name: arms for name, arms in groups.items() if arms[Arm.CANARY] and arms[Arm.STABLE]}
        object.__setattr__(self, "groups", both)

    @cached_property
    def n(self) -> Mapping[Arm, int]:
        """Requests that can be compared."""
        return {arm: sum(len(arms[arm]) for arms in self.groups.values()) for arm in Arm}

    @property
    def left_out(self) -> int:
        """Requests to the canary of operations that stable was not asked for."""
        return sum(r.arm is Arm.CANARY for r in self.requests) - self.n[Arm.CANARY]

    def new_calls(self) -> list[NewCall]:
        """Those that differ most first. What a new call itself calls is explained by it and left out."""
        callers: dict[Operation, Counter[Operation]] = defaultdict(Counter)
        making: dict[Arm, Counter[Operation]] = {arm: Counter() for arm in Arm}
        counted: dict[int, Counter[Operation]] = {}
        for request in self._comparable():
            counts = counted[id(request)] = Counter()
            for operation, caller in request.calls():
                counts[operation] += 1
                if request.arm is Arm.CANARY:
                    callers[operation][caller] += 1
            making[request.arm].update(counts.keys())
        out = []
        for operation, weighted in self._weigh(lambda r: counted[id(r)]).items():
            makers = making[Arm.CANARY][operation], making[Arm.STABLE][operation]
            if makers[0] and self._is_new(weighted, *makers):
                caller = callers[operation].most_common(1)[0][0]
                n = self.n[Arm.CANARY], self.n[Arm.STABLE]
                out.append(NewCall(operation, weighted.canary, weighted.stable, *n, caller))
        new = {call.operation for call in out}
        own = [call for call in out if call.caller not in new - {call.operation}]
        return sorted(own, key=lambda c: (c.stable - c.canary, c.operation))

    def _is_new(self, weighted: _Weighted, canary_makers: int, stable_makers: int) -> bool:
        extra = weighted.canary - weighted.stable
        if not stable_makers:
            return all_in_canary(canary_makers, self.n[Arm.CANARY], self.n[Arm.STABLE]) <= RARE
        return extra >= LEAST_EXTRA and beyond_noise(extra, weighted.variance)

    def extra_time(self) -> list[ExtraTime]:
        """The most extra time first."""
        times = self._weigh(self_times)
        whole = sum(w.stable for w in times.values())
        return sorted(
            (
                ExtraTime(operation, w.canary, w.stable, self.n[Arm.CANARY], self.n[Arm.STABLE])
                for operation, w in times.items()
                if w.canary - w.stable >= max(LEAST_MS, LEAST_SHARE * whole)
                and beyond_noise(w.canary - w.stable, w.variance)
            ),
            key=lambda e: (e.stable_ms - e.canary_ms, e.operation),
        )

    def _comparable(self) -> Iterable[Request]:
        return (r for arms in self.groups.values() for arm in Arm for r in arms[arm])

    def _weigh(self, measure: _Measure) -> dict[Operation, _Weighted]:
        """Means per request and the variance of their difference; a request without a key counts as 0 there."""
        out: dict[Operation, _Weighted] = defaultdict(_Weighted)
        for arms in self.groups.values():
            weight = len(arms[Arm.CANARY]) / max(self.n[Arm.CANARY], 1)
            for arm, requests in arms.items():
                moments: dict[Operation, Moments] = {}
                for request in requests:
                    for key, value in measure(request).items():
                        moments[key] = moments.get(key, _NONE).plus(value)
                for key, m in moments.items():
                    of = m.filled(len(requests))
                    out[key].variance += weight**2 * of.error
                    if arm is Arm.CANARY:
                        out[key].canary += weight * of.mean
                    else:
                        out[key].stable += weight * of.mean
        return out
