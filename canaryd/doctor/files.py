"""The checks of an installation without a cluster: configuration, documents, state file, routes, metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from canaryd import adapters
from canaryd.adapters.sqlite_store import SqliteStore
from canaryd.config import Loaded
from canaryd.doctor import traffic
from canaryd.doctor.findings import Check, Finding, error, fine, warning
from canaryd.doctor.series import series
from canaryd.doctor.traffic import Subject
from canaryd.errors import RouteError
from canaryd.model import RolloutState
from canaryd.policy import Canary
from canaryd.ports import MetricSource

if TYPE_CHECKING:
    from canaryd.adapters.prometheus_health import Health


@dataclass(frozen=True)
class Files:
    """What the checks look at."""

    loaded: Loaded  # the documents, all of them
    canaries: Sequence[Canary]  # those to look at
    store: Callable[[], SqliteStore | None]  # None before canaryd ever ran. Raises StoreError
    absent: Callable[[], str]  # why no daemon is at work; "" while one is. Raises StoreError
    source: Callable[[], MetricSource]
    at: datetime
    health: Callable[[Canary, str, str], Health] | None = None  # asks Prometheus about itself; None: there is none
    scrape: timedelta | None = None  # how often the settings say that it scrapes

    @cached_property
    def subjects(self) -> tuple[Subject, ...]:
        """The Canaries with their counters. Raises StoreError."""
        source = self.source()
        return tuple(
            Subject(c, c.name, *self.arms(c), source, self.at, self.health, self.scrape) for c in self.canaries
        )

    def state(self, canary: Canary) -> RolloutState | None:
        """None before the first decision. Raises StoreError."""
        store = self.store()
        return store.load(canary.name).state if store is not None else None

    def arms(self, canary: Canary) -> tuple[str, str]:
        """The workloads that hold the roles of stable and canary now. Raises StoreError."""
        state = self.state(canary)
        return (state.stable, state.canary) if state is not None and state.stable else canary.spec.workloads.names


def _documents(files: Files) -> Iterator[Finding]:
    for problem in files.loaded.problems:
        yield error(str(problem), "this Canary is not looked after", "correct it; canaryd validate says more")
    for note in files.loaded.notes:
        yield warning(str(note), "it may not be what was meant", "canaryd validate")
    names = ", ".join(canary.name for canary in files.canaries)
    yield fine(f"valid: {names}" if names else "there are no valid Canaries")


def _state(files: Files) -> Iterator[Finding]:
    store = files.store()
    if store is None:
        yield warning("there is no state file yet", "canaryd never ran here", "canaryd run")
        return
    store.verify()
    yield fine(f"{store.path} is sound")


def _daemon(files: Files) -> Iterator[Finding]:
    told = files.absent()
    if told:
        yield error(told, "nobody looks after the Canaries", "canaryd run")
    else:
        yield fine("it is running")


def _routes(files: Files) -> Iterator[Finding]:
    router = adapters.load(adapters.TRAFFIC_ROUTERS, "envoyFile")()
    for canary in files.canaries:
        if canary.spec.route.envoy_file is None:
            continue
        stable, workload = files.arms(canary)
        try:
            view = router.view(canary.key, canary.spec.route, stable, workload)
        except RouteError as reason:
            why = "the weight can neither be seen nor set"
            yield error(str(reason), why, "correct the file or spec.route", canary.name)
            continue
        yield fine(f"the route sends {view.weight} % to {workload}", canary.name)


def _metrics(files: Files) -> Iterator[Finding]:
    for subject in files.subjects:
        state, source = files.state(subject.canary), subject.source
        assert source is not None
        expected = bool(state and state.weight)
        yield from series(subject.canary, source, subject.stable, subject.workload, files.at, canary_expected=expected)


CHECKS: tuple[Check[Files], ...] = (
    Check("documents", _documents),
    Check("state", _state),
    Check("daemon", _daemon),
    Check("routes", _routes),
    Check("metrics", _metrics),
    Check("Prometheus", lambda files: traffic.prometheus(files.subjects)),
    Check("own metrics", lambda files: traffic.own_metrics(files.subjects)),
    Check("buckets", lambda files: traffic.buckets(files.subjects)),
    Check("counters", lambda files: traffic.resets(files.subjects)),
    Check("power", lambda files: traffic.power(files.subjects)),
)
