"""A demo as a person starts it in a terminal, for the tests of both demos."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def started(
    argv: Sequence[str], cwd: Path, said: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`python -m ARGV` in a process group of its own, with these variables as well; what it says goes to a file."""
    with said.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *argv],
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
            process_group=0,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def alive_in(directory: Path) -> list[str]:
    """Command lines of processes that speak of the directory or work in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = os.readlink(entry / "cwd")
        except OSError:
            continue  # it has ended meanwhile
        if str(directory) in line or where.startswith(str(directory)):
            found.append(line)
    return found
