"""Which writes bring the workloads into the shape that a saved state asks for. Pure, and level-triggered.

Each function answers with the writes that are due now, in the order in which they are safe to be cut off after any of
them. None of them moves traffic, and none takes pods away from where traffic may still be.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from canaryd.deployments import objects
from canaryd.deployments.objects import Seen
from canaryd.deployments.pods import HASH
from canaryd.deployments.world import (
    World,
    Write,
    asked,
    begun,
    common_hash,
    is_away,
    replicas,
    revision_of_stable,
    scales,
    services,
    stamp,
    status,
    wanted_replicas,
)
from canaryd.kube.kinds import CONTROLLER_REVISIONS, DEPLOYMENTS, HPAS, SERVICES
from canaryd.model import Phase
from canaryd.revision import digest

JSON = dict[str, Any]


def writes(world: World, *, version: int, now: datetime, grace: timedelta) -> list[Write]:
    """What is due for this state now."""
    if world.adopting:
        return adoption(world, version)
    out = made_services(world, world.stable) if world.stable is not None else []
    if world.canary is None:
        return [*out, *(capacity(world) if world.phase.is_active else ())]
    if world.phase is Phase.WAITING:
        return [*out, *pinned(world), *capacity(world), *brought_up(world, version, now, grace)]
    if world.phase.is_active:
        return [*out, *capacity(world), *kept(world, version)]
    if not is_away(world.state, now, grace) or not world.state.stable_revision:
        return out
    return [*out, *settled(world, version)]


# ── taking a running service into care ───────────────────────────────────────────────────────────────────────


def adoption(world: World, version: int) -> list[Write]:
    """A second Deployment with the same pods, and Services to tell the two apart. The first one is left as it is."""
    canary, stable = world.canary, world.stable
    if canary is None or world.config is None:
        return []
    out: list[Write] = []
    if stable is None:
        stable = made_stable(world, objects.template(canary), objects.settings(canary), replicas(canary), version)
        said = f"made {world.spec.stable} with the {replicas(canary)} pods of {world.spec.name}"
        out.append(Write("create", DEPLOYMENTS, world.spec.stable, stable, said))
    elif world.made_stable and replicas(stable) < replicas(canary) and not scales(world.scaler, world.spec.stable):
        out.append(_deployment(world, stable, version, {"replicas": replicas(canary)}, {}, "as many as the canary has"))
    out += made_services(world, stable)
    revision = objects.annotation(stable, objects.REVISION) or revision_of_stable(world)
    return [*out, *_pin(world, revision, stable)]


def made_stable(world: World, template: JSON, settings: JSON, count: int, version: int, revision: str = "") -> JSON:
    """The stable Deployment to be created."""
    assert world.canary is not None
    marks = {
        objects.REVISION: revision or objects.revision_of(world.canary, world.config or {}),
        objects.CONFIG: digest(world.config or {}),
        objects.STAMP: stamp(world, version).text(),
    }
    return objects.stable_deployment(world.canary, world.spec.stable, world.doc.name, template, settings, count, marks)


def made_services(world: World, stable: JSON) -> list[Write]:
    """Services beside the one of the canary's name, where there is one and they are missing."""
    if world.service is None or not world.service["spec"].get("selector"):
        return []
    out = []
    own = world.spec.name
    for name, default, there, selector in (
        (services(world.doc)[0], f"{own}-stable", world.stable_service, objects.stable_selector(world.service, stable)),
        (
            services(world.doc)[1],
            f"{own}-canary",
            world.canary_service,
            objects.canary_selector(world.service, common_hash(world)),
        ),
    ):
        if name == default and there is None:
            body = objects.service(world.service, name, world.doc.name, selector)
            out.append(Write("create", SERVICES, name, body, f"made Service {name}", f"service {name}"))
    return out


# ── a rollout ────────────────────────────────────────────────────────────────────────────────────────────────


def pinned(world: World) -> list[Write]:
    """The template of this rollout as it is now, kept apart from the Deployment that people may change again."""
    canary, state = world.canary, world.state
    if canary is None or world.config is None or asked(world) != state.revision:
        return []
    return _pin(world, state.revision, canary)


