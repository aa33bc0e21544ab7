"""The daemon in a cluster: who leads, what is watched, when to look, how a Canary comes and goes.

Everything is read from watches, so that an idle Canary costs no request; what changed there is looked at within a
fraction of a second, and every interval brings a look at the counters. Replicas agree by a Lease on who leads; what
makes one harmless that does not know better is the version on each write. Decides nothing itself.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from canaryd import __version__, web, wiring
from canaryd.config import Settings
from canaryd.config.objects import key_of, lost, read_objects
from canaryd.errors import CanarydError, KubeError
from canaryd.kube.asking import JSON
from canaryd.kube.client import KubeClient
from canaryd.kube.kinds import CANARIES
from canaryd.kube.lease import Lease
from canaryd.model import DecisionKind, Record
from canaryd.parting import FINALIZER, Parting, Shell
from canaryd.policy import Canary
from canaryd.process import DELIVERY, INBOX, PRUNE, Base, new_scheduler, now
from canaryd.reconcile import Outcome, Reconciler
from canaryd.resting import Resting
from canaryd.troubles import Troubles
from canaryd.watched import Place, Watched, place, places

if TYPE_CHECKING:
    from canaryd.dashboard.feed import Feed
    from canaryd.dashboard.server import Server as Dashboard

log = structlog.get_logger("canaryd.daemon")

SIGHT = timedelta(seconds=10)  # so long everything is waited for at the start, then only for something
PARTING = timedelta(seconds=1)  # how often deleted Canaries are looked at
WRITERS = 8  # Canaries whose status and route are written at once
RELOADING = 9  # times as long as reading all documents took is the pause before they are read again
LONGEST_PAUSE_S = 10.0
WRITE_DOWN = timedelta(seconds=30)  # so long a note of who was told waits for a save to carry it along
AGAIN = timedelta(minutes=1)  # how often refused documents are looked at anew
RIGHTS = timedelta(seconds=3)  # how soon after something was forbidden it is asked what else is


class ClusterDaemon(Base):
    """Watches always, and leads while it holds the Lease."""

    def __init__(self, settings: Settings, root: Path) -> None:
        super().__init__(settings, root)
        wanted = settings.cluster
        self.client = self._connect("canaryd")
        self.holder = f"{os.environ.get('POD_NAME') or socket.gethostname()}-{secrets.token_hex(4)}"
        self._touched: deque[Place] = deque()  # (plural, namespace, name) of objects that changed
        self.watched = Watched(self.client, wanted, self._touch)
        self.store = wiring.cluster_store(self.client, self.watched)
        self.ports = wiring.cluster(settings, self.client, self.watched, self.store)
        self._refused: dict[str, tuple[str, ...]] = {}  # key -> problems that were written to its status
        self._index: dict[Place, set[str]] = {}  # watched object -> keys of the Canaries it matters to
        self._by_key: dict[str, Canary] = {}
        self._read: dict[str, JSON] = {}  # key -> its present document as it was first seen: metadata and spec
        self._busy: set[str] = set()  # under a look at the counters right now
        self._resting = Resting()
        self._turns = threading.Lock()  # of the line above
        self._stale = True  # the documents must be read again
        self._reload_from = 0.0  # not before, so that thousands of documents that change are not read all the time
        self._missing: Sequence[str] | None = None  # permissions; None: not asked yet
        self._rights_due = 0.0  # on the monotonic clock
        self._troubles, self._troubled = Troubles(), threading.Lock()
        self._untold: dict[str, str] = {}  # key and what -> why that could not be written the last time
        self._unguarded: dict[str, str] = {}  # key -> why its finalizer could not be set
        place = wanted.lease.namespace or self.client.namespace
        duration = wanted.lease.duration
        self.lease = Lease(
            self._connect("canaryd-lease"),
            place,
            wanted.lease.name,
            self.holder,
            duration=duration,
            renew=min(timedelta(seconds=2), duration / 4),
        )

    def _connect(self, agent: str) -> KubeClient:
        wanted = self.settings.cluster
        kubeconfig = str(self.root / wanted.kubeconfig) if wanted.kubeconfig else None
        return KubeClient.connect(kubeconfig=kubeconfig, context=wanted.context, timeout=wanted.timeout, agent=agent)

    # ── the life of the process ──────────────────────────────────────────────────────────────────────────────

    def run(self) -> int:
        log.info("canaryd", version=__version__, server=self.client.server, holder=self.holder)
        servers: list[web.Server | Dashboard | None] = []
        try:
            servers += [self._serve_dashboard(self._feed), self._serve()]
            self.watched.start()
            if self._wait_for_sight():
                self.lease.start()
                while self._wait_for_lead():
                    self._lead()
        finally:
            self.lease.stop()
            self.watched.stop()
            for server in servers:
                if server is not None:
                    server.close()
        log.info("stopped", weights="left as they are")
        return 0

    def _feed(self) -> Feed:
        from canaryd.showing import ClusterFeed

        return ClusterFeed(self, self.watched, self.store, self.lease.holder)

    def _wait_for_sight(self) -> bool:
        """True when everything has been listed once, or, after a while, all that can be: one namespace whose rights
        are missing, or that is gone, must not keep the others waiting.
        """
        said, began = "", time.monotonic()
        while not self.stopping.is_set():
            if self.watched.wait_synced(timedelta(seconds=1)):
                return True
            self.last_tick = time.monotonic()
            trouble = self.watched.trouble() or "the cluster is being read"
            if trouble != said:
                log.warning("waiting", reason=trouble)
                said = trouble
            if self.last_tick - began > SIGHT.total_seconds() and self.watched.sees_some():
                log.error("not everything can be seen", reason=trouble)
                return True
        return False

    def _wait_for_lead(self) -> bool:
        """True when this process leads; False when it was asked to stop before that."""
        said = ""
        while not self.stopping.is_set():
            if self.lease.leading:
                return True
            self.last_tick = time.monotonic()
            self.standby = f"{self.lease.holder() or 'nobody'} leads"
            if self.standby != said:
                log.info("standby", reason=self.standby)
                said = self.standby
            self.stopping.wait(0.1)
        return False

    def _lead(self) -> None:
        settings = self.settings
        self.delivery = self._new_delivery()
        self.reconciler = Reconciler(
            self.ports,
            tell_again=settings.tell_again,
            save_every=settings.cluster.save_every,
            writers=WRITERS,
            delivery=self.delivery,
        )
        self.scheduler = new_scheduler()
        self._jobs, self._stale, self._resting = frozenset(), True, Resting()
        self._parting = self._new_parting()
        self.leading.set()
        self.telemetry.leading.set(1)
        self._reload()
        self._every(INBOX, "inbox", self._inbox)
        self._every(DELIVERY, "tell", self._tell)
        self._every(PARTING, "parting", self._part)
        self._every(AGAIN, "again", self._look_again)
        self._every(RIGHTS, "rights", self._check_rights)
        self._every(PRUNE, "prune", self._prune)
        self.scheduler.start()
        self._deliver()
        log.info("leading", canaries=len(self.canaries))
        while self.lease.leading and not self.stopping.wait(0.1):
            pass
        self.leading.clear()
        self.telemetry.leading.set(0)
        self.telemetry.keep(set())  # whoever leads next speaks of the canaries
        if self.stopping.is_set():
            log.info("stopping", reason="asked to; the tick under way is finished")
        else:
            log.warning("lead lost", reason="the Lease could not be renewed in time, or somebody else has it")
        self.scheduler.shutdown(wait=True)
        self._end_delivery()
        if self.lease.leading:
            self.reconciler.flush()
        else:
            self.reconciler.forget()
        self.reconciler.close()
        self.store.close()

    # ── what changed ─────────────────────────────────────────────────────────────────────────────────────────

    def _touch(self, plural: str, old: JSON | None, new: JSON | None) -> None:
        """Called by the watches: only notes what it was."""
        self._touched.extend({place(plural, obj) for obj in (old, new) if obj is not None})
        if plural == CANARIES.plural and _is_document(old, new):
            self._stale = True

    def _inbox(self) -> None:
        """Look, without counting, at the Canaries for which something changed since the last time."""
        if not self.lease.leading:
            return
        if self._stale and time.monotonic() >= self._reload_from:
            self._reload()
        touched = {self._touched.popleft() for _ in range(len(self._touched))}  # the watches go on adding
        keys = {key for one in touched for key in self._matters_to(one)}
        for key in keys & self._by_key.keys():
            self._guarded(key, self.store.reject)
        later = {key for key in keys & self._busy if not self._has_word(key)}
        for key in later:
            namespace, _, name = key.partition("/")
            self._touched.append((CANARIES.plural, namespace, name))
        self._tick([self._by_key[key] for key in sorted(keys - later) if key in self._by_key], measure=False)

    def _matters_to(self, one: Place) -> Iterable[str]:
        plural, namespace, name = one
        if plural == CANARIES.plural:
            return (f"{namespace}/{name}",)
        return self._index.get(one, ())

    def _has_word(self, key: str) -> bool:
        try:
            return bool(self.store.load(key).overrides)
        except CanarydError:
            return False

    def _tick_interval(self, interval: timedelta) -> None:
        if not self.lease.leading:
            return
        mine = [c for c in self.canaries if c.spec.interval == interval]
        if not self.watched.trouble():  # what changes now may not be seen: nobody rests
            number = int((now() - self.ports.metrics.lag).timestamp() / interval.total_seconds())
            with self._turns:
                mine = self._resting.due(mine, number)
        self._tick(mine)

    def _tick(self, canaries: Sequence[Canary], *, measure: bool = True) -> Sequence[Outcome]:
        if not canaries and not measure:
            return ()
        keys = {c.key for c in canaries}
        with self._turns:
            for key in keys:
                self._resting.wake(key)
        if measure:
            self._busy |= keys
        try:
            outcomes = super()._tick(canaries, measure=measure)
        finally:
            if measure:
                self._busy -= keys
        with self._turns:
            self._resting.looked(canaries, outcomes)
        self._tell_troubles(outcomes)
        self._parting.looked(outcomes)
        return outcomes

    def _tell_troubles(self, outcomes: Iterable[Outcome]) -> None:
        """What keeps Canaries from being looked after goes into their condition Ready, and into an Event."""
        at = now()
        for outcome in outcomes:
            key = outcome.canary
            with self._troubled:
                text = self._troubles.due(outcome, at)
                if text is None:
                    continue
                self._troubles.told(key, text, at)
            if text:
                body = {"severity": "warning"}
                # beside the records, which are kept: it may be that nothing can be kept
                self.delivery.say(Record(f"{key}/held/{at.isoformat()}", key, at, DecisionKind.HOLD, text, body))
            if key not in self._refused:  # else Ready says what is wrong with the document
                self._hold(key, text)

    def _new_parting(self) -> Parting:
        shell = Shell(self.reconciler.remove, self._hold, self.delivery.say)
        return Parting(self.client, self.watched.canaries, shell, self.settings.cluster.restore_deadline)

    def _hold(self, key: str, why: str) -> None:
        self._guarded(key, self.store.hold, why)

    def _may_tell(self) -> bool:
        return self.leading.is_set() and self.lease.leading

    def _tell(self) -> None:
        super()._tell()
        if self.settings.notify.channels:  # what was told to Slack must not be told again by the next leader
            self.store.write_down(WRITE_DOWN)

    def _beat(self) -> None:
        """The Lease is the sign of life."""

    def _part(self) -> None:
        """Bring back the plain service of every deleted Canary, then let it go."""
        if self.lease.leading:
            self._parting.look(now())

    # ── documents ────────────────────────────────────────────────────────────────────────────────────────────

    def _reload(self) -> None:
        """Read the Canary objects; a wrong one says so in its status and keeps its last valid form while it has one."""
        self._stale, began = False, time.monotonic()
        found = self.watched.canaries.items()
        loaded = read_objects(found, self.settings, self._by_key)
        refused = {one.key: one.problems for one in loaded.refused}
        for key, problem in self._dropped(found).items():
            refused[key] = (*refused.get(key, ()), problem)
        conflicts = self.watched.conflicts(loaded.canaries)
        for key, problems in conflicts.items():
            refused[key] = (*refused.get(key, ()), *problems)
        kept = tuple(c for c in loaded.canaries if c.key not in conflicts or c.key in self._by_key)
        new = [c for c in kept if self._by_key.get(c.key) is not c]
        self._by_key = {c.key: c for c in kept}
        for gone in self._unguarded.keys() - self._by_key.keys():
            del self._unguarded[gone]
        self.canaries = kept
        self._index = {}
        for canary in kept:
            for one in places(canary):
                self._index.setdefault(one, set()).add(canary.key)
        self._touched.extend((CANARIES.plural, c.metadata.namespace, c.name) for c in new)  # looked at at once
        self.watched.name_contents(kept)
        self.telemetry.keep(set(self._by_key))
        with self._troubled:
            self._troubles.keep(set(self._by_key))
        with self._turns:
            self._resting.keep(set(self._by_key))
        self._schedule_ticks()
        for key, problems in refused.items():
            if self._refused.get(key) != problems:
                log.error("document refused", canary=key, problems=list(problems))
            self._guarded(key, self.store.refuse, problems)
        for key in self._by_key.keys() - refused.keys() - self._troubles.known:
            self._guarded(key, self.store.accept)
        self._refused = refused
        for there in found:
            metadata = there["metadata"]
            bare = key_of(there) in self._by_key and FINALIZER not in (metadata.get("finalizers") or ())
            if bare and self._parting.may_guard(metadata["namespace"]):
                self._guard(key_of(there))
        took = time.monotonic() - began
        self._reload_from = time.monotonic() + min(RELOADING * took, LONGEST_PAUSE_S)

    def _dropped(self, found: Sequence[JSON]) -> Mapping[str, str]:
        """Documents of which the API server shows less than it did, and why that is wrong. The last form is kept."""
        before, self._read, dropped = self._read, {}, {}
        for one in found:
            key, had = key_of(one), before.get(key_of(one))
            if had is None or _document(had) != _document(one):
                meta = {name: one["metadata"].get(name) for name in ("uid", "generation")}
                self._read[key] = {"metadata": meta, "spec": one.get("spec")}
                continue
            self._read[key] = had
            if fields := lost(had, one):
                dropped[key] = (
                    f"{fields}: dropped by the API server although nobody has changed the document: the definition of"
                    " the Canary resource (CRD) does not know it. The form before that is kept while this canaryd"
                    " leads; apply the definition (canaryd manifests crd | kubectl apply --server-side"
                    " --force-conflicts -f -), then the Canary again"
                )
        return dropped

    def _guarded(self, key: str, write: Callable[..., object], *what: object) -> None:
        """One Canary's trouble is its own."""
        this = f"{key} {getattr(write, '__name__', '')}"  # that another write is not needed says nothing of this one
        try:
            write(key, *what)
            self._untold.pop(this, None)
        except CanarydError as e:
            if self._untold.get(this) != str(e):
                log.warning("status not written", canary=key, reason=str(e))
            self._untold[this] = str(e)

    def _guard(self, key: str) -> None:
        """Put the finalizer on a Canary, so that its service is brought back before it is gone."""
        namespace, _, name = key.partition("/")
        found = self.watched.canaries.get(namespace, name)
        if found is None:
            return
        held = list(found["metadata"].get("finalizers") or ())
        change = {"finalizers": [*held, FINALIZER], "resourceVersion": found["metadata"]["resourceVersion"]}
        try:
            self.watched.canaries.put(self.client.patch(CANARIES, namespace, name, {"metadata": change}, how="merge"))
            self._unguarded.pop(key, None)
        except KubeError as e:
            log.info("finalizer not set yet", canary=key, reason=str(e))
            self._unguarded[key] = str(e)

    def _look_again(self) -> None:
        """What may have become right by itself: conflicts between documents, finalizers, words that nobody heard."""
        self._stale = True
        for canary in self.canaries:
            self._guarded(canary.key, self.store.reject)

    def _check_rights(self) -> None:
        """Ask, verb by verb, what canaryd may do: at first, while something lacks, and when something was forbidden.

        Where that takes long, because there are many namespaces, it is asked less often.
        """
        began = time.monotonic()
        if began < self._rights_due or not self._doubts():
            return
        missing = self.watched.missing_permissions()
        if missing is None:
            return
        took = time.monotonic() - began
        self._rights_due = began + min(5 * took, AGAIN.total_seconds())
        if missing != self._missing:
            (log.error if missing else log.info)("permissions", missing=missing)
        for canary in self.canaries if missing or self._missing or self._missing is None else ():
            permitted = ("True", "AllGranted", "canaryd may do all that it has to")
            elsewhere = {n for n in self.settings.cluster.namespaces if n != canary.metadata.namespace}
            if mine := [one for one in missing if one.rpartition(" in ")[2] not in elsewhere]:
                permitted = ("False", "PermissionMissing", "; ".join(mine)[:1000])
            self._guarded(canary.key, self.store.condition, "Permitted", *permitted)
        self._missing = missing
        if not missing:  # what was forbidden is not any more, or is forbidden by something that is not asked for here
            self.delivery.doubt_nothing()
            self._untold.clear()
            self._unguarded.clear()
            self._stale = True  # what could not be written is tried again now

    def _doubts(self) -> bool:
        """Something lacks, as far as is known, or was forbidden."""
        told = (
            self.watched.trouble(),
            *self.delivery.untold.values(),
            *self._untold.values(),
            *self._unguarded.values(),
        )
        with self._troubled:
            told = (*told, *self._troubles.texts)
        return self._missing is None or bool(self._missing) or any("forbidden" in text for text in told)

    # ── pages ────────────────────────────────────────────────────────────────────────────────────────────────

    def _status(self) -> web.Page:
        """Who leads, what every canary is at, and what the API server was asked."""
        states = []
        for canary in self.canaries if self.leading.is_set() else ():
            state = self.store.load(canary.key).state
            if state is not None and state.latest:
                states.append(dict(state.latest))
        lead = {
            "leading": self.leading.is_set(),
            "holder": self.lease.holder(),
            "me": self.holder,
            "version": __version__,
            "trouble": self.watched.trouble(),
            "missing": list(self._missing or ()),
            "notifiers": self._told() if self.leading.is_set() else [],
            "requests": {f"{verb} {what}": n for (verb, what), n in sorted(self.client.requests.items())},
        }
        return web.as_json(200, {**lead, "canaries": states})


def _is_document(old: JSON | None, new: JSON | None) -> bool:
    """The change is of the document or of what guards it, not of its status."""
    if old is None or new is None:
        return True
    a, b = old["metadata"], new["metadata"]
    seen = ("generation", "uid", "labels", "deletionTimestamp", "finalizers")
    return any(a.get(name) != b.get(name) for name in seen) or old.get("spec") != new.get("spec")


def _document(found: JSON) -> tuple[str, int]:
    """What changes with every change of the spec by anybody."""
    return str(found["metadata"]["uid"]), int(found["metadata"].get("generation") or 0)
