"""One look at everything that belongs to one Canary's workloads, and what follows from it alone. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from typing import Any, Literal

from canaryd.deployments import objects, pods
from canaryd.deployments.objects import Seen, Stamp
from canaryd.kube.kinds import Kind
from canaryd.model import Phase, RolloutState
from canaryd.policy import Canary, DeploymentWorkload
from canaryd.revision import digest

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Objects as they were read; None is not there."""

    doc: Canary
    state: RolloutState
    canary: JSON | None  # the Deployment that people change
    stable: JSON | None
    pods: Sequence[JSON] = ()  # of the namespace; others than of these two do no harm
    service: JSON | None = None  # of the canary Deployment's name: the service itself
    stable_service: JSON | None = None
    canary_service: JSON | None = None
    scaler: JSON | None = None  # the HorizontalPodAutoscaler of one of the two Deployments
    config: Mapping[str, str] | None = None  # "configMap/NAME" → hash of its content; None: cannot be read now
    unread: str = ""  # why `config` cannot be read
    known: str = ""  # what the canary's Deployment asks for, when that has been worked out before
    pins: frozenset[str] | None = None  # names of the pinned templates; None: not looked at
    edited: str = ""  # what somebody has changed in stable's template since it was proven

    @property
    def spec(self) -> DeploymentWorkload:
        assert self.doc.spec.workloads.deployment is not None
        return self.doc.spec.workloads.deployment

    @property
    def adopting(self) -> bool:
        """canaryd has not taken the service into its care yet."""
        return self.state.number == 0 and not self.state.stable_revision

    @property
    def phase(self) -> Phase:
        """What is to be done; a pause changes nothing of that."""
        if self.state.phase is Phase.PAUSED:
            return self.state.resume_to or Phase.PROGRESSING
        return self.state.phase

    @property
    def made_stable(self) -> bool:
        """Stable is canaryd's own; else somebody brought it."""
        return objects.is_ours(self.stable, self.doc.name)

    def canary_pods(self, template: str = "") -> list[JSON]:
        return pods.of(self.spec.name, self.pods, template)

    def stable_pods(self) -> list[JSON]:
        return pods.of(self.spec.stable, self.pods)


@dataclass(frozen=True, slots=True)
class Write:
    """One request that changes something."""

    verb: Literal["create", "patch", "delete"]
    kind: Kind
    name: str
    body: Any  # the object, the JSON patch, or {"uid": …} of what is deleted
    said: str  # what it does, for people; "" for book-keeping
    contest: str = ""  # somebody else may undo this: repeated only so often


def asked(world: World) -> str:
    """The revision that the canary's Deployment asks for.

    Its hash is computed only for a template that was not seen before: what stable runs, and a generation that is known,
    keep their names whatever a newer API server fills in and however a newer canaryd would hash them. A stable that
    somebody has changed by hand runs nothing that has a name: the same asked of the canary is a release.
    """
    canary, stable = world.canary, world.stable
    assert canary is not None
    if world.known:
        return world.known
    config = world.config or {}
    if stable is not None and not world.edited and objects.same_template(canary, stable):
        had = objects.annotation(stable, objects.CONFIG)
        if had in ("", digest(config)):
            return revision_of_stable(world)
    seen = Seen.of(canary)
    known = seen.generation == canary["metadata"].get("generation") and seen.config == digest(config)
    return seen.revision if known and seen.revision else objects.revision_of(canary, config)


def revision_of_stable(world: World) -> str:
    """What stable runs; "" when it is not there."""
    if world.stable is None:
        return ""
    told = objects.annotation(world.stable, objects.REVISION)
    return told or objects.revision_of(world.stable, world.config or {})


def replicas(deployment: JSON | None) -> int:
    """As wanted, not as they are."""
    return 0 if deployment is None else int(deployment["spec"].get("replicas", 1))


def status(deployment: JSON, key: str) -> int:
    return int((deployment.get("status") or {}).get(key) or 0)


def is_observed(deployment: JSON) -> bool:
    """Its controller has seen the present spec."""
    return status(deployment, "observedGeneration") >= int(deployment["metadata"].get("generation", 0))


def is_rolled_out(deployment: JSON) -> bool:
    """Every pod is of the present template, and available."""
    wanted = replicas(deployment)
    keys = ("updatedReplicas", "replicas", "availableReplicas")
    return is_observed(deployment) and all(status(deployment, key) == wanted for key in keys)


def condition(deployment: JSON, kind: str) -> JSON:
    found: Sequence[JSON] = (deployment.get("status") or {}).get("conditions") or ()
    return next((c for c in found if c.get("type") == kind), {})


def is_available(deployment: JSON) -> bool:
    """As many of its pods serve as its strategy demands."""
    return is_observed(deployment) and condition(deployment, "Available").get("status") == "True"


def target(scaler: JSON) -> str:
    """The Deployment that an autoscaler is for; "" when it is for something else."""
    reference = scaler["spec"].get("scaleTargetRef") or {}
    return str(reference.get("name", "")) if reference.get("kind") == "Deployment" else ""


def scales(scaler: JSON | None, name: str) -> bool:
    """The autoscaler is for this Deployment."""
    return scaler is not None and target(scaler) == name


def wanted_replicas(world: World) -> int:
    """Pods that the canary needs: as many as asked for, and enough for the share of the step after this one."""
    steps = world.doc.spec
    if world.phase is Phase.PROMOTING:
        share = 100
    elif world.phase is Phase.PROGRESSING:
        share = steps.next_weight(min(world.state.step, len(steps.steps) - 1))
    else:
        share = steps.steps[0].weight
    has = replicas(world.stable)
    return max(world.spec.replicas or has, ceil(has * share / 100), 1)


def common_hash(world: World) -> str:
    """The pod-template-hash of all of the canary's pods when they are all of the present template; else ""."""
    canary = world.canary
    if canary is None or not is_observed(canary):
        return ""
    wanted = replicas(canary)
    if wanted == 0 or any(status(canary, key) != wanted for key in ("updatedReplicas", "replicas")):
        return ""
    found = world.canary_pods()
    hashes = {pods.template_hash(pod) for pod in found}
    return hashes.pop() if len(hashes) == 1 and len(found) == wanted else ""


def begun(world: World) -> bool:
    """The canary's Deployment has been brought up for this rollout."""
    if world.canary is None:
        return False
    seen = Seen.of(world.canary)
    return (seen.rollout, seen.revision) == (world.state.rollout, world.state.revision)


def is_away(state: RolloutState, now: datetime, grace: timedelta) -> bool:
    """The canary has had no traffic for so long that everything sent to it has been answered."""
    return state.weight == 0 and state.routed is not None and now - state.routed >= grace


def stamp(world: World, version: int) -> Stamp:
    return Stamp(world.doc.key, world.doc.metadata.uid or "", version, world.state.weight, world.spec.name)


def services(canary: Canary) -> tuple[str, str]:
    """Names of the Services of stable and canary that canaryd would make; "" where the route needs none."""
    assert canary.spec.workloads.deployment is not None
    name = canary.spec.workloads.deployment.name
    istio, gateway = canary.spec.route.istio, canary.spec.route.gateway_api
    given = ("", "")
    if istio is not None:
        if istio.stable.subset or istio.canary.subset:
            return "", ""
        given = istio.stable.host.partition(".")[0], istio.canary.host.partition(".")[0]
    elif gateway is not None:
        given = gateway.stable, gateway.canary
    return given[0] or f"{name}-stable", given[1] or f"{name}-canary"
