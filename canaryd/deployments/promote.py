"""Stable gets the template that was analysed, and what came of it; and gets back what it had, when it must. Pure."""

from __future__ import annotations

import copy
from typing import Any

from canaryd.deployments import objects, pods
from canaryd.deployments.shape import made_stable
from canaryd.deployments.world import World, Write, condition, is_rolled_out, replicas, scales, stamp, status
from canaryd.kube.kinds import DEPLOYMENTS
from canaryd.model import HookState, HookStatus, Phase

JSON = dict[str, Any]


def is_upgraded(world: World, hook: HookState) -> bool:
    """Stable has been given this revision, by this upgrade or, when it was the first try, by an earlier look."""
    stable = world.stable
    if stable is None or objects.annotation(stable, objects.REVISION) != world.state.revision:
        return False
    return objects.annotation(stable, objects.UPGRADE) == hook.id


def upgrade(world: World, pin: JSON, hook: HookState, version: int) -> Write:
    """One write: the pinned template, what goes with it, and as many pods as carry the traffic now."""
    stable, state = world.stable, world.state
    assert stable is not None
    data = pin["data"]
    config = str(data.get("config") or "")
    marks = {objects.CONFIG: config} if config else {}
    if objects.annotation(stable, objects.REVISION) == state.revision:  # again: pods that failed must be made anew
        marks[objects.UPGRADE] = hook.id
    spec: dict[str, Any] = {"template": objects.fitted(data["template"], stable, annotations=marks)}
    spec |= copy.deepcopy(data.get("settings") or {})
    notes: dict[str, str | None] = {
        objects.REVISION: state.revision,
        objects.CONFIG: config or None,
        objects.UPGRADE: hook.id,
        objects.STAMP: stamp(world, version).text(),
    }
    has, carries = replicas(stable), replicas(world.canary)
    if carries > has:
        spec["replicas"] = carries
        if has and not scales(world.scaler, world.spec.stable):
            notes[objects.REPLICAS] = objects.annotation(stable, objects.REPLICAS) or str(has)
    ops = objects.patch(stable, spec=spec, annotations=notes)
    return Write("patch", DEPLOYMENTS, world.spec.stable, ops, f"{world.spec.stable} gets revision {state.revision}")


def progress(world: World, hook: HookState) -> HookState:
    """How far it is."""
    stable = world.stable
    assert stable is not None
    name = world.spec.stable
    if is_rolled_out(stable):
        return HookState(hook.id, HookStatus.DONE, f"{name} runs {world.state.revision} on {replicas(stable)} pods")
    found = world.stable_pods()
    why = pods.trouble(found) or pods.refused(stable)
    seen = status(stable, "observedGeneration") >= int(stable["metadata"].get("generation", 0))
    if seen:
        late = condition(stable, "Progressing")
        if late.get("status") == "False" and late.get("reason") == "ProgressDeadlineExceeded":
            return HookState(hook.id, HookStatus.FAILED, f"{name}: {why or late.get('message', 'no progress')}")
        if lost := pods.hopeless(found):
            return HookState(hook.id, HookStatus.FAILED, f"{name}: {lost}")
    ready = min(status(stable, "updatedReplicas"), status(stable, "availableReplicas"))
    told = f"{ready} of {replicas(stable)} pods of {name} run {world.state.revision}"
    return HookState(hook.id, HookStatus.OWED, told + (f"; {why}" if why else ""))


def is_astray(world: World) -> bool:
    """Stable was given a revision that was not promoted in the end: the rollout was ended in the middle of its upgrade,
    or a daemon that had stalled upgraded it too late.
    """
    stable, state = world.stable, world.state
    if stable is None or world.adopting or state.phase is Phase.PROMOTING:
        return False
    runs = objects.annotation(stable, objects.REVISION)
    return bool(objects.annotation(stable, objects.UPGRADE)) and runs not in ("", state.stable_revision)


def put_back(world: World, pin: JSON, version: int) -> Write:
    """One write: the pinned template of what is proven."""
    stable, state = world.stable, world.state
    assert stable is not None
    data = pin["data"]
    config = str(data.get("config") or "")
    marks = {objects.CONFIG: config} if config else {}
    spec: dict[str, Any] = {"template": objects.fitted(data["template"], stable, annotations=marks)}
    spec |= copy.deepcopy(data.get("settings") or {})
    notes: dict[str, str | None] = {
        objects.REVISION: state.stable_revision,
        objects.CONFIG: config or None,
        objects.UPGRADE: None,
        objects.STAMP: stamp(world, version).text(),
    }
    said = f"{world.spec.stable} gets revision {state.stable_revision} back"
    ops = objects.patch(stable, spec=spec, annotations=notes)
    return Write("patch", DEPLOYMENTS, world.spec.stable, ops, said, "stable's template")


def recreated(world: World, pin: JSON | None, version: int) -> list[Write]:
    """Stable was deleted although it serves: it is made again from what it ran, when it was canaryd's own."""
    state = world.state
    if pin is None or world.canary is None:
        return []
    data = pin["data"]
    before = data.get("stable") or {}
    if not before.get("made"):
        return []
    count = max(int(before.get("replicas") or 0), replicas(world.canary), 1)
    if scales(world.scaler, world.spec.stable) and world.scaler is not None:
        count = max(count, int(world.scaler["spec"].get("minReplicas", 1)))
    body = made_stable(world, data["template"], data.get("settings") or {}, count, version, state.stable_revision)
    said = f"made {world.spec.stable} again, which somebody deleted, with revision {state.stable_revision}"
    return [Write("create", DEPLOYMENTS, world.spec.stable, body, said, "stable")]
