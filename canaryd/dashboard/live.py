"""What is shown, in parts that each know when they last changed, so that a page which looks on gets only what is new.

One copy for all who look. A version is good within one process; whoever comes with another's gets everything.
"""

from __future__ import annotations

import json
import secrets
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from threading import Lock

BOOT = secrets.token_hex(4)  # of this process
SAYINGS = 50  # that are remembered for those who look on
MOST_SAID = 3  # at once: who listens is told the rest as a number
GONE = 1000  # parts that are remembered to be gone


class Topic:
    """The parts of one page, by name, each a piece of HTML. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._version = 1
        self._parts: dict[str, tuple[int, str]] = {}
        self._gone: dict[str, int] = {}
        self._said: deque[tuple[int, str]] = deque(maxlen=SAYINGS)
        self._messages: dict[int, bytes] = {}  # since which version -> what is new, for those who come next

    @property
    def version(self) -> int:
        return self._version

    @property
    def mark(self) -> str:
        """What a page says to get what is new since."""
        return f"{BOOT}-{self._version}"

    def __getitem__(self, name: str) -> str:
        return self._parts[name][1] if name in self._parts else ""

    def names(self) -> Collection[str]:
        with self._lock:
            return tuple(self._parts)

    def put(self, parts: Mapping[str, str], *, gone: Collection[str] = (), says: Collection[str] = ()) -> bool:
        """Take over parts; true when something is new. `says`: what a person who listens should hear of it."""
        with self._lock:
            new = {k: text for k, text in parts.items() if k not in self._parts or self._parts[k][1] != text}
            lost = [k for k in gone if k in self._parts]
            if not new and not lost and not says:
                return False
            self._version += 1
            self._messages.clear()
            for name, text in new.items():
                self._parts[name] = (self._version, text)
                self._gone.pop(name, None)
            for name in lost:
                del self._parts[name]
                self._gone[name] = self._version
            while len(self._gone) > GONE:
                del self._gone[next(iter(self._gone))]
            self._said.extend((self._version, text) for text in says)
            return True

    def since(self, mark: str) -> tuple[bytes, str]:
        """What is new since a mark, as the data of an event (b"" for nothing), and the mark that it leads to."""
        boot, _, number = mark.partition("-")
        version = int(number) if boot == BOOT and number.isdecimal() and len(number) < 16 else 0
        with self._lock:
            if version == self._version:
                return b"", self.mark
            if version > self._version:
                version = 0
            if version not in self._messages:
                self._messages[version] = self._message(version)
            return self._messages[version], self.mark

    def _message(self, version: int) -> bytes:
        found: dict[str, object] = {"parts": {k: t for k, (v, t) in self._parts.items() if v > version}}
        if version == 0:
            found["all"] = True  # what is not among the parts is gone
        elif lost := [k for k, v in self._gone.items() if v > version]:
            found["gone"] = lost
        if version and (said := list(self._says(version))):
            found["says"] = said
        return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()

    def _says(self, version: int) -> Iterator[str]:
        new = [text for v, text in self._said if v > version]
        yield from new[:MOST_SAID]
        if len(new) > MOST_SAID:
            yield f"and {len(new) - MOST_SAID} more changes"
