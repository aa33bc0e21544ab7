"""Which Canaries need no look now: settled ones of which nothing has changed since a look found nothing to do.

What rests is looked at again as soon as anything that it depends on changes (whoever watches wakes it), and every
LOOKS intervals all the same, so that a change that nobody saw is put right, if later. Never asks for the time.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from canaryd.policy import Canary
from canaryd.reconcile import Outcome

LOOKS = 10  # intervals after which a Canary that rests is looked at all the same
CALM = timedelta(minutes=1)  # after a change of its route; what waits for requests to leave is done by then


@dataclass(frozen=True, slots=True)
class _Rest:
    canary: Canary  # as it was looked at; another document is another Canary
    turn: int  # 0 to LOOKS - 1, so that not all are looked at in the same interval


class Resting:
    """Not safe to use from several threads without the lock of the one who has it."""

    def __init__(self) -> None:
        self._resting: dict[str, _Rest] = {}

    def due(self, canaries: Sequence[Canary], interval: int) -> list[Canary]:
        """Those to be looked at in the interval of this number, in the same order."""
        out = []
        for canary in canaries:
            rest = self._resting.get(canary.key)
            if rest is None or rest.canary is not canary or (interval + rest.turn) % LOOKS == 0:
                out.append(canary)
        return out

    def looked(self, canaries: Sequence[Canary], outcomes: Sequence[Outcome]) -> None:
        """After a look: those rest for which nothing was to be done, nor will be by the passing of time."""
        by_key = {canary.key: canary for canary in canaries}
        for outcome in outcomes:
            if is_at_rest(outcome):
                turn = zlib.crc32(outcome.canary.encode()) % LOOKS
                self._resting[outcome.canary] = _Rest(by_key[outcome.canary], turn)
            else:
                self._resting.pop(outcome.canary, None)

    def wake(self, key: str) -> None:
        """Something that it depends on may have changed."""
        self._resting.pop(key, None)

    def keep(self, keys: set[str]) -> None:
        """The others are gone."""
        self._resting = {key: rest for key, rest in self._resting.items() if key in keys}


def is_at_rest(outcome: Outcome) -> bool:
    """Everything was seen, all of it is as decided, and nothing waits: no word, no clock, no other try."""
    state, seen = outcome.state, outcome.seen
    if outcome.failed or outcome.changed or state is None or seen is None:
        return False
    if not state.phase.is_settled or not state.stable_revision or state.contested is not None:
        return False
    if seen.trouble or seen.overrides or seen.route is None or seen.route.weight != state.weight:
        return False
    if seen.workloads is None or not seen.workloads.ready or seen.workloads.detail:
        return False
    return state.routed is not None and seen.at - state.routed >= CALM
