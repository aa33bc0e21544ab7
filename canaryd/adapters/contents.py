"""Hashes of ConfigMaps and Secrets that Canaries name, each watched by its own name alone.

No value is ever kept, logged or shown: an object is hashed when it arrives, and only the hash is held. Nothing that no
Canary names is read. An object that is not there has no hash: nobody may take that for an empty one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from datetime import timedelta
from functools import partial
from typing import Any

from canaryd.errors import WorkloadError
from canaryd.kube.client import KubeClient
from canaryd.kube.informer import Informer
from canaryd.kube.kinds import Kind
from canaryd.revision import content

JSON = dict[str, Any]
Named = tuple[Kind, str, str]  # kind, namespace, name

HASH = "contentHash"  # key of the one thing that is kept


class WatchedContents:
    """Starts a watch when something is asked for first, and ends it when it is no longer wanted."""

    def __init__(
        self,
        client: KubeClient,
        *,
        patience: timedelta = timedelta(seconds=2),
        on_change: Callable[[str, JSON | None, JSON | None], None] = lambda *_: None,
    ) -> None:
        """`patience`: how long the first look may take.

        `on_change(plural, old, new)` is called in the threads of the watches; what it is given holds hashes only.
        """
        self._client, self._patience, self._on_change = client, patience, on_change
        self._watched: dict[Named, Informer] = {}
        self._lock = threading.Lock()

    def hashed(self, kind: Kind, namespace: str, name: str) -> str:
        """Of what it holds now, in hexadecimal. Raises WorkloadError when it is not there or cannot be seen."""
        informer, is_new = self._informer((kind, namespace, name))
        what = f"{kind.kind} {namespace}/{name}"
        if is_new:  # only then: what cannot be seen must not hold up every look
            informer.wait_synced(self._patience)
        if (trouble := informer.trouble()) or not informer.synced:
            raise WorkloadError(f"{what} cannot be read: {trouble or 'not listed yet'}")
        found = informer.get(namespace, name)
        if found is None:
            raise WorkloadError(f"{what} does not exist; spec.workloads.deployment.config names it")
        return str(found[HASH])

    def only(self, wanted: Collection[Named]) -> None:
        """Nothing but these is named by any Canary now."""
        with self._lock:
            ended = [self._watched.pop(named) for named in set(self._watched) - set(wanted)]
        for informer in ended:
            informer.stop()

    def close(self) -> None:
        """Ends all watches."""
        self.only(())

    def _informer(self, named: Named) -> tuple[Informer, bool]:
        """And whether it has only just been started."""
        kind, namespace, name = named
        with self._lock:
            informer = self._watched.get(named)
            if informer is not None:
                return informer, False
            selector = f"metadata.name={name}"
            informer = Informer(
                self._client,
                kind,
                namespaces=(namespace,),
                fields=selector,
                keep=_hashed,
                on_change=partial(self._on_change, kind.plural),
            )
            self._watched[named] = informer
            informer.start()
            return informer, True


def _hashed(obj: JSON) -> JSON:
    meta = {key: obj["metadata"].get(key) for key in ("name", "namespace", "uid", "resourceVersion")}
    return {"metadata": meta, HASH: content(obj.get("data") or {}, obj.get("binaryData"))}
