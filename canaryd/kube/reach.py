"""Whether an API server answers at all, known to everybody in this process who speaks with it.

A watch may be silent for a minute with nothing wrong, and a hung server looks the same. So whoever watches keeps a
Pulse: it asks for the server's version when nobody has heard from the server for a while, and only then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from canaryd.errors import KubeError

QUIET_S = 4.0  # nobody has heard from the server for so long: ask it


class Reach:
    """When a server last answered, and why it does not. Times are on time.monotonic()."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heard = time.monotonic()
        self._failing = ""

    def heard(self) -> None:
        """An answer, or a part of one, has come; a refusal is an answer, too."""
        with self._lock:
            self._heard = time.monotonic()
            self._failing = ""

    def failed(self, why: str, asked_at: float) -> None:
        """No answer to what was asked at `asked_at`; ignored when something was heard since."""
        with self._lock:
            if asked_at >= self._heard:
                self._failing = why

    def quiet(self) -> float:
        """Seconds since anything was heard."""
        return time.monotonic() - self._heard

    def trouble(self) -> str:
        """ "" while the server answers; else for how long it has not, and why."""
        with self._lock:
            if not self._failing:
                return ""
            return f"the API server has not answered for {time.monotonic() - self._heard:.0f} s: {self._failing}"


_known: dict[str, Reach] = {}
_known_lock = threading.Lock()


def reach_of(server: str) -> Reach:
    """The one Reach of that URL in this process."""
    with _known_lock:
        return _known.setdefault(server, Reach())


class Pulse:
    """Asks a quiet server whether it is there, as long as anybody wants it. Safe to use from several threads."""

    def __init__(self, reach: Reach, ask: Callable[[], None]) -> None:
        """`ask` sends one small request that ends within QUIET_S and tells `reach`; it may raise KubeError."""
        self._reach = reach
        self._ask = ask
        self._lock = threading.Lock()
        self._wanted = 0
        self._over = threading.Event()

    def start(self) -> None:
        with self._lock:
            self._wanted += 1
            if self._wanted == 1:
                self._over = threading.Event()
                threading.Thread(target=self._run, args=(self._over,), name="pulse", daemon=True).start()

    def stop(self) -> None:
        with self._lock:
            self._wanted = max(0, self._wanted - 1)
            if not self._wanted:
                self._over.set()

    def _run(self, over: threading.Event) -> None:
        while not over.wait(max(0.1, QUIET_S - self._reach.quiet())):
            if self._reach.quiet() < QUIET_S:
                continue
            began = time.monotonic()
            try:
                self._ask()
            except KubeError:
                over.wait(QUIET_S - (time.monotonic() - began))  # refused at once: no quicker than a hang
