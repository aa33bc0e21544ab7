"""What is asked of an API server, and what its refusals mean: an Ask in, a KubeError with a text for people out. Pure.

A Secret's contents never reach a text: of what the server says about Secrets only the reason is told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from canaryd.errors import (
    KubeBusyError,
    KubeConflictError,
    KubeError,
    KubeExistsError,
    KubeForbiddenError,
    KubeGoneError,
    KubeInvalidError,
    KubeNotFoundError,
    KubeUnauthorizedError,
)
from canaryd.kube.kinds import Kind

JSON = dict[str, Any]

_LONGEST = 600  # characters of what a server says that are passed on
_BY_STATUS: Mapping[int, type[KubeError]] = {
    401: KubeUnauthorizedError,
    403: KubeForbiddenError,
    404: KubeNotFoundError,
    409: KubeConflictError,
    410: KubeGoneError,
    422: KubeInvalidError,
    429: KubeBusyError,
}


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, as the server, RBAC and people each name it."""

    verb: str  # of RBAC: get, list, watch, create, update, patch, delete
    method: str  # of HTTP
    path: str
    plural: str
    subject: str  # "update canaries.canaryd.io/status checkout in shop"
    secret: bool = False  # nothing of the answer may be shown
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    content_type: str = "application/json"

    @property
    def reads(self) -> bool:
        """Whether it may be sent twice without harm."""
        return self.method == "GET"

    @property
    def target(self) -> str:
        """Path and query."""
        wanted = {key: value for key, value in self.query.items() if value}
        return f"{self.path}?{urlencode(wanted)}" if wanted else self.path


def ask(
    verb: str,
    method: str,
    kind: Kind,
    namespace: str | None,
    name: str | None = None,
    *,
    subresource: str = "",
    query: Mapping[str, str] | None = None,
    body: Any = None,
    content_type: str = "application/json",
) -> Ask:
    """The request for one object, or for a collection when `name` is None; `namespace` None: all of them.

    Raises KubeInvalidError for what can be no name, "" included: without it a deletion would be one of everything.
    """
    path = kind.root
    if kind.namespaced and namespace is not None:
        path += f"/namespaces/{_segment(namespace, 'namespace')}"
    path += f"/{kind.plural}"
    if name is not None:
        path += f"/{_segment(name, 'name')}"
    if subresource:
        path += f"/{_segment(subresource, 'subresource')}"
    what = kind.resource + (f"/{subresource}" if subresource else "") + (f" {name}" if name else "")
    where = "" if not kind.namespaced else f" in {namespace}" if namespace is not None else " in all namespaces"
    return Ask(
        verb,
        method,
        path,
        kind.plural,
        f"{verb} {what}{where}",
        secret=kind.group == "" and kind.plural == "secrets",
        query=query or {},
        body=body,
        content_type=content_type,
    )


def _segment(text: str, role: str) -> str:
    # A server decodes %2F before it splits the path, so that a name with a slash would reach another object.
    if not text or text in (".", "..") or "/" in text or "%" in text:
        raise KubeInvalidError(f"{text!r} cannot be the {role} of an object", status=422, reason="Invalid")
    return quote(text, safe="")


def refusal(asked: Ask, status: int, headers: Mapping[str, str], body: bytes) -> KubeError:
    """What an answer that is no success means."""
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    if not isinstance(said, dict) or said.get("kind") != "Status":
        said = {}
    return explained(asked, status, said, _seconds(headers.get("Retry-After")))


def explained(asked: Ask, status: int, said: JSON, retry_after: float | None = None) -> KubeError:
    """The error for a Status object; `status` is the HTTP status, or the code inside an ERROR event of a watch."""
    reason = str(said.get("reason") or "")
    details = said.get("details")
    details = details if isinstance(details, dict) else {}
    if retry_after is None:
        retry_after = _seconds(details.get("retryAfterSeconds"))
    error = _BY_STATUS.get(status, KubeError)
    if status == 503 and retry_after is not None:
        error = KubeBusyError
    elif status == 409 and reason == "AlreadyExists":
        error = KubeExistsError
    elif status == 422 and _a_test_failed(asked, details):
        error = KubeConflictError
    message = _message(asked, said)
    if status == 422 and error is KubeConflictError:
        message = "the object is not as the patch expects: a test did not hold, or a path is not there"
    text = _text(error, asked, status, reason, message, details)
    return error(text, status=status, reason=reason, retry_after=retry_after)


def _a_test_failed(asked: Ask, details: JSON) -> bool:
    """A JSON patch that could not be applied is answered like a broken object, 422, but without any cause.

    With `test` operations in it that means: the object is no longer as it was when the patch was made.
    """
    if asked.content_type != "application/json-patch+json" or _causes(details):
        return False
    return any(isinstance(operation, dict) and operation.get("op") == "test" for operation in asked.body or ())


def _causes(details: JSON) -> list[JSON]:
    causes = details.get("causes")
    return [cause for cause in causes if isinstance(cause, dict)] if isinstance(causes, list) else []


def _message(asked: Ask, said: JSON) -> str:
    """What the server says, fit for a terminal; nothing where it could quote a Secret."""
    if asked.secret:
        return ""
    told = str(said.get("message") or "")
    printable = "".join(c if c.isprintable() else " " for c in told)
    return printable if len(printable) <= _LONGEST else printable[:_LONGEST] + "…"


def _text(error: type[KubeError], asked: Ask, status: int, reason: str, message: str, details: JSON) -> str:
    if error is KubeForbiddenError and " cannot " in message and (user := re.search(r'User "([^"]+)"', message)):
        return f"forbidden: {asked.subject}, as {user.group(1)}"
    if error is KubeNotFoundError and not details.get("name") and "not found" not in message:
        return f"not served: {asked.subject}: the API server does not know this resource; is its CRD installed?"
    said = message or reason or f"HTTP {status}"
    words = {
        KubeForbiddenError: "forbidden",
        KubeNotFoundError: "not found",
        KubeUnauthorizedError: "unauthorized (the token is missing, wrong or expired)",
        KubeConflictError: "conflict",
        KubeExistsError: "exists already",
        KubeInvalidError: "invalid",
        KubeGoneError: "no longer kept",
        KubeBusyError: "the API server is busy",
    }
    return f"{words.get(error, f'HTTP {status}')}: {asked.subject}: {said}"


def written(body: object) -> bytes:
    """A body as JSON, escaped as the servers' own JSON is: a JSON patch's `test` compares texts as they are written."""
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":  # occur inside strings alone
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode(errors="replace")


def _seconds(value: object) -> float | None:
    """Of Retry-After; None for nothing, for a date and for nonsense."""
    try:
        seconds = float(str(value))
    except ValueError:
        return None
    return seconds if 0 <= seconds < 86400 else None
