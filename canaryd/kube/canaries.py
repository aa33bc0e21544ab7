"""The Canary objects: seen in a watched copy, and written only where they are still what was seen.

A write is one PATCH that tests the uid, canaryd's own version and, where it matters, the annotation with which people
speak. Whatever else others write at the same time costs no conflict. Nothing is ever written to an object that was made
anew under the same name, nor decided upon a copy that has lost its watch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, TypeVar

from canaryd.errors import (
    ConflictError,
    KubeConflictError,
    KubeError,
    KubeInvalidError,
    KubeNotFoundError,
    StoreError,
)
from canaryd.kube.client import KubeClient
from canaryd.kube.informer import Reader
from canaryd.kube.kinds import CANARIES
from canaryd.kube.words import OVERRIDE

JSON = dict[str, Any]
Operation = dict[str, Any]
T = TypeVar("T")

GRACE_S = 10.0  # so long a copy may be without its watch and still be believed
TRIES = 30  # of one write while others write on the same object; hardly ever is there a second

_OVERRIDE_PATH = f"/metadata/annotations/{OVERRIDE.replace('/', '~1')}"


class Canaries:
    """Safe to use from several threads. Keys are "NAMESPACE/NAME". Everything that fails raises StoreError."""

    def __init__(self, client: KubeClient, reader: Reader) -> None:
        self._client = client
        self._reader = reader
        self._blind_since: dict[str, float] = {}  # namespace ("": all of them) → since when it cannot be seen
        self._incomparable: dict[str, str] = {}  # uid → annotation that the server writes in another way than we do

    @property
    def generation(self) -> int:
        """Changes with every change of any Canary."""
        return self._reader.generation

    def find(self, key: str) -> JSON:
        """The Canary as it is seen now. Raises StoreError where it is not there or cannot be seen."""
        namespace, _, name = key.rpartition("/")
        self._check_sight(namespace)
        try:
            found = self._reader.get(namespace, name)
        except KubeError as e:
            raise StoreError(f"{key}: {e}") from e
        if found is None:
            raise StoreError(f"there is no Canary {name} in the namespace {namespace}")
        return found

    def all(self) -> tuple[JSON, ...]:
        """All that are watched."""
        self._check_any_sight()
        try:
            return self._reader.items()
        except KubeError as e:
            raise StoreError(str(e)) from e

    def write(self, key: str, attempt: Callable[[JSON], T]) -> T:
        """What `attempt` returns for the Canary; tried again with what is really there where that was refused because
        something has changed that does not matter. `attempt` decides what matters, and raises ConflictError then.
        """
        found = self.find(key)
        for left in reversed(range(TRIES)):
            try:
                return attempt(found)
            except (KubeConflictError, KubeInvalidError) as e:
                found = self._again(key, found, e, last=left == 0)
        raise AssertionError("the last refusal is raised")

    def patch_status(self, found: JSON, change: Sequence[Operation], *, hearing: bool) -> JSON:
        """The Canary with the change made, if it is at the same version; `hearing`: and nobody has said anything since.

        Raises KubeConflictError or KubeInvalidError for `write` to look again.
        """
        tests = [_test("/metadata/uid", found["metadata"]["uid"]), _version_test(found)]
        return self._patch(found, [*tests, *([self._word_test(found)] if hearing else []), *change], "status")

    def annotate(self, found: JSON, text: str) -> JSON:
        """The Canary with `text` as the annotation, if nobody has said anything since. Raises as `patch_status`."""
        add: Operation = {"op": "add", "path": _OVERRIDE_PATH, "value": text}
        if not found["metadata"].get("annotations"):
            add = {"op": "add", "path": "/metadata/annotations", "value": {OVERRIDE: text}}
        return self._patch(found, [_test("/metadata/uid", found["metadata"]["uid"]), self._word_test(found), add], "")

    def _word_test(self, found: JSON) -> Operation:
        """That nobody said anything since.

        A server compares a text as it is written in JSON. The client writes as servers do; where one does not, which
        shows when a refusal has no other reason, the whole object must be unchanged instead.
        """
        meta = found["metadata"]
        if not meta.get("annotations"):
            return _test("/metadata/annotations", None)
        text = annotation_of(found)
        if text is not None and self._incomparable.get(meta["uid"]) == text:
            return _test("/metadata/resourceVersion", meta["resourceVersion"])
        return _test(_OVERRIDE_PATH, text)

    def _patch(self, found: JSON, operations: list[Operation], subresource: str) -> JSON:
        meta = found["metadata"]
        try:
            answer = self._client.patch(
                CANARIES, meta["namespace"], meta["name"], operations, how="json", subresource=subresource
            )
        except (KubeConflictError, KubeInvalidError):
            raise
        except KubeNotFoundError as e:
            raise StoreError(f"{key_of(found)}: nothing was saved: {e}") from e
        except KubeError as e:
            raise StoreError(f"{key_of(found)}: not saved: {e}") from e
        self._reader.put(answer)
        return answer

    def _again(self, key: str, before: JSON, refused: KubeError, *, last: bool) -> JSON:
        """The Canary as it really is, after a refused write.

        Raises ConflictError where it is another one; StoreError where it is gone or nothing explains the refusal.
        """
        meta = before["metadata"]
        try:
            found = self._client.get(CANARIES, meta["namespace"], meta["name"])
        except KubeNotFoundError as e:
            raise StoreError(f"{key}: nothing was saved: {e}") from e
        except KubeError as e:
            raise StoreError(f"{key}: not saved: {refused}; and looking again failed: {e}") from e
        self._reader.put(found)
        if found["metadata"]["uid"] != meta["uid"]:
            raise ConflictError(f"{key}: it was deleted and made anew; nothing was saved to the new one")
        if last:
            raise StoreError(f"{key}: not saved, it changes all the time: {refused}") from refused
        if found["metadata"]["resourceVersion"] == meta["resourceVersion"]:
            text = annotation_of(found)
            if text is None or self._incomparable.get(meta["uid"]) == text or isinstance(refused, KubeInvalidError):
                raise StoreError(f"{key}: not saved: {refused}") from refused
            self._incomparable[meta["uid"]] = text
        return found

    def _check_sight(self, namespace: str) -> None:
        trouble, listed = self._reader.trouble(namespace), self._reader.listed(namespace)
        if not trouble and listed:
            self._blind_since.pop(namespace, None)
            return
        if listed and monotonic() - self._blind_since.setdefault(namespace, monotonic()) < GRACE_S:
            return
        raise StoreError(f"the Canaries cannot be seen: {trouble or 'they have not been listed yet'}")

    def _check_any_sight(self) -> None:
        """Namespaces that cannot be seen do not hide the others."""
        trouble = self._reader.blind
        if not trouble:
            self._blind_since.pop("", None)
        elif not self._reader.synced or monotonic() - self._blind_since.setdefault("", monotonic()) >= GRACE_S:
            raise StoreError(f"the Canaries cannot be seen: {trouble}")


# ── parts of the object ──────────────────────────────────────────────────────────────────────────────────────


def key_of(found: JSON) -> str:
    return f"{found['metadata']['namespace']}/{found['metadata']['name']}"


def status_of(found: JSON) -> Mapping[str, Any]:
    """Empty where there is none, or none that could be one."""
    status = found.get("status")
    return status if isinstance(status, Mapping) else {}


def generation_of(found: JSON) -> int:
    """Of the document."""
    return int(found["metadata"].get("generation", 0))


def annotation_of(found: JSON) -> str | None:
    """What people say."""
    text = (found["metadata"].get("annotations") or {}).get(OVERRIDE)
    return None if text is None else str(text)


# ── operations ───────────────────────────────────────────────────────────────────────────────────────────────


def replaced(status: JSON) -> list[Operation]:
    """The whole status."""
    return [{"op": "add", "path": "/status", "value": status}]


def fields(found: JSON, **values: object) -> list[Operation]:
    """These fields of the status; the others stay."""
    if found.get("status") is None:
        return replaced(dict(values))
    return [{"op": "add", "path": f"/status/{name}", "value": value} for name, value in values.items()]


def _test(path: str, value: object) -> Operation:
    return {"op": "test", "path": path, "value": value}


def _version_test(found: JSON) -> Operation:
    """A field that is not there equals null, but what would hold it must be there."""
    if found.get("status") is None:
        return _test("/status", None)
    return _test("/status/version", status_of(found).get("version"))
