"""What canaryd leaves on objects of the cluster that hold a split, and who else wrote there. Pure.

The stamp is the fence: it tells a writer of an older state that it comes too late.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from canaryd.errors import FenceError, RouteError

JSON = dict[str, Any]
STAMP = "canaryd.io/stamp"
ADOPTED = "canaryd.io/adopted"
_LONGEST = 64 * 1024  # characters of an annotation of ours that are looked at


@dataclass(frozen=True, slots=True)
class Stamp:
    """What canaryd leaves on an object: who wrote last, from which state, and what."""

    canary: str  # key: "shop/api"
    uid: str  # of the Canary
    version: int
    weight: int  # percent for `workload`
    workload: str  # that held the canary role

    def __str__(self) -> str:
        fields = {name: getattr(self, name) for name in ("canary", "uid", "version", "weight", "workload")}
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def parse(cls, text: object) -> Self | None:
        """None for anything that canaryd did not write."""
        said = decoded(text)
        names, number, weight = ("canary", "uid", "workload"), said.get("version"), said.get("weight")
        if not all(isinstance(said.get(name), str) for name in names):
            return None
        if type(number) is not int or type(weight) is not int or number < 0 or not 0 <= weight <= 100:
            return None
        return cls(said["canary"], said["uid"], number, weight, said["workload"])


def annotations_of(obj: JSON) -> Mapping[str, str]:
    """Never None."""
    return (obj.get("metadata") or {}).get("annotations") or {}


def own_stamp(obj: JSON, canary: str, uid: str) -> Stamp | None:
    """The stamp of this very Canary; one of an earlier Canary of that name counts as none.

    Raises RouteError when another Canary of the namespace has stamped the object. A stamp of a Canary of another
    namespace was copied with the object and counts as none.
    """
    stamp = Stamp.parse(annotations_of(obj).get(STAMP))
    if stamp is None:
        return None
    if stamp.canary == canary:
        return stamp if stamp.uid == uid else None
    if stamp.canary.partition("/")[0] == canary.partition("/")[0]:
        raise RouteError(
            f"belongs to canary {stamp.canary}; if that is gone for good, remove the annotation {STAMP} from it"
        )
    return None


def check_fence(stamp: Stamp | None, version: int) -> None:
    """Raises FenceError when the stamp is newer than `version`."""
    if stamp is not None and stamp.version > version:
        raise FenceError(
            f"state version {stamp.version} has already routed ({stamp.weight} % to {stamp.workload}); "
            f"version {version} comes too late"
        )


def without_details(obj: JSON) -> JSON:
    """The object as a reader should keep it: of who wrote which field only what `editor` asks for."""
    metadata = obj.get("metadata") or {}
    if "managedFields" not in metadata:
        return obj
    return {**obj, "metadata": {**metadata, "managedFields": [_outline(e) for e in dicts(metadata["managedFields"])]}}


def _outline(entry: JSON) -> JSON:
    spec = (entry.get("fieldsV1") or {}).get("f:spec")
    fields: JSON = {} if spec is None else {"f:spec": {key: {} for key in spec}}
    kept: JSON = {key: entry[key] for key in ("manager", "operation", "time", "subresource") if key in entry}
    return {**kept, "fieldsV1": fields}


def editor(obj: JSON, field: str, own: str) -> str:
    """Who wrote `spec.<field>` last, other than the manager `own`: "kubectl-edit, 14:02:11 UTC"; "" when unknown."""
    writers: list[tuple[bool, datetime, str]] = []
    for entry in dicts((obj.get("metadata") or {}).get("managedFields")):
        spec = (entry.get("fieldsV1") or {}).get("f:spec")
        if spec is None or entry.get("subresource") or entry.get("manager") == own:
            continue
        try:
            at = datetime.fromisoformat(str(entry.get("time"))).astimezone(UTC)
        except ValueError:
            continue
        writers.append((f"f:{field}" in spec, at, str(entry.get("manager") or "somebody")))
    if not writers:
        return ""
    _, at, manager = max(writers, key=lambda writer: writer[:2])
    return f"{manager}, {at:%H:%M:%S} UTC"


def dicts(value: object) -> list[JSON]:
    """The items of a list of objects; none for anything else, as of an object nobody validated."""
    return [item if isinstance(item, dict) else {} for item in value] if isinstance(value, list) else []


def decoded(text: object) -> JSON:
    """An annotation's JSON object; empty for anything else."""
    if not isinstance(text, str) or len(text) > _LONGEST:
        return {}
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
