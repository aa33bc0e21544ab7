"""Children that cannot outlive us: started from one lasting thread, logged to files, always waited for.

It never uses a shell, never kills a process it did not start, and never hands our environment on (only a few
harmless names), so no secret of the caller reaches a child.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import urlsplit

from canaryd.errors import CanarydError

T = TypeVar("T")

LEASH = Path(__file__).with_name("leash.py")
KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "PYTHONPATH", "VIRTUAL_ENV")
LOWEST_PORT, HIGHEST_PORT = 10240, 32767
_given_ports: set[int] = set()
_ports_lock = threading.Lock()


class LabError(CanarydError):
    """A part of the laboratory is missing, did not start, or did not answer in time; the message says which."""


class Child:
    """One running program in its own process group. Signals go to the whole group."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.pid = popen.pid
        self.log = log  # standard output and error, appended to over restarts
        self._popen = popen

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._popen.poll()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._signal(signal.SIGKILL)
        self._popen.wait()

    def freeze(self) -> None:
        """SIGSTOP: its connections stay open and nothing answers, as on a machine that hangs."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: undo `freeze`."""
        self._signal(signal.SIGCONT)

    def stop(self, grace: float = 5.0) -> int:
        """SIGTERM, then SIGKILL after `grace` seconds; waits and returns the exit code. Harmless when it is gone."""
        self.ask_to_stop()
        return self.await_end(grace)

    def ask_to_stop(self) -> None:
        """SIGTERM, without waiting; a frozen child is thawed so that it can obey."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def await_end(self, grace: float) -> int:
        """Wait up to `grace` seconds, then SIGKILL; returns the exit code."""
        try:
            return self._popen.wait(max(0.0, grace))
        except subprocess.TimeoutExpired:
            self.kill()
            return self._popen.wait()

    def last_words(self, lines: int = 8) -> str:
        """The end of its log, for an error message."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _signal(self, number: signal.Signals) -> None:
        if self._popen.poll() is None:  # not yet waited for, so the number cannot belong to somebody else
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


class Nursery:
    """Starts children from one thread that lives as long as they do, and ends them all when it is left.

    The kernel ends a child together with the *thread* that started it (leash.py, and the wheel's Envoy by
    itself), so callers may start children from any short-lived thread. Should this process be killed, the
    kernel kills the children; on other systems than Linux only an orderly exit does.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: list[Child] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nursery")
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        atexit.register(self.close)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, name: str, argv: Sequence[str]) -> Child:
        """Start `argv` (argv[0] is a path); its output goes to NAME.log. Raises LabError after `close`."""
        if self._closed:
            raise LabError(f"{name} cannot be started: the laboratory is closed")
        return self._thread.submit(self._start, name, argv).result()

    def running(self) -> list[Child]:
        with self._lock:
            return [child for child in self._children if child.running]

    def close(self, grace: float = 5.0) -> None:
        """Stop every child, all at once, within about `grace` seconds, and wait for each. May be called again."""
        if self._closed:
            return
        self._closed = True
        try:
            self._thread.submit(int).result()  # a start that Ctrl-C interrupted has now happened, and is seen
            stop_all(self.running(), grace)
        except BaseException:  # a second Ctrl-C while we wait: be short, but leave nobody behind
            for child in self.running():
                child.kill()
            raise
        finally:
            self._thread.shutdown(wait=False)
            atexit.unregister(self.close)

    def _start(self, name: str, argv: Sequence[str]) -> Child:
        log = self._logs / f"{name}.log"
        environment = {key: os.environ[key] for key in KEPT_ENVIRONMENT if key in os.environ}
        leashed = [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), *argv]
        with log.open("ab") as output:
            popen = subprocess.Popen(  # its own group: Ctrl-C in a terminal reaches us alone, and we decide
                leashed, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, process_group=0
            )
        child = Child(name, popen, log)
        with self._lock:
            self._children.append(child)
        return child


def stop_all(children: Iterable[Child], grace: float = 5.0) -> None:
    """SIGTERM to all, then SIGKILL to whoever is left after `grace` seconds; returns when none is left."""
    asked = list(children)
    deadline = time.monotonic() + grace
    for child in asked:
        child.ask_to_stop()
    for child in asked:
        child.await_end(deadline - time.monotonic())


def free_port() -> int:
    """A free port of 127.0.0.1, below the range that outgoing connections use; nobody gets it again while we run.

    A port inside that range would not do: while its server is down, a client's own connection can take it (then
    the server cannot come back) or even connect to itself. Nor would one that another laboratory on this machine has
    been given and not bound yet.
    """
    highest = min(HIGHEST_PORT, _first_ephemeral_port() - 1)
    with _ports_lock:
        for _ in range(200):
            port = random.randint(LOWEST_PORT, highest) if highest > LOWEST_PORT + 1000 else 0
            port = _bindable(port)
            if port and port not in _given_ports and _claimed(port):
                _given_ports.add(port)
                return port
    raise LabError("no free port found on 127.0.0.1")


def _claimed(port: int) -> bool:
    """No other process on this machine has been given the port: whoever has holds a name that ends with it."""
    if sys.platform != "linux":  # there are no such names
        return True
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0canaryd-port-{port}")
    except OSError:
        claim.close()
        return False
    claim.detach()  # stays open until we end
    return True


def _first_ephemeral_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return HIGHEST_PORT + 1


def _bindable(port: int) -> int:
    """The port bound (0 asks for any), or 0 when it is taken."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
        number: int = probe.getsockname()[1]
        return number


def wait_until(probe: Callable[[], T], what: str, timeout: float = 10.0, every: float = 0.03) -> T:
    """Ask `probe` until it answers something true and return that. Raises LabError naming `what` after `timeout` s."""
    deadline = time.monotonic() + timeout
    while not (answer := probe()):
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout:g} s (last answer: {answer!r})")
        time.sleep(every)
    return answer


def fetch(url: str, body: bytes | None = None, timeout: float = 2.0) -> tuple[int, bytes]:
    """GET, or POST when there is a body; answers (status, body). Raises OSError when nobody answers in time."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("GET" if body is None else "POST", path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except http.client.HTTPException as e:
        raise ConnectionError(f"{url}: {e!r}") from e
    finally:
        connection.close()


def await_ready(child: Child, url: str, timeout: float = 10.0) -> None:
    """Wait until `url` answers 200. Raises LabError with the end of the child's log when it dies or stays silent."""

    def answers() -> bool:
        if not child.running:
            raise LabError(f"{child.name} ended with {child.exit_code}:\n{child.last_words()}")
        try:
            return fetch(url, timeout=1.0)[0] == 200
        except OSError:
            return False

    try:
        wait_until(answers, f"{child.name} to answer {url}", timeout)
    except LabError as e:
        if child.running:
            raise LabError(f"{e}\n{child.last_words()}") from e
        raise
