"""The words in which people choose what they want to hear of, and whether a record is what they chose. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from canaryd.model import DecisionKind, Record

SEVERITIES = ("info", "warning", "critical")
KINDS = ("start", "step", "hold", "rollback", "promoted", "blind", "resumed", "override", "drift", "hook")

WORDS: Mapping[DecisionKind, str] = {
    DecisionKind.IDLE: "hold",
    DecisionKind.ADOPT: "start",
    DecisionKind.START: "start",
    DecisionKind.RESTART: "start",
    DecisionKind.REVERT: "rollback",
    DecisionKind.WAIT: "hold",
    DecisionKind.HOLD: "hold",
    DecisionKind.ADVANCE: "step",
    DecisionKind.PROMOTE: "promoted",
    DecisionKind.SUCCEED: "promoted",
    DecisionKind.ROLLBACK: "rollback",
    DecisionKind.ROLLED_BACK: "rollback",
    DecisionKind.BLIND: "blind",
    DecisionKind.BLIND_DEADLINE: "blind",
    DecisionKind.RESUMED: "resumed",
    DecisionKind.INCONCLUSIVE: "hold",
    DecisionKind.DRIFT: "drift",
    DecisionKind.CONTESTED: "drift",
    DecisionKind.OVERRIDE: "override",
    DecisionKind.REFUSED: "override",
    DecisionKind.HOOK: "hook",
}


def word(record: Record) -> str:
    """The kind of a record in people's words."""
    return WORDS.get(record.kind, "hold")


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants to hear of: everything that is given must fit; nothing given fits all."""

    namespaces: Sequence[str] = ()  # with * and ?
    labels: Mapping[str, str] = field(default_factory=dict)
    severities: Sequence[str] = ()
    kinds: Sequence[str] = ()

    def fits(self, record: Record) -> bool:
        body = record.body
        namespace = str(body.get("namespace") or record.canary.rpartition("/")[0] or "default")
        found: Any = body.get("labels")
        labels = found if isinstance(found, Mapping) else {}
        return (
            (not self.namespaces or any(fnmatchcase(namespace, pattern) for pattern in self.namespaces))
            and all(labels.get(key) == value for key, value in self.labels.items())
            and (not self.severities or str(body.get("severity", "info")) in self.severities)
            and (not self.kinds or word(record) in self.kinds)
        )


def is_wanted(record: Record, wishes: Sequence[Wish]) -> bool:
    """Without wishes everything is."""
    return not wishes or any(wish.fits(record) for wish in wishes)
