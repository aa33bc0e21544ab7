"""Runs afterPromotion hooks in the background: a command without a shell, or a webhook.

At least once each: a hook that was running when the daemon died is started again with the same id, so a hook that must
not run twice looks at CANARYD_HOOK_ID. It hands over the facts it is given and nothing of the daemon's own environment,
and shows neither the arguments of a command nor the path of a webhook, which may be secret.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from urllib.parse import urlsplit

import requests

from canaryd.model import HookState, HookStatus
from canaryd.policy import Canary, Hook

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_OUTPUT = 2048  # bytes of a command's output that are kept, the last ones
MAX_FACT = 4096  # characters of one fact
_LONGEST_BACKOFF = 60.0  # seconds
_GRACE = 1.0  # seconds between SIGTERM and SIGKILL
_REMEMBERED = 256  # results kept for those who ask again


@dataclass(slots=True)
class _Run:
    """One hook, from its first attempt to its result."""

    id: str
    hook: Hook
    facts: dict[str, str]
    status: HookStatus = HookStatus.OWED
    detail: str = ""
    thread: threading.Thread | None = None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How one attempt ended."""

    done: bool
    detail: str


class HookRunner:
    """ports.Hooks. `backoff` is the wait before the first retry; it doubles each time, up to a minute."""

    def __init__(self, backoff: timedelta = timedelta(seconds=1)) -> None:
        self._backoff = backoff
        self._runs: dict[str, _Run] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def advance(self, canary: Canary, hook: Hook, state: HookState, facts: Mapping[str, str]) -> HookState:
        """See ports.Hooks. A result is kept, so that asking again after a failed save does not run the hook again."""
        if state.status is not HookStatus.OWED:
            return state
        with self._lock:
            run = self._runs.get(state.id)
            if run is None and not self._closing.is_set():
                run = self._start(canary, hook, state.id, facts)
            return replace(state, status=run.status, detail=run.detail) if run is not None else state

    def close(self, grace: timedelta = timedelta(seconds=3)) -> None:
        """Start nothing more, end the commands that run, and return within `grace`. What was not done stays owed."""
        with self._lock:
            self._closing.set()
            threads = [run.thread for run in self._runs.values() if run.thread is not None]
        deadline = time.monotonic() + grace.total_seconds()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self, canary: Canary, hook: Hook, hook_id: str, facts: Mapping[str, str]) -> _Run:
        self._forget()
        told = {"canary": canary.name, **facts}
        run = _Run(hook_id, hook, {_plain(k): _plain(v) for k, v in told.items()}, detail="first attempt is running")
        run.thread = threading.Thread(target=self._work, args=(run,), name=f"hook {hook_id}", daemon=True)
        self._runs[hook_id] = run
        run.thread.start()
        return run

    def _forget(self) -> None:
        over = [run.id for run in self._runs.values() if run.status is not HookStatus.OWED][: -_REMEMBERED or None]
        for hook_id in over:
            del self._runs[hook_id]

    def _work(self, run: _Run) -> None:
        attempts = run.hook.retries + 1
        for attempt in range(1, attempts + 1):
            outcome = self._attempt(run)
            if self._closing.is_set() and not outcome.done:
                return
            if outcome.done:
                self._finish(run, HookStatus.DONE, f"done at attempt {attempt}: {outcome.detail}")
                return
            if attempt < attempts:
                wait = min(self._backoff.total_seconds() * 2.0 ** min(attempt - 1, 20), _LONGEST_BACKOFF)
                self._tell(run, f"attempt {attempt} of {attempts} failed: {outcome.detail}")
                if self._closing.wait(wait):
                    return
        count = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        self._finish(run, HookStatus.FAILED, f"gave up after {count}: {outcome.detail}")

    def _tell(self, run: _Run, detail: str) -> None:
        with self._lock:
            run.detail = detail

    def _finish(self, run: _Run, status: HookStatus, detail: str) -> None:
        with self._lock:
            run.status, run.detail = status, detail

    def _attempt(self, run: _Run) -> _Outcome:
        if run.hook.command:
            return _command(run, self._closing.is_set)
        return _webhook(run, self._closing.is_set)


def _plain(text: str) -> str:
    return str(text).replace("\0", "")[:MAX_FACT]


# ── a command ────────────────────────────────────────────────────────────────────────────────────────────────


