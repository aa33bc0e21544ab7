"""JSON patches that change splits in objects of the cluster, and what keeps other tools from changing them back.

Pure: objects in, operations out. Nothing but the destinations of the meant routes and canaryd's two annotations is
mentioned in a patch, so that it cannot change anything else. It begins with `test` operations on what it was built
from: the uid, the generation (which every change of `spec` raises, and none of labels, annotations or status) and the
old stamp. A server compares strings in the spelling of its own JSON, so that nothing is tested that people wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from canaryd.adapters.route_splits import (
    Adopted,
    Arms,
    Form,
    Layout,
    Origin,
    Place,
    Role,
    roles_in,
)
from canaryd.adapters.route_stamps import ADOPTED, JSON, STAMP, Stamp

_LISTED = 10  # routes in a remedy


def with_weight(obj: JSON, layout: Layout, weight: int, stamp: Stamp) -> list[JSON]:
    """`weight` percent (0..100) for the canary in every split, and the stamp; nothing when that is how it stands."""
    changes: list[JSON] = []
    for split in layout.splits:
        for at, share in ((split.stable, 100 - weight), (split.canary, weight)):
            if split.place.entries[at].get("weight") != share:
                changes.append({"op": "add", "path": f"{split.place.pointer}/{at}/weight", "value": share})
    changes += _annotating(obj, {STAMP: str(stamp)})
    return [*_tests(obj), *changes] if changes else []


def adopting(form: Form, obj: JSON, layout: Layout, arms: Arms, stamp: Stamp) -> list[JSON]:
    """Everything for stable in the routes that send to the service itself; what was there goes into an annotation."""
    changes: list[JSON] = []
    kept = Adopted.of(obj)
    origins = [o for o in (kept.origins if kept else ()) if not any(o.of(place) for place in layout.plains)]
    for place in layout.plains:
        stable, canary = (form.pointing(place.entries[0], target) for target in (arms.stable, arms.canary))
        pair = [{**stable, "weight": 100}, {**canary, "weight": 0}]
        changes.append({"op": "replace", "path": place.pointer, "value": pair})
        origins.append(Origin(place.name, place.index, place.entries[0]))
    if not changes:
        return []
    notes = {STAMP: str(stamp), ADOPTED: str(Adopted(stamp.canary, tuple(origins)))}
    return [*_tests(obj), *changes, *_annotating(obj, notes)]


def restoring(form: Form, obj: JSON, arms: Arms, canary: str) -> tuple[list[JSON], bool]:
    """The adopted routes name the service itself again, alone; both annotations go. Whether anything was adopted.

    What others changed meanwhile in those routes stays; a route that is gone, or is no split any more, stays as it is.
    """
    kept = Adopted.of(obj)
    origins = list(kept.origins) if kept and kept.canary == canary else []
    changes: list[JSON] = []
    for place in form.places(obj) if origins else ():
        roles = roles_in(form, place, arms)
        if not {Role.STABLE, Role.CANARY} <= set(roles):
            continue
        origin = next((o for o in origins if o.of(place)), None) or _moved(form, place, roles, origins, arms)
        if origin is None:
            continue
        origins.remove(origin)
        changes.append({"op": "replace", "path": place.pointer, "value": _united(form, place, roles, origin, arms)})
    adopted = kept is not None and kept.canary == canary
    changes += _annotating(obj, {STAMP: None, ADOPTED: None} if adopted else {STAMP: None})
    return ([*_tests(obj), *changes] if changes else []), adopted


def _united(form: Form, place: Place, roles: Sequence[Role | None], origin: Origin, arms: Arms) -> list[JSON]:
    """The destinations with the service itself in the place of stable, and without the canary."""
    others = [i for i, role in enumerate(roles) if role not in (Role.STABLE, Role.CANARY)]
    at = roles.index(Role.STABLE)
    entry = form.pointing(place.entries[at], arms.service, origin.entry)
    entry.pop("weight", None)
    if others:  # somebody added a destination: it keeps its share
        entry["weight"] = sum(form.weight(e) for i, e in enumerate(place.entries) if i not in others)
    elif "weight" in origin.entry:
        entry["weight"] = origin.entry["weight"]
    return [entry if i == at else place.entries[i] for i in sorted([at, *others])]


def _moved(
    form: Form, place: Place, roles: Sequence[Role | None], origins: Sequence[Origin], arms: Arms
) -> Origin | None:
    """The route without a name that stood elsewhere when it was adopted: its destination is still that of an origin."""
    if place.name:
        return None
    stable = {k: v for k, v in place.entries[roles.index(Role.STABLE)].items() if k != "weight"}
    for origin in origins:
        was = {k: v for k, v in form.pointing(origin.entry, arms.stable).items() if k != "weight"}
        if not origin.name and was == stable:
            return origin
    return None


def _tests(obj: JSON) -> list[JSON]:
    """Operations that fail when somebody has changed `spec` since, or stamped the object."""
    metadata = obj.get("metadata") or {}
    tests: list[JSON] = [
        {"op": "test", "path": f"/metadata/{key}", "value": metadata[key]}
        for key in ("uid", "generation")
        if key in metadata
    ]
    notes = metadata.get("annotations")
    text = (notes or {}).get(STAMP)
    if notes is None:
        tests.append({"op": "test", "path": "/metadata/annotations", "value": None})
    elif text is None or Stamp.parse(text) is not None:
        tests.append({"op": "test", "path": _pointer(STAMP), "value": text})
    return tests


def _annotating(obj: JSON, wanted: Mapping[str, str | None]) -> list[JSON]:
    """Changes that set annotations, or remove those that shall be None; nothing where it is so already."""
    now = (obj.get("metadata") or {}).get("annotations")
    if now is None:
        added = {key: value for key, value in wanted.items() if value is not None}
        return [{"op": "add", "path": "/metadata/annotations", "value": added}] if added else []
    changes: list[JSON] = []
    for key, value in wanted.items():
        if value is None and key in now:
            changes.append({"op": "remove", "path": _pointer(key)})
        elif value is not None and value != now.get(key):
            changes.append({"op": "add", "path": _pointer(key), "value": value})
    return changes


def _pointer(annotation: str) -> str:
    return f"/metadata/annotations/{annotation.replace('~', '~0').replace('/', '~1')}"


# ── what a GitOps tool must be told ──────────────────────────────────────────────────────────────────────────


def remedy(group: str, kind: str, obj: JSON, layout: Layout) -> str:
    """One sentence with what makes Argo CD and Flux leave these routes alone."""
    metadata = obj.get("metadata") or {}
    name, namespace = metadata.get("name"), metadata.get("namespace")
    whole = bool(layout.plains) or Adopted.of(obj) is not None  # then the number of destinations differs, too
    places = [*(split.place for split in layout.splits), *layout.plains]
    paths = ", ".join(_quoted(_jq(place) + ("" if whole else "[].weight")) for place in places[:_LISTED])
    argo_cd = (
        f"ignoreDifferences: [{{group: {group}, kind: {kind}, namespace: {namespace}, name: {name}, "
        f"jqPathExpressions: [{paths}]}}] and the sync option RespectIgnoreDifferences=true"
    )
    return (
        f"if a GitOps tool keeps changing {kind} {namespace}/{name}, give Argo CD {argo_cd}, "
        "or the object the annotation kustomize.toolkit.fluxcd.io/ssa: IfNotPresent for Flux"
    )


def _jq(place: Place) -> str:
    parts = place.above.split("/")  # "", "spec", "http", "0"
    if place.name:
        name = json.dumps(place.name, ensure_ascii=False)
        return f".{parts[1]}.{parts[2]}[] | select(.name == {name}) | .{place.field}"
    return f".{parts[1]}.{parts[2]}[{place.index}].{place.field}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
