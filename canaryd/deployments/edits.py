"""What somebody has changed by hand in the template of stable, which serves. Pure; puts nothing back."""

from __future__ import annotations

from typing import Any

from canaryd.deployments import objects
from canaryd.deployments.world import World
from canaryd.revision import canonical

JSON = dict[str, Any]


def named(world: World) -> str:
    """The revision that stable is marked with; "" where it has no mark, or is what the mark says by its hash."""
    stable = world.stable
    told = "" if stable is None else objects.annotation(stable, objects.REVISION)
    if stable is None or objects.revision_of(stable, world.config or {}) == told:
        return ""
    return told


def edited(world: World, pin: JSON | None) -> str:
    """What differs from the pinned template, for people; "" when nothing does, or that cannot be known."""
    stable = world.stable
    if stable is None or pin is None:
        return ""
    keys = objects.selector_keys(stable) | (objects.selector_keys(world.canary) if world.canary else set())
    was = canonical(pin["data"]["template"], selector=keys)
    now = canonical(objects.template(stable), selector=keys)
    if was == now:
        return ""
    return _images(was, now) or _parts(was, now)


def _images(was: JSON, now: JSON) -> str:
    before, after = _by_container(was), _by_container(now)
    changed = [name for name in before if name in after and before[name] != after[name]]
    return ", ".join(f"the image of {name} is {after[name]}, {before[name]} was proven" for name in changed)


def _by_container(template: JSON) -> dict[str, str]:
    spec = template.get("spec") or {}
    containers = (*(spec.get("initContainers") or ()), *(spec.get("containers") or ()))
    return {str(c.get("name")): str(c.get("image")) for c in containers}


def _parts(was: JSON, now: JSON) -> str:
    """Where in the template, never what: an environment may hold what is nobody else's business."""
    parts = [key for key in ("labels", "annotations") if was.get(key) != now.get(key)]
    before, after = was.get("spec") or {}, now.get("spec") or {}
    parts += [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    return f"{', '.join(parts)} of its pods"