def _pin(world: World, revision: str, deployment: JSON) -> list[Write]:
    """The pin, and the end of those that are of no use any more."""
    doc, state = world.doc, world.state
    name = objects.pin_name(doc.name, revision)
    if world.pins is None or name in world.pins:
        return []
    body = objects.pin(
        doc.name, doc.metadata.namespace, doc.metadata.uid or "", revision, deployment, world.config or {}
    )
    body["data"]["stable"] = {"made": world.stable is None or world.made_stable, "replicas": replicas(world.stable)}
    useful = {name, objects.pin_name(doc.name, state.stable_revision), objects.pin_name(doc.name, state.revision)}
    gone = [Write("delete", CONTROLLER_REVISIONS, old, {}, "") for old in sorted(world.pins - useful)]
    return [Write("create", CONTROLLER_REVISIONS, name, body, ""), *gone]


def brought_up(world: World, version: int, now: datetime, grace: timedelta) -> list[Write]:
    """The canary's pods, and as soon as all of them are of this revision, no others: the Deployment is paused."""
    canary, state = world.canary, world.state
    assert canary is not None
    if world.config is None or asked(world) != state.revision:
        return []  # a newer template has landed: the next decision is about that one
    if not begun(world):
        busy = replicas(canary) or status(canary, "replicas")
        if busy and not is_away(state, now, grace):
            return []  # its pods may still be answering
        return [_start(world, canary, version)]
    hashed = common_hash(world)
    seen = Seen.of(canary)
    changes = _raised(world, canary, from_zero=True)
    out = []
    if (hashed and (not canary["spec"].get("paused") or seen.hash != hashed)) or changes:
        paused = {"paused": True} if hashed and not canary["spec"].get("paused") else {}
        said = [f"paused {world.spec.name}: no later template runs unseen"] if paused else []
        said += [f"{world.spec.name} has {changes['replicas']} pods"] if changes else []
        mark = Seen(0, state.revision, digest(world.config), hashed or seen.hash, state.rollout)
        out.append(_canary(world, canary, version, {**paused, **changes}, mark, "; ".join(said), _contest(changes)))
    return [*out, *selected(world, hashed or seen.hash)]


def _start(world: World, canary: JSON, version: int) -> Write:
    """Up to its replicas, and free to roll out, unless what runs is this revision already."""
    state, seen = world.state, Seen.of(canary)
    spec: dict[str, Any] = dict(_raised(world, canary, from_zero=True))
    runs = bool(replicas(canary) and canary["spec"].get("paused") and seen.hash and seen.revision == state.revision)
    config = digest(world.config or {})
    meta = objects.template(canary).get("metadata") or {}
    if config and replicas(canary) and not runs and (meta.get("annotations") or {}).get(objects.CONFIG) != config:
        spec["template"] = copy.deepcopy(objects.template(canary))  # pods that run have read what was there before
        spec["template"]["metadata"]["annotations"] = {**(meta.get("annotations") or {}), objects.CONFIG: config}
    if canary["spec"].get("paused") and not runs:
        spec["paused"] = None
    mark = Seen(0, state.revision, config, seen.hash if runs else "", state.rollout)
    count = spec.get("replicas", replicas(canary))
    return _canary(world, canary, version, spec, mark, f"brought {world.spec.name} up to {count} pods")


def kept(world: World, version: int) -> list[Write]:
    """A canary with traffic: paused, with enough pods for the next step. One that a person took to 0 is left."""
    canary = world.canary
    assert canary is not None
    if world.phase is Phase.ROLLING_BACK:
        return []
    changes = _raised(world, canary, from_zero=False)
    paused = {"paused": True} if replicas(canary) and not canary["spec"].get("paused") else {}
    out = []
    seen = Seen.of(canary)
    if changes or paused:
        said = [f"paused {world.spec.name} again"] if paused else []
        said += [f"{world.spec.name} has {changes['replicas']} pods"] if changes else []
        known = seen.generation == canary["metadata"].get("generation")
        mark, contest = seen if known else None, _contest(changes) or "pause"
        out.append(_canary(world, canary, version, {**paused, **changes}, mark, "; ".join(said), contest))
    return [*out, *(selected(world, seen.hash) if begun(world) else [])]


