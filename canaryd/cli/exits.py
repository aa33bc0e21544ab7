"""Exit codes, distinct and documented, and which error gives which. Never imports anything heavy.

64 to 78 are those of sysexits.h, so that scripts know them already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum

from canaryd.errors import (
    CanarydError,
    ConfigError,
    ConflictError,
    KubeConflictError,
    KubeError,
    KubeExistsError,
    KubeForbiddenError,
    KubeInvalidError,
    KubeNotFoundError,
    KubeUnauthorizedError,
    LeaderError,
    OverrideError,
    StoreError,
)


class Exit(IntEnum):
    """What a command says to the script that called it. `canaryd help exit-codes` prints the meanings."""

    OK = 0
    ROLLED_BACK = 1
    UNDECIDED = 2
    BLIND = 3
    OTHERWISE = 4
    AMISS = 5
    DOUBTFUL = 6
    USAGE = 64
    DOCUMENT = 65
    NOT_FOUND = 66
    UNAVAILABLE = 69
    INTERNAL = 70
    STATE = 73
    UNREACHABLE = 74
    TRY_AGAIN = 75
    REFUSED = 77
    FORBIDDEN = 79
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        return MEANINGS[self]


MEANINGS: dict[Exit, str] = {
    Exit.OK: "done; wait: what was waited for has come; analyze: healthy",
    Exit.ROLLED_BACK: "wait: the canary was rolled back; analyze: regressed; replay: a decision comes out otherwise",
    Exit.UNDECIDED: "wait: the time ran out before a decision; analyze: inconclusive",
    Exit.BLIND: "wait: the time ran out while canaryd could not see the metrics; analyze: blind",
    Exit.OTHERWISE: "wait: the rollout ended another way (promoted, reverted or replaced), or there is none",
    Exit.AMISS: "doctor: something is wrong that keeps releases from being looked after",
    Exit.DOUBTFUL: "doctor: nothing worse than warnings, or something could not be looked at",
    Exit.USAGE: "the command was typed wrongly, or there is no configuration",
    Exit.DOCUMENT: "a document or the configuration is wrong; every problem is listed",
    Exit.NOT_FOUND: "there is no canary, record or help topic of that name",
    Exit.UNAVAILABLE: "canaryd is not running or not well; what a person said is kept and carried out when it runs",
    Exit.INTERNAL: "a defect in canaryd; CANARYD_DEBUG=1 shows where",
    Exit.STATE: "the state cannot be read or written",
    Exit.UNREACHABLE: "the API server does not answer or fails; whether anything was done is not known",
    Exit.TRY_AGAIN: "recorded but not answered in time, or somebody else holds the state; look again",
    Exit.REFUSED: "what was asked for is refused; the sentence says why",
    Exit.FORBIDDEN: "the API server does not let you; the sentence names the verb and the Role to ask for",
    Exit.INTERRUPTED: "interrupted by Ctrl-C",
}


class NotFoundError(CanarydError):
    """There is nothing of that name; the text lists what there is."""


class UsageError(CanarydError):
    """Typed in a way that cannot be carried out; the text says what would be right."""


_ERRORS: tuple[tuple[type[CanarydError], Exit], ...] = (  # the first that fits
    (NotFoundError, Exit.NOT_FOUND),
    (UsageError, Exit.USAGE),
    (ConfigError, Exit.DOCUMENT),
    (KubeForbiddenError, Exit.FORBIDDEN),
    (KubeUnauthorizedError, Exit.FORBIDDEN),
    (KubeNotFoundError, Exit.NOT_FOUND),
    (KubeInvalidError, Exit.USAGE),
    (KubeConflictError, Exit.TRY_AGAIN),
    (KubeExistsError, Exit.TRY_AGAIN),
    (KubeError, Exit.UNREACHABLE),
    (ConflictError, Exit.TRY_AGAIN),
    (LeaderError, Exit.TRY_AGAIN),
    (StoreError, Exit.STATE),
    (OverrideError, Exit.REFUSED),
    (CanarydError, Exit.UNAVAILABLE),
)
# as canaryd.kube says it: "forbidden: patch canaries.canaryd.io api in shop, as anna"
_FORBIDDEN = re.compile(r"forbidden: (?P<verb>\w+) (?P<what>[^ ]+)(?: [^ ]+)?(?: in (?P<where>.+))?, as (?P<who>.+)")
_ROLES = {"get": "canaryd-viewer", "list": "canaryd-viewer", "watch": "canaryd-viewer", "patch": "canaryd-operator"}


def exit_of(error: CanarydError) -> Exit:
    """The code for an error raised on purpose; what the API server said counts more than who passed it on."""
    cause = next((e for e in _chain(error) if isinstance(e, KubeError)), error)
    return next(code for kind, code in _ERRORS if isinstance(cause, kind))


def sentence_of(error: CanarydError) -> str:
    """What a person is told."""
    for cause in _chain(error):
        if isinstance(cause, KubeForbiddenError) and (said := _FORBIDDEN.search(str(cause))):
            return forbidden(said["who"], said["verb"], said["what"], said["where"] or "")
    return str(error) or type(error).__name__


def forbidden(who: str, verb: str, what: str, where: str) -> str:
    """ "anna may not patch canaries in shop: ask for the Role canaryd-operator"."""
    place = f" in {where}" if where else ""
    role = _ROLES.get(verb) if what.startswith("canaries.canaryd.io") else None
    remedy = f"the Role {role}" if role else f"a Role with the verb {verb} on {what}"
    return f"{who} may not {verb} {what.removesuffix('.canaryd.io')}{place}: ask for {remedy}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__
