"""Secrets by the name of their place: read again each time they are needed, so that they may be rotated, and kept by
nobody. No message ever holds one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from canaryd.errors import NotifyError

MOST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Secret:
    """In a file, or else in an environment variable."""

    file: str = ""
    env: str = ""

    @property
    def place(self) -> str:
        return f"the file {self.file}" if self.file else f"the environment variable {self.env}"

    def read(self) -> str:
        """What is there, without blanks around it. Raises NotifyError that names the place when there is nothing."""
        text = self._from_file() if self.file else os.environ.get(self.env, "")
        if not (found := text.strip()):
            raise NotifyError(f"{self.place} {'is empty' if self.file else 'is not set'}; put the secret there")
        return found

    def line(self) -> str:
        """The same where it must be one line of plain characters, as in a header."""
        found = self.read()
        if not (found.isascii() and found.isprintable()) or " " in found:
            raise NotifyError(f"{self.place} does not hold one line without blanks; put the secret alone there")
        return found

    def _from_file(self) -> str:
        try:
            with Path(self.file).open("rb") as file:
                data = file.read(MOST_BYTES + 1)
        except OSError as e:
            raise NotifyError(f"{self.place} cannot be read: {e.strerror or type(e).__name__}") from None
        if len(data) > MOST_BYTES:
            raise NotifyError(f"{self.place} is larger than {MOST_BYTES} bytes; is it the right one?")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise NotifyError(f"{self.place} is no text") from None
