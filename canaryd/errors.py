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


class OverrideError(CanarydError):
    """What a person asked for is refused; the text says why."""


class NotifyError(CanarydError):
    """A notification was not delivered; it stays owed."""
