"""Splits in the cluster: reading them from a watch's cache, and writing one JSON patch to each object.

What both IstioRouter and GatewayApiRouter do. It never writes an object whole, never writes to another namespace, and
decides nothing from a cache that is known to be old. Where it stands still, it sends no request.

An object is changed in one step. Several objects are changed one after the other, in the order of the document: a
writer that ends in between leaves routes that disagree, which the view shows and the next write puts right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from canaryd.adapters import route_patches
from canaryd.adapters.route_splits import Arms, Form, Layout, foremost, read
from canaryd.adapters.route_stamps import JSON, Stamp, check_fence, editor, own_stamp
from canaryd.errors import KubeConflictError, KubeError, KubeNotFoundError, RouteError
from canaryd.kube.client import MANAGER, KubeClient
from canaryd.kube.informer import Reader
from canaryd.kube.kinds import Kind
from canaryd.model import RouteView
from canaryd.policy import RouteRef

ATTEMPTS = 6  # of one write, each from what the server had a moment ago
GRACE_S = 10.0  # a watch that is being opened again is not yet a cache of the past

Operations = list[JSON]


class Change(Protocol):
    """Object as it stands, names of its routes → the patch; empty when nothing is to be changed."""

    def __call__(self, obj: JSON, *, routes: Sequence[str]) -> Operations: ...


@dataclass(frozen=True, slots=True)
class Meant:
    """What one Canary splits."""

    canary: str  # key: "shop/api"
    objects: tuple[tuple[str, tuple[str, ...]], ...]  # (name, names of its routes or none), each name once
    arms: Arms
    workload: str  # the canary's

    @property
    def namespace(self) -> str:
        return self.arms.namespace


def namespace_of(canary: str) -> str:
    """Of a key such as "shop/api". Raises RouteError for a canary that is in no cluster."""
    namespace, slash, _ = canary.rpartition("/")
    if not slash:
        raise RouteError(f"{canary}: a canary from a file has no namespace; this route is for Canaries of a cluster")
    return namespace


def merged(refs: Sequence[RouteRef]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Each object once, with the names of its routes; with none where one reference to it means all of them."""
    routes: dict[str, tuple[str, ...]] = {}
    for ref in refs:
        both = (*routes.get(ref.name, ()), *ref.routes)
        routes[ref.name] = both if ref.routes and (ref.name not in routes or routes[ref.name]) else ()
    return tuple(routes.items())


