"""Requests to a Kubernetes API server: plain JSON in and out, bounded in time and in bytes, refusals as KubeErrors.

A write is sent once: it is repeated only when the server has said that it did nothing (429, 503 with Retry-After, 401).
It never follows a redirect, and no credential reaches an error text.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Self

from canaryd.errors import (
    ConfigError,
    KubeBusyError,
    KubeError,
    KubeGoneError,
    KubeNotFoundError,
    KubeUnauthorizedError,
    KubeUnreachableError,
)
from canaryd.kube.access import Access, access
from canaryd.kube.asking import JSON, Ask, ask, explained, refusal, written
from canaryd.kube.kinds import NAMESPACES, Kind
from canaryd.kube.reach import QUIET_S, Pulse, reach_of

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

MAX_BYTES = 64 * 1024 * 1024  # of one answer, of one event
PAGE = 500  # objects of one answer to a list
SILENCE_S = 90.0  # a watch has a bookmark every minute; silent for longer it is dead
MANAGER = "canaryd"

_CHUNK = 64 * 1024
_REPEAT_S = 0.2  # before a read is repeated
_DISCOVERED_S = 60.0
_LISTS = 3  # a list whose continuation is no longer kept is begun anew
Listed = tuple[list[JSON], str]  # objects, and the resourceVersion of the list

_PATCHES = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "apply": "application/apply-patch+yaml",
}
_REVIEWS = Kind("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False)


@dataclass(frozen=True, slots=True)
class _Deadline:
    """The end of one call with all its repetitions."""

    seconds: float  # as configured, for messages
    at: float  # on time.monotonic()

    @classmethod
    def after(cls, seconds: float) -> Self:
        return cls(seconds, time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds, never less than what a socket takes for a time-out."""
        return max(0.001, self.at - time.monotonic())

    def passed(self) -> bool:
        return time.monotonic() >= self.at


