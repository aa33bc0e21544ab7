"""The long-running process: when to look, when to stop. The only place that asks for the time; knows no statistics.

One job per interval, aligned to the grid of the counters, never overlapping itself; an inbox that is polled so that a
person is answered within a second; deliveries apart from both. SIGTERM finishes what runs and leaves the weights alone.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from canaryd import __version__, plan, telemetry, web, wiring
from canaryd.config import Loaded, Settings, load_canaries, load_settings
from canaryd.errors import CanarydError, LeaderError
from canaryd.leader import StateLock
from canaryd.measure import grid_floor
from canaryd.policy import Canary
from canaryd.reconcile import Reconciler

if TYPE_CHECKING:
    from canaryd.adapters.sqlite_store import SqliteStore

log = structlog.get_logger("canaryd.daemon")

INBOX = timedelta(milliseconds=200)
DELIVERY = timedelta(milliseconds=500)
RELOAD = timedelta(seconds=3)
PRUNE = timedelta(hours=1)
TICK_SOON = timedelta(milliseconds=30)  # after the instant that is read
PLACEBO_WINDOW = timedelta(hours=24)
PLACEBO_PODS = 3  # of stable, so that two are left to be compared with
PLACEBO_SECONDS = 60.0  # of one run; who has not had a turn by then begins the next one
STALLED = 5  # intervals without a tick after which /healthz says so


def now() -> datetime:
    return datetime.now(UTC)


def main(path: Path | str) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. Raises ConfigError or StoreError before anything began."""
    settings = load_settings(path)
    telemetry.configure_logging(settings.log.format, settings.log.level)
    daemon = Daemon(settings, Path(path).resolve().parent)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, daemon.on_signal)
    return daemon.run()