def _raised(world: World, canary: JSON, *, from_zero: bool) -> dict[str, int]:
    """More replicas, where there are too few; never fewer. An autoscaler of the canary's own is left in charge."""
    has, wanted = replicas(canary), wanted_replicas(world)
    if has >= wanted or (has == 0 and not from_zero) or (has and scales(world.scaler, world.spec.name)):
        return {}
    return {"replicas": wanted}


def _contest(changes: Mapping[str, Any]) -> str:
    return f"replicas {changes['replicas']}" if "replicas" in changes else ""


def selected(world: World, hashed: str) -> list[Write]:
    """The Service of the canary selects the pods of this template, when canaryd made it."""
    there = world.canary_service
    if not hashed or world.service is None or not objects.is_ours(there, world.doc.name):
        return []
    assert there is not None
    had = there["spec"].get("selector") or {}
    if had.get(HASH) == hashed:
        return []
    path = f"/spec/selector/{HASH}"
    ops = [
        {"op": "test", "path": "/metadata/uid", "value": there["metadata"].get("uid")},
        {"op": "test", "path": path, "value": had.get(HASH)},
        {"op": "add", "path": path, "value": hashed},
    ]
    return [Write("patch", SERVICES, there["metadata"]["name"], ops, "")]


def capacity(world: World) -> list[Write]:
    """During a rollout an autoscaler takes no pod from stable: all traffic may come back at any time."""
    scaler, state = world.scaler, world.state
    if scaler is None or world.stable is None or not scales(scaler, world.spec.stable):
        return []
    kept_at = held(scaler)
    least = int(scaler["spec"].get("minReplicas", 1))
    floor = replicas(world.stable)
    if world.phase is Phase.PROMOTING:
        floor = max(floor, replicas(world.canary))
    elif kept_at and kept_at.get("rollout") == state.rollout:
        return []
    floor = min(floor, int(scaler["spec"].get("maxReplicas", floor)))
    if least >= floor or world.phase is Phase.ROLLING_BACK:
        return []
    before = kept_at["min"] if kept_at else scaler["spec"].get("minReplicas")
    mark = json.dumps({"rollout": state.rollout, "min": before}, separators=(",", ":"))
    marks = {objects.HELD: mark}
    ops = objects.patch(scaler, spec={"minReplicas": floor}, annotations=marks, unchanged=("scaleTargetRef",))
    said = f"{world.spec.stable} keeps at least {floor} pods while the rollout lasts"
    return [Write("patch", HPAS, scaler["metadata"]["name"], ops, said, "hold")]


def held(scaler: JSON) -> JSON | None:
    """What its minimum was before a rollout, and which rollout; None when it is as its owner wants it."""
    try:
        told = json.loads(objects.annotation(scaler, objects.HELD) or "null")
    except ValueError:
        return None
    return told if isinstance(told, dict) and "min" in told else None


# ── between rollouts ─────────────────────────────────────────────────────────────────────────────────────────


def settled(world: World, version: int) -> list[Write]:
    """Stable serves alone: the canary has no pods, autoscaling is stable's, and what was held is let go."""
    return [*_scaler_of_stable(world), *_stable_again(world, version), *_canary_down(world, version)]


def _scaler_of_stable(world: World) -> list[Write]:
    """The autoscaler of the service follows the pods that serve.

    A second one would not do: the canary's selector takes stable's pods, too, and the autoscaling controller refuses
    to act for pods that two autoscalers select.
    """
    scaler = world.scaler
    if scaler is None or world.stable is None:
        return []
    spec: dict[str, Any] = {}
    marks: dict[str, str | None] = {}
    said, contest = "", ""
    kept_at = held(scaler)
    if scales(scaler, world.spec.name):
        spec["scaleTargetRef"] = {**scaler["spec"]["scaleTargetRef"], "name": world.spec.stable}
        marks[objects.TARGET] = world.spec.name
        said, contest = f"autoscaler {scaler['metadata']['name']} is for {world.spec.stable} now", "autoscaler"
    if kept_at:
        spec["minReplicas"], marks[objects.HELD] = kept_at["min"], None
    if not spec:
        return []
    ops = objects.patch(scaler, spec=spec, annotations=marks, unchanged=("scaleTargetRef",))
    return [Write("patch", HPAS, scaler["metadata"]["name"], ops, said, contest)]


