"""Readiness of two pools of servers, asked at their health URLs.

It knows nothing of pods (no start times), follows no redirect, reads no body, uses no proxy and sends no credentials.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import requests

from canaryd.errors import WorkloadError
from canaryd.model import HookState, HookStatus, Release, RolloutState, WorkloadView
from canaryd.policy import Canary, Pool


class PoolWorkloads:
    """ports.Workloads for `workloads.pools`. A pool is ready when its URL answers 200, or when it has none.

    `view` returns within `timeout` and a fraction of a second, whatever the servers do. A check that hangs beyond that
    is left to itself, and its URL is not asked again before it has ended, so that they cannot pile up.
    """

    def __init__(self, timeout: timedelta = timedelta(seconds=2)) -> None:
        self._timeout = timeout.total_seconds()
        self._checks: dict[str, _Check] = {}  # URL -> the check that hangs

    def release(self, canary: Canary) -> Release | None:
        """People say it."""
        return None

    def view(self, canary: Canary, state: RolloutState) -> WorkloadView:
        """Both pools, asked at the same time. Not answering is not being ready; an unknown pool is a WorkloadError."""
        stable, canary_workload = state.stable, state.canary
        pools = {pool.name: pool for pool in canary.spec.workloads.pools or ()}
        for name in (stable, canary_workload):
            if name not in pools:
                raise WorkloadError(f"{name!r} is none of the pools; known: {', '.join(sorted(pools))}")
        deadline = time.monotonic() + self._timeout
        started = [(pool, self._check(pool)) for pool in (pools[stable], pools[canary_workload])]
        troubles = [trouble for pool, check in started if (trouble := self._trouble(pool, check, deadline))]
        return WorkloadView(ready=not troubles, detail="; ".join(troubles))

    def shape(self, canary: Canary, state: RolloutState, *, version: int, now: datetime) -> tuple[str, ...]:
        """Pools are shaped by their owners."""
        return ()

    def upgrade(self, canary: Canary, state: RolloutState, hook: HookState, *, version: int) -> HookState:
        """Pools swap their roles, or a hook upgrades them."""
        return replace(hook, status=HookStatus.FAILED, detail="pools are upgraded by an afterPromotion hook")

    def restore(
        self, canary: Canary, state: RolloutState, *, version: int, now: datetime, rerouted: bool = False
    ) -> str:
        """Nothing was changed."""
        return ""

    def _check(self, pool: Pool) -> _Check | None:
        if pool.health is None:
            return None
        check = self._checks.get(pool.health)
        if check is None:
            check = self._checks[pool.health] = _Check(pool.health, self._timeout)
        return check

    def _trouble(self, pool: Pool, check: _Check | None, deadline: float) -> str:
        """Why the pool is not ready; "" when it is."""
        if check is None:
            return ""
        answer = check.wait(deadline - time.monotonic())
        if answer is None:
            answer = f"did not answer within {self._timeout:g} s"
        else:
            self._checks.pop(check.url, None)
        return "" if answer == _READY else f"{pool.name} is not ready: {_shown(check.url)} {answer}"


_READY = "answered 200"


class _Check:
    """One GET in a thread of its own, because a server that sends a byte now and then outlives every time-out."""

    def __init__(self, url: str, timeout: float) -> None:
        self.url = url
        self._timeout = timeout
        self._answer: str | None = None
        self._thread = threading.Thread(target=self._run, name="pool-health", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> str | None:
        """What came back; None when nothing did yet."""
        self._thread.join(max(0.0, seconds))
        return self._answer

    def _run(self) -> None:
        try:
            with requests.Session() as session:
                session.trust_env = False  # no proxy, and no password from ~/.netrc
                session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
                with session.get(self.url, timeout=self._timeout, stream=True, allow_redirects=False) as response:
                    self._answer = f"answered {response.status_code}"
        except requests.Timeout:
            self._answer = f"did not answer within {self._timeout:g} s"
        except (requests.RequestException, ValueError, OSError) as e:
            self._answer = f"cannot be asked: {_reason(e)}"


def _shown(url: str) -> str:
    """Without user, password and query, which may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _reason(error: BaseException) -> str:
    """The innermost cause that the system has words for; never the whole text, which holds the URL."""
    reason: str | None = None
    seen: set[int] = set()
    todo: list[object] = [error]
    while todo:
        cause = todo.pop()
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        if isinstance(cause, OSError) and cause.strerror:
            reason = cause.strerror
        todo += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]
    return reason or type(error).__name__
