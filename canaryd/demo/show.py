"""Three releases on real traffic, side by side: one good, one with errors, one that is only slow.

Everything is real and on this machine: services, Envoy, Prometheus and Jaeger when they are installed, load, and
`canaryd run` as a process of its own. The show only starts the parts, says `canaryd start` three times, and draws what
it sees.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from canaryd import render, wording
from canaryd.adapters.sqlite_store import SqliteStore
from canaryd.demo import jaeger, prometheus
from canaryd.demo.lab import Lab, LoadStats, PoolSpec, ServiceSpec
from canaryd.demo.processes import Child, LabError, Nursery
from canaryd.demo.site import Site, from_jaeger, from_page, from_prometheus
from canaryd.model import Record
from canaryd.report import html
from canaryd.story import Story

DEADLINE = 150.0  # seconds from the start of the releases until the show gives up
BASELINE = 4.0  # seconds of stable traffic before the releases
FIRST_SCRAPE = 10.0  # the same with Prometheus, which scrapes for the first time five seconds after its start
MARKER = ".canaryd-demo"
SLOW_MS = 60.0
STABLE_MS = 25.0
SAMPLED = 20.0  # percent of the requests of both versions that are traced, where there is a Jaeger


@dataclass(frozen=True)
class Release:
    """One of the three stories and how it should end."""

    service: str
    is_good: bool
    story: str
    errors: float = 0.002
    latency_ms: float = STABLE_MS

    @property
    def spec(self) -> ServiceSpec:
        stable = PoolSpec(f"{self.service}-blue", "v1", latency_ms=STABLE_MS)
        canary = PoolSpec(f"{self.service}-green", "v2", errors=self.errors, latency_ms=self.latency_ms)
        return ServiceSpec(self.service, (stable, canary))

    @property
    def wanted(self) -> str:
        return "Succeeded" if self.is_good else "RolledBack"


RELEASES = (
    Release("checkout", is_good=True, story="as good as the old version"),
    Release("payment", is_good=False, story="fails 4 % of its requests", errors=0.04),
    Release("search", is_good=False, story=f"never fails, but takes 38 ms instead of {STABLE_MS:.0f}", latency_ms=38.0),
)

POLICY = """\
apiVersion: canaryd.io/v1alpha1
kind: Canary
metadata: {{name: {service}}}
spec:
  workloads:
    pools:
      - {{name: {service}-blue, health: "{blue}"}}
      - {{name: {service}-green, health: "{green}"}}
  route:
    envoyFile: {{path: "{path}"}}
  steps:                          # percent of requests; each for at least 6 s of evidence
    - {{weight: 5, bake: 6s}}
    - {{weight: 10, bake: 6s}}
    - {{weight: 25, bake: 6s}}
    - {{weight: 50, bake: 6s}}
    - {{weight: 100, bake: 6s}}
  metrics:
    - {{name: errors, kind: errors}}
    - {{name: latency, kind: latency, tolerance: 10%, margin: 40%}}
  budget: {{share: 1%}}             # ten times the default: a two-minute show cannot prove what half an hour can
  interval: 2s
  warmUp: 0s
"""


def main(*, keep: bool, rate: int, directory: Path) -> int:
    """The whole show. Returns 0 only when all three releases ended as they should; 130 after Ctrl-C."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        _prepare(directory)
        return _Show(console, directory.resolve(), rate, keep=keep).run()
    except KeyboardInterrupt:
        console.print("\ndemo: stopped; every process has ended, and nothing was written outside", str(directory))
        return 130
    except LabError as e:
        console.print(f"demo: {e}", markup=False)
        return 1


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _prepare(directory: Path) -> None:
    """An empty directory of our own; one that is not ours is never emptied."""
    if directory.exists() and any(directory.iterdir()) and not (directory / MARKER).exists():
        raise LabError(f"{directory} is not empty and not from an earlier demo; use --directory")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / MARKER).touch()


