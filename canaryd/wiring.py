"""From settings to ports: which adapter is used where. The only place that names adapters together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from canaryd import adapters
from canaryd.config import Settings
from canaryd.ports import MetricSource, Ports, StateStore


def metric_source(settings: Settings) -> MetricSource:
    """The source named in the settings."""
    cls: Callable[..., MetricSource] = adapters.load(adapters.METRIC_SOURCES, settings.metrics.source)
    if settings.metrics.source == "scrape":
        scrape = settings.metrics.scrape
        return cls(scrape.urls, timeout=scrape.timeout, prefix=scrape.prefix)
    prometheus = settings.metrics.prometheus
    return cls(
        prometheus.url,
        timeout=prometheus.timeout,
        lag=prometheus.effective_lag,
        settle=prometheus.scrape_interval,  # the last sample before an instant may be one scrape old
        ca_file=prometheus.ca_file,
        bearer_file=prometheus.bearer_token_file,
    )


def state_store(settings: Settings, root: Path) -> StateStore:
    """The state file; relative paths start at the configuration file's directory. Raises StoreError."""
    store: StateStore = adapters.load(adapters.STATE_STORES, "sqlite")(root / settings.state.path)
    return store


def embedded(settings: Settings, store: StateStore) -> Ports:
    """Everything that the embedded mode talks to."""
    return Ports(
        metrics=metric_source(settings),
        router=adapters.load(adapters.TRAFFIC_ROUTERS, "envoyFile")(),
        workloads=adapters.load(adapters.WORKLOADS, "pools")(),
        store=store,
        hooks=adapters.load(adapters.HOOKS, "runner")(),
        notifiers=(adapters.load(adapters.NOTIFIERS, "log")(),),
    )
