"""Who runs the daemon: one process for each state file, so that nobody ticks against anybody.

The kernel keeps the lock and lets go of it when the process ends, however it ends; the text in the lock file only says
whose it is, and nothing is decided from it. Even without this lock a second daemon would move nothing: the version of
the state refuses it. The time of day comes from the caller.
"""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import sleep

from canaryd.errors import LeaderError, StoreError

_TRIES = 6  # somebody who only asks for the holder has the lock for a moment
_PAUSE_S = 0.05
_LONGEST = 200  # bytes of the lock file that are read


class StateLock:
    """The right to run on one state file. The file `<state>.lock` stays when the lock is gone; that means nothing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """`path` is the state file, which need not exist yet; its directory must."""
        state = Path(path).resolve()  # the same file by another name is the same lock
        self._path = state.with_name(state.name + ".lock")
        self._state = state
        self._descriptor: int | None = None

    def acquire(self, now: datetime) -> None:
        """Take the lock and write down who has it since when; harmless when this object has it already.

        Gives up after a third of a second. Raises LeaderError that says who holds it, StoreError when there can be no
        lock file.
        """
        if self._descriptor is not None:
            return
        descriptor = self._open(os.O_RDWR | os.O_CREAT)
        with ExitStack() as undo:
            undo.callback(os.close, descriptor)
            if not _locked(descriptor, fcntl.LOCK_EX, tries=_TRIES):
                holder = _text(descriptor) or "another process"
                raise LeaderError(f"{self._state} is in use by {holder}; one state file has one daemon")
            self._write(descriptor, f"pid {os.getpid()} on {socket.gethostname()} since {_iso(now)}")
            undo.pop_all()
        self._descriptor = descriptor

    def holder(self) -> str:
        """Who holds it: "pid N on HOST since TIME"; "" when nobody does, whatever a stale file says.

        Raises StoreError when the lock file cannot be used.
        """
        if self._descriptor is not None:
            return _text(self._descriptor)
        if not self._path.exists():
            return ""
        descriptor = self._open(os.O_RDWR)
        try:
            if _locked(descriptor, fcntl.LOCK_SH, tries=1):
                return ""
            return _text(descriptor) or "another process"
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Let go of it; harmless when it is not held."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):  # a full disk is no reason to keep the lock
                os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def _open(self, flags: int) -> int:
        try:
            return os.open(self._path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as e:
            raise StoreError(f"{self._path}: the lock file cannot be used: {e.strerror}") from e

    def _write(self, descriptor: int, text: str) -> None:
        with suppress(OSError):  # the lock holds without its text, even on a full disk
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text.encode(), 0)


def _locked(descriptor: int, kind: int, *, tries: int) -> bool:
    for attempt in range(tries):
        if attempt:
            sleep(_PAUSE_S)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        except OSError as e:
            raise StoreError(f"the file system of the state allows no locks: {e.strerror}") from e
        return True
    return False


def _text(descriptor: int) -> str:
    """What the holder wrote; printable characters only, for it goes to a terminal."""
    try:
        raw = os.pread(descriptor, _LONGEST, 0)
    except OSError:
        return ""
    return "".join(c for c in raw.decode("utf-8", "replace") if c.isprintable()).strip()


def _iso(now: datetime) -> str:
    return now.astimezone(UTC).isoformat(timespec="seconds")
