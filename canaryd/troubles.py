"""What keeps a Canary from being looked after, and when that is worth telling: once it has lasted, and once it is over.

Pure, and kept in memory only: after a new start the same trouble is told once more. Never decides anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from canaryd.model import Phase
from canaryd.reconcile import Outcome

LASTS = timedelta(seconds=4)  # what is over by then was only a moment between two objects
AGAIN = timedelta(minutes=1)  # between two texts about the same Canary

_NUMBER = re.compile(r"\d+")
_SETTLED = (Phase.IDLE, Phase.SUCCEEDED, Phase.ROLLED_BACK)


@dataclass(slots=True)
class _Trouble:
    """Of one Canary."""

    text: str
    since: datetime
    told: str = ""  # the text that people have been told; "" when none
    told_at: datetime | None = None


class Troubles:
    """For all Canaries, by key."""

    def __init__(self) -> None:
        self._held: dict[str, _Trouble] = {}

    @property
    def known(self) -> frozenset[str]:
        """Canaries with a trouble, told or not."""
        return frozenset(self._held)

    @property
    def texts(self) -> tuple[str, ...]:
        """All troubles there are now."""
        return tuple(held.text for held in self._held.values())

    def due(self, outcome: Outcome, at: datetime) -> str | None:
        """What is to be told of this look: the trouble, "" when it is over, None when nothing. Then say `told`."""
        text = text_of(outcome)
        held = self._held.get(outcome.canary)
        if not text:
            if held is not None and not held.told:
                del self._held[outcome.canary]
            return "" if held is not None and held.told else None
        if held is None:
            self._held[outcome.canary] = _Trouble(text, at)
            return None
        held.text = text
        if at - held.since < LASTS or _alike(text, held.told):
            return None
        return text if held.told_at is None or at - held.told_at >= AGAIN else None

    def told(self, canary: str, text: str, at: datetime) -> None:
        """People have been told: the trouble, or "" that it is over."""
        if not text:
            self._held.pop(canary, None)
        elif canary in self._held:
            self._held[canary].told, self._held[canary].told_at = text, at

    def keep(self, canaries: set[str]) -> None:
        """Forget all others."""
        for gone in self._held.keys() - canaries:
            del self._held[gone]


def text_of(outcome: Outcome) -> str:
    """Why this Canary cannot be looked after as it should be; "" when it can."""
    if outcome.failed:
        return outcome.failed
    seen, state = outcome.seen, outcome.state
    if seen is None or state is None:
        return ""
    said = list(seen.trouble)
    adopted = bool(state.number or state.stable_revision)
    if adopted and state.phase in _SETTLED and seen.workloads is not None and seen.workloads.detail:
        said.append(seen.workloads.detail)
    return "; ".join(dict.fromkeys(said))


def _alike(text: str, other: str) -> bool:
    """But for how long something has been so, and how many."""
    return bool(other) and _NUMBER.sub("#", text) == _NUMBER.sub("#", other)
