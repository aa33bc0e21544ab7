"""Two Deployments as the workloads of a Canary: one that people change, and one that canaryd keeps at what is proven.

It reads from readers (an unchanged world costs no request), works out what is due in `canaryd.deployments`, and writes
with patches that are refused when the object is not the one that was looked at. It never moves traffic, never reads a
ConfigMap or a Secret that the Canary does not name, and never deletes what canaryd has not made.

What it needs, all in the Canary's own namespace:

    deployments              get list watch patch      scale, pause, upgrade
                             create delete             the stable one, unless it is brought by the user
    pods                     list watch                readiness, restarts and their reasons
    services                 list watch create patch delete   the two of stable and canary, unless brought by the user
    horizontalpodautoscalers list watch patch          the service's own is pointed at stable; none is made
    controllerrevisions      list create delete        the pinned template of a rollout
    configmaps, secrets      list watch                by name, only those that the Canary names
    endpointslices           list                      once before traffic is sent to new pods; not needed, but safer

Calls that do not pass through the mesh's route reach the pods of both Deployments by the Service of the service itself.
`kubectl rollout restart` of the canary's Deployment is no release; what serves is restarted by restarting stable.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from canaryd.deployments import edits, leave, objects, promote
from canaryd.deployments.look import look
from canaryd.deployments.pods import Tally, deployment_of, unreached
from canaryd.deployments.shape import pinned, writes
from canaryd.deployments.world import World, Write, asked, scales, services, stamp, target
from canaryd.errors import (
    FenceError,
    KubeConflictError,
    KubeError,
    KubeExistsError,
    KubeForbiddenError,
    KubeNotFoundError,
    WorkloadError,
)
from canaryd.kube.client import KubeClient
from canaryd.kube.informer import Reader
from canaryd.kube.kinds import (
    CONFIG_MAPS,
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    HPAS,
    SECRETS,
    SERVICES,
    Kind,
)
from canaryd.model import HookState, HookStatus, Phase, Release, RolloutState, WorkloadView
from canaryd.policy import Canary
from canaryd.revision import canonical, digest

JSON = dict[str, Any]

REPEATS = 5  # how often in an hour one thing is done again that somebody else undoes
HOUR = timedelta(hours=1)
BLIND_S = 10.0  # a reader may be without its watch for so long


class Contents(Protocol):
    """Hashes of ConfigMaps and Secrets, by name."""

    def hashed(self, kind: Kind, namespace: str, name: str) -> str:
        """Of what it holds now. Raises WorkloadError when it is not there or cannot be seen."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the canary's Deployment was last seen to ask for."""

    of: tuple[object, ...]  # versions of all that the answer came from
    template: JSON
    config: str
    revision: str


@dataclass(slots=True)
class _Shelf:
    """The objects of one namespace by a key."""

    at: int  # generation of the reader
    held: dict[str, dict[str, JSON]] = field(default_factory=dict)  # key → name → object
    keys: dict[str, str] = field(default_factory=dict)  # name → key

    def put(self, obj: JSON, key: str) -> None:
        name = obj["metadata"]["name"]
        self.keys[name] = key
        self.held.setdefault(key, {})[name] = obj

    def drop(self, name: str) -> None:
        if (key := self.keys.pop(name, None)) is not None:
            del self.held[key][name]
            if not self.held[key]:
                del self.held[key]


class _Index:
    """A reader's objects of one namespace by something other than their name, kept up with what changes in it."""

    def __init__(self, reader: Reader, key: Callable[[JSON], str]) -> None:
        self._reader, self._key = reader, key
        self._lock = threading.Lock()
        self._shelves: dict[str, _Shelf] = {}

    def get(self, namespace: str, key: str) -> list[JSON]:
        with self._lock:
            shelf = self._current(namespace)
            return list(shelf.held.get(key, {}).values())

    def _current(self, namespace: str) -> _Shelf:
        generation = self._reader.generation  # read first: what comes meanwhile is taken once more
        shelf = self._shelves.get(namespace)
        if shelf is not None and shelf.at == generation:
            return shelf
        changed = None if shelf is None else self._reader.changed(shelf.at)
        if shelf is None or changed is None:
            shelf = self._shelves[namespace] = _Shelf(generation)
            for obj in self._reader.items(namespace):
                shelf.put(obj, self._key(obj))
            return shelf
        for where in changed:
            if where[0] != namespace:
                continue
            shelf.drop(where[1])
            if (now := self._reader.get(*where)) is not None:
                shelf.put(now, self._key(now))
        shelf.at = generation
        return shelf


