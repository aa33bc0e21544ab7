"""What the dashboard reads of a daemon and may say to it: a small protocol, kept by `canaryd.showing` and the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from canaryd.bodies import Body
from canaryd.model import Answer, Override, Record
from canaryd.policy import Canary


@dataclass(frozen=True, slots=True)
class Lead:
    """Who decides, and what is wrong with the whole."""

    leading: bool  # this process decides; otherwise it shows what it sees
    holder: str = ""  # who decides, as far as that is known; "" nobody
    trouble: tuple[str, ...] = ()  # what cannot be seen or read now
    problems: tuple[str, ...] = ()  # documents that are refused, each with why


class Feed(Protocol):
    """All methods may be called from any thread, and raise CanarydError when something cannot be read now.

    Canaries go by their key: "api", in a cluster "shop/api".
    """

    def lead(self) -> Lead:
        """Never raises."""
        ...

    def bodies(self) -> Mapping[str, Body]:
        """The latest decision of every canary, or a body that says there is none yet.

        The same object as before where nothing changed: it is asked once a second.
        """
        ...

    def canary(self, key: str) -> Canary | None:
        """Its document; None where it cannot be had."""
        ...

    def records(self, key: str, *, limit: int) -> Sequence[Record]:
        """The latest decisions, newest first."""
        ...

    def said(self, key: str, *, limit: int) -> Sequence[tuple[Override, Answer | None]]:
        """What people said, newest first, each with its answer; None while it waits for one."""
        ...

    def say(self, key: str, override: Override) -> None:
        """Write down what a person wants, as the command line does."""
        ...

    def close(self) -> None: ...
