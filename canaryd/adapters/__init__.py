"""One file per neighbour; this is the only list of them.

Each registry maps the name used in the configuration to "module:class". Contract tests run over the registries, so
naming an adapter here enrols it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

METRIC_SOURCES: Mapping[str, str] = {
    "memory": "canaryd.adapters.memory:MemoryMetrics",
    "perServer": "canaryd.adapters.per_server:PerServerSource",
    "prometheus": "canaryd.adapters.prometheus:PrometheusSource",
    "scrape": "canaryd.adapters.scrape:ScrapeSource",
}
TRAFFIC_ROUTERS: Mapping[str, str] = {
    "cluster": "canaryd.adapters.cluster_router:ClusterRouter",
    "envoyFile": "canaryd.adapters.envoy_file:EnvoyFileRouter",
    "gatewayApi": "canaryd.adapters.gateway_api:GatewayApiRouter",
    "istio": "canaryd.adapters.istio:IstioRouter",
    "memory": "canaryd.adapters.memory:MemoryRouter",
}
WORKLOADS: Mapping[str, str] = {
    "deployments": "canaryd.adapters.deployments:DeploymentWorkloads",
    "memory": "canaryd.adapters.memory:MemoryWorkloads",
    "pools": "canaryd.adapters.pools:PoolWorkloads",
}
STATE_STORES: Mapping[str, str] = {
    "kubernetes": "canaryd.adapters.kubernetes_store:KubernetesStore",
    "memory": "canaryd.adapters.memory:MemoryStore",
    "sqlite": "canaryd.adapters.sqlite_store:SqliteStore",
}
HOOKS: Mapping[str, str] = {
    "memory": "canaryd.adapters.memory:MemoryHooks",
    "runner": "canaryd.adapters.hooks:HookRunner",
}
NOTIFIERS: Mapping[str, str] = {
    "apprise": "canaryd.adapters.apprise:AppriseNotifier",
    "events": "canaryd.adapters.kubernetes_events:KubernetesEvents",
    "log": "canaryd.adapters.log:LogNotifier",
    "memory": "canaryd.adapters.memory:MemoryNotifier",
    "slack": "canaryd.adapters.slack:SlackBot",
    "slackWebhook": "canaryd.adapters.slack:SlackWebhook",
    "webhook": "canaryd.adapters.webhook:WebhookNotifier",
}
LISTENERS: Mapping[str, str] = {
    "slackButtons": "canaryd.adapters.slack_buttons:SlackButtons",
}
TRACE_SOURCES: Mapping[str, str] = {
    "jaeger": "canaryd.adapters.jaeger:JaegerSource",
    "memory": "canaryd.adapters.memory:MemoryTraces",
}


def load(registry: Mapping[str, str], name: str) -> Any:
    """The class registered under a name; importing it only now keeps start-up lean. Raises KeyError."""
    module, _, attribute = registry[name].partition(":")
    return getattr(import_module(module), attribute)
