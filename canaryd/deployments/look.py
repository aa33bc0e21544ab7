"""What the decisions are told of both workloads: readiness with its reasons, pods, start times. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from canaryd.deployments import objects, pods
from canaryd.deployments.objects import Seen
from canaryd.deployments.pods import HASH, Tally
from canaryd.deployments.world import (
    World,
    asked,
    begun,
    condition,
    is_available,
    replicas,
    revision_of_stable,
    scales,
    services,
    status,
    wanted_replicas,
)
from canaryd.model import Phase, Pods
from canaryd.wording import span

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Look:
    """Both workloads at one moment."""

    unready: tuple[str, ...]  # what is not ready, nothing when all is
    notes: tuple[str, ...]  # what a person should know although nothing waits for it
    stable: Pods
    canary: Pods
    started: dict[str, datetime] = field(default_factory=dict)
    stable_revision: str = ""
    gone: str = ""
    overdue: str = ""


def look(world: World, tallies: tuple[Tally, Tally]) -> Look:
    """`tallies` of stable and canary, of this rollout."""
    chosen = canary_pods(world)
    of_stable = world.stable_pods()
    stable = pods.summary(replicas(world.stable), of_stable, tallies[0], world.stable)
    canary = pods.summary(replicas(world.canary), chosen, tallies[1], world.canary)
    unready = tuple(_unready(world, stable, canary))
    times = {pod["metadata"]["name"]: pods.started(pod) for pod in (*of_stable, *chosen)}
    return Look(
        unready,
        tuple(_notes(world)),
        stable,
        canary,
        {name: at for name, at in times.items() if at is not None},
        revision_of_stable(world),
        _gone(world),
        _overdue(world, unready, canary),
    )


def canary_pods(world: World) -> list[JSON]:
    """Those of the revision under way; before it is known by its hash, all that the canary's Deployment has."""
    if world.canary is None:
        return []
    return world.canary_pods(Seen.of(world.canary).hash if begun(world) and world.phase.is_active else "")


def _gone(world: World) -> str:
    namespace, spec = world.doc.metadata.namespace, world.spec
    if world.canary is None:
        return f"Deployment {namespace}/{spec.name} does not exist"
    if "deletionTimestamp" in world.canary["metadata"]:
        return f"Deployment {namespace}/{spec.name} is being deleted"
    return ""


def _unready(world: World, stable: Pods, canary: Pods) -> list[str]:
    """Everything that keeps traffic from being sent, stable first."""
    spec = world.spec
    if world.canary is None:
        return [f"Deployment {spec.name} does not exist"]
    if world.stable is None:
        return [world.unread or f"Deployment {spec.stable} does not exist yet"]
    out = []
    if world.adopting:
        need = max(replicas(world.canary), replicas(world.stable))
        served = status(world.stable, "availableReplicas")
        if served < need or not is_available(world.stable):
            out.append(_few(spec.stable, served, need, stable.trouble))
        return [*out, *_services_missing(world)]
    if not is_available(world.stable):
        out.append(_few(spec.stable, stable.ready, stable.wanted, stable.trouble))
    out += _services_missing(world)
    if world.phase is Phase.WAITING:
        out += _not_brought_up(world, canary)
    elif world.phase.is_active and canary.ready < max(canary.wanted, 1):
        out.append(_few(spec.name, canary.ready, canary.wanted, canary.trouble or _emptied(world)))
    return out


def _not_brought_up(world: World, canary: Pods) -> list[str]:
    deployment, spec = world.canary, world.spec
    assert deployment is not None
    if world.config is None:
        return [world.unread]
    if (now := asked(world)) != world.state.revision:
        return [f"{spec.name} asks for revision {now} now, not for {world.state.revision}"]
    if not begun(world):
        return [f"{spec.name} is to be brought up"]
    need = max(1, min(wanted_replicas(world), replicas(deployment)))
    if canary.ready < max(need, canary.wanted):
        return [_few(spec.name, canary.ready, max(need, canary.wanted), canary.trouble or pods.refused(deployment))]
    seen = Seen.of(deployment)
    if not seen.hash or not deployment["spec"].get("paused"):
        return [f"{spec.name} is still replacing its pods" + (f": {canary.trouble}" if canary.trouble else "")]
    service = world.canary_service
    if objects.is_ours(service, world.doc.name) and world.service is not None:
        assert service is not None
        if (service["spec"].get("selector") or {}).get(HASH) != seen.hash:
            return [f"Service {service['metadata']['name']} does not select the new pods yet"]
    return []


def _emptied(world: World) -> str:
    return "somebody has scaled it to 0" if not replicas(world.canary) else ""


def _services_missing(world: World) -> list[str]:
    if world.service is None:
        return []
    there = (world.stable_service, world.canary_service)
    return [
        f"Service {name} does not exist yet"
        for name, service in zip(services(world.doc), there, strict=True)
        if name and service is None
    ]


def _few(name: str, ready: int, wanted: int, why: str) -> str:
    return f"{name} has {ready} of {wanted} pods ready" + (f": {why}" if why else "")


def _notes(world: World) -> list[str]:
    """Nothing waits for these."""
    spec, state = world.spec, world.state
    out = []
    if world.stable is not None and not replicas(world.stable) and not world.adopting:
        out.append(f"somebody has scaled {spec.stable}, which serves, to 0")
    if world.edited and not world.adopting and world.phase is not Phase.PROMOTING:
        out.append(
            f"somebody has changed {spec.stable}, which serves, by hand: {world.edited}; it is left as it is, though "
            f"nothing has compared it. The same in {spec.name} releases it, and kubectl rollout undo "
            f"deployment/{spec.stable} takes it back"
        )
    if state.phase.is_active and scales(world.scaler, spec.name) and world.scaler is not None:
        name = world.scaler["metadata"]["name"]
        out.append(f"autoscaler {name} is for {spec.name}; between rollouts it should be for {spec.stable}")
    canary = world.canary
    if canary is not None and state.phase.is_active and canary["spec"].get("paused") and not Seen.of(canary).hash:
        out.append(f"{spec.name} is paused by somebody; kubectl rollout resume deployment/{spec.name} lets it go on")
    return out


def _overdue(world: World, unready: tuple[str, ...], canary: Pods) -> str:
    """The state's own clock counts, which no jump of the time of day can move."""
    limit = world.spec.ready_timeout
    waited = world.state.held + world.state.blind
    if world.phase is not Phase.WAITING or world.state.phase is Phase.PAUSED or world.canary is None:
        return ""
    complete = bool(Seen.of(world.canary).hash) and canary.ready >= max(canary.wanted, 1)
    if not unready or waited < limit or complete:
        return ""
    why = canary.trouble or pods.refused(world.canary) or str(condition(world.canary, "Progressing").get("message", ""))
    return f"{world.spec.name} has not become ready within {span(limit)}" + (f": {why}" if why else "")
