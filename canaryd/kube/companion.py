"""Decisions that no longer find room in a Canary's status: a ConfigMap beside it, owned by it, bounded in size.

Written only with records that the status has held, before they leave it, so that a crash at any line loses none;
a chunk is named after its first record, so that moving the same ones again doubles none. Read only when somebody asks
for the past. It goes when its Canary goes, and a ConfigMap that is not canaryd's is never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

from canaryd.errors import KubeConflictError, KubeExistsError, KubeInvalidError, KubeNotFoundError, StoreError
from canaryd.kube.client import KubeClient
from canaryd.kube.kinds import CANARIES, CONFIG_MAPS
from canaryd.kube.packed import pack_records, unpack_records
from canaryd.model import Record

JSON = dict[str, Any]

PREFIX = "canaryd-history-"
MOST_BYTES = 300 * 1024  # of all chunks but the next one, as they are sent
OWED = "0-owed"  # the chunk of records that people have not heard of and whose own chunk had to go; sorts first
MOST_OWED = 200 * 1024  # bytes of it
_MANAGED_BY, _CANARY = "canaryd.io/managed-by", "canaryd.io/canary"


class Companion:
    """Safe to use from several threads. Raises KubeError, and StoreError where a ConfigMap is not what it should be."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._lock = Lock()
        self._sizes: dict[str, dict[str, int]] = {}  # uid of the Canary → chunk → bytes, where that is known

    def move(self, canary: JSON, records: Sequence[Record], owed: Sequence[Record] = ()) -> None:
        """Puts records there, in one request when it was written before; the oldest chunks go when there are too many.

        `canary` is the object. `owed` are all records that are owed to notifiers and not in the status: they stay, also
        when their chunk goes.
        """
        chunk, data = _chunk(records), pack_records(records)
        for attempt in range(3):
            sizes = self._known(canary)
            try:
                answer = (
                    self._create(canary, chunk, data) if sizes is None else self._add(canary, sizes, chunk, data, owed)
                )
            except (KubeNotFoundError, KubeExistsError, KubeConflictError, KubeInvalidError):
                # it came, went or was changed under our hands
                self._forget(canary)
                if attempt == 2:
                    raise
            else:
                self._remember(canary, answer)
                return

    def read(self, canary: JSON) -> tuple[Record, ...]:
        """All that is there, oldest first; nothing where there is none."""
        namespace, name = canary["metadata"]["namespace"], _name(canary)
        try:
            there = self._client.get(CONFIG_MAPS, namespace, name)
        except KubeNotFoundError:
            return ()
        if not _is_of(there, canary):
            return ()
        records: dict[tuple[str, object], Record] = {}
        for chunk, data in sorted((there.get("binaryData") or {}).items()):
            try:
                records.update({(r.id, r.at): r for r in unpack_records(data)})
            except StoreError as e:
                raise StoreError(f"ConfigMap {namespace}/{name}: binaryData.{chunk}: {e}") from None
        return tuple(records.values())

    def amend(self, canary: JSON, record: Record) -> None:
        """Another body for a record that is there; one that is not is ignored. Two requests."""
        namespace, name = canary["metadata"]["namespace"], _name(canary)
        for attempt in range(3):
            try:
                there = self._client.get(CONFIG_MAPS, namespace, name)
            except KubeNotFoundError:
                return
            chunks = (there.get("binaryData") or {}) if _is_of(there, canary) else {}
            ops = [
                {"op": "test", "path": "/metadata/resourceVersion", "value": there["metadata"]["resourceVersion"]},
                *(
                    {"op": "add", "path": f"/binaryData/{chunk}", "value": data}
                    for chunk, old in chunks.items()
                    if (data := _amended(old, record)) is not None
                ),
            ]
            if len(ops) == 1:
                return
            try:
                self._remember(canary, self._client.patch(CONFIG_MAPS, namespace, name, ops, how="json"))
            except (KubeConflictError, KubeInvalidError):
                if attempt == 2:
                    raise
            else:
                return

    # ── how ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _known(self, canary: JSON) -> dict[str, int] | None:
        """Sizes of the chunks that are there; None when there is no ConfigMap yet."""
        with self._lock:
            sizes = self._sizes.get(canary["metadata"]["uid"])
        if sizes is not None:
            return sizes
        try:
            there = self._client.get(CONFIG_MAPS, canary["metadata"]["namespace"], _name(canary))
        except KubeNotFoundError:
            return None
        if not _is_of(there, canary):
            there = self._take_over(canary, there)
        return self._remember(canary, there)

    def _take_over(self, canary: JSON, there: JSON) -> JSON:
        """What an earlier Canary of this name has left becomes this one's, empty."""
        labels = there["metadata"].get("labels") or {}
        if labels.get(_MANAGED_BY) != "canaryd":
            place = f"ConfigMap {there['metadata']['namespace']}/{there['metadata']['name']}"
            raise StoreError(f"{place} is not canaryd's: rename or delete it; until then old decisions are not kept")
        ops = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": there["metadata"]["resourceVersion"]},
            {"op": "add", "path": "/metadata/ownerReferences", "value": [_owner(canary)]},
            {"op": "add", "path": "/binaryData", "value": {}},
        ]
        return self._client.patch(CONFIG_MAPS, canary["metadata"]["namespace"], _name(canary), ops, how="json")

    def _create(self, canary: JSON, chunk: str, data: str) -> JSON:
        meta = canary["metadata"]
        about = {
            "name": _name(canary),
            "namespace": meta["namespace"],
            "labels": {_MANAGED_BY: "canaryd", _CANARY: meta["name"]},
            "ownerReferences": [_owner(canary)],
        }
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "binaryData": {chunk: data}}
        return self._client.create(CONFIG_MAPS, meta["namespace"], body)

    def _add(self, canary: JSON, sizes: dict[str, int], chunk: str, data: str, owed: Sequence[Record]) -> JSON:
        ops: list[JSON] = [
            {"op": "test", "path": "/metadata/ownerReferences/0/uid", "value": canary["metadata"]["uid"]},
            {"op": "add", "path": f"/binaryData/{chunk}", "value": data}
            if sizes
            else {"op": "add", "path": "/binaryData", "value": {chunk: data}},
        ]
        total = sum(size for name, size in sizes.items() if name not in (chunk, OWED)) + len(data)
        going = 0
        for oldest in sorted(sizes.keys() - {OWED}):
            if total <= MOST_BYTES or oldest == chunk:
                break
            ops.append({"op": "remove", "path": f"/binaryData/{oldest}"})
            total -= sizes[oldest]
            going += 1
        if going and owed:
            ops.append({"op": "add", "path": f"/binaryData/{OWED}", "value": _fitting(owed)})
        elif OWED in sizes and not owed:
            ops.append({"op": "remove", "path": f"/binaryData/{OWED}"})
        return self._client.patch(CONFIG_MAPS, canary["metadata"]["namespace"], _name(canary), ops, how="json")

    def _remember(self, canary: JSON, there: JSON) -> dict[str, int] | None:
        """The sizes; a ConfigMap that was exchanged for somebody else's is looked at again the next time."""
        sizes = {chunk: len(data) for chunk, data in (there.get("binaryData") or {}).items()}
        with self._lock:
            if _is_of(there, canary):
                self._sizes[canary["metadata"]["uid"]] = sizes
            else:
                self._sizes.pop(canary["metadata"]["uid"], None)
        return sizes

    def _forget(self, canary: JSON) -> None:
        with self._lock:
            self._sizes.pop(canary["metadata"]["uid"], None)


