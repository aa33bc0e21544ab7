"""What a check is, what it finds, and how a list of checks is gone through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from canaryd.errors import CanarydError

T = TypeVar("T")


class Severity(StrEnum):
    """From harmless to harmful."""

    FINE = "fine"  # looked at, and as it should be
    WARNING = "warning"  # works, or could not be looked at
    ERROR = "error"  # keeps releases from being looked after


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check has seen."""

    severity: Severity
    what: str  # is so
    why: str = ""  # it matters
    remedy: str = ""  # what to do
    about: str = ""  # a canary, where it is about one


@dataclass(frozen=True, slots=True)
class Check(Generic[T]):
    """A question about a whole installation."""

    name: str  # short, for the first column
    look: Callable[[T], Iterable[Finding]]  # may raise CanarydError: then it could not be looked at
    vital: bool = False  # without it nothing else can be looked at


def fine(what: str, about: str = "") -> Finding:
    return Finding(Severity.FINE, what, about=about)


def warning(what: str, why: str, remedy: str, about: str = "") -> Finding:
    return Finding(Severity.WARNING, what, why, remedy, about)


def error(what: str, why: str, remedy: str, about: str = "") -> Finding:
    return Finding(Severity.ERROR, what, why, remedy, about)


def examine(
    checks: Sequence[Check[T]], subject: T, said: Callable[[CanarydError], str]
) -> Iterator[tuple[str, Finding]]:
    """(name of the check, finding) of all of them in order; one that fails does not keep the others from being made.

    `said` puts an error into words.
    """
    for check in checks:
        try:
            for finding in check.look(subject):
                yield check.name, finding
        except CanarydError as reason:
            make = error if check.vital else warning
            yield check.name, make(f"could not be looked at: {said(reason)}", "", "")
            if check.vital:
                return
