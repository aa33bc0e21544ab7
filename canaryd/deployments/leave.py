"""Back to one plain Deployment when a Canary is deleted, without a moment in which nothing serves. Pure.

First the plain Deployment is made able to take everything; only when the route has been given back to it does anything
of canaryd's go. What others made is never deleted.
"""

from __future__ import annotations

from typing import Any

from canaryd.deployments import objects, pods
from canaryd.deployments.objects import Seen
from canaryd.deployments.shape import held
from canaryd.deployments.world import World, Write, is_rolled_out, replicas, scales, stamp, status
from canaryd.kube.kinds import CONTROLLER_REVISIONS, DEPLOYMENTS, HPAS, SERVICES, Kind
from canaryd.revision import OWN

JSON = dict[str, Any]


def plain(world: World, version: int) -> list[Write]:
    """The Deployment that people know gets what is proven, its pods, and its freedom."""
    canary, stable = world.canary, world.stable
    if canary is None:
        return []
    spec: dict[str, Any] = {}
    if world.made_stable and stable is not None:
        again = objects.annotation(canary, objects.RESTORED)  # a template that somebody applies after that is theirs
        if not again and not objects.same_template(canary, stable):
            spec["template"] = objects.fitted(objects.template(stable), canary)
        if replicas(canary) < replicas(stable):
            spec["replicas"] = replicas(stable)
        if canary["spec"].get("paused"):
            spec["paused"] = None
    elif canary["spec"].get("paused") and Seen.of(canary).hash:
        spec["paused"] = None
    if not spec:
        return []
    marks = {objects.RESTORED: "true", objects.SEEN: None, objects.STAMP: stamp(world, version).text()}
    said = f"{world.spec.name} is brought back with {spec.get('replicas', replicas(canary))} pods"
    ops = objects.patch(canary, spec=spec, annotations=marks)
    return [Write("patch", DEPLOYMENTS, world.spec.name, ops, said, "restore")]


def missing(world: World) -> str:
    """What the plain Deployment lacks before it can take all traffic; "" when nothing."""
    canary = world.canary
    if canary is None or not world.made_stable or is_rolled_out(canary):
        return ""
    ready, wanted = status(canary, "availableReplicas"), replicas(canary)
    why = pods.trouble(world.canary_pods()) or pods.refused(canary)
    return f"{world.spec.name} has {ready} of {wanted} pods ready" + (f": {why}" if why else "")


def rest(world: World) -> list[Write]:
    """Everything of canaryd's that is left. Without the plain Deployment stable stays: it is all that serves."""
    canary, doc = world.canary, world.doc
    out = _scaler_back(world)
    if canary is None:
        return out
    if world.made_stable and world.stable is not None:
        out.append(_gone(DEPLOYMENTS, world.stable))
    out += [
        _gone(SERVICES, service)
        for service in (world.stable_service, world.canary_service)
        if service is not None and objects.is_ours(service, doc.name)
    ]
    out += [Write("delete", CONTROLLER_REVISIONS, name, {}, "") for name in sorted(world.pins or ())]
    for deployment in (canary, world.stable):
        if deployment is not None and not objects.label(deployment, objects.CANARY):
            out += _unmarked(deployment)
    return out


def _gone(kind: Kind, obj: JSON) -> Write:
    name = obj["metadata"]["name"]
    return Write("delete", kind, name, {"uid": obj["metadata"].get("uid")}, f"removed {kind.kind} {name}")


def _unmarked(deployment: JSON) -> list[Write]:
    """Without canaryd's annotations."""
    had = deployment["metadata"].get("annotations") or {}
    marks: dict[str, str | None] = {key: None for key in had if key.startswith(OWN)}
    if not marks:
        return []
    ops = objects.patch(deployment, annotations=marks)
    return [Write("patch", DEPLOYMENTS, deployment["metadata"]["name"], ops, "")]


def _scaler_back(world: World) -> list[Write]:
    scaler = world.scaler
    if scaler is None:
        return []
    before, least = objects.annotation(scaler, objects.TARGET), held(scaler)
    if not before and least is None:
        return []
    marks: dict[str, str | None] = {objects.TARGET: None, objects.HELD: None}
    spec: dict[str, Any] = {}
    if least is not None:
        spec["minReplicas"] = least["min"]
    if before and scales(scaler, world.spec.stable):
        spec["scaleTargetRef"] = {**scaler["spec"]["scaleTargetRef"], "name": before}
    ops = objects.patch(scaler, spec=spec, annotations=marks, unchanged=("scaleTargetRef",))
    name = scaler["metadata"]["name"]
    return [Write("patch", HPAS, name, ops, f"autoscaler {name} is as it was")]