@dataclass(slots=True)
class _Memory:
    """What is remembered of one canary. Losing it costs a request or a short wait, never a wrong step."""

    rollout: str = ""
    tallies: tuple[Tally, Tally] = field(default_factory=lambda: (Tally(None), Tally(None)))
    pins: dict[str, JSON] | None = None  # name → pin, while they are of use
    ready_since: float | None = None  # on the clock
    contests: dict[str, list[datetime]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)  # contest → what is left to whoever undoes it
    asked: _Asked | None = None
    reached: str = ""  # whose pods were all seen behind their Service, and when
    edited: tuple[tuple[object, ...], str] = ((), "")  # versions that were looked at, and what differs in them


class DeploymentWorkloads:
    """ports.Workloads for `workloads.deployment`. Safe to use from several threads, one at a time for each canary."""

    def __init__(
        self,
        client: KubeClient,
        *,
        deployments: Reader,
        pods: Reader,
        services: Reader,
        autoscalers: Reader,
        contents: Contents | None = None,
        grace: timedelta = timedelta(seconds=10),
        steady: timedelta = timedelta(seconds=3),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`grace`: how long pods stay after the route sends nothing to them any more.

        `steady`: how long everything must have been ready before traffic is sent, so that every proxy knows of it.
        `contents` is needed by Canaries that name ConfigMaps or Secrets. `clock` counts seconds.
        """
        self._client = client
        self._readers = {DEPLOYMENTS: deployments, SERVICES: services, HPAS: autoscalers}
        self._pods = pods
        self._pods_of = _Index(pods, deployment_of)
        self._scalers_of = _Index(autoscalers, target)
        self._contents = contents
        self._grace, self._steady, self._clock = grace, steady.total_seconds(), clock
        self._memories: dict[str, _Memory] = {}
        self._lock = threading.Lock()
        self._dark: dict[tuple[int, str], float] = {}  # reader and namespace → since when it cannot see

    # ── the port ─────────────────────────────────────────────────────────────────────────────────────────────

    def release(self, canary: Canary) -> Release | None:
        """The revision that the template of the canary's Deployment is."""
        with _told():
            world = self._world(canary, RolloutState())
            if world.canary is None:
                raise WorkloadError(f"Deployment {canary.metadata.namespace}/{world.spec.name} does not exist")
            if world.config is None:
                raise WorkloadError(world.unread)
            return Release(asked(world))

    def view(self, canary: Canary, state: RolloutState) -> WorkloadView:
        """Both Deployments and their pods. Ready only when it has been so for a while, where traffic depends on it."""
        with _told():
            world = self._world(canary, state)
            self._not_anothers(world)
            memory = self._memory(world)
            found = look(world, memory.tallies)
        unready = list(found.unready)
        if not unready and (world.adopting or world.phase is Phase.WAITING):
            since = memory.ready_since = memory.ready_since or self._clock()
            if self._clock() - since < self._steady:
                unready.append("everything is ready; the proxies are given a moment to learn of it")
            elif lacks := self._lacks(world, stable=world.adopting):
                unready.append(lacks)
        elif unready:
            memory.ready_since = None
        notes = (*unready, *found.notes, *memory.left.values())
        return WorkloadView(
            ready=not unready,
            detail="; ".join(notes),
            started=found.started,
            stable_revision=found.stable_revision,
            versions=(objects.mesh_version(world.stable), objects.mesh_version(world.canary)),
            stable=found.stable,
            canary=found.canary,
            gone=found.gone,
            overdue=found.overdue,
        )

    def shape(self, canary: Canary, state: RolloutState, *, version: int, now: datetime) -> tuple[str, ...]:
        """See `canaryd.deployments.shape`. To be called again while something is due, at the latest after `grace`."""
        with _told():
            world = self._world(canary, state)
            self._not_anothers(world)
            self._not_stale(world, version)
            if done := self._carry_out(world, self._put_back(world, version), version, now):
                return done  # the rest is due when that has been seen
            due = [
                *self._recreated(world, version),
                *writes(self._with_pins(world), version=version, now=now, grace=self._grace),
            ]
            return self._carry_out(world, due, version, now)

    def upgrade(self, canary: Canary, state: RolloutState, hook: HookState, *, version: int) -> HookState:
        """The pinned template goes to stable, even when the canary's Deployment asks for a newer one by now."""
        with _told():
            world = self._world(canary, state)
            self._not_anothers(world)
            self._not_stale(world, version)
            if world.stable is None:
                self._carry_out(world, self._recreated(world, version), version, None)
                raise WorkloadError(f"Deployment {canary.metadata.namespace}/{world.spec.stable} does not exist")
            if promote.is_upgraded(world, hook):
                found = promote.progress(world, hook)
                lacks = self._lacks(world, stable=True) if found.status is HookStatus.DONE else ""
                return replace(found, status=HookStatus.OWED, detail=lacks) if lacks else found
            pin = self._pin(world, version)
            if pin is None:
                why = (
                    f"the pinned template of revision {state.revision} is gone, and {world.spec.name} asks for another"
                )
                return replace(hook, status=HookStatus.FAILED, detail=why)
            self._carry_out(world, [promote.upgrade(world, pin, hook, version)], version, None)
            return replace(hook, status=HookStatus.OWED, detail=f"{world.spec.stable} gets revision {state.revision}")

    def restore(
        self, canary: Canary, state: RolloutState, *, version: int, now: datetime, rerouted: bool = False
    ) -> str:
        """What is waited for until the plain Deployment can take everything; with `rerouted`, until nothing is left."""
        with _told():
            world = self._world(canary, state)
            self._not_stale(world, version)
            if not rerouted:
                if self._carry_out(world, leave.plain(world, version), version, now):
                    return f"{world.spec.name} is being brought back"
                return leave.missing(world)
            world = replace(world, pins=frozenset(self._pins(world)))
            rest = leave.rest(world)
            self._carry_out(world, rest, version, None)
            if rest:
                return "; ".join(write.said for write in rest if write.said) or "the last traces are being removed"
            with self._lock:
                self._memories.pop(canary.key, None)
            return ""

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────

    def _world(self, canary: Canary, state: RolloutState) -> World:
        """Everything as the readers have it. Raises WorkloadError when they cannot see."""
        namespace = canary.metadata.namespace
        self._see(namespace)
        spec = canary.spec.workloads.deployment
        if spec is None:
            raise WorkloadError(f"{canary.key}: spec.workloads.deployment is not given")
        deployments, made = self._readers[DEPLOYMENTS], self._readers[SERVICES]
        stable_service, canary_service = services(canary)
        config, unread = self._config_or_why(canary)
        world = World(
            doc=canary,
            state=state,
            canary=deployments.get(namespace, spec.name),
            stable=deployments.get(namespace, spec.stable),
            pods=(*self._pods_of.get(namespace, spec.name), *self._pods_of.get(namespace, spec.stable)),
            service=made.get(namespace, spec.name),
            stable_service=made.get(namespace, stable_service) if stable_service else None,
            canary_service=made.get(namespace, canary_service) if canary_service else None,
            scaler=self._scaler(namespace, spec.name, spec.stable),
            config=config,
            unread=unread,
        )
        world = replace(world, edited=self._edited(world))
        return world if world.canary is None else replace(world, known=self._asked(world))

    def _scaler(self, namespace: str, name: str, stable: str) -> JSON | None:
        """The autoscaler of the service: one that canaryd has marked, else one of stable, else one of the canary."""
        mine = [*self._scalers_of.get(namespace, stable), *self._scalers_of.get(namespace, name)]
        mine.sort(
            key=lambda s: (not objects.annotation(s, objects.TARGET), not scales(s, stable), s["metadata"]["name"])
        )
        return mine[0] if mine else None

    def _see(self, namespace: str) -> None:
        for reader in (*self._readers.values(), self._pods):
            trouble, which = reader.trouble(namespace), (id(reader), namespace)
            if not trouble:
                self._dark.pop(which, None)
            since = self._dark.setdefault(which, self._clock()) if trouble else 0.0
            if not reader.listed(namespace) or (trouble and self._clock() - since > BLIND_S):
                raise WorkloadError(trouble or "the cluster has not been looked at yet")

    def _config(self, canary: Canary) -> Mapping[str, str]:
        """Hashes of what the Canary names, by kind and name. Raises WorkloadError."""
        assert canary.spec.workloads.deployment is not None
        out: dict[str, str] = {}
        for reference in canary.spec.workloads.deployment.config:
            kind, name = (SECRETS, reference.secret) if reference.secret else (CONFIG_MAPS, reference.config_map)
            assert name is not None
            if self._contents is None:
                raise WorkloadError(f"{canary.key}: this canaryd does not read ConfigMaps or Secrets")
            out[f"{kind.kind}/{name}"] = self._contents.hashed(kind, canary.metadata.namespace, name)
        return out

    def _config_or_why(self, canary: Canary) -> tuple[Mapping[str, str] | None, str]:
        """What is read, or why it cannot be: pods are looked after all the same."""
        try:
            return self._config(canary), ""
        except WorkloadError as e:
            return None, str(e)

    def _asked(self, world: World) -> str:
        """The revision, which keeps its name while neither template nor config change under our eyes."""
        assert world.canary is not None
        memory = self._memory(world)
        config = digest(world.config or {})
        parts = (world.canary, world.stable)
        of = (*(part and part["metadata"].get("resourceVersion") for part in parts), config)
        last = memory.asked
        if last is not None and last.of == of:
            return last.revision
        told, template = asked(world), objects.template(world.canary)
        if last is not None and last.config == config:
            keys = objects.selector_keys(world.canary)
            if canonical(last.template, selector=keys) == canonical(template, selector=keys):
                told = last.revision
        memory.asked = _Asked(of, template, config, told)
        return told

    def _edited(self, world: World) -> str:
        """What somebody has changed in stable's template; asks for the pinned one only where the hash is another."""
        if world.stable is None or world.config is None:
            return ""
        memory = self._memory(world)
        parts = (world.canary, world.stable)
        of = (*(part and part["metadata"].get("resourceVersion") for part in parts), digest(world.config))
        if memory.edited[0] == of:
            return memory.edited[1]
        found = ""
        if name := edits.named(world):
            found = edits.edited(world, self._pins(world).get(objects.pin_name(world.doc.name, name)))
        memory.edited = (of, found)
        return found

    def _lacks(self, world: World, *, stable: bool) -> str:
        """Ready pods that the Service does not send to yet; "" when there is none, or that cannot be known.

        Proxies learn of pods from EndpointSlices, whose controller may lag behind, as after an API server's outage.
        """
        service = world.stable_service if stable else world.canary_service
        name = world.spec.stable if stable else world.spec.name
        memory = self._memory(world)
        key = f"{world.state.rollout} {world.state.phase} {name}"
        if service is None or not service["spec"].get("selector") or memory.reached == key:
            return ""
        labels = f"kubernetes.io/service-name={service['metadata']['name']}"
        try:
            slices, _ = self._client.list(ENDPOINT_SLICES, world.doc.metadata.namespace, labels=labels)
        except KubeForbiddenError:
            slices = None
        found = world.stable_pods() if stable else world.canary_pods()
        missing = [] if slices is None else unreached(found, slices)
        some = slices is not None and len(missing) < len(found)
        if missing and (objects.is_ours(service, world.doc.name) or not some):
            return f"Service {service['metadata']['name']} does not send to {len(missing)} of the pods of {name} yet"
        memory.reached = key
        return ""

    def _memory(self, world: World) -> _Memory:
        with self._lock:
            memory = self._memories.setdefault(world.doc.key, _Memory())
            if world.state.rollout and memory.rollout != world.state.rollout:
                since = world.state.started
                memory.rollout, memory.tallies = world.state.rollout, (Tally(since), Tally(since))
                memory.ready_since = None
                memory.contests.clear()
                memory.left.clear()
            return memory

    def _not_anothers(self, world: World) -> None:
        """Two Canaries must not share a stable Deployment."""
        stable = world.stable
        if stable is None or not objects.label(stable, objects.CANARY) or world.made_stable:
            return
        other = objects.label(stable, objects.CANARY)
        raise WorkloadError(
            f"Deployment {world.doc.metadata.namespace}/{world.spec.stable} belongs to the Canary {other}; "
            "give this Canary another one in spec.workloads.deployment.stable"
        )

    def _not_stale(self, world: World, version: int) -> None:
        mine = stamp(world, version)
        for deployment in (world.canary, world.stable):
            if deployment is not None and (newer := mine.is_behind(deployment)):
                name = deployment["metadata"]["name"]
                raise FenceError(f"{world.doc.key}: {name} carries state version {newer}, newer than {version}")

    # ── pins ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _pins(self, world: World) -> dict[str, JSON]:
        """The pinned templates of this Canary by name; asked for once in a rollout."""
        memory = self._memory(world)
        if memory.pins is None:
            labels = ",".join(f"{key}={value}" for key, value in objects.managed(world.doc.name).items())
            found, _ = self._client.list(CONTROLLER_REVISIONS, world.doc.metadata.namespace, labels=labels)
            memory.pins = {str(pin["metadata"]["name"]): pin for pin in found}
        return memory.pins

    def _with_pins(self, world: World) -> World:
        if world.adopting or world.phase is Phase.WAITING:
            return replace(world, pins=frozenset(self._pins(world)))
        if world.phase.is_settled:
            self._memory(world).pins = None
        return world

    def _pin(self, world: World, version: int) -> JSON | None:
        """The template that was analysed; one that somebody deleted is made again while it can still be seen."""
        name = objects.pin_name(world.doc.name, world.state.revision)
        found = self._pins(world).get(name)
        if found is None:
            self._carry_out(world, pinned(replace(world, pins=frozenset(self._pins(world)))), version, None)
            found = self._pins(world).get(name)
        return found

    def _recreated(self, world: World, version: int) -> list[Write]:
        if world.adopting or world.stable is not None or world.canary is None:
            return []
        pin = self._pins(world).get(objects.pin_name(world.doc.name, world.state.stable_revision))
        return promote.recreated(world, pin, version)

    def _put_back(self, world: World, version: int) -> list[Write]:
        if not promote.is_astray(world):
            return []
        pin = self._pins(world).get(objects.pin_name(world.doc.name, world.state.stable_revision))
        return [promote.put_back(world, pin, version)] if pin is not None else []

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────

    def _carry_out(self, world: World, due: Sequence[Write], version: int, now: datetime | None) -> tuple[str, ...]:
        """One after the other; what was done, for people."""
        done = []
        memory = self._memory(world)
        for write in due:
            if write.contest and now is not None and not self._may(memory, write, now):
                continue
            self._write(world, write, version)
            if write.contest and now is not None:
                memory.contests.setdefault(write.contest, []).append(now)
            if write.said:
                done.append(write.said)
        return tuple(done)

    def _may(self, memory: _Memory, write: Write, now: datetime) -> bool:
        """Whether this is done again although somebody undoes it."""
        times = [at for at in memory.contests.get(write.contest, ()) if now - at < HOUR]
        memory.contests[write.contest] = times
        memory.left.pop(write.contest, None)
        if len(times) <= REPEATS:
            return True
        memory.left[write.contest] = (
            f"somebody has undone this {REPEATS} times in an hour, so it is left for a while: {write.said}"
        )
        return False

    def _write(self, world: World, write: Write, version: int) -> None:
        namespace = world.doc.metadata.namespace
        try:
            if write.verb == "create":
                self._create(world, write)
            elif write.verb == "patch":
                self._put(world, write, self._client.patch(write.kind, namespace, write.name, write.body, how="json"))
            else:
                self._delete(world, write)
        except KubeConflictError:
            self._look_again(world, write, version)

    def _create(self, world: World, write: Write) -> None:
        """One that is there already was made by an earlier try of ours, or will be seen for what it is by the next.

        What is due after a Deployment may be another thing beside one that somebody else has made: it waits.
        """
        namespace = world.doc.metadata.namespace
        try:
            self._put(world, write, self._client.create(write.kind, namespace, write.body))
        except KubeExistsError as e:
            if write.kind is CONTROLLER_REVISIONS:
                self._put(world, write, write.body)
            if write.kind is DEPLOYMENTS:
                self._readers[DEPLOYMENTS].put(self._client.get(DEPLOYMENTS, namespace, write.name))
                raise WorkloadError(f"Deployment {namespace}/{write.name} was made by somebody meanwhile") from e

    def _delete(self, world: World, write: Write) -> None:
        namespace, uid = world.doc.metadata.namespace, str(write.body.get("uid") or "")
        with suppress(KubeNotFoundError):
            self._client.delete(write.kind, namespace, write.name, uid=uid, propagation="Background")
        pins = self._memory(world).pins
        if write.kind is CONTROLLER_REVISIONS and pins is not None:
            pins.pop(write.name, None)

    def _put(self, world: World, write: Write, answer: JSON) -> None:
        if write.kind is CONTROLLER_REVISIONS:
            self._pins(world)[write.name] = answer
        elif write.kind in self._readers:
            self._readers[write.kind].put(answer)

    def _look_again(self, world: World, write: Write, version: int) -> None:
        """A refused patch: a newer writer of our own kind, or somebody else. Nothing was changed."""
        namespace = world.doc.metadata.namespace
        if write.kind is DEPLOYMENTS and write.verb == "patch":
            there = self._client.get(write.kind, namespace, write.name)
            self._readers[write.kind].put(there)
            if newer := stamp(world, version).is_behind(there):
                raise FenceError(f"{world.doc.key}: {write.name} carries state version {newer}, newer than {version}")
        raise WorkloadError(f"{write.kind.kind} {namespace}/{write.name} was changed by somebody meanwhile")


@contextmanager
def _told() -> Iterator[None]:
    """What the API server refuses is trouble with the workloads, in its own words."""
    try:
        yield
    except KubeError as e:
        raise WorkloadError(str(e)) from e
