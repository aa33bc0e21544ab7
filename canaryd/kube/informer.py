"""Copies of the server's objects that a watch keeps up to date, so that reading them costs no request.

One thread for each watch: list, then watch from there; when the server no longer keeps that version, list again and
work out what changed meanwhile. It never hurries: after each failure it waits longer, and it says why it cannot see.
Objects it hands out are shared: nobody may change them.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from typing import Protocol

import structlog

from canaryd.errors import (
    KubeError,
    KubeForbiddenError,
    KubeGoneError,
    KubeNotFoundError,
    KubeUnauthorizedError,
    KubeUnreachableError,
)
from canaryd.kube.asking import JSON
from canaryd.kube.client import KubeClient, Watch
from canaryd.kube.kinds import Kind

Change = tuple[JSON | None, JSON | None]  # before, after

_SHORTEST_S, _LONGEST_S, _LONGEST_FORBIDDEN_S = 0.2, 15.0, 30.0
_LIVED_S = 10.0  # a watch that lasted so long was a success: the next pause is short again
_PAGE = 100  # objects; 2000 pods grow a process by 13 MB while they are trimmed, by 50 MB in pages of 500
_CHANGES = 1024  # the latest, by which those who keep what follows from the objects take only what is new
_WATCH_S = (240.0, 300.0)  # the server is asked to end each watch after a time drawn from here

log = structlog.get_logger(__name__)


def without_managed_fields(obj: JSON) -> JSON:
    """The object as it is kept by default: who wrote which field is a third of its size and never asked for."""
    meta = obj.get("metadata")
    if isinstance(meta, dict) and "managedFields" in meta:
        return {**obj, "metadata": {key: value for key, value in meta.items() if key != "managedFields"}}
    return obj


class _Scope:
    """One watch: of one namespace, or of all."""

    def __init__(self, namespace: str | None, kind: Kind) -> None:
        self.namespace = namespace
        self.where = f"{kind.resource} in {namespace or 'all namespaces'}" if kind.namespaced else kind.resource
        self.since = ""  # resourceVersion from which to watch on; "" when a list is due
        self.floor = 0  # everything up to this version is in the cache
        self.listed = False
        self.trouble = f"{self.where} have not been listed yet"
        self.failures = 0  # of one kind, in a row
        self.refused = False  # the last was a refusal
        self.watch: Watch | None = None


class Informer:
    """The objects of one kind. Safe to use from several threads."""

    def __init__(
        self,
        client: KubeClient,
        kind: Kind,
        *,
        namespaces: Sequence[str] = (),
        labels: str = "",
        fields: str = "",
        keep: Callable[[JSON], JSON] | None = None,
        on_change: Callable[[JSON | None, JSON | None], None] | None = None,
    ) -> None:
        """`namespaces` empty: all of them, in one watch.

        `keep` trims an object before it is held; it must leave name, namespace, uid and resourceVersion.
        `on_change(old, new)` is called in the watch's thread after the cache changed, old None for a new object, new
        None for one that is gone; an object made anew under its name is two calls. What `put` brought is not called
        for again when the watch brings it, too.
        """
        self._client = client
        self._kind = kind
        self._labels, self._fields = labels, fields
        self._keep = keep or without_managed_fields
        self._on_change = on_change
        self._changed = threading.Condition(threading.RLock())
        self._held: dict[str, dict[str, JSON]] = {}  # namespace → name → object
        self._scopes = [_Scope(n, kind) for n in dict.fromkeys(namespaces)] or [_Scope(None, kind)]
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._generation = 0
        self._latest: deque[tuple[int, tuple[str, str]]] = deque(maxlen=_CHANGES)  # generation, namespace and name

    def start(self) -> None:
        """Begins to list and to watch; harmless when called again. A stopped informer stays stopped."""
        if self._threads or self._stopping.is_set():
            return
        self._client.pulse.start()
        for scope in self._scopes:
            name = f"watch-{self._kind.plural}-{scope.namespace or 'all'}"
            self._threads.append(threading.Thread(target=self._run, args=(scope,), name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the watches within a second. What is held stays readable, and `trouble` says that it grows old."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        if not self._threads:
            return
        self._client.pulse.stop()
        with self._changed:
            watches = [scope.watch for scope in self._scopes if scope.watch]
        for watch in watches:
            watch.close()
        until = time.monotonic() + 1.0
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def wait_synced(self, timeout: timedelta) -> bool:
        """Waits until every namespace was listed and its watch is open; False when that took longer."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self.synced and not any(scope.trouble for scope in self._scopes), timeout.total_seconds()
            )

    @property
    def synced(self) -> bool:
        """Every namespace was listed once."""
        return all(scope.listed for scope in self._scopes)

    @property
    def generation(self) -> int:
        """Rises with every change of the cache."""
        return self._generation

    def changed(self, since: int) -> Collection[tuple[str, str]] | None:
        """(namespace, name) of what has changed after that generation; None when that is too long ago to be known."""
        with self._changed:
            if since == self._generation:
                return ()
            if since > self._generation or not self._latest or self._latest[0][0] > since + 1:
                return None
            return {key for generation, key in self._latest if generation > since}

    def listed(self, namespace: str) -> bool:
        """This namespace was listed once. One that is not watched has nothing to list."""
        return all(scope.listed for scope in self._scopes_of(namespace))

    @property
    def blind(self) -> str:
        """ "" as soon as one watch is alive; else why none is, for people."""
        trouble = self.trouble()
        with self._changed:
            one = any(scope.listed and not scope.trouble for scope in self._scopes)
        return "" if one and not self._client.reach.trouble() else trouble

    def _scopes_of(self, namespace: str | None) -> list[_Scope]:
        return [scope for scope in self._scopes if namespace is None or scope.namespace in (None, namespace)]

    def trouble(self, namespace: str | None = None) -> str:
        """ "" while every watch (of this namespace) is alive; else why it cannot see, for people.

        What is held is then of before. What cannot be seen of one namespace says nothing about another.
        """
        if self._stopping.is_set():
            return f"{self._kind.resource} are no longer watched: canaryd is stopping"
        if not self._threads:
            return f"{self._kind.resource} are not watched yet"
        if unreachable := self._client.reach.trouble():
            return unreachable
        with self._changed:
            return "; ".join(dict.fromkeys(scope.trouble for scope in self._scopes_of(namespace) if scope.trouble))

    def get(self, namespace: str, name: str) -> JSON | None:
        """None when there is no such object, or its namespace is not watched."""
        with self._changed:
            return self._held.get(namespace, {}).get(name)

    def items(self, namespace: str | None = None) -> tuple[JSON, ...]:
        """All that is held, or one namespace of it, in no order."""
        with self._changed:
            if namespace is not None:
                return tuple(self._held.get(namespace, {}).values())
            return tuple(obj for held in self._held.values() for obj in held.values())

    def put(self, obj: JSON) -> None:
        """Takes what a write of ours was answered with, so that we never read our own past; older news is ignored."""
        namespace, _ = _key(obj)
        scope = next((s for s in self._scopes if s.namespace in (None, namespace)), None)
        if scope is None:
            return
        with self._changed:
            # What the watch has passed is its to tell: an object that it saw deleted must not come back.
            if scope.listed and _version(obj) > scope.floor:
                self._set(self._kept(obj))

    # ── the watch's thread ───────────────────────────────────────────────────────────────

    def _run(self, scope: _Scope) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            longest, least, refused = _LONGEST_S, 0.0, False
            try:
                if not scope.since:
                    self._list(scope)
                self._follow(scope)
            except KubeError as e:
                if isinstance(e, KubeForbiddenError | KubeUnauthorizedError | KubeNotFoundError):
                    longest, refused = _LONGEST_FORBIDDEN_S, True
                least = e.retry_after or 0.0
                self._failed(scope, e)
            except Exception:  # an object of a shape nobody thought of must not end the watch unseen
                scope.since = ""
                self._say(scope, f"{scope.where}: an object could not be digested; this is a defect of canaryd")
                log.exception("watch failed", what=scope.where)
            # A server that is back after a while may refuse at first, until it knows all roles: no long pause for that.
            fresh = refused is not scope.refused or time.monotonic() - began >= _LIVED_S
            scope.failures, scope.refused = 1 if fresh else scope.failures + 1, refused
            self._stopping.wait(max(least, pause(scope.failures, longest)))

    def _failed(self, scope: _Scope, e: KubeError) -> None:
        if isinstance(e, KubeUnreachableError):
            self._say(scope, f"the watch of {scope.where} is being opened again: {e.reason}")
        elif isinstance(e, KubeGoneError):
            scope.since = ""
        else:
            if not isinstance(e, KubeForbiddenError | KubeUnauthorizedError) and e.status not in (429, 503):
                scope.since = ""  # whatever it was, a list puts it right
            self._say(scope, str(e))

    def _say(self, scope: _Scope, trouble: str) -> None:
        with self._changed:
            scope.trouble = trouble

    def _list(self, scope: _Scope) -> None:
        # Trimmed page by page, and the pages small: whole objects need many times the room of what is kept.
        pages = self._client.pages(
            self._kind, scope.namespace, labels=self._labels, fields=self._fields, limit=_PAGE, repeat=False
        )
        trimmed = [([self._kept(item) for item in page], version) for page, version in pages]
        kept, version = [item for page, _ in trimmed for item in page], trimmed[-1][1]
        with self._changed:
            changes = self._replace(scope, kept, int(version))
            scope.since = version
            if not scope.listed:
                scope.listed, scope.trouble = True, f"the watch of {scope.where} is being opened"
        self._tell(changes)

    def _follow(self, scope: _Scope) -> None:
        """Applies events until the watch ends. Raises KubeError when it cannot be opened, or the server ends it so."""
        seconds = random.uniform(*_WATCH_S)  # noqa: S311  # so that not all watches end at once
        with self._client.watch(
            self._kind,
            scope.namespace,
            resource_version=scope.since,
            seconds=seconds,
            labels=self._labels,
            fields=self._fields,
        ) as watch:
            with self._changed:
                scope.watch, scope.trouble = watch, ""
                self._changed.notify_all()
            if self._stopping.is_set():  # since before `stop` looked for watches to close
                return
            try:
                for what, obj in watch:
                    self._apply(scope, what, obj)
            except KubeUnreachableError:
                return  # cut, or silent for too long; that is no trouble when the next one opens

    def _apply(self, scope: _Scope, what: str, obj: JSON) -> None:
        if self._stopping.is_set():
            return
        version = _version(obj)
        changes: list[Change] = []
        with self._changed:
            if what == "DELETED":
                changes = self._drop(obj, version)
            elif what in ("ADDED", "MODIFIED"):
                changes = self._set(self._kept(obj))
            scope.since = str(obj["metadata"]["resourceVersion"])
            scope.floor = max(scope.floor, version)
        self._tell(changes)

    def _tell(self, changes: list[Change]) -> None:
        if self._on_change is not None:
            for old, new in changes:
                self._on_change(old, new)

    # ── the cache; the lock is held ──────────────────────────────────────────────────────

    def _kept(self, obj: JSON) -> JSON:
        return _interned({"apiVersion": self._kind.api_version, "kind": self._kind.kind, **self._keep(obj)})

    def _set(self, new: JSON) -> list[Change]:
        """Holds `new` unless what is held is as new; what was changed by that."""
        namespace, name = _key(new)
        old = self._held.get(namespace, {}).get(name)
        if old is not None and _version(old) > _version(new):
            return []
        if old is not None and _version(old) == _version(new) and old == new:
            return []  # else the definition of its kind is another one now, which shows more of it or less
        self._held.setdefault(namespace, {})[name] = new
        self._note(namespace, name)
        if old is not None and old["metadata"].get("uid") != new["metadata"].get("uid"):
            return [(old, None), (None, new)]
        return [(old, new)]

    def _drop(self, gone: JSON, version: int) -> list[Change]:
        """Forgets an object that was deleted at `version`, unless one was made since."""
        namespace, name = _key(gone)
        old = self._held.get(namespace, {}).get(name)
        if old is None or _version(old) > version:
            return []
        del self._held[namespace][name]
        if not self._held[namespace]:
            del self._held[namespace]
        self._note(namespace, name)
        return [(old, None)]

    def _note(self, namespace: str, name: str) -> None:
        self._generation += 1
        self._latest.append((self._generation, (namespace, name)))

    def _replace(self, scope: _Scope, items: list[JSON], version: int) -> list[Change]:
        """Makes the scope hold what a list of `version` says, but for newer writes of ours."""
        changes: list[Change] = []
        there = {_key(item) for item in items}
        put_back = version < scope.floor  # the server's store is an earlier one: nothing held counts any more
        for old in self.items(scope.namespace):
            if put_back:
                changes += self._drop(old, _version(old))
            elif _key(old) not in there:
                changes += self._drop(old, version)
        for item in items:
            changes += self._set(item)
        scope.floor = version
        return changes


