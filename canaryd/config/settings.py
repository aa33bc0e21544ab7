"""What the operator set for the daemon itself: config/canaryd.yaml as frozen, strict types with their defaults.

Never reads a file and never opens a connection; secrets are named by their files and never held here.
"""

from __future__ import annotations

import difflib
from datetime import timedelta
from typing import Annotated

from pydantic import Field, field_validator

from canaryd.config.dashboard import Dashboard, address, host_and_port
from canaryd.config.notify import Notify
from canaryd.config.traces import Traces
from canaryd.policy import Document, Duration, MisfitError, Name, Url, format_duration, said

MODES = ("embedded", "cluster")
METRIC_SOURCES = ("prometheus", "scrape")
LOG_FORMATS = ("json", "console", "auto")
LOG_LEVELS = ("debug", "info", "warning", "error")

FilePath = Annotated[str, Field(min_length=1, max_length=4096)]


def _one_of(value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        close = difflib.get_close_matches(value[:60].lower(), known, n=1)
        hint = f'did you mean "{close[0]}"? Known' if close else "known"
        raise ValueError(f"{said(value)} is not known here; {hint}: {', '.join(known)}")
    return value


def _between(value: timedelta, least: timedelta, most: timedelta) -> timedelta:
    if not least <= value <= most:
        plain = f"use {format_duration(least)} to {format_duration(most)}"
        raise ValueError(f"{format_duration(value)} is out of range; {plain}")
    return value


class State(Document):
    """Where the state is kept."""

    path: FilePath = Field(default="/var/lib/canaryd/state.db", description="the SQLite file; its directory must exist")


class Prometheus(Document):
    """A Prometheus, or anything that answers like one."""

    url: Url = Field(default="http://127.0.0.1:9090", description="without /api/v1")
    timeout: Duration = Field(default=timedelta(seconds=5), description="longest wait for one answer")
    scrape_interval: Duration = Field(default=timedelta(seconds=15), description="how often it reads the workloads")
    lag: Duration | None = Field(
        default=None, description="an instant is judged when it is this long ago; default scrapeInterval + 5s"
    )
    bearer_token_file: FilePath | None = Field(default=None, description="read again for each request")
    ca_file: FilePath | None = Field(default=None, description="certificates to trust instead of the system's")
    allow_local: bool = Field(
        default=False,
        description="a Canary may name a Prometheus on this machine or its link (loopback, 169.254.0.0/16)",
    )

    @field_validator("timeout")
    @classmethod
    def _timeout_range(cls, value: timedelta) -> timedelta:
        return _between(value, timedelta(milliseconds=100), timedelta(minutes=5))

    @field_validator("scrape_interval")
    @classmethod
    def _interval_range(cls, value: timedelta) -> timedelta:
        return _between(value, timedelta(milliseconds=100), timedelta(hours=1))

    @field_validator("lag")
    @classmethod
    def _lag_range(cls, value: timedelta | None) -> timedelta | None:
        return value if value is None else _between(value, timedelta(0), timedelta(hours=1))

    @property
    def effective_lag(self) -> timedelta:
        """How long ago an instant must be so that every scrape of it has arrived."""
        return self.scrape_interval + timedelta(seconds=5) if self.lag is None else self.lag


class Scrape(Document):
    """Counters read directly from Envoys or exporters, for places without Prometheus."""

    urls: tuple[Url, ...] = Field(
        default=("http://127.0.0.1:9901/stats/prometheus",), description="each is one process that keeps counters"
    )
    timeout: Duration = Field(default=timedelta(seconds=2), description="longest wait for one answer")
    prefix: Annotated[str, Field(max_length=100)] = Field(
        default="envoy_", description="left out of the names of the counters"
    )

    @field_validator("urls")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not 1 <= len(value) <= 1000:
            raise ValueError(f"{len(value)} URLs; use 1 to 1000")
        twice = [((i,), "this URL is given before; each counts once") for i, u in enumerate(value) if u in value[:i]]
        if twice:
            raise MisfitError(*twice)
        return value

    @field_validator("timeout")
    @classmethod
    def _timeout_range(cls, value: timedelta) -> timedelta:
        return _between(value, timedelta(milliseconds=100), timedelta(minutes=5))


class Metrics(Document):
    """Where the counters come from."""

    source: str = Field(default="scrape", description="prometheus or scrape; the other's section is then not used")
    prometheus: Prometheus = Prometheus()
    scrape: Scrape = Scrape()

    @field_validator("source")
    @classmethod
    def _known(cls, value: str) -> str:
        return _one_of(value, METRIC_SOURCES)

    @property
    def shortest_interval(self) -> timedelta:
        """A Canary must not look more often: with fewer than two scrapes there may be nothing new to see."""
        return 2 * self.prometheus.scrape_interval if self.source == "prometheus" else timedelta(0)


class Web(Document):
    """/metrics, /healthz, /readyz."""

    listen: str = Field(default="127.0.0.1:9095", description="host:port; port 0: any free one; empty: off")

    @field_validator("listen")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        return host_and_port(value, "9095")

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port; None: off."""
        return address(self.listen)


class Log(Document):
    """What the daemon writes to its error output."""

    format: str = Field(default="auto", description="json, console, or auto: console on a terminal, else json")
    level: str = Field(default="info", description="debug, info, warning, error")

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        return _one_of(value, LOG_FORMATS)

    @field_validator("level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        return _one_of(value, LOG_LEVELS)


class Retention(Document):
    """Which decision records are kept: the young ones, and the latest of each canary whatever their age."""

    days: int = Field(default=90, ge=1, le=36_500)
    at_least: int = Field(default=2000, ge=0, le=10_000_000, description="records of each canary")


class Placebo(Document):
    """Stable pods judged as if they were canaries, in the background: how often that is a false alarm."""

    every: Duration | None = Field(default=None, description="how often; none: never")
    draws: int = Field(default=50, ge=1, le=1000, description="pretended canaries of each workload, each time")

    @field_validator("every")
    @classmethod
    def _range(cls, value: timedelta | None) -> timedelta | None:
        return value if value is None else _between(value, timedelta(minutes=1), timedelta(days=7))


class Lease(Document):
    """The Lease by which the replicas agree on who leads."""

    name: Name = Field(default="canaryd", description="one for each set of namespaces or shard")
    namespace: Name | None = Field(default=None, description="default the daemon's own namespace")
    duration: Duration = Field(
        default=timedelta(seconds=10), description="a leader not heard of for so long is replaced"
    )

    @field_validator("duration")
    @classmethod
    def _range(cls, value: timedelta) -> timedelta:
        return _between(value, timedelta(seconds=3), timedelta(minutes=5))


class Cluster(Document):
    """Canary resources of a Kubernetes cluster; used with `mode: cluster`."""

    namespaces: tuple[Name, ...] = Field(default=(), description="whose Canaries are looked after; empty: all")
    selector: Annotated[str, Field(max_length=1000)] = Field(
        default="", description='labels that a Canary must have, such as "shard=a"; empty: all'
    )
    kubeconfig: FilePath | None = Field(default=None, description="default the pod's ServiceAccount, else kubectl's")
    context: Annotated[str, Field(min_length=1, max_length=253)] | None = Field(
        default=None, description="of the kubeconfig; default its current one"
    )
    timeout: Duration = Field(default=timedelta(seconds=5), description="longest wait for the API server")
    domain: Annotated[str, Field(min_length=1, max_length=253)] = Field(
        default="cluster.local", description="of the cluster, for hosts in routes"
    )
    save_every: int = Field(
        default=3,
        ge=1,
        le=100,
        description="looks that decide nothing share one write of the status; 1: each has its own",
    )
    restore_deadline: Duration = Field(
        default=timedelta(minutes=10),
        description="a deleted Canary whose plain service cannot be brought back for so long is let go as it is",
    )
    lease: Lease = Lease()

    @field_validator("timeout")
    @classmethod
    def _timeout_range(cls, value: timedelta) -> timedelta:
        return _between(value, timedelta(milliseconds=500), timedelta(minutes=1))

    @field_validator("restore_deadline")
    @classmethod
    def _deadline_range(cls, value: timedelta) -> timedelta:
        return _between(value, timedelta(seconds=10), timedelta(days=1))


class Settings(Document):
    """The whole of canaryd.yaml. Paths in it that are not absolute are relative to the file."""

    mode: str = Field(default="embedded", description="embedded: documents in files; cluster: Canary resources")
    state: State = State()
    cluster: Cluster = Cluster()
    canaries: tuple[FilePath, ...] = Field(
        default=("canaries",), description="directories, files or patterns with * of Canary documents"
    )
    metrics: Metrics = Metrics()
    traces: Traces = Traces()
    web: Web = Web()
    dashboard: Dashboard = Dashboard()
    log: Log = Log()
    retention: Retention = Retention()
    placebo: Placebo = Field(
        default=Placebo(), description="stable pods judged as if they were canaries; needs the source prometheus"
    )
    tell_again: Duration = Field(default=timedelta(minutes=30), description="how often a lasting hold is told again")
    notify: Notify = Field(default=Notify(), description="who is told of decisions")

    @field_validator("mode")
    @classmethod
    def _known_mode(cls, value: str) -> str:
        return _one_of(value, MODES)

    @field_validator("canaries")
    @classmethod
    def _few(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > 100:
            raise ValueError(f"{len(value)} places; use at most 100, or a directory")
        return value

    @field_validator("tell_again")
    @classmethod
    def _not_a_nuisance(cls, value: timedelta) -> timedelta:
        return _between(value, timedelta(seconds=1), timedelta(days=30))
