"""The daemon: documents and state in files, or (see `canaryd.cluster`) resources of a cluster. Knows no statistics.

An inbox is polled so that a person is answered within a second. SIGTERM finishes what runs and leaves the weights be.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from canaryd import __version__, telemetry, web, wiring
from canaryd.config import Loaded, Settings, load_canaries, load_settings
from canaryd.errors import CanarydError, LeaderError
from canaryd.leader import StateLock
from canaryd.policy import Canary
from canaryd.process import DELIVERY, INBOX, PRUNE, Base, new_scheduler, now
from canaryd.reconcile import Reconciler

if TYPE_CHECKING:
    from canaryd.adapters.sqlite_store import SqliteStore
    from canaryd.dashboard.feed import Feed
    from canaryd.dashboard.server import Server as Dashboard

log = structlog.get_logger("canaryd.daemon")

RELOAD = timedelta(seconds=3)


def main(path: Path | str) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. Raises ConfigError or StoreError before anything began."""
    settings = load_settings(path)
    telemetry.configure_logging(settings.log.format, settings.log.level)
    daemon = _daemon(settings, Path(path).resolve().parent)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, daemon.on_signal)
    return daemon.run()


def _daemon(settings: Settings, root: Path) -> Base:
    if settings.mode == "cluster":
        from canaryd.cluster import ClusterDaemon  # the Kubernetes client is not loaded where there is no cluster

        return ClusterDaemon(settings, root)
    return Daemon(settings, root)


class Daemon(Base):
    """Documents and state in files; one process at a time, by a lock on the state file."""

    store: SqliteStore

    def __init__(self, settings: Settings, root: Path) -> None:
        super().__init__(settings, root)
        self._sources: dict[str, str] = {}  # name of each canary -> its file
        self._files: tuple[str, ...] = ()
        self._signature: object = None
        self._mark: object = None
        self._lock = StateLock(root / settings.state.path)

    def run(self) -> int:
        log.info("canaryd", version=__version__, state=str(self.settings.state.path), holder=self.holder)
        servers: list[web.Server | Dashboard | None] = []
        try:
            servers += [self._serve_dashboard(self._feed), self._serve()]
            if self._wait_for_lock():
                self._lead()
        finally:
            self._lock.release()
            for server in servers:
                if server is not None:
                    server.close()
        log.info("stopped", weights="left as they are")
        return 0

    def _feed(self) -> Feed:
        from canaryd.showing import EmbeddedFeed

        return EmbeddedFeed(self, self.root / self.settings.state.path, self._lock.holder)

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
        self.ports, self.store = ports, store
        self.delivery = self._new_delivery()
        self.reconciler = Reconciler(ports, tell_again=self.settings.tell_again, delivery=self.delivery)
        self.scheduler = new_scheduler()
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
        self._deliver()
        self._beat()
        log.info("leading", canaries=[c.name for c in self.canaries])
        self.stopping.wait()
        log.info("stopping", reason="asked to; the tick under way is finished")
        self.scheduler.shutdown(wait=True)
        self._end_delivery()
        self.reconciler.close()
        ports.hooks.close()  # type: ignore[attr-defined]
        self.leading.clear()
        store.close()

    # ── jobs ─────────────────────────────────────────────────────────────────────────────────────────────────

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
        self.problems = tuple(str(problem) for problem in loaded.problems)
        self.canaries = _merged(self.canaries, self._sources, loaded)
        kept = {c.name: self._sources[c.name] for c in self.canaries if c.name not in loaded.sources}
        self._sources = {**loaded.sources, **kept}
        self.telemetry.keep({c.name for c in self.canaries})
        self._schedule_ticks()
        log.info("documents", canaries=[c.name for c in self.canaries], refused=sorted(loaded.refused))

    def _status(self) -> web.Page:
        """What every canary is at, as in `canaryd status -o json`, and who leads."""
        lead: dict[str, Any] = {"leading": self.leading.is_set(), "holder": self._lock.holder(), "version": __version__}
        if not self.leading.is_set():
            return web.as_json(200, {**lead, "canaries": []})
        states = (self.store.load(c.name).state for c in self.canaries)
        lead["notifiers"] = self._told()
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
