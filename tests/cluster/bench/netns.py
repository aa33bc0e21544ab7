"""A network namespace of this process's own, in which every address of the pod and service ranges is local.

Entered once, early, and for the whole process: afterwards "127.0.0.1" means the bench's loopback for this process and
for every child it starts, so all ports of the bench can be fixed and two benches run side by side. The namespace has
no way out; the kernel removes it with its last process.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

PODS = "10.244.0.0/16"
SERVICES = "10.96.0.0/16"
CLONE_NEWNET = 0x40000000
INSIDE = "CANARYD_BENCH_NAMESPACE"  # the id of the process that `command` started inside one; its children are others


class NoNamespaceError(Exception):
    """This machine cannot give us a network namespace; the message says what is missing."""


def obstacle() -> str | None:
    """Why there can be no namespace here, or None."""
    if _is_inside():
        return None
    if sys.platform != "linux":
        return "the bench needs Linux (network namespaces)"
    if shutil.which("ip") is None:
        return "ip not found: apt-get install iproute2"
    if os.geteuid() != 0 and shutil.which("unshare") is None:
        return "unshare not found: apt-get install util-linux (or run as root)"
    probe = (
        ["unshare", "--net", "true"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net", "true"]
    )
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"no network namespace may be made here ({done.stderr.strip()}): run as root or allow user namespaces"
    return None


def needs_new_process() -> bool:
    """True when only a re-exec of this program (`command`) gets us in: without root, threads forbid it in place."""
    return os.geteuid() != 0 and not _is_inside()


def command(argv: list[str]) -> list[str]:
    """`argv` wrapped so that it runs as root of a user namespace of its own, in a network namespace of its own."""
    return ["unshare", "--user", "--map-root-user", "--net", "env", f"{INSIDE}={os.getpid()}", *argv]


def enter() -> None:
    """Move this thread, and all threads and children it starts from now on, into a new namespace.

    Raises NoNamespaceError. Call it from the main thread before others open sockets: threads that already run stay
    where they are.
    """
    if not _is_inside():
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET) != 0:
            raise NoNamespaceError(f"unshare(CLONE_NEWNET): {os.strerror(ctypes.get_errno())}")
    _ip("link", "set", "lo", "up")
    for net in (PODS, SERVICES):
        _ip("route", "add", "local", net, "dev", "lo")


def is_private() -> bool:
    """True once `enter` has succeeded in this process: the pod range is local."""
    try:
        return "10.244.0.0" in Path("/proc/thread-self/net/fib_trie").read_text()
    except OSError:
        return False


def _is_inside() -> bool:
    return os.environ.get(INSIDE) == str(os.getpid())  # exec keeps the id


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoNamespaceError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