class ClusterRoutes:
    """The objects of one kind that hold splits."""

    def __init__(
        self,
        client: KubeClient,
        reader: Reader,
        kind: Kind,
        form: Form,
        uid_of: Callable[[str], str],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`uid_of`: key → uid of the Canary as it is known now, "" when there is none."""
        self._client = client
        self._reader = reader
        self._kind = kind
        self._form = form
        self._uid_of = uid_of
        self._monotonic = monotonic
        self._blind_since: dict[str, float] = {}  # namespace → since when it cannot be seen

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────

    def objects(self, meant: Meant) -> list[JSON]:
        """As the cache has them. Raises RouteError when one does not exist, or cannot be seen now."""
        self._check_sight(meant.namespace)
        found: list[JSON] = []
        for name, _ in meant.objects:
            with self._about(meant.namespace, name):
                found.append(self._held(meant.namespace, name))
        return found

    def view(self, meant: Meant) -> RouteView:
        """See ports.TrafficRouter. Where several objects or routes disagree: as Layout.percent has it.

        The stamp is the newest of all. `remedy` and `editor` speak of the object that is not as it was stamped.
        """
        uid = self._uid(meant.canary)
        stamps: list[Stamp | None] = []
        layouts: list[Layout] = []
        objects = self.objects(meant)
        for (name, routes), obj in zip(meant.objects, objects, strict=True):
            with self._about(meant.namespace, name):
                stamps.append(own_stamp(obj, meant.canary, uid))
                layouts.append(read(self._form, obj, routes, meant.arms))
        stamp = max((s for s in stamps if s), key=lambda s: s.version, default=None)
        expected = _expected(stamp, meant)
        weights = [layout.percent(expected) for layout in layouts]
        plain = any(layout.plains for layout in layouts)
        odd = next((i for i, w in enumerate(weights) if stamp and (layouts[i].plains or w != expected)), None)
        about = odd or 0
        kind = self._kind
        return RouteView(
            weight=None if plain else foremost((w for w in weights if w is not None), expected),
            version=stamp.version if stamp else 0,
            stamped_weight=stamp.weight if stamp else None,
            stamped_canary=stamp.workload if stamp else "",
            editor="" if odd is None else editor(objects[odd], self._form.section, MANAGER),
            adoptable=plain,
            remedy=route_patches.remedy(kind.group, kind.kind, objects[about], layouts[about]),
        )

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────

    def set_weight(self, meant: Meant, weight: int, version: int) -> None:
        """See ports.TrafficRouter; atomic for each object."""
        if not 0 <= weight <= 100:
            raise RouteError(f"{weight} is not a percentage")
        stamp = self._stamp(meant, weight, version)

        def change(obj: JSON, *, routes: Sequence[str]) -> Operations:
            check_fence(own_stamp(obj, meant.canary, stamp.uid), version)
            layout = read(self._form, obj, routes, meant.arms)
            if layout.plains:
                raise RouteError(
                    f"{layout.plains[0]} sends everything to {meant.arms.service}; it must be adopted first"
                )
            return route_patches.with_weight(obj, layout, weight, stamp)

        self._write(meant, change)

    def adopt(self, meant: Meant, version: int) -> None:
        """See ports.TrafficRouter. Objects that split already are left alone."""
        stamp = self._stamp(meant, 0, version)
        adopted: list[Operations] = []

        def change(obj: JSON, *, routes: Sequence[str]) -> Operations:
            check_fence(own_stamp(obj, meant.canary, stamp.uid), version)
            layout = read(self._form, obj, routes, meant.arms)
            operations = route_patches.adopting(self._form, obj, layout, meant.arms, stamp)
            adopted.append(operations)
            return operations

        self._write(meant, change)
        if not any(adopted):
            raise RouteError("there is nothing to adopt: every route splits already")

    def restore(self, meant: Meant, version: int) -> bool:
        """See ports.TrafficRouter. Objects that are gone, and those of another Canary, are left alone."""
        uid = self._uid(meant.canary)
        adopted: list[bool] = []

        def change(obj: JSON, *, routes: Sequence[str]) -> Operations:
            try:
                stamp = own_stamp(obj, meant.canary, uid)
            except RouteError:
                return []
            check_fence(stamp, version)
            operations, was_adopted = route_patches.restoring(self._form, obj, meant.arms, meant.canary)
            adopted.append(was_adopted)
            return operations

        self._write(meant, change, missing_is_fine=True)
        return any(adopted)

    def _write(self, meant: Meant, change: Change, *, missing_is_fine: bool = False) -> None:
        for name, routes in meant.objects:
            with self._about(meant.namespace, name):
                try:
                    self._write_one(meant.namespace, name, partial(change, routes=routes))
                except _MissingError:
                    if not missing_is_fine:
                        raise

    def _write_one(self, namespace: str, name: str, change: Callable[[JSON], Operations]) -> None:
        """One patch, built anew from what the server has now when somebody else was faster."""
        obj = self._current(namespace, name)
        for _ in range(ATTEMPTS):
            operations = change(obj)
            if not operations:
                return
            try:
                answer = self._client.patch(self._kind, namespace, name, operations, how="json")
            except KubeConflictError:
                obj = self._asked(namespace, name)
                continue
            except KubeNotFoundError as e:
                raise _missing(e) from e
            except KubeError as e:
                raise RouteError(f"cannot be written: {e}") from e
            self._reader.put(answer)
            return
        raise RouteError(f"somebody else changed it in the same moment {ATTEMPTS} times in a row; nothing was written")

    # ── small pieces ─────────────────────────────────────────────────────────────────────────────────────────

    def _current(self, namespace: str, name: str) -> JSON:
        """From the cache; from the server when the cache is old, so that a roll-back does not wait for a watch."""
        if self._reader.trouble(namespace) or not self._reader.listed(namespace):
            return self._asked(namespace, name)
        return self._held(namespace, name)

    def _asked(self, namespace: str, name: str) -> JSON:
        try:
            obj = self._client.get(self._kind, namespace, name)
        except KubeNotFoundError as e:
            raise _missing(e) from e
        except KubeError as e:
            raise RouteError(f"cannot be read: {e}") from e
        self._reader.put(obj)
        return obj

    def _held(self, namespace: str, name: str) -> JSON:
        try:
            obj = self._reader.get(namespace, name)
        except KubeError as e:
            raise RouteError(f"cannot be read: {e}") from e
        if obj is None:
            raise _MissingError("does not exist")
        return obj

    def _check_sight(self, namespace: str) -> None:
        """Raises RouteError when the cache has been of the past for longer than the grace."""
        trouble = self._reader.trouble(namespace)
        if not self._reader.listed(namespace):
            raise RouteError(trouble or f"{self._kind.resource} have not been listed yet")
        if not trouble:
            self._blind_since.pop(namespace, None)
            return
        now = self._monotonic()
        if now - self._blind_since.setdefault(namespace, now) >= GRACE_S:
            raise RouteError(f"{self._kind.resource} cannot be seen now: {trouble}")

    def _uid(self, canary: str) -> str:
        uid = self._uid_of(canary)
        if not uid:
            raise RouteError(f"canary {canary} is not known to the cluster any more")
        return uid

    def _stamp(self, meant: Meant, weight: int, version: int) -> Stamp:
        return Stamp(meant.canary, self._uid(meant.canary), version, weight, meant.workload)

    @contextmanager
    def _about(self, namespace: str, name: str) -> Iterator[None]:
        """Errors say which object they are about."""
        try:
            yield
        except RouteError as e:
            said = f"{self._kind.kind} {namespace}/{name}"
            joint = " " if isinstance(e, _MissingError) else ": "
            raise type(e)(f"{said}{joint}{e}") from e


class _MissingError(RouteError):
    """There is no such object."""


def _missing(e: KubeNotFoundError) -> RouteError:
    """The object is gone, or the whole kind is not served."""
    return RouteError(str(e)) if "not served" in str(e) else _MissingError("does not exist")


def _expected(stamp: Stamp | None, meant: Meant) -> int | None:
    """Percent for the canary that the stamp speaks of, seen from the roles as they are now."""
    if stamp is None or stamp.workload == meant.workload:
        return stamp.weight if stamp else None
    return None  # it speaks of a workload that the Canary had before
