"""What the dashboard may read of a daemon, and how a person's word gets from there into the store. Decides nothing.

Whether this process decides or only watches, a page shows what it knows; who leads is said beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from canaryd.bodies import Body
from canaryd.dashboard.feed import Lead
from canaryd.errors import CanarydError, StoreError
from canaryd.kube.asking import JSON
from canaryd.model import Action, Answer, Override, Record
from canaryd.policy import Canary

if TYPE_CHECKING:
    from canaryd.adapters.kubernetes_store import KubernetesStore
    from canaryd.adapters.sqlite_store import SqliteStore
    from canaryd.process import Base
    from canaryd.watched import Watched

SETTLED = ("Idle", "Succeeded")  # phases of which the status says all that the overview shows


class EmbeddedFeed:
    """Of a daemon with files. The state file is opened once more, so that a page never holds up a decision."""

    def __init__(self, daemon: Base, state: Path, holder: Callable[[], str]) -> None:
        """`holder` says who holds the state; it may raise CanarydError."""
        self._daemon, self._path, self._holder = daemon, state, holder
        self._opened: SqliteStore | None = None
        self._read: Mapping[str, Body] = {}  # what the file says, as of `_mark`
        self._mark: int | None = None
        self._lock = Lock()

    def lead(self) -> Lead:
        leading, holder = self._daemon.leading.is_set(), ""
        with suppress(CanarydError):
            holder = self._holder()
        trouble = _stalled(self._daemon)
        return Lead(leading, holder, trouble, self._daemon.problems)

    def bodies(self) -> Mapping[str, Body]:
        """Of a leader what it holds in memory, with the file's word on what it has not looked at yet."""
        if not self._daemon.leading.is_set():
            return self._from_file(all_of_them=True)
        live, names = self._daemon.telemetry.bodies(), [c.key for c in self._daemon.canaries]
        older = {} if all(name in live for name in names) else self._from_file()
        return {name: live.get(name) or older.get(name) or self._nothing(name) for name in names}

    def canary(self, key: str) -> Canary | None:
        return next((c for c in self._daemon.canaries if c.key == key), None)

    def records(self, key: str, *, limit: int) -> Sequence[Record]:
        store = self._store()
        return store.records(key, limit=limit) if store is not None else ()

    def said(self, key: str, *, limit: int) -> Sequence[tuple[Override, Answer | None]]:
        store = self._store()
        return store.audit(key, limit=limit) if store is not None else ()

    def say(self, key: str, override: Override) -> None:
        store = self._store()
        if store is None:
            raise StoreError("there is no state yet: canaryd has not begun")
        store.override(key, override)

    def close(self) -> None:
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    def _store(self) -> SqliteStore | None:
        """None before there is one. Raises StoreError."""
        from canaryd.adapters.sqlite_store import SqliteStore

        with self._lock:
            if self._opened is None and self._path.exists():
                self._opened = SqliteStore(self._path, create=False)
            return self._opened

    def _from_file(self, *, all_of_them: bool = False) -> Mapping[str, Body]:
        """Read again when anybody wrote anything, where that has to be followed; else once."""
        store = self._store()
        if store is None:
            return {}
        mark = store.mark() if all_of_them or self._mark is None else self._mark
        if mark != self._mark:
            states = {name: store.load(name).state for name in store.canaries()}
            found = {name: dict(s.latest) if s and s.latest else self._nothing(name) for name, s in states.items()}
            self._read = {k: old if (old := self._read.get(k)) == b else b for k, b in found.items()}
            self._mark = mark
        return self._read

    def _nothing(self, name: str) -> Body:
        return _NOTHING.setdefault(name, {"canary": name, "phase": "Idle", "sentence": "Nothing decided yet."})


_NOTHING: dict[str, Body] = {}  # one object for each name, since another one means that something changed