class KubeClient:
    """One server as one user. Safe to use from several threads. Objects that it returns belong to the caller.

    Every method raises KubeError, usually one of its kinds; KubeUnreachableError when no complete answer came within
    the timeout. `namespace` None means all namespaces; it is ignored for kinds that have none.
    """

    def __init__(
        self, kubeconfig: str | None, context: str | None, timeout: timedelta, agent: str, first: Access
    ) -> None:
        self._source = (kubeconfig, context)
        self._timeout = timeout.total_seconds()
        self._agent = agent
        self._access = first
        self._lock = threading.Lock()
        self._reloading = threading.Lock()
        self._discovered: dict[tuple[str, str], tuple[float, frozenset[str]]] = {}
        self.namespace = first.namespace  # of the context, or of the pod
        self.server = first.server  # without credentials, for messages
        self.reach = reach_of(first.server)
        self.pulse = Pulse(self.reach, self.ping)
        self.requests: Counter[tuple[str, str]] = Counter()  # (verb, plural) → how many were sent

    @classmethod
    def connect(
        cls,
        *,
        kubeconfig: str | None = None,
        context: str | None = None,
        timeout: timedelta = timedelta(seconds=5),
        agent: str = "canaryd",
    ) -> KubeClient:
        """Reads the configuration; sends nothing yet. `timeout` bounds each call as a whole, each page of a list.

        `kubeconfig`: a file, else $KUBECONFIG, ~/.kube/config, the pod's service account. Raises ConfigError.
        """
        return cls(kubeconfig, context, timeout, agent, access(kubeconfig, context))

    def close(self) -> None:
        """Closes idle connections; harmless when called again. Watches are closed by whoever holds them."""
        self._access.pool.clear()

    def get(self, kind: Kind, namespace: str, name: str, *, timeout: float | None = None) -> JSON:
        """Raises KubeNotFoundError when it is not there."""
        return self._answer(ask("get", "GET", kind, namespace, name), timeout=timeout)

    def list(
        self, kind: Kind, namespace: str | None = None, *, labels: str = "", fields: str = "", repeat: bool = True
    ) -> Listed:
        """All of one consistent list, and its resourceVersion. `repeat` False: no request is sent twice."""
        for attempt in range(_LISTS):
            try:
                pages = list(self.pages(kind, namespace, labels=labels, fields=fields, repeat=repeat))
            except KubeGoneError:
                if attempt == _LISTS - 1:
                    raise
            else:
                return [item for items, _ in pages for item in items], pages[-1][1]
        raise AssertionError

    def pages(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        limit: int = PAGE,
        repeat: bool = True,
    ) -> Iterator[Listed]:
        """The same page by page, for who keeps less than all of it; each with the resourceVersion of the whole.

        Raises KubeGoneError when the pages were asked for more slowly than the server keeps a snapshot.
        """
        query = {"labelSelector": labels, "fieldSelector": fields, "limit": str(limit)}
        wanted = ask("list", "GET", kind, namespace, query=query)
        own = {"apiVersion": kind.api_version, "kind": kind.kind}  # a list leaves them out of its items
        more = ""
        while True:
            page = self._answer(replace(wanted, query={**query, "continue": more}), repeat=repeat)
            meta = page.get("metadata") or {}
            yield [{**own, **item} for item in page.get("items") or ()], str(meta.get("resourceVersion") or "")
            more = str(meta.get("continue") or "")
            if not more:
                return

    def create(self, kind: Kind, namespace: str, body: JSON, *, timeout: float | None = None) -> JSON:
        """Raises KubeExistsError when the name is taken."""
        return self._answer(self._write("create", "POST", kind, namespace, None, body), timeout=timeout)

    def replace(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        body: JSON,
        *,
        subresource: str = "",
        timeout: float | None = None,
    ) -> JSON:
        """PUT. With `metadata.resourceVersion` in the body: KubeConflictError when somebody wrote since."""
        asked = self._write("update", "PUT", kind, namespace, name, body, subresource=subresource)
        return self._answer(asked, timeout=timeout)

    def patch(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        body: Any,
        *,
        how: Literal["json", "merge", "apply"],
        subresource: str = "",
        force: bool = False,
    ) -> JSON:
        """A list of operations for "json", else an object. Raises KubeConflictError when a `test` does not hold,
        when `metadata.resourceVersion` in the body is not the present one, or when another manager owns an applied
        field and `force` is false.
        """
        asked = self._write("patch", "PATCH", kind, namespace, name, body, subresource=subresource)
        query = {**asked.query, "force": "true" if force and how == "apply" else ""}
        return self._answer(replace(asked, query=query, content_type=_PATCHES[how]))

    def delete(self, kind: Kind, namespace: str, name: str, *, uid: str = "", propagation: str = "") -> None:
        """Raises KubeNotFoundError when it is not there, KubeConflictError when it has another uid.

        `propagation`: "", "Foreground", "Background" or "Orphan".
        """
        body: JSON = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid:
            body["preconditions"] = {"uid": uid}
        if propagation:
            body["propagationPolicy"] = propagation
        self._answer(ask("delete", "DELETE", kind, namespace, name, query=self._bounded(), body=body))

    def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        resource_version: str,
        labels: str = "",
        fields: str = "",
        seconds: float = 240,
    ) -> Watch:
        """Changes after `resource_version`, until the server ends it after `seconds`. One request, never repeated.

        Events are ("ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK", object). Raises KubeGoneError, here or from the
        iteration, when that version is no longer kept; KubeUnreachableError when the connection is cut or silent.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(max(1, round(seconds))),
            "labelSelector": labels,
            "fieldSelector": fields,
        }
        wanted = ask("watch", "GET", kind, namespace, query=query)
        return Watch(self, wanted, self._open(wanted, repeat=False))

    def allowed(self, verb: str, kind: Kind, namespace: str, *, name: str = "", subresource: str = "") -> bool:
        """Whether RBAC lets us: a SelfSubjectAccessReview. `namespace` "": in all namespaces.

        A namespace itself counts as being in itself.
        """
        attributes = {
            "verb": verb,
            "group": kind.group,
            "version": kind.version,
            "resource": kind.plural,
            "namespace": namespace if kind.namespaced or kind is NAMESPACES else "",
            "name": name,
            "subresource": subresource,
        }
        body = {
            "apiVersion": _REVIEWS.api_version,
            "kind": _REVIEWS.kind,
            "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
        }
        answer = self._answer(ask("create", "POST", _REVIEWS, None, body=body))
        return bool((answer.get("status") or {}).get("allowed"))

    def discover(self, kind: Kind) -> bool:
        """Whether the server serves this group, version and resource; known for a minute."""
        key, now = (kind.group, kind.version), time.monotonic()
        with self._lock:
            at, served = self._discovered.get(key, (-_DISCOVERED_S, frozenset[str]()))
        if now - at >= _DISCOVERED_S:
            try:
                answer = self._answer(Ask("get", "GET", kind.root, "apis", f"get {kind.root}"))
            except KubeNotFoundError:
                answer = {}
            served = frozenset(str(r.get("name")) for r in answer.get("resources") or ())
            with self._lock:
                self._discovered[key] = (now, served)
        return kind.plural in served

    def ping(self) -> None:
        """One small request that needs no right; any answer will do, a refusal, too.

        Raises KubeUnreachableError when none comes within 4 s.
        """
        asked, deadline = Ask("get", "GET", "/version", "version", "get /version"), _Deadline.after(QUIET_S)
        self._read(asked, self._send(self._access, asked, deadline), deadline)

    def _bounded(self) -> dict[str, str]:
        """Asks the server to give up when we do: a write that was delayed must not happen long after."""
        return {"timeout": f"{max(1, round(self._timeout * 1000))}ms"}

    def _write(
        self, verb: str, method: str, kind: Kind, namespace: str, name: str | None, body: Any, *, subresource: str = ""
    ) -> Ask:
        query = {"fieldManager": MANAGER, **self._bounded()}
        return ask(verb, method, kind, namespace, name, subresource=subresource, query=query, body=body)

    def _answer(self, asked: Ask, *, timeout: float | None = None, repeat: bool = True) -> JSON:
        """The JSON object that the server answers with."""
        deadline = _Deadline.after(self._timeout if timeout is None else timeout)
        for last in (False, True):
            response = self._open(asked, deadline=deadline, repeat=repeat)
            try:
                body = self._read(asked, response, deadline)
                break
            except KubeUnreachableError:
                if last or not (asked.reads and repeat) or deadline.left() <= _REPEAT_S:
                    raise
                time.sleep(_REPEAT_S)
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise KubeError(f"{asked.subject}: {self.server} answered with something that is no JSON object")
        return answer

    def _open(self, asked: Ask, *, deadline: _Deadline | None = None, repeat: bool = True) -> BaseHTTPResponse:
        """An answer that is a success, its body unread. A refusal is raised, after what may be tried again was."""
        deadline = deadline or _Deadline.after(self._timeout)
        repeated = waited = reloaded = False
        while True:
            used = self._access
            try:
                response = self._send(used, asked, deadline)
            except KubeUnreachableError:
                if repeated or not (asked.reads and repeat) or deadline.left() <= _REPEAT_S:
                    raise
                repeated = True
                time.sleep(_REPEAT_S)
                continue
            if 200 <= response.status < 300:
                return response
            error = refusal(asked, response.status, response.headers, self._read(asked, response, deadline))
            if isinstance(error, KubeUnauthorizedError) and not reloaded:
                reloaded = True
                self._reload(used)
            elif _may_wait(error, deadline) and repeat and not waited:
                waited = True
                time.sleep(error.retry_after or 0.0)
            else:
                raise error

    def _send(self, used: Access, asked: Ask, deadline: _Deadline) -> BaseHTTPResponse:
        """One request; returns when the head of an answer is there."""
        import urllib3

        headers = {"Accept": "application/json", "User-Agent": self._agent, **self._credentials(used, asked)}
        body = None
        if asked.body is not None:
            headers["Content-Type"] = asked.content_type
            body = written(asked.body)
        with self._lock:
            self.requests[asked.verb, asked.plural] += 1
        began = time.monotonic()
        try:
            response = used.pool.request(
                asked.method,
                used.configuration.host + asked.target,
                body=body,
                headers=headers,
                timeout=urllib3.Timeout(connect=deadline.left(), read=deadline.left()),
                preload_content=False,
                retries=False,
                redirect=False,
            )
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as e:
            raise self._unreachable(asked, e, deadline, began) from None
        self.reach.heard()
        return response

    def _credentials(self, used: Access, asked: Ask) -> Mapping[str, str]:
        try:
            with self._reloading:  # the package refreshes tokens without a lock of its own
                return used.credentials()
        except ConfigError as e:
            raise KubeUnauthorizedError(f"{asked.subject}: {e}", status=401) from e

    def _reload(self, used: Access) -> None:
        """Reads token and certificates anew, unless another thread has done so since `used` was current."""
        with self._reloading:
            if self._access is used:
                try:
                    self._access = access(*self._source)
                except ConfigError as e:
                    raise KubeUnauthorizedError(f"the credentials were refused, and reading them again: {e}") from e
                used.pool.clear()

    def _read(self, asked: Ask, response: BaseHTTPResponse, deadline: _Deadline) -> bytes:
        """The whole body; the connection goes back to the pool."""
        import urllib3

        parts: list[bytes] = []
        size = 0
        began = time.monotonic()
        try:
            while part := response.read1(_CHUNK):
                parts.append(part)
                size += len(part)
                if size > MAX_BYTES:
                    response.close()
                    raise KubeError(f"{asked.subject}: {self.server} answered with more than {MAX_BYTES >> 20} MB")
                if deadline.passed():
                    raise TimeoutError
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as e:
            response.close()
            raise self._unreachable(asked, e, deadline, began) from None
        response.release_conn()
        self.reach.heard()
        return b"".join(parts)

    def _unreachable(self, asked: Ask, e: Exception, deadline: _Deadline, began: float) -> KubeUnreachableError:
        why, sent = _why(e, deadline.seconds)
        self.reach.failed(why, began)
        doubt = "" if asked.reads else "; whether it was done is not known" if sent else "; nothing was sent"
        return KubeUnreachableError(f"{asked.subject}: {self.server}: {why}{doubt}", reason=why)


class Watch(Iterator[tuple[str, JSON]]):
    """The events of one watch, as a context manager of the one thread that reads them.

    `close` may be called from any thread, and ends the iteration at once.
    """

    def __init__(self, client: KubeClient, asked: Ask, response: BaseHTTPResponse) -> None:
        self._client = client
        self._asked = asked
        self._response = response
        self._rest = b""  # the beginning of an event
        self._closed = threading.Event()
        connection = response.connection
        self._socket: socket.socket | None = getattr(connection, "sock", None)
        if self._socket is not None:
            self._socket.settimeout(SILENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._response.close()

    def __next__(self) -> tuple[str, JSON]:
        line = self._line()
        if self._closed.is_set() or not line:
            self.__exit__()
            raise StopIteration
        try:
            event = json.loads(line)
            what, obj = str(event["type"]), event["object"]
        except (ValueError, KeyError, TypeError):
            raise KubeError(f"{self._asked.subject}: {self._client.server} sent no event") from None
        if what == "ERROR":
            raise explained(self._asked, int(obj.get("code") or 0), obj)
        return what, obj

    def close(self) -> None:
        """Harmless when called again."""
        self._closed.set()
        if self._socket is not None:
            with suppress(OSError):  # closed already
                self._socket.shutdown(socket.SHUT_RDWR)

    def _line(self) -> bytes:
        """The next event as it came; empty at the end."""
        import urllib3

        parts = [self._rest]
        size = 0
        while b"\n" not in parts[-1]:
            try:
                part = self._response.read1(_CHUNK)
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as e:
                if self._closed.is_set():
                    return b""
                self._response.close()
                why, _ = _why(e, SILENCE_S)
                raise KubeUnreachableError(f"{self._asked.subject}: {why}", reason=why) from None
            if not part:
                self._rest = b""
                return b""
            self._client.reach.heard()
            size += len(part)
            if size > MAX_BYTES:
                raise KubeError(f"{self._asked.subject}: an event of more than {MAX_BYTES >> 20} MB")
            parts.append(part)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line


def _may_wait(error: KubeError, deadline: _Deadline) -> bool:
    """Whether the server's Retry-After ends well before the deadline."""
    return isinstance(error, KubeBusyError) and error.retry_after is not None and error.retry_after < deadline.left()