class _Show:
    """One run of the demo."""

    def __init__(self, console: Console, directory: Path, rate: int, *, keep: bool) -> None:
        self.console, self.directory, self.rate, self.keep = console, directory, rate, keep
        self.prometheus, self.jaeger = prometheus.find(), jaeger.find()
        self.began = time.monotonic()
        self.told: list[Record] = []
        self.seen: set[str] = set()

    def run(self) -> int:
        self._introduce()
        specs = [r.spec for r in RELEASES]
        use = self.prometheus is not None
        with (
            # Envoy merges its histograms by a timer for Prometheus, which reads only once each time.
            Lab(
                self.directory / "lab",
                specs,
                rps=self.rate,
                prometheus=use,
                slow_ms=SLOW_MS,
                flush_s=0.05 if use else None,
                jaeger=self.jaeger,
                sampled=SAMPLED,
            ) as lab,
            Nursery(self.directory / "log") as nursery,
        ):
            section = from_prometheus(lab.prometheus_url) if use else from_page(lab.metrics_url)
            traces = from_jaeger(lab.jaeger.url) if self.jaeger is not None else ""
            site = Site(self.directory, nursery, section + traces)
            self._write_policies(lab, site)
            daemon = site.run()
            lab.start_load(duration=4 * 3600.0 if self.keep else DEADLINE + 60)
            store = site.open_store(daemon)
            time.sleep(FIRST_SCRAPE if use else BASELINE)
            self._start_releases(site)
            self._watch(store, daemon, until=time.monotonic() + DEADLINE)
            stats = lab.load_stats()
            code = self._conclude(store, stats)
            if self.jaeger is not None:
                self._show_traces(site)
            if self.keep:
                self._stay(store, daemon, site)
            store.close()
        return code

    # ── before ───────────────────────────────────────────────────────────────────────────────────────────────

    def _introduce(self) -> None:
        say = self.console.print
        say(f"[bold]canaryd demo[/]: three releases, {self.rate} requests/s each, all on this machine")
        for release in RELEASES:
            say(f"  {release.service:<9} v2 {release.story}", markup=False)
        if self.prometheus is not None:
            say(f"counters: a real Prometheus ({self.prometheus}), scraping Envoy every second", markup=False)
        else:
            say("counters: read from Envoy directly; for Prometheus: apt-get install prometheus", markup=False)
        if self.jaeger is not None:
            say(f"traces: {SAMPLED:.0f} % of the requests, in a real Jaeger ({self.jaeger})", markup=False)

    def _write_policies(self, lab: Lab, site: Site) -> None:
        for release in RELEASES:
            name = release.service
            text = POLICY.format(
                service=name,
                path=lab.rds_path(name),
                blue=lab.health_url(f"{name}-blue"),
                green=lab.health_url(f"{name}-green"),
            )
            site.write(name, text)
        policy = POLICY.format(service=RELEASES[0].service, path="…", blue="…", green="…")
        self.console.print(f"\nthe policy of each ({self.directory.name}/canaries):", markup=False)
        self.console.print(
            Text(policy.partition("  steps:")[1] + policy.partition("  steps:")[2].rstrip(), style="dim")
        )

    def _start_releases(self, site: Site) -> None:
        self.console.print()
        for release in RELEASES:
            words = ["start", release.service, "--revision", "v2"]
            self.console.print(f"$ canaryd {' '.join(words)}", markup=False)
            done = site.command(*words)
            if done.returncode:
                raise LabError(f"canaryd start said: {done.stderr or done.stdout}")
        self.console.print()

    # ── during ───────────────────────────────────────────────────────────────────────────────────────────────

    def _watch(self, store: SqliteStore, daemon: Child, until: float) -> None:
        """Draw until all have ended, or too long."""
        with self._picture() as draw:
            while time.monotonic() < until:
                bodies = self._bodies(store)
                new = self._news(store)
                draw(bodies, new)
                if all(b.get("phase") in ("Succeeded", "RolledBack") for b in bodies):
                    return
                if not daemon.running:
                    raise LabError(f"canaryd ended by itself:\n{daemon.last_words()}")
                time.sleep(0.25)

    def _bodies(self, store: SqliteStore) -> list[dict[str, Any]]:
        out = []
        for release in RELEASES:
            state = store.load(release.service).state
            out.append(dict(state.latest) if state and state.latest else {"canary": release.service, "phase": "Idle"})
        return out

    def _news(self, store: SqliteStore) -> list[Record]:
        """Decisions that were told since the last look, oldest first."""
        new = [
            record
            for release in RELEASES
            for record in store.records(release.service, limit=40)
            if record.tell and record.id not in self.seen
        ]
        new.sort(key=lambda r: (r.at, int(r.id.rpartition("/")[2])))
        self.seen.update(r.id for r in new)
        self.told += new
        return new

    @contextmanager
    def _picture(self) -> Iterator[Any]:
        """A live table with the decisions below it; without a terminal, lines."""
        if not self.console.is_terminal:
            yield self._lines
            return
        with Live(console=self.console, auto_refresh=False, vertical_overflow="visible") as live:

            def draw(bodies: Sequence[dict[str, Any]], _: Sequence[Record]) -> None:
                at = datetime.now(UTC).astimezone()
                table = render.table(bodies, at, self.console.width)
                said = [render.decision_line(r, at) for r in self.told[-14:]]
                live.update(Group(table, Text(), *said), refresh=True)

            yield draw

    def _lines(self, bodies: Sequence[dict[str, Any]], new: Sequence[Record]) -> None:
        at = datetime.now(UTC).astimezone()
        for record in new:
            self.console.print(render.decision_line(record, at), soft_wrap=True)
        if time.monotonic() - getattr(self, "_drawn", 0.0) > 10:
            self._drawn = time.monotonic()
            self.console.print(render.table(bodies, at, 120), soft_wrap=True)

    # ── after ────────────────────────────────────────────────────────────────────────────────────────────────

    def _conclude(self, store: SqliteStore, stats: LoadStats | None) -> int:
        say, good = self.console.print, 0
        say()
        for release, body in zip(RELEASES, self._bodies(store), strict=True):
            right = body.get("phase") == release.wanted
            good += right
            mark = "✓" if right else "✕"
            ended = "promoted" if body.get("phase") == "Succeeded" else str(body.get("phase"))
            if body.get("phase") == "RolledBack":
                ended = "rolled back"
            say(f"{mark} {release.service:<9} v2 {release.story}: {ended}, {self._took(body)}", markup=False)
            if stats is not None:
                say(f"  {self._served(release, stats)}", markup=False)
        self._report(store)
        total = wording.span(time.monotonic() - self.began)
        say(f"\n{good} of {len(RELEASES)} releases ended as they should, {total} in all.")
        if not self.keep:
            say(
                "To play: make demo KEEP=1 leaves it running for `canaryd status -w`, explain, promote, abort.",
                markup=False,
            )
        return 0 if good == len(RELEASES) else 1

    def _report(self, store: SqliteStore) -> None:
        """What happened to each release, as a page."""
        pages = self.directory / "reports"
        pages.mkdir(exist_ok=True)
        for release in RELEASES:
            story = Story.of(store.records(release.service, limit=10_000))
            (pages / f"{release.service}.html").write_text(html(story, datetime.now(UTC)), encoding="utf-8")
        shown = os.path.relpath(pages)
        self.console.print(f"\nreports, to be opened in a browser: {shown}/*.html", markup=False, soft_wrap=True)

    def _show_traces(self, site: Site) -> None:
        """What a person would ask next about the release that failed."""
        self.console.print("\n$ canaryd traces payment", markup=False)
        done = site.command("traces", "payment")
        self.console.print((done.stdout or done.stderr).rstrip(), markup=False, soft_wrap=True)

    def _took(self, body: dict[str, Any]) -> str:
        history = body.get("history") or []
        if len(history) < 2:
            return "no decision"
        first, last = (datetime.fromisoformat(history[i]["at"]) for i in (0, -1))
        return f"{wording.span(last - first)} after the start"

    def _served(self, release: Release, stats: LoadStats) -> str:
        """Who got failed and slow answers."""
        versions = stats.services[release.service].versions
        parts = []
        for version in ("v1", "v2"):
            seen = versions.get(version)
            if seen is None:
                continue
            failed, slow = wording.count(seen.failed), wording.count(seen.slow)
            parts.append(
                f"{version}: {failed} failed, {slow} slower than {SLOW_MS:.0f} ms of {wording.count(seen.requests)}"
            )
        lost = stats.services[release.service].lost
        return "; ".join([*parts, f"lost: {wording.count(lost)}"])

    def _stay(self, store: SqliteStore, daemon: Child, site: Site) -> None:
        """Keep everything running for a person, until Ctrl-C."""
        program = f"{os.path.relpath(sys.executable)} -m canaryd"
        here = os.path.relpath(site.config)
        say = self.console.print
        say("\nIt keeps running until Ctrl-C. In another terminal:", markup=False)
        say(f"  alias canaryd='{program}'; export CANARYD_CONFIG={here}", markup=False)
        say("  canaryd status -w                                   the live table", markup=False)
        say("  canaryd explain payment                             why it was rolled back", markup=False)
        if self.jaeger is not None:
            say("  canaryd traces search                               what its traces say", markup=False)
        say("  canaryd retry search --reason 'look again'          roll it out once more", markup=False)
        say("  canaryd promote search --full --reason 'I insist'   or abort, pause, resume", markup=False)
        say("  canaryd start checkout --revision v3                the next release, on the other pool", markup=False)
        while daemon.running:
            time.sleep(0.5)
            for record in self._news(store):
                say(render.decision_line(record, datetime.now(UTC).astimezone()), soft_wrap=True)
        raise LabError(f"canaryd ended by itself:\n{daemon.last_words()}")