def _environment(run: _Run) -> dict[str, str]:
    named = {re.sub(r"[^A-Z0-9]", "_", key.upper()): value for key, value in run.facts.items()}
    return {"PATH": PATH, **{f"CANARYD_{key}": value for key, value in named.items()}, "CANARYD_HOOK_ID": run.id}


def _command(run: _Run, stopping: Callable[[], bool]) -> _Outcome:
    """Run the command in a process group of its own; after the time-out the whole group is ended."""
    name = run.hook.command[0]
    try:
        process = subprocess.Popen(  # noqa: S603  # argv comes from the operator's document; there is no shell
            run.hook.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(run),
            start_new_session=True,
        )
    except (OSError, ValueError) as e:
        return _Outcome(done=False, detail=f"{name} cannot be started: {getattr(e, 'strerror', None) or e}")
    with process:
        ended, output = _follow(process, run.hook.timeout.total_seconds(), stopping)
        if not ended:
            _end_group(process)
    tail = f"; output: {output}" if output else ""
    if not ended:
        why = "was ended with the daemon" if stopping() else f"took longer than {_seconds(run.hook)} and was ended"
        return _Outcome(done=False, detail=f"{name} {why}{tail}")
    code = process.returncode
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return _Outcome(done=code == 0, detail=f"{name}: {how}{tail}")


def _follow(process: subprocess.Popen[bytes], timeout: float, stopping: Callable[[], bool]) -> tuple[bool, str]:
    """Wait for the end; whether it came in time, and the last of the output.

    The end is that of the process, not that of its output: what it left running may keep the pipe open.
    """
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    os.set_blocking(pipe, False)
    deadline = time.monotonic() + timeout
    kept = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            code = process.poll()  # before reading, so that the last words are read too
            kept, closed = _drain(pipe, kept)
            if code is not None:
                return True, kept.decode(errors="replace").strip()
            if stopping() or time.monotonic() >= deadline:
                return False, kept.decode(errors="replace").strip()
            if closed:
                time.sleep(0.05)
            else:
                selector.select(0.05)


def _drain(pipe: int, kept: bytes) -> tuple[bytes, bool]:
    """Read what is there, at most 1 MB at a time; the last bytes, and whether the pipe has ended."""
    for _ in range(16):
        try:
            data = os.read(pipe, 65536)
        except BlockingIOError:
            return kept, False
        if not data:
            return kept, True
        kept = (kept + data)[-MAX_OUTPUT:]
    return kept, False


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the whole group, SIGKILL to what is left of it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= deadline:
            break
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # not yet waited for, so the number is still its own
    process.wait()


def _seconds(hook: Hook) -> str:
    return f"{hook.timeout.total_seconds():g} s"


# ── a webhook ────────────────────────────────────────────────────────────────────────────────────────────────


def _webhook(run: _Run, stopping: Callable[[], bool]) -> _Outcome:
    """POST the facts; 2xx is done. In a thread of its own: a server that dribbles outlives every time-out."""
    timeout = run.hook.timeout.total_seconds()
    outcomes: list[_Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(_post(run, timeout)), name="hook post", daemon=True)
    thread.start()
    deadline = time.monotonic() + timeout
    while thread.is_alive() and time.monotonic() < deadline and not stopping():
        thread.join(min(0.1, timeout))
    if outcomes:
        return outcomes[0]
    return _Outcome(done=False, detail=f"{_host(run.hook)} did not answer within {_seconds(run.hook)}")


def _post(run: _Run, timeout: float) -> _Outcome:
    host = _host(run.hook)
    body = {**run.facts, "id": run.id}
    try:
        with requests.post(
            run.hook.webhook or "", json=body, timeout=timeout, stream=True, allow_redirects=False
        ) as response:
            return _Outcome(done=200 <= response.status_code < 300, detail=f"{host} answered {response.status_code}")
    except requests.Timeout:
        return _Outcome(done=False, detail=f"{host} did not answer within {_seconds(run.hook)}")
    except requests.exceptions.SSLError:
        return _Outcome(done=False, detail=f"{host}: its TLS certificate could not be verified")
    except (requests.RequestException, ValueError, OSError) as e:
        return _Outcome(done=False, detail=f"{host} cannot be reached: {type(e).__name__}")


def _host(hook: Hook) -> str:
    """Scheme, host and port: the rest of the URL may be secret."""
    parts = urlsplit(hook.webhook or "")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
