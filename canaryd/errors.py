"""Every exception that canaryd raises on purpose.

CanarydError
├── ConfigError             a document or the configuration is wrong; carries every problem found, not the first
├── SourceError             the question could not be answered: no connection, a time-out, HTTP 500, nonsense
├── RouteError              the route could not be read or written; nothing was changed
│   └── FenceError          a newer state version has already routed: this writer is stale and must stop
├── WorkloadError           the workloads (pools, Deployments) could not be asked
├── StoreError              state could not be read or written (disk full, file damaged); nothing was changed
│   └── ConflictError       somebody saved first; nothing was changed, look again
├── LeaderError             another daemon holds the state; says who
├── KubeError               the Kubernetes API server refused or failed; says the verb, the resource and the place
│   ├── KubeNotFoundError       there is no such object, or the server does not serve its kind
│   ├── KubeConflictError       somebody wrote first, or a `test` of a JSON patch did not hold; nothing was changed
│   ├── KubeExistsError         an object of that name is there already
│   ├── KubeForbiddenError      RBAC or an admission rule says no
│   ├── KubeInvalidError        the object is refused by its schema
│   ├── KubeGoneError           that version of the list is no longer kept: list again
│   ├── KubeBusyError           too many requests; `retry_after` says when to come again
│   ├── KubeUnauthorizedError   the server does not know who we are: an expired or a wrong token
│   └── KubeUnreachableError    no answer: refused, timed out, cut, TLS, no such name
├── DashboardError          the dashboard cannot be served as configured; names the key or the line, never a token
├── OverrideError           what a person asked for is refused; says why
└── NotifyError             a notification was not delivered; it stays owed
"""

from __future__ import annotations

from dataclasses import dataclass


class CanarydError(Exception):
    """Root of everything that canaryd raises on purpose; its text is written for the person on call."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a document: where, which key, which value, what would be right."""

    file: str  # as the person named it
    line: int  # 1-based; 0 where no line is known
    key: str  # path from the root of the document, e.g. "spec.steps[2].weight"; "" for the document itself
    message: str  # names the value and what would be right

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class ConfigError(CanarydError):
    """A document or the configuration is wrong. `problems` holds all of them."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(p) for p in problems))


class SourceError(CanarydError):
    """Metrics could not be read. Never means "no traffic" and never "zero errors"."""


class RouteError(CanarydError):
    """A route could not be read or written. Nothing was changed."""


class RouteRefusedError(RouteError):
    """The document names a route that canaryd never touches, whatever is there. Nothing was changed, nor ever is."""


class FenceError(RouteError):
    """A newer state version has already routed; this writer is stale and has changed nothing."""


class WorkloadError(CanarydError):
    """The workloads could not be asked."""


class StoreError(CanarydError):
    """State could not be read or written. Nothing was changed."""


class ConflictError(StoreError):
    """Somebody saved first. Nothing was changed; read again and decide again."""


class LeaderError(CanarydError):
    """Another daemon holds the state."""


class DashboardError(CanarydError):
    """The dashboard cannot be served as it is configured: a file, a certificate, an address."""


class OverrideError(CanarydError):
    """What a person asked for is refused; the text says why."""


class NotifyError(CanarydError):
    """A notification was not delivered; it stays owed. The text never holds a secret."""

    def __init__(self, message: str, *, retry_after: float | None = None, final: bool = False) -> None:
        """`retry_after` in seconds, where the other side said when to come again; `final`: it never will be taken."""
        self.retry_after = retry_after
        self.final = final
        super().__init__(message)


class KubeError(CanarydError):
    """The Kubernetes API server refused or failed. The text names verb, resource and place, and never a credential."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "", retry_after: float | None = None) -> None:
        """`status` is the HTTP status, 0 without an answer; `reason` the server's word; `retry_after` in seconds."""
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        super().__init__(message)


class KubeNotFoundError(KubeError):
    """There is no such object, or the server does not serve its kind."""


class KubeConflictError(KubeError):
    """Somebody wrote first, or a `test` of a JSON patch did not hold. Nothing was changed; read again."""


class KubeExistsError(KubeError):
    """An object of that name is there already. Nothing was changed."""


class KubeForbiddenError(KubeError):
    """RBAC or an admission rule says no. Nothing was changed."""


class KubeInvalidError(KubeError):
    """The object is refused by its schema. Nothing was changed."""


class KubeGoneError(KubeError):
    """That version of the list is no longer kept: list again."""


class KubeBusyError(KubeError):
    """Too many requests; nothing was done. `retry_after` says when to come again, where the server said so."""


class KubeUnauthorizedError(KubeError):
    """The server does not know who we are: an expired or a wrong token. Nothing was done."""


class KubeUnreachableError(KubeError):
    """No complete answer came. What a write has done is then unknown unless the text says that it was never sent."""