def _stable_again(world: World, version: int) -> list[Write]:
    """As many pods as before an upgrade made it larger; and what it runs is on record."""
    stable = world.stable
    if stable is None:
        return []
    spec: dict[str, Any] = {}
    marks: dict[str, str | None] = {}
    before = objects.annotation(stable, objects.REPLICAS)
    if before:
        marks[objects.REPLICAS] = None
        if before.isdigit() and 0 < int(before) < replicas(stable) and not scales(world.scaler, world.spec.stable):
            spec["replicas"] = int(before)
    config = digest(world.config or {})
    if config and not objects.annotation(stable, objects.CONFIG):
        marks[objects.CONFIG] = config
    if not marks:
        return []
    said = f"{world.spec.stable} has {spec['replicas']} pods again" if spec else ""
    return [_deployment(world, stable, version, spec, marks, said)]


def _canary_down(world: World, version: int) -> list[Write]:
    canary, state = world.canary, world.state
    if canary is None or (state.phase is Phase.ROLLED_BACK and world.spec.keep_failed):
        return []
    ours = bool(Seen.of(canary).hash)  # a pause of somebody else's is left
    if not replicas(canary) and not (canary["spec"].get("paused") and ours):
        return _remarked(world, canary, version)
    spec: dict[str, Any] = {"replicas": 0} if replicas(canary) else {}
    if canary["spec"].get("paused"):
        spec["paused"] = None
    mark = None if world.config is None else Seen(0, asked(world), digest(world.config), "", state.rollout)
    return [_canary(world, canary, version, spec, mark, f"{world.spec.name} has no pods now", "down")]


def _remarked(world: World, canary: JSON, version: int) -> list[Write]:
    """A failed template is known by its generation, which changes with every annotation: it is written down anew."""
    if world.config is None or world.stable is None or asked(world) == revision_of_stable(world):
        return []  # what stable runs is known by stable itself
    seen, config = Seen.of(canary), digest(world.config)
    if seen.generation == canary["metadata"].get("generation") and seen.config == config:
        return []
    mark = Seen(0, asked(world), config, "", world.state.rollout)
    return [_canary(world, canary, version, {}, mark, "", "mark")]


# ── patches ──────────────────────────────────────────────────────────────────────────────────────────────────


def _canary(
    world: World,
    canary: JSON,
    version: int,
    spec: Mapping[str, Any],
    mark: Seen | None,
    said: str,
    contest: str = "",
) -> Write:
    """A patch of the canary's Deployment that also says which generation it makes of which revision."""
    marks: dict[str, str | None] = {}
    if mark is not None:
        after = int(canary["metadata"].get("generation", 0)) + 1  # of a Deployment annotations count, too
        marks[objects.SEEN] = Seen(after, mark.revision, mark.config, mark.hash, mark.rollout).text()
    return _deployment(world, canary, version, spec, marks, said, contest, generation=mark is not None)


def _deployment(
    world: World,
    deployment: JSON,
    version: int,
    spec: Mapping[str, Any],
    marks: Mapping[str, str | None],
    said: str,
    contest: str = "",
    *,
    generation: bool = False,
) -> Write:
    told = {**marks, objects.STAMP: stamp(world, version).text()}
    if objects.annotation(deployment, objects.RESTORED):  # of a removal that was not finished
        told[objects.RESTORED] = None
    ops = objects.patch(deployment, spec=spec, annotations=told, generation=generation)
    return Write("patch", DEPLOYMENTS, deployment["metadata"]["name"], ops, said, contest)