class ClusterFeed:
    """Of a daemon in a cluster: what it watches, and where it leads what it has not saved yet."""

    def __init__(self, daemon: Base, watched: Watched, store: KubernetesStore, holder: Callable[[], str]) -> None:
        self._daemon, self._watched, self._kube, self._holder = daemon, watched, store, holder
        self._made: dict[str, tuple[object, object, Body]] = {}  # key → what it was made from, and the body

    def lead(self) -> Lead:
        trouble = tuple(filter(None, (self._watched.trouble(),)))
        return Lead(self._daemon.leading.is_set(), self._holder(), (*trouble, *_stalled(self._daemon)))

    def bodies(self) -> Mapping[str, Body]:
        live = self._daemon.telemetry.bodies() if self._daemon.leading.is_set() else {}
        made: dict[str, tuple[object, object, Body]] = {}
        for found in self._watched.canaries.items():
            metadata = found["metadata"]
            key = f"{metadata['namespace']}/{metadata['name']}"
            version, fresh = metadata.get("resourceVersion"), live.get(key)
            held = self._made.get(key)
            if held is not None and held[0] == version and held[1] is fresh:
                made[key] = held
            else:
                made[key] = (version, fresh, self._body(key, found, fresh))
        self._made = made
        return {key: body for key, (_, _, body) in made.items()}

    def canary(self, key: str) -> Canary | None:
        from canaryd.config.objects import canary_of

        namespace, _, name = key.partition("/")
        found = self._watched.canaries.get(namespace, name)
        canary = canary_of(found) if found is not None else None
        return canary if isinstance(canary, Canary) else None

    def records(self, key: str, *, limit: int) -> Sequence[Record]:
        return self._kube.records(key, limit=limit)

    def said(self, key: str, *, limit: int) -> Sequence[tuple[Override, Answer | None]]:
        """With a word that nobody could carry out, which only the status tells."""
        said = self._kube.audit(key, limit=limit)
        refused = self._refused(key)
        return [(word, answer or (refused if refused and refused.id == word.id else None)) for word, answer in said]

    def say(self, key: str, override: Override) -> None:
        self._kube.override(key, override)

    def close(self) -> None:
        """The watches are the daemon's."""

    def _refused(self, key: str) -> Answer | None:
        namespace, _, name = key.partition("/")
        last = ((self._watched.canaries.get(namespace, name) or {}).get("status") or {}).get("lastOverride")
        if not isinstance(last, Mapping) or last.get("accepted") is not False:
            return None
        with suppress(ValueError, KeyError):
            at = datetime.fromisoformat(str(last["at"]))
            said = str(last.get("message") or "")
            return Answer(str(last["id"]), Action(str(last["action"])), accepted=False, sentence=said, at=at)
        return None

    def _body(self, key: str, found: JSON, fresh: Body | None) -> Body:
        """The newest there is: memory, the status' plain fields where they suffice, else the state in it."""
        status = found.get("status") or {}
        body, trouble = fresh, _unready(status)
        if body is None and status.get("phase", "Idle") not in SETTLED:
            try:
                state = self._kube.load(key).state
            except StoreError as e:
                trouble = [*trouble, str(e)]
            else:
                body = state.latest if state is not None and state.latest else None
        if body is None:
            body = _outline(found, status)
        if not trouble:
            return body
        return {**body, "trouble": list(dict.fromkeys([*(body.get("trouble") or ()), *trouble]))}


def _stalled(daemon: Base) -> tuple[str, ...]:
    """Why the daemon's own health page is not happy."""
    status, _, text = daemon.health()
    return () if status == 200 else (f"canaryd does not turn: {text.decode().strip()}",)


def _unready(status: JSON) -> list[str]:
    """Why a Canary is not looked after."""
    conditions = status.get("conditions") or ()
    ready: Body = next((c for c in conditions if isinstance(c, Mapping) and c.get("type") == "Ready"), {})
    return [str(ready.get("message") or "it is not looked after")] if ready.get("status") == "False" else []


def _outline(found: JSON, status: JSON) -> Body:
    """A body from what a status says in plain fields, in the words of a decision record."""
    metadata, spec = found["metadata"], found.get("spec") or {}
    weight: dict[str, Any] = dict(status.get("weight") or {})
    if isinstance(weight.get("observed"), int | float):
        weight["observed"] = weight["observed"] / 100
    steps = [s["weight"] for s in spec.get("steps") or () if isinstance(s, Mapping) and "weight" in s]
    done, _, total = str(status.get("step") or "").partition("/")
    return {
        "canary": metadata["name"],
        "namespace": metadata["namespace"],
        "phase": status.get("phase") or "Idle",
        "verdict": status.get("verdict") or None,
        "rollout": status.get("rollout") or "",
        "revision": status.get("revision") or "",
        "stableRevision": status.get("stableRevision") or "",
        "since": status.get("started"),
        "sentence": status.get("message") or "Nothing decided yet.",
        "weight": weight,
        "stepWeights": steps if total.isdecimal() and len(steps) == int(total) else [],
        "step": int(done) - 1 if done.isdecimal() else -1,
    }
