"""Trace evidence on its way into a record: gathered once before people are told, and kept.

The keeper is a notifier that tells nobody: it has an outbox and a thread as the others have, so that a record that was
owed its traces when the daemon died gets them from the next one, and a store that cannot be written is tried again.
A slow trace source holds up only those who want to show traces, for a few seconds, and never a decision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from canaryd.errors import NotifyError, StoreError
from canaryd.model import Record
from canaryd.policy import Canary
from canaryd.ports import StateStore, TraceEvidence

KEY = "traces"  # of a record's body


class EvidenceKeeper:
    """The port `Notifier`, for the store itself."""

    name = "traces"
    wants_evidence = True

    def __init__(self, store: StateStore) -> None:
        self._store = store

    def notify(self, record: Record) -> bool:
        """Keep what was added to the record. Raises NotifyError when it cannot be written now."""
        if KEY not in record.body:
            return False
        try:
            self._store.amend(record)
        except StoreError as e:
            raise NotifyError(str(e)) from e
        return True

    def probe(self) -> str:
        """The store is looked at by the doctor itself."""
        return "traces of decisions are kept with their records"


def with_traces(evidence: TraceEvidence | None, canaries: Callable[[], Iterable[Canary]]) -> Callable[[Record], Record]:
    """What adds `traces` to the body of a record that is to have them; never raises. `canaries`: as they are now."""

    def prepare(record: Record) -> Record:
        if evidence is None or KEY in record.body:
            return record
        canary = next((c for c in canaries() if c.key == record.canary), None)
        found: Any = evidence.of(record, canary) if canary is not None else None
        return record if found is None else replace(record, body={**record.body, KEY: found})

    return prepare