class Daemon:
    """Wires the parts, waits for the lock, runs the jobs, stops in order."""

    def __init__(self, settings: Settings, root: Path) -> None:
        self.settings, self.root = settings, root
        self.holder = f"pid {os.getpid()} on {socket.gethostname()}"
        self.telemetry = telemetry.Telemetry()
        self.stopping = threading.Event()
        self.leading = threading.Event()
        self.standby = "starting"
        self.canaries: tuple[Canary, ...] = ()
        self._sources: dict[str, str] = {}  # name of each of them -> its file
        self.last_tick = time.monotonic()
        self._files: tuple[str, ...] = ()
        self._signature: object = None
        self._mark: object = None
        self._lock = StateLock(root / settings.state.path)
        self._jobs: frozenset[timedelta] = frozenset()
        self._placebo_turns: list[str] = []  # canaries that had no turn the last time

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stopping.is_set():
            os._exit(128 + number)  # asked twice: a person is waiting
        self.stopping.set()

    # ── the life of the process ──────────────────────────────────────────────────────────────────────────────

    def run(self) -> int:
        log.info("canaryd", version=__version__, state=str(self.settings.state.path), holder=self.holder)
        server = self._serve()
        try:
            if self._wait_for_lock():
                self._lead()
        finally:
            self._lock.release()
            if server is not None:
                server.close()
        log.info("stopped", weights="left as they are")
        return 0

    def _serve(self) -> web.Server | None:
        address = self.settings.web.address
        if address is None:
            return None
        pages = {
            "/metrics": lambda: (200, telemetry.CONTENT_TYPE, self.telemetry.exposition()),
            "/healthz": self._health,
            "/readyz": self._ready,
            "/status": self._status,
        }
        server = web.Server(address, pages)
        log.info("listening", address=f"{server.address[0]}:{server.address[1]}")
        return server

    def _wait_for_lock(self) -> bool:
        """True when this process holds the state; False when it was asked to stop while waiting for it."""
        said = ""
        while not self.stopping.is_set():
            try:
                self._lock.acquire(now())
            except LeaderError as e:
                self.standby = str(e)
                if self.standby != said:
                    log.warning("standby", reason=self.standby)
                    said = self.standby
                self.last_tick = time.monotonic()
                self.stopping.wait(1.0)
            else:
                return True
        return False

    def _lead(self) -> None:
        store: SqliteStore = wiring.state_store(self.settings, self.root)  # type: ignore[assignment]
        ports = wiring.embedded(self.settings, store)
        self.ports, self.store, self.reconciler = ports, store, Reconciler(ports, tell_again=self.settings.tell_again)
        self.scheduler = _scheduler()
        self.leading.set()
        self.telemetry.leading.set(1)
        self._reload()
        self._every(INBOX, "inbox", self._inbox)
        self._every(DELIVERY, "tell", self._tell)
        self._every(RELOAD, "reload", self._reload)
        self._every(PRUNE, "prune", self._prune)
        if self.settings.placebo.every is not None and ports.metrics.remembers:
            self._every(self.settings.placebo.every, "placebo", self.draw_placebos)
        self.scheduler.start()
        self._beat()
        log.info("leading", canaries=[c.name for c in self.canaries])
        self.stopping.wait()
        log.info("stopping", reason="asked to; the tick under way is finished")
        self.scheduler.shutdown(wait=True)
        self.reconciler.close()
        ports.hooks.close()  # type: ignore[attr-defined]
        self.leading.clear()
        store.close()

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

    def _tick(self, canaries: Sequence[Canary], *, measure: bool = True) -> None:
        began, at = time.monotonic(), now()
        outcomes = self.reconciler.tick(canaries, at, measure=measure)
        self.last_tick = time.monotonic()
        self.telemetry.ticked(outcomes, self.last_tick - began, at)
        if measure:
            self._beat()

    def _beat(self) -> None:
        try:
            self.store.beat(self.holder, now())
        except CanarydError as e:
            log.warning("heartbeat not written", error=str(e))

    def _inbox(self) -> None:
        """Somebody wrote something: answer those whose word is still open, without waiting for the next look."""
        mark = self.store.mark()
        if mark == self._mark:
            return
        self._mark = mark
        waiting = [c for c in self.canaries if self._has_word(c)]
        if waiting:
            self._tick(waiting, measure=False)

    def _has_word(self, canary: Canary) -> bool:
        stored = self.store.load(canary.name)
        if stored.overrides:
            return True
        state, release = stored.state, stored.release
        if release is None or (state is not None and release.revision in (state.revision, state.stable_revision)):
            return bool(release and state and state.phase.is_active and release.revision != state.revision)
        return True

    def _tell(self) -> None:
        owed = len(self.store.owed())
        self.telemetry.owed.set(owed)
        if owed:
            self.reconciler.tell()

    def _prune(self) -> None:
        keep = self.settings.retention
        gone = self.store.prune(now() - timedelta(days=keep.days), keep.at_least)
        if gone:
            log.info("pruned", records=gone)

    def draw_placebos(self) -> None:
        """Judge stable pods as canaries, one canary after the other, for a minute at most; the rest is next time's."""
        began = time.monotonic()
        turns, self._placebo_turns = self._placebo_turns, []
        names = {c.name: c for c in self.canaries}
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

        state = self.store.load(canary.name).state or plan.initial(canary)
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
        self.telemetry.placebo(canary.name, rate.draws, rate.rollbacks)
        log.info(
            "placebo", canary=canary.name, draws=rate.draws, rollbacks=rate.rollbacks, low=rate.low, high=rate.high
        )

    # ── documents ────────────────────────────────────────────────────────────────────────────────────────────

    def _reload(self) -> None:
        """Read the documents when a file changed. A broken one keeps its last valid form; a deleted one stops."""
        if self._files and self._signature == _stamps(self._files):
            return
        loaded = load_canaries(self.settings, self.root)
        places = (self.root / pattern for pattern in self.settings.canaries)
        self._files = (*loaded.files, *(str(p) if p.is_dir() else str(p.parent) for p in places))
        self._signature = _stamps(self._files)
        for problem in loaded.problems:
            log.error("document refused", problem=str(problem))
        self.canaries = _merged(self.canaries, self._sources, loaded)
        kept = {c.name: self._sources[c.name] for c in self.canaries if c.name not in loaded.sources}
        self._sources = {**loaded.sources, **kept}
        self.telemetry.keep({c.name for c in self.canaries})
        self._schedule_ticks()
        log.info("documents", canaries=[c.name for c in self.canaries], refused=sorted(loaded.refused))

    # ── pages ────────────────────────────────────────────────────────────────────────────────────────────────

    def _health(self) -> web.Page:
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

    def _status(self) -> web.Page:
        """What every canary is at, as in `canaryd status -o json`, and who leads."""
        lead: dict[str, Any] = {"leading": self.leading.is_set(), "holder": self._lock.holder(), "version": __version__}
        if not self.leading.is_set():
            return web.as_json(200, {**lead, "canaries": []})
        states = (self.store.load(c.name).state for c in self.canaries)
        return web.as_json(200, {**lead, "canaries": [dict(s.latest) for s in states if s and s.latest]})


def _stamps(files: Sequence[str]) -> list[object]:
    """Changes when any of the files or directories does."""
    out: list[object] = []
    for file in files:
        try:
            stat = os.stat(file)
            out.append((file, stat.st_mtime_ns, stat.st_size, stat.st_ino))
        except OSError as e:
            out.append((file, e.errno))
    return out


def _scheduler() -> BackgroundScheduler:
    return BackgroundScheduler(executors={"default": ThreadPoolExecutor(8)}, timezone=UTC)


def _merged(old: Sequence[Canary], sources: Mapping[str, str], loaded: Loaded) -> tuple[Canary, ...]:
    """The valid documents, and the last valid form of those that are broken now, be it beyond recognition.

    `sources`: name of each old one -> its file.
    """
    broken = {p.file for p in loaded.problems}
    kept = (
        c
        for c in old
        if c.name not in loaded.sources
        and (c.name in loaded.refused or not broken.isdisjoint((sources[c.name], os.path.dirname(sources[c.name]))))
    )
    return (*loaded.canaries, *kept)


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
