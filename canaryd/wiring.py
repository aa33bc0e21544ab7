"""From settings to ports: which adapter is used where. The only place that names adapters together."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canaryd import adapters
from canaryd.config import Settings
from canaryd.errors import SourceError
from canaryd.policy import Canary
from canaryd.ports import MetricSource, Ports, StateStore, TrafficRouter, Workloads

if TYPE_CHECKING:
    from canaryd.adapters.kubernetes_store import KubernetesStore
    from canaryd.adapters.prometheus_health import Health
    from canaryd.kube.client import KubeClient
    from canaryd.watched import Watched


def metric_source(settings: Settings) -> MetricSource:
    """The source named in the settings."""
    cls: Callable[..., MetricSource] = adapters.load(adapters.METRIC_SOURCES, settings.metrics.source)
    if settings.metrics.source == "scrape":
        scrape = settings.metrics.scrape
        return cls(scrape.urls, timeout=scrape.timeout, prefix=scrape.prefix)
    prometheus, in_cluster = settings.metrics.prometheus, settings.mode == "cluster"

    def asking(url: str, **more: Any) -> MetricSource:
        return cls(
            url,
            timeout=prometheus.timeout,
            lag=prometheus.effective_lag,
            settle=prometheus.scrape_interval,  # the last sample before an instant may be one scrape old
            ca_file=prometheus.ca_file,
            starts=not in_cluster,  # the cluster itself says when pods started
            **more,
        )

    own = asking(prometheus.url, bearer_file=prometheus.bearer_token_file)
    if not in_cluster:
        return own
    per_server: MetricSource = adapters.load(adapters.METRIC_SOURCES, "perServer")(
        own, partial(asking, public_only=not prometheus.allow_local)
    )
    return per_server


def prometheus_health(settings: Settings | None, url: str | None) -> Callable[[Canary, str, str], Health] | None:
    """What asks a canary's Prometheus about itself; None where no Prometheus is known. `url`: another one.

    A token goes to the Prometheus of the settings and to no other.
    """
    from canaryd.adapters.prometheus import PrometheusSource
    from canaryd.adapters.prometheus_health import health

    configured = settings.metrics.prometheus if settings and settings.metrics.source == "prometheus" else None

    def ask(canary: Canary, stable: str, workload: str) -> Health:
        own = canary.spec.prometheus.url if canary.spec.prometheus else None
        server = url or own or (configured.url if configured else None)
        if server is None:
            raise SourceError("which Prometheus has its counters is not known here; use --prometheus URL")
        headers = {}
        if configured and server == configured.url:
            source = PrometheusSource(server, bearer_file=configured.bearer_token_file, ca_file=configured.ca_file)
            headers = source.authorization()
        return health(
            server,
            canary.spec.source.requests,
            (stable, workload),
            canary.metadata.namespace,
            over=max(timedelta(minutes=5), 5 * canary.spec.interval),
            headers=headers,
            ca_file=configured.ca_file if configured and server == configured.url else None,
            public_only=bool(configured and server == own and not url and not configured.allow_local),
        )

    return ask if url or configured or settings is None or settings.mode == "cluster" else None


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


def direct_workloads(client: KubeClient) -> Workloads:
    """Deployments as they are now, each read when it is asked for: for people's commands."""
    from canaryd.kube import kinds
    from canaryd.kube.informer import Direct

    of = {
        "deployments": kinds.DEPLOYMENTS,
        "pods": kinds.PODS,
        "services": kinds.SERVICES,
        "autoscalers": kinds.HPAS,
    }
    workloads: Workloads = adapters.load(adapters.WORKLOADS, "deployments")(
        client, **{name: Direct(client, kind) for name, kind in of.items()}
    )
    return workloads


def direct_router(client: KubeClient, uid_of: Callable[[str], str], domain: str = "cluster.local") -> TrafficRouter:
    """Routes as they are now, each read when it is asked for: for people's commands."""
    from canaryd.kube.informer import Direct
    from canaryd.kube.kinds import HTTP_ROUTES, VIRTUAL_SERVICES

    virtual_services, http_routes = Direct(client, VIRTUAL_SERVICES), Direct(client, HTTP_ROUTES)
    router: TrafficRouter = adapters.load(adapters.TRAFFIC_ROUTERS, "cluster")(
        istio=adapters.load(adapters.TRAFFIC_ROUTERS, "istio")(client, virtual_services, uid_of, domain=domain),
        gateway_api=adapters.load(adapters.TRAFFIC_ROUTERS, "gatewayApi")(client, http_routes, uid_of),
    )
    return router


def cluster_store(client: KubeClient, watched: Watched) -> KubernetesStore:
    """State in the status of the Canary resources."""
    store: KubernetesStore = adapters.load(adapters.STATE_STORES, "kubernetes")(client, watched.canaries)
    return store


def cluster(settings: Settings, client: KubeClient, watched: Watched, store: StateStore) -> Ports:
    """Everything that the daemon talks to in a cluster."""
    router = adapters.load(adapters.TRAFFIC_ROUTERS, "cluster")(
        istio=adapters.load(adapters.TRAFFIC_ROUTERS, "istio")(
            client, watched.virtual_services, watched.uid_of, domain=settings.cluster.domain
        ),
        gateway_api=adapters.load(adapters.TRAFFIC_ROUTERS, "gatewayApi")(client, watched.http_routes, watched.uid_of),
    )
    workloads = adapters.load(adapters.WORKLOADS, "deployments")(
        client,
        deployments=watched.deployments,
        pods=watched.pods,
        services=watched.services,
        autoscalers=watched.autoscalers,
        contents=watched.contents,
    )
    return Ports(
        metrics=metric_source(settings),
        router=router,
        workloads=workloads,
        store=store,
        hooks=adapters.load(adapters.HOOKS, "runner")(),
        notifiers=(
            adapters.load(adapters.NOTIFIERS, "log")(),
            adapters.load(adapters.NOTIFIERS, "events")(client, watched.canaries),
        ),
    )