def _why(e: Exception, seconds: float) -> tuple[str, bool]:
    """Why no answer came, in a few words, and whether the request may have reached the server."""
    from urllib3 import exceptions as u

    if isinstance(e, u.NameResolutionError):
        return "its name cannot be resolved", False
    if isinstance(e, u.NewConnectionError):  # a ConnectTimeoutError by birth
        return _strerror(e.__cause__) or "no connection", False
    if isinstance(e, u.ConnectTimeoutError):
        return f"no connection within {round(seconds, 1):g} s", False
    if isinstance(e, u.ProxyError):
        return "the proxy does not answer", False
    if isinstance(e, u.TimeoutError | TimeoutError):
        return f"no complete answer within {round(seconds, 1):g} s", True
    if isinstance(e, u.SSLError):
        cause = e.args[0] if e.args else None
        refused = getattr(cause, "verify_message", "")
        told = refused or getattr(cause, "reason", "") or "failed"
        return f"TLS: {str(told).replace('_', ' ').lower()}", not refused
    if isinstance(e, u.ProtocolError | OSError):
        return _strerror(e.args[-1] if e.args else None) or _strerror(e) or "the connection was cut", True
    return f"the connection failed ({type(e).__name__})", True


def _strerror(e: object) -> str:
    return e.strerror.lower() if isinstance(e, OSError) and e.strerror else ""
