"""A container's view of a file system without a container engine, by bubblewrap.

The root is an empty read-only tree that shows this machine's /usr and its Python; whatever else a command may
see or write is named by the caller. The command is process 1 of its own process namespace, as in a container.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# what a slim image's /etc holds and a program needs: names, certificates, the loader's cache
ETC = (
    "ssl", "hosts", "resolv.conf", "nsswitch.conf", "passwd", "group", "localtime",
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives",
)  # fmt: skip


@dataclass(frozen=True)
class Sandbox:
    """What a command sees beside the system: `writable` and `readable` map a path inside to one outside."""

    bwrap: str
    uid: int
    writable: dict[str, Path]
    readable: dict[str, Path]
    environment: dict[str, str]
    workdir: str

    def argv(self, command: list[str], *more: str) -> list[str]:
        """The whole command line, bubblewrap included."""
        words = [self.bwrap, "--unshare-pid", "--as-pid-1", "--unshare-ipc", "--die-with-parent", "--new-session"]
        words += ["--tmpfs", "/", "--proc", "/proc", "--dev", "/dev", "--clearenv"]
        for parent in self._parents():  # bubblewrap would make them for root's eyes only
            words += ["--perms", "0755", "--dir", parent]
        for folder in ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/run/systemd/resolve"):
            outside = Path(folder)
            if outside.is_symlink():
                words += ["--symlink", os.readlink(outside), folder]
            else:
                words += ["--ro-bind-try", folder, folder]
        for name in ETC:
            words += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        for inside, path in self.readable.items():
            words += ["--ro-bind", str(path), inside]
        for inside, path in self.writable.items():
            words += ["--bind", str(path), inside]
        if not sys.base_prefix.startswith("/usr"):
            words += ["--ro-bind", sys.base_prefix, sys.base_prefix]
        for key, value in self.environment.items():
            words += ["--setenv", key, value]
        words += ["--remount-ro", "/", "--chdir", self.workdir, *more]
        return [*words, *self._as_user(), *command]

    def _parents(self) -> list[str]:
        """Every folder above something bound, outermost first."""
        bound = [*self.readable, *self.writable, *(f"/etc/{name}" for name in ETC), sys.base_prefix]
        above = {str(parent) for place in bound for parent in Path(place).parents}
        return sorted(parent for parent in above if parent != "/" and not parent.startswith("/usr"))

    def _as_user(self) -> list[str]:
        """Root really becomes the user and keeps no right; anybody else becomes it in a user namespace."""
        number = str(self.uid)
        if os.getuid() != 0:
            return ["--unshare-user", "--uid", number, "--gid", number, "--"]
        if self.uid == 0:
            return ["--cap-drop", "ALL", "--"]
        # what it takes to enter the user's folder and to become the user, who keeps none of it
        keep = ["--cap-drop", "ALL"]
        for right in ("DAC_READ_SEARCH", "SETUID", "SETGID", "SETPCAP"):
            keep += ["--cap-add", f"CAP_{right}"]
        drop = ["setpriv", f"--reuid={number}", f"--regid={number}", "--clear-groups"]
        return [*keep, "--", *drop, "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]

    def run(self, command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
        """Run to the end, `timeout` in seconds; output and errors come back as one text."""
        return subprocess.run(
            self.argv(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    @contextmanager
    def started(self, command: list[str], output: IO[str]) -> Iterator[Running]:
        """The command in the background; killed at the end of the block if it still runs."""
        read, write = os.pipe()
        process = subprocess.Popen(
            self.argv(command, "--info-fd", str(write)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(write,),
        )
        os.close(write)
        try:
            with os.fdopen(read, encoding="utf-8") as info:
                pid = int(json.load(info)["child-pid"])
            yield Running(process, pid)
        finally:
            process.kill()  # takes the whole process namespace with it
            process.wait()


@dataclass(frozen=True)
class Running:
    """A command in the background. `pid` is its number outside; inside it is process 1."""

    process: subprocess.Popen[bytes]
    pid: int

    def signal(self, number: int) -> None:
        """Send to the command itself: bubblewrap passes no signal on."""
        os.kill(self.pid, number)
