"""What a long-running canaryd does in either mode: pages, jobs, ticks, deliveries, an orderly end.

One job per interval, aligned to the grid of the counters, never overlapping itself; deliveries apart from them. Knows
no statistics. With `canaryd.daemon` and `canaryd.cluster` the only place that asks for the time.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from canaryd import plan, telemetry, web
from canaryd.config import Settings
from canaryd.delivery import Delivery
from canaryd.errors import CanarydError
from canaryd.measure import grid_floor
from canaryd.policy import Canary
from canaryd.ports import Ports
from canaryd.reconcile import Outcome, Reconciler
from canaryd.traces.telling import with_traces

if TYPE_CHECKING:
    from canaryd.dashboard.feed import Feed
    from canaryd.dashboard.server import Server as Dashboard

log = structlog.get_logger("canaryd.daemon")

INBOX = timedelta(milliseconds=200)
DELIVERY = timedelta(seconds=2)  # how often it is counted what is owed
PRUNE = timedelta(hours=1)
TICK_SOON = timedelta(milliseconds=30)  # after the instant that is read
PLACEBO_WINDOW = timedelta(hours=24)
PLACEBO_PODS = 3  # of stable, so that two are left to be compared with
PLACEBO_SECONDS = 60.0  # of one run; who has not had a turn by then begins the next one
STALLED = 5  # intervals without a tick after which /healthz says so


def now() -> datetime:
    return datetime.now(UTC)


class Base(ABC):
    """What both modes share: pages, jobs, ticks, deliveries, an orderly end."""

    ports: Ports
    reconciler: Reconciler
    delivery: Delivery
    scheduler: BackgroundScheduler

    def __init__(self, settings: Settings, root: Path) -> None:
        self.settings, self.root = settings, root
        self.holder = f"pid {os.getpid()} on {socket.gethostname()}"
        self.telemetry = telemetry.Telemetry()
        self.stopping = threading.Event()
        self.leading = threading.Event()
        self.standby = "starting"
        self.canaries: tuple[Canary, ...] = ()
        self.problems: tuple[str, ...] = ()  # what is wrong in the documents, each in a line
        self.last_tick = time.monotonic()
        self._jobs: frozenset[timedelta] = frozenset()
        self._placebo_turns: list[str] = []  # canaries that had no turn the last time

    @abstractmethod
    def run(self) -> int:
        """Until asked to stop; returns the exit code."""

    @abstractmethod
    def _status(self) -> web.Page:
        """What every canary is at, and who leads."""

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stopping.is_set():
            os._exit(128 + number)  # asked twice: a person is waiting
        self.stopping.set()

    # ── the life of the process ──────────────────────────────────────────────────────────────────────────────

    def _serve(self) -> web.Server | None:
        address = self.settings.web.address
        if address is None:
            return None
        pages = {
            "/metrics": lambda: (200, telemetry.CONTENT_TYPE, self.telemetry.exposition()),
            "/healthz": self.health,
            "/readyz": self._ready,
            "/status": self._status,
        }
        server = web.Server(address, pages)
        log.info("listening", address=f"{server.address[0]}:{server.address[1]}")
        return server

    def _serve_dashboard(self, feed: Callable[[], Feed]) -> Dashboard | None:
        """Pages for people, where they are configured. `feed` makes what they read; nothing is loaded without them.

        Raises DashboardError.
        """
        if self.settings.dashboard.address is None:
            return None
        from canaryd.dashboard.server import Server

        server = Server(self.settings.dashboard, feed())
        log.info(
            "dashboard", address=f"{server.address[0]}:{server.address[1]}", actions=self.settings.dashboard.actions
        )
        return server

    # ── jobs ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _every(self, interval: timedelta, name: str, job: Callable[[], None]) -> None:
        """A job that never overlaps itself, never piles up, and whose defects are logged, not fatal."""
        seconds = interval.total_seconds()
        self.scheduler.add_job(
            _safe(name, job),
            "interval",
            seconds=seconds,
            id=name,
            start_date=grid_floor(now(), interval) + interval + TICK_SOON,
            max_instances=1,
            coalesce=True,
            misfire_grace_time=max(1, round(seconds)),
            replace_existing=True,
        )

    def _schedule_ticks(self) -> None:
        """One job for each interval in use; all its canaries share one look at the counters."""
        wanted = frozenset(c.spec.interval for c in self.canaries)
        for interval in self._jobs - wanted:
            self.scheduler.remove_job(f"tick-{interval}")
        for interval in wanted - self._jobs:
            lag = self.ports.metrics.lag
            self.scheduler.add_job(
                _safe("tick", partial(self._tick_interval, interval)),
                "interval",
                seconds=interval.total_seconds(),
                id=f"tick-{interval}",
                start_date=grid_floor(now() - lag, interval) + interval + lag + TICK_SOON,
                max_instances=1,
                coalesce=True,
                misfire_grace_time=max(1, round(interval.total_seconds())),
            )
        self._jobs = wanted

    def _tick_interval(self, interval: timedelta) -> None:
        self._tick([c for c in self.canaries if c.spec.interval == interval])

    def _tick(self, canaries: Sequence[Canary], *, measure: bool = True) -> Sequence[Outcome]:
        began, cpu, at = time.monotonic(), time.process_time(), now()
        outcomes = self.reconciler.tick(canaries, at, measure=measure)
        self.last_tick = time.monotonic()
        seconds = self.last_tick - began
        self.telemetry.ticked(outcomes, seconds, at)
        cpu = time.process_time() - cpu
        log.debug("tick", canaries=len(canaries), counted=measure, seconds=round(seconds, 3), cpu=round(cpu, 3))
        if measure:
            self._beat()
        return outcomes

    @abstractmethod
    def _beat(self) -> None:
        """A sign of life, where others look for one."""

    def _deliver(self) -> None:
        """Begin to tell people, in threads of their own."""
        self.delivery.start(now, self._may_tell)
        for listener in self.ports.listeners:
            listener.start()

    def _end_delivery(self) -> None:
        for listener in self.ports.listeners:
            listener.close()
        self.delivery.stop()

    def _told(self) -> list[dict[str, object]]:
        """For /status: what each notifier owes, and what is wrong with it."""
        heard: list[dict[str, object]] = [
            {"name": x.name, "listens": True, "failing": x.trouble} for x in self.ports.listeners
        ]
        return [*self.delivery.status(now()), *heard]

    def _may_tell(self) -> bool:
        return self.leading.is_set()

    def _tell(self) -> None:
        """How much is owed to whom. The couriers look for themselves."""
        self.telemetry.owed.set(len(self.ports.store.owed()))
        for one in self.delivery.status(now()):
            self.telemetry.pending(one["name"], one["owed"], one["oldestSeconds"])

    def _new_delivery(self) -> Delivery:
        wanted = self.settings.notify
        return Delivery(
            self.ports.notifiers,
            self.ports.store,
            prepare=with_traces(self.ports.evidence, lambda: self.canaries),
            give_up=wanted.give_up,
            report=self.telemetry.notified,
        )

    def _prune(self) -> None:
        keep = self.settings.retention
        gone = self.ports.store.prune(now() - timedelta(days=keep.days), keep.at_least)
        if gone:
            log.info("pruned", records=gone)

    def draw_placebos(self) -> None:
        """Judge stable pods as canaries, one canary after the other, for a minute at most; the rest is next time's."""
        began = time.monotonic()
        turns, self._placebo_turns = self._placebo_turns, []
        names = {c.key: c for c in self.canaries}
        order = [*(n for n in turns if n in names), *(n for n in names if n not in turns)]
        for i, name in enumerate(order):
            if self.stopping.is_set() or time.monotonic() - began > PLACEBO_SECONDS:
                self._placebo_turns = order[i:]
                return
            try:
                self._placebo_of(names[name], began)
            except CanarydError as e:
                log.info("no placebo", canary=name, reason=str(e))

    def _placebo_of(self, canary: Canary, began: float) -> None:
        from canaryd.hindsight import placebo  # not loaded where nobody asked for it

        state = self.ports.store.load(canary.key).state or plan.initial(canary)
        source, end = self.ports.metrics, now() - self.ports.metrics.lag
        drawn = []
        for one in placebo.draw(
            canary,
            state.stable,
            source,
            end - PLACEBO_WINDOW,
            end,
            draws=self.settings.placebo.draws,
            least_pods=PLACEBO_PODS,
            seed=int(end.timestamp()),
        ):
            drawn.append(one)
            if self.stopping.is_set() or time.monotonic() - began > PLACEBO_SECONDS:
                break
        rate = placebo.Rate.of(drawn)
        self.telemetry.placebo(canary.key, rate.draws, rate.rollbacks)
        log.info("placebo", canary=canary.key, draws=rate.draws, rollbacks=rate.rollbacks, low=rate.low, high=rate.high)

    # ── pages ────────────────────────────────────────────────────────────────────────────────────────────────

    def health(self) -> web.Page:
        """The loop turns: the last tick (or the last try for the lock) is not too long ago."""
        longest = max((c.spec.interval for c in self.canaries), default=timedelta(seconds=30))
        age = time.monotonic() - self.last_tick
        allowed = STALLED * longest.total_seconds() + 10
        if self.canaries and age > allowed:
            return web.text(503, f"no tick for {age:.0f} s, allowed are {allowed:.0f} s")
        return web.text(200, "ok")

    def _ready(self) -> web.Page:
        if self.leading.is_set():
            return web.text(200, "leading")
        if self.stopping.is_set():
            return web.text(503, "stopping")
        return web.text(200 if self.standby != "starting" else 503, f"standby: {self.standby}")


def new_scheduler() -> BackgroundScheduler:
    return BackgroundScheduler(executors={"default": ThreadPoolExecutor(8)}, timezone=UTC)


def _safe(name: str, job: Callable[[], None]) -> Callable[[], None]:
    """A defect in one run of a job is logged with its traceback; the next run comes all the same."""

    def run() -> None:
        try:
            job()
        except CanarydError as e:
            log.error("held", job=name, reason=str(e))  # noqa: TRY400 - said in words, a traceback adds nothing
        except Exception:
            log.exception("defect", job=name)

    return run
