"""What stands in Canaries, unpacked once for as long as it stays the same."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from threading import Lock
from typing import Any

from canaryd.errors import StoreError
from canaryd.kube.canaries import annotation_of, key_of, status_of
from canaryd.kube.status import Held, held, pruned
from canaryd.kube.words import Heard, heard

JSON = dict[str, Any]

_KEPT = 2048  # statuses, and words


@dataclass(frozen=True, slots=True)
class _Seen:
    """A status as it was unpacked, and what it was unpacked from."""

    fields: tuple[object, ...]
    held: Held


class Unpacked:
    """Safe to use from several threads. `clock` is asked for when a word that does not say was heard."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._lock = Lock()
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._first_heard: OrderedDict[tuple[str, str], datetime] = OrderedDict()

    def held(self, found: JSON) -> Held:
        """Raises StoreError that says which field of the status is damaged and how it is repaired."""
        canary, status = key_of(found), found.get("status")
        fields = tuple(status_of(found).get(name) for name in ("version", "state", "records", "answered"))
        with self._lock:
            seen = self._seen.get(canary)
            if seen is not None and status is not None and seen.fields == fields:
                self._seen.move_to_end(canary)
                return seen.held
        try:
            unpacked = held(status)
        except StoreError as e:
            raise StoreError(f"{canary}: {e}. {_repair(found)}") from None
        with self._lock:
            self._seen[canary] = _Seen(fields, unpacked)
            if len(self._seen) > _KEPT:
                self._seen.popitem(last=False)
        return unpacked

    def check_kept(self, found: JSON) -> None:
        """Raises StoreError where a server has dropped what canaryd wrote: any further write makes that final."""
        if why := pruned(found.get("status")):
            raise StoreError(f"{key_of(found)}: {why}. {_repair(found)}")

    def heard(self, found: JSON) -> Heard:
        """What people say, each word with the time at which it was first heard where it tells none."""
        text = annotation_of(found)
        if text is None:
            return Heard()
        now, uid = self._clock(), str(found["metadata"]["uid"])
        said = heard(text, now)
        with self._lock:
            first = {w.id: self._first_heard.setdefault((uid, w.id), now) for w in said.overrides if w.at == now}
            while len(self._first_heard) > _KEPT:
                self._first_heard.popitem(last=False)
        return replace(said, overrides=tuple(replace(w, at=first.get(w.id, w.at)) for w in said.overrides))


def _repair(found: JSON) -> str:
    meta = found["metadata"]
    if pruned(found.get("status")):
        return (
            "The API server dropped what canaryd wrote: the definition of the Canary resource (CRD) is older than this "
            "canaryd. Nothing is decided and nothing written until that is put right"
            " (canaryd manifests crd | kubectl apply --server-side --force-conflicts -f -); if it stays, start afresh"
            f" (kubectl patch canaries.canaryd.io {meta['name']} -n {meta['namespace']} --subresource=status"
            """ --type=json -p '[{"op":"remove","path":"/status"}]')"""
        )
    canary = f"canaries.canaryd.io {meta['name']} -n {meta['namespace']} --subresource=status"
    return (
        f"Nothing is decided and nothing overwritten until a person has put that field right (kubectl edit {canary})"
        f" or starts afresh with the weights as they are (kubectl patch {canary} --type=json"
        """ -p '[{"op":"remove","path":"/status"}]')"""
    )