class Reader(Protocol):
    """What adapters read from: an Informer, or Direct. Objects are shared: nobody may change them."""

    @property
    def synced(self) -> bool:
        """Whether it has seen everything once."""

    @property
    def generation(self) -> int:
        """Rises with every change of what it holds."""

    def changed(self, since: int) -> Collection[tuple[str, str]] | None:
        """(namespace, name) of what has changed after that generation; None when that is not known."""

    def listed(self, namespace: str) -> bool:
        """This namespace was listed once."""

    @property
    def blind(self) -> str:
        """ "" while anything can be seen; else why not, for people."""

    def trouble(self, namespace: str | None = None) -> str:
        """ "" while what it holds (of this namespace) is of now; else why it is not, for people."""

    def get(self, namespace: str, name: str) -> JSON | None:
        """None when there is no such object."""

    def items(self, namespace: str | None = None) -> tuple[JSON, ...]:
        """Of one namespace, or all."""

    def put(self, obj: JSON) -> None:
        """What a write of ours was answered with."""


class Direct:
    """Reads like an Informer, but holds nothing: every call asks the server. For commands that people type."""

    def __init__(self, client: KubeClient, kind: Kind) -> None:
        self._client, self._kind = client, kind
        self._asked = 0

    @property
    def synced(self) -> bool:
        """Always."""
        return True

    @property
    def generation(self) -> int:
        """Rises with every look: what a server holds may have changed each time."""
        self._asked += 1
        return self._asked

    def changed(self, since: int) -> Collection[tuple[str, str]] | None:
        """Never known."""
        return None

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Nothing to stop."""

    def wait_synced(self, timeout: timedelta) -> bool:
        """Always, at once."""
        return True

    def listed(self, namespace: str) -> bool:
        """Always."""
        return True

    @property
    def blind(self) -> str:
        """Always "": what cannot be read raises KubeError."""
        return ""

    def trouble(self, namespace: str | None = None) -> str:
        """Always "": what cannot be read raises KubeError."""
        return ""

    def get(self, namespace: str, name: str) -> JSON | None:
        """None when there is no such object. Raises KubeError."""
        try:
            return without_managed_fields(self._client.get(self._kind, namespace, name))
        except KubeNotFoundError:
            return None

    def items(self, namespace: str | None = None) -> tuple[JSON, ...]:
        """Of one namespace, or of all. Raises KubeError."""
        return tuple(without_managed_fields(obj) for obj in self._client.list(self._kind, namespace)[0])

    def put(self, obj: JSON) -> None:
        """Nothing is held."""


def pause(failures: int, longest: float) -> float:
    """Seconds before the next attempt after so many failures in a row: doubling, with jitter of a quarter."""
    base = min(longest, _SHORTEST_S * 2.0 ** min(failures - 1, 20))
    return base * random.uniform(0.75, 1.0)  # noqa: S311


def _key(obj: JSON) -> tuple[str, str]:
    meta = obj["metadata"]
    return str(meta.get("namespace") or ""), str(meta["name"])


def _version(obj: JSON) -> int:
    return int(obj["metadata"]["resourceVersion"])


def _interned(obj: JSON) -> JSON:
    """The same object with one copy of each key in the process: events come one by one, each with keys of its own."""
    return {sys.intern(key): _interned_value(value) for key, value in obj.items()}


def _interned_value(value: object) -> object:
    if isinstance(value, dict):
        return _interned(value)
    if isinstance(value, list):
        return [_interned_value(v) for v in value]
    return value