def _fitting(owed: Sequence[Record]) -> str:
    """The latest of them that find room, which are all but in the worst case."""
    while len(data := pack_records(owed)) > MOST_OWED:
        owed = owed[len(owed) // 4 + 1 :]
    return data


def _name(canary: JSON) -> str:
    return f"{PREFIX}{canary['metadata']['name']}"


def _owner(canary: JSON) -> JSON:
    meta = canary["metadata"]
    return {"apiVersion": CANARIES.api_version, "kind": CANARIES.kind, "name": meta["name"], "uid": meta["uid"]}


def _is_of(there: JSON, canary: JSON) -> bool:
    owners = there["metadata"].get("ownerReferences") or [{}]
    return bool(owners[0].get("uid") == canary["metadata"]["uid"])


def _chunk(records: Sequence[Record]) -> str:
    """Sorts as the records do: the number of the first decision."""
    number = records[0].id.rpartition("/")[2]
    return f"decisions-{int(number) if number.isdigit() else 0:010d}"


def _amended(data: str, record: Record) -> str | None:
    """A chunk with another body of the record; None when it is not in there."""
    try:
        held = unpack_records(data)
    except StoreError:
        return None  # whoever reads it says so
    if all(r.id != record.id for r in held):
        return None
    return pack_records([replace(r, body=record.body) if r.id == record.id else r for r in held])
