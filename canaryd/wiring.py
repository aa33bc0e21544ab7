"""From settings to ports: which adapter is used where. The only place that names adapters together."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canaryd import adapters
from canaryd.config import Settings
from canaryd.config.notify import Channel
from canaryd.errors import SourceError
from canaryd.notices.kinds import Wish
from canaryd.notices.words import Words
from canaryd.policy import Canary
from canaryd.ports import (
    Listener,
    MetricSource,
    Notifier,
    Ports,
    StateStore,
    TraceEvidence,
    TraceSource,
    TrafficRouter,
    Workloads,
)
from canaryd.secret import Secret

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


def trace_source(settings: Settings) -> TraceSource | None:
    """The source of traces; None where there is none."""
    jaeger = settings.traces.jaeger
    if jaeger.url is None:
        return None
    source: TraceSource = adapters.load(adapters.TRACE_SOURCES, "jaeger")(
        jaeger.url,
        external_url=jaeger.external_url or "",
        timeout=jaeger.timeout,
        lag=jaeger.lag,
        ca_file=jaeger.ca_file,
        bearer_file=jaeger.bearer_token_file,
        basic_file=jaeger.basic_file,
        limit=jaeger.limit,
    )
    return source


def _evidence(traces: TraceSource | None, store: StateStore) -> tuple[TraceEvidence | None, tuple[Notifier, ...]]:
    """What finds traces for a decision, and what keeps them; neither without a source."""
    if traces is None:
        return None, ()
    from canaryd.traces.evidence import TraceGatherer  # not loaded where there are no traces
    from canaryd.traces.telling import EvidenceKeeper

    return TraceGatherer(traces), (EvidenceKeeper(store),)


def state_store(settings: Settings, root: Path) -> StateStore:
    """The state file; relative paths start at the configuration file's directory. Raises StoreError."""
    store: StateStore = adapters.load(adapters.STATE_STORES, "sqlite")(root / settings.state.path)
    return store


def notifiers(settings: Settings, store: StateStore) -> tuple[Notifier, ...]:
    """One for each channel of the settings. Raises NotifyError when one needs what is not installed."""
    return tuple(notifier(channel, settings, store) for channel in settings.notify.channels)


def notifier(channel: Channel, settings: Settings, store: StateStore) -> Notifier:
    """That of one channel. Raises NotifyError when it needs what is not installed."""
    chosen = [r for r in settings.notify.routes if channel.name in r.channels]
    shared: dict[str, Any] = {
        "wishes": tuple(Wish(r.namespaces, r.labels, r.severities, r.kinds) for r in chosen),
        "words": Words(channel.templates),
        "late_after": settings.notify.late_after,
        "external_url": getattr(getattr(settings, "dashboard", None), "external_url", ""),
    }
    make: Callable[..., Notifier]
    if channel.slack is not None:
        slack, kind = channel.slack, "slack" if channel.slack.is_bot else "slackWebhook"
        make = adapters.load(adapters.NOTIFIERS, kind)
        style = import_module(make.__module__).Style(mentions=slack.mentions.of, timeout=slack.timeout, **shared)
        if not slack.is_bot:
            return make(channel.name, _secret(slack.webhook_url_file, slack.webhook_url_env), style=style)
        return make(
            channel.name,
            _secret(slack.bot_token_file, slack.bot_token_env),
            slack.channel,
            store,
            api_url=slack.api_url,
            style=style,
            broadcast=slack.broadcast,
            buttons=slack.buttons is not None,
        )
    if channel.webhook is not None:
        hook = channel.webhook
        signed = hook.secret_file is not None or hook.secret_env is not None
        make = adapters.load(adapters.NOTIFIERS, "webhook")
        return make(
            channel.name,
            hook.url if hook.url is not None else _secret(hook.url_file, hook.url_env),
            key=_secret(hook.secret_file, hook.secret_env) if signed else None,
            ca_file=hook.ca_file,
            timeout=hook.timeout,
            allow_local=hook.allow_local,
            source=hook.source,
            **shared,
        )
    assert channel.apprise is not None
    make = adapters.load(adapters.NOTIFIERS, "apprise")
    return make(channel.name, _secret(channel.apprise.urls_file, channel.apprise.urls_env), **shared)


def _secret(file: str | None, env: str | None) -> Secret:
    return Secret(file or "", env or "")


def listeners(settings: Settings, store: StateStore) -> tuple[Listener, ...]:
    """What hears people, where that is configured."""
    return tuple(made for channel in settings.notify.channels if (made := listener(channel, store)) is not None)


def listener(channel: Channel, store: StateStore) -> Listener | None:
    """That of one channel, where it has buttons."""
    slack = channel.slack
    if slack is None or slack.buttons is None:
        return None
    made: Listener = adapters.load(adapters.LISTENERS, "slackButtons")(
        channel.name,
        _secret(slack.buttons.app_token_file, slack.buttons.app_token_env),
        _secret(slack.bot_token_file, slack.bot_token_env),
        store,
        slack.buttons.allow,
        api_url=slack.api_url,
        timeout=slack.timeout,
    )
    return made


def embedded(settings: Settings, store: StateStore) -> Ports:
    """Everything that the embedded mode talks to."""
    traces = trace_source(settings)
    evidence, keepers = _evidence(traces, store)
    return Ports(
        metrics=metric_source(settings),
        router=adapters.load(adapters.TRAFFIC_ROUTERS, "envoyFile")(),
        workloads=adapters.load(adapters.WORKLOADS, "pools")(),
        store=store,
        hooks=adapters.load(adapters.HOOKS, "runner")(),
        notifiers=(
            adapters.load(adapters.NOTIFIERS, "log")(),
            *notifiers(settings, store),
            *keepers,
        ),
        listeners=listeners(settings, store),
        traces=traces,
        evidence=evidence,
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
    traces = trace_source(settings)
    evidence, keepers = _evidence(traces, store)
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
            *notifiers(settings, store),
            *keepers,
        ),
        listeners=listeners(settings, store),
        traces=traces,
        evidence=evidence,
    )
