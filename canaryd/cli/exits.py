"""Exit codes, distinct and documented, and which error gives which. Never imports anything heavy.

64 and above are those of sysexits.h, so that scripts know them already.
"""

from __future__ import annotations

from enum import IntEnum

from canaryd.errors import (
    CanarydError,
    ConfigError,
    ConflictError,
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
    USAGE = 64
    DOCUMENT = 65
    NOT_FOUND = 66
    UNAVAILABLE = 69
    INTERNAL = 70
    STATE = 73
    TRY_AGAIN = 75
    REFUSED = 77
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
    Exit.USAGE: "the command was typed wrongly, or there is no configuration",
    Exit.DOCUMENT: "a document or the configuration is wrong; every problem is listed",
    Exit.NOT_FOUND: "there is no canary, record or help topic of that name",
    Exit.UNAVAILABLE: "canaryd is not running or not well; what a person said is kept and carried out when it runs",
    Exit.INTERNAL: "a defect in canaryd; CANARYD_DEBUG=1 shows where",
    Exit.STATE: "the state cannot be read or written",
    Exit.TRY_AGAIN: "recorded but not answered in time, or somebody else holds the state; look again",
    Exit.REFUSED: "what was asked for is refused; the sentence says why",
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
    (ConflictError, Exit.TRY_AGAIN),
    (LeaderError, Exit.TRY_AGAIN),
    (StoreError, Exit.STATE),
    (OverrideError, Exit.REFUSED),
    (CanarydError, Exit.UNAVAILABLE),
)


def exit_of(error: CanarydError) -> Exit:
    """The code for an error raised on purpose."""
    return next(code for kind, code in _ERRORS if isinstance(error, kind))
